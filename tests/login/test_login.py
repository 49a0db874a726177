"""Logging in: one exchange per code, whoever brings it; nobody is made up."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest

from app.errors import StorageUnavailable
from app.login.service import _keep_grant
from app.login.tables import ExchangeState, LoginExchange, take_exchange
from sandbox.personas import personas
from tests.login.store import exchanges, sessions, users
from tests.processes import PATIENCE
from tests.scenarios import Bff, assert_problem

MAN = personas()["man"]
DISCLOSED = ["maskedName", "userKey", "name", "phone", "callingCode", "birthday", "gender", "nationality", "email"]


def with_login(settings, **login):
    return settings.model_copy(update={"login": settings.login.model_copy(update=login)})


def with_toss(settings, **toss):
    return settings.model_copy(update={"toss": settings.toss.model_copy(update=toss)})


@asynccontextmanager
async def all_arrived(bff, count):
    """A hold on everybody who brings a code, until so many are there."""
    login, arrived = bff.resources.login, asyncio.Event()
    turn, seen = login._turn, 0

    async def counted(code_hash):
        nonlocal seen
        seen += 1
        if seen >= count:
            arrived.set()
        return await turn(code_hash)

    login._turn = counted
    yield arrived
    login._turn = turn


async def together(bff, code, count, *, call="login_exchange"):
    """So many posts of one code, all of them there before Toss has answered the first."""
    bff.sandbox.state.order_fault(call, "hold_before")
    async with all_arrived(bff, count) as arrived:
        posts = [asyncio.create_task(bff.post_code(code)) for _ in range(count)]
        await arrived.wait()
        await asyncio.to_thread(bff.sandbox.state.wait_until, lambda state: state.held(call) == 1)
        bff.sandbox.state.release(call)
        return await asyncio.gather(*posts)


# --- Once ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("referrer", ["DEFAULT", "SANDBOX"])
async def test_a_login_gives_a_session(bff, referrer):
    login = await bff.log_in(referrer=referrer)
    assert login.token.startswith("st_")
    assert login.body["user"]["kind"] == "MEMBER"
    assert login.body["user"]["maskedName"] == "선**람"
    assert "unreadableFields" in login.body["user"]
    answer = await bff.me(login)
    assert answer.status_code == 200, answer.text
    assert answer.json() == login.body["user"]
    assert answer.headers["cache-control"] == "no-store"


async def test_no_token_of_toss_reaches_the_mini_app(bff):
    login = await bff.log_in()
    assert set(login.body) == {"sessionToken", "sessionId", "expiresAt", "endsAt", "user"}
    assert set(login.body["user"]) == {
        *("userId", "kind", "linkedAt", "scopes", "agreedTerms", "maskedName", "unreadableFields"),
    }


async def test_the_operator_decides_what_the_mini_app_sees(settings, sandbox):
    everything = frozenset(field for field in type(next(iter(settings.login.disclosed_fields))))
    async with Bff.running(with_login(settings, disclosed_fields=everything), sandbox) as bff:
        shown = (await bff.log_in()).body["user"]
        key = sandbox.state.mini_apps.user_key("man")
        assert (shown["name"], shown["phone"], shown["email"]) == (MAN.name, MAN.phone, MAN.email)
        assert shown["userKey"] == str(key)
        assert "ci" not in shown
    async with Bff.running(with_login(settings, disclosed_fields=frozenset()), sandbox) as bff:
        shown = (await bff.log_in()).body["user"]
        assert not set(DISCLOSED) & set(shown)


async def test_a_user_is_the_same_one_again(bff):
    first, second = await bff.log_in(), await bff.log_in()
    assert first.user_id == second.user_id
    assert first.token != second.token
    assert (await bff.log_in("minor")).user_id != first.user_id
    assert len(await users(bff)) == 2


@pytest.mark.parametrize("referrer", ["default", "sandbox", "Default", "SANDBOX"])
async def test_the_referrer_goes_to_toss_untouched(bff, referrer):
    """Toss refuses another letter case (reference 6.1); it is not for us to repair it."""
    handed = bff.sandbox.state.mini_apps.log_in("man")
    assert_problem(await bff.post_code(handed.authorization_code, referrer), 401, "login_rejected")
    assert (
        bff.sandbox.state.calls("login_exchange")[-1].note == "the referrer is not the one that came with the code"
    )
    # What was refused was the pair; the code itself still serves.
    assert (await bff.post_code(handed.authorization_code, "DEFAULT")).status_code == 200


async def test_a_code_serves_once(bff):
    handed = bff.sandbox.state.mini_apps.log_in("man")
    first = await bff.post_code(handed.authorization_code)
    assert first.status_code == 200
    for _ in range(2):
        assert_problem(await bff.post_code(handed.authorization_code), 401, "login_rejected")
    assert bff.sandbox.state.count("login_exchange") == 1
    assert len(await sessions(bff)) == 1


async def test_a_code_that_is_too_old(bff):
    handed = bff.sandbox.state.mini_apps.log_in("man")
    bff.sandbox.state.clock.advance(601)
    problem = assert_problem(await bff.post_code(handed.authorization_code), 401, "login_rejected")
    assert problem["tossCode"] == "invalid_grant"
    assert problem["retryable"] is False
    assert await users(bff) == []


async def test_a_code_that_toss_does_not_know(bff):
    for _ in range(3):
        assert_problem(await bff.post_code("made-up"), 401, "login_rejected")
    assert bff.sandbox.state.count("login_exchange") == 1
    assert await users(bff) == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"authorizationCode": "x"},
        {"referrer": "DEFAULT"},
        {"authorizationCode": "", "referrer": "DEFAULT"},
        {"authorizationCode": "x" * 4097, "referrer": "DEFAULT"},
        {"authorizationCode": "x", "referrer": "x" * 65},
        {"authorizationCode": "a b", "referrer": "DEFAULT"},
        {"authorizationCode": "a\x00b", "referrer": "DEFAULT"},
        {"authorizationCode": "김", "referrer": "DEFAULT"},
        {"authorizationCode": "x", "referrer": "DEFAULT\n"},
        {"authorizationCode": 1, "referrer": "DEFAULT"},
        {"authorizationCode": "x", "referrer": None},
        {"authorizationCode": "x", "referrer": "DEFAULT", "userKey": 1},
        [],
        "x",
    ],
)
async def test_input_that_is_no_login(bff, body):
    answer = await bff.http.post("/api/v1/login", json=body)
    problem = assert_problem(answer, 422, "invalid_request")
    assert "x" * 40 not in answer.text
    assert problem["errors"]
    assert bff.sandbox.state.count() == 0


@pytest.mark.parametrize("key", ["", " ", "a b", "x" * 257, "김", "a\r\nX-Evil: 1", 1, None])
async def test_input_that_is_no_anonymous_key(bff, key):
    assert_problem(await bff.http.post("/api/v1/login/anonymous", json={"anonKey": key}), 422, "invalid_request")
    assert bff.sandbox.state.count() == 0


# --- Together ------------------------------------------------------------------------------------------------


async def test_fifty_at_once_are_one_exchange(bff):
    handed = bff.sandbox.state.mini_apps.log_in("man")
    answers = await together(bff, handed.authorization_code, 50)
    assert {answer.status_code for answer in answers} == {200}
    assert bff.sandbox.state.count("login_exchange") == 1
    assert bff.sandbox.state.count("login_me") == 1
    bodies = [answer.json() for answer in answers]
    assert len({body["user"]["userId"] for body in bodies}) == 1
    assert len({body["sessionToken"] for body in bodies}) == 50
    for body in bodies[::7]:
        headers = {"Authorization": f"Bearer {body['sessionToken']}"}
        assert (await bff.http.get("/api/v1/me", headers=headers)).json() == body["user"]
    assert_problem(await bff.post_code(handed.authorization_code), 401, "login_rejected")


async def test_who_waits_for_a_rejection_hears_it_too(bff):
    answers = await together(bff, "made-up", 20)
    for answer in answers:
        assert assert_problem(answer, 401, "login_rejected")["tossCode"] == "invalid_grant"
    assert bff.sandbox.state.count("login_exchange") == 1
    assert await users(bff) == []


@pytest.mark.parametrize("call", ["login_exchange", "login_me"])
async def test_who_waits_while_toss_is_away_gets_the_same_problem(bff, call):
    handed = bff.sandbox.state.mini_apps.log_in("man")
    bff.sandbox.state.order_fault("login_exchange", "hold_before")
    bff.sandbox.state.order_fault(call, "fail", http_status=500)
    async with all_arrived(bff, 20) as arrived:
        posts = [asyncio.create_task(bff.post_code(handed.authorization_code)) for _ in range(20)]
        await arrived.wait()
        await asyncio.to_thread(bff.sandbox.state.wait_until, lambda state: state.held("login_exchange") == 1)
        if call == "login_exchange":
            # The held call is spoilt by the order that waits behind it.
            bff.sandbox.state.order_fault("login_exchange", "fail", http_status=500, after_effect=True)
        bff.sandbox.state.release("login_exchange")
        answers = await asyncio.gather(*posts)
    for answer in answers:
        problem = assert_problem(answer, 503, "upstream_unavailable")
        assert problem["retryable"] is True
        assert problem["tossCode"] == "INTERNAL_ERROR"
    assert bff.sandbox.state.count(call) == 1
    assert await users(bff) == []


async def test_two_replicas_exchange_once(settings, sandbox):
    async with Bff.running(settings, sandbox) as one, Bff.running(settings, sandbox) as other:
        handed = sandbox.state.mini_apps.log_in("man")
        sandbox.state.order_fault("login_exchange", "hold_before")
        first = asyncio.create_task(one.post_code(handed.authorization_code))
        await asyncio.to_thread(sandbox.state.wait_until, lambda state: state.held() == 1)
        other.clock.advance(seconds=4)  # "late" by its clock, but it has seen with its own eyes that it was not
        has_looked, claim = asyncio.Event(), other.resources.login._claim

        async def look(*given, **how):
            found = await claim(*given, **how)
            has_looked.set()
            return found

        other.resources.login._claim = look
        second = asyncio.create_task(other.post_code(handed.authorization_code))
        await has_looked.wait()
        sandbox.state.release()
        bodies = [(await post).json() for post in (first, second)]
        assert bodies[0]["user"] == bodies[1]["user"]
        assert bodies[0]["sessionToken"] != bodies[1]["sessionToken"]
        assert sandbox.state.count("login_exchange") == 1


async def test_who_waits_too_long_is_told_so_and_may_ask_again(settings, sandbox):
    hasty = with_toss(settings, call_deadline=timedelta(milliseconds=300))
    async with Bff.running(settings, sandbox) as one, Bff.running(hasty, sandbox) as other:
        handed = sandbox.state.mini_apps.log_in("man")
        sandbox.state.order_fault("login_exchange", "hold_before")
        first = asyncio.create_task(one.post_code(handed.authorization_code))
        await asyncio.to_thread(sandbox.state.wait_until, lambda state: state.held() == 1)
        answer = await other.post_code(handed.authorization_code)
        assert assert_problem(answer, 409, "login_in_progress")["retryable"] is True
        assert int(answer.headers["retry-after"]) >= 1
        sandbox.state.release()
        assert (await first).status_code == 200


async def test_who_will_not_wait_still_exchanges_a_code_that_is_free(bff):
    """The wait is for another's exchange; a look that has begun is seen to its end."""
    login = bff.resources.login
    login._rules = replace(login._rules, patience=timedelta())
    await bff.log_in()


