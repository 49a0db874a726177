"""What /metrics shows: everything once, nothing about anybody, and quickly whatever is away."""

import asyncio
import signal
from contextlib import asynccontextmanager
from datetime import timedelta
from urllib.parse import urlsplit

import httpx2
import pytest
from sqlalchemy import event, update

from app.callbacks.tables import CallbackName
from app.cert.service import Source
from app.cert.tables import ResultState, Verification
from app.errors import StorageUnavailable
from app.events.tables import Event, EventState, EventType
from app.gauges import FRESH_FOR, Gauges
from app.main import create_app
from app.metrics import BUCKETS, FOLDER_VARIABLE, UNMATCHED, Metrics, Readings, Waiting
from app.observability import METHODS
from app.payments.states import PaymentState
from app.toss.cert import RequestStatus
from app.toss.governor import BudgetStoreUnavailable, Lane
from tests.callbacks.toss import Unlinks, call
from tests.conftest import settings_for
from tests.events.partner import with_events
from tests.payments.shop import Shop
from tests.processes import PATIENCE, Server
from tests.scenarios import Bff
from tests.servers import free_port
from tests.story import Shown, observed, odd_requests, shown, story
from tests.test_health import with_urls

CALLS = {
    "cert.token", "cert.request", "cert.status", "cert.result",
    "login.exchange", "login.refresh", "login.me", "login.unlink_by_token", "login.unlink_by_user_key",
    "login.verify_anon_key", "iap.order_status", "pay.make", "pay.execute", "pay.refund", "pay.status",
    "billing.create_key", "billing.execute", "billing.key_status", "billing.remove_key", "billing.refund",
}  # fmt: skip
OUTCOMES = {"ok", "rejected", "not_sent", "over_budget", "outcome_unknown", "unintelligible"}
STARTS_WITHIN = 120.0
"""Seconds; three processes at once are slow to start where nothing is compiled beforehand."""
HANDLING = {"recorded", "merged", "handled", "failed", "delivered", "given_up"}


@pytest.fixture
def settings(backend, sandbox):
    return observed(settings_for(backend, sandbox))


@pytest.fixture
def one(embedded, sandbox):
    return observed(settings_for(embedded, sandbox))


def allowed(settings) -> dict[str, set[str]]:
    """All values that a label may ever have."""
    urls = (settings.cert.token_url, settings.cert.api_url, settings.toss.api_url, settings.toss.pay_url)
    return {
        "method": {*METHODS, "OTHER"},
        "route": {*create_app(settings).openapi()["paths"], UNMATCHED},
        "status": {"2xx", "3xx", "4xx", "5xx"},
        "call": CALLS,
        "outcome": OUTCOMES | HANDLING,
        "host": {urlsplit(url).netloc for url in urls},
        "prefix": {"/metrics", "/callbacks/toss"},
        "callback": {*CallbackName},
        "lane": {lane.value for lane in Lane},
        "limit": {"per_minute", "starts_per_minute", "all", "background", "pause"},
        "state": {*PaymentState, *RequestStatus, *ResultState},
        "source": {*Source},
        "type": {*EventType},
        "le": {*(str(bucket) for bucket in BUCKETS), "+Inf"},
    }


# --- Nobody is named ----------------------------------------------------------------------------------------


async def test_a_full_story_shows_no_label_that_is_not_known_beforehand(settings, sandbox):
    async with Bff.running(settings, sandbox) as bff:
        known = await story(bff)
        seen = await shown(bff)
    labels = [(label, value) for sample in seen.samples() for label, value in sample.labels.items()]
    may_be = allowed(settings)
    assert {(label, value) for label, value in labels if value not in may_be[label]} == set()
    assert [secret for secret in known if secret in seen.text] == []
    assert len(known) > 20
    assert {label for label, _ in labels} >= {
        "route",
        "call",
        "host",
        "state",
        "source",
        "callback",
        "type",
        "prefix",
    }


