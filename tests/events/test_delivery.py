"""The outbox is emptied: at least once, signed, in order, whatever the partner's server does."""

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
import trustme
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from standardwebhooks import WebhookVerificationError

from app.errors import StorageUnavailable
from app.events.delivery import AT_ONCE, Delivery, Reconciled
from app.events.tables import Event, EventType
from app.login.tables import LoginSession
from app.reconcile import reconcile
from app.settings import SettingsError
from app.toss.transport import MAX_ANSWER_BYTES
from tests.conftest import settings_for
from tests.events.partner import (
    NEW_SECRET,
    SECRET,
    events,
    only_event,
    partner_server,
    record,
    states,
    with_events,
)
from tests.hosts import Host, silence, tls_of
from tests.scenarios import Bff
from tests.servers import free_port

MINUTE = timedelta(minutes=1)


def replica_of(bff, **changes) -> Delivery:
    """Another process that delivers from the same table."""
    own = bff.resources.delivery
    collaborators = {
        "database": bff.resources.database,
        "receiver": own._receiver,
        "clock": bff.clock,
        "retention": own._retention,
        "checkpoint": own._checkpoint,
    }
    return Delivery(**(collaborators | changes))


async def run(bff) -> tuple[int, int]:
    return await bff.resources.delivery.run()


@asynccontextmanager
async def telling(backend, sandbox, script, **settings):
    """A BFF whose partner's server does with a connection what the script says."""
    async with Host.running(script) as host:
        own = with_events(settings_for(backend, sandbox), host.url, **settings)
        async with Bff.running(own, sandbox) as bff:
            yield bff, host


# --- What arrives -------------------------------------------------------------------------------------------


async def test_an_event_arrives_once_and_signed(bff, partner):
    await record(bff, "order-1", orderNo="order-1", amount=9900, paidAt=bff.clock())
    recorded = await only_event(bff)
    assert (recorded.state, recorded.attempts) == ("PENDING", 0)
    assert await run(bff) == (1, 0)
    (delivered,) = partner.deliveries
    assert delivered.verified() == {
        "id": recorded.event_id,
        "type": "payment.paid",
        "occurredAt": recorded.occurred_at.isoformat().replace("+00:00", "Z"),
        "subject": "order-1",
        "data": recorded.data,
    }
    assert recorded.data["amount"] == 9900
    assert recorded.data["paidAt"].endswith("Z")
    assert delivered.headers["webhook-id"] == recorded.event_id
    assert delivered.headers["content-type"] == "application/json"
    event = await only_event(bff)
    assert (event.state, event.attempts, event.last_status, event.lease_id) == ("DELIVERED", 1, 200, None)
    assert recorded.occurred_at <= event.delivered_at <= bff.clock()
    assert await run(bff) == (0, 0)
    assert len(partner.deliveries) == 1


async def test_what_was_changed_on_the_way_or_signed_by_another_is_noticed(bff, partner):
    await record(bff, "order-1", amount=9900)
    await run(bff)
    (delivered,) = partner.deliveries
    for forged in (
        replace(delivered, body=delivered.body.replace(b"9900", b"9901")),
        replace(delivered, headers=delivered.headers | {"webhook-id": "another"}),
    ):
        with pytest.raises(WebhookVerificationError):
            forged.verified()
    with pytest.raises(WebhookVerificationError):
        delivered.verified(NEW_SECRET)


async def test_while_a_secret_is_changed_both_sign(embedded, sandbox, partner):
    settings = with_events(settings_for(embedded, sandbox), partner.url, secrets=[NEW_SECRET, SECRET])
    async with Bff.running(settings, sandbox) as bff:
        await record(bff, "order-1")
        await run(bff)
    (delivered,) = partner.deliveries
    assert delivered.verified(SECRET) == delivered.verified(NEW_SECRET)


@pytest.mark.parametrize("hours", [-8, 9])
async def test_the_signature_holds_in_every_time_zone(bff, partner, hours):
    await record(bff, "order-1")
    zone = timezone(timedelta(hours=hours))
    await replica_of(bff, clock=lambda: datetime.now(zone)).run()
    (delivered,) = partner.deliveries
    assert delivered.verified()["subject"] == "order-1"


