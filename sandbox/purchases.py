"""What Toss remembers of in-app purchases, and how subscriptions move (reference of Apps in Toss, 10 and 14.2)."""

import secrets
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sandbox.callbacks import CallbackKind, Callbacks, Delivery, Notice
from sandbox.clock import Clock, iap_time
from sandbox.miniapps import DEFAULT_APP, MiniApps
from sandbox.shared import NotPossible, changing
from sandbox.switches import Switches


class OrderStatus(StrEnum):
    IN_PROGRESS = "ORDER_IN_PROGRESS"
    PAID = "PAYMENT_COMPLETED"
    PURCHASED = "PURCHASED"
    FAILED = "FAILED"
    REFUNDED = "REFUNDED"


class Shown(StrEnum):
    """What get-order-status may say of an order for a while, whatever it is."""

    NOT_FOUND = "NOT_FOUND"
    ORDER_IN_PROGRESS = "ORDER_IN_PROGRESS"
    PAYMENT_PENDING = "PAYMENT_PENDING"
    """Not in the documentation, but in the community's code (10.1)."""
    ERROR = "ERROR"


_PAID_WORDS = (OrderStatus.PAID, OrderStatus.PURCHASED)


class Cycle(StrEnum):
    WEEKLY = "WEEKLY"
    MONTHLY = "MONTHLY"
    YEARLY = "YEARLY"


_LENGTHS = {Cycle.WEEKLY: timedelta(7), Cycle.MONTHLY: timedelta(30), Cycle.YEARLY: timedelta(365)}


@dataclass(frozen=True)
class Product:
    """One that the page sells. Orders may name any other sku as well."""

    sku: str
    name: str
    price: str
    cycle: Cycle | None = None


PRODUCTS = (
    Product("ait.0000010000.c0ffee.0001.1", "코인 100개", "1,100원"),
    Product("ait.0000010000.c0ffee.0002.1", "월 정기권", "4,400원", Cycle.MONTHLY),
)


class SubscriptionStatus(StrEnum):
    ACTIVE = "ACTIVE"
    EXPIRED = "EXPIRED"
    IN_GRACE_PERIOD = "IN_GRACE_PERIOD"
    ON_HOLD = "ON_HOLD"
    PAUSED = "PAUSED"
    REVOKED = "REVOKED"


class ChangeReason(StrEnum):
    CREATED = "CREATED"
    RENEWED = "RENEWED"
    RECOVERED = "RECOVERED"
    RESTARTED = "RESTARTED"
    ENTERED_GRACE_PERIOD = "ENTERED_GRACE_PERIOD"
    ON_HOLD = "ON_HOLD"
    PAUSED = "PAUSED"
    AUTO_RENEW_ENABLED = "AUTO_RENEW_ENABLED"
    AUTO_RENEW_DISABLED = "AUTO_RENEW_DISABLED"
    EXTENDED = "EXTENDED"
    EXPIRED = "EXPIRED"
    REVOKED = "REVOKED"


@dataclass(frozen=True, kw_only=True)
class Subscription:
    status: SubscriptionStatus
    access_granted: bool
    expires_at: datetime
    is_expiry_told: bool
    """Of a new one, `expiresAt` was measured to be null."""
    auto_renew: bool


@dataclass(kw_only=True)
class IapOrder:
    order_id: str
    app: str
    user: str
    sku: str
    status: OrderStatus
    determined_at: datetime
    shown: Shown | None = None
    shown_asks: int = 0
    shown_until: datetime | None = None
    cycle: Cycle | None = None
    """None: bought once."""
    subscription: Subscription | None = None


@dataclass(frozen=True)
class OrderAnswer:
    status: str
    order: IapOrder | None = field(default=None)
    """None: the answer has neither sku nor time."""


