"""Every call of Toss login and anonymous keys over real mutual TLS, whatever Toss leaves open or gets wrong."""

import asyncio
import base64
import traceback
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.toss.crypto import LoginFieldCipher
from app.toss.errors import (
    BudgetExhausted,
    OutcomeUnknown,
    TossError,
    TossFault,
    TossRejected,
    Unintelligible,
)
from app.toss.governor import USUAL_PAUSE, Lane
from app.toss.login import (
    ASSUMED_LIFE,
    NOT_VERIFIED,
    PROFILE_FIELDS,
    Grant,
    LoginApi,
    Member,
    Profile,
    scopes_of,
    user_key_of,
)
from app.toss.partner import Payload
from app.toss.transport import Answer
from sandbox.faults import ResultType
from sandbox.miniapps import DEFAULT_APP
from sandbox.switches import Switches
from tests.toss.partners import Partner, partner_at, partner_over, read, rows_with_every_pair, saying, talking_to

CALLS = ["login_exchange", "login_refresh", "login_me", "unlink_token", "unlink_user", "anon_verify"]
READS = ["login_me"]
"""Asked for once more by themselves."""
INNER_FAULTS = [kind.value for kind in ResultType if kind is not ResultType.FAIL]
PERSON = {"name": "선우하람", "phone": "01098760002", "birthday": "19850917", "gender": "MALE"}


@dataclass
class Bench:
    """A mini-app's server with a user who has logged in."""

    login: LoginApi
    toss: Partner
    sandbox: object
    cipher: LoginFieldCipher

    @property
    def mini_apps(self):
        return self.sandbox.state.mini_apps

    @property
    def user_key(self) -> int:
        return self.mini_apps.user_key("man")

    def code(self, referrer: str = "DEFAULT", **how) -> str:
        return self.mini_apps.log_in("man", referrer=referrer, **how).authorization_code

    async def grant(self, **how) -> Grant:
        return await self.login.exchange(self.code(**how), "DEFAULT")

    async def calls(self, login: LoginApi | None = None) -> dict[str, Callable[[], Awaitable[object]]]:
        """Each would succeed."""
        login, grant = login or self.login, await self.grant()
        code, key = self.code(), self.mini_apps.anon_key("man")
        return {
            "login_exchange": lambda: login.exchange(code, "DEFAULT"),
            "login_refresh": lambda: login.refresh(grant.refresh_token),
            "login_me": lambda: login.me(grant.access_token),
            "unlink_token": lambda: login.unlink_by_token(grant.access_token),
            "unlink_user": lambda: login.unlink_by_user_key(self.user_key, access_token=grant.access_token),
            "anon_verify": lambda: login.verify_anon_key(key),
        }

    def hasty(self) -> LoginApi:
        """Over the same connections, with hardly any patience."""
        url = self.sandbox.partner_url
        toss = partner_over(self.toss.transport, url, pot=self.toss.pot, deadline=timedelta(seconds=0.4))
        return LoginApi(partner=toss.api)


def bench_of(sandbox, toss: Partner) -> Bench:
    keys = [base64.b64decode(text) for text in (sandbox.second_decryption_key, sandbox.decryption_key)]
    cipher = LoginFieldCipher(keys=keys, aads=(sandbox.aad,))
    return Bench(LoginApi(partner=toss.api), toss, sandbox, cipher)


@pytest.fixture
def bench(sandbox, transport):
    return bench_of(sandbox, partner_over(transport, sandbox.partner_url))


async def fault_of(call: Awaitable[object], kind: type[TossError]) -> TossError:
    with pytest.raises(kind) as caught:
        await call
    shown = "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value))
    assert not [text for text in (*PERSON.values(), "eyJ", "Bearer") if text in shown]
    return caught.value


async def rejected(call: Awaitable[object]) -> tuple[int, str]:
    error = await fault_of(call, TossRejected)
    return error.http_status, error.error_code


# --- As documented ----------------------------------------------------------------------------------------


async def test_a_user_logs_in(bench):
    code = bench.code()
    grant = await bench.login.exchange(code, "DEFAULT")
    assert grant.expires_in == 3599
    assert await rejected(bench.login.exchange(code, "DEFAULT")) == (400, "invalid_grant")
    member = await bench.login.me(grant.access_token)
    assert member.user_key == bench.user_key
    assert member.agreed_terms == ("terms_1",)
    assert {"user_name", "user_ci", "user_key"} <= set(member.scopes)
    assert not [scope for scope in member.scopes if scope.strip(", ") != scope]
    profile = member.open(bench.cipher)
    assert profile.unreadable == ()
    assert profile.personal.items() >= PERSON.items()
    assert set(profile.personal) == set(PROFILE_FIELDS) - {"callingCode"}
    renewed = await bench.login.refresh(grant.refresh_token, lane=Lane.BACKGROUND)
    assert renewed.access_token != grant.access_token
    assert (await bench.login.me(renewed.access_token, lane=Lane.BACKGROUND)).user_key == member.user_key


