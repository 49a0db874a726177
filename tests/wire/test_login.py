"""Login with real processes: one exchange over two servers, and kill -9 wherever a login or a leaving can die."""

import asyncio
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import asyncpg
import httpx2
import pytest
from sqlalchemy import func, select, update

from app.login.tables import LoginExchange, User
from app.reconcile import reconcile
from app.resources import open_resources
from tests.conftest import settings_for
from tests.login.store import database_of
from tests.login.test_login import with_toss
from tests.processes import bff_at, running, serving
from tests.scenarios import Bff, TestClock, assert_problem

CALLERS = 50


def with_pool(settings, size):
    database = settings.database.model_copy(update={"pool_size": size, "timeout": timedelta(seconds=30)})
    return settings.model_copy(update={"database": database})


def pausing_at(settings, step):
    return settings.model_copy(update={"fault": settings.fault.model_copy(update={"pause_at": step})})


@asynccontextmanager
async def all_at_the_door(settings, count):
    """Nobody gets at the table of codes until so many wait for it, all of them with their time of arrival noted."""
    url = settings.database.url.get_secret_value().replace("+asyncpg", "")
    holder, watcher = await asyncpg.connect(url), await asyncpg.connect(url)
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("LOCK TABLE login_exchange IN ACCESS EXCLUSIVE MODE")

    async def until_there():
        async with asyncio.timeout(30):
            while True:
                waiting = await watcher.fetchval(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                    "AND wait_event_type = 'Lock'"
                )
                if waiting >= count:
                    return
                await asyncio.sleep(0.02)  # the condition is another process's

    try:
        yield until_there
    finally:
        await transaction.rollback()
        await holder.close()
        await watcher.close()


async def together(settings, replicas, code):
    async with all_at_the_door(settings, CALLERS) as until_there:
        posts = [asyncio.create_task(replicas[index % 2].post_code(code)) for index in range(CALLERS)]
        await until_there()
    return await asyncio.gather(*posts)


@asynccontextmanager
async def two(settings, sandbox):
    with serving(settings) as first, serving(settings) as second:
        async with bff_at(first, sandbox) as one, bff_at(second, sandbox) as other:
            yield one, other


