"""kill -9 of a real server on both sides of a callback's handling (G9): reconcile settles what it left."""

import asyncio
import sys

import pytest

from app.reconcile import reconcile
from tests.callbacks.conftest import with_callbacks
from tests.callbacks.toss import UNLINK, USER, VALUE, Unlinks, content, notices, only_notice
from tests.conftest import settings_for
from tests.processes import Server
from tests.scenarios import Bff


class HandlingServer(Server):
    COMMAND = (sys.executable, "-m", "tests.callbacks.handling_server")


@pytest.fixture
def settings(backend, sandbox):
    return with_callbacks(settings_for(backend, sandbox))


async def deliver_and_lose_the_server(settings, sandbox, step: str) -> list[str]:
    pausing = settings.model_copy(update={"fault": settings.fault.model_copy(update={"pause_at": step})})
    server = HandlingServer(pausing)
    try:
        server.wait_until_listening()
        callbacks = sandbox.state.callbacks
        callbacks.configure(url=server.url + UNLINK, auth_value=VALUE, timeout_seconds=30)
        announcing = asyncio.create_task(asyncio.to_thread(callbacks.announce, USER, "WITHDRAWAL_TERMS"))
        await server.says('"step": "' + step)
        server.kill()
        await announcing
    finally:
        server.kill()
    return server.log


@pytest.mark.parametrize(("step", "has_unlinked"), [("notice_recorded", False), ("notice_handled", True)])
async def test_killed_at_a_step(settings, sandbox, step, has_unlinked):
    log = await deliver_and_lose_the_server(settings, sandbox, step)
    assert any('"unlinked"' in line for line in log) is has_unlinked
    async with Bff.running(settings, sandbox) as bff:
        notice = await only_notice(bff)
        assert (notice.state, notice.deliveries, notice.attempts) == ("OPEN", 1, 0)
        unlinks = Unlinks()
        unlinks.serve(bff)
        assert (await reconcile(bff.resources)).notices.handled == 1
        assert unlinks.calls == [(USER, "WITHDRAWAL_TERMS")]
        assert (await reconcile(bff.resources)).notices.handled == 0
        notice = await only_notice(bff)
        assert (notice.state, notice.outcome) == ("HANDLED", "ENDED")


async def test_delivered_again_after_a_kill_it_is_one_notice_that_needs_no_reconcile(settings, sandbox):
    await deliver_and_lose_the_server(settings, sandbox, "notice_recorded")
    server = HandlingServer(settings)
    try:
        server.wait_until_listening()
        callbacks = sandbox.state.callbacks
        callbacks.configure(url=server.url + UNLINK)
        (delivery,) = await asyncio.to_thread(callbacks.deliver, [1])
        assert delivery.status == 200
        await server.says("notice_handled")
    finally:
        server.kill()
    async with Bff.running(settings, sandbox) as bff:
        notice = await only_notice(bff)
        assert (notice.state, notice.deliveries) == ("HANDLED", 2)
        assert (await content(bff, notice))["userKey"] == USER
        assert len(await notices(bff)) == 1
