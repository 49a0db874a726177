"""Leaving: at Toss first, then here; whatever is lost on the way is finished later; late notices do no harm."""

import asyncio

import pytest
from sqlalchemy import delete, text, update

from app.departure import NoticeOutcome, Referrer
from app.errors import AppError, StorageUnavailable, UserNotFound
from app.login.tables import LoginSession, User
from app.reconcile import reconcile
from app.toss.errors import TossRejected
from app.toss.governor import Lane
from tests.conftest import settings_for
from tests.login.store import everything, exchanges, row_of, sessions, users
from tests.login.test_login import with_toss
from tests.scenarios import Bff, Verification, assert_problem

PERSONAL = [
    "user_key",
    "profile",
    "ci_hash",
    "access_token",
    "refresh_token",
    "access_expires_at",
    "refresh_expires_at",
]


async def leave(bff, login):
    return await bff.http.delete("/api/v1/me", headers=login.headers)


async def verified(bff, login) -> Verification:
    """A verification by Toss Cert that belongs to this session, its result fetched."""
    started = (await bff.http.post("/api/v1/cert/requests", headers=login.headers)).json()
    bff.sandbox.state.approve(started["txId"])
    verification = Verification(started["txId"], login.token, started)
    assert (await bff.result(verification)).status_code == 200
    return verification


async def verification_row(bff, verification):
    from app.cert.tables import Verification as Row  # noqa: PLC0415 - the name is taken by the scenario

    async with bff.resources.database.transaction() as session:
        return await session.get(Row, verification.tx_id)


def linked(bff, user="man") -> bool:
    return bff.sandbox.state.mini_apps.is_linked(user)


async def notice(bff, referrer=Referrer.UNLINK, user="man") -> str:
    key = next(link["userKey"] for link in bff.sandbox.state.mini_apps.snapshot()["links"] if link["user"] == user)
    return await bff.resources.departure.by_notice(key, referrer)


async def drop_tokens(bff, login) -> None:
    """As after 14 days without a login."""
    user = await row_of(bff, login)
    await bff.resources.login._tokens.refuse(user)
    async with bff.resources.database.transaction() as session:
        user = await session.get(type(user), login.user_id)
        user.refresh_token = None


# --- By request ----------------------------------------------------------------------------------------------


async def test_leaving(bff):
    login, other = await bff.log_in(), await bff.log_in()
    verification = await verified(bff, login)
    answer = await leave(bff, login)
    assert answer.status_code == 204, answer.text
    assert not linked(bff)
    for each in (login, other):
        assert_problem(await bff.me(each), 401, "session_required")
    assert await users(bff) == []
    assert await sessions(bff) == []
    row = await verification_row(bff, verification)
    assert (row.result_state, row.identity, row.answer, row.ci_hash, row.di_hash) == (
        "ERASED",
        None,
        None,
        None,
        None,
    )
    assert row.signature is not None
    assert_problem(await bff.result(verification), 401, "session_required")


async def test_nothing_of_a_user_who_has_left_is_in_the_database(settings, sandbox):
    async with Bff.running(settings, sandbox) as bff:
        login = await bff.log_in()
        user = await row_of(bff, login)
        kept = [
            user.user_id,
            user.key_hash,
            user.ci_hash,
            user.profile.text,
            user.access_token.text,
            user.user_key.text,
        ]
        before = await everything(settings)
        assert [text for text in kept if text not in before] == []
        assert (await leave(bff, login)).status_code == 204
        found = await everything(settings)
        # The exchange of the code says for twenty minutes whose it was, and the event that tells the partner of it
        # for as long as events are kept; the id means nothing any more.
        assert [text for text in kept[1:] if text in found] == []
        bff.clock.advance(days=91)
        await reconcile(bff.resources)
        assert login.user_id not in await everything(settings)


async def test_only_the_one_who_leaves_is_erased(bff):
    man, minor = await bff.log_in(), await bff.log_in("minor")
    theirs = await verified(bff, minor)
    await leave(bff, man)
    assert linked(bff, "minor")
    assert (await bff.me(minor)).status_code == 200
    assert (await verification_row(bff, theirs)).identity is not None


