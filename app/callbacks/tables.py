"""What is stored of a callback, and the statements whose concurrency matters."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import CheckConstraint, Index, String, UniqueConstraint, case, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, Instant, pause_after
from app.vault import Place, Sealed, SealedColumn

MAX_OUTCOME = 32
ERASED = "ERASED"
"""The outcome after which nothing about the person may remain, in the inbox neither."""
NOTHING_TO_DO = "NOT_LINKED"
"""The outcome of a handling that came after another one had done it all."""
FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=30), timedelta(hours=1)
"""Between the attempts to handle a notice; each pause is twice as long as the one before."""


class CallbackName(StrEnum):
    LOGIN_UNLINK = "login-unlink"
    CONSENT_WITHDRAWAL = "consent-withdrawal"
    PAYMENT = "payment"
    IAP_SUBSCRIPTION = "iap-subscription"


class NoticeState(StrEnum):
    OPEN = "OPEN"
    """Recorded; whether it has been handled is not."""
    HANDLED = "HANDLED"
    """`outcome` says how it ended."""
    UNREADABLE = "UNREADABLE"
    """Authentic, but not of the promised form; kept for a person to read."""
    KEPT = "KEPT"
    """Nothing is to be done but to keep it."""


class Notice(Base):
    """One callback. Equal ones that arrive while the first is open are this same row."""

    __tablename__ = "notice"
    __table_args__ = (
        UniqueConstraint("open_key"),
        CheckConstraint("(state = 'OPEN') = (open_key IS NOT NULL)", name="open_key"),
        CheckConstraint("deliveries >= 1 AND attempts >= 0", name="counts"),
        Index("ix_notice_subject_hash", "subject_hash"),
        Index("ix_notice_state_next_attempt_at", "state", "next_attempt_at"),
    )

    notice_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    callback: Mapped[str] = mapped_column(String(32))
    state: Mapped[str] = mapped_column(String(16))
    outcome: Mapped[str | None] = mapped_column(String(MAX_OUTCOME))
    content: Mapped[Sealed | None] = mapped_column(SealedColumn)
    """None once it must not be known any more."""
    subject_hash: Mapped[str | None] = mapped_column(String(64))
    """Whom it is about; None where nobody is named."""
    content_hash: Mapped[str] = mapped_column(String(64))
    open_key: Mapped[str | None] = mapped_column(String(128))
    received_at: Mapped[datetime] = mapped_column(Instant)
    last_received_at: Mapped[datetime] = mapped_column(Instant)
    deliveries: Mapped[int]
    attempts: Mapped[int]
    """To handle it, failed and successful."""
    next_attempt_at: Mapped[datetime | None] = mapped_column(Instant)
    """Of an open one: from when on reconcile handles it."""
    handled_at: Mapped[datetime | None] = mapped_column(Instant)


def place_of_content(notice_id: str) -> Place:
    return Place(Notice.__tablename__, "content", notice_id)


async def record(session: AsyncSession, values: dict[str, Any], *, is_sqlite: bool) -> Notice:
    """Store a new notice, or count one more delivery of an equal one that is still open.

    The unique key decides, not a look beforehand: of two equal deliveries at once one makes the row, and a row that
    is being closed at this moment either takes the delivery, and so cannot be closed, or is followed by a new one.
    """
    insert = (sqlite.insert if is_sqlite else postgresql.insert)(Notice).values(**values)
    new = insert.excluded
    recorded: Notice | None = await session.scalar(
        insert.on_conflict_do_update(
            index_elements=["open_key"],
            set_={
                "deliveries": Notice.deliveries + 1,
                # A write that waited for the database may come after that of a later delivery.
                "last_received_at": case(
                    (Notice.last_received_at > new.last_received_at, Notice.last_received_at),
                    else_=new.last_received_at,
                ),
                # A crash from here on must not leave this delivery to the back-off of an earlier one.
                "next_attempt_at": new.next_attempt_at,
            },
        ).returning(Notice)
    )
    assert recorded is not None  # noqa: S101 - such a statement returns its row
    return recorded


async def close(session: AsyncSession, notice: Notice, *, outcome: str, now: datetime) -> Notice | None:
    """Mark an open notice as handled, unless it has been delivered again since it was read.

    A user can link and unlink twice: a handler that began before the later delivery has not seen what that one is
    about. None also if another replica was faster.
    """
    return await session.scalar(
        update(Notice)
        .where(
            Notice.notice_id == notice.notice_id,
            Notice.state == NoticeState.OPEN,
            Notice.deliveries == notice.deliveries,
        )
        .values(
            state=NoticeState.HANDLED,
            outcome=outcome,
            open_key=None,
            attempts=Notice.attempts + 1,
            next_attempt_at=None,
            handled_at=now,
        )
        .returning(Notice)
    )


async def forget(session: AsyncSession, notice: Notice) -> None:
    """What was said of this person, in this notice and in others that are done with."""
    which = Notice.notice_id == notice.notice_id
    if notice.subject_hash is not None:  # else it would be all that name nobody
        which |= Notice.subject_hash == notice.subject_hash
    await session.execute(
        update(Notice).where(which, Notice.state != NoticeState.OPEN).values(content=None, subject_hash=None)
    )


async def postpone(session: AsyncSession, notice: Notice, *, now: datetime) -> None:
    """An attempt has failed: leave an open notice open, and reconcile away from it for a while."""
    await session.execute(
        update(Notice)
        .where(Notice.notice_id == notice.notice_id, Notice.state == NoticeState.OPEN)
        .values(
            attempts=Notice.attempts + 1,
            next_attempt_at=now + pause_after(notice.attempts, first=FIRST_PAUSE, longest=LONGEST_PAUSE),
        )
    )
