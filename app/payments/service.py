"""Toss Pay, the use cases: begin, execute, find out, refund. Every call states its intent first, and no answer of
Toss but a status decides what became of a call that got lost (G4, G13).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

import structlog

from app.customer import Customer
from app.errors import (
    AppError,
    OrderNotPayable,
    PaymentEnded,
    PaymentHeld,
    PaymentInProgress,
    PaymentNotFound,
    ProductNotFound,
    RefundNotPossible,
    RefundRefused,
    StorageUnavailable,
    TossNotConfigured,
)
from app.payments.catalogue import MAX_AMOUNT, Catalogue
from app.payments.ledger import Ledger, Verdict
from app.payments.refusals import NOT_FOUND, is_clear_no, is_clear_no_to_refund, is_unknown_payment, pay_error
from app.payments.states import MOVED, OPEN, OVER, SEEN, Ours, PaymentState, contradiction, is_proof
from app.payments.tables import MAX_METHOD, MAX_REFERENCE, Payment, PaymentStep
from app.toss.errors import NotSent, TossError, TossRejected
from app.toss.governor import Lane
from app.toss.partner import TossUser
from app.toss.pay import Claim, Execution, PayApi, Refund, Status
from app.upstream import ASK_AGAIN, is_away

AT_ONCE: Final = 8
"""Payments that `reconcile` asks about at the same time."""
NEW_PAYMENTS: Final = 3
"""Tries to find an order's payment alive, or to begin one."""
PAID_ALREADY: Final = frozenset({"PAY_COMPLETE", "SETTLEMENT_COMPLETE"})

Clock = Callable[[], datetime]
Checkpoint = Callable[[str], Awaitable[None]]
Content = Mapping[str, Any]


class Refunds(Protocol):
    """Who gives money back: PayApi; for charges BillingApi, whose path may differ (apps-in-toss reference 9)."""

    async def refund(self, user: TossUser, *, pay_token: str, reason: str, lane: Lane = ...) -> Refund: ...


@dataclass(frozen=True)
class Rules:
    """The operator's choices."""

    status_by_order_no: bool
    abandon_after: timedelta
    retention: timedelta


@dataclass(frozen=True)
class Reconciled:
    looked_at: int
    moved: int
    erased: int


