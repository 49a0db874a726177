"""Toss login and anonymous keys, with their wire models (apps-in-toss reference 6 and 7)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field
from typing_extensions import override

from app.toss.calls import observed
from app.toss.crypto import EnvelopeError, LoginFieldCipher
from app.toss.errors import OutcomeUnknown, TossRejected, Unintelligible
from app.toss.governor import Lane
from app.toss.partner import PartnerApi, PartnerWire, Payload, whole_number

PREFIX: Final = "/api-partner/v1/apps-in-toss"
OAUTH: Final = f"{PREFIX}/user/oauth2"

PROFILE_FIELDS: Final = ("name", "callingCode", "phone", "birthday", "ci", "gender", "nationality", "email")
"""What login-me encrypts, each by itself; `di` is always null (reference 6.4)."""
MAX_USER_KEY: Final = 2**63 - 1
ASSUMED_LIFE: Final = 300
"""Seconds, for an access token whose life cannot be read; Toss says 3,599."""
NOT_VERIFIED: Final = "NOT_VERIFIED"
"""Our own `error_code`: the anonymous key's verification was not answered with yes, or could not be asked for."""
HTTP_UNAUTHORIZED: Final = 401

_BETWEEN_SCOPES = re.compile(r"[,\s]+")
_VISIBLE = r"^[\x21-\x7e]{1,8192}$"
_ANON_KEY = re.compile(r"[\x21-\x7e]{1,512}")  # 64 characters are said to suffice (reference 4)


def user_key_of(value: object) -> int | None:
    """`userKey`, an int64 above 0 (0 is the console's test of the unlink callback); None for anything else."""
    number = whole_number(value)
    return number if number is not None and 0 < number <= MAX_USER_KEY else None


def scopes_of(value: object) -> tuple[str, ...]:
    """Tokens separate scopes by blanks, login-me by commas, perhaps with blanks (reference 18): both everywhere."""
    return plain_texts(_BETWEEN_SCOPES.split(value)) if isinstance(value, str) else ()


def plain_texts(values: object) -> tuple[str, ...]:
    """Of a list, what can be stored and shown: JSON may carry half a letter, which no encoding would take."""
    texts = values if isinstance(values, list) else []
    return tuple(text for text in texts if isinstance(text, str) and text and text.isprintable())


def _life(value: object) -> int:
    seconds = whole_number(value)
    return seconds if seconds is not None and 0 < seconds <= 10**8 else ASSUMED_LIFE


class Grant(PartnerWire):
    """A user's tokens. Treated as opaque: no public key for them is documented."""

    access_token: str = Field(alias="accessToken", pattern=_VISIBLE)
    refresh_token: str | None = Field(None, alias="refreshToken", pattern=_VISIBLE)
    expires_in: Annotated[int, BeforeValidator(_life)] = Field(ASSUMED_LIFE, alias="expiresIn")

    @override
    def __repr__(self) -> str:
        return "Grant(...)"

    __str__ = __repr__


@dataclass(frozen=True)
class Member:
    """Who logged in. Only `user_key` is certain; `closed` holds the encrypted fields as they came."""

    user_key: int
    scopes: tuple[str, ...]
    agreed_terms: tuple[str, ...]
    closed: Mapping[str, object]

    @override
    def __repr__(self) -> str:
        return "Member(...)"

    def open(self, cipher: LoginFieldCipher) -> "Profile":
        """Field by field: one that does not open costs that field (G3)."""
        opened, unreadable = {}, []
        for name, value in self.closed.items():
            try:
                opened[name] = cipher.open(value)
            except EnvelopeError:
                unreadable.append(name)
        return Profile(opened, tuple(unreadable))


@dataclass(frozen=True)
class Profile:
    personal: Mapping[str, str]
    unreadable: tuple[str, ...]

    @override
    def __repr__(self) -> str:
        return "Profile(...)"


