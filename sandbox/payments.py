"""What Toss remembers of payments, and how they move (reference of Apps in Toss, 8)."""

import math
import secrets
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sandbox.clock import Clock, pay_time
from sandbox.shared import CallFailed, NotPossible, changing
from sandbox.switches import ExecuteRepeat, RefundRepeat, Switches


class PayStatus(StrEnum):
    STANDBY = "PAY_STANDBY"
    APPROVED = "PAY_APPROVED"
    CANCEL = "PAY_CANCEL"
    PROGRESS = "PAY_PROGRESS"
    COMPLETE = "PAY_COMPLETE"
    REFUND_PROGRESS = "REFUND_PROGRESS"
    REFUND_SUCCESS = "REFUND_SUCCESS"
    SETTLEMENT_COMPLETE = "SETTLEMENT_COMPLETE"
    SETTLEMENT_REFUND_COMPLETE = "SETTLEMENT_REFUND_COMPLETE"


_BEFORE_MONEY = {PayStatus.STANDBY, PayStatus.APPROVED}
_RUNNING = {PayStatus.PROGRESS, PayStatus.REFUND_PROGRESS}
_REFUNDED = {PayStatus.REFUND_SUCCESS, PayStatus.SETTLEMENT_REFUND_COMPLETE}
_SETTLED = {
    PayStatus.COMPLETE: PayStatus.SETTLEMENT_COMPLETE,
    PayStatus.REFUND_SUCCESS: PayStatus.SETTLEMENT_REFUND_COMPLETE,
}


class Kind(StrEnum):
    ONE_OFF = "one_off"
    BILLING = "billing"
    """A charge of a billing key."""


_BEFORE_RUNNING = {
    (PayStatus.PROGRESS, Kind.ONE_OFF): PayStatus.APPROVED,
    (PayStatus.PROGRESS, Kind.BILLING): PayStatus.CANCEL,
    (PayStatus.REFUND_PROGRESS, Kind.ONE_OFF): PayStatus.COMPLETE,
    (PayStatus.REFUND_PROGRESS, Kind.BILLING): PayStatus.COMPLETE,
}
"""Where a failure leads back to (inferred); nobody can execute a failed charge once more."""


