"""A stop, as `docker stop` and Kubernetes do it: SIGTERM to a real process that is busy."""

import asyncio
import json
import signal
import socket
import sys
from datetime import datetime, timedelta

import httpx2
import pytest
import uvicorn

from app.__main__ import PatientServer, listen
from app.settings import Settings
from tests.conftest import settings_for
from tests.processes import Server, running, serving
from tests.scenarios import assert_problem

CALLERS = 20


def with_grace(settings: Settings, **grace: float) -> Settings:
    server = settings.server.model_copy(update={"shutdown_grace": timedelta(**grace)})
    return settings.model_copy(update={"server": server})


async def keep_asking(server: Server) -> list[int]:
    """New connections until there is no server any more; what was answered."""
    answered = []
    async with httpx2.AsyncClient(base_url=server.url, headers={"Connection": "close"}, trust_env=False) as http:
        while True:
            try:
                answered.append((await http.get("/livez")).status_code)
            except httpx2.TransportError:
                return answered


def told_at(server: Server, text: str) -> datetime:
    (line,) = (line for line in server.log if text in line)
    return datetime.fromisoformat(json.loads(line)["timestamp"])


async def test_calls_in_flight_are_answered_under_load_and_the_process_ends_well(production, sandbox):
    async with running(settings_for(production, sandbox), sandbox) as (server, bff):
        verifications = [await bff.completed() for _ in range(5)]
        sandbox.state.order_fault("result", "hold", times=len(verifications))
        asking = [asyncio.create_task(bff.result(each)) for each in verifications]
        await asyncio.to_thread(sandbox.state.wait_until, lambda state: state.held("result") == len(verifications))
        load = [asyncio.create_task(keep_asking(server)) for _ in range(CALLERS)]
        await server.says("/livez")
        ending = asyncio.create_task(asyncio.to_thread(server.end, signal.SIGTERM))
        await server.says("Shutting down")
        answered = await asyncio.gather(*load)
        sandbox.state.release()
        assert [answer.status_code for answer in await asyncio.gather(*asking)] == [200] * len(verifications)
        assert await ending == 0
    assert {status for each in answered for status in each} == {200}


async def hello(_scope, _receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("rounds", [1, 2, 3, 4])
async def test_who_came_in_the_very_moment_of_the_stop_is_answered(rounds):
    """`rounds` of the event loop before it: not accepted yet, being accepted, accepted but not read."""
    listening = listen("127.0.0.1", 0)
    config = uvicorn.Config(hello, lifespan="off", log_config=None, ws="none")
    config.load()
    server = PatientServer(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[listening])
    with socket.create_connection(listening.getsockname()) as caller:
        caller.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(rounds):
            await asyncio.sleep(0)
        await server.shutdown(sockets=[listening])
        caller.settimeout(5)
        assert (await asyncio.to_thread(caller.recv, 100)).startswith(b"HTTP/1.1 200")


async def test_a_call_that_does_not_end_is_given_up_after_the_stated_time(production, sandbox):
    settings = with_grace(settings_for(production, sandbox), seconds=0.5)
    with serving(settings) as server:
        async with httpx2.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as http:
            started = (await http.post("/api/v1/cert/requests", json={})).json()
            sandbox.state.approve(started["txId"])
            sandbox.state.order_fault("result", "hold")
            headers = {"Authorization": f"Bearer {started['verificationToken']}"}
            path = f"/api/v1/cert/requests/{started['txId']}/result"
            asking = asyncio.create_task(http.post(path, headers=headers))
            await asyncio.to_thread(sandbox.state.wait_until, lambda state: state.held("result") == 1)
            assert await asyncio.to_thread(server.end, signal.SIGTERM) == 0
            assert_problem(await asking, 503, "service_stopping")
    assert not any("Exception in ASGI application" in line for line in server.log)
    cut, asked = (told_at(server, text) for text in ("Cancel 1 running", "Shutting down"))
    assert timedelta(seconds=0.5) <= cut - asked < timedelta(seconds=20)


SIGNALLED_EARLY = """
import signal, sys, app.__main__ as command
made = command.PatientServer.run
def run(*given, **named):
    signal.raise_signal(signal.SIGTERM)
    made(*given, **named)
command.PatientServer.run = run
sys.exit(command.main(["serve"]))
"""


async def test_a_signal_that_comes_before_the_server_minds_signals_is_not_lost(production, sandbox):
    class Early(Server):
        COMMAND = (sys.executable, "-c", SIGNALLED_EARLY)

    server = Early(settings_for(production, sandbox))
    try:
        await server.says("Finished server process")
    finally:
        server.kill()
