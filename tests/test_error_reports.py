"""What is reported, and that nothing of a person leaves with it (G11): on the bytes that a Sentry really gets."""

import asyncio
import copy
import json
import logging
import re
import signal
import socket
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
import sentry_sdk
import structlog
from pydantic import BaseModel
from sentry_sdk.attachments import Attachment
from sentry_sdk.types import Event
from sqlalchemy.exc import IntegrityError
from structlog.contextvars import bind_contextvars

from app import __version__
from app.__main__ import _run
from app.error_reports import ALLOWED, MAX_ALIKE, ErrorReports, reporting
from app.errors import StorageUnavailable, UpstreamInvalid, UpstreamUnavailable
from app.main import create_app
from app.scrubbing import NAME, only
from app.settings import SentrySettings
from tests.collector import Collector, collecting, events_of
from tests.conftest import settings_for
from tests.leaks import FORMS, secrets
from tests.processes import bff_at, serving
from tests.scenarios import Bff

SECRET = "Kim Toss, 01055557777; CI=="
TX_ID = "71c3d6cd-6a74-48a8-8ab2-b48e6133ae6f"
HEX = "0af7651916cd43dd8448eb211c80319c"
LOG = structlog.stdlib.get_logger("redaction-probe")
LIBRARY = logging.getLogger("redaction-probe.library")

FULL = {
    "event_id": HEX,
    "timestamp": "2026-11-26T21:00:00.123456Z",
    "platform": "python",
    "level": "error",
    "logger": "app.problems",
    "message": "internal_error",
    "transaction": "/api/v1/cert/requests/{txId}/result",
    "release": "apps-in-toss-bff@0.1.0",
    "environment": "production",
    "sdk": {"name": "sentry.python", "version": "2.75.0"},
    "tags": {"event": "internal_error", "code": "upstream_invalid", "method": "POST", "request_id": TX_ID},
    "contexts": {"trace": {"trace_id": HEX, "span_id": HEX[:16]}},
    "exception": {
        "values": [
            {
                "type": "UpstreamInvalid",
                "module": "app.errors",
                "value": UpstreamInvalid.title,
                "mechanism": {
                    "type": "chained",
                    "handled": True,
                    "is_exception_group": False,
                    "exception_id": 1,
                    "parent_id": 0,
                },
                "stacktrace": {
                    "frames": [{"module": "app.cert.service", "function": "result", "lineno": 7, "in_app": True}]
                },
            }
        ]
    },
}
"""An event with everything that may leave."""

CHANNELS = {
    "breadcrumbs": {"values": [{"message": SECRET, "data": {"url": SECRET}}]},
    "check_in_id": SECRET,
    "dist": SECRET,
    "duration": SECRET,
    "errors": [{"type": SECRET}],
    "extra": {"note": SECRET},
    "fingerprint": [SECRET],
    "logentry": {"message": "%s", "params": [SECRET]},
    "measurements": {"m": {"value": SECRET}},
    "modules": {"m": SECRET},
    "monitor_config": {"m": SECRET},
    "monitor_slug": SECRET,
    "profile": SECRET,
    "request": {
        "url": f"https://bff.test/{SECRET}",
        "query_string": SECRET,
        "headers": {"X-Note": SECRET},
        "cookies": SECRET,
        "data": SECRET,
        "env": {"REMOTE_ADDR": SECRET},
    },
    "server_name": SECRET,
    "spans": [{"description": SECRET, "data": {"sql": SECRET}}],
    "stacktrace": {"frames": [{"vars": {"name": SECRET}, "context_line": SECRET, "abs_path": SECRET}]},
    "start_timestamp": SECRET,
    "status": SECRET,
    "threads": {"values": [{"name": SECRET}]},
    "transaction_info": {"source": SECRET},
    "user": {"id": SECRET, "ip_address": SECRET},
    "_dropped_spans": SECRET,
    "_has_gen_ai_span": SECRET,
}
"""Whatever else the SDK knows how to send in an event."""


