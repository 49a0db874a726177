"""Events over HTTP: what the partner's server has been, or could not be, told."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from app.deps import NO_STORE, DeliveryDep, EventReader, EventReplayer
from app.errors import EventNotFound, EventsNotConfigured
from app.events.schemas import EventBody, EventsBody
from app.events.tables import EventState, EventType
from app.problems import ALWAYS, PARTNER, documented

UUID = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
EventId = Annotated[str, Path(alias="eventId", pattern=UUID)]

partner_server = APIRouter(prefix="/server/v1/events", tags=["Events (partner server)"], dependencies=[NO_STORE])


@partner_server.get("", responses=documented(*ALWAYS, *PARTNER))
async def list_events(
    delivery: DeliveryDep,
    _partner: EventReader,
    *,
    state: EventState | None = None,
    type_: Annotated[EventType | None, Query(alias="type")] = None,
    subject: Annotated[str | None, Query(pattern=r"^[\x21-\x7e]{1,64}$")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: Annotated[str | None, Query(pattern=UUID)] = None,
) -> EventsBody:
    return EventsBody.of(await delivery.list(state=state, type_=type_, subject=subject, limit=limit, before=before))


@partner_server.get("/{eventId}", responses=documented(*ALWAYS, *PARTNER, EventNotFound))
async def get_event(event_id: EventId, delivery: DeliveryDep, _partner: EventReader) -> EventBody:
    return EventBody.of(await delivery.get(event_id))


@partner_server.post(
    "/{eventId}/replay", responses=documented(*ALWAYS, *PARTNER, EventNotFound, EventsNotConfigured)
)
async def replay_event(event_id: EventId, delivery: DeliveryDep, partner: EventReplayer) -> EventBody:
    """Deliver it now, also if it has been delivered before. What is not taken is tried again, as if it were new."""
    return EventBody.of(await delivery.replay(event_id, key_id=partner.key_id))
