"""Recurring payment: a key is charged once for each idempotency key, and never after somebody has ended it."""

import asyncio

import pytest

from app.errors import BillingKeyNotActive
from app.payments.schemas import ChargeRequest, OrderRequestBody
from app.reconcile import reconcile
from app.resources import open_resources
from sandbox.payments import PayStatus
from tests.conftest import settings_for
from tests.payments.shop import CHARGE, ORDER, Shop
from tests.payments.test_paying import FAULTS_AFTER
from tests.scenarios import Bff, assert_problem

NOBODY = "00000000-0000-0000-0000-000000000000"


def spoil(shop, kind: str, call: str = "billing_execute", **details: object) -> None:
    shop.bff.sandbox.state.order_fault(call, kind, **details)


def charges(shop) -> int:
    return shop.bff.sandbox.state.count("billing_execute")


async def reconciled_after(shop, **by: float) -> None:
    shop.pass_time(**by)
    await reconcile(shop.bff.resources)


async def key_state(shop, key) -> str:
    return (await shop.bff.resources.billing.get(key["billingKeyId"])).state


# --- Keys --------------------------------------------------------------------------------------------------


async def test_a_key_is_begun_permitted_and_ended(shop):
    key = await shop.begun_key()
    assert (key["state"], key["productDesc"], key["isTest"]) == ("READY", "아메리카노 1잔", True)
    assert (await shop.confirm(key)).json()["state"] == "READY"
    shop.bff.sandbox.state.billing.authenticate(key["wrappedToken"])
    assert (await shop.confirm(key)).json()["state"] == "ACTIVE"
    for listed in (
        await shop.as_user("GET", "/billing-keys"),
        await shop.as_partner("GET", f"/billing-keys?userId={shop.login.user_id}"),
    ):
        assert [(each["billingKeyId"], each["state"]) for each in listed.json()["billingKeys"]] == [
            (key["billingKeyId"], "ACTIVE")
        ]
        assert key["wrappedToken"] not in listed.text
    assert (await shop.remove(key)).json()["state"] == "REMOVED"
    assert shop.key_at_toss(key).status == "REMOVE"
    assert (await shop.remove(key)).json()["state"] == "REMOVED"
    assert shop.bff.sandbox.state.count("billing_remove") == 1


WORDS = {
    "CREATE": "READY",
    "AUTH": "READY",
    "ACTIVE": "ACTIVE",
    "REMOVE": "REMOVED",
    "FAIL": "FAILED",
    "CANCEL": "FAILED",
}


def bring(shop, key, word: str) -> None:
    billing, token = shop.bff.sandbox.state.billing, key["wrappedToken"]
    match word:
        case "AUTH":
            billing.authenticate(token, is_active=False)
        case "ACTIVE":
            billing.authenticate(token)
        case "REMOVE":
            billing.authenticate(token)
            billing.remove_by_user(token)
        case "CANCEL":
            billing.cancel(token)
        case "FAIL":
            shop.pass_time(minutes=16)
    assert shop.key_at_toss(key).status == word


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("by_user", [True, False])
async def test_each_word_of_toss(shop, word, by_user):
    key = await shop.begun_key()
    bring(shop, key, word)
    if by_user:
        assert (await shop.confirm(key)).json()["state"] == WORDS[word]
    else:
        await reconciled_after(shop, minutes=2)
    assert await key_state(shop, key) == WORDS[word]
    answer = await shop.charge(key)
    if word == "ACTIVE":
        assert answer.json()["state"] == "PAID"
    else:
        assert_problem(answer, 409, "billing_key_not_active")
        assert charges(shop) == 0


async def test_a_word_that_is_new_to_us_changes_nothing(shop):
    key = await shop.active_key()
    spoil(shop, "wrong_value", "billing_status", field="status")
    assert (await shop.confirm(key)).json()["state"] == "ACTIVE"
    assert shop.bff.sandbox.state.pending_faults() == []