def rules(allowed=ALLOWED, path=()):
    """The places of all rules."""
    if isinstance(allowed, list):
        yield from rules(allowed[0], (*path, 0))
        return
    yield path
    if isinstance(allowed, dict):
        for name, inner in allowed.items():
            yield from rules(inner, (*path, name))


def replaced(tree, path, new):
    if not path:
        return new(tree) if callable(new) else new
    tree = copy.copy(tree)
    tree[path[0]] = replaced(tree[path[0]], path[1:], new)
    return tree


def plant(value):
    return {**value, "left_over": SECRET} if isinstance(value, dict) else SECRET


RULES = list(rules())


@pytest.fixture
def sentry():
    with collecting() as collector:
        yield collector


def captured(sentry: Collector, event, hint=None, scope=None, allowed=ALLOWED) -> bytes:
    reports = ErrorReports(dsn=sentry.dsn, environment="production", release="r", allowed=allowed)
    with suppress(KeyError):  # without its id the SDK does not send it
        reports.client.capture_event(copy.deepcopy(event), hint, scope)
    reports.client.close(timeout=30)
    return b"".join(sentry.all())


def holds_secret(sent: bytes) -> bool:
    return any(part.encode() in sent for part in (SECRET, "Toss,", "01055557777", "CI=="))


# --- The rules ----------------------------------------------------------------------------------------------


def test_what_may_leave_leaves_whole(sentry):
    (event,) = events_of(captured(sentry, FULL))
    assert event == FULL


@pytest.mark.parametrize("path", RULES, ids=lambda path: ".".join(map(str, path)) or "event")
def test_without_any_one_rule_a_secret_leaks(sentry, path):
    planted = replaced(FULL, path, plant)
    sent = captured(sentry, planted)
    assert not holds_secret(sent)
    if path != ("event_id",):
        (event,) = events_of(sent)
        assert set(event) >= set(FULL) - set(path[:1])
    assert holds_secret(captured(sentry, planted, allowed=replaced(ALLOWED, path, lambda _rule: object)))


def test_every_other_channel_of_an_event_is_shut(sentry):
    assert set(CHANNELS) | set(ALLOWED) | {"type"} >= set(Event.__annotations__)
    for channel, content in CHANNELS.items():
        sent = captured(sentry, FULL | {channel: content})
        assert not holds_secret(sent), channel


@pytest.mark.parametrize("kind", ["transaction", "check_in"])
def test_no_other_kind_of_event_leaves_with_what_it_holds(sentry, kind):
    sent = captured(sentry, FULL | CHANNELS | {"type": kind, "spans": [], "_dropped_spans": 0})
    assert not holds_secret(sent)
    assert kind == "check_in" or sent == b""


def test_a_hint_and_a_scope_bring_nothing_along(sentry):
    scope = sentry_sdk.Scope()
    scope.set_user({"id": SECRET, "ip_address": SECRET})
    scope.set_tag("note", SECRET)
    scope.set_extra("note", SECRET)
    scope.set_context("note", {"note": SECRET})
    scope.set_transaction_name(SECRET)
    scope.add_breadcrumb(message=SECRET)
    scope.add_attachment(bytes=SECRET.encode(), filename=SECRET)
    scope.fingerprint = [SECRET]
    sent = captured(sentry, FULL, {"attachments": [Attachment(bytes=SECRET.encode(), filename="a.txt")]}, scope)
    assert not holds_secret(sent)
    (event,) = events_of(sent)
    assert event["exception"] == FULL["exception"]


@pytest.mark.parametrize(
    ("allowed", "value"),
    [
        ({"Kim": object}, SECRET),
        ({"Kim": object}, ["Kim"]),
        ([object], SECRET),
        ([object], {"a": SECRET}),
        (int, SECRET),
        ({"error"}, SECRET),
        ({"error"}, [SECRET]),
        (re.compile("[a-z]+"), "abc " + SECRET),
        (re.compile("[a-z]+"), {"a": SECRET}),
    ],
)
def test_what_is_not_of_the_allowed_form_is_dropped(allowed, value):
    assert only(allowed, value) is None


