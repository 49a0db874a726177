"""The partner API behind mTLS: Toss login and anonymous keys (reference of Apps in Toss, 2, 3, 6 and 7)."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from typing_extensions import override

from sandbox.answering import Answer, Face, body_of, json_response, media_type, unsent
from sandbox.connection import ClientGone, PeerCertificate, peer_certificate, reset
from sandbox.crypto import seal_login_field
from sandbox.faults import CallName, FaultKind, FaultOrder, ResultType
from sandbox.miniapps import ACCESS_SECONDS, Grant, InvalidGrant, LoginFailed, MiniApp, Scope, scope_names
from sandbox.state import SandboxState
from sandbox.switches import DecryptionKey, MissingCertificate, PayloadKey
from sandbox.tokens import access_token

_PREFIX = "/api-partner/v1/apps-in-toss"
_LOGIN = f"{_PREFIX}/user/oauth2"
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_LARGEST_USER_KEY = 2**63 - 1

RATE_LIMITED = "4095"
UNAUTHENTICATED = "4010"
INVALID_PARAMETER = "INVALID_PARAMETER"
INTERNAL_ERROR = "INTERNAL_ERROR"
_INVALID_GRANT = "invalid_grant"

# Only the meanings are known (reference 3.2, 6.4); the sentences are made up (inferred).
_REASONS = {
    INVALID_PARAMETER: "요청 값이 올바르지 않습니다.",
    UNAUTHENTICATED: "인증 정보가 올바르지 않습니다.",
    "4050": "등록되지 않은 미니앱입니다.",
    RATE_LIMITED: "요청 한도를 초과했습니다.",
    "USER_KEY_NOT_FOUND": "연결된 사용자를 찾을 수 없습니다.",
    "USER_NOT_FOUND": "사용자를 찾을 수 없습니다.",
    "BAD_REQUEST_RETRIEVE_CERT_RESULT_EXCEEDED_LIMIT": "결과 조회 가능 횟수를 초과했습니다.",
}
_OTHER_REASON = "일시적인 오류가 발생했습니다."

# Which consent opens which field of login-me (reference 6.4).
_SCOPE_OF = {
    "name": Scope.NAME,
    "phone": Scope.PHONE,
    "birthday": Scope.BIRTHDAY,
    "ci": Scope.CI,
    "gender": Scope.GENDER,
    "nationality": Scope.NATIONALITY,
    "email": Scope.EMAIL,
}


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


class PartnerFace(Face[PartnerAnswer]):
    def __init__(self, *, state: SandboxState, token_key: Callable[[], rsa.RSAPrivateKey]) -> None:
        super().__init__(state)
        self._token_key = token_key

    def app(self) -> Starlette:
        routes = []
        for call, method, path, effect in (
            (CallName.LOGIN_EXCHANGE, "POST", f"{_LOGIN}/generate-token", self._exchange),
            (CallName.LOGIN_REFRESH, "POST", f"{_LOGIN}/refresh-token", self._refresh),
            (CallName.LOGIN_ME, "GET", f"{_LOGIN}/login-me", self._me),
            (CallName.UNLINK_TOKEN, "POST", f"{_LOGIN}/access/remove-by-access-token", self._unlink_token),
            (CallName.UNLINK_USER, "POST", f"{_LOGIN}/access/remove-by-user-key", self._unlink_user),
            (CallName.ANON_VERIFY, "POST", f"{_PREFIX}/users/anon-key/verify", self._anon_verify),
        ):
            routes.append(Route(path, partial(self._serve, call, effect), methods=[method]))
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
        if wait is not None:
            limited = self._rate_limited(wait)
            with self._state.record(call, None, app_name) as record:
                self._state.settle(record, answer=limited.outcome, note=limited.note)
            return self._sent(limited)
        answering = partial(self._guarded, call, partial(effect, app_name, request, body))
        return await self._taken(request, call, answering, app_name=app_name)

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
        except LoginFailed as failed:
            return self._failed(200, failed.code, str(failed))  # 3.1: business errors arrive with 200
        except InvalidFields as invalid:
            data = {"errorDetails": invalid.details}
            return self._failed(400, INVALID_PARAMETER, str(invalid), data)

    # The calls

    def _exchange(self, app_name: str, request: Request, body: bytes) -> PartnerAnswer:
        fields = _json_object(request, body)
        code, referrer = _text(fields, "authorizationCode"), _text(fields, "referrer")
        return self._tokens(app_name, self._state.mini_apps.exchange(app_name, code, referrer))

    def _refresh(self, app_name: str, request: Request, body: bytes) -> PartnerAnswer:
        token = _text(_json_object(request, body), "refreshToken")
        return self._tokens(app_name, self._state.mini_apps.refresh(app_name, token))

    def _tokens(self, app_name: str, grant: Grant) -> PartnerAnswer:
        text = access_token(
            subject=grant.user,  # at Toss opaque
            audience=app_name,
            scopes=list(grant.scopes),
            issued_at=self._state.clock.now(),
            lifetime=ACCESS_SECONDS,
            key=self._token_key(),
        )
        self._state.mini_apps.remember_access(text, app_name, grant)
        payload: dict[str, Any] = {
            "tokenType": "Bearer",
            "accessToken": text,
            "refreshToken": grant.refresh_token,
            "expiresIn": self._number(ACCESS_SECONDS),
            "scope": " ".join(grant.scopes),
        }
        return self._success(payload, user_key=grant.user_key)

    def _me(self, app_name: str, request: Request, _body: bytes) -> PartnerAnswer:
        link = self._state.mini_apps.of_access_token(app_name, _bearer(request))
        user = self._state.mini_apps.user(link.user)
        if user is None:
            raise LoginFailed("USER_NOT_FOUND", "the user has left Toss")
        app = self._state.mini_apps.app(app_name)
        switches = self._state.switches
        clear = {
            name: value
            for name, scope in _SCOPE_OF.items()
            if scope in link.consents and (value := getattr(user, name)) is not None
        }
        payload: dict[str, Any] = {
            "userKey": self._user_key(link.user_key),
            "scope": (", " if switches.scope_blanks else ",").join(scope_names(link)),
            "agreeTerms" if switches.agree_terms_spelling else "agreedTerms": list(app.agreed_terms),
            "di": None,
            **dict.fromkeys(_SCOPE_OF),
        }
        if switches.login_me_extras:
            payload |= {"policy": {}, "certTxId": None}
            if Scope.PHONE in link.consents:
                clear["callingCode"] = user.calling_code
        for name, value in clear.items():
            payload[name] = self._sealed(app, value, wrong_aad=name in switches.wrong_aad_fields)
        answer = self._success(payload, user_key=link.user_key)
        answer.app, answer.clear = app, clear
        return answer

    def _unlink_token(self, app_name: str, request: Request, body: bytes) -> PartnerAnswer:
        if body:
            _json_object(request, body)
        link = self._state.mini_apps.of_access_token(app_name, _bearer(request))
        self._state.mini_apps.unlink(app_name, link.user_key)
        is_empty = self._state.switches.unlink_token_empty
        payload = {} if is_empty else {"userKey": self._user_key(link.user_key)}
        return self._success(payload, user_key=link.user_key)

    def _unlink_user(self, app_name: str, request: Request, body: bytes) -> PartnerAnswer:
        user_key = _json_object(request, body).get("userKey")
        if type(user_key) is not int or not 0 <= user_key <= _LARGEST_USER_KEY:
            raise InvalidFields("userKey", "is no int64", user_key)
        if self._state.switches.unlink_user_needs_bearer:
            link = self._state.mini_apps.of_access_token(app_name, _bearer(request))
            if link.user_key != user_key:  # inferred
                raise InvalidGrant("the token is of another user")
        self._state.mini_apps.unlink(app_name, user_key)
        return self._success({"userKey": self._user_key(user_key)}, user_key=user_key)

    def _anon_verify(self, app_name: str, request: Request, body: bytes) -> PartnerAnswer:
        if body:
            _json_object(request, body)
        key = request.headers.get("x-anon-key", "")
        if not self._state.mini_apps.knows_anon_key(app_name, key):
            return self._anon_refused("this mini-app has no such key")
        answer = self._success({})
        answer.body[self._payload_key] = "true" if self._state.switches.anon_success_as_text else True
        answer.payload = None
        return answer

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
        error: dict[str, Any] = {"errorCode": code, "reason": _REASONS.get(code, _OTHER_REASON)}
        if not switches.short_errors:
            error = {"errorType": 0, **error, "data": data or {}, "title": None}
        body: dict[str, Any] = {"resultType": result_type.value, "error": error}
        if not switches.failure_without_success:
            body["success"] = None
        return body

    def _invalid_grant(self, call: CallName, note: str) -> PartnerAnswer:
        switches = self._state.switches
        if call is CallName.LOGIN_REFRESH and switches.refresh_refusal_code is not None:
            return self._failed(200, switches.refresh_refusal_code, note)
        status = self._invalid_grant_status(call)
        return PartnerAnswer(status=status, body={"error": _INVALID_GRANT}, outcome=_INVALID_GRANT, note=note)

    def _invalid_grant_status(self, call: CallName) -> int:
        usual = 400 if call in (CallName.LOGIN_EXCHANGE, CallName.LOGIN_REFRESH) else 401
        return self._state.switches.invalid_grant_status or usual

    def _anon_refused(self, note: str) -> PartnerAnswer:
        return self._failed(self._state.switches.anon_failure_status, UNAUTHENTICATED, note)

    def _rate_limited(self, seconds: int) -> PartnerAnswer:
        status, data = self._state.switches.rate_limit_status, {"retryAfterSeconds": self._number(seconds)}
        return self._failed(status, RATE_LIMITED, "over the budget", data)

    def _sent(self, answer: PartnerAnswer) -> Response:
        return json_response(answer.status, answer.body)

    def _number(self, value: int) -> int | str:
        return str(value) if self._state.switches.numbers_as_text else value

    def _user_key(self, value: int) -> int | str:
        return str(value) if self._state.switches.user_key_as_text else value

    def _sealed(self, app: MiniApp, text: str, *, wrong_aad: bool = False, wrong_key: bool = False) -> str:
        use_second = (self._state.switches.decryption_key is DecryptionKey.SECOND) is not wrong_key
        key = app.second_decryption_key if use_second else app.decryption_key
        return seal_login_field(text, key=key, aad=f"not {app.aad}" if wrong_aad else app.aad)

    # Faults

    @override
    def _token_rejected(self, call: CallName) -> PartnerAnswer:
        if call is CallName.ANON_VERIFY:
            return self._anon_refused("ordered")
        return self._invalid_grant(call, "ordered")

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
            case _:
                for name, clear in answer.clear.items():
                    if order.field in (None, name):
                        payload[name] = self._spoilt(answer, clear, order.kind)

    def _aimed(self, answer: PartnerAnswer, order: FaultOrder) -> tuple[dict[str, Any], str]:
        """Where a field is: at the top, or in the payload. Unnamed it is the one that matters most."""
        payload = answer.payload
        if not payload:
            return answer.body, order.field or self._payload_key
        name = order.field or ("accessToken" if "accessToken" in payload else "userKey")
        return (answer.body if name in answer.body else payload), name

    def _spoilt(self, answer: PartnerAnswer, clear: str, kind: FaultKind) -> str:
        assert answer.app is not None
        match kind:
            case FaultKind.WRONG_AAD:
                return self._sealed(answer.app, clear, wrong_aad=True)
            case FaultKind.WRONG_KEY:
                return self._sealed(answer.app, clear, wrong_key=True)
            case _:
                return _damaged(self._sealed(answer.app, clear))


def _damaged(sealed: str) -> str:
    data = base64.b64decode(sealed)
    return base64.b64encode(data[:-1] + bytes([data[-1] ^ 1])).decode()  # the tag is the end of it


def _json_object(request: Request, body: bytes) -> dict[str, Any]:
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


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidFields(name, "is missing or no text", value)
    return value


def _bearer(request: Request) -> str:
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    if kind != "Bearer" or not token:
        raise InvalidGrant("no Authorization: Bearer header")
    return token
