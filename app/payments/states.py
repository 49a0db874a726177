"""What a payment may become: pure. Money moves on the way to PAID and on the way to REFUNDED, and nowhere else."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from app.toss.pay import Claim


class PaymentState(StrEnum):
    CREATED = "CREATED"
    """Recorded; Toss is being asked for a payToken. No money can move: nobody has one."""
    READY = "READY"
    """The user may authenticate it; nobody is executing it."""
    PENDING = "PENDING"
    """It is being executed, or was and the answer was lost: only Toss knows whether money has moved."""
    PAID = "PAID"
    REFUNDING = "REFUNDING"
    """As PENDING, for the money's way back."""
    REFUNDED = "REFUNDED"
    CANCELED = "CANCELED"
    """Over, by the user, by time or by us; no money has moved."""
    FAILED = "FAILED"
    """Over, because Toss refused or never got it; no money has moved."""
    HELD = "HELD"
    """What Toss says contradicts what we know. Nothing happens until a person has looked at it."""


_S = PaymentState

MOVES: Final[dict[PaymentState, frozenset[PaymentState]]] = {
    _S.CREATED: frozenset({_S.READY, _S.CANCELED, _S.FAILED, _S.HELD}),
    _S.READY: frozenset({_S.PENDING, _S.PAID, _S.CANCELED, _S.HELD}),
    _S.PENDING: frozenset({_S.READY, _S.PAID, _S.CANCELED, _S.FAILED, _S.HELD}),
    _S.PAID: frozenset({_S.REFUNDING, _S.REFUNDED, _S.HELD}),
    _S.REFUNDING: frozenset({_S.PAID, _S.REFUNDED, _S.HELD}),
    _S.REFUNDED: frozenset({_S.HELD}),
    _S.CANCELED: frozenset({_S.HELD}),
    _S.FAILED: frozenset({_S.HELD}),
    _S.HELD: frozenset({_S.READY, _S.PENDING, _S.PAID, _S.CANCELED}),
}
"""All that is allowed. Out of HELD a payment comes only when a person asks Toss again (`recheck`)."""

OPEN: Final = frozenset({_S.CREATED, _S.READY, _S.PENDING, _S.REFUNDING})
"""Something is still to come; `reconcile` watches these."""
UNSETTLED: Final = (_S.PENDING, _S.REFUNDING, _S.HELD)
"""Nobody knows whether money has moved, or what is known contradicts itself."""
OVER: Final = frozenset({_S.CANCELED, _S.FAILED})
"""Its order may be paid by another payment."""
MOVED: Final = frozenset({_S.PAID, _S.REFUNDING, _S.REFUNDED})
"""Money has moved."""

SEEN: Final[dict[str, PaymentState]] = {
    "PAY_STANDBY": _S.READY,
    "PAY_APPROVED": _S.READY,
    "PAY_CANCEL": _S.CANCELED,
    "PAY_PROGRESS": _S.PENDING,
    "PAY_COMPLETE": _S.PAID,
    "REFUND_PROGRESS": _S.REFUNDING,
    "REFUND_SUCCESS": _S.REFUNDED,
    "SETTLEMENT_COMPLETE": _S.PAID,
    "SETTLEMENT_REFUND_COMPLETE": _S.REFUNDED,
}
"""Toss's payStatus in our words (apps-in-toss reference 8.6)."""


def way(state: PaymentState, seen: PaymentState) -> tuple[PaymentState, ...]:
    """The moves, one after the other, by which a payment gets to what Toss was seen to say. Empty: none is needed.

    A refund of which we did not know that it was paid, or that was made past us (in Toss's console), goes by way of
    PAID. What cannot be true of a payment in `state` leads to HELD, and out of HELD nowhere.
    """
    if seen is state or (state in OVER and seen in (_S.READY, *OVER)):
        return ()  # of what is over for us, Toss may still think that it could be paid; we never will
    if seen in MOVES[state]:
        return (seen,)
    if seen in (_S.REFUNDING, _S.REFUNDED) and _S.PAID in MOVES[state]:
        return (_S.PAID, seen)
    return (_S.HELD,) if _S.HELD in MOVES[state] else ()


@dataclass(frozen=True)
class Ours:
    """What we know of a payment, to compare an answer with."""

    order_no: str
    pay_token: str | None
    amount: int
    is_test: bool

    @property
    def mode(self) -> str:
        return "TEST" if self.is_test else "LIVE"


def contradiction(ours: Ours, claim: Claim) -> str | None:
    """The first field in which an answer says something else than we know; None if it says nothing else."""
    pairs = {
        "orderNo": (ours.order_no, claim.order_no),
        "payToken": (ours.pay_token, claim.pay_token),
        "amount": (ours.amount, claim.amount),
        "mode": (ours.mode, claim.mode),
    }
    return next(
        (name for name, (own, said) in pairs.items() if own is not None and said is not None and own != said), None
    )


def is_proof(claim: Claim) -> bool:
    """Whether an answer says enough to be believed that money has moved for this payment."""
    return claim.order_no is not None and claim.pay_token is not None and claim.amount is not None