@pytest.mark.parametrize("referrer", ["DEFAULT", "SANDBOX"])
async def test_the_referrer_is_passed_on_untouched(bench, referrer):
    for other in (referrer.lower(), f" {referrer}", f"{referrer} ", referrer.title()):
        assert await rejected(bench.login.exchange(bench.code(referrer), other)) == (400, "invalid_grant")
    assert await bench.login.exchange(bench.code(referrer), referrer)


@pytest.mark.parametrize("lane", list(Lane))
async def test_background_work_is_charged_as_such(bench, sandbox, lane):
    grant, pot = await bench.grant(), bench.toss.pot
    sandbox.state.set_switches(unlink_unknown_is_success=True)
    login, pot.admitted = bench.login, []
    grant = await login.refresh(grant.refresh_token, lane=lane)
    sandbox.state.order_fault("login_me", "reset_before")
    await login.me(grant.access_token, lane=lane)
    await login.unlink_by_token(grant.access_token, lane=lane)
    await login.unlink_by_user_key(bench.user_key, access_token=None, lane=lane)
    expected = ["all", "background"] if lane is Lane.BACKGROUND else ["all"]
    assert [[charge.counter for charge in charges] for charges in pot.admitted] == [expected] * 5


async def test_only_what_was_consented_to_arrives(bench):
    grant = await bench.grant(scopes=["user_name"])
    member = await bench.login.me(grant.access_token)
    assert set(member.closed) == {"name"}
    assert member.open(bench.cipher).personal == {"name": PERSON["name"]}


async def test_an_unlink_ends_the_tokens(bench):
    grant = await bench.grant()
    await bench.login.unlink_by_token(grant.access_token)
    assert not bench.mini_apps.is_linked("man")
    assert await rejected(bench.login.unlink_by_token(grant.access_token)) == (401, "invalid_grant")
    assert await rejected(bench.login.me(grant.access_token)) == (401, "invalid_grant")
    assert await rejected(bench.login.refresh(grant.refresh_token)) == (200, "4010")
    await bench.grant()
    await bench.login.unlink_by_user_key(bench.user_key, access_token=None)
    assert not bench.mini_apps.is_linked("man")
    again = bench.login.unlink_by_user_key(bench.user_key, access_token=None)
    assert await rejected(again) == (200, "USER_KEY_NOT_FOUND")
    too_large = bench.login.unlink_by_user_key(2**63, access_token=None)
    assert await rejected(too_large) == (400, "INVALID_PARAMETER")


async def test_an_anonymous_key_is_verified(bench):
    await bench.login.verify_anon_key(bench.mini_apps.anon_key("man"))
    assert await rejected(bench.login.verify_anon_key("nobody's")) == (401, "4010")
    foreign = bench.mini_apps.anon_key("man", "another-app")
    assert await rejected(bench.login.verify_anon_key(foreign)) == (401, "4010")


@pytest.mark.parametrize("key", ["", "a b", "a\r\nx-toss-user-key: 5", "a\n", "é", "키", "\ud800", "\0", "a" * 513])
async def test_an_anonymous_key_that_no_header_can_hold_is_not_verified_and_not_sent(bench, key):
    error = await fault_of(bench.login.verify_anon_key(key), TossRejected)
    assert error.error_code == NOT_VERIFIED
    assert key == "" or key not in str(error)
    assert (bench.sandbox.state.count(), bench.toss.pot.asked) == (0, 0)


async def test_a_mini_app_without_login_is_told_so(bench):
    grant = await bench.grant()
    code = bench.code()
    bench.mini_apps.configure(DEFAULT_APP, is_login_configured=False)
    for call in (
        bench.login.exchange(code, "DEFAULT"),
        bench.login.me(grant.access_token),
        bench.login.unlink_by_user_key(bench.user_key, access_token=None),
    ):
        assert await rejected(call) == (200, "4050")


async def test_a_user_who_has_left_toss_is_not_found(bench):
    grant = await bench.grant()
    bench.mini_apps._users.pop("man")
    assert await rejected(bench.login.me(grant.access_token)) == (200, "USER_NOT_FOUND")


# --- What the reference leaves open -----------------------------------------------------------------------