async def test_what_nobody_serves_makes_no_series(one, sandbox):

    async def of_requests(bff) -> set[tuple]:
        """The others may appear at any time, as certificates are loaded meanwhile."""
        names = ("bff_request", "bff_address", "bff_rate", "bff_callbacks")
        samples = (await shown(bff)).samples()
        return {(sample.name, *sample.labels.items()) for sample in samples if sample.name.startswith(names)}

    async with Bff.running(one, sandbox) as bff:
        await odd_requests(bff, "first")
        series = await of_requests(bff)
        await odd_requests(bff, "second")
        again = await of_requests(bff)
    new = {entry for entry in again - series if ("route", "/metrics") not in entry}
    assert new == set()
    assert any(("method", "OTHER") in entry for entry in series)


# --- Requests and calls -------------------------------------------------------------------------------------


async def test_requests_are_counted_once_by_pattern_method_and_class(one, sandbox):
    async with Bff.running(one, sandbox) as bff:
        verification = await bff.start()
        await bff.status(verification)
        await bff.http.get(f"/api/v1/cert/requests/{verification.tx_id}/status")
        await bff.http.get("/nowhere")
        seen = await shown(bff)
    counts = {
        (sample.labels["method"], sample.labels["route"], sample.labels["status"]): sample.value
        for sample in seen.families["bff_request_seconds"].samples
        if sample.name == "bff_request_seconds_count"
    }
    path = "/api/v1/cert/requests"
    assert counts == {
        ("POST", path, "2xx"): 1,
        ("GET", path + "/{txId}/status", "2xx"): 1,
        ("GET", path + "/{txId}/status", "4xx"): 1,
        ("GET", UNMATCHED, "4xx"): 1,
    }


async def test_calls_to_toss_are_counted_by_name_and_outcome(one, sandbox):
    async with Bff.running(one, sandbox) as bff:
        verification = await bff.completed()
        sandbox.state.order_fault("result", "reset_after")
        await bff.result(verification)
        await bff.result(verification)
        await bff.log_in()
        await bff.post_code("never-issued-by-anybody")
        seen = await shown(bff)
    counts = {
        (sample.labels["call"], sample.labels["outcome"]): sample.value
        for sample in seen.families["bff_toss_call_seconds"].samples
        if sample.name == "bff_toss_call_seconds_count"
    }
    assert counts == {
        ("cert.token", "ok"): 1,
        ("cert.request", "ok"): 1,
        ("cert.result", "outcome_unknown"): 1,
        ("cert.result", "ok"): 1,
        ("login.exchange", "ok"): 1,
        ("login.me", "ok"): 1,
        ("login.exchange", "rejected"): 1,
    }


async def test_servers_are_known_by_their_certificates(one, sandbox):
    async with Bff.running(one, sandbox) as bff:
        await bff.start()
        await bff.log_in()
        seen = await shown(bff)
        now = bff.clock().timestamp()
    name = "bff_server_certificate_end_timestamp_seconds"
    hosts = {urlsplit(url).netloc for url in (one.cert.token_url, one.cert.api_url, one.toss.api_url)}
    for host in hosts:
        assert seen.value(name, host=host) > now


async def test_verifications_and_results_are_counted_once(one, sandbox):
    async with Bff.running(one, sandbox) as bff:
        verification = await bff.completed()
        waiting = await bff.start()
        for _ in range(2):
            await bff.status(waiting)
            await bff.status(verification)
        for _ in range(3):
            await bff.result(verification)
        lost = await bff.completed()
        sandbox.state.order_fault("result", "reset_after", times=2)
        for _ in range(2):
            await bff.result(lost)
        await bff.resources.cert.reconcile()
        seen = await shown(bff)
    moves = {state: seen.value("bff_verifications_total", state=state) for state in {*RequestStatus, *ResultState}}
    assert {state: count for state, count in moves.items() if count} == {
        "REQUESTED": 3,
        "COMPLETED": 1,
        "STORED": 1,
    }
    assert seen.value("bff_results_total", source="READ") == 1
    assert seen.value("bff_results_total", source="STORED") == 2
    assert seen.value("bff_result_answers_lost_total") == 2


async def test_a_verification_that_ends_is_counted(one, sandbox):
    async with Bff.running(one, sandbox) as bff:
        verification = await bff.completed()
        sandbox.state.order_fault("result", "fail_200", code="CE3100")
        await bff.result(verification)
        seen = await shown(bff)
    assert seen.value("bff_verifications_total", state="ENDED") == 1


