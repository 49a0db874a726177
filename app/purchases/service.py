"""In-app purchase, the use cases: grant an order once, see refunds, follow subscriptions, say what a user has."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from enum import StrEnum
from typing import Any

import structlog
from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.customer import Customer
from app.database import Database, Page
from app.errors import (
    AppError,
    PurchaseFailed,
    PurchaseNotFound,
    PurchaseNotReady,
    PurchaseRefunded,
    TossNotConfigured,
    UpstreamInvalid,
    UpstreamTimeout,
)
from app.events.outbox import Outbox
from app.events.tables import EventType
from app.purchases.refusals import app_error
from app.purchases.states import (
    Change,
    Entitlement,
    Holding,
    Meaning,
    PurchaseState,
    end_of_period,
    entitlements_of,
    meaning_of,
)
from app.purchases.tables import (
    Purchase,
    Subscription,
    apply,
    claim_check,
    insert_purchase,
    lock_order,
    refund,
)
from app.toss.errors import TossError
from app.toss.governor import Lane
from app.toss.iap import IapApi, OrderStatus, instant_of
from app.toss.partner import TossUser
from app.upstream import ASK_AGAIN, is_away

FIRST_PAUSE, LONGEST_PAUSE = 0.35, 5.0
"""Seconds between questions while Toss does not show an order as paid; each pause is twice the one before."""
CHECK_RETRY = timedelta(minutes=10)
"""After a question to Toss that failed."""
BATCH = 200

Clock = Callable[[], datetime]
Checkpoint = Callable[[str], Awaitable[None]]


@dataclass(frozen=True)
class Rules:
    """The operator's choices."""

    sends_user_key: bool
    visibility_wait: timedelta
    zone: tzinfo
    """Of Toss's times, which name none."""
    renewal_cycles: Mapping[str, str]
    expiry_grace: timedelta
    refund_check_every: timedelta
    refund_watch: timedelta
    retention: timedelta


@dataclass(frozen=True)
class Owned:
    """A purchase, with what Toss has told of it if it is a subscription."""

    purchase: Purchase
    holding: Holding


class NoticeOutcome(StrEnum):
    APPLIED = "APPLIED"
    PARKED = "PARKED"
    """Applied, and nobody has been granted this order yet."""
    STALE = "STALE"
    """Something newer, or the same, is known."""


@dataclass(frozen=True)
class Reconciled:
    checked: int
    refunded: int
    erased: int


