"""Whose a verification is, and that nobody reaches what is another's: on every route of the OpenAPI document."""

import re
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import delete, select

from app.cert.tables import ResultState
from app.cert.tables import Verification as Row
from app.login.tables import User
from app.main import create_app
from app.server_keys import Scope
from sandbox.miniapps import TossUser
from sandbox.personas import personas
from tests.conftest import settings_for
from tests.payments.shop import CHARGE, ORDER, Shop
from tests.purchases.shop import SKU, grant, store
from tests.scenarios import Bff, Login, Verification, assert_problem

PERSON = personas()["test_person"]
NOBODY = "00000000-0000-0000-0000-000000000000"


async def start_as(bff, login) -> Verification:
    answer = await bff.http.post("/api/v1/cert/requests", headers=login.headers)
    assert answer.status_code == 201, answer.text
    return Verification(answer.json()["txId"], login.token, answer.json())


async def claim(bff, verification, login, token=None):
    return await bff.http.post(
        f"/api/v1/cert/requests/{verification.tx_id}/claim",
        json={"verificationToken": token or verification.token},
        headers=login.headers,
    )


def held_by(verification, token) -> Verification:
    return Verification(verification.tx_id, token, verification.body)


async def by_user(bff, login, what, headers):
    return await bff.http.post(f"/server/v1/cert/users/{login.user_id}/{what}", headers=headers)


async def row_of(bff, verification) -> Row:
    async with bff.resources.database.transaction() as session:
        return await session.get(Row, verification.tx_id)


async def as_test_person(bff) -> Login:
    """Whoever logs in at Toss as the person that Toss Cert verifies for test credentials."""
    return await bff.log_in("test_person")


# --- Started with a session ----------------------------------------------------------------------------------


async def test_what_a_session_starts_is_its_own(bff):
    login = await bff.log_in()
    verification = await start_as(bff, login)
    assert "verificationToken" not in verification.body
    assert (await bff.status(verification)).json()["status"] == "REQUESTED"
    bff.sandbox.state.approve(verification.tx_id)
    assert (await bff.result(verification)).status_code == 200
    row = await row_of(bff, verification)
    assert (row.session_id, row.user_id, row.token_hash) == (login.session_id, login.user_id, None)


async def test_nobody_else_reaches_it(bff):
    login = await bff.log_in()
    verification = await start_as(bff, login)
    bff.sandbox.state.approve(verification.tx_id)
    stranger = await bff.completed()
    others = [
        (await bff.log_in()).token,  # another session of the same user
        (await bff.log_in("minor")).token,
        (await bff.log_in_anonymously()).token,
        stranger.token,
        "vt_" + "A" * 43,
        "",
        "x",
    ]
    asked = bff.sandbox.state.count("result") + bff.sandbox.state.count("status")
    for token in filter(None, others):
        for answer in (
            await bff.status(held_by(verification, token)),
            await bff.result(held_by(verification, token)),
        ):
            assert_problem(answer, 404, "verification_not_found")
    assert bff.sandbox.state.count("result") + bff.sandbox.state.count("status") == asked
    for ended in ("st_" + "A" * 43, login.token + "x"):
        assert_problem(await bff.result(held_by(verification, ended)), 401, "session_required")
    assert (await bff.result(verification)).status_code == 200


async def test_a_session_that_is_over_reaches_it_no_more(bff):
    login = await bff.log_in()
    verification = await start_as(bff, login)
    await bff.http.post("/api/v1/logout", headers=login.headers)
    assert_problem(await bff.status(verification), 401, "session_required")
    again = await bff.log_in()
    assert_problem(await bff.status(held_by(verification, again.token)), 404, "verification_not_found")


@pytest.mark.parametrize("authorization", ["Bearer st_unknown", "Bearer vt_x", "Basic x", "Bearer", "st_x", ""])
async def test_a_start_with_a_token_that_does_not_serve_is_refused(bff, authorization):
    """Rather than started for nobody: its owner would be lost without a word."""
    answer = await bff.http.post("/api/v1/cert/requests", headers={"Authorization": authorization})
    assert_problem(answer, 401, "session_required")
    assert bff.sandbox.state.count("request") == 0


