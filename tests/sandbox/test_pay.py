"""One-off payments: every state and refusal of reference 8, and the switches for what it leaves open."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from sandbox.shared import NotPossible
from tests.sandbox.partner import LOGIN, PREFIX, failure, success

INVALID = (400, "INVALID_PARAMETER")
DIFFERENT_PERSON = (200, "PAY_UNAUTHORIZED")


def state_of(pay, token):
    payment = pay.sandbox.state.pay.payment(token)
    return payment.status, payment.executions, payment.refunds


def test_a_payment_from_making_to_refund(pay):
    token = pay.made()
    assert re.fullmatch(r"[0-9a-f]{30}", token)
    assert state_of(pay, token) == ("PAY_STANDBY", 0, 0)
    pay.sandbox.state.pay.authenticate(token)
    assert success(pay.status(payToken=token, orderNo="order-1"))["payStatus"] == "PAY_APPROVED"
    executed = success(pay.execute(token, orderNo="order-1"))
    facts = {"code": 0, "mode": "TEST", "orderNo": "order-1", "payToken": token, "amount": 4500}
    facts |= {"discountedAmount": 0, "paidAmount": 4500, "payMethod": "TOSS_MONEY", "cardNumber": None, "msg": None}
    assert facts.items() <= executed.items()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", executed["approvalTime"])
    assert state_of(pay, token) == ("PAY_COMPLETE", 1, 0)
    paid = success(pay.status(payToken=token))
    parts = {"amountTaxable": 4090, "amountTaxFree": 0, "amountVat": 410, "refundableAmount": 4500, "card": None}
    assert parts.items() <= paid.items()
    assert [(step["stepType"], step["transactionAmount"]) for step in paid["transactions"]] == [("PAY", 4500)]
    refunded = success(pay.refund(token))
    facts = {"refundedAmount": 4500, "refundedPaidAmount": 4500, "refundableAmount": 0, "payToken": token}
    assert facts.items() <= refunded.items()
    assert refunded["transactionId"] != executed["transactionId"]
    assert state_of(pay, token) == ("REFUND_SUCCESS", 1, 1)
    last = success(pay.status(orderNo="order-1"))
    assert (last["payStatus"], last["refundableAmount"]) == ("REFUND_SUCCESS", 0)
    assert [step["transactionAmount"] for step in last["transactions"]] == [4500, -4500]
    pay.sandbox.state.pay.settle(token)
    assert state_of(pay, token)[0] == "SETTLEMENT_REFUND_COMPLETE"


def test_a_payment_by_card(pay):
    token = pay.approved(enablePayMethods="CARD", amountTaxFree=500, amountVat=300, amountServiceFee=0)
    executed = success(pay.execute(token))
    assert (executed["payMethod"], executed["cardNum4Print"], executed["accountNumber"]) == ("CARD", "5678", None)
    status = success(pay.status(payToken=token))
    assert status["card"]["cardBinNumber"] == "943012"
    assert (status["amountTaxable"], status["amountTaxFree"], status["amountVat"]) == (3700, 500, 300)


@pytest.mark.parametrize(
    "wrong",
    [
        {"orderNo": "가"},
        {"orderNo": "x" * 51},
        {"orderNo": ""},
        {"orderNo": None},
        {"productDesc": " "},
        {"productDesc": 'a "quote"'},
        {"productDesc": "back\\slash"},
        {"productDesc": "x" * 256},
        {"amount": "4500"},
        {"amount": 4500.0},
        {"amount": 0},
        {"amount": 10_000_000},
        {"amount": True},
        {"amountTaxFree": None},
        {"amountTaxFree": 4501},
        {"amountTaxFree": 1, "amountTaxable": 4500},
        {"amountVat": -1},
        {"isTestPayment": "true"},
        {"isTestPayment": None},
        {"cashReceipt": "no"},
        {"cashReceiptTradeOption": "OTHER"},
        {"installment": "no"},
    ],
)
def test_fields_are_checked(pay, wrong):
    answer = pay.make(**{"order_no": wrong.pop("orderNo", "order-1"), **wrong})
    assert failure(answer) == INVALID
    assert answer.json()["error"]["data"]["errorDetails"]
    assert pay.sandbox.state.pay.payments() == []


@pytest.mark.parametrize("order_no", ["A-z_0:9.^@", "x" * 50])
def test_all_of_the_alphabet_of_order_numbers(pay, order_no):
    assert len(pay.made(order_no)) == 30


def test_order_numbers_are_unique_across_live_and_test(pay):
    token = pay.made()
    assert failure(pay.make(isTestPayment=False)) == (200, "PAYMENT_DUPLICATION_ORDER_NO")
    pay.sandbox.state.pay.cancel(token)
    assert failure(pay.make()) == (200, "PAYMENT_DUPLICATION_ORDER_NO")


def test_the_mode_must_be_the_payments(pay):
    token = pay.paid()
    for answer in (
        pay.execute(token, isTestPayment=False),
        pay.refund(token, isTestPayment=False),
        pay.status(payToken=token, isTestPayment=False),
    ):
        assert failure(answer) == (200, "TRANSACTION_NOT_FOUND")
    live = pay.made("order-2", isTestPayment=False)
    assert success(pay.status(payToken=live, isTestPayment=False))["mode"] == "LIVE"


def test_only_the_payer_may(pay):
    token = pay.paid()
    pay.log_in("minor")
    for answer in (pay.execute(token), pay.refund(token), pay.status(payToken=token)):
        assert failure(answer) == DIFFERENT_PERSON


def test_the_user_is_named_by_exactly_one_header(pay, sandbox):
    key, toss = sandbox.state.mini_apps.anon_key("man"), sandbox.state.mini_apps
    assert failure(pay.http.post(f"{PREFIX}/pay/make-payment", json={})) == INVALID
    body = {"orderNo": "a", "productDesc": "b", "amount": 1, "amountTaxFree": 0, "isTestPayment": True}
    for headers in (
        {"x-none": ""},
        {"x-toss-user-key": "1"},
        {"x-anon-key": "x"},
        pay.headers | {"x-anon-key": key},
    ):
        assert failure(pay.post("make-payment", body, **headers)) == (200, "4010")
    token = success(pay.post("make-payment", body, **{"x-anon-key": key}))["payToken"]
    sandbox.state.set_switches(both_user_headers="prefer_user_key")
    both = pay.headers | {"x-anon-key": toss.anon_key("minor")}
    asked = {"payToken": token, "isTestPayment": True}
    assert success(pay.post("get-payment-status", asked, **both))["orderNo"] == "a"
    sandbox.state.unlink_by_user("man")
    assert failure(pay.post("get-payment-status", asked)) == (200, "4010")


def test_execution_needs_the_buyer_and_the_right_order(pay):
    token = pay.made()
    assert failure(pay.execute(token)) == (200, "EXECUTE_PAY_NOT_APPROVED")
    pay.sandbox.state.pay.authenticate(token)
    assert failure(pay.execute(token, orderNo="order-2")) == (200, "COMMON_INVALID_PARAMETER")
    assert failure(pay.execute("0" * 30)) == (200, "TRANSACTION_NOT_FOUND")
    assert state_of(pay, token) == ("PAY_APPROVED", 0, 0)


def test_money_moves_once(pay, sandbox):
    token = pay.approved()
    with ThreadPoolExecutor(8) as pool:
        answers = [answer.json()["resultType"] for answer in pool.map(pay.execute, [token] * 8)]
    assert sorted(answers) == ["FAIL"] * 7 + ["SUCCESS"]
    assert failure(pay.execute(token)) == (200, "PAYMENT_EXISTING_PAYMENT")
    sandbox.state.set_switches(execute_repeat="success")
    assert success(pay.execute(token))["code"] == 0
    first = success(pay.refund(token))
    assert success(pay.refund(token)) == first
    sandbox.state.set_switches(refund_repeat="already_refunded")
    assert failure(pay.refund(token)) == (200, "REFUND_ALREADY_REFUNDED")
    assert state_of(pay, token) == ("REFUND_SUCCESS", 1, 1)
    assert (sandbox.state.count("pay_execute", subject="order-1"), sandbox.state.count("pay_execute", "x")) == (
        10,
        0,
    )
    assert sandbox.state.count("pay_refund", subject="order-1") == 3


@pytest.mark.parametrize("end", ["cancel", "expire", "clock"])
@pytest.mark.parametrize("is_approved", [True, False])
def test_cancelled_and_expired_payments(pay, sandbox, end, is_approved):
    token = pay.approved() if is_approved else pay.made()
    if end == "clock":
        sandbox.state.clock.advance(899)
        assert state_of(pay, token)[0] != "PAY_CANCEL"
        sandbox.state.clock.advance(2)
    else:
        getattr(sandbox.state.pay, end)(token)
    assert success(pay.status(orderNo="order-1"))["payStatus"] == "PAY_CANCEL"
    assert failure(pay.execute(token)) == (200, "PAY_CANCEL_ITS_NOT_CANCELABLE_STATUS")
    sandbox.state.set_switches(execute_cancelled_code="TRANSACTION_NOT_COMPLETE")
    assert failure(pay.execute(token)) == (200, "TRANSACTION_NOT_COMPLETE")
    assert failure(pay.refund(token)) == (200, "TRANSACTION_NOT_COMPLETE")
    with pytest.raises(NotPossible):
        sandbox.state.pay.authenticate(token)


def test_the_life_of_payments_and_keys(pay, sandbox):
    sandbox.state.set_switches(payment_life_seconds=5)
    token, key = pay.approved(), success(pay.create_key())["wrappedToken"]
    sandbox.state.clock.advance(6)
    assert state_of(pay, token)[0] == "PAY_CANCEL"
    assert success(pay.key_status(key))["status"] == "FAIL"


def test_paid_payments_live_on(pay, sandbox):
    token = pay.paid()
    sandbox.state.clock.advance(10_000)
    assert state_of(pay, token)[0] == "PAY_COMPLETE"
    for impossible in (sandbox.state.pay.cancel, sandbox.state.pay.expire, sandbox.state.pay.finish):
        with pytest.raises(NotPossible):
            impossible(token)
    sandbox.state.pay.settle(token)
    assert success(pay.status(payToken=token))["payStatus"] == "SETTLEMENT_COMPLETE"
    assert failure(pay.refund(token)) == (200, "COMMON_REFUND_ERROR")
    with pytest.raises(NotPossible):
        sandbox.state.pay.settle(token)


@pytest.mark.parametrize("is_success", [True, False])
def test_progress_lasts_until_told_to_finish(pay, sandbox, is_success):
    sandbox.state.set_switches(stays_in_progress=True)
    token, end = pay.approved(), {"is_success": is_success}
    for _ in range(2):
        assert failure(pay.execute(token)) == (200, "TRANSACTION_PENDING_ERROR")
    assert state_of(pay, token) == ("PAY_PROGRESS", 0, 0)
    sandbox.state.pay.finish(token, **end)
    assert state_of(pay, token) == (("PAY_COMPLETE", 1, 0) if is_success else ("PAY_APPROVED", 0, 0))
    sandbox.state.set_switches(stays_in_progress=False)
    if not is_success:
        success(pay.execute(token))
    sandbox.state.set_switches(stays_in_progress=True)
    for _ in range(2):
        assert failure(pay.refund(token)) == (200, "TRANSACTION_PENDING_ERROR")
    assert success(pay.status(payToken=token))["payStatus"] == "REFUND_PROGRESS"
    sandbox.state.pay.finish("order-1", **end)
    assert state_of(pay, token) == (("REFUND_SUCCESS", 1, 1) if is_success else ("PAY_COMPLETE", 1, 0))


def test_refunds_need_money_and_a_reason(pay, sandbox):
    token = pay.made()
    assert failure(pay.refund(token)) == (200, "TRANSACTION_NOT_COMPLETE")
    sandbox.state.pay.authenticate(token)
    pay.execute(token)
    for reason in (None, "", "x" * 56, "a b", "<b>"):
        assert failure(pay.refund(token, reason=reason)) == INVALID
    sandbox.state.set_switches(refund_reason_blanks=True)
    success(pay.refund(token, reason="고객 변심"))
    sandbox.state.set_switches(refund_reason_required=False)
    success(pay.refund(token, reason=None))
    assert state_of(pay, token) == ("REFUND_SUCCESS", 1, 1)


def test_what_status_goes_by(pay, sandbox):
    token = pay.made()
    assert failure(pay.status()) == INVALID
    assert failure(pay.status(payToken=token, orderNo="order-2")) == (200, "TRANSACTION_NOT_FOUND")
    assert failure(pay.status(orderNo="order-2")) == (200, "TRANSACTION_NOT_FOUND")
    assert success(pay.status(orderNo="order-1"))["payToken"] == token
    sandbox.state.set_switches(status_by_order_no=False, status_not_found="http_404")
    assert failure(pay.status(orderNo="order-1")) == INVALID
    assert failure(pay.status(payToken=token)) == INVALID
    assert success(pay.status(payToken=token, orderNo="order-1"))["payStatus"] == "PAY_STANDBY"
    assert failure(pay.status(payToken="0" * 30, orderNo="order-1")) == (404, "TRANSACTION_NOT_FOUND")
    assert failure(pay.execute("0" * 30)) == (200, "TRANSACTION_NOT_FOUND")


def test_refusals_may_come_inside_a_success(pay, sandbox):
    sandbox.state.set_switches(inner_failure=True)
    token = pay.made()
    inner = success(pay.execute(token))
    assert (inner["code"], inner["errorCode"]) == (-1, "EXECUTE_PAY_NOT_APPROVED")
    assert inner["msg"]
    assert sandbox.state.calls("pay_execute")[-1].answer == "EXECUTE_PAY_NOT_APPROVED"
    sandbox.state.order_fault("pay_execute", "fail", code="COMMON_NOT_ENOUGH_CASH")
    assert success(pay.execute(token))["errorCode"] == "COMMON_NOT_ENOUGH_CASH"
    assert failure(pay.post("execute-payment", {"payToken": token, "isTestPayment": True}, none="")) == (
        200,
        "4010",
    )
    assert failure(pay.make(amount=0)) == INVALID


def test_amounts_as_text_absent_nulls_and_discounts(pay, sandbox):
    sandbox.state.set_switches(amounts_as_text=True, pay_nulls=False, discount=500)
    token = pay.approved()
    executed = success(pay.execute(token))
    assert [executed[name] for name in ("amount", "discountedAmount", "paidAmount")] == ["4500", "500", "4000"]
    assert not {"msg", "errorCode", "cardNumber"} & set(executed)
    assert executed["code"] == 0
    status = success(pay.status(payToken=token))
    assert (status["amountVat"], status["transactions"][0]["transactionAmount"]) == ("410", "4500")
    assert success(pay.refund(token))["refundedPaidAmount"] == "4000"


def test_the_two_hosts_serve_their_own(pay, partner):
    assert pay.http.post(f"{LOGIN}/generate-token", json={}).status_code == 404
    assert pay.http.post(f"{PREFIX}/order/get-order-status", json={}).status_code == 404
    assert partner.http.post(f"{PREFIX}/pay/make-payment", json={}).status_code == 404


def test_the_two_hosts_share_the_budget(pay, partner, sandbox):
    sandbox.state.budget.set_limit(sandbox.app_name, 2)
    pay.made()
    assert partner.me("x").status_code == 401
    assert failure(pay.make("order-2")) == (200, "4095")
    assert failure(partner.anon("x")) == (200, "4095")
    assert sandbox.state.calls("pay_make", subject="order-2")[0].answer == "4095"