class PaymentService:
    """Without `pay` (no client certificate, or BFF_PAY__MODE is not set) nobody can pay."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        catalogue: Catalogue,
        pay: PayApi | None,
        charge_refunds: Refunds | None,
        rules: Rules,
        clock: Clock,
        checkpoint: Checkpoint,
    ) -> None:
        self.ledger = ledger
        self._catalogue = catalogue
        self._pay = pay
        self._charge_refunds = charge_refunds
        self._rules = rules
        self._clock = clock
        self._checkpoint = checkpoint
        self._log = structlog.stdlib.get_logger("app.payments")

    # --- Beginning ----------------------------------------------------------------------------------------

    async def begin_for_product(self, payer: Customer, product_id: str) -> tuple[Payment, str]:
        """A payment that the user may now authenticate, and its payToken.

        Raises: ProductNotFound, PaymentRefused, PaymentEnded, TossNotConfigured, and what a failed call to Toss
        raises. A failure leaves nothing behind that could cost money.
        """
        pay = self._api()
        product = self._catalogue.product(product_id)
        if product is None:
            raise ProductNotFound
        return await self._make(pay, await self.ledger.open_for_product(payer, product_id, product.charge()))

    async def begin_for_order(self, payer: Customer, order_id: str) -> tuple[Payment, str]:
        """As `begin_for_product`. Begun twice, it is the same payment, unless the first has ended.

        Raises: OrderNotFound, OrderNotPayable, PaymentInProgress, and as above.
        """
        pay = self._api()
        for _ in range(NEW_PAYMENTS):
            payment, is_new = await self.ledger.open_for_order(payer, order_id)
            if is_new:
                return await self._make(pay, payment)
            # The user may have cancelled it in Toss's sheet, where we are not.
            payment = await self._looked_at(payment, cause="begin_again")
            pay_token = self.ledger.pay_token_of(payment)
            if payment.is_in(PaymentState.READY) and pay_token is not None:
                return payment, pay_token
            if not payment.is_in(*OVER):
                raise OrderNotPayable
        raise PaymentInProgress(retry_after=ASK_AGAIN)

    async def _looked_at(self, payment: Payment, *, cause: str) -> Payment:
        try:
            return await self.check(payment.order_no, cause=cause)
        except StorageUnavailable:
            raise
        except AppError as error:
            self._log.warning("payment_not_looked_at", order_no=payment.order_no, code=error.code)
            return payment

    async def _make(self, pay: PayApi, payment: Payment) -> tuple[Payment, str]:
        await self._checkpoint("payment_created")
        order_no = payment.order_no
        try:
            pay_token = await pay.make(self.ledger.toss_user_of(payment), order_no, payment.charge())
        except TossError as error:
            return await self._not_made(payment, error)
        await self._checkpoint("payment_made")
        return await self._made(payment, pay_token)

    async def _made(self, payment: Payment, pay_token: str) -> tuple[Payment, str]:
        made = Verdict(PaymentState.READY, is_certain=True, pay_token=pay_token)
        payment = await self.ledger.settle(payment.order_no, made, cause="make", version=payment.version)
        if not payment.is_in(PaymentState.READY):
            raise PaymentEnded  # it took so long that `reconcile` has given it up; its payToken goes to nobody
        return payment, pay_token

    async def _not_made(self, payment: Payment, error: TossError) -> tuple[Payment, str]:
        """Lost or refused. Without its payToken in anybody's hands it cannot cost money, so it may be given up."""
        order_no = payment.order_no
        if isinstance(error, NotSent) or is_clear_no(error):
            verdict = Verdict(PaymentState.FAILED, is_certain=True, toss_code=_code(error))
        else:
            found = await self._tried_verdict(payment)
            if found is not None and found.state is PaymentState.READY and found.pay_token is not None:
                return await self._made(payment, found.pay_token)
            verdict = Verdict(PaymentState.CANCELED, is_certain=True, toss_code=_code(error))
        await self.ledger.settle(order_no, verdict, cause="make", version=payment.version)
        raise pay_error(error) from error

    # --- Executing ----------------------------------------------------------------------------------------

    async def execute(self, order_no: str, *, key_hash: str) -> Payment:
        """Move the money of a payment that the user has authenticated. Of many callers one does it; the others get
        the payment as it is: PAID, or PENDING while nobody knows.

        Raises: PaymentNotFound, PaymentNotApproved, PaymentRefused, PaymentEnded, PaymentHeld, PaymentInProgress,
        and what a call raises that was never sent.
        """
        pay = self._api()
        payment = await self.of(order_no, key_hash=key_hash)
        if self._is_of_other_mode(payment):
            raise PaymentEnded("it was made in the other mode, test or live")
        pay_token = self.ledger.pay_token_of(payment)
        toss_user = self.ledger.toss_user_of(payment)
        claimed = await self.ledger.claim_execution(order_no) if pay_token is not None else None
        if claimed is None or pay_token is None:
            return as_it_is(await self.ledger.get(order_no))
        await self._checkpoint("payment_executing")
        try:
            execution = await pay.execute(toss_user, order_no=order_no, pay_token=pay_token)
        except TossError as error:
            return await self._not_executed(claimed, error)
        await self._checkpoint("payment_executed")
        return as_it_is(await self.paid(claimed, execution, cause="execute"))

    async def paid(self, payment: Payment, execution: Execution, *, cause: str) -> Payment:
        """After Toss said that the money has moved: the payment as it is, once that has been compared."""
        verdict = self._compared(payment, execution.claim, PaymentState.PAID, _facts(execution))
        if verdict is None:  # it has not said of what
            return await self.asked_about(payment, cause=cause)
        return await self.ledger.settle(payment.order_no, verdict, cause=cause)

    async def _not_executed(self, payment: Payment, error: TossError) -> Payment:
        if isinstance(error, NotSent):
            unsent = Verdict(PaymentState.READY, is_certain=True)
            await self.ledger.settle(payment.order_no, unsent, cause="not_sent", version=payment.version)
            raise pay_error(error) from error
        untouched = PaymentState.READY if is_clear_no(error) else None
        payment = await self.asked_about(payment, cause="execute", error=error, untouched=untouched)
        if payment.is_in(PaymentState.READY):
            raise pay_error(error) from error
        return as_it_is(payment)

    async def asked_about(
        self,
        payment: Payment,
        *,
        cause: str,
        error: TossError | None = None,
        untouched: PaymentState | None = None,
    ) -> Payment:
        """After an answer that decides nothing (`error`, if it was one): what Toss says became of it.

        `untouched`: the error says that the call is over; so things then stand, if a status shows it or the error
        is clear enough by itself. Else, if it cannot be found out now, the payment stays as it is, and `reconcile`
        goes on asking.
        """
        if error is not None:
            self._log.warning(
                "payment_outcome_asked", order_no=payment.order_no, why=type(error).__name__, toss_code=_code(error)
            )
        verdict = await self._tried_verdict(payment)
        if verdict is None and untouched is not None and error is not None and is_clear_no(error):
            verdict = Verdict(untouched)
        if verdict is None:
            return await self.ledger.get(payment.order_no)
        verdict = replace(verdict, is_certain=untouched is not None, toss_code=_code(error))
        return await self.ledger.settle(payment.order_no, verdict, cause=cause, version=payment.version)

    # --- Finding out --------------------------------------------------------------------------------------

    async def of(self, order_no: str, *, key_hash: str) -> Payment:
        """Raises: PaymentNotFound, also for somebody else's."""
        payment = await self.ledger.get(order_no)
        if payment.key_hash != key_hash:
            raise PaymentNotFound
        return payment

    async def seen_by_owner(self, order_no: str, *, key_hash: str) -> Payment:
        """As `of`. Somebody who waits for an open outcome has Toss asked, within the pace of the looks."""
        payment = await self.of(order_no, key_hash=key_hash)
        if payment.is_in(PaymentState.PENDING, PaymentState.REFUNDING) and self._pay is not None:
            due = await self.ledger.take_check(order_no)
            payment = await self._looked_at(due, cause="look") if due is not None else payment
        return payment

    async def check(
        self, order_no: str, *, cause: str, actor: str | None = None, lane: Lane = Lane.INTERACTIVE
    ) -> Payment:
        """Ask Toss, and bring the payment to where it is there.

        Raises: PaymentNotFound, TossNotConfigured, and what a failed call raises.
        """
        self._api()
        payment = await self.ledger.get(order_no)
        if self._is_of_other_mode(payment):
            return payment
        if payment.is_in(PaymentState.CREATED):
            return await self._give_up(payment)
        try:
            verdict = await self._verdict(payment, lane=lane)
        except TossError as error:
            is_unknown = is_unknown_payment(error)
            if is_unknown and self._is_lost_charge(payment):
                # Once the call is over, that means that there was none.
                verdict = Verdict(PaymentState.FAILED, toss_code=payment.toss_code or NOT_FOUND)
            elif (is_unknown or is_clear_no(error)) and payment.is_in(*OPEN) and self._is_old(payment):
                return await self._stuck(payment)
            elif is_unknown:
                self._log.error("payment_unknown_to_toss", order_no=order_no)
                return payment
            else:
                raise pay_error(error) from error
        if verdict is None:
            may_end = payment.is_in(PaymentState.READY) or self._is_lost_charge(payment)
            return await self._stuck(payment) if may_end and self._is_old(payment) else payment
        version = payment.version
        payment = await self.ledger.settle(
            order_no, verdict, cause=cause, version=version, actor=actor, may_release=actor is not None
        )
        if payment.is_in(PaymentState.READY) and self._is_old(payment):
            return await self._abandon(payment)
        is_unmade = payment.is_in(PaymentState.REFUNDING) and verdict.state is PaymentState.PAID
        if is_unmade and payment.version == version:  # else the look was at a time before this refund
            return await self._refund_again(payment, lane=lane)
        return payment

    async def _give_up(self, payment: Payment) -> Payment:
        """A crash came between the record and Toss's payToken, which nobody has got."""
        if payment.quiet_until is not None and self._clock() < payment.quiet_until:
            raise PaymentInProgress(retry_after=ASK_AGAIN)
        lost = Verdict(PaymentState.CANCELED, is_certain=True)
        return await self.ledger.settle(payment.order_no, lost, cause="lost", version=payment.version)

    async def _abandon(self, payment: Payment) -> Payment:
        abandoned = Verdict(PaymentState.CANCELED, is_certain=True)
        return await self.ledger.settle(payment.order_no, abandoned, cause="abandoned", version=payment.version)

    async def _stuck(self, payment: Payment) -> Payment:
        """Toss will not say any more what became of it. Where money may have moved, a person has to find out."""
        if payment.is_in(PaymentState.READY):
            return await self._abandon(payment)
        unknown = Verdict(PaymentState.HELD, hold_reason="outcome_unknown")
        return await self.ledger.settle(payment.order_no, unknown, cause="stuck", version=payment.version)

    def _is_of_other_mode(self, payment: Payment) -> bool:
        """In this one, Toss does not know it."""
        return payment.is_test is not self.ledger.is_test

    def _is_lost_charge(self, payment: Payment) -> bool:
        return payment.is_in(PaymentState.PENDING) and payment.pay_token is None

    def _is_old(self, payment: Payment) -> bool:
        return self._clock() >= payment.changed_at + self._rules.abandon_after

    async def _tried_verdict(self, payment: Payment) -> Verdict | None:
        try:
            return await self._verdict(payment, lane=Lane.INTERACTIVE)
        except TossError as error:
            self._log.warning("payment_status_unknown", order_no=payment.order_no, why=type(error).__name__)
            return None

    async def _verdict(self, payment: Payment, *, lane: Lane) -> Verdict | None:
        """What get-payment-status says of it; None if that decides nothing. Raises: TossError."""
        pay_token = self.ledger.pay_token_of(payment)
        if pay_token is None and not self._rules.status_by_order_no:
            return None
        status = await self._api().status(
            self.ledger.toss_user_of(payment), order_no=payment.order_no, pay_token=pay_token, lane=lane
        )
        state = SEEN.get(status.pay_status)
        if state is None:
            self._log.error("pay_status_unknown", order_no=payment.order_no)
            return None
        if state is PaymentState.READY and payment.billing_key_id is not None:
            return None  # nobody authenticates a charge: either it comes to something or it never was one
        return self._compared(payment, status.claim, state, _facts_of_status(status))

    def _compared(
        self, payment: Payment, claim: Claim, state: PaymentState, facts: Mapping[str, Any]
    ) -> Verdict | None:
        """Held if it speaks of another payment than ours; None if it does not say of which."""
        ours = Ours(payment.order_no, self.ledger.pay_token_of(payment), payment.amount, payment.is_test)
        if (field := contradiction(ours, claim)) is not None:
            return Verdict(PaymentState.HELD, hold_reason=field)
        if state in MOVED and not is_proof(claim):
            self._log.error("payment_answer_incomplete", order_no=payment.order_no)
            return None
        return Verdict(state, pay_token=claim.pay_token, facts=facts)

    # --- Refunding ----------------------------------------------------------------------------------------

    async def refund(self, order_no: str, *, reason: str, actor: str) -> Payment:
        """Give all of it back. Asked for again, it is the same refund: REFUNDED, or REFUNDING while nobody knows.

        Raises: PaymentNotFound, RefundNotPossible, RefundRefused, PaymentHeld, TossNotConfigured, PaymentInProgress
        while one that was made in Toss's console is under way, and what a call raises that was never sent.
        """
        self._api()
        payment = await self.ledger.get(order_no)
        if self.ledger.pay_token_of(payment) is None:
            raise RefundNotPossible
        claimed = await self.ledger.claim_refund(order_no, reason=reason, actor=actor)
        if claimed is None:
            payment = await self.ledger.get(order_no)
            if payment.is_in(PaymentState.HELD):
                raise PaymentHeld
            if not payment.is_in(PaymentState.REFUNDING, PaymentState.REFUNDED):
                raise RefundNotPossible
            if payment.is_in(PaymentState.REFUNDING) and not payment.is_refund_promised:
                raise PaymentInProgress(retry_after=ASK_AGAIN)  # somebody else's, which may come to nothing
            return payment
        await self._checkpoint("refund_claimed")
        try:
            return as_it_is(await self._send_refund(claimed, lane=Lane.INTERACTIVE))
        except NotSent as error:
            untouched = Verdict(PaymentState.PAID, is_certain=True)
            await self.ledger.settle(order_no, untouched, cause="not_sent", version=claimed.version)
            raise pay_error(error) from error

    async def _refund_again(self, payment: Payment, *, lane: Lane) -> Payment:
        """Toss says that it was never made, and no call can be under way any more: safe to send again (G4)."""
        claimed = await self.ledger.claim_refund_again(payment)
        if claimed is None:
            return payment
        try:
            return await self._send_refund(claimed, lane=lane)
        except NotSent as error:
            raise pay_error(error) from error
        except RefundRefused:
            return await self.ledger.get(payment.order_no)

    async def _send_refund(self, payment: Payment, *, lane: Lane) -> Payment:
        """Raises: NotSent, RefundRefused."""
        pay_token = self.ledger.pay_token_of(payment) or ""
        api: Refunds = self._api()
        if payment.billing_key_id is not None and self._charge_refunds is not None:
            api = self._charge_refunds
        try:
            refund = await api.refund(
                self.ledger.toss_user_of(payment),
                pay_token=pay_token,
                reason=self.ledger.refund_reason_of(payment),
                lane=lane,
            )
        except NotSent:
            raise
        except TossError as error:
            untouched = PaymentState.PAID if is_clear_no_to_refund(error) else None
            payment = await self.asked_about(payment, cause="refund", error=error, untouched=untouched)
            if payment.is_in(PaymentState.PAID):
                raise RefundRefused(toss_code=_code(error)) from error
            return payment
        await self._checkpoint("refund_answered")
        return await self._refunded(payment, refund)

    async def _refunded(self, payment: Payment, refund: Refund) -> Payment:
        """Proven: by an answer that names all of the amount, or else by the status."""
        is_whole = refund.claim.pay_token is not None and refund.refunded_amount == payment.amount
        ours = Ours(payment.order_no, self.ledger.pay_token_of(payment), payment.amount, payment.is_test)
        facts = {"refund_no": (refund.refund_no or "")[:MAX_REFERENCE] or None}
        if (field := contradiction(ours, refund.claim)) is not None:
            verdict = Verdict(PaymentState.HELD, hold_reason=field)
        elif is_whole:
            verdict = Verdict(PaymentState.REFUNDED, facts=facts)
        else:
            return await self.asked_about(payment, cause="refund")
        return await self.ledger.settle(payment.order_no, verdict, cause="refund")

    # --- Toss calls back, time passes ---------------------------------------------------------------------

    async def by_callback(self, content: Content) -> str:
        """A hint that something has changed; only a status query tells what (apps-in-toss reference 14.4).

        Raises: AppError when that cannot be found out now.
        """
        try:
            payment = await self.ledger.get(str(content["orderNo"]))
        except PaymentNotFound:
            return "UNKNOWN_PAYMENT"  # a number is committed before Toss hears of it
        if payment.is_in(PaymentState.PAID) and content.get("status") in PAID_ALREADY:
            return payment.state
        return (await self.check(payment.order_no, cause="callback", lane=Lane.BACKGROUND)).state

    async def reconcile(self) -> Reconciled:
        """Look at every open payment that is due, once, and erase what is past its retention.

        Stops when the budget has no room, or Toss does not answer. Raises: StorageUnavailable.
        """
        looks: list[bool | None] = []
        while self._pay is not None and None not in looks and (due := await self.ledger.due(limit=AT_ONCE)):
            looks += await asyncio.gather(*map(self._look, due))
        erased = await self.ledger.erase(self._clock() - self._rules.retention)
        return Reconciled(len(looks) - looks.count(None), looks.count(True), erased)

    async def _look(self, order_no: str) -> bool | None:
        """Whether it has moved; None if there is no use in going on."""
        taken = await self.ledger.take_check(order_no)
        if taken is None:
            return False
        try:
            payment = await self.check(order_no, cause="reconcile", lane=Lane.BACKGROUND)
        except AppError as error:
            level = max(error.level, logging.WARNING)
            self._log.log(level, "payment_left_open", order_no=order_no, code=error.code)
            return None if is_away(error) else False
        except Exception as error:  # noqa: BLE001 - one payment must not keep the others
            self._log.error("payment_left_open", order_no=order_no, cause=type(error).__name__)
            return False
        return payment.version != taken.version

    async def steps(self, order_no: str) -> Sequence[PaymentStep]:
        return await self.ledger.steps(order_no)

    def _api(self) -> PayApi:
        if self._pay is None:
            raise TossNotConfigured
        return self._pay