async def test_each_attempt_is_signed_for_its_own_time_under_the_same_id(bff, partner):
    partner.statuses = [500]
    await record(bff, "order-1")
    await run(bff)
    bff.clock.advance(seconds=10)
    await run(bff)
    first, second = partner.deliveries
    assert first.body == second.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    passed = int(second.headers["webhook-timestamp"]) - int(first.headers["webhook-timestamp"])
    assert 10 <= passed < 40


async def test_over_tls_by_an_authority_of_ones_own(embedded, sandbox, tmp_path):
    authority, stranger = trustme.CA(), trustme.CA()
    outcomes = []
    async with partner_server(tls=tls_of(authority)) as partner:
        for number, ca in enumerate((stranger, authority)):
            ca_file = tmp_path / f"{number}.pem"
            ca.cert_pem.write_to_path(str(ca_file))
            settings = with_events(settings_for(embedded, sandbox), partner.url, ca_file=ca_file)
            async with Bff.running(settings, sandbox) as bff:
                await record(bff, f"order-{number}")
                await run(bff)
                outcomes.append([(event.state, event.last_status) for event in await events(bff)])
    assert outcomes == [[("PENDING", None)], [("PENDING", None), ("DELIVERED", 200)]]
    assert partner.subjects == ["order-1"]


async def test_an_authority_that_cannot_be_read_is_a_fault_of_the_settings(embedded, sandbox, partner, tmp_path):
    settings = with_events(settings_for(embedded, sandbox), partner.url, ca_file=tmp_path / "none.pem")
    with pytest.raises(SettingsError, match="BFF_EVENTS__CA_FILE: cannot be read"):
        async with Bff.running(settings, sandbox):
            pass


# --- What does not ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 202, 204, 299])
async def test_2xx_is_delivered(bff, partner, status):
    partner.statuses, partner.answer = [status], b""
    await record(bff, "order-1")
    assert await run(bff) == (1, 0)
    assert (await only_event(bff)).last_status == status


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 404, 410, 429, 500, 502, 503])
async def test_everything_else_is_tried_again(bff, partner, status):
    partner.statuses = [status]
    await record(bff, "order-1")
    before = bff.clock()
    assert await run(bff) == (0, 1)
    event = await only_event(bff)
    assert (event.state, event.attempts, event.last_status, event.delivered_at) == ("PENDING", 1, status, None)
    assert timedelta(seconds=5) <= event.next_attempt_at - before < timedelta(seconds=35)
    assert len(partner.deliveries) == 1  # no redirection was followed
    assert await run(bff) == (0, 0)
    bff.clock.advance(seconds=40)
    assert await run(bff) == (1, 0)
    assert partner.ids == [event.event_id] * 2
    event = await only_event(bff)
    assert (event.state, event.attempts, event.last_status) == ("DELIVERED", 2, 200)


async def test_a_refused_connection_is_tried_again(embedded, sandbox):
    settings = with_events(settings_for(embedded, sandbox), f"http://127.0.0.1:{free_port()}/")
    async with Bff.running(settings, sandbox) as bff:
        await record(bff, "order-1")
        assert await run(bff) == (0, 1)
        event = await only_event(bff)
        assert (event.state, event.attempts, event.last_status) == ("PENDING", 1, None)


async def trickle(connection) -> None:
    await connection.request()
    connection.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        connection.writer.write(b".")
        await connection.writer.drain()
        await asyncio.sleep(0.01)  # the speed of this server is what the test is about


async def reset(connection) -> None:
    await connection.request()
    connection.reset()


async def nonsense(connection) -> None:
    await connection.request()
    connection.writer.write(b"200 is what I would say\r\n\r\n")


@pytest.mark.parametrize("script", [silence, trickle, reset, nonsense])
async def test_without_an_answer_in_time_it_is_tried_again(embedded, sandbox, script):
    async with telling(embedded, sandbox, script, timeout=0.3) as (bff, _):
        await record(bff, "order-1")
        assert await run(bff) == (0, 1)
        event = await only_event(bff)
        assert (event.state, event.attempts, event.last_status, event.lease_id) == ("PENDING", 1, None, None)


async def test_whatever_is_said_besides_does_not_count(bff, partner):
    partner.answer = b"x" * (MAX_ANSWER_BYTES + 1)
    await record(bff, "order-1")
    assert await run(bff) == (1, 0)