class LoginApi:
    """One method per endpoint, L1 to L5 and A1; every method says when it may be called again."""

    def __init__(self, *, partner: PartnerApi) -> None:
        self._partner = partner
        self.observe = partner.observe

    @observed("login.exchange")
    async def exchange(self, code: str, referrer: str) -> Grant:
        """Both exactly as the mini-app got them: another letter case makes the code invalid (reference 6.1).

        A code serves once. After a lost answer, trying again does no harm and is mostly refused.

        Raises: TossError; TossRejected with `invalid_grant` for a code that is used, expired or not ours.
        """
        body = {"authorizationCode": code, "referrer": referrer}
        return (await self._partner.post(f"{OAUTH}/generate-token", body)).parse(Grant)

    @observed("login.refresh")
    async def refresh(self, refresh_token: str, *, lane: Lane = Lane.INTERACTIVE) -> Grant:
        """Whether the old token survives is open (reference 6.3): keep what comes back, and let one ask at a time.

        Raises: TossError.
        """
        payload = await self._partner.post(f"{OAUTH}/refresh-token", {"refreshToken": refresh_token}, lane=lane)
        return payload.parse(Grant)

    @observed("login.me")
    async def me(self, access_token: str, *, lane: Lane = Lane.INTERACTIVE) -> Member:
        """A lost answer is asked for once more by itself.

        Raises: TossError.
        """
        try:
            payload = await self._partner.get(f"{OAUTH}/login-me", bearer=access_token, lane=lane)
        except OutcomeUnknown:
            payload = await self._partner.get(f"{OAUTH}/login-me", bearer=access_token, lane=lane)
        return _member(payload)

    @observed("login.unlink_by_token")
    async def unlink_by_token(self, access_token: str, *, lane: Lane = Lane.INTERACTIVE) -> None:
        """End the link that this token belongs to. Toss does not call back for it. May be repeated.

        Raises: TossError; TossRejected also when the link is gone already.
        """
        await self._partner.post(f"{OAUTH}/access/remove-by-access-token", {}, bearer=access_token, lane=lane)

    @observed("login.unlink_by_user_key")
    async def unlink_by_user_key(
        self, user_key: int, *, access_token: str | None, lane: Lane = Lane.INTERACTIVE
    ) -> None:
        """As above; whether the token is needed is disputed (reference 6.6), so it goes along when there is one.

        Slow for users with many tokens: not to be repeated right away.
        """
        path = f"{OAUTH}/access/remove-by-user-key"
        await self._partner.post(path, {"userKey": user_key}, bearer=access_token, lane=lane)

    @observed("login.verify_anon_key")
    async def verify_anon_key(self, anon_key: str) -> None:
        """Whether Toss issued this key for this mini-app. It does not prove whose it is. May be repeated.

        Raises: TossError; TossRejected for a key that Toss does not know, in whichever of the seen forms.
        """
        if _ANON_KEY.fullmatch(anon_key) is None:  # Toss issues none that a header cannot hold
            raise TossRejected(http_status=0, error_code=NOT_VERIFIED)
        path, headers = f"{PREFIX}/users/anon-key/verify", {"x-anon-key": anon_key}
        try:
            payload = await self._partner.post(path, {}, headers=headers)
        except Unintelligible as error:
            if error.http_status != HTTP_UNAUTHORIZED:
                raise
            raise TossRejected(http_status=error.http_status, error_code=NOT_VERIFIED) from None
        if str(payload.content).strip().lower() != "true":
            raise TossRejected(http_status=payload.http_status, error_code=NOT_VERIFIED)


def _member(payload: Payload) -> Member:
    fields: dict[str, Any] = payload.fields()
    user_key = user_key_of(fields.get("userKey"))
    if user_key is None:
        raise Unintelligible("no userKey", http_status=payload.http_status)
    terms = fields.get("agreedTerms")
    terms = fields.get("agreeTerms") if terms is None else terms  # as one community DTO spells it (reference 6.4)
    return Member(
        user_key=user_key,
        scopes=scopes_of(fields.get("scope")),
        agreed_terms=plain_texts(terms),
        closed={name: fields[name] for name in PROFILE_FIELDS if fields.get(name) not in (None, "", "null")},
    )
