"""The books: every change of a payment, with its history and its event, in one transaction. Knows no network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import structlog
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.customer import Customer
from app.database import Database, LateWrites, pause_after, time_ordered_id
from app.errors import OrderNotFound, OrderNotPayable, PaymentInProgress, PaymentNotFound, SealedDataUnreadable
from app.events.outbox import Outbox
from app.events.tables import EventType
from app.payments.states import MOVED, MOVES, OPEN, OVER, PaymentState, way
from app.payments.tables import Order, Payment, PaymentStep, charged
from app.toss.partner import TossUser
from app.toss.pay import Charge
from app.upstream import ASK_AGAIN
from app.vault import Sealed, UnsealError, Vault

SAME_ORDER_NO_PREFIX: Final = {True: "test", False: "live"}
"""The merchant has to keep live and test numbers apart (apps-in-toss reference 8.2)."""

PAYMENT_LIFE: Final = timedelta(minutes=15)
"""After that Toss cancels what nobody has executed; stated for plain Toss Pay only (apps-in-toss reference 8.2)."""
FIRST_CHECK: Final[dict[PaymentState, timedelta]] = {
    PaymentState.CREATED: timedelta(0),
    PaymentState.READY: PAYMENT_LIFE + timedelta(minutes=1),
    # At once: after a crash, whoever reconciles first shall know.
    PaymentState.PENDING: timedelta(0),
    PaymentState.REFUNDING: timedelta(0),
}
"""When an open payment is looked at first, counted from its last change."""
FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=5), timedelta(hours=1)
"""Between the looks at an open payment; each pause is twice as long as the one before."""

PENDING_TO_PAID: Final = (PaymentState.PENDING, PaymentState.PAID)
MOVING: Final = frozenset({PaymentState.PENDING, PaymentState.REFUNDING})
"""A call may be under way at Toss from the move to one of these on."""

Count = Callable[[str], None]
"""Counts payments by the state that they have come to; for metrics."""


@dataclass(frozen=True)
class Verdict:
    """What is to be made of an answer."""

    state: PaymentState
    is_certain: bool = False
    """No call can still be under way at Toss: what shows no effect now never will."""
    hold_reason: str | None = None
    toss_code: str | None = None
    pay_token: str | None = field(default=None, repr=False)
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Columns to fill in, where the answer had them."""