async def test_a_verification_whose_reads_are_lost_is_counted_when_it_ends(one, sandbox):
    async with Bff.running(one, sandbox) as bff:
        await bff.completed()
        lost = await bff.completed()
        async with bff.resources.database.transaction() as session:
            died = {"reads_unknown": 2, "lease_id": "x", "lease_until": bff.clock() - timedelta(seconds=1)}
            await session.execute(update(Verification).where(Verification.tx_id == lost.tx_id).values(died))
        for _ in range(2):
            await bff.resources.cert.reconcile()
        seen = await shown(bff)
    assert seen.value("bff_verifications_total", state="ENDED") == 1


async def test_a_verification_of_which_nothing_opens_is_counted_when_it_ends(one, sandbox):
    async with Bff.running(one, sandbox) as bff:
        verification = await bff.completed()
        sandbox.state.order_fault("result", "wrong_session_id", times=2)
        for count in (None, 1):
            assert (await bff.result(verification)).status_code == 502
            assert (await shown(bff)).value("bff_verifications_total", state="ENDED") == count


async def test_what_is_rare_is_there_before_it_happens(one, sandbox):
    """`increase` does not see the first of a series that was not there."""
    async with Bff.running(one, sandbox) as bff:
        seen = await shown(bff)
    assert seen.value("bff_result_answers_lost_total") == 0
    for type_ in EventType:
        assert seen.value("bff_events_total", type=type_, outcome="given_up") == 0
    for state in ("PENDING", "REFUNDING", "HELD"):
        assert seen.value("bff_payments_unsettled", state=state) == 0


# --- What waits ---------------------------------------------------------------------------------------------


def gauges_of(bff: Bff, **changes) -> Gauges:
    """The application's own, with nothing remembered."""
    resources = bff.resources
    usual = {
        "database": resources.database,
        "shared_state": resources.shared_state,
        "governor": resources.gauges._governor,
        "tokens": resources.gauges._tokens,
        "give_up_after": resources.settings.events.give_up_after,
        "clock": bff.clock,
    }
    return Gauges(**usual | changes)


async def test_callbacks_that_are_not_handled_wait(bff):
    unlinks = Unlinks(errors=[StorageUnavailable(), StorageUnavailable()])
    unlinks.serve(bff)
    assert (await gauges_of(bff).read()).notices == Waiting(0, 0.0)
    await call(bff)
    bff.clock.advance(minutes=10)
    await call(bff, user_key=443731104)
    waiting = (await gauges_of(bff).read()).notices
    assert waiting.count == 2
    assert 600 <= waiting.oldest_seconds < 660
    unlinks.errors.clear()
    bff.clock.advance(hours=2)
    await bff.resources.inbox.reconcile()
    assert (await gauges_of(bff).read()).notices == Waiting(0, 0.0)


async def test_payments_that_nobody_knows_about_wait_by_state(bff, sandbox):
    shop = await Shop.opened(bff)
    unknown, held = await shop.approved(), await shop.approved()
    await shop.paid()
    sandbox.state.order_fault("pay_execute", "reset_after", subject=None)
    sandbox.state.order_fault("pay_status", "html_502", times=2)
    await shop.execute(unknown)
    assert await shop.state(unknown) == "PENDING"
    bff.clock.advance(minutes=20)
    sandbox.state.order_fault("pay_execute", "wrong_value", field="amount")
    await shop.execute(held)
    waiting = (await gauges_of(bff).read()).payments
    assert {state: one.count for state, one in waiting.items()} == {"PENDING": 1, "REFUNDING": 0, "HELD": 1}
    assert 1200 <= waiting["PENDING"].oldest_seconds < 1260
    assert waiting["HELD"].oldest_seconds < 60


