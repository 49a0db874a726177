"""Events on our wire: what the partner's server may look up."""

from datetime import datetime
from typing import Any, Self

from pydantic import Field

from app.database import Page
from app.events.tables import Event
from app.wire import Wire


class EventBody(Wire):
    event_id: str = Field(description="Its `id`, and `webhook-id`, when it is delivered")
    type: str
    subject: str = Field(description="What it is about: a txId, a userId, an orderNo or an orderId")
    data: dict[str, Any]
    occurred_at: datetime
    state: str
    attempts: int = Field(description="To deliver it, failed and successful, since it was recorded or replayed")
    next_attempt_at: datetime | None = Field(description="Of a pending one: from when on it is tried again")
    last_status: int | None = Field(description="HTTP status of the last answer; null when there was none")
    delivered_at: datetime | None = Field(description="When it was last taken")

    @classmethod
    def of(cls, event: Event) -> Self:
        return cls(**{name: getattr(event, name) for name in cls.model_fields})


class EventsBody(Wire):
    events: list[EventBody] = Field(description="Newest first")
    next: str | None = Field(description="`before` of the next page; null at the end")

    @classmethod
    def of(cls, page: Page[Event]) -> Self:
        return cls(events=[EventBody.of(event) for event in page.items], next=page.next)
