"""Callbacks on the wire: how Toss's are read, and what the partner's server sees of notices."""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Self
from urllib.parse import parse_qs

from pydantic import Field

from app.callbacks.inbox import CONSOLE_TEST, REGISTRATION, Arrival, Content
from app.callbacks.tables import CallbackName, Notice, NoticeState
from app.database import Page
from app.toss.iap import instant_of
from app.toss.login import MAX_USER_KEY
from app.toss.partner import plain_text, whole_number
from app.wire import Wire

MAX_REFERRER = 64
MAX_FIELDS = 50
ORDER_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
ORDER_NO = re.compile(r"[A-Za-z0-9_:.^@-]{1,50}")
WORD = re.compile(r"[A-Za-z0-9_.]{1,64}")
"""A value of an enumeration, known or new."""
CONSOLE_USER_KEY = 0
USER_KEY_SPELLINGS = ("userKey", "user_key")
"""The second was seen by some receivers (apps-in-toss reference 14.1)."""


# --- From Toss --------------------------------------------------------------------------------------------


def login_unlink_of_query(query: bytes) -> Arrival:
    """The GET form. Never fails: what cannot be read is kept as it came."""
    try:
        given = parse_qs(query.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        given = {}
    # Of two different values neither is believed.
    fields = {name: values[0] for name, values in given.items() if len(set(values)) == 1}
    return _login_unlink(fields, query, b"")


def login_unlink_of_body(query: bytes, body: bytes) -> Arrival:
    """The POST form: JSON, whatever its Content-Type says. Never fails either."""
    return _login_unlink(_fields(body), query, body)


def iap_subscription(query: bytes, body: bytes) -> Arrival:
    """What has become of a subscription, or the check of a new address (reference 14.2). Never fails."""
    callback, fields = CallbackName.IAP_SUBSCRIPTION, _fields(body)
    content = _subscription_change(fields)
    match _matching(WORD, fields.get("eventType")):
        case "callback.registration_verification":
            return Arrival(callback, _as_it_came(query, body), state=NoticeState.HANDLED, outcome=REGISTRATION)
        case "subscription.status_changed" if content is not None:
            return Arrival(callback, content)
        case None | "subscription.status_changed":
            return Arrival(callback, _as_it_came(query, body), state=NoticeState.UNREADABLE)
        case _:  # a new one
            return kept(callback, query, body)


def payment(query: bytes, body: bytes) -> Arrival:
    """That something has happened to a payment; what it is, Toss is asked (reference 14.4). Never fails."""
    fields = _fields(body)
    order_no = _matching(ORDER_NO, fields.get("orderNo"))
    if order_no is None:
        return Arrival(CallbackName.PAYMENT, _as_it_came(query, body), state=NoticeState.UNREADABLE)
    content = {"orderNo": order_no, "status": _matching(WORD, fields.get("status")), "body": _legible(body)}
    return Arrival(CallbackName.PAYMENT, content)


def _subscription_change(fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """Under Toss's names, on one level. None when it does not say which order is in what state, and since when."""
    subscription = fields.get("subscription")
    current = subscription.get("current") if isinstance(subscription, dict) else None
    if not isinstance(current, dict):  # a `status` above it is of something else (reference 14.2)
        return None
    occurred_at = plain_text(fields.get("occurredAt"))
    content = {
        "orderId": _matching(ORDER_ID, fields.get("orderId")),
        "sku": plain_text(fields.get("sku")),
        "occurredAt": occurred_at,
        "changeReason": _matching(WORD, fields.get("changeReason")),
        "status": _matching(WORD, current.get("status")),
        "accessGranted": _flag(current.get("accessGranted")),
    }
    if None in content.values() or instant_of(occurred_at, UTC) is None:
        return None
    return content | {
        "expiresAt": plain_text(current.get("expiresAt")),
        "autoRenew": _flag(current.get("autoRenew")),
    }


def _fields(body: bytes) -> dict[str, Any]:
    """Of a JSON object; none for anything else."""
    try:
        fields = json.loads(body, object_pairs_hook=_without_contradictions)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _matching(pattern: re.Pattern[str], value: object) -> str | None:
    return value if isinstance(value, str) and pattern.fullmatch(value) else None


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _without_contradictions(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two different values under one name neither is believed."""
    fields: dict[str, Any] = {}
    doubtful = set()
    for name, value in pairs:
        if name in fields and fields[name] != value:
            doubtful.add(name)
        fields[name] = value
    return {name: value for name, value in fields.items() if name not in doubtful}


def kept(callback: CallbackName, query: bytes, body: bytes) -> Arrival:
    """A callback whose payload is not documented (apps-in-toss reference 13.4, 14.3)."""
    return Arrival(callback, _as_it_came(query, body), state=NoticeState.KEPT)


def _login_unlink(fields: Mapping[str, Any], query: bytes, body: bytes) -> Arrival:
    callback = CallbackName.LOGIN_UNLINK
    found = {_user_key(fields.get(spelling)) for spelling in USER_KEY_SPELLINGS} - {None}
    user_key = found.pop() if len(found) == 1 else None
    if user_key is None:
        return Arrival(callback, _as_it_came(query, body), state=NoticeState.UNREADABLE)
    content = {"userKey": user_key, "referrer": _referrer(fields.get("referrer"))}
    if user_key == CONSOLE_USER_KEY:
        return Arrival(callback, content, state=NoticeState.HANDLED, outcome=CONSOLE_TEST)
    return Arrival(callback, content, user_key=user_key)


def _user_key(value: object) -> int | None:
    """A number, or some receivers saw its decimal text (apps-in-toss reference 14.1)."""
    number = whole_number(value)
    return number if number is not None and 0 <= number <= MAX_USER_KEY else None


def _referrer(value: object) -> str:
    """Any text, because new ones may come; without one the user has gone all the same."""
    text = value if isinstance(value, str) else ""
    return text[:MAX_REFERRER].encode("utf-8", "replace").decode()  # JSON can smuggle in half a character


def _as_it_came(query: bytes, body: bytes) -> dict[str, Any]:
    return {"query": _legible(query), "body": _legible(body)}


def _legible(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


# --- On our wire ------------------------------------------------------------------------------------------


class ReceivedBody(Wire):
    received: bool = True


class NoticeBody(Wire):
    notice_id: str
    callback: str
    state: str
    outcome: str | None = Field(description="What became of it; null while it is open")
    received_at: datetime
    last_received_at: datetime
    deliveries: int = Field(description="How often it arrived while it was open")
    attempts: int = Field(description="To handle it, failed and successful")
    next_attempt_at: datetime | None = Field(description="Of an open one: from when on `reconcile` handles it")
    handled_at: datetime | None

    @classmethod
    def of(cls, notice: Notice) -> Self:
        return cls(**_shown(notice))


class NoticeWithContentBody(NoticeBody):
    content: dict[str, Any] = Field(
        description="As it was read (login-unlink: `userKey`, `referrer`; payment: `orderNo`, `status`, `body`; "
        "iap-subscription: `orderId`, and what it says of the subscription), or the raw `query` and `body`"
    )

    @classmethod
    def with_content(cls, notice: Notice, content: Content) -> Self:
        return cls(**_shown(notice), content=dict(content))


class NoticesBody(Wire):
    notices: list[NoticeBody] = Field(description="Newest first, without content")
    next: str | None = Field(description="`before` of the next page; null at the end")

    @classmethod
    def of(cls, page: Page[Notice]) -> Self:
        return cls(notices=[NoticeBody.of(notice) for notice in page.items], next=page.next)


def _shown(notice: Notice) -> dict[str, Any]:
    return {name: getattr(notice, name) for name in NoticeBody.model_fields}