async def test_a_lease_that_has_ended_is_taken_over(settings, sandbox):
    """As after a crash; the lease is three deadlines and five seconds."""
    async with Bff.running(settings, sandbox) as one, Bff.running(settings, sandbox) as other:
        handed = sandbox.state.mini_apps.log_in("man")
        sandbox.state.order_fault("login_me", "hold_before")
        first = asyncio.create_task(one.post_code(handed.authorization_code))
        await asyncio.to_thread(sandbox.state.wait_until, lambda state: state.held("login_me") == 1)
        other.clock.advance(seconds=66)
        answer = await other.post_code(handed.authorization_code)
        assert answer.status_code == 200, answer.text
        assert sandbox.state.count("login_exchange") == 1
        sandbox.state.release()
        assert (await first).status_code == 200
        assert len(await users(one)) == 1
        assert {row.state for row in await exchanges(one)} == {ExchangeState.DONE}


async def test_an_attempt_whose_lease_was_taken_over_settles_nothing(settings, sandbox):
    """Not even with a clear no: the other attempt has long made a login of this code."""
    async with Bff.running(settings, sandbox) as one, Bff.running(settings, sandbox) as other:
        handed = sandbox.state.mini_apps.log_in("man")
        sandbox.state.order_fault("login_me", "hold_before")
        first = asyncio.create_task(one.post_code(handed.authorization_code))
        await asyncio.to_thread(sandbox.state.wait_until, lambda state: state.held("login_me") == 1)
        other.clock.advance(seconds=66)
        assert (await other.post_code(handed.authorization_code)).status_code == 200
        sandbox.state.order_fault("login_me", "oauth_error", error="invalid_grant", after_effect=True)
        sandbox.state.release()
        assert_problem(await first, 401, "login_rejected")
        (exchange,) = await exchanges(one)
        assert (exchange.state, exchange.problem) == (ExchangeState.DONE, None)


