"""In-app purchase over HTTP: the mini-app door and the partner-server door."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from app.deps import NO_STORE, CustomerDep, LoginDep, PurchaseReader, PurchasesDep, SessionDep
from app.errors import (
    AppError,
    PurchaseFailed,
    PurchaseNotFound,
    PurchaseNotReady,
    PurchaseRefunded,
    SealedDataUnreadable,
    SessionRequired,
    TossNotConfigured,
    UpstreamRefused,
    UserNotFound,
)
from app.problems import ALWAYS, PARTNER, UPSTREAM, documented
from app.purchases.schemas import EntitlementsBody, FullPurchaseBody, PurchaseBody, PurchasesBody
from app.purchases.tables import MAX_ORDER_ID

ORDER_ID = rf"^[A-Za-z0-9_-]{{1,{MAX_ORDER_ID}}}$"
UUID = r"^[0-9a-f-]{36}$"
OrderId = Annotated[str, Path(alias="orderId", pattern=ORDER_ID)]
UserId = Annotated[str, Path(alias="userId", pattern=UUID)]

PARTNER_API: tuple[type[AppError], ...] = (*UPSTREAM, UpstreamRefused, TossNotConfigured)
MINE: tuple[type[AppError], ...] = (*ALWAYS, SessionRequired)

mini_app = APIRouter(prefix="/api/v1", tags=["In-app purchase (mini-app)"], dependencies=[NO_STORE])
partner_server = APIRouter(prefix="/server/v1", tags=["In-app purchase (partner server)"], dependencies=[NO_STORE])


@mini_app.post(
    "/purchases/{orderId}/grant",
    responses=documented(
        *MINE,
        *PARTNER_API,
        SealedDataUnreadable,
        PurchaseNotFound,
        PurchaseNotReady,
        PurchaseFailed,
        PurchaseRefunded,
    ),
)
async def grant_purchase(order_id: OrderId, purchases: PurchasesDep, buyer: CustomerDep) -> PurchaseBody:
    """For `processProductGrant`, and for each of `getPendingOrders`: after a 200 answer `true`, every time.

    Waits while Toss does not show the order as paid, for less than the 30 seconds that the SDK gives.
    """
    return PurchaseBody.of(await purchases.grant(order_id, buyer))


@mini_app.get("/purchases/{orderId}", responses=documented(*MINE, PurchaseNotFound))
async def get_my_purchase(order_id: OrderId, purchases: PurchasesDep, live: SessionDep) -> PurchaseBody:
    """As it is stored; Toss is not asked."""
    return PurchaseBody.of(await purchases.of(order_id, key_hash=live.user.key_hash))


@mini_app.get("/entitlements", responses=documented(*MINE))
async def list_my_entitlements(purchases: PurchasesDep, live: SessionDep) -> EntitlementsBody:
    user = live.user
    return EntitlementsBody.of(await purchases.entitlements(user_id=user.user_id, key_hash=user.key_hash))


@partner_server.get("/users/{userId}/entitlements", responses=documented(*ALWAYS, *PARTNER, UserNotFound))
async def list_entitlements_of_user(
    user_id: UserId, purchases: PurchasesDep, login: LoginDep, _partner: PurchaseReader
) -> EntitlementsBody:
    user = await login.user(user_id)
    return EntitlementsBody.of(await purchases.entitlements(user_id=user.user_id, key_hash=user.key_hash))


@partner_server.get("/purchases", responses=documented(*ALWAYS, *PARTNER))
async def list_purchases(
    purchases: PurchasesDep,
    _partner: PurchaseReader,
    user_id: Annotated[str | None, Query(alias="userId", pattern=UUID)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: Annotated[str | None, Query(pattern=ORDER_ID)] = None,
) -> PurchasesBody:
    return PurchasesBody.of(await purchases.list(user_id=user_id, limit=limit, before=before))


@partner_server.get("/purchases/{orderId}", responses=documented(*ALWAYS, *PARTNER, PurchaseNotFound))
async def get_purchase(order_id: OrderId, purchases: PurchasesDep, _partner: PurchaseReader) -> FullPurchaseBody:
    return FullPurchaseBody.of(await purchases.get(order_id))


@partner_server.post(
    "/purchases/{orderId}/check",
    responses=documented(*ALWAYS, *PARTNER, *PARTNER_API, PurchaseNotFound, SealedDataUnreadable),
)
async def check_purchase(order_id: OrderId, purchases: PurchasesDep, _partner: PurchaseReader) -> FullPurchaseBody:
    """Ask Toss now whether it was refunded, instead of at the next turn of `reconcile`."""
    return FullPurchaseBody.of(await purchases.check(order_id))
