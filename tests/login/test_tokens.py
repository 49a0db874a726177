"""A user's tokens at Toss: one refresh at a time on all replicas, whatever Toss makes of the old one."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import update

from app.departure import NoticeOutcome
from app.errors import AppError
from app.login.tables import User
from app.toss.errors import NotSent, OutcomeUnknown
from app.toss.governor import Lane
from tests.login.store import row_of
from tests.login.test_leaving import notice
from tests.scenarios import Bff

ROTATIONS = ["rotate", "overlap", "keep"]


def advance(bff, **by):
    bff.clock.advance(**by)
    bff.sandbox.state.clock.advance(timedelta(**by).total_seconds())


async def token_of(bff, login, lane=Lane.INTERACTIVE):
    return await bff.resources.login._tokens.access_token(await row_of(bff, login), lane=lane)


async def serves(bff, token, user="man") -> bool:
    return (await bff.resources.login._api.me(token)).user_key == bff.sandbox.state.mini_apps.user_key(user)


async def test_a_token_in_its_hour_is_used_as_it_is(bff):
    login = await bff.log_in()
    advance(bff, seconds=3599 - 60 - 5)
    assert await serves(bff, await token_of(bff, login))
    assert bff.sandbox.state.count("login_refresh") == 0
    advance(bff, seconds=6)
    assert await serves(bff, await token_of(bff, login))
    assert bff.sandbox.state.count("login_refresh") == 1
    assert await serves(bff, await token_of(bff, login))
    assert bff.sandbox.state.count("login_refresh") == 1


async def test_the_life_of_a_token_counts_from_when_it_was_asked_for(bff):
    """Toss began to count before its answer arrived."""
    bff.sandbox.state.order_fault("login_exchange", "hold")
    handed = bff.sandbox.state.mini_apps.log_in("man")
    asked_by = bff.clock()
    post = asyncio.create_task(bff.post_code(handed.authorization_code))
    await asyncio.to_thread(bff.sandbox.state.wait_until, lambda state: state.held() == 1)
    bff.clock.advance(seconds=19)
    bff.sandbox.state.release()
    assert (await post).status_code == 200
    async with bff.resources.database.transaction() as session:
        user = (await session.execute(User.__table__.select())).one()
    assert user.access_expires_at - asked_by < timedelta(seconds=3599 + 5)
    assert user.refresh_expires_at - asked_by < timedelta(days=14, seconds=5)


@pytest.mark.parametrize("rotation", ROTATIONS)
async def test_tokens_can_be_refreshed_again_and_again(bff, rotation):
    bff.sandbox.state.set_switches(refresh_rotation=rotation)
    login = await bff.log_in()
    for refreshes in range(1, 5):
        advance(bff, hours=2)
        assert await serves(bff, await token_of(bff, login))
        assert bff.sandbox.state.count("login_refresh") == refreshes
    row = await row_of(bff, login)
    assert (row.refresh_lease_id, row.refresh_lease_until) == (None, None)


@pytest.mark.parametrize("rotation", ROTATIONS)
async def test_twenty_callers_on_two_replicas_refresh_once(settings, sandbox, rotation):
    sandbox.state.set_switches(refresh_rotation=rotation)
    async with Bff.running(settings, sandbox) as one, Bff.running(settings, sandbox) as other:
        login = await one.log_in()
        advance(one, hours=2)
        other.clock.advance(hours=2)
        row = await row_of(one, login)
        sandbox.state.order_fault("login_refresh", "hold")
        asking = [
            asyncio.create_task(bff.resources.login._tokens.access_token(row, lane=Lane.INTERACTIVE))
            for bff in [one, other] * 10
        ]
        await asyncio.to_thread(sandbox.state.wait_until, lambda state: state.held("login_refresh") == 1)
        sandbox.state.release()
        tokens = set(await asyncio.gather(*asking))
        assert len(tokens) == 1
        assert await serves(one, tokens.pop())
        assert sandbox.state.count("login_refresh") == 1
        assert sandbox.state.max_in_flight("login_refresh") == 1


@pytest.mark.parametrize("is_dead", [False, True])
async def test_a_login_during_a_refresh_wins(bff, is_dead):
    """The refreshed tokens are of the older login; so is the news that they are dead."""
    login = await bff.log_in()
    advance(bff, hours=2)
    bff.sandbox.state.order_fault("login_refresh", "hold")
    if is_dead:
        bff.sandbox.state.order_fault("login_refresh", "fail_200", code="4010", after_effect=True)
    asking = asyncio.create_task(token_of(bff, login))
    await asyncio.to_thread(bff.sandbox.state.wait_until, lambda state: state.held("login_refresh") == 1)
    again = await bff.log_in()
    newest = await row_of(bff, again)
    bff.sandbox.state.release()
    await asking
    row = await row_of(bff, again)
    assert (row.access_token, row.refresh_token) == (newest.access_token, newest.refresh_token)
    assert (row.access_expires_at, row.refresh_lease_id) == (newest.access_expires_at, None)


async def test_who_waits_for_a_refresh_of_an_older_link_gets_nothing(settings, sandbox):
    """The token would be of another login than the one that was asked about."""
    async with Bff.running(settings, sandbox) as bff, Bff.running(settings, sandbox) as other:
        login = await bff.log_in()
        advance(bff, hours=2)
        other.clock.advance(hours=2)
        row = await row_of(bff, login)
        sandbox.state.order_fault("login_refresh", "hold")
        first = asyncio.create_task(token_of(bff, login))
        await asyncio.to_thread(sandbox.state.wait_until, lambda state: state.held("login_refresh") == 1)
        second = asyncio.create_task(other.resources.login._tokens.access_token(row, lane=Lane.INTERACTIVE))
        await bff.log_in()
        assert await second is None
        sandbox.state.release()
        await first


@pytest.mark.parametrize(
    "switches",
    [
        {"refresh_refusal_code": "4010"},
        {"refresh_refusal_code": "SOMETHING_NEW"},
        {"refresh_refusal_code": None},
        {"refresh_refusal_code": None, "invalid_grant_status": 200},
        {"refresh_refusal_code": None, "invalid_grant_status": 400},
        {"refresh_refusal_code": None, "invalid_grant_status": 401},
    ],
    ids=str,
)
async def test_a_dead_refresh_token_is_forgotten(bff, switches):
    bff.sandbox.state.set_switches(**switches)
    login = await bff.log_in()
    bff.sandbox.state.unlink_by_user("man")
    advance(bff, hours=2)
    for _ in range(2):
        assert await token_of(bff, login) is None
    assert bff.sandbox.state.count("login_refresh") == 1
    row = await row_of(bff, login)
    assert (row.access_token, row.refresh_token, row.refresh_lease_id) == (None, None, None)


async def test_a_refresh_token_past_its_fortnight_is_not_shown(bff):
    login = await bff.log_in()
    advance(bff, days=14, seconds=1)
    assert await token_of(bff, login) is None
    assert bff.sandbox.state.count("login_refresh") == 0


@pytest.mark.parametrize(
    ("order", "error"),
    [
        ({"kind": "reset_before"}, OutcomeUnknown),
        ({"kind": "fail", "http_status": 500}, Exception),
        ({"kind": "fail_200"}, Exception),
        ({"kind": "fail_200", "code": "4050"}, Exception),
        ({"kind": "fail_200", "result_type": "HTTP_TIMEOUT"}, OutcomeUnknown),
        ({"kind": "html_502"}, Exception),
        ({"kind": "fail_200", "code": "X", "http_status": 500, "result_type": "NETWORK_ERROR"}, OutcomeUnknown),
        ({"kind": "fail_200", "code": "4095", "retry_after_seconds": 1}, NotSent),
    ],
    ids=str,
)
async def test_a_refresh_that_fails_keeps_the_tokens_and_gives_back_the_lease(bff, order, error):
    login = await bff.log_in()
    advance(bff, hours=2)
    bff.sandbox.state.order_fault("login_refresh", **order)
    with pytest.raises(error):
        await token_of(bff, login)
    row = await row_of(bff, login)
    assert row.refresh_token is not None
    assert (row.refresh_lease_id, row.refresh_lease_until) == (None, None)
    if error is not NotSent:
        assert await serves(bff, await token_of(bff, login))


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("kind", ["reset_after", "html_502", "truncated_json", "missing_field"])
async def test_the_lost_answer_of_a_refresh(bff, rotation, kind):
    """If the old token has ended with it, only a new login helps; the next attempt finds that out."""
    bff.sandbox.state.set_switches(refresh_rotation=rotation)
    login = await bff.log_in()
    advance(bff, hours=2)
    more = {"after_effect": True} if kind == "html_502" else {}
    bff.sandbox.state.order_fault("login_refresh", kind, **more)
    with pytest.raises(Exception, match=r"\w"):
        await token_of(bff, login)
    token = await token_of(bff, login)
    if rotation == "rotate":
        assert token is None
    else:
        assert await serves(bff, token)
    again = await bff.log_in()
    assert await serves(bff, await token_of(bff, again))


async def test_a_lease_that_a_crash_has_left_is_taken_over(bff):
    login = await bff.log_in()
    advance(bff, hours=2)
    async with bff.resources.database.transaction() as session:
        await session.execute(
            update(User).values(refresh_lease_id="of a dead process", refresh_lease_until=bff.clock())
        )
    assert await serves(bff, await token_of(bff, login))
    row = await row_of(bff, login)
    assert (row.refresh_lease_id, row.refresh_lease_until) == (None, None)


async def test_a_lease_that_is_held_is_respected(bff):
    login = await bff.log_in()
    advance(bff, hours=2)
    async with bff.resources.database.transaction() as session:
        until = bff.clock() + timedelta(seconds=20)
        await session.execute(update(User).values(refresh_lease_id="another's", refresh_lease_until=until))
    asking, looks = asyncio.create_task(token_of(bff, login)), 0
    tokens = bff.resources.login._tokens
    get = tokens._get

    async def counting(user):
        nonlocal looks
        looks += 1
        if looks == 3:
            assert bff.sandbox.state.count("login_refresh") == 0
            bff.clock.advance(seconds=25)
        return await get(user)

    tokens._get = counting
    assert await serves(bff, await asking)
    assert looks >= 3


async def test_an_answer_without_a_new_refresh_token_keeps_the_old_one(bff):
    login = await bff.log_in()
    before = (await row_of(bff, login)).refresh_token
    advance(bff, hours=2)
    bff.sandbox.state.set_switches(refresh_rotation="keep")
    bff.sandbox.state.order_fault("login_refresh", "missing_field", field="refreshToken")
    assert await serves(bff, await token_of(bff, login))
    row = await row_of(bff, login)
    assert row.refresh_token == before
    assert row.access_expires_at > bff.clock() + timedelta(minutes=50)


async def test_tokens_of_an_older_login_do_not_outlive_it(bff):
    login = await bff.log_in()
    bff.sandbox.state.order_fault("login_exchange", "missing_field", field="refreshToken")
    await bff.log_in()
    row = await row_of(bff, login)
    assert (row.refresh_token, row.refresh_expires_at, row.access_token is not None) == (None, None, True)
    advance(bff, hours=2)
    assert await token_of(bff, login) is None
    assert bff.sandbox.state.count("login_refresh") == 0


async def test_what_toss_says_of_an_old_token_is_not_done_to_a_newer_one(bff):
    login = await bff.log_in()
    stale = await row_of(bff, login)
    await bff.log_in()
    assert await bff.resources.login._tokens.refuse(stale) is None
    assert await serves(bff, await token_of(bff, login))
    assert bff.sandbox.state.count("login_refresh") == 0


async def test_a_login_that_ends_the_older_tokens_leaves_the_newest(bff):
    bff.sandbox.state.set_switches(login_ends_older_tokens=True)
    await bff.log_in()
    login = await bff.log_in()
    assert await serves(bff, await token_of(bff, login))
    assert await notice(bff) == NoticeOutcome.STALE


async def test_stored_tokens_that_do_not_open_are_an_error_of_ours(bff):
    login = await bff.log_in()
    async with bff.resources.database.transaction() as session:
        user = await session.get(User, login.user_id)
        user.access_token = user.refresh_token
    with pytest.raises(AppError) as error:
        await token_of(bff, login)
    assert error.value.code == "sealed_data_unreadable"
    answer = await bff.http.delete("/api/v1/me", headers=login.headers)
    assert (answer.status_code, answer.json()["code"]) == (503, "sealed_data_unreadable")


async def test_nothing_shows_a_token(bff):
    login = await bff.log_in()
    row = await row_of(bff, login)
    for each in (row.access_token, row.refresh_token, row.profile, row.user_key):
        assert repr(each) == "Sealed(...)"
    api = bff.resources.login._api
    grant = await api.exchange(bff.sandbox.state.mini_apps.log_in("man").authorization_code, "DEFAULT")
    for text in (repr(grant), str(grant), repr(await api.me(grant.access_token))):
        assert grant.access_token not in text
        assert text.endswith("(...)")
