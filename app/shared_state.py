"""What replicas share and may lose: Redis, or the same in one process (G6). Facts are in SQL, not here."""

import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol, TypeVar, cast

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from typing_extensions import override

from app.toss.governor import (
    WINDOW,
    BudgetStoreUnavailable,
    Charge,
    Decision,
    SlidingWindow,
    Verdict,
    milliseconds,
    step_of,
)
from app.toss.tokens import ServiceToken, TokenStoreUnavailable
from app.vault import Place, Sealed, UnsealError, Vault

PREFIX: Final = "bff:v1:"
POOL_SIZE: Final = 20
BREATHER: Final = 1.0
"""Seconds for which Redis is left alone after a failure, so that not every call waits for its timeout."""

RATE_WINDOW: Final = timedelta(minutes=1)
RATE_RETRY: Final = 5.0
"""Seconds for which a process counts callers by itself after Redis has failed it."""
RATES_KEPT: Final = 1024
"""Callers below which those who have recovered are not looked for."""


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

    async def spend(self, name: str, charges: Sequence[Charge], *, window: timedelta) -> Decision:
        """All of the charges or none. Where counts may have been forgotten, nothing for a whole window."""

    async def pause(self, name: str, length: timedelta, *, window: timedelta) -> None:
        """Let nothing be spent for so long; a longer pause stays in force."""

    async def spent(self, name: str, counter: str, *, window: timedelta) -> int:
        """What counts on a counter without a subject. Only looks."""

    async def hit(self, name: str, *, limit: int, window: timedelta) -> timedelta | None:
        """Count one unless that is too many: None, or how long to wait for room.

        `limit` at once, and from then on as many as `window` brings back evenly (GCRA). What is forgotten is as if
        it had never been: a wipe admits, where `spend` closes.
        """

    async def ping(self) -> None: ...

    async def aclose(self) -> None: ...


