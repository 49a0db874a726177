"""kill -9 around a grant, a refund and a notice; two servers and one order (G9, G13, reference 10)."""

import asyncio
from contextlib import AsyncExitStack, suppress

import httpx2
import pytest

from tests.callbacks.toss import notices
from tests.conftest import SUBSCRIPTION_AUTH, settings_for
from tests.processes import bff_at, running, serving
from tests.purchases.shop import (
    CALLBACK,
    MONTHLY,
    SKU,
    entitlements,
    event_types,
    events,
    grant,
    later,
    purchases,
    store,
    subscriptions,
)
from tests.scenarios import Bff


@pytest.fixture
def settings(backend, sandbox):
    return settings_for(backend, sandbox)


def pausing(settings, step):
    return settings.model_copy(update={"fault": settings.fault.model_copy(update={"pause_at": step})})


@pytest.mark.parametrize(("step", "is_recorded"), [("order_answered", False), ("purchase_recorded", True)])
async def test_killed_while_granting_the_next_call_grants_and_it_is_told_once(settings, sandbox, step, is_recorded):
    order_id = store_of(sandbox).buy("man", SKU)
    async with running(pausing(settings, step), sandbox) as (server, bff):
        login = await bff.log_in()

        async def ask() -> None:
            with suppress(httpx2.HTTPError):
                await grant(bff, login, order_id)

        asking = asyncio.create_task(ask())
        await server.says('"step": "' + step)
        server.kill()
        await asking
    async with Bff.running(settings, sandbox) as bff:
        assert len(await purchases(bff)) == len(await events(bff)) == is_recorded
        assert (await grant(bff, login, order_id)).status_code == 200
        assert sandbox.state.count("iap_status") == (1 if is_recorded else 2)
        assert await event_types(bff) == ["purchase.granted"]
        assert len(await entitlements(bff, login)) == 1


async def test_killed_between_toss_s_word_of_a_refund_and_our_own(settings, sandbox):
    async with Bff.running(settings, sandbox) as bff:
        login, key = await bff.log_in(), await bff.server_key()
        order_id = store(bff).buy("man", SKU)
        await grant(bff, login, order_id)
    store_of(sandbox).refund(order_id)
    async with running(pausing(settings, "order_checked"), sandbox) as (server, bff):

        async def ask() -> None:
            with suppress(httpx2.HTTPError):
                await bff.http.post(f"/server/v1/purchases/{order_id}/check", headers=key)

        asking = asyncio.create_task(ask())
        await server.says('"step": "order_checked')
        server.kill()
        await asking
    async with Bff.running(settings, sandbox) as bff:
        assert await event_types(bff) == ["purchase.granted"]
        later(bff, days=1, seconds=1)
        assert (await bff.resources.purchases.reconcile()).refunded == 1
        assert await event_types(bff) == ["purchase.granted", "purchase.refunded"]
        assert await entitlements(bff, login) == []


@pytest.mark.parametrize(("step", "is_applied"), [("notice_recorded", False), ("notice_handled", True)])
async def test_killed_around_a_notice_it_is_applied_and_told_once(settings, sandbox, step, is_applied):
    async with Bff.running(settings, sandbox) as bff:
        login = await bff.log_in()
        order_id = store(bff).buy_subscription("man", MONTHLY)
        await grant(bff, login, order_id)
    async with running(pausing(settings, step), sandbox) as (server, _):
        callbacks = sandbox.state.callbacks
        how = {"url": server.url + CALLBACK, "auth_value": SUBSCRIPTION_AUTH}
        callbacks.configure(kind="iap-subscription", **how, timeout_seconds=30)
        telling = asyncio.create_task(asyncio.to_thread(store_of(sandbox).transition, order_id, "CREATED"))
        await server.says('"step": "' + step)
        server.kill()
        await telling
    async with Bff.running(settings, sandbox) as bff:
        assert len(await subscriptions(bff)) == is_applied
        assert (await bff.resources.inbox.reconcile()).handled == 1
        (notice,) = await notices(bff)
        assert (notice.state, notice.outcome) == ("HANDLED", "STALE" if is_applied else "APPLIED")
        assert await event_types(bff) == ["purchase.granted", "subscription.changed"]
        (has,) = await entitlements(bff, login)
        assert has["kind"] == "SUBSCRIPTION"


async def test_fifty_grants_over_two_servers_are_one_row_and_one_event(production, sandbox):
    settings = settings_for(production, sandbox)
    async with AsyncExitStack() as stack:
        servers = [stack.enter_context(serving(settings)) for _ in range(2)]
        replicas = [await stack.enter_async_context(bff_at(server, sandbox)) for server in servers]
        login = await replicas[0].log_in()
        for _ in range(3):
            order_id = store_of(sandbox).buy("man", SKU)
            asking = (grant(replicas[index % 2], login, order_id) for index in range(50))
            answers = await asyncio.gather(*asking)
            assert {answer.status_code for answer in answers} == {200}
            assert len({answer.text for answer in answers}) == 1
    assert sandbox.state.count("iap_status") <= 6
    async with Bff.running(settings, sandbox) as bff:
        assert len(await purchases(bff)) == 3
        assert await event_types(bff) == ["purchase.granted"] * 3


async def test_the_sandbox_registers_and_tells_over_a_real_connection(embedded, sandbox):
    settings = settings_for(embedded, sandbox)
    async with running(settings, sandbox) as (server, bff):
        login = await bff.log_in()
        how = {"url": server.url + CALLBACK, "auth_value": SUBSCRIPTION_AUTH}
        registered = await asyncio.to_thread(sandbox.state.callbacks.register, **how)
        assert registered.is_success
        order_id = store_of(sandbox).buy_subscription("man", MONTHLY)
        for reason in ("CREATED", "RENEWED"):
            _, (delivery,) = await asyncio.to_thread(store_of(sandbox).transition, order_id, reason)
            assert delivery.status == 200
            sandbox.state.clock.advance(60)
        await asyncio.to_thread(sandbox.state.callbacks.deliver, [1, 2], copies=2, reverse=True)
        assert (await grant(bff, login, order_id)).status_code == 200
        (has,) = await entitlements(bff, login)
        assert (has["kind"], has["sku"]) == ("SUBSCRIPTION", MONTHLY)
    async with Bff.running(settings, sandbox) as bff:
        (row,) = await subscriptions(bff)
        assert row.reason == "RENEWED"
        assert await event_types(bff) == ["purchase.granted", "subscription.changed"]


def store_of(sandbox):
    return sandbox.state.iap
