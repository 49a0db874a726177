"""What Toss remembers of mini-apps, their users and their logins (reference of Apps in Toss, 6, 7 and 15.3)."""

import base64
import hashlib
import secrets
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from sandbox.clock import Clock
from sandbox.personas import Persona, personas
from sandbox.shared import CallFailed, NotPossible, changing
from sandbox.switches import RefreshRotation, Switches

DEFAULT_APP = "my-granite-app"
ACCESS_SECONDS = 3_599

_CODE_LIFE = timedelta(minutes=10)
_REFRESH_LIFE = timedelta(days=14)


class Scope(StrEnum):
    """As login-me spells them; gender and nationality are inferred from the console's USER_… names."""

    NAME = "user_name"
    PHONE = "user_phone"
    BIRTHDAY = "user_birthday"
    CI = "user_ci"
    GENDER = "user_gender"
    NATIONALITY = "user_nationality"
    EMAIL = "user_email"


class Referrer(StrEnum):
    """Where a login came from."""

    DEFAULT = "DEFAULT"
    SANDBOX = "SANDBOX"


class UnlinkReferrer(StrEnum):
    """Why a user's link ended."""

    UNLINK = "UNLINK"
    WITHDRAWAL_TERMS = "WITHDRAWAL_TERMS"
    WITHDRAWAL_TOSS = "WITHDRAWAL_TOSS"


class InvalidGrant(Exception):
    """A code or token that is not in force. The message says why, and holds no code and no token."""


@dataclass(frozen=True, kw_only=True, repr=False)
class TossUser:
    id: str
    name: str
    phone: str
    birthday: str
    gender: str
    nationality: str
    ci: str
    email: str | None = None
    calling_code: str = "82"


@dataclass(frozen=True, kw_only=True)
class MiniApp:
    name: str
    scopes: frozenset[Scope] = frozenset(Scope)
    """What the console asks the user for."""
    agreed_terms: tuple[str, ...] = ("terms_1",)
    is_login_configured: bool = True
    """Off: 4050."""
    aad: str = "TOSS"

    @property
    def decryption_key(self) -> str:
        return _key_text(f"first key of {self.name}")

    @property
    def second_decryption_key(self) -> str:
        return _key_text(f"second key of {self.name}")


@dataclass(kw_only=True)
class Link:
    """A user at a mini-app. The userKey stays when the link ends."""

    app: str
    user: str
    user_key: int
    is_linked: bool = False
    consents: frozenset[Scope] = frozenset()
    generation: int = 0
    """Codes and tokens of an earlier one are not in force: unlinking deletes them all (reference 14.1)."""


@dataclass(frozen=True)
class HandOff:
    """What `appLogin()` gives the mini-app, and whether the user saw the terms."""

    authorization_code: str = field(repr=False)
    referrer: str
    asked_for_consent: bool


@dataclass(frozen=True)
class Grant:
    user_key: int
    user: str
    scopes: tuple[str, ...]
    refresh_token: str = field(repr=False)
    generation: int = field(repr=False)


@dataclass
class _Code:
    link: Link
    generation: int
    referrer: str
    issued_at: datetime
    is_used: bool = False


@dataclass(frozen=True)
class _Token:
    link: Link
    generation: int
    expires_at: datetime


