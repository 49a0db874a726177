"""What both hosts of the partner API have in common (reference of Apps in Toss, 2 to 4)."""

import json
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from typing_extensions import override

from sandbox.answering import Answer, Face, body_of, json_response, media_type, unsent
from sandbox.connection import ClientGone, PeerCertificate, peer_certificate, reset
from sandbox.faults import CallName, FaultKind, FaultOrder, ResultType
from sandbox.miniapps import InvalidGrant, MiniApp
from sandbox.shared import CallFailed
from sandbox.switches import BothHeaders, MissingCertificate, PayloadKey

PREFIX = "/api-partner/v1/apps-in-toss"
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

RATE_LIMITED = "4095"
UNAUTHENTICATED = "4010"
INVALID_PARAMETER = "INVALID_PARAMETER"
INTERNAL_ERROR = "INTERNAL_ERROR"
_INVALID_GRANT = "invalid_grant"

# Only the meanings are known (reference 3.2, 6.4, 8.8); the sentences are made up (inferred).
_REASONS = {
    INVALID_PARAMETER: "요청 값이 올바르지 않습니다.",
    UNAUTHENTICATED: "인증 정보가 올바르지 않습니다.",
    "4050": "등록되지 않은 미니앱입니다.",
    RATE_LIMITED: "요청 한도를 초과했습니다.",
    "USER_KEY_NOT_FOUND": "연결된 사용자를 찾을 수 없습니다.",
    "USER_NOT_FOUND": "사용자를 찾을 수 없습니다.",
    "BAD_REQUEST_RETRIEVE_CERT_RESULT_EXCEEDED_LIMIT": "결과 조회 가능 횟수를 초과했습니다.",
    "PAYMENT_DUPLICATION_ORDER_NO": "이미 사용된 주문번호입니다.",
    "PAYMENT_EXISTING_PAYMENT": "이미 존재하는 결제입니다.",
    "EXECUTE_PAY_NOT_APPROVED": "구매자가 인증하지 않은 결제입니다.",
    "PAY_UNAUTHORIZED": "결제 요청자와 결제자가 다릅니다.",
    "TRANSACTION_NOT_FOUND": "결제를 찾을 수 없습니다.",
    "TRANSACTION_NOT_COMPLETE": "완료되지 않은 결제입니다.",
    "TRANSACTION_PENDING_ERROR": "이전 요청을 처리하고 있습니다.",
    "REFUND_ALREADY_REFUNDED": "이미 환불된 결제입니다.",
}
_OTHER_REASON = "일시적인 오류가 발생했습니다."

# Where a fault that names no field strikes: the first of these that the payload has.
_TELLING = ("accessToken", "userKey", "amount", "refundedAmount", "payToken", "wrappedToken", "orderId")


@dataclass(kw_only=True)
class PartnerAnswer(Answer):
    payload: dict[str, Any] | None = None
    """The part that holds the fields, where there are some."""
    app: MiniApp | None = None
    clear: dict[str, str] = field(default_factory=dict, repr=False)
    """The encrypted fields of the payload before they were sealed."""


class InvalidFields(Exception):
    """Reference 3.1, rule 3. `details` goes out, the message into the log."""

    def __init__(self, name: str, problem: str, rejected: object = None) -> None:
        super().__init__(f"{name}: {problem}")
        self.details = [{"field": name, "message": problem, "rejectedValue": rejected}]


Effect = Callable[[str, Request, bytes], PartnerAnswer]
Call = tuple[CallName, str, str, Effect]
"""Its name, method and path below `PREFIX`, and what it does."""


