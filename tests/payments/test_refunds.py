"""Money goes back once: claimed before the call, proven after it, and once promised it is seen through (G13)."""

import asyncio
from contextlib import suppress

import pytest

from app.reconcile import reconcile
from sandbox.shared import CallFailed
from tests.conftest import settings_for
from tests.payments.shop import Shop
from tests.payments.test_paying import FAULTS_AFTER
from tests.scenarios import Bff, assert_problem

NO = "REFUND_EXCEED_DAILY"
UNCLEAR = "COMMON_REFUND_ERROR"


async def reconciled_after(shop, **by: float) -> None:
    shop.pass_time(**by)
    await reconcile(shop.bff.resources)


def spoil(shop, kind: str, call: str = "pay_refund", **details: object) -> None:
    shop.bff.sandbox.state.order_fault(call, kind, **details)


def refund_calls(shop) -> int:
    return shop.bff.sandbox.state.count("pay_refund")


def refund_in_toss_console(shop, payment) -> None:
    at_toss = shop.at_toss(payment)
    shop.bff.sandbox.state.pay.refund(at_toss.app, at_toss.user, pay_token=at_toss.pay_token, is_test=True)


async def full(shop, payment) -> dict:
    return (await shop.as_partner("GET", f"/payments/{payment['orderNo']}")).json()


async def partner_of(shop):
    return await shop.bff.resources.server_keys.verify(shop.partner["Authorization"].removeprefix("Bearer "))


# --- Once --------------------------------------------------------------------------------------------------


async def test_a_refund_is_claimed_before_the_call_and_kept_with_who_asked(shop):
    payment = await shop.paid()
    spoil(shop, "hold_before")
    asking = asyncio.create_task(shop.refund(payment))
    await asyncio.to_thread(shop.bff.sandbox.state.wait_until, lambda state: state.held("pay_refund") == 1)
    claimed = await full(shop, payment)
    assert (claimed["state"], claimed["refundNo"]) == ("REFUNDING", None)
    assert (await shop.look(payment)).json()["state"] == "REFUNDING"
    assert (await shop.refund(payment)).status_code == 202
    shop.bff.sandbox.state.release()
    assert (await asking).json()["state"] == "REFUNDED"
    done = await full(shop, payment)
    key_id = done["refundBy"]
    assert key_id == (await partner_of(shop)).key_id
    assert done["refundAskedAt"] is not None
    assert done["refundNo"] == shop.at_toss(payment).refund_no
    moves = [(step["fromState"], step["toState"], step["cause"], step["actor"]) for step in done["steps"]]
    assert moves[-2:] == [("PAID", "REFUNDING", "refund", key_id), ("REFUNDING", "REFUNDED", "refund", None)]
    assert [step["toState"] for step in done["steps"]] == [
        "CREATED",
        "READY",
        "PENDING",
        "PAID",
        "REFUNDING",
        "REFUNDED",
    ]
    assert refund_calls(shop) == 1


async def test_fifty_at_once_are_one(shop):
    payment = await shop.paid()
    answers = await asyncio.gather(*(shop.refund(payment) for _ in range(50)))
    assert {(answer.status_code, answer.json()["state"]) for answer in answers} <= {
        (200, "REFUNDED"),
        (202, "REFUNDING"),
    }
    assert refund_calls(shop) == 1
    assert await shop.agreed(payment) == "REFUNDED"


async def test_the_first_reason_counts(shop):
    payment = await shop.paid()
    spoil(shop, "reset_before")
    assert (await shop.refund(payment, "첫째")).status_code == 202
    before = await full(shop, payment)
    other = await shop.bff.server_key()
    path = f"/server/v1/payments/{payment['orderNo']}/refund"
    await shop.bff.http.post(path, headers=other, json={"reason": "둘째"})
    assert await full(shop, payment) == before
    ledger = shop.bff.resources.payments.ledger
    assert ledger.refund_reason_of(await shop.row(payment)) == "첫째"


# --- Answers that get lost ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAULTS_AFTER)
async def test_a_lost_answer_is_asked_for(shop, kind):
    payment = await shop.paid()
    spoil(shop, kind, **({"after_effect": True} if kind == "html_502" else {}))
    answer = await shop.refund(payment)
    assert (answer.status_code, answer.json()["state"]) == (200, "REFUNDED")
    assert await shop.agreed(payment) == "REFUNDED"
    assert refund_calls(shop) == 1