async def test_tokens_that_are_stored_late_open_nothing_again(bff):
    """The write outlives its caller; by then the code may have been settled."""
    await bff.log_in()
    (exchange,) = await exchanges(bff)
    sealed = bff.resources.vault.seal("late", exchange.place_of("grant"))
    async with bff.resources.database.transaction() as session:
        await _keep_grant(session, exchange.code_hash, sealed)
    (exchange,) = await exchanges(bff)
    assert (exchange.state, exchange.grant) == (ExchangeState.DONE, None)


async def test_a_lease_is_not_taken_from_under_an_answer(bff):
    """A caller whose look came right before the settlement must not start another attempt right after it."""
    resources, clock = bff.resources, bff.clock
    began = clock()
    clock.advance(seconds=1)
    settled = clock()
    async with resources.database.transaction() as session:
        session.add(
            LoginExchange(
                code_hash="h",
                state=ExchangeState.OPEN,
                created_at=began,
                settled_at=settled,
                problem="upstream_timeout",
            )
        )
    lease = {"lease_id": "l", "now": settled, "until": settled + timedelta(minutes=1)}
    async with resources.database.transaction() as session:
        assert await take_exchange(session, "h", since=began, **lease) is None
    clock.advance(seconds=1)
    async with resources.database.transaction() as session:
        taken = await take_exchange(session, "h", since=clock(), **lease)
        assert taken is not None
        taken.state, taken.lease_id, taken.lease_until = ExchangeState.DONE, None, None
    async with resources.database.transaction() as session:
        assert await take_exchange(session, "h", since=clock(), **lease) is None


