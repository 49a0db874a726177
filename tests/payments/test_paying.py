"""Begin, authenticate, execute: money moves once, and no answer is believed without a look at it (G13)."""

import asyncio

import pytest

from app.reconcile import reconcile
from tests.payments.shop import Shop
from tests.scenarios import assert_problem

FAULTS_AFTER = ("reset_after", "html_502", "truncated_json", "missing_field")


async def test_a_product_is_paid(shop):
    payment = await shop.begun(productId="americano")
    assert payment["state"] == "READY"
    assert payment["amount"] == 4500
    assert payment["orderNo"].startswith("test-")
    shop.authenticate(payment)
    answer = await shop.execute(payment)
    assert (answer.status_code, answer.json()["state"]) == (200, "PAID")
    assert shop.at_toss(payment).executions == 1
    assert await shop.events(payment) == ["payment.paid"]
    assert (await shop.look(payment)).json()["state"] == "PAID"


async def test_executed_again_it_is_paid_once(shop):
    payment = await shop.paid()
    answer = await shop.execute(payment)
    assert (answer.status_code, answer.json()["state"]) == (200, "PAID")
    assert shop.bff.sandbox.state.count("pay_execute") == 1


async def test_fifty_at_once_are_one(shop):
    payment = await shop.approved()
    answers = await asyncio.gather(*(shop.execute(payment) for _ in range(50)))
    assert {answer.status_code for answer in answers} <= {200, 202}
    assert {answer.json()["state"] for answer in answers} <= {"PAID", "PENDING"}
    assert shop.bff.sandbox.state.count("pay_execute") == 1
    assert shop.at_toss(payment).executions == 1
    assert await shop.events(payment) == ["payment.paid"]


async def test_not_authenticated(shop):
    payment = await shop.begun()
    assert_problem(await shop.execute(payment), 409, "payment_not_approved")
    assert await shop.state(payment) == "READY"
    assert (await shop.look(payment)).json()["tossCode"] == "EXECUTE_PAY_NOT_APPROVED"
    shop.authenticate(payment)
    answer = (await shop.execute(payment)).json()
    assert (answer["state"], answer["tossCode"]) == ("PAID", None)


async def test_cancelled_in_the_sheet(shop):
    payment = await shop.begun()
    shop.bff.sandbox.state.pay.cancel(payment["payToken"])
    assert_problem(await shop.execute(payment), 409, "payment_ended")
    assert await shop.state(payment) == "CANCELED"


@pytest.mark.parametrize("kind", FAULTS_AFTER)
async def test_a_lost_answer_is_asked_for(shop, kind):
    payment = await shop.approved()
    shop.bff.sandbox.state.order_fault(
        "pay_execute", kind, **({"after_effect": True} if kind == "html_502" else {})
    )
    answer = await shop.execute(payment)
    assert (answer.status_code, answer.json()["state"]) == (200, "PAID")
    assert shop.at_toss(payment).executions == 1
    assert shop.bff.sandbox.state.count("pay_execute") == 1


async def test_lost_with_the_status_away_too_it_is_pending_until_reconcile_knows(shop):
    payment = await shop.approved()
    shop.bff.sandbox.state.order_fault("pay_execute", "reset_after")
    shop.bff.sandbox.state.order_fault("pay_status", "html_502")
    answer = await shop.execute(payment)
    assert (answer.status_code, answer.json()["state"]) == (202, "PENDING")
    assert (await shop.execute(payment)).json()["state"] == "PENDING"
    assert (await reconcile(shop.bff.resources)).payments.moved == 1
    assert await shop.state(payment) == "PAID"
    assert await shop.events(payment) == ["payment.paid"]
    assert shop.at_toss(payment).executions == 1


async def test_lost_before_the_effect_it_can_be_executed_again_after_a_while(shop):
    payment = await shop.approved()
    shop.bff.sandbox.state.order_fault("pay_execute", "reset_before")
    assert (await shop.execute(payment)).status_code == 202
    shop.bff.clock.advance(seconds=30)
    await reconcile(shop.bff.resources)
    assert await shop.state(payment) == "PENDING"
    shop.bff.clock.advance(seconds=61)
    await reconcile(shop.bff.resources)
    assert await shop.state(payment) == "READY"
    assert (await shop.execute(payment)).json()["state"] == "PAID"
    assert shop.at_toss(payment).executions == 1


async def test_an_answer_that_comes_after_the_refund_is_no_contradiction(shop):
    payment = await shop.approved()
    shop.bff.sandbox.state.order_fault("pay_execute", "hold")
    asking = asyncio.create_task(shop.execute(payment))
    await asyncio.to_thread(shop.bff.sandbox.state.wait_until, lambda state: state.held("pay_execute") == 1)
    await reconcile(shop.bff.resources)
    assert (await shop.refund(payment)).json()["state"] == "REFUNDED"
    shop.bff.sandbox.state.release()
    assert (await asking).json()["state"] == "REFUNDED"
    assert await shop.agreed(payment) == "REFUNDED"
    assert await shop.events(payment) == ["payment.paid", "payment.refunded"]


@pytest.mark.parametrize("field", ["amount", "orderNo", "payToken", "mode"])
@pytest.mark.parametrize("call", ["pay_execute", "pay_status"])
async def test_another_payment_than_ours_is_held(shop, field, call):
    payment = await shop.approved()
    state = shop.bff.sandbox.state
    state.order_fault(call, "wrong_value", field=field)
    if call == "pay_status":
        state.order_fault("pay_execute", "reset_after")
    assert_problem(await shop.execute(payment), 409, "payment_held")
    assert await shop.events(payment) == ["payment.held"]
    assert (await shop.row(payment)).hold_reason == field
    await reconcile(shop.bff.resources)
    assert await shop.state(payment) == "HELD"
    answer = await shop.recheck(payment)
    assert (answer.status_code, answer.json()["state"]) == (200, "PAID")
    assert await shop.events(payment) == ["payment.held", "payment.paid"]


async def test_an_abandoned_payment_ends_by_itself(shop):
    payment = await shop.begun()
    shop.bff.clock.advance(minutes=17)
    shop.bff.sandbox.state.clock.advance(17 * 60)
    assert (await reconcile(shop.bff.resources)).payments.moved == 1
    assert await shop.state(payment) == "CANCELED"
    assert await shop.events(payment) == []


async def test_somebody_elses_payment_is_not_there(shop):
    payment = await shop.approved()
    other = Shop(shop.bff, await shop.bff.log_in("minor"))
    assert_problem(await other.execute(payment), 404, "payment_not_found")
    assert_problem(await other.look(payment), 404, "payment_not_found")
    assert shop.at_toss(payment).executions == 0


async def test_a_refund(shop):
    payment = await shop.paid()
    answer = await shop.refund(payment)
    assert (answer.status_code, answer.json()["state"]) == (200, "REFUNDED"), answer.text
    assert (await shop.refund(payment)).json()["state"] == "REFUNDED"
    assert shop.at_toss(payment).refunds == 1
    assert shop.bff.sandbox.state.count("pay_refund") == 1
    assert await shop.events(payment) == ["payment.paid", "payment.refunded"]
