"""Toss Pay, call by call: what is sent byte by byte, what is made of the answer, and what is never repeated."""

import json

import pytest
from hypothesis import given

from app.toss.errors import BudgetExhausted, OutcomeUnknown, TossError, TossFault, TossRejected, Unintelligible
from app.toss.governor import Lane
from app.toss.pay import Charge, Claim, Execution, PayApi, Refund, Status, Transaction
from tests.toss.money import NOBODY_KNOWN, PAY_TOKEN, SECRETS, USER, canned, fault_of, outcome, payloads
from tests.toss.partners import Pot, read, saying, talking_to

PREFIX = "/api-partner/v1/apps-in-toss/pay"
CHARGE = Charge(product_desc="토스 \u2028커피", amount=4500, amount_tax_free=0)
EVERYTHING = Charge(
    product_desc="x",
    amount=1000,
    amount_tax_free=100,
    amount_taxable=800,
    amount_vat=80,
    amount_service_fee=0,
    options={"cashReceipt": True, "enablePayMethods": None, "installment": "NOT_USE", "amount": 1, "orderNo": "z"},
)
NOTHING = Claim(order_no=None, pay_token=None, amount=None, mode=None)
WRITES = ["make", "execute", "refund"]
PAID = {
    "code": 0,
    "msg": None,
    "errorCode": None,
    "mode": "LIVE",
    "orderNo": "n-1",
    "payToken": PAY_TOKEN,
    "amount": 4500,
    "discountedAmount": 500,
    "paidAmount": 4000,
    "approvalTime": "2026-09-01 10:00:00",
    "stateMsg": "결제 완료",
    "payMethod": "CARD",
    "transactionId": "5a3c0000-0000-4000-8000-000000000001",
    "cardNumber": "5181****0012****",
    "noInterest": None,
}
REFUNDED = {
    "refundNo": "r-1",
    "approvalTime": "2026-09-01 11:00:00",
    "refundableAmount": 0,
    "refundedAmount": 4500,
    "refundedPaidAmount": 4000,
    "payToken": PAY_TOKEN,
    "transactionId": "5a3c0000-0000-4000-8000-000000000002",
}
STANDING = {
    "mode": "TEST",
    "payToken": PAY_TOKEN,
    "orderNo": "n-1",
    "payStatus": "REFUND_SUCCESS",
    "payMethod": "TOSS_MONEY",
    "amount": 4500,
    "paidAmount": 4000,
    "refundableAmount": 0,
    "card": None,
    "transactions": [
        {"stepType": "PAY", "transactionId": "t-1", "transactionAmount": 4500, "regTs": "2026-09-01 10:00:00"},
        {"stepType": "REFUND", "transactionId": "t-2", "transactionAmount": -4500, "paidAmount": -4000},
    ],
    "createdTs": "2026-09-01 09:59:00",
}


def pay_of(partner, *, is_test: bool = True) -> PayApi:
    return PayApi(partner=partner, is_test=is_test)


def calls(pay: PayApi, user=USER) -> dict:
    return {
        "make": lambda: pay.make(user, "n-1", CHARGE),
        "execute": lambda: pay.execute(user, order_no="n-1", pay_token=PAY_TOKEN),
        "refund": lambda: pay.refund(user, pay_token=PAY_TOKEN, reason="고객 변심"),
        "status": lambda: pay.status(user, order_no="n-1", pay_token=PAY_TOKEN),
    }


ANSWERS = {"make": {"payToken": PAY_TOKEN}, "execute": PAID, "refund": REFUNDED, "status": STANDING}


