"""Our own sessions: how long they live, who ends them, what passes for one and what does not."""

import re
from datetime import datetime, timedelta

import pytest
from sqlalchemy import update

from app.errors import SessionRequired
from app.login.tables import LoginSession, User
from sandbox.personas import personas
from tests.login.store import everything, rows, sessions, users
from tests.login.test_login import with_login
from tests.scenarios import Bff, assert_problem

MAN = personas()["man"]


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def is_alive(bff, login) -> bool:
    answer = await bff.me(login)
    if answer.status_code != 200:
        assert_problem(answer, 401, "session_required")
    return answer.status_code == 200


# --- How long ------------------------------------------------------------------------------------------------


async def test_a_session_that_is_not_used_is_over_after_a_week(bff):
    login = await bff.log_in()
    began = bff.clock()
    assert abs(instant(login.body["expiresAt"]) - began - timedelta(days=7)) < timedelta(minutes=1)
    assert abs(instant(login.body["endsAt"]) - began - timedelta(days=30)) < timedelta(minutes=1)
    bff.clock.advance(days=7, seconds=-30)
    kept, forgotten = await bff.log_in("minor"), login
    assert await is_alive(bff, forgotten)
    bff.clock.advance(days=7, seconds=1)
    assert not await is_alive(bff, forgotten)
    assert not await is_alive(bff, kept)


async def test_a_session_in_use_lives_on_but_not_for_ever(bff):
    login = await bff.log_in()
    for _ in range(9):  # 27 days
        bff.clock.advance(days=3)
        assert await is_alive(bff, login)
    (row,) = await sessions(bff)
    assert row.expires_at == row.ends_at == instant(login.body["endsAt"])
    bff.clock.advance(days=2, hours=23)
    assert await is_alive(bff, login)
    (row,) = await sessions(bff)
    assert row.expires_at == row.ends_at
    bff.clock.advance(hours=2)
    assert not await is_alive(bff, login)


async def test_a_session_ends_exactly_then(bff):
    login = await bff.log_in()
    verify, offset = bff.resources.login.sessions.verify, bff.clock.offset
    stopped = instant(login.body["expiresAt"])
    bff.resources.login.sessions._clock = lambda: stopped
    assert await verify(login.token) is None
    bff.resources.login.sessions._clock = lambda: stopped - timedelta(microseconds=1)
    assert await verify(login.token) is not None
    assert bff.clock.offset == offset


async def test_no_session_serves_a_link_that_is_over(bff):
    login = await bff.log_in()
    async with bff.resources.database.transaction() as transaction:
        await transaction.execute(update(User).values(unlinked_at=bff.clock()))
    assert not await is_alive(bff, login)


async def test_a_session_is_not_written_at_every_request(bff):
    login = await bff.log_in()
    (before,) = await sessions(bff)
    for hours in (1, 2, 5):  # 8 of the 8.4 hours that are a twentieth of a week
        bff.clock.advance(hours=hours)
        assert await is_alive(bff, login)
    (row,) = await sessions(bff)
    assert row.expires_at == before.expires_at
    bff.clock.advance(hours=1)
    assert await is_alive(bff, login)
    (row,) = await sessions(bff)
    assert timedelta(hours=8) < row.expires_at - before.expires_at < timedelta(hours=10)


async def test_an_older_request_does_not_shorten_what_a_newer_one_has_prolonged(bff):
    """Two replicas whose clocks differ, or two requests that overtake each other."""
    login = await bff.log_in()
    service = bff.resources.login.sessions
    now = bff.clock()
    service._clock = lambda: now + timedelta(days=3)
    await service.verify(login.token)
    (row,) = await sessions(bff)
    assert row.expires_at == now + timedelta(days=10)
    service._clock = lambda: now + timedelta(days=1)
    assert await service.verify(login.token) is not None
    (row,) = await sessions(bff)
    assert row.expires_at == now + timedelta(days=10)


async def test_the_operator_sets_both_spans(settings, sandbox):
    short = with_login(settings, session_sliding=timedelta(minutes=10), session_absolute=timedelta(minutes=25))
    async with Bff.running(short, sandbox) as bff:
        login = await bff.log_in()
        for _ in range(2):
            bff.clock.advance(minutes=9)
            assert await is_alive(bff, login)
        bff.clock.advance(minutes=8)
        assert not await is_alive(bff, login)


async def test_sessions_that_are_over_are_cleared_away(bff):
    await bff.log_in()
    bff.clock.advance(days=6)
    kept = await bff.log_in("minor")
    bff.clock.advance(days=1, seconds=1)
    assert (await bff.resources.login.purge()).sessions_ended == 1
    assert [row.session_id for row in await sessions(bff)] == [kept.session_id]
    assert len(await users(bff)) == 2


# --- Whose ---------------------------------------------------------------------------------------------------


