"""Recurring payment: billing keys, and charges to them (apps-in-toss reference 9).

A charge is a payment that nobody has to authenticate; from its execution on it goes the way of all payments.
"""

import logging
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

import structlog
from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.exc import IntegrityError

from app.customer import Customer
from app.database import Database, pause_after
from app.errors import (
    AppError,
    BillingKeyNotActive,
    BillingKeyNotFound,
    OrderNotPayable,
    ProductNotFound,
    SealedDataUnreadable,
    TossNotConfigured,
)
from app.payments.catalogue import Catalogue
from app.payments.ledger import Ledger, Verdict
from app.payments.orders import OrderRequest, Orders, latest
from app.payments.refusals import is_clear_no, is_unknown_user, pay_error, refused
from app.payments.service import PaymentService, as_it_is
from app.payments.states import OVER, PaymentState
from app.payments.tables import BillingKey, Order, Payment
from app.toss.errors import NotSent, OutcomeUnknown, TossError, TossRejected, Unintelligible
from app.toss.governor import Lane
from app.toss.partner import TossUser
from app.toss.pay import BillingApi
from app.upstream import is_away
from app.vault import Sealed, UnsealError, Vault

BATCH: Final = 200
FIRST_PAUSE, LONGEST_PAUSE = timedelta(minutes=1), timedelta(hours=6)
AUTHENTICATION_LIFE: Final = timedelta(minutes=15)
"""Of the sheet in which the user permits the charges; stated for plain Toss Pay only (apps-in-toss reference 9)."""

GIVEN_UP_AFTER: Final = timedelta(days=1)
"""Long past that: the user has not permitted it."""


class KeyState(StrEnum):
    CREATED = "CREATED"
    """Recorded; Toss is being asked for a wrappedToken."""
    READY = "READY"
    """The user may permit it."""
    ACTIVE = "ACTIVE"
    REMOVING = "REMOVING"
    """Somebody wants it gone; Toss has not confirmed yet."""
    REMOVED = "REMOVED"
    FAILED = "FAILED"


_K = KeyState
SEEN: Final[dict[str, KeyState]] = {
    "CREATE": _K.READY,
    "AUTH": _K.READY,
    "ACTIVE": _K.ACTIVE,
    "REMOVE": _K.REMOVED,
    "FAIL": _K.FAILED,
    "CANCEL": _K.FAILED,
}
"""Plain Toss Pay's words for the status of a key (apps-in-toss reference 9)."""
MOVES: Final[dict[KeyState, frozenset[KeyState]]] = {
    _K.CREATED: frozenset({_K.READY, _K.FAILED}),
    _K.READY: frozenset({_K.ACTIVE, _K.REMOVING, _K.REMOVED, _K.FAILED}),
    _K.ACTIVE: frozenset({_K.REMOVING, _K.REMOVED, _K.FAILED}),
    _K.REMOVING: frozenset({_K.REMOVED, _K.FAILED}),
    _K.REMOVED: frozenset(),
    _K.FAILED: frozenset(),
}
WATCHED: Final = frozenset({_K.CREATED, _K.READY, _K.REMOVING})


@dataclass(frozen=True)
class Reconciled:
    looked_at: int
    erased: int