async def test_the_partner_ends_a_link(bff):
    login = await bff.log_in()
    key = await bff.server_key()
    answer = await bff.http.delete(f"/server/v1/users/{login.user_id}", headers=key)
    assert answer.status_code == 204, answer.text
    assert not linked(bff)
    assert await users(bff) == []
    again = await bff.http.delete(f"/server/v1/users/{login.user_id}", headers=key)
    assert_problem(again, 404, "user_not_found")


async def test_who_comes_back_is_somebody_new(bff):
    login = await bff.log_in()
    await leave(bff, login)
    assert (await bff.log_in()).user_id != login.user_id


async def test_a_user_whose_link_is_over_already_leaves_without_toss(bff):
    login = await bff.log_in()
    bff.sandbox.state.unlink_by_user("man")
    assert await notice(bff) == NoticeOutcome.ENDED
    before = bff.sandbox.state.count()
    await bff.resources.departure.by_request(login.user_id)
    assert bff.sandbox.state.count() == before
    assert await users(bff) == []


@pytest.mark.parametrize("is_success", [True, False])
@pytest.mark.parametrize("needs_bearer", [True, False])
async def test_a_user_who_has_unlinked_at_toss_leaves_before_the_notice_comes(bff, is_success, needs_bearer):
    """The token is dead because of the unlink. If Toss wants one to say so, only its notice can tell."""
    bff.sandbox.state.set_switches(unlink_unknown_is_success=is_success, unlink_user_needs_bearer=needs_bearer)
    login = await bff.log_in()
    bff.sandbox.state.unlink_by_user("man")
    answer = await leave(bff, login)
    if needs_bearer:
        assert_problem(answer, 409, "unlink_needs_login")
        assert await notice(bff, Referrer.WITHDRAWAL_TOSS) == NoticeOutcome.ERASED
    else:
        assert answer.status_code == 204, answer.text
    assert await users(bff) == []


async def test_with_dead_tokens_the_user_key_serves(bff):
    login = await bff.log_in()
    bff.sandbox.state.mini_apps.revoke_tokens()
    assert (await leave(bff, login)).status_code == 204
    assert not linked(bff)
    assert (bff.sandbox.state.count("unlink_token"), bff.sandbox.state.count("unlink_user")) == (1, 1)


async def test_with_a_dead_token_that_is_minded_the_user_key_serves_alone(bff):
    login = await bff.log_in()
    for call in ("unlink_token", "unlink_user"):
        bff.sandbox.state.order_fault(call, "token_rejected")
    assert (await leave(bff, login)).status_code == 204
    assert not linked(bff)
    assert (bff.sandbox.state.count("unlink_token"), bff.sandbox.state.count("unlink_user")) == (1, 2)


async def test_without_any_token_the_user_key_serves(bff):
    login = await bff.log_in()
    await drop_tokens(bff, login)
    assert (await leave(bff, login)).status_code == 204
    assert not linked(bff)
    assert (bff.sandbox.state.count("unlink_token"), bff.sandbox.state.count("unlink_user")) == (0, 1)


async def test_an_old_token_is_refreshed_first(bff):
    bff.sandbox.state.set_switches(unlink_user_needs_bearer=True)
    login = await bff.log_in()
    for clock in (bff.clock, bff.sandbox.state.clock):
        clock.advance(seconds=3600)
    assert (await leave(bff, login)).status_code == 204
    assert not linked(bff)
    assert bff.sandbox.state.count("login_refresh") == 1


async def test_if_toss_wants_a_token_and_there_is_none_the_user_has_to_log_in(bff):
    bff.sandbox.state.set_switches(unlink_user_needs_bearer=True)
    login = await bff.log_in()
    await drop_tokens(bff, login)
    for _ in range(2):
        problem = assert_problem(await leave(bff, login), 409, "unlink_needs_login")
        assert problem["retryable"] is False
    assert linked(bff)
    user = await row_of(bff, login)
    assert (user.unlink_sent_at, user.unlink_wanted_at is not None) == (None, True)
    # Neither does reconcile make it up: the link is alive.
    bff.clock.advance(minutes=2)
    assert (await reconcile(bff.resources)).departed.unlinks_finished == 0
    assert linked(bff)
    fresh = await bff.log_in()
    assert (await row_of(bff, fresh)).unlink_wanted_at is None
    assert (await leave(bff, fresh)).status_code == 204
    assert not linked(bff)


