"""Each fault order does to the calls of money what it says, once, to the payment or order it names."""

import httpx2
import pytest

from sandbox.faults import ResultType
from tests.sandbox.partner import bare, failure, success

LOST = (httpx2.ReadError, httpx2.RemoteProtocolError)
MOVES = {"pay_make", "pay_execute", "billing_execute", "billing_create", "billing_remove"}
"""Whose second call cannot succeed, or does something else."""


@pytest.fixture
def calls(pay, sandbox):
    """Each would succeed."""
    approved, paid = pay.approved("approved"), pay.paid("paid")
    key = pay.active_key()
    charged = success(pay.charge(key, "charged"))["payToken"]
    removed = pay.active_key()
    order_id = sandbox.state.iap.buy("man", "sku")
    sandbox.state._log.clear()
    refund = {"payToken": charged, "reason": "x", "isTestPayment": True}
    return {
        "pay_make": lambda: pay.make("new"),
        "pay_execute": lambda: pay.execute(approved),
        "pay_refund": lambda: pay.refund(paid),
        "pay_status": lambda: pay.status(payToken=paid),
        "billing_create": pay.create_key,
        "billing_execute": lambda: pay.charge(key, "charge"),
        "billing_status": lambda: pay.key_status(key),
        "billing_remove": lambda: pay.remove_key(removed),
        "billing_refund": lambda: pay.post("refund-billing", refund),
        "iap_status": lambda: pay.order(order_id),
    }


CALLS = [
    "pay_make",
    "pay_execute",
    "pay_refund",
    "pay_status",
    "billing_create",
    "billing_execute",
    "billing_status",
    "billing_remove",
    "billing_refund",
    "iap_status",
]


@pytest.mark.parametrize("call", CALLS)
def test_before_and_after_the_effect(calls, sandbox, call):
    for kind in ("reset_before", "slow", "token_rejected", "oauth_error", "html_502"):
        sandbox.state.order_fault(call, kind)
    with pytest.raises(LOST):
        calls[call]()
    assert sandbox.state.calls(call)[-1].answer is None
    success(calls[call]()) if call not in MOVES else calls[call]()
    assert sandbox.state.calls(call)[-1].answer == "SUCCESS"
    assert failure(calls[call]()) == (200, "4010")
    assert bare(calls[call]()) == (401, {"error": "invalid_grant"})
    assert calls[call]().status_code == 502
    assert sandbox.state.pending_faults() == []


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", ["reset_after", "truncated_json", "fail", "html_502"])
def test_answers_are_lost_after_the_effect(calls, sandbox, call, kind):
    sandbox.state.order_fault(call, kind, **({"after_effect": True} if kind in {"fail", "html_502"} else {}))
    with pytest.raises((*LOST, ValueError, AssertionError)):
        success(calls[call]())
    assert sandbox.state.calls(call)[-1].answer == "SUCCESS"


def test_a_lost_execution_has_moved_the_money(calls, sandbox):
    sandbox.state.order_fault("pay_execute", "reset_after", subject="approved")
    with pytest.raises(LOST):
        calls["pay_execute"]()
    assert sandbox.state.pay.payment("approved").executions == 1


@pytest.mark.parametrize("call", CALLS)
def test_every_result_type(calls, sandbox, call):
    for result_type in ResultType:
        sandbox.state.order_fault(call, "fail_200", result_type=result_type)
        assert calls[call]().json()["resultType"] == result_type
    sandbox.state.order_fault(call, "fail", code="4095", retry_after_seconds=7, http_status=429)
    limited = calls[call]()
    assert failure(limited) == (429, "4095")
    assert limited.json()["error"]["data"] == {"retryAfterSeconds": 7}


