"""The outbox: an event is recorded in the transaction of what it tells of, then delivered at least once."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from pydantic_core import to_jsonable_python
from sqlalchemy import event as hooks
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from app.database import time_ordered_id
from app.events.tables import NOT_DUE, Event, EventType, due
from app.trace_context import outgoing

Clock = Callable[[], datetime]
Count = Callable[[str, str], None]
"""Counts a happening (recorded, delivered, failed, given_up) of a type; for metrics."""


class Outbox:
    def __init__(
        self,
        *,
        clock: Clock,
        is_delivering: bool,
        give_up_after: timedelta,
        count: Count = lambda _what, _type: None,
    ) -> None:
        """`is_delivering`: whether there is an address to deliver to."""
        self._clock = clock
        self._is_delivering = is_delivering
        self._give_up_after = give_up_after
        self._count = count
        self._news = asyncio.Event()

    def record(self, session: AsyncSession, type_: EventType, *, subject: str, data: Mapping[str, Any]) -> None:
        """In the caller's transaction: there is no event without what it tells of, and the other way round.

        After the statement that decides who may tell it: its lock puts the events of one subject in order.

        `data`: JSON with camelCase names; instants are written as on our wire. No personal data, no token, no key
        of Toss.
        """
        now = self._clock()
        session.add(
            Event(
                event_id=time_ordered_id(now),
                type=type_,
                subject=subject,
                data=to_jsonable_python(dict(data)),
                occurred_at=now,
                traceparent=outgoing(),
                **(due(now, give_up_after=self._give_up_after) if self._is_delivering else NOT_DUE),
            )
        )

        @hooks.listens_for(session.sync_session, "after_commit", once=True)
        def committed(_session: Session) -> None:
            self._count("recorded", type_)
            if self._is_delivering:
                self._news.set()

    async def news(self) -> None:
        """Wait until something has been committed here since this was last asked."""
        await self._news.wait()
        self._news.clear()
