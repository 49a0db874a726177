"""What Toss's words about a purchase and a subscription mean: pure (apps-in-toss reference 10, 14.2)."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from enum import StrEnum
from typing import Any, Final, Self

from app.toss.iap import instant_of

CYCLES: Final = {"WEEKLY": timedelta(days=7), "MONTHLY": timedelta(days=30), "YEARLY": timedelta(days=365)}
"""Of a renewal (reference 10.3)."""


class PurchaseState(StrEnum):
    GRANTED = "GRANTED"
    REFUNDED = "REFUNDED"
    """Final. Of a subscription it says that money was given back once; its notices say whether it goes on."""


class Meaning(StrEnum):
    """Of an order's status."""

    PAID = "PAID"
    REFUNDED = "REFUNDED"
    FAILED = "FAILED"
    FOREIGN = "FOREIGN"
    """Of another mini-app."""
    OPEN = "OPEN"
    """Not decided, or not visible yet: ask again."""


MEANINGS: Final = {
    # Their meanings were swapped in 2026; in both years both are paid (reference 10.1, 18).
    "PAYMENT_COMPLETED": Meaning.PAID,
    "PURCHASED": Meaning.PAID,
    "REFUNDED": Meaning.REFUNDED,
    "FAILED": Meaning.FAILED,
    "MINIAPP_MISMATCH": Meaning.FOREIGN,
}
"""NOT_FOUND, ORDER_IN_PROGRESS, PAYMENT_PENDING, ERROR and every new word are OPEN."""


def meaning_of(status: str) -> Meaning:
    return MEANINGS.get(status, Meaning.OPEN)


# --- Subscriptions ----------------------------------------------------------------------------------------

REVOKED: Final = "REVOKED"
"""A reason and a status: the money was given back, and access ends at once."""
IN_GRACE_PERIOD: Final = "IN_GRACE_PERIOD"
PRECEDENCE: Final = {"CREATED": 0, "EXPIRED": 2, REVOKED: 3}
"""Of notices with one and the same time: nothing comes before the beginning, nothing after the end."""
OTHER_PRECEDENCE: Final = 1


@dataclass(frozen=True)
class Change:
    """What a notice says of a subscription as it is from `occurred_at` on."""

    order_id: str
    sku: str
    reason: str
    status: str
    access_granted: bool
    expires_at: datetime | None
    auto_renew: bool | None
    occurred_at: datetime

    @classmethod
    def of(cls, content: Mapping[str, Any], zone: tzinfo) -> Self:
        """From the content of a notice, as the door has read it."""
        occurred_at = instant_of(content["occurredAt"], zone)
        if occurred_at is None:
            raise ValueError("a notice without a time")
        return cls(
            order_id=content["orderId"],
            sku=content["sku"],
            reason=content["changeReason"],
            status=content["status"],
            access_granted=content["accessGranted"],
            expires_at=instant_of(content["expiresAt"], zone),
            auto_renew=content["autoRenew"],
            occurred_at=occurred_at,
        )

    @property
    def rank(self) -> int:
        """Orders notices of one time. Different ones never share it, so it does not matter which came first."""
        said = [self.sku, self.reason, self.status, self.access_granted, str(self.expires_at), self.auto_renew]
        digest = hashlib.sha256(json.dumps(said).encode()).digest()
        return PRECEDENCE.get(self.reason, OTHER_PRECEDENCE) << 56 | int.from_bytes(digest[:7])

    def is_newer(self, other: "Change") -> bool:
        return (self.occurred_at, self.rank) > (other.occurred_at, other.rank)

    @property
    def is_revocation(self) -> bool:
        return REVOKED in (self.reason, self.status)


def end_of_period(told: datetime | None, *, since: datetime, cycle: str | None) -> datetime | None:
    """When a subscription ends unless it is renewed: as Toss told, else (CREATED tells nothing) by its cycle."""
    return told or (since + CYCLES[cycle] if cycle is not None else None)


# --- Entitlements -----------------------------------------------------------------------------------------


class Kind(StrEnum):
    ONE_TIME = "ONE_TIME"
    SUBSCRIPTION = "SUBSCRIPTION"


@dataclass(frozen=True)
class Holding:
    """One order as it counts towards what its user may use."""

    order_id: str
    sku: str
    """By the newest notice, if there is one."""
    state: PurchaseState
    granted_at: datetime | None
    refunded_at: datetime | None
    change: Change | None
    """The newest; None for a one-time product, and before the first notice."""
    cycle: str | None
    """Of a subscription's renewal, where it is configured."""

    @property
    def kind(self) -> Kind:
        return Kind.SUBSCRIPTION if self.change is not None or self.cycle is not None else Kind.ONE_TIME

    @property
    def expires_at(self) -> datetime | None:
        """None for what does not end by itself, or nobody knows when."""
        if self.change is not None:
            return end_of_period(self.change.expires_at, since=self.change.occurred_at, cycle=self.cycle)
        if self.cycle is not None and self.granted_at is not None:
            return end_of_period(None, since=self.granted_at, cycle=self.cycle)
        return None

    def has_access(self, now: datetime, *, grace: timedelta) -> bool:
        change = self.change
        if change is None:
            return self.state is PurchaseState.GRANTED and not self._is_over(now, grace)
        # A refund that was seen is overruled by what Toss says of a later moment, and by nothing else.
        is_refunded = self.refunded_at is not None and self.refunded_at >= change.occurred_at
        if not change.access_granted or change.is_revocation or is_refunded:
            return False
        # Of the grace that a store gives an unpaid renewal, Toss names no end: a notice will (reference 14.2).
        return change.status == IN_GRACE_PERIOD or not self._is_over(now, grace)

    def _is_over(self, now: datetime, grace: timedelta) -> bool:
        return self.expires_at is not None and now >= self.expires_at + grace


@dataclass(frozen=True)
class Entitlement:
    """What a user may use, by all their orders of it together."""

    sku: str
    kind: Kind
    expires_at: datetime | None
    auto_renew: bool | None
    order_ids: tuple[str, ...]


def entitlements_of(holdings: Iterable[Holding], now: datetime, *, grace: timedelta) -> list[Entitlement]:
    """The union: after a change of plan two subscriptions may run at once (reference 14.2)."""
    by_sku: dict[tuple[str, Kind], list[Holding]] = {}
    for holding in holdings:
        if holding.has_access(now, grace=grace):
            by_sku.setdefault((holding.sku, holding.kind), []).append(holding)
    return [_united(*key, holdings) for key, holdings in sorted(by_sku.items())]


def _united(sku: str, kind: Kind, holdings: list[Holding]) -> Entitlement:
    ends = [holding.expires_at for holding in holdings]
    known = [end for end in ends if end is not None]
    renewals = {holding.change.auto_renew for holding in holdings if holding.change is not None} - {None}
    return Entitlement(
        sku=sku,
        kind=kind,
        expires_at=max(known) if len(known) == len(ends) else None,
        auto_renew=True in renewals if renewals else None,
        order_ids=tuple(sorted(holding.order_id for holding in holdings)),
    )
