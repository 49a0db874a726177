"""What is stored of a purchase and a subscription, and the statements whose concurrency matters."""

import hashlib
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Index, String, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, Instant
from app.purchases.states import Change, PurchaseState

MAX_ORDER_ID = 64
MAX_TEXT = 255
MAX_WORD = 64


class Purchase(Base):
    """One order of which Toss has said that it was paid: there is one row in the world, for its first user."""

    __tablename__ = "purchase"
    __table_args__ = (
        CheckConstraint("(state = 'REFUNDED') = (refunded_at IS NOT NULL)", name="refunded_at"),
        CheckConstraint("state = 'REFUNDED' OR granted_at IS NOT NULL", name="granted_at"),
        Index("ix_purchase_user_id", "user_id"),
        Index("ix_purchase_key_hash", "key_hash"),
        Index("ix_purchase_next_check_at", "next_check_at"),
        Index("ix_purchase_changed_at", "changed_at"),
    )

    order_id: Mapped[str] = mapped_column(String(MAX_ORDER_ID), primary_key=True)
    user_id: Mapped[str] = mapped_column(String(36))
    key_hash: Mapped[str] = mapped_column(String(64))
    """Of the owner; stays the same when a user who was erased comes back under another `user_id`."""
    sku: Mapped[str] = mapped_column(String(MAX_TEXT))
    state: Mapped[str] = mapped_column(String(16))
    toss_status: Mapped[str] = mapped_column(String(MAX_TEXT))
    """As Toss named it when it was asked last."""
    granted_at: Mapped[datetime | None] = mapped_column(Instant)
    """None if it had been refunded before it could be granted."""
    refunded_at: Mapped[datetime | None] = mapped_column(Instant)
    """By Toss's time where it names one."""
    changed_at: Mapped[datetime] = mapped_column(Instant)
    checked_at: Mapped[datetime] = mapped_column(Instant)
    next_check_at: Mapped[datetime | None] = mapped_column(Instant)
    """From when on reconcile asks whether it was refunded; None: no longer."""


class Subscription(Base):
    """The newest that Toss has told of a subscription, whether or not its order is known here yet."""

    __tablename__ = "subscription"
    __table_args__ = (Index("ix_subscription_changed_at", "changed_at"),)

    order_id: Mapped[str] = mapped_column(String(MAX_ORDER_ID), primary_key=True)
    sku: Mapped[str] = mapped_column(String(MAX_TEXT))
    reason: Mapped[str] = mapped_column(String(MAX_WORD))
    status: Mapped[str] = mapped_column(String(MAX_WORD))
    access_granted: Mapped[bool]
    expires_at: Mapped[datetime | None] = mapped_column(Instant)
    """As Toss told it."""
    auto_renew: Mapped[bool | None]
    occurred_at: Mapped[datetime] = mapped_column(Instant)
    rank: Mapped[int] = mapped_column(BigInteger)
    """`Change.rank`: decides between notices of one time."""
    changed_at: Mapped[datetime] = mapped_column(Instant)

    @property
    def change(self) -> Change:
        return Change(
            order_id=self.order_id,
            sku=self.sku,
            reason=self.reason,
            status=self.status,
            access_granted=self.access_granted,
            expires_at=self.expires_at,
            auto_renew=self.auto_renew,
            occurred_at=self.occurred_at,
        )


async def lock_order(session: AsyncSession, order_id: str, *, is_sqlite: bool) -> None:
    """Until the transaction ends, nobody else grants this order or applies a notice of it.

    A grant looks for a subscription, and a notice for a purchase: without this both could miss the other's row,
    which is not committed yet. SQLite has one writer at a time anyway.
    """
    if not is_sqlite:
        digest = hashlib.sha256(f"order\x1f{order_id}".encode()).digest()
        await session.execute(select(func.pg_advisory_xact_lock(int.from_bytes(digest[:8], signed=True))))


async def insert_purchase(session: AsyncSession, values: dict[str, Any], *, is_sqlite: bool) -> Purchase | None:
    """None if the order has a row already, whoever owns it."""
    insert = (sqlite.insert if is_sqlite else postgresql.insert)(Purchase).values(**values)
    return await session.scalar(insert.on_conflict_do_nothing(index_elements=["order_id"]).returning(Purchase))


async def refund(session: AsyncSession, order_id: str, *, refunded_at: datetime, now: datetime) -> Purchase | None:
    """None if it is not granted: of many who find out, one tells."""
    return await session.scalar(
        update(Purchase)
        .where(Purchase.order_id == order_id, Purchase.state == PurchaseState.GRANTED)
        .values(state=PurchaseState.REFUNDED, refunded_at=refunded_at, changed_at=now, next_check_at=None)
        .returning(Purchase)
    )


async def claim_check(
    session: AsyncSession, purchase: Purchase, *, now: datetime, next_check_at: datetime | None
) -> Purchase | None:
    """Claim the right to ask Toss about it. The next turn is at `next_check_at`, whatever becomes of this one."""
    return await session.scalar(
        update(Purchase)
        .where(
            Purchase.order_id == purchase.order_id,
            Purchase.next_check_at == purchase.next_check_at,
        )
        .values(next_check_at=next_check_at, checked_at=now)
        .returning(Purchase)
    )


async def apply(session: AsyncSession, change: Change, *, now: datetime, is_sqlite: bool) -> Subscription | None:
    """Store it unless something newer, or the same, is stored: as `Change.is_newer`. None if it was not stored."""
    insert = (sqlite.insert if is_sqlite else postgresql.insert)(Subscription).values(
        order_id=change.order_id,
        sku=change.sku,
        reason=change.reason,
        status=change.status,
        access_granted=change.access_granted,
        expires_at=change.expires_at,
        auto_renew=change.auto_renew,
        occurred_at=change.occurred_at,
        rank=change.rank,
        changed_at=now,
    )
    new = insert.excluded
    columns = [column.name for column in Subscription.__table__.columns if not column.primary_key]
    return await session.scalar(
        insert.on_conflict_do_update(
            index_elements=["order_id"],
            set_={name: new[name] for name in columns},
            where=or_(
                Subscription.occurred_at < new.occurred_at,
                (Subscription.occurred_at == new.occurred_at) & (Subscription.rank < new.rank),
            ),
        ).returning(Subscription)
    )