class MiniApps:
    def __init__(self, clock: Clock, changed: threading.Condition, switches: Callable[[], Switches]) -> None:
        self._clock = clock
        self._changed = changed
        self._switches = switches
        self.clear()

    def clear(self) -> None:
        with changing(self._changed):
            self._apps: dict[str, MiniApp] = {DEFAULT_APP: MiniApp(name=DEFAULT_APP)}
            self._users = {persona.key: _as_user(persona) for persona in personas().values()}
            self._links: dict[tuple[str, str], Link] = {}
            self._codes: dict[str, _Code] = {}
            self._access: dict[str, _Token] = {}
            self._refresh: dict[str, _Token] = {}
            self._anon_keys: dict[str, tuple[str, str]] = {}
            self._revoked: frozenset[int] = frozenset()

    # The console

    def app(self, name: str) -> MiniApp:
        """A certificate exists only for a registered mini-app, so a name that is new here is made one."""
        with changing(self._changed):
            return self._apps.setdefault(name, MiniApp(name=name))

    def configure(
        self,
        name: str,
        *,
        scopes: Iterable[Scope | str] | None = None,
        agreed_terms: Iterable[str] | None = None,
        is_login_configured: bool | None = None,
        aad: str | None = None,
    ) -> MiniApp:
        with changing(self._changed):
            app = self.app(name)
            if scopes is not None:
                app = replace(app, scopes=frozenset(Scope(scope) for scope in scopes))
            if agreed_terms is not None:
                app = replace(app, agreed_terms=tuple(agreed_terms))
            if is_login_configured is not None:
                app = replace(app, is_login_configured=is_login_configured)
            if aad is not None:
                app = replace(app, aad=aad)
            self._apps[name] = app
            return app

    def revoke(self, serial: int) -> None:
        """From now on, on kept connections too. It cannot be undone (reference 2.2), but by a reset."""
        with changing(self._changed):
            self._revoked |= {serial}

    @property
    def revoked(self) -> frozenset[int]:
        with self._changed:
            return self._revoked

    # The device

    def add_user(self, user: TossUser) -> None:
        with changing(self._changed):
            self._users[user.id] = user

    def users(self) -> list[TossUser]:
        with self._changed:
            return list(self._users.values())

    def user(self, user_id: str) -> TossUser | None:
        with self._changed:
            return self._users.get(user_id)

    def user_key(self, user: str, app_name: str = DEFAULT_APP) -> int:
        """Raises `NotPossible`."""
        with changing(self._changed):
            return self._link(app_name, user).user_key

    def is_linked(self, user: str, app_name: str = DEFAULT_APP) -> bool:
        """Raises `NotPossible`."""
        with changing(self._changed):
            return self._link(app_name, user).is_linked

    def log_in(
        self,
        user: str,
        *,
        app_name: str = DEFAULT_APP,
        referrer: Referrer | str = Referrer.DEFAULT,
        scopes: Iterable[Scope | str] | None = None,
    ) -> HandOff:
        """`appLogin()`. `scopes` is what the user agrees to, by default all that the mini-app asks for or, when
        linked already, what was agreed to before. Raises `NotPossible`.
        """
        with changing(self._changed):
            link = self._link(app_name, user)
            asked = not link.is_linked
            if scopes is not None:
                link.consents = frozenset(Scope(scope) for scope in scopes)
            elif asked:
                link.consents = self.app(app_name).scopes
            link.is_linked = True
            code = secrets.token_urlsafe(32)
            chosen = Referrer(referrer)
            self._codes[code] = _Code(link, link.generation, chosen.value, self._clock.now())
            return HandOff(code, chosen.value, asked)

    def anon_key(self, user: str, app_name: str = DEFAULT_APP) -> str:
        """`getAnonymousKey()`: the same text for the same user and mini-app. Raises `NotPossible`."""
        with changing(self._changed):
            self._known(user)
            self.app(app_name)
            text = base64.urlsafe_b64encode(_digest(f"anon key of {user} at {app_name}")).decode().rstrip("=")
            self._anon_keys[text] = (app_name, user)
            return text

    def disconnect(
        self, user: str, *, app_name: str = DEFAULT_APP, referrer: UnlinkReferrer | str = UnlinkReferrer.UNLINK
    ) -> int:
        """The user ends the link in the Toss app, or leaves Toss; the userKey. Raises `NotPossible`."""
        with changing(self._changed):
            link = self._link(app_name, user)
            if not link.is_linked:
                raise NotPossible("this user is not linked to this mini-app")
            self._end(link)
            if UnlinkReferrer(referrer) is UnlinkReferrer.WITHDRAWAL_TOSS:
                del self._users[user]
                self._anon_keys = {text: whose for text, whose in self._anon_keys.items() if whose[1] != user}
            return link.user_key

    # The partner API

    def exchange(self, app_name: str, code: str, referrer: str) -> Grant:
        """Raises `InvalidGrant`, `CallFailed`."""
        with changing(self._changed):
            self._ready(app_name)
            found = self._codes.get(code)
            # That an unknown code, or another mini-app's, is an invalid grant is inferred (reference 6.2).
            if found is None or found.link.app != app_name:
                raise InvalidGrant("this mini-app has no such code")
            if found.is_used:
                raise InvalidGrant("this code was used before")
            if self._clock.now() >= found.issued_at + _CODE_LIFE:
                raise InvalidGrant("this code is older than ten minutes")
            if referrer != found.referrer:
                raise InvalidGrant("the referrer is not the one that came with the code")
            if found.generation != found.link.generation:
                raise InvalidGrant("the user was unlinked since")
            found.is_used = True
            if self._switches().login_ends_older_tokens:
                found.link.generation += 1
            return self._granted(found.link)

    def refresh(self, app_name: str, refresh_token: str) -> Grant:
        """Raises `InvalidGrant`, `CallFailed`."""
        with changing(self._changed):
            self._ready(app_name)
            token = self._in_force(self._refresh.get(refresh_token), app_name)
            rotation = self._switches().refresh_rotation
            if rotation is RefreshRotation.KEEP:
                return self._granted(token.link, keep=refresh_token)
            if rotation is RefreshRotation.ROTATE:
                del self._refresh[refresh_token]
            return self._granted(token.link)

    def remember_access(self, text: str, app_name: str, grant: Grant) -> None:
        with changing(self._changed):
            expires_at = self._clock.now() + timedelta(seconds=ACCESS_SECONDS)
            link = self._links[app_name, grant.user]
            self._access[text] = _Token(link, grant.generation, expires_at)

    def revoke_tokens(self) -> None:
        """Access tokens; refresh tokens go on."""
        with changing(self._changed):
            self._access.clear()

    def of_access_token(self, app_name: str, text: str) -> Link:
        """A copy. Raises `InvalidGrant`, `CallFailed`."""
        with self._changed:
            self._ready(app_name)
            return replace(self._in_force(self._access.get(text), app_name).link)

    def unlink(self, app_name: str, user_key: int) -> None:
        """By the partner; no callback follows (reference 6.6). Raises `CallFailed` when there is no link."""
        with changing(self._changed):
            self._ready(app_name)
            for link in self._links.values():
                if (link.app, link.user_key) == (app_name, user_key) and link.is_linked:
                    self._end(link)
                    return
            if not self._switches().unlink_unknown_is_success:
                raise CallFailed("USER_KEY_NOT_FOUND", "no user is linked by this userKey")

    def user_of_anon_key(self, app_name: str, text: str) -> str | None:
        with self._changed:
            of_app, user = self._anon_keys.get(text, (None, None))
            return user if of_app == app_name else None

    def user_of_key(self, app_name: str, user_key: str) -> str | None:
        """None when no user of that userKey is linked."""
        with self._changed:
            linked = (link for link in self._links.values() if link.app == app_name and link.is_linked)
            return next((link.user for link in linked if str(link.user_key) == user_key), None)

    def snapshot(self) -> dict[str, object]:
        """Everything but people, codes, tokens and keys."""
        with self._changed:
            return {
                "apps": [
                    {
                        "appName": app.name,
                        "scopes": sorted(app.scopes),
                        "agreedTerms": list(app.agreed_terms),
                        "isLoginConfigured": app.is_login_configured,
                    }
                    for app in self._apps.values()
                ],
                "links": [
                    {
                        "appName": link.app,
                        "user": link.user,
                        "userKey": link.user_key,
                        "isLinked": link.is_linked,
                        "consents": sorted(link.consents),
                    }
                    for link in self._links.values()
                ],
                "revoked": [str(serial) for serial in sorted(self._revoked)],
            }

    # All of these are called with the lock held.

    def _known(self, user: str) -> None:
        if user not in self._users:
            raise NotPossible("there is no such Toss user")

    def _link(self, app_name: str, user: str) -> Link:
        if (app_name, user) not in self._links:
            self._known(user)
            self.app(app_name)
            # Nine digits, as in the samples.
            number = int.from_bytes(_digest(f"user key of {user} at {app_name}")[:8], "big")
            self._links[app_name, user] = Link(app=app_name, user=user, user_key=10**8 + number % (9 * 10**8))
        link = self._links[app_name, user]
        if user not in self._users:
            raise NotPossible("this user has left Toss")
        return link

    def _end(self, link: Link) -> None:
        link.is_linked = False
        link.consents = frozenset()
        link.generation += 1

    def _ready(self, app_name: str) -> None:
        if not self.app(app_name).is_login_configured:
            raise CallFailed("4050", "Toss login is not set up for this mini-app")

    def _in_force(self, token: _Token | None, app_name: str) -> _Token:
        if token is None or token.link.app != app_name:
            raise InvalidGrant("this mini-app has no such token")
        if token.generation != token.link.generation:
            raise InvalidGrant("the user was unlinked, or logged in again, since")
        if self._clock.now() >= token.expires_at:
            raise InvalidGrant("this token has expired")
        return token

    def _granted(self, link: Link, *, keep: str | None = None) -> Grant:
        refresh_token = keep
        if refresh_token is None:
            refresh_token = secrets.token_urlsafe(48)
            self._refresh[refresh_token] = _Token(link, link.generation, self._clock.now() + _REFRESH_LIFE)
        return Grant(link.user_key, link.user, scope_names(link), refresh_token, link.generation)


def scope_names(link: Link) -> tuple[str, ...]:
    """`user_key` has been one of them since January 2026 (reference 6.4)."""
    return (*(scope.value for scope in Scope if scope in link.consents), "user_key")


def _as_user(persona: Persona) -> TossUser:
    return TossUser(
        id=persona.key,
        name=persona.name,
        phone=persona.phone,
        birthday=persona.birthday,
        gender=persona.gender,
        nationality=persona.nationality,
        ci=persona.ci,
        email=persona.email,
    )


def _key_text(seed: str) -> str:
    """Made from the name, so that a BFF's settings outlive a restart of the sandbox."""
    return base64.b64encode(_digest(seed)).decode()


def _digest(seed: str) -> bytes:
    return hashlib.sha256(f"sandbox {seed}".encode()).digest()