async def test_logging_out(bff):
    login, other = await bff.log_in(), await bff.log_in()
    answer = await bff.http.post("/api/v1/logout", headers=login.headers)
    assert (answer.status_code, answer.content) == (204, b"")
    assert not await is_alive(bff, login)
    assert await is_alive(bff, other)
    assert_problem(await bff.http.post("/api/v1/logout", headers=login.headers), 401, "session_required")
    assert [row.session_id for row in await sessions(bff)] == [other.session_id]
    # It is the session that is over, not the link.
    assert bff.sandbox.state.mini_apps.is_linked("man")


async def test_listing_ones_sessions(bff):
    first = await bff.log_in()
    bff.clock.advance(minutes=1)
    second = await bff.log_in()
    await bff.log_in("minor")
    found = (await bff.http.get("/api/v1/me/sessions", headers=first.headers)).json()["sessions"]
    assert [(each["sessionId"], each["isCurrent"]) for each in found] == [
        (second.session_id, False),
        (first.session_id, True),
    ]
    assert set(found[0]) == {"sessionId", "createdAt", "expiresAt", "endsAt", "isCurrent"}
    bff.clock.advance(days=6, hours=23, minutes=59, seconds=30)
    found = (await bff.http.get("/api/v1/me/sessions", headers=second.headers)).json()["sessions"]
    assert [each["sessionId"] for each in found] == [second.session_id]


async def test_ending_one_of_ones_sessions(bff):
    first, second = await bff.log_in(), await bff.log_in()
    answer = await bff.http.delete(f"/api/v1/me/sessions/{second.session_id}", headers=first.headers)
    assert answer.status_code == 204
    assert not await is_alive(bff, second)
    assert await is_alive(bff, first)
    again = await bff.http.delete(f"/api/v1/me/sessions/{second.session_id}", headers=first.headers)
    assert_problem(again, 404, "session_not_found")


async def test_somebody_elses_session_is_not_there(bff):
    mine, theirs = await bff.log_in(), await bff.log_in("minor")
    for session_id in (theirs.session_id, "0" * 36, mine.session_id.replace("-", "0")):
        answer = await bff.http.delete(f"/api/v1/me/sessions/{session_id}", headers=mine.headers)
        assert_problem(answer, 404, "session_not_found")
    assert await is_alive(bff, theirs)
    for nonsense in ("x", "%00", "a" * 5000, mine.session_id.upper()):
        answer = await bff.http.delete(f"/api/v1/me/sessions/{nonsense}", headers=mine.headers)
        assert_problem(answer, 422, "invalid_request")


async def test_an_end_counts_on_every_replica_at_once(settings, sandbox):
    async with Bff.running(settings, sandbox) as one, Bff.running(settings, sandbox) as other:
        logins = [await one.log_in() for _ in range(4)]
        for login in logins:
            assert await is_alive(other, login)
        await one.http.post("/api/v1/logout", headers=logins[0].headers)
        assert not await is_alive(other, logins[0])
        await one.http.delete(f"/api/v1/me/sessions/{logins[1].session_id}", headers=logins[3].headers)
        assert not await is_alive(other, logins[1])
        key = await one.server_key()
        answer = await one.http.delete(f"/server/v1/users/{logins[2].user_id}/sessions", headers=key)
        assert answer.status_code == 204
        for login in logins:
            assert not await is_alive(other, login)
        assert sandbox.state.mini_apps.is_linked("man")


# --- What is stored ------------------------------------------------------------------------------------------


async def test_nothing_is_stored_in_clear(settings, sandbox):
    secrets: list[str] = []
    async with Bff.running(settings, sandbox) as bff:
        tokens = bff.resources.login._tokens
        columns = tokens.columns

        def noting(user, dated):
            secrets.extend([dated.grant.access_token, dated.grant.refresh_token])
            return columns(user, dated)

        tokens.columns = noting
        handed = sandbox.state.mini_apps.log_in("man")
        done = await bff.post_code(handed.authorization_code)
        secrets += [done.json()["sessionToken"], done.json()["sessionToken"].removeprefix("st_")]
        secrets.append(handed.authorization_code)
        # One that stops half way, its tokens waiting.
        half = sandbox.state.mini_apps.log_in("minor").authorization_code
        sandbox.state.order_fault("login_me", "html_502")
        assert (await bff.post_code(half)).status_code == 503
        anonymous = await bff.log_in_anonymously()
        secrets += [half, anonymous.token, sandbox.state.mini_apps.anon_key("man")]
        started = (await bff.http.post("/api/v1/cert/requests")).json()
        secrets.append(started["verificationToken"])
        found = await everything(settings)
    secrets += [MAN.name, MAN.phone, MAN.email, MAN.ci, MAN.birthday, str(sandbox.state.mini_apps.user_key("man"))]
    assert len(secrets) == 15
    assert [secret for secret in secrets if secret in found] == []
    assert sandbox.state.count("login_exchange") == 2
    assert done.json()["user"]["userId"] in found  # it has looked in the right place
    assert "eyJ" not in found