async def test_a_user_comes_into_being_once_though_from_two_devices(bff):
    """Two codes of one user, both past Toss before either is stored."""
    codes = [bff.sandbox.state.mini_apps.log_in("man").authorization_code for _ in range(8)]
    bff.sandbox.state.order_fault("login_me", "hold_before", times=8)
    posts = [asyncio.create_task(bff.post_code(code)) for code in codes]
    await asyncio.to_thread(bff.sandbox.state.wait_until, lambda state: state.held("login_me") == 8)
    bff.sandbox.state.release()
    answers = await asyncio.gather(*posts)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["user"]["userId"] for answer in answers}) == 1
    (user,) = await users(bff)
    assert user.link_version == 8


# --- What fails after the exchange ---------------------------------------------------------------------------

LOST_ME = [
    ({"kind": "reset_before", "times": 2}, 504, "upstream_timeout"),
    ({"kind": "reset_after", "times": 2}, 504, "upstream_timeout"),
    ({"kind": "fail", "http_status": 500}, 503, "upstream_unavailable"),
    ({"kind": "fail_200"}, 503, "upstream_unavailable"),
    ({"kind": "fail_200", "code": "SOMETHING_NEW"}, 502, "upstream_refused"),
    ({"kind": "fail_200", "code": "4050"}, 503, "toss_not_configured"),
    ({"kind": "fail_200", "code": "4034"}, 503, "toss_not_configured"),
    ({"kind": "fail_200", "code": "BAD_REQUEST_RETRIEVE_CERT_RESULT_EXCEEDED_LIMIT"}, 502, "upstream_refused"),
    ({"kind": "fail", "code": "X", "http_status": 401}, 503, "upstream_unavailable"),
    ({"kind": "fail_200", "result_type": "HTTP_TIMEOUT", "times": 2}, 503, "upstream_unavailable"),
    ({"kind": "fail_200", "result_type": "NETWORK_ERROR", "times": 2}, 503, "upstream_unavailable"),
    ({"kind": "fail_200", "result_type": "EXECUTION_FAIL", "times": 2}, 503, "upstream_unavailable"),
    ({"kind": "fail_200", "result_type": "INTERRUPTED", "times": 2}, 503, "upstream_unavailable"),
    ({"kind": "fail_200", "result_type": "INTERNAL_ERROR", "times": 2}, 503, "upstream_unavailable"),
    ({"kind": "fail_200", "code": "4095", "retry_after_seconds": 1}, 503, "upstream_budget_exhausted"),
    ({"kind": "oauth_error", "error": "server_error"}, 503, "upstream_unavailable"),
    ({"kind": "html_502"}, 503, "upstream_unavailable"),
    ({"kind": "truncated_json"}, 503, "upstream_unavailable"),
    ({"kind": "big_body"}, 502, "upstream_invalid"),
    ({"kind": "missing_field"}, 502, "upstream_invalid"),
    ({"kind": "wrong_type"}, 502, "upstream_invalid"),
    ({"kind": "missing_field", "field": "resultType"}, 502, "upstream_invalid"),
    ({"kind": "missing_field", "field": "success"}, 502, "upstream_invalid"),
    ({"kind": "wrong_type", "field": "success"}, 502, "upstream_invalid"),
]