SWITCHES: dict[str, list[object]] = {
    "payload_key": ["success", "result"],
    "user_key_as_text": [False, True],
    "numbers_as_text": [False, True],
    "failure_without_success": [False, True],
    "short_errors": [False, True],
    "explicit_error_null": [False, True],
    "invalid_grant_status": [None, 200, 400, 401],
    "rate_limit_status": [200, 429, 400, 503],
    "refresh_rotation": ["rotate", "overlap", "keep"],
    "refresh_refusal_code": ["4010", None, "INVALID_PARAMETER"],
    "login_ends_older_tokens": [False, True],
    "scope_blanks": [True, False],
    "agree_terms_spelling": [False, True],
    "login_me_extras": [False, True],
    "decryption_key": ["first", "second"],
    "wrong_aad_fields": [[], ["name", "ci"], ["callingCode"]],
    "unlink_user_needs_bearer": [False, True],
    "unlink_token_empty": [False, True],
    "unlink_unknown_is_success": [False, True],
    "anon_success_as_text": [False, True],
    "anon_failure_status": [401, 200],
    "tls_1_3": [True, False],
}


ALONE = [{name: value} for name, values in SWITCHES.items() for value in values[1:]]
TOGETHER = rows_with_every_pair(SWITCHES)


def test_every_switch_of_the_partner_api_is_turned():
    of_partner = list(Switches.model_fields)[list(Switches.model_fields).index("payload_key") :]
    assert set(SWITCHES) == {*of_partner, "explicit_error_null", "tls_1_3"}


@pytest.mark.parametrize("how", [{}, *ALONE], ids=str)
async def test_the_whole_story_under_each_switch(sandbox, pair_folder, how):
    await tell_the_story(sandbox, pair_folder, how)


@pytest.mark.parametrize("number", range(len(TOGETHER)))
async def test_the_whole_story_under_every_two_switches(sandbox, pair_folder, number):
    await tell_the_story(sandbox, pair_folder, TOGETHER[number])


async def tell_the_story(sandbox, folder, how: dict[str, object]) -> None:
    switches = sandbox.state.set_switches(**how)
    async with partner_at(sandbox.partner_url, ca_file=sandbox.ca_file, folder=folder) as toss:
        bench = bench_of(sandbox, toss)
        login, user_key = bench.login, bench.user_key

        def no(usual: int) -> tuple[int, str]:
            return switches.invalid_grant_status or usual, "invalid_grant"

        code = bench.code()
        assert await rejected(login.exchange(code, "default")) == no(400)
        first = await login.exchange(code, "DEFAULT")
        assert first.expires_in == 3599
        assert await rejected(login.exchange(code, "DEFAULT")) == no(400)
        await check_member(bench, await login.me(first.access_token), switches)

        second = await check_refresh(bench, first, switches)
        assert await rejected(login.me("no-such-token")) == no(401)
        third = await bench.grant()
        if switches.login_ends_older_tokens:
            assert await rejected(login.me(second.access_token)) == no(401)
        else:
            assert (await login.me(second.access_token)).user_key == user_key

        await login.verify_anon_key(bench.mini_apps.anon_key("man"))
        assert await rejected(login.verify_anon_key("x")) == (switches.anon_failure_status, "4010")

        if switches.unlink_user_needs_bearer:
            assert await rejected(login.unlink_by_user_key(user_key, access_token=None)) == no(401)
        assert bench.mini_apps.is_linked("man")
        await login.unlink_by_user_key(user_key, access_token=third.access_token)
        assert not bench.mini_apps.is_linked("man")
        again = login.unlink_by_user_key(user_key, access_token=None)
        if switches.unlink_user_needs_bearer:
            assert await rejected(again) == no(401)
        elif switches.unlink_unknown_is_success:
            await again
        else:
            assert await rejected(again) == (200, "USER_KEY_NOT_FOUND")

        fourth = await bench.grant()
        await login.unlink_by_token(fourth.access_token)
        assert not bench.mini_apps.is_linked("man")
        assert await rejected(login.unlink_by_token(fourth.access_token)) == no(401)
        assert await rejected(login.unlink_by_user_key(-1, access_token=None)) == (400, "INVALID_PARAMETER")
        assert bench.toss.pot.asked == sandbox.state.budget.calls(DEFAULT_APP) == sandbox.state.count()
        await check_limit(bench, switches)


async def check_member(bench: Bench, member: Member, switches: Switches) -> None:
    assert (member.user_key, member.agreed_terms) == (bench.user_key, ("terms_1",))
    assert member.scopes == (
        *("user_name", "user_phone", "user_birthday", "user_ci", "user_gender", "user_nationality", "user_email"),
        "user_key",
    )
    profile = member.open(bench.cipher)
    sent = set(PROFILE_FIELDS) - (set() if switches.login_me_extras else {"callingCode"})
    spoilt = sent & set(switches.wrong_aad_fields)
    assert set(profile.unreadable) == spoilt
    assert set(profile.personal) == sent - spoilt
    assert profile.personal["birthday"] == PERSON["birthday"]
    assert ("callingCode" in profile.personal) == ("callingCode" in sent - spoilt)


