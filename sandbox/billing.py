"""What Toss remembers of billing keys (reference of Apps in Toss, 9; else as plain Toss Pay has it)."""

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sandbox.clock import Clock, pay_time
from sandbox.payments import Charge, Kind, Payment, Payments, PayStatus
from sandbox.shared import CallFailed, NotPossible, changing
from sandbox.switches import Switches


class KeyStatus(StrEnum):
    CREATE = "CREATE"
    """Not authenticated."""
    AUTH = "AUTH"
    ACTIVE = "ACTIVE"
    REMOVE = "REMOVE"
    FAIL = "FAIL"
    CANCEL = "CANCEL"


_PENDING = (KeyStatus.CREATE, KeyStatus.AUTH)

# How a key that is not active answers a charge; which name goes with which status is inferred (reference 8.8).
_REFUSALS = {
    KeyStatus.CREATE: "BILLING_KEY_AUTH_ERROR",
    KeyStatus.AUTH: "BILLING_KEY_AUTH_ERROR",
    KeyStatus.FAIL: "BILLING_KEY_AUTH_ERROR",
    KeyStatus.CANCEL: "BILLING_KEY_REGISTRATION_CANCELLED",
    KeyStatus.REMOVE: "BILLING_KEY_UNREGISTERED_BY_CANCEL",
}


@dataclass(kw_only=True)
class BillingKey:
    id: str
    """The sandbox's own name for it: what counts and faults go by, as the token is a secret."""
    app: str
    user: str
    wrapped_token: str = field(repr=False)
    product_desc: str
    is_test: bool
    made_at: datetime
    status: KeyStatus = KeyStatus.CREATE


class Billing:
    """Methods of the device name a key by its wrappedToken, as the SDK does, or by its id."""

    def __init__(
        self, clock: Clock, changed: threading.Condition, switches: Callable[[], Switches], payments: Payments
    ) -> None:
        self._clock = clock
        self._changed = changed
        self._switches = switches
        self._payments = payments
        self.clear()

    def clear(self) -> None:
        with changing(self._changed):
            self._keys: dict[str, BillingKey] = {}

    # The partner API. All of it raises `CallFailed`.

    def create(self, app: str, user: str, *, product_desc: str, is_test: bool) -> BillingKey:
        with changing(self._changed):
            key = BillingKey(
                id=f"key-{len(self._keys) + 1}",
                app=app,
                user=user,
                wrapped_token=secrets.token_urlsafe(32),
                product_desc=product_desc,
                is_test=is_test,
                made_at=self._clock.now(),
            )
            self._keys[key.id] = key
            return replace(key)

    def charge(
        self, app: str, user: str, wrapped_token: str, charge: Charge, *, is_test: bool | None = None
    ) -> Payment:
        """Live or test as the key is; `is_test` must not say otherwise."""
        with changing(self._changed):
            key = self._active(app, user, wrapped_token)
            if is_test not in (None, key.is_test):
                raise CallFailed("COMMON_BILLING_KEY_NOT_FOUND", "the key is of the other mode")
            charge = replace(charge, is_test=key.is_test)
            made = self._payments.add(app, user, charge, Kind.BILLING, PayStatus.APPROVED)
            return self._payments.take_money(app, made.order_no)

    def look_up(self, app: str, user: str, wrapped_token: str) -> BillingKey:
        with self._changed:
            return replace(self._owned(app, user, wrapped_token))

    def remove(self, app: str, user: str, wrapped_token: str) -> None:
        with changing(self._changed):
            self._active(app, user, wrapped_token).status = KeyStatus.REMOVE

    def id_of(self, app: str, wrapped_token: str) -> str | None:
        with self._changed:
            found = (key for key in self._keys.values() if (key.app, key.wrapped_token) == (app, wrapped_token))
            return next((key.id for key in found), None)

    # The device. All of it raises `NotPossible`.

    def keys(self) -> list[BillingKey]:
        """Copies, oldest first."""
        with self._changed:
            return [replace(self._aged(key)) for key in self._keys.values()]

    def key(self, key: str) -> BillingKey:
        """A copy."""
        with self._changed:
            return replace(self._named(key))

    def authenticate(self, key: str, *, is_active: bool = True) -> None:
        """`requestTossPayPaysBilling` with success; not active at once, it is AUTH until the next time."""
        with changing(self._changed):
            self._named(key, *_PENDING).status = KeyStatus.ACTIVE if is_active else KeyStatus.AUTH

    def cancel(self, key: str) -> None:
        with changing(self._changed):
            self._named(key, *_PENDING).status = KeyStatus.CANCEL

    def remove_by_user(self, key: str) -> None:
        """In the Toss app; nobody is told."""
        with changing(self._changed):
            self._named(key, KeyStatus.ACTIVE).status = KeyStatus.REMOVE

    def snapshot(self) -> list[dict[str, Any]]:
        """Without users and tokens."""
        return [
            {
                "id": key.id,
                "appName": key.app,
                "productDesc": key.product_desc,
                "isTestPayment": key.is_test,
                "status": key.status.value,
                "createdTs": pay_time(key.made_at),
            }
            for key in self.keys()
        ]

    # All of these are called with the lock held.

    def _owned(self, app: str, user: str, wrapped_token: str) -> BillingKey:
        key = self._keys.get(self.id_of(app, wrapped_token) or "")
        if key is None:
            raise CallFailed("COMMON_BILLING_KEY_NOT_FOUND", "there is no such key")
        if key.user != user:
            raise CallFailed("PAY_UNAUTHORIZED", "it is another user's")
        return self._aged(key)

    def _active(self, app: str, user: str, wrapped_token: str) -> BillingKey:
        key = self._owned(app, user, wrapped_token)
        if key.status is not KeyStatus.ACTIVE:
            raise CallFailed(_REFUSALS[key.status], f"this key is {key.status}")
        return key

    def _named(self, name: str, *wanted: KeyStatus) -> BillingKey:
        key = next((each for each in self._keys.values() if name in (each.wrapped_token, each.id)), None)
        if key is None:
            raise NotPossible("there is no such billing key")
        self._aged(key)
        if wanted and key.status not in wanted:
            raise NotPossible(f"this billing key is {key.status}")
        return key

    def _aged(self, key: BillingKey) -> BillingKey:
        # 15 minutes to authenticate; that the status is then FAIL is inferred.
        life = timedelta(seconds=self._switches().payment_life_seconds)
        if key.status in _PENDING and self._clock.now() >= key.made_at + life:
            key.status = KeyStatus.FAIL
        return key
