"""The partner server's view of events: list, look, replay."""

import asyncio
import uuid

import pytest

from app.events.tables import Event, EventType
from app.server_keys import Scope
from tests.conftest import settings_for
from tests.events.partner import events, only_event, record, states
from tests.scenarios import Bff, assert_problem

EVENTS = "/server/v1/events"
UNKNOWN = str(uuid.UUID(int=7))


@pytest.fixture
async def key(bff) -> dict[str, str]:
    return await bff.server_key(Scope.EVENT_READ, Scope.EVENT_REPLAY)


async def get(bff, key, path: str = "", **params: object):
    return await bff.http.get(EVENTS + path, headers=key, params=params)


async def replay(bff, key, event_id: str):
    return await bff.http.post(f"{EVENTS}/{event_id}/replay", headers=key)


def on_the_wire(instant) -> str | None:
    return instant.isoformat().replace("+00:00", "Z") if instant else None


async def one_of_each(bff, partner) -> None:
    """Given up, delivered, pending; the last two of one subject."""
    partner.statuses = [500, 500]
    await record(bff, "order-1")
    await bff.resources.delivery.run()
    bff.clock.advance(days=3)
    await bff.resources.delivery.run()
    await record(bff, "order-2", orderNo="order-2")
    await bff.resources.delivery.run()
    await record(bff, "order-2", type_=EventType.PAYMENT_REFUNDED)


async def test_events_are_listed_newest_first(bff, partner, key):
    await one_of_each(bff, partner)
    answer = await get(bff, key)
    assert answer.headers["cache-control"] == "no-store"
    listed = answer.json()
    assert listed["next"] is None
    assert [(each["type"], each["state"]) for each in listed["events"]] == [
        ("payment.refunded", "PENDING"),
        ("payment.paid", "DELIVERED"),
        ("payment.paid", "GIVEN_UP"),
    ]
    row = (await events(bff))[1]
    expected = {
        "eventId": row.event_id,
        "type": "payment.paid",
        "subject": "order-2",
        "data": {"orderNo": "order-2"},
        "occurredAt": on_the_wire(row.occurred_at),
        "state": "DELIVERED",
        "attempts": 1,
        "nextAttemptAt": None,
        "lastStatus": 200,
        "deliveredAt": on_the_wire(row.delivered_at),
    }
    assert listed["events"][1] == expected
    assert (await get(bff, key, f"/{row.event_id}")).json() == expected


async def test_the_list_can_be_narrowed(bff, partner, key):
    await one_of_each(bff, partner)

    async def count(**params: object) -> int:
        return len((await get(bff, key, **params)).json()["events"])

    assert [await count(state=state) for state in ("PENDING", "DELIVERED", "GIVEN_UP", "KEPT")] == [1, 1, 1, 0]
    assert [await count(type=name) for name in ("payment.paid", "payment.refunded", "login.unlinked")] == [2, 1, 0]
    assert [await count(subject=subject) for subject in ("order-1", "order-2", "order")] == [1, 2, 0]
    assert await count(subject="order-2", type="payment.paid", state="DELIVERED") == 1
    for wrong in (
        {"state": "x"},
        {"type": "x"},
        {"subject": ""},
        {"subject": "x" * 65},
        {"subject": "a\x00"},
        {"limit": 0},
        {"limit": 201},
        {"before": "x"},
    ):
        assert_problem(await get(bff, key, **wrong), 422, "invalid_request")


async def test_pages_are_stable_while_events_come_and_go(bff, key):
    await record(bff, *(f"order-{number}" for number in range(7)))
    ids = sorted((event.event_id for event in await events(bff)), reverse=True)
    pages, before = [], None
    for _ in range(10):
        page = (await get(bff, key, limit=3, **({"before": before} if before else {}))).json()
        pages.append([each["eventId"] for each in page["events"]])
        before = page["next"]
        if before is None:
            break
        bff.clock.advance(seconds=1)
        await record(bff, "another")
        if len(pages) == 1:  # what the first page ended with is erased, and the second begins there all the same
            position = next(event.position for event in await events(bff) if event.event_id == before)
            async with bff.resources.database.transaction() as session:
                await session.delete(await session.get(Event, position))
    assert [one for page in pages for one in page] == ids
    assert [len(page) for page in pages] == [3, 3, 1]


async def test_a_full_last_page_has_no_next(bff, key):
    await record(bff, "a", "b")
    assert (await get(bff, key, limit=2)).json()["next"] is None


# --- Replay -------------------------------------------------------------------------------------------------


