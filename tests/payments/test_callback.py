"""Toss's payment callback is a hint: what is true, only a status query tells (apps-in-toss reference 14.4)."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from app.reconcile import reconcile
from tests.callbacks.toss import AUTHORIZED as OF_ANOTHER_CALLBACK
from tests.callbacks.toss import notices, only_notice
from tests.conftest import PAYMENT_AUTH, settings_for
from tests.payments.shop import CALLBACK, FROM_TOSS, Shop
from tests.processes import Server, bff_at, serving
from tests.scenarios import Bff, assert_problem


def pay_complete(shop: Shop, payment: dict[str, Any], **fields: object) -> dict[str, object]:
    """As plain Toss Pay writes it; `fields`: how a forger would."""
    toss = shop.at_toss(payment)
    body = {"status": "PAY_COMPLETE", "payToken": toss.pay_token, "orderNo": toss.order_no, "amount": toss.amount}
    return body | fields


def asked(shop: Shop) -> int:
    return shop.bff.sandbox.state.count("pay_status")


async def pending(shop: Shop) -> dict[str, Any]:
    """Money has moved, and nobody here knows."""
    payment = await shop.approved()
    shop.bff.sandbox.state.order_fault("pay_execute", "reset_after")
    shop.bff.sandbox.state.order_fault("pay_status", "html_502")
    assert (await shop.execute(payment)).status_code == 202
    return payment


# --- What Toss says is found out -----------------------------------------------------------------------------


async def test_while_the_answer_of_execute_is_lost(shop):
    payment = await pending(shop)
    assert (await shop.call_back(pay_complete(shop, payment))).status_code == 200
    assert await shop.state(payment) == "PAID"
    assert await shop.events(payment) == ["payment.paid"]
    assert (await only_notice(shop.bff)).outcome == "PAID"
    await shop.assert_books_agree()


async def test_while_the_call_of_execute_is_still_out(shop):
    payment, toss = await shop.approved(), shop.bff.sandbox.state
    toss.order_fault("pay_execute", "hold")
    executing = asyncio.create_task(shop.execute(payment))
    await asyncio.to_thread(toss.wait_until, lambda state: state.held("pay_execute") == 1)
    await shop.call_back(pay_complete(shop, payment))
    assert await shop.state(payment) == "PAID"
    toss.release()
    answer = await executing
    assert (answer.status_code, answer.json()["state"]) == (200, "PAID")
    assert await shop.events(payment) == ["payment.paid"]


async def test_equal_ones_at_once_are_one_question(shop):
    payment = await pending(shop)
    before, body = asked(shop), pay_complete(shop, payment)
    answers = await asyncio.gather(*(shop.call_back(body) for _ in range(30)))
    assert {answer.status_code for answer in answers} == {200}
    assert asked(shop) == before + 1
    assert sum(notice.deliveries for notice in await notices(shop.bff)) == 30
    assert await shop.events(payment) == ["payment.paid"]


async def test_one_about_what_is_paid_asks_nothing(shop):
    payment = await shop.paid()
    before = asked(shop)
    await shop.call_back(pay_complete(shop, payment))
    await shop.call_back(pay_complete(shop, payment, status="SETTLEMENT_COMPLETE"))
    assert asked(shop) == before
    assert [notice.outcome for notice in await notices(shop.bff)] == ["PAID", "PAID"]


async def test_one_that_comes_after_the_refund_changes_nothing(shop):
    payment = await shop.paid()
    body = pay_complete(shop, payment)
    await shop.refund(payment)
    await shop.call_back(body)
    assert await shop.state(payment) == "REFUNDED"
    assert await shop.events(payment) == ["payment.paid", "payment.refunded"]


async def test_an_order_that_nobody_knows(shop):
    body = {"orderNo": "test-0199", "status": "PAY_COMPLETE"}
    assert (await shop.call_back(body)).status_code == 200
    assert (await only_notice(shop.bff)).outcome == "UNKNOWN_PAYMENT"
    assert asked(shop) == 0


async def test_when_toss_is_away_it_is_asked_later(shop):
    payment = await pending(shop)
    shop.bff.sandbox.state.order_fault("pay_status", "html_502")
    assert (await shop.call_back(pay_complete(shop, payment))).status_code == 200
    assert (await only_notice(shop.bff)).state == "OPEN"
    assert await shop.state(payment) == "PENDING"
    shop.bff.clock.advance(seconds=31)
    await reconcile(shop.bff.resources)
    assert (await only_notice(shop.bff)).outcome == "PAID"
    assert await shop.events(payment) == ["payment.paid"]


async def test_before_we_know_the_payment_ourselves(shop):
    """Toss has the number, and our call to make it has not come back: nothing is given up, nothing is lost."""
    toss = shop.bff.sandbox.state
    toss.order_fault("pay_make", "hold")
    beginning = asyncio.create_task(shop.begin(productId="americano"))
    await asyncio.to_thread(toss.wait_until, lambda state: state.held("pay_make") == 1)
    (row,) = await shop.rows()
    assert (await shop.call_back(pay_complete(shop, {"orderNo": row.order_no}))).status_code == 200
    assert (await only_notice(shop.bff)).state == "OPEN"
    toss.release()
    payment = (await beginning).json()
    shop.authenticate(payment)
    assert (await shop.execute(payment)).json()["state"] == "PAID"
    shop.bff.clock.advance(seconds=31)
    await reconcile(shop.bff.resources)
    assert (await only_notice(shop.bff)).outcome == "PAID"
    assert await shop.events(payment) == ["payment.paid"]


# --- What anybody else says does not count -------------------------------------------------------------------


@pytest.mark.parametrize("status", ["PAY_COMPLETE", "PAY_CANCEL", "REFUND_SUCCESS", "PAY_STANDBY", None, "새것"])
@pytest.mark.parametrize("fields", [{}, {"amount": 1}, {"payToken": "another"}], ids=["", "amount", "payToken"])
async def test_a_forged_body_moves_nothing(shop, status, fields):
    waiting, paid = await shop.begun(), await shop.paid()
    for payment in (waiting, paid):
        body = pay_complete(shop, payment, status=status, **fields)
        assert (await shop.call_back(body)).status_code == 200
    assert [await shop.state(payment) for payment in (waiting, paid)] == ["READY", "PAID"]
    assert [await shop.events(payment) for payment in (waiting, paid)] == [[], ["payment.paid"]]
    assert {notice.state for notice in await notices(shop.bff)} == {"HANDLED"}


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Basic x"}, {"Authorization": ""}, OF_ANOTHER_CALLBACK],
    ids=["nothing", "something", "empty", "another callback's"],
)
async def test_one_that_is_not_authentic_is_refused(shop, headers):
    payment = await pending(shop)
    before, body = asked(shop), pay_complete(shop, payment)
    answer = await shop.bff.http.post(CALLBACK, json=body, headers=headers)
    assert_problem(answer, 401, "callback_unauthorized")
    assert (await notices(shop.bff), asked(shop)) == ([], before)
    assert await shop.state(payment) == "PENDING"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"orderNo": 7}', b'{"orderNo": "a b"}', b"\xff" * 100])
async def test_one_that_names_no_order_is_kept_for_a_person(shop, body):
    assert_problem(await shop.call_back(body), 422, "invalid_request")
    assert (await only_notice(shop.bff)).state == "UNREADABLE"
    assert asked(shop) == 0


async def test_one_that_is_too_large_is_not_read(shop):
    payment = await pending(shop)
    limit = shop.bff.resources.settings.server.body_limit_bytes
    body = pay_complete(shop, payment, padding="x" * limit)
    assert_problem(await shop.call_back(body), 413, "payload_too_large")
    assert await notices(shop.bff) == []
    assert await shop.state(payment) == "PENDING"


async def test_one_that_does_not_end_is_not_waited_for(embedded, sandbox):
    settings = settings_for(embedded, sandbox)
    server = settings.server.model_validate({"body_timeout": 0.05})
    gone = asyncio.Event()

    async def never_ending() -> AsyncIterator[bytes]:
        yield b'{"orderNo": '
        await gone.wait()

    async with Bff.running(settings.model_copy(update={"server": server}), sandbox) as bff:
        answer = await bff.http.post(CALLBACK, content=never_ending(), headers=FROM_TOSS)
        assert_problem(answer, 408, "request_timeout")
        assert await notices(bff) == []


async def test_what_came_is_kept_sealed(shop):
    payment = await pending(shop)
    body = pay_complete(shop, payment, accountNumber="1000****1234", memo="홍길동")
    await shop.call_back(body)
    notice = await only_notice(shop.bff)
    async with shop.bff.resources.database.transaction() as session:
        (row,) = (await session.execute(text("SELECT * FROM notice"))).all()
    stored = repr([bytes(value) if isinstance(value, memoryview) else value for value in row])
    for secret in (body["payToken"], body["orderNo"], "1000****1234", "홍길동", "PAY_COMPLETE"):
        assert str(secret) not in stored
        assert str(secret).encode() not in bytes(str(stored), "utf-8")
    _, content = await shop.bff.resources.inbox.get(notice.notice_id)
    assert "홍길동" in content["body"]


# --- A storm -------------------------------------------------------------------------------------------------

PAYMENTS = 20
SPACE = 16 * 1024 * 1024
"""By which a server may grow while it lives through the same storm for the second and third time."""


def resident(server: Server) -> int:
    """Bytes of memory that the process holds."""
    pages = Path(f"/proc/{server._process.pid}/statm").read_text().split()[1]
    return int(pages) * 4096


async def weather(shop: Shop, payment: dict[str, Any], number: int, limit: int) -> Counter[int]:
    """All that may come about one payment: true, doubled, forged, about nobody, from nobody, and far too large."""
    true = pay_complete(shop, payment)
    bodies = [
        *[true] * 4,
        *[true | {"amount": amount} for amount in range(3)],
        *[true | {"status": status} for status in ("PAY_CANCEL", "REFUND_SUCCESS")],
        *[{"orderNo": f"test-{number}-{stranger}", "status": "PAY_COMPLETE"} for stranger in range(3)],
        *[true | {"padding": "x" * limit}] * 3,
    ]
    calls = [shop.call_back(body) for body in bodies]
    calls += [shop.bff.http.post(CALLBACK, json=true, headers={"Authorization": "Basic no"}) for _ in range(3)]
    return Counter([answer.status_code for answer in await asyncio.gather(*calls)])


async def through_a_storm(shop: Shop, limit: int) -> Counter[int]:
    """Twenty payments are executed in the middle of it."""

    payments = [await shop.approved() for _ in range(PAYMENTS)]

    async def one(number: int, payment: dict[str, Any]) -> Counter[int]:
        executing = asyncio.create_task(shop.execute(payment))
        answers = await weather(shop, payment, number, limit)
        executed = await executing
        while executed.status_code == 503:  # too much for the database at this moment
            executed = await shop.execute(payment)
        assert executed.status_code in (200, 202), executed.text
        return answers

    return sum(await asyncio.gather(*itertools.starmap(one, enumerate(payments))), Counter())


async def test_a_storm_of_callbacks_while_payments_run(backend, sandbox):
    settings, toss = settings_for(backend, sandbox), sandbox.state
    limit = settings.server.body_limit_bytes
    toss.budget.set_limit(sandbox.app_name, 10**6)
    sizes, answers = [], Counter()
    with serving(settings) as server:
        toss.callbacks.configure(kind="payment", url=server.url + CALLBACK, auth_value=PAYMENT_AUTH, copies=2)
        async with bff_at(server, sandbox) as bff:
            shop = await Shop.opened(bff)
            for _ in range(3):
                answers += await through_a_storm(shop, limit)
                sizes.append(resident(server))
    taken = answers.pop(200)
    assert answers.pop(503, 0) + taken == 3 * PAYMENTS * 12
    assert answers == {413: 3 * PAYMENTS * 3, 401: 3 * PAYMENTS * 3}
    assert max(sizes) - sizes[0] < SPACE
    async with Bff.running(settings, sandbox) as bff:
        shop.bff = bff
        bff.clock.advance(hours=1)
        await reconcile(bff.resources)
        assert Counter(payment.state for payment in await shop.rows()) == {"PAID": 3 * PAYMENTS}
        await shop.assert_books_agree()
        kept = await notices(bff)
        assert {notice.state for notice in kept} == {"HANDLED"}
        assert sum(notice.deliveries for notice in kept) >= taken
    # Each story about a payment is asked about once; one more is its own, if the answer of execute was lost.
    stories = 1 + 3 + 2
    assert toss.count("pay_status") <= 3 * PAYMENTS * (stories + 1)
    assert toss.count("pay_execute") == 3 * PAYMENTS
