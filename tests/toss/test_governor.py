"""The rules of the request budget in one process: what is counted, who goes first, what a 4095 does."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.shared_state import InProcessState, SharedBudget
from app.toss.errors import BudgetExhausted, NotSent
from app.toss.governor import (
    MAX_PAUSE,
    MESSENGER_BULK,
    MESSENGER_SEND,
    MESSENGER_TEST,
    MIN_PAUSE,
    USUAL_PAUSE,
    WINDOW,
    BudgetRules,
    BudgetStore,
    BudgetStoreUnavailable,
    Charge,
    Decision,
    Governor,
    Lane,
    SlidingWindow,
    Standing,
    SubLimit,
    Verdict,
    messenger_user,
    pause_length,
    step_of,
)

STEP = step_of(WINDOW) / 1000
FOREVER = 2 * WINDOW.total_seconds()


@dataclass
class Ticks:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Store:
    """The in-process pot behind a line that can be cut."""

    pot: BudgetStore
    is_away: bool = False
    closed_for: timedelta | None = None
    gate: asyncio.Event | None = None
    was_asked: asyncio.Event = field(default_factory=asyncio.Event)
    asked: int = 0
    pauses: list[timedelta] = field(default_factory=list)

    async def take(self, charges: Sequence[Charge]) -> Decision:
        self.asked += 1
        self.was_asked.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.is_away:
            raise BudgetStoreUnavailable
        if self.closed_for is not None:
            return Decision(Verdict.CLOSED, self.closed_for)
        return await self.pot.take(charges)

    async def pause(self, length: timedelta) -> None:
        if self.is_away:
            raise BudgetStoreUnavailable
        self.pauses.append(length)
        await self.pot.pause(length)

    async def spent(self, counter: str) -> int:
        if self.is_away:
            raise BudgetStoreUnavailable
        return await self.pot.spent(counter)


@dataclass
class Office:
    """Processes that share one pot."""

    ticks: Ticks
    pot: BudgetStore
    rules: BudgetRules

    def process(self) -> tuple[Governor, Store]:
        store = Store(self.pot)
        return Governor(store=store, rules=self.rules, monotonic=self.ticks), store


def office(**rules) -> Office:
    ticks = Ticks()
    usual = {"processes": 2, "per_minute": 100, "head_room": 0.1, "own_share": 0.2}
    pot = SharedBudget(state=InProcessState(monotonic=ticks), name="budget:app")
    return Office(ticks, pot, BudgetRules(**usual | rules))


async def admitted(governor, lane=Lane.INTERACTIVE, *, tries=1000, sub_limits=()) -> int:
    """How many calls pass before the first that does not."""
    for count in range(tries):
        try:
            await governor.admit(lane, sub_limits=sub_limits)
        except BudgetExhausted:
            return count
    return tries


# --- What it shows ---------------------------------------------------------------------------------------


async def test_it_shows_what_is_used_of_the_shared_pot_and_what_is_left():
    """Of 90, 72 are shared."""
    shared = office()
    (one, _), (other, store) = shared.process(), shared.process()
    await admitted(one, tries=5)
    await admitted(other, Lane.BACKGROUND, tries=2)
    assert await one.standing() == await other.standing() == Standing(7, 65)
    await admitted(one)
    assert await other.standing() == Standing(72, 0)
    store.is_away = True
    with pytest.raises(BudgetStoreUnavailable):
        await other.standing()


# --- How the budget is cut --------------------------------------------------------------------------------


@given(
    st.integers(1, 20_000),
    st.integers(1, 50),
    st.floats(0, 0.99),
    st.floats(0, 0.99),
    st.floats(0, 0.99),
    st.floats(0, 0.99),
)
def test_the_parts_never_add_up_to_more_than_the_budget(per_minute, processes, head, own, background, reserve):
    rules = BudgetRules(
        processes=processes,
        per_minute=per_minute,
        head_room=head,
        own_share=own,
        background_share=background,
        interactive_reserve=reserve,
    )
    assert 0 <= rules.budget(per_minute) <= per_minute * (1 - head) + 1e-9
    assert rules.own(per_minute) >= 0
    assert rules.shared(per_minute) + processes * rules.own(per_minute) == rules.budget(per_minute)
    for part in (rules.shared, rules.own):
        (person,) = rules.charges(Lane.INTERACTIVE, [], part)
        whole, work = rules.charges(Lane.BACKGROUND, [], part)
        assert whole.cap <= person.cap * (1 - reserve) + 1e-9
        assert work.cap <= person.cap * background + 1e-9


def test_the_limits_are_those_of_the_reference():
    assert BudgetRules(processes=1).budget(3000) == 2700
    limits = [MESSENGER_SEND, MESSENGER_BULK, MESSENGER_TEST, messenger_user("h")]
    assert [limit.per_minute for limit in limits] == [15_000, 3000, 3000, 10]
    assert len({limit.name for limit in limits} | {"all", "background"}) == 6


@pytest.mark.parametrize(
    "wrong",
    [
        {"processes": 0},
        {"per_minute": 0},
        {"head_room": 1.0},
        {"own_share": -0.1},
        {"background_share": 1.5},
        {"interactive_reserve": math.nan},
    ],
)
def test_rules_that_make_no_budget_are_refused(wrong):
    with pytest.raises(ValueError, match="not a budget"):
        BudgetRules(**{"processes": 1} | wrong)


# --- The window -------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 30_000), st.integers(1, 6)), max_size=40),
    st.integers(1, 8),
    st.sampled_from([1_000, 6_000, 60_000, 61_000]),
)
def test_the_window_is_an_exact_log_but_for_one_step_to_the_safe_side(moves, cap, length):
    window, step, now, log = SlidingWindow(timedelta(milliseconds=length)), math.ceil(length / 60), 7, []
    for wait, calls in moves:
        now += wait
        for _ in range(calls):
            decision = window.take([Charge("all", cap)], now=now / 1000 + 1e-6)
            if decision.verdict is Verdict.ADMITTED:
                assert sum(at > now - length for at in log) < cap
                log.append(now)
            else:
                assert sum(at > now - length - step for at in log) >= cap
                assert decision.counter == "all"
                assert timedelta(0) < decision.wait <= timedelta(milliseconds=length + step)


@given(st.lists(st.integers(0, 900), min_size=1, max_size=30), st.integers(1, 5))
def test_after_the_wait_that_was_named_there_is_room_and_not_a_moment_before(waits, cap):
    window, now = SlidingWindow(WINDOW), 1_000_000
    for wait in waits:
        now += wait
        refusal = window.take([Charge("all", cap)], now=now / 1000)
        if refusal.verdict is not Verdict.ADMITTED:
            free_at = now + refusal.wait // timedelta(milliseconds=1)
            assert window.take([Charge("all", cap)], now=(free_at - 1) / 1000).verdict is Verdict.FULL
            assert window.take([Charge("all", cap)], now=free_at / 1000).verdict is Verdict.ADMITTED
            now = free_at


def test_a_call_is_charged_to_all_of_its_counters_or_to_none():
    window = SlidingWindow(WINDOW)
    both = [Charge("all", 5), Charge("messenger-user", 1, "anna")]
    assert window.take(both, now=0).verdict is Verdict.ADMITTED
    for _ in range(20):
        assert window.take(both, now=1) == window.take(list(reversed(both)), now=1)
        assert window.take(both, now=1).counter == "messenger-user"
    assert [window.take([Charge("all", 5)], now=1).verdict for _ in range(5)] == [Verdict.ADMITTED] * 4 + [
        Verdict.FULL
    ]


def test_a_window_keeps_no_more_than_its_steps_and_forgets_users():
    window = SlidingWindow(WINDOW)
    for second in range(1000):
        window.take([Charge("all", 10**9), Charge("user", 9, str(second))], now=second / 4)
    buckets = sum(len(steps) for steps in window._counts.values())
    assert buckets < 62 + 62 * 4 + 8
    window.take([Charge("all", 1)], now=10_000)
    assert len(window._counts) == 1


# --- One process ------------------------------------------------------------------------------------------


async def test_a_minute_holds_the_limit_less_the_head_room():
    here = office(processes=1)
    governor, _ = here.process()
    here.ticks.now += FOREVER
    assert await admitted(governor) == 90
    here.ticks.now += WINDOW.total_seconds() - 0.001
    assert await admitted(governor) == 0
    here.ticks.now += STEP + 0.001
    assert await admitted(governor) == 90


async def test_a_refusal_says_when_and_why_and_that_nothing_was_sent():
    here = office()
    governor, _ = here.process()
    await admitted(governor)
    here.ticks.now += 20
    with pytest.raises(BudgetExhausted) as caught:
        await governor.admit(Lane.INTERACTIVE)
    assert isinstance(caught.value, NotSent)
    assert caught.value.limit == "all"
    assert timedelta(seconds=40) < caught.value.retry_after <= WINDOW + timedelta(seconds=STEP - 20)
    here.ticks.now += caught.value.retry_after.total_seconds() + 0.001
    await governor.admit(Lane.INTERACTIVE)


async def test_an_admission_is_one_question_to_the_store():
    governor, store = office().process()
    for expected in range(1, 50):
        await governor.admit(Lane.INTERACTIVE, sub_limits=[MESSENGER_SEND, messenger_user(str(expected))])
        assert store.asked == expected


# --- A person waiting beats background work ---------------------------------------------------------------


@pytest.mark.parametrize("is_away", [False, True], ids=["shared", "alone"])
async def test_background_work_gets_half_and_leaves_the_rest_to_people(is_away):
    here = office(per_minute=1000)  # 900: 720 shared, 90 each
    governor, store = here.process()
    store.is_away = is_away
    capacity = 90 if is_away else 720
    assert await admitted(governor, Lane.BACKGROUND) == capacity // 2
    assert await admitted(governor) == capacity - capacity // 2


@pytest.mark.parametrize("is_away", [False, True], ids=["shared", "alone"])
async def test_background_work_stops_before_the_last_share_that_people_may_need(is_away):
    here = office(per_minute=1000)
    governor, store = here.process()
    store.is_away = is_away
    capacity = 90 if is_away else 720
    people = capacity * 7 // 10
    assert await admitted(governor, tries=people) == people
    assert await admitted(governor, Lane.BACKGROUND) == capacity // 10
    assert await admitted(governor) == capacity - people - capacity // 10


async def test_background_work_that_must_wait_takes_nothing_from_people():
    here = office(per_minute=1000)
    governor, _ = here.process()
    await admitted(governor, Lane.BACKGROUND)
    for _ in range(1000):
        assert await admitted(governor, Lane.BACKGROUND, tries=1) == 0
    assert await admitted(governor) == 360


# --- Limits beside the main one ---------------------------------------------------------------------------


async def test_a_users_own_limit_stops_that_user_alone():
    here = office(processes=1, per_minute=3000)
    governor, _ = here.process()
    here.ticks.now += FOREVER
    assert await admitted(governor, sub_limits=[MESSENGER_SEND, messenger_user("anna")]) == 9
    with pytest.raises(BudgetExhausted) as caught:
        await governor.admit(Lane.INTERACTIVE, sub_limits=[MESSENGER_SEND, messenger_user("anna")])
    assert caught.value.limit == "messenger-user"
    assert "anna" not in str(caught.value) + repr(caught.value)
    assert await admitted(governor, sub_limits=[MESSENGER_SEND, messenger_user("ben")]) == 9
    assert await admitted(governor, tries=20) == 20


async def test_what_a_sub_limit_admits_counts_in_the_main_window_too():
    here = office(processes=1)
    governor, _ = here.process()
    here.ticks.now += FOREVER
    assert await admitted(governor, sub_limits=[MESSENGER_SEND]) == 90
    assert await admitted(governor) == 0


async def test_what_a_sub_limit_refuses_is_not_charged_to_the_main_window():
    here = office(processes=1)
    governor, _ = here.process()
    here.ticks.now += FOREVER
    tight = SubLimit("tight", 20)
    assert await admitted(governor, sub_limits=[tight]) == 18
    for _ in range(200):
        assert await admitted(governor, tries=1, sub_limits=[tight]) == 0
    assert await admitted(governor) == 90 - 18


async def test_a_limit_named_twice_is_charged_once():
    here = office(processes=1)
    governor, _ = here.process()
    here.ticks.now += FOREVER
    assert await admitted(governor, sub_limits=[SubLimit("tight", 20), SubLimit("tight", 20)]) == 18


# --- The store away, or closed ----------------------------------------------------------------------------


async def test_without_the_store_each_process_has_its_own_share_and_no_more():
    here = office()
    for governor, store in [here.process(), here.process()]:
        store.is_away = True
        assert await admitted(governor) == 9


async def test_hand_over_there_and_back_stays_within_the_budget_in_every_window():
    here = office()
    one, one_store = here.process()
    two, _ = here.process()
    here.ticks.now += FOREVER
    assert await admitted(one) == 72 + 9  # the pot, then its own share
    one_store.is_away = True
    assert await admitted(one) == 0
    assert await admitted(two) == 9  # cut off or not
    one_store.is_away = False
    assert (await admitted(one), await admitted(two)) == (0, 0)
    here.ticks.now += WINDOW.total_seconds() + STEP
    assert await admitted(one) + await admitted(two) == 90


async def test_a_closed_store_leaves_the_own_shares():
    here = office()
    governor, store = here.process()
    store.closed_for = timedelta(seconds=5)
    assert await admitted(governor) == 9
    with pytest.raises(BudgetExhausted) as caught:
        await governor.admit(Lane.INTERACTIVE)
    assert caught.value.retry_after == timedelta(seconds=5)


async def test_a_restarted_process_does_not_spend_its_predecessors_share_again():
    here = office()
    total = 0
    for _ in range(5):
        governor, _ = here.process()
        total += await admitted(governor)
        here.ticks.now += 1
    assert total == 72
    here.ticks.now += WINDOW.total_seconds() + STEP
    assert await admitted(governor) == 72 + 9


async def test_a_share_too_small_to_be_cut_stays_whole_in_the_pot():
    here = office(processes=16)
    governor, store = here.process()
    assert await admitted(governor, sub_limits=[messenger_user("anna")]) == 9
    store.is_away = True
    with pytest.raises(BudgetExhausted) as caught:
        await governor.admit(Lane.INTERACTIVE, sub_limits=[messenger_user("ben")])
    assert timedelta(0) < caught.value.retry_after <= 2 * WINDOW


# --- 4095 -------------------------------------------------------------------------------------------------


async def test_a_pause_stops_every_process_for_its_time():
    here = office()
    one, _ = here.process()
    two, _ = here.process()
    await one.pause(30)
    for governor in (one, two):
        for lane in Lane:
            with pytest.raises(BudgetExhausted) as caught:
                await governor.admit(lane)
            assert caught.value.limit == "pause"
            assert caught.value.retry_after == timedelta(seconds=30)
    here.ticks.now += 29.99
    assert (await admitted(one), await admitted(two)) == (0, 0)
    here.ticks.now += 0.02
    await one.admit(Lane.INTERACTIVE)
    await two.admit(Lane.INTERACTIVE)


async def test_a_paused_process_asks_nobody():
    here = office()
    governor, store = here.process()
    await governor.pause(30)
    await admitted(governor)
    assert (store.asked, len(store.pauses)) == (0, 1)


async def test_a_shorter_pause_does_not_end_a_longer_one():
    here = office()
    one, _ = here.process()
    two, _ = here.process()
    await one.pause(60)
    await two.pause(5)
    await one.pause(5)
    here.ticks.now += 59
    assert (await admitted(one), await admitted(two)) == (0, 0)


async def test_a_pause_without_the_store_holds_here_and_is_told_to_the_others_once_it_is_back():
    here = office()
    one, store = here.process()
    two, _ = here.process()
    store.is_away = True
    await one.pause(30)
    assert await admitted(one) == 0
    assert await admitted(two, tries=1) == 1
    store.is_away = False
    here.ticks.now += 10
    assert await admitted(one) == 0
    with pytest.raises(BudgetExhausted) as caught:
        await two.admit(Lane.INTERACTIVE)
    assert caught.value.retry_after == timedelta(seconds=20)
    assert len(store.pauses) == 1


async def test_nor_does_it_where_the_store_is_away():
    here = office()
    governor, store = here.process()
    store.is_away = True
    await governor.pause(60)
    await governor.pause(5)
    here.ticks.now += 59
    assert await admitted(governor) == 0
    here.ticks.now += 1.01
    assert await admitted(governor) == 9


@pytest.mark.parametrize("is_away", [False, True], ids=["shared", "alone"])
async def test_a_pause_that_arrives_while_the_store_is_asked_is_heeded(is_away):
    governor, store = office().process()
    store.gate = asyncio.Event()
    asking = asyncio.create_task(governor.admit(Lane.INTERACTIVE))
    async with asyncio.timeout(10):
        await store.was_asked.wait()
    await governor.pause(30)
    store.is_away = is_away
    store.gate.set()
    with pytest.raises(BudgetExhausted):
        await asking


async def test_a_pause_learnt_from_the_store_holds_when_the_store_goes_away():
    here = office()
    one, _ = here.process()
    two, store = here.process()
    await one.pause(30)
    assert await admitted(two) == 0
    store.is_away = True
    assert await admitted(two) == 0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (30, 30),
        (1.5, 1.5),
        ("30", 30),
        (" 30.0 ", 30),
        (0, 1),
        (0.001, 1),
        (10**9, 300),
        (10**400, 300),
        ("9" * 500, 300),
        (math.inf, 300),
        ("Infinity", 300),
        (-1, 60),
        (-(10**400), 60),
        ("-5", 60),
        (-math.inf, 60),
        (math.nan, 60),
        ("nan", 60),
        ("soon", 60),
        ("", 60),
        ("9" * 5000, 300),
        (None, 60),
        (True, 60),
        ([], 60),
        ({"seconds": 3}, 60),
        (b"30", 60),
    ],
    ids=lambda value: str(value)[:12],
)
def test_nonsense_in_a_4095_makes_a_sane_pause(value, seconds):
    assert pause_length(value) == timedelta(seconds=seconds)


@given(st.one_of(st.none(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.integers())))
def test_no_answer_makes_an_insane_pause(value):
    assert MIN_PAUSE <= pause_length(value) <= MAX_PAUSE
    assert MIN_PAUSE <= USUAL_PAUSE <= MAX_PAUSE


async def test_a_store_that_names_an_endless_pause_is_believed_only_so_long():
    here = office()
    governor, _ = here.process()
    await here.pot.pause(timedelta(days=1000))
    with pytest.raises(BudgetExhausted) as caught:
        await governor.admit(Lane.INTERACTIVE)
    assert caught.value.retry_after == MAX_PAUSE
