"""What Toss leaves open and what it should never say; and the partner's own server."""

import asyncio
import base64
from contextlib import AsyncExitStack

import pytest

from app.departure import NoticeOutcome
from app.server_keys import Scope
from sandbox.miniapps import TossUser
from sandbox.personas import personas
from tests.login import odd
from tests.login.odd import OddToss, success
from tests.login.store import exchanges, row_of, users
from tests.login.test_leaving import leave, linked, notice
from tests.login.test_login import with_login, with_toss
from tests.scenarios import Bff, Login, assert_problem

MAN = personas()["man"]
FIELDS = ["name", "phone", "birthday", "ci", "gender", "nationality", "email"]
NOBODY = "00000000-0000-0000-0000-000000000000"


async def seen(bff, login) -> dict:
    """By the partner."""
    answer = await bff.http.get(f"/server/v1/users/{login.user_id}", headers=await bff.server_key())
    assert answer.status_code == 200, answer.text
    return answer.json()


# --- Every switch --------------------------------------------------------------------------------------------

SWITCHES = [
    {},
    {"payload_key": "result"},
    {"user_key_as_text": True},
    {"numbers_as_text": True},
    {"failure_without_success": True},
    {"short_errors": True},
    {"explicit_error_null": True},
    *({"invalid_grant_status": status} for status in (200, 400, 401)),
    *({"refresh_rotation": rotation} for rotation in ("rotate", "overlap", "keep")),
    *({"refresh_refusal_code": code} for code in (None, "4010", "SOMETHING_NEW")),
    {"login_ends_older_tokens": True},
    {"scope_blanks": False},
    {"agree_terms_spelling": True},
    {"login_me_extras": True},
    {"unlink_user_needs_bearer": True},
    {"unlink_token_empty": True},
    {"unlink_unknown_is_success": True},
    {"anon_success_as_text": True},
    {"anon_failure_status": 200},
    {"anon_failure_status": 401},
    {"rate_limit_status": 429},
    {"tls_1_3": False},
    {
        "payload_key": "result",
        "user_key_as_text": True,
        "numbers_as_text": True,
        "short_errors": True,
        "failure_without_success": True,
        "invalid_grant_status": 200,
        "refresh_refusal_code": None,
        "unlink_user_needs_bearer": True,
        "unlink_token_empty": True,
        "anon_success_as_text": True,
    },
]


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda each: "-".join(f"{k}={v}" for k, v in each.items())[:60])
async def test_every_flow_under_every_switch(bff, switches):
    state = bff.sandbox.state
    state.set_switches(**switches)
    login = await bff.log_in()
    assert (await bff.me(login)).json() == login.body["user"]
    user = await seen(bff, login)
    assert user["userKey"] == str(state.mini_apps.user_key("man"))
    assert {name: user["profile"][name] for name in FIELDS} == {name: getattr(MAN, name) for name in FIELDS}
    assert user["profile"]["callingCode"] == ("82" if switches.get("login_me_extras") else None)
    assert (user["agreedTerms"], user["unreadableFields"]) == (["terms_1"], [])
    assert set(user["scopes"]) == {*(f"user_{name}" for name in FIELDS), "user_key"}
    assert_problem(await bff.post_code("made-up"), 401, "login_rejected")
    assert (await bff.log_in()).user_id == login.user_id

    anonymous = await bff.log_in_anonymously()
    rejected = await bff.http.post("/api/v1/login/anonymous", json={"anonKey": "made-up"})
    assert_problem(rejected, 401, "anon_key_rejected")
    assert (await leave(bff, anonymous)).status_code == 204

    for clock in (bff.clock, state.clock):
        clock.advance(hours=2) if clock is bff.clock else clock.advance(7200)
    assert await notice(bff) == NoticeOutcome.STALE
    assert state.count("login_refresh") == 1
    assert (await leave(bff, login)).status_code == 204
    assert not linked(bff)
    assert await users(bff) == []

    back = await bff.log_in()
    state.unlink_by_user("man")
    assert await notice(bff) == NoticeOutcome.ENDED
    assert_problem(await bff.me(back), 401, "session_required")