async def check_refresh(bench: Bench, grant: Grant, switches: Switches) -> Grant:
    renewed = await bench.login.refresh(grant.refresh_token)
    assert (renewed.refresh_token == grant.refresh_token) == (switches.refresh_rotation == "keep")
    again = bench.login.refresh(grant.refresh_token)
    if switches.refresh_rotation != "rotate":
        await again
    elif switches.refresh_refusal_code is None:
        assert await rejected(again) == (switches.invalid_grant_status or 400, "invalid_grant")
    else:
        assert await rejected(again) == (200, switches.refresh_refusal_code)
    return renewed


async def check_limit(bench: Bench, switches: Switches) -> None:
    budget = bench.sandbox.state.budget
    budget.set_limit(DEFAULT_APP, 0, window_seconds=30)
    error = await fault_of(bench.login.verify_anon_key("x"), BudgetExhausted)
    calls = budget.calls(DEFAULT_APP)
    if switches.short_errors:
        assert error.retry_after == USUAL_PAUSE
    else:
        assert timedelta(seconds=29) <= error.retry_after <= timedelta(seconds=30)
    for call in (bench.login.verify_anon_key("x"), bench.login.me("x"), bench.login.exchange("x", "DEFAULT")):
        again = await fault_of(call, BudgetExhausted)
        assert (again.retry_after, again.limit) == (error.retry_after, "pause")
    assert (budget.calls(DEFAULT_APP), budget.refusals(DEFAULT_APP)) == (calls, 1)
    assert bench.toss.pot.pauses == [error.retry_after]


# --- Faults -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", ["slow", "hold_before", "hold"])
async def test_an_answer_that_does_not_come_in_time_leaves_the_outcome_unknown(bench, sandbox, call, kind):
    calls = await bench.calls(bench.hasty())
    tries = 2 if call in READS else 1
    asked = sandbox.state.count(call)
    sandbox.state.order_fault(call, kind, times=tries, delay=30 if kind == "slow" else 0)
    error = await fault_of(calls[call](), OutcomeUnknown)
    assert type(error) is OutcomeUnknown
    # Until Toss knows that nobody waits any more: else a call might take effect in the next test.
    await asyncio.to_thread(
        sandbox.state.wait_until,
        lambda state: state.count(call) == asked + tries and state.in_flight(call) == 0,
    )
    took_effect = sandbox.state.calls(call)[-1].answer == "SUCCESS"
    assert took_effect == (kind == "hold")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", ["reset_before", "reset_after"])
async def test_a_lost_answer_leaves_the_outcome_unknown_and_only_a_read_is_asked_for_again(
    bench, sandbox, call, kind
):
    calls = await bench.calls()
    asked, admitted = sandbox.state.count(call), len(bench.toss.pot.admitted)
    sandbox.state.order_fault(call, kind)
    if call in READS:
        assert await calls[call]()
        sandbox.state.order_fault(call, kind, times=2)
        tries = 4
    else:
        tries = 1
    assert isinstance(await fault_of(calls[call](), OutcomeUnknown), OutcomeUnknown)
    assert sandbox.state.count(call) == asked + tries
    assert len(bench.toss.pot.admitted) == admitted + tries
    assert sandbox.state.pending_faults() == []


async def test_what_the_second_question_brings_counts(bench, sandbox):
    grant = await bench.grant()
    sandbox.state.order_fault("login_me", "reset_before")
    sandbox.state.order_fault("login_me", "token_rejected")
    assert await rejected(bench.login.me(grant.access_token)) == (401, "invalid_grant")
    sandbox.state.order_fault("login_me", "fail", result_type="HTTP_TIMEOUT")
    sandbox.state.order_fault("login_me", "fail", code="4095", retry_after_seconds=5)
    error = await fault_of(bench.login.me(grant.access_token), BudgetExhausted)
    assert error.retry_after == timedelta(seconds=5)
    assert sandbox.state.count("login_me") == 4


async def test_a_code_whose_answer_was_lost_is_refused_the_second_time(bench, sandbox):
    """What makes trying again harmless: a code serves once (reference 2.4)."""
    calls = await bench.calls()
    for kind, then in (("reset_before", None), ("reset_after", (400, "invalid_grant"))):
        sandbox.state.order_fault("login_exchange", kind)
        code = bench.code()
        await fault_of(bench.login.exchange(code, "DEFAULT"), OutcomeUnknown)
        if then is None:
            assert await bench.login.exchange(code, "DEFAULT")
        else:
            assert await rejected(bench.login.exchange(code, "DEFAULT")) == then
    assert await calls["login_me"]()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("after_effect", [False, True])
