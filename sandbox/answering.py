"""One call from arrival to answer, with whatever faults were ordered for it. All faces of Toss share it."""

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response

from sandbox.connection import ClientGone, reset, sleep, while_connected
from sandbox.faults import CallName, FaultKind, FaultOrder
from sandbox.state import CallRecord, SandboxState

SUCCESS = "SUCCESS"


@dataclass(kw_only=True)
class Answer:
    status: int
    body: dict[str, Any]
    outcome: str = SUCCESS
    note: str = ""
    subject: str | None = None
    """What the call made: a transaction, a payment."""
    user_key: int | None = None
    """Whom the call turned out to be about."""

    @property
    def is_success(self) -> bool:
        return self.outcome == SUCCESS


AnswerT = TypeVar("AnswerT", bound=Answer)


class Face(ABC, Generic[AnswerT]):
    def __init__(self, state: SandboxState) -> None:
        self._state = state

    async def _taken(
        self,
        request: Request,
        call: CallName,
        effect: Callable[[], AnswerT],
        *,
        subject: str | None = None,
        app_name: str | None = None,
    ) -> Response:
        """Log the call and answer it; a connection that is gone gets nothing."""
        try:
            with self._state.record(call, subject, app_name) as record:
                return await self._answer(request, record, effect)
        except ClientGone:
            return unsent()

    async def _answer(self, request: Request, record: CallRecord, effect: Callable[[], AnswerT]) -> Response:
        before = self._state.fault_before(record)
        response = await self._misbehave_before(request, record, before) if before is not None else None
        if response is not None:
            return response
        answer = effect()
        self._state.settle(
            record, answer=answer.outcome, note=answer.note, subject=answer.subject, user_key=answer.user_key
        )
        after = self._state.fault_after(record, success=answer.is_success)
        if after is None:
            return json_response(answer.status, answer.body)
        return await self._misbehave_after(request, record, after, answer)

    async def _misbehave_before(self, request: Request, record: CallRecord, order: FaultOrder) -> Response | None:
        """None: the call goes on and takes effect. Raises `ClientGone`."""
        await sleep(request, order.delay)
        response: Response | None = None
        match order.kind:
            case FaultKind.SLOW:
                pass
            case FaultKind.HOLD_BEFORE:
                await self._keep_waiting(request, record)
            case FaultKind.RESET_BEFORE:
                await reset(request)
            case FaultKind.TOKEN_REJECTED:
                answer = self._token_rejected(record.call)
                response = json_response(answer.status, answer.body)
            case _:
                response = self._instead(order)
        return response

    async def _misbehave_after(
        self, request: Request, record: CallRecord, order: FaultOrder, answer: AnswerT
    ) -> Response:
        """Raises `ClientGone`."""
        await sleep(request, order.delay)
        match order.kind:
            case FaultKind.RESET_AFTER:
                await reset(request)
            case FaultKind.HOLD:
                await self._keep_waiting(request, record)
            case FaultKind.TRUNCATED_JSON:
                content = _content(answer.body)
                half = content[: len(content) // 2]
                return Response(half, status_code=answer.status, media_type="application/json")
            case FaultKind.FAIL | FaultKind.FAIL_200 | FaultKind.OAUTH_ERROR | FaultKind.HTML_502:
                return self._instead(order)
            case _:
                self._spoil(answer, order)
        return json_response(answer.status, answer.body)

    async def _keep_waiting(self, request: Request, record: CallRecord) -> None:
        """Until released. Raises `ClientGone` when the connection closes first."""
        held = self._state.hold(record.call, record.subject)
        try:
            await while_connected(request, asyncio.wrap_future(held.released))
        finally:
            self._state.let_go(held)

    def _instead(self, order: FaultOrder) -> Response:
        match order.kind:
            case FaultKind.FAIL | FaultKind.FAIL_200:
                status, body = self._ordered_failure(order)
                return json_response(200 if order.kind is FaultKind.FAIL_200 else status, body)
            case FaultKind.OAUTH_ERROR:
                return json_response(*self._ordered_oauth_error(order))
            case _:
                page = "<html><head><title>502 Bad Gateway</title></head><body>502 Bad Gateway</body></html>"
                return HTMLResponse(page, status_code=502)

    @abstractmethod
    def _token_rejected(self, call: CallName) -> Answer: ...

    @abstractmethod
    def _ordered_failure(self, order: FaultOrder) -> tuple[int, dict[str, Any]]: ...

    @abstractmethod
    def _ordered_oauth_error(self, order: FaultOrder) -> tuple[int, dict[str, Any]]: ...

    @abstractmethod
    def _spoil(self, answer: AnswerT, order: FaultOrder) -> None:
        """For the kinds that change a success."""


async def body_of(request: Request) -> bytes | None:
    """None when the client went away while sending."""
    try:
        return await request.body()
    except ClientDisconnect:
        return None


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def json_response(status: int, body: dict[str, Any]) -> Response:
    return Response(_content(body), status_code=status, media_type="application/json")


def unsent() -> Response:
    """For a connection that is gone already; the server drops it."""
    return Response(status_code=500)


def _content(body: dict[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode()
