"""Payments over HTTP: the mini-app door and the partner-server door."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response

from app.deps import (
    NO_STORE,
    BillingCharger,
    BillingDep,
    CustomerDep,
    IdempotencyKeyDep,
    LedgerDep,
    OrderCreator,
    OrdersDep,
    PaymentReader,
    PaymentRefunder,
    PaymentsDep,
    SessionDep,
)
from app.errors import (
    AppError,
    BillingKeyNotActive,
    BillingKeyNotFound,
    IdempotencyKeyRequired,
    IdempotencyKeyReused,
    OrderNotFound,
    OrderNotPayable,
    PaymentEnded,
    PaymentHeld,
    PaymentInProgress,
    PaymentNotApproved,
    PaymentNotFound,
    PaymentRefused,
    ProductNotFound,
    RefundNotPossible,
    RefundRefused,
    SealedDataUnreadable,
    SessionRequired,
    TossNotConfigured,
)
from app.payments.schemas import (
    USER_ID,
    BeginRequest,
    BegunBillingKeyBody,
    BegunPaymentBody,
    BillingKeyBody,
    BillingKeyRequest,
    BillingKeysBody,
    ChargeRequest,
    FullPaymentBody,
    OrderBody,
    OrderRequestBody,
    PaymentBody,
    PaymentsBody,
    PaymentWithStepsBody,
    RefundRequest,
)
from app.payments.states import PaymentState
from app.payments.tables import Payment
from app.problems import ALWAYS, PARTNER, UPSTREAM, documented

NO_ANSWER_YET = frozenset({PaymentState.PENDING, PaymentState.REFUNDING})

OrderNo = Annotated[str, Path(alias="orderNo", pattern=r"^[A-Za-z0-9-]{1,50}$")]
OrderId = Annotated[str, Path(alias="orderId", pattern=USER_ID)]
UserId = Annotated[str, Query(alias="userId", pattern=USER_ID)]
BillingKeyId = Annotated[str, Path(alias="billingKeyId", pattern=USER_ID)]


MINE: tuple[type[AppError], ...] = (*ALWAYS, SessionRequired)
TOSS: tuple[type[AppError], ...] = (*UPSTREAM, TossNotConfigured, SealedDataUnreadable)
NOT_PAID: tuple[type[AppError], ...] = (PaymentRefused, PaymentEnded, PaymentHeld, PaymentInProgress)
UNDECIDED: dict[int | str, dict[str, Any]] = {
    202: {"description": "Nobody knows yet: ask again for this payment, do not pay again"}
}

mini_app = APIRouter(prefix="/api/v1", tags=["Toss Pay (mini-app)"], dependencies=[NO_STORE])
partner_server = APIRouter(prefix="/server/v1", tags=["Toss Pay (partner server)"], dependencies=[NO_STORE])


def _accepted(response: Response, payment: Payment) -> None:
    if payment.is_in(*NO_ANSWER_YET):
        response.status_code = 202


# --- The mini-app -------------------------------------------------------------------------------------------


@mini_app.post(
    "/payments",
    status_code=201,
    responses=documented(
        *MINE,
        *TOSS,
        ProductNotFound,
        OrderNotFound,
        OrderNotPayable,
        PaymentRefused,
        PaymentEnded,
        PaymentInProgress,
    ),
)
async def begin_payment(body: BeginRequest, payer: CustomerDep, payments: PaymentsDep) -> BegunPaymentBody:
    """A payment of a product or of an order. Then `checkoutPayment` with its `payToken`, then `execute`."""
    if body.product_id is not None:
        return BegunPaymentBody.begun(*await payments.begin_for_product(payer, body.product_id))
    return BegunPaymentBody.begun(*await payments.begin_for_order(payer, body.order_id or ""))


@mini_app.post(
    "/payments/{orderNo}/execute",
    responses=documented(*MINE, *TOSS, *NOT_PAID, PaymentNotFound, PaymentNotApproved) | UNDECIDED,
)
async def execute_payment(
    order_no: OrderNo, live: SessionDep, payments: PaymentsDep, response: Response
) -> PaymentBody:
    """Move the money, once, however often it is asked for."""
    payment = await payments.execute(order_no, key_hash=live.user.key_hash)
    _accepted(response, payment)
    return PaymentBody.of(payment)


@mini_app.get("/payments/{orderNo}", responses=documented(*MINE, PaymentNotFound, SealedDataUnreadable))
async def get_payment(order_no: OrderNo, live: SessionDep, payments: PaymentsDep) -> PaymentBody:
    """While it is PENDING, Toss is asked anew now and then."""
    return PaymentBody.of(await payments.seen_by_owner(order_no, key_hash=live.user.key_hash))


@mini_app.post(
    "/billing-keys",
    status_code=201,
    responses=documented(*MINE, *TOSS, ProductNotFound, PaymentRefused),
)
async def begin_billing_key(
    body: BillingKeyRequest, payer: CustomerDep, billing: BillingDep
) -> BegunBillingKeyBody:
    """Then `requestTossPayPaysBilling` with its `wrappedToken`, then `confirm`."""
    return BegunBillingKeyBody.begun(*await billing.create(payer, body.product_id))


@mini_app.post(
    "/billing-keys/{billingKeyId}/confirm",
    responses=documented(*MINE, *TOSS, BillingKeyNotFound, PaymentRefused),
)
async def confirm_billing_key(
    billing_key_id: BillingKeyId, live: SessionDep, billing: BillingDep
) -> BillingKeyBody:
    """Ask Toss whether the user has permitted it."""
    key = await billing.of(billing_key_id, key_hash=live.user.key_hash)
    return BillingKeyBody.of(await billing.check(key))


@mini_app.get("/billing-keys", responses=documented(*MINE))
async def list_my_billing_keys(live: SessionDep, billing: BillingDep) -> BillingKeysBody:
    return BillingKeysBody.of(await billing.of_owner(live.user.key_hash))


@mini_app.delete(
    "/billing-keys/{billingKeyId}",
    responses=documented(*MINE, *TOSS, BillingKeyNotFound, BillingKeyNotActive, PaymentRefused),
)
async def remove_my_billing_key(
    billing_key_id: BillingKeyId, live: SessionDep, billing: BillingDep
) -> BillingKeyBody:
    """From now on nothing is charged to it. If Toss does not confirm, it is asked again later by itself."""
    key = await billing.of(billing_key_id, key_hash=live.user.key_hash)
    return BillingKeyBody.of(await billing.remove(key))


# --- The partner's server -----------------------------------------------------------------------------------


@partner_server.post(
    "/orders",
    status_code=201,
    responses=documented(*ALWAYS, *PARTNER, IdempotencyKeyRequired, IdempotencyKeyReused, TossNotConfigured)
    | {200: {"model": OrderBody, "description": "The order that this Idempotency-Key has made before"}},
)
async def create_order(
    body: OrderRequestBody,
    orders: OrdersDep,
    partner: OrderCreator,
    response: Response,
    idempotency_key: IdempotencyKeyDep,
) -> OrderBody:
    order, is_new = await orders.make(body.request(), idempotency_key=idempotency_key, actor=partner.key_id)
    if not is_new:
        response.status_code = 200
    return OrderBody.of(order)


@partner_server.get("/orders/{orderId}", responses=documented(*ALWAYS, *PARTNER, OrderNotFound))
async def get_order(order_id: OrderId, orders: OrdersDep, _partner: PaymentReader) -> OrderBody:
    return OrderBody.of(*await orders.get(order_id))


@partner_server.delete(
    "/orders/{orderId}",
    status_code=204,
    response_class=Response,
    responses=documented(*ALWAYS, *PARTNER, OrderNotFound, OrderNotPayable, PaymentInProgress),
)
async def cancel_order(order_id: OrderId, ledger: LedgerDep, partner: OrderCreator) -> None:
    """No payment of it begins any more, and one that the user has not executed yet is over."""
    await ledger.cancel_order(order_id, actor=partner.key_id)


@partner_server.get("/payments", responses=documented(*ALWAYS, *PARTNER))
async def list_payments(
    orders: OrdersDep,
    _partner: PaymentReader,
    state: PaymentState | None = None,
    user_id: UserId | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: Annotated[str | None, Query(pattern=r"^[A-Za-z0-9-]{1,50}$")] = None,
) -> PaymentsBody:
    return PaymentsBody.of(await orders.payments(state=state, user_id=user_id, limit=limit, before=before))


@partner_server.get("/payments/{orderNo}", responses=documented(*ALWAYS, *PARTNER, PaymentNotFound))
async def get_full_payment(order_no: OrderNo, ledger: LedgerDep, _partner: PaymentReader) -> PaymentWithStepsBody:
    """With everything that has happened to it."""
    return PaymentWithStepsBody.with_steps(await ledger.get(order_no), await ledger.steps(order_no))


@partner_server.post(
    "/payments/{orderNo}/recheck",
    responses=documented(*ALWAYS, *PARTNER, *TOSS, PaymentNotFound, PaymentRefused, PaymentInProgress),
)
async def recheck_payment(order_no: OrderNo, payments: PaymentsDep, partner: PaymentRefunder) -> FullPaymentBody:
    """Ask Toss now. The only way out of HELD, once somebody has looked at why it is held."""
    return FullPaymentBody.of(await payments.check(order_no, cause="recheck", actor=partner.key_id))


@partner_server.post(
    "/payments/{orderNo}/refund",
    responses=documented(
        *ALWAYS,
        *PARTNER,
        *TOSS,
        PaymentNotFound,
        PaymentRefused,
        PaymentHeld,
        PaymentInProgress,
        RefundNotPossible,
        RefundRefused,
    )
    | UNDECIDED,
)
async def refund_payment(
    order_no: OrderNo, body: RefundRequest, payments: PaymentsDep, partner: PaymentRefunder, response: Response
) -> FullPaymentBody:
    """Give all of it back, once, however often it is asked for."""
    payment = await payments.refund(order_no, reason=body.reason, actor=partner.key_id)
    _accepted(response, payment)
    return FullPaymentBody.of(payment)


@partner_server.get("/billing-keys", responses=documented(*ALWAYS, *PARTNER))
async def list_billing_keys(user_id: UserId, billing: BillingDep, _partner: BillingCharger) -> BillingKeysBody:
    return BillingKeysBody.of(await billing.of_user(user_id))


@partner_server.post(
    "/billing-keys/{billingKeyId}/charges",
    responses=documented(
        *ALWAYS,
        *PARTNER,
        *TOSS,
        *NOT_PAID,
        IdempotencyKeyRequired,
        IdempotencyKeyReused,
        OrderNotPayable,
        BillingKeyNotFound,
        BillingKeyNotActive,
    )
    | UNDECIDED,
)
async def charge_billing_key(  # noqa: PLR0917 - each is a part of the request
    billing_key_id: BillingKeyId,
    body: ChargeRequest,
    billing: BillingDep,
    partner: BillingCharger,
    response: Response,
    idempotency_key: IdempotencyKeyDep,
) -> FullPaymentBody:
    """Charge it, once for each Idempotency-Key."""
    _, payment = await billing.charge(
        billing_key_id, body.request(billing_key_id), idempotency_key=idempotency_key, actor=partner.key_id
    )
    _accepted(response, payment)
    return FullPaymentBody.of(payment)


@partner_server.delete(
    "/billing-keys/{billingKeyId}",
    responses=documented(*ALWAYS, *PARTNER, *TOSS, BillingKeyNotFound, BillingKeyNotActive, PaymentRefused),
)
async def remove_billing_key(
    billing_key_id: BillingKeyId, billing: BillingDep, _partner: BillingCharger
) -> BillingKeyBody:
    return BillingKeyBody.of(await billing.remove(await billing.get(billing_key_id)))