# order, the answer, whether the link is over at Toss
UNLINK_FAULTS = [
    ({"kind": "reset_before"}, 504, "upstream_timeout", False),
    ({"kind": "reset_after"}, 504, "upstream_timeout", True),
    ({"kind": "fail", "http_status": 500}, 503, "upstream_unavailable", False),
    ({"kind": "fail_200", "after_effect": True}, 503, "upstream_unavailable", True),
    ({"kind": "fail_200", "result_type": "HTTP_TIMEOUT"}, 503, "upstream_unavailable", False),
    ({"kind": "fail_200", "result_type": "NETWORK_ERROR", "after_effect": True}, 503, "upstream_unavailable", True),
    ({"kind": "fail_200", "code": "SOMETHING_NEW"}, 502, "upstream_refused", False),
    ({"kind": "fail_200", "code": "4034"}, 503, "toss_not_configured", False),
    ({"kind": "html_502"}, 503, "upstream_unavailable", False),
    ({"kind": "html_502", "after_effect": True}, 503, "upstream_unavailable", True),
    ({"kind": "truncated_json"}, 503, "upstream_unavailable", True),
    ({"kind": "big_body"}, 502, "upstream_invalid", True),
    ({"kind": "missing_field", "field": "resultType"}, 502, "upstream_invalid", True),
    ({"kind": "wrong_type", "field": "resultType"}, 502, "upstream_invalid", True),
    ({"kind": "oauth_error", "error": "server_error", "http_status": 500}, 502, "upstream_invalid", False),
]


def _named(case):
    return "-".join(str(value) for value in case[0].values())


@pytest.mark.parametrize(
    ("call", "needs_bearer"), [("unlink_token", True), ("unlink_token", False), ("unlink_user", False)]
)
@pytest.mark.parametrize("case", UNLINK_FAULTS, ids=_named)
async def test_an_unlink_that_fails_is_finished_later(bff, call, case, needs_bearer):
    order, status, code, has_ended = case
    bff.sandbox.state.set_switches(unlink_user_needs_bearer=needs_bearer)
    login = await bff.log_in()
    verification = await verified(bff, login)
    if call == "unlink_user":
        await drop_tokens(bff, login)
    bff.sandbox.state.order_fault(call, **order)
    problem = await leave(bff, login)
    if code == "upstream_invalid" and problem.json()["code"] == "upstream_unavailable":
        code, status = "upstream_unavailable", 503
    assert_problem(problem, status, code)
    assert linked(bff) is not has_ended
    # Nothing is lost until Toss has confirmed.
    user = await row_of(bff, login)
    assert user.unlink_wanted_at is not None
    assert user.profile is not None
    assert (await bff.me(login)).status_code == 200
    assert (await verification_row(bff, verification)).identity is not None
    # Not right away: an immediate repetition is discouraged.
    asked = bff.sandbox.state.count(call)
    assert (await reconcile(bff.resources)).departed.unlinks_finished == 0
    assert bff.sandbox.state.count(call) == asked
    bff.clock.advance(minutes=2)
    done = await reconcile(bff.resources)
    assert done.departed.unlinks_finished == 1
    assert not linked(bff)
    assert await users(bff) == []
    assert (await verification_row(bff, verification)).identity is None
    assert_problem(await bff.me(login), 401, "session_required")


@pytest.mark.parametrize(
    ("order", "status"),
    [({"kind": "reset_before"}, 504), ({"kind": "fail", "http_status": 500}, 503), ({"kind": "html_502"}, 503)],
)
async def test_a_refresh_that_fails_keeps_the_wish(bff, order, status):
    login = await bff.log_in()
    for clock in (bff.clock, bff.sandbox.state.clock):
        clock.advance(seconds=3600)
    bff.sandbox.state.order_fault("login_refresh", **order)
    assert (await leave(bff, login)).status_code == status
    assert bff.sandbox.state.count("unlink_token") == 0
    bff.clock.advance(minutes=2)
    assert (await reconcile(bff.resources)).departed.unlinks_finished == 1
    assert not linked(bff)


@pytest.mark.parametrize(
    "order", [{"kind": "fail_200", "code": "SOMETHING_NEW"}, {"kind": "reset_before"}], ids=str
)
async def test_an_unlink_that_got_stuck_rests_a_minute_each_time(bff, order):
    login = await bff.log_in()
    bff.sandbox.state.order_fault("unlink_token", **order, times=3)
    assert (await leave(bff, login)).status_code in (502, 504)
    for _ in range(2):
        bff.clock.advance(seconds=61)
        assert (await reconcile(bff.resources)).departed.unlinks_finished == 0
        assert (await reconcile(bff.resources)).departed.unlinks_finished == 0
    assert bff.sandbox.state.count("unlink_token") == 3
    bff.clock.advance(seconds=61)
    assert (await reconcile(bff.resources)).departed.unlinks_finished == 1


