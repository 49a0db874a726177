"""A caller's trace goes on through the log to whom we call; and spans leave with nothing of a person (G11)."""

import asyncio
import re
import signal
import socket
import sys
from datetime import timedelta

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.proto.trace.v1.trace_pb2 import Status as ProtoStatus
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from app.scrubbing import only
from app.settings import Settings, TracingSettings
from app.span_export import ALLOWED, SPAN_NAME, ScrubbedExporter
from app.tracing import Tracing
from tests.collector import Collector, collecting, spans_of
from tests.conftest import settings_for
from tests.events.partner import SECRET as EVENT_SECRET
from tests.events.partner import partner_server, with_events
from tests.hosts import Host, answering
from tests.processes import bff_at, serving
from tests.scenarios import Bff
from tests.test_error_reports import SECRET, holds_secret

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
UNSAMPLED = f"00-{TRACE}-{SPAN}-00"
FORM = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")

MALFORMED = [
    "",
    "0",
    TRACE,
    PARENT.upper(),
    PARENT.replace("00-", "ff-", 1),
    f"00-{'0' * 32}-{SPAN}-01",
    f"00-{TRACE}-{'0' * 16}-01",
    f"00-{TRACE[1:]}-{SPAN}-01",
    f"{PARENT}-more",
    f"{PARENT};{PARENT}",
    "00-" + "a" * 5000,
    "\u00e9",
]


@pytest.fixture
def collector():
    with collecting() as taker:
        yield taker


def traced(settings: Settings, collector: Collector | None = None, **more) -> Settings:
    endpoint = collector.otlp if collector else None
    tracing = TracingSettings.model_validate({"endpoint": endpoint, **more})
    return settings.model_copy(update={"tracing": tracing})


# --- The log ------------------------------------------------------------------------------------------------


def finished(caplog) -> list[dict]:
    lines = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    return [line for line in lines if line["event"] == "request_finished"]


async def test_a_callers_trace_goes_on_in_the_log(bff, caplog):
    await bff.http.get("/livez", headers={"traceparent": PARENT, "tracestate": f"a={SECRET[:3]}"})
    await bff.http.get("/livez", headers={"traceparent": f"cc-{TRACE}-{SPAN}-01-what-comes-later"})
    first, second = finished(caplog)
    assert first["trace_id"] == second["trace_id"] == TRACE
    assert re.fullmatch("[0-9a-f]{16}", first["span_id"])
    assert len({first["span_id"], second["span_id"], SPAN}) == 3


@pytest.mark.parametrize("header", MALFORMED)
async def test_a_malformed_trace_begins_anew(bff, caplog, header):
    answer = await bff.http.get("/livez", headers=[(b"traceparent", header.encode())])
    assert answer.status_code == 200
    (line,) = finished(caplog)
    assert re.fullmatch("[0-9a-f]{32}", line["trace_id"])
    assert line["trace_id"] not in {TRACE, "0" * 32}


async def test_two_traces_are_none(bff, caplog):
    await bff.http.get("/livez", headers=[("traceparent", PARENT), ("traceparent", PARENT)])
    (line,) = finished(caplog)
    assert line["trace_id"] != TRACE


async def test_every_line_of_a_request_names_its_trace_and_the_next_has_another(bff, caplog):
    await bff.http.post("/api/v1/cert/requests", headers={"traceparent": PARENT})
    await bff.http.post("/api/v1/cert/requests")
    lines = [record.msg for record in caplog.records if isinstance(record.msg, dict) and "request_id" in record.msg]
    by_request = {line["request_id"]: set() for line in lines}
    for line in lines:
        by_request[line["request_id"]].add((line["trace_id"], line["span_id"]))
    assert [len(traces) for traces in by_request.values()] == [1, 1]
    ((first, _),), ((second, _),) = by_request.values()
    assert first == TRACE != second


