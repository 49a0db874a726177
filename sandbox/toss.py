"""The face that Toss shows to a partner's server: OAuth and the three calls of 본인확인 (reference 3)."""

import base64
import json
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

from cryptography.hazmat.primitives.asymmetric import rsa
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import override

from sandbox.answering import Answer, Face, body_of, media_type, unsent
from sandbox.clock import KOREA, korean_time
from sandbox.crypto import CannotOpen, Session, open_session
from sandbox.faults import CallName, FaultKind, FaultOrder
from sandbox.personas import Persona
from sandbox.signature import SigningAuthority
from sandbox.state import Client, Refused, SandboxState, SentPerson, Token, Transaction
from sandbox.switches import Links, Situation
from sandbox.tokens import access_token

_PATH = "/api/v2/sign/user/auth/id"
_SIBLING_PATH = "/api/v2/sign/user/auth"

# Reference 7. Of the other codes only the meaning is known, so their sentences are made up (inferred).
_REASONS = {
    "CE1000": "토큰이 유효하지 않습니다.",
    "CE3100": "존재하지 않는 요청입니다",
    "CE3102": "요청이 아직 완료되지 않았습니다.",
    "CE3000": "요청 값이 올바르지 않습니다.",
    "CE3101": "결과 조회 가능 횟수를 초과했습니다.",
    "CE3103": "인증 유효시간이 만료되었습니다.",
    "CE3006": "이용할 수 없는 연령입니다.",
}
_OTHER_REASON = "일시적인 오류가 발생했습니다."

# Limits of a reseller of Toss Cert; Toss publishes none (reference 3.3).
_LONGEST_NAME = 80
_LONGEST_URL = 1_000
_LONGEST_NONCE = 50
_LONGEST_LIFE = 1_800
_PHONE = re.compile(r"[0-9]{10,11}")
_BIRTHDAY = re.compile(r"[0-9]{8}")

_PERSON_FIELDS = ("userName", "userPhone", "userBirthday")
_OPTIONAL_FIELDS = {"expireSeconds", "nonce", "successCallbackUrl", "failCallbackUrl"}
_FIELDS = {
    "USER_NONE": {"requestType", "requestUrl", "sessionKey"} | _OPTIONAL_FIELDS,
    "USER_PERSONAL": {"requestType", "requestUrl", "triggerType", "sessionKey", *_PERSON_FIELDS} | _OPTIONAL_FIELDS,
}


@dataclass(kw_only=True)
class CertAnswer(Answer):
    success: dict[str, Any] = field(default_factory=dict)
    """The part that holds the fields; the body itself for a token. Empty for a refusal."""
    session: Session | None = None
    transaction: Transaction | None = None
    persona: Persona | None = None


class OAuthRefused(Exception):
    def __init__(self, status: int, error: str, note: str) -> None:
        super().__init__(note)
        self.status = status
        self.error = error
        self.note = note