class PartnerFace(Face[PartnerAnswer]):
    @abstractmethod
    def _calls(self) -> list[Call]:
        """What this host serves."""

    def app(self) -> Starlette:
        routes = [
            Route(f"{PREFIX}/{path}", partial(self._serve, call, effect), methods=[method])
            for call, method, path, effect in self._calls()
        ]
        # What lies elsewhere answers 404 to those who may come in, and costs a request too (inferred).
        routes.append(Route("/{path:path}", partial(self._serve, None, None), methods=_METHODS))
        return Starlette(routes=routes)

    async def _serve(self, call: CallName | None, effect: Effect | None, request: Request) -> Response:
        try:
            certificate = await self._admitted(request)
        except ClientGone:
            return unsent()
        if certificate is None:
            return self._without_certificate()
        app_name = certificate.common_name
        body = await body_of(request)
        if body is None:
            return unsent()
        wait = self._state.budget.spend(app_name)
        if call is None or effect is None:
            return Response(status_code=404) if wait is None else self._sent(self._rate_limited(wait))
        subject = self._subject(app_name, call, fields_in(body))
        if wait is not None:
            limited = self._rate_limited(wait)
            with self._state.record(call, subject, app_name) as record:
                self._state.settle(record, answer=limited.outcome, note=limited.note)
            return self._sent(limited)
        answering = partial(self._guarded, call, partial(effect, app_name, request, body))
        return await self._taken(request, call, answering, subject=subject, app_name=app_name)

    def _subject(self, app_name: str, call: CallName, fields: dict[str, Any]) -> str | None:  # noqa: ARG002
        """What a call of money is about; calls of other kinds are about nothing."""
        return None

    async def _admitted(self, request: Request) -> PeerCertificate | None:
        """None: there is no certificate. Raises `ClientGone`.

        One that ended since the handshake is cut off as it would be by a new one: a revoked one, or one that
        the sandbox's moved clock lets expire.
        """
        certificate = peer_certificate(request)
        if certificate is not None and (
            certificate.serial in self._state.mini_apps.revoked or self._state.clock.now() >= certificate.not_after
        ):
            await reset(request)
        return certificate

    def _without_certificate(self) -> Response:
        if self._state.switches.missing_certificate is MissingCertificate.HTML_400:
            title = "400 No required SSL certificate was sent"
            page = f"<html><head><title>{title}</title></head><body>{title}</body></html>"
            return HTMLResponse(page, status_code=400)
        return json_response(401, self._failure(UNAUTHENTICATED))  # the body is inferred

    def _guarded(self, call: CallName, effect: Callable[[], PartnerAnswer]) -> PartnerAnswer:
        try:
            return effect()
        except InvalidGrant as refused:
            return self._invalid_grant(call, str(refused))
        except CallFailed as failed:
            return self._refused(call, failed)
        except InvalidFields as invalid:
            data = {"errorDetails": invalid.details}
            return self._failed(400, INVALID_PARAMETER, str(invalid), data)

    def _refused(self, call: CallName, failed: CallFailed) -> PartnerAnswer:  # noqa: ARG002
        return self._failed(200, failed.code, str(failed))  # 3.1: business errors arrive with 200

    def _user(self, app_name: str, request: Request) -> str:
        """The Toss user whom exactly one of two headers names (reference 4).

        Raises `CallFailed`: 4010, as the anonymous key's verification answers; for a userKey it is inferred.
        """
        user_key, anon_key = (request.headers.get(name) for name in ("x-toss-user-key", "x-anon-key"))
        if user_key is not None and anon_key is not None:
            if self._state.switches.both_user_headers is BothHeaders.REJECT:
                raise CallFailed(UNAUTHENTICATED, "both user headers were sent")
            anon_key = None
        user = None
        if user_key is not None:
            user = self._state.mini_apps.user_of_key(app_name, user_key)
        elif anon_key is not None:
            user = self._state.mini_apps.user_of_anon_key(app_name, anon_key)
        if user is None:
            raise CallFailed(UNAUTHENTICATED, "no user header, or nobody's")
        return user

    # What answers look like

    @property
    def _payload_key(self) -> str:
        return PayloadKey(self._state.switches.payload_key).value

    def _success(self, payload: dict[str, Any], *, user_key: int | None = None) -> PartnerAnswer:
        body: dict[str, Any] = {"resultType": "SUCCESS", self._payload_key: payload}
        if self._state.switches.explicit_error_null:
            body["error"] = None
        return PartnerAnswer(status=200, body=body, payload=payload, user_key=user_key)

    def _failed(self, status: int, code: str, note: str, data: dict[str, Any] | None = None) -> PartnerAnswer:
        return PartnerAnswer(status=status, body=self._failure(code, data), outcome=code, note=note)

    def _failure(
        self, code: str, data: dict[str, Any] | None = None, result_type: ResultType = ResultType.FAIL
    ) -> dict[str, Any]:
        switches = self._state.switches
        error: dict[str, Any] = {"errorCode": code, "reason": self._reason(code)}
        if not switches.short_errors:
            error = {"errorType": 0, **error, "data": data or {}, "title": None}
        body: dict[str, Any] = {"resultType": result_type.value, "error": error}
        if not switches.failure_without_success:
            body["success"] = None
        return body

    def _reason(self, code: str) -> str:
        return _REASONS.get(code, _OTHER_REASON)

    def _invalid_grant(self, call: CallName, note: str) -> PartnerAnswer:
        switches = self._state.switches
        if call is CallName.LOGIN_REFRESH and switches.refresh_refusal_code is not None:
            return self._failed(200, switches.refresh_refusal_code, note)
        status = self._invalid_grant_status(call)
        return PartnerAnswer(status=status, body={"error": _INVALID_GRANT}, outcome=_INVALID_GRANT, note=note)

    def _invalid_grant_status(self, call: CallName) -> int:
        usual = 400 if call in (CallName.LOGIN_EXCHANGE, CallName.LOGIN_REFRESH) else 401
        return self._state.switches.invalid_grant_status or usual

    def _rate_limited(self, seconds: int) -> PartnerAnswer:
        status, data = self._state.switches.rate_limit_status, {"retryAfterSeconds": self._number(seconds)}
        return self._failed(status, RATE_LIMITED, "over the budget", data)

    def _sent(self, answer: PartnerAnswer) -> Response:
        return json_response(answer.status, answer.body)

    def _number(self, value: int) -> int | str:
        return str(value) if self._state.switches.numbers_as_text else value

    def _user_key(self, value: int) -> int | str:
        return str(value) if self._state.switches.user_key_as_text else value

    # Faults

    @override
    def _token_rejected(self, call: CallName) -> PartnerAnswer:
        return self._failed(200, UNAUTHENTICATED, "ordered")

    @override
    def _ordered_failure(self, order: FaultOrder) -> tuple[int, dict[str, Any]]:
        """Of 200 unless told: so arrive business errors (reference 3.1)."""
        data: dict[str, Any] = {}
        if order.retry_after_seconds is not None:
            data["retryAfterSeconds"] = self._number(order.retry_after_seconds)
        return order.http_status or 200, self._failure(order.code or INTERNAL_ERROR, data, order.result_type)

    @override
    def _ordered_oauth_error(self, order: FaultOrder) -> tuple[int, dict[str, Any]]:
        status = order.http_status or self._invalid_grant_status(order.call)
        return status, {"error": order.error or _INVALID_GRANT}

    @override
    def _spoil(self, answer: PartnerAnswer, order: FaultOrder) -> None:
        payload = answer.payload if answer.payload is not None else {}
        match order.kind:
            case FaultKind.BIG_BODY:
                answer.body["padding"] = "x" * order.size
            case FaultKind.EXTRA_FIELD:
                for place in (answer.body, payload):
                    place["sandboxExtra"] = "unexpected"
            case FaultKind.MISSING_FIELD:
                place, name = self._aimed(answer, order)
                place.pop(name, None)
            case FaultKind.WRONG_TYPE:
                place, name = self._aimed(answer, order)
                place[name] = {"sandbox": ["no such type"]}
            case FaultKind.WRONG_VALUE:
                place, name = self._aimed(answer, order)
                place[name] = _other(place.get(name))
            case _:
                self._spoil_sealed(answer, order)

    def _spoil_sealed(self, answer: PartnerAnswer, order: FaultOrder) -> None:
        """Only login-me has something to spoil."""

    def _aimed(self, answer: PartnerAnswer, order: FaultOrder) -> tuple[dict[str, Any], str]:
        """Where a field is: at the top, or in the payload. Unnamed it is the one that matters most."""
        payload = answer.payload
        if not payload:
            return answer.body, order.field or self._payload_key
        name = order.field or next((name for name in _TELLING if name in payload), next(iter(payload)))
        return (answer.body if name in answer.body else payload), name


