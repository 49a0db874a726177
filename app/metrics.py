"""What the service counts and measures, as Prometheus reads it. No label holds an id, an address of a client or
anything of a person.

With several workers (`PROMETHEUS_MULTIPROC_DIR`, which `serve` sets for them) each writes what it counts into a
shared folder, and whichever of them is asked shows the sums.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from typing_extensions import override

MEDIA_TYPE = CONTENT_TYPE_LATEST
NAMESPACE: Final = "bff"
FOLDER_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Read by prometheus_client, when it is imported: too early for a setting."""
BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0)
"""Seconds. The longest deadlines of calls to Toss are 15 and 20 s."""
UNMATCHED: Final = "unmatched"


@dataclass(frozen=True)
class ClientCertificateReading:
    days_left: float | None
    """Of the pair in use; None while there is none."""
    has_alarm: bool


@dataclass(frozen=True)
class Waiting:
    """What waits in one queue."""

    count: int
    oldest_seconds: float
    """Age of the oldest; 0 when there is none."""


@dataclass(frozen=True)
class BudgetReading:
    """Of the part of the request budget that all processes share, in calls of the last minute."""

    used: int
    left: int


@dataclass(frozen=True)
class Readings:
    """What is measured when somebody asks. None: it cannot be had at the moment, or there is no such thing."""

    is_database_up: bool | None = None
    notices: Waiting | None = None
    events: Waiting | None = None
    payments: Mapping[str, Waiting] = field(default_factory=dict)
    """By state."""
    is_shared_state_up: bool | None = None
    budget: BudgetReading | None = None
    token_age: float | None = None
    """Seconds, of the service token that this process used last."""


ReadClientCertificate = Callable[[], ClientCertificateReading | None]


class Metrics:
    """Collaborators count by calling; the names of metrics and labels stand here alone."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._histogram(
            "request_seconds", "Requests, by the route's pattern", "method", "route", "status"
        )
        self._toss_calls = self._histogram("toss_call_seconds", "Calls to Toss", "call", "outcome")
        self._server_certificates = Gauge(
            "server_certificate_end_timestamp_seconds",
            "When the certificate that this host of Toss showed last ends",
            ["host"],
            namespace=NAMESPACE,
            registry=self._registry,
            multiprocess_mode="mostrecent",
        )
        self._address_denials = self._counter("address_denials", "Requests refused for their address", "prefix")
        self._address_exceptions = self._counter(
            "address_exceptions", "Callbacks admitted from any address by an exception", "callback"
        )
        self._rate_limited = self._counter("rate_limited", "Requests over a caller's limit", "limit")
        self._budget_refusals = self._counter(
            "budget_refusals", "Calls to Toss for which the budget had no room", "lane", "limit"
        )
        self._verifications = self._counter(
            "verifications", "Moves of verifications, by the state moved to", "state"
        )
        self._results = self._counter("results", "Results handed out, by where they came from", "source")
        self._result_answers_lost = self._counter(
            "result_answers_lost",
            "Calls for a result whose answer was lost; each may have used one of the two reads",
        )
        self._callbacks = self._counter("callbacks", "Callbacks received", "callback", "outcome")
        self._payments = self._counter("payments", "Moves of payments, by the state moved to", "state")
        self._events = self._counter("events", "Events for the partner's server", "type", "outcome")
        self._client_certificate = _ClientCertificate()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace=NAMESPACE, registry=self._registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(name, text, labels, namespace=NAMESPACE, registry=self._registry, buckets=BUCKETS)

    def request_finished(self, *, method: str, route: str | None, status: int, seconds: float) -> None:
        """`route`: its pattern; None when no route was reached. `method`: one of a known set."""
        labels = {"method": method, "route": route or UNMATCHED, "status": f"{status // 100}xx"}
        self._requests.labels(**labels).observe(seconds)

    def toss_called(self, *, call: str, outcome: str, seconds: float) -> None:
        self._toss_calls.labels(call=call, outcome=outcome).observe(seconds)

    def server_certificate_seen(self, *, host: str, not_after: datetime) -> None:
        self._server_certificates.labels(host=host).set(not_after.timestamp())

    def address_denied(self, *, prefix: str) -> None:
        self._address_denials.labels(prefix=prefix).inc()

    def address_excepted(self, *, callback: str) -> None:
        self._address_exceptions.labels(callback=callback).inc()

    def rate_limited(self, *, limit: str) -> None:
        self._rate_limited.labels(limit=limit).inc()

    def budget_refused(self, *, lane: str, limit: str) -> None:
        self._budget_refusals.labels(lane=lane, limit=limit).inc()

    def verification_moved(self, *, state: str) -> None:
        self._verifications.labels(state=state).inc()

    def result_handed_out(self, *, source: str) -> None:
        self._results.labels(source=source).inc()

    def result_answer_lost(self) -> None:
        self._result_answers_lost.inc()

    def callback_received(self, *, callback: str, outcome: str) -> None:
        self._callbacks.labels(callback=callback, outcome=outcome).inc()

    def payment_moved(self, *, state: str) -> None:
        self._payments.labels(state=state).inc()

    def event_moved(self, *, type_: str, outcome: str) -> None:
        self._events.labels(type=type_, outcome=outcome).inc()

    def event_expected(self, *, type_: str, outcome: str) -> None:
        """Shown as 0 until there is one: `increase` does not see the first of a series that was not there."""
        self._events.labels(type=type_, outcome=outcome)

    def watch_client_certificate(self, read: ReadClientCertificate) -> None:
        """`read` is asked at every scrape; None means that no client certificate is configured."""
        self._client_certificate.read = read

    def exposition(self, readings: Readings | None = None) -> bytes:
        shown = CollectorRegistry()
        folder = os.environ.get(FOLDER_VARIABLE)
        shown.register(_AllWorkers(Path(folder)) if folder else self._registry)
        shown.register(self._client_certificate)
        shown.register(_Measured(readings or Readings()))
        return generate_latest(shown)


class _AllWorkers(Collector):
    """What the workers have written into their folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @override
    def collect(self) -> Iterator[Metric]:
        # A worker that was killed while it made its file has left it empty, which nobody could read.
        files = [str(file) for file in self._folder.glob("*.db") if file.stat().st_size > 0]
        yield from MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]


