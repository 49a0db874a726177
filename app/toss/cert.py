"""Toss Cert 본인확인: request, status, result, with their wire models (toss-cert reference 3)."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Self

from pydantic import Field
from typing_extensions import override

from app.toss.calls import Observe, observed, unobserved
from app.toss.crypto import EnvelopeError, PublicKey, Session
from app.toss.errors import NotSent, OutcomeUnknown, TossError, TossRejected, Unintelligible
from app.toss.tokens import ServiceToken, TokenKeeper
from app.toss.transport import Absent, Answer, Transport, Wire

TOKEN_REFUSED = "CE1000"  # noqa: S105 - an error code
HTTP_UNAUTHORIZED = 401

SENSIBLE_YEARS = range(2000, 2200)
"""Later arithmetic with an instant must not overflow."""
PERSONAL_FIELDS = ("ci", "name", "birthday", "gender", "nationality", "ci2", "di", "ciUpdate", "ageGroup")


class RequestStatus(StrEnum):
    REQUESTED = "REQUESTED"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    EXPIRED = "EXPIRED"


class LaunchLinks(Wire):
    """Ways to open the Toss app outside a mini-app; inside one, `txId` is enough."""

    app_scheme: Absent = Field(None, alias="appScheme")
    android_app_uri: Absent = Field(None, alias="androidAppUri")
    ios_app_uri: Absent = Field(None, alias="iosAppUri")
    auth_url: Absent = Field(None, alias="authUrl")


class StartedRequest(LaunchLinks):
    tx_id: str = Field(alias="txId", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    requested_dt: object = Field(None, alias="requestedDt")

    @property
    def requested_at(self) -> datetime | None:
        return parse_instant(self.requested_dt)


class StatusAnswer(Wire):
    tx_id: str = Field(alias="txId")
    status: RequestStatus


@dataclass(frozen=True)
class OpenedResult:
    """What was in a result, each field opened by itself: None is absent, `unreadable` is damaged (G3)."""

    personal: dict[str, str]
    unreadable: tuple[str, ...]
    signature: str | None
    requested_at: datetime | None
    completed_at: datetime | None

    @override
    def __repr__(self) -> str:
        return "OpenedResult(...)"


@dataclass(frozen=True)
class ResultAnswer:
    """A result as it came, still closed, with the session that opens it. To be sealed before it is opened (G2)."""

    session: Session
    success: dict[str, Any]

    def dump(self) -> str:
        # ASCII, because JSON may carry half a surrogate pair, which no encoding would take.
        return json.dumps({"session": self.session.dump(), "success": self.success})

    @classmethod
    def load(cls, text: str) -> Self:
        stored = json.loads(text)
        return cls(Session.load(stored["session"]), stored["success"])

    def open(self) -> OpenedResult:
        wire = self.success.get("personalData")
        envelopes = wire if isinstance(wire, dict) else {}
        personal, unreadable = {}, []
        for field in PERSONAL_FIELDS:
            envelope = envelopes.get(field)
            if envelope is None or envelope == "null":
                continue
            try:
                text = self.session.open(envelope) if isinstance(envelope, str) else None
            except EnvelopeError:
                text = None
            if text is None:
                unreadable.append(field)
            elif text != "null":
                personal[field] = text
        signature = self.success.get("signature")
        if signature in (None, "", "null"):
            signature = None
        elif not isinstance(signature, str) or not signature.isascii():
            unreadable.append("signature")
            signature = None
        return OpenedResult(
            personal=personal,
            unreadable=tuple(unreadable),
            signature=signature,
            requested_at=parse_instant(self.success.get("requestedDt")),
            completed_at=parse_instant(self.success.get("completedDt")),
        )

    @override
    def __repr__(self) -> str:
        return "ResultAnswer(...)"


@dataclass(frozen=True)
class CertEndpoints:
    request: str
    status: str
    result: str


class CertApi:
    """One method per endpoint. Every call has a deadline; every method says when it may be called again."""

    def __init__(
        self,
        *,
        transport: Transport,
        tokens: TokenKeeper,
        endpoints: CertEndpoints,
        public_key: PublicKey,
        version: str,
        request_url: str,
        trigger_type: str,
        expire_seconds: int | None,
        deadline: timedelta,
        observe: Observe = unobserved,
    ) -> None:
        self.observe: Final = observe
        self._transport = transport
        self._tokens = tokens
        self._endpoints = endpoints
        self._public_key = public_key
        self._version = version
        self._request_url = request_url
        self._trigger_type = trigger_type
        self._expire_seconds = expire_seconds
        self._deadline = deadline

    async def request_one_touch(self) -> StartedRequest:
        """USER_NONE. A lost answer leaves a request whose txId nobody knows: starting again is harmless.

        Raises: TossError.
        """
        return await self._request(lambda: {"requestType": "USER_NONE"})

    async def request_personal(self, *, name: str, phone: str, birthday: str) -> StartedRequest:
        """USER_PERSONAL; `birthday` is YYYYMMDD, `phone` digits only.

        After a lost answer it may be called again, as above; with PUSH the user then sees two requests.

        Raises: TossError.
        """

        def body() -> dict[str, Any]:
            session = Session.new(self._version)
            return {
                "requestType": "USER_PERSONAL",
                "triggerType": self._trigger_type,
                "userName": session.seal(name),
                "userPhone": session.seal(phone),
                "userBirthday": session.seal(birthday),
                "sessionKey": session.session_key(self._public_key),
            }

        return await self._request(body)

    @observed("cert.status")
    async def status(self, tx_id: str) -> RequestStatus:
        """Progress only, never proof. A lost answer is asked for once more by itself.

        Raises: TossError.
        """
        try:
            answer = await self._call(self._endpoints.status, lambda: {"txId": tx_id})
        except OutcomeUnknown:
            answer = await self._call(self._endpoints.status, lambda: {"txId": tx_id})
        status = answer.parse(StatusAnswer, answer.success())
        if status.tx_id != tx_id:
            raise Unintelligible("the status of another txId", http_status=answer.http_status)
        return status.status

    @observed("cert.result")
    async def result(self, tx_id: str) -> ResultAnswer:
        """One of two permitted reads. Never repeated here after anything but a refused token.

        Raises: TossError. After OutcomeUnknown and Unintelligible the read may have been used.
        """
        session = Session.new(self._version)

        def body() -> dict[str, Any]:
            nonlocal session
            session = Session.new(self._version)
            return {"txId": tx_id, "sessionKey": session.session_key(self._public_key)}

        answer = await self._call(self._endpoints.result, body)
        success = answer.success()
        if success.get("txId") != tx_id:
            raise Unintelligible("the result of another txId", http_status=answer.http_status)
        if success.get("status", RequestStatus.COMPLETED) != RequestStatus.COMPLETED:
            raise Unintelligible("a result that is not COMPLETED", http_status=answer.http_status)
        return ResultAnswer(session, success)

    @observed("cert.request")
    async def _request(self, body: Callable[[], dict[str, Any]]) -> StartedRequest:
        common: dict[str, Any] = {"requestUrl": self._request_url}
        if self._expire_seconds is not None:
            common["expireSeconds"] = self._expire_seconds
        answer = await self._call(self._endpoints.request, lambda: common | body())
        return answer.parse(StartedRequest, answer.success())

    async def _call(self, url: str, body: Callable[[], dict[str, Any]]) -> Answer:
        """Send with the service token; once more, with a new token and a new body, if the token is refused.

        `body` is called for every sending, so that no session is ever used twice.
        """
        is_sent = False
        try:
            async with asyncio.timeout(self._deadline.total_seconds()):
                token = await self._token()
                is_sent = True
                answer = await self._transport.post_json(url, body(), bearer=token.value)
                if not _is_token_refused(answer):
                    return answer
                is_sent = False
                await self._tokens.invalidate(token)
                token = await self._token()
                is_sent = True
                return await self._transport.post_json(url, body(), bearer=token.value)
        except TimeoutError:
            if is_sent:
                raise OutcomeUnknown("deadline") from None
            raise NotSent("deadline before sending") from None

    async def _token(self) -> ServiceToken:
        try:
            return await self._tokens.get()
        except TossError as error:
            # Whatever happened at the token endpoint, this call itself was not sent.
            raise NotSent(f"no service token: {error}") from error


def _is_token_refused(answer: Answer) -> bool:
    try:
        answer.success()
    except TossRejected as error:
        return error.http_status == HTTP_UNAUTHORIZED or error.error_code == TOKEN_REFUSED
    except Unintelligible:
        return answer.http_status == HTTP_UNAUTHORIZED
    return False


def parse_instant(text: object) -> datetime | None:
    """ISO 8601 with offset (toss-cert reference 3.2); None for anything else."""
    if not isinstance(text, str):
        return None
    try:
        instant = datetime.fromisoformat(text)
        utc = instant.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return utc if instant.tzinfo is not None and utc.year in SENSIBLE_YEARS else None
