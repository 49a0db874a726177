"""What is stored of a verification, and the statements whose concurrency matters."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import JSON, CheckConstraint, Index, String, case, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, Instant
from app.vault import Place, Sealed, SealedColumn

MAX_READS = 2
"""Successful result calls that Toss permits per txId (toss-cert reference 8)."""


READS_LOST = "READS_LOST"
"""Our own `end_code`: both reads may have been used, and neither answer is here."""


class ResultState(StrEnum):
    NONE = "NONE"
    """Not read yet, or every read so far failed or was lost."""
    ANSWERED = "ANSWERED"
    """Toss's answer is stored, sealed and closed; it still has to be opened."""
    STORED = "STORED"
    """Opened; every further question is answered from here."""
    ENDED = "ENDED"
    """There will be no result; `end_code` says why."""
    ERASED = "ERASED"
    """The personal data is gone; that the verification took place remains."""


class Verification(Base):
    __tablename__ = "verification"
    __table_args__ = (
        CheckConstraint(f"reads_succeeded + reads_unknown <= {MAX_READS}", name="reads"),
        CheckConstraint("reads_succeeded >= 0 AND reads_unknown >= 0", name="reads_not_negative"),
        Index("ix_verification_ci_hash", "ci_hash"),
        Index("ix_verification_created_at", "created_at"),
        Index("ix_verification_lease_until", "lease_until"),
        Index("ix_verification_user_id", "user_id"),
    )

    tx_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    request_type: Mapped[str] = mapped_column(String(16))
    token_hash: Mapped[str | None] = mapped_column(String(64))
    session_id: Mapped[str | None] = mapped_column(String(36))
    """Of the login session that owns it; then there is no token."""
    user_id: Mapped[str | None] = mapped_column(String(36))
    status: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime] = mapped_column(Instant)
    requested_at: Mapped[datetime] = mapped_column(Instant)
    expires_at: Mapped[datetime] = mapped_column(Instant)
    completion_seen_at: Mapped[datetime | None] = mapped_column(Instant)
    completed_at: Mapped[datetime | None] = mapped_column(Instant)

    result_state: Mapped[str] = mapped_column(String(16), default=ResultState.NONE)
    end_code: Mapped[str | None] = mapped_column(String(64))
    reads_succeeded: Mapped[int] = mapped_column(default=0)
    reads_unknown: Mapped[int] = mapped_column(default=0)
    """Result calls whose answer is still out or was lost; each may have used a read."""
    lease_id: Mapped[str | None] = mapped_column(String(36))
    lease_until: Mapped[datetime | None] = mapped_column(Instant)

    answer: Mapped[Sealed | None] = mapped_column(SealedColumn)
    identity: Mapped[Sealed | None] = mapped_column(SealedColumn)
    signature: Mapped[Sealed | None] = mapped_column(SealedColumn)
    signature_report: Mapped[dict[str, str] | None] = mapped_column(JSON)
    ci_hash: Mapped[str | None] = mapped_column(String(64))
    di_hash: Mapped[str | None] = mapped_column(String(64))
    stored_at: Mapped[datetime | None] = mapped_column(Instant)
    erased_at: Mapped[datetime | None] = mapped_column(Instant)

    def place_of(self, column: str) -> Place:
        return Place(self.__tablename__, column, self.tx_id)

    @property
    def reads_left(self) -> int:
        return MAX_READS - self.reads_succeeded - self.reads_unknown


async def take_lease(
    session: AsyncSession, tx_id: str, *, lease_id: str, now: datetime, until: datetime
) -> Verification | None:
    """Claim the right to one result call, and count that call as possibly spent before it is made.

    The one statement that keeps two replicas from calling at once, and anybody from a third read: it finds no
    row if another call holds an unexpired lease, if both reads may have been used, or if the result is there.
    """
    return await session.scalar(
        update(Verification)
        .where(
            Verification.tx_id == tx_id,
            Verification.result_state == ResultState.NONE,
            (Verification.lease_until.is_(None)) | (Verification.lease_until <= now),
            Verification.reads_succeeded + Verification.reads_unknown < MAX_READS,
        )
        .values(lease_id=lease_id, lease_until=until, reads_unknown=Verification.reads_unknown + 1)
        .returning(Verification)
    )


async def give_back_read(session: AsyncSession, tx_id: str, *, lease_id: str) -> None:
    """The call of this lease certainly failed: it used no read."""
    await session.execute(
        update(Verification)
        .where(Verification.tx_id == tx_id, Verification.lease_id == lease_id)
        .values(lease_id=None, lease_until=None, reads_unknown=Verification.reads_unknown - 1)
    )


async def drop_lease(session: AsyncSession, tx_id: str, *, lease_id: str) -> None:
    """The answer of this lease's call is lost: the read stays counted."""
    await session.execute(
        update(Verification)
        .where(Verification.tx_id == tx_id, Verification.lease_id == lease_id)
        .values(lease_id=None, lease_until=None)
    )


async def keep_answer(session: AsyncSession, tx_id: str, answer: Sealed) -> None:
    """Store a successful answer: what Toss handed out is not lost.

    Not even if it comes after its lease, or after reconcile or another call has meanwhile ended the verification.
    """
    await session.execute(
        update(Verification)
        .where(
            Verification.tx_id == tx_id,
            Verification.result_state.in_((ResultState.NONE, ResultState.ENDED)),
        )
        .values(
            result_state=ResultState.ANSWERED,
            end_code=None,
            answer=answer,
            lease_id=None,
            lease_until=None,
            reads_succeeded=Verification.reads_succeeded + 1,
            reads_unknown=Verification.reads_unknown - 1,
        )
    )


async def discard_answer(session: AsyncSession, verification: Verification, *, end_code: str) -> bool:
    """Throw away an answer of which nothing opens. If it was the last one, so ends the verification: then True."""
    is_last = Verification.reads_succeeded + Verification.reads_unknown >= MAX_READS
    state = await session.scalar(
        update(Verification)
        .where(
            Verification.tx_id == verification.tx_id,
            Verification.result_state == ResultState.ANSWERED,
            # Not a better one that has come meanwhile.
            Verification.answer == verification.answer,
        )
        .values(
            result_state=case((is_last, ResultState.ENDED.value), else_=ResultState.NONE.value),
            end_code=case((is_last, end_code), else_=None),
            answer=None,
        )
        .returning(Verification.result_state)
    )
    return state == ResultState.ENDED