# --- Whom we call -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_collector", [False, True])
async def test_the_partners_server_learns_of_the_trace_in_which_it_happened(
    embedded, sandbox, collector, has_collector
):
    async with partner_server() as partner:
        settings = with_events(settings_for(embedded, sandbox), partner.url)
        settings = traced(settings, collector if has_collector else None)
        async with Bff.running(settings, sandbox) as bff:
            verification = await bff.start()
            sandbox.state.approve(verification.tx_id)
            await bff.http.post(
                f"/api/v1/cert/requests/{verification.tx_id}/result",
                headers={**verification.headers, "traceparent": PARENT, "tracestate": "a=opaque-text"},
            )
            assert await bff.resources.delivery.run() == (1, 0)
        (delivered,) = partner.deliveries
        trace_id, span_id = FORM.fullmatch(delivered.headers["traceparent"]).groups()
        assert trace_id == TRACE
        assert span_id != SPAN
        assert "tracestate" not in delivered.headers
        assert delivered.verified(EVENT_SECRET)
    spans = collector.spans() if has_collector else []
    assert has_collector == (span_id in {span.span_id.hex() for span in spans})


@pytest.mark.parametrize("sends", [False, True])
async def test_toss_learns_of_a_trace_only_if_it_shall(embedded, sandbox, sends):
    async with Host.running(answering(b"{}")) as toss:
        settings = traced(
            settings_for(embedded, sandbox, token_url=toss.url, api_url=toss.url), sends_to_toss=sends
        )
        async with Bff.running(traced(settings, sends_to_toss=sends), sandbox) as bff:
            await bff.http.post(
                "/api/v1/cert/requests", headers={"traceparent": PARENT, "tracestate": "a=opaque-text"}
            )
        assert toss.requests
        for request in toss.requests:
            assert (TRACE.encode() in request) is sends
            assert (b"traceparent" in request.lower()) is sends
            assert b"tracestate" not in request.lower()


# --- Spans --------------------------------------------------------------------------------------------------


def attributes(span: Span) -> dict:
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def named(spans, name: str) -> Span:
    (found,) = [span for span in spans if span.name == name]
    return found


async def test_spans_arrive_and_belong_to_the_callers_trace(embedded, sandbox, collector, caplog):
    async with Bff.running(traced(settings_for(embedded, sandbox), collector), sandbox) as bff:
        await bff.http.post("/api/v1/cert/requests", headers={"traceparent": PARENT})
        login = await bff.log_in()
        await bff.me(login)
    spans = collector.spans()
    served = named(spans, "POST /api/v1/cert/requests")
    assert (served.trace_id.hex(), served.parent_span_id.hex()) == (TRACE, SPAN)
    assert served.kind == Span.SPAN_KIND_SERVER
    assert attributes(served) == {
        "http.request.method": "POST",
        "http.route": "/api/v1/cert/requests",
        "http.response.status_code": 201,
        "url.scheme": "http",
    }
    assert finished(caplog)[0]["span_id"] == served.span_id.hex()
    token = named(spans, "POST /token")
    request = named(spans, "POST /api/v2/sign/user/auth/id/request")
    for call in (token, request):
        assert (call.trace_id.hex(), call.parent_span_id) == (TRACE, served.span_id)
        assert call.kind == Span.SPAN_KIND_CLIENT
        assert attributes(call) == {"http.request.method": "POST", "server.address": "127.0.0.1"}
    of_login = named(spans, "POST /api/v1/login")
    assert of_login.trace_id.hex() != TRACE
    assert [span.name for span in spans if span.parent_span_id == of_login.span_id]


async def test_a_call_that_fails_says_how_and_no_more(embedded, sandbox, collector):
    tracing = Tracing(traced(settings_for(embedded, sandbox), collector))
    async with tracing.running():
        with pytest.raises(OSError, match="Toss,"), tracing.to_toss("POST", f"https://127.0.0.1/pay?a={SECRET}"):
            raise OSError(SECRET)
    (post,) = collector.all(1)
    assert not holds_secret(post)
    (span,) = spans_of(post)
    assert (span.name, span.status.code) == ("POST /pay", ProtoStatus.STATUS_CODE_ERROR)
    assert attributes(span)["error.type"] == "OSError"


