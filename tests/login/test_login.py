"""Logging in: one exchange per code, whoever brings it; nobody is made up."""

from tests.scenarios import assert_problem


async def test_a_login_gives_a_session(bff):
    login = await bff.log_in()
    answer = await bff.me(login)
    assert answer.status_code == 200, answer.text
    assert answer.json() == login.body["user"]


async def test_a_code_serves_once(bff):
    handed = bff.sandbox.state.mini_apps.log_in("man")
    first = await bff.post_code(handed.authorization_code)
    assert first.status_code == 200
    assert_problem(await bff.post_code(handed.authorization_code), 401, "login_rejected")


async def test_leaving(bff):
    login = await bff.log_in()
    answer = await bff.http.delete("/api/v1/me", headers=login.headers)
    assert answer.status_code == 204, answer.text
    assert not bff.sandbox.state.mini_apps.is_linked("man")
    assert_problem(await bff.me(login), 401, "session_required")


async def test_an_anonymous_login(bff):
    login = await bff.log_in_anonymously()
    assert (await bff.me(login)).json()["kind"] == "ANONYMOUS"
