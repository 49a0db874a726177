"""Orders to misbehave. Each is spent on the calls it names and then gone."""

import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from sandbox.switches import WireModel


class CallName(StrEnum):
    TOKEN = "token"  # noqa: S105
    REQUEST = "request"
    STATUS = "status"
    RESULT = "result"
    # The partner API (reference of Apps in Toss, 6 and 7).
    LOGIN_EXCHANGE = "login_exchange"
    LOGIN_REFRESH = "login_refresh"
    LOGIN_ME = "login_me"
    UNLINK_TOKEN = "unlink_token"  # noqa: S105
    UNLINK_USER = "unlink_user"
    ANON_VERIFY = "anon_verify"
    # Its money (8 to 10).
    PAY_MAKE = "pay_make"
    PAY_EXECUTE = "pay_execute"
    PAY_REFUND = "pay_refund"
    PAY_STATUS = "pay_status"
    BILLING_CREATE = "billing_create"
    BILLING_EXECUTE = "billing_execute"
    BILLING_STATUS = "billing_status"
    BILLING_REMOVE = "billing_remove"
    BILLING_REFUND = "billing_refund"
    IAP_STATUS = "iap_status"

    @property
    def is_partner(self) -> bool:
        """At the partner API, behind a client certificate; the others are of Toss Cert."""
        return self not in (CallName.TOKEN, CallName.REQUEST, CallName.STATUS, CallName.RESULT)

    @property
    def is_of_money(self) -> bool:
        return self.value.startswith(("pay_", "billing_", "iap_"))


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
    WRONG_TYPE = "wrong_type"
    WRONG_VALUE = "wrong_value"
    """A field says something else that it might well say: another amount, orderNo, payToken, mode."""
    WRONG_AAD = "wrong_aad"
    WRONG_KEY = "wrong_key"


class SignatureVariant(StrEnum):
    """The bad cases of the `cms` vectors."""

    CONTENT_CHANGED = "content_changed"
    SIGNATURE_FLIP = "signature_flip"
    OTHER_TX = "other_tx"
    EXPIRED_LEAF = "expired_leaf"
    FOREIGN_CA = "foreign_ca"


class ResultType(StrEnum):
    """What a failure may say it is; all but FAIL tell of Toss's own upstream call (reference 3.1)."""

    FAIL = "FAIL"
    HTTP_TIMEOUT = "HTTP_TIMEOUT"
    NETWORK_ERROR = "NETWORK_ERROR"
    EXECUTION_FAIL = "EXECUTION_FAIL"
    INTERRUPTED = "INTERRUPTED"
    INTERNAL_ERROR = "INTERNAL_ERROR"


_BEFORE = {FaultKind.SLOW, FaultKind.RESET_BEFORE, FaultKind.HOLD_BEFORE, FaultKind.TOKEN_REJECTED}
_INSTEAD = {FaultKind.FAIL, FaultKind.FAIL_200, FaultKind.OAUTH_ERROR, FaultKind.HTML_502}
_ANY_ANSWER = {FaultKind.RESET_AFTER, FaultKind.HOLD, FaultKind.TRUNCATED_JSON}
_CERT_ONLY = {FaultKind.WRONG_TX, FaultKind.WRONG_SESSION_ID, FaultKind.WRONG_VERSION, FaultKind.BAD_SIGNATURE}
_PARTNER_ONLY = {FaultKind.WRONG_TYPE, FaultKind.WRONG_VALUE, FaultKind.WRONG_AAD, FaultKind.WRONG_KEY}
_LOGIN_ME_ONLY = {FaultKind.DAMAGED_TAG, FaultKind.WRONG_AAD, FaultKind.WRONG_KEY}
"""Of the partner API, only this call answers with encrypted fields."""


class FaultOrder(WireModel):
    call: CallName
    kind: FaultKind
    times: int = Field(default=1, ge=1)
    tx_id: str | None = None
    """Only calls of Toss Cert about this transaction."""
    subject: str | None = None
    """Only calls of money about this orderNo, orderId or number of a billing key."""
    delay: float = Field(default=0.0, ge=0.0)
    """Seconds to wait first; with any kind."""
    after_effect: bool = False
    """For fail, fail_200, oauth_error and html_502: lose the answer of a call that took effect."""
    code: str | None = None
    """For fail and fail_200; else the face's system error: CE0001 or INTERNAL_ERROR."""
    result_type: ResultType = ResultType.FAIL
    """For fail and fail_200 of the partner API."""
    retry_after_seconds: int | None = None
    """For fail and fail_200 of the partner API, with code 4095."""
    http_status: int | None = None
    """For fail and oauth_error."""
    error: str | None = None
    """For oauth_error; else server_error, or invalid_grant at the partner API."""
    field: str | None = None
    """For missing_field, wrong_type and wrong_value; for damaged_tag, wrong_session_id, wrong_version, wrong_aad
    and wrong_key, which else mean all fields."""
    variant: SignatureVariant = SignatureVariant.CONTENT_CHANGED
    size: int = Field(default=8 * 1024 * 1024, ge=1)
    """Bytes of padding, for big_body."""

    @model_validator(mode="after")
    def _has_a_meaning(self) -> Self:
        """An order that no call could ever spend is a mistake of the test that gives it."""
        foreign = _CERT_ONLY if self.call.is_partner else _PARTNER_ONLY
        without_fields = self.call.is_partner and self.call is not CallName.LOGIN_ME
        if self.kind in foreign or (without_fields and self.kind in _LOGIN_ME_ONLY):
            raise ValueError(f"{self.kind} has no meaning for {self.call}")
        if self.call.is_partner and self.tx_id is not None:
            raise ValueError(f"txId has no meaning for {self.call}")
        if not self.call.is_of_money and self.subject is not None:
            raise ValueError(f"subject has no meaning for {self.call}")
        return self

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

    def take_before(self, call: CallName, subject: str | None) -> FaultOrder | None:
        return self._take([order for order in self._aimed_at(call, subject) if order.acts_before])

    def take_after(self, call: CallName, subject: str | None, *, success: bool) -> FaultOrder | None:
        return self._take(
            [
                order
                for order in self._aimed_at(call, subject)
                if not order.acts_before and (success or not order.needs_success)
            ]
        )

    def _aimed_at(self, call: CallName, subject: str | None) -> list[FaultOrder]:
        return [
            order
            for order in self.orders
            if order.call == call and (order.tx_id or order.subject) in (None, subject)
        ]

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
    subject: str | None
    released: Future[None] = field(default_factory=Future)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def release(self) -> None:
        with self._lock:
            if not self.released.done():
                self.released.set_result(None)