def _named(case):
    return "-".join(str(value) for value in case[0].values())


@pytest.mark.parametrize("case", LOST_ME, ids=_named)
async def test_a_login_that_fails_after_the_exchange_goes_on_from_there(bff, case):
    order, status, code = case
    handed = bff.sandbox.state.mini_apps.log_in("man")
    bff.sandbox.state.order_fault("login_me", **order)
    assert_problem(await bff.post_code(handed.authorization_code), status, code)
    assert await users(bff) == []
    assert await sessions(bff) == []
    (exchange,) = await exchanges(bff)
    assert exchange.state == ExchangeState.EXCHANGED
    bff.sandbox.state.budget.clear()
    again = await bff.post_code(handed.authorization_code)
    async with asyncio.timeout(PATIENCE):
        while code == "upstream_budget_exhausted" and again.status_code == status:  # Toss's pause of a second
            again = await bff.post_code(handed.authorization_code)
    assert again.status_code == 200, again.text
    assert bff.sandbox.state.count("login_exchange") == 1
    (exchange,) = await exchanges(bff)
    assert (exchange.state, exchange.grant) == (ExchangeState.DONE, None)


@pytest.mark.parametrize(
    "order",
    [
        {"kind": "token_rejected"},
        {"kind": "oauth_error", "error": "invalid_token"},
        {"kind": "fail_200", "code": "USER_KEY_NOT_FOUND"},
        {"kind": "fail_200", "code": "USER_NOT_FOUND"},
        {"kind": "fail_200", "code": "4010"},
    ],
)
async def test_a_login_that_toss_refuses_after_the_exchange_is_over(bff, order):
    handed = bff.sandbox.state.mini_apps.log_in("man")
    bff.sandbox.state.order_fault("login_me", **order)
    for _ in range(2):
        assert_problem(await bff.post_code(handed.authorization_code), 401, "login_rejected")
    assert bff.sandbox.state.count("login_me") == 1
    (exchange,) = await exchanges(bff)
    assert (exchange.state, exchange.grant) == (ExchangeState.REJECTED, None)
    assert await users(bff) == []


@pytest.mark.parametrize("kind", ["slow", "extra_field"])
async def test_what_does_not_matter_does_not_matter(bff, kind):
    for call in ("login_exchange", "login_me"):
        bff.sandbox.state.order_fault(call, kind)
    await bff.log_in()


async def test_one_lost_answer_to_login_me_is_asked_for_again_by_itself(bff):
    bff.sandbox.state.order_fault("login_me", "reset_after")
    await bff.log_in()
    assert bff.sandbox.state.count("login_me") == 2


