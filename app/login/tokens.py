"""A user's tokens at Toss: sealed, refreshed by one caller at a time on all replicas, shown to nobody."""

import asyncio
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession
from typing_extensions import override

from app.database import Database, LateWrites
from app.errors import SealedDataUnreadable
from app.login.refusals import is_dead_refresh_token
from app.login.tables import NO_TOKENS, User, take_refresh
from app.toss.errors import TossError, TossRejected
from app.toss.governor import Lane
from app.toss.login import Grant, LoginApi
from app.vault import Place, Sealed, UnsealError, Vault

REFRESH_LIFE = timedelta(days=14)
"""Of a refresh token (apps-in-toss reference 6.1); whether each use begins it anew is open."""
REFRESH_MARGIN = timedelta(seconds=60)
"""An access token this close to its end is renewed first."""
POLL_INTERVAL = 0.05
"""Seconds between looks while another caller refreshes."""


@dataclass(frozen=True)
class DatedGrant:
    """A grant, and when it was asked for: from then on its life counts."""

    grant: Grant
    asked_at: datetime

    @override
    def __repr__(self) -> str:
        return "DatedGrant(...)"

    def dump(self) -> str:
        return json.dumps(
            {"grant": self.grant.model_dump(by_alias=True), "askedAt": self.asked_at.timestamp()},
        )

    @classmethod
    def load(cls, text: str) -> "DatedGrant":
        stored = json.loads(text)
        return cls(Grant.model_validate(stored["grant"]), datetime.fromtimestamp(stored["askedAt"], UTC))


class UserTokens:
    def __init__(
        self,
        *,
        database: Database,
        writes: LateWrites,
        api: LoginApi,
        vault: Vault,
        clock: Callable[[], datetime],
        lease: timedelta,
    ) -> None:
        """`lease`: longer than a refresh can take."""
        self._database = database
        self._writes = writes
        self._api = api
        self._vault = vault
        self._clock = clock
        self._lease = lease

    def columns(self, user: User, dated: DatedGrant) -> dict[str, object]:
        """What to store of new tokens. Without a new refresh token the old one stays."""
        grant, asked_at = dated.grant, dated.asked_at
        values: dict[str, object] = {
            "access_token": self._vault.seal(grant.access_token, user.place_of("access_token")),
            "access_expires_at": asked_at + timedelta(seconds=grant.expires_in),
            "refresh_lease_id": None,
            "refresh_lease_until": None,
        }
        if grant.refresh_token is not None:
            values["refresh_token"] = self._vault.seal(grant.refresh_token, user.place_of("refresh_token"))
            values["refresh_expires_at"] = asked_at + REFRESH_LIFE
        return values

    async def access_token(self, user: User, *, lane: Lane) -> str | None:
        """One that should be alive; None when only a new login could bring one.

        Raises: TossError when Toss cannot be asked now, StorageUnavailable, SealedDataUnreadable.
        """
        current: User | None = user
        while current is not None:
            now = self._clock()
            if current.access_token is not None and _is_after(current.access_expires_at, now + REFRESH_MARGIN):
                return self._open(current.access_token, current.place_of("access_token"))
            if current.refresh_token is None or not _is_after(current.refresh_expires_at, now):
                return None
            lease_id = str(uuid.uuid4())
            async with self._database.transaction() as session:
                leased = await take_refresh(session, current, lease_id=lease_id, now=now, until=now + self._lease)
            if leased is not None:
                return await self._refresh(leased, current.refresh_token, lease_id, lane=lane)
            await asyncio.sleep(POLL_INTERVAL)
            current = await self._get(user)
        return None

    async def refuse(self, user: User) -> User | None:
        """Toss does not take the access token that this row holds: the next one has to be a new one."""
        async with self._database.transaction() as session:
            await session.execute(
                update(User)
                .where(User.user_id == user.user_id, User.access_token == user.access_token)
                .values(access_token=None, access_expires_at=None)
            )
        return await self._get(user)

    async def _refresh(self, user: User, sealed: Sealed, lease_id: str, *, lane: Lane) -> str | None:
        asked_at = self._clock()
        try:
            grant = await self._api.refresh(self._open(sealed, user.place_of("refresh_token")), lane=lane)
        except TossError as error:
            is_dead = isinstance(error, TossRejected) and is_dead_refresh_token(error)
            values: dict[str, object] = {**NO_TOKENS} if is_dead else {"refresh_lease_id": None}
            await self._writes.commit(partial(_store, user_id=user.user_id, lease_id=lease_id, values=values))
            if is_dead:
                return None
            raise
        values = self.columns(user, DatedGrant(grant, asked_at))
        await self._writes.commit(partial(_store, user_id=user.user_id, lease_id=lease_id, values=values))
        return grant.access_token

    async def _get(self, user: User) -> User | None:
        """The row as it is now, if it is still about the same link."""
        async with self._database.transaction() as session:
            current = await session.get(User, user.user_id)
        return current if current is not None and current.link_version == user.link_version else None

    def _open(self, sealed: Sealed, place: Place) -> str:
        try:
            return self._vault.open(sealed, place)
        except UnsealError as error:
            raise SealedDataUnreadable from error


async def _store(session: AsyncSession, user_id: str, lease_id: str, values: dict[str, object]) -> None:
    """Unless a login has meanwhile brought newer ones: it takes the lease away."""
    await session.execute(
        update(User)
        .where(User.user_id == user_id, User.refresh_lease_id == lease_id)
        .values({**values, "refresh_lease_until": None})
    )


def _is_after(instant: datetime | None, now: datetime) -> bool:
    return instant is not None and instant > now