async def test_one_who_cannot_leave_does_not_keep_the_others(bff):
    man, minor = await bff.log_in(), await bff.log_in("minor")
    bff.sandbox.state.order_fault("unlink_token", "html_502", times=2)
    for login in (man, minor):
        assert (await leave(bff, login)).status_code == 503
    bff.sandbox.state.order_fault("unlink_token", "html_502")
    bff.clock.advance(minutes=2)
    assert (await reconcile(bff.resources)).departed.unlinks_finished == 1
    assert [linked(bff), linked(bff, "minor")].count(True) == 1
    bff.clock.advance(minutes=2)
    assert (await reconcile(bff.resources)).departed.unlinks_finished == 1


async def test_what_a_person_waits_for_goes_first(bff):
    """The wish itself is interactive; finishing it later is not."""
    lanes = []
    api = bff.resources.login._api
    unlink = api.unlink_by_token

    async def noting(token, *, lane):
        lanes.append(lane)
        return await unlink(token, lane=lane)

    api.unlink_by_token = noting
    login = await bff.log_in()
    bff.sandbox.state.order_fault("unlink_token", "html_502")
    await leave(bff, login)
    bff.clock.advance(minutes=2)
    await reconcile(bff.resources)
    assert lanes == [Lane.INTERACTIVE, Lane.BACKGROUND]


@pytest.mark.parametrize("needs_bearer", [True, False])
async def test_leaving_twice_at_once(bff, needs_bearer):
    bff.sandbox.state.set_switches(unlink_user_needs_bearer=needs_bearer)
    login = await bff.log_in()
    bff.sandbox.state.order_fault("unlink_token", "hold_before", times=2)
    leaving = [asyncio.create_task(leave(bff, login)) for _ in range(2)]
    await asyncio.to_thread(bff.sandbox.state.wait_until, lambda state: state.held() == 2)
    bff.sandbox.state.release()
    statuses = sorted(answer.status_code for answer in await asyncio.gather(*leaving))
    # The second one's token has died of the first one's success; if Toss says no more than that, nor can we.
    assert statuses in ([[204, 204], [204, 409]] if needs_bearer else [[204, 204]])
    assert not linked(bff)
    assert await users(bff) == []


async def test_one_attempt_does_not_forget_what_another_has_sent(bff):
    """If the first one's process dies now, a dead token has to be read as its success."""
    bff.sandbox.state.set_switches(unlink_user_needs_bearer=True)
    login = await bff.log_in()
    bff.sandbox.state.order_fault("unlink_token", "reset_after")
    stale = await row_of(bff, login)
    with pytest.raises(AppError):
        await bff.resources.departure.by_request(login.user_id)
    # A second attempt, which read the row before the first one had sent anything, is turned away.
    bff.sandbox.state.order_fault("login_refresh", "html_502")
    stale.access_expires_at = bff.clock()
    with pytest.raises(AppError):
        await bff.resources.login.unlink_at_toss(stale)
    bff.clock.advance(minutes=2)
    assert (await reconcile(bff.resources)).departed.unlinks_finished == 1
    assert await users(bff) == []


async def test_an_attempt_that_fails_does_not_take_back_what_another_has_sent(bff):
    bff.sandbox.state.set_switches(unlink_user_needs_bearer=True)
    login = await bff.log_in()
    api = bff.resources.login._api
    unlink = api.unlink_by_token

    async def another_comes_through_and_loses_its_answer(_token, *, lane):
        assert lane is Lane.INTERACTIVE
        api.unlink_by_token = unlink
        bff.sandbox.state.order_fault("unlink_token", "reset_after")
        with pytest.raises(AppError):
            await bff.resources.departure.by_request(login.user_id)
        raise TossRejected(http_status=200, error_code="SOMETHING_NEW")

    api.unlink_by_token = another_comes_through_and_loses_its_answer
    assert_problem(await leave(bff, login), 502, "upstream_refused")
    assert not linked(bff)
    bff.clock.advance(minutes=2)
    assert (await reconcile(bff.resources)).departed.unlinks_finished == 1


