"""kill -9 of a real server at every step of the result flow (G2): the result is there, or one read is left."""

import asyncio
import signal
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import httpx2
import pytest
from sqlalchemy import update

from app.cert.tables import Verification
from app.database import Database
from tests.conftest import settings_for
from tests.processes import running
from tests.scenarios import assert_problem


async def let_leases_end(settings) -> None:
    """As if the time of the killed process's lease had passed."""
    database = Database(settings.database.url.get_secret_value(), pool_size=1, timeout=timedelta(seconds=10))
    async with database.transaction() as session:
        await session.execute(
            update(Verification)
            .where(Verification.lease_until.is_not(None))
            .values(lease_until=datetime.now(UTC) - timedelta(seconds=1))
        )
    await database.aclose()


async def ask_and_lose_the_server(bff, verification, until) -> None:
    """Ask for the result, and kill the server while it is at it."""

    async def ask() -> None:
        with suppress(httpx2.HTTPError):
            await bff.result(verification)

    asking = asyncio.create_task(ask())
    await until()
    await asking


# step, whether the lease is still held after the crash, where the result comes from then, reads used at Toss
STEPS = [
    ("leased", True, "LAST_READ", 1),
    ("answer_received", True, "LAST_READ", 2),
    ("answer_kept", False, "RECOVERED", 1),
    ("result_stored", False, "STORED", 1),
]


@pytest.mark.parametrize(("step", "is_leased", "source", "reads"), STEPS, ids=[step[0] for step in STEPS])
async def test_killed_at_a_step(settings, sandbox, step, is_leased, source, reads):
    pausing = settings.model_copy(update={"fault": settings.fault.model_copy(update={"pause_at": step})})
    async with running(pausing, sandbox) as (server, bff):
        verification = await bff.completed()

        async def at_the_step() -> None:
            await server.says('"step": "' + step)
            server.kill()

        await ask_and_lose_the_server(bff, verification, at_the_step)

    async with running(settings, sandbox) as (server, bff):
        if is_leased:
            assert_problem(await bff.result(verification), 409, "result_in_progress")
            await let_leases_end(settings)
        answer = await bff.result(verification)
        assert answer.status_code == 200, answer.text
        assert answer.json()["retrieval"]["source"] == source
        assert answer.json()["outcome"]["maskedName"] == "김*스"
        assert bff.reads(verification) == reads


@pytest.mark.parametrize(("kind", "reads"), [("hold_before", 1), ("hold", 2)])
async def test_killed_while_the_call_is_out(settings, sandbox, kind, reads):
    async with running(settings, sandbox) as (server, bff):
        verification = await bff.completed()
        sandbox.state.order_fault("result", kind)

        async def while_it_is_out() -> None:
            await asyncio.to_thread(sandbox.state.wait_until, lambda state: state.held("result") == 1)
            server.kill()

        await ask_and_lose_the_server(bff, verification, while_it_is_out)

    # Toss has noticed that the caller is gone: what was held before its effect never takes it.
    await asyncio.to_thread(sandbox.state.wait_until, lambda state: state.held("result") == 0)
    await let_leases_end(settings)
    async with running(settings, sandbox) as (server, bff):
        answer = await bff.result(verification)
        assert answer.json()["retrieval"] == {"source": "LAST_READ", "readsLeft": 0}
        assert bff.reads(verification) == reads


async def test_killed_twice_there_is_no_third_read(production, sandbox):
    settings = settings_for(production, sandbox)
    verification = None
    for _ in range(2):
        async with running(settings, sandbox) as (server, bff):
            verification = verification or await bff.completed()
            sandbox.state.order_fault("result", "hold")

            async def while_it_is_out(server=server) -> None:
                await asyncio.to_thread(sandbox.state.wait_until, lambda state: state.held("result") == 1)
                server.kill()

            await ask_and_lose_the_server(bff, verification, while_it_is_out)
        await asyncio.to_thread(sandbox.state.wait_until, lambda state: state.held("result") == 0)
        await let_leases_end(settings)
    async with running(settings, sandbox) as (server, bff):
        assert_problem(await bff.result(verification), 410, "result_reads_exhausted")
    assert sandbox.state.count("result") == 2


async def test_sigterm_lets_a_call_in_flight_finish(production, sandbox):
    async with running(settings_for(production, sandbox), sandbox) as (server, bff):
        verification = await bff.completed()
        sandbox.state.order_fault("result", "hold")
        asking = asyncio.create_task(bff.result(verification))
        await asyncio.to_thread(sandbox.state.wait_until, lambda state: state.held("result") == 1)
        ending = asyncio.create_task(asyncio.to_thread(server.end, signal.SIGTERM))
        await server.says("Shutting down")
        sandbox.state.release()
        assert (await asking).status_code == 200
        assert await ending == 0