def as_it_is(payment: Payment) -> Payment:
    """Raises what a caller who wants it paid has to hear."""
    match PaymentState(payment.state):
        case PaymentState.PAID | PaymentState.PENDING | PaymentState.REFUNDING | PaymentState.REFUNDED:
            return payment
        case PaymentState.HELD:
            raise PaymentHeld
        case PaymentState.CANCELED | PaymentState.FAILED:
            raise PaymentEnded(toss_code=payment.toss_code)
        case PaymentState.CREATED | PaymentState.READY:
            raise PaymentInProgress(retry_after=ASK_AGAIN)


def _code(error: TossError | None) -> str | None:
    return error.error_code if isinstance(error, TossRejected) else None


def _facts(execution: Execution) -> dict[str, Any]:
    return _storable(execution.paid_amount, execution.pay_method, execution.transaction_id)


def _facts_of_status(status: Status) -> dict[str, Any]:
    ids = (each.transaction_id for each in status.transactions if each.step_type == "PAY")
    return _storable(status.paid_amount, status.pay_method, next(ids, None))


def _storable(paid_amount: int | None, pay_method: str | None, transaction_id: str | None) -> dict[str, Any]:
    """What cannot be kept is not worth losing the outcome for."""
    return {
        "paid_amount": paid_amount if paid_amount is not None and 0 <= paid_amount <= MAX_AMOUNT else None,
        "pay_method": (pay_method or "")[:MAX_METHOD] or None,
        "transaction_id": (transaction_id or "")[:MAX_REFERENCE] or None,
    }