async def test_the_wish_to_leave_one_link_is_none_to_leave_the_next(bff):
    """Somebody logs in between the look and the note."""
    login = await bff.log_in()
    stale = await row_of(bff, login)
    await bff.log_in()
    await bff.resources.login._note_unlink(stale, unlink_wanted_at=bff.clock(), unlink_sent_at=bff.clock())
    row = await row_of(bff, login)
    assert (row.unlink_wanted_at, row.unlink_sent_at) == (None, None)


async def test_who_is_not_linked_leaves_without_a_client_certificate(settings, sandbox):
    async with Bff.running(settings, sandbox) as bff:
        anonymous, login = await bff.log_in_anonymously(), await bff.log_in()
        sandbox.state.unlink_by_user("man")
        await notice(bff)
    async with Bff.running(with_toss(settings, certificate_folder=None), sandbox) as bff:
        assert (await leave(bff, anonymous)).status_code == 204
        key = await bff.server_key()
        assert (await bff.http.delete(f"/server/v1/users/{login.user_id}", headers=key)).status_code == 204
        assert await users(bff) == []


# --- Who logs in again meanwhile -----------------------------------------------------------------------------


async def test_who_logs_in_after_the_unlink_is_not_erased(bff):
    """Toss has ended the link, and the user has linked again before we erase."""
    login = await bff.log_in()
    bff.sandbox.state.order_fault("unlink_token", "hold")
    leaving = asyncio.create_task(leave(bff, login))
    await asyncio.to_thread(bff.sandbox.state.wait_until, lambda state: state.held("unlink_token") == 1)
    again = await bff.log_in()
    bff.sandbox.state.release()
    assert (await leaving).status_code == 204
    assert linked(bff)
    assert (await bff.me(again)).status_code == 200
    bff.clock.advance(minutes=2)
    await reconcile(bff.resources)
    assert linked(bff)
    assert (await bff.me(again)).status_code == 200


async def test_who_logs_in_before_the_unlink_takes_effect_is_erased(bff):
    """Toss ends the link for every token of this user; nothing may stay here as if it lived."""
    login = await bff.log_in()
    bff.sandbox.state.order_fault("unlink_token", "hold_before")
    leaving = asyncio.create_task(leave(bff, login))
    await asyncio.to_thread(bff.sandbox.state.wait_until, lambda state: state.held("unlink_token") == 1)
    again = await bff.log_in()
    bff.sandbox.state.release()
    assert (await leaving).status_code == 204
    assert not linked(bff)
    assert_problem(await bff.me(again), 401, "session_required")
    assert await users(bff) == []


async def test_a_wish_that_got_stuck_ends_with_the_next_login(bff):
    login = await bff.log_in()
    bff.sandbox.state.order_fault("unlink_token", "reset_before")
    assert (await leave(bff, login)).status_code == 504
    again = await bff.log_in()
    bff.clock.advance(minutes=2)
    assert (await reconcile(bff.resources)).departed.unlinks_finished == 0
    assert linked(bff)
    assert (await bff.me(again)).status_code == 200


# --- By notice -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("referrer", [Referrer.UNLINK, Referrer.WITHDRAWAL_TERMS, "SOMETHING_NEW", ""])
async def test_a_link_that_the_user_has_ended(bff, referrer):
    login = await bff.log_in()
    verification = await verified(bff, login)
    version = (await row_of(bff, login)).link_version
    bff.sandbox.state.unlink_by_user("man")
    assert await notice(bff, referrer) == NoticeOutcome.ENDED
    assert_problem(await bff.me(login), 401, "session_required")
    assert await sessions(bff) == []
    user = await row_of(bff, login)
    assert user.link_version == version + 1
    assert {column: getattr(user, column) for column in PERSONAL} == dict.fromkeys(PERSONAL)
    assert (user.scopes, user.agreed_terms, user.unlinked_at is not None) == ([], [], True)
    # What Toss Cert has verified rests on a consent of its own.
    assert (await verification_row(bff, verification)).identity is not None
    # Duplicates change nothing.
    asked = bff.sandbox.state.count()
    for _ in range(2):
        assert await notice(bff, referrer) == NoticeOutcome.NOT_LINKED
    assert bff.sandbox.state.count() == asked
    assert (await row_of(bff, login)).link_version == user.link_version
    # A returning user is recognised.
    again = await bff.log_in()
    assert again.user_id == login.user_id
    assert (await bff.me(again)).status_code == 200
    assert_problem(await bff.me(login), 401, "session_required")


