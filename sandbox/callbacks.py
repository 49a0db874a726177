"""The hand with which Toss calls back: the login-unlink callback C1 (reference of Apps in Toss, 14.0 and 14.1)."""

import base64
import ssl
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

import httpx2
from pydantic import Field

from sandbox.clock import Clock, korean_time
from sandbox.miniapps import DEFAULT_APP, UnlinkReferrer
from sandbox.shared import NotPossible, changing
from sandbox.switches import WireModel

CONSOLE_ORIGIN = "https://apps-in-toss.toss.im"
_CONSOLE_USER_KEY = 0
_LONGEST_KEPT_BODY = 2_000


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


class CallbackSettings(WireModel):
    """What the console knows of a mini-app's receiver, and how Toss happens to behave."""

    url: str | None = None
    """None: no callback is set up, so none is sent."""
    method: Method = Method.POST
    auth_value: str | None = None
    """None: no Authorization header."""
    encoding: AuthEncoding = AuthEncoding.BASIC_BASE64
    user_key_as_text: bool = False
    user_key_spelling: str = "userKey"
    """Some saw `user_key`."""
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


@dataclass
class Notice:
    id: int
    app_name: str
    user_key: int
    referrer: str
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
            self._settings: dict[str, CallbackSettings] = {}
            self._notices: list[Notice] = []
            self._deliveries: list[Delivery] = []

    def settings(self, app_name: str = DEFAULT_APP) -> CallbackSettings:
        with self._changed:
            return self._settings.get(app_name, CallbackSettings())

    def configure(self, app_name: str = DEFAULT_APP, **changes: object) -> CallbackSettings:
        """By Python names. Raises pydantic's ValidationError."""
        with changing(self._changed):
            made = CallbackSettings.model_validate(self.settings(app_name).model_dump() | changes)
            self._settings[app_name] = made
            return made

    def announce(
        self, user_key: int, referrer: UnlinkReferrer | str, *, app_name: str = DEFAULT_APP
    ) -> tuple[Notice, list[Delivery]]:
        """Make a notice and, if nothing is set against it, deliver it. Any userKey and referrer may be named."""
        with changing(self._changed):
            settings, now = self.settings(app_name), self._clock.now()
            due_at = now + timedelta(seconds=settings.delay_seconds)
            notice = Notice(len(self._notices) + 1, app_name, user_key, str(referrer), now, due_at)
            self._notices.append(notice)
        is_now = settings.is_automatic and settings.url is not None and not settings.delay_seconds
        return notice, self.deliver([notice.id]) if is_now else []

    def deliver(
        self, ids: Iterable[int] | None = None, *, copies: int | None = None, reverse: bool = False
    ) -> list[Delivery]:
        """Deliver these notices in this order, delivered ones again; by default all that wait and are due.

        Raises `NotPossible`.
        """
        with self._changed:
            chosen = self._chosen(ids)
            if any(self.settings(notice.app_name).url is None for notice in chosen):
                raise NotPossible("no callback URL is set up")
        made: list[Delivery] = []
        for notice in reversed(chosen) if reverse else chosen:
            settings = self.settings(notice.app_name)
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
        call, answer = self._notify(settings, _CONSOLE_USER_KEY, UnlinkReferrer.UNLINK.value, headers=origin)
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
                        "userKey": notice.user_key,
                        "referrer": notice.referrer,
                        "madeAt": korean_time(notice.made_at),
                        "dueAt": korean_time(notice.due_at),
                        "isDelivered": notice.is_delivered,
                    }
                    for notice in self._notices
                ],
                "deliveries": [shown(delivery) for delivery in self._deliveries[-200:]],
            }

    def _chosen(self, ids: Iterable[int] | None) -> list[Notice]:
        if ids is None:
            now = self._clock.now()
            return [notice for notice in self._notices if not notice.is_delivered and notice.due_at <= now]
        known = {notice.id: notice for notice in self._notices}
        chosen = list(ids)
        if not known.keys() >= set(chosen):
            raise NotPossible("there is no such notice")
        return [known[each] for each in chosen]

    def _delivered(self, notice: Notice, settings: CallbackSettings) -> list[Delivery]:
        made: list[Delivery] = []
        while len(made) <= settings.retries and not (made and made[-1].is_success):
            delivery, _ = self._notify(settings, notice.user_key, notice.referrer, notice_id=notice.id)
            made.append(delivery)
        with changing(self._changed):
            notice.is_delivered = True
        return made

    def _notify(
        self,
        settings: CallbackSettings,
        user_key: int,
        referrer: str,
        *,
        notice_id: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[Delivery, httpx2.Headers]:
        assert settings.url is not None
        fields: dict[str, int | str] = {
            settings.user_key_spelling: str(user_key) if settings.user_key_as_text else user_key,
            "referrer": referrer,
        }
        sent = dict(headers or {})
        if settings.auth_value is not None:
            sent["Authorization"] = settings.encoding.header(settings.auth_value)
        is_get = settings.method is Method.GET
        url = httpx2.URL(settings.url).copy_merge_params(fields) if is_get else settings.url
        return self._call(
            settings, settings.method.value, url, headers=sent, json=None if is_get else fields, notice_id=notice_id
        )

    def _call(
        self,
        settings: CallbackSettings,
        method: str,
        url: httpx2.URL | str,
        *,
        headers: dict[str, str],
        json: dict[str, int | str] | None = None,
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
