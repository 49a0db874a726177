"""In-app purchase on our wire: camelCase JSON, what each door shows."""

from datetime import datetime
from typing import Self

from pydantic import Field

from app.database import Page
from app.purchases.service import Owned
from app.purchases.states import Entitlement, Kind, PurchaseState
from app.purchases.tables import Purchase
from app.wire import Wire


class PurchaseBody(Wire):
    order_id: str
    sku: str = Field(description="As Toss names it, not as a mini-app says")
    state: PurchaseState
    granted_at: datetime | None = Field(description="Null if it had been refunded before it could be granted")
    refunded_at: datetime | None

    @classmethod
    def of(cls, purchase: Purchase) -> Self:
        return cls(
            order_id=purchase.order_id,
            sku=purchase.sku,
            state=PurchaseState(purchase.state),
            granted_at=purchase.granted_at,
            refunded_at=purchase.refunded_at,
        )


class EntitlementBody(Wire):
    sku: str
    kind: Kind
    expires_at: datetime | None = Field(
        description="Null for what does not end by itself, or while Toss names no end and no cycle is configured"
    )
    auto_renew: bool | None = Field(description="Null for what is no subscription, and before its first notice")
    order_ids: list[str]


class EntitlementsBody(Wire):
    """What the user may use now, by all their orders together."""

    entitlements: list[EntitlementBody]

    @classmethod
    def of(cls, entitlements: list[Entitlement]) -> Self:
        return cls(
            entitlements=[
                EntitlementBody(
                    sku=each.sku,
                    kind=each.kind,
                    expires_at=each.expires_at,
                    auto_renew=each.auto_renew,
                    order_ids=list(each.order_ids),
                )
                for each in entitlements
            ]
        )


class SubscriptionBody(Wire):
    """The newest that Toss has told."""

    sku: str
    status: str
    reason: str
    access_granted: bool
    expires_at: datetime | None = Field(description="As Toss told it, else by the configured cycle")
    auto_renew: bool | None
    occurred_at: datetime


class FullPurchaseBody(Wire):
    order_id: str
    user_id: str
    sku: str
    state: PurchaseState
    toss_status: str = Field(description="As Toss named it when it was asked last")
    granted_at: datetime | None
    refunded_at: datetime | None
    checked_at: datetime = Field(description="When Toss was asked last")
    next_check_at: datetime | None = Field(description="From when on `reconcile` asks again; null: no longer")
    subscription: SubscriptionBody | None

    @classmethod
    def of(cls, owned: Owned) -> Self:
        purchase, change = owned.purchase, owned.holding.change
        return cls(
            order_id=purchase.order_id,
            user_id=purchase.user_id,
            sku=purchase.sku,
            state=PurchaseState(purchase.state),
            toss_status=purchase.toss_status,
            granted_at=purchase.granted_at,
            refunded_at=purchase.refunded_at,
            checked_at=purchase.checked_at,
            next_check_at=purchase.next_check_at,
            subscription=SubscriptionBody(
                sku=change.sku,
                status=change.status,
                reason=change.reason,
                access_granted=change.access_granted,
                expires_at=owned.holding.expires_at,
                auto_renew=change.auto_renew,
                occurred_at=change.occurred_at,
            )
            if change is not None
            else None,
        )


class PurchasesBody(Wire):
    purchases: list[FullPurchaseBody] = Field(description="Newest first, as Toss's ids sort by time")
    next: str | None = Field(description="`before` of the next page; null at the end")

    @classmethod
    def of(cls, page: Page[Owned]) -> Self:
        return cls(purchases=[FullPurchaseBody.of(each) for each in page.items], next=page.next)