async def test_the_pauses_double_up_to_six_hours_and_after_three_days_it_is_given_up(bff, partner, caplog):
    partner.failing = {"order-1"}
    await record(bff, "order-1")
    recorded_at = (await only_event(bff)).occurred_at
    pauses = []
    while (event := await only_event(bff)).state == "PENDING":
        before = bff.clock()
        bff.clock.offset = event.next_attempt_at + timedelta(milliseconds=1) - datetime.now(UTC)
        pauses.append(max(bff.clock() - before, timedelta()))
        assert await run(bff) == (0, 1)
    rounded = [round(pause.total_seconds() / 5) * 5 for pause in pauses]
    doubling = [5 * 2**n for n in range(13)]
    assert rounded[:14] == [0, *doubling]
    assert set(rounded[14:-1]) == {6 * 3600}
    assert (event.state, event.next_attempt_at, event.last_status) == ("GIVEN_UP", None, 500)
    # The last attempt comes at the very end, not up to six hours before it.
    assert timedelta(0) <= bff.clock() - recorded_at - timedelta(days=3) < MINUTE
    assert event.attempts == len(partner.deliveries) == len(pauses)
    assert [line.levelname for line in caplog.records if "event_given_up" in line.getMessage()] == ["ERROR"]
    bff.clock.advance(days=1)
    assert await run(bff) == (0, 0)


async def test_without_an_address_events_are_kept(embedded, sandbox):
    async with Bff.running(settings_for(embedded, sandbox), sandbox) as bff:
        await record(bff, "order-1")
        assert (await only_event(bff)).state == "KEPT"
        assert (await reconcile(bff.resources)).events == Reconciled(0, 0, 0)
        assert (await only_event(bff)).state == "KEPT"


# --- Order --------------------------------------------------------------------------------------------------


async def test_of_one_subject_a_later_event_waits_for_an_earlier_one_and_no_other_does(bff, partner):
    partner.failing = {"a"}
    await record(bff, "a", "b", "a", "c")
    assert await run(bff) == (2, 1)
    assert sorted(partner.subjects) == ["a", "b", "c"]
    assert await states(bff) == ["PENDING", "DELIVERED", "PENDING", "DELIVERED"]
    assert [event.attempts for event in await events(bff)] == [1, 1, 0, 1]
    partner.failing.clear()
    bff.clock.advance(seconds=40)
    assert await run(bff) == (2, 0)
    first, _, third, _ = await events(bff)
    assert partner.ids[3:] == [first.event_id, third.event_id]


async def test_the_order_is_that_of_recording_whatever_the_clocks_say(bff, partner):
    for _ in range(5):
        await record(bff, "a")
        bff.clock.advance(seconds=-1)  # as on another replica, whose clock is behind
    async with bff.resources.database.transaction() as session:
        for _ in range(5):
            bff.resources.outbox.record(session, EventType.PAYMENT_PAID, subject="a", data={})
    bff.clock.advance(seconds=10)
    ids = [event.event_id for event in await events(bff)]
    assert sorted(ids) != ids
    assert await run(bff) == (10, 0)
    assert partner.ids == ids


async def test_an_event_that_was_given_up_holds_nothing_up(bff, partner):
    partner.statuses = [500, 500]
    await record(bff, "a")
    await run(bff)
    bff.clock.advance(days=3)
    await record(bff, "a")
    await run(bff)
    assert await states(bff) == ["GIVEN_UP", "DELIVERED"]


# --- Many replicas, many events, and a partner's server that is away ------------------------------------------


async def test_two_that_deliver_at_the_same_moment_deliver_each_event_once(bff, partner):
    await record(bff, *(f"order-{number}" for number in range(20)), *("same",) * 5)
    partner.may_answer.clear()
    running = [asyncio.create_task(each.run()) for each in (bff.resources.delivery, replica_of(bff))]
    await partner.has_been_asked.wait()
    partner.may_answer.set()
    assert sum([(await one)[0] for one in running]) == 25
    assert len(set(partner.ids)) == len(partner.ids) == 25
    assert partner.subjects.count("same") == 5


