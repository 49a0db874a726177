"""What is stored of a callback: the notice."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, Instant
from app.vault import Place, Sealed, SealedColumn


class CallbackName(StrEnum):
    """The part of the address below `/callbacks/toss`."""

    LOGIN_UNLINK = "login-unlink"
    CONSENT_WITHDRAWAL = "consent-withdrawal"


class NoticeState(StrEnum):
    OPEN = "OPEN"
    """Recorded; still to be handled."""
    HANDLED = "HANDLED"
    UNREADABLE = "UNREADABLE"
    """Authentic, but not of the documented form: somebody has to look at it."""
    KEPT = "KEPT"
    """Of a callback whose content is not documented: nothing is to be done with it."""


class Notice(Base):
    __tablename__ = "notice"
    __table_args__ = (
        Index("ix_notice_state_next_attempt_at", "state", "next_attempt_at"),
        Index("ix_notice_received_at", "received_at"),
        Index("ix_notice_subject_hash", "subject_hash"),
    )

    notice_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    callback: Mapped[str] = mapped_column(String(40))
    state: Mapped[str] = mapped_column(String(16))
    outcome: Mapped[str | None] = mapped_column(String(40))
    content: Mapped[Sealed | None] = mapped_column(SealedColumn)
    subject_hash: Mapped[str | None] = mapped_column(String(64))
    """Of the user whom it is about."""
    open_key: Mapped[str | None] = mapped_column(String(64), unique=True)
    """A hash of the content while the notice is open: what comes again meanwhile is the same notice."""
    deliveries: Mapped[int] = mapped_column(default=1)
    attempts: Mapped[int] = mapped_column(default=0)
    """Failed ones."""
    received_at: Mapped[datetime] = mapped_column(Instant)
    last_received_at: Mapped[datetime] = mapped_column(Instant)
    next_attempt_at: Mapped[datetime | None] = mapped_column(Instant)
    """While open: when `reconcile` takes it up."""
    handled_at: Mapped[datetime | None] = mapped_column(Instant)

    def place_of(self, column: str) -> Place:
        return Place(self.__tablename__, column, self.notice_id)