@pytest.mark.parametrize("status", [200, 429])
@pytest.mark.parametrize("as_text", [True, False])
async def test_a_limit_is_a_limit_in_any_form(bff, status, as_text):
    bff.sandbox.state.set_switches(rate_limit_status=status, numbers_as_text=as_text)
    bff.sandbox.state.order_fault("login_exchange", "fail", code="4095", http_status=status, retry_after_seconds=42)
    handed = bff.sandbox.state.mini_apps.log_in("man")
    answer = await bff.post_code(handed.authorization_code)
    assert_problem(answer, 503, "upstream_budget_exhausted")
    assert answer.headers["retry-after"] == "42"


async def test_a_user_key_as_text_and_as_number_is_one_user(bff):
    first = await bff.log_in()
    bff.sandbox.state.set_switches(user_key_as_text=True)
    assert (await bff.log_in()).user_id == first.user_id


# --- Fields that do not open ---------------------------------------------------------------------------------


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("kind", ["wrong_aad", "wrong_key", "damaged_tag"])
async def test_a_field_that_does_not_open_costs_that_field(bff, field, kind):
    bff.sandbox.state.order_fault("login_me", kind, field=field)
    login = await bff.log_in()
    user = await seen(bff, login)
    assert user["unreadableFields"] == [field]
    assert user["profile"][field] is None
    others = [name for name in FIELDS if name != field]
    assert {name: user["profile"][name] for name in others} == {name: getattr(MAN, name) for name in others}
    assert login.body["user"]["unreadableFields"] == (["name"] if field == "name" else [])
    assert ("maskedName" in login.body["user"]) is (field != "name")
    assert ((await row_of(bff, login)).ci_hash is None) is (field == "ci")
    # The next login mends it.
    again = await bff.log_in()
    assert (await seen(bff, again))["unreadableFields"] == []


@pytest.mark.parametrize(
    "login",
    [
        {"decryption_keys": ()},
        {"decryption_keys": (base64.b64encode(bytes(32)).decode(),)},
        {"aads": ("other",)},
    ],
    ids=["no key", "another key", "another AAD"],
)
async def test_without_the_right_key_a_user_is_known_by_user_key_alone(settings, sandbox, login):
    plain = {
        name: type(settings.login).model_validate({name: value}).__getattribute__(name)
        for name, value in login.items()
    }
    async with Bff.running(with_login(settings, **plain), sandbox) as bff:
        logged_in = await bff.log_in()
        user = await seen(bff, logged_in)
        assert user["userKey"] == str(sandbox.state.mini_apps.user_key("man"))
        assert sorted(user["unreadableFields"]) == sorted(FIELDS)
        assert set(user["profile"].values()) == {None}
        assert logged_in.body["user"]["unreadableFields"] == ["name"]
        assert (await row_of(bff, logged_in)).ci_hash is None
        assert (await leave(bff, logged_in)).status_code == 204


async def test_both_keys_serve_while_toss_changes_them(settings, sandbox):
    keys = [
        {"decryption_keys": [sandbox.second_decryption_key, sandbox.decryption_key], "aads": ["X", sandbox.aad]}
    ]
    both = type(settings.login).model_validate(keys[0])
    async with Bff.running(settings.model_copy(update={"login": both}), sandbox) as bff:
        for which in ("first", "second"):
            sandbox.state.set_switches(decryption_key=which)
            assert (await seen(bff, await bff.log_in()))["profile"]["name"] == MAN.name


async def test_what_the_user_has_not_agreed_to_is_not_there(bff):
    login = await bff.log_in(scopes=[])
    user = await seen(bff, login)
    assert (set(user["profile"].values()), user["unreadableFields"]) == ({None}, [])
    assert user["scopes"] == ["user_key"]
    assert "maskedName" not in login.body["user"]
    # What was known before does not outlive the consent.
    await bff.log_in(scopes=["user_name"])
    assert (await seen(bff, login))["profile"]["name"] == MAN.name
    await bff.log_in(scopes=[])
    assert (await seen(bff, login))["profile"]["name"] is None
    assert (await row_of(bff, login)).ci_hash is None