async def test_what_is_being_delivered_is_left_alone_until_its_lease_ends(bff, partner):
    await record(bff, "a", "a")
    partner.may_answer.clear()
    running = asyncio.create_task(run(bff))
    await partner.has_been_asked.wait()
    replica = replica_of(bff)
    assert await replica.run() == (0, 0)
    bff.clock.advance(seconds=15)  # the deadline of an attempt: it may still be noted
    assert await replica.run() == (0, 0)
    bff.clock.advance(seconds=16)
    partner.has_been_asked.clear()
    second = asyncio.create_task(replica.run())
    await partner.has_been_asked.wait()
    first, _ = await events(bff)
    assert partner.ids == [first.event_id] * 2  # at least once
    partner.may_answer.set()
    assert (await running)[1] + (await second)[1] <= 1
    assert await states(bff) == ["DELIVERED", "DELIVERED"]


async def test_who_has_lost_the_lease_notes_nothing(bff, partner):
    await record(bff, "a")
    partner.statuses = [500]

    async def another_takes_it(step: str) -> None:
        if step == "event_delivered":
            bff.clock.advance(minutes=1)
            assert await run(bff) == (1, 0)

    assert await replica_of(bff, checkpoint=another_takes_it).run() == (1, 0)
    event = await only_event(bff)
    assert (event.state, event.attempts, event.last_status) == ("DELIVERED", 1, 200)


async def test_many_go_out_at_once_but_not_too_many(bff, partner):
    await record(bff, *(f"order-{number}" for number in range(3 * AT_ONCE)))
    may_go, is_full, leased = asyncio.Event(), asyncio.Event(), []

    async def checkpoint(step: str) -> None:
        if step == "event_leased":
            leased.append(step)
            if len(leased) == AT_ONCE:
                is_full.set()
            await may_go.wait()

    replica = replica_of(bff, checkpoint=checkpoint)
    running = [asyncio.create_task(replica.run()) for _ in range(2)]  # the nudge and reconcile, at the same moment
    await is_full.wait()
    await asyncio.wait(running, timeout=0.3)  # nothing tells that the others wait
    assert len(leased) == AT_ONCE
    may_go.set()
    assert sum([(await one)[0] for one in running]) == 3 * AT_ONCE
    assert set(partner.subjects[:AT_ONCE]) == {f"order-{number}" for number in range(AT_ONCE)}  # oldest first


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_server_that_is_away_is_not_asked_for_every_event(bff, partner, status):
    partner.statuses = [status] * 100
    await record(bff, *(f"order-{number}" for number in range(30)))
    assert await run(bff) == (0, AT_ONCE)
    assert len(partner.deliveries) == AT_ONCE
    partner.statuses.clear()
    # The others have kept their pauses short: they are due as soon as it is back.
    assert await run(bff) == (30 - AT_ONCE, 0)


async def test_a_dead_server_costs_a_run_one_deadline(embedded, sandbox):
    async with telling(embedded, sandbox, silence, timeout=0.2) as (bff, host):
        await record(bff, *(f"order-{number}" for number in range(30)))
        assert await run(bff) == (0, AT_ONCE)
        assert host.connections == AT_ONCE


async def test_an_event_that_its_receiver_cannot_take_keeps_no_other(bff, partner):
    partner.failing = {f"poison-{number}" for number in range(2 * AT_ONCE)}
    await record(bff, *sorted(partner.failing), "order-1")
    assert await run(bff) == (1, 2 * AT_ONCE)


async def test_a_run_ends_in_time(bff, partner):
    await record(bff, "order-1")
    assert await replica_of(bff, run_for=timedelta(0)).run() == (0, 0)
    assert partner.deliveries == []


class Faltering:
    """A database that is away for one transaction, counted from the first."""

    def __init__(self, database, away_at: int):
        self._database = database
        self._count = 0
        self._away_at = away_at

    def transaction(self):
        self._count += 1
        if self._count == self._away_at:
            raise StorageUnavailable
        return self._database.transaction()


async def test_a_database_that_is_away_when_it_is_to_be_noted_means_a_second_delivery(bff, partner):
    await record(bff, "order-1")
    # AT_ONCE look for an event, one of them finds it.
    replica = replica_of(bff, database=Faltering(bff.resources.database, AT_ONCE + 1))
    with pytest.raises(StorageUnavailable):
        await replica.run()
    assert (await only_event(bff)).state == "PENDING"
    bff.clock.advance(seconds=31)
    assert await run(bff) == (1, 0)
    assert len(partner.deliveries) == 2
    assert len(set(partner.ids)) == 1