async def test_events_wait_since_they_are_due(settings, sandbox):
    """An old one that is replayed waits since then."""
    settings = with_events(settings, f"http://127.0.0.1:{free_port()}/events")
    async with Bff.running(settings, sandbox) as bff:
        async with bff.resources.database.transaction() as session:
            for subject in ("order-1", "order-2"):
                bff.resources.outbox.record(session, EventType.PAYMENT_PAID, subject=subject, data={})
        async with bff.resources.database.transaction() as session:
            delivered = {"state": EventState.DELIVERED, "next_attempt_at": None}
            await session.execute(update(Event).where(Event.subject == "order-2").values(delivered))
        bff.clock.advance(minutes=30)
        waiting = (await gauges_of(bff).read()).events
        assert waiting.count == 1
        assert 1800 <= waiting.oldest_seconds < 1860
        page = await bff.resources.delivery.list(subject="order-1", limit=1)
        await bff.resources.delivery.replay(page.items[0].event_id)
        assert (await gauges_of(bff).read()).events.oldest_seconds < 60


async def test_what_waits_is_found_by_indexes(embedded, sandbox):
    """Tables grow, what waits does not."""
    async with Bff.running(settings_for(embedded, sandbox), sandbox) as bff:
        asked, engine = [], bff.resources.database.engine

        def note(_connection, _cursor, statement, parameters, *_) -> None:
            asked.append((statement, parameters))

        event.listen(engine.sync_engine, "before_cursor_execute", note)
        await gauges_of(bff).read()
        event.remove(engine.sync_engine, "before_cursor_execute", note)
        async with engine.begin() as connection:
            plans = [
                str((await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)).all())
                for statement, parameters in asked
                if statement.startswith("SELECT")
            ]
    indexes = ("ix_notice_state_next_attempt_at", "ix_event_pending", "ix_payment_unsettled")
    for plan, index in zip(plans, indexes, strict=True):
        assert index in plan


async def test_the_token_is_as_old_as_it_is(bff):
    assert (await gauges_of(bff).read()).token_age is None
    await bff.start()
    bff.clock.advance(seconds=90)
    assert 90 <= (await gauges_of(bff).read()).token_age < 120


async def test_the_budget_shows_what_is_used_and_left(bff):
    """A new pot is closed for a window, so the first call is charged to the process; then it would be shared."""
    before = (await gauges_of(bff).read()).budget
    await bff.resources.gauges._governor._store.take([])
    await bff.log_in()
    after = (await gauges_of(bff).read()).budget
    assert before.used + before.left == after.used + after.left == 1890
    assert before.used == 0


# --- Never slow, never a 500 --------------------------------------------------------------------------------


class Stuck:
    """A database that answers when it may."""

    def __init__(self) -> None:
        self.asked = 0
        self.may_answer = asyncio.Event()

    @asynccontextmanager
    async def transaction(self):
        self.asked += 1
        await self.may_answer.wait()
        raise StorageUnavailable
        yield


async def test_a_database_that_does_not_answer_is_asked_once_and_not_waited_for(bff):
    stuck, now = Stuck(), 0.0
    gauges = gauges_of(bff, database=stuck, patience=timedelta(milliseconds=20), monotonic=lambda: now)
    for _ in range(3):
        readings = await gauges.read()
        assert (readings.is_database_up, readings.notices, readings.payments) == (False, None, {})
        assert readings.is_shared_state_up is True
    assert stuck.asked == 1
    stuck.may_answer.set()
    await asyncio.wait({gauges._backlog._asking})
    await gauges.read()
    assert stuck.asked == 1, "a failure is remembered for a while too"
    now += FRESH_FOR.total_seconds()
    await gauges.read()
    assert stuck.asked == 2
    await gauges.aclose()


async def test_an_answer_is_kept_for_a_while(bff):
    now = 0.0
    gauges = gauges_of(bff, monotonic=lambda: now)
    Unlinks(errors=[StorageUnavailable()]).serve(bff)
    assert (await gauges.read()).notices.count == 0
    await call(bff)
    assert (await gauges.read()).notices.count == 0
    now += FRESH_FOR.total_seconds()
    assert (await gauges.read()).notices.count == 1


async def test_an_old_answer_is_not_shown_for_a_new_one(bff):
    stuck, now = Stuck(), 0.0
    gauges = gauges_of(bff, patience=timedelta(seconds=PATIENCE), monotonic=lambda: now)
    assert (await gauges.read()).is_database_up is True
    gauges._database = stuck
    stuck.may_answer.set()
    now += FRESH_FOR.total_seconds()
    assert (await gauges.read()).is_database_up is False


