"""Each fault order does at the partner API what it says, once, to the call it names."""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from cryptography.exceptions import InvalidTag

from sandbox.faults import ResultType
from tests.sandbox.partner import ENCRYPTED, bare, failure, open_field, success

LOST = (httpx2.ReadError, httpx2.RemoteProtocolError)
CALLS = ["login_exchange", "login_refresh", "login_me", "unlink_token", "unlink_user", "anon_verify"]
GRANT = {"error": "invalid_grant"}


@pytest.fixture
def calls(partner, sandbox):
    """Each would succeed."""
    tokens = partner.tokens()
    code, key = partner.code(), sandbox.state.mini_apps.anon_key("man")
    user_key = sandbox.state.mini_apps.user_key("man")
    return {
        "login_exchange": lambda: partner.exchange(code),
        "login_refresh": lambda: partner.refresh(tokens["refreshToken"]),
        "login_me": lambda: partner.me(tokens["accessToken"]),
        "unlink_token": lambda: partner.unlink_token(tokens["accessToken"]),
        "unlink_user": lambda: partner.unlink_user(user_key),
        "anon_verify": lambda: partner.anon(key),
    }


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", ["reset_before", "reset_after"])
def test_any_call_can_be_cut(calls, sandbox, call, kind):
    sandbox.state.order_fault(call, kind)
    with pytest.raises(LOST):
        calls[call]()
    took_effect = sandbox.state.calls(call)[-1].answer == "SUCCESS"
    assert took_effect == (kind == "reset_after")
    again = calls[call]().json()
    is_once = call not in ("login_me", "anon_verify")
    assert (again.get("resultType") == "SUCCESS") != (took_effect and is_once)


@pytest.mark.parametrize("call", CALLS)
def test_failures_in_every_shape(calls, sandbox, call):
    for result_type in ResultType:
        sandbox.state.order_fault(call, "fail", result_type=result_type)
        answer = calls[call]()
        assert (answer.status_code, answer.json()["resultType"]) == (200, result_type)
        assert answer.json()["error"]["errorCode"] == "INTERNAL_ERROR"
    sandbox.state.order_fault(call, "fail", code="USER_NOT_FOUND", http_status=500)
    assert failure(calls[call]()) == (500, "USER_NOT_FOUND")
    sandbox.state.order_fault(call, "fail_200", code="4095", retry_after_seconds=30, http_status=500)
    answer = calls[call]()
    assert failure(answer) == (200, "4095")
    assert answer.json()["error"]["data"] == {"retryAfterSeconds": 30}
    sandbox.state.order_fault(call, "html_502")
    assert calls[call]().headers["content-type"].startswith("text/html")
    sandbox.state.order_fault(call, "oauth_error")
    assert bare(calls[call]()) == (400 if call in ("login_exchange", "login_refresh") else 401, GRANT)
    sandbox.state.order_fault(call, "oauth_error", error="server_error", http_status=500)
    assert bare(calls[call]()) == (500, {"error": "server_error"})
    assert calls[call]().json()["resultType"] == "SUCCESS"


def test_good_tokens_can_be_rejected_once(calls, sandbox):
    rejected = {
        "login_exchange": lambda answer: bare(answer) == (400, GRANT),
        "login_refresh": lambda answer: failure(answer) == (200, "4010"),
        "login_me": lambda answer: bare(answer) == (401, GRANT),
        "unlink_token": lambda answer: bare(answer) == (401, GRANT),
        "anon_verify": lambda answer: failure(answer) == (401, "4010"),
    }
    for call, is_as_expected in rejected.items():
        sandbox.state.order_fault(call, "token_rejected")
        assert is_as_expected(calls[call]())
        assert calls[call]().json()["resultType"] == "SUCCESS"


@pytest.mark.parametrize("call", CALLS)
def test_answers_that_are_lost_or_broken_after_the_effect(calls, sandbox, call):
    sandbox.state.order_fault(call, "truncated_json")
    with pytest.raises(json.JSONDecodeError):
        calls[call]().json()
    assert sandbox.state.calls(call)[-1].answer == "SUCCESS"


def test_a_bad_gateway_after_the_effect_loses_the_code(calls, sandbox):
    sandbox.state.order_fault("login_exchange", "html_502", after_effect=True)
    assert calls["login_exchange"]().status_code == 502
    assert bare(calls["login_exchange"]()) == (400, GRANT)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        ("login_exchange", "accessToken"),
        ("login_refresh", "accessToken"),
        ("login_me", "userKey"),
        ("unlink_user", "userKey"),
    ],
)
@pytest.mark.parametrize("kind", ["missing_field", "wrong_type"])
def test_the_main_field_suffers_when_none_is_named(calls, sandbox, call, field, kind):
    sandbox.state.order_fault(call, kind)
    payload = success(calls[call]())
    assert not isinstance(payload.get(field), str | int)
    assert (field in payload) == (kind == "wrong_type")


def test_any_field_can_suffer(calls, sandbox):
    sandbox.state.order_fault("login_me", "missing_field", field="scope")
    assert "scope" not in success(calls["login_me"]())
    sandbox.state.order_fault("login_me", "missing_field", field="success")
    assert calls["login_me"]().json() == {"resultType": "SUCCESS"}
    sandbox.state.order_fault("login_me", "wrong_type", field="resultType")
    assert isinstance(calls["login_me"]().json()["resultType"], dict)
    sandbox.state.order_fault("anon_verify", "missing_field")
    assert calls["anon_verify"]().json() == {"resultType": "SUCCESS"}
    sandbox.state.order_fault("login_me", "extra_field")
    body = calls["login_me"]().json()
    assert "sandboxExtra" in body
    assert "sandboxExtra" in body["success"]
    sandbox.state.order_fault("login_me", "big_body", size=100_000)
    assert len(calls["login_me"]().content) > 100_000


@pytest.mark.parametrize("kind", ["damaged_tag", "wrong_aad", "wrong_key"])
@pytest.mark.parametrize("field", [None, "name"])
def test_fields_can_be_spoilt_one_or_all(calls, sandbox, kind, field):
    sandbox.state.order_fault("login_me", kind, field=field)
    me = success(calls["login_me"]())
    bad = set()
    for name in ENCRYPTED:
        try:
            open_field(me[name], sandbox.decryption_key)
        except InvalidTag:
            bad.add(name)
    assert bad == ({field} if field else ENCRYPTED)


def test_calls_can_be_held_and_counted(calls, sandbox):
    sandbox.state.order_fault("login_refresh", "hold_before", times=2)
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(calls["login_refresh"]) for _ in range(2)]
        sandbox.state.wait_until(lambda state: state.held("login_refresh") == 2)
        sandbox.state.release()
        codes = sorted(answer.result(10).json()["resultType"] for answer in answers)
    assert codes == ["FAIL", "SUCCESS"]
    assert sandbox.state.max_in_flight("login_refresh") == 2


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        ("login_me", "wrong_tx"),
        ("status", "wrong_aad"),
        ("login_refresh", "damaged_tag"),
        ("unlink_user", "bad_signature"),
    ],
)
def test_orders_without_a_meaning_are_refused(sandbox, call, kind):
    with pytest.raises(ValueError, match="has no meaning"):
        sandbox.state.order_fault(call, kind)


def test_partner_calls_are_about_no_transaction(sandbox):
    with pytest.raises(ValueError, match="has no meaning"):
        sandbox.state.order_fault("login_me", "slow", tx_id="x")