async def test_without_a_session_it_belongs_to_who_holds_the_token(bff):
    verification = await bff.start()
    row = await row_of(bff, verification)
    assert (row.session_id, row.user_id) == (None, None)
    login = await bff.log_in()
    assert_problem(await bff.status(held_by(verification, login.token)), 404, "verification_not_found")
    answer = await bff.http.get(f"/api/v1/cert/requests/{verification.tx_id}/status")
    assert_problem(answer, 401, "verification_token_required")


# --- Claimed -------------------------------------------------------------------------------------------------


async def test_a_verification_from_before_the_login_is_claimed(bff):
    verification, login = await bff.completed(), await bff.log_in()
    answer = await claim(bff, verification, login)
    assert answer.status_code == 200, answer.text
    assert answer.json()["txId"] == verification.tx_id
    row = await row_of(bff, verification)
    assert (row.session_id, row.user_id, row.token_hash) == (login.session_id, login.user_id, None)
    # The token serves no longer, neither for the result nor for another claim.
    assert_problem(await bff.result(verification), 404, "verification_not_found")
    other = await bff.log_in("minor")
    for who in (login, other):
        assert_problem(await claim(bff, verification, who), 404, "verification_not_found")
    assert (await bff.result(held_by(verification, login.token))).status_code == 200
    assert (await row_of(bff, verification)).user_id == login.user_id


async def test_a_claim_needs_the_right_token(bff):
    verification, other, login = await bff.start(), await bff.start(), await bff.log_in()
    key = (await bff.server_key())["Authorization"].removeprefix("Bearer ")
    for token in (other.token, login.token, key, "vt_" + "A" * 43, "x", "김", "\x00"):
        assert_problem(await claim(bff, verification, login, token), 404, "verification_not_found")
    for token in ("", "x" * 201, None, 1):
        answer = await bff.http.post(
            f"/api/v1/cert/requests/{verification.tx_id}/claim",
            json={"verificationToken": token},
            headers=login.headers,
        )
        assert_problem(answer, 422, "invalid_request")
    assert (await row_of(bff, verification)).session_id is None
    assert (await bff.status(verification)).status_code == 200


async def test_a_claim_needs_a_session(bff):
    verification = await bff.start()
    path, body = f"/api/v1/cert/requests/{verification.tx_id}/claim", {"verificationToken": verification.token}
    assert_problem(await bff.http.post(path, json=body), 401, "session_required")
    assert_problem(await bff.http.post(path, json=body, headers=verification.headers), 401, "session_required")
    assert (await bff.status(verification)).status_code == 200


async def test_what_a_session_owns_cannot_be_claimed(bff):
    mine, theirs = await bff.log_in(), await bff.log_in("minor")
    verification = await start_as(bff, mine)
    for token in (mine.token, theirs.token, "x"):
        assert_problem(await claim(bff, verification, theirs, token), 404, "verification_not_found")
    assert (await row_of(bff, verification)).session_id == mine.session_id


async def test_a_result_that_was_read_before_the_login_is_claimed_with_it(bff):
    verification = await bff.completed()
    await bff.result(verification)
    login, key = await bff.log_in(), await bff.server_key()
    assert (await claim(bff, verification, login)).status_code == 200
    assert (await by_user(bff, login, "result", key)).json()["txId"] == verification.tx_id
    assert bff.reads(verification) == 1


# --- By user -------------------------------------------------------------------------------------------------