class BillingService:
    """Without `billing` (BFF_BILLING__ENABLED is not set) there are no recurring payments."""

    def __init__(
        self,
        *,
        database: Database,
        vault: Vault,
        billing: BillingApi | None,
        ledger: Ledger,
        orders: Orders,
        payments: PaymentService,
        catalogue: Catalogue,
        is_test: bool,
        retention: timedelta,
        clock: Callable[[], datetime],
        checkpoint: Callable[[str], Awaitable[None]],
    ) -> None:
        self._database = database
        self._vault = vault
        self._billing = billing
        self._ledger = ledger
        self._orders = orders
        self._payments = payments
        self._catalogue = catalogue
        self._is_test = is_test
        self._retention = retention
        self._clock = clock
        self._checkpoint = checkpoint
        self._log = structlog.stdlib.get_logger("app.payments.billing")

    # --- Keys ---------------------------------------------------------------------------------------------

    async def create(self, payer: Customer, product_id: str) -> tuple[BillingKey, str]:
        """A key that the user may now permit in Toss's sheet, and its wrappedToken.

        Raises: ProductNotFound, PaymentRefused, TossNotConfigured, and what a failed call raises. A lost answer
        leaves a key that nobody can permit.
        """
        billing = self._api()
        product = self._catalogue.product(product_id)
        if product is None:
            raise ProductNotFound
        now = self._clock()
        key = BillingKey(
            billing_key_id=str(uuid.uuid4()),
            is_test=self._is_test,
            user_id=payer.user_id,
            key_hash=payer.key_hash,
            product_desc=product.description,
            state=_K.CREATED,
            next_check_at=now + FIRST_PAUSE,
            checks=0,
            created_at=now,
            changed_at=now,
        )
        key.toss_user = self._vault.seal(payer.toss_user.dump(), key.place_of("toss_user"))
        async with self._database.transaction() as session:
            session.add(key)
        try:
            wrapped_token = await billing.create_key(payer.toss_user, product_desc=product.description)
        except TossError as error:
            await self._move(key, _K.FAILED)
            raise pay_error(error) from error
        sealed = self._vault.seal(wrapped_token, key.place_of("wrapped_token"))
        return await self._move(key, _K.READY, wrapped_token=sealed), wrapped_token

    async def of(self, billing_key_id: str, *, key_hash: str) -> BillingKey:
        """Raises: BillingKeyNotFound, also for somebody else's."""
        key = await self.get(billing_key_id)
        if key.key_hash != key_hash:
            raise BillingKeyNotFound
        return key

    async def get(self, billing_key_id: str) -> BillingKey:
        """Raises: BillingKeyNotFound."""
        async with self._database.transaction() as session:
            key = await session.get(BillingKey, billing_key_id)
        if key is None:
            raise BillingKeyNotFound
        return key

    async def _list(self, which: ColumnElement[bool]) -> Sequence[BillingKey]:
        """Newest first."""
        async with self._database.transaction() as session:
            found = await session.scalars(select(BillingKey).where(which).order_by(BillingKey.created_at.desc()))
            return found.all()

    async def of_owner(self, key_hash: str) -> Sequence[BillingKey]:
        return await self._list(BillingKey.key_hash == key_hash)

    async def of_user(self, user_id: str) -> Sequence[BillingKey]:
        return await self._list(BillingKey.user_id == user_id)

    async def check(self, key: BillingKey, *, lane: Lane = Lane.INTERACTIVE) -> BillingKey:
        """Ask Toss: the user may have permitted it, or have ended it in the Toss app, of which nobody tells us.

        Raises: what a failed call raises.
        """
        wrapped_token = self._wrapped_token_of(key)
        if wrapped_token is None:
            is_lost = key.state == _K.CREATED and self._clock() >= key.created_at + AUTHENTICATION_LIFE
            return await self._move(key, _K.FAILED) if is_lost else key
        try:
            word = await self._api().key_status(self._toss_user_of(key), wrapped_token=wrapped_token, lane=lane)
        except TossError as error:
            raise pay_error(error) from error
        seen = SEEN.get(word)
        if seen is None:
            self._log.error("billing_key_status_unknown", billing_key_id=key.billing_key_id)
            return key
        if seen is _K.READY and self._clock() >= key.created_at + GIVEN_UP_AFTER:
            seen = _K.FAILED
        return await self._move(key, seen)

    async def end_of(self, user_id: str) -> None:
        """The user has left: `reconcile` ends what they have permitted. From now on nothing is charged."""
        now = self._clock()
        async with self._database.transaction() as session:
            await session.execute(
                update(BillingKey)
                .where(BillingKey.user_id == user_id, BillingKey.state.in_((_K.READY, _K.ACTIVE)))
                .values(state=_K.REMOVING, changed_at=now, checks=0, next_check_at=now)
            )

    async def end_at_toss(self, user_id: str, *, lane: Lane) -> None:
        """As `end_of`, but now, while Toss still knows the user. `reconcile` repeats what Toss does not confirm."""
        await self.end_of(user_id)
        for key in await self.of_user(user_id):
            if key.state == _K.REMOVING:
                await self._try_to_look(key, lane=lane)

    async def remove(self, key: BillingKey, *, lane: Lane = Lane.INTERACTIVE) -> BillingKey:
        """End it at Toss. From the first attempt on nothing is charged; `reconcile` goes on until Toss has heard.

        Raises: what a failed call raises.
        """
        if key.state in (_K.REMOVED, _K.FAILED):
            return key
        key = await self._move(key, _K.REMOVING)
        wrapped_token = self._wrapped_token_of(key)
        if wrapped_token is None:
            raise BillingKeyNotActive
        try:
            await self._api().remove_key(self._toss_user_of(key), wrapped_token=wrapped_token, lane=lane)
        except (OutcomeUnknown, Unintelligible, TossRejected) as error:
            if is_unknown_user(error):
                return await self._move(key, _K.REMOVED)  # nobody can charge it in their name
            self._log.warning(
                "billing_key_removal_asked", billing_key_id=key.billing_key_id, why=type(error).__name__
            )
            key = await self.check(key, lane=lane)
            if key.state == _K.REMOVING:
                raise pay_error(error) from error
            return key
        except TossError as error:
            raise pay_error(error) from error
        return await self._move(key, _K.REMOVED)

    async def _move(self, key: BillingKey, to: KeyState, *, wrapped_token: Sealed | None = None) -> BillingKey:
        """Only from where it is allowed, so that no late answer brings a removed key back."""
        now = self._clock()
        fields: dict[str, object] = {"state": to, "changed_at": now, "checks": 0}
        fields["next_check_at"] = now + FIRST_PAUSE if to in WATCHED else None
        if wrapped_token is not None:
            fields["wrapped_token"] = wrapped_token
        async with self._database.transaction() as session:
            moved: BillingKey | None = await session.scalar(
                update(BillingKey)
                .where(
                    BillingKey.billing_key_id == key.billing_key_id,
                    BillingKey.state.in_([state for state, allowed in MOVES.items() if to in allowed]),
                )
                .values(**fields)
                .returning(BillingKey)
            )
        if moved is None:
            return await self.get(key.billing_key_id)
        self._log.info("billing_key_moved", billing_key_id=key.billing_key_id, to_state=to)
        return moved

    # --- Charges ------------------------------------------------------------------------------------------

    async def charge(
        self, billing_key_id: str, request: OrderRequest, *, idempotency_key: str, actor: str
    ) -> tuple[Order, Payment]:
        """Charge a key: PAID, or PENDING while nobody knows. The same idempotency key is the same charge.

        Raises: BillingKeyNotFound, BillingKeyNotActive, IdempotencyKeyReused, PaymentRefused, PaymentEnded,
        PaymentHeld, TossNotConfigured, and what a call raises that was never sent; the latter may be repeated until
        its order is cancelled: OrderNotPayable.
        """
        billing = self._api()
        key = await self.get(billing_key_id)
        known = await self._known(request, idempotency_key)
        if known is None or _was_never_sent(known[1]):
            if key.state in (_K.READY, _K.ACTIVE):
                key = await self.check(key)
            if key.state != _K.ACTIVE or key.is_test != self._is_test:
                raise BillingKeyNotActive
        order, payment, is_new = await self._begun(key, request, idempotency_key=idempotency_key, actor=actor)
        if not is_new:
            if payment.is_in(*OVER) and payment.toss_code is not None:
                raise refused(payment.toss_code)
            return order, as_it_is(payment)
        await self._checkpoint("charge_executing")
        wrapped_token = self._wrapped_token_of(key) or ""
        try:
            execution = await billing.execute(
                self._toss_user_of(key),
                wrapped_token=wrapped_token,
                order_no=payment.order_no,
                charge=payment.charge(),
            )
        except TossError as error:
            return order, await self._not_charged(payment, error)
        await self._checkpoint("charge_executed")
        return order, as_it_is(await self._payments.paid(payment, execution, cause="execute"))

    async def _not_charged(self, payment: Payment, error: TossError) -> Payment:
        if isinstance(error, NotSent) or is_clear_no(error):
            code = error.error_code if isinstance(error, TossRejected) else None
            failed = Verdict(PaymentState.FAILED, is_certain=True, toss_code=code)
            await self._ledger.settle(payment.order_no, failed, cause="execute", version=payment.version)
            raise pay_error(error) from error
        return as_it_is(await self._payments.asked_about(payment, cause="execute", error=error))

    async def _known(self, request: OrderRequest, idempotency_key: str) -> tuple[Order, Payment] | None:
        async with self._database.transaction() as session:
            order = await self._orders.known_in(session, request, idempotency_key)
        if order is None:
            return None
        _, payments = await self._orders.get(order.order_id)
        payment = latest(payments)
        return None if payment is None else (order, payment)

    async def _begun(
        self, key: BillingKey, request: OrderRequest, *, idempotency_key: str, actor: str
    ) -> tuple[Order, Payment, bool]:
        """The charge of this idempotency key, and whether it is ours to execute.

        Raises: BillingKeyNotActive, also when it was ended since Toss was asked; OrderNotPayable.
        """
        payer = Customer(key.user_id, key.key_hash, self._toss_user_of(key))
        known = await self._known(request, idempotency_key)
        if known is not None and not _was_never_sent(known[1]):
            return *known, False
        try:
            async with self._database.transaction() as session:
                # From here until the charge is stated, nobody ends the key; from then on, they come after it.
                current = await session.get_one(BillingKey, key.billing_key_id, with_for_update=True)
                if current.state != _K.ACTIVE:
                    raise BillingKeyNotActive
                if known is None:
                    order = self._orders.add_in(session, request, idempotency_key=idempotency_key, actor=actor)
                    await session.flush()
                else:
                    order = await session.get_one(Order, known[0].order_id, with_for_update=True)
                    if order.canceled_at is not None:
                        raise OrderNotPayable
                payment = self._ledger.charge_in(
                    session, payer, order, billing_key_id=key.billing_key_id, actor=actor
                )
                await session.flush()
        except IntegrityError:  # another call with this key was faster, and is committed now
            known = await self._known(request, idempotency_key)
            if known is None:
                raise
            return *known, False
        return order, payment, True

    # --- What is due --------------------------------------------------------------------------------------

    async def reconcile(self) -> Reconciled:
        """Finish removals, and find out about keys that were begun. Raises: StorageUnavailable."""
        if self._billing is None:
            return Reconciled(0, 0)
        looked_at = 0
        while due := await self._due():
            for key in due:
                taken = await self._take(key)
                if taken is None:
                    continue
                looked_at += 1
                if not await self._try_to_look(taken, lane=Lane.BACKGROUND):
                    return Reconciled(looked_at, await self._erase())
        return Reconciled(looked_at, await self._erase())

    async def _try_to_look(self, key: BillingKey, *, lane: Lane) -> bool:
        """Whether there is any use in going on."""
        try:
            await (self.remove if key.state == _K.REMOVING else self.check)(key, lane=lane)
        except AppError as error:
            level = max(error.level, logging.WARNING)
            self._log.log(level, "billing_key_left_open", billing_key_id=key.billing_key_id, code=error.code)
            return not is_away(error)
        return True

    async def _erase(self) -> int:
        """Keys that have been over for as long as a payment is kept."""
        async with self._database.transaction() as session:
            gone = await session.scalars(
                delete(BillingKey)
                .where(
                    BillingKey.state.in_((_K.REMOVED, _K.FAILED)),
                    BillingKey.changed_at < self._clock() - self._retention,
                )
                .returning(BillingKey.billing_key_id)
            )
            return len(gone.all())

    async def _due(self) -> Sequence[BillingKey]:
        async with self._database.transaction() as session:
            found = await session.scalars(
                select(BillingKey)
                .where(BillingKey.state.in_(WATCHED), BillingKey.next_check_at <= self._clock())
                .order_by(BillingKey.next_check_at)
                .limit(BATCH)
            )
            return found.all()

    async def _take(self, key: BillingKey) -> BillingKey | None:
        pause = pause_after(key.checks, first=FIRST_PAUSE, longest=LONGEST_PAUSE)
        async with self._database.transaction() as session:
            taken: BillingKey | None = await session.scalar(
                update(BillingKey)
                .where(
                    BillingKey.billing_key_id == key.billing_key_id,
                    BillingKey.state == key.state,
                    BillingKey.next_check_at == key.next_check_at,
                )
                .values(next_check_at=self._clock() + pause, checks=BillingKey.checks + 1)
                .returning(BillingKey)
            )
        return taken

    # --- Shared -------------------------------------------------------------------------------------------

    def _api(self) -> BillingApi:
        if self._billing is None:
            raise TossNotConfigured
        return self._billing

    def _toss_user_of(self, key: BillingKey) -> TossUser:
        return TossUser.load(self._opened(key, key.toss_user, "toss_user"))

    def _wrapped_token_of(self, key: BillingKey) -> str | None:
        return None if key.wrapped_token is None else self._opened(key, key.wrapped_token, "wrapped_token")

    def _opened(self, key: BillingKey, sealed: Sealed, column: str) -> str:
        try:
            return self._vault.open(sealed, key.place_of(column))
        except UnsealError as error:
            raise SealedDataUnreadable from error


def _was_never_sent(payment: Payment) -> bool:
    """It ended before Toss could hear of it, so that the same idempotency key may try again."""
    return payment.is_in(PaymentState.FAILED) and payment.toss_code is None