async def test_a_question_under_way_does_not_outlive_the_process(bff):
    stuck = Stuck()
    gauges = gauges_of(bff, database=stuck, patience=timedelta(milliseconds=20))
    await gauges.read()
    await gauges.aclose()
    assert gauges._backlog._asking.cancelled()


async def test_without_its_database_the_scrape_says_so(one, sandbox):
    one = with_urls(one, database=f"postgresql+asyncpg://bff:pa55word@127.0.0.1:{free_port()}/bff")
    async with Bff.running(one, sandbox) as bff:
        seen = await shown(bff)
    assert (seen.value("bff_database_up"), seen.value("bff_shared_state_up")) == (0, 1)
    assert seen.value("bff_notices_open") is None
    assert seen.value("bff_result_answers_lost_total") == 0


async def test_a_database_without_tables_is_not_up_either(one, sandbox, tmp_path):
    one = with_urls(one, database=f"sqlite+aiosqlite:///{tmp_path}/new.db")
    async with Bff.running(one, sandbox) as bff:
        assert (await shown(bff)).value("bff_database_up") == 0


async def test_without_redis_the_scrape_says_so(one, sandbox):
    one = with_urls(one, redis=f"redis://127.0.0.1:{free_port()}")
    async with Bff.running(one, sandbox) as bff:
        seen = await shown(bff)
    assert (seen.value("bff_database_up"), seen.value("bff_shared_state_up")) == (1, 0)
    assert seen.value("bff_budget_used") is None


async def test_without_a_client_certificate_there_is_no_budget_to_show(bff):
    readings = await gauges_of(bff, governor=None).read()
    assert (readings.is_shared_state_up, readings.budget) == (True, None)


class NoPot:
    async def standing(self):
        raise BudgetStoreUnavailable


async def test_a_budget_that_cannot_be_read_costs_only_what_is_shared(bff):
    readings = await gauges_of(bff, governor=NoPot()).read()
    assert (readings.is_database_up, readings.is_shared_state_up, readings.budget) == (True, False, None)


def test_metrics_alone_show_what_was_counted():
    metrics = Metrics()
    metrics.result_answer_lost()
    assert Shown.of(metrics.exposition().decode()).value("bff_result_answers_lost_total") == 1


# --- Several workers ----------------------------------------------------------------------------------------


async def test_any_worker_shows_what_all_of_them_have_counted(production, sandbox, tmp_path):
    settings = settings_for(production, sandbox)
    server = settings.server.model_copy(update={"workers": 2})
    settings = settings.model_copy(update={"server": server})
    calls = 0
    process = Server(settings, TMPDIR=str(tmp_path))
    try:
        await asyncio.to_thread(process.wait_until_listening, STARTS_WITHIN)
        async with asyncio.timeout(STARTS_WITHIN):
            while len({file.stem.split("_")[-1] for file in tmp_path.glob("bff-metrics-*/histogram_*.db")}) < 2:
                calls += 1
                await ask(process, "/livez")
        for _ in range(20):
            calls += 1
            await ask(process, "/livez")
        for _ in range(6):
            seen = Shown.of(await ask(process, "/metrics"))
            assert seen.value("bff_request_seconds_count", route="/livez") == calls
            assert seen.value("bff_database_up") == 1
    finally:
        code = await asyncio.to_thread(process.end, signal.SIGTERM)
    assert code == 0
    assert list(tmp_path.glob("bff-metrics-*")) == []


async def ask(process: Server, path: str) -> str:
    """On a connection of its own, which either worker may take."""
    async with httpx2.AsyncClient(base_url=process.url, timeout=PATIENCE, trust_env=False) as http:
        return (await http.get(path)).text


@pytest.mark.parametrize("has_folder", [True, False])
def test_a_scrape_survives_what_a_killed_worker_has_left(tmp_path, monkeypatch, has_folder):
    if has_folder:
        (tmp_path / "counter_7.db").touch()
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path if has_folder else tmp_path / "gone"))
    assert b"bff_database_up 1.0" in Metrics().exposition(Readings(is_database_up=True))