class Ledger:
    def __init__(
        self,
        *,
        database: Database,
        writes: LateWrites,
        vault: Vault,
        outbox: Outbox,
        clock: Callable[[], datetime],
        is_test: bool,
        order_prefix: str,
        quiet: timedelta,
        count: Count = lambda _state: None,
    ) -> None:
        """`quiet`: longer than a call that moves money can be under way, here and inside Toss."""
        self._database = database
        self._writes = writes
        self._vault = vault
        self._outbox = outbox
        self._clock = clock
        self.is_test = is_test
        self._order_prefix = order_prefix
        self._quiet = quiet
        self._count = count
        self._log = structlog.stdlib.get_logger("app.payments")

    # --- Reading ------------------------------------------------------------------------------------------

    async def get(self, order_no: str) -> Payment:
        """Raises: PaymentNotFound."""
        async with self._database.transaction() as session:
            payment = await session.get(Payment, order_no)
        if payment is None:
            raise PaymentNotFound
        return payment

    async def steps(self, order_no: str) -> Sequence[PaymentStep]:
        async with self._database.transaction() as session:
            return (
                await session.scalars(
                    select(PaymentStep).where(PaymentStep.order_no == order_no).order_by(PaymentStep.number)
                )
            ).all()

    def toss_user_of(self, payment: Payment) -> TossUser:
        """Raises: SealedDataUnreadable."""
        return TossUser.load(self._opened(payment, payment.toss_user, "toss_user"))

    def pay_token_of(self, payment: Payment) -> str | None:
        """Raises: SealedDataUnreadable."""
        return None if payment.pay_token is None else self._opened(payment, payment.pay_token, "pay_token")

    def refund_reason_of(self, payment: Payment) -> str:
        """Raises: SealedDataUnreadable."""
        reason = payment.refund_reason
        return "" if reason is None else self._opened(payment, reason, "refund_reason")

    def _opened(self, payment: Payment, sealed: Sealed, column: str) -> str:
        try:
            return self._vault.open(sealed, payment.place_of(column))
        except UnsealError as error:
            raise SealedDataUnreadable from error

    # --- Beginning ----------------------------------------------------------------------------------------

    async def open_for_product(self, payer: Customer, product_id: str, charge: Charge) -> Payment:
        async with self._database.transaction() as session:
            return self._add(session, payer, charge, PaymentState.CREATED, product_id=product_id)

    async def open_for_order(self, payer: Customer, order_id: str) -> tuple[Payment, bool]:
        """The one payment of this order that may still come to something, and whether it is new.

        Raises: OrderNotFound, also for somebody else's; OrderNotPayable; PaymentInProgress.
        """
        async with self._database.transaction() as session:
            order = await session.get(Order, order_id, with_for_update=True)
            if order is None or not self._may_pay(order, payer):
                raise OrderNotFound
            current = await session.scalar(select(Payment).where(Payment.open_key == order_id).with_for_update())
            if current is not None:
                if current.is_in(PaymentState.READY):
                    return current, False
                if current.is_in(PaymentState.PENDING) or self._is_being_made(current):
                    raise PaymentInProgress(retry_after=ASK_AGAIN)
                if not current.is_in(PaymentState.CREATED):
                    raise OrderNotPayable
                self._move(session, current, PaymentState.CANCELED, cause="lost")
                await session.flush()  # its place is free before the next one takes it
            now = self._clock()
            if order.canceled_at is not None or (order.expires_at is not None and now >= order.expires_at):
                raise OrderNotPayable
            # One that was taken to be over and was not, after all, has given its place away.
            counts = Payment.order_id == order_id, Payment.state.not_in(OVER)
            if await session.scalar(select(Payment.order_no).where(*counts).limit(1)) is not None:
                raise OrderNotPayable
            order.key_hash = payer.key_hash
            payment = self._add(session, payer, order.charge(), PaymentState.CREATED, order_id=order_id)
        return payment, True

    async def cancel_order(self, order_id: str, *, actor: str) -> None:
        """From now on no payment of it begins, and one that waits for its user is over. May be repeated.

        Raises: OrderNotFound; PaymentInProgress; OrderNotPayable when it is paid.
        """
        async with self._database.transaction() as session:
            order = await session.get(Order, order_id, with_for_update=True)
            if order is None:
                raise OrderNotFound
            current = await session.scalar(select(Payment).where(Payment.open_key == order_id).with_for_update())
            if current is not None:
                if current.is_in(PaymentState.PENDING) or self._is_being_made(current):
                    raise PaymentInProgress(retry_after=ASK_AGAIN)
                if not current.is_in(PaymentState.CREATED, PaymentState.READY):
                    raise OrderNotPayable
                self._move(session, current, PaymentState.CANCELED, cause="order_canceled", actor=actor)
            order.canceled_at = order.canceled_at or self._clock()

    def _may_pay(self, order: Order, payer: Customer) -> bool:
        return (
            order.billing_key_id is None
            and order.is_test == self.is_test
            and order.user_id in (None, payer.user_id)
            and order.key_hash in (None, payer.key_hash)
        )

    def charge_in(
        self, session: AsyncSession, payer: Customer, order: Order, *, billing_key_id: str, actor: str
    ) -> Payment:
        """A charge to a billing key, in the transaction that makes its order; it is as good as being executed."""
        return self._add(
            session,
            payer,
            order.charge(),
            PaymentState.PENDING,
            order_id=order.order_id,
            billing_key_id=billing_key_id,
            actor=actor,
        )

    def _add(
        self,
        session: AsyncSession,
        payer: Customer,
        charge: Charge,
        state: PaymentState,
        *,
        actor: str | None = None,
        order_id: str | None = None,
        **about: str,
    ) -> Payment:
        now = self._clock()
        parts = (SAME_ORDER_NO_PREFIX[self.is_test], self._order_prefix, time_ordered_id(now))
        payment = Payment(
            order_no="-".join(part for part in parts if part),
            is_test=self.is_test,
            order_id=order_id,
            open_key=order_id,
            user_id=payer.user_id,
            key_hash=payer.key_hash,
            state=state,
            version=1,
            quiet_until=now + self._quiet,
            next_check_at=now + FIRST_CHECK[state],
            checks=0,
            created_at=now,
            changed_at=now,
            **charged(charge),
            **about,
        )
        payment.toss_user = self._vault.seal(payer.toss_user.dump(), payment.place_of("toss_user"))
        session.add(payment)
        self._note(session, payment, None, cause="begin", actor=actor, detail=None)
        return payment

    # --- Claiming -----------------------------------------------------------------------------------------

    async def claim_execution(self, order_no: str) -> Payment | None:
        """State that money is about to move. Of many callers, on all replicas, one gets the payment; else None."""

        def change(session: AsyncSession, payment: Payment) -> None:
            self._move(session, payment, PaymentState.PENDING, cause="execute")

        return await self._claimed(order_no, PaymentState.READY, change)

    async def claim_refund(self, order_no: str, *, reason: str, actor: str) -> Payment | None:
        """As `claim_execution`, for the way back."""

        def change(session: AsyncSession, payment: Payment) -> None:
            payment.refund_reason = self._vault.seal(reason, payment.place_of("refund_reason"))
            payment.refund_by, payment.refund_asked_at = actor, self._clock()
            self._move(session, payment, PaymentState.REFUNDING, cause="refund", actor=actor)

        return await self._claimed(order_no, PaymentState.PAID, change)

    async def claim_refund_again(self, payment: Payment) -> Payment | None:
        """The right to send a refund once more, of which Toss has said that it was never made."""

        def change(session: AsyncSession, current: Payment) -> None:
            current.version += 1
            current.quiet_until = self._clock() + self._quiet
            self._note(session, current, PaymentState.REFUNDING, cause="refund_again", actor=None, detail=None)

        return await self._claimed(payment.order_no, PaymentState.REFUNDING, change, version=payment.version)

    async def _claimed(
        self,
        order_no: str,
        state: PaymentState,
        change: Callable[[AsyncSession, Payment], None],
        *,
        version: int | None = None,
    ) -> Payment | None:
        async with self._database.transaction() as session:
            payment = await session.get(Payment, order_no, with_for_update=True)
            if payment is None or not payment.is_in(state) or version not in (None, payment.version):
                return None
            if payment.is_test != self.is_test:
                return None
            if state is PaymentState.REFUNDING and self._is_quiet(payment):
                return None
            change(session, payment)
        return payment

    def _is_being_made(self, payment: Payment) -> bool:
        return payment.is_in(PaymentState.CREATED) and self._is_quiet(payment)

    def _is_quiet(self, payment: Payment) -> bool:
        return payment.quiet_until is not None and self._clock() < payment.quiet_until

    # --- Settling -----------------------------------------------------------------------------------------

    async def settle(
        self,
        order_no: str,
        verdict: Verdict,
        *,
        cause: str,
        version: int | None = None,
        actor: str | None = None,
        may_release: bool = False,
    ) -> Payment:
        """Bring a payment to where an answer of Toss puts it; the payment as it is then.

        `version`: of the payment about which Toss was asked; None for the answer to a call that moves money.
        `may_release`: out of HELD.

        Raises: StorageUnavailable, when the caller has waited long enough; the write goes on.
        """
        settled: list[Payment] = []

        async def write(session: AsyncSession) -> None:
            payment = await session.get_one(Payment, order_no, with_for_update=True)
            is_held = payment.is_in(PaymentState.HELD) and not may_release
            if _is_news(payment, verdict, version=version) and not is_held:
                self._apply(session, payment, verdict, cause=cause, actor=actor)
            settled.append(payment)

        await self._writes.commit(write, order_no=order_no)
        return settled[-1]

    def _apply(
        self, session: AsyncSession, payment: Payment, verdict: Verdict, *, cause: str, actor: str | None
    ) -> None:
        state = PaymentState(payment.state)
        if verdict.hold_reason is not None:
            if state is not PaymentState.HELD:
                self._hold(session, payment, verdict.hold_reason, cause=cause, actor=actor)
            return
        if self._proves_nothing(payment, verdict):
            payment.toss_code = verdict.toss_code or payment.toss_code
            return
        self._learn(payment, verdict)
        steps = way(state, verdict.state)
        if state is PaymentState.HELD and steps == (PaymentState.PAID,) and payment.is_refund_promised:
            steps += (PaymentState.REFUNDING,)
        for step in steps:
            if step is PaymentState.HELD:
                self._hold(session, payment, f"{state}:{verdict.state}", cause=cause, actor=actor)
            else:
                self._move(session, payment, step, cause=cause, actor=actor, detail=verdict.toss_code)

    def _learn(self, payment: Payment, verdict: Verdict) -> None:
        """What an answer says beside the state."""
        if verdict.pay_token is not None and payment.pay_token is None:
            payment.pay_token = self._vault.seal(verdict.pay_token, payment.place_of("pay_token"))
        for column, value in verdict.facts.items():
            if value is not None:
                setattr(payment, column, value)
        has_come_true = verdict.state is PaymentState.REFUNDED or (payment.state, verdict.state) == PENDING_TO_PAID
        if verdict.toss_code is not None and not has_come_true:
            payment.toss_code = verdict.toss_code

    def _proves_nothing(self, payment: Payment, verdict: Verdict) -> bool:
        """An effect that has not been seen yet may still come, while a call may be under way at Toss."""
        if verdict.is_certain:
            return False
        if payment.is_in(PaymentState.REFUNDING) and verdict.state is PaymentState.PAID:
            # If it has been promised, it is sent again by then, never given up by itself.
            return payment.is_refund_promised
        return (
            payment.is_in(PaymentState.PENDING, PaymentState.HELD)
            and verdict.state in (PaymentState.READY, PaymentState.FAILED)
            and self._is_quiet(payment)
        )

    def _hold(self, session: AsyncSession, payment: Payment, reason: str, *, cause: str, actor: str | None) -> None:
        payment.hold_reason = reason
        self._log.error("payment_held", order_no=payment.order_no, reason=reason, cause=cause)
        self._move(session, payment, PaymentState.HELD, cause=cause, actor=actor, detail=reason)

    def _move(
        self,
        session: AsyncSession,
        payment: Payment,
        to: PaymentState,
        *,
        cause: str,
        actor: str | None = None,
        detail: str | None = None,
    ) -> None:
        before, now = PaymentState(payment.state), self._clock()
        if to not in MOVES[before]:
            raise ValueError(f"a payment does not go from {before} to {to}")
        event = self._event_of(payment, before, to, is_refused=detail is not None)
        payment.state, payment.changed_at, payment.checks = to, now, 0
        payment.version += 1
        if to is not PaymentState.HELD:  # a call that is under way goes on through a hold
            payment.quiet_until = now + self._quiet if to in MOVING else None
        payment.next_check_at = now + FIRST_CHECK[to] if to in OPEN else None
        if to in OVER:
            payment.open_key = None
        if to in MOVING:
            payment.toss_code = None  # what was refused before is asked for anew
        if to is PaymentState.PAID:
            if before is PaymentState.REFUNDING:
                payment.refund_reason = None
            payment.paid_at = payment.paid_at or now
        if to is PaymentState.REFUNDED:
            payment.refunded_at = payment.refunded_at or now
        if to is not PaymentState.HELD:
            payment.hold_reason = None
        self._note(session, payment, before, cause=cause, actor=actor, detail=detail)
        if event is not None:
            self._outbox.record(session, event, subject=payment.order_no, data=_event_data(payment))

    def _event_of(
        self, payment: Payment, before: PaymentState, to: PaymentState, *, is_refused: bool
    ) -> EventType | None:
        """Each fact once: coming back from a refused refund, or from HELD, tells nothing of the payment anew."""
        match to:
            case PaymentState.PAID if payment.paid_at is None:
                return EventType.PAYMENT_PAID
            case PaymentState.PAID if before is PaymentState.REFUNDING and is_refused:
                return EventType.PAYMENT_REFUND_REFUSED
            case PaymentState.REFUNDED if payment.refunded_at is None:
                return EventType.PAYMENT_REFUNDED
            case PaymentState.HELD:
                return EventType.PAYMENT_HELD
            case PaymentState.CANCELED | PaymentState.FAILED if before is PaymentState.PENDING:
                return EventType.PAYMENT_FAILED
            case _:
                return None

    def _note(
        self,
        session: AsyncSession,
        payment: Payment,
        before: PaymentState | None,
        *,
        cause: str,
        actor: str | None,
        detail: str | None,
    ) -> None:
        now = self._clock()
        session.add(
            PaymentStep(
                step_id=time_ordered_id(now),
                order_no=payment.order_no,
                number=payment.version,
                at=now,
                from_state=before,
                to_state=payment.state,
                cause=cause,
                actor=actor,
                detail=detail,
            )
        )
        self._count(payment.state)
        self._log.info(
            "payment_moved",
            order_no=payment.order_no,
            from_state=before,
            to_state=payment.state,
            cause=cause,
            actor=actor,
            detail=detail,
        )

    # --- What is due --------------------------------------------------------------------------------------

    async def due(self, *, limit: int) -> Sequence[str]:
        """Numbers of open payments that are to be looked at, the longest overdue first."""
        async with self._database.transaction() as session:
            found = await session.scalars(
                select(Payment.order_no)
                # Those of the other mode have their turn when it is set again: in this one Toss does not know them.
                .where(Payment.next_check_at <= self._clock(), Payment.is_test == self.is_test)
                .order_by(Payment.next_check_at)
                .limit(limit)
            )
            return found.all()

    async def take_check(self, order_no: str) -> Payment | None:
        """The right to look at a payment that is due; None if another replica has it. The next look comes later."""
        now = self._clock()
        async with self._database.transaction() as session:
            payment = await session.get(Payment, order_no, with_for_update=True)
            if payment is None or payment.next_check_at is None or payment.next_check_at > now:
                return None
            if payment.is_test != self.is_test:
                return None
            payment.next_check_at = now + pause_after(payment.checks, first=FIRST_PAUSE, longest=LONGEST_PAUSE)
            payment.checks += 1
        return payment

    async def erase(self, before: datetime) -> int:
        """Payments that are done with and have not changed since, with their history; and orders as old."""
        async with self._database.transaction() as session:
            old = select(Payment.order_no).where(Payment.next_check_at.is_(None), Payment.changed_at < before)
            await session.execute(delete(PaymentStep).where(PaymentStep.order_no.in_(old)))
            gone = await session.scalars(
                delete(Payment)
                .where(Payment.next_check_at.is_(None), Payment.changed_at < before)
                .returning(Payment.order_no)
            )
            count = len(gone.all())
            of_payments = select(Payment.order_id).where(Payment.order_id.is_not(None))
            await session.execute(
                delete(Order).where(Order.created_at < before, Order.order_id.not_in(of_payments))
            )
        if count:
            await self._database.forget()
        return count


def _is_news(payment: Payment, verdict: Verdict, *, version: int | None) -> bool:
    """Whether an answer says anything of the payment as it is now."""
    if version is None:  # that the money has moved stays true; that it is still with us does not
        return not (verdict.state is PaymentState.PAID and payment.paid_at is not None)
    # Of an older state, only that money has moved after all for what has been taken to be over.
    return version == payment.version or (verdict.state in MOVED and payment.is_in(*OVER))


def _event_data(payment: Payment) -> dict[str, Any]:
    return {
        "orderNo": payment.order_no,
        "orderId": payment.order_id,
        "productId": payment.product_id,
        "billingKeyId": payment.billing_key_id,
        "userId": payment.user_id,
        "state": payment.state,
        "amount": payment.amount,
        "paidAmount": payment.paid_amount,
        "isTest": payment.is_test,
        "transactionId": payment.transaction_id,
        "tossCode": payment.toss_code,
        "holdReason": payment.hold_reason,
    }
