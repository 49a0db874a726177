"""The team's own backend, which is no part of Toss: it takes what the BFF tells it and shows it on the page."""

import threading
from collections import deque
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.clock import korean_time

EVENTS_PATH = "/partner/events"
_KEPT = 100


@dataclass(frozen=True)
class ReceivedEvent:
    id: str
    at: str
    event: dict[str, Any]
    times: int = 1
    """Delivery is at least once; an id is what tells a repetition."""


class OwnBackend:
    """With the secret that the BFF signs with. None: nothing can be verified, so nothing is taken."""

    def __init__(self, secret: str | None) -> None:
        self._webhook = Webhook(secret) if secret is not None else None
        self._lock = threading.Lock()
        self._events: deque[ReceivedEvent] = deque(maxlen=_KEPT)

    def routes(self) -> list[Route]:
        return [
            Route(EVENTS_PATH, self._take, methods=["POST"]),
            Route(EVENTS_PATH, self._show),
        ]

    def events(self) -> list[ReceivedEvent]:
        """The last hundred, oldest first."""
        with self._lock:
            return list(self._events)

    def forget(self) -> None:
        with self._lock:
            self._events.clear()

    async def _take(self, request: Request) -> Response:
        body = await request.body()
        event: Any = None
        try:
            if self._webhook is not None:
                event = self._webhook.verify(body, dict(request.headers))
        except (WebhookVerificationError, ValueError):
            event = None
        if not isinstance(event, dict):
            return Response(status_code=401)
        self._note(request.headers["webhook-id"], event)
        return Response(status_code=204)

    def _note(self, event_id: str, event: dict[str, Any]) -> None:
        with self._lock:
            for place, known in enumerate(self._events):
                if known.id == event_id:
                    self._events[place] = replace(known, times=known.times + 1)
                    return
            self._events.append(ReceivedEvent(event_id, korean_time(datetime.now(UTC)), event))

    async def _show(self, _request: Request) -> Response:
        return JSONResponse([asdict(event) for event in self.events()])