async def test_the_partner_gets_the_result_of_a_user(bff):
    login, key = await bff.log_in(), await bff.server_key(Scope.CERT_READ)
    assert_problem(await by_user(bff, login, "result", key), 404, "verification_not_found")
    verification = await start_as(bff, login)
    assert_problem(await by_user(bff, login, "result", key), 404, "verification_not_found")
    bff.sandbox.state.approve(verification.tx_id)
    await bff.status(verification)
    answer = await by_user(bff, login, "result", key)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["txId"], answer.json()["identity"]["name"]) == (verification.tx_id, PERSON.name)
    # The newest counts, and only the user's own.
    bff.clock.advance(minutes=1)
    newer = await start_as(bff, await bff.log_in())
    bff.sandbox.state.approve(newer.tx_id)
    await bff.status(newer)
    theirs = await start_as(bff, await bff.log_in("minor"))
    bff.sandbox.state.approve(theirs.tx_id)
    await bff.status(theirs)
    assert (await by_user(bff, login, "result", key)).json()["txId"] == newer.tx_id


async def test_a_verification_that_was_never_fetched_does_not_hide_an_older_result(bff):
    """Toss's hour is over for it; the older result is still what is known of this user."""
    login, key = await bff.log_in(), await bff.server_key()
    older = await start_as(bff, login)
    bff.sandbox.state.approve(older.tx_id)
    assert (await bff.result(older)).status_code == 200
    bff.clock.advance(minutes=5)
    newer = await start_as(bff, login)
    bff.sandbox.state.approve(newer.tx_id)
    assert (await bff.status(newer)).json()["status"] == "COMPLETED"
    for what in ("result", "compare"):
        bff.clock.advance(hours=2)
        answer = await by_user(bff, login, what, key)
        assert answer.status_code == 200, answer.text
        assert answer.json()["txId"] == older.tx_id
    assert bff.sandbox.state.count("result") == 1


async def test_an_ended_or_erased_verification_is_passed_over(bff):
    login, key = await bff.log_in(), await bff.server_key()
    verification = await start_as(bff, login)
    bff.sandbox.state.approve(verification.tx_id)
    assert (await bff.result(verification)).status_code == 200
    assert (await by_user(bff, login, "result", key)).status_code == 200
    await bff.http.delete(f"/server/v1/cert/requests/{verification.tx_id}", headers=key)
    for what in ("result", "compare"):
        assert_problem(await by_user(bff, login, what, key), 404, "verification_not_found")


async def verify_as_owner(bff, login) -> Verification:
    verification = await start_as(bff, login)
    bff.sandbox.state.approve(verification.tx_id)
    assert (await bff.result(verification)).status_code == 200
    return verification


async def test_is_the_verified_person_the_one_who_is_logged_in(bff):
    key = await bff.server_key(Scope.CERT_COMPARE)
    same, other = await as_test_person(bff), await bff.log_in("man")
    for login, expected in ((same, True), (other, False)):
        verification = await verify_as_owner(bff, login)
        answer = await by_user(bff, login, "compare", key)
        assert answer.status_code == 200, answer.text
        assert answer.json()["isSamePerson"] is expected
        assert answer.json()["txId"] == verification.tx_id
        assert set(answer.json()) == {"txId", "completedAt", "isSamePerson"}


async def test_without_a_ci_nobody_can_say(bff):
    key = await bff.server_key()
    login = await bff.log_in("test_person", scopes=["user_name"])
    await verify_as_owner(bff, login)
    assert (await by_user(bff, login, "compare", key)).json()["isSamePerson"] is None
    anonymous = await bff.log_in_anonymously()
    await verify_as_owner(bff, anonymous)
    assert (await by_user(bff, anonymous, "compare", key)).json()["isSamePerson"] is None
    agreed = await bff.log_in("test_person", scopes=["user_ci"])
    assert (await by_user(bff, agreed, "compare", key)).json()["isSamePerson"] is True


async def test_without_a_ci_in_the_verification_nobody_can_say(bff):
    key, login = await bff.server_key(), await as_test_person(bff)
    verification = await start_as(bff, login)
    bff.sandbox.state.approve(verification.tx_id)
    bff.sandbox.state.order_fault("result", "damaged_tag", field="ci")
    assert (await bff.result(verification)).status_code == 200
    assert (await by_user(bff, login, "compare", key)).json()["isSamePerson"] is None