async def test_fifty_posts_of_one_code_over_two_servers(production, sandbox):
    """Every way it can go: one call to Toss, and for everybody the same that came of it."""
    settings = with_pool(settings_for(production, sandbox), CALLERS // 2)
    state = sandbox.state
    async with two(settings, sandbox) as replicas:
        handed = state.mini_apps.log_in("man")
        answers = await together(settings, replicas, handed.authorization_code)
        assert {answer.status_code for answer in answers} == {200}
        assert (state.count("login_exchange"), state.count("login_me")) == (1, 1)
        bodies = [answer.json() for answer in answers]
        assert len({body["user"]["userId"] for body in bodies}) == 1
        assert len({body["sessionToken"] for body in bodies}) == CALLERS
        for number in (0, 1, 25, 49):
            headers = {"Authorization": f"Bearer {bodies[number]['sessionToken']}"}
            for bff in replicas:
                assert (await bff.http.get("/api/v1/me", headers=headers)).status_code == 200
        for bff in replicas:
            assert_problem(await bff.post_code(handed.authorization_code), 401, "login_rejected")

        for answer in await together(settings, replicas, "made-up"):
            assert_problem(answer, 401, "login_rejected")
        assert state.count("login_exchange") == 2

        away = state.mini_apps.log_in("minor")
        state.order_fault("login_exchange", "html_502")
        for answer in await together(settings, replicas, away.authorization_code):
            assert_problem(answer, 503, "upstream_unavailable")
        assert state.count("login_exchange") == 3
        assert (await replicas[1].post_code(away.authorization_code)).status_code == 200


async def lose_the_server(server, until, call) -> None:
    async def ask() -> None:
        with suppress(httpx2.HTTPError):
            await call()

    asking = asyncio.create_task(ask())
    await until()
    server.kill()
    await asking


async def let_leases_end(settings) -> None:
    """As if the time of the killed process's lease had passed."""
    async with database_of(settings) as database, database.transaction() as session:
        await session.execute(update(LoginExchange).values(lease_until=LoginExchange.created_at))


async def test_killed_after_the_exchange_another_server_goes_on(settings, sandbox):
    handed = sandbox.state.mini_apps.log_in("man")
    async with running(pausing_at(settings, "login_exchanged"), sandbox) as (server, bff):

        async def at_the_step() -> None:
            await server.says('"step": "login_exchanged"')

        await lose_the_server(server, at_the_step, lambda: bff.post_code(handed.authorization_code))
    # While the lease lasts, nobody knows that its holder is dead.
    hasty = with_toss(settings, call_deadline=timedelta(seconds=1))
    async with running(hasty, sandbox) as (server, bff):
        assert_problem(await bff.post_code(handed.authorization_code), 409, "login_in_progress")
        await let_leases_end(settings)
        answer = await bff.post_code(handed.authorization_code)
        assert answer.status_code == 200, answer.text
    assert sandbox.state.count("login_exchange") == 1
    assert sandbox.state.count("login_me") == 1


@pytest.mark.parametrize(("kind", "still_serves"), [("hold_before", True), ("hold", False)])
async def test_killed_while_the_exchange_is_out(settings, sandbox, kind, still_serves):
    """What the answer would have brought is gone; if Toss took the code, only appLogin() helps."""
    handed = sandbox.state.mini_apps.log_in("man")
    async with running(settings, sandbox) as (server, bff):
        sandbox.state.order_fault("login_exchange", kind)

        async def while_it_is_out() -> None:
            await asyncio.to_thread(sandbox.state.wait_until, lambda state: state.held("login_exchange") == 1)

        await lose_the_server(server, while_it_is_out, lambda: bff.post_code(handed.authorization_code))
    await asyncio.to_thread(sandbox.state.wait_until, lambda state: state.held() == 0)
    await let_leases_end(settings)
    async with running(settings, sandbox) as (server, bff):
        answer = await bff.post_code(handed.authorization_code)
        if still_serves:
            assert answer.status_code == 200, answer.text
        else:
            assert_problem(answer, 401, "login_rejected")
        assert (await bff.log_in()).token


async def reconcile_later(settings, by) -> int:
    clock = TestClock()
    clock.advance(**by)
    async with open_resources(settings, clock=clock) as resources:
        return (await reconcile(resources)).departed.unlinks_finished


async def users_left(settings) -> int:
    async with database_of(settings) as database, database.transaction() as session:
        return await session.scalar(select(func.count()).select_from(User))


@pytest.mark.parametrize("needs_bearer", [True, False], ids=["strict", "lenient"])
@pytest.mark.parametrize("kind", ["hold_before", "hold"])
async def test_killed_while_a_user_leaves(settings, sandbox, kind, needs_bearer):
    """Before Toss has ended the link, and after it, before we have erased: reconcile finishes."""
    sandbox.state.set_switches(unlink_user_needs_bearer=needs_bearer)
    async with running(settings, sandbox) as (server, bff):
        login = await bff.log_in()
        started = (await bff.http.post("/api/v1/cert/requests", headers=login.headers)).json()
        sandbox.state.approve(started["txId"])
        path = f"/api/v1/cert/requests/{started['txId']}/result"
        assert (await bff.http.post(path, headers=login.headers)).status_code == 200
        sandbox.state.order_fault("unlink_token", kind)

        async def while_it_is_out() -> None:
            await asyncio.to_thread(sandbox.state.wait_until, lambda state: state.held("unlink_token") == 1)

        await lose_the_server(server, while_it_is_out, lambda: bff.http.delete("/api/v1/me", headers=login.headers))
    await asyncio.to_thread(sandbox.state.wait_until, lambda state: state.held() == 0)
    assert sandbox.state.mini_apps.is_linked("man") is (kind == "hold_before")
    assert await users_left(settings) == 1
    assert await reconcile_later(settings, {"seconds": 30}) == 0
    assert await reconcile_later(settings, {"minutes": 2}) == 1
    assert not sandbox.state.mini_apps.is_linked("man")
    assert await users_left(settings) == 0
    async with Bff.running(settings, sandbox) as bff:
        assert_problem(await bff.me(login), 401, "session_required")
        answer = await bff.http.post(f"/server{path.removeprefix('/api')}", headers=await bff.server_key())
        assert_problem(answer, 410, "verification_erased")


async def test_a_session_serves_on_every_server_and_ends_on_every_server(production, sandbox):
    async with two(settings_for(production, sandbox), sandbox) as (one, other):
        login = await one.log_in()
        assert (await other.me(login)).json() == login.body["user"]
        assert (await other.http.post("/api/v1/logout", headers=login.headers)).status_code == 204
        assert_problem(await one.me(login), 401, "session_required")
        again = await other.log_in()
        assert (await one.http.delete("/api/v1/me", headers=again.headers)).status_code == 204
        assert_problem(await other.me(again), 401, "session_required")
