"""What a process does by itself: again and again, whatever goes wrong, until it is told to end."""

import asyncio
from datetime import timedelta

from app.background import every, repeating

SECRET = "said-by-a-person"
LONG = timedelta(minutes=1)


class Work:
    """Work whose turns and whose ends a test decides."""

    def __init__(self) -> None:
        self.turns: asyncio.Queue[None] = asyncio.Queue()
        self.begun: asyncio.Queue[int] = asyncio.Queue()
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.errors: list[Exception] = []
        self.count = self.ended = 0

    async def __call__(self) -> None:
        self.count += 1
        self.begun.put_nowait(self.count)
        await self.may_end.wait()
        self.ended += 1
        if self.errors:
            raise self.errors.pop(0)


async def test_it_works_at_every_turn_and_only_then():
    work = Work()
    async with repeating(work.turns.get, work):
        for number in (1, 2, 3):
            assert work.begun.empty()
            work.turns.put_nowait(None)
            assert await work.begun.get() == number


async def test_an_error_ends_nothing_and_only_its_type_is_logged(caplog):
    work = Work()
    work.errors = [ValueError(SECRET), RuntimeError(SECRET)]
    async with repeating(work.turns.get, work):
        for number in (1, 2, 3):
            work.turns.put_nowait(None)
            assert await work.begun.get() == number
    lines = [line.getMessage() for line in caplog.records if "background_failed" in line.getMessage()]
    assert [kind in line for kind, line in zip(("ValueError", "RuntimeError"), lines, strict=True)] == [True, True]
    assert SECRET not in caplog.text


async def test_the_end_waits_for_what_is_under_way_and_begins_nothing():
    work = Work()
    work.may_end.clear()

    async def run() -> None:
        async with repeating(work.turns.get, work, patience=LONG):
            work.turns.put_nowait(None)
            work.turns.put_nowait(None)
            await work.begun.get()

    ending = asyncio.create_task(run())
    done, _ = await asyncio.wait({ending}, timeout=0.05)  # nothing tells that it is waiting
    assert not done
    work.may_end.set()
    await ending
    assert (work.count, work.ended) == (1, 1)


async def test_the_end_does_not_wait_for_ever():
    work = Work()
    work.may_end.clear()
    async with repeating(work.turns.get, work, patience=timedelta(0)):
        work.turns.put_nowait(None)
        await work.begun.get()
    assert (work.count, work.ended) == (1, 0)


async def test_the_end_comes_at_once_while_nothing_is_under_way():
    async with asyncio.timeout(30):
        async with repeating(asyncio.Event().wait, Work(), patience=timedelta(days=1)):
            pass


async def test_replicas_do_not_run_in_step():
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    replicas = [every(timedelta(seconds=30), sleep=sleep) for _ in range(50)]
    for turn in replicas:
        await turn()
    assert all(0 <= pause <= 30 for pause in pauses)
    assert max(pauses) - min(pauses) > 10
    pauses.clear()
    for turn in replicas:
        await turn()
    assert all(24 <= pause <= 36 for pause in pauses)
    assert len(set(pauses)) > 10