@pytest.mark.parametrize("text", ["/api/v1/me/443731103", "/api/v1/" + TX_ID, "/a?b=c", "/홍길동", "a/b", "/v22"])
def test_an_address_that_is_no_pattern_is_not_reported(text):
    assert only(ALLOWED["transaction"], text) is None


def test_a_name_that_is_not_of_the_code_is_not_reported():
    assert only(ALLOWED["logger"], "app.김토스") is None
    assert only(NAME, "of_김토스") is None


def test_the_pattern_of_every_route_may_be_reported(embedded, sandbox):
    paths = create_app(settings_for(embedded, sandbox)).openapi()["paths"]
    assert {path for path in paths if only(ALLOWED["transaction"], path) != path} == set()


def test_nothing_is_collected(sentry, monkeypatch):
    monkeypatch.setenv("SENTRY_DEBUG", "1")
    reports = ErrorReports(dsn=sentry.dsn, environment="production", release="r")
    assert reports.client.integrations == {}
    assert reports.client.options["debug"] is False
    reports.client.close()


# --- The application ----------------------------------------------------------------------------------------


def reported_to(sentry: Collector, settings, **more):
    return settings.model_copy(update={"sentry": SentrySettings.model_validate({"dsn": sentry.dsn, **more})})


@pytest.fixture
def settings(embedded, sandbox, sentry):
    return reported_to(sentry, settings_for(embedded, sandbox))


class Shy:
    """Whose `repr` nobody may ask for."""

    asked = 0

    def __repr__(self):
        Shy.asked += 1
        return SECRET


class Broken:
    """Stands for a bug: raises what it is given, with a secret in a local variable."""

    def __init__(self, raise_it):
        self._raise_it = raise_it

    def __call__(self, token: str) -> None:
        name, _person = f"{SECRET} {token}", Shy()
        self._raise_it(name)


def group(secret: str) -> None:
    error = ExceptionGroup(secret, [ValueError(secret), OSError(13, secret, secret)])
    error.add_note(secret)
    raise error


def chain(secret: str) -> None:
    try:
        try:
            raise KeyError(secret)  # noqa: TRY301
        except KeyError:
            group(secret)
    except ExceptionGroup as error:
        raise RuntimeError(secret, {"body": secret}) from error


def upstream_invalid(secret: str) -> None:
    raise UpstreamInvalid(f"detail {secret}") from ValueError(secret)


def validation(secret: str) -> None:
    class Person(BaseModel):
        birthday: int

    Person.model_validate({"birthday": secret})


def sql(secret: str) -> None:
    raise IntegrityError(f"INSERT INTO person VALUES ('{secret}')", {"name": secret}, ValueError(secret))


async def ask(bff: Bff, raise_it, **headers: str):
    """A request that carries the secret wherever one can, to a route that is broken."""
    bff.resources.cert.holder = Broken(raise_it)
    bind_contextvars(note=SECRET)
    return await bff.http.post(
        f"/api/v1/cert/requests/{TX_ID}/result?userKey={SECRET}&code=q-{SECRET}",
        headers={"Authorization": f"Bearer {SECRET}", "X-Note": SECRET, "Cookie": f"a={SECRET}", **headers},
        json={"name": SECRET},
    )


