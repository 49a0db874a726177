"""Beginning: whatever becomes of make-payment, its payer has the one payToken, or nothing can cost money."""

import asyncio
from contextlib import suppress

import pytest

from app.payments.service import AT_ONCE
from app.reconcile import reconcile
from tests.conftest import settings_for
from tests.payments.shop import Shop
from tests.payments.test_paying import FAULTS_AFTER
from tests.scenarios import Bff, assert_problem


def spoil(shop, kind: str, call: str = "pay_make", **details: object) -> None:
    shop.bff.sandbox.state.order_fault(call, kind, **details)


def at_toss(shop) -> list:
    return shop.bff.sandbox.state.pay.payments()


def with_pay(settings, sandbox, **pay: object):
    return Bff.running(settings.model_copy(update={"pay": settings.pay.model_copy(update=pay)}), sandbox)


# --- Answers that get lost ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAULTS_AFTER)
async def test_a_lost_pay_token_is_asked_for(shop, kind):
    spoil(shop, kind, **({"after_effect": True} if kind == "html_502" else {}))
    payment = await shop.begun()
    assert [each.pay_token for each in at_toss(shop)] == [payment["payToken"]]
    assert shop.bff.sandbox.state.count("pay_make") == 1
    shop.authenticate(payment)
    assert (await shop.execute(payment)).json()["state"] == "PAID"
    assert await shop.agreed(payment) == "PAID"


async def given_up(shop, code: str) -> None:
    """The user begins again, and nobody can ever pay what was lost."""
    status = {"upstream_timeout": 504, "upstream_unavailable": 503}[code]
    assert_problem(await shop.begin(productId="rice"), status, code)
    lost = await shop.only_payment()
    assert (lost["state"], lost["nextCheckAt"]) == ("CANCELED", None)
    assert await shop.events(lost) == []
    assert_problem(await shop.execute(lost), 409, "payment_ended")
    assert (await shop.begun(productId="rice"))["orderNo"] != lost["orderNo"]


async def test_lost_before_the_effect(shop):
    spoil(shop, "reset_before")
    await given_up(shop, "upstream_timeout")
    assert len(at_toss(shop)) == 1


async def test_lost_with_the_status_away_too(shop):
    spoil(shop, "reset_after")
    spoil(shop, "html_502", "pay_status")
    await given_up(shop, "upstream_timeout")
    assert [each.status for each in at_toss(shop)] == ["PAY_STANDBY"] * 2


async def test_lost_where_toss_wants_a_pay_token_for_the_status(shop):
    shop.bff.sandbox.state.set_switches(status_by_order_no=False)
    spoil(shop, "html_502", after_effect=True)
    await given_up(shop, "upstream_unavailable")
    assert shop.bff.sandbox.state.count("pay_status") == 1


async def test_lost_where_the_operator_says_that_it_does(settings, sandbox):
    async with with_pay(settings, sandbox, status_by_order_no=False) as bff:
        shop = await Shop.opened(bff)
        spoil(shop, "reset_after")
        await given_up(shop, "upstream_timeout")
        assert sandbox.state.count("pay_status") == 0


@pytest.mark.parametrize("field", ["orderNo", "amount", "mode"])
async def test_found_as_something_else_it_goes_to_nobody(shop, field):
    spoil(shop, "reset_after")
    spoil(shop, "wrong_value", "pay_status", field=field)
    await given_up(shop, "upstream_timeout")


async def test_found_as_over_it_goes_to_nobody(shop):
    state = shop.bff.sandbox.state
    spoil(shop, "reset_after")
    spoil(shop, "hold_before", "pay_status")
    asking = asyncio.create_task(shop.begin(productId="rice"))
    await asyncio.to_thread(state.wait_until, lambda toss: toss.held("pay_status") == 1)
    (payment,) = at_toss(shop)
    state.pay.cancel(payment.pay_token)
    state.release()
    assert_problem(await asking, 504, "upstream_timeout")
    assert (await shop.only_payment())["state"] == "CANCELED"


# --- Refusals ----------------------------------------------------------------------------------------------

