"""Error reports to Sentry: what has gone wrong here, and nothing of whom it befell (decision 0024).

Whatever is logged at ERROR is reported, once. What leaves is listed in `ALLOWED`, name by name and form by form;
everything else stays, whoever put it there.
"""

import asyncio
import logging
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any, Final, cast

import sentry_sdk
from sentry_sdk.types import Event, Hint
from sentry_sdk.utils import event_from_exception
from typing_extensions import override

from app import __version__
from app.errors import AppError
from app.observability import current_request
from app.scrubbing import HEX_ID, METHODS, NAME, RELEASE, ROUTE, WORD, Allowed, form, only
from app.settings import Settings

CLOSE_WITHIN = timedelta(seconds=2)
"""For what is still to be sent when the process stops."""
MAX_ALIKE = 20
"""Reports of one kind that a process makes in a minute. A stranger may cause some, and each takes a millisecond."""
LAST_TO_SPEAK = frozenset({"app.background", "app.problems", "asyncio", "uvicorn.error"})
"""Loggers of those who catch whatever comes: they are silent here when somebody has reported the same exception."""
REPORTED = "_bff_reported"
"""Attribute of an exception that has been reported."""
NOT_REPORTED = ("opentelemetry", "sentry_sdk", "urllib3")
"""Their troubles are the way to the reports and traces themselves."""


def _errors(root: type[AppError] = AppError) -> Iterator[type[AppError]]:
    yield root
    for error in root.__subclasses__():
        yield from _errors(error)


TITLES: Final = {error.__name__: error.title for error in _errors()}
INSTANT = form(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")
ALLOWED: Final[Allowed] = {
    "event_id": HEX_ID,
    "timestamp": INSTANT,
    "platform": {"python"},
    "level": {"error", "fatal"},
    "logger": form(r"[A-Za-z][\w.-]{0,99}"),
    "message": WORD,
    "transaction": ROUTE,
    "release": RELEASE,
    "environment": RELEASE,
    "sdk": {"name": NAME, "version": RELEASE},
    "tags": {
        "event": WORD,
        "code": {error.code for error in _errors()},
        "method": METHODS,
        "request_id": form(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    },
    "contexts": {"trace": {"trace_id": HEX_ID, "span_id": form(r"[0-9a-f]{16}")}},
    "exception": {
        "values": [
            {
                "type": NAME,
                "module": NAME,
                "value": set(TITLES.values()),
                "mechanism": {
                    "type": {"generic", "chained"},
                    "handled": bool,
                    "is_exception_group": bool,
                    "exception_id": int,
                    "parent_id": int,
                },
                "stacktrace": {"frames": [{"module": NAME, "function": NAME, "lineno": int, "in_app": bool}]},
            }
        ]
    },
}
"""All that ever leaves (G11). No text but our own titles, no value of a variable, no line of source, no address."""


class ErrorReports(logging.Handler):
    """Reports every record from ERROR up. Sending is a thread's affair: nobody waits for it, and a lost or slow
    Sentry costs a full queue, whose surplus is dropped.

    The client stands by itself, without the SDK's integrations and without its global scope: nobody collects
    breadcrumbs, requests, users or spans, and nothing else in the process can send through it.
    """

    def __init__(
        self,
        *,
        dsn: str,
        environment: str,
        release: str,
        sample_rate: float = 1.0,
        allowed: Allowed = ALLOWED,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(logging.ERROR)
        self._allowed = allowed
        self._monotonic = monotonic
        self._minute = 0.0
        self._alike: Counter[object] = Counter()
        self.client: Final = sentry_sdk.Client(
            dsn=dsn,
            environment=environment,
            release=release,
            sample_rate=sample_rate,
            before_send=self._before_send,
            before_send_transaction=lambda _event, _hint: None,
            default_integrations=False,
            send_client_reports=False,
            include_local_variables=False,
            include_source_context=False,
            # Else these come from the environment, past our settings.
            debug=False,
            spotlight=False,
            http_proxy="",
            https_proxy="",
        )

    def _before_send(self, event: Event, hint: Hint) -> Event | None:
        hint.clear()  # the SDK takes attachments from there, after this
        return cast("Event | None", only(self._allowed, event))

    @override
    def emit(self, record: logging.LogRecord) -> None:
        with suppress(Exception):  # a report that fails must not become a second error
            if not record.name.startswith(NOT_REPORTED):
                self._report(record)

    def _report(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else sys.exc_info()[1]
        if record.name in LAST_TO_SPEAK and error is not None and _is_reported(error):
            return
        said = record.msg if isinstance(record.msg, Mapping) else {}  # a library's text may hold anything
        if self._is_one_too_many((record.name, said.get("event"), said.get("code"), type(error))):
            return
        request = current_request()
        event: dict[str, Any] = {
            "level": "error",
            "logger": record.name,
            "message": said.get("event", "logged_by_a_library"),
            "transaction": request.get("route"),
            "tags": {
                "event": said.get("event"),
                "code": said.get("code"),
                "method": request.get("method"),
                "request_id": request.get("request_id"),
            },
            "contexts": {"trace": {"trace_id": request.get("trace_id"), "span_id": request.get("span_id")}},
        }
        if error is not None:
            error.__dict__[REPORTED] = True
            with suppress(Exception):  # one whose text cannot be had, or too long a chain: what was logged is left
                event |= event_from_exception(error, self.client.options)[0]
                for shown in event["exception"]["values"]:
                    shown["value"] = TITLES.get(shown["type"])
        self.client.capture_event(cast("Event", event))

    def _is_one_too_many(self, kind: object) -> bool:
        minute = self._monotonic() // 60
        if minute != self._minute:
            self._minute = minute
            self._alike.clear()
        self._alike[kind] += 1
        return self._alike[kind] > MAX_ALIKE


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and those that it was made of; not those in whose handling it merely came up."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (error.__context__ if error.__suppress_context__ else None)


def _is_reported(error: BaseException) -> bool:
    return any(REPORTED in each.__dict__ for each in _chain(error))


@asynccontextmanager
async def reporting(settings: Settings, *, close_within: timedelta = CLOSE_WITHIN) -> AsyncIterator[None]:
    """Report errors for as long as the block lasts, if there is a DSN."""
    sentry = settings.sentry
    if sentry.dsn is None:
        yield
        return
    reports = ErrorReports(
        dsn=sentry.dsn.get_secret_value(),
        environment=sentry.environment or settings.environment,
        release=sentry.release or f"apps-in-toss-bff@{__version__}",
        sample_rate=sentry.sample_rate,
    )
    root = logging.getLogger()
    root.addHandler(reports)
    try:
        yield
    finally:
        root.removeHandler(reports)
        await asyncio.to_thread(reports.client.close, close_within.total_seconds())