LOST_EXCHANGE = [
    ({"kind": "reset_before"}, 504, "upstream_timeout", True),
    ({"kind": "reset_after"}, 504, "upstream_timeout", False),
    ({"kind": "fail", "http_status": 500}, 503, "upstream_unavailable", True),
    ({"kind": "fail_200"}, 503, "upstream_unavailable", True),
    ({"kind": "fail_200", "after_effect": True}, 503, "upstream_unavailable", False),
    ({"kind": "fail_200", "result_type": "HTTP_TIMEOUT"}, 503, "upstream_unavailable", True),
    ({"kind": "fail_200", "code": "4050"}, 503, "toss_not_configured", True),
    ({"kind": "fail_200", "code": "SOMETHING_NEW"}, 502, "upstream_refused", True),
    ({"kind": "html_502"}, 503, "upstream_unavailable", True),
    ({"kind": "html_502", "after_effect": True}, 503, "upstream_unavailable", False),
    ({"kind": "truncated_json"}, 503, "upstream_unavailable", False),
    ({"kind": "big_body"}, 502, "upstream_invalid", False),
    ({"kind": "missing_field"}, 502, "upstream_invalid", False),
    ({"kind": "wrong_type"}, 502, "upstream_invalid", False),
    ({"kind": "wrong_type", "field": "success"}, 502, "upstream_invalid", False),
    ({"kind": "wrong_type", "field": "resultType"}, 502, "upstream_invalid", False),
]


@pytest.mark.parametrize("case", LOST_EXCHANGE, ids=_named)
async def test_an_exchange_that_fails_makes_nobody_and_may_be_tried_again(bff, case):
    order, status, code, still_serves = case
    handed = bff.sandbox.state.mini_apps.log_in("man")
    bff.sandbox.state.order_fault("login_exchange", **order)
    assert_problem(await bff.post_code(handed.authorization_code), status, code)
    assert await users(bff) == []
    assert bff.sandbox.state.count("login_exchange") == 1
    again = await bff.post_code(handed.authorization_code)
    if still_serves:
        assert again.status_code == 200, again.text
    else:
        assert_problem(again, 401, "login_rejected")
        assert await users(bff) == []


async def test_an_exchange_that_takes_too_long(settings, sandbox):
    async with Bff.running(with_toss(settings, call_deadline=timedelta(milliseconds=500)), sandbox) as bff:
        handed = sandbox.state.mini_apps.log_in("man")
        sandbox.state.order_fault("login_exchange", "hold_before")
        assert_problem(await bff.post_code(handed.authorization_code), 504, "upstream_timeout")
        assert await users(bff) == []
        # Toss has noticed that we are gone, so the code was never used.
        await asyncio.to_thread(sandbox.state.wait_until, lambda state: state.held() == 0)
        assert (await bff.post_code(handed.authorization_code)).status_code == 200


async def test_a_database_that_is_away_at_the_last_step_leaves_the_code_usable(settings, sandbox):
    """The tokens are kept; the lease is given back when the database is."""
    async with Bff.running(settings, sandbox) as bff:
        handed = sandbox.state.mini_apps.log_in("man")
        login = bff.resources.login
        linked = login._linked

        async def away(*_args, **_more):
            login._linked = linked
            raise StorageUnavailable

        login._linked = away
        assert_problem(await bff.post_code(handed.authorization_code), 503, "storage_unavailable")
        again = await bff.post_code(handed.authorization_code)
        assert again.status_code == 200, again.text
        assert sandbox.state.count("login_exchange") == 1


async def test_without_room_in_the_budget_nothing_is_sent(bff):
    handed = bff.sandbox.state.mini_apps.log_in("man")
    bff.sandbox.state.order_fault("login_exchange", "fail_200", code="4095", retry_after_seconds=300)
    answer = await bff.post_code(handed.authorization_code)
    assert_problem(answer, 503, "upstream_budget_exhausted")
    assert int(answer.headers["retry-after"]) > 200
    again = await bff.post_code(handed.authorization_code)
    assert_problem(again, 503, "upstream_budget_exhausted")
    assert bff.sandbox.state.count("login_exchange") == 1