async def test_the_field_of_the_status_is_a_setting(settings, sandbox):
    sandbox.state.set_switches(billing_status_field="billingKeyStatus")
    billing = settings.billing.model_copy(update={"status_field": "billingKeyStatus"})
    async with Bff.running(settings.model_copy(update={"billing": billing}), sandbox) as bff:
        shop = await Shop.opened(bff)
        await shop.charged(await shop.active_key())


@pytest.mark.parametrize("how", [{"kind": "reset_after"}, {"kind": "fail", "code": "INACTIVE_USER"}])
async def test_a_key_that_was_not_made_is_not_there(shop, how):
    spoil(shop, call="billing_create", **how)
    answer = await shop.as_user("POST", "/billing-keys", json={"productId": "rice"})
    assert answer.status_code in (409, 504)
    (key,) = (await shop.as_user("GET", "/billing-keys")).json()["billingKeys"]
    assert key["state"] == "FAILED"
    assert_problem(await shop.charge(key), 409, "billing_key_not_active")


async def test_a_key_is_its_owners(shop):
    key, other = await shop.active_key(), await shop.beside("minor")
    for refused in (await other.confirm(key), await other.remove(key)):
        assert_problem(refused, 404, "billing_key_not_found")
    assert (await other.as_user("GET", "/billing-keys")).json()["billingKeys"] == []
    assert_problem(await shop.charge({"billingKeyId": NOBODY}), 404, "billing_key_not_found")
    assert await key_state(shop, key) == "ACTIVE"


@pytest.mark.parametrize("kind", ["reset_after", "html_502"])
async def test_a_removal_whose_answer_is_lost_is_asked_for(shop, kind):
    key = await shop.active_key()
    spoil(shop, kind, "billing_remove", **({"after_effect": True} if kind == "html_502" else {}))
    assert (await shop.remove(key)).json()["state"] == "REMOVED"


@pytest.mark.parametrize("how", [{"kind": "reset_before"}, {"kind": "fail", "code": "COMMON_SYSTEM_ERROR"}])
async def test_a_removal_that_has_not_come_about_is_seen_through(shop, how):
    key = await shop.active_key()
    spoil(shop, call="billing_remove", **how)
    assert (await shop.remove(key)).status_code in (503, 504)
    assert (await key_state(shop, key), shop.key_at_toss(key).status) == ("REMOVING", "ACTIVE")
    assert_problem(await shop.charge(key), 409, "billing_key_not_active")
    assert (await shop.confirm(key)).json()["state"] == "REMOVING"
    await reconciled_after(shop, minutes=2)
    assert (await key_state(shop, key), shop.key_at_toss(key).status) == ("REMOVED", "REMOVE")


async def test_removed_by_the_partner(shop):
    key = await shop.active_key()
    answer = await shop.as_partner("DELETE", f"/billing-keys/{key['billingKeyId']}")
    assert answer.json()["state"] == "REMOVED"
    assert_problem(await shop.charge(key), 409, "billing_key_not_active")
    assert shop.key_at_toss(key).status == "REMOVE"


async def test_removed_in_the_toss_app_it_is_noticed_before_the_next_charge(shop):
    key = await shop.active_key()
    await shop.charged(key)
    shop.bff.sandbox.state.billing.remove_by_user(key["wrappedToken"])
    assert_problem(await shop.charge(key, "charge-2"), 409, "billing_key_not_active")
    assert await key_state(shop, key) == "REMOVED"
    assert charges(shop) == 1
    assert (await shop.charge(key)).json()["state"] == "PAID"  # the one of before