async def test_names_of_any_kind(bff):
    for number, name in enumerate(["이", "Łukasz O’Neill", "김" * 200, "👨‍👩‍👧", "a\x00b", "  "]):
        user = TossUser(
            id=f"odd{number}",
            name=name,
            phone="0100000000",
            birthday="20000101",
            gender="MALE",
            nationality="LOCAL",
            ci=f"ci {number}",
        )
        bff.sandbox.state.mini_apps.add_user(user)
        login = await bff.log_in(user.id)
        assert (await seen(bff, login))["profile"]["name"] == name


# --- Nonsense ------------------------------------------------------------------------------------------------


@pytest.fixture
async def odd_bff(sandbox, settings, tmp_path):
    """A BFF whose Toss says whatever the test has put down."""
    async with AsyncExitStack() as stack:
        toss = OddToss()
        here = await stack.enter_async_context(toss.serving(settings, tmp_path))
        bff = await stack.enter_async_context(Bff.running(here, sandbox))
        yield toss, bff


MEMBER = {"userKey": 443731103, "scope": "user_key", "agreedTerms": []}
NOT_SO = "upstream_invalid"
AWAY = "upstream_unavailable"
NONSENSE = [
    *(
        (success({**MEMBER, "userKey": key}), NOT_SO)
        for key in (
            *(None, 0, -1, True, False, 1.5, "abc", "", "-5", "0", "1.5", 2**63, str(2**63), 10**30, 1e300),
            *([443731103], {"value": 443731103}, "443731103x", "４４３", "1e5"),
        )
    ),
    (success({"scope": "user_key"}), NOT_SO),
    (success({"userkey": 443731103}), NOT_SO),
    (success({"user_key": 443731103}), NOT_SO),
    (success(None), NOT_SO),
    (success([]), NOT_SO),
    (success([MEMBER]), NOT_SO),
    (success("443731103"), NOT_SO),
    (success(443731103), NOT_SO),
    (MEMBER, NOT_SO),
    ({"success": MEMBER}, NOT_SO),
    ({"resultType": "success", "success": MEMBER}, NOT_SO),
    ({"resultType": "SUCCESS"}, NOT_SO),
    ({"resultType": True, "success": MEMBER}, NOT_SO),
    ({"resultType": ["SUCCESS"], "success": MEMBER}, NOT_SO),
    ({"resultType": {"a": 1}, "success": MEMBER, "error": {"errorCode": {"b": 2}}}, NOT_SO),
    ({"resultType": None, "success": MEMBER}, NOT_SO),
    ({"resultType": "FAIL", "success": MEMBER}, "upstream_refused"),
    ({"resultType": "FAIL", "success": MEMBER, "error": {"errorCode": 4109, "message": "x"}}, "upstream_refused"),
    ({"resultType": "FAIL", "error": "text"}, "upstream_refused"),
    ({"resultType": "FAIL", "error": ["list"]}, "upstream_refused"),
    ({"resultType": "FAIL", "error": {"errorCode": "x" * 5000}}, "upstream_refused"),
    ({"resultType": "FAIL", "error": {"errorCode": "김 코드"}}, "upstream_refused"),
    ({"resultType": "PENDING", "success": MEMBER}, NOT_SO),
    *(
        ({"resultType": kind, "success": MEMBER}, AWAY)
        for kind in (*("HTTP_TIMEOUT", "NETWORK_ERROR", "EXECUTION_FAIL", "INTERRUPTED", "INTERNAL_ERROR"),)
    ),
    ([], NOT_SO),
    ("text", NOT_SO),
    (None, NOT_SO),
    (b"", AWAY),
    (b"<html>ok</html>", AWAY),
    (b"\xff\xfe", AWAY),
    (b"[" * 100_000, AWAY),
    (b'{"resultType":"SUCCESS","success":{"userKey":NaN}}', NOT_SO),
    (b'{"resultType":"SUCCESS","success":{"userKey":Infinity}}', NOT_SO),
    (b'{"resultType":"SUCCESS","success":{"userKey":' + b"9" * 5000 + b"}}", AWAY),
]