async def test_a_notice_ends_less_than_the_user_has_asked_for(bff):
    """The wish to be erased, stuck while Toss was away, outlives an unlink in the Toss app."""
    login = await bff.log_in()
    verification = await verified(bff, login)
    bff.sandbox.state.order_fault("unlink_token", "reset_before")
    assert (await leave(bff, login)).status_code == 504
    bff.sandbox.state.unlink_by_user("man")
    assert await notice(bff) == NoticeOutcome.ENDED
    asked = bff.sandbox.state.count()
    bff.clock.advance(minutes=2)
    assert (await reconcile(bff.resources)).departed.unlinks_finished == 1
    assert bff.sandbox.state.count() == asked
    assert await users(bff) == []
    assert (await verification_row(bff, verification)).identity is None


async def test_what_the_partner_sees_of_a_link_that_is_over(bff):
    login, key = await bff.log_in(), await bff.server_key()
    bff.sandbox.state.unlink_by_user("man")
    await notice(bff)
    seen = (await bff.http.get(f"/server/v1/users/{login.user_id}", headers=key)).json()
    assert (seen["userKey"], seen["unlinkedAt"] is not None) == (None, True)
    assert set(seen["profile"].values()) == {None}


async def test_who_leaves_toss_is_forgotten(bff):
    login = await bff.log_in()
    verification = await verified(bff, login)
    key = bff.sandbox.state.mini_apps.user_key("man")
    bff.sandbox.state.unlink_by_user("man", referrer=Referrer.WITHDRAWAL_TOSS)
    assert await bff.resources.departure.by_notice(key, Referrer.WITHDRAWAL_TOSS) == NoticeOutcome.ERASED
    assert await users(bff) == []
    row = await verification_row(bff, verification)
    assert (row.identity, row.ci_hash, row.signature is not None) == (None, None, True)
    assert await bff.resources.departure.by_notice(key, Referrer.WITHDRAWAL_TOSS) == NoticeOutcome.NOT_LINKED
    assert_problem(await bff.me(login), 401, "session_required")


async def test_who_unlinks_first_and_leaves_toss_later_is_forgotten_then(bff):
    login = await bff.log_in()
    verification = await verified(bff, login)
    bff.sandbox.state.unlink_by_user("man")
    assert await notice(bff) == NoticeOutcome.ENDED
    assert await notice(bff, Referrer.WITHDRAWAL_TOSS) == NoticeOutcome.ERASED
    assert await users(bff) == []
    assert (await verification_row(bff, verification)).identity is None


@pytest.mark.parametrize("referrer", list(Referrer))
async def test_a_notice_about_nobody(bff, referrer):
    await bff.log_in("minor")
    for key in (0, -1, 1, 2**63 - 1, 2**70):
        assert await bff.resources.departure.by_notice(key, referrer) == NoticeOutcome.NOT_LINKED
    assert len(await users(bff)) == 1


@pytest.mark.parametrize("referrer", list(Referrer))
async def test_a_notice_that_comes_after_the_user_has_linked_again(bff, referrer):
    first = await bff.log_in()
    bff.sandbox.state.unlink_by_user("man")
    again = await bff.log_in()
    verification = await verified(bff, again)
    before = await row_of(bff, again)
    assert await notice(bff, referrer) == NoticeOutcome.STALE
    after = await row_of(bff, again)
    assert {column: getattr(after, column) for column in PERSONAL} == {
        column: getattr(before, column) for column in PERSONAL
    }
    assert after.link_version == before.link_version
    for login in (first, again):
        assert (await bff.me(login)).status_code == 200
    assert (await verification_row(bff, verification)).identity is not None


AWAY = [
    {"kind": "reset_before", "times": 2},
    {"kind": "fail", "http_status": 500},
    {"kind": "fail_200"},
    {"kind": "fail_200", "code": "SOMETHING_NEW"},
    {"kind": "fail_200", "code": "4050"},
    {"kind": "fail_200", "result_type": "HTTP_TIMEOUT", "times": 2},
    {"kind": "fail_200", "code": "4095", "retry_after_seconds": 300},
    {"kind": "html_502"},
    {"kind": "truncated_json"},
    {"kind": "missing_field"},
    {"kind": "wrong_type"},
]