async def test_what_a_user_who_leaves_has_permitted_ends(shop):
    key, ready, other = await shop.active_key(), await shop.begun_key(), await shop.beside("minor")
    kept = await other.active_key()
    await shop.bff.resources.billing.end_of(shop.login.user_id)
    assert_problem(await shop.charge(key), 409, "billing_key_not_active")
    shop.bff.sandbox.state.billing.authenticate(ready["wrappedToken"])
    await reconcile(shop.bff.resources)
    assert [await key_state(shop, each) for each in (key, ready, kept)] == ["REMOVED", "REMOVED", "ACTIVE"]
    assert [shop.key_at_toss(each).status for each in (key, ready, kept)] == ["REMOVE", "REMOVE", "ACTIVE"]
    assert charges(shop) == 0


async def test_a_key_that_nobody_permits_ends(shop):
    shop.bff.sandbox.state.set_switches(payment_life_seconds=10**9)
    key = await shop.begun_key()
    await reconciled_after(shop, hours=1)
    assert await key_state(shop, key) == "READY"
    await reconciled_after(shop, hours=25)
    assert await key_state(shop, key) == "FAILED"


async def test_while_toss_is_away_the_run_ends_and_the_next_one_goes_on(shop):
    for _ in range(3):
        await shop.begun_key()
    shop.pass_time(minutes=2)
    spoil(shop, "html_502", "billing_status")
    assert [(await reconcile(shop.bff.resources)).billing.looked_at for _ in range(2)] == [1, 2]


# --- Charges: once -----------------------------------------------------------------------------------------


async def test_a_charge_is_made_once_for_each_idempotency_key(shop):
    key = await shop.active_key()
    first, again, other = [await shop.charged(key, each) for each in ("charge-1", "charge-1", "charge-2")]
    assert first == again
    assert first["orderNo"] != other["orderNo"]
    assert (first["amount"], first["productDesc"]) == (CHARGE["amount"], CHARGE["description"])
    assert first["billingKeyId"] == key["billingKeyId"]
    assert charges(shop) == 2
    assert [await shop.agreed(each) for each in (first, other)] == ["PAID", "PAID"]


async def test_fifty_at_once_are_one(shop):
    key = await shop.active_key()
    answers = await asyncio.gather(*(shop.charge(key) for _ in range(50)))
    found = {(answer.status_code, answer.json().get("state")) for answer in answers}
    assert found <= {(200, "PAID"), (202, "PENDING")}
    assert charges(shop) == 1
    assert len({answer.json()["orderNo"] for answer in answers}) == 1
    assert await shop.agreed(await shop.only_payment()) == "PAID"


async def test_another_charge_under_the_same_key_is_refused(shop):
    key, second = await shop.active_key(), await shop.active_key()
    await shop.charged(key)
    for refused in (await shop.charge(key, amount=9901), await shop.charge(second), await shop.order("charge-1")):
        assert_problem(refused, 422, "idempotency_key_reused")
    answer = await shop.as_partner("POST", f"/billing-keys/{key['billingKeyId']}/charges", json=CHARGE)
    assert_problem(answer, 400, "idempotency_key_required")
    assert charges(shop) == 1


async def test_nobody_pays_the_order_of_a_charge(shop):
    charge = await shop.charged(await shop.active_key())
    assert_problem(await shop.begin(orderId=charge["orderId"]), 404, "order_not_found")


# --- Charges: answers that get lost ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAULTS_AFTER)
async def test_a_lost_answer_is_asked_for(shop, kind):
    key = await shop.active_key()
    spoil(shop, kind, **({"after_effect": True} if kind == "html_502" else {}))
    charge = await shop.charged(key)
    assert await shop.agreed(charge) == "PAID"
    assert charges(shop) == 1


async def test_lost_with_the_status_away_too_reconcile_finds_out(shop):
    key = await shop.active_key()
    spoil(shop, "reset_after")
    spoil(shop, "html_502", "pay_status")
    for _ in range(2):
        answer = await shop.charge(key)
        assert (answer.status_code, answer.json()["state"]) == (202, "PENDING")
    await reconcile(shop.bff.resources)
    assert await shop.agreed(answer.json()) == "PAID"
    assert charges(shop) == 1
    assert (await shop.refund(answer.json())).json()["state"] == "REFUNDED"


