"""What Toss leaves open (reference 15.6, 18) in every form, and all that it may say no with (8.8): books agree.

On one backend: what Toss says has nothing to do with ours.
"""

import re

import pytest

from app.reconcile import reconcile
from sandbox.switches import MoneySwitches
from tests.conftest import settings_for
from tests.scenarios import assert_problem


@pytest.fixture
def settings(embedded, sandbox):
    return settings_for(embedded, sandbox)


SWITCHES = [
    {},
    *({"both_user_headers": value} for value in ("reject", "prefer_user_key")),
    {"pay_nulls": False},
    {"inner_failure": True},
    {"amounts_as_text": True},
    *({"execute_repeat": value} for value in ("existing_payment", "success")),
    *(
        {"execute_cancelled_code": code}
        for code in ("PAYMENT_EXISTING_PAYMENT", "COMMON_ITS_NOT_ABLE_TO_CHANGE_STATUS", "SOMETHING_NEW")
    ),
    *({"refund_repeat": value} for value in ("success", "already_refunded")),
    {"refund_reason_required": False},
    {"refund_reason_blanks": True},
    *({"status_by_order_no": value} for value in (True, False)),
    *({"status_not_found": value} for value in ("fail", "http_404")),
    {"discount": 1000},
    {"payload_key": "result"},
    {"numbers_as_text": True},
    {"short_errors": True},
    {"failure_without_success": True},
    {"explicit_error_null": True},
    {"rate_limit_status": 429},
    {"tls_1_3": False},
    {
        "pay_nulls": False,
        "inner_failure": True,
        "amounts_as_text": True,
        "execute_repeat": "success",
        "refund_repeat": "already_refunded",
        "status_by_order_no": False,
        "status_not_found": "http_404",
        "discount": 500,
        "payload_key": "result",
        "short_errors": True,
        "failure_without_success": True,
    },
]


ELSEWHERE = {
    "stays_in_progress": "below, in test_refunds and in test_billing",
    "payment_life_seconds": "in test_begin",
    "billing_status_field": "in test_billing",
}


def test_every_switch_about_payments_is_tried():
    tried = {name for switches in SWITCHES for name in switches} | set(ELSEWHERE)
    assert {name for name in MoneySwitches.model_fields if not name.startswith("iap_")} <= tried


def named(switches: dict) -> str:
    return "-".join(f"{name}={value}" for name, value in switches.items())[:60]


async def settled(shop, payment) -> str:
    """In the end, however often Toss has to be asked."""
    for _ in range(3):
        shop.bff.clock.advance(seconds=90)
        await reconcile(shop.bff.resources)
    return await shop.agreed(payment)


def user_pays(shop) -> int:
    """What Toss takes: a discount is Toss's own."""
    return 4500 - shop.bff.sandbox.state.switches.discount


@pytest.mark.parametrize("switches", SWITCHES, ids=named)
async def test_every_way_of_a_payment(shop, switches):
    state = shop.bff.sandbox.state
    state.set_switches(**switches)
    payment = await shop.paid()
    assert (await shop.row(payment)).paid_amount == user_pays(shop)
    assert (await shop.execute(payment)).json()["state"] == "PAID"
    assert (await shop.recheck(payment)).json()["state"] == "PAID"

    lost = await shop.approved()
    state.order_fault("pay_execute", "reset_after")
    assert (await shop.execute(lost)).json()["state"] == "PAID"

    early = await shop.begun()
    assert_problem(await shop.execute(early), 409, "payment_not_approved")
    state.pay.cancel(early["payToken"])
    assert_problem(await shop.execute(early), 409, "payment_ended")

    # Its execution took effect past us: as if an earlier life of ours had sent it.
    doubled = await shop.approved()
    state.pay.take_money(shop.at_toss(doubled).app, doubled["orderNo"])
    assert (await shop.execute(doubled)).json()["state"] == "PAID"

    assert (await shop.refund(payment)).json()["state"] == "REFUNDED"
    assert (await shop.refund(payment)).json()["state"] == "REFUNDED"
    at_toss = shop.at_toss(doubled)
    state.pay.refund(at_toss.app, at_toss.user, pay_token=at_toss.pay_token, is_test=True)
    assert (await shop.refund(doubled)).json()["state"] == "REFUNDED"
    state.pay.settle(lost["payToken"])
    assert_problem(await shop.refund(lost), 409, "refund_refused")

    states = {payment["orderNo"]: "REFUNDED", lost["orderNo"]: "PAID", early["orderNo"]: "CANCELED"}
    for each in await shop.payments():
        assert await shop.agreed(each) == states.get(each["orderNo"], "REFUNDED")

    charge = await shop.charged(await shop.active_key())
    assert (await shop.refund(charge)).json()["state"] == "REFUNDED"
    assert await shop.agreed(charge) == "REFUNDED"


