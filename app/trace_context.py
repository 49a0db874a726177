"""W3C trace context: a caller's trace is continued, a malformed one begins anew, whom we call may learn of it.

`tracestate` is others' own text, from a public door: it is neither kept, logged nor passed on.
"""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from opentelemetry import context, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

TRACEPARENT = "traceparent"
LENGTH = len("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")


@contextmanager
def entered(*traceparent: str) -> Iterator[SpanContext]:
    """Be in the trace that the header names, or in a new one. More than one header is none (W3C 3.2)."""
    caller = _named_by(traceparent[0] if len(traceparent) == 1 else "")
    present = SpanContext(
        trace_id=caller.trace_id or secrets.randbits(128) or 1,
        span_id=secrets.randbits(64) or 1,
        is_remote=False,
        trace_flags=caller.trace_flags,
    )
    token = context.attach(trace.set_span_in_context(NonRecordingSpan(present), context.Context()))
    try:
        yield present
    finally:
        context.detach(token)


@contextmanager
def present_or(traceparent: Sequence[str]) -> Iterator[SpanContext]:
    """The span in which we already are, if spans are recorded; else as `entered`."""
    present = trace.get_current_span().get_span_context()
    if present.is_valid:
        yield present
        return
    with entered(*traceparent) as present:
        yield present


def outgoing() -> str | None:
    """The header that names the present span to whom we call; None outside of one."""
    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    return headers.get(TRACEPARENT)


def _named_by(traceparent: str) -> SpanContext:
    found = TraceContextTextMapPropagator().extract({TRACEPARENT: [traceparent]}, context.Context())
    return trace.get_current_span(found).get_span_context()