async def test_a_gateways_page_is_unintelligible_and_never_repeated(bench, sandbox, call, after_effect):
    calls = await bench.calls()
    asked = sandbox.state.count(call)
    sandbox.state.order_fault(call, "html_502", after_effect=after_effect)
    error = await fault_of(calls[call](), Unintelligible)
    assert (error.http_status, error.is_json, error.was_refused) == (502, False, False)
    assert sandbox.state.count(call) == asked + 1


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize("how", [{}, {"short_errors": True, "failure_without_success": True}], ids=str)
async def test_a_failure_is_a_no_whatever_the_status(bench, sandbox, call, status, how):
    calls = await bench.calls()
    sandbox.state.set_switches(**how)
    asked = sandbox.state.count(call)
    sandbox.state.order_fault(call, "fail", code="USER_NOT_FOUND", http_status=status)
    assert await rejected(calls[call]()) == (status, "USER_NOT_FOUND")
    sandbox.state.order_fault(call, "fail_200")
    assert await rejected(calls[call]()) == (200, "INTERNAL_ERROR")
    assert sandbox.state.count(call) == asked + 2


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("result_type", INNER_FAULTS)
async def test_a_failure_inside_toss_leaves_the_outcome_unknown(bench, sandbox, call, result_type):
    calls = await bench.calls()
    tries = 2 if call in READS else 1
    asked = sandbox.state.count(call)
    sandbox.state.order_fault(call, "fail", result_type=result_type, http_status=500, times=tries)
    error = await fault_of(calls[call](), TossFault)
    assert error.error_code == "INTERNAL_ERROR"
    assert sandbox.state.count(call) == asked + tries


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("result_type", list(ResultType))
@pytest.mark.parametrize("how", [{}, {"short_errors": True}, {"numbers_as_text": True}], ids=str)
async def test_4095_pauses_every_call(bench, sandbox, call, result_type, how):
    calls = await bench.calls()
    sandbox.state.set_switches(**how)
    asked = sandbox.state.count()
    sandbox.state.order_fault(
        call, "fail", code="4095", retry_after_seconds=42, result_type=result_type, http_status=429
    )
    expected = USUAL_PAUSE if how.get("short_errors") else timedelta(seconds=42)
    for name in (call, *CALLS):
        error = await fault_of(calls[name](), BudgetExhausted)
        assert error.retry_after == expected
    assert sandbox.state.count() == asked + 1
    assert bench.toss.pot.pauses == [expected]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("status", [200, 400, 401])
async def test_a_bare_invalid_grant_is_a_no(bench, sandbox, call, status):
    calls = await bench.calls()
    sandbox.state.order_fault(call, "oauth_error", http_status=status)
    assert await rejected(calls[call]()) == (status, "invalid_grant")


@pytest.mark.parametrize("call", CALLS)
async def test_a_bare_error_of_a_server_is_no_no(bench, sandbox, call):
    calls = await bench.calls()
    sandbox.state.order_fault(call, "oauth_error", error="Internal Server Error", http_status=500)
    error = await fault_of(calls[call](), Unintelligible)
    assert (error.http_status, error.is_json) == (500, True)


@pytest.mark.parametrize("call", CALLS)
async def test_half_an_answer_is_unintelligible(bench, sandbox, call):
    calls = await bench.calls()
    sandbox.state.order_fault(call, "truncated_json")
    error = await fault_of(calls[call](), Unintelligible)
    assert (error.http_status, error.is_json) == (200, False)


@pytest.mark.parametrize("call", CALLS)
async def test_a_huge_answer_is_unintelligible_and_a_large_one_is_read(bench, sandbox, call):
    calls = await bench.calls()
    sandbox.state.order_fault(call, "big_body", size=2 * 1024 * 1024)
    assert (await fault_of(calls[call](), Unintelligible)).http_status == 200
    calls = await bench.calls()
    sandbox.state.order_fault(call, "big_body", size=100_000)
    await calls[call]()


@pytest.mark.parametrize("call", CALLS)
async def test_fields_that_nobody_knows_are_ignored(bench, sandbox, call):
    calls = await bench.calls()
    sandbox.state.order_fault(call, "extra_field")
    await calls[call]()
    assert sandbox.state.pending_faults() == []


@pytest.mark.parametrize("kind", ["missing_field", "wrong_type"])
@pytest.mark.parametrize("payload_key", ["success", "result"])
@pytest.mark.parametrize(
    ("call", "field"),
    [
        ("login_exchange", "accessToken"),
        ("login_refresh", "accessToken"),
        ("login_me", "userKey"),
        ("login_exchange", "{payload}"),
        ("login_refresh", "{payload}"),
        ("login_me", "{payload}"),
        *((call, "resultType") for call in CALLS),
    ],
)
async def test_without_what_matters_an_answer_is_unintelligible(bench, sandbox, call, field, kind, payload_key):
    calls = await bench.calls()
    sandbox.state.set_switches(payload_key=payload_key)
    asked = sandbox.state.count(call)
    sandbox.state.order_fault(call, kind, field=field.format(payload=payload_key))
    error = await fault_of(calls[call](), Unintelligible)
    assert (error.http_status, error.is_json) == (200, True)
    assert sandbox.state.count(call) == asked + 1


