"""What tests/payments/test_machine.py has found, or may miss in a short run, each as a plain story."""

import asyncio

import pytest

from app.payments.ledger import Verdict
from app.payments.states import PaymentState
from app.reconcile import reconcile
from tests.payments.shop import Shop
from tests.scenarios import assert_problem


def refund_in_console(shop: Shop, payment) -> None:
    toss = shop.at_toss(payment)
    shop.bff.sandbox.state.set_switches(stays_in_progress=True)
    with pytest.raises(Exception, match="in progress"):
        shop.bff.sandbox.state.pay.refund(toss.app, toss.user, pay_token=toss.pay_token, is_test=True)
    shop.bff.sandbox.state.set_switches(stays_in_progress=False)


async def test_a_refund_that_was_promised_is_made_even_if_the_payment_is_held_meanwhile(shop):
    payment, toss = await shop.paid(), shop.bff.sandbox.state
    toss.order_fault("pay_refund", "reset_before")
    assert (await shop.refund(payment)).status_code == 202
    toss.order_fault("pay_status", "wrong_value", field="amount")
    assert (await shop.recheck(payment)).json()["state"] == "HELD"
    assert (await shop.recheck(payment)).json()["state"] == "REFUNDING"
    await reconcile(shop.bff.resources)
    assert toss.count("pay_refund") == 1  # the first one may still be under way
    shop.bff.clock.advance(seconds=61)
    await reconcile(shop.bff.resources)
    assert await shop.events(payment) == ["payment.paid", "payment.held", "payment.refunded"]
    await shop.assert_books_agree()


@pytest.mark.parametrize("was_refused_before", [False, True])
async def test_a_refund_in_the_console_that_fails_is_not_made_by_us(shop, was_refused_before):
    payment, toss = await shop.paid(), shop.bff.sandbox.state
    if was_refused_before:
        toss.order_fault("pay_refund", "fail_200", code="REFUND_EXCEED_DAILY")
        assert_problem(await shop.refund(payment), 409, "refund_refused")
    refund_in_console(shop, payment)
    assert (await shop.recheck(payment)).json()["state"] == "REFUNDING"
    assert_problem(await shop.refund(payment), 409, "payment_in_progress")
    toss.pay.finish(payment["orderNo"], is_success=False)
    calls = toss.count("pay_refund")
    shop.bff.clock.advance(seconds=61)
    await reconcile(shop.bff.resources)
    assert await shop.state(payment) == "PAID"
    assert toss.count("pay_refund") == calls
    assert "payment.refunded" not in await shop.events(payment)
    assert (await shop.refund(payment)).json()["state"] == "REFUNDED"
    await shop.assert_books_agree()


async def test_that_it_was_paid_is_told_before_that_it_was_refunded(shop):
    payment = await shop.approved()
    shop.bff.sandbox.state.order_fault("pay_execute", "wrong_value", field="amount")
    assert_problem(await shop.execute(payment), 409, "payment_held")
    refund_in_console(shop, payment)
    shop.bff.sandbox.state.pay.finish(payment["orderNo"])
    assert (await shop.recheck(payment)).json()["state"] == "REFUNDED"
    assert await shop.events(payment) == ["payment.held", "payment.paid", "payment.refunded"]
    await shop.assert_books_agree()


async def test_out_of_a_hold_nothing_is_executed_again_while_the_first_call_may_be_under_way(shop):
    payment, toss = await shop.approved(), shop.bff.sandbox.state
    toss.order_fault("pay_execute", "reset_before")
    assert (await shop.execute(payment)).status_code == 202
    toss.order_fault("pay_status", "wrong_value", field="amount")
    assert (await shop.recheck(payment)).json()["state"] == "HELD"
    assert (await shop.recheck(payment)).json()["state"] == "HELD"  # that Toss shows no effect yet proves nothing
    assert_problem(await shop.execute(payment), 409, "payment_held")
    shop.bff.clock.advance(seconds=61)
    assert (await shop.recheck(payment)).json()["state"] == "READY"
    assert (await shop.execute(payment)).json()["state"] == "PAID"
    await shop.assert_books_agree()


async def test_what_was_given_up_while_toss_was_asked_is_not_handed_out(shop):
    toss = shop.bff.sandbox.state
    toss.order_fault("pay_make", "reset_after")
    toss.order_fault("pay_status", "hold")
    beginning = asyncio.create_task(shop.begin(productId="americano"))
    await asyncio.to_thread(toss.wait_until, lambda state: state.held("pay_status") == 1)
    shop.bff.clock.advance(seconds=61)
    await reconcile(shop.bff.resources)
    toss.release()
    assert_problem(await beginning, 409, "payment_ended")
    (payment,) = await shop.rows()
    assert payment.state == "CANCELED"


async def test_an_answer_about_what_has_changed_meanwhile_is_dropped(shop):
    payment, toss = await shop.paid(), shop.bff.sandbox.state
    toss.order_fault("pay_status", "hold")
    rechecking = asyncio.create_task(shop.recheck(payment))
    await asyncio.to_thread(toss.wait_until, lambda state: state.held("pay_status") == 1)
    assert (await shop.refund(payment)).json()["state"] == "REFUNDED"
    toss.release()
    assert (await rechecking).json()["state"] == "REFUNDED"
    assert await shop.events(payment) == ["payment.paid", "payment.refunded"]


async def test_an_order_is_not_cancelled_while_its_payment_may_cost_money(shop):
    order_id = (await shop.order()).json()["orderId"]
    payment, toss = await shop.approved(orderId=order_id), shop.bff.sandbox.state
    toss.order_fault("pay_execute", "reset_after")
    toss.order_fault("pay_status", "html_502")
    assert (await shop.execute(payment)).status_code == 202
    path = f"/orders/{order_id}"
    assert_problem(await shop.as_partner("DELETE", path), 409, "payment_in_progress")
    await reconcile(shop.bff.resources)
    assert_problem(await shop.as_partner("DELETE", path), 409, "order_not_payable")
    await shop.assert_books_agree()


@pytest.mark.parametrize("is_refunded_by_us", [True, False])
async def test_a_late_answer_of_execute_says_nothing_of_a_refund_since(shop, is_refunded_by_us):
    payment, toss = await shop.approved(), shop.bff.sandbox.state
    toss.order_fault("pay_execute", "hold")
    executing = asyncio.create_task(shop.execute(payment))
    await asyncio.to_thread(toss.wait_until, lambda state: state.held("pay_execute") == 1)
    assert (await shop.recheck(payment)).json()["state"] == "PAID"
    if is_refunded_by_us:
        expected = "REFUNDED"
        await shop.refund(payment)
    else:
        expected = "REFUNDING"
        refund_in_console(shop, payment)
        await shop.recheck(payment)
    toss.release()
    assert (await executing).json()["state"] == expected
    assert await shop.state(payment) == expected
    assert "payment.held" not in await shop.events(payment)


async def test_an_order_whose_payment_was_taken_to_be_over_and_was_paid_is_not_paid_again(shop):
    order_id = (await shop.order()).json()["orderId"]
    payment, toss = await shop.approved(orderId=order_id), shop.bff.sandbox.state
    over = Verdict(PaymentState.CANCELED, is_certain=True)
    await shop.bff.resources.payments.ledger.settle(payment["orderNo"], over, cause="test")
    toss.pay.take_money(shop.at_toss(payment).app, payment["orderNo"])
    for state in ("HELD", "PAID"):
        assert (await shop.recheck(payment)).json()["state"] == state
        assert_problem(await shop.begin(orderId=order_id), 409, "order_not_payable")