@pytest.mark.parametrize("raise_it", [chain, group, validation, sql])
async def test_a_bug_is_reported_without_whom_it_befell(settings, sandbox, sentry, raise_it):
    async with Bff.running(settings, sandbox) as bff:
        answer = await ask(bff, raise_it)
    posts = sentry.all(1)
    sent = b"".join(posts)
    assert not holds_secret(sent)
    assert TX_ID.encode() not in sent
    assert str(Path.cwd()).encode() not in sent
    assert socket.gethostname().encode() not in sent
    (event,) = [event for post in posts for event in events_of(post)]
    assert event["level"] == "error"
    assert (event["message"], event["logger"]) == ("internal_error", "app.problems")
    assert event["transaction"] == "/api/v1/cert/requests/{txId}/result"
    assert event["tags"] == {
        "event": "internal_error",
        "method": "POST",
        "request_id": answer.headers["x-request-id"],
    }
    assert (event["environment"], event["release"]) == ("development", f"apps-in-toss-bff@{__version__}")
    kinds = {
        chain: ["KeyError", "ExceptionGroup", "RuntimeError"],
        group: ["PermissionError", "ValueError", "ExceptionGroup"],
        validation: ["ValidationError"],
        sql: ["IntegrityError"],
    }
    shown = event["exception"]["values"]
    assert [one["type"] for one in shown] == kinds[raise_it]
    assert [one for one in shown if "value" in one] == []
    frames = [frame for one in shown for frame in one.get("stacktrace", {}).get("frames", [])]
    ours = [(frame["module"], frame["function"]) for frame in frames if frame["in_app"]]
    assert any(module == "app.problems" for module, _ in ours)
    assert any(function == raise_it.__name__ for _, function in ours)
    assert all(frame["lineno"] > 0 for frame in frames)
    assert {name for frame in frames for name in frame} == {"module", "function", "lineno", "in_app"}
    assert Shy.asked == 0


async def test_what_a_library_logs_is_reported_with_its_request(settings, sandbox, sentry):
    def complain(_secret: str) -> None:
        LIBRARY.error("could not %s", SECRET)
        raise UpstreamUnavailable

    async with Bff.running(settings, sandbox) as bff:
        answer = await ask(bff, complain)
    (event,) = sentry.events(1)
    assert event["tags"] == {"method": "POST", "request_id": answer.headers["x-request-id"]}
    assert event["transaction"] == "/api/v1/cert/requests/{txId}/result"


async def test_the_troubles_of_the_way_to_sentry_are_not_sent_along_it(settings, sentry):
    async with reporting(settings):
        for name in ("urllib3.connectionpool", "sentry_sdk.errors", "opentelemetry.sdk.trace.export"):
            logging.getLogger(name).error("cannot connect")
    assert sentry.all() == []


async def test_an_exception_that_cannot_be_shown_is_no_second_error_and_reported_by_its_event(settings, sentry):
    class Odd(Exception):
        @property
        def detail(self):
            raise ValueError(SECRET)

    async with reporting(settings):
        try:
            raise Odd  # noqa: TRY301
        except Odd:
            LOG.error("payment_held", code="payment_held")  # noqa: TRY400
    (event,) = sentry.events(1)
    assert event["message"] == event["tags"]["code"] == "payment_held"
    assert "exception" not in event


def test_a_storm_is_told_of_and_not_sent_whole(sentry):
    now = 0.0
    reports = ErrorReports(dsn=sentry.dsn, environment="production", release="r", monotonic=lambda: now)

    def storm(logger: str, code: str) -> None:
        for _ in range(MAX_ALIKE + 5):
            reports.emit(logging.makeLogRecord({"name": logger, "msg": {"event": "problem", "code": code}}))

    def reported() -> int:
        reports.client.flush(timeout=30)
        return len(sentry.all())

    storm("app.problems", "storage_unavailable")
    assert reported() == MAX_ALIKE
    storm("app.problems", "toss_not_configured")
    storm("app.reconcile", "storage_unavailable")
    assert reported() == 2 * MAX_ALIKE
    now = 60.0
    storm("app.problems", "storage_unavailable")
    assert reported() == MAX_ALIKE
    reports.client.close()


async def test_an_error_of_ours_is_reported_with_its_code_and_title(settings, sandbox, sentry):
    async with Bff.running(settings, sandbox) as bff:
        answer = await ask(bff, upstream_invalid)
    assert answer.json()["code"] == "upstream_invalid"
    (post,) = sentry.all(1)
    assert not holds_secret(post)
    (event,) = events_of(post)
    assert event["tags"]["code"] == "upstream_invalid"
    cause, error = event["exception"]["values"]
    assert (error["type"], error["value"]) == ("UpstreamInvalid", UpstreamInvalid.title)
    assert (cause["type"], cause.get("value")) == ("ValueError", None)