async def test_a_delivered_event_is_delivered_again_at_once(bff, partner, key):
    await record(bff, "order-1")
    await bff.resources.delivery.run()
    before = await only_event(bff)
    shown = (await replay(bff, key, before.event_id)).json()
    assert (shown["state"], shown["attempts"], shown["lastStatus"]) == ("DELIVERED", 1, 200)
    first, second = partner.deliveries
    assert first.body == second.body
    assert second.verified()["id"] == before.event_id
    assert (await only_event(bff)).delivered_at > before.delivered_at


async def test_an_event_that_was_given_up_gets_all_the_time_there_is_once_more(bff, partner, key):
    await one_of_each(bff, partner)
    event_id = (await events(bff))[0].event_id
    partner.failing = {"order-1"}
    shown = (await replay(bff, key, event_id)).json()
    assert (shown["state"], shown["attempts"], shown["lastStatus"]) == ("PENDING", 1, 500)
    bff.clock.advance(days=2)
    await bff.resources.delivery.run()
    assert (await events(bff))[0].state == "PENDING"
    bff.clock.advance(days=1)
    await bff.resources.delivery.run()
    assert (await events(bff))[0].state == "GIVEN_UP"


async def test_a_pending_event_need_not_wait_for_its_pause(bff, partner, key):
    partner.statuses = [500]
    await record(bff, "order-1")
    await bff.resources.delivery.run()
    shown = (await replay(bff, key, (await only_event(bff)).event_id)).json()
    assert (shown["state"], shown["nextAttemptAt"]) == ("DELIVERED", None)


async def test_a_replay_does_not_overtake_an_earlier_event_of_its_subject(bff, partner, key):
    partner.statuses = [500]
    await record(bff, "a", "a")
    await bff.resources.delivery.run()
    shown = (await replay(bff, key, (await events(bff))[1].event_id)).json()
    assert (shown["state"], shown["attempts"]) == ("PENDING", 0)
    assert len(partner.deliveries) == 1


async def test_a_replay_leaves_alone_what_is_being_delivered(bff, partner, key):
    await record(bff, "a")
    partner.may_answer.clear()
    running = asyncio.create_task(bff.resources.delivery.run())
    await partner.has_been_asked.wait()
    leased = await only_event(bff)
    shown = (await replay(bff, key, leased.event_id)).json()
    assert (shown["state"], shown["attempts"]) == ("PENDING", 0)
    assert (await only_event(bff)).lease_id == leased.lease_id
    partner.may_answer.set()
    assert await running == (1, 0)
    assert await states(bff) == ["DELIVERED"]
    assert len(partner.deliveries) == 1


async def test_without_an_address_nothing_is_replayed_and_what_was_kept_can_be_later(
    embedded, sandbox, settings, partner
):
    async with Bff.running(settings_for(embedded, sandbox), sandbox) as bff:
        await record(bff, "a")
        event_id = (await only_event(bff)).event_id
        assert_problem(await replay(bff, await bff.server_key(), event_id), 409, "events_not_configured")
        assert await states(bff) == ["KEPT"]
    own = settings_for(embedded, sandbox).model_copy(update={"events": settings.events})
    async with Bff.running(own, sandbox) as bff:
        assert (await replay(bff, await bff.server_key(), event_id)).json()["state"] == "DELIVERED"
    assert partner.ids == [event_id]


async def test_an_unknown_event_is_not_there(bff, key):
    assert_problem(await get(bff, key, f"/{UNKNOWN}"), 404, "event_not_found")
    assert_problem(await replay(bff, key, UNKNOWN), 404, "event_not_found")
    for malformed in ("x", UNKNOWN.upper().replace("0", "A"), f"{UNKNOWN}%00"):
        assert_problem(await get(bff, key, f"/{malformed}"), 422, "invalid_request")
        assert_problem(await replay(bff, key, malformed), 422, "invalid_request")


async def test_every_route_wants_exactly_its_scope(bff, partner):
    await record(bff, "a")
    event_id = (await only_event(bff)).event_id
    routes = [
        ("GET", EVENTS, Scope.EVENT_READ),
        ("GET", f"{EVENTS}/{event_id}", Scope.EVENT_READ),
        ("POST", f"{EVENTS}/{event_id}/replay", Scope.EVENT_REPLAY),
    ]
    for method, path, scope in routes:
        for headers in ({}, {"Authorization": "Bearer sk_made-up"}):
            answer = await bff.http.request(method, path, headers=headers)
            assert_problem(answer, 401, "server_key_required")
        others = await bff.server_key(*(each for each in Scope if each is not scope))
        assert_problem(await bff.http.request(method, path, headers=others), 403, "scope_missing")
        exactly = await bff.server_key(scope)
        assert (await bff.http.request(method, path, headers=exactly)).status_code == 200
    assert len(partner.deliveries) == 1