async def plant(bff: Bff) -> None:
    """Requests that carry secrets wherever one can."""
    headers = {
        "Authorization": f"Bearer {SECRET}",
        "X-Note": SECRET,
        "Cookie": f"a={SECRET}",
        "traceparent": PARENT,
        "tracestate": "a=01055557777",
        "baggage": "note=01055557777",
        "Host": "01055557777.example",
        "User-Agent": SECRET,
    }
    for method, path in (
        ("GET", f"/callbacks/toss/login-unlink?userKey=01055557777&referrer=UNLINK&note={SECRET}"),
        ("POST", "/api/v1/cert/requests/01055557777/result?a=01055557777"),
        ("GET", "/nowhere/01055557777"),
        ("01055557777", "/api/v1/me"),
    ):
        await bff.http.request(method, path, headers=headers, json={"name": SECRET})


def broken(_token: str) -> None:
    raise RuntimeError(SECRET)


async def test_no_span_holds_anything_of_a_person(embedded, sandbox, collector):
    async with Bff.running(traced(settings_for(embedded, sandbox), collector), sandbox) as bff:
        await plant(bff)
        bff.resources.cert.holder = broken
        await plant(bff)
    posts = collector.all(1)
    sent = b"".join(posts)
    assert not holds_secret(sent)
    assert b"Kim Toss" not in sent
    assert socket.gethostname().encode() not in sent
    spans = [span for post in posts for span in spans_of(post)]
    names = [span.name for span in spans]
    assert names.count("POST /api/v1/cert/requests/{txId}/result") == 2
    assert names.count("GET /callbacks/toss/login-unlink") == 2
    bug = [span for span in spans if attributes(span).get("http.response.status_code") == 500]
    assert [span.status.code for span in bug] == [ProtoStatus.STATUS_CODE_ERROR]
    assert {span.trace_id.hex() for span in spans} == {TRACE}


FULL = {
    "http.request.method": "POST",
    "http.route": "/api/v1/payments/{orderNo}",
    "http.response.status_code": 503,
    "error.type": "UpstreamUnavailable",
    "url.scheme": "https",
    "server.address": "toss.example",
}
RULES = ALLOWED | {"server.address": {"toss.example"}}


class Kept(SpanExporter):
    def __init__(self):
        self.spans: list[ReadableSpan] = []

    def export(self, spans):
        self.spans += spans
        return SpanExportResult.SUCCESS

    def shutdown(self):
        self.spans.clear()


def scrubbed(attributes: dict, allowed=RULES, **more) -> ReadableSpan:
    kept = Kept()
    span = ReadableSpan(**({"name": "GET", "attributes": attributes} | more))
    assert ScrubbedExporter(kept, allowed=allowed).export([span]) is SpanExportResult.SUCCESS
    return kept.spans[0]


def test_what_may_leave_of_a_span_leaves_whole():
    assert dict(scrubbed(FULL).attributes) == FULL


@pytest.mark.parametrize("name", [*RULES, None])
def test_without_any_one_rule_of_spans_a_secret_leaks(name):
    planted = FULL | {name or "url.query": SECRET}
    assert SECRET not in scrubbed(planted).attributes.values()
    weaker = RULES | {name: object} if name else object
    assert SECRET in scrubbed(planted, weaker).attributes.values()


def test_what_a_span_carries_besides_its_attributes_stays_here():
    context = SpanContext(1, 2, False, TraceFlags(1), TraceState([("a", "01055557777")]))  # noqa: FBT003
    span = scrubbed(
        {},
        name=f"GET /{SECRET}",
        context=context,
        parent=context,
        status=Status(StatusCode.ERROR, SECRET),
        events=[SECRET],
        links=[SECRET],
        kind=SpanKind.SERVER,
    )
    assert not holds_secret(span.to_json().encode())
    assert (span.name, span.status.status_code, span.kind) == ("other", StatusCode.ERROR, SpanKind.SERVER)
    assert (span.context.trace_id, span.context.span_id) == (1, 2)