async def test_in_progress(shop):
    state = shop.bff.sandbox.state
    state.set_switches(stays_in_progress=True)
    done, failed = await shop.approved(), await shop.approved()
    for payment in (done, failed, done):
        answer = await shop.execute(payment)
        assert (answer.status_code, answer.json()["state"]) == (202, "PENDING")
    assert await settled(shop, done) == "PENDING"
    state.pay.finish(done["payToken"])
    state.pay.finish(failed["payToken"], is_success=False)
    assert [await settled(shop, each) for each in (done, failed)] == ["PAID", "READY"]
    state.set_switches(stays_in_progress=False)
    assert (await shop.execute(failed)).json()["state"] == "PAID"
    assert state.count("pay_execute", failed["orderNo"]) == 2
    assert await shop.agreed(failed) == "PAID"


# --- Everything that Toss may say no with ------------------------------------------------------------------

INNER = ["HTTP_TIMEOUT", "NETWORK_ERROR", "EXECUTION_FAIL", "INTERRUPTED", "INTERNAL_ERROR"]

# Reference 3.2 and 8.8.
CODES = re.findall(
    r"[A-Z0-9_]+",
    """
    INVALID_PARAMETER INTERNAL_ERROR 4010 4034 4050
    COMMON_INVALID_PARAMETER PAYMENT_DUPLICATION_ORDER_NO PAYMENT_EXISTING_PAYMENT TRANSACTION_NOT_FOUND
    TRANSACTION_NOT_COMPLETE TRANSACTION_PENDING_ERROR COMMON_ITS_NOT_ABLE_TO_CHANGE_STATUS
    PAY_CANCEL_ITS_NOT_CANCELABLE_STATUS EXECUTE_PAY_NOT_APPROVED
    COMMON_INVALID_API_KEY COMMON_UNAUTHORIZED PAYMENT_SHOP_STATE_NOT_NORMAL PAYMENT_SHOP_STATE_CANNOT_REFUND
    NOT_INTERNAL_SHOP
    USER_STATUS_ERROR INACTIVE_USER PAUSE_USER PAY_UNAUTHORIZED AGE_POLICY_ERROR TOSS_APP_UPDATE_IS_REQUIRED
    PAY_FRAUD_DETECTED FRAUD_DETECTION_SYSTEM_ERROR BLOCKED_THE_USE_OF_POINT INVALID_ACCOUNT_STATUS
    AUTO_CHARGE_NOT_YET_REGISTER_ACCOUNT
    COMMON_NOT_ENOUGH_CASH COMMON_EXCEED_LIMIT COMMON_ASSET_GET_ACCOUNT_ERROR COMMON_PAY_ERROR DISCOUNT_CLOSED
    USER_DISCOUNT_CLOSED DISCOUNT_NEED_ISSUE DISCOUNT_ALREADY_ISSUED COUPON_ASSIGN_FAIL
    AVAILABLE_ONLY_TOSS_MONEY_UNDER_MIN_AMT
    CARD_SYSTEM_ERROR CARD_BANK_SYSTEM_ERROR CARD_NOT_AVAILABLE_SHOP CARD_NOT_AVAILABLE CARD_EXCEED_LIMIT
    CARD_NOT_ENOUGH_BALANCE CARD_SPREADOUT_ERROR CARD_MIN_AMOUNT_ERROR CARD_MIN_AMOUNT_FOR_SPREADOUT_ERROR
    COMMON_REFUND_ERROR REFUND_REFUND_NO_DUPLICATE REFUND_ALREADY_REFUNDED REFUND_EXCEED_DAILY
    BNPL_INVALID_REQUEST BNPL_NOT_EXIST_USER BNPL_EXCEED_PAYABLE_AMOUNT BNPL_ALREADY_COMPLETED_REQUEST
    BNPL_IN_PROGRESS_REQUEST BNPL_NOT_FOUND_PAYMENT BNPL_ALREADY_COMPLETED_REFUND
    COMMON_SYSTEM_ERROR COMMON_BREAK_TIME_OF_BANK COMMON_TIMEOUT COMMON_THROTTLED
    SOMETHING_NEW
    """,
)
NOES = [{"code": code} for code in CODES] + [{"code": "E1", "result_type": inner} for inner in INNER]
DOUBTFUL = {
    *("INTERNAL_ERROR", "TRANSACTION_PENDING_ERROR", "CARD_SYSTEM_ERROR", "CARD_BANK_SYSTEM_ERROR"),
    *("COMMON_SYSTEM_ERROR", "COMMON_BREAK_TIME_OF_BANK", "COMMON_TIMEOUT", "COMMON_THROTTLED"),
}
"""After these, what shows no effect yet may still take it."""
DOUBTFUL_FOR_PAYMENTS = DOUBTFUL | {"PAYMENT_EXISTING_PAYMENT", "COMMON_PAY_ERROR", "SOMETHING_NEW"}


