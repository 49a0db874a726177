"""The login-unlink callback: authenticated, recorded, then decided by asking Toss (14.1, decision 0015)."""

import asyncio
import json
import logging
from pathlib import Path

import pytest
from sqlalchemy import func, select

from app.callbacks.tables import NoticeState
from app.login.tables import LoginSession, User
from app.toss.errors import NotSent
from sandbox.callbacks import AuthEncoding
from tests.callbacks.conftest import with_callbacks
from tests.callbacks.toss import at_rest, content, notices
from tests.conftest import UNLINK_AUTH, settings_for
from tests.scenarios import Bff, assert_problem

PATH = "/callbacks/toss/login-unlink"
AUTHENTIC = {"Authorization": f"Basic {UNLINK_AUTH}"}


async def count(bff, table) -> int:
    async with bff.resources.database.transaction() as session:
        return await session.scalar(select(func.count()).select_from(table))


def user_key(bff, user="man") -> int:
    return bff.sandbox.state.mini_apps.user_key(user)


async def unlink(bff, user="man", referrer="UNLINK") -> None:
    """The user does it in the Toss app; Toss has not called back yet."""
    bff.sandbox.state.mini_apps.disconnect(user, referrer=referrer)


async def called(bff, key, referrer="UNLINK", **how):
    return await bff.http.post(PATH, json={"userKey": key, "referrer": referrer}, headers=AUTHENTIC, **how)


async def test_an_unlink_ends_sessions_and_erases_what_is_personal(bff):
    login = await bff.log_in()
    key = user_key(bff)
    await unlink(bff)
    answer = await called(bff, key)
    assert (answer.status_code, answer.json()) == (200, {"received": True})
    assert answer.headers["cache-control"] == "no-store"
    assert_problem(await bff.me(login), 401, "session_required")
    (notice,) = await notices(bff)
    assert (notice.state, notice.outcome, notice.deliveries) == (NoticeState.HANDLED, "ENDED", 1)
    user = await bff.resources.login.user(login.user_id)
    assert (user.user_key, user.profile, user.ci_hash, user.access_token, user.refresh_token) == (None,) * 5
    assert (await bff.log_in()).user_id == login.user_id


async def test_who_leaves_toss_is_forgotten(bff):
    login = await bff.log_in()
    key = user_key(bff)
    await unlink(bff, referrer="WITHDRAWAL_TOSS")
    await called(bff, key, "WITHDRAWAL_TOSS")
    assert await count(bff, User) == await count(bff, LoginSession) == 0
    (notice,) = await notices(bff)
    assert (notice.outcome, notice.content, notice.subject_hash) == ("ERASED", None, None)
    assert_problem(await bff.me(login), 401, "session_required")


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("spelling", ["userKey", "user_key"])
@pytest.mark.parametrize("form", [int, str])
@pytest.mark.parametrize("referrer", ["UNLINK", "WITHDRAWAL_TERMS", "WITHDRAWAL_TOSS", "SOMETHING_NEW", None])
async def test_every_form_of_the_call_is_understood(embedded, sandbox, method, spelling, form, referrer):
    async with Bff.running(with_callbacks(settings_for(embedded, sandbox)), sandbox) as bff:
        await bff.log_in()
        fields = {spelling: form(user_key(bff))} | ({"referrer": referrer} if referrer else {})
        await unlink(bff)
        how = {"params": fields} if method == "GET" else {"json": fields}
        answer = await bff.http.request(method, PATH, headers=AUTHENTIC, **how)
        assert answer.status_code == 200, answer.text
        (notice,) = await notices(bff)
        assert notice.outcome == ("ERASED" if referrer == "WITHDRAWAL_TOSS" else "ENDED")
        assert await count(bff, LoginSession) == 0


