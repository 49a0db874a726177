"""The hand with which Toss calls back (reference of Apps in Toss, 14)."""

import base64
import contextlib
import ssl
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import httpx2
from pydantic import Field

from sandbox.clock import KOREA, Clock, korean_time
from sandbox.miniapps import DEFAULT_APP, UnlinkReferrer
from sandbox.shared import NotPossible, changing
from sandbox.switches import WireModel

CONSOLE_ORIGIN = "https://apps-in-toss.toss.im"
_CONSOLE_USER_KEY = 0
_LONGEST_KEPT_BODY = 2_000


class CallbackKind(StrEnum):
    LOGIN_UNLINK = "login-unlink"
    """C1 (14.1)."""
    IAP_SUBSCRIPTION = "iap-subscription"
    """C2 (14.2)."""
    PAYMENT = "payment"
    """Not documented for Apps in Toss; as in plain Toss Pay (14.4)."""


class Method(StrEnum):
    GET = "GET"
    POST = "POST"


class AuthEncoding(StrEnum):
    """How the console's value arrives; the sources contradict each other (reference 14.0)."""

    RAW = "raw"
    BASE64 = "base64"
    BASIC_RAW = "basic_raw"
    BASIC_BASE64 = "basic_base64"
    BEARER_RAW = "bearer_raw"
    BEARER_BASE64 = "bearer_base64"

    def header(self, value: str) -> str:
        scheme, _, form = self.value.rpartition("_")
        text = base64.b64encode(value.encode()).decode() if form == "base64" else value
        return f"{scheme.capitalize()} {text}" if scheme else text


class Zone(StrEnum):
    KOREA = "Asia/Seoul"
    UTC = "UTC"


class CallbackSettings(WireModel):
    """What the console knows of a mini-app's receiver for one kind, and how Toss happens to behave."""

    url: str | None = None
    """None: no callback is set up, so none is sent."""
    method: Method = Method.POST
    """For login-unlink; the others are POST always."""
    auth_value: str | None = None
    """None: no Authorization header."""
    encoding: AuthEncoding = AuthEncoding.BASIC_BASE64
    user_key_as_text: bool = False
    user_key_spelling: str = "userKey"
    """Some saw `user_key`."""
    zone: Zone = Zone.KOREA
    """Of the times in iap-subscription, which name none."""
    fractions: bool = False
    """Whether those times have some."""
    is_automatic: bool = True
    """Off: notices wait until they are delivered by order, so that they can be late, doubled or swapped."""
    copies: int = Field(default=1, ge=0)
    """How often each is delivered."""
    delay_seconds: float = Field(default=0.0, ge=0.0)
    """By the sandbox's clock; a delayed notice waits for a delivery by order."""
    retries: int = Field(default=0, ge=0)
    """How often an answer other than 2xx, or none, is tried again; at once. Whether Toss does is not known."""
    console_origin: str = CONSOLE_ORIGIN
    source_address: str | None = None
    """A loopback address to call from, to try an allowlist."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Added to every call, and winning: what a proxy in between would say, or a forged header."""
    ca_file: str | None = None
    """Which CA to trust for an https receiver; None: the system's."""
    timeout_seconds: float = Field(default=10.0, gt=0.0)

    def time(self, instant: datetime) -> str:
        local = instant.astimezone(KOREA if self.zone is Zone.KOREA else UTC).replace(tzinfo=None)
        return local.isoformat(timespec="microseconds" if self.fractions else "seconds")


_USUAL = {
    CallbackKind.LOGIN_UNLINK: CallbackSettings(),
    CallbackKind.IAP_SUBSCRIPTION: CallbackSettings(encoding=AuthEncoding.BEARER_RAW),  # as it was measured
    CallbackKind.PAYMENT: CallbackSettings(),
}


@dataclass
class Notice:
    id: int
    kind: CallbackKind
    app_name: str
    body: dict[str, Any] = field(repr=False)
    made_at: datetime
    due_at: datetime
    is_delivered: bool = False
    """Once at least, whatever the answer."""


