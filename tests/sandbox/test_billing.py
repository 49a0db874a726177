"""Recurring payments: keys, charges, and what plain Toss Pay lends where the digest is silent (reference 9)."""

import pytest

from sandbox.shared import NotPossible
from tests.sandbox.partner import failure, success


def key_status(pay, key):
    return success(pay.key_status(key))["status"]


def test_a_key_from_creation_to_removal(pay, sandbox):
    key = success(pay.create_key())["wrappedToken"]
    assert key_status(pay, key) == "CREATE"
    assert failure(pay.charge(key)) == (200, "BILLING_KEY_AUTH_ERROR")
    sandbox.state.billing.authenticate(key, is_active=False)
    assert key_status(pay, key) == "AUTH"
    sandbox.state.billing.authenticate(key)
    assert key_status(pay, key) == "ACTIVE"
    assert success(pay.remove_key(key)) == {}
    assert key_status(pay, key) == "REMOVE"
    for answer in (pay.remove_key(key), pay.charge(key)):
        assert failure(answer) == (200, "BILLING_KEY_UNREGISTERED_BY_CANCEL")
    assert sandbox.state.count("billing_status", subject="key-1") == 4
    assert sandbox.state.calls("billing_create")[0].subject == "key-1"


def test_a_charge_is_a_payment(pay, sandbox):
    key = pay.active_key()
    charged = success(pay.charge(key))
    assert {"code": 0, "mode": "TEST", "orderNo": "charge-1", "amount": 9900}.items() <= charged.items()
    status = success(pay.status(orderNo="charge-1"))
    assert (status["payStatus"], status["payToken"]) == ("PAY_COMPLETE", charged["payToken"])
    payment = sandbox.state.pay.payment("charge-1")
    assert (payment.kind, payment.executions, payment.charge.amount_tax_free) == ("billing", 1, 0)
    assert failure(pay.charge(key)) == (200, "PAYMENT_DUPLICATION_ORDER_NO")
    assert failure(pay.make("charge-1")) == (200, "PAYMENT_DUPLICATION_ORDER_NO")
    success(pay.refund(charged["payToken"]))
    body = {"payToken": success(pay.charge(key, "charge-2"))["payToken"], "reason": "x", "isTestPayment": True}
    assert success(pay.post("refund-billing", body))["refundedAmount"] == 9900
    assert [payment.refunds for payment in sandbox.state.pay.payments()] == [1, 1]
    assert sandbox.state.count("billing_execute", subject="charge-1") == 2


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"amount": 0}, (400, "INVALID_PARAMETER")),
        ({"spreadOut": 13}, (400, "INVALID_PARAMETER")),
        ({"amountTaxFree": "0"}, (400, "INVALID_PARAMETER")),
        ({"isTestPayment": None}, (400, "INVALID_PARAMETER")),
        ({"isTestPayment": False}, (200, "COMMON_BILLING_KEY_NOT_FOUND")),
        ({"wrappedToken": "x"}, (200, "COMMON_BILLING_KEY_NOT_FOUND")),
        ({"spreadOut": 2}, (200, "CARD_MIN_AMOUNT_FOR_SPREADOUT_ERROR")),
    ],
)
def test_charges_that_are_refused(pay, sandbox, wrong, expected):
    assert failure(pay.charge(pay.active_key(), **wrong)) == expected
    assert sandbox.state.pay.payments() == []


def test_keys_end_in_other_ways(pay, sandbox):
    cancelled, late = (success(pay.create_key())["wrappedToken"] for _ in range(2))
    removed = pay.active_key()
    sandbox.state.billing.cancel(cancelled)
    sandbox.state.billing.remove_by_user(removed)
    assert failure(pay.charge(cancelled)) == (200, "BILLING_KEY_REGISTRATION_CANCELLED")
    sandbox.state.clock.advance(901)
    assert [key_status(pay, key) for key in (cancelled, late, removed)] == ["CANCEL", "FAIL", "REMOVE"]
    for impossible in (sandbox.state.billing.authenticate, sandbox.state.billing.cancel):
        with pytest.raises(NotPossible):
            impossible(late)
    pay.log_in("minor")
    assert failure(pay.key_status(late)) == (200, "PAY_UNAUTHORIZED")


@pytest.mark.parametrize("is_success", [True, False])
def test_a_charge_may_stay_in_progress(pay, sandbox, is_success):
    sandbox.state.set_switches(stays_in_progress=True)
    assert failure(pay.charge(pay.active_key())) == (200, "TRANSACTION_PENDING_ERROR")
    sandbox.state.pay.finish("charge-1", is_success=is_success)
    status = success(pay.status(orderNo="charge-1"))["payStatus"]
    assert status == ("PAY_COMPLETE" if is_success else "PAY_CANCEL")


def test_the_status_under_another_name(pay, sandbox):
    sandbox.state.set_switches(billing_status_field="billingKeyStatus")
    assert success(pay.key_status(pay.active_key())) == {"billingKeyStatus": "ACTIVE"}