@pytest.mark.parametrize("number", range(len(NONSENSE)))
async def test_nonsense_about_a_user_makes_nobody(odd_bff, number):
    toss, bff = odd_bff
    toss.answers[odd.ME], code = NONSENSE[number]
    answer = await bff.post_code("a-code")
    assert answer.status_code in (502, 503)
    assert assert_problem(answer, answer.status_code, code)
    assert await users(bff) == []
    # Nothing of it stays behind: the same code goes on when Toss has come to its senses.
    toss.answers[odd.ME] = success(MEMBER)
    assert (await bff.post_code("a-code")).status_code == 200
    assert toss.asked.count(odd.EXCHANGE) == 1


@pytest.mark.parametrize(
    "payload",
    [
        *(None, [], "token", {}, True),
        *(
            {**odd.GRANT, "accessToken": value}
            for value in (None, "", " ", "a b", "x\ny", "é", "x" * 9000, {}, [], True)
        ),
        *({**odd.GRANT, "refreshToken": value} for value in ("", "a b", {}, [], True)),
    ],
    ids=lambda payload: str(payload)[:60],
)
async def test_nonsense_instead_of_tokens_makes_nobody(odd_bff, payload):
    toss, bff = odd_bff
    toss.answers[odd.EXCHANGE] = success(payload)
    assert_problem(await bff.post_code("a-code"), 502, "upstream_invalid")
    assert toss.asked.count(odd.ME) == 0
    assert await users(bff) == []
    (exchange,) = await exchanges(bff)
    assert exchange.grant is None


@pytest.mark.parametrize("key", [443731103, "443731103", 443731103.0, "00443731103"], ids=repr)
async def test_a_user_key_in_any_spelling_names_the_same_user(odd_bff, key):
    toss, bff = odd_bff
    toss.answers[odd.ME] = success({**MEMBER, "userKey": key})
    login = (await bff.post_code("a-code")).json()
    answer = await bff.http.post(
        "/server/v1/user-lookup", json={"userKey": 443731103}, headers=await bff.server_key()
    )
    assert (answer.json()["userId"], answer.json()["userKey"]) == (login["user"]["userId"], "443731103")


@pytest.mark.parametrize(
    "more",
    [
        {"scope": None, "agreedTerms": None},
        {"scope": ["user_name"], "agreedTerms": "terms"},
        {"scope": 7, "agreedTerms": [1, None, {}, "terms_1"]},
        {"name": 7, "phone": {"a": 1}, "birthday": ["x"], "ci": True, "email": 1.5},
        {"name": "not base64!", "phone": "AAAA", "ci": "", "email": "null"},
        {"name": "A" * 100_000},
        {"agreedTerms": ["x" * 10_000] * 50, "scope": "a, ,b,, " * 1000},
        {"agreedTerms": ["a\x00b"], "scope": "a\x00b"},
    ],
    ids=",".join,
)
async def test_nonsense_beside_the_user_key_does_not_break_a_login(odd_bff, more):
    toss, bff = odd_bff
    toss.answers[odd.ME] = success({**MEMBER, **more})
    answer = await bff.post_code("a-code")
    assert answer.status_code == 200, answer.text
    login = Login(answer.json()["sessionToken"], answer.json())
    user = await seen(bff, login)
    assert set(user["profile"].values()) == {None}
    unreadable = [name for name in FIELDS if name in more and more[name] not in ("", "null")]
    assert sorted(user["unreadableFields"]) == sorted(unreadable)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        *((success(value), "anon_key_rejected") for value in (None, False, 0, 1, "yes", "", {}, [], "TRUE!")),
        ({"resultType": "FAIL", "success": True}, "upstream_refused"),
        ({"success": True}, "upstream_invalid"),
        (b"true", "upstream_invalid"),
        (b"<html>", "upstream_unavailable"),
    ],
    ids=str,
)
async def test_nonsense_about_an_anonymous_key_makes_nobody(odd_bff, answer, code):
    toss, bff = odd_bff
    toss.answers[odd.ANON] = answer
    problem = await bff.http.post("/api/v1/login/anonymous", json={"anonKey": "key"})
    assert problem.json()["code"] == code
    assert await users(bff) == []


