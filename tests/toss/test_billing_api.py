"""Recurring payment, of which only a digest is known: what is sent, and what each setting changes."""

import pytest
from hypothesis import given

from app.toss.errors import OutcomeUnknown, TossError, TossRejected, Unintelligible
from app.toss.governor import Lane
from app.toss.pay import BillingApi, Charge, Claim, Execution, Refund
from tests.toss.money import NOBODY_KNOWN, PAY_TOKEN, USER, WRAPPED_TOKEN, canned, fault_of, outcome, payloads
from tests.toss.partners import Pot, read, saying, talking_to

PREFIX = "/api-partner/v1/apps-in-toss/pay"
CHARGE = Charge(product_desc="구독", amount=9900, amount_tax_free=0, options={"spreadOut": 0, "amount": 1})
PAID = {"code": 0, "mode": "TEST", "orderNo": "n-1", "payToken": PAY_TOKEN, "amount": 9900, "paidAmount": 9900}
ANSWERS = {
    "create_key": {"wrappedToken": WRAPPED_TOKEN},
    "execute": PAID,
    "key_status": {"status": "ACTIVE"},
    "remove_key": {},
    "refund": {"payToken": PAY_TOKEN, "refundNo": "r-1", "refundedAmount": 9900},
}
WRITES = [name for name in ANSWERS if name != "key_status"]


def billing_of(partner, **how) -> BillingApi:
    usual = {"is_test": True, "path_prefix": PREFIX, "refund_path": "refund-payment", "status_field": "status"}
    return BillingApi(partner=partner, **{**usual, **how})


def calls(billing: BillingApi, user=USER) -> dict:
    return {
        "create_key": lambda: billing.create_key(user, product_desc="구독"),
        "execute": lambda: billing.execute(user, wrapped_token=WRAPPED_TOKEN, order_no="n-1", charge=CHARGE),
        "key_status": lambda: billing.key_status(user, wrapped_token=WRAPPED_TOKEN),
        "remove_key": lambda: billing.remove_key(user, wrapped_token=WRAPPED_TOKEN),
        "refund": lambda: billing.refund(user, pay_token=PAY_TOKEN, reason="변심"),
    }


@pytest.mark.parametrize("is_test", [True, False])
@pytest.mark.parametrize("refund_path", ["refund-payment", "refund-billing"])
@pytest.mark.parametrize("prefix", [PREFIX, "/elsewhere"])
async def test_every_call_is_of_the_form_that_is_known(ca, is_test, refund_path, prefix):
    how = {"is_test": is_test, "refund_path": refund_path, "path_prefix": prefix}
    async with talking_to(ca, *(saying(answer) for answer in ANSWERS.values())) as (partner, host):
        for user, name in zip([USER, NOBODY_KNOWN, USER, NOBODY_KNOWN, USER], ANSWERS, strict=True):
            await calls(billing_of(partner, **how), user)[name]()
    sent = [read(request) for request in host.requests]
    charge = {"productDesc": "구독", "amount": 9900, "amountTaxFree": 0, "spreadOut": 0, "orderNo": "n-1"}
    token, flag = {"wrappedToken": WRAPPED_TOKEN}, {"isTestPayment": is_test}
    assert [(line.split()[1], body) for line, _, body in sent] == [
        (f"{prefix}/create-billing-key", {"productDesc": "구독", **flag}),
        (f"{prefix}/execute-billing", {**charge, **token, **flag}),
        (f"{prefix}/get-billing-key-status", token),
        (f"{prefix}/remove-billing-key", token),
        (f"{prefix}/{refund_path}", {"payToken": PAY_TOKEN, "reason": "변심", **flag}),
    ]
    assert [(h.get("x-toss-user-key"), h.get("x-anon-key"), h.get("authorization")) for _, h, _ in sent] == [
        ("123456789", None, None) if number % 2 == 0 else (None, "h4sh/+=_-", None) for number in range(5)
    ]


