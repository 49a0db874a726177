"""Our own session tokens: 256 random bits, of which only a keyed hash is stored, looked up on every request."""

import secrets
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from typing_extensions import override

from app.database import Database
from app.login.tables import LoginSession, User
from app.vault import Vault

TOKEN_PREFIX = "st_"  # noqa: S105 - makes a leaked token recognisable
TOUCHES = 20
"""A session in use is prolonged when this fraction of its sliding life has passed, not at every request."""


@dataclass(frozen=True)
class IssuedSession:
    """The only moment at which the token itself exists."""

    session: LoginSession
    token: str

    @override
    def __repr__(self) -> str:
        return f"IssuedSession({self.session.session_id})"


@dataclass(frozen=True)
class LiveSession:
    session: LoginSession
    user: User

    @override
    def __repr__(self) -> str:
        return f"LiveSession({self.session.session_id})"


class Sessions:
    def __init__(
        self,
        *,
        database: Database,
        vault: Vault,
        clock: Callable[[], datetime],
        sliding: timedelta,
        absolute: timedelta,
    ) -> None:
        self._database = database
        self._vault = vault
        self._clock = clock
        self._sliding = sliding
        self._absolute = absolute

    def issue(self, transaction: AsyncSession, user_id: str) -> IssuedSession:
        """In the caller's transaction, so that no session is there without what it stands for."""
        now, token = self._clock(), TOKEN_PREFIX + secrets.token_urlsafe(32)
        session = LoginSession(
            session_id=str(uuid.uuid4()),
            token_hash=self._hash(token),
            user_id=user_id,
            created_at=now,
            expires_at=now + min(self._sliding, self._absolute),
            ends_at=now + self._absolute,
        )
        transaction.add(session)
        return IssuedSession(session, token)

    async def verify(self, token: str) -> LiveSession | None:
        """None if it is unknown, over or ended. Prolongs a session in use."""
        async with self._database.transaction() as transaction:
            found = (
                await transaction.execute(
                    select(LoginSession, User)
                    .join(User, User.user_id == LoginSession.user_id)
                    .where(LoginSession.token_hash == self._hash(token))
                )
            ).one_or_none()
        if found is None:
            return None
        session, user = found
        now = self._clock()
        if now >= session.expires_at or user.unlinked_at is not None:
            return None
        expires_at = min(now + self._sliding, session.ends_at)
        if expires_at - session.expires_at >= self._sliding / TOUCHES:
            async with self._database.transaction() as transaction:
                await transaction.execute(
                    update(LoginSession)
                    .where(LoginSession.session_id == session.session_id, LoginSession.expires_at < expires_at)
                    .values(expires_at=expires_at)
                )
        return LiveSession(session, user)

    async def of(self, user_id: str) -> Sequence[LoginSession]:
        """Those of a user that still live, newest first."""
        async with self._database.transaction() as transaction:
            return (
                await transaction.scalars(
                    select(LoginSession)
                    .where(LoginSession.user_id == user_id, LoginSession.expires_at > self._clock())
                    .order_by(LoginSession.created_at.desc(), LoginSession.session_id)
                )
            ).all()

    async def end(self, session_id: str, *, user_id: str) -> bool:
        """At once, on every replica. False if there is no such session of this user."""
        async with self._database.transaction() as transaction:
            ended = await transaction.scalar(
                delete(LoginSession)
                .where(LoginSession.session_id == session_id, LoginSession.user_id == user_id)
                .returning(LoginSession.session_id)
            )
        return ended is not None

    async def end_all(self, user_id: str) -> int:
        async with self._database.transaction() as transaction:
            ended = await transaction.scalars(
                delete(LoginSession).where(LoginSession.user_id == user_id).returning(LoginSession.session_id)
            )
            return len(ended.all())

    async def purge(self) -> int:
        """Delete those that are over."""
        async with self._database.transaction() as transaction:
            over = await transaction.scalars(
                delete(LoginSession)
                .where(LoginSession.expires_at <= self._clock())
                .returning(LoginSession.session_id)
            )
            return len(over.all())

    def _hash(self, token: str) -> str:
        return self._vault.hash("session_token", token)