REFUSALS = {
    "PAYMENT_SHOP_STATE_NOT_NORMAL": (409, "payment_refused"),
    "INACTIVE_USER": (409, "payment_refused"),
    "COMMON_INVALID_API_KEY": (503, "toss_not_configured"),
    "SOMETHING_NEW": (409, "payment_refused"),
    "COMMON_SYSTEM_ERROR": (503, "upstream_unavailable"),
}
CLEAR = {"PAYMENT_SHOP_STATE_NOT_NORMAL", "INACTIVE_USER", "COMMON_INVALID_API_KEY"}


@pytest.mark.parametrize("code", REFUSALS)
async def test_refused(shop, code):
    spoil(shop, "fail", code=code)
    problem = assert_problem(await shop.begin(productId="rice"), *REFUSALS[code])
    assert problem["tossCode"] == code
    refused = await shop.only_payment()
    assert (refused["state"], refused["tossCode"]) == ("FAILED" if code in CLEAR else "CANCELED", code)
    assert await shop.events(refused) == []
    assert shop.bff.sandbox.state.count("pay_status") == (0 if code in CLEAR else 1)
    assert at_toss(shop) == []


async def test_refused_though_it_was_made(shop):
    """That it is not clear which call was refused is why Toss is asked."""
    spoil(shop, "fail", code="PAYMENT_DUPLICATION_ORDER_NO", after_effect=True)
    payment = await shop.begun()
    assert [each.pay_token for each in at_toss(shop)] == [payment["payToken"]]


async def test_never_sent(embedded, sandbox):
    async with Bff.running(settings_for(embedded, sandbox), sandbox) as bff:
        shop = await Shop.opened(bff)
        spoil(shop, "fail", code="4095", retry_after_seconds=60)
        answer = await shop.begin(orderId=await shop.ordered())
        assert_problem(answer, 503, "upstream_budget_exhausted")
        failed = await shop.only_payment()
        assert (failed["state"], failed["tossCode"]) == ("FAILED", None)


async def test_a_refused_payment_leaves_its_order_free(shop):
    order_id = await shop.ordered()
    spoil(shop, "fail", code="INACTIVE_USER")
    assert_problem(await shop.begin(orderId=order_id), 409, "payment_refused")
    payment = await shop.paid(orderId=order_id)
    assert await shop.agreed(payment) == "PAID"


# --- Crashes -----------------------------------------------------------------------------------------------


async def lose_the_caller(shop, kind: str, **what: str) -> dict:
    """As a crash would: nobody goes on after the call to Toss."""
    spoil(shop, kind)
    asking = asyncio.create_task(shop.begin(**what))
    await asyncio.to_thread(shop.bff.sandbox.state.wait_until, lambda state: state.held("pay_make") == 1)
    asking.cancel()
    with suppress(asyncio.CancelledError):
        await asking
    shop.bff.sandbox.state.release()
    return await shop.only_payment()


@pytest.mark.parametrize("kind", ["hold_before", "hold"])
async def test_a_crash_leaves_what_reconcile_gives_up(shop, kind):
    order_id = await shop.ordered()
    payment = await lose_the_caller(shop, kind, orderId=order_id)
    assert payment["state"] == "CREATED"
    assert_problem(await shop.execute(payment), 409, "payment_in_progress")
    assert_problem(await shop.begin(orderId=order_id), 409, "payment_in_progress")
    await reconcile(shop.bff.resources)
    assert await shop.state(payment) == "CREATED"
    shop.bff.clock.advance(seconds=61)
    assert (await reconcile(shop.bff.resources)).payments.moved == 1
    assert await shop.state(payment) == "CANCELED"
    assert await shop.events(payment) == []
    assert (await shop.begun(orderId=order_id))["orderNo"] != payment["orderNo"]


async def test_a_crash_does_not_keep_an_order_from_being_begun_again(shop):
    order_id = await shop.ordered()
    payment = await lose_the_caller(shop, "hold", orderId=order_id)
    shop.bff.clock.advance(seconds=61)
    again = await shop.begun(orderId=order_id)
    assert again["orderNo"] != payment["orderNo"]
    assert (await shop.state(payment), (await shop.steps(payment))[-1].cause) == ("CANCELED", "lost")