@pytest.mark.parametrize("call", sorted(set(CALLS) - {"billing_remove"}))
@pytest.mark.parametrize("kind", ["missing_field", "wrong_type", "wrong_value", "extra_field", "big_body"])
def test_successes_can_be_spoilt(calls, sandbox, call, kind):
    sandbox.state.order_fault(call, "fail", times=1)
    calls[call]()
    sandbox.state.order_fault(call, kind, size=100_000)
    answer = calls[call]()
    assert sandbox.state.calls(call)[-1].fault == kind
    assert answer.json()["resultType"] == "SUCCESS"
    assert (len(answer.content) > 100_000) == (kind == "big_body")
    assert ("sandboxExtra" in answer.json()["success"]) == (kind == "extra_field")


@pytest.mark.parametrize(
    ("field", "right", "wrong"),
    [
        (None, 4500, 4501),
        ("amount", 4500, 4501),
        ("mode", "TEST", "LIVE"),
        ("orderNo", "paid", "pai0"),
        ("code", 0, 1),
        ("noInterest", None, "other"),
        ("resultType", "SUCCESS", "SUCCES0"),
    ],
)
def test_a_field_can_say_something_else(pay, sandbox, field, right, wrong):
    sandbox.state.order_fault("pay_execute", "wrong_value", field=field)
    answer = pay.execute(pay.approved("paid"), orderNo="paid").json()
    name = field or "amount"
    found = answer[name] if name in answer else answer["success"][name]
    assert (found, right) == (wrong, right)
    sandbox.state.set_switches(execute_repeat="success")
    assert success(pay.execute(pay.sandbox.state.pay.payment("paid").pay_token))["amount"] == 4500


def test_another_pay_token_and_amounts_as_text(pay, sandbox):
    sandbox.state.set_switches(amounts_as_text=True)
    token = pay.paid()
    sandbox.state.order_fault("pay_status", "wrong_value", field="payToken")
    assert success(pay.status(payToken=token))["payToken"] != token
    sandbox.state.order_fault("pay_status", "wrong_value")
    assert success(pay.status(payToken=token))["amount"] == "4501"


def test_faults_strike_the_subject_they_name(pay, sandbox):
    one, two = pay.approved("one"), pay.approved("two")
    key = pay.active_key()
    sandbox.state.order_fault("pay_execute", "html_502", subject="two")
    sandbox.state.order_fault("pay_status", "html_502", subject="two")
    sandbox.state.order_fault("billing_status", "html_502", subject="key-2")
    assert pay.execute(one).status_code == 200
    assert pay.execute(two).status_code == 502
    assert pay.status(orderNo="one").status_code == 200
    assert pay.status(payToken=two).status_code == 502
    assert pay.key_status(key).status_code == 200
    assert pay.key_status(pay.active_key()).status_code == 502
    first, second = (sandbox.state.iap.buy("man", "sku") for _ in range(2))
    sandbox.state.order_fault("iap_status", "html_502", subject=second)
    assert [pay.order(each).status_code for each in (first, second, second)] == [200, 502, 200]
    assert sandbox.state.pending_faults() == []


@pytest.mark.parametrize(
    ("call", "details"),
    [
        ("pay_execute", {"kind": "wrong_tx"}),
        ("pay_execute", {"kind": "damaged_tag"}),
        ("iap_status", {"kind": "slow", "tx_id": "x"}),
        ("login_me", {"kind": "slow", "subject": "x"}),
        ("status", {"kind": "wrong_value"}),
    ],
)
def test_orders_without_a_meaning_are_refused(sandbox, call, details):
    with pytest.raises(ValueError, match="has no meaning"):
        sandbox.state.order_fault(call, **details)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"orderNo": 1}', b"\xff"])
@pytest.mark.parametrize("path", ["pay/execute-payment", "order/get-order-status"])
def test_bodies_that_cannot_be_read(pay, path, body):
    http = pay.http if path.startswith("pay") else pay.partner.http
    headers = pay.headers | {"Content-Type": "application/json"}
    answer = http.post(f"/api-partner/v1/apps-in-toss/{path}", content=body, headers=headers)
    assert failure(answer) == (400, "INVALID_PARAMETER")