@pytest.mark.parametrize("not_found", ["fail", "http_404", "http_404_of_a_new_name"])
async def test_lost_before_the_effect_it_has_failed_once_nothing_can_be_under_way(shop, not_found):
    if not_found in {"fail", "http_404"}:
        shop.bff.sandbox.state.set_switches(status_not_found=not_found)
    else:
        spoil(shop, "fail", "pay_status", code="NO_SUCH_PAYMENT", http_status=404, times=3)
    key = await shop.active_key()
    spoil(shop, "reset_before")
    for _ in range(2):
        answer = await shop.charge(key)
        assert (answer.status_code, answer.json()["state"]) == (202, "PENDING")
    await reconciled_after(shop, seconds=30)
    assert await shop.state(answer.json()) == "PENDING"
    await reconciled_after(shop, seconds=31)
    assert await shop.state(answer.json()) == "FAILED"
    assert await shop.events(answer.json()) == ["payment.failed"]
    assert_problem(await shop.charge(key), 409, "payment_refused")
    assert charges(shop) == 1
    await shop.charged(key, "charge-2")


@pytest.mark.parametrize("is_answer_lost", [False, True])
async def test_made_after_all_when_it_was_taken_to_have_failed_it_is_held(shop, is_answer_lost):
    """The process stood still, say, between its record and the call."""
    key = await shop.active_key()
    spoil(shop, "hold_before")
    asking = asyncio.create_task(shop.charge(key))
    await asyncio.to_thread(shop.bff.sandbox.state.wait_until, lambda state: state.held("billing_execute") == 1)
    await reconciled_after(shop, seconds=61)
    charge = await shop.only_payment()
    assert charge["state"] == "FAILED"
    if is_answer_lost:
        spoil(shop, "reset_after")
    shop.bff.sandbox.state.release()
    assert_problem(await asking, 409, "payment_held")
    assert await shop.events(charge) == ["payment.failed", "payment.held"]
    assert (await shop.recheck(charge)).json()["state"] == "PAID"
    assert await shop.agreed(charge) == "PAID"


@pytest.mark.parametrize("kind", ["reset_before", "reset_after"])
@pytest.mark.parametrize("by_toss", [True, False])
async def test_lost_where_no_status_can_be_asked_it_is_for_a_person(settings, sandbox, kind, by_toss):
    """Neither paid nor failed, whatever it was: nobody can know."""
    pay = settings.pay.model_copy(update={"status_by_order_no": by_toss})
    if by_toss:
        sandbox.state.set_switches(status_by_order_no=False)
    async with Bff.running(settings.model_copy(update={"pay": pay}), sandbox) as bff:
        shop = await Shop.opened(bff)
        key = await shop.active_key()
        spoil(shop, kind)
        answer = await shop.charge(key)
        assert (answer.status_code, answer.json()["state"]) == (202, "PENDING")
        await reconciled_after(shop, hours=1)
        assert await shop.state(answer.json()) == "PENDING"
        await reconciled_after(shop, hours=24)
        assert (await shop.row(answer.json())).hold_reason == "outcome_unknown"
        assert await shop.events(answer.json()) == ["payment.held"]
        assert_problem(await shop.charge(key), 409, "payment_held")
        assert charges(shop) == 1


async def test_held_because_nothing_could_be_learnt_a_person_can_ask_again(settings, sandbox):
    pay = settings.pay.model_copy(update={"status_by_order_no": False})
    async with Bff.running(settings.model_copy(update={"pay": pay}), sandbox) as bff:
        shop = await Shop.opened(bff)
        key = await shop.active_key()
        spoil(shop, "reset_after")
        charge = (await shop.charge(key)).json()
        await reconciled_after(shop, hours=25)
        assert await shop.state(charge) == "HELD"
    async with Bff.running(settings, sandbox) as bff:
        shop = Shop(bff, shop.login, shop.partner)
        assert (await shop.recheck(charge)).json()["state"] == "PAID"
        assert await shop.events(charge) == ["payment.held", "payment.paid"]
        assert (await shop.charge(key)).json()["state"] == "PAID"
        assert charges(shop) == 1