async def test_one_attempt_that_breaks_down_does_not_break_off_the_others(bff):
    await record(bff, "a", "b", "c")
    bugs = [RuntimeError("a bug")]

    async def checkpoint(step: str) -> None:
        if step == "event_leased" and bugs:
            raise bugs.pop()

    with pytest.raises(RuntimeError):
        await replica_of(bff, checkpoint=checkpoint).run()
    assert sorted(await states(bff)) == ["DELIVERED", "DELIVERED", "PENDING"]


# --- Recording, time, counting --------------------------------------------------------------------------------


class Refused(Exception):
    pass


async def test_there_is_no_event_of_what_was_not_committed(bff):
    async def take_back() -> None:
        async with bff.resources.database.transaction() as session:
            bff.resources.outbox.record(session, EventType.PAYMENT_PAID, subject="order-1", data={})
            await session.flush()
            raise Refused

    with pytest.raises(Refused):
        await take_back()
    assert await events(bff) == []
    assert not bff.resources.outbox._news.is_set()
    assert b'bff_events_total{outcome="recorded"' not in bff.resources.metrics.exposition()


async def test_nobody_is_told_of_a_commit_that_fails(embedded, sandbox, partner):
    settings = with_events(settings_for(embedded, sandbox), partner.url)
    async with Bff.running(settings, sandbox) as bff:

        async def record_and_fail() -> None:
            async with bff.resources.database.transaction() as session:
                await session.execute(text("PRAGMA defer_foreign_keys = ON"))
                now = bff.clock()
                session.add(
                    LoginSession(
                        session_id="1",
                        token_hash="1",
                        user_id="nobody",
                        created_at=now,
                        expires_at=now,
                        ends_at=now,
                    )
                )
                bff.resources.outbox.record(session, EventType.PAYMENT_PAID, subject="order-1", data={})

        with pytest.raises(IntegrityError):
            await record_and_fail()
        assert not bff.resources.outbox._news.is_set()
        await record(bff, "order-1")
        assert bff.resources.outbox._news.is_set()


async def test_retention_erases_what_is_not_pending(bff, partner):
    await record(bff, "a")
    await run(bff)
    partner.failing = {"b", "c"}
    await record(bff, "b")
    await run(bff)
    bff.clock.advance(days=89)
    await run(bff)  # gives up on b
    await record(bff, "c")
    assert await states(bff) == ["DELIVERED", "GIVEN_UP", "PENDING"]
    assert (await bff.resources.delivery.reconcile()).erased == 0
    bff.clock.advance(days=1, minutes=1)
    async with bff.resources.database.transaction() as session:
        pending = (await events(bff))[2]
        old = await session.get(Event, pending.position)
        old.occurred_at -= timedelta(days=95)
    assert (await bff.resources.delivery.reconcile()).erased == 2
    assert (await only_event(bff)).subject == "c"


async def test_the_days_of_retention_are_the_operators(embedded, sandbox):
    settings = with_events(settings_for(embedded, sandbox), None, retention_days=2)
    async with Bff.running(settings, sandbox) as bff:
        await record(bff, "a")
        bff.clock.advance(days=2, minutes=1)
        assert (await reconcile(bff.resources)).events == Reconciled(0, 0, 1)


async def test_what_happens_is_counted(bff, partner):
    partner.statuses = [500, 500]
    await record(bff, "a", "b")
    await run(bff)
    bff.clock.advance(days=3)
    partner.failing = {"b"}
    await run(bff)
    shown = bff.resources.metrics.exposition().decode()
    for outcome, count in {"recorded": 2, "failed": 2, "delivered": 1, "given_up": 1}.items():
        assert f'bff_events_total{{outcome="{outcome}",type="payment.paid"}} {count}.0' in shown


async def test_nothing_of_body_or_answer_is_logged(bff, partner, caplog):
    partner.answer = json.dumps({"note": "said-by-the-partner"}).encode()
    partner.statuses = [500]
    await record(bff, "order-1", note="said-by-us")
    await run(bff)
    bff.clock.advance(seconds=40)
    await run(bff)
    assert "event_failed" in caplog.text
    assert "event_delivered" in caplog.text
    for secret in ("said-by", SECRET, partner.deliveries[0].headers["webhook-signature"], partner.url):
        assert secret not in caplog.text