async def test_a_token_is_256_random_bits(bff):
    tokens = {(await bff.log_in()).token for _ in range(5)}
    assert len(tokens) == 5
    for token in tokens:
        assert re.fullmatch(r"st_[A-Za-z0-9_-]{43}", token)
    hashes = {row.token_hash for row in await rows(bff.resources, LoginSession)}
    assert len(hashes) == 5
    assert all(re.fullmatch(r"[0-9a-f]{64}", each) for each in hashes)


# --- What passes for one -------------------------------------------------------------------------------------


def odd_headers(token: str) -> list[list[tuple[str, str]]]:
    return [
        [],
        [("Authorization", "")],
        [("Authorization", "Bearer")],
        [("Authorization", "Bearer ")],
        [("Authorization", token)],
        [("Authorization", f"Basic {token}")],
        [("Authorization", f"Token {token}")],
        [("Authorization", f"Bearer {token}x")],
        [("Authorization", f"Bearer {token[:-1]}")],
        [("Authorization", f"Bearer {token.upper()}")],
        [("Authorization", f"Bearer {token} {token}")],
        [("Authorization", f"Bearer {token},Bearer {token}")],
        [("Authorization", "Bearer st_")],
        [("Authorization", "Bearer st_" + "A" * 43)],
        [("Authorization", "Bearer st_" + "A" * 6000)],
        [("Authorization", "Bearer ' OR 1=1 --")],
        [("Authorization", "Bearer \xff\xfe")],
        [("Authorization", "Bearer null")],
        [("Authorization", f"Bearer {token}"), ("Authorization", f"Bearer {token}")],
        [("Authorization", f"Bearer {token}"), ("Authorization", "Bearer st_other")],
        [("Authorization", "Bearer st_other"), ("Authorization", f"Bearer {token}")],
        [("Cookie", f"sessionToken={token}")],
        [("X-Session-Token", token)],
    ]


@pytest.mark.parametrize("number", range(len(odd_headers("st_"))))
async def test_what_is_no_session(bff, number):
    login = await bff.log_in()
    raw = [(name.encode(), value.encode("latin-1")) for name, value in odd_headers(login.token)[number]]
    for method, path in (
        ("GET", "/api/v1/me"),
        ("POST", "/api/v1/logout"),
        ("DELETE", "/api/v1/me"),
        ("GET", "/api/v1/me/sessions"),
        ("DELETE", f"/api/v1/me/sessions/{login.session_id}"),
    ):
        answer = await bff.http.request(method, path, headers=raw)
        assert_problem(answer, 401, "session_required")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert await is_alive(bff, login)
    assert bff.sandbox.state.mini_apps.is_linked("man")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_scheme_may_be_written_in_any_case(bff, scheme):
    login = await bff.log_in()
    answer = await bff.http.get("/api/v1/me", headers={"Authorization": f"{scheme} {login.token}"})
    assert answer.status_code == 200


async def test_a_token_in_the_query_is_no_session(bff):
    login = await bff.log_in()
    for name in ("token", "sessionToken", "access_token", "authorization"):
        assert_problem(await bff.http.get(f"/api/v1/me?{name}={login.token}"), 401, "session_required")


async def test_one_kind_of_token_does_not_serve_as_another(bff):
    login, verification = await bff.log_in(), await bff.completed()
    key = await bff.server_key()
    for headers in (key, verification.headers):
        assert_problem(await bff.http.get("/api/v1/me", headers=headers), 401, "session_required")
        assert_problem(await bff.http.post("/api/v1/cert/requests", headers=headers), 401, "session_required")
    for headers in (login.headers, verification.headers):
        for path in (f"users/{login.user_id}", f"cert/requests/{verification.tx_id}/status"):
            assert_problem(await bff.http.get(f"/server/v1/{path}", headers=headers), 401, "server_key_required")
    path = f"/api/v1/cert/requests/{verification.tx_id}/status"
    for headers in (login.headers, key):
        assert_problem(await bff.http.get(path, headers=headers), 404, "verification_not_found")


async def test_by_what_toss_knows_a_user(bff):
    login, service = await bff.log_in(), bff.resources.login
    member = service.toss_user_of(await service.user(login.user_id))
    assert member.user_key == bff.sandbox.state.mini_apps.user_key("man")
    anonymous = await service.user((await bff.log_in_anonymously()).user_id)
    assert service.toss_user_of(anonymous).anon_key == bff.sandbox.state.mini_apps.anon_key("man")
    assert await service.end_link(await service.user(login.user_id), cause="UNLINK")
    with pytest.raises(SessionRequired):
        service.toss_user_of(await service.user(login.user_id))