@pytest.mark.parametrize("code", ["COMMON_SYSTEM_ERROR", "COMMON_TIMEOUT", NO, "SOMETHING_NEW"])
async def test_a_no_after_the_effect_is_not_believed(shop, code):
    payment = await shop.paid()
    spoil(shop, "fail", code=code, after_effect=True)
    assert (await shop.refund(payment)).json()["state"] == "REFUNDED"
    assert await shop.agreed(payment) == "REFUNDED"


async def test_lost_with_the_status_away_too_reconcile_finds_out(shop):
    payment = await shop.paid()
    spoil(shop, "reset_after")
    spoil(shop, "html_502", "pay_status")
    answer = await shop.refund(payment)
    assert (answer.status_code, answer.json()["state"]) == (202, "REFUNDING")
    assert (await reconcile(shop.bff.resources)).payments.moved == 1
    assert await shop.agreed(payment) == "REFUNDED"
    assert refund_calls(shop) == 1


@pytest.mark.parametrize(
    "how", [{"kind": "reset_before"}, {"kind": "fail", "code": "COMMON_SYSTEM_ERROR"}, {"kind": "html_502"}]
)
async def test_lost_before_the_effect_it_is_sent_again_once_nothing_can_be_under_way(shop, how):
    payment = await shop.paid()
    spoil(shop, **how)
    for _ in range(2):
        answer = await shop.refund(payment)
        assert (answer.status_code, answer.json()["state"]) == (202, "REFUNDING")
    await reconciled_after(shop, seconds=30)
    assert (await shop.state(payment), refund_calls(shop)) == ("REFUNDING", 1)
    await reconciled_after(shop, seconds=31)
    assert await shop.agreed(payment) == "REFUNDED"
    assert refund_calls(shop) == 2
    assert await shop.events(payment) == ["payment.paid", "payment.refunded"]


async def test_sent_again_and_lost_again_it_waits_as_long_again(shop):
    payment = await shop.paid()
    for _ in range(2):
        spoil(shop, "reset_before")
    assert (await shop.refund(payment)).status_code == 202
    await reconciled_after(shop, seconds=61)
    await reconciled_after(shop, seconds=30)
    assert (await shop.state(payment), refund_calls(shop)) == ("REFUNDING", 2)
    await reconciled_after(shop, seconds=61)
    assert await shop.agreed(payment) == "REFUNDED"
    assert refund_calls(shop) == 3


async def test_many_reconcile_at_once_and_it_is_sent_again_once(shop):
    payment = await shop.paid()
    spoil(shop, "reset_before")
    await shop.refund(payment)
    shop.pass_time(seconds=61)
    check = shop.bff.resources.payments.check
    await asyncio.gather(*(check(payment["orderNo"], cause="reconcile") for _ in range(10)))
    assert await shop.agreed(payment) == "REFUNDED"
    assert refund_calls(shop) == 2


async def test_a_look_from_before_the_refund_does_not_send_it_again(shop):
    payment = await shop.paid()
    spoil(shop, "hold", "pay_status")
    looking = asyncio.create_task(shop.recheck(payment))
    await asyncio.to_thread(shop.bff.sandbox.state.wait_until, lambda state: state.held("pay_status") == 1)
    spoil(shop, "reset_after")
    spoil(shop, "html_502", "pay_status")
    assert (await shop.refund(payment)).status_code == 202
    shop.pass_time(seconds=61)
    shop.bff.sandbox.state.release()
    assert (await looking).json()["state"] == "REFUNDING"
    assert refund_calls(shop) == 1
    await reconciled_after(shop, seconds=1)
    assert await shop.agreed(payment) == "REFUNDED"
    assert refund_calls(shop) == 1


async def test_never_sent_nothing_has_happened_and_it_can_be_asked_for_again(embedded, sandbox):
    settings = settings_for(embedded, sandbox)
    async with Bff.running(settings, sandbox) as bff:
        shop = await Shop.opened(bff)
        payment = await shop.paid()
        spoil(shop, "fail", code="4095", retry_after_seconds=60)
        assert_problem(await shop.refund(payment), 503, "upstream_budget_exhausted")
        assert await shop.agreed(payment) == "PAID"
        assert await shop.events(payment) == ["payment.paid"]
    async with Bff.running(settings, sandbox) as bff:  # which knows nothing of the pause
        shop = Shop(bff, shop.login, shop.partner)
        assert (await shop.refund(payment)).json()["state"] == "REFUNDED"
        assert await shop.agreed(payment) == "REFUNDED"