def _emission(limit: int, window: timedelta) -> int:
    """Microseconds after which one more is admitted. Whole, so that exactly `limit` fit into a window at once."""
    return max(1, window // timedelta(microseconds=1) // limit)


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
        self._windows: dict[str, SlidingWindow] = {}
        self._paused_until: dict[str, float] = {}
        self._full_at: dict[str, int] = {}
        """Microseconds, by name: when nothing of what was counted is left."""
        self._prune_above = RATES_KEPT

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
    async def spend(self, name: str, charges: Sequence[Charge], *, window: timedelta) -> Decision:
        now = self._monotonic()
        remaining = self._paused_until.get(name, now) - now
        if remaining > 0:
            return Decision(Verdict.PAUSED, timedelta(seconds=remaining))
        return self._windows.setdefault(name, SlidingWindow(window)).take(charges, now=now)

    @override
    async def pause(self, name: str, length: timedelta, *, window: timedelta) -> None:
        until = self._monotonic() + length.total_seconds()
        self._paused_until[name] = max(self._paused_until.get(name, until), until)

    @override
    async def spent(self, name: str, counter: str, *, window: timedelta) -> int:
        spent = self._windows.get(name)
        return spent.spent(counter, now=self._monotonic()) if spent is not None else 0

    @override
    async def hit(self, name: str, *, limit: int, window: timedelta) -> timedelta | None:
        now, emission = int(self._monotonic() * 1_000_000), _emission(limit, window)
        full_at = max(now, self._full_at.get(name, now)) + emission
        wait = timedelta(microseconds=full_at - now) - window
        if wait > timedelta():
            return wait
        self._full_at[name] = full_at
        if len(self._full_at) > self._prune_above:
            self._full_at = {other: instant for other, instant in self._full_at.items() if instant > now}
            self._prune_above = max(RATES_KEPT, 2 * len(self._full_at))
        return None

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
# ARGV: milliseconds since the epoch or '' for Redis's own clock, window and step in milliseconds.
CLOCK = """
local window, step, now = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[1])
if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
end
"""
# The head of both budget scripts. KEYS[1] is one hash with the counters of a whole budget and with what tells
# whether they are complete, so that an eviction cannot take one without the other. They are not after a wipe (no
# hash), in another server (restarted from an older copy of the data, or a replica that took over), or if the clock
# went back: then all is forgotten, and nothing is admitted until all that was admitted has left the window.
# ARGV as CLOCK's.
BUDGET = (
    CLOCK
    + """
local info = redis.pcall('INFO', 'server')
local server = type(info) == 'string' and string.match(info, 'run_id:(%x+)') or ''
local head = redis.call('HMGET', KEYS[1], 'server', 'last', 'opens', 'pause')
local last, opens, pause = tonumber(head[2]), tonumber(head[3]) or 0, tonumber(head[4]) or 0
local function note(field, instant) redis.call('HSET', KEYS[1], field, string.format('%.0f', instant)) end
if not last or head[1] ~= server or now < last - step then
    redis.call('DEL', KEYS[1])
    redis.call('HSET', KEYS[1], 'server', server)
    opens = now + window + step
    pause = last and now + math.max(0, pause - last) or 0
    last = now
    note('last', last)
    note('opens', opens)
    note('pause', pause)
end
now = math.max(now, last)
"""
)
# Further KEYS: a hash for each counter with a subject. Further ARGV, three for each charge: the number of its key,
# counter, cap. Answers what, milliseconds to wait, and the number of the charge that has to wait longest.
SPEND = (
    BUDGET
    + """
if pause > now then return {'paused', pause - now, 0} end
if opens > now then return {'closed', opens - now, 0} end
local bucket, oldest = math.floor(now / step), math.floor((now - window) / step)
local counted = {}
for number, key in ipairs(KEYS) do
    local counts, old = {}, {}
    local content = redis.call('HGETALL', key)
    for position = 1, #content, 2 do
        local counter, index = string.match(content[position], '^(.+)@(%d+)$')
        if counter and tonumber(index) < oldest then
            old[#old + 1] = content[position]
        elseif counter then
            counts[counter] = counts[counter] or {total = 0}
            counts[counter].total = counts[counter].total + tonumber(content[position + 1])
            counts[counter][tonumber(index)] = tonumber(content[position + 1])
        end
    end
    for _, field in ipairs(old) do redis.call('HDEL', key, field) end
    counted[number] = counts
end
local wait, fullest = 0, 0
for position = 4, #ARGV, 3 do
    local counts = counted[tonumber(ARGV[position])][ARGV[position + 1]] or {total = 0}
    local excess = counts.total - tonumber(ARGV[position + 2]) + 1
    if excess > 0 then
        local ends = now + window + step
        for index = oldest, bucket do
            excess = excess - (counts[index] or 0)
            if excess <= 0 then
                ends = (index + 1) * step + window
                break
            end
        end
        if ends - now > wait then wait, fullest = ends - now, (position - 4) / 3 end
    end
end
if wait > 0 then return {'full', wait, fullest} end
for position = 4, #ARGV, 3 do
    local number = tonumber(ARGV[position])
    redis.call('HINCRBY', KEYS[number], ARGV[position + 1] .. '@' .. string.format('%.0f', bucket), 1)
    if number > 1 then redis.call('PEXPIRE', KEYS[number], window + 2 * step) end
end
note('last', now)
return {'admitted', 0, 0}
"""
)
# KEYS as BUDGET's; further ARGV: the counter. Changes nothing, and believes what it finds.
SPENT = (
    CLOCK
    + """
local oldest, spent = math.floor((now - window) / step), 0
local content = redis.call('HGETALL', KEYS[1])
for position = 1, #content, 2 do
    local counter, index = string.match(content[position], '^(.+)@(%d+)$')
    if counter == ARGV[4] and tonumber(index) >= oldest then spent = spent + tonumber(content[position + 1]) end
end
return spent
"""
)
# Further ARGV: milliseconds of the pause.
PAUSE = (
    BUDGET
    + """
note('last', now)
note('pause', math.max(pause, now + tonumber(ARGV[4])))
return 1
"""
)
# KEYS: rate. ARGV: microseconds since the epoch or '' for Redis's own clock, emission and window in microseconds.
# Answers the microseconds to wait. The key ends when nothing is left of what was counted. More than a window ahead
# can only be what a clock that went back has left: nobody waits for it to catch up.
HIT = """
local now, emission, window = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000000 + time[2]
end
local function keep(full_at)
    local ends_in = string.format('%.0f', math.ceil((full_at - now) / 1000))
    redis.call('SET', KEYS[1], string.format('%.0f', full_at), 'PX', ends_in)
end
local full_at = math.max(now, tonumber(redis.call('GET', KEYS[1]) or '') or now)
if full_at > now + window then
    full_at = now + window
    keep(full_at)
end
if full_at + emission - now > window then return full_at + emission - now - window end
keep(full_at + emission)
return 0
"""

T = TypeVar("T")


class RedisState(SharedState):
    """One round trip a method; the scripts are atomic. Keys of one name share a hash tag, for Redis Cluster."""

    def __init__(
        self,
        url: str,
        *,
        timeout: timedelta,
        monotonic: Callable[[], float] = time.monotonic,
        budget_clock: Callable[[], float] | None = None,
    ) -> None:
        """Budget and rates go by Redis's own clock, one for all replicas. Tests cannot move it: they bring one."""
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
        self._budget_clock = budget_clock
        self._spend = self._redis.register_script(SPEND)
        self._spent = self._redis.register_script(SPENT)
        self._pause = self._redis.register_script(PAUSE)
        self._hit = self._redis.register_script(HIT)

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
    async def spend(self, name: str, charges: Sequence[Charge], *, window: timedelta) -> Decision:
        keys, args = [_key(name, "budget")], self._budget_args(window)
        for charge in charges:
            # A counter of its own for each user has a key of its own, which ends; the others are few and stay.
            if charge.subject:
                keys.append(_key(name, f"budget:{charge.counter}:{charge.subject}"))
            args += [len(keys) if charge.subject else 1, charge.counter, charge.cap]
        verdict, wait, number = await self._ask(lambda: self._spend(keys=keys, args=args))
        counter = charges[int(number)].counter if verdict == Verdict.FULL.value else ""
        return Decision(Verdict(verdict), timedelta(milliseconds=int(wait)), counter)

    @override
    async def pause(self, name: str, length: timedelta, *, window: timedelta) -> None:
        args = [*self._budget_args(window), _milliseconds(length)]
        await self._ask(lambda: self._pause(keys=[_key(name, "budget")], args=args))

    @override
    async def spent(self, name: str, counter: str, *, window: timedelta) -> int:
        keys, args = [_key(name, "budget")], [*self._budget_args(window), counter]
        return int(await self._ask(lambda: self._spent(keys=keys, args=args)))

    @override
    async def hit(self, name: str, *, limit: int, window: timedelta) -> timedelta | None:
        now = int(self._budget_clock() * 1_000_000) if self._budget_clock else ""
        args: list[str | int] = [now, _emission(limit, window), window // timedelta(microseconds=1)]
        wait = int(await self._ask(lambda: self._hit(keys=[_key(name, "rate")], args=args)))
        return timedelta(microseconds=wait) if wait > 0 else None

    def _budget_args(self, window: timedelta) -> list[str | int]:
        now = int(self._budget_clock() * 1000) if self._budget_clock else ""
        return [now, milliseconds(window), step_of(window)]

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


class SharedBudget:
    """The governor's store: one pot in shared state, named after what Toss counts together (a mini-app)."""

    def __init__(self, *, state: SharedState, name: str, window: timedelta = WINDOW) -> None:
        self._state = state
        self._name = name
        self._window = window

    async def take(self, charges: Sequence[Charge]) -> Decision:
        return await self._ask(self._state.spend(self._name, charges, window=self._window))

    async def pause(self, length: timedelta) -> None:
        await self._ask(self._state.pause(self._name, length, window=self._window))

    async def spent(self, counter: str) -> int:
        return await self._ask(self._state.spent(self._name, counter, window=self._window))

    @staticmethod
    async def _ask(answer: Awaitable[T]) -> T:
        try:
            return await answer
        except SharedStateUnavailable as error:
            raise BudgetStoreUnavailable from error


class CallerRates:
    """Counts callers against their limits: all processes together, or, while Redis is away, each by itself.

    Then a caller may do as much at each process as at all of them before: wider, but never without a limit. And of
    all requests only one every few seconds waits for Redis, to see whether it is back.
    """

    def __init__(
        self, *, state: SharedState, vault: Vault, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._state = state
        self._own = InProcessState(monotonic=monotonic)
        self._vault = vault
        self._monotonic = monotonic
        self._ask_again_at: float | None = None
        """None while Redis answers."""
        self._log = structlog.stdlib.get_logger("app.shared_state")

    async def hit(self, limit: str, caller: str, *, per_minute: int) -> timedelta | None:
        """None if this request is within the limit, else how long to wait.

        `caller` may be personal data: no name in Redis shows it.
        """
        name = f"rate:{limit}:{self._vault.hash('client_ip', caller)}"
        if self._ask_again_at is None or self._monotonic() >= self._ask_again_at:
            if self._ask_again_at is not None:
                self._ask_again_at = self._monotonic() + RATE_RETRY  # before asking: the others do not wait with us
            try:
                wait = await self._state.hit(name, limit=per_minute, window=RATE_WINDOW)
            except SharedStateUnavailable as error:
                if self._ask_again_at is None:
                    self._log.warning("caller_rates_alone", why=str(error))
                self._ask_again_at = self._monotonic() + RATE_RETRY
            else:
                if self._ask_again_at is not None:
                    self._log.info("caller_rates_shared_again")
                self._ask_again_at = None
                return wait
        return await self._own.hit(name, limit=per_minute, window=RATE_WINDOW)
