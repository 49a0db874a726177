"""The part of the control API that plays the buyer, the stores and what Toss does with money (reference 15.4)."""

from collections.abc import Callable

from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sandbox.callbacks import shown
from sandbox.device import OfApp
from sandbox.orders import Handler, read
from sandbox.purchases import PRODUCTS, ChangeReason, Cycle, Shown
from sandbox.state import SandboxState
from sandbox.switches import WireModel


class Finish(WireModel):
    is_success: bool = True


class Activation(WireModel):
    is_active: bool = True


class NewPurchase(OfApp):
    user: str
    sku: str = Field(min_length=1)
    is_paid: bool = True
    shown: Shown = Shown.NOT_FOUND
    shown_asks: int = Field(default=0, ge=0)
    shown_seconds: float = Field(default=0.0, ge=0.0)


class NewSubscription(OfApp):
    user: str
    sku: str = Field(min_length=1)
    cycle: Cycle = Cycle.MONTHLY


class Showing(WireModel):
    shown: Shown
    asks: int = Field(default=0, ge=0)
    seconds: float = Field(default=0.0, ge=0.0)


class Transition(WireModel):
    reason: ChangeReason
    auto_renew: bool | None = None


class MoneyFace:
    """Payments go by payToken or orderNo, billing keys by wrappedToken or id."""

    def __init__(self, state: SandboxState) -> None:
        self._state = state

    def questions(self) -> list[tuple[str, Handler]]:
        return [("iap/products", self._show_products)]

    def orders(self) -> list[tuple[str, Handler]]:
        pay, billing, iap = self._state.pay, self._state.billing, self._state.iap
        return [
            ("pay/{name}/authenticate", self._done_by(pay.authenticate)),
            ("pay/{name}/cancel", self._done_by(pay.cancel)),
            ("pay/{name}/expire", self._done_by(pay.expire)),
            ("pay/{name}/settle", self._done_by(pay.settle)),
            ("pay/{name}/finish", self._finish),
            ("billing/{name}/authenticate", self._authenticate_key),
            ("billing/{name}/cancel", self._done_by(billing.cancel)),
            ("billing/{name}/remove", self._done_by(billing.remove_by_user)),
            ("iap/orders", self._buy),
            ("iap/subscriptions", self._subscribe),
            ("iap/{name}/pay", self._done_by(iap.pay)),
            ("iap/{name}/complete", self._done_by(iap.complete)),
            ("iap/{name}/fail", self._done_by(iap.fail)),
            ("iap/{name}/refund", self._done_by(iap.refund)),
            ("iap/{name}/show", self._show),
            ("iap/{name}/transition", self._transition),
        ]

    def _done_by(self, act: Callable[[str], None]) -> Handler:
        async def answer(request: Request) -> Response:
            act(request.path_params["name"])
            return self._done()

        return answer

    async def _finish(self, request: Request) -> Response:
        order = await read(request, Finish)
        self._state.pay.finish(request.path_params["name"], is_success=order.is_success)
        return self._done()

    async def _authenticate_key(self, request: Request) -> Response:
        order = await read(request, Activation)
        self._state.billing.authenticate(request.path_params["name"], is_active=order.is_active)
        return self._done()

    async def _show_products(self, _request: Request) -> Response:
        """`IAP.getProductItemList()`."""
        return JSONResponse(
            [
                {
                    "sku": product.sku,
                    "type": "CONSUMABLE" if product.cycle is None else "SUBSCRIPTION",
                    "displayName": product.name,
                    "displayAmount": product.price,
                    "renewalCycle": product.cycle and product.cycle.value,
                }
                for product in PRODUCTS
            ]
        )

    async def _buy(self, request: Request) -> Response:
        order_id = self._state.iap.buy(**(await read(request, NewPurchase)).model_dump())
        return JSONResponse({"orderId": order_id})

    async def _subscribe(self, request: Request) -> Response:
        order_id = self._state.iap.buy_subscription(**(await read(request, NewSubscription)).model_dump())
        return JSONResponse({"orderId": order_id})

    async def _show(self, request: Request) -> Response:
        order = await read(request, Showing)
        self._state.iap.show(request.path_params["name"], **order.model_dump())
        return self._done()

    async def _transition(self, request: Request) -> Response:
        order = await read(request, Transition)
        notice, made = await run_in_threadpool(
            self._state.iap.transition, request.path_params["name"], order.reason, auto_renew=order.auto_renew
        )
        return JSONResponse({"id": notice.id, "deliveries": [shown(delivery) for delivery in made]})

    def _done(self) -> Response:
        return JSONResponse(self._state.snapshot())
