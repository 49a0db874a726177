"""What is measured when Prometheus asks: what waits in the database, the shared budget, the service token.

A scrape is never slow and never fails: what cannot be had in time is left out of it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Generic, TypeVar

import structlog
from sqlalchemy import func, select

from app.callbacks.tables import Notice, NoticeState
from app.database import Database
from app.events.tables import PENDING, Event
from app.metrics import BudgetReading, Readings, Waiting
from app.payments.states import UNSETTLED
from app.payments.tables import IS_UNSETTLED, Payment
from app.shared_state import SharedState
from app.toss.governor import Governor
from app.toss.tokens import TokenKeeper

FRESH_FOR: Final = timedelta(seconds=5)
"""Shorter than any usual scrape interval; it is for several Prometheus servers, and for people."""
PATIENCE: Final = timedelta(seconds=2)
"""Prometheus waits for 10 s by default."""
T = TypeVar("T")


@dataclass(frozen=True)
class _Backlog:
    notices: Waiting
    events: Waiting
    payments: dict[str, Waiting]


@dataclass(frozen=True)
class _Shared:
    budget: BudgetReading | None


class Gauges:
    def __init__(
        self,
        *,
        database: Database,
        shared_state: SharedState,
        governor: Governor | None,
        tokens: TokenKeeper,
        give_up_after: timedelta,
        clock: Callable[[], datetime],
        patience: timedelta = PATIENCE,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`give_up_after`: of an event."""
        self._database = database
        self._shared_state = shared_state
        self._governor = governor
        self._tokens = tokens
        self._give_up_after = give_up_after
        self._clock = clock
        self._backlog = _Answer(self._ask_database, patience=patience, monotonic=monotonic)
        self._shared = _Answer(self._ask_shared_state, patience=patience, monotonic=monotonic)

    async def read(self) -> Readings:
        backlog, shared = await asyncio.gather(self._backlog.get(), self._shared.get())
        token = self._tokens.current
        return Readings(
            is_database_up=backlog is not None,
            notices=backlog.notices if backlog else None,
            events=backlog.events if backlog else None,
            payments=backlog.payments if backlog else {},
            is_shared_state_up=shared is not None,
            budget=shared.budget if shared else None,
            token_age=(self._clock() - token.fetched_at).total_seconds() if token else None,
        )

    async def aclose(self) -> None:
        await self._backlog.aclose()
        await self._shared.aclose()

    async def _ask_database(self) -> _Backlog:
        async with self._database.transaction() as session:
            notices = await session.execute(
                select(func.count(), func.min(Notice.received_at)).where(Notice.state == NoticeState.OPEN)
            )
            # Not by when they occurred: one that is replayed may be old, and waits only since then.
            events = await session.execute(
                select(func.count(), func.min(Event.give_up_at)).where(Event.state == PENDING)
            )
            payments = await session.execute(
                select(Payment.state, func.count(), func.min(Payment.changed_at))
                .where(IS_UNSETTLED)
                .group_by(Payment.state)
            )
            count, give_up_at = events.one()
            by_state = {state: self._waiting(number, since) for state, number, since in payments}
            return _Backlog(
                notices=self._waiting(*notices.one()),
                events=self._waiting(count, give_up_at - self._give_up_after if give_up_at else None),
                payments={state: by_state.get(state, Waiting(0, 0.0)) for state in UNSETTLED},
            )

    def _waiting(self, count: int, since: datetime | None) -> Waiting:
        return Waiting(count, max(0.0, (self._clock() - since).total_seconds()) if since else 0.0)

    async def _ask_shared_state(self) -> _Shared:
        await self._shared_state.ping()
        if self._governor is None:
            return _Shared(None)
        standing = await self._governor.standing()
        return _Shared(BudgetReading(standing.used, standing.left))


class _Answer(Generic[T]):
    """The answer to a question that costs something: kept for a while, and asked for by one at a time.

    Whoever has waited long enough gets none. The question is left to its own deadlines, because cutting it off
    could take as long, and nobody asks it again meanwhile.
    """

    def __init__(
        self, ask: Callable[[], Awaitable[T]], *, patience: timedelta, monotonic: Callable[[], float]
    ) -> None:
        self._ask = ask
        self._patience = patience.total_seconds()
        self._monotonic = monotonic
        self._answer: T | None = None
        self._fresh_until: float | None = None
        self._asking: asyncio.Task[None] | None = None

    async def get(self) -> T | None:
        """None: it failed, a moment ago at most, or there is no answer yet."""
        if self._fresh_until is None or self._monotonic() >= self._fresh_until:
            self._answer = None
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._renew())
            await asyncio.wait({self._asking}, timeout=self._patience)
        return self._answer

    async def _renew(self) -> None:
        try:
            self._answer = await self._ask()
        except Exception as error:  # noqa: BLE001 - whatever it is, the scrape has more to tell
            structlog.stdlib.get_logger("app.gauges").warning("gauges_unread", cause=type(error).__name__)
        self._fresh_until = self._monotonic() + FRESH_FOR.total_seconds()

    async def aclose(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})
