"""Events and real processes: kill -9 around a delivery, two that deliver at once, a stop, a nudge."""

import asyncio
import signal
from datetime import timedelta

import pytest

from app.events.tables import EventType
from tests.conftest import settings_for
from tests.events.partner import PartnerServer, events, only_event, partner_server, record, states, with_events
from tests.processes import bff_at, command, running, serving
from tests.scenarios import Bff

SOON, LATE = timedelta(seconds=0.05), timedelta(days=1)


@pytest.fixture
async def partner():
    async with partner_server() as server:
        yield server


@pytest.fixture
def settings(backend, sandbox, partner):
    return with_events(settings_for(backend, sandbox), partner.url)


def by_itself(settings, every: timedelta, *, pause_at: str | None = None):
    return settings.model_copy(
        update={
            "server": settings.server.model_copy(update={"reconcile_every": every}),
            "fault": settings.fault.model_copy(update={"pause_at": pause_at}),
        }
    )


async def has_got(partner: PartnerServer, count: int) -> None:
    async with asyncio.timeout(30):
        while len(partner.deliveries) < count:
            partner.has_been_asked.clear()
            await partner.has_been_asked.wait()


@pytest.mark.parametrize(("step", "before"), [("event_leased", 0), ("event_delivered", 1)])
async def test_killed_at_a_step_it_is_delivered_after_the_lease(settings, sandbox, partner, step, before):
    async with Bff.running(settings, sandbox) as bff:
        await record(bff, "order-1", "order-1")
        with serving(by_itself(settings, SOON, pause_at=step)) as server:
            await server.says('"step": "' + step)
            server.kill()
        assert len(partner.deliveries) == before
        assert await states(bff) == ["PENDING", "PENDING"]
        assert await bff.resources.delivery.run() == (0, 0)  # nobody knows that the process is dead
        bff.clock.advance(seconds=31)
        assert await bff.resources.delivery.run() == (2, 0)
        first, second = await events(bff)
        assert partner.ids == [*[first.event_id] * (before + 1), second.event_id]
        assert await states(bff) == ["DELIVERED", "DELIVERED"]


async def test_killed_after_the_fact_and_before_the_delivery_it_is_delivered_once(settings, sandbox, partner):
    async with running(by_itself(settings, timedelta(0), pause_at="result_stored"), sandbox) as (server, bff):
        verification = await bff.completed()
        asking = asyncio.create_task(bff.result(verification))
        await server.says('"step": "result_stored')
        server.kill()
        await asyncio.gather(asking, return_exceptions=True)
    assert partner.deliveries == []
    async with running(by_itself(settings, SOON), sandbox) as (server, bff):
        await server.says("event_delivered")
        assert (await bff.result(verification)).json()["retrieval"]["source"] == "STORED"
    (delivered,) = partner.deliveries
    assert delivered.verified()["data"]["txId"] == verification.tx_id


async def test_two_processes_deliver_each_event_once(production, sandbox, partner):
    settings = with_events(settings_for(production, sandbox), partner.url)
    subjects = [f"order-{number}" for number in range(40)]
    async with Bff.running(settings, sandbox) as bff:
        partner.may_answer.clear()
        with serving(by_itself(settings, SOON)) as one, serving(by_itself(settings, SOON)) as other:
            for _ in range(3):
                await record(bff, *subjects)
            await has_got(partner, 9)  # more than one process could have under way
            partner.may_answer.set()
            await has_got(partner, 120)
            assert one.end(signal.SIGTERM) == other.end(signal.SIGTERM) == 0
        assert set(await states(bff)) == {"DELIVERED"}
        assert len(partner.ids) == len(set(partner.ids)) == 120
        order = [event.event_id for event in await events(bff)]
        for subject in subjects:
            of_it = [one.headers["webhook-id"] for one in partner.deliveries if one.subject == subject]
            assert of_it == sorted(of_it, key=order.index)


async def test_an_event_is_delivered_as_soon_as_it_is_committed(settings, sandbox, partner):
    with serving(by_itself(settings, LATE)) as server:
        async with bff_at(server, sandbox) as bff:
            await bff.result(await bff.completed())
            await has_got(partner, 1)
        assert partner.deliveries[0].verified()["type"] == EventType.VERIFICATION_COMPLETED
        await server.says("event_delivered")


async def test_a_stop_lets_a_delivery_end(settings, sandbox, partner):
    partner.may_answer.clear()
    async with Bff.running(settings, sandbox) as bff:
        await record(bff, "order-1")
        with serving(by_itself(settings, SOON)) as server:
            await has_got(partner, 1)
            ending = asyncio.create_task(asyncio.to_thread(server.end, signal.SIGTERM))
            await server.says("Waiting for application shutdown")
            partner.may_answer.set()
            assert await ending == 0
        assert (await only_event(bff)).state == "DELIVERED"


async def test_a_process_that_is_told_not_to_does_nothing_by_itself(settings, sandbox):
    async with Bff.running(settings, sandbox) as bff:
        tasks = len(asyncio.all_tasks())
        await record(bff, "order-1")
        assert bff.resources.outbox._news.is_set()  # nobody has asked for it
    async with Bff.running(by_itself(settings, LATE), sandbox):
        assert len(asyncio.all_tasks()) == tasks + 2


async def test_the_command_delivers(settings, sandbox, partner):
    async with Bff.running(settings, sandbox) as bff:
        await record(bff, "order-1")
        done = await command(settings, "reconcile")
        assert done.stdout.splitlines()[-1] == "events: 1 delivered, 0 not delivered, 0 erased"
        assert (await only_event(bff)).state == "DELIVERED"
    assert partner.subjects == ["order-1"]