async def test_a_comparison_needs_both(bff):
    key, login = await bff.server_key(), await bff.log_in()
    assert_problem(await by_user(bff, login, "compare", key), 404, "verification_not_found")
    for what, code in (("compare", "user_not_found"), ("result", "verification_not_found")):
        answer = await bff.http.post(f"/server/v1/cert/users/{NOBODY}/{what}", headers=key)
        assert_problem(answer, 404, code)


async def test_a_session_tells_the_partner_what_was_verified(bff):
    key, login = await bff.server_key(), await as_test_person(bff)

    async def introspect():
        body = {"sessionToken": login.token}
        return (await bff.http.post("/server/v1/sessions/introspect", json=body, headers=key)).json()[
            "verification"
        ]

    assert await introspect() is None
    started = await start_as(bff, login)
    bff.sandbox.state.approve(started.tx_id)
    await bff.status(started)
    assert await introspect() is None
    assert bff.sandbox.state.count("result") == 0  # asking spends no read
    await bff.result(started)
    found = await introspect()
    assert (found["txId"], found["isSamePerson"]) == (started.tx_id, True)
    bff.clock.advance(minutes=1)
    newer = await verify_as_owner(bff, login)
    assert (await introspect())["txId"] == newer.tx_id
    await bff.http.delete(f"/server/v1/cert/requests/{newer.tx_id}", headers=key)
    assert (await introspect())["txId"] == started.tx_id


# --- Erasure -------------------------------------------------------------------------------------------------


async def test_leaving_erases_what_is_theirs_and_nothing_else(bff):
    login, other = await bff.log_in(), await bff.log_in("minor")
    mine, theirs = await verify_as_owner(bff, login), await verify_as_owner(bff, other)
    claimed, open_one, loose = await bff.completed(), await start_as(bff, login), await bff.completed()
    await claim(bff, claimed, login)
    await bff.result(loose)
    erased_before = await verify_as_owner(bff, login)
    key = await bff.server_key()
    await bff.http.delete(f"/server/v1/cert/requests/{erased_before.tx_id}", headers=key)
    at = (await row_of(bff, erased_before)).erased_at
    bff.clock.advance(minutes=1)
    assert (await bff.http.delete("/api/v1/me", headers=login.headers)).status_code == 204
    for gone in (mine, claimed, open_one):
        row = await row_of(bff, gone)
        assert (row.result_state, row.identity, row.answer, row.ci_hash) == ("ERASED", None, None, None)
    assert (await row_of(bff, mine)).signature is not None
    assert (await row_of(bff, erased_before)).erased_at == at
    for kept in (theirs, loose):
        assert (await row_of(bff, kept)).identity is not None
    answer = await bff.as_partner("GET", mine, "/signature", key)
    assert answer.status_code == 200
    assert_problem(await bff.as_partner("POST", mine, "/result", key), 410, "verification_erased")


class WhileTossThinks:
    """Toss Cert's API, during whose first call something else happens."""

    def __init__(self, api, meanwhile) -> None:
        self._api = api
        self._meanwhile = [meanwhile]

    def __getattr__(self, name):
        return getattr(self._api, name)

    async def request_one_touch(self):
        started = await self._api.request_one_touch()
        while self._meanwhile:
            await self._meanwhile.pop()()
        return started


async def test_a_verification_that_begins_while_its_user_leaves_does_not_outlive_them(bff):
    login = await bff.log_in()

    async def leave():
        assert (await bff.http.delete("/api/v1/me", headers=login.headers)).status_code == 204

    bff.resources.cert._api = WhileTossThinks(bff.resources.cert._api, leave)
    answer = await bff.http.post("/api/v1/cert/requests", headers=login.headers)
    assert_problem(answer, 401, "session_required")
    async with bff.resources.database.transaction() as session:
        rows = (await session.scalars(select(Row))).all()
    assert [row.result_state for row in rows] == [ResultState.ERASED]


