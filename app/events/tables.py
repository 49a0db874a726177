"""What is stored of an event, until the partner's server has it and for a while after."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    ColumnElement,
    Index,
    Integer,
    String,
    UniqueConstraint,
    literal_column,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, aliased, mapped_column

from app.database import Base, Instant, pause_after
from app.trace_context import LENGTH as TRACEPARENT_LENGTH

FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=5), timedelta(hours=6)
"""Between the attempts to deliver an event; each pause is twice as long as the one before."""


class EventType(StrEnum):
    VERIFICATION_COMPLETED = "verification.completed"
    LOGIN_UNLINKED = "login.unlinked"
    PAYMENT_PAID = "payment.paid"
    PAYMENT_REFUNDED = "payment.refunded"
    PAYMENT_HELD = "payment.held"
    PAYMENT_FAILED = "payment.failed"
    PAYMENT_REFUND_REFUSED = "payment.refund_refused"
    PURCHASE_GRANTED = "purchase.granted"
    PURCHASE_REFUNDED = "purchase.refunded"
    SUBSCRIPTION_CHANGED = "subscription.changed"


class EventState(StrEnum):
    PENDING = "PENDING"
    """To be delivered; `next_attempt_at` says from when on."""
    DELIVERED = "DELIVERED"
    GIVEN_UP = "GIVEN_UP"
    """The partner's server has not taken it in all that time. It can be replayed."""
    KEPT = "KEPT"
    """There was no address to deliver to."""


# Literals, not parameters: with those no plan could use the partial index.
PENDING: ColumnElement[str] = literal_column(f"'{EventState.PENDING}'")
IS_PENDING = literal_column("state") == PENDING


class Event(Base):
    """One thing that has happened. Holds ids, states and amounts, never anything of a person."""

    __tablename__ = "event"
    __table_args__ = (
        UniqueConstraint("event_id"),
        CheckConstraint("(state = 'PENDING') = (next_attempt_at IS NOT NULL)", name="next_attempt"),
        CheckConstraint("state <> 'PENDING' OR give_up_at IS NOT NULL", name="give_up"),
        Index("ix_event_pending", "position", sqlite_where=IS_PENDING, postgresql_where=IS_PENDING),
        Index("ix_event_subject_position", "subject", "position"),
        Index("ix_event_occurred_at", "occurred_at"),
    )

    position: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    """In the order of recording, which clocks of several replicas could not tell."""
    event_id: Mapped[str] = mapped_column(String(36))
    type: Mapped[str] = mapped_column(String(40))
    subject: Mapped[str] = mapped_column(String(64))
    """What it is about: a txId, a userId, an orderNo, an orderId."""
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    occurred_at: Mapped[datetime] = mapped_column(Instant)
    state: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int]
    """Of the present round: a replay begins another one."""
    next_attempt_at: Mapped[datetime | None] = mapped_column(Instant)
    give_up_at: Mapped[datetime | None] = mapped_column(Instant)
    """After an attempt that fails then or later there is no other in this round."""
    lease_id: Mapped[str | None] = mapped_column(String(36))
    lease_until: Mapped[datetime | None] = mapped_column(Instant)
    """Until then one replica alone may be delivering it."""
    last_status: Mapped[int | None]
    """HTTP status of the last answer; None when there was none."""
    traceparent: Mapped[str | None] = mapped_column(String(TRACEPARENT_LENGTH))
    """Of the request in which it happened; None outside of one."""
    delivered_at: Mapped[datetime | None] = mapped_column(Instant)
    """When the partner's server last took it."""


NOT_DUE: dict[str, Any] = {"state": EventState.KEPT, "attempts": 0}


def due(now: datetime, *, give_up_after: timedelta) -> dict[str, Any]:
    """What makes an event one to be delivered, with all the time there is."""
    return {
        "state": EventState.PENDING,
        "attempts": 0,
        "next_attempt_at": now,
        "give_up_at": now + give_up_after,
    }


async def take_due(
    session: AsyncSession, *which: ColumnElement[bool], lease_id: str, now: datetime, until: datetime
) -> Event | None:
    """Lease the oldest event that may be delivered now, of those that meet the conditions.

    Of the events of one subject only the first may: what came later has to wait until it is delivered or given up.
    """
    earlier = aliased(Event)
    must_wait = (
        select(earlier.position)
        .where(
            earlier.subject == Event.subject, earlier.position < Event.position, earlier.state == EventState.PENDING
        )
        .correlate(Event)
        .exists()
    )
    is_free = Event.lease_until.is_(None) | (Event.lease_until <= now)
    oldest = (
        select(Event.position)
        .where(Event.state == PENDING, Event.next_attempt_at <= now, is_free, ~must_wait, *which)
        .order_by(Event.position)
        .limit(1)
        # Who delivers at the same moment takes the next one rather than wait for this one.
        .with_for_update(skip_locked=True)
        .correlate(None)
    )
    return await session.scalar(
        update(Event)
        .where(Event.position == oldest.scalar_subquery())
        .values(lease_id=lease_id, lease_until=until)
        .returning(Event)
    )


async def close(session: AsyncSession, event: Event, *, status: int | None, now: datetime) -> Event | None:
    """Note how an attempt has ended: delivered by a 2xx, else to be tried again or given up.

    None if the lease has ended meanwhile and somebody else has taken it.
    """
    is_delivered = status is not None and status // 100 == 2  # noqa: PLR2004 - 2xx
    assert event.give_up_at is not None  # noqa: S101 - as the table has it for what is to be delivered
    next_attempt_at = None
    if is_delivered:
        state = EventState.DELIVERED
    elif now >= event.give_up_at:
        state = EventState.GIVEN_UP
    else:
        state = EventState.PENDING
        pause = pause_after(event.attempts, first=FIRST_PAUSE, longest=LONGEST_PAUSE)
        next_attempt_at = min(now + pause, event.give_up_at)
    return await session.scalar(
        update(Event)
        .where(Event.position == event.position, Event.lease_id == event.lease_id)
        .values(
            state=state,
            attempts=Event.attempts + 1,
            next_attempt_at=next_attempt_at,
            lease_id=None,
            lease_until=None,
            last_status=status,
            delivered_at=now if is_delivered else Event.delivered_at,
        )
        .returning(Event)
    )