class PayMethod(StrEnum):
    TOSS_MONEY = "TOSS_MONEY"
    CARD = "CARD"


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What the partner asks for. Amounts are whole KRW."""

    order_no: str
    product_desc: str
    amount: int
    amount_tax_free: int
    amount_taxable: int | None = None
    amount_vat: int | None = None
    amount_service_fee: int = 0
    method: PayMethod = PayMethod.TOSS_MONEY
    spread_out: int = 0
    is_test: bool

    def parts(self) -> dict[str, int]:
        """With what Toss computes: VAT is an eleventh of the taxable part, rounded up (reference 8.2)."""
        taxed = self.amount - self.amount_tax_free - self.amount_service_fee
        vat = math.ceil(taxed / 11) if self.amount_vat is None else self.amount_vat
        return {
            "amountTaxable": taxed - vat if self.amount_taxable is None else self.amount_taxable,
            "amountTaxFree": self.amount_tax_free,
            "amountVat": vat,
            "amountServiceFee": self.amount_service_fee,
        }


@dataclass(kw_only=True)
class Payment:
    app: str
    user: str
    pay_token: str = field(repr=False)
    kind: Kind
    charge: Charge
    status: PayStatus
    made_at: datetime
    discount: int = 0
    executions: int = 0
    """How often money was taken. More than once is the mistake that all of this is about."""
    refunds: int = 0
    """How often money was given back."""
    pay_transaction: str | None = None
    refund_transaction: str | None = None
    refund_no: str | None = None
    paid_at: datetime | None = None
    refunded_at: datetime | None = None

    @property
    def order_no(self) -> str:
        return self.charge.order_no

    @property
    def amount(self) -> int:
        return self.charge.amount

    @property
    def is_test(self) -> bool:
        return self.charge.is_test

    @property
    def mode(self) -> str:
        return "TEST" if self.is_test else "LIVE"

    @property
    def paid_amount(self) -> int:
        return self.amount - self.discount


class Payments:
    """`on_paid` is told of each payment that has just taken money; it must not wait.

    Methods of the device name a payment by its payToken, as the SDK does, or by its orderNo.
    """

    def __init__(
        self,
        clock: Clock,
        changed: threading.Condition,
        switches: Callable[[], Switches],
        on_paid: Callable[[Payment], None],
    ) -> None:
        self._clock = clock
        self._changed = changed
        self._switches = switches
        self._on_paid = on_paid
        self.clear()

    def clear(self) -> None:
        with changing(self._changed):
            self._payments: dict[tuple[str, str], Payment] = {}
            """By mini-app and orderNo: live and test numbers must not collide (reference 8.2)."""

    # The partner API. All of it raises `CallFailed`.

    def make(self, app: str, user: str, charge: Charge) -> Payment:
        return self.add(app, user, charge, Kind.ONE_OFF, PayStatus.STANDBY)

    def add(self, app: str, user: str, charge: Charge, kind: Kind, status: PayStatus) -> Payment:
        with changing(self._changed):
            # Plain Toss Pay allows a number again until the buyer has authenticated; Apps in Toss says unique.
            if (app, charge.order_no) in self._payments:
                raise CallFailed("PAYMENT_DUPLICATION_ORDER_NO", "this orderNo was used before")
            payment = self._payments[app, charge.order_no] = Payment(
                app=app,
                user=user,
                pay_token=secrets.token_hex(15),
                kind=kind,
                charge=charge,
                status=status,
                made_at=self._clock.now(),
                discount=min(self._switches().discount, charge.amount - 1),
            )
            return replace(payment)

    def execute(
        self, app: str, user: str, *, pay_token: str, order_no: str | None = None, is_test: bool
    ) -> Payment:
        with changing(self._changed):
            payment = self._owned(app, user, is_test=is_test, pay_token=pay_token)
            if order_no not in (None, payment.order_no):
                raise CallFailed("COMMON_INVALID_PARAMETER", "the orderNo is of another payment")  # code inferred
            return self.take_money(app, payment.order_no)

    def take_money(self, app: str, order_no: str) -> Payment:
        with changing(self._changed):
            payment = self._payments[app, order_no]
            match payment.status:
                case PayStatus.APPROVED:
                    payment.status = PayStatus.PROGRESS
                    if self._switches().stays_in_progress:
                        raise _pending()
                    self._take(payment)
                case PayStatus.STANDBY:
                    raise CallFailed("EXECUTE_PAY_NOT_APPROVED", "the buyer has not authenticated")
                case PayStatus.CANCEL:
                    raise CallFailed(self._switches().execute_cancelled_code, "it was cancelled, or has expired")
                case PayStatus.PROGRESS:
                    raise _pending()
                case _:
                    if self._switches().execute_repeat is ExecuteRepeat.EXISTING_PAYMENT:
                        raise CallFailed("PAYMENT_EXISTING_PAYMENT", "it was executed before")
            return replace(payment)

    def refund(self, app: str, user: str, *, pay_token: str, is_test: bool) -> Payment:
        """All of it: there is no amount to name (reference 8.4)."""
        with changing(self._changed):
            payment = self._owned(app, user, is_test=is_test, pay_token=pay_token)
            match payment.status:
                case PayStatus.COMPLETE:
                    payment.status = PayStatus.REFUND_PROGRESS
                    if self._switches().stays_in_progress:
                        raise _pending()
                    self._give_back(payment)
                case status if status in _REFUNDED:
                    if self._switches().refund_repeat is RefundRepeat.ALREADY_REFUNDED:
                        raise CallFailed("REFUND_ALREADY_REFUNDED", "it was refunded before")
                case PayStatus.REFUND_PROGRESS:
                    raise _pending()
                case PayStatus.SETTLEMENT_COMPLETE:
                    raise CallFailed("COMMON_REFUND_ERROR", "it is settled")  # the code is inferred
                case _:
                    raise CallFailed("TRANSACTION_NOT_COMPLETE", "no money was taken")
            return replace(payment)

    def look_up(
        self, app: str, user: str, *, pay_token: str | None, order_no: str | None, is_test: bool
    ) -> Payment:
        with self._changed:
            return replace(self._owned(app, user, is_test=is_test, pay_token=pay_token, order_no=order_no))

    def order_no_of(self, app: str, pay_token: str) -> str | None:
        with self._changed:
            found = (each for each in self._payments.values() if (each.app, each.pay_token) == (app, pay_token))
            return next((each.order_no for each in found), None)

    # The device, and Toss's inside. All of it raises `NotPossible`.

    def payments(self) -> list[Payment]:
        """Copies, oldest first."""
        with self._changed:
            return [replace(self._aged(payment)) for payment in self._payments.values()]

    def payment(self, payment: str) -> Payment:
        """A copy."""
        with self._changed:
            return replace(self._named(payment))

    def authenticate(self, payment: str) -> None:
        """`checkoutPayment` with success: no money moves."""
        with changing(self._changed):
            self._named(payment, PayStatus.STANDBY).status = PayStatus.APPROVED

    def cancel(self, payment: str) -> None:
        with changing(self._changed):
            self._named(payment, *_BEFORE_MONEY).status = PayStatus.CANCEL

    def expire(self, payment: str) -> None:
        """As the clock would."""
        self.cancel(payment)

    def settle(self, payment: str) -> None:
        with changing(self._changed):
            found = self._named(payment, *_SETTLED)
            found.status = _SETTLED[found.status]

    def finish(self, payment: str, *, is_success: bool = True) -> None:
        """End what stays in progress: money moves now, or all is as before."""
        with changing(self._changed):
            found = self._named(payment, *_RUNNING)
            is_pay = found.status is PayStatus.PROGRESS
            if not is_success:
                found.status = _BEFORE_RUNNING[found.status, found.kind]
            elif is_pay:
                self._take(found)
            else:
                self._give_back(found)

    def snapshot(self) -> list[dict[str, Any]]:
        """Without users and payTokens."""
        return [
            {
                "orderNo": payment.order_no,
                "appName": payment.app,
                "kind": payment.kind.value,
                "mode": payment.mode,
                "productDesc": payment.charge.product_desc,
                "amount": payment.amount,
                "payStatus": payment.status.value,
                "executions": payment.executions,
                "refunds": payment.refunds,
                "createdTs": pay_time(payment.made_at),
            }
            for payment in self.payments()
        ]

    # All of these are called with the lock held.

    def _owned(
        self, app: str, user: str, *, is_test: bool, pay_token: str | None = None, order_no: str | None = None
    ) -> Payment:
        if order_no is None and pay_token is not None:
            order_no = self.order_no_of(app, pay_token)
        payment = self._payments.get((app, order_no or ""))
        # That a payment of the other mode, or named by two keys that differ, is not found is inferred.
        if payment is None or pay_token not in (None, payment.pay_token) or payment.is_test != is_test:
            raise CallFailed("TRANSACTION_NOT_FOUND", "there is no such payment in this mode")
        if payment.user != user:
            raise CallFailed("PAY_UNAUTHORIZED", "it is another user's")
        return self._aged(payment)

    def _named(self, name: str, *wanted: PayStatus) -> Payment:
        found = (each for each in self._payments.values() if name in (each.pay_token, each.order_no))
        payment = next(found, None)
        if payment is None:
            raise NotPossible("there is no such payment")
        self._aged(payment)
        if wanted and payment.status not in wanted:
            raise NotPossible(f"this payment is {payment.status}")
        return payment

    def _aged(self, payment: Payment) -> Payment:
        life = timedelta(seconds=self._switches().payment_life_seconds)
        if payment.status in _BEFORE_MONEY and self._clock.now() >= payment.made_at + life:
            payment.status = PayStatus.CANCEL
        return payment

    def _take(self, payment: Payment) -> None:
        payment.status = PayStatus.COMPLETE
        payment.executions += 1
        payment.pay_transaction = str(uuid.uuid4())
        payment.paid_at = self._clock.now()
        self._on_paid(replace(payment))

    def _give_back(self, payment: Payment) -> None:
        payment.status = PayStatus.REFUND_SUCCESS
        payment.refunds += 1
        payment.refund_transaction = str(uuid.uuid4())
        payment.refund_no = uuid.uuid4().hex
        payment.refunded_at = self._clock.now()


def _pending() -> CallFailed:
    # Which answer a running withdrawal gives is not documented; the name says what it means (reference 8.8).
    return CallFailed("TRANSACTION_PENDING_ERROR", "it is in progress")
