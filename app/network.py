"""What comes in: from which pages, and how large. Who may call in by address will be decided here too."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import PayloadTooLarge
from app.observability import request_id_of
from app.problems import render


def mini_app_origins(app_name: str) -> tuple[str, ...]:
    """Live and console test, of both generations of the SDK (apps-in-toss reference 5.1, 18: allow all four)."""
    places = ("apps", "private-apps", "web", "private-web")
    return tuple(f"https://{app_name}.{place}.tossmini.com" for place in places)


class BodyLimit:
    """Refuses a body over the limit: by its announced length at once, else at the byte that is too many.

    FastAPI's own limit answers in plain text and outside our middleware.
    """

    def __init__(self, app: ASGIApp, *, limit_bytes: int) -> None:
        self._app = app
        self._limit = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"")
        if announced.isdigit() and int(announced) > self._limit:
            response = render(PayloadTooLarge(), request_id=request_id_of(Request(scope)))
            await response(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                # The one exception that FastAPI lets pass from the reading of a body to our handlers.
                raise HTTPException(PayloadTooLarge.status)
            return message

        await self._app(scope, counted, send)