@pytest.mark.parametrize("name", ["GET", "POST /api/v2/sign/user/auth/id/request", "POST /api/v1/me/{userId}"])
def test_a_span_is_named_by_method_and_route(name):
    assert only(SPAN_NAME, name) == name


@pytest.mark.parametrize("name", ["GET /api/v1/me/443731103", "get", "GET /a?b", "WS /a b"])
def test_a_span_is_named_by_nothing_else(name):
    assert only(SPAN_NAME, name) is None


# --- Whether, and how many ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "headers", "expected"),
    [(1, {}, 1), (0, {}, 0), (0, {"traceparent": PARENT}, 1), (1, {"traceparent": UNSAMPLED}, 0)],
)
async def test_the_share_is_the_operators_and_the_callers_mark_counts(
    embedded, sandbox, collector, ratio, headers, expected
):
    settings = traced(settings_for(embedded, sandbox), collector, sample_ratio=ratio)
    async with Bff.running(settings, sandbox) as bff:
        await bff.http.get("/nowhere", headers=headers)
        await bff.http.get("/livez", headers={"traceparent": PARENT})
        await bff.http.get("/readyz", headers={"traceparent": PARENT})
    spans = collector.spans() if expected else collector.all()
    assert [span.name for span in spans] == ["GET"] * expected


def test_fastapi_looks_for_no_providers_of_its_own(embedded, sandbox):
    telemetry = Tracing(settings_for(embedded, sandbox)).telemetry
    assert [telemetry[what] for what in ("tracing", "metrics", "logs", "auto_configure")] == [False] * 4


async def test_only_our_own_setting_switches_spans_on(embedded, sandbox, collector, monkeypatch):
    with collecting() as other:
        for name in (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "HTTP_PROXY",
            "http_proxy",
            "ALL_PROXY",
        ):
            monkeypatch.setenv(name, other.otlp)
        monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "note=01055557777")
        for settings in (settings_for(embedded, sandbox), traced(settings_for(embedded, sandbox), collector)):
            async with Bff.running(settings, sandbox) as bff:
                await bff.http.get("/nowhere")
        assert other.all() == []
    (post,) = collector.all(1)
    assert b"01055557777" not in post
    assert len(spans_of(post)) == 1


def test_without_the_extra_it_is_a_fault(embedded, sandbox, collector, monkeypatch):
    settings = traced(settings_for(embedded, sandbox), collector)
    assert settings.faults() == []
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    assert settings.faults() == ["BFF_TRACING__ENDPOINT: needs the extra `tracing` to be installed"]
    assert settings_for(embedded, sandbox).faults() == []


async def test_a_silent_collector_delays_neither_an_answer_nor_the_stop(embedded, sandbox, collector):
    collector.may_answer.clear()
    tracing = Tracing(traced(settings_for(embedded, sandbox), collector))
    async with asyncio.timeout(20), tracing.running(close_within=timedelta(seconds=0.1)):
        for _ in range(5000):
            with tracing.to_toss("GET", "https://127.0.0.1/a") as headers:
                assert headers == {}
    assert collector.next()


# --- A real server process ----------------------------------------------------------------------------------


async def test_a_real_process_sends_its_spans(embedded, sandbox, collector):
    posts = []

    def until(name: str) -> Span:
        while True:
            posts.append(collector.next())
            for span in spans_of(posts[-1]):
                if span.name == name:
                    return span

    settings = traced(settings_for(embedded, sandbox), collector)
    with serving(settings, OTEL_BSP_SCHEDULE_DELAY="50") as server:
        async with bff_at(server, sandbox) as bff:
            await plant(bff)
            unlink = await asyncio.to_thread(until, "GET /callbacks/toss/login-unlink")
        assert server.end(signal.SIGTERM) == 0
        log = "".join(server.log)
    assert unlink.trace_id.hex() == TRACE
    assert not holds_secret(b"".join([*posts, *collector.all()]))
    assert TRACE in log
    assert "01055557777" not in log
