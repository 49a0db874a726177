"""kill -9 of a real server at every step at which money is about to move, moves or has moved (G13), on PostgreSQL.

What has moved is settled by the first `python -m app reconcile`; what has not, by the first one at a time when no
call can be under way any more. And two servers at once: one effect.
"""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from sqlalchemy import update

from app.payments.tables import Payment
from app.reconcile import reconcile
from app.resources import Resources, open_resources
from tests.conftest import settings_for
from tests.payments.shop import Shop
from tests.processes import PATIENCE, ROOT, Server, bff_at, environment_of, running, serving
from tests.scenarios import assert_problem

Act = Callable[[Shop], Awaitable[httpx2.Response]]


@pytest.fixture
def settings(production, sandbox):
    return settings_for(production, sandbox)


@pytest.fixture
async def books(settings) -> AsyncIterator[Resources]:
    """What outlives every server: the database, and the partner's server, which has a key."""
    async with open_resources(settings) as resources:
        yield resources


def begin_reconcile(settings) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "app", "reconcile"],
        cwd=ROOT,
        env=environment_of(settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


async def run_reconcile(settings) -> None:
    """As an operator's timer does: a process of its own."""
    assert await asyncio.to_thread(begin_reconcile(settings).wait, PATIENCE) == 0


async def let_calls_end(books: Resources) -> None:
    """As if so much time had passed that no call of the killed process can be under way at Toss."""
    past = datetime.now(UTC) - timedelta(seconds=1)
    async with books.database.transaction() as session:
        await session.execute(update(Payment).where(Payment.quiet_until.is_not(None)).values(quiet_until=past))
        await session.execute(update(Payment).where(Payment.next_check_at.is_not(None)).values(next_check_at=past))


# --- What is being done when the server dies ---------------------------------------------------------------


async def begin(shop: Shop) -> httpx2.Response:
    return await shop.begin(productId="rice")


async def execute(shop: Shop) -> httpx2.Response:
    return await shop.execute(shop.prepared)


async def refund(shop: Shop) -> httpx2.Response:
    return await shop.refund(shop.prepared)


async def charge(shop: Shop) -> httpx2.Response:
    return await shop.charge(shop.prepared)


async def ready(shop: Shop, act: Act) -> Shop:
    """With all that has to be there before it is done."""
    prepare: dict[Act, Callable[[], Awaitable[dict[str, Any]]]] = {
        execute: shop.approved,
        refund: shop.paid,
        charge: shop.active_key,
    }
    return replace(shop, prepared=await prepare[act]()) if act in prepare else shop


async def shop_at(bff, books: Resources) -> Shop:
    return await Shop.opened(replace(bff, resources=books))


async def lose_the_server(shop: Shop, act: Act, server: Server, until: Callable[[], Awaitable[object]]) -> None:
    async def call() -> None:
        with suppress(httpx2.HTTPError):
            await act(shop)

    calling = asyncio.create_task(call())
    await until()
    server.kill()
    await calling


CALLS = {begin: "pay_make", execute: "pay_execute", refund: "pay_refund", charge: "billing_execute"}

# What is done, at which step; the state after the first reconcile; and after the one when all calls have ended.
STEPS = [
    (begin, "payment_created", "CREATED", "CANCELED"),
    (begin, "payment_made", "CREATED", "CANCELED"),
    (execute, "payment_executing", "PENDING", "READY"),
    (execute, "hold_before", "PENDING", "READY"),
    (execute, "hold", "PAID", "PAID"),
    (execute, "payment_executed", "PAID", "PAID"),
    (refund, "refund_claimed", "REFUNDING", "REFUNDED"),
    (refund, "hold_before", "REFUNDING", "REFUNDED"),
    (refund, "hold", "REFUNDED", "REFUNDED"),
    (refund, "refund_answered", "REFUNDED", "REFUNDED"),
    (charge, "charge_executing", "PENDING", "FAILED"),
    (charge, "hold_before", "PENDING", "FAILED"),
    (charge, "hold", "PAID", "PAID"),
    (charge, "charge_executed", "PAID", "PAID"),
]
EVENTS = {
    "READY": [],
    "CANCELED": [],
    "PAID": ["payment.paid"],
    "REFUNDED": ["payment.paid", "payment.refunded"],
    "FAILED": ["payment.failed"],
}


@pytest.mark.parametrize(
    ("act", "step", "first", "last"), STEPS, ids=[f"{act.__name__}-{step}" for act, step, _, _ in STEPS]
)
async def test_killed_at_a_step(settings, sandbox, books, act, step, first, last):
    is_held = step.startswith("hold")
    fault = settings.fault.model_copy(update={"pause_at": None if is_held else step})
    async with running(settings.model_copy(update={"fault": fault}), sandbox) as (server, bff):
        shop = await ready(await shop_at(bff, books), act)
        if is_held:
            sandbox.state.order_fault(CALLS[act], step)

        async def at_the_step() -> None:
            if is_held:
                await asyncio.to_thread(sandbox.state.wait_until, lambda state: state.held(CALLS[act]) == 1)
            else:
                await server.says('"step": "' + step)

        await lose_the_server(shop, act, server, at_the_step)
    # Toss has noticed that the caller is gone: what was held before its effect never takes it.
    await asyncio.to_thread(sandbox.state.wait_until, lambda state: state.in_flight(CALLS[act]) == 0)

    (row,) = (await books.orders.payments(limit=10)).items
    payment = {"orderNo": row.order_no}
    await run_reconcile(settings)
    assert await shop.state(payment) == first
    calls = sandbox.state.count(CALLS[act])
    await let_calls_end(books)
    await reconcile(books)
    assert await shop.state(payment) == last
    assert await shop.events(payment) == EVENTS[last]
    assert sandbox.state.count(CALLS[act]) == calls + (act is refund and first == "REFUNDING")
    moved = {"PAID": (1, 0), "REFUNDED": (1, 1)}.get(last, (0, 0))
    at_toss = sandbox.state.pay.payments()
    assert [(each.executions, each.refunds) for each in at_toss if each.order_no == row.order_no] in (
        [moved],
        [] if moved == (0, 0) else None,
    )
    assert len(at_toss) <= 1
    if last != "CANCELED" and at_toss:
        assert await shop.agreed(payment) == last


async def test_killed_with_a_payment_ready_to_be_executed_it_is_paid_by_the_next_server(settings, sandbox, books):
    fault = settings.fault.model_copy(update={"pause_at": "payment_executing"})
    async with running(settings.model_copy(update={"fault": fault}), sandbox) as (server, bff):
        shop = await ready(await shop_at(bff, books), execute)
        await lose_the_server(shop, execute, server, lambda: server.says('"step": "payment_executing'))
    async with running(settings, sandbox) as (_, bff):
        shop = replace(shop, bff=replace(bff, resources=books))
        answer = await shop.execute(shop.prepared)
        assert (answer.status_code, answer.json()["state"]) == (202, "PENDING")
        await let_calls_end(books)
        await reconcile(books)
        assert (await shop.execute(shop.prepared)).json()["state"] == "PAID"
        assert await shop.agreed(shop.prepared) == "PAID"


async def test_reconcile_killed_while_it_sends_a_refund_again(settings, sandbox, books):
    """Each call is stated before it goes out, the repeated one too."""
    async with running(settings, sandbox) as (_, bff):
        shop = await ready(await shop_at(bff, books), refund)
        sandbox.state.order_fault("pay_refund", "reset_before")
        assert (await shop.refund(shop.prepared)).status_code == 202
    await let_calls_end(books)
    sandbox.state.order_fault("pay_refund", "hold")
    reconciling = begin_reconcile(settings)
    try:
        await asyncio.to_thread(sandbox.state.wait_until, lambda state: state.held("pay_refund") == 1, PATIENCE)
    finally:
        reconciling.kill()
        reconciling.wait(PATIENCE)
    await let_calls_end(books)
    await reconcile(books)
    assert await shop.agreed(shop.prepared) == "REFUNDED"
    assert await shop.events(shop.prepared) == ["payment.paid", "payment.refunded"]
    assert sandbox.state.count("pay_refund") == 2


# --- Two servers -------------------------------------------------------------------------------------------


@asynccontextmanager
async def two_shops(settings, sandbox, books) -> AsyncIterator[list[Shop]]:
    async with AsyncExitStack() as stack:
        servers = [stack.enter_context(serving(settings)) for _ in range(2)]
        bffs = [await stack.enter_async_context(bff_at(server, sandbox)) for server in servers]
        first = await shop_at(bffs[0], books)
        yield [first, replace(first, bff=replace(bffs[1], resources=books))]


@pytest.mark.parametrize("act", [execute, refund, charge])
async def test_fifty_over_two_servers_are_one(settings, sandbox, books, act):
    async with two_shops(settings, sandbox, books) as (first, second):
        one = await ready(first, act)
        shops = [one, replace(second, prepared=one.prepared)]
        answers = await asyncio.gather(*(act(shops[number % 2]) for number in range(50)))
        last, under_way = ("REFUNDED", "REFUNDING") if act is refund else ("PAID", "PENDING")
        found = {(answer.status_code, answer.json()["state"]) for answer in answers}
        assert found <= {(200, last), (202, under_way)}
        assert (200, last) in found
        assert sandbox.state.count(CALLS[act]) == 1
        (order_no,) = {answer.json()["orderNo"] for answer in answers}
        assert await one.agreed({"orderNo": order_no}) == last
        assert await one.events({"orderNo": order_no}) == EVENTS[last]


async def test_fifty_over_two_servers_are_one_order_with_one_payment(settings, sandbox, books):
    async with two_shops(settings, sandbox, books) as shops:
        made = await asyncio.gather(*(shops[number % 2].order() for number in range(50)))
        assert sorted(answer.status_code for answer in made) == [200] * 49 + [201]
        (order_id,) = {answer.json()["orderId"] for answer in made}
        begun = await asyncio.gather(*(shops[number % 2].begin(orderId=order_id) for number in range(50)))
        for answer in begun:
            if answer.status_code != 201:
                assert_problem(answer, 409, "payment_in_progress")
        assert len({answer.json()["payToken"] for answer in begun if answer.status_code == 201}) == 1
        assert sandbox.state.count("pay_make") == 1


async def test_executed_on_one_server_and_refunded_on_the_other_at_once(settings, sandbox, books):
    async with two_shops(settings, sandbox, books) as (one, two):
        payment = await one.approved()
        answers = await asyncio.gather(
            *(one.execute(payment) for _ in range(10)), *(two.refund(payment) for _ in range(10))
        )
        assert {answer.status_code for answer in answers} <= {200, 202, 409}
        if await one.state(payment) == "PAID":
            assert (await two.refund(payment)).json()["state"] == "REFUNDED"
        assert await one.agreed(payment) == "REFUNDED"
        assert (sandbox.state.count("pay_execute"), sandbox.state.count("pay_refund")) == (1, 1)
