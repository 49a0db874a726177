"""Delivery: what the outbox holds is sent to the partner's server until it has it, as Standard Webhooks has it."""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog
from pydantic_core import to_json
from sqlalchemy import ColumnElement, delete, select, update
from standardwebhooks import Webhook
from typing_extensions import override

from app.database import Database, Page
from app.errors import EventNotFound, EventsNotConfigured
from app.events.outbox import Clock, Count
from app.events.tables import Event, EventState, EventType, close, due, take_due
from app.toss.errors import TossError, Unintelligible
from app.toss.transport import Transport
from app.trace_context import entered

AT_ONCE = 8
"""Attempts under way in one process."""
RUN_FOR = timedelta(seconds=10)
"""No attempt is begun later than that in a run: a dead receiver must not keep reconcile from the rest."""
MARGIN = timedelta(seconds=15)
"""By which a lease outlives the attempt's deadline: time to note how it ended."""
AWAY = frozenset({None, 429, 502, 503, 504})
"""Statuses that say nothing about the event: nobody is at home, or has no time."""

Checkpoint = Callable[[str], Awaitable[None]]


@dataclass(frozen=True)
class Receiver:
    """The partner's server."""

    transport: Transport
    url: str
    secrets: Sequence[str]
    """Each signs, so that one can be changed without a gap."""
    timeout: timedelta
    """Of one attempt as a whole."""
    give_up_after: timedelta

    @override
    def __repr__(self) -> str:
        return "Receiver(...)"

    async def take(self, event: Event, *, now: datetime) -> int | None:
        """The HTTP status of its answer; None when there was none. Nothing else of the answer counts."""
        body = body_of(event)
        # The library takes any instant's wall clock for one of UTC.
        signatures = [Webhook(secret).sign(event.event_id, now.astimezone(UTC), body) for secret in self.secrets]
        headers = {
            "Content-Type": "application/json",
            "webhook-id": event.event_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signatures),
        }
        try:
            with entered(event.traceparent or ""):  # the trace in which it happened, whoever delivers it
                async with asyncio.timeout(self.timeout.total_seconds()):
                    answer = await self.transport.post_bytes(self.url, body.encode(), headers=headers)
        except Unintelligible as error:  # too much of it, or packed in a way that we do not know
            return error.http_status or None
        except (TossError, TimeoutError):
            return None
        return answer.http_status


def body_of(event: Event) -> str:
    return to_json(
        {
            "id": event.event_id,
            "type": event.type,
            "occurredAt": event.occurred_at,
            "subject": event.subject,
            "data": event.data,
        }
    ).decode()


@dataclass(frozen=True)
class Reconciled:
    delivered: int
    not_delivered: int
    erased: int