async def test_an_unlink_is_done_only_if_toss_says_so(odd_bff):
    toss, bff = odd_bff
    toss.answers[odd.ME] = success(MEMBER)
    body = (await bff.post_code("a-code")).json()
    login = Login(body["sessionToken"], body)
    for answer in (b"", b"<html>ok</html>", {}, {"success": {}}, {"resultType": "DONE"}, [], None):
        toss.answers[odd.UNLINK_TOKEN] = answer
        assert (await leave(bff, login)).status_code in (502, 503)
        assert (await bff.me(login)).status_code == 200
    toss.answers[odd.UNLINK_TOKEN] = success(None)
    assert (await leave(bff, login)).status_code == 204


async def test_a_link_of_another_user_key_is_not_this_link(odd_bff):
    """A token that now stands for somebody else says nothing about this user."""
    toss, bff = odd_bff
    toss.answers[odd.ME] = success(MEMBER)
    await bff.post_code("a-code")
    toss.answers[odd.ME] = success({**MEMBER, "userKey": 1})
    assert await bff.resources.departure.by_notice(443731103, "UNLINK") == NoticeOutcome.ENDED


# --- The client certificate ----------------------------------------------------------------------------------


async def nobody_can_log_in(bff, status, code):
    handed = bff.sandbox.state.mini_apps.log_in("man")
    assert_problem(await bff.post_code(handed.authorization_code), status, code)
    key = bff.sandbox.state.mini_apps.anon_key("man")
    answer = await bff.http.post("/api/v1/login/anonymous", json={"anonKey": key})
    assert_problem(answer, status, code)
    assert await users(bff) == []
    assert bff.sandbox.state.count("login_exchange") == 0
    return handed.authorization_code


async def test_without_a_client_certificate_nobody_can_log_in(settings, sandbox):
    async with Bff.running(with_toss(settings, certificate_folder=None), sandbox) as bff:
        await nobody_can_log_in(bff, 503, "toss_not_configured")
        assert await exchanges(bff) == []
        # Nothing else minds.
        assert (await bff.start()).tx_id


@pytest.mark.parametrize("fault", ["empty", "expired", "broken", "revoked", "of nobody"])
async def test_with_a_client_certificate_that_does_not_serve(settings, sandbox, tmp_path, fault):
    folder = tmp_path / "pairs"
    folder.mkdir()
    if fault == "expired":
        sandbox.issue_client_certificate(days_left=-1).write(folder)
    elif fault in ("broken", "revoked"):
        pair = sandbox.issue_client_certificate()
        pair.write(folder)
        if fault == "revoked":
            sandbox.revoke(pair.serial)
        else:
            next(folder.glob("*_private.key")).write_text("no key")
    elif fault == "of nobody":
        (folder / "x_public.crt").write_text("no certificate")
    async with Bff.running(with_toss(settings, certificate_folder=folder), sandbox) as bff:
        handed = sandbox.state.mini_apps.log_in("man")
        answer = await bff.post_code(handed.authorization_code)
        assert answer.status_code == 503, answer.text
        assert answer.json()["code"] in ("upstream_unavailable", "toss_not_configured")
        assert await users(bff) == []
        assert sandbox.state.count("login_exchange") == 0


async def test_a_user_can_leave_only_with_a_client_certificate(settings, sandbox):
    async with Bff.running(settings, sandbox) as bff:
        login = await bff.log_in()
    async with Bff.running(with_toss(settings, certificate_folder=None), sandbox) as bff:
        assert (await bff.me(login)).status_code == 200
        assert_problem(await leave(bff, login), 503, "toss_not_configured")
        assert (await bff.me(login)).status_code == 200
    async with Bff.running(settings, sandbox) as bff:
        bff.clock.advance(minutes=2)
        assert (await bff.resources.departure.reconcile()).unlinks_finished == 1
        assert not linked(bff)


async def test_login_that_is_not_set_up_at_toss(bff):
    bff.sandbox.state.mini_apps.configure("my-granite-app", is_login_configured=False)
    handed = bff.sandbox.state.mini_apps.log_in("man")
    problem = assert_problem(await bff.post_code(handed.authorization_code), 503, "toss_not_configured")
    assert problem["tossCode"] == "4050"
    bff.sandbox.state.mini_apps.configure("my-granite-app", is_login_configured=True)
    assert (await bff.post_code(handed.authorization_code)).status_code == 200


