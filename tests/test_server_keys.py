"""Server keys: shown once, stored as a hash, limited by scope, end and revocation."""

import re
from datetime import timedelta

import pytest
from sqlalchemy import text

from app.server_keys import Scope
from tests.scenarios import assert_problem

TX = "/server/v1/cert/requests/no-such-tx"
ROUTES = {
    "status": ("GET", f"{TX}/status", None, Scope.CERT_READ),
    "result": ("POST", f"{TX}/result", None, Scope.CERT_READ),
    "compare": ("POST", f"{TX}/compare", {"birthday": "19930324"}, Scope.CERT_COMPARE),
    "signature": ("GET", f"{TX}/signature", None, Scope.CERT_EVIDENCE),
    "erase": ("DELETE", TX, None, Scope.CERT_ERASE),
}


@pytest.fixture
def keys(bff):
    return bff.resources.server_keys


async def call(bff, route: str, headers: dict | None = None):
    method, path, body, _scope = ROUTES[route]
    return await bff.http.request(method, path, json=body, headers=headers)


async def test_a_key_proves_who_holds_it_and_nothing_else_does(keys):
    issued = await keys.issue(name="주문 서버", scopes=[Scope.CERT_READ, Scope.CERT_ERASE])
    key = await keys.verify(issued.secret)
    assert (key.key_id, key.name, key.scopes) == (issued.key_id, "주문 서버", ["cert:erase", "cert:read"])
    for other in ("", "sk_", issued.secret[:-1], issued.secret + "x", issued.secret.swapcase(), issued.key_id):
        assert await keys.verify(other) is None


async def test_keys_are_long_random_and_recognisable(keys):
    issued = [await keys.issue(name="n", scopes=[]) for _ in range(5)]
    assert len({key.secret for key in issued} | {key.key_id for key in issued}) == 10
    assert all(re.fullmatch(r"sk_[A-Za-z0-9_-]{43}", key.secret) for key in issued)
    assert all(key.secret not in repr(key) for key in issued)


async def test_the_database_holds_a_hash_and_no_key(bff, keys):
    issued = await keys.issue(name="n", scopes=list(Scope))
    async with bff.resources.database.transaction() as session:
        rows = (await session.execute(text("SELECT * FROM server_key"))).all()
    shown = str(rows)
    assert issued.key_id in shown
    assert issued.secret not in shown
    assert issued.secret[3:] not in shown
    (key,) = await keys.list()
    assert re.fullmatch(r"[0-9a-f]{64}", key.key_hash)


async def test_a_revoked_key_is_worth_nothing_at_once(bff, keys):
    issued = await keys.issue(name="n", scopes=list(Scope))
    headers = {"Authorization": f"Bearer {issued.secret}"}
    assert (await call(bff, "status", headers)).status_code == 404
    assert await keys.revoke(issued.key_id) is True
    assert await keys.verify(issued.secret) is None
    assert_problem(await call(bff, "status", headers), 401, "server_key_required")
    (first,) = await keys.list()
    bff.clock.advance(hours=1)
    assert await keys.revoke(issued.key_id) is False
    (again,) = await keys.list()
    assert again.revoked_at == first.revoked_at
    assert await keys.revoke("unheard-of") is False


async def test_revoking_one_key_leaves_the_others(keys):
    one, other = [await keys.issue(name="n", scopes=[]) for _ in range(2)]
    await keys.revoke(one.key_id)
    assert await keys.verify(other.secret) is not None


async def test_a_key_ends_with_its_life(bff, keys):
    issued = await keys.issue(name="n", scopes=list(Scope), lifetime=timedelta(days=1))
    endless = await keys.issue(name="n", scopes=list(Scope))
    bff.clock.advance(hours=23, minutes=59)
    assert await keys.verify(issued.secret) is not None
    bff.clock.advance(minutes=1)
    assert await keys.verify(issued.secret) is None
    headers = {"Authorization": f"Bearer {issued.secret}"}
    assert_problem(await call(bff, "result", headers), 401, "server_key_required")
    bff.clock.advance(days=20_000)
    assert await keys.verify(endless.secret) is not None


async def test_every_partner_route_wants_exactly_its_scope(bff, sandbox):
    for route, (_method, _path, _body, scope) in ROUTES.items():
        others = await bff.server_key(*(each for each in Scope if each is not scope))
        assert_problem(await call(bff, route, others), 403, "scope_missing")
        assert_problem(await call(bff, route, await bff.server_key(scope)), 404, "verification_not_found")
    assert sandbox.state.count() == 0


@pytest.mark.parametrize("authorization", [None, "", "Bearer ", "Bearer sk_unknown", "Basic c2tfeA==", "sk_x"])
async def test_no_partner_route_opens_without_a_key(bff, authorization):
    for route in ROUTES:
        problem = await call(bff, route, {} if authorization is None else {"Authorization": authorization})
        assert_problem(problem, 401, "server_key_required")
        assert problem.headers["www-authenticate"] == "Bearer"


async def test_a_verification_token_opens_no_partner_route_and_a_server_key_no_mini_app_route(bff):
    verification = await bff.completed()
    for what, method in (("/status", "GET"), ("/result", "POST"), ("", "DELETE")):
        answer = await bff.as_partner(method, verification, what, verification.headers)
        assert_problem(answer, 401, "server_key_required")
    path = f"/api/v1/cert/requests/{verification.tx_id}/result"
    assert_problem(await bff.http.post(path, headers=await bff.server_key()), 404, "verification_not_found")


async def test_a_key_without_scopes_opens_nothing(bff, keys):
    issued = await keys.issue(name="n", scopes=[])
    for route in ROUTES:
        answer = await call(bff, route, {"Authorization": f"Bearer {issued.secret}"})
        assert_problem(answer, 403, "scope_missing")