# --- Refusals ----------------------------------------------------------------------------------------------


async def test_refused_it_is_paid_still_and_can_be_asked_for_again(shop):
    payment = await shop.paid()
    spoil(shop, "fail", code=NO)
    assert assert_problem(await shop.refund(payment), 409, "refund_refused")["tossCode"] == NO
    assert await shop.agreed(payment) == "PAID"
    assert await shop.events(payment) == ["payment.paid", "payment.refund_refused"]
    assert (await shop.refund(payment)).json()["state"] == "REFUNDED"
    assert await shop.events(payment) == ["payment.paid", "payment.refund_refused", "payment.refunded"]


async def test_clearly_refused_with_the_status_away_the_no_is_believed(shop):
    payment = await shop.paid()
    spoil(shop, "fail", code=NO)
    spoil(shop, "html_502", "pay_status")
    assert_problem(await shop.refund(payment), 409, "refund_refused")
    assert await shop.agreed(payment) == "PAID"
    assert (await shop.refund(payment)).json()["state"] == "REFUNDED"


async def test_already_refunded_with_the_status_away_is_no_refusal(shop):
    payment = await shop.paid()
    spoil(shop, "fail", code="REFUND_ALREADY_REFUNDED", after_effect=True)
    spoil(shop, "html_502", "pay_status")
    assert (await shop.refund(payment)).status_code == 202
    await reconciled_after(shop, seconds=1)
    assert await shop.agreed(payment) == "REFUNDED"


async def test_refused_with_the_status_away_reconcile_hears_the_no_again(shop):
    payment = await shop.paid()
    spoil(shop, "fail", code=UNCLEAR, times=2)
    spoil(shop, "html_502", "pay_status")
    assert (await shop.refund(payment)).status_code == 202
    await reconciled_after(shop, seconds=61)
    assert await shop.agreed(payment) == "PAID"
    assert (await full(shop, payment))["tossCode"] == UNCLEAR
    assert await shop.events(payment) == ["payment.paid", "payment.refund_refused"]


async def test_refused_when_it_is_sent_again_the_partner_is_told(shop):
    payment = await shop.paid()
    spoil(shop, "reset_before")
    spoil(shop, "fail", code=NO)
    assert (await shop.refund(payment)).status_code == 202
    await reconciled_after(shop, seconds=61)
    assert await shop.agreed(payment) == "PAID"
    assert await shop.events(payment) == ["payment.paid", "payment.refund_refused"]


async def test_a_settled_payment_is_not_refunded(shop):
    payment = await shop.paid()
    shop.bff.sandbox.state.pay.settle(payment["payToken"])
    assert_problem(await shop.refund(payment), 409, "refund_refused")
    assert await shop.agreed(payment) == "PAID"


@pytest.mark.parametrize("repeat", ["success", "already_refunded"])
async def test_refunded_past_us_it_is_refunded(shop, repeat):
    """In Toss's console, say, before anybody asks us."""
    shop.bff.sandbox.state.set_switches(refund_repeat=repeat)
    payment = await shop.paid()
    refund_in_toss_console(shop, payment)
    assert (await shop.refund(payment)).json()["state"] == "REFUNDED"
    assert await shop.agreed(payment) == "REFUNDED"
    assert await shop.events(payment) == ["payment.paid", "payment.refunded"]


async def test_a_recheck_sees_a_refund_past_us(shop):
    payment = await shop.paid()
    refund_in_toss_console(shop, payment)
    assert (await shop.recheck(payment)).json()["state"] == "REFUNDED"
    assert await shop.agreed(payment) == "REFUNDED"
    shop.bff.sandbox.state.pay.settle(payment["payToken"])
    assert (await shop.recheck(payment)).json()["state"] == "REFUNDED"
    assert await shop.events(payment) == ["payment.paid", "payment.refunded"]


