"""In-app purchase: what is asked about an order, and what is made of the answer."""

import pytest
from hypothesis import given

from app.toss.errors import OutcomeUnknown, TossError, TossRejected, Unintelligible
from app.toss.governor import Lane
from app.toss.iap import IapApi, OrderStatus
from tests.toss.money import NOBODY_KNOWN, USER, canned, fault_of, outcome, payloads
from tests.toss.partners import Pot, saying, talking_to

ORDER_ID = "01990a3c-0000-7000-8000-00000000000a"
PAID = {
    "orderId": ORDER_ID,
    "sku": "ait.0000010000.ab12.cd34.0000000001",
    "status": "PAYMENT_COMPLETED",
    "statusDeterminedAt": "2026-08-20T10:15:30",
    "reason": "결제가 완료됐어요",
}
STATUSES = [
    *("ORDER_IN_PROGRESS", "PAYMENT_COMPLETED", "PURCHASED", "FAILED", "REFUNDED", "NOT_FOUND"),
    *("MINIAPP_MISMATCH", "ERROR", "PAYMENT_PENDING"),
]


async def status_of(partner, *, user=USER, lane=Lane.INTERACTIVE) -> OrderStatus:
    return await IapApi(partner=partner).order_status(ORDER_ID, user=user, lane=lane)


@pytest.mark.parametrize("user", [USER, NOBODY_KNOWN, None], ids=["user_key", "anon_key", "nobody"])
async def test_the_user_key_goes_along_and_nothing_else_that_tells_of_the_user(ca, user):
    async with talking_to(ca, saying(PAID)) as (partner, host):
        await status_of(partner, user=user)
    (request,) = host.requests
    head, _, body = request.lower().partition(b"\r\n\r\n")
    assert head.startswith(b"post /api-partner/v1/apps-in-toss/order/get-order-status http/1.1\r\n")
    assert body == b'{"orderid":"%s"}' % ORDER_ID.encode()
    assert (b"\r\nx-toss-user-key: 123456789" in head) is (user is USER)
    assert b"anon" not in head
    assert b"authorization" not in head
    assert b"orderId" in request


@pytest.mark.parametrize("status", STATUSES)
async def test_a_documented_answer_is_read(status):
    said = await status_of(canned({**PAID, "status": status}))
    assert said == OrderStatus(status, PAID["sku"], "2026-08-20T10:15:30")
    short = {"orderId": ORDER_ID, "status": status, "reason": "…"}
    assert await status_of(canned(short)) == OrderStatus(status, None, None)


@pytest.mark.parametrize("value", [None, True, 1.5, [], {}, "", "a\n", "\ud800", "x" * 256])
async def test_only_the_status_must_be_readable(value):
    said = await status_of(
        canned({"orderId": value, "status": "PURCHASED", "sku": value, "statusDeterminedAt": value})
    )
    assert said == OrderStatus("PURCHASED", None, None)
    await fault_of(status_of(canned({**PAID, "status": value})), Unintelligible)


async def test_an_answer_about_another_order_is_none():
    """An order in another spelling would be granted a second time."""
    for other in (ORDER_ID.upper(), f" {ORDER_ID}", "another"):
        await fault_of(status_of(canned({**PAID, "orderId": other})), Unintelligible)


async def test_a_lost_answer_is_asked_for_once_more(ca):
    async with talking_to(ca, None, saying(PAID)) as (partner, host):
        assert (await status_of(partner)).status == "PAYMENT_COMPLETED"
        assert len(host.requests) == 2
    async with talking_to(ca, None) as (partner, host):
        await fault_of(status_of(partner), OutcomeUnknown)
        assert len(host.requests) == 2


async def test_a_no_is_not_asked_for_again(ca):
    said = b'{"resultType":"FAIL","success":null,"error":{"errorCode":"4010","reason":"x"}}'
    async with talking_to(ca, said, status="401 Unauthorized") as (partner, host):
        error = await fault_of(status_of(partner), TossRejected)
        assert (error.http_status, error.error_code, len(host.requests)) == (401, "4010", 1)


@pytest.mark.parametrize("lane", list(Lane))
async def test_background_work_is_charged_as_such(lane):
    pot = Pot()
    await status_of(canned(PAID, pot=pot), lane=lane)
    assert [charge.counter for charge in pot.admitted[0]] == ["all", "background"][: 1 + (lane is Lane.BACKGROUND)]


@given(payload=payloads("orderId", "status", "sku", "statusDeterminedAt", "code"))
def test_whatever_arrives_is_read_or_an_error_of_ours(payload):
    said = outcome(status_of, payload)
    assert isinstance(said, (TossError, OrderStatus))
    assert not isinstance(said, OutcomeUnknown)
    if isinstance(said, OrderStatus):
        assert said.status.isprintable()
        assert all(text is None or text.isprintable() for text in (said.sku, said.determined_at))