# --- What is sent -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_test", [True, False])
@pytest.mark.parametrize(
    ("user", "header"),
    [(USER, ("x-toss-user-key", "123456789")), (NOBODY_KNOWN, ("x-anon-key", "h4sh/+=_-"))],
    ids=["user_key", "anon_key"],
)
async def test_every_call_is_of_the_documented_form(ca, is_test, user, header):
    async with talking_to(ca, *(saying(ANSWERS[name]) for name in ANSWERS), saying(STANDING)) as (partner, host):
        pay = pay_of(partner, is_test=is_test)
        for call in calls(pay, user).values():
            await call()
        await pay.status(user, order_no="n-1", pay_token=None, lane=Lane.BACKGROUND)
    flag = b"true" if is_test else b"false"
    token = PAY_TOKEN.encode()
    expected = [
        (
            "make-payment",
            '{"productDesc":"토스 \u2028커피","amount":4500,"amountTaxFree":0,"orderNo":"n-1"'.encode(),
        ),
        ("execute-payment", b'{"payToken":"%s","orderNo":"n-1"' % token),
        ("refund-payment", b'{"payToken":"%s","reason":"%s"' % (token, "고객 변심".encode())),
        ("get-payment-status", b'{"payToken":"%s","orderNo":"n-1"' % token),
        ("get-payment-status", b'{"orderNo":"n-1"'),
    ]
    assert [
        (request.split(b" HTTP/1.1\r\n")[0].decode(), request.partition(b"\r\n\r\n")[2])
        for request in host.requests
    ] == [(f"POST {PREFIX}/{path}", body + b',"isTestPayment":' + flag + b"}") for path, body in expected]
    usual = {"host", "accept", "accept-encoding", "connection", "user-agent", "content-type", "content-length"}
    for request in host.requests:
        _, headers, _ = read(request)
        assert set(headers) == {*usual, header[0]}
        assert (headers[header[0]], headers["content-type"]) == (header[1], "application/json")


async def test_what_a_charge_names_is_sent_and_no_option_takes_the_place_of_an_amount(ca):
    async with talking_to(ca, saying({"payToken": PAY_TOKEN})) as (partner, host):
        await pay_of(partner).make(USER, "n-1", EVERYTHING)
    body = read(host.requests[0])[2]
    assert body == {
        "orderNo": "n-1",
        "productDesc": "x",
        "amount": 1000,
        "amountTaxFree": 100,
        "amountTaxable": 800,
        "amountVat": 80,
        "amountServiceFee": 0,
        "cashReceipt": True,
        "enablePayMethods": None,
        "installment": "NOT_USE",
        "isTestPayment": True,
    }


@pytest.mark.parametrize("lane", list(Lane))
async def test_background_work_is_charged_as_such(lane):
    pot = Pot()
    pay = pay_of(canned(REFUNDED, STANDING, pot=pot))
    await pay.refund(USER, pay_token=PAY_TOKEN, reason="r", lane=lane)
    await pay.status(USER, order_no="n-1", pay_token=PAY_TOKEN, lane=lane)
    expected = ["all", "background"] if lane is Lane.BACKGROUND else ["all"]
    assert [[charge.counter for charge in charges] for charges in pot.admitted] == [expected] * 2


# --- What is repeated -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITES)
async def test_a_call_that_moves_something_is_never_repeated(ca, name):
    async with talking_to(ca, None, saying(ANSWERS[name])) as (partner, host):
        await fault_of(calls(pay_of(partner))[name](), OutcomeUnknown)
        assert len(host.requests) == 1


async def test_a_lost_status_is_asked_for_once_more(ca):
    async with talking_to(ca, None, saying(STANDING)) as (partner, host):
        assert await calls(pay_of(partner))["status"]()
        assert len(host.requests) == 2
    async with talking_to(ca, None) as (partner, host):
        await fault_of(calls(pay_of(partner))["status"](), OutcomeUnknown)
        assert len(host.requests) == 2


@pytest.mark.parametrize("name", [*WRITES, "status"])
async def test_a_call_that_fails_inside_toss_has_an_unknown_outcome(ca, name):
    said = b'{"resultType":"HTTP_TIMEOUT","success":null,"error":{"errorCode":"COMMON_TIMEOUT"}}'
    async with talking_to(ca, said) as (partner, host):
        error = await fault_of(calls(pay_of(partner))[name](), TossFault)
        assert error.error_code == "COMMON_TIMEOUT"
        assert len(host.requests) == (2 if name == "status" else 1)