class Purchases:
    def __init__(
        self,
        clock: Clock,
        changed: threading.Condition,
        switches: Callable[[], Switches],
        mini_apps: MiniApps,
        callbacks: Callbacks,
    ) -> None:
        self._clock = clock
        self._changed = changed
        self._switches = switches
        self._mini_apps = mini_apps
        self._callbacks = callbacks
        self.clear()

    def clear(self) -> None:
        with changing(self._changed):
            self._orders: dict[str, IapOrder] = {}

    # The partner API

    def ask(self, app: str, order_id: str, user: str | None) -> OrderAnswer:
        """With `user`, other people's orders are not found (reference 10.1)."""
        with changing(self._changed):
            order = self._orders.get(order_id)
            if order is None or user not in (None, order.user):
                return OrderAnswer("NOT_FOUND")
            if order.app != app:
                return OrderAnswer("MINIAPP_MISMATCH")
            if order.cycle is not None and not self._switches().iap_knows_subscriptions:
                return OrderAnswer("NOT_FOUND")
            if (shown := self._shown(order)) is not None:
                is_known = shown in (Shown.ORDER_IN_PROGRESS, Shown.PAYMENT_PENDING)
                return OrderAnswer(shown.value, replace(order) if is_known else None)
            status = order.status
            if self._switches().iap_words_of_2025 and status in _PAID_WORDS:
                (status,) = set(_PAID_WORDS) - {status}
            return OrderAnswer(status.value, replace(order))

    def _shown(self, order: IapOrder) -> Shown | None:
        if order.shown_asks > 0:
            order.shown_asks -= 1
            return order.shown
        is_early = order.shown_until is not None and self._clock.now() < order.shown_until
        return order.shown if is_early else None

    # The device and the stores. All of it raises `NotPossible`.

    def buy(
        self,
        user: str,
        sku: str,
        *,
        app_name: str = DEFAULT_APP,
        is_paid: bool = True,
        shown: Shown | str = Shown.NOT_FOUND,
        shown_asks: int = 0,
        shown_seconds: float = 0.0,
    ) -> str:
        """The orderId that `processProductGrant` is given. `shown…`: as `show` has it."""
        with changing(self._changed):
            order = self._new(user, sku, app_name, is_paid=is_paid)
            self.show(order.order_id, shown, asks=shown_asks, seconds=shown_seconds)
            return order.order_id

    def show(self, order_id: str, shown: Shown | str, *, asks: int = 0, seconds: float = 0.0) -> None:
        """The status that the next questions get, and all until so many seconds from now by the clock."""
        with changing(self._changed):
            order = self._known(order_id)
            order.shown, order.shown_asks = Shown(shown), asks
            order.shown_until = self._clock.now() + timedelta(seconds=seconds)

    def pay(self, order_id: str) -> None:
        self._move(order_id, OrderStatus.PAID, OrderStatus.IN_PROGRESS)

    def fail(self, order_id: str) -> None:
        self._move(order_id, OrderStatus.FAILED, OrderStatus.IN_PROGRESS, OrderStatus.PAID)

    def complete(self, order_id: str) -> None:
        """`processProductGrant` answered true, or `completeProductGrant` was called; again is no mistake."""
        self._move(order_id, OrderStatus.PURCHASED, *_PAID_WORDS)

    def refund(self, order_id: str) -> None:
        """Nobody is told, unless it is a subscription: then see `transition`."""
        self._move(order_id, OrderStatus.REFUNDED, *_PAID_WORDS)

    def buy_subscription(
        self,
        user: str,
        sku: str,
        *,
        app_name: str = DEFAULT_APP,
        cycle: Cycle | str = Cycle.MONTHLY,
        shown: Shown | str = Shown.NOT_FOUND,
        shown_asks: int = 0,
        shown_seconds: float = 0.0,
    ) -> str:
        """The orderId. The first transition is yours: CREATED."""
        with changing(self._changed):
            order = self._new(user, sku, app_name, is_paid=True)
            order.cycle = Cycle(cycle)
            self.show(order.order_id, shown, asks=shown_asks, seconds=shown_seconds)
            return order.order_id

    def transition(
        self, order_id: str, reason: ChangeReason | str, *, auto_renew: bool | None = None
    ) -> tuple[Notice, list[Delivery]]:
        """What a store says of a subscription, in any order, and the notice of it.

        `auto_renew`: what the flag says instead; after RESTARTED it was once still false.
        """
        with changing(self._changed):
            order, chosen = self._known(order_id), ChangeReason(reason)
            if order.cycle is None:
                raise NotPossible("this order is no subscription")
            before = order.subscription
            order.subscription = self._after(order, _LENGTHS[order.cycle], chosen, auto_renew=auto_renew)
            if chosen is ChangeReason.REVOKED:
                order.status, order.determined_at = OrderStatus.REFUNDED, self._clock.now()
            body = self._told(order, before, chosen)
        return self._callbacks.send(CallbackKind.IAP_SUBSCRIPTION, body, app_name=order.app)

    def orders(self) -> list[IapOrder]:
        """Copies, oldest first."""
        with self._changed:
            return [replace(order) for order in self._orders.values()]

    def order(self, order_id: str) -> IapOrder:
        """A copy."""
        with self._changed:
            return replace(self._known(order_id))

    def snapshot(self) -> list[dict[str, Any]]:
        """Without users."""
        return [
            {
                "orderId": order.order_id,
                "appName": order.app,
                "sku": order.sku,
                "status": order.status.value,
                "statusDeterminedAt": iap_time(order.determined_at),
                "renewalCycle": order.cycle and order.cycle.value,
                "subscription": order.subscription and order.subscription.status.value,
            }
            for order in self.orders()
        ]

    # All of these are called with the lock held.

    def _new(self, user: str, sku: str, app_name: str, *, is_paid: bool) -> IapOrder:
        if self._mini_apps.user(user) is None:
            raise NotPossible("there is no such Toss user")
        now = self._clock.now()
        order = IapOrder(
            order_id=_uuid7(now),
            app=app_name,
            user=user,
            sku=sku,
            status=OrderStatus.PAID if is_paid else OrderStatus.IN_PROGRESS,
            determined_at=now,
        )
        self._orders[order.order_id] = order
        return order

    def _known(self, order_id: str) -> IapOrder:
        if order_id not in self._orders:
            raise NotPossible("there is no such order")
        return self._orders[order_id]

    def _move(self, order_id: str, to: OrderStatus, *since: OrderStatus) -> None:
        with changing(self._changed):
            order = self._known(order_id)
            if order.status not in since:
                raise NotPossible(f"this order is {order.status}")
            if order.status is not to:
                order.status, order.determined_at = to, self._clock.now()

    def _after(
        self, order: IapOrder, length: timedelta, reason: ChangeReason, *, auto_renew: bool | None
    ) -> Subscription:
        now = self._clock.now()
        new = Subscription(
            status=SubscriptionStatus.ACTIVE,
            access_granted=True,
            expires_at=now + length,
            is_expiry_told=False,
            auto_renew=True,
        )
        old = order.subscription or new
        known = replace(old, is_expiry_told=True)
        match reason:
            case ChangeReason.CREATED:
                made = new
            case ChangeReason.RENEWED:
                made = replace(new, expires_at=old.expires_at + length, is_expiry_told=True)
            case ChangeReason.RECOVERED | ChangeReason.RESTARTED:
                made = replace(new, is_expiry_told=True)
            case ChangeReason.ENTERED_GRACE_PERIOD:
                made = replace(known, status=SubscriptionStatus.IN_GRACE_PERIOD, access_granted=True)
            case ChangeReason.ON_HOLD | ChangeReason.PAUSED:
                made = replace(known, status=SubscriptionStatus(reason.value), access_granted=False)
            case ChangeReason.AUTO_RENEW_ENABLED | ChangeReason.AUTO_RENEW_DISABLED:
                made = replace(known, auto_renew=reason is ChangeReason.AUTO_RENEW_ENABLED)
            case ChangeReason.EXTENDED:
                made = replace(known, expires_at=old.expires_at + length)
            case ChangeReason.EXPIRED | ChangeReason.REVOKED:
                status = SubscriptionStatus(reason.value)
                made = replace(known, status=status, access_granted=False, auto_renew=False)
        return made if auto_renew is None else replace(made, auto_renew=auto_renew)

    def _told(self, order: IapOrder, before: Subscription | None, reason: ChangeReason) -> dict[str, Any]:
        assert order.subscription is not None
        settings = self._callbacks.settings(order.app, kind=CallbackKind.IAP_SUBSCRIPTION)

        def shown(subscription: Subscription) -> dict[str, Any]:
            expiry = settings.time(subscription.expires_at) if subscription.is_expiry_told else None
            return {
                "status": subscription.status.value,
                "accessGranted": subscription.access_granted,
                "expiresAt": expiry,
                "autoRenew": subscription.auto_renew,
            }

        states = {"previous": shown(before)} if before is not None else {}
        return {
            "eventType": "subscription.status_changed",
            "eventVersion": "1.0",
            "occurredAt": settings.time(self._clock.now()),
            "orderId": order.order_id,
            "sku": order.sku,
            "changeReason": reason.value,
            "subscription": {**states, "current": shown(order.subscription)},
        }


def _uuid7(now: datetime) -> str:
    """Reference 10.1: the samples are of version 7."""
    moment = int(now.timestamp() * 1000).to_bytes(6, "big")
    random = bytearray(secrets.token_bytes(10))
    random[0] = 0x70 | random[0] & 0x0F
    random[2] = 0x80 | random[2] & 0x3F
    return str(uuid.UUID(bytes=moment + bytes(random)))