async def test_old_codes_are_forgotten(bff):
    await bff.log_in()
    bff.clock.advance(minutes=19)
    assert (await bff.resources.login.purge()).codes_forgotten == 0
    bff.clock.advance(minutes=2)
    assert (await bff.resources.login.purge()).codes_forgotten == 1
    assert await exchanges(bff) == []


# --- Anonymous -----------------------------------------------------------------------------------------------


async def test_an_anonymous_login(bff):
    login = await bff.log_in_anonymously()
    assert (await bff.me(login)).json()["kind"] == "ANONYMOUS"
    assert bff.sandbox.state.count("anon_verify") == 1
    assert "maskedName" not in login.body["user"]
    again = await bff.log_in_anonymously()
    assert (again.user_id, again.token != login.token) == (login.user_id, True)
    assert (await bff.log_in_anonymously("minor")).user_id != login.user_id
    assert (await bff.log_in()).user_id != login.user_id


@pytest.mark.parametrize("status", [401, 200, 400])
async def test_an_anonymous_key_that_toss_does_not_know(bff, status):
    bff.sandbox.state.set_switches(anon_failure_status=status)
    answer = await bff.http.post("/api/v1/login/anonymous", json={"anonKey": "made-up"})
    assert_problem(answer, 401, "anon_key_rejected")
    assert await users(bff) == []


ANON_FAULTS = [
    ({"kind": "reset_before"}, 504, "upstream_timeout"),
    ({"kind": "reset_after"}, 504, "upstream_timeout"),
    ({"kind": "fail_200"}, 503, "upstream_unavailable"),
    ({"kind": "fail", "http_status": 500}, 503, "upstream_unavailable"),
    ({"kind": "fail_200", "result_type": "NETWORK_ERROR"}, 503, "upstream_unavailable"),
    ({"kind": "fail_200", "code": "SOMETHING_NEW"}, 502, "upstream_refused"),
    ({"kind": "fail_200", "code": "4095", "retry_after_seconds": 9}, 503, "upstream_budget_exhausted"),
    ({"kind": "token_rejected"}, 401, "anon_key_rejected"),
    ({"kind": "oauth_error", "error": "invalid_grant"}, 401, "anon_key_rejected"),
    ({"kind": "html_502"}, 503, "upstream_unavailable"),
    ({"kind": "truncated_json"}, 503, "upstream_unavailable"),
    ({"kind": "big_body"}, 502, "upstream_invalid"),
    ({"kind": "missing_field"}, 401, "anon_key_rejected"),
    ({"kind": "wrong_type"}, 401, "anon_key_rejected"),
]


@pytest.mark.parametrize("case", ANON_FAULTS, ids=_named)
async def test_an_anonymous_login_that_fails_makes_nobody(bff, case):
    order, status, code = case
    key = bff.sandbox.state.mini_apps.anon_key("man")
    bff.sandbox.state.order_fault("anon_verify", **order)
    answer = await bff.http.post("/api/v1/login/anonymous", json={"anonKey": key})
    assert_problem(answer, status, code)
    assert await users(bff) == []
    if code != "upstream_budget_exhausted":
        assert (await bff.http.post("/api/v1/login/anonymous", json={"anonKey": key})).status_code == 200


async def test_many_anonymous_logins_at_once_are_one_user(bff):
    key = bff.sandbox.state.mini_apps.anon_key("man")
    bff.sandbox.state.order_fault("anon_verify", "hold_before", times=8)
    posts = [asyncio.create_task(bff.http.post("/api/v1/login/anonymous", json={"anonKey": key})) for _ in range(8)]
    await asyncio.to_thread(bff.sandbox.state.wait_until, lambda state: state.held() == 8)
    bff.sandbox.state.release()
    answers = await asyncio.gather(*posts)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["user"]["userId"] for answer in answers}) == 1
    assert len(await users(bff)) == 1


async def test_an_anonymous_user_leaves_without_toss(bff):
    login = await bff.log_in_anonymously()
    before = bff.sandbox.state.count()
    answer = await bff.http.delete("/api/v1/me", headers=login.headers)
    assert answer.status_code == 204, answer.text
    assert bff.sandbox.state.count() == before
    assert await users(bff) == []
    assert_problem(await bff.me(login), 401, "session_required")
    assert (await bff.log_in_anonymously()).user_id != login.user_id