@pytest.mark.parametrize("call", ["pay_make", "pay_status"])
async def test_a_pay_token_that_comes_too_late_goes_to_nobody(shop, call):
    if call == "pay_status":
        spoil(shop, "reset_after")
    spoil(shop, "hold", call)
    asking = asyncio.create_task(shop.begin(productId="rice"))
    await asyncio.to_thread(shop.bff.sandbox.state.wait_until, lambda state: state.held(call) == 1)
    shop.bff.clock.advance(seconds=61)
    await reconcile(shop.bff.resources)
    shop.bff.sandbox.state.release()
    assert_problem(await asking, 409, "payment_ended")
    assert (await shop.only_payment())["state"] == "CANCELED"


# --- Payments that nobody finishes -------------------------------------------------------------------------


async def test_what_toss_does_not_know_any_more_ends_by_itself(shop):
    payment = await shop.begun()
    shop.bff.sandbox.state.pay.clear()
    shop.pass_time(hours=1)
    await reconcile(shop.bff.resources)
    assert await shop.state(payment) == "READY"
    shop.pass_time(hours=24)
    await reconcile(shop.bff.resources)
    assert await shop.state(payment) == "CANCELED"
    assert (await shop.steps(payment))[-1].cause == "abandoned"
    assert await shop.events(payment) == []


async def test_while_toss_is_away_the_run_ends_and_the_next_one_goes_on(shop):
    """Else a Toss that hangs would keep the other parts of reconcile waiting for as long as there are payments."""
    for _ in range(AT_ONCE + 2):
        await shop.begun()
    shop.pass_time(minutes=17)
    spoil(shop, "html_502", "pay_status", times=AT_ONCE)
    done = (await reconcile(shop.bff.resources)).payments
    assert (done.moved, shop.bff.sandbox.state.count("pay_status")) == (0, AT_ONCE)
    assert (await reconcile(shop.bff.resources)).payments.moved == 2


async def test_what_toss_keeps_ready_for_ever_ends_here(shop):
    shop.bff.sandbox.state.set_switches(payment_life_seconds=10**9)
    payment = await shop.approved()
    shop.pass_time(hours=25)
    await reconcile(shop.bff.resources)
    assert await shop.state(payment) == "CANCELED"
    assert_problem(await shop.execute(payment), 409, "payment_ended")
    assert shop.at_toss(payment).executions == 0


# --- Who pays ----------------------------------------------------------------------------------------------


async def test_a_member_is_known_to_toss_by_the_user_key(shop):
    assert not shop.bff.sandbox.state.mini_apps._anon_keys
    payment = await shop.paid()
    assert shop.at_toss(payment).user == "man"


async def test_somebody_anonymous_pays_by_the_anonymous_key(bff):
    shop = Shop(bff, await bff.log_in_anonymously("minor"), await bff.server_key())
    assert bff.sandbox.state.mini_apps.user_key("minor") not in bff.sandbox.state.mini_apps._links
    payment = await shop.paid()
    assert shop.at_toss(payment).user == "minor"
    assert (await shop.refund(payment)).json()["state"] == "REFUNDED"
    assert await shop.agreed(payment) == "REFUNDED"


@pytest.mark.parametrize("is_anonymous", [False, True])
async def test_a_mini_app_does_not_choose_who_pays(bff, is_anonymous):
    login = await (bff.log_in_anonymously("man") if is_anonymous else bff.log_in("man"))
    await bff.log_in("minor")
    toss = bff.sandbox.state.mini_apps
    forged = {"x-toss-user-key": str(toss.user_key("minor")), "x-anon-key": toss.anon_key("minor")}
    for name, value in forged.items():
        headers = login.headers | {name: value}
        answer = await bff.http.post("/api/v1/payments", json={"productId": "rice"}, headers=headers)
        assert answer.status_code == 201, answer.text
        assert bff.sandbox.state.pay.payment(answer.json()["payToken"]).user == "man"


async def test_nobody_pays_without_a_session(bff):
    for path in ("/payments", "/payments/test-1/execute", "/billing-keys"):
        answer = await bff.http.post(f"/api/v1{path}", json={"productId": "rice"})
        assert_problem(answer, 401, "session_required")
