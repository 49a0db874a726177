"""What a process does by itself while it serves."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import structlog

PATIENCE = timedelta(seconds=5)
"""At the end, for what is under way. What is cut off then, a lease or the next run takes up again."""

Turn = Callable[[], Awaitable[None]]
"""Waits until it is time."""
Work = Callable[[], Awaitable[object]]


@asynccontextmanager
async def repeating(turn: Turn, work: Work, *, patience: timedelta = PATIENCE) -> AsyncIterator[None]:
    """Work whenever it is time, for as long as the block lasts, whatever the work raises."""
    task = asyncio.create_task(_repeat(turn, work, patience))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


def every(interval: timedelta, *, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep) -> Turn:
    """Roughly, so that replicas do not run in step, however they were started."""
    shortest, longest = 0.0, 1.0

    async def turn() -> None:
        nonlocal shortest, longest
        share = random.uniform(shortest, longest)  # noqa: S311 - jitter, not a secret
        shortest, longest = 0.8, 1.2
        await sleep(interval.total_seconds() * share)

    return turn


async def _repeat(turn: Turn, work: Work, patience: timedelta) -> None:
    while True:
        await turn()
        run = asyncio.create_task(_attempt(work))
        try:
            await asyncio.shield(run)
        except asyncio.CancelledError:
            await asyncio.wait({run}, timeout=patience.total_seconds())
            run.cancel()
            await asyncio.wait({run})
            raise


async def _attempt(work: Work) -> None:
    try:
        await work()
    except Exception as error:  # noqa: BLE001 - the next run may fare better
        structlog.stdlib.get_logger("app.background").error("background_failed", cause=type(error).__name__)
