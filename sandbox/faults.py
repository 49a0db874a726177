"""Orders to misbehave. Each is spent on the calls it names and then gone."""

import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import Field

from sandbox.switches import WireModel


class CallName(StrEnum):
    TOKEN = "token"  # noqa: S105
    REQUEST = "request"
    STATUS = "status"
    RESULT = "result"


class FaultKind(StrEnum):
    # Before the effect: Toss has done nothing yet.
    SLOW = "slow"
    RESET_BEFORE = "reset_before"
    HOLD_BEFORE = "hold_before"
    TOKEN_REJECTED = "token_rejected"  # noqa: S105
    # Instead of the effect, or after it when `after_effect` is set (the answer is lost at a gateway).
    FAIL = "fail"
    FAIL_200 = "fail_200"
    OAUTH_ERROR = "oauth_error"
    HTML_502 = "html_502"
    # After the effect, whatever the answer.
    RESET_AFTER = "reset_after"
    HOLD = "hold"
    TRUNCATED_JSON = "truncated_json"
    # After the effect, and only on a success: the order waits for one.
    BIG_BODY = "big_body"
    MISSING_FIELD = "missing_field"
    EXTRA_FIELD = "extra_field"
    WRONG_TX = "wrong_tx"
    DAMAGED_TAG = "damaged_tag"
    WRONG_SESSION_ID = "wrong_session_id"
    WRONG_VERSION = "wrong_version"
    BAD_SIGNATURE = "bad_signature"


class SignatureVariant(StrEnum):
    """The bad cases of the `cms` vectors."""

    CONTENT_CHANGED = "content_changed"
    SIGNATURE_FLIP = "signature_flip"
    OTHER_TX = "other_tx"
    EXPIRED_LEAF = "expired_leaf"
    FOREIGN_CA = "foreign_ca"


_BEFORE = {FaultKind.SLOW, FaultKind.RESET_BEFORE, FaultKind.HOLD_BEFORE, FaultKind.TOKEN_REJECTED}
_INSTEAD = {FaultKind.FAIL, FaultKind.FAIL_200, FaultKind.OAUTH_ERROR, FaultKind.HTML_502}
_ANY_ANSWER = {FaultKind.RESET_AFTER, FaultKind.HOLD, FaultKind.TRUNCATED_JSON}


class FaultOrder(WireModel):
    call: CallName
    kind: FaultKind
    times: int = Field(default=1, ge=1)
    tx_id: str | None = None
    """Only calls about this transaction."""
    delay: float = Field(default=0.0, ge=0.0)
    """Seconds to wait first; with any kind."""
    after_effect: bool = False
    """For fail, fail_200, oauth_error and html_502: lose the answer of a call that took effect."""
    code: str = "CE0001"
    """For fail and fail_200; CE0001 is a system error (reference 7)."""
    http_status: int | None = None
    """For fail and oauth_error."""
    error: str = "server_error"
    """For oauth_error."""
    field: str | None = None
    """For missing_field; for damaged_tag, wrong_session_id and wrong_version, which else mean all fields."""
    variant: SignatureVariant = SignatureVariant.CONTENT_CHANGED
    size: int = Field(default=8 * 1024 * 1024, ge=1)
    """Bytes of padding, for big_body."""

    @property
    def acts_before(self) -> bool:
        return self.kind in _BEFORE or (self.kind in _INSTEAD and not self.after_effect)

    @property
    def needs_success(self) -> bool:
        return not self.acts_before and self.kind not in _ANY_ANSWER and self.kind not in _INSTEAD


@dataclass
class FaultQueue:
    orders: list[FaultOrder] = field(default_factory=list)

    def add(self, order: FaultOrder) -> None:
        self.orders.append(order)

    def take_before(self, call: CallName, tx_id: str | None) -> FaultOrder | None:
        return self._take([order for order in self._aimed_at(call, tx_id) if order.acts_before])

    def take_after(self, call: CallName, tx_id: str | None, *, success: bool) -> FaultOrder | None:
        return self._take(
            [
                order
                for order in self._aimed_at(call, tx_id)
                if not order.acts_before and (success or not order.needs_success)
            ]
        )

    def _aimed_at(self, call: CallName, tx_id: str | None) -> list[FaultOrder]:
        return [order for order in self.orders if order.call == call and order.tx_id in (None, tx_id)]

    def _take(self, candidates: list[FaultOrder]) -> FaultOrder | None:
        if not candidates:
            return None
        order = candidates[0]
        if order.times > 1:
            order.times -= 1
        else:
            self.orders.remove(order)
        return order


@dataclass(eq=False)
class Hold:
    """A call that is kept waiting; released from any thread."""

    call: CallName
    tx_id: str | None
    released: Future[None] = field(default_factory=Future)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def release(self) -> None:
        with self._lock:
            if not self.released.done():
                self.released.set_result(None)
