"""What replicas share and may lose: Redis, or the same in one process (G6). Facts are in SQL, not here."""

import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol, TypeVar, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from typing_extensions import override

from app.toss.tokens import ServiceToken, TokenStoreUnavailable
from app.vault import Place, Sealed, UnsealError, Vault

PREFIX: Final = "bff:v1:"
POOL_SIZE: Final = 20
BREATHER: Final = 1.0
"""Seconds for which Redis is left alone after a failure, so that not every call waits for its timeout."""


class SharedStateUnavailable(Exception):
    """Redis cannot be reached in time."""


class SharedState(Protocol):
    """The small interface. Every method may raise SharedStateUnavailable.

    A fence is the number of a lock; it only ever grows. A writer shows its fence, so that one who lost the lock
    without noticing cannot overwrite its successor. A tag names a value without showing it.
    """

    async def read(self, name: str) -> str | None: ...

    async def write(self, name: str, value: str, *, tag: str, fence: int, ttl: timedelta) -> bool:
        """False if a greater fence has written before."""

    async def drop(self, name: str, *, tag: str) -> bool:
        """Forget the value if it still carries this tag."""

    async def lock(self, name: str, *, ttl: timedelta) -> int | None:
        """A new fence, or None while somebody else holds the lock."""

    async def unlock(self, name: str, fence: int) -> None: ...

    async def ping(self) -> None: ...

    async def aclose(self) -> None: ...


@dataclass
class _Entry:
    value: str
    tag: str
    ends_at: float


