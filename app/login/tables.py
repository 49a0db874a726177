"""What is stored of a user, a session and a login under way."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import JSON, ForeignKey, Index, String, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, Instant
from app.vault import Place, Sealed, SealedColumn


class UserKind(StrEnum):
    MEMBER = "MEMBER"
    """Known by `user_key`, from Toss login."""
    ANONYMOUS = "ANONYMOUS"
    """Known by `anon_key`, which Toss issued; it does not prove whose it is (apps-in-toss reference 7)."""


class User(Base):
    """Somebody whom Toss has named to us. After an unlink only the row and `key_hash` remain, for a while."""

    __tablename__ = "app_user"
    __table_args__ = (
        Index("ix_app_user_linked_at", "linked_at"),
        Index("ix_app_user_unlinked_at", "unlinked_at"),
        Index("ix_app_user_unlink_wanted_at", "unlink_wanted_at"),
    )

    user_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    key_hash: Mapped[str] = mapped_column(String(64), unique=True)
    user_key: Mapped[Sealed | None] = mapped_column(SealedColumn)
    anon_key: Mapped[Sealed | None] = mapped_column(SealedColumn)
    link_version: Mapped[int] = mapped_column(default=1)
    """Grows with every login and every end of a link: what was found out about one is not done to another."""
    created_at: Mapped[datetime] = mapped_column(Instant)
    linked_at: Mapped[datetime] = mapped_column(Instant)
    """Of the last login."""
    unlinked_at: Mapped[datetime | None] = mapped_column(Instant)
    """None while linked."""

    scopes: Mapped[list[str]] = mapped_column(JSON, default=list)
    agreed_terms: Mapped[list[str]] = mapped_column(JSON, default=list)
    profile: Mapped[Sealed | None] = mapped_column(SealedColumn)
    ci_hash: Mapped[str | None] = mapped_column(String(64))

    access_token: Mapped[Sealed | None] = mapped_column(SealedColumn)
    access_expires_at: Mapped[datetime | None] = mapped_column(Instant)
    refresh_token: Mapped[Sealed | None] = mapped_column(SealedColumn)
    refresh_expires_at: Mapped[datetime | None] = mapped_column(Instant)
    refresh_lease_id: Mapped[str | None] = mapped_column(String(36))
    refresh_lease_until: Mapped[datetime | None] = mapped_column(Instant)

    unlink_wanted_at: Mapped[datetime | None] = mapped_column(Instant)
    """When a leaving that the user asked for was last tried; `reconcile` tries again until Toss has heard of it."""
    unlink_sent_at: Mapped[datetime | None] = mapped_column(Instant)
    """A call that ends the link is out, or its answer was lost."""

    def place_of(self, column: str) -> Place:
        return Place(self.__tablename__, column, self.user_id)


NO_TOKENS: dict[str, None] = dict.fromkeys(
    (
        "access_token",
        "access_expires_at",
        "refresh_token",
        "refresh_expires_at",
        "refresh_lease_id",
        "refresh_lease_until",
    )
)


class LoginSession(Base):
    """A session with us. Its token is nowhere but with the mini-app; ended means deleted."""

    __tablename__ = "login_session"
    __table_args__ = (
        Index("ix_login_session_user_id", "user_id"),
        Index("ix_login_session_expires_at", "expires_at"),
    )

    session_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("app_user.user_id", ondelete="CASCADE"))
    created_at: Mapped[datetime] = mapped_column(Instant)
    expires_at: Mapped[datetime] = mapped_column(Instant)
    """Moves on while the session is used, up to `ends_at`."""
    ends_at: Mapped[datetime] = mapped_column(Instant)


class ExchangeState(StrEnum):
    OPEN = "OPEN"
    """Toss has not been asked, or its answer was lost."""
    EXCHANGED = "EXCHANGED"
    """The code is spent, and its tokens are here, sealed: what follows may be tried again."""
    DONE = "DONE"
    REJECTED = "REJECTED"
    """Toss said no for good."""


class LoginExchange(Base):
    """One authorization code. Toss takes it once; whoever brings it at the same time hears what came of it."""

    __tablename__ = "login_exchange"
    __table_args__ = (Index("ix_login_exchange_created_at", "created_at"),)

    code_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    state: Mapped[str] = mapped_column(String(16), default=ExchangeState.OPEN)
    created_at: Mapped[datetime] = mapped_column(Instant)
    lease_id: Mapped[str | None] = mapped_column(String(36))
    lease_until: Mapped[datetime | None] = mapped_column(Instant)
    grant: Mapped[Sealed | None] = mapped_column(SealedColumn)
    settled_at: Mapped[datetime | None] = mapped_column(Instant)
    """When the last attempt ended, well or badly."""
    problem: Mapped[str | None] = mapped_column(String(64))
    """The code of our problem by which the last attempt failed."""
    toss_code: Mapped[str | None] = mapped_column(String(64))
    user_id: Mapped[str | None] = mapped_column(String(36))

    def place_of(self, column: str) -> Place:
        return Place(self.__tablename__, column, self.code_hash)


async def take_exchange(
    session: AsyncSession, code_hash: str, *, since: datetime, lease_id: str, now: datetime, until: datetime
) -> LoginExchange | None:
    """Claim the right to bring this code to an end. Of many callers, on all replicas, one gets it.

    None too for who came, at `since`, before the last attempt ended: they are answered from that one.
    """
    return await session.scalar(
        update(LoginExchange)
        .where(
            LoginExchange.code_hash == code_hash,
            LoginExchange.state.in_((ExchangeState.OPEN, ExchangeState.EXCHANGED)),
            (LoginExchange.lease_until.is_(None)) | (LoginExchange.lease_until <= now),
            (LoginExchange.settled_at.is_(None)) | (LoginExchange.settled_at < since),
        )
        .values(lease_id=lease_id, lease_until=until, settled_at=None, problem=None, toss_code=None)
        .returning(LoginExchange)
    )


async def take_refresh(
    session: AsyncSession, user: User, *, lease_id: str, now: datetime, until: datetime
) -> User | None:
    """Claim the right to use this user's refresh token: Toss may let each serve once (reference 6.3)."""
    return await session.scalar(
        update(User)
        .where(
            User.user_id == user.user_id,
            User.link_version == user.link_version,
            User.refresh_token == user.refresh_token,
            (User.refresh_lease_until.is_(None)) | (User.refresh_lease_until <= now),
        )
        .values(refresh_lease_id=lease_id, refresh_lease_until=until)
        .returning(User)
    )