@pytest.mark.parametrize("encoding", list(AuthEncoding))
async def test_every_encoding_of_the_console_value_is_let_in(bff, encoding):
    headers = {"Authorization": encoding.header(UNLINK_AUTH)}
    answer = await bff.http.post(PATH, json={"userKey": 0, "referrer": "UNLINK"}, headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("header", [None, "", "Basic wrong", f"Basic {UNLINK_AUTH}x"])
async def test_anybody_else_is_turned_away_and_nothing_is_recorded(bff, method, header):
    headers = {} if header is None else {"Authorization": header}
    answer = await bff.http.request(method, PATH, params={"userKey": 1}, headers=headers)
    assert_problem(answer, 401, "callback_unauthorized")
    assert await notices(bff) == []


@pytest.mark.parametrize("path", [PATH, "/callbacks/toss/consent-withdrawal"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_without_a_value_the_callback_does_not_exist(settings, sandbox, path, method):
    none = settings.callbacks.model_copy(update={"login_unlink_auth": None, "consent_withdrawal_auth": None})
    async with Bff.running(settings.model_copy(update={"callbacks": none}), sandbox) as bff:
        for headers in ({}, AUTHENTIC, {"Authorization": "Basic None"}):
            answer = await bff.http.request(method, path, headers=headers)
            assert_problem(answer, 404, "not_found")


async def test_the_console_s_test_is_answered_and_nobody_is_looked_for(bff):
    answer = await bff.http.get(PATH, params={"userKey": "0", "referrer": "UNLINK"}, headers=AUTHENTIC)
    assert answer.status_code == 200
    (notice,) = await notices(bff)
    assert (notice.state, notice.outcome) == (NoticeState.HANDLED, "CONSOLE_TEST")


async def test_somebody_unknown_is_no_error(bff):
    assert (await called(bff, 987654321)).status_code == 200
    (notice,) = await notices(bff)
    assert notice.outcome == "NOT_LINKED"
    assert await count(bff, User) == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"man"',
        b"{}",
        b'{"userKey": null}',
        b'{"userKey": true}',
        b'{"userKey": -1}',
        b'{"userKey": 1.5}',
        b'{"userKey": "12a"}',
        b'{"userKey": 9223372036854775808}',
        b'{"userKey": {"a": 1}}',
        b"\xff\xfe\x00",
        b"[" * 8000,
        b'{"userKey": 1, "userKey": 2}',
        b'{"userKey": 1, "user_key": 2}',
        b'{"userKey": ' + b"9" * 5000 + b"}",
    ],
)
async def test_what_cannot_be_read_is_kept_and_refused(bff, body):
    answer = await bff.http.post(PATH, content=body, headers=AUTHENTIC)
    problem = assert_problem(answer, 422, "invalid_request")
    assert "12a" not in json.dumps(problem)
    (notice,) = await notices(bff)
    assert notice.state == NoticeState.UNREADABLE
    kept = await content(bff, notice)
    assert kept["body"].encode() == body or b"\xff" in body


async def test_half_a_letter_in_the_referrer_breaks_nothing(bff):
    body = b'{"userKey": 5, "referrer": "\\ud800"}'
    assert (await bff.http.post(PATH, content=body, headers=AUTHENTIC)).status_code == 200
    (notice,) = await notices(bff)
    headers = await bff.server_key()
    assert (await bff.http.get(f"/server/v1/notices/{notice.notice_id}", headers=headers)).status_code == 200


async def test_a_late_notice_does_not_end_a_newer_link(bff):
    first = await bff.log_in()
    key = user_key(bff)
    await unlink(bff)
    second = await bff.log_in()
    assert (await called(bff, key)).status_code == 200
    (notice,) = await notices(bff)
    assert notice.outcome == "STALE"
    assert (await bff.me(second)).status_code == 200
    assert second.user_id == first.user_id


async def test_fifty_deliveries_at_once_are_one_notice_or_change_nothing(bff):
    login = await bff.log_in()
    key = user_key(bff)
    await unlink(bff)
    answers = await asyncio.gather(*(called(bff, key) for _ in range(50)))
    assert {answer.status_code for answer in answers} == {200}
    await at_rest(bff)
    seen = await notices(bff)
    assert sum(notice.deliveries for notice in seen) == 50
    assert {notice.state for notice in seen} == {NoticeState.HANDLED}
    assert [notice.outcome for notice in seen].count("ENDED") == 1
    assert_problem(await bff.me(login), 401, "session_required")
    back = await bff.log_in()
    await called(bff, key)
    assert (await bff.me(back)).status_code == 200


async def test_while_toss_is_away_the_notice_waits_and_reconcile_handles_it(bff):
    login = await bff.log_in()
    key = user_key(bff)
    await unlink(bff)
    bff.sandbox.state.order_fault("login_me", "html_502")
    assert (await called(bff, key)).status_code == 200
    (notice,) = await notices(bff)
    assert (notice.state, notice.attempts) == (NoticeState.OPEN, 1)
    assert (await bff.me(login)).status_code == 200
    assert (await bff.resources.inbox.reconcile()).handled == 0  # not yet
    bff.clock.advance(seconds=31)
    done = await bff.resources.inbox.reconcile()
    assert (done.handled, done.left_open) == (1, 0)
    assert_problem(await bff.me(login), 401, "session_required")


async def test_a_notice_that_overtakes_our_own_commit_is_handled_again(bff):
    """Toss unlinks and calls back after it has named the user, and before we have stored them."""
    api = bff.resources.login._api
    me, key = api.me, user_key(bff)

    class Overtaken:
        def __getattr__(self, name):
            return getattr(api, name)

        async def me(self, *given, **how):
            member = await me(*given, **how)
            if not await notices(bff):
                await unlink(bff)
                assert (await called(bff, key)).status_code == 200
            return member

    bff.resources.login._api = Overtaken()
    handed = bff.sandbox.state.mini_apps.log_in("man")
    assert_problem(await bff.post_code(handed.authorization_code), 401, "login_rejected")
    assert await count(bff, LoginSession) == 0
    (notice,) = await notices(bff)
    assert (notice.state, notice.outcome) == (NoticeState.HANDLED, "NOT_LINKED")  # as it was then


async def test_a_login_soon_after_an_unlink_does_not_fail_because_toss_cannot_be_asked_again(bff):
    """What the notice said is decided later; the code is spent, and the session must not be lost with it."""
    await bff.log_in()
    key = user_key(bff)
    await unlink(bff)
    await called(bff, key)
    api = bff.resources.login._api
    calls = []

    class Second:
        def __getattr__(self, name):
            return getattr(api, name)

        async def me(self, *given, **how):
            calls.append(given)
            if len(calls) > 1:
                raise NotSent("away")
            return await api.me(*given, **how)

    bff.resources.login._api = Second()
    login = await bff.log_in()
    assert (await bff.me(login)).status_code == 200
    assert [notice.state for notice in await notices(bff)] == [NoticeState.HANDLED, NoticeState.OPEN]
    bff.resources.login._api = api
    assert (await bff.resources.inbox.reconcile()).handled == 1
    assert [notice.outcome for notice in await notices(bff)] == ["ENDED", "STALE"]
    assert (await bff.me(login)).status_code == 200


async def test_the_other_callback_keeps_what_comes_for_inspection(bff):
    headers = {"Authorization": "Bearer toss-tells:W4n6cR3jY8hB2dL5"}
    path = "/callbacks/toss/consent-withdrawal"
    assert (await bff.http.post(path, content=b"who knows \xff", headers=headers)).status_code == 200
    assert (await bff.http.get(path, params={"a": "b"}, headers=headers)).status_code == 200
    assert_problem(await bff.http.post(path, headers=AUTHENTIC), 401, "callback_unauthorized")
    one, two = await notices(bff)
    assert {one.state, two.state} == {NoticeState.KEPT}
    assert (await content(bff, one))["body"] == "who knows \\xff"
    assert (await content(bff, two))["query"] == "a=b"


async def test_nothing_of_it_is_in_the_log_or_in_clear_in_the_database(embedded, sandbox, caplog):
    caplog.set_level(logging.DEBUG)
    async with Bff.running(with_callbacks(settings_for(embedded, sandbox)), sandbox) as bff:
        await called(bff, 733455667788, "WITHDRAWAL_TERMS")
        await bff.http.get(PATH, params={"userKey": 733455667788}, headers=AUTHENTIC)
        await bff.http.post(PATH, content=b'{"userKey": "733455667788x"}', headers=AUTHENTIC)
    assert "733455667788" not in caplog.text
    path = Path(embedded.database_url.removeprefix("sqlite+aiosqlite:///"))
    assert b"733455667788" not in await asyncio.to_thread(path.read_bytes)