def is_doubtful(no: dict, form: dict, codes: set[str]) -> bool:
    return no["code"] in codes or "result_type" in no or form["http_status"] == 500


FORMS = [
    {"inner_failure": is_inner, "http_status": status, "after_effect": after}
    for is_inner, status in ((False, 200), (False, 500), (True, 200))
    for after in (False, True)
]


def spoil(shop, call: str, payment, **how: object) -> None:
    about = {name: value for name, value in how.items() if name != "inner_failure"}
    shop.bff.sandbox.state.order_fault(call, "fail", subject=payment["orderNo"], **about)


def names(form: dict) -> str:
    inner, effect = "inner" if form["inner_failure"] else "outer", "after" if form["after_effect"] else "before"
    return f"{inner}-{form['http_status']}-{effect}"


@pytest.mark.parametrize("form", FORMS, ids=names)
async def test_every_no_to_an_execution(shop, form):
    shop.bff.sandbox.state.set_switches(inner_failure=form["inner_failure"])
    payments = {}
    for no in NOES:
        payment = await shop.approved()
        spoil(shop, "pay_execute", payment, **form, **no)
        answer = await shop.execute(payment)
        state = await shop.state(payment)
        if form["after_effect"]:
            assert (answer.status_code, state) == (200, "PAID"), no
        else:
            assert state in {"READY", "PENDING"}, no
            assert (answer.status_code == 202) == (state == "PENDING"), no
            assert state == "PENDING" or not is_doubtful(no, form, DOUBTFUL_FOR_PAYMENTS), no
        payments[str(no)] = payment
    for no, payment in payments.items():
        assert await settled_all(shop, payment) == ("PAID" if form["after_effect"] else "READY"), no
        if not form["after_effect"]:
            assert (await shop.execute(payment)).json()["state"] == "PAID", no
        assert await shop.agreed(payment) == "PAID", no
    assert shop.bff.sandbox.state.pending_faults() == []


@pytest.mark.parametrize("form", FORMS, ids=names)
async def test_every_no_to_a_refund(shop, form):
    shop.bff.sandbox.state.set_switches(inner_failure=form["inner_failure"])
    payments = {}
    for no in NOES:
        payment = await shop.paid()
        spoil(shop, "pay_refund", payment, **form, **no)
        answer = await shop.refund(payment)
        state = await shop.state(payment)
        if form["after_effect"]:
            assert (answer.status_code, state) == (200, "REFUNDED"), no
        else:
            assert state in {"PAID", "REFUNDING"}, no
            assert answer.status_code == (202 if state == "REFUNDING" else 409), no
            assert state == "REFUNDING" or not is_doubtful(no, form, DOUBTFUL), no
        payments[str(no)] = payment, state
    for no, (payment, state) in payments.items():
        wanted = "PAID" if state == "PAID" else "REFUNDED"  # what was not refused is seen through
        assert await settled_all(shop, payment) == wanted, no
        assert (await shop.events(payment)).count("payment.refund_refused") == (wanted == "PAID"), no
        assert (await shop.refund(payment)).json()["state"] == "REFUNDED", no
        assert await shop.agreed(payment) == "REFUNDED", no
    assert shop.bff.sandbox.state.pending_faults() == []


async def settled_all(shop, payment) -> str:
    if await shop.state(payment) in {"PENDING", "REFUNDING"}:
        shop.bff.clock.advance(seconds=90)
        await reconcile(shop.bff.resources)
    return await shop.agreed(payment)


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("after", [False, True])
async def test_a_fault_inside_toss_while_charging(shop, inner, after):
    key = await shop.active_key()
    shop.bff.sandbox.state.order_fault("billing_execute", "fail", code="E1", result_type=inner, after_effect=after)
    answer = await shop.charge(key)
    assert (answer.status_code, answer.json()["state"]) == ((200, "PAID") if after else (202, "PENDING"))
    shop.bff.clock.advance(seconds=90)
    await reconcile(shop.bff.resources)
    (payment,) = await shop.payments()
    if after:
        assert await shop.agreed(payment) == "PAID"
    else:
        assert payment["state"] == "FAILED"
        assert shop.bff.sandbox.state.pay.payments() == []