class TossFace(Face[CertAnswer]):
    def __init__(
        self,
        *,
        state: SandboxState,
        session_key: rsa.RSAPrivateKey,
        token_key: Callable[[], rsa.RSAPrivateKey],
        signing: SigningAuthority,
    ) -> None:
        super().__init__(state)
        self._session_key = session_key
        self._token_key = token_key
        self._signing = signing

    def app(self) -> Starlette:
        routes = [Route("/token", partial(self._serve, CallName.TOKEN, self._token), methods=["POST"])]
        for path in (_PATH, _SIBLING_PATH):
            for call, effect in (
                (CallName.REQUEST, self._request),
                (CallName.STATUS, self._status),
                (CallName.RESULT, self._result),
            ):
                endpoint = partial(self._serve, call, effect)
                routes.append(Route(f"{path}/{call}", endpoint, methods=["POST"]))
        return Starlette(routes=routes)

    async def _serve(
        self, call: CallName, effect: Callable[[Request, bytes], CertAnswer], request: Request
    ) -> Response:
        sibling = call is not CallName.TOKEN and not request.url.path.startswith(f"{_PATH}/")
        if sibling and not self._state.switches.sibling_paths:
            return Response(status_code=404)
        body = await body_of(request)
        if body is None:
            return unsent()
        return await self._taken(request, call, partial(effect, request, body), subject=_tx_id_in(body))

    @override
    def _token_rejected(self, call: CallName) -> CertAnswer:
        return self._refusal(Refused(Situation.BAD_TOKEN, "ordered"))

    @override
    def _ordered_failure(self, order: FaultOrder) -> tuple[int, dict[str, Any]]:
        code = order.code or "CE0001"  # a system error (reference 7)
        return order.http_status or self._state.switches.fail_status(code), _fail_body(code)

    @override
    def _ordered_oauth_error(self, order: FaultOrder) -> tuple[int, dict[str, Any]]:
        return order.http_status or 400, {"error": order.error or "server_error"}

    @override
    def _spoil(self, answer: CertAnswer, order: FaultOrder) -> None:
        personal: dict[str, Any] = answer.success.get("personalData", {})
        match order.kind:
            case FaultKind.BIG_BODY:
                answer.body["padding"] = "x" * order.size
            case FaultKind.MISSING_FIELD:
                usual = "access_token" if "access_token" in answer.success else "txId"
                name = order.field or ("signature" if "signature" in answer.success else usual)
                (personal if name in personal else answer.success).pop(name, None)
            case FaultKind.EXTRA_FIELD:
                for place in (answer.body, answer.success, personal):
                    place["sandboxExtra"] = "unexpected"
            case FaultKind.WRONG_TX:
                answer.success["txId"] = str(uuid.uuid4())
            case FaultKind.BAD_SIGNATURE:
                if answer.transaction is not None and answer.persona is not None:
                    answer.success["signature"] = self._signed(answer.transaction, answer.persona, order)
            case _:
                for name, envelope in personal.items():
                    if envelope is not None and "$" in envelope and order.field in (None, name):
                        personal[name] = _spoilt_envelope(envelope, order.kind)

    # OAuth (reference 3.1). That errors look as RFC 6749 has them is inferred (Q12).

    def _token(self, request: Request, body: bytes) -> CertAnswer:
        try:
            return self._issued(self._authenticated(request, body))
        except OAuthRefused as refused:
            answer = {"error": refused.error}
            return CertAnswer(status=refused.status, body=answer, outcome=refused.error, note=refused.note)

    def _authenticated(self, request: Request, body: bytes) -> Client:
        form = _form(request, body)
        # camelCase names leave client_id absent, which Toss answers with invalid_client (reference 3.1).
        client = self._state.client(form.get("client_id", ""), form.get("client_secret", ""))
        if client is None:
            raise OAuthRefused(401, "invalid_client", "wrong or missing client_id or client_secret")
        if "grant_type" not in form:
            raise OAuthRefused(400, "invalid_request", "grant_type is missing")
        if form["grant_type"] != "client_credentials":
            raise OAuthRefused(400, "unsupported_grant_type", "grant_type is not client_credentials")
        if form.get("scope") != "ca":
            raise OAuthRefused(400, "invalid_scope", "scope is not ca")
        return client

    def _issued(self, client: Client) -> CertAnswer:
        now = self._state.clock.now()
        lifetime = self._state.token_lifetime(client)
        text = access_token(
            subject=client.id,
            audience=client.id,
            scopes=["ca"],
            issued_at=now,
            lifetime=lifetime,
            key=self._token_key(),
        )
        self._state.remember_token(text, Token(client.id, now + timedelta(seconds=lifetime)))
        as_text = self._state.switches.token_expires_in_as_text
        body: dict[str, Any] = {
            "access_token": text,
            "scope": "ca",
            "token_type": "Bearer",
            "expires_in": str(lifetime) if as_text else lifetime,
        }
        return CertAnswer(status=200, body=body, success=body)

    # The three calls

    def _request(self, request: Request, body: bytes) -> CertAnswer:
        try:
            return self._start(self._client_id(request), _json_object(request, body))
        except Refused as refused:
            return self._refusal(refused)

    def _status(self, request: Request, body: bytes) -> CertAnswer:
        try:
            client_id = self._client_id(request)
            fields = _json_object(request, body)
            _only(fields, {"txId"})
            found = self._state.look_up(client_id, _text(fields, "txId"))
        except Refused as refused:
            return self._refusal(refused)
        status = found.status(self._state.clock.now())
        return self._success(
            {"txId": found.tx_id, "status": status.value, "requestedDt": korean_time(found.requested_at)}
        )

    def _result(self, request: Request, body: bytes) -> CertAnswer:
        try:
            client_id = self._client_id(request)
            fields = _json_object(request, body)
            _only(fields, {"txId", "sessionKey"})
            tx_id = _text(fields, "txId")
            session = self._session(fields)
            transaction, persona = self._state.read_result(client_id, tx_id, session)
        except Refused as refused:
            return self._refusal(refused)
        assert transaction.completed_at is not None
        answer = self._success(
            {
                "txId": transaction.tx_id,
                "status": "COMPLETED",
                "userIdentifier": None,
                "userCiToken": None,
                "signature": self._signed(transaction, persona),
                "randomValue": None,
                "completedDt": korean_time(transaction.completed_at),
                "requestedDt": korean_time(transaction.requested_at),
                "personalData": self._personal_data(persona, session),
            }
        )
        answer.session, answer.transaction, answer.persona = session, transaction, persona
        return answer

    def _start(self, client_id: str, fields: dict[str, Any]) -> CertAnswer:
        request_type = _text(fields, "requestType")
        if request_type not in _FIELDS:
            raise _invalid("requestType is neither USER_PERSONAL nor USER_NONE")
        _only(fields, _FIELDS[request_type])
        self._check_urls(fields)
        life = _life(fields)
        if "nonce" in fields and not 1 <= len(_text(fields, "nonce")) <= _LONGEST_NONCE:
            raise _invalid("nonce is empty or too long")
        session, sent_person = None, None
        if request_type == "USER_PERSONAL":
            if _text(fields, "triggerType") not in ("APP_SCHEME", "PUSH"):
                raise _invalid("triggerType is neither APP_SCHEME nor PUSH")
            session = self._session(fields)
            sent_person = self._sent_person(fields, session)
        elif "sessionKey" in fields:  # "not needed" (reference 3.3), so not refused
            session = self._session(fields)
        transaction = self._state.start(
            client_id, request_type, life_seconds=life, session=session, sent_person=sent_person
        )
        success: dict[str, Any] = {"txId": transaction.tx_id}
        success |= self._links(transaction)
        success["requestedDt"] = korean_time(transaction.requested_at)
        answer = self._success(success)
        answer.subject = transaction.tx_id
        return answer

    def _check_urls(self, fields: dict[str, Any]) -> None:
        if self._state.switches.request_url_required and "requestUrl" not in fields:
            raise _invalid("requestUrl is missing")
        for name in ("requestUrl", "successCallbackUrl", "failCallbackUrl"):
            if name in fields:
                url = _text(fields, name)
                if len(url) > _LONGEST_URL or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://\S+", url):
                    raise _invalid(f"{name} is no address, or too long")

    def _sent_person(self, fields: dict[str, Any], session: Session) -> SentPerson:
        name, phone, birthday = (_opened(fields, field_name, session) for field_name in _PERSON_FIELDS)
        if not name.strip() or len(name) > _LONGEST_NAME or not name.isprintable():
            raise _invalid("userName is empty, too long or not printable")
        if not _PHONE.fullmatch(phone):
            raise _invalid("userPhone is not 10 or 11 digits")
        if not _BIRTHDAY.fullmatch(birthday):
            raise _invalid("userBirthday is not 8 digits")
        try:
            day = datetime(int(birthday[:4]), int(birthday[4:6]), int(birthday[6:]), tzinfo=KOREA)
        except ValueError:
            raise _invalid("userBirthday is no day of the calendar") from None
        if day > self._state.clock.now():
            raise _invalid("userBirthday lies in the future")
        return SentPerson(name, phone, birthday)

    def _links(self, transaction: Transaction) -> dict[str, Any]:
        switches = self._state.switches
        if transaction.request_type == "USER_NONE":
            # The links are not listed for USER_NONE; authUrl is from general Toss Cert (Q9).
            auth_url = f"https://cert.sandbox.invalid/auth?txId={transaction.tx_id}"
            return {"authUrl": auth_url} if switches.auth_url else {}
        match switches.links:
            case Links.TEXT_NULL:
                return {"appScheme": "null", "androidAppUri": "null", "iosAppUri": "null"}
            case Links.JSON_NULL:
                return {"appScheme": None, "androidAppUri": None, "iosAppUri": None}
            case Links.ABSENT:
                return {}
            case Links.REAL:
                # Of real ones only the kinds are known (reference 3.3); the values are made up.
                query = f"cert?txId={transaction.tx_id}"
                return {
                    "appScheme": f"sandbox-toss://{query}",
                    "androidAppUri": f"intent://{query}#Intent;scheme=sandbox-toss;package=invalid.sandbox;end",
                    "iosAppUri": f"https://app.sandbox.invalid/{query}",
                }

    def _personal_data(self, persona: Persona, session: Session) -> dict[str, Any]:
        switches = self._state.switches
        nothing = "null" if switches.null_fields_as_text else None
        data: dict[str, Any] = {
            "ci": session.seal(persona.ci),
            "name": session.seal(persona.name),
            "birthday": session.seal(persona.birthday),
            "gender": session.seal(persona.gender),
            "nationality": session.seal(persona.nationality),
            "ci2": nothing,
            "di": session.seal(persona.di),
            "ciUpdate": nothing,
        }
        if switches.age_group:
            data["ageGroup"] = session.seal(persona.age_group)
        return data

    def _signed(self, transaction: Transaction, persona: Persona, order: FaultOrder | None = None) -> str:
        assert transaction.completed_at is not None
        return self._signing.sign(
            tx_id=transaction.tx_id,
            persona=persona,
            requested_at=transaction.requested_at,
            completed_at=transaction.completed_at,
            variant=order.variant if order is not None else None,
        )

    def _client_id(self, request: Request) -> str:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind != "Bearer" or not token:
            raise Refused(Situation.BAD_TOKEN, "no Authorization: Bearer header")
        return self._state.client_id_of(token)

    def _session(self, fields: dict[str, Any]) -> Session:
        try:
            return open_session(_text(fields, "sessionKey"), self._session_key)
        except CannotOpen as error:
            raise _invalid(f"sessionKey: {error}") from None

    def _success(self, success: dict[str, Any]) -> CertAnswer:
        body: dict[str, Any] = {"resultType": "SUCCESS", "success": success}
        if self._state.switches.explicit_error_null:
            body["error"] = None
        return CertAnswer(status=200, body=body, success=success)

    def _refusal(self, refused: Refused) -> CertAnswer:
        switches = self._state.switches
        code = switches.code(refused.situation)
        return CertAnswer(status=switches.fail_status(code), body=_fail_body(code), outcome=code, note=refused.note)


