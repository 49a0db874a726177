"""The control API for money: all of the buyer, the stores and Toss, without Python."""

import httpx2
import pytest

from tests.sandbox.partner import success
from tests.sandbox.receiver import receiving


@pytest.fixture
def control(sandbox):
    with httpx2.Client(base_url=f"{sandbox.control_url}/control/", trust_env=False) as client:
        yield client


def payments(answer):
    assert answer.status_code == 200, answer.text
    return [payment["payStatus"] for payment in answer.json()["payments"]]


def test_payments_by_hand(control, pay, sandbox):
    token = pay.made("one")
    assert payments(control.post(f"pay/{token}/authenticate")) == ["PAY_APPROVED"]
    success(pay.execute(token))
    assert payments(control.post("pay/one/settle")) == ["SETTLEMENT_COMPLETE"]
    assert control.post("pay/one/cancel").status_code == 409
    assert control.post("pay/none/cancel").status_code == 409
    pay.made("two")
    pay.made("three")
    control.post("pay/two/cancel")
    assert payments(control.post("pay/three/expire"))[1:] == ["PAY_CANCEL"] * 2
    control.post("switches", json={"staysInProgress": True})
    pay.execute(pay.approved("four"))
    assert payments(control.post("pay/four/finish", json={"isSuccess": False}))[-1] == "PAY_APPROVED"
    pay.execute(sandbox.state.pay.payment("four").pay_token)
    assert payments(control.post("pay/four/finish"))[-1] == "PAY_COMPLETE"
    state = control.get("state")
    assert state.json()["payments"][-1] | {"createdTs": ""} == {
        "orderNo": "four",
        "appName": "my-granite-app",
        "kind": "one_off",
        "mode": "TEST",
        "productDesc": "아메리카노 1잔",
        "amount": 4500,
        "payStatus": "PAY_COMPLETE",
        "executions": 1,
        "refunds": 0,
        "createdTs": "",
    }
    assert token not in state.text
    assert control.post("reset").json()["payments"] == []


def test_billing_keys_by_hand(control, pay):
    key = success(pay.create_key())["wrappedToken"]
    pay.create_key()
    control.post(f"billing/{key}/authenticate", json={"isActive": False})
    control.post("billing/key-1/authenticate")
    control.post("billing/key-2/cancel")
    state = control.get("state")
    assert [each["status"] for each in state.json()["billingKeys"]] == ["ACTIVE", "CANCEL"]
    assert key not in state.text
    assert control.post("billing/key-1/remove").json()["billingKeys"][0]["status"] == "REMOVE"
    assert control.post("reset").json()["billingKeys"] == []


def test_purchases_by_hand(control, pay):
    bought = {"user": "man", "sku": "coins", "isPaid": False, "shown": "ERROR", "shownAsks": 1}
    order_id = control.post("iap/orders", json=bought).json()["orderId"]
    assert success(pay.order(order_id))["status"] == "ERROR"
    for action, status in (("pay", "PAYMENT_COMPLETED"), ("complete", "PURCHASED"), ("refund", "REFUNDED")):
        assert control.post(f"iap/{order_id}/{action}").json()["iapOrders"][0]["status"] == status
    assert control.post(f"iap/{order_id}/fail").status_code == 409
    control.post(f"iap/{order_id}/show", json={"shown": "NOT_FOUND", "seconds": 9})
    assert success(pay.order(order_id))["status"] == "NOT_FOUND"
    assert control.post("iap/orders", json={"user": "nobody", "sku": "x"}).status_code == 409
    assert control.post("iap/orders", json={"user": "man"}).status_code == 422
    assert control.post("reset").json()["iapOrders"] == []


def test_subscriptions_and_their_callbacks_by_hand(control):
    with receiving() as receiver:
        setting = {"kind": "iap-subscription", "url": receiver.url, "isAutomatic": False}
        assert control.post("callback/register", json={"url": receiver.url}).json()["status"] == 200
        control.post("callback", json=setting)
        order_id = control.post("iap/subscriptions", json={"user": "man", "sku": "s", "cycle": "YEARLY"}).json()
        order_id = order_id["orderId"]
        for reason in ("CREATED", "EXPIRED"):
            assert control.post(f"iap/{order_id}/transition", json={"reason": reason}).json()["deliveries"] == []
        control.post("callbacks/deliver", json={"kind": "iap-subscription", "reverse": True})
        control.post("callbacks/send", json={"kind": "iap-subscription", "body": {"eventType": "unknown"}})
        control.post("callbacks/deliver", json={"copies": 2})
        seen = control.get("callbacks").json()["notices"]
        assert control.post("reset").status_code == 200
        kept = control.post("callback", json={"kind": "iap-subscription"}).json()
    assert [body.get("changeReason") for body in receiver.bodies()] == [None, "EXPIRED", "CREATED", None, None]
    assert [notice["about"] for notice in seen] == [f"{order_id} CREATED", f"{order_id} EXPIRED", ""]
    assert kept["url"] == receiver.url  # it is the console's
    assert control.post(f"iap/{order_id}/transition", json={"reason": "CREATED"}).status_code == 409
    assert control.post("iap/x/transition", json={"reason": "OTHER"}).status_code == 422
