"""A user who leaves is charged no more; what they have paid stays theirs, and may be paid back (decision 0019)."""

from datetime import timedelta

import pytest

from app.reconcile import reconcile
from tests.payments.shop import Shop
from tests.scenarios import assert_problem


async def leave(shop: Shop) -> None:
    answer = await shop.bff.http.delete("/api/v1/me", headers=shop.login.headers)
    assert answer.status_code == 204, answer.text


async def unlink_in_the_toss_app(shop: Shop) -> None:
    state = shop.bff.sandbox.state
    state.mini_apps.disconnect("man")
    await shop.bff.resources.departure.by_notice(state.mini_apps.user_key("man"), "UNLINK")


async def key_state(shop: Shop, key: dict) -> str:
    return (await shop.bff.resources.billing.get(key["billingKeyId"])).state


async def test_leaving_ends_a_billing_key_while_toss_still_knows_the_user(shop):
    key = await shop.active_key()
    await leave(shop)
    assert await key_state(shop, key) == "REMOVED"
    assert shop.key_at_toss(key).status == "REMOVE"


async def test_what_toss_does_not_confirm_is_not_charged_either(shop):
    key = await shop.active_key()
    shop.bff.sandbox.state.order_fault("billing_remove", "html_502")
    shop.bff.sandbox.state.order_fault("billing_status", "html_502")
    await leave(shop)
    assert await key_state(shop, key) == "REMOVING"
    assert_problem(await shop.charge(key), 409, "billing_key_not_active")
    assert shop.bff.sandbox.state.count("billing_execute") == 0
    # Toss links this user with us no more, so nothing can be charged in their name, and nothing removed.
    shop.bff.clock.advance(minutes=2)
    await reconcile(shop.bff.resources)
    assert await key_state(shop, key) == "REMOVED"


async def test_an_unlink_in_the_toss_app_ends_it_too(shop):
    key = await shop.active_key()
    await unlink_in_the_toss_app(shop)
    assert await key_state(shop, key) == "REMOVING"
    assert_problem(await shop.charge(key), 409, "billing_key_not_active")
    await reconcile(shop.bff.resources)
    assert await key_state(shop, key) == "REMOVED"


async def test_a_key_that_is_over_is_erased_when_its_time_has_come(shop):
    key = await shop.active_key()
    await shop.remove(key)
    days = shop.bff.resources.settings.pay.retention_days
    shop.bff.clock.advance(days=days - 1)
    assert (await reconcile(shop.bff.resources)).billing.erased == 0
    shop.bff.clock.advance(days=2)
    assert (await reconcile(shop.bff.resources)).billing.erased == 1


@pytest.mark.parametrize("days", [1, 100])
async def test_who_comes_back_sees_their_payments(shop, days):
    payment = await shop.paid()
    key = await shop.active_key()
    await leave(shop)
    shop.bff.clock.advance(days=days)
    await reconcile(shop.bff.resources)
    returned = Shop(shop.bff, await shop.bff.log_in(), shop.partner)
    assert returned.login.user_id != shop.login.user_id
    assert (await returned.look(payment)).json()["state"] == "PAID"
    listed = (await returned.as_user("GET", "/billing-keys")).json()["billingKeys"]
    assert [each["billingKeyId"] for each in listed] == [key["billingKeyId"]]
    other = Shop(shop.bff, await shop.bff.log_in("minor"), shop.partner)
    assert_problem(await other.look(payment), 404, "payment_not_found")


async def test_a_refund_that_toss_will_not_make_for_somebody_who_has_left_is_refused(shop):
    """Whether it would is open; the sandbox says no (apps-in-toss reference 3.2)."""
    payment = await shop.paid()
    await leave(shop)
    problem = assert_problem(await shop.refund(payment), 409, "refund_refused")
    assert problem["tossCode"] == "4010"
    assert await shop.state(payment) == "PAID"


async def test_lost_and_never_to_be_told_it_is_for_a_person(shop):
    payment = await shop.paid()
    shop.bff.sandbox.state.order_fault("pay_refund", "reset_before")
    assert (await shop.refund(payment)).status_code == 202
    await leave(shop)
    shop.bff.clock.advance(hours=1)
    await reconcile(shop.bff.resources)
    assert await shop.state(payment) == "REFUNDING"
    shop.bff.clock.offset += shop.bff.resources.settings.pay.abandon_after + timedelta(hours=1)
    await reconcile(shop.bff.resources)
    assert await shop.state(payment) == "HELD"
    assert (await shop.events(payment))[-1] == "payment.held"