def _fail_body(code: str) -> dict[str, Any]:
    """Reference 3.2."""
    return {
        "resultType": "FAIL",
        "error": {
            "errorType": 0,
            "errorCode": code,
            "reason": _REASONS.get(code, _OTHER_REASON),
            "data": {},
            "title": None,
        },
        "success": None,
    }


def _form(request: Request, body: bytes) -> dict[str, str]:
    if media_type(request) != "application/x-www-form-urlencoded":
        raise OAuthRefused(400, "invalid_request", "not a form")
    try:
        pairs = parse_qsl(body.decode("utf-8"), keep_blank_values=True, strict_parsing=True)
    except ValueError:
        raise OAuthRefused(400, "invalid_request", "the form cannot be parsed") from None
    form = dict(pairs)
    if len(form) != len(pairs):
        raise OAuthRefused(400, "invalid_request", "a parameter came twice")
    return form


def _invalid(note: str) -> Refused:
    return Refused(Situation.INVALID, note)


def _json_object(request: Request, body: bytes) -> dict[str, Any]:
    if media_type(request) != "application/json":
        raise _invalid("Content-Type is not application/json")
    try:
        fields = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise _invalid("the body is no JSON in UTF-8") from None
    if not isinstance(fields, dict):
        raise _invalid("the body is no JSON object")
    return fields