@pytest.mark.parametrize("referrer", [Referrer.UNLINK, Referrer.WITHDRAWAL_TOSS])
@pytest.mark.parametrize("order", AWAY, ids=lambda order: "-".join(map(str, order.values())))
async def test_while_toss_cannot_be_asked_nothing_is_decided(bff, order, referrer):
    login = await bff.log_in()
    verification = await verified(bff, login)
    before = await row_of(bff, login)
    bff.sandbox.state.order_fault("login_me", **order)
    with pytest.raises(AppError):
        await notice(bff, referrer)
    after = await row_of(bff, login)
    assert {column: getattr(after, column) for column in PERSONAL} == {
        column: getattr(before, column) for column in PERSONAL
    }
    assert (await bff.me(login)).status_code == 200
    assert (await verification_row(bff, verification)).identity is not None


@pytest.mark.parametrize("order", [{"kind": "reset_before"}, {"kind": "html_502"}, {"kind": "fail_200"}])
async def test_while_a_token_cannot_be_refreshed_nothing_is_decided(bff, order):
    login = await bff.log_in()
    for clock in (bff.clock, bff.sandbox.state.clock):
        clock.advance(seconds=3600)
    bff.sandbox.state.order_fault("login_refresh", **order)
    with pytest.raises(AppError):
        await notice(bff)
    assert (await bff.me(login)).status_code == 200
    assert await notice(bff) == NoticeOutcome.STALE


@pytest.mark.parametrize("is_alive", [True, False])
async def test_with_an_access_token_past_its_hour(bff, is_alive):
    await bff.log_in()
    for clock in (bff.clock, bff.sandbox.state.clock):
        clock.advance(seconds=3600)
    if not is_alive:
        bff.sandbox.state.unlink_by_user("man")
    assert await notice(bff) == (NoticeOutcome.STALE if is_alive else NoticeOutcome.ENDED)
    assert bff.sandbox.state.count("login_refresh") == 1


@pytest.mark.parametrize("is_alive", [True, False])
async def test_with_an_access_token_that_toss_has_dropped_early(bff, is_alive):
    """The refresh token decides."""
    await bff.log_in()
    bff.sandbox.state.mini_apps.revoke_tokens()
    if not is_alive:
        bff.sandbox.state.unlink_by_user("man")
    assert await notice(bff) == (NoticeOutcome.STALE if is_alive else NoticeOutcome.ENDED)
    assert bff.sandbox.state.count("login_refresh") == 1


@pytest.mark.parametrize("code", ["USER_KEY_NOT_FOUND", "USER_NOT_FOUND"])
async def test_toss_names_no_such_user(bff, code):
    login = await bff.log_in()
    bff.sandbox.state.order_fault("login_me", "fail_200", code=code)
    assert await notice(bff) == NoticeOutcome.ENDED
    assert bff.sandbox.state.count("login_refresh") == 0
    row = await row_of(bff, login)
    assert {column: getattr(row, column) for column in PERSONAL} == dict.fromkeys(PERSONAL)


async def test_with_nothing_alive_the_notice_is_believed(bff):
    await bff.log_in()
    bff.clock.advance(days=15)
    bff.sandbox.state.clock.advance(15 * 86400)
    asked = bff.sandbox.state.count()
    assert await notice(bff) == NoticeOutcome.ENDED
    assert bff.sandbox.state.count() == asked


async def test_the_questions_for_a_notice_go_behind_those_of_people(bff):
    await bff.log_in()
    lanes, api = [], bff.resources.login._api
    me = api.me

    async def noting(token, *, lane):
        lanes.append(lane)
        return await me(token, lane=lane)

    api.me = noting
    await notice(bff)
    assert lanes == [Lane.BACKGROUND]


@pytest.mark.parametrize("referrer", list(Referrer))
async def test_a_login_between_the_question_and_the_end(bff, referrer):
    """What was found out about the old link is not done to the new one."""
    old = await bff.log_in()
    bff.sandbox.state.unlink_by_user("man")
    login, found = bff.resources.login, []
    ask = login.is_link_alive

    async def then_link_again(user):
        is_alive = await ask(user)
        if not found:
            again = await bff.log_in()
            found.append((again, await verified(bff, again)))
        return is_alive

    login.is_link_alive = then_link_again
    assert await notice(bff, referrer) == NoticeOutcome.STALE
    ((again, verification),) = found
    assert (await bff.me(again)).status_code == 200
    assert (await row_of(bff, old)).profile is not None
    assert (await verification_row(bff, verification)).identity is not None


