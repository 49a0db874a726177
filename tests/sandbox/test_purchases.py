"""In-app purchase: what get-order-status says, and what a subscription's notices say (reference 10, 14.2)."""

import uuid
from datetime import datetime, timedelta

import pytest

from sandbox.clock import KOREA
from sandbox.purchases import ChangeReason
from sandbox.shared import NotPossible
from tests.sandbox.partner import failure, success
from tests.sandbox.receiver import receiving

SKU = "ait.0000010000.abc.def.1"


@pytest.fixture
def iap(sandbox):
    return sandbox.state.iap


def status(pay, order_id, **headers):
    return success(pay.order(order_id, **headers))["status"]


def test_an_order_from_payment_to_refund(pay, iap, sandbox):
    order_id = iap.buy("man", SKU)
    assert uuid.UUID(order_id).version == 7
    paid = success(pay.order(order_id))
    assert (paid["orderId"], paid["sku"], paid["status"]) == (order_id, SKU, "PAYMENT_COMPLETED")
    determined = datetime.fromisoformat(paid["statusDeterminedAt"])
    assert determined.tzinfo is None
    assert abs(determined - datetime.now(KOREA).replace(tzinfo=None)) < timedelta(minutes=1)
    for _ in range(2):
        iap.complete(order_id)
    assert status(pay, order_id) == "PURCHASED"
    sandbox.state.clock.advance(60)
    iap.refund(order_id)
    refunded = success(pay.order(order_id))
    assert refunded["status"] == "REFUNDED"
    assert refunded["statusDeterminedAt"] > paid["statusDeterminedAt"]
    for impossible in (iap.refund, iap.complete, iap.fail, iap.pay):
        with pytest.raises(NotPossible):
            impossible(order_id)
    assert sandbox.state.count("iap_status", subject=order_id) == 3


def test_an_order_that_is_not_paid(pay, iap):
    order_id = iap.buy("man", SKU, is_paid=False)
    assert status(pay, order_id) == "ORDER_IN_PROGRESS"
    with pytest.raises(NotPossible):
        iap.complete(order_id)
    iap.pay(order_id)
    assert status(pay, order_id) == "PAYMENT_COMPLETED"
    iap.fail(order_id)
    assert status(pay, order_id) == "FAILED"


def test_unknown_orders_and_other_apps(pay, iap):
    answer = success(pay.order("0199"))
    assert (answer["status"], set(answer)) == ("NOT_FOUND", {"orderId", "status", "reason"})
    other = success(pay.order(iap.buy("man", SKU, app_name="other-app")))
    assert (other["status"], "sku" in other) == ("MINIAPP_MISMATCH", False)
    assert failure(pay.partner.http.post("/api-partner/v1/apps-in-toss/order/get-order-status", json={})) == (
        400,
        "INVALID_PARAMETER",
    )
    with pytest.raises(NotPossible):
        iap.buy("nobody", SKU)


def test_the_user_header_filters(pay, iap, sandbox):
    order_id = iap.buy("minor", SKU)
    assert status(pay, order_id) == "PAYMENT_COMPLETED"
    assert status(pay, order_id, **pay.headers) == "NOT_FOUND"
    assert failure(pay.order(order_id, **{"x-toss-user-key": "1"})) == (200, "4010")
    sandbox.state.set_switches(iap_user_header_required=True)
    assert failure(pay.order(order_id)) == (200, "4010")
    pay.log_in("minor")
    assert status(pay, order_id, **pay.headers) == "PAYMENT_COMPLETED"


@pytest.mark.parametrize("shown", ["NOT_FOUND", "ORDER_IN_PROGRESS", "PAYMENT_PENDING", "ERROR"])
def test_an_order_may_take_its_time_to_show(pay, iap, sandbox, shown):
    order_id = iap.buy("man", SKU, shown=shown, shown_asks=2)
    assert [status(pay, order_id) for _ in range(3)] == [shown, shown, "PAYMENT_COMPLETED"]
    iap.show(order_id, shown, seconds=5)
    assert [status(pay, order_id) for _ in range(2)] == [shown, shown]
    sandbox.state.clock.advance(5)
    assert status(pay, order_id) == "PAYMENT_COMPLETED"


def test_the_words_of_2025_and_times_with_a_zone(pay, iap, sandbox):
    sandbox.state.set_switches(iap_words_of_2025=True, iap_zone=True)
    order_id = iap.buy("man", SKU)
    answer = success(pay.order(order_id))
    assert (answer["status"], answer["statusDeterminedAt"][-6:]) == ("PURCHASED", "+09:00")
    iap.complete(order_id)
    assert status(pay, order_id) == "PAYMENT_COMPLETED"
    iap.refund(order_id)
    assert status(pay, order_id) == "REFUNDED"


def test_subscriptions_may_be_unknown_to_order_status(pay, iap, sandbox):
    order_id = iap.buy_subscription("man", SKU)
    assert status(pay, order_id) == "PAYMENT_COMPLETED"
    sandbox.state.set_switches(iap_knows_subscriptions=False)
    assert status(pay, order_id) == "NOT_FOUND"


EXPECTED = {
    "CREATED": ("ACTIVE", True, True),
    "RENEWED": ("ACTIVE", True, True),
    "RECOVERED": ("ACTIVE", True, True),
    "RESTARTED": ("ACTIVE", True, True),
    "ENTERED_GRACE_PERIOD": ("IN_GRACE_PERIOD", True, True),
    "ON_HOLD": ("ON_HOLD", False, True),
    "PAUSED": ("PAUSED", False, True),
    "AUTO_RENEW_ENABLED": ("ACTIVE", True, True),
    "AUTO_RENEW_DISABLED": ("ACTIVE", True, False),
    "EXTENDED": ("ACTIVE", True, True),
    "EXPIRED": ("EXPIRED", False, False),
    "REVOKED": ("REVOKED", False, False),
}


@pytest.mark.parametrize("reason", list(ChangeReason))
def test_every_reason_has_its_notice(iap, sandbox, reason):
    with receiving() as receiver:
        sandbox.state.callbacks.configure(kind="iap-subscription", url=receiver.url, auth_value="a:b")
        order_id = iap.buy_subscription("man", SKU)
        iap.transition(order_id, "CREATED")
        _, (delivery,) = iap.transition(order_id, reason)
    assert delivery.is_success
    assert receiver.requests[0]["headers"]["authorization"] == "Bearer a:b"
    first, second = receiver.bodies()
    assert "previous" not in first["subscription"]
    assert first["subscription"]["current"]["expiresAt"] is None
    assert (second["orderId"], second["sku"], second["changeReason"]) == (order_id, SKU, reason)
    assert second["subscription"]["previous"] == first["subscription"]["current"]
    current = second["subscription"]["current"]
    assert (current["status"], current["accessGranted"], current["autoRenew"]) == EXPECTED[reason]
    assert (current["expiresAt"] is None) == (reason == "CREATED")
    assert (iap.order(order_id).status == "REFUNDED") == (reason == "REVOKED")


def test_renewals_add_a_cycle(iap):
    order_id = iap.buy_subscription("man", SKU, cycle="WEEKLY")
    iap.transition(order_id, "CREATED")
    first = iap.order(order_id).subscription.expires_at
    iap.transition(order_id, "RENEWED")
    iap.transition(order_id, "EXTENDED", auto_renew=False)
    last = iap.order(order_id).subscription
    assert (last.expires_at - first, last.auto_renew) == (timedelta(14), False)
    with pytest.raises(NotPossible):
        iap.transition(iap.buy("man", SKU), "RENEWED")