class Delivery:
    """Without a receiver (no address is configured) events are kept to be looked at."""

    def __init__(
        self,
        *,
        database: Database,
        receiver: Receiver | None,
        clock: Clock,
        retention: timedelta,
        checkpoint: Checkpoint,
        count: Count = lambda _what, _type: None,
        run_for: timedelta = RUN_FOR,
    ) -> None:
        self._database = database
        self._receiver = receiver
        self._clock = clock
        self._retention = retention
        self._checkpoint = checkpoint
        self._count = count
        self._run_for = run_for
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._log = structlog.stdlib.get_logger("app.events")

    async def reconcile(self) -> Reconciled:
        """Deliver what is due, and erase what is past its retention.

        Raises: StorageUnavailable.
        """
        delivered, not_delivered = await self.run()
        return Reconciled(delivered, not_delivered, await self._erase(self._clock() - self._retention))

    async def run(self) -> tuple[int, int]:
        """Deliver what is due, oldest first; how many attempts were taken and how many were not.

        Raises: StorageUnavailable, when every attempt that was begun has ended.
        """
        receiver = self._receiver
        if receiver is None:
            return 0, 0
        results: list[bool] = []
        until = asyncio.get_running_loop().time() + self._run_for.total_seconds()

        async def work() -> None:
            while asyncio.get_running_loop().time() < until:
                event = await self._attempt(receiver)
                if event is None:
                    return
                results.append(event.state == EventState.DELIVERED)
                if event.last_status in AWAY:
                    return  # the others will hardly fare better, and keep their own pauses short

        ended = await asyncio.gather(*(work() for _ in range(AT_ONCE)), return_exceptions=True)
        for error in ended:
            if error is not None:
                raise error
        return results.count(True), results.count(False)

    async def _attempt(self, receiver: Receiver, *which: ColumnElement[bool]) -> Event | None:
        """Try the oldest event of these that is due, and note how it ended; None when there is none.

        Between the delivery and its note, a crash leaves the event to be delivered again, under the same id.

        Raises: StorageUnavailable.
        """
        async with self._turns:
            now, lease_id = self._clock(), str(uuid.uuid4())
            until = now + receiver.timeout + MARGIN
            async with self._database.transaction() as session:
                event = await take_due(session, *which, lease_id=lease_id, now=now, until=until)
            if event is None:
                return None
            await self._checkpoint("event_leased")
            status = await receiver.take(event, now=now)
            await self._checkpoint("event_delivered")
            async with self._database.transaction() as session:
                closed = await close(session, event, status=status, now=self._clock())
        return self._noted(closed) if closed is not None else await self.get(event.event_id)

    def _noted(self, event: Event) -> Event:
        match EventState(event.state):
            case EventState.DELIVERED:
                outcome, level = "delivered", logging.INFO
            case EventState.GIVEN_UP:
                outcome, level = "given_up", logging.ERROR
            case _:
                outcome, level = "failed", logging.WARNING
        self._count(outcome, event.type)
        self._log.log(
            level,
            f"event_{outcome}",
            event_id=event.event_id,
            type=event.type,
            status=event.last_status,
            attempts=event.attempts,
        )
        return event

    async def _erase(self, before: datetime) -> int:
        async with self._database.transaction() as session:
            erased = await session.scalars(
                delete(Event)
                .where(Event.state != EventState.PENDING, Event.occurred_at < before)
                .returning(Event.position)
            )
            count = len(erased.all())
        if count:
            await self._database.forget()
        return count

    # --- The partner's server asks -------------------------------------------------------------------------

    async def list(
        self,
        *,
        state: EventState | None = None,
        type_: EventType | None = None,
        subject: str | None = None,
        limit: int,
        before: str | None = None,
    ) -> Page[Event]:
        query = select(Event)
        if state is not None:
            query = query.where(Event.state == state)
        if type_ is not None:
            query = query.where(Event.type == type_)
        if subject is not None:
            query = query.where(Event.subject == subject)
        return await self._database.page(query, key=Event.event_id, limit=limit, before=before)

    async def get(self, event_id: str) -> Event:
        """Raises: EventNotFound."""
        async with self._database.transaction() as session:
            event = await session.scalar(select(Event).where(Event.event_id == event_id))
        if event is None:
            raise EventNotFound
        return event

    async def replay(self, event_id: str, *, key_id: str | None = None) -> Event:
        """Deliver it now, also if it has been delivered before; the caller waits. `key_id`: for whom, for the log.

        If it is not taken, it is tried again as if it were new. It waits if an earlier one of its subject does, or
        if it is being delivered at this moment.

        Raises: EventNotFound, EventsNotConfigured.
        """
        receiver = self._receiver
        if receiver is None:
            raise EventsNotConfigured
        now = self._clock()
        await self.get(event_id)
        async with self._database.transaction() as session:
            await session.execute(
                update(Event)
                .where(Event.event_id == event_id)
                .values(**due(now, give_up_after=receiver.give_up_after))
            )
        self._log.info("event_replayed", event_id=event_id, key_id=key_id)
        return await self._attempt(receiver, Event.event_id == event_id) or await self.get(event_id)
