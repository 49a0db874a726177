"""Whoever takes reports and traces, on a real socket: keeps what came, unpacked."""

import gzip
import json
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from sentry_sdk.envelope import Envelope

PATIENCE = 30.0


@dataclass
class Collector:
    port: int
    posts: queue.Queue[bytes] = field(default_factory=queue.Queue)
    headers: list[str] = field(default_factory=list)
    may_answer: threading.Event = field(default_factory=threading.Event)

    @property
    def dsn(self) -> str:
        return f"http://public-key@127.0.0.1:{self.port}/42"

    @property
    def otlp(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/traces"

    def next(self) -> bytes:
        """Waits for it."""
        return self.posts.get(timeout=PATIENCE)

    def all(self, least: int = 0) -> list[bytes]:
        """What has come and was not taken; waits until it is so many."""
        first = [self.next() for _ in range(least)]
        return first + [self.posts.get_nowait() for _ in range(self.posts.qsize())]

    def events(self, least: int) -> list[dict[str, Any]]:
        return [event for post in self.all(least) for event in events_of(post)]

    def spans(self) -> list[Span]:
        """Of one batch, and of what else has come with it."""
        return [span for post in self.all(1) for span in spans_of(post)]


def events_of(post: bytes) -> list[dict[str, Any]]:
    """The events of an envelope, which holds nothing else."""
    items = Envelope.deserialize(post).items
    assert [item.type for item in items] == ["event"] * len(items)
    return [json.loads(item.get_bytes()) for item in items]


def spans_of(post: bytes) -> list[Span]:
    request = ExportTraceServiceRequest.FromString(post)
    return [span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans]


@contextmanager
def collecting() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.headers.append(f"{self.path} {self.headers}")
            collector.posts.put(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
            collector.may_answer.wait(PATIENCE)
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Whoever did not wait for its answer."""

    with Server(("127.0.0.1", 0), Handler) as server:
        collector = Collector(server.server_port)
        collector.may_answer.set()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield collector
        finally:
            collector.may_answer.set()
            server.shutdown()
            thread.join()