async def test_paid_and_refunded_while_we_knew_nothing_both_are_told(shop):
    payment = await shop.approved()
    spoil(shop, "reset_after", "pay_execute")
    spoil(shop, "html_502", "pay_status")
    assert (await shop.execute(payment)).status_code == 202
    refund_in_toss_console(shop, payment)
    await reconcile(shop.bff.resources)
    assert await shop.agreed(payment) == "REFUNDED"
    assert await shop.events(payment) == ["payment.paid", "payment.refunded"]


@pytest.mark.parametrize("is_done", [True, False])
async def test_refunded_past_us_while_it_was_held_both_are_told(shop, is_done):
    payment = await shop.approved()
    spoil(shop, "wrong_value", "pay_execute", field="amount")
    assert_problem(await shop.execute(payment), 409, "payment_held")
    shop.bff.sandbox.state.set_switches(stays_in_progress=not is_done)
    with suppress(CallFailed):  # it is in progress
        refund_in_toss_console(shop, payment)
    assert (await shop.recheck(payment)).json()["state"] == ("REFUNDED" if is_done else "REFUNDING")
    if not is_done:
        shop.bff.sandbox.state.pay.finish(payment["payToken"])
        assert (await shop.recheck(payment)).json()["state"] == "REFUNDED"
    assert await shop.agreed(payment) == "REFUNDED"
    assert await shop.events(payment) == ["payment.held", "payment.paid", "payment.refunded"]


# --- Refunds that take time --------------------------------------------------------------------------------


async def in_progress(shop) -> dict:
    payment = await shop.paid()
    shop.bff.sandbox.state.set_switches(stays_in_progress=True)
    for _ in range(2):
        answer = await shop.refund(payment)
        assert (answer.status_code, answer.json()["state"]) == (202, "REFUNDING")
    await reconciled_after(shop, minutes=5)
    assert await shop.agreed(payment) == "REFUNDING"
    assert refund_calls(shop) == 1
    shop.bff.sandbox.state.set_switches(stays_in_progress=False)
    return payment


async def test_in_progress_then_done(shop):
    payment = await in_progress(shop)
    shop.bff.sandbox.state.pay.finish(payment["payToken"])
    await reconciled_after(shop, minutes=5)
    assert await shop.agreed(payment) == "REFUNDED"
    assert refund_calls(shop) == 1


async def test_in_progress_then_failed_it_is_sent_again(shop):
    payment = await in_progress(shop)
    shop.bff.sandbox.state.pay.finish(payment["payToken"], is_success=False)
    await reconciled_after(shop, minutes=5)
    assert await shop.agreed(payment) == "REFUNDED"
    assert refund_calls(shop) == 2


async def test_in_progress_then_failed_then_refused(shop):
    payment = await in_progress(shop)
    shop.bff.sandbox.state.pay.finish(payment["payToken"], is_success=False)
    spoil(shop, "fail", code=NO)
    await reconciled_after(shop, minutes=5)
    assert await shop.agreed(payment) == "PAID"
    assert await shop.events(payment) == ["payment.paid", "payment.refund_refused"]


async def test_one_past_us_that_fails_is_not_sent_by_us(shop):
    payment = await shop.paid()
    shop.bff.sandbox.state.set_switches(stays_in_progress=True)
    with suppress(CallFailed):  # it is in progress
        refund_in_toss_console(shop, payment)
    assert (await shop.recheck(payment)).json()["state"] == "REFUNDING"
    shop.bff.sandbox.state.pay.finish(payment["payToken"], is_success=False)
    await reconciled_after(shop, minutes=5)
    assert await shop.agreed(payment) == "PAID"
    assert (refund_calls(shop), await shop.events(payment)) == (0, ["payment.paid"])
    shop.bff.sandbox.state.set_switches(stays_in_progress=False)
    assert (await shop.refund(payment)).json()["state"] == "REFUNDED"


# --- What may not be refunded ------------------------------------------------------------------------------


async def test_only_what_is_paid_is_refunded(shop):
    ready, canceled, held, pending = [await shop.approved() for _ in range(4)]
    shop.bff.sandbox.state.pay.cancel(canceled["payToken"])
    await shop.execute(canceled)
    spoil(shop, "wrong_value", "pay_execute", field="amount")
    await shop.execute(held)
    spoil(shop, "reset_after", "pay_execute")
    spoil(shop, "html_502", "pay_status")
    await shop.execute(pending)
    states = {"READY": ready, "CANCELED": canceled, "HELD": held, "PENDING": pending}
    for state, payment in states.items():
        code = "payment_held" if state == "HELD" else "refund_not_possible"
        assert_problem(await shop.refund(payment), 409, code)
        assert await shop.state(payment) == state
    assert_problem(await shop.refund({"orderNo": "test-1"}), 404, "payment_not_found")
    assert refund_calls(shop) == 0