def _other(value: object) -> object:
    """A value of the same kind."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case "LIVE" | "TEST":
            return "TEST" if value == "LIVE" else "LIVE"
        case str() if value.isdigit():
            return str(int(value) + 1)
        case str():
            return value[:-1] + ("1" if value.endswith("0") else "0")
        case _:
            return "other"


def json_object(request: Request, body: bytes) -> dict[str, Any]:
    """Unknown fields are ignored (reference 15.2). Raises `InvalidFields`."""
    if media_type(request) != "application/json":
        raise InvalidFields("Content-Type", "is not application/json")
    try:
        fields = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise InvalidFields("body", "is no JSON in UTF-8") from None
    if not isinstance(fields, dict):
        raise InvalidFields("body", "is no JSON object")
    return fields


def fields_in(body: bytes) -> dict[str, Any]:
    """Of any body: what cannot be read has none."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidFields(name, "is missing or no text", value)
    return value


def optional_text(fields: dict[str, Any], name: str) -> str | None:
    return None if fields.get(name) is None else text(fields, name)


def flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name)
    if not isinstance(value, bool):
        raise InvalidFields(name, "is missing or neither true nor false", value)
    return value


def whole_number(fields: dict[str, Any], name: str, *, least: int = 0, most: int) -> int:
    """Of JSON: neither text nor true (reference 8.2)."""
    value = fields.get(name)
    if type(value) is not int or not least <= value <= most:
        raise InvalidFields(name, f"is missing or no whole number from {least} to {most}", value)
    return value