async def test_answers_are_read():
    created, executed, status, removed, refunded = [
        await calls(billing_of(canned(ANSWERS[name])))[name]() for name in ANSWERS
    ]
    assert created == WRAPPED_TOKEN
    assert executed == Execution(Claim("n-1", PAY_TOKEN, 9900, "TEST"), 9900, None, None)
    assert (status, removed) == ("ACTIVE", None)
    assert refunded == Refund(Claim(None, PAY_TOKEN, None, None), "r-1", 9900, None)


@pytest.mark.parametrize("payload", [None, "", True, [], {}, {"anything": 1}])
async def test_a_removal_needs_no_more_than_success(payload):
    await calls(billing_of(canned(payload)))["remove_key"]()


async def test_the_field_of_the_status_is_a_setting():
    said = {"status": "OUTER", "billingKeyStatus": "REMOVE"}
    assert await calls(billing_of(canned(said)))["key_status"]() == "OUTER"
    assert await calls(billing_of(canned(said), status_field="billingKeyStatus"))["key_status"]() == "REMOVE"
    await fault_of(calls(billing_of(canned(said), status_field="keyStatus"))["key_status"](), Unintelligible)


@pytest.mark.parametrize("token", ["", " ", "a b", "a\n", "토큰", "\ud800", "x" * 8193, True, None, [], {}])
async def test_without_a_usable_wrapped_token_there_is_no_key(token):
    await fault_of(calls(billing_of(canned({"wrappedToken": token})))["create_key"](), Unintelligible)
    assert await calls(billing_of(canned({"wrappedToken": 12})))["create_key"]() == "12"


@pytest.mark.parametrize("name", list(ANSWERS))
async def test_only_the_status_is_asked_for_again(ca, name):
    async with talking_to(ca, None) as (partner, host):
        await fault_of(calls(billing_of(partner))[name](), OutcomeUnknown)
        assert len(host.requests) == (1 if name in WRITES else 2)
    async with talking_to(ca, None, saying(ANSWERS["key_status"])) as (partner, host):
        assert await calls(billing_of(partner))["key_status"]() == "ACTIVE"


@pytest.mark.parametrize("name", list(ANSWERS))
async def test_a_no_inside_a_success_is_a_no(name):
    said = {"code": -1, "errorCode": "COMMON_BILLING_KEY_NOT_FOUND", "msg": WRAPPED_TOKEN, "status": "ACTIVE"}
    error = await fault_of(calls(billing_of(canned(said)))[name](), TossRejected)
    assert error.error_code == "COMMON_BILLING_KEY_NOT_FOUND"


@pytest.mark.parametrize("lane", list(Lane))
async def test_background_work_is_charged_as_such(lane):
    pot = Pot()
    billing = billing_of(canned(*(ANSWERS[name] for name in ("key_status", "remove_key", "refund")), pot=pot))
    await billing.key_status(USER, wrapped_token=WRAPPED_TOKEN, lane=lane)
    await billing.remove_key(USER, wrapped_token=WRAPPED_TOKEN, lane=lane)
    await billing.refund(USER, pay_token=PAY_TOKEN, reason="r", lane=lane)
    expected = ["all", "background"] if lane is Lane.BACKGROUND else ["all"]
    assert [[charge.counter for charge in charges] for charges in pot.admitted] == [expected] * 3


@pytest.mark.parametrize("name", list(ANSWERS))
@given(payload=payloads("wrappedToken", "status", "code", "payToken", "orderNo", "amount", "refundedAmount"))
def test_whatever_arrives_is_read_or_an_error_of_ours(name, payload):
    said = outcome(lambda partner: calls(billing_of(partner))[name](), payload)
    kinds = {"create_key": str, "execute": Execution, "key_status": str, "refund": Refund}
    assert isinstance(said, (TossError, kinds.get(name, type(None))))
    assert not isinstance(said, OutcomeUnknown)
    assert said != ""
