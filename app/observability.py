"""Logging: structlog to standard output, request ids, redaction, one canonical line per request."""

import logging
import re
import sys
import time
import uuid
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any, TextIO

import structlog
from opentelemetry.trace import format_span_id, format_trace_id
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, clear_contextvars, get_contextvars
from structlog.typing import EventDict, Processor, WrappedLogger
from typing_extensions import override

from app import trace_context
from app.metrics import Metrics
from app.scrubbing import METHODS

REDACTED = "[redacted]"
REQUEST_ID_HEADER = b"x-request-id"

SECRET_FIELDS = frozenset(
    {
        "access_token",
        "anon_key",
        "authorization",
        "authorization_code",
        "birthday",
        "body",
        "ci",
        "client_secret",
        "cookie",
        "di",
        "email",
        "envelope",
        "gender",
        "headers",
        "identity",
        "name",
        "nationality",
        "password",
        "personal_data",
        "phone",
        "refresh_token",
        "secret",
        "session_key",
        "session_token",
        "signature",
        "token",
        "user_birthday",
        "user_key",
        "user_name",
        "user_phone",
        "verification_token",
    }
)
"""Field names whose value never reaches a log line, however nested, in snake_case and in camelCase."""
_SEPARATORS = re.compile(r"[^A-Za-z0-9]")
_SECRET_NAMES = frozenset(name.replace("_", "") for name in SECRET_FIELDS)

SECRET_TEXTS = re.compile(
    r"v1[\w.-]*\$[0-9A-Fa-f-]{36}\$[A-Za-z0-9+/=_-]*"  # Toss Cert envelopes and session keys
    r"|AES_(?:GCM|CBC)\$[A-Za-z0-9+/=$]*"  # an unwrapped session
    r"|eyJ[\w-]{8,}\.[\w-]+\.[\w-]*"  # JSON web tokens
    r"|(?i:bearer|basic)\s+[\w.~+/=-]+"
    r"|\b(?:vt|sk|st)_[A-Za-z0-9_-]{20,}"  # our verification and session tokens and server keys
    r"|MII[A-Za-z0-9+/=]{60,}"  # DER in Base64: signatures, certificates, keys
    r"|CI0110000[0-9A-Za-z+/=]*"
)
"""Secrets that are recognised by their form, wherever they stand."""

QUIET_LOGGERS = {
    "alembic": logging.WARNING,
    "aiosqlite": logging.WARNING,  # prints statements with their parameters
    "asyncio": logging.WARNING,
    "httpcore2": logging.WARNING,  # prints headers
    "httpx2": logging.WARNING,
    "opentelemetry": logging.WARNING,
    "redis": logging.WARNING,
    "sqlalchemy.engine": logging.WARNING,
    "urllib3": logging.ERROR,  # of a Sentry or a collector that is away; prints addresses
    "uvicorn.access": logging.CRITICAL,  # prints raw URLs; the canonical line replaces it
}


def redact_fields(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Replace the values of secret fields."""
    return {key: _redacted(key, value) for key, value in event.items()}


def _redacted(key: str, value: Any) -> Any:  # noqa: ANN401 - log values are anything
    if _SEPARATORS.sub("", key).lower() in _SECRET_NAMES:
        return REDACTED
    if isinstance(value, dict):
        return {str(inner): _redacted(str(inner), item) for inner, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted("", item) for item in value]
    return value


class RedactingFormatter(structlog.stdlib.ProcessorFormatter):
    """Cleans the finished line too: a library's message or a traceback has no fields to go by."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        return SECRET_TEXTS.sub(REDACTED, super().format(record))


def configure_logging(*, level: str, is_json: bool, stream: TextIO | None = None) -> None:
    """Send everything, our own events and every library's, through one redacting handler; by default to stdout."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        redact_fields,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    finish: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if is_json:
        finish += [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ]
    else:
        finish += [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(RedactingFormatter(foreign_pre_chain=shared, processors=finish))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name, floor in QUIET_LOGGERS.items():
        logging.getLogger(name).setLevel(max(floor, root.level))
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True


def request_id_of(request: Request) -> str:
    return str(request.scope.get("state", {}).get("request_id", ""))


_request: ContextVar[Scope | None] = ContextVar("request", default=None)


def current_request() -> dict[str, Any]:
    """What the log knows of the request that is served here; the route is its pattern, once it is found."""
    scope = _request.get()
    return get_contextvars() | _described(scope) if scope is not None else {}


def _described(scope: Scope) -> dict[str, Any]:
    return {
        "method": scope["method"] if scope["method"] in METHODS else "OTHER",
        "route": getattr(scope.get("route"), "path", None),
    }


class RequestLog:
    """Gives every request an id, answers with it, and writes one line when the response is sent.

    Line and metrics carry the route's pattern, never the raw URL or query.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._log = structlog.stdlib.get_logger("app.request")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = str(uuid.uuid4())
        scope.setdefault("state", {})["request_id"] = request_id
        clear_contextvars()
        started = time.perf_counter()
        status = 500
        headers = Headers(scope=scope)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _set_header(message, REQUEST_ID_HEADER, request_id.encode())
            await send(message)

        token = _request.set(scope)
        with trace_context.present_or(headers.getlist(trace_context.TRACEPARENT)) as span:
            bind_contextvars(
                request_id=request_id, trace_id=format_trace_id(span.trace_id), span_id=format_span_id(span.span_id)
            )
            try:
                await self._app(scope, receive, send_with_id)
            finally:
                seconds = time.perf_counter() - started
                self._metrics.request_finished(**_described(scope), status=status, seconds=seconds)
                self._log.info(
                    "request_finished", status=status, duration_ms=round(seconds * 1000, 1), **current_request()
                )
                clear_contextvars()
                _request.reset(token)


def _set_header(message: MutableMapping[str, Any], name: bytes, value: bytes) -> None:
    headers = [pair for pair in message.get("headers", []) if pair[0].lower() != name]
    message["headers"] = [*headers, (name, value)]
