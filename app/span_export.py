"""Spans on their way to the collector, by OTLP over HTTP. Needs the extra `tracing`.

What leaves of a span is listed in `ALLOWED`: FastAPI by itself would send the raw query, and a callback of Toss has
a userKey in it.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanContext, Status
from typing_extensions import override

from app import __version__
from app.scrubbing import METHODS, NAME, ROUTE, Allowed, form, only
from app.settings import Settings

EXPORT_TIMEOUT = 5.0
"""Seconds for one batch, its repetitions included."""
SPAN_NAME = form(rf"[A-Z]{{3,10}}( {ROUTE.pattern})?")
OTHER = "other"

ALLOWED: Final[Allowed] = {
    "http.request.method": METHODS | {"_OTHER"},
    "http.route": ROUTE,
    "http.response.status_code": int,
    "error.type": form(rf"\d{{3}}|{NAME.pattern}"),
    "url.scheme": {"http", "https"},
}
"""All attributes that ever leave (G11), and `server.address` if it is a host that we are set to call: of what we
are called, it is the caller's own text."""


class SpanExport:
    def __init__(self, settings: Settings) -> None:
        """`settings` with a collector's address. Nothing runs yet."""
        self._endpoint = settings.tracing.endpoint
        self._allowed = ALLOWED | {"server.address": _hosts(settings)}
        self.provider: Final = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.tracing.sample_ratio)),
            resource=Resource(
                {
                    "service.name": "apps-in-toss-bff",
                    "service.version": __version__,
                    "deployment.environment.name": settings.environment,
                }
            ),
            shutdown_on_exit=False,
        )

    def start(self) -> None:
        session = requests.Session()
        session.trust_env = False  # no proxies from the environment
        exporter = OTLPSpanExporter(self._endpoint, timeout=EXPORT_TIMEOUT, session=session)
        self.provider.add_span_processor(BatchSpanProcessor(ScrubbedExporter(exporter, allowed=self._allowed)))

    def close(self) -> None:
        """Send what is left, however long it takes."""
        self.provider.shutdown()


class ScrubbedExporter(SpanExporter):
    """Passes on what is allowed of each span: no events, links or texts of errors, no `tracestate`."""

    def __init__(self, exporter: SpanExporter, *, allowed: Allowed) -> None:
        self._exporter = exporter
        self._allowed = allowed

    @override
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self._exporter.export([self._scrubbed(span) for span in spans])

    @override
    def shutdown(self) -> None:
        self._exporter.shutdown()

    def _scrubbed(self, span: ReadableSpan) -> ReadableSpan:
        attributes: dict[str, Any] = only(self._allowed, dict(span.attributes or {})) or {}
        return ReadableSpan(
            name=only(SPAN_NAME, span.name) or OTHER,
            context=_without_state(span.context),
            parent=_without_state(span.parent),
            resource=span.resource,
            attributes=attributes,
            kind=span.kind,
            status=Status(span.status.status_code),
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )


def _without_state(context: SpanContext | None) -> SpanContext | None:
    return context and SpanContext(context.trace_id, context.span_id, context.is_remote, context.trace_flags)


def _hosts(settings: Settings) -> frozenset[str]:
    urls: Iterable[str | None] = (
        settings.cert.token_url,
        settings.cert.api_url,
        settings.toss.api_url,
        settings.toss.pay_url,
        settings.billing.api_url,
        settings.events.url,
    )
    return frozenset(host for url in urls if url and (host := urlsplit(url).hostname))