async def test_a_verification_that_begins_at_the_last_moment_of_its_user_is_erased_with_them(bff):
    """After the user's verifications were erased, and before the user was."""
    login = await bff.log_in()
    erase = bff.resources.login.erase

    async def late(user, **how):
        await start_as(bff, login)
        return await erase(user, **how)

    bff.resources.login.erase = late
    assert (await bff.http.delete("/api/v1/me", headers=login.headers)).status_code == 204
    async with bff.resources.database.transaction() as session:
        rows = (await session.scalars(select(Row))).all()
    assert [row.result_state for row in rows] == [ResultState.ERASED]


async def test_reconcile_erases_verifications_whose_user_is_gone(bff):
    """As a crash between the two could leave it."""
    login, other = await bff.log_in(), await bff.log_in("minor")
    orphan, kept = await verify_as_owner(bff, login), await verify_as_owner(bff, other)
    async with bff.resources.database.transaction() as session:
        await session.execute(delete(User).where(User.user_id == login.user_id))
    await bff.resources.departure.reconcile()
    assert (await row_of(bff, orphan)).identity is None
    assert (await row_of(bff, kept)).identity is not None


# --- Every route of the OpenAPI document ---------------------------------------------------------------------

OPEN = {
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("POST", "/api/v1/login"),
    ("POST", "/api/v1/login/anonymous"),
    ("POST", "/api/v1/cert/requests"),
}
"""What may be called by anybody. A new route is either behind a door or has to be written down here."""
CALLBACKS = "/callbacks/"
"""Behind Toss's addresses and an Authorization value of their own; tested with the inbox."""


@dataclass(frozen=True)
class Operation:
    method: str
    path: str
    body: dict[str, Any] | None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def names(self) -> list[str]:
        return re.findall(r"{(\w+)}", self.path)


BODIES = {
    "BeginRequest": {"productId": "americano"},
    "BillingKeyRequest": {"productId": "americano"},
    "ChargeRequest": CHARGE,
    "ClaimRequest": {"verificationToken": "vt_" + "A" * 43},
    "CompareRequest": {"name": "김토스"},
    "IntrospectRequest": {"sessionToken": "st_" + "A" * 43},
    "LookUpRequest": {"userKey": 1},
    "OrderRequestBody": ORDER,
    "RefundRequest": {"reason": "변심"},
}
"""A valid body for each route that takes one, so that nothing but identity decides."""


def operations(document) -> list[Operation]:
    found = []
    for path, methods in document["paths"].items():
        if path.startswith(CALLBACKS):
            continue
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            schema = content.get("schema", {}).get("$ref", "").rsplit("/", 1)[-1]
            found.append(Operation(method.upper(), path, BODIES.get(schema)))
    return [each for each in found if (each.method, each.path) not in OPEN]


@pytest.fixture
def guarded(embedded, sandbox) -> list[Operation]:
    return operations(create_app(settings_for(embedded, sandbox)).openapi())


async def ask(bff, operation, ids, headers):
    path = operation.path
    for name in operation.names:
        path = path.replace(f"{{{name}}}", ids.get(name, NOBODY))
    return await bff.http.request(operation.method, path, headers=headers, json=operation.body)


MONEY = ("orderId", "orderNo", "billingKeyId")


async def shop_of_money(shop) -> dict[str, str]:
    """Something paid, something bought and something permitted, by their ids."""
    order_id = store(shop.bff).buy("minor", SKU)
    assert (await grant(shop.bff, shop.login, order_id)).status_code == 200
    key = await shop.active_key()
    return {
        "orderId": order_id,
        "orderNo": (await shop.paid())["orderNo"],
        "billingKeyId": key["billingKeyId"],
    }


def test_the_matrix_has_everything(guarded):
    assert len(guarded) >= 20
    known = {"txId", "sessionId", "userId", "noticeId", "eventId", *MONEY}
    assert {name for each in guarded for name in each.names} <= known
    assert {each.path.split("/")[1] for each in guarded} == {"api", "server"}