@pytest.mark.parametrize("field", ["amount", "orderNo", "mode"])
async def test_a_charge_of_something_else_is_held(shop, field):
    key = await shop.active_key()
    spoil(shop, "wrong_value", field=field)
    assert_problem(await shop.charge(key), 409, "payment_held")
    payment = await shop.only_payment()
    assert payment["holdReason"] == field
    assert (await shop.recheck(payment)).json()["state"] == "PAID"
    assert await shop.agreed(payment) == "PAID"


async def test_in_progress_then_done_or_failed(shop):
    key, state = await shop.active_key(), shop.bff.sandbox.state
    state.set_switches(stays_in_progress=True)
    done, failed = [(await shop.charge(key, each)).json() for each in ("done", "failed")]
    assert [await shop.agreed(each) for each in (done, failed)] == ["PENDING", "PENDING"]
    await reconciled_after(shop, minutes=5)
    assert [await shop.agreed(each) for each in (done, failed)] == ["PENDING", "PENDING"]
    state.pay.finish(done["orderNo"])
    state.pay.finish(failed["orderNo"], is_success=False)
    await reconciled_after(shop, minutes=5)
    assert [await shop.agreed(each) for each in (done, failed)] == ["PAID", "CANCELED"]
    assert await shop.events(failed) == ["payment.failed"]
    assert charges(shop) == 2


async def test_a_charge_never_waits_for_its_user(shop):
    """Whatever Toss calls it: a user could execute what is READY."""
    key, pay = await shop.active_key(), shop.bff.sandbox.state.pay
    shop.bff.sandbox.state.set_switches(stays_in_progress=True)
    charge = (await shop.charge(key)).json()
    pay._named(charge["orderNo"]).status = PayStatus.APPROVED
    shop.bff.clock.advance(seconds=90)
    await reconcile(shop.bff.resources)
    assert await shop.state(charge) == "PENDING"
    pay._named(charge["orderNo"]).status = PayStatus.PROGRESS
    pay.finish(charge["orderNo"])
    shop.bff.clock.advance(seconds=90)
    await reconcile(shop.bff.resources)
    assert await shop.agreed(charge) == "PAID"


# --- Charges: refusals -------------------------------------------------------------------------------------


async def test_refused_it_stays_refused_under_this_idempotency_key(shop):
    key = await shop.active_key()
    spoil(shop, "fail", code="COMMON_NOT_ENOUGH_CASH")
    for _ in range(2):
        refused = assert_problem(await shop.charge(key), 409, "payment_refused")
        assert refused["tossCode"] == "COMMON_NOT_ENOUGH_CASH"
    payment = await shop.only_payment()
    assert (payment["state"], await shop.events(payment)) == ("FAILED", ["payment.failed"])
    assert charges(shop) == 1
    await shop.charged(key, "charge-2")


async def test_removed_between_the_look_and_the_charge(shop):
    key = await shop.active_key()
    spoil(shop, "hold_before")
    asking = asyncio.create_task(shop.charge(key))
    await asyncio.to_thread(shop.bff.sandbox.state.wait_until, lambda state: state.held("billing_execute") == 1)
    shop.bff.sandbox.state.billing.remove_by_user(key["wrappedToken"])
    shop.bff.sandbox.state.release()
    assert_problem(await asking, 409, "payment_refused")
    assert await shop.state(await shop.only_payment()) == "FAILED"