@pytest.mark.parametrize("kind", ["missing_field", "wrong_type"])
async def test_a_verification_without_a_yes_is_none(bench, sandbox, kind):
    key = bench.mini_apps.anon_key("man")
    sandbox.state.order_fault("anon_verify", kind)
    assert await rejected(bench.login.verify_anon_key(key)) == (200, NOT_VERIFIED)


@pytest.mark.parametrize("kind", ["missing_field", "wrong_type"])
@pytest.mark.parametrize("field", ["tokenType", "expiresIn", "scope"])
async def test_tokens_need_little_more_than_themselves(bench, sandbox, kind, field):
    sandbox.state.order_fault("login_exchange", kind, field=field)
    grant = await bench.grant()
    assert grant.expires_in == (ASSUMED_LIFE if field == "expiresIn" else 3599)
    assert grant.refresh_token is not None


async def test_tokens_may_come_without_a_refresh_token(bench, sandbox):
    sandbox.state.order_fault("login_exchange", "missing_field", field="refreshToken")
    assert (await bench.grant()).refresh_token is None


@pytest.mark.parametrize("kind", ["missing_field", "wrong_type"])
@pytest.mark.parametrize("field", ["scope", "agreedTerms", "di", *PROFILE_FIELDS])
async def test_a_member_needs_nothing_but_the_user_key(bench, sandbox, kind, field):
    grant = await bench.grant()
    sandbox.state.order_fault("login_me", kind, field=field)
    member = await bench.login.me(grant.access_token)
    assert member.user_key == bench.user_key
    assert (member.scopes == ()) == (field == "scope")
    assert (member.agreed_terms == ()) == (field == "agreedTerms")
    profile = member.open(bench.cipher)
    assert profile.unreadable == ((field,) if field in PROFILE_FIELDS and kind == "wrong_type" else ())
    assert set(profile.personal) == set(PROFILE_FIELDS) - {field, "callingCode"}


@pytest.mark.parametrize("kind", ["damaged_tag", "wrong_aad", "wrong_key"])
@pytest.mark.parametrize("field", [None, "name"])
async def test_a_field_that_does_not_open_costs_that_field(bench, sandbox, kind, field):
    """The wrong key is the other of the two, so it opens as well unless only one is known."""
    keys = [base64.b64decode(sandbox.decryption_key)]
    grant = await bench.grant()
    sandbox.state.order_fault("login_me", kind, field=field)
    member = await bench.login.me(grant.access_token)
    profile = member.open(LoginFieldCipher(keys=keys, aads=(sandbox.aad,)))
    everything = set(PROFILE_FIELDS) - {"callingCode"}
    spoilt = {field} if field else everything
    assert (set(profile.unreadable), set(profile.personal)) == (spoilt, everything - spoilt)
    assert set(member.open(bench.cipher).unreadable) == (set() if kind == "wrong_key" else spoilt)


@pytest.mark.parametrize("call", CALLS)
async def test_a_rejected_token_is_a_no(bench, sandbox, call):
    calls = await bench.calls()
    sandbox.state.order_fault(call, "token_rejected")
    expected = {
        "login_exchange": (400, "invalid_grant"),
        "login_refresh": (200, "4010"),
        "anon_verify": (401, "4010"),
    }.get(call, (401, "invalid_grant"))
    assert await rejected(calls[call]()) == expected


# --- What is sent -----------------------------------------------------------------------------------------

GRANTED = {"accessToken": "t0k3n", "refreshToken": "r3fr3sh"}
REFERRERS = ["DEFAULT", "SANDBOX", "sandbox", "", " Odd\treferrer ", "레퍼러", '"\\u0041"']


@asynccontextmanager
async def login_at(ca, payload: object, *, status: str = "200 OK", body: bytes | None = None):
    async with talking_to(ca, saying(payload) if body is None else body, status=status) as (partner, host):
        yield LoginApi(partner=partner), host