class _ClientCertificate(Collector):
    def __init__(self) -> None:
        self.read: ReadClientCertificate = lambda: None

    @override
    def collect(self) -> Iterator[Metric]:
        reading = self.read()
        if reading is None:
            return
        yield from _gauge(
            "client_certificate_days_left", "Days until the client certificate in use ends", reading.days_left
        )
        yield from _gauge(
            "client_certificate_alarm", "1 while something is wrong with the client certificates", reading.has_alarm
        )


class _Measured(Collector):
    """The same numbers from every replica, but for what is said to be of this process."""

    def __init__(self, readings: Readings) -> None:
        self._readings = readings

    @override
    def collect(self) -> Iterator[Metric]:
        read = self._readings
        yield from _gauge("database_up", "1 if the database answers", read.is_database_up)
        yield from _waiting("notices_open", "Callbacks that are recorded and not handled yet", read.notices)
        yield from _waiting("events_pending", "Events that the partner's server has not taken yet", read.events)
        yield from _waiting_by_state(
            "payments_unsettled", "Payments of which nobody knows whether money has moved, or held", read.payments
        )
        yield from _gauge("shared_state_up", "1 if Redis answers, or none is configured", read.is_shared_state_up)
        if read.budget is not None:
            yield from _gauge(
                "budget_used", "Calls of the last minute charged to the shared budget", read.budget.used
            )
            yield from _gauge("budget_left", "Calls that the shared budget still admits", read.budget.left)
        yield from _gauge(
            "token_age_seconds", "Age of the service token that this process used last", read.token_age
        )


def _gauge(name: str, text: str, value: float | None) -> Iterator[Metric]:
    if value is not None:
        yield GaugeMetricFamily(f"{NAMESPACE}_{name}", text, value=float(value))


def _waiting(name: str, text: str, waiting: Waiting | None) -> Iterator[Metric]:
    if waiting is not None:
        yield from _gauge(name, text, waiting.count)
        yield from _gauge(f"{name}_oldest_seconds", f"Age of the oldest: {text}", waiting.oldest_seconds)


def _waiting_by_state(name: str, text: str, by_state: Mapping[str, Waiting]) -> Iterator[Metric]:
    counts = GaugeMetricFamily(f"{NAMESPACE}_{name}", text, labels=["state"])
    ages = GaugeMetricFamily(f"{NAMESPACE}_{name}_oldest_seconds", f"Age of the oldest: {text}", labels=["state"])
    for state, waiting in by_state.items():
        counts.add_metric([state], waiting.count)
        ages.add_metric([state], waiting.oldest_seconds)
    yield from (counts, ages) if by_state else ()
