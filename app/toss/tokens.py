"""The token keeper: read, lock, re-read, refresh early. One service token for any number of workers (G5)."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from pydantic import Field
from typing_extensions import override

from app.toss.calls import Observe, observed, unobserved
from app.toss.errors import NotSent, TossError
from app.toss.transport import Transport, Wire

REFRESH_MARGIN: Final = timedelta(seconds=60)
"""A token is renewed this long before its end, or in the second half of a shorter life."""
ASSUMED_LIFE: Final = 300.0
"""Seconds for a token whose answer tells no life; RFC 6749 leaves that open, Toss's documentation does not."""
POLL_INTERVAL: Final = 0.05
"""Seconds between looks at the store while another process refreshes; a token call takes about as long."""

Clock = Callable[[], datetime]


@dataclass(frozen=True)
class ServiceToken:
    """Our client-credentials token for Toss Cert; opaque."""

    value: str
    fetched_at: datetime
    expires_at: datetime

    def is_fresh(self, now: datetime) -> bool:
        return now < self.expires_at - min(REFRESH_MARGIN, (self.expires_at - self.fetched_at) / 2)

    @property
    def fingerprint(self) -> str:
        """Tells tokens apart without showing one."""
        return hashlib.sha256(self.value.encode()).hexdigest()

    @override
    def __repr__(self) -> str:
        return "ServiceToken(...)"


class TokenStoreUnavailable(Exception):
    """The shared store cannot be reached; each process then keeps its own token."""


class TokenStore(Protocol):
    """Where replicas share the token. Every method may raise TokenStoreUnavailable."""

    async def read(self) -> ServiceToken | None: ...

    async def write(self, token: ServiceToken, *, fence: int) -> None:
        """Store unless a holder of a later lock has already written."""

    async def drop(self, token: ServiceToken) -> None:
        """Forget the token if it is still the current one: a late 401 must not discard a newer token."""

    async def lock(self) -> int | None:
        """The fence of a new lock (each greater than the one before), or None while another holds it."""

    async def unlock(self, fence: int) -> None: ...

    async def has_failed_recently(self) -> bool: ...

    async def note_failure(self) -> None: ...


class TokenKeeper:
    def __init__(
        self,
        *,
        fetch: Callable[[], Awaitable[ServiceToken]],
        store: TokenStore,
        clock: Clock,
        failure_ttl: timedelta,
    ) -> None:
        self._fetch = fetch
        self._store = store
        self._clock = clock
        self._failure_ttl = failure_ttl
        # Only saves this process the waiting; the lock that decides is the store's.
        self._turn = asyncio.Lock()
        self._own: ServiceToken | None = None
        self._own_failed_at: datetime | None = None

    @property
    def current(self) -> ServiceToken | None:
        """The one that this process used last; it may have ended."""
        return self._own

    async def get(self) -> ServiceToken:
        """A token with life left.

        Raises: TossError as the token endpoint failed; NotSent for a short while after such a failure. Neither
        while the token in hand still lives: that is what renewing it early is for.
        """
        try:
            self._own = await self._fresh()
        except TossError:
            if self._own is None or self._own.expires_at <= self._clock():
                raise
        return self._own

    async def invalidate(self, token: ServiceToken) -> None:
        """Toss refused this token (401, CE1000)."""
        if self._own == token:
            self._own = None
        try:
            await self._store.drop(token)
        except TokenStoreUnavailable:
            return

    async def _fresh(self) -> ServiceToken:
        try:
            token = await self._store.read()
            if token is None or not token.is_fresh(self._clock()):
                self._own = token or self._own
                async with self._turn:
                    token = await self._refresh_shared()
        except TokenStoreUnavailable:
            async with self._turn:
                token = await self._refresh_alone()
        return token

    async def _refresh_shared(self) -> ServiceToken:
        while True:
            token = await self._store.read()
            if token is not None and token.is_fresh(self._clock()):
                return token
            fence = await self._store.lock()
            if fence is None:
                await asyncio.sleep(POLL_INTERVAL)
                continue
            try:
                return await self._refresh_locked(fence)
            finally:
                await self._unlock(fence)

    async def _refresh_locked(self, fence: int) -> ServiceToken:
        token = await self._store.read()
        if token is not None and token.is_fresh(self._clock()):
            return token
        if await self._store.has_failed_recently():
            raise NotSent("the token endpoint failed a moment ago")
        try:
            token = await self._fetch()
        except TossError:
            await self._store.note_failure()
            raise
        try:
            await self._store.write(token, fence=fence)
        except TokenStoreUnavailable:
            # Fetched while the store went away: it serves this process until the store is back.
            self._own = token
            raise
        return token

    async def _unlock(self, fence: int) -> None:
        try:
            await self._store.unlock(fence)
        except TokenStoreUnavailable:
            return  # the lock ends by its own lease

    async def _refresh_alone(self) -> ServiceToken:
        now = self._clock()
        if self._own is not None and self._own.is_fresh(now):
            return self._own
        if self._own_failed_at is not None and now < self._own_failed_at + self._failure_ttl:
            raise NotSent("the token endpoint failed a moment ago")
        try:
            token = await self._fetch()
        except TossError:
            self._own_failed_at = now
            raise
        return token


class TokenAnswer(Wire):
    """`POST /token` (toss-cert reference 3.1): OAuth's own form, not Toss's envelope."""

    access_token: str = Field(pattern=r"^[\x21-\x7e]+$")
    expires_in: float = Field(ASSUMED_LIFE, gt=0, le=10**10, allow_inf_nan=False)


@dataclass(frozen=True)
class TokenEndpoint:
    """Client credentials, RFC 6749 4.4; form body with snake_case names."""

    transport: Transport
    url: str
    client_id: str
    client_secret: str
    scope: str
    max_ttl: timedelta
    clock: Clock
    observe: Observe = unobserved

    @override
    def __repr__(self) -> str:
        return "TokenEndpoint(...)"

    @observed("cert.token")
    async def fetch(self) -> ServiceToken:
        """Raises: TossError."""
        asked_at = self.clock()
        answer = await self.transport.post_form(
            self.url,
            {
                "grant_type": "client_credentials",
                "scope": self.scope,
                "client_id": self.client_id,
                "client_secret": self.client_secret,
            },
        )
        token = answer.parse(TokenAnswer, answer.plain())
        lifetime = min(timedelta(seconds=token.expires_in), self.max_ttl)
        return ServiceToken(token.access_token, fetched_at=asked_at, expires_at=asked_at + lifetime)
