"""The trace that is named to whom we call, and spans for whoever has a collector (decision 0024)."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from urllib.parse import urlsplit

from fastapi.telemetry import TelemetryConfig
from opentelemetry.trace import NoOpTracerProvider, SpanKind, StatusCode

from app.settings import Settings
from app.trace_context import TRACEPARENT, outgoing

CLOSE_WITHIN = timedelta(seconds=2)
"""For spans that are still to be sent when the process stops."""
UNTRACED = frozenset({"/livez", "/readyz", "/metrics"})


class Tracing:
    """Without a collector's address no span is made, and whom we call learns of the caller's trace all the same."""

    def __init__(self, settings: Settings) -> None:
        self._sends_to_toss = settings.tracing.sends_to_toss
        self._exporting = None
        if settings.tracing.endpoint is not None:
            from app.span_export import SpanExport  # noqa: PLC0415 - of an extra that need not be installed

            self._exporting = SpanExport(settings)
        provider = self._exporting.provider if self._exporting else NoOpTracerProvider()
        self._tracer = provider.get_tracer("app")

    @property
    def telemetry(self) -> TelemetryConfig:
        """For FastAPI, which would else look for whatever the process and the environment have."""
        return {
            "tracing": self._exporting is not None,
            "tracer_provider": self._exporting.provider if self._exporting else None,
            "metrics": False,
            "logs": False,
            "auto_configure": False,
            "operation_spans": False,
            "exclude": lambda scope: scope["path"] in UNTRACED,
        }

    @contextmanager
    def to_partner(self, method: str, url: str) -> Iterator[Mapping[str, str]]:
        """Be in the span of a call. Yields the headers that name it."""
        parts = urlsplit(url)
        with self._tracer.start_as_current_span(
            f"{method} {parts.path}",
            kind=SpanKind.CLIENT,
            attributes={"http.request.method": method, "server.address": parts.hostname or ""},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                traceparent = outgoing()
                yield {TRACEPARENT: traceparent} if traceparent else {}
            except Exception as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(StatusCode.ERROR)
                raise

    @contextmanager
    def to_toss(self, method: str, url: str) -> Iterator[Mapping[str, str]]:
        """The same, but Toss is told only if it shall be: it documents no such header."""
        with self.to_partner(method, url) as headers:
            yield headers if self._sends_to_toss else {}

    @asynccontextmanager
    async def running(self, *, close_within: timedelta = CLOSE_WITHIN) -> AsyncIterator[None]:
        """Send spans for as long as the block lasts."""
        if self._exporting is None:
            yield
            return
        self._exporting.start()
        try:
            yield
        finally:
            # A thread that may be left behind: it tries a collector that is away for longer than we want to wait.
            closing = threading.Thread(target=self._exporting.close, daemon=True)
            closing.start()
            await asyncio.to_thread(closing.join, close_within.total_seconds())
