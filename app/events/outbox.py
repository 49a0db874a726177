"""The outbox: an event is recorded in the transaction of what it tells of, then delivered at least once."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.database import time_ordered_id
from app.events.tables import Event, EventState, EventType


class Outbox:
    def __init__(self, *, clock: Callable[[], datetime], is_delivering: bool) -> None:
        """`is_delivering`: whether there is an address to deliver to."""
        self._clock = clock
        self._is_delivering = is_delivering

    def record(self, session: AsyncSession, type_: EventType, *, subject: str, data: Mapping[str, Any]) -> None:
        """In the caller's transaction: there is no event without what it tells of, and the other way round.

        `data`: JSON with camelCase names; no personal data, no token, no key of Toss.
        """
        now = self._clock()
        session.add(
            Event(
                event_id=time_ordered_id(now),
                type=type_,
                subject=subject,
                data=dict(data),
                occurred_at=now,
                state=EventState.PENDING if self._is_delivering else EventState.KEPT,
                attempts=0,
                next_attempt_at=now if self._is_delivering else None,
            )
        )
