"""Somebody buys in the mini-app, and what the BFF and its database say of it."""

from dataclasses import dataclass
from typing import Any

import httpx2
from sqlalchemy import select

from app.events.tables import Event
from app.purchases.tables import Purchase, Subscription
from sandbox.purchases import Purchases
from tests.conftest import SUBSCRIPTION_AUTH
from tests.scenarios import Bff, Login

SKU = "ait.0000010000.a1b2c3d4.e5f6a7b8.1234567890"
MONTHLY = "ait.0000010000.b2c3d4e5.f6a7b8c9.2345678901"
CALLBACK = "/callbacks/toss/iap-subscription"
AUTHENTIC = {"Authorization": f"Bearer {SUBSCRIPTION_AUTH}"}
NOBODY = "00000000-0000-0000-0000-000000000000"


def with_purchases(settings, **purchases):
    group = type(settings.purchases).model_validate(purchases)
    return settings.model_copy(update={"purchases": group})


@dataclass
class Patience:
    """Stands for the time that a grant waits: none passes, and the sandbox's clock goes with it."""

    bff: Bff
    waited: float = 0.0

    def __post_init__(self) -> None:
        service = self.bff.resources.purchases
        service._sleep, service._monotonic = self.sleep, lambda: self.waited

    async def sleep(self, seconds: float) -> None:
        self.waited += seconds
        self.bff.sandbox.state.clock.advance(seconds)


def store(bff: Bff) -> Purchases:
    """Where the Toss app buys."""
    return bff.sandbox.state.iap


def later(bff: Bff, **by: float) -> None:
    """Time goes on, for us and for Toss."""
    before = bff.clock.offset
    bff.clock.advance(**by)
    bff.sandbox.state.clock.advance((bff.clock.offset - before).total_seconds())


async def grant(bff: Bff, login: Login, order_id: str) -> httpx2.Response:
    return await bff.http.post(f"/api/v1/purchases/{order_id}/grant", headers=login.headers)


async def shown(bff: Bff, login: Login, order_id: str) -> httpx2.Response:
    return await bff.http.get(f"/api/v1/purchases/{order_id}", headers=login.headers)


async def entitlements(bff: Bff, login: Login) -> list[dict[str, Any]]:
    answer = await bff.http.get("/api/v1/entitlements", headers=login.headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["entitlements"]


async def tell(bff: Bff, body: dict[str, Any]) -> None:
    """A subscription notice; handled when this returns."""
    answer = await bff.http.post(CALLBACK, json=body, headers=AUTHENTIC)
    assert (answer.status_code, answer.json()) == (200, {"received": True}), answer.text


async def moved(bff: Bff, order_id: str, reason: str, **how: Any) -> dict[str, Any]:
    """The notice with which Toss tells of a change, a minute after the one before; not delivered yet."""
    later(bff, minutes=1)
    notice, _ = store(bff).transition(order_id, reason, **how)
    return dict(notice.body)


async def _all(bff: Bff, table: Any, order: Any) -> list[Any]:
    async with bff.resources.database.transaction() as session:
        return list((await session.scalars(select(table).order_by(order))).all())


async def purchases(bff: Bff) -> list[Purchase]:
    return await _all(bff, Purchase, Purchase.order_id)


async def subscriptions(bff: Bff) -> list[Subscription]:
    return await _all(bff, Subscription, Subscription.order_id)


async def events(bff: Bff) -> list[tuple[str, str, dict[str, Any]]]:
    """Type, subject, data; in the order in which they were recorded."""
    return [(event.type, event.subject, event.data) for event in await _all(bff, Event, Event.position)]


async def event_types(bff: Bff) -> list[str]:
    return [type_ for type_, _, _ in await events(bff)]