async def test_who_links_again_and_again_is_looked_at_later(bff):
    await bff.log_in()
    bff.sandbox.state.unlink_by_user("man")
    login = bff.resources.login

    async def then_link_again(_user):
        await bff.log_in()
        return False

    login.is_link_alive = then_link_again
    with pytest.raises(StorageUnavailable):
        await notice(bff)
    assert len(await users(bff)) == 1


async def test_a_login_while_a_token_is_refreshed_for_a_notice(bff):
    """The question is about the old link; the new one is looked at afresh."""
    await bff.log_in()
    for clock in (bff.clock, bff.sandbox.state.clock):
        clock.advance(seconds=3600)
    bff.sandbox.state.order_fault("login_refresh", "hold")
    deciding = asyncio.create_task(notice(bff))
    await asyncio.to_thread(bff.sandbox.state.wait_until, lambda state: state.held("login_refresh") == 1)
    again = await bff.log_in()
    bff.sandbox.state.release()
    assert await deciding == NoticeOutcome.STALE
    assert (await bff.me(again)).status_code == 200


async def test_an_erasure_that_dies_half_way_is_done_by_the_next_notice(bff):
    """WITHDRAWAL_TOSS: the row is what is found again."""
    login = await bff.log_in()
    verification = await verified(bff, login)
    bff.sandbox.state.unlink_by_user("man")
    cert = bff.resources.cert
    erase_of = cert.erase_of

    async def dying(_user_id):
        cert.erase_of = erase_of
        raise StorageUnavailable

    cert.erase_of = dying
    with pytest.raises(StorageUnavailable):
        await notice(bff, Referrer.WITHDRAWAL_TOSS)
    assert_problem(await bff.me(login), 401, "session_required")
    assert await notice(bff, Referrer.WITHDRAWAL_TOSS) == NoticeOutcome.ERASED
    assert await users(bff) == []
    assert (await verification_row(bff, verification)).identity is None


# --- By time -------------------------------------------------------------------------------------------------


async def test_who_has_unlinked_is_forgotten_after_thirty_days(bff):
    login = await bff.log_in()
    verification = await verified(bff, login)
    bff.sandbox.state.unlink_by_user("man")
    await notice(bff)
    bff.clock.advance(days=29)
    assert (await bff.resources.departure.reconcile()).users_erased == 0
    bff.clock.advance(days=2)
    assert (await bff.resources.departure.reconcile()).users_erased == 1
    assert await users(bff) == []
    assert (await verification_row(bff, verification)).identity is None


async def test_who_does_not_log_in_for_a_year_is_forgotten(bff):
    await bff.log_in()
    minor = await bff.log_in("minor")
    bff.clock.advance(days=364)
    assert (await bff.resources.departure.reconcile()).users_erased == 0
    assert (await bff.log_in()).user_id
    bff.clock.advance(days=2)
    assert (await bff.resources.departure.reconcile()).users_erased == 1
    assert await row_of(bff, minor) is None
    assert len(await users(bff)) == 1


async def test_nobody_is_there_to_leave(bff):
    with pytest.raises(UserNotFound):
        await bff.resources.departure.by_request("00000000-0000-0000-0000-000000000000")


async def test_a_session_does_not_begin_while_its_link_ends(production, sandbox):
    """The second of a double tap is answered from the first, just when a notice ends the link."""
    async with Bff.running(settings_for(production, sandbox), sandbox) as bff:
        login = await bff.log_in()
        (exchange,) = await exchanges(bff)
        async with bff.resources.database.transaction() as ending:
            await ending.execute(update(User).values(unlinked_at=bff.clock()))
            answering = asyncio.create_task(bff.resources.login._answered_from(exchange))
            await until_done_or_locked(answering, ending)
            await ending.execute(delete(LoginSession))
        with pytest.raises(AppError):
            await answering
        assert await sessions(bff) == []
        assert_problem(await bff.me(login), 401, "session_required")


async def until_done_or_locked(task, session) -> None:
    asked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with asyncio.timeout(10):
        while True:
            if task.done() or await session.scalar(text(asked)) > 0:
                return
            await asyncio.sleep(0.02)  # the condition is the database's