@dataclass(frozen=True)
class Delivery:
    """One call and what came of it."""

    notice_id: int | None
    """None: the console's test."""
    method: str
    at: datetime
    status: int | None
    body: str = field(repr=False)
    error: str | None = None
    """Why there is no status."""

    @property
    def is_success(self) -> bool:
        return self.status is not None and 200 <= self.status < 300  # noqa: PLR2004


@dataclass(frozen=True)
class ConsoleTest:
    """The console's test button, as the browser that shows the console carries it out."""

    preflight: Delivery
    is_preflight_allowed: bool
    call: Delivery | None
    """None: the browser did not get so far."""
    is_answer_readable: bool = False

    @property
    def is_success(self) -> bool:
        """The success toast appears."""
        return self.call is not None and self.call.is_success and self.is_answer_readable


class Callbacks:
    def __init__(self, clock: Clock, changed: threading.Condition) -> None:
        self._clock = clock
        self._changed = changed
        self.clear()

    def clear(self) -> None:
        with changing(self._changed):
            self._settings: dict[tuple[str, CallbackKind], CallbackSettings] = {}
            self._notices: list[Notice] = []
            self._deliveries: list[Delivery] = []

    def settings(
        self, app_name: str = DEFAULT_APP, *, kind: CallbackKind | str = CallbackKind.LOGIN_UNLINK
    ) -> CallbackSettings:
        chosen = CallbackKind(kind)
        with self._changed:
            return self._settings.get((app_name, chosen), _USUAL[chosen])

    def all_settings(self) -> dict[tuple[str, CallbackKind], CallbackSettings]:
        with self._changed:
            return dict(self._settings)

    def configure(
        self,
        app_name: str = DEFAULT_APP,
        *,
        kind: CallbackKind | str = CallbackKind.LOGIN_UNLINK,
        **changes: object,
    ) -> CallbackSettings:
        """By Python names. Raises pydantic's ValidationError."""
        with changing(self._changed):
            made = self._changed_settings(app_name, kind, changes)
            self._settings[app_name, CallbackKind(kind)] = made
            return made

    def register(self, app_name: str = DEFAULT_APP, **changes: object) -> Delivery:
        """Set up iap-subscription as the console does: it holds once the receiver has answered (14.2).

        Raises pydantic's ValidationError, and `NotPossible` without a URL.
        """
        kind = CallbackKind.IAP_SUBSCRIPTION
        settings = self._changed_settings(app_name, kind, changes)
        body = {
            "eventType": "callback.registration_verification",
            "occurredAt": settings.time(self._clock.now()),
        }
        delivery, _ = self._notify(settings, kind, body)
        if delivery.is_success:
            with changing(self._changed):
                self._settings[app_name, kind] = settings
        return delivery

    def announce(
        self, user_key: int, referrer: UnlinkReferrer | str, *, app_name: str = DEFAULT_APP
    ) -> tuple[Notice, list[Delivery]]:
        """Tell of an unlinking. Any userKey and referrer may be named."""
        body = {"userKey": user_key, "referrer": str(referrer)}
        return self.send(CallbackKind.LOGIN_UNLINK, body, app_name=app_name)

    def send(
        self, kind: CallbackKind | str, body: Mapping[str, Any], *, app_name: str = DEFAULT_APP
    ) -> tuple[Notice, list[Delivery]]:
        """Make a notice and, if nothing is set against it, deliver it."""
        notice, is_now = self._noted(CallbackKind(kind), body, app_name)
        return notice, self.deliver([notice.id]) if is_now else []

    def send_later(self, kind: CallbackKind, body: Mapping[str, Any], *, app_name: str) -> None:
        """As `send`, but wait for nothing: the receiver may ask Toss something before it answers."""
        notice, is_now = self._noted(kind, body, app_name)
        if is_now:
            threading.Thread(target=self._deliver_or_not, args=(notice.id,), name="callback", daemon=True).start()

    def _deliver_or_not(self, notice_id: int) -> None:
        with contextlib.suppress(NotPossible):  # a reset came first
            self.deliver([notice_id])

    def _noted(self, kind: CallbackKind, body: Mapping[str, Any], app_name: str) -> tuple[Notice, bool]:
        """And whether it is to be delivered at once."""
        with changing(self._changed):
            settings, now = self.settings(app_name, kind=kind), self._clock.now()
            due_at = now + timedelta(seconds=settings.delay_seconds)
            notice = Notice(len(self._notices) + 1, kind, app_name, dict(body), now, due_at)
            self._notices.append(notice)
        return notice, settings.is_automatic and settings.url is not None and not settings.delay_seconds

    def deliver(
        self,
        ids: Iterable[int] | None = None,
        *,
        kind: CallbackKind | str | None = None,
        copies: int | None = None,
        reverse: bool = False,
    ) -> list[Delivery]:
        """Deliver these notices in this order, delivered ones again.

        By default all that wait, are due and have somewhere to go; or those of one kind. Raises `NotPossible`.
        """
        with self._changed:
            chosen = self._chosen(ids, kind)
            if any(self._settings_of(notice).url is None for notice in chosen):
                raise NotPossible("no callback URL is set up")
        made: list[Delivery] = []
        for notice in reversed(chosen) if reverse else chosen:
            settings = self._settings_of(notice)
            for _ in range(settings.copies if copies is None else copies):
                made += self._delivered(notice, settings)
        return made

    def test_from_console(self, app_name: str = DEFAULT_APP) -> ConsoleTest:
        """Raises `NotPossible`."""
        settings = self.settings(app_name)
        if settings.url is None:
            raise NotPossible("no callback URL is set up")
        origin = {"Origin": settings.console_origin}
        asked = ["authorization"] if settings.auth_value is not None else []
        if settings.method is Method.POST:
            asked.append("content-type")
        preflight, allowed = self._call(
            settings,
            "OPTIONS",
            settings.url,
            headers=origin
            | {
                "Access-Control-Request-Method": settings.method.value,
                "Access-Control-Request-Headers": ",".join(asked),
            },
        )
        if not (preflight.is_success and _lets_in(allowed, settings.console_origin, asked)):
            return ConsoleTest(preflight, is_preflight_allowed=False, call=None)
        body = {"userKey": _CONSOLE_USER_KEY, "referrer": UnlinkReferrer.UNLINK.value}
        call, answer = self._notify(settings, CallbackKind.LOGIN_UNLINK, body, headers=origin)
        is_readable = _names_origin(answer, settings.console_origin)
        return ConsoleTest(preflight, is_preflight_allowed=True, call=call, is_answer_readable=is_readable)

    def waiting(self) -> list[Notice]:
        with self._changed:
            return [notice for notice in self._notices if not notice.is_delivered]

    def deliveries(self) -> list[Delivery]:
        """All calls ever made, oldest first; the console's tests too."""
        with self._changed:
            return list(self._deliveries)

    def snapshot(self) -> dict[str, object]:
        with self._changed:
            return {
                "notices": [
                    {
                        "id": notice.id,
                        "appName": notice.app_name,
                        "kind": notice.kind.value,
                        "about": _about(notice),
                        "madeAt": korean_time(notice.made_at),
                        "dueAt": korean_time(notice.due_at),
                        "isDelivered": notice.is_delivered,
                    }
                    for notice in self._notices
                ],
                "deliveries": [shown(delivery) for delivery in self._deliveries[-200:]],
            }

    def _settings_of(self, notice: Notice) -> CallbackSettings:
        return self.settings(notice.app_name, kind=notice.kind)

    def _changed_settings(
        self, app_name: str, kind: CallbackKind | str, changes: Mapping[str, object]
    ) -> CallbackSettings:
        return CallbackSettings.model_validate(self.settings(app_name, kind=kind).model_dump() | dict(changes))

    def _chosen(self, ids: Iterable[int] | None, kind: CallbackKind | str | None) -> list[Notice]:
        if ids is None:
            now = self._clock.now()
            return [
                notice
                for notice in self._notices
                if not notice.is_delivered
                and notice.due_at <= now
                and kind in (None, notice.kind)
                and self._settings_of(notice).url is not None
            ]
        known = {notice.id: notice for notice in self._notices}
        chosen = list(ids)
        if not known.keys() >= set(chosen):
            raise NotPossible("there is no such notice")
        return [known[each] for each in chosen]

    def _delivered(self, notice: Notice, settings: CallbackSettings) -> list[Delivery]:
        made: list[Delivery] = []
        while len(made) <= settings.retries and not (made and made[-1].is_success):
            delivery, _ = self._notify(settings, notice.kind, notice.body, notice_id=notice.id)
            made.append(delivery)
        with changing(self._changed):
            notice.is_delivered = True
        return made

    def _notify(
        self,
        settings: CallbackSettings,
        kind: CallbackKind,
        body: Mapping[str, Any],
        *,
        notice_id: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[Delivery, httpx2.Headers]:
        if settings.url is None:
            raise NotPossible("no callback URL is set up")
        fields = dict(body)
        if kind is CallbackKind.LOGIN_UNLINK:
            user_key = fields.pop("userKey")
            spelt = str(user_key) if settings.user_key_as_text else user_key
            fields = {settings.user_key_spelling: spelt, **fields}
        sent = dict(headers or {})
        if settings.auth_value is not None:
            sent["Authorization"] = settings.encoding.header(settings.auth_value)
        is_get = kind is CallbackKind.LOGIN_UNLINK and settings.method is Method.GET
        url = httpx2.URL(settings.url).copy_merge_params(fields) if is_get else settings.url
        method = Method.GET if is_get else Method.POST
        return self._call(
            settings, method.value, url, headers=sent, json=None if is_get else fields, notice_id=notice_id
        )

    def _call(
        self,
        settings: CallbackSettings,
        method: str,
        url: httpx2.URL | str,
        *,
        headers: dict[str, str],
        json: dict[str, Any] | None = None,
        notice_id: int | None = None,
    ) -> tuple[Delivery, httpx2.Headers]:
        at = self._clock.now()
        status, body, error, answer = None, "", None, httpx2.Headers()
        try:
            with _client(settings) as client:
                response = client.request(method, url, headers=headers | settings.headers, json=json)
            status, body, answer = response.status_code, response.text[:_LONGEST_KEPT_BODY], response.headers
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as failure:
            error = type(failure).__name__
        delivery = Delivery(notice_id, method, at, status, body, error)
        with changing(self._changed):
            self._deliveries.append(delivery)
        return delivery, answer


def _about(notice: Notice) -> str:
    """Whom or what, and what happened; of a body, only this is shown."""
    names = ("userKey", "referrer", "orderId", "changeReason", "orderNo", "status")
    return " ".join(str(notice.body[name]) for name in names if name in notice.body)


def shown(delivery: Delivery) -> dict[str, object]:
    return {
        "noticeId": delivery.notice_id,
        "method": delivery.method,
        "at": korean_time(delivery.at),
        "status": delivery.status,
        "body": delivery.body,
        "error": delivery.error,
    }


def _client(settings: CallbackSettings) -> httpx2.Client:
    assert settings.url is not None
    # A plain context for plain HTTP: reading the system's CAs takes longer than the call.
    is_tls = settings.url.lower().startswith("https:")
    trust = (
        ssl.create_default_context(cafile=settings.ca_file) if is_tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    )
    transport = httpx2.HTTPTransport(verify=trust, local_address=settings.source_address)
    return httpx2.Client(transport=transport, trust_env=False, timeout=settings.timeout_seconds)


def _names_origin(answer: httpx2.Headers, origin: str) -> bool:
    return answer.get("access-control-allow-origin") in (origin, "*")


def _lets_in(answer: httpx2.Headers, origin: str, asked: list[str]) -> bool:
    """As the fetch standard has it: GET and POST need no permission, and `*` does not cover Authorization."""
    listed = {name.strip().lower() for name in answer.get("access-control-allow-headers", "").split(",")}
    covered = listed | ({"content-type"} if "*" in listed else set())
    return _names_origin(answer, origin) and set(asked) <= covered