async def test_what_a_reason_may_hold(shop):
    payment = await shop.paid()
    for reason in ("", " ", "단순 변심", "가" * 56, "a\n", "a'b", "돈<b>", "漢字", "é", None, 7):
        assert_problem(await shop.refund(payment, reason), 422, "invalid_request")
    answer = await shop.as_partner(
        "POST", f"/payments/{payment['orderNo']}/refund", json={"reason": "a", "amount": 1}
    )
    assert_problem(answer, 422, "invalid_request")
    assert refund_calls(shop) == 0
    assert (await shop.refund(payment, "가힣ㄱㅎㅏㅣAz09_-:.^@()[]#/!%?&" + "가" * 25)).status_code == 200


@pytest.mark.parametrize("code", ["4010", "COMMON_INVALID_API_KEY"])
@pytest.mark.parametrize("state", ["PAID", "REFUNDED", "CANCELED"])
async def test_that_toss_will_not_tell_any_more_changes_nothing_that_is_settled(shop, state, code):
    """The user has left, say. Held, it could not even be refunded."""
    payment = await shop.begun() if state == "CANCELED" else await shop.paid()
    if state == "REFUNDED":
        await shop.refund(payment)
    await reconciled_after(shop, minutes=17)
    before = await full(shop, payment)
    assert before["state"] == state
    shop.pass_time(hours=25)
    spoil(shop, "fail", "pay_status", code=code)
    assert (await shop.recheck(payment)).status_code in (409, 503)
    assert await full(shop, payment) == before


@pytest.mark.parametrize("field", ["payToken", "refundedAmount"])
async def test_a_refund_of_something_else_is_not_ours(shop, field):
    payment = await shop.paid()
    spoil(shop, "wrong_value", field=field)
    answer = await shop.refund(payment)
    if field == "payToken":
        assert_problem(answer, 409, "payment_held")
        assert (await full(shop, payment))["holdReason"] == "payToken"
        assert await shop.events(payment) == ["payment.paid", "payment.held"]
        assert (await shop.recheck(payment)).json()["state"] == "REFUNDED"
    else:  # how much, Toss may count in another way: the status tells
        assert answer.json()["state"] == "REFUNDED"
        assert shop.bff.sandbox.state.count("pay_status") == 1
    assert await shop.agreed(payment) == "REFUNDED"


async def test_held_and_released_nothing_is_told_twice(shop):
    payment = await shop.paid()
    for last in ("PAID", "REFUNDED"):
        if last == "REFUNDED":
            await shop.refund(payment)
        spoil(shop, "wrong_value", "pay_status", field="amount")
        assert (await shop.recheck(payment)).json()["holdReason"] == "amount"
        assert (await shop.recheck(payment)).json()["state"] == last
    assert await shop.agreed(payment) == "REFUNDED"
    assert await shop.events(payment) == ["payment.paid", "payment.held", "payment.refunded", "payment.held"]


# --- Charges -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "call"), [("refund-payment", "pay_refund"), ("refund-billing", "billing_refund")])
async def test_a_charge_is_refunded_where_the_operator_says(settings, sandbox, path, call):
    billing = settings.billing.model_copy(update={"refund_path": path})
    async with Bff.running(settings.model_copy(update={"billing": billing}), sandbox) as bff:
        shop = await Shop.opened(bff)
        charge, payment = await shop.charged(await shop.active_key()), await shop.paid()
        spoil(shop, "reset_after", call)
        assert (await shop.refund(charge)).json()["state"] == "REFUNDED"
        assert sandbox.state.count(call) == 1
        assert (await shop.refund(payment)).json()["state"] == "REFUNDED"
        assert sandbox.state.count("pay_refund") == (2 if call == "pay_refund" else 1)
        assert [await shop.agreed(each) for each in (charge, payment)] == ["REFUNDED", "REFUNDED"]