async def test_what_is_expected_is_not_reported(settings, sandbox, sentry):
    async with Bff.running(settings, sandbox) as bff:
        verification = await bff.start()
        assert (await bff.result(verification)).status_code == 409
        assert (await bff.http.get("/nowhere")).status_code == 404
        assert (await bff.http.post("/api/v1/login", json={"a": 1})).status_code == 422
        LOG.warning("expected", name=SECRET)
    assert sentry.all() == []


async def test_what_is_logged_at_error_is_reported_by_its_name_alone(settings, sentry):
    async with reporting(settings):
        LOG.error("payment_held", name=SECRET, code="payment_held", request_id=SECRET, reason=SECRET)
        LOG.error(f"said {SECRET}")  # noqa: G004
        LIBRARY.error("said %s", SECRET, extra={"person": SECRET})
        LIBRARY.critical(f"said {SECRET}", exc_info=ValueError(SECRET))
    posts = sentry.all(4)
    assert not any(holds_secret(post) for post in posts)
    events = [event for post in posts for event in events_of(post)]
    assert [event.get("tags") for event in events] == [
        {"event": "payment_held", "code": "payment_held"},
        None,
        None,
        None,
    ]
    assert [event.get("message") for event in events] == [
        "payment_held",
        None,
        "logged_by_a_library",
        "logged_by_a_library",
    ]
    assert [one["type"] for one in events[-1]["exception"]["values"]] == ["ValueError"]
    assert [event["logger"] for event in events] == ["redaction-probe"] * 2 + ["redaction-probe.library"] * 2


async def test_what_is_logged_while_an_exception_is_handled_shows_where_it_came_from(settings, sentry):
    async with reporting(settings):
        try:
            chain(SECRET)
        except RuntimeError as error:
            LOG.error("notice_left_open", cause=type(error).__name__)  # noqa: TRY400 - as our own code does it
    (post,) = sentry.all(1)
    assert not holds_secret(post)
    (event,) = events_of(post)
    assert "chain" in {frame["function"] for frame in event["exception"]["values"][-1]["stacktrace"]["frames"]}


async def test_one_failure_is_one_report(settings, sentry):
    log = structlog.stdlib.get_logger("app.problems")
    async with reporting(settings):
        try:
            chain("")
        except RuntimeError as error:
            LOG.error("payment_left_open")  # noqa: TRY400
            log.error("problem")  # noqa: TRY400
            logging.getLogger("uvicorn.error").error("Exception in ASGI application", exc_info=error)  # noqa: TRY400
            try:
                raise StorageUnavailable from error  # noqa: TRY301
            except StorageUnavailable:
                log.error("problem")  # noqa: TRY400
            LOG.error("payment_held")  # noqa: TRY400 - another matter, whatever it came from
        log.error("problem")
    assert [event["message"] for event in sentry.events(3)] == ["payment_left_open", "payment_held", "problem"]


async def test_a_bug_in_the_handling_of_a_reported_failure_is_another(settings, sentry):
    log = structlog.stdlib.get_logger("app.problems")
    async with reporting(settings):
        try:
            raise StorageUnavailable  # noqa: TRY301
        except StorageUnavailable:
            LOG.error("payment_left_open")  # noqa: TRY400
            try:
                raise KeyError(SECRET)  # noqa: TRY301
            except KeyError:
                log.exception("internal_error")
            try:
                raise UpstreamInvalid from None  # noqa: TRY301
            except UpstreamInvalid:
                log.error("problem")  # noqa: TRY400
    assert [event["message"] for event in sentry.events(2)] == ["payment_left_open", "internal_error"]


async def test_the_doors_of_the_sdk_itself_stay_shut(settings, sandbox, sentry):
    async with Bff.running(settings, sandbox) as bff:
        sentry_sdk.set_user({"id": SECRET})
        sentry_sdk.add_breadcrumb(message=SECRET)
        sentry_sdk.capture_message(SECRET)
        sentry_sdk.capture_exception(ValueError(SECRET))
        sentry_sdk.metrics.count(SECRET, 1)
        with sentry_sdk.start_transaction(name=SECRET), sentry_sdk.start_span(name=SECRET):
            await bff.http.get("/livez")
        assert not sentry_sdk.is_initialized()
    assert sentry.all() == []


