"""What is stored of an event, until the partner's server has it and for a while after."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, BigInteger, CheckConstraint, Index, Integer, String, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, Instant


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


IS_PENDING = text(f"state = '{EventState.PENDING}'")


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
    delivered_at: Mapped[datetime | None] = mapped_column(Instant)
    """When the partner's server last took it."""
