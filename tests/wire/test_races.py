"""Two real server processes on PostgreSQL and Redis: one upstream call, one token (G1, G5, G6)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from redis import Redis

from tests.conftest import settings_for
from tests.processes import bff_at, serving
from tests.scenarios import Bff


@pytest.fixture
async def replicas(production, sandbox) -> AsyncIterator[list[Bff]]:
    settings = settings_for(production, sandbox)
    async with AsyncExitStack() as stack:
        servers = [stack.enter_context(serving(settings)) for _ in range(2)]
        yield [await stack.enter_async_context(bff_at(server, sandbox)) for server in servers]


def all_of(replicas, count):
    """As many callers, spread evenly."""
    return [replicas[index % len(replicas)] for index in range(count)]


async def test_fifty_result_calls_over_two_servers_are_one_upstream_call(replicas, sandbox):
    verification = await replicas[0].completed()
    answers = await asyncio.gather(*(bff.result(verification) for bff in all_of(replicas, 50)))
    codes = [answer.status_code for answer in answers]
    assert set(codes) <= {200, 409}
    assert 200 in codes
    assert sandbox.state.count("result") == 1
    assert sandbox.state.max_in_flight("result", verification.tx_id) == 1
    for bff in replicas:
        assert (await bff.result(verification)).json()["retrieval"] == {"source": "STORED", "readsLeft": 1}


async def test_after_a_lost_answer_fifty_callers_share_the_last_read(replicas, sandbox):
    verification = await replicas[0].completed()
    sandbox.state.order_fault("result", "reset_after")
    assert (await replicas[0].result(verification)).status_code == 504
    answers = await asyncio.gather(*(bff.result(verification) for bff in all_of(replicas, 50)))
    assert {answer.status_code for answer in answers} <= {200, 409}
    assert sandbox.state.count("result") == 2
    assert (await replicas[1].result(verification)).status_code == 200


async def test_fifty_workers_without_a_token_make_one_token_request(replicas, sandbox):
    await asyncio.gather(*(bff.start() for bff in all_of(replicas, 50)))
    assert sandbox.state.count("token") == 1
    assert sandbox.state.count("request") == 50


async def test_fifty_workers_with_a_refused_token_make_one_token_request(replicas, sandbox):
    verifications = [await replicas[0].start() for _ in range(50)]
    assert sandbox.state.count("token") == 1
    sandbox.state.revoke_tokens()
    answers = await asyncio.gather(
        *(bff.status(verification) for bff, verification in zip(all_of(replicas, 50), verifications, strict=True))
    )
    assert {answer.status_code for answer in answers} == {200}
    assert sandbox.state.count("token") == 2


async def test_a_wiped_redis_loses_no_fact(replicas, sandbox, redis_server):
    verification = await replicas[0].completed()
    await replicas[0].result(verification)
    with Redis.from_url(redis_server) as client:
        client.flushall()
    assert (await replicas[1].result(verification)).json()["retrieval"]["source"] == "STORED"
    await asyncio.gather(*(bff.start() for bff in all_of(replicas, 20)))
    assert sandbox.state.count("token") == 2


async def test_a_revoked_server_key_is_refused_by_every_replica(replicas, production, sandbox):
    async with Bff.running(settings_for(production, sandbox), sandbox) as here:
        issued = await here.resources.server_keys.issue(name="partner", scopes=["cert:read"])
        headers = {"Authorization": f"Bearer {issued.secret}"}
        verification = await replicas[0].completed()
        for bff in replicas:
            assert (await bff.as_partner("POST", verification, "/result", headers)).status_code == 200
        await here.resources.server_keys.revoke(issued.key_id)
        for bff in replicas:
            assert (await bff.as_partner("POST", verification, "/result", headers)).status_code == 401
