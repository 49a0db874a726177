"""W3C trace context: a caller's trace is continued, a malformed one begins anew, whom we call may learn of it."""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from opentelemetry import context, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"


@contextmanager
def entered(traceparent: Sequence[str], tracestate: Sequence[str]) -> Iterator[SpanContext]:
    """Be in the trace that these headers name, or in a new one; if spans are recorded, in the present one.

    More than one `traceparent` is none (W3C Trace Context 3.2).
    """
    present = trace.get_current_span().get_span_context()
    if present.is_valid:
        yield present
        return
    present = _continued(traceparent, tracestate)
    token = context.attach(trace.set_span_in_context(NonRecordingSpan(present)))
    try:
        yield present
    finally:
        context.detach(token)


def _continued(traceparent: Sequence[str], tracestate: Sequence[str]) -> SpanContext:
    carrier = {TRACEPARENT: list(traceparent), TRACESTATE: list(tracestate)} if len(traceparent) == 1 else {}
    found = TraceContextTextMapPropagator().extract(carrier, context.Context())
    caller = trace.get_current_span(found).get_span_context()
    return SpanContext(
        trace_id=caller.trace_id or secrets.randbits(128) or 1,
        span_id=secrets.randbits(64) or 1,
        is_remote=False,
        trace_flags=caller.trace_flags,
        trace_state=caller.trace_state,
    )


def outgoing() -> dict[str, str]:
    """Headers that name the present trace to whom we call; empty outside of one."""
    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    return headers