async def test_every_call_is_of_the_documented_form_and_carries_only_its_own_credentials(ca):
    prefix = "/api-partner/v1/apps-in-toss"
    oauth = f"{prefix}/user/oauth2"
    async with login_at(ca, {**GRANTED, "userKey": 5}) as (login, host):
        await login.exchange("c0d3", "DEFAULT")
        await login.refresh("r3fr3sh")
        await login.me("t0k3n")
        await login.unlink_by_token("t0k3n")
        await login.unlink_by_user_key(5, access_token=None)
        await login.unlink_by_user_key(2**63 - 1, access_token="t0k3n")
        with pytest.raises(TossRejected):
            await login.verify_anon_key("h4sh/+=_-")
    sent = [read(request) for request in host.requests]
    assert [(line.removesuffix(" HTTP/1.1"), body) for line, _, body in sent] == [
        (f"POST {oauth}/generate-token", {"authorizationCode": "c0d3", "referrer": "DEFAULT"}),
        (f"POST {oauth}/refresh-token", {"refreshToken": "r3fr3sh"}),
        (f"GET {oauth}/login-me", None),
        (f"POST {oauth}/access/remove-by-access-token", {}),
        (f"POST {oauth}/access/remove-by-user-key", {"userKey": 5}),
        (f"POST {oauth}/access/remove-by-user-key", {"userKey": 2**63 - 1}),
        (f"POST {prefix}/users/anon-key/verify", {}),
    ]
    bearer = "Bearer t0k3n"
    assert [headers.get("authorization") for _, headers, _ in sent] == [
        *(None, None, bearer, bearer, None, bearer, None)
    ]
    assert [headers.get("x-anon-key") for _, headers, _ in sent] == [None] * 6 + ["h4sh/+=_-"]
    usual = {"host", "accept", "accept-encoding", "connection", "user-agent"}
    own = {"authorization", "x-anon-key", "content-type", "content-length"}
    assert set().union(*(headers for _, headers, _ in sent)) == usual | own
    assert {headers.get("content-type") for line, headers, _ in sent if line.startswith("POST")} == {
        "application/json"
    }


@pytest.mark.parametrize("referrer", REFERRERS)
@pytest.mark.parametrize("code", ["c0d3", "", " c ", "코드"])
async def test_code_and_referrer_arrive_letter_for_letter(ca, code, referrer):
    async with login_at(ca, GRANTED) as (login, host):
        await login.exchange(code, referrer)
    assert read(host.requests[0])[2] == {"authorizationCode": code, "referrer": referrer}


# --- What is read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        ("401 Unauthorized", b"", (401, NOT_VERIFIED)),
        ("401 Unauthorized", b"<html>401</html>", (401, NOT_VERIFIED)),
        ("401 Unauthorized", b'{"message":"Unauthorized"}', (401, NOT_VERIFIED)),
        ("401 Unauthorized", b'{"error":"invalid_grant"}', (401, "invalid_grant")),
        ("200 OK", b'{"resultType":"SUCCESS"}', (200, NOT_VERIFIED)),
        ("200 OK", b'{"resultType":"SUCCESS","success":false}', (200, NOT_VERIFIED)),
        ("200 OK", b'{"resultType":"SUCCESS","success":"false"}', (200, NOT_VERIFIED)),
        ("200 OK", b'{"resultType":"SUCCESS","success":1}', (200, NOT_VERIFIED)),
        ("200 OK", b'{"resultType":"SUCCESS","success":{}}', (200, NOT_VERIFIED)),
        ("200 OK", b'{"resultType":"SUCCESS","success":["true"]}', (200, NOT_VERIFIED)),
        ("200 OK", b'{"resultType":"SUCCESS","success":{"true":true}}', (200, NOT_VERIFIED)),
        ("401 Unauthorized", b'{"resultType":"FAIL","error":{"errorCode":"4010"}}', (401, "4010")),
        ("200 OK", b'{"resultType":"FAIL","error":{"errorCode":4010}}', (200, "4010")),
    ],
)
async def test_an_anonymous_key_is_refused_in_many_forms(ca, status, body, expected):
    async with login_at(ca, None, status=status, body=body) as (login, host):
        assert await rejected(login.verify_anon_key("h4sh")) == expected
        assert len(host.requests) == 1


@pytest.mark.parametrize("body", [b"true", b'"true"', b'"TRUE"', b'" true "'])
@pytest.mark.parametrize("key", [b"success", b"result"])
async def test_and_verified_in_some(ca, body, key):
    async with login_at(ca, None, body=b'{"resultType":"SUCCESS","%s":%s}' % (key, body)) as (login, _):
        await login.verify_anon_key("h4sh")


@pytest.mark.parametrize("status", ["400 Bad Request", "403 Forbidden", "404 Not Found", "500 Oops", "200 OK"])
async def test_other_nonsense_about_an_anonymous_key_is_no_answer(ca, status):
    async with login_at(ca, None, status=status, body=b'{"message":"x"}') as (login, _):
        await fault_of(login.verify_anon_key("h4sh"), Unintelligible)


@pytest.mark.parametrize("value", [0, -1, 2**63, "0", "9223372036854775808", True, None, 1e300, "1" * 25, [5]])
def test_a_user_key_is_a_positive_int64(value):
    assert user_key_of(value) is None
    assert [user_key_of(key) for key in (1, "1", 2**63 - 1, str(2**63 - 1))] == [1, 1, 2**63 - 1, 2**63 - 1]