class InProcessState(SharedState):
    """For one process. Nothing awaits between reading and writing, so the event loop makes each method atomic."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._entries: dict[str, _Entry] = {}
        self._locks: dict[str, tuple[int, float]] = {}
        self._last_fence = 0
        self._written: dict[str, int] = {}

    def _entry(self, name: str) -> _Entry | None:
        entry = self._entries.get(name)
        if entry is not None and entry.ends_at <= self._monotonic():
            del self._entries[name]
            return None
        return entry

    @override
    async def read(self, name: str) -> str | None:
        entry = self._entry(name)
        return entry.value if entry else None

    @override
    async def write(self, name: str, value: str, *, tag: str, fence: int, ttl: timedelta) -> bool:
        if self._written.get(name, 0) > fence:
            return False
        self._written[name] = fence
        self._entries[name] = _Entry(value, tag, self._monotonic() + ttl.total_seconds())
        return True

    @override
    async def drop(self, name: str, *, tag: str) -> bool:
        entry = self._entry(name)
        if entry is None or entry.tag != tag:
            return False
        del self._entries[name]
        return True

    @override
    async def lock(self, name: str, *, ttl: timedelta) -> int | None:
        now = self._monotonic()
        held = self._locks.get(name)
        if held is not None and held[1] > now:
            return None
        self._last_fence += 1
        self._locks[name] = (self._last_fence, now + ttl.total_seconds())
        return self._last_fence

    @override
    async def unlock(self, name: str, fence: int) -> None:
        if self._locks.get(name, (0, 0.0))[0] == fence:
            del self._locks[name]

    @override
    async def ping(self) -> None:
        return

    @override
    async def aclose(self) -> None:
        return


# KEYS: value, fences. ARGV: value, tag, fence, milliseconds. The last fence outlives the value it came with; next
# and last are in one key, so that an eviction cannot take one without the other.
WRITE = """
if tonumber(redis.call('HGET', KEYS[2], 'last') or '0') > tonumber(ARGV[3]) then return 0 end
redis.call('HSET', KEYS[2], 'last', ARGV[3])
redis.call('HSET', KEYS[1], 'value', ARGV[1], 'tag', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1
"""
# KEYS: value. ARGV: tag.
DROP = """
if redis.call('HGET', KEYS[1], 'tag') ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""
# KEYS: lock, fences. ARGV: milliseconds.
LOCK = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local next = tonumber(redis.call('HGET', KEYS[2], 'next') or '0')
local last = tonumber(redis.call('HGET', KEYS[2], 'last') or '0')
local fence = math.max(next, last) + 1
redis.call('HSET', KEYS[2], 'next', fence)
redis.call('SET', KEYS[1], fence, 'PX', ARGV[1])
return fence
"""
# KEYS: lock. ARGV: fence.
UNLOCK = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""

T = TypeVar("T")


class RedisState(SharedState):
    """One round trip a method; the scripts are atomic. Keys of one name share a hash tag, for Redis Cluster."""

    def __init__(self, url: str, *, timeout: timedelta, monotonic: Callable[[], float] = time.monotonic) -> None:
        seconds = timeout.total_seconds()
        # A blocking pool: callers beyond it wait their turn instead of being told that Redis is away.
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=POOL_SIZE,
            timeout=seconds,
            decode_responses=True,
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
            retry=Retry(NoBackoff(), 1),  # once, for a connection that died while idle
        )
        # An option that no connection knows is a fault of the settings: it shows now, not at the first call.
        pool.connection_class(**pool.connection_kwargs)
        self._redis: Redis = Redis.from_pool(pool)
        self._monotonic = monotonic
        self._leave_alone_until = 0.0
        self._write = self._redis.register_script(WRITE)
        self._drop = self._redis.register_script(DROP)
        self._lock = self._redis.register_script(LOCK)
        self._unlock = self._redis.register_script(UNLOCK)

    @override
    async def read(self, name: str) -> str | None:
        return cast("str | None", await self._ask(lambda: self._redis.hget(_key(name, "value"), "value")))

    @override
    async def write(self, name: str, value: str, *, tag: str, fence: int, ttl: timedelta) -> bool:
        keys = [_key(name, "value"), _key(name, "fences")]
        args: list[str | int] = [value, tag, fence, _milliseconds(ttl)]
        return bool(await self._ask(lambda: self._write(keys=keys, args=args)))

    @override
    async def drop(self, name: str, *, tag: str) -> bool:
        return bool(await self._ask(lambda: self._drop(keys=[_key(name, "value")], args=[tag])))

    @override
    async def lock(self, name: str, *, ttl: timedelta) -> int | None:
        keys = [_key(name, "lock"), _key(name, "fences")]
        return int(await self._ask(lambda: self._lock(keys=keys, args=[_milliseconds(ttl)]))) or None

    @override
    async def unlock(self, name: str, fence: int) -> None:
        await self._ask(lambda: self._unlock(keys=[_key(name, "lock")], args=[str(fence)]))

    @override
    async def ping(self) -> None:
        # A probe asks whatever happened before, so that a recovery is noticed.
        self._leave_alone_until = 0.0
        await self._ask(self._redis.ping)

    @override
    async def aclose(self) -> None:
        await self._redis.aclose()

    async def _ask(self, command: Callable[[], Any]) -> Any:  # noqa: ANN401 - redis-py's answers are untyped
        if self._monotonic() < self._leave_alone_until:
            raise SharedStateUnavailable("Redis failed a moment ago")
        try:
            return await cast("Awaitable[Any]", command())
        except (RedisError, OSError, ValueError, TypeError) as error:
            self._leave_alone_until = self._monotonic() + BREATHER
            raise SharedStateUnavailable(type(error).__name__) from None


def _key(name: str, part: str) -> str:
    return f"{PREFIX}{{{name}}}:{part}"


def _milliseconds(ttl: timedelta) -> int:
    return max(1, int(ttl.total_seconds() * 1000))


class SharedTokenStore:
    """The token keeper's store: the token sealed in shared state, named by a hash of whose token it is."""

    def __init__(
        self,
        *,
        state: SharedState,
        vault: Vault,
        name: str,
        lock_ttl: timedelta,
        failure_ttl: timedelta,
        clock: Callable[[], datetime],
    ) -> None:
        self._state = state
        self._vault = vault
        self._name = name
        self._place = Place("shared_state", "token", name)
        self._lock_ttl = lock_ttl
        self._failure_ttl = failure_ttl
        self._clock = clock

    async def read(self) -> ServiceToken | None:
        text = await self._ask(self._state.read(self._name))
        if text is None:
            return None
        try:
            stored = json.loads(self._vault.open(Sealed(text), self._place))
            return ServiceToken(
                stored["value"],
                fetched_at=datetime.fromtimestamp(stored["fetched_at"], UTC),
                expires_at=datetime.fromtimestamp(stored["expires_at"], UTC),
            )
        except (UnsealError, ValueError, KeyError):
            # Sealed with a key that this replica does not have (yet): as good as absent.
            return None

    async def write(self, token: ServiceToken, *, fence: int) -> None:
        content = {
            "value": token.value,
            "fetched_at": token.fetched_at.timestamp(),
            "expires_at": token.expires_at.timestamp(),
        }
        sealed = self._vault.seal(json.dumps(content), self._place)
        await self._ask(
            self._state.write(
                self._name,
                sealed.text,
                tag=token.fingerprint,
                fence=fence,
                ttl=token.expires_at - self._clock(),
            )
        )

    async def drop(self, token: ServiceToken) -> None:
        await self._ask(self._state.drop(self._name, tag=token.fingerprint))

    async def lock(self) -> int | None:
        return await self._ask(self._state.lock(self._name, ttl=self._lock_ttl))

    async def unlock(self, fence: int) -> None:
        await self._ask(self._state.unlock(self._name, fence))

    async def has_failed_recently(self) -> bool:
        return await self._ask(self._state.read(f"{self._name}:failed")) is not None

    async def note_failure(self) -> None:
        await self._ask(self._state.write(f"{self._name}:failed", "1", tag="", fence=0, ttl=self._failure_ttl))

    @staticmethod
    async def _ask(answer: Awaitable[T]) -> T:
        try:
            return await answer
        except SharedStateUnavailable as error:
            raise TokenStoreUnavailable from error
