"""The Apps-in-Toss partner API: envelope, deadlines, and the budget that every call spends (reference 3)."""

import asyncio
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

from pydantic import ConfigDict
from typing_extensions import override

from app.toss.calls import Observe, unobserved
from app.toss.errors import BudgetExhausted, NotSent, OutcomeUnknown, TossFault, TossRejected, Unintelligible
from app.toss.governor import Governor, Lane, SubLimit, pause_length
from app.toss.transport import Answer, MutualTransport, Wire, plain_code

RATE_LIMITED: Final = "4095"
INNER_FAULTS: Final = frozenset(
    {"HTTP_TIMEOUT", "NETWORK_ERROR", "EXECUTION_FAIL", "INTERRUPTED", "INTERNAL_ERROR"}
)
"""Result types that tell of a call inside Toss. How far it came, nobody says."""
OAUTH_REFUSALS: Final = frozenset(
    {
        "insufficient_scope",
        "invalid_client",
        "invalid_grant",
        "invalid_request",
        "invalid_scope",
        "invalid_token",
        "unauthorized_client",
        "unsupported_grant_type",
    }
)
"""All of RFC 6749 5.2 and RFC 6750 3.1. A gateway's "Bad Gateway" or "too_many_requests" is none of them."""
SERVER_ERROR: Final = 500
FIRST_INEXACT: Final = 2**53
"""From here on a float stands for several whole numbers, and two users would become one."""
MAX_NUMBER: Final = 2**63 - 1
MAX_TEXT: Final = 255


class PartnerWire(Wire):
    """A wire model of the partner API, where a text may come as a number and a number as text."""

    model_config = ConfigDict(coerce_numbers_to_str=True)


M = TypeVar("M", bound=PartnerWire)


def whole_number(value: object) -> int | None:
    """An int64 that may have been written as text; None for anything else. True is no number."""
    if isinstance(value, str):
        number = int(value) if re.fullmatch(r"-?[0-9]{1,19}", value) else None
    elif isinstance(value, float):
        number = int(value) if value.is_integer() and abs(value) < FIRST_INEXACT else None
    else:
        number = value if isinstance(value, int) and not isinstance(value, bool) else None
    return number if number is not None and abs(number) <= MAX_NUMBER else None


def plain_text(value: object) -> str | None:
    """A text that can be stored and shown, or a whole number in its place; None for anything else."""
    text = str(value) if isinstance(value, int) and whole_number(value) is not None else value
    return text if isinstance(text, str) and 0 < len(text) <= MAX_TEXT and text.isprintable() else None


@dataclass(frozen=True)
class Payload:
    """What stands under `success`, of whatever type."""

    http_status: int
    content: Any

    @override
    def __repr__(self) -> str:
        return f"Payload({self.http_status})"

    def fields(self) -> dict[str, Any]:
        """Raises: Unintelligible for anything but an object."""
        if not isinstance(self.content, dict):
            raise Unintelligible("SUCCESS without a payload", http_status=self.http_status)
        return self.content

    def text(self, name: str) -> str:
        """A field without which the answer says nothing. Raises: Unintelligible."""
        text = plain_text(self.fields().get(name))
        if text is None:
            raise Unintelligible(f"no {name}", http_status=self.http_status)
        return text

    def parse(self, model: type[M]) -> M:
        """Raises: Unintelligible."""
        return Answer(self.http_status, b"").parse(model, self.fields())


def read_envelope(answer: Answer) -> Payload:
    """The payload of Toss's envelope. The body decides whatever the HTTP status (apps-in-toss reference 3.1, 18).

    Raises: TossRejected for Toss's "no" in any of its forms, TossFault when Toss failed inside, Unintelligible.
    """
    body = answer.json_object()
    result_type, error = body.get("resultType"), body.get("error")
    if result_type == "SUCCESS":
        payload = body.get("success")
        payload = body.get("result") if payload is None else payload
        _refuse_inner_failure(answer, payload)
        return Payload(answer.http_status, payload)
    fields = error if isinstance(error, dict) else {"errorCode": error}
    code = plain_code(_first(fields, "errorCode", "code", otherwise="MISSING"))
    rejected = TossRejected(
        http_status=answer.http_status,
        error_code=code,
        reason=_text(_first(fields, "reason", "message", otherwise="")),
        data=fields["data"] if isinstance(fields.get("data"), dict) else None,
    )
    if isinstance(result_type, str):
        if result_type == "FAIL" or code == RATE_LIMITED:
            raise rejected
        if result_type in INNER_FAULTS:
            raise TossFault(result_type=result_type, error_code=code)
    is_oauth = result_type is None and isinstance(error, str) and error in OAUTH_REFUSALS
    if is_oauth and answer.http_status < SERVER_ERROR:
        raise rejected
    # Whatever else has an "error" was said by somebody between Toss and us, who cannot know what Toss did.
    raise Unintelligible("neither SUCCESS nor FAIL", http_status=answer.http_status)