class PurchaseService:
    """Without `api` (no client certificate is configured) nothing can be granted; what was granted stays."""

    def __init__(
        self,
        *,
        database: Database,
        api: IapApi | None,
        outbox: Outbox,
        user_of: Callable[[str], Awaitable[TossUser | None]],
        rules: Rules,
        clock: Clock,
        checkpoint: Checkpoint,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        answer_within: timedelta = timedelta(seconds=28),
    ) -> None:
        """`user_of`: by what Toss knows the user with this id; None for one who is gone.

        `answer_within`: after 30 seconds the SDK shows a page for asking one's money back (reference 10.2).
        """
        self._database = database
        self._api = api
        self._outbox = outbox
        self._user_of = user_of
        self._rules = rules
        self._clock = clock
        self._checkpoint = checkpoint
        self._monotonic = monotonic
        self._sleep = sleep
        self._answer_within = answer_within
        self._granting: dict[tuple[str, str], asyncio.Task[Purchase]] = {}
        self._log = structlog.stdlib.get_logger("app.purchases")

    # --- Granting -----------------------------------------------------------------------------------------

    async def grant(self, order_id: str, owner: Customer) -> Purchase:
        """Give an order that Toss shows as paid to the first user who presents it; again, it is the same success.

        Calls for one order and user at once share one wait, which goes on when the callers are gone.

        Raises: PurchaseNotFound for somebody else's, PurchaseNotReady, PurchaseFailed, PurchaseRefunded,
        TossNotConfigured, UpstreamUnavailable, UpstreamTimeout, UpstreamInvalid, UpstreamRefused,
        UpstreamBudgetExhausted, StorageUnavailable.
        """
        key = (order_id, owner.key_hash)
        granting = self._granting.get(key)
        if granting is None:
            granting = self._granting[key] = asyncio.create_task(self._grant(order_id, owner))
            granting.add_done_callback(lambda task: self._forget_task(key, task))
        return await asyncio.shield(granting)

    def _forget_task(self, key: tuple[str, str], task: asyncio.Task[Purchase]) -> None:
        del self._granting[key]
        if not task.cancelled():
            task.exception()  # whoever asked for it may be gone

    async def _grant(self, order_id: str, owner: Customer) -> Purchase:
        known = await self._find(order_id)
        if known is not None:
            return self._answer(known, owner)
        try:
            async with asyncio.timeout(self._answer_within.total_seconds()):
                said = await self._decided(order_id, owner.toss_user)
        except TimeoutError:
            raise UpstreamTimeout from None
        await self._checkpoint("order_answered")
        recorded = await self._record(order_id, owner, said)
        await self._checkpoint("purchase_recorded")
        return self._answer(recorded, owner)

    async def _decided(self, order_id: str, user: TossUser) -> OrderStatus:
        """What Toss says of an order that is paid, or was. A new order is not visible at once (reference 10.1).

        Raises: as `grant`.
        """
        pause, until = FIRST_PAUSE, self._monotonic() + self._rules.visibility_wait.total_seconds()
        while True:
            said = await self._ask(order_id, user)
            match meaning_of(said.status):
                case Meaning.PAID | Meaning.REFUNDED:
                    return said
                case Meaning.FOREIGN:
                    self._log.error("order_of_another_mini_app", order_id=order_id)
                    raise PurchaseFailed(toss_code=said.status)
                case Meaning.FAILED:
                    raise PurchaseFailed(toss_code=said.status)
                case Meaning.OPEN:
                    left = until - self._monotonic()
                    if left <= 0:
                        raise PurchaseNotReady(retry_after=ASK_AGAIN)
                    await self._sleep(min(pause, left))
                    pause = min(pause * 2, LONGEST_PAUSE)

    async def _ask(self, order_id: str, user: TossUser | None, *, lane: Lane = Lane.INTERACTIVE) -> OrderStatus:
        if self._api is None:
            raise TossNotConfigured("no client certificate is configured")
        try:
            return await self._api.order_status(
                order_id, user=user if self._rules.sends_user_key else None, lane=lane
            )
        except TossError as error:
            raise app_error(error) from error

    async def _record(self, order_id: str, owner: Customer, said: OrderStatus) -> Purchase:
        if said.sku is None:
            raise UpstreamInvalid
        now = self._clock()
        is_paid = meaning_of(said.status) is Meaning.PAID
        async with self._database.transaction() as session:
            await lock_order(session, order_id, is_sqlite=self._database.is_sqlite)
            subscription = await session.get(Subscription, order_id)
            refunded_at = None if is_paid else self._refunded_at(said, now)
            if subscription is not None and subscription.change.is_revocation:
                refunded_at = refunded_at or subscription.occurred_at
            recorded = await insert_purchase(
                session,
                {
                    "order_id": order_id,
                    "user_id": owner.user_id,
                    "key_hash": owner.key_hash,
                    "sku": said.sku,
                    "state": PurchaseState.GRANTED if refunded_at is None else PurchaseState.REFUNDED,
                    "toss_status": said.status,
                    "granted_at": now if refunded_at is None else None,
                    "refunded_at": refunded_at,
                    "changed_at": now,
                    "checked_at": now,
                    "next_check_at": self._next_check(now, now) if refunded_at is None else None,
                },
                is_sqlite=self._database.is_sqlite,
            )
            if recorded is not None and recorded.state == PurchaseState.GRANTED:
                self._tell(session, EventType.PURCHASE_GRANTED, recorded)
            if recorded is not None and subscription is not None:
                self._tell_change(session, recorded, subscription)
        if recorded is None:
            return await self._get(order_id)  # another replica, or somebody else, was faster
        self._log.info("purchase_recorded", order_id=order_id, user_id=owner.user_id, state=recorded.state)
        return recorded

    def _answer(self, purchase: Purchase, owner: Customer) -> Purchase:
        if purchase.key_hash != owner.key_hash:
            raise PurchaseNotFound
        if purchase.state == PurchaseState.REFUNDED:
            raise PurchaseRefunded
        return purchase

    def _next_check(self, now: datetime, granted_at: datetime) -> datetime | None:
        following = now + self._rules.refund_check_every
        return following if following <= granted_at + self._rules.refund_watch else None

    def _refunded_at(self, said: OrderStatus, now: datetime) -> datetime:
        return instant_of(said.determined_at, self._rules.zone) or now

    async def aclose(self) -> None:
        """End the waits that are under way; who presents such an order again is granted it then."""
        granting = list(self._granting.values())
        for task in granting:
            task.cancel()
        await asyncio.gather(*granting, return_exceptions=True)

    # --- What is known ------------------------------------------------------------------------------------

    async def of(self, order_id: str, *, key_hash: str) -> Purchase:
        """Raises: PurchaseNotFound, also for somebody else's."""
        purchase = await self._get(order_id)
        if purchase.key_hash != key_hash:
            raise PurchaseNotFound
        return purchase

    async def entitlements(self, *, user_id: str, key_hash: str) -> list[Entitlement]:
        """What this user may use now."""
        async with self._database.transaction() as session:
            owned = await self._owned(session, Purchase.key_hash == key_hash)
            if any(each.purchase.user_id != user_id for each in owned):
                # They were erased since, and have come back: what is told of their orders names them as they are.
                await session.execute(update(Purchase).where(Purchase.key_hash == key_hash).values(user_id=user_id))
        holdings = [each.holding for each in owned]
        return entitlements_of(holdings, self._clock(), grace=self._rules.expiry_grace)

    # --- The partner's server asks ------------------------------------------------------------------------

    async def get(self, order_id: str) -> Owned:
        """Raises: PurchaseNotFound."""
        async with self._database.transaction() as session:
            found = await self._owned(session, Purchase.order_id == order_id)
        if not found:
            raise PurchaseNotFound
        return found[0]

    async def list(self, *, user_id: str | None, limit: int, before: str | None = None) -> Page[Owned]:
        """Newest first, as Toss's ids sort by time."""
        query = select(Purchase)
        if user_id is not None:
            query = query.where(Purchase.user_id == user_id)
        page = await self._database.page(query, key=Purchase.order_id, limit=limit, before=before)
        async with self._database.transaction() as session:
            owned = await self._owned(session, Purchase.order_id.in_(purchase.order_id for purchase in page.items))
        return Page(owned, next=page.next)

    async def check(self, order_id: str) -> Owned:
        """Ask Toss now whether it was refunded.

        Raises: PurchaseNotFound, and what a failed call to Toss raises.
        """
        await self._check(await self._get(order_id), lane=Lane.INTERACTIVE)
        return await self.get(order_id)

    # --- Subscriptions: what Toss tells -------------------------------------------------------------------

    async def follow(self, content: Mapping[str, Any]) -> str:
        """Apply a notice of a subscription, any number of times and in any order to the same end.

        Raises: StorageUnavailable.
        """
        change = Change.of(content, self._rules.zone)
        now = self._clock()
        async with self._database.transaction() as session:
            await lock_order(session, change.order_id, is_sqlite=self._database.is_sqlite)
            applied = await apply(session, change, now=now, is_sqlite=self._database.is_sqlite)
            purchase = await session.get(Purchase, change.order_id)
            if purchase is None:
                return NoticeOutcome.STALE if applied is None else NoticeOutcome.PARKED
            if change.is_revocation:  # that money was given back stays true, whatever came after it
                await self._refund(session, purchase.order_id, refunded_at=change.occurred_at, now=now)
            if applied is None:
                return NoticeOutcome.STALE
            self._tell_change(session, purchase, applied)
        self._log.info("subscription_changed", order_id=change.order_id, reason=change.reason, status=change.status)
        return NoticeOutcome.APPLIED

    # --- What time leaves to do ---------------------------------------------------------------------------

    async def reconcile(self) -> Reconciled:
        """Ask Toss again about what was granted, as nobody tells of a refund (reference 10.2); forget what is old.

        Ends early when Toss has no room or cannot be asked; the rest has its turn in the next run.

        Raises: StorageUnavailable.
        """
        began_at, checked, refunded = self._clock(), 0, 0
        with suppress(_CannotGoOn):
            while due := await self._due(began_at):
                for purchase in due:
                    claimed = await self._claim(purchase)
                    if claimed is not None:
                        refunded += await self._check_in_background(claimed)
                        checked += 1
        return Reconciled(checked, refunded, await self._erase(began_at - self._rules.retention))

    async def _due(self, now: datetime) -> Sequence[Purchase]:
        async with self._database.transaction() as session:
            return (
                await session.scalars(
                    select(Purchase)
                    .where(Purchase.next_check_at <= now)
                    .order_by(Purchase.next_check_at)
                    .limit(BATCH)
                )
            ).all()

    async def _claim(self, purchase: Purchase) -> Purchase | None:
        now = self._clock()
        following = self._next_check(now, purchase.granted_at or now)
        async with self._database.transaction() as session:
            return await claim_check(session, purchase, now=now, next_check_at=following)

    async def _check_in_background(self, purchase: Purchase) -> bool:
        """Whether it was refunded. Raises: _CannotGoOn."""
        try:
            return await self._check(purchase, lane=Lane.BACKGROUND)
        except AppError as error:
            again_at = self._clock() + CHECK_RETRY
            async with self._database.transaction() as session:
                await session.execute(
                    update(Purchase)
                    .where(
                        Purchase.order_id == purchase.order_id,
                        Purchase.state == PurchaseState.GRANTED,
                        Purchase.next_check_at.is_not_distinct_from(purchase.next_check_at),
                    )
                    .values(next_check_at=again_at)
                )
            self._log.warning("purchase_not_checked", order_id=purchase.order_id, code=error.code)
            if is_away(error) or error.__cause__ is None:
                raise _CannotGoOn from error
            return False  # that is about this order; the others may be answered

    async def _check(self, purchase: Purchase, *, lane: Lane) -> bool:
        """Whether this has found a refund. Nothing else that Toss may say takes a purchase away.

        NOT_FOUND neither: whether Toss answers for subscriptions is not stated (reference 10.3).
        """
        user = await self._user_of(purchase.user_id)
        said = await self._ask(purchase.order_id, user, lane=lane)
        now = self._clock()
        await self._checkpoint("order_checked")
        refunded = None
        async with self._database.transaction() as session:
            await session.execute(
                update(Purchase)
                .where(Purchase.order_id == purchase.order_id)
                .values(toss_status=said.status, checked_at=now)
            )
            if meaning_of(said.status) is Meaning.REFUNDED:
                refunded_at = self._refunded_at(said, now)
                refunded = await self._refund(session, purchase.order_id, refunded_at=refunded_at, now=now)
        if meaning_of(said.status) in (Meaning.FAILED, Meaning.FOREIGN):
            self._log.error("purchase_contradicted", order_id=purchase.order_id, status=said.status)
        return refunded is not None

    async def _refund(
        self, session: AsyncSession, order_id: str, *, refunded_at: datetime, now: datetime
    ) -> Purchase | None:
        refunded = await refund(session, order_id, refunded_at=refunded_at, now=now)
        if refunded is not None:
            self._tell(session, EventType.PURCHASE_REFUNDED, refunded)
            self._log.info("purchase_refunded", order_id=order_id, user_id=refunded.user_id)
        return refunded

    async def _erase(self, before: datetime) -> int:
        async with self._database.transaction() as session:
            await session.execute(delete(Subscription).where(Subscription.changed_at < before))
            is_followed = select(Subscription).where(Subscription.order_id == Purchase.order_id).exists()
            erased = await session.scalars(
                delete(Purchase).where(Purchase.changed_at < before, ~is_followed).returning(Purchase.order_id)
            )
            count = len(erased.all())
        if count:
            await self._database.forget()
        return count

    # --- Shared -------------------------------------------------------------------------------------------

    def _tell(self, session: AsyncSession, type_: EventType, purchase: Purchase) -> None:
        told = {"GRANTED": ("grantedAt", purchase.granted_at), "REFUNDED": ("refundedAt", purchase.refunded_at)}
        name, instant = told[purchase.state]
        self._outbox.record(
            session,
            type_,
            subject=purchase.order_id,
            data={
                "orderId": purchase.order_id,
                "userId": purchase.user_id,
                "sku": purchase.sku,
                name: instant,
            },
        )

    def _tell_change(self, session: AsyncSession, purchase: Purchase, subscription: Subscription) -> None:
        change = subscription.change
        ends_at = end_of_period(
            change.expires_at, since=change.occurred_at, cycle=self._rules.renewal_cycles.get(change.sku)
        )
        self._outbox.record(
            session,
            EventType.SUBSCRIPTION_CHANGED,
            subject=purchase.order_id,
            data={
                "orderId": purchase.order_id,
                "userId": purchase.user_id,
                "sku": change.sku,
                "status": change.status,
                "accessGranted": change.access_granted,
                "expiresAt": ends_at,
                "autoRenew": change.auto_renew,
                "reason": change.reason,
                "occurredAt": change.occurred_at,
            },
        )

    async def _find(self, order_id: str) -> Purchase | None:
        async with self._database.transaction() as session:
            return await session.get(Purchase, order_id)

    async def _get(self, order_id: str) -> Purchase:
        purchase = await self._find(order_id)
        if purchase is None:
            raise PurchaseNotFound
        return purchase

    async def _owned(self, session: AsyncSession, condition: ColumnElement[bool]) -> Sequence[Owned]:
        rows = await session.execute(
            select(Purchase, Subscription)
            .outerjoin(Subscription, Subscription.order_id == Purchase.order_id)
            .where(condition)
            .order_by(Purchase.order_id.desc())
        )
        return [Owned(purchase, self._holding(purchase, subscription)) for purchase, subscription in rows]

    def _holding(self, purchase: Purchase, subscription: Subscription | None) -> Holding:
        sku = subscription.sku if subscription is not None else purchase.sku
        return Holding(
            order_id=purchase.order_id,
            sku=sku,
            state=PurchaseState(purchase.state),
            granted_at=purchase.granted_at,
            refunded_at=purchase.refunded_at,
            change=subscription.change if subscription is not None else None,
            cycle=self._rules.renewal_cycles.get(sku),
        )


class _CannotGoOn(Exception):
    """Toss answers nobody at the moment: the rest of a run would fare the same."""