# --- The partner's server ------------------------------------------------------------------------------------


async def test_the_partner_looks_up_by_user_key(bff):
    login, key = await bff.log_in(), await bff.server_key(Scope.USER_READ)
    user_key = bff.sandbox.state.mini_apps.user_key("man")
    for given in (user_key, str(user_key)):
        answer = await bff.http.post("/server/v1/user-lookup", json={"userKey": given}, headers=key)
        assert answer.status_code == 200, answer.text
        assert answer.json() == await seen(bff, login)
        assert answer.headers["cache-control"] == "no-store"
    for unknown in (1, 2**63 - 1):
        answer = await bff.http.post("/server/v1/user-lookup", json={"userKey": unknown}, headers=key)
        assert_problem(answer, 404, "user_not_found")
    for nonsense in (0, -1, 2**63, 1.5, "abc", None, {}, [user_key]):
        answer = await bff.http.post("/server/v1/user-lookup", json={"userKey": nonsense}, headers=key)
        assert_problem(answer, 422, "invalid_request")


async def test_the_partner_asks_who_a_session_is(bff):
    login, key = await bff.log_in(), await bff.server_key(Scope.SESSION_INTROSPECT)

    async def introspect(token):
        answer = await bff.http.post("/server/v1/sessions/introspect", json={"sessionToken": token}, headers=key)
        assert answer.status_code == 200, answer.text
        return answer.json()

    found = await introspect(login.token)
    assert (found["active"], found["userId"], found["sessionId"]) == (True, login.user_id, login.session_id)
    assert found["userKey"] == str(bff.sandbox.state.mini_apps.user_key("man"))
    assert found["kind"] == "MEMBER"
    anonymous = await introspect((await bff.log_in_anonymously()).token)
    assert (anonymous["kind"], anonymous["userKey"]) == ("ANONYMOUS", None)
    inactive = {"active": False} | dict.fromkeys(set(found) - {"active"})
    for token in ("st_unknown", "x", key["Authorization"].removeprefix("Bearer "), "김", "\x00"):
        assert await introspect(token) == inactive
    bff.clock.advance(days=8)
    assert await introspect(login.token) == inactive


@pytest.mark.parametrize("scope", list(Scope))
async def test_each_scope_opens_its_own_doors(bff, scope):
    login, key = await bff.log_in(), await bff.server_key(scope)
    doors = {
        ("POST", "/server/v1/sessions/introspect"): Scope.SESSION_INTROSPECT,
        ("POST", "/server/v1/user-lookup"): Scope.USER_READ,
        ("GET", f"/server/v1/users/{NOBODY}"): Scope.USER_READ,
        ("DELETE", f"/server/v1/users/{NOBODY}/sessions"): Scope.USER_ERASE,
        ("DELETE", f"/server/v1/users/{NOBODY}"): Scope.USER_ERASE,
        ("POST", f"/server/v1/cert/users/{NOBODY}/result"): Scope.CERT_READ,
        ("POST", f"/server/v1/cert/users/{NOBODY}/compare"): Scope.CERT_COMPARE,
    }
    bodies = {"introspect": {"sessionToken": "x"}, "user-lookup": {"userKey": 1}}
    for (method, path), needed in doors.items():
        body = bodies.get(path.rsplit("/", 1)[-1])
        answer = await bff.http.request(method, path, headers=key, json=body)
        if needed is scope:
            assert answer.status_code in (200, 404), answer.text
        else:
            assert_problem(answer, 403, "scope_missing")
    assert (await bff.me(login)).status_code == 200


async def test_many_at_once_stay_within_one_pool(bff):
    """A whole class logs in: each person is themselves."""
    people = ["test_person", "man", "minor", "foreigner"] * 5
    logins = await asyncio.gather(*(bff.log_in(user) for user in people))
    by_person = {
        user: {login.user_id for who, login in zip(people, logins, strict=True) if who == user} for user in people
    }
    assert {len(ids) for ids in by_person.values()} == {1}
    assert len({login.token for login in logins}) == 20