async def test_ended_here_between_the_look_and_the_charge(shop):
    """Nobody who was told that their key has ended is charged afterwards."""
    key, billing = await shop.active_key(), shop.bff.resources.billing
    look = billing.check

    async def look_then_end(seen, **how):
        active = await look(seen, **how)
        assert active.state == "ACTIVE"
        billing.check = look
        await billing.end_of(shop.login.user_id)
        return active

    billing.check = look_then_end
    assert_problem(await shop.charge(key), 409, "billing_key_not_active")
    assert (charges(shop), await shop.payments()) == (0, [])


async def never_sent(shop, key) -> None:
    spoil(shop, "fail", code="4095", retry_after_seconds=60)
    assert_problem(await shop.charge(key), 503, "upstream_budget_exhausted")
    payment = await shop.only_payment()
    assert (payment["state"], payment["tossCode"]) == ("FAILED", None)


async def test_never_sent_it_may_be_repeated_with_the_same_key(embedded, sandbox):
    settings = settings_for(embedded, sandbox)
    async with Bff.running(settings, sandbox) as bff:
        shop = await Shop.opened(bff)
        key = await shop.active_key()
        await never_sent(shop, key)
    async with Bff.running(settings, sandbox) as bff:  # which knows nothing of the pause
        shop = Shop(bff, shop.login, shop.partner)
        answers = await asyncio.gather(*(shop.charge(key) for _ in range(20)))
        found = {(answer.status_code, answer.json().get("state")) for answer in answers}
        assert found <= {(200, "PAID"), (202, "PENDING")}
        first, second = await shop.payments()
        assert first["orderId"] == second["orderId"]
        assert first["state"] == "FAILED"
        assert await shop.agreed(second) == "PAID"
        assert charges(shop) == 2  # the first of which Toss turned away at its door


async def test_never_sent_and_cancelled_it_is_not_charged(embedded, sandbox):
    settings = settings_for(embedded, sandbox)
    async with Bff.running(settings, sandbox) as bff:
        shop = await Shop.opened(bff)
        key = await shop.active_key()
        await never_sent(shop, key)
        order_id = (await shop.only_payment())["orderId"]
        assert (await shop.cancel(order_id)).status_code == 204
    async with Bff.running(settings, sandbox) as bff:
        shop = Shop(bff, shop.login, shop.partner)
        assert_problem(await shop.charge(key), 409, "order_not_payable")
        assert charges(shop) == 1


async def test_what_was_charged_in_a_test_is_not_paid(settings, shop):
    """A live service, as it would be in production, on the books of a test."""
    key = await shop.active_key()
    await shop.charged(key, "charge-1")
    request = ChargeRequest.model_validate(CHARGE).request(key["billingKeyId"])
    live_pay = settings.pay.model_copy(update={"mode": "live"})
    async with open_resources(settings.model_copy(update={"pay": live_pay})) as live:
        for idempotency_key in ("charge-1", "charge-2"):
            with pytest.raises(BillingKeyNotActive):
                await live.billing.charge(
                    key["billingKeyId"], request, idempotency_key=idempotency_key, actor="partner"
                )
        order = OrderRequestBody.model_validate(ORDER).request()
        made, is_new = await live.orders.make(order, idempotency_key="charge-1", actor="partner")
        assert (made.is_test, is_new) == (False, True)
    assert charges(shop) == 1


# --- Off ---------------------------------------------------------------------------------------------------


async def test_disabled_there_is_no_recurring_payment(settings, sandbox, shop):
    key, begun = await shop.active_key(), await shop.begun_key()
    off = settings.billing.model_copy(update={"enabled": False})
    async with Bff.running(settings.model_copy(update={"billing": off}), sandbox) as bff:
        shop = Shop(bff, shop.login, shop.partner)
        bff.clock.advance(hours=1)
        assert (await reconcile(bff.resources)).billing.looked_at == 0
        for refused in (
            await shop.as_user("POST", "/billing-keys", json={"productId": "rice"}),
            await shop.charge(key),
            await shop.confirm(begun),
            await shop.remove(begun),
        ):
            assert_problem(refused, 503, "toss_not_configured")
    assert charges(shop) == 0
