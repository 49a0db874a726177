"""Errors on the wire: RFC 9457 `application/problem+json`, one renderer for handlers and middleware."""

import asyncio
import json
import math
from collections.abc import Callable
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import (
    AppError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    RequestTimeout,
    ScopeMissing,
    ServerKeyRequired,
    ServiceStopping,
    StorageUnavailable,
    UpstreamBudgetExhausted,
    UpstreamInvalid,
    UpstreamTimeout,
    UpstreamUnavailable,
)

RequestIdOf = Callable[[Request], str]

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:apps-in-toss-bff:problem:"
MAX_REPORTED_FAULTS = 20

# What the routes have in common, for their documentation.
ALWAYS: tuple[type[AppError], ...] = (
    InvalidRequest,
    PayloadTooLarge,
    StorageUnavailable,
    ServiceStopping,
    InternalError,
)
UPSTREAM: tuple[type[AppError], ...] = (
    UpstreamUnavailable,
    UpstreamTimeout,
    UpstreamInvalid,
    UpstreamBudgetExhausted,
)
PARTNER: tuple[type[AppError], ...] = (ServerKeyRequired, ScopeMissing)


class InputFault(BaseModel):
    pointer: str = Field(description="JSON pointer to the field")
    detail: str


class Problem(BaseModel):
    """RFC 9457 problem details. Switch on `code`, never on `title` or `detail`."""

    type: str
    title: str
    status: int
    detail: str | None = None
    instance: str = Field(description="urn:uuid of the request, also in the X-Request-Id header")
    code: str
    retryable: bool
    errors: list[InputFault] | None = None
    tossCode: str | None = Field(None, description="Toss's own error code, as data")  # noqa: N815 - wire name
    readsLeft: int | None = Field(None, description="Result reads that remain")  # noqa: N815 - wire name


def render(error: AppError, *, request_id: str, faults: list[dict[str, str]] | None = None) -> Response:
    body: dict[str, Any] = {
        "type": TYPE_PREFIX + error.code,
        "title": error.title,
        "status": error.status,
        "instance": f"urn:uuid:{request_id}",
        "code": error.code,
        "retryable": error.retryable,
        "detail": error.detail,
        "errors": faults,
        "tossCode": error.toss_code,
        "readsLeft": error.reads_left,
    }
    body = {key: value for key, value in body.items() if value is not None}
    headers = {"Cache-Control": "no-store"}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after.total_seconds())))
    if error.status == 401:  # noqa: PLR2004
        headers["WWW-Authenticate"] = "Bearer"
    if error.status == 408:  # noqa: PLR2004
        headers["Connection"] = "close"  # or the rest of the body would be waited for after all
    return Response(json.dumps(body, ensure_ascii=False), error.status, headers, MEDIA_TYPE)


def documented(*errors: type[AppError]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI `responses` for a route: what it may answer besides success."""
    by_status: dict[int | str, list[type[AppError]]] = {}
    for error in errors:
        by_status.setdefault(error.status, []).append(error)
    return {
        status: {
            "model": Problem,
            "description": "; ".join(f"`{error.code}`: {error.title}" for error in group),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status, group in by_status.items()
    }


def install(app: FastAPI, *, request_id_of: RequestIdOf) -> None:
    """Render every error of the application as a problem."""
    log = structlog.stdlib.get_logger("app.problems")

    async def on_app_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, AppError)  # noqa: S101 - how Starlette's typing is narrowed
        log.log(
            error.level,
            "problem",
            code=error.code,
            cause=type(error.__cause__).__name__ if error.__cause__ else None,
            toss_code=error.toss_code,
        )
        return render(error, request_id=request_id_of(request))

    async def on_invalid_request(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        faults = [
            {"pointer": _pointer(fault), "detail": _detail(fault)} for fault in error.errors()[:MAX_REPORTED_FAULTS]
        ]
        return render(InvalidRequest(), request_id=request_id_of(request), faults=faults)

    async def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        by_status = {404: NotFound(), 405: MethodNotAllowed(), 408: RequestTimeout(), 413: PayloadTooLarge()}
        # What remains is a body that could not be parsed.
        ours = by_status.get(error.status_code, InvalidRequest())
        response = render(ours, request_id=request_id_of(request))
        if error.status_code == MethodNotAllowed.status:
            response.headers["Allow"] = ", ".join(_methods_of(request))
        return response

    app.add_exception_handler(AppError, on_app_error)
    app.add_exception_handler(RequestValidationError, on_invalid_request)
    app.add_exception_handler(HTTPException, on_http_exception)


def _methods_of(request: Request) -> list[str]:
    """What the address does know. Starlette names only the methods of the first of its routes."""

    def is_known(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return [method for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE") if is_known(method)]


CUT_OFF = "Task cancelled, timeout graceful shutdown exceeded"
"""With this uvicorn cancels a request at the end of its patience with a stop."""


class LastResort:
    """Turns a bug, and the end of a stop's patience, into a problem inside CORS and the request log. Starlette's
    own handler stands outside both.
    """

    def __init__(self, app: ASGIApp, *, request_id_of: RequestIdOf) -> None:
        self._app = app
        self._request_id_of = request_id_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_started = False

        async def watch(message: Message) -> None:
            nonlocal has_started
            has_started = has_started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception:
            structlog.stdlib.get_logger("app.problems").exception("internal_error")
            if has_started:
                raise
            await self._answer(InternalError(), scope, receive, send)
        except asyncio.CancelledError as cancelled:
            if has_started or cancelled.args != (CUT_OFF,):
                raise
            await self._answer(ServiceStopping(), scope, receive, send)

    async def _answer(self, error: AppError, scope: Scope, receive: Receive, send: Send) -> None:
        response = render(error, request_id=self._request_id_of(Request(scope)))
        await response(scope, receive, send)


def _pointer(fault: Any) -> str:  # noqa: ANN401 - pydantic's error dict
    # The first part names the place (body, path, query), not a field.
    # The tag of a union (USER_PERSONAL) is no place either: our fields are camelCase.
    parts = tuple(part for part in fault["loc"][1:] if not (isinstance(part, str) and part.isupper()))
    if fault["type"] == "json_invalid":
        parts = ()
    elif fault["type"] == "extra_forbidden":
        parts = parts[:-1]  # an unexpected field's name is the caller's own text
    return "".join(f"/{part}" for part in parts)


def _detail(fault: Any) -> str:  # noqa: ANN401 - pydantic's error dict
    if fault["type"] == "extra_forbidden":
        return "has a field that is not known here"
    if fault["type"] == "json_invalid":
        return "is not valid JSON"
    if fault["type"].startswith("union_tag_"):
        return "requestType must be USER_NONE or USER_PERSONAL"  # pydantic's own text shows the input
    return str(fault["msg"]).removeprefix("Value error, ")
