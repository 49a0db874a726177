"""The partner's server, on a real socket, and what a test asks of events."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from standardwebhooks import Webhook

from app.events.tables import Event, EventType
from app.settings import EventSettings, Settings
from tests.hosts import Connection, Host

SECRET = "whsec_" + base64.b64encode(bytes(range(7, 39))).decode()
NEW_SECRET = "whsec_" + base64.b64encode(bytes(range(80, 112))).decode()


@dataclass(frozen=True)
class Delivered:
    headers: dict[str, str]
    body: bytes

    @classmethod
    def of(cls, request: bytes) -> "Delivered":
        head, _, body = request.partition(b"\r\n\r\n")
        lines = [line.decode().split(": ", 1) for line in head.split(b"\r\n")[1:]]
        return cls({name.lower(): value for name, value in lines}, body)

    def verified(self, secret: str = SECRET) -> dict[str, Any]:
        """As the partner's server does it, with the library's own check of signature and time."""
        return Webhook(secret).verify(self.body, self.headers)

    @property
    def subject(self) -> str:
        return json.loads(self.body)["subject"]


@dataclass
class PartnerServer:
    statuses: list[int] = field(default_factory=list)
    """Answered first, in this order; then 200."""
    failing: set[str] = field(default_factory=set)
    """Subjects to which it answers 500."""
    answer: bytes = b"{}"
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    has_been_asked: asyncio.Event = field(default_factory=asyncio.Event)
    deliveries: list[Delivered] = field(default_factory=list)
    url: str = ""

    def __post_init__(self) -> None:
        self.may_answer.set()

    async def serve(self, connection: Connection) -> None:
        while (request := await connection.request()) is not None:
            self.deliveries.append(delivered := Delivered.of(request))
            self.has_been_asked.set()
            await self.may_answer.wait()
            status = self.statuses.pop(0) if self.statuses else 500 if delivered.subject in self.failing else 200
            connection.send(self.answer, status=f"{status} Whatever", Location=self.url)
            await connection.writer.drain()

    @property
    def subjects(self) -> list[str]:
        return [delivered.subject for delivered in self.deliveries]

    @property
    def ids(self) -> list[str]:
        return [delivered.headers["webhook-id"] for delivered in self.deliveries]


@asynccontextmanager
async def partner_server(**how: Any) -> AsyncIterator[PartnerServer]:
    server = PartnerServer()
    async with Host.running(server.serve, **how) as host:
        server.url = host.url
        yield server


def with_events(settings: Settings, url: str | None, **events: object) -> Settings:
    given = {"url": url, "secrets": [SECRET], **events}
    return settings.model_copy(update={"events": EventSettings.model_validate(given)})


async def record(bff, *subjects: str, type_: EventType = EventType.PAYMENT_PAID, **data: object) -> None:
    """Each in a transaction of its own, as what happens one after the other."""
    for subject in subjects:
        async with bff.resources.database.transaction() as session:
            bff.resources.outbox.record(session, type_, subject=subject, data=data)


async def events(bff, type_: EventType | None = None) -> Sequence[Event]:
    """In the order in which they were recorded."""
    query = select(Event).order_by(Event.position)
    async with bff.resources.database.transaction() as session:
        found = (await session.scalars(query)).all()
    return [event for event in found if type_ is None or event.type == type_]


async def only_event(bff) -> Event:
    (event,) = await events(bff)
    return event


async def states(bff) -> list[str]:
    return [event.state for event in await events(bff)]