# --- What is read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["success", "result"])
async def test_documented_answers_are_read(ca, key):
    bodies = [json.dumps({"resultType": "SUCCESS", key: ANSWERS[name]}).encode() for name in ANSWERS]
    async with talking_to(ca, *bodies) as (partner, _):
        made, executed, refunded, standing = [await call() for call in calls(pay_of(partner)).values()]
    assert made == PAY_TOKEN
    assert executed == Execution(
        Claim("n-1", PAY_TOKEN, 4500, "LIVE"), 4000, "CARD", "5a3c0000-0000-4000-8000-000000000001"
    )
    assert refunded == Refund(
        Claim(None, PAY_TOKEN, None, None), "r-1", 4500, "5a3c0000-0000-4000-8000-000000000002"
    )
    assert standing == Status(
        Claim("n-1", PAY_TOKEN, 4500, "TEST"),
        "REFUND_SUCCESS",
        "TOSS_MONEY",
        4000,
        0,
        (Transaction("PAY", "t-1", 4500), Transaction("REFUND", "t-2", -4500)),
    )


async def test_texts_come_as_numbers_and_numbers_as_text():
    odd = {"orderNo": 77, "payToken": 5, "amount": "4500", "paidAmount": 4000.0, "mode": "live", "payMethod": 3}
    steps = [{"stepType": "REFUND", "transactionId": 9, "transactionAmount": "-4500"}]
    pay = pay_of(canned({"payToken": 5}, odd, {**odd, "payStatus": "PAY_WHAT", "transactions": steps}))
    assert await pay.make(USER, "77", CHARGE) == "5"
    executed = await pay.execute(USER, order_no="77", pay_token="5")
    assert executed == Execution(Claim("77", "5", 4500, "live"), 4000, "3", None)
    standing = await pay.status(USER, order_no="77", pay_token="5")
    assert (standing.claim, standing.pay_status) == (executed.claim, "PAY_WHAT")
    assert standing.transactions == (Transaction("REFUND", "9", -4500),)


@pytest.mark.parametrize(
    "value", [None, True, False, 4500.5, "4500.0", "4,500", " 4500", "", "four", [4500], {}, 2**63, float("nan")]
)
async def test_an_amount_that_is_no_whole_number_is_none(value):
    amounts = dict.fromkeys(("amount", "paidAmount", "refundableAmount", "refundedAmount"), value)
    steps = [{"stepType": "PAY", "transactionAmount": value}]
    pay = pay_of(canned(amounts, amounts, {**amounts, "payStatus": "PAY_COMPLETE", "transactions": steps}))
    assert await calls(pay)["execute"]() == Execution(NOTHING, None, None, None)
    assert await calls(pay)["refund"]() == Refund(NOTHING, None, None, None)
    assert await calls(pay)["status"]() == Status(
        NOTHING, "PAY_COMPLETE", None, None, None, (Transaction("PAY", None, None),)
    )


@pytest.mark.parametrize(
    "steps", [None, "PAY", {"stepType": "PAY"}, [], [None, "PAY", ["PAY"], {}, {"stepType": []}]]
)
async def test_steps_that_cannot_be_read_are_left_out(steps):
    pay = pay_of(canned({"payStatus": "PAY_STANDBY", "transactions": steps}))
    assert (await calls(pay)["status"]()).transactions == ()


@pytest.mark.parametrize("token", ["", " ", "a b", "a\n", "토큰", "\ud800", "x" * 31, True, None, ["t"], {}])
async def test_without_a_usable_pay_token_nothing_was_made(token):
    await fault_of(pay_of(canned({"payToken": token})).make(USER, "n-1", CHARGE), Unintelligible)
    assert await pay_of(canned({"payToken": "x" * 30})).make(USER, "n-1", CHARGE) == "x" * 30


@pytest.mark.parametrize("word", [None, "", True, 1.5, [], {"payStatus": "PAY_COMPLETE"}, "a\n", "x" * 256])
async def test_a_status_without_a_word_is_unintelligible(word):
    await fault_of(calls(pay_of(canned({**STANDING, "payStatus": word})))["status"](), Unintelligible)


@pytest.mark.parametrize("name", list(ANSWERS))
@pytest.mark.parametrize("payload", [None, "SUCCESS", [], 1, True])
async def test_a_success_without_fields_is_unintelligible(name, payload):
    """For an execution this means: perhaps paid."""
    error = await fault_of(calls(pay_of(canned(payload)))[name](), Unintelligible)
    assert (error.http_status, error.was_refused) == (200, False)


# --- A no -------------------------------------------------------------------------------------------------