@given(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.lists(st.text()))
def test_nothing_that_comes_as_a_user_key_breaks_anything(value):
    assert user_key_of(value) is None or 0 < user_key_of(value) < 2**63
    assert all(scope and scope.strip() == scope for scope in scopes_of(value))


@pytest.mark.parametrize(
    ("value", "scopes"),
    [
        ("user_name user_key", ("user_name", "user_key")),
        ("user_name,user_key", ("user_name", "user_key")),
        (" user_name ,, user_key\t\n", ("user_name", "user_key")),
        ("", ()),
        (None, ()),
        (["user_name"], ()),
    ],
)
def test_scopes_are_separated_in_either_way(value, scopes):
    assert scopes_of(value) == scopes


@pytest.mark.parametrize(
    ("fields", "expires_in"),
    [
        ({}, ASSUMED_LIFE),
        ({"expiresIn": "3599"}, 3599),
        ({"expiresIn": 3599.0}, 3599),
        ({"expiresIn": 0}, ASSUMED_LIFE),
        ({"expiresIn": -1}, ASSUMED_LIFE),
        ({"expiresIn": None}, ASSUMED_LIFE),
        ({"expiresIn": "soon"}, ASSUMED_LIFE),
        ({"expiresIn": True}, ASSUMED_LIFE),
        ({"expiresIn": 10**30}, ASSUMED_LIFE),
    ],
)
def test_a_life_that_cannot_be_read_is_assumed_to_be_short(fields, expires_in):
    assert Payload(200, GRANTED | fields).parse(Grant).expires_in == expires_in


@pytest.mark.parametrize(
    "token", ["", " ", "a b", "a\n", "a\r\nx: y", "토큰", "\ud800", "x" * 8193, True, ["t"], {}]
)
@pytest.mark.parametrize("name", ["accessToken", "refreshToken"])
def test_a_token_that_no_header_can_hold_is_unintelligible(name, token):
    with pytest.raises(Unintelligible, match=f"bad fields: {name} ") as caught:
        Payload(200, GRANTED | {name: token}).parse(Grant)
    assert "x: y" not in "".join(traceback.format_exception(caught.value))


def test_a_token_may_come_as_a_number_and_a_refresh_token_not_at_all():
    grant = Payload(200, {"accessToken": 12345, "refreshToken": None, "scope": 7}).parse(Grant)
    assert (grant.access_token, grant.refresh_token) == ("12345", None)


@pytest.mark.parametrize(
    ("fields", "terms"),
    [
        ({"agreedTerms": ["a", "b"]}, ("a", "b")),
        ({"agreeTerms": ["a"]}, ("a",)),
        ({"agreedTerms": ["a"], "agreeTerms": ["b"]}, ("a",)),
        ({"agreedTerms": None, "agreeTerms": ["b"]}, ("b",)),
        ({"agreedTerms": ["a", 5, None, {"tag": "b"}]}, ("a",)),
        ({"agreedTerms": "a"}, ()),
        ({}, ()),
    ],
)
async def test_terms_have_two_spellings(ca, fields, terms):
    async with login_at(ca, {"userKey": "5", **fields}) as (login, _):
        member = await login.me("t0k3n")
    assert (member.user_key, member.agreed_terms, member.scopes, dict(member.closed)) == (5, terms, (), {})


@pytest.mark.parametrize("user_key", [None, 0, -1, "", "abc", 2**63, True, {}, 1.5])
async def test_without_a_user_key_there_is_no_member(ca, user_key):
    async with login_at(ca, {"userKey": user_key, "name": "x"}) as (login, host):
        await fault_of(login.me("t0k3n"), Unintelligible)
        assert len(host.requests) == 1


async def test_absent_fields_are_absent_in_all_their_spellings(ca):
    fields = {"userKey": 5, "name": None, "phone": "", "ci": "null", "gender": "x", "di": "y", "email": 7}
    async with login_at(ca, fields) as (login, _):
        assert (await login.me("t0k3n")).closed == {"gender": "x", "email": 7}


def test_nothing_shows_itself():
    token, plain = "eyJ.t0k3n", "홍길동"
    grant = Payload(200, {"accessToken": token, "refreshToken": token}).parse(Grant)
    member = Member(user_key=77, scopes=("s1",), agreed_terms=("t1",), closed={"name": plain})
    profile = Profile({"name": plain}, ("ci",))
    for shown in (grant, member, profile, Payload(200, {"name": plain}), Answer(200, plain.encode())):
        for text in (repr(shown), str(shown), f"{shown}", f"{[shown]}", f"{ {'a': shown} }"):
            assert not [secret for secret in (token, plain, "77", "s1", "t1", "ci") if secret in text]
