"""What this process counts, as Prometheus reads it. No label holds an id, an address or anything of a person.

Each worker process counts for itself and shows its own numbers: with `BFF_SERVER__WORKERS` above 1, a scrape meets
one of them by chance. Until that is mended, run one worker in each container, and more containers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from typing_extensions import override

MEDIA_TYPE = CONTENT_TYPE_LATEST


@dataclass(frozen=True)
class ClientCertificateReading:
    days_left: float | None
    """Of the pair in use; None while there is none."""
    has_alarm: bool


ReadClientCertificate = Callable[[], ClientCertificateReading | None]


class Metrics:
    """Collaborators count by calling; the names of metrics and labels stand here alone."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._address_denials = self._counter("address_denials", "Requests refused for their address", "prefix")
        self._address_exceptions = self._counter(
            "address_exceptions", "Callbacks admitted from any address by an exception", "callback"
        )
        self._rate_limited = self._counter("rate_limited", "Requests over a caller's limit", "limit")
        self._budget_refusals = self._counter(
            "budget_refusals", "Calls to Toss for which the budget had no room", "lane", "limit"
        )
        self._callbacks = self._counter("callbacks", "Callbacks received", "callback", "outcome")
        self._events = self._counter("events", "Events for the partner's server", "type", "outcome")
        self._client_certificate = _ClientCertificate()
        self._registry.register(self._client_certificate)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace="bff", registry=self._registry)

    def address_denied(self, *, prefix: str) -> None:
        self._address_denials.labels(prefix=prefix).inc()

    def address_excepted(self, *, callback: str) -> None:
        self._address_exceptions.labels(callback=callback).inc()

    def rate_limited(self, *, limit: str) -> None:
        self._rate_limited.labels(limit=limit).inc()

    def budget_refused(self, *, lane: str, limit: str) -> None:
        self._budget_refusals.labels(lane=lane, limit=limit).inc()

    def callback_received(self, *, callback: str, outcome: str) -> None:
        self._callbacks.labels(callback=callback, outcome=outcome).inc()

    def event_moved(self, *, type_: str, outcome: str) -> None:
        self._events.labels(type=type_, outcome=outcome).inc()

    def watch_client_certificate(self, read: ReadClientCertificate) -> None:
        """`read` is asked at every scrape; None means that no client certificate is configured."""
        self._client_certificate.read = read

    def exposition(self) -> bytes:
        return generate_latest(self._registry)


class _ClientCertificate(Collector):
    def __init__(self) -> None:
        self.read: ReadClientCertificate = lambda: None

    @override
    def collect(self) -> Iterator[Metric]:
        reading = self.read()
        if reading is None:
            return
        if reading.days_left is not None:
            yield GaugeMetricFamily(
                "bff_client_certificate_days_left",
                "Days until the client certificate in use ends",
                value=reading.days_left,
            )
        yield GaugeMetricFamily(
            "bff_client_certificate_alarm",
            "1 while something is wrong with the client certificates",
            value=float(reading.has_alarm),
        )