def _refuse_inner_failure(answer: Answer, payload: object) -> None:
    """Plain Toss Pay has its own `code` inside, 0 for success; whether it gets here is open (reference 8.3)."""
    if not isinstance(payload, dict):
        return
    inner = payload.get("code")
    if inner is None or (not isinstance(inner, bool) and str(inner).strip() in ("0", "0.0")):
        return
    raise TossRejected(
        http_status=answer.http_status,
        error_code=plain_code(_first(payload, "errorCode", otherwise=inner)),
        reason=_text(_first(payload, "msg", otherwise="")),
    )


def _first(fields: Mapping[str, Any], *names: str, otherwise: object) -> object:
    return next((fields[name] for name in names if fields.get(name) is not None), otherwise)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


class PartnerApi:
    """Calls of one mini-app, each within the budget and a deadline. What may be repeated, the caller knows."""

    def __init__(
        self,
        *,
        transport: MutualTransport,
        governor: Governor,
        base_url: str,
        deadline: timedelta,
        refused: Callable[[str, str], None] = lambda _lane, _limit: None,
        observe: Observe = unobserved,
    ) -> None:
        """`refused` is told the lane and the limit of every call for which there was no room.

        `observe` is told of every call by those who know its name.
        """
        self.observe: Final = observe
        self._transport = transport
        self._governor = governor
        self._base_url = base_url
        self._deadline = deadline.total_seconds()
        self._refused = refused

    async def get(self, path: str, *, bearer: str | None = None, lane: Lane = Lane.INTERACTIVE) -> Payload:
        """Raises: TossError; BudgetExhausted at once when there is no room."""
        return await self._call("GET", path, bearer=bearer, lane=lane)

    async def post(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        bearer: str | None = None,
        headers: Mapping[str, str] | None = None,
        lane: Lane = Lane.INTERACTIVE,
        sub_limits: Iterable[SubLimit] = (),
    ) -> Payload:
        """Raises: as `get`."""
        return await self._call(
            "POST", path, body=body, bearer=bearer, headers=headers, lane=lane, sub_limits=sub_limits
        )

    async def ask(self, path: str, body: Mapping[str, Any], *, headers: Mapping[str, str], lane: Lane) -> Payload:
        """A POST that changes nothing at Toss: a lost answer is asked for once more. Raises: as `get`."""
        try:
            return await self.post(path, body, headers=headers, lane=lane)
        except OutcomeUnknown:
            return await self.post(path, body, headers=headers, lane=lane)

    async def _call(
        self,
        method: str,
        path: str,
        *,
        lane: Lane,
        body: Mapping[str, Any] | None = None,
        bearer: str | None = None,
        headers: Mapping[str, str] | None = None,
        sub_limits: Iterable[SubLimit] = (),
    ) -> Payload:
        limits = tuple(sub_limits)  # asked for again when the call is tried again
        is_admitted = False

        async def admit() -> None:
            nonlocal is_admitted
            try:
                await self._governor.admit(lane, sub_limits=limits)
            except BudgetExhausted as error:
                self._refused(lane.value, error.limit)
                raise
            is_admitted = True

        url = self._base_url + path
        try:
            async with asyncio.timeout(self._deadline):
                if method == "GET":
                    answer = await self._transport.get_json(url, bearer=bearer, headers=headers, admit=admit)
                else:
                    answer = await self._transport.post_json(
                        url, body or {}, bearer=bearer, headers=headers, admit=admit
                    )
        except TimeoutError:
            if is_admitted:
                raise OutcomeUnknown("deadline") from None
            raise NotSent("deadline before sending") from None
        try:
            return read_envelope(answer)
        except TossRejected as error:
            if error.error_code != RATE_LIMITED:
                raise
            seconds = error.data.get("retryAfterSeconds")
            await self._governor.pause(seconds)
            raise BudgetExhausted(pause_length(seconds), limit="pause") from None


@dataclass(frozen=True)
class TossUser:
    """By what Toss knows the user of a call: exactly one of the two (apps-in-toss reference 4)."""

    user_key: int | None = None
    anon_key: str | None = None

    def __post_init__(self) -> None:
        if (self.user_key is None) == (self.anon_key is None):
            raise ValueError("a Toss user has either a userKey or an anonymous key")

    @override
    def __repr__(self) -> str:
        return "TossUser(...)"

    def headers(self) -> dict[str, str]:
        if self.user_key is not None:
            return {"x-toss-user-key": str(self.user_key)}
        return {"x-anon-key": self.anon_key or ""}

    def dump(self) -> str:
        return json.dumps({"userKey": self.user_key, "anonKey": self.anon_key})

    @classmethod
    def load(cls, text: str) -> "TossUser":
        stored = json.loads(text)
        return cls(stored["userKey"], stored["anonKey"])