NO = {"code": -1, "errorCode": "EXECUTE_PAY_NOT_APPROVED", "msg": "구매자 미승인", "payToken": PAY_TOKEN}


@pytest.mark.parametrize("name", list(ANSWERS))
@pytest.mark.parametrize(
    ("fields", "code"),
    [
        (NO, "EXECUTE_PAY_NOT_APPROVED"),
        ({**NO, "errorCode": None}, "-1"),
        ({**NO, "code": "-1"}, "EXECUTE_PAY_NOT_APPROVED"),
        ({**NO, "code": 7}, "EXECUTE_PAY_NOT_APPROVED"),
    ],
)
async def test_a_no_inside_a_success_is_a_no(name, fields, code):
    error = await fault_of(calls(pay_of(canned(fields)))[name](), TossRejected)
    assert (error.http_status, error.error_code) == (200, code)


@pytest.mark.parametrize("name", list(ANSWERS))
@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request", "404 Not Found", "500 Oops"])
async def test_a_no_keeps_its_code_whatever_the_status(ca, name, status):
    said = {"resultType": "FAIL", "error": {"errorCode": "TRANSACTION_NOT_FOUND", "reason": PAY_TOKEN}}
    async with talking_to(ca, json.dumps(said).encode(), status=status) as (partner, host):
        error = await fault_of(calls(pay_of(partner))[name](), TossRejected)
        assert (error.http_status, error.error_code) == (int(status[:3]), "TRANSACTION_NOT_FOUND")
        assert len(host.requests) == 1


@pytest.mark.parametrize("name", list(ANSWERS))
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>404</html>",
        b'{"timestamp":"2026-09-01","status":404,"error":"Not Found","path":"/api-partner"}',
        b'{"code":-1,"errorCode":"TRANSACTION_NOT_FOUND","msg":"x"}',
    ],
)
async def test_a_404_outside_the_envelope_is_nobodys_no(ca, name, body):
    """Plain Toss Pay answers like the last, but that it gets through to here is said nowhere."""
    async with talking_to(ca, body, status="404 Not Found") as (partner, host):
        error = await fault_of(calls(pay_of(partner))[name](), Unintelligible)
        assert (error.http_status, error.was_refused) == (404, True)
        assert len(host.requests) == 1


# --- Nothing shows itself, nothing breaks -----------------------------------------------------------------


async def test_nothing_shows_a_token():
    pay = pay_of(canned(PAID, REFUNDED, STANDING))
    for name in ("execute", "refund", "status"):
        said = await calls(pay)[name]()
        assert said.claim.pay_token == PAY_TOKEN
        assert not [secret for secret in SECRETS if secret in f"{said!r} {said}"]
    assert "123456789" not in repr(USER)


FIELDS = ("payToken", "orderNo", "amount", "mode", "code", "errorCode", "payStatus", "paidAmount", "transactions")


def is_whole(value: object) -> bool:
    return value is None or (type(value) is int and abs(value) < 2**63)


def is_text(value: object) -> bool:
    return value is None or (type(value) is str and 0 < len(value) < 256 and value.isprintable())


@pytest.mark.parametrize("name", list(ANSWERS))
@given(payload=payloads(*FIELDS, "transactionId", "payMethod", "refundNo", "refundedAmount", "refundableAmount"))
def test_whatever_arrives_is_read_or_an_error_of_ours(name, payload):
    said = outcome(lambda partner: calls(pay_of(partner))[name](), payload)
    if isinstance(said, TossError):
        assert not isinstance(said, OutcomeUnknown)
        return
    if name == "make":
        assert is_text(said)
        assert 0 < len(said) <= 30
        return
    fields = {**vars(said), **vars(said.claim)}
    del fields["claim"]
    steps = fields.pop("transactions", ())
    assert all(is_text(step.step_type) and step.step_type and is_whole(step.amount) for step in steps)
    assert name != "status" or fields["pay_status"]
    for field, value in fields.items():
        assert is_whole(value) if field.endswith("amount") else is_text(value)


async def test_4095_pauses_from_inside_too():
    pot = Pot()
    pay = pay_of(canned({"code": -1, "errorCode": "4095"}, pot=pot))
    await fault_of(calls(pay)["execute"](), BudgetExhausted)
    assert len(pot.pauses) == 1