def _only(fields: dict[str, Any], allowed: set[str]) -> None:
    unknown = sorted(set(fields) - allowed)
    if unknown:
        raise _invalid(f"{len(unknown)} fields that do not belong here")


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise _invalid(f"{name} is missing or no text")
    return value


def _opened(fields: dict[str, Any], name: str, session: Session) -> str:
    try:
        return session.open(_text(fields, name))
    except CannotOpen as error:
        raise _invalid(f"{name}: {error}") from None


def _life(fields: dict[str, Any]) -> int | None:
    if "expireSeconds" not in fields:
        return None
    life = fields["expireSeconds"]
    if type(life) is not int or not 1 <= life <= _LONGEST_LIFE:
        raise _invalid("expireSeconds is not a number from 1 to 1800")
    return life


def _tx_id_in(body: bytes) -> str | None:
    """Which transaction a call is about, for the log, before anything is checked."""
    try:
        value = json.loads(body)["txId"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    return value if isinstance(value, str) else None


def _spoilt_envelope(envelope: str, kind: FaultKind) -> str:
    version, session_id, sealed = envelope.split("$")
    match kind:
        case FaultKind.WRONG_VERSION:
            return f"v2${session_id}${sealed}"
        case FaultKind.WRONG_SESSION_ID:
            return f"{version}${uuid.uuid4()}${sealed}"
        case _:
            data = base64.b64decode(sealed)
            damaged = data[:-1] + bytes([data[-1] ^ 1])  # the tag is the end of it (reference 4.3)
            return f"{version}${session_id}${base64.b64encode(damaged).decode()}"
