"""Orders of the partner's server: made once, paid once, by one user; and what each server key may do."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select

from app.customer import Customer
from app.errors import OrderNotFound, PaymentEnded
from app.payments.tables import Order
from app.reconcile import reconcile
from app.resources import open_resources
from app.server_keys import Scope
from tests.conftest import settings_for
from tests.payments.shop import CHARGE, ORDER, Shop
from tests.scenarios import Bff, assert_problem

NOBODY = "00000000-0000-0000-0000-000000000000"


def soon(**by: float) -> str:
    return (datetime.now(UTC) + timedelta(**by)).isoformat()


async def orders(shop) -> int:
    async with shop.bff.resources.database.transaction() as session:
        return await session.scalar(select(func.count()).select_from(Order))


# --- Made once ---------------------------------------------------------------------------------------------


async def test_an_order_is_made_once_for_each_key(shop):
    first, again, other = await shop.order(), await shop.order(), await shop.order("key-2")
    assert [answer.status_code for answer in (first, again, other)] == [201, 200, 201]
    assert first.json() == again.json()
    assert first.json()["orderId"] != other.json()["orderId"]
    assert first.json()["isTest"] is True


async def test_an_instant_is_the_same_however_it_is_written(shop):
    first = await shop.order(expiresAt="2030-01-01T09:00:00+09:00")
    again = await shop.order(expiresAt="2030-01-01T00:00:00Z")
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()


async def test_fifty_at_once_are_one_order(shop):
    answers = await asyncio.gather(*(shop.order() for _ in range(50)))
    assert sorted(answer.status_code for answer in answers) == [200] * 49 + [201]
    assert len({answer.json()["orderId"] for answer in answers}) == 1
    assert await orders(shop) == 1


CHANGES = [
    {"amount": 12001},
    {"description": "회원권 2년"},
    {"amountTaxFree": 1},
    {"amountVat": 0},
    {"cashReceipt": True},
    {"reference": "r-1"},
    {"userId": NOBODY},
    {"expiresAt": "2030-01-01T00:00:00Z"},
]


async def test_another_order_under_the_same_key_is_refused(shop):
    await shop.ordered()
    for changes in CHANGES:
        assert_problem(await shop.order(**changes), 422, "idempotency_key_reused")
    assert (await shop.order()).status_code == 200
    assert await orders(shop) == 1


async def test_a_key_is_required(shop):
    for key in (None, "", "k" * 256, "with\ttab", "차"):
        headers = {} if key is None else {"Idempotency-Key": key.encode()}
        answer = await shop.as_partner("POST", "/orders", json=ORDER, headers=headers)
        assert_problem(answer, 400, "idempotency_key_required")
    assert await orders(shop) == 0


NO_ORDER = [
    *({"amount": amount} for amount in (0, -1, 10_000_000, True, 12000.0, "12000", None)),
    {"amountTaxFree": 12001},
    {"description": 'a"b'},
    {"currency": "KRW"},
    {"billingKeyId": NOBODY},
    {"userId": "someone"},
    {"expiresAt": "2030-01-01T00:00:00"},
    {"expiresAt": "9999-12-31T23:59:59-14:00"},
    {"expiresAt": "0001-01-01T00:00:00+14:00"},
    {"reference": "이름"},
]


async def test_what_an_order_may_not_say(shop):
    for changes in NO_ORDER:
        assert_problem(await shop.order(**changes), 422, "invalid_request")
    assert await orders(shop) == 0


# --- Paid once, by one user --------------------------------------------------------------------------------


async def test_an_order_is_paid_for_what_it_says(shop):
    order_id = await shop.ordered(amountTaxFree=2000, amountServiceFee=500, enablePayMethods="CARD")
    payment = await shop.paid(orderId=order_id)
    assert (payment["amount"], payment["orderId"], payment["productId"]) == (12000, order_id, None)
    charge = shop.at_toss(payment).charge
    assert (charge.amount, charge.amount_tax_free, charge.amount_service_fee) == (12000, 2000, 500)
    assert (charge.product_desc, charge.method, charge.is_test) == (ORDER["description"], "CARD", True)
    assert await shop.agreed(payment) == "PAID"
    assert_problem(await shop.begin(orderId=order_id), 409, "order_not_payable")


FOREIGN = [
    {"amount": 1},
    {"amountTaxFree": 0},
    {"description": "x"},
    {"isTestPayment": False},
    {"orderNo": "mine"},
    {"userKey": 1},
    {"productId": "rice"},
]


async def test_a_mini_app_names_an_order_and_nothing_else(shop):
    order_id = await shop.ordered()
    for extra in FOREIGN:
        answer = await shop.as_user("POST", "/payments", json={"orderId": order_id} | extra)
        assert_problem(answer, 422, "invalid_request")
    assert shop.bff.sandbox.state.count("pay_make") == 0
    assert await shop.payments() == []


async def test_what_there_is_not_cannot_be_paid(shop):
    assert_problem(await shop.begin(orderId=NOBODY), 404, "order_not_found")
    assert_problem(await shop.begin(productId="caviar"), 404, "product_not_found")
    assert_problem(await shop.begin(), 422, "invalid_request")
    assert shop.bff.sandbox.state.count("pay_make") == 0


async def test_begun_twice_it_is_the_same_payment(shop):
    order_id = await shop.ordered()
    first, again = await shop.begun(orderId=order_id), await shop.begun(orderId=order_id)
    assert (first["orderNo"], first["payToken"]) == (again["orderNo"], again["payToken"])
    shop.authenticate(first)
    assert (await shop.begun(orderId=order_id))["orderNo"] == first["orderNo"]
    assert (await shop.execute(first)).json()["state"] == "PAID"
    assert shop.bff.sandbox.state.count("pay_make") == 1


async def test_begun_while_toss_cannot_be_asked_it_is_still_the_same(shop):
    order_id = await shop.ordered()
    first = await shop.begun(orderId=order_id)
    shop.bff.sandbox.state.order_fault("pay_status", "fail", http_status=500)
    assert (await shop.begun(orderId=order_id))["orderNo"] == first["orderNo"]


async def test_begun_fifty_times_at_once_there_is_one_payment(shop):
    order_id = await shop.ordered()
    answers = await asyncio.gather(*(shop.begin(orderId=order_id) for _ in range(50)))
    begun = [answer.json() for answer in answers if answer.status_code == 201]
    assert begun
    assert len({each["payToken"] for each in begun}) == 1
    for answer in answers:
        if answer.status_code != 201:
            assert_problem(answer, 409, "payment_in_progress")
    assert len(await shop.payments()) == 1
    assert shop.bff.sandbox.state.count("pay_make") == 1


async def test_cancelled_in_the_sheet_a_new_payment_begins(shop):
    order_id = await shop.ordered()
    first = await shop.begun(orderId=order_id)
    shop.bff.sandbox.state.pay.cancel(first["payToken"])
    second = await shop.begun(orderId=order_id)
    assert second["orderNo"] != first["orderNo"]
    assert await shop.agreed(first) == "CANCELED"
    shop.authenticate(second)
    assert (await shop.execute(second)).json()["state"] == "PAID"
    assert_problem(await shop.execute(first), 409, "payment_ended")
    listed = (await shop.as_partner("GET", f"/orders/{order_id}")).json()["payments"]
    assert [(each["orderNo"], each["state"]) for each in listed] == [
        (first["orderNo"], "CANCELED"),
        (second["orderNo"], "PAID"),
    ]


async def test_an_order_whose_payment_expired_can_be_paid_again(shop):
    order_id = await shop.ordered()
    first = await shop.begun(orderId=order_id)
    shop.pass_time(minutes=16)
    second = await shop.begun(orderId=order_id)
    assert (await shop.agreed(first), await shop.agreed(second)) == ("CANCELED", "READY")


async def test_an_order_belongs_to_the_user_it_names(shop):
    other = await shop.beside("minor")
    order_id = await shop.ordered(userId=other.login.user_id)
    assert_problem(await shop.begin(orderId=order_id), 404, "order_not_found")
    assert (await other.begun(orderId=order_id))["amount"] == 12000
    assert_problem(await shop.begin(orderId=order_id), 404, "order_not_found")


async def test_an_order_without_a_user_belongs_to_who_comes_first(shop):
    other = await shop.beside("minor")
    order_id = await shop.ordered()
    payment = await shop.begun(orderId=order_id)
    assert_problem(await other.begin(orderId=order_id), 404, "order_not_found")
    shop.bff.sandbox.state.pay.cancel(payment["payToken"])
    assert_problem(await other.begin(orderId=order_id), 404, "order_not_found")
    assert (await shop.begun(orderId=order_id))["orderNo"] != payment["orderNo"]


async def test_two_users_at_once_are_one_payer(shop):
    order_id, other = await shop.ordered(), await shop.beside("minor")
    answers = await asyncio.gather(*(each.begin(orderId=order_id) for each in [shop, other] * 10))
    codes = {answer.status_code: answer.json().get("code") for answer in answers}
    assert codes in (
        {201: None, 404: "order_not_found"},
        {201: None, 404: "order_not_found", 409: "payment_in_progress"},
    )
    assert len(await shop.payments()) == 1


async def test_who_leaves_and_comes_back_is_the_same_payer(shop):
    order_id = await shop.ordered()
    payment = await shop.begun(orderId=order_id)
    assert (await shop.as_user("DELETE", "/me")).status_code == 204
    back = await shop.beside("man")
    assert (await back.begun(orderId=order_id))["orderNo"] == payment["orderNo"]


# --- Expired and cancelled ---------------------------------------------------------------------------------


async def test_past_its_end_no_payment_of_it_begins(shop):
    order_id = await shop.ordered(expiresAt=soon(hours=1))
    payment = await shop.begun(orderId=order_id)
    shop.pass_time(minutes=59)
    second = await shop.begun(orderId=order_id)
    assert second["orderNo"] != payment["orderNo"]
    shop.pass_time(minutes=16)
    assert_problem(await shop.begin(orderId=order_id), 409, "order_not_payable")
    assert await shop.agreed(second) == "CANCELED"


async def test_a_cancelled_order_is_not_paid(shop):
    order_id = await shop.ordered()
    for _ in range(2):
        assert (await shop.cancel(order_id)).status_code == 204
    assert_problem(await shop.begin(orderId=order_id), 409, "order_not_payable")
    assert (await shop.as_partner("GET", f"/orders/{order_id}")).json()["canceledAt"] is not None
    assert_problem(await shop.cancel(NOBODY), 404, "order_not_found")


async def test_cancelled_while_the_user_pays_it_is_not_executed(shop):
    order_id = await shop.ordered()
    payment = await shop.approved(orderId=order_id)
    assert (await shop.cancel(order_id)).status_code == 204
    assert_problem(await shop.execute(payment), 409, "payment_ended")
    assert shop.bff.sandbox.state.count("pay_execute") == 0
    last = (await shop.steps(payment))[-1]
    assert (last.to_state, last.cause) == ("CANCELED", "order_canceled")
    assert last.actor is not None
    assert await shop.events(payment) == []


async def test_a_paid_order_is_not_cancelled(shop):
    order_id = await shop.ordered()
    payment = await shop.paid(orderId=order_id)
    assert_problem(await shop.cancel(order_id), 409, "order_not_payable")
    assert (await shop.refund(payment)).json()["state"] == "REFUNDED"
    assert_problem(await shop.cancel(order_id), 409, "order_not_payable")
    assert_problem(await shop.begin(orderId=order_id), 409, "order_not_payable")


async def test_an_order_with_money_on_its_way_is_not_cancelled(shop):
    order_id, state = await shop.ordered(), shop.bff.sandbox.state
    payment = await shop.approved(orderId=order_id)
    state.order_fault("pay_execute", "reset_after")
    state.order_fault("pay_status", "html_502")
    assert (await shop.execute(payment)).status_code == 202
    for refused in (await shop.cancel(order_id), await shop.begin(orderId=order_id)):
        assert int(assert_problem(refused, 409, "payment_in_progress") and refused.headers["Retry-After"]) > 0
    await reconcile(shop.bff.resources)
    assert await shop.agreed(payment) == "PAID"


async def test_a_held_order_is_for_a_person(shop):
    order_id = await shop.ordered()
    payment = await shop.approved(orderId=order_id)
    shop.bff.sandbox.state.order_fault("pay_execute", "wrong_value", field="amount")
    assert_problem(await shop.execute(payment), 409, "payment_held")
    for refused in (await shop.cancel(order_id), await shop.begin(orderId=order_id)):
        assert_problem(refused, 409, "order_not_payable")


async def test_cancelled_and_executed_at_once_it_is_one_of_the_two(shop):
    for number in range(5):
        order_id = await shop.ordered(f"race-{number}")
        payment = await shop.approved(orderId=order_id)
        canceled, executed = await asyncio.gather(shop.cancel(order_id), shop.execute(payment))
        if canceled.status_code == 204:
            assert_problem(executed, 409, "payment_ended")
            assert shop.at_toss(payment).executions == 0
        else:
            assert executed.json()["state"] == "PAID"
            assert shop.at_toss(payment).executions == 1


# --- Test and live -----------------------------------------------------------------------------------------


def with_pay(settings, **pay: object):
    billing = settings.billing.model_copy(update={"enabled": False})
    return settings.model_copy(update={"pay": settings.pay.model_copy(update=pay), "billing": billing})


async def test_test_and_live_are_kept_apart(settings, shop):
    """A live service, as it would be in production, on the books of a test."""
    order_id = await shop.ordered()
    tested = await shop.approved(productId="rice")
    row = await shop.row(tested)
    payer = Customer(row.user_id, row.key_hash, shop.bff.resources.payments.ledger.toss_user_of(row))
    async with open_resources(with_pay(settings, mode="live", order_prefix="shopA")) as live:
        with pytest.raises(OrderNotFound):
            await live.payments.begin_for_order(payer, order_id)
        payment, pay_token = await live.payments.begin_for_product(payer, "rice")
        shop.bff.sandbox.state.pay.authenticate(pay_token)
        payment = await live.payments.execute(payment.order_no, key_hash=payer.key_hash)
        assert (payment.state, payment.is_test) == ("PAID", False)
        assert payment.order_no.startswith("live-shopA-")
        assert shop.bff.sandbox.state.pay.payment(pay_token).mode == "LIVE"
        with pytest.raises(PaymentEnded):
            await live.payments.execute(tested["orderNo"], key_hash=payer.key_hash)
        live.payments.ledger._clock = lambda: shop.bff.clock() + timedelta(days=2)
        await reconcile(live)
        assert (await live.payments.check(tested["orderNo"], cause="recheck", actor="key")).state == "READY"
    assert tested["orderNo"].startswith("test-")
    assert (shop.at_toss(tested).mode, shop.at_toss(tested).executions) == ("TEST", 0)


async def test_without_a_mode_there_is_nothing_to_order(embedded, sandbox):
    async with Bff.running(with_pay(settings_for(embedded, sandbox), mode=None), sandbox) as bff:
        shop = await Shop.opened(bff)
        for answer in (await shop.order(), await shop.begin(productId="rice")):
            assert_problem(answer, 503, "toss_not_configured")


# --- Server keys -------------------------------------------------------------------------------------------

DOORS = {
    ("POST", "/orders"): Scope.ORDER_CREATE,
    ("DELETE", f"/orders/{NOBODY}"): Scope.ORDER_CREATE,
    ("GET", f"/orders/{NOBODY}"): Scope.PAYMENT_READ,
    ("GET", "/payments"): Scope.PAYMENT_READ,
    ("GET", "/payments/test-1"): Scope.PAYMENT_READ,
    ("POST", "/payments/test-1/recheck"): Scope.PAYMENT_REFUND,
    ("POST", "/payments/test-1/refund"): Scope.PAYMENT_REFUND,
    ("GET", f"/billing-keys?userId={NOBODY}"): Scope.BILLING_CHARGE,
    ("POST", f"/billing-keys/{NOBODY}/charges"): Scope.BILLING_CHARGE,
    ("DELETE", f"/billing-keys/{NOBODY}"): Scope.BILLING_CHARGE,
}
BODIES = {"orders": ORDER, "refund": {"reason": "변심"}, "charges": CHARGE}


async def knock(bff: Bff, method: str, path: str, headers: dict[str, str]):
    body = BODIES.get(path.rsplit("/", 1)[-1]) if method == "POST" else None
    headers = headers | {"Idempotency-Key": "key-1"}
    return await bff.http.request(method, f"/server/v1{path}", headers=headers, json=body)


async def test_every_door_is_among_those(bff):
    spec = (await bff.http.get("/openapi.json")).json()["paths"]
    known = {
        (method, path.partition("?")[0].replace(NOBODY, "{}").replace("test-1", "{}")) for method, path in DOORS
    }
    found = set()
    for path, methods in spec.items():
        name = path.removeprefix("/server/v1")
        if name != path and name.split("/")[1] in {"orders", "payments", "billing-keys"}:
            for placeholder in ("orderId", "orderNo", "billingKeyId"):
                name = name.replace(placeholder, "")
            found |= {(method.upper(), name) for method in methods}
    assert found == known


@pytest.mark.parametrize("scope", list(Scope))
async def test_each_scope_opens_its_own_doors(bff, scope):
    key = await bff.server_key(scope)
    for (method, path), needed in DOORS.items():
        answer = await knock(bff, method, path, key)
        if needed is scope:
            assert answer.status_code in (200, 201, 404), answer.text
        else:
            assert_problem(answer, 403, "scope_missing")


async def test_without_a_server_key_all_doors_are_closed(shop):
    for method, path in DOORS:
        for headers in ({}, shop.login.headers, {"Authorization": "Bearer sk_made-up"}):
            assert_problem(await knock(shop.bff, method, path, headers), 401, "server_key_required")


async def test_a_server_key_opens_no_door_of_the_mini_app(shop):
    for method, path in [("POST", "/payments"), ("GET", "/billing-keys"), ("GET", "/payments/test-1")]:
        body = {"productId": "rice"} if method == "POST" else None
        answer = await shop.bff.http.request(method, f"/api/v1{path}", headers=shop.partner, json=body)
        assert_problem(answer, 401, "session_required")