# --- Where they go ------------------------------------------------------------------------------------------


async def test_only_our_own_setting_switches_it_on(embedded, sandbox, sentry, monkeypatch):
    with collecting() as other:
        for name in ("SENTRY_DSN", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "SENTRY_SPOTLIGHT"):
            monkeypatch.setenv(name, other.dsn)
        monkeypatch.setenv("SENTRY_RELEASE", SECRET)
        monkeypatch.setenv("SENTRY_ENVIRONMENT", SECRET)
        without = settings_for(embedded, sandbox)
        async with Bff.running(without, sandbox) as bff:
            await ask(bff, chain)
        async with Bff.running(reported_to(sentry, without), sandbox) as bff:
            await ask(bff, chain)
        assert other.all() == []
    (post,) = sentry.all(1)
    assert not holds_secret(post)
    (event,) = events_of(post)
    assert event["environment"] == "development"


async def test_release_environment_and_share_are_the_operators(embedded, sandbox, sentry):
    without = settings_for(embedded, sandbox)
    async with reporting(reported_to(sentry, without, release="r@7", environment="staging")):
        LOG.error("one")
    async with reporting(reported_to(sentry, without, sample_rate=0)):
        LOG.error("two")
    (event,) = sentry.events(1)
    assert (event["message"], event["release"], event["environment"]) == ("one", "r@7", "staging")


async def test_the_log_is_as_before_when_the_block_is_over(settings, sentry):
    before = logging.getLogger().handlers[:]
    async with reporting(settings):
        assert len(logging.getLogger().handlers) == len(before) + 1
    assert logging.getLogger().handlers == before
    LOG.error("nobody listens")
    assert sentry.all() == []


async def test_a_silent_sentry_delays_neither_an_answer_nor_the_stop(settings, sentry):
    sentry.may_answer.clear()
    async with asyncio.timeout(20):
        async with reporting(settings, close_within=timedelta(seconds=0.1)):
            for number in range(1000):
                LOG.error("flood", number=number)
            assert sentry.next()  # the first is on its way, and nobody has waited for its answer
    assert sentry.all() == []


async def test_a_sentry_that_is_away_costs_nothing(embedded, sandbox):
    with collecting() as gone:
        pass
    async with asyncio.timeout(20), Bff.running(reported_to(gone, settings_for(embedded, sandbox)), sandbox) as bff:
        assert (await ask(bff, chain)).status_code == 500
        assert (await bff.http.get("/livez")).status_code == 200


# --- A real server process ----------------------------------------------------------------------------------


async def test_a_real_process_reports_no_person(embedded, sandbox, sentry):
    settings = reported_to(sentry, settings_for(embedded, sandbox))
    with collecting() as other, serving(settings, SENTRY_DSN=other.dsn, HTTP_PROXY=other.dsn) as server:
        async with bff_at(server, sandbox) as bff:
            verification = await bff.start(name="김토스", phone="01012345678", birthday="19930324")
            sandbox.state.approve(verification.tx_id)
            sandbox.state.order_fault("result", "damaged_tag")
            await bff.result(verification)
            post = await asyncio.to_thread(sentry.next)
        assert server.end(signal.SIGTERM) == 0
        assert other.all() == []
    (event,) = events_of(post)
    assert event["message"] == "result_unreadable"
    assert event["transaction"] == "/api/v1/cert/requests/{txId}/result"
    text = post.decode() + json.dumps(event, ensure_ascii=False) + "".join(sentry.headers)
    known = {*secrets(), verification.tx_id, verification.token, sandbox.client_secret, server.url}
    assert {secret for secret in known if secret in text} == set()
    assert not FORMS.search(text)


async def test_a_command_reports_too(settings, sentry):
    async def use(_resources) -> None:
        LOG.error("payment_held")

    await asyncio.to_thread(_run, settings, use)
    assert [event["message"] for event in sentry.events(1)] == ["payment_held"]