async def test_no_guarded_route_answers_without_proof(bff, guarded):
    login = await bff.log_in()
    verification = await start_as(bff, login)
    ids = {"txId": verification.tx_id, "sessionId": login.session_id, "userId": login.user_id}
    proofs = [{}, {"Authorization": "Bearer x"}, {"Authorization": "Bearer st_x"}, {"Authorization": "Bearer sk_x"}]
    for operation in guarded:
        for headers in proofs:
            answer = await ask(bff, operation, ids, headers)
            assert answer.status_code in (401, 404), (str(operation), headers, answer.text)
            if operation.path.startswith("/server") or not headers:
                assert answer.status_code == 401, str(operation)
    assert (await bff.me(login)).status_code == 200
    assert bff.sandbox.state.mini_apps.is_linked("man")


async def test_no_guarded_route_of_a_mini_app_gives_what_is_anothers(bff, guarded):
    shop = await Shop.opened(bff, "minor")
    theirs, money = shop.login, await shop_of_money(shop)
    owned, loose = await start_as(bff, theirs), await bff.completed()
    strangers = {
        "another session of theirs": (await bff.log_in("minor")).headers,
        "another user": (await bff.log_in()).headers,
        "an anonymous user": (await bff.log_in_anonymously()).headers,
        "another verification's token": (await bff.completed()).headers,
        "a server key": await bff.server_key(),
    }
    with_ids = [each for each in guarded if each.path.startswith("/api") and each.names]
    assert {name for each in with_ids for name in each.names} == {"txId", "sessionId", *MONEY}
    for operation in with_ids:
        for who, headers in strangers.items():
            for verification in (owned, loose):
                ids = {"txId": verification.tx_id, "sessionId": theirs.session_id} | money
                if who == "another session of theirs" and "txId" not in operation.names:
                    continue  # the same user may: to them alone belong sessions and money
                answer = await ask(bff, operation, ids, headers)
                assert answer.status_code in (401, 404), (str(operation), who, answer.text)
                assert "identity" not in answer.text
    assert (await bff.me(theirs)).status_code == 200
    assert (await bff.status(owned)).status_code == 200
    assert (await shop.look(money)).json()["state"] == "PAID"
    assert (await shop.confirm(money)).json()["state"] == "ACTIVE"


async def test_no_route_of_the_partner_opens_to_a_mini_app(bff, guarded):
    login = await bff.log_in()
    verification = await verify_as_owner(bff, login)
    loose = await bff.completed()
    ids = {"txId": verification.tx_id, "userId": login.user_id, "sessionId": login.session_id}
    for operation in [each for each in guarded if each.path.startswith("/server")]:
        for headers in (login.headers, loose.headers):
            assert_problem(await ask(bff, operation, ids, headers), 401, "server_key_required")


async def test_every_route_of_the_partner_needs_a_scope(bff, guarded):
    """A key that may do one thing may not do all of them: each scope is refused somewhere."""
    ids = {"txId": "unknown", "userId": NOBODY, "sessionId": NOBODY}
    partner = [each for each in guarded if each.path.startswith("/server")]
    allowed: dict[str, set[Scope]] = {str(each): set() for each in partner}
    for scope in Scope:
        headers = await bff.server_key(scope)
        for operation in partner:
            answer = await ask(bff, operation, ids, headers)
            if answer.status_code != 403:
                allowed[str(operation)].add(scope)
    assert {operation: scopes for operation, scopes in allowed.items() if len(scopes) != 1} == {}


async def test_a_replica_knows_the_owner_too(settings, sandbox):
    async with Bff.running(settings, sandbox) as one, Bff.running(settings, sandbox) as other:
        login = await one.log_in()
        verification = await start_as(one, login)
        assert (await other.status(verification)).status_code == 200
        stranger = await other.log_in("minor")
        answer = await other.status(held_by(verification, stranger.token))
        assert_problem(answer, 404, "verification_not_found")


def test_personas_and_users_agree():
    """The comparison rests on one CI for a person at Toss Cert and at Toss login."""
    assert TossUser.__dataclass_fields__["ci"]
    assert PERSON.ci
