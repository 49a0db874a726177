"""Toss login and anonymous keys, by a partner's server that shares no code with the fake."""

import base64
import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from sandbox.crypto import seal_login_field
from sandbox.miniapps import TossUser
from sandbox.shared import NotPossible
from tests.sandbox.partner import (
    ENCRYPTED,
    LOGIN,
    PREFIX,
    PartnerClient,
    bare,
    failure,
    open_field,
    partner_tls,
    success,
)

GRANT = {"error": "invalid_grant"}


@pytest.fixture
def other_app(sandbox, tmp_path):
    pair = sandbox.issue_client_certificate("other-app", key_type="ec")
    client = PartnerClient(sandbox, partner_tls(sandbox, pair, tmp_path))
    yield client
    client.http.close()


def test_from_the_code_to_the_person(partner, sandbox):
    tokens = partner.tokens()
    assert set(tokens) == {"tokenType", "accessToken", "refreshToken", "expiresIn", "scope"}
    assert (tokens["tokenType"], tokens["expiresIn"]) == ("Bearer", 3599)
    assert tokens["scope"].split(" ")[0] == "user_name"
    me = success(partner.me(tokens["accessToken"]))
    assert set(me) == {"userKey", "scope", "agreedTerms", "di"} | ENCRYPTED
    assert re.fullmatch(r"[1-9]\d{8}", str(me["userKey"]))
    assert me["scope"].split(", ")[-1] == "user_key"
    assert (me["agreedTerms"], me["di"]) == (["terms_1"], None)
    person = sandbox.state.personas["man"]
    assert partner.opened(me) == {
        "name": "선우하람",
        "phone": person.phone,
        "birthday": "19850917",
        "ci": person.ci,
        "gender": "MALE",
        "nationality": "LOCAL",
        "email": person.email,
    }
    assert success(partner.me(tokens["accessToken"]))["name"] != me["name"]
    assert [call.app_name for call in sandbox.state.calls("login_me")] == ["my-granite-app"] * 2
    assert {call.user_key for call in sandbox.state.calls()} == {me["userKey"]}


def test_the_access_token_is_shaped_as_the_samples(partner, sandbox):
    head, claims_part, signature = partner.tokens()["accessToken"].split(".")
    assert json.loads(base64.urlsafe_b64decode(head + "==")) == {"kid": "cert", "alg": "RS256"}
    claims = json.loads(base64.urlsafe_b64decode(claims_part + "=="))
    assert set(claims) == {"sub", "aud", "nbf", "exp", "iat", "jti", "iss", "scope"}
    assert (claims["iss"], claims["exp"] - claims["iat"]) == ("https://cert.toss.im", 3599)
    assert isinstance(claims["scope"], list)
    sandbox._token_key.public_key().verify(
        base64.urlsafe_b64decode(signature + "=="),
        f"{head}.{claims_part}".encode(),
        padding.PKCS1v15(),
        hashes.SHA256(),
    )


def test_the_self_test_vector_of_the_reference():
    key, iv = base64.b64encode(bytes(range(32))).decode(), bytes(range(0x40, 0x4C))
    assert (
        seal_login_field("홍길동", key=key, aad="TOSS", iv=iv)
        == "QEFCQ0RFRkdISUpLDyAjyZ6EbIxUxIvbeZBYbiq/5chWAebyuQ=="
    )
    assert open_field("QEFCQ0RFRkdISUpLr/jiZkTDMlB5bkOx1TQY7atkMyY=", key) == "MALE"


def test_a_code_works_once(partner):
    code = partner.code()
    assert partner.exchange(code).status_code == 200
    assert bare(partner.exchange(code)) == (400, GRANT)


def test_of_concurrent_exchanges_one_succeeds(partner):
    code = partner.code()
    with ThreadPoolExecutor(8) as pool:
        statuses = [answer.status_code for answer in pool.map(partner.exchange, [code] * 8)]
    assert sorted(statuses) == [200] + [400] * 7


def test_a_code_lives_ten_minutes(partner, sandbox):
    early, late = partner.code(), partner.code()
    sandbox.state.clock.advance(590)
    assert partner.exchange(early).status_code == 200
    sandbox.state.clock.advance(11)
    assert bare(partner.exchange(late)) == (400, GRANT)


@pytest.mark.parametrize("wrong", ["default", "SANDBOX", "sandbox", "DEFAULT "])
def test_the_referrer_is_compared_exactly_and_a_refusal_costs_nothing(partner, wrong):
    code = partner.code()
    assert bare(partner.exchange(code, wrong)) == (400, GRANT)
    assert partner.exchange(code).status_code == 200


def test_sandbox_codes_are_real_codes(partner, sandbox):
    handed = sandbox.state.mini_apps.log_in("man", referrer="SANDBOX")
    assert (handed.referrer, handed.asked_for_consent) == ("SANDBOX", True)
    assert handed.authorization_code not in repr(handed)
    assert bare(partner.exchange(handed.authorization_code)) == (400, GRANT)
    assert partner.exchange(handed.authorization_code, "SANDBOX").status_code == 200


def test_codes_tokens_and_keys_are_bound_to_the_mini_app(partner, other_app, sandbox):
    code, tokens = partner.code(), partner.tokens()
    assert bare(other_app.exchange(code)) == (400, GRANT)
    assert partner.exchange(code).status_code == 200
    assert bare(other_app.exchange("unknown")) == (400, GRANT)
    assert bare(other_app.me(tokens["accessToken"])) == (401, GRANT)
    assert failure(other_app.refresh(tokens["refreshToken"])) == (200, "4010")
    user_key = sandbox.state.mini_apps.user_key("man")
    assert failure(other_app.unlink_user(user_key)) == (200, "USER_KEY_NOT_FOUND")
    assert sandbox.state.mini_apps.user_key("man", "other-app") != user_key
    theirs = other_app.tokens(app_name="other-app")
    name = success(other_app.me(theirs["accessToken"]))["name"]
    assert open_field(name, sandbox.state.mini_apps.app("other-app").decryption_key) == "선우하람"
    with pytest.raises(InvalidTag):
        open_field(name, sandbox.decryption_key)


@pytest.mark.parametrize(
    ("call", "body", "field"),
    [
        ("generate-token", {"authorizationCode": "x"}, "referrer"),
        ("generate-token", {"referrer": "DEFAULT"}, "authorizationCode"),
        ("generate-token", {"authorizationCode": 1, "referrer": "DEFAULT"}, "authorizationCode"),
        ("generate-token", [], "body"),
        ("refresh-token", {}, "refreshToken"),
        ("access/remove-by-user-key", {"userKey": "443731103"}, "userKey"),
        ("access/remove-by-user-key", {"userKey": True}, "userKey"),
    ],
)
def test_malformed_fields_are_told_by_name(partner, call, body, field):
    answer = partner.http.post(f"{LOGIN}/{call}", json=body)
    assert failure(answer) == (400, "INVALID_PARAMETER")
    (detail,) = answer.json()["error"]["data"]["errorDetails"]
    assert set(detail) == {"field", "message", "rejectedValue"}
    assert detail["field"] == field


def test_forms_are_not_json_and_unknown_fields_are_ignored(partner):
    form = {"authorizationCode": partner.code(), "referrer": "DEFAULT"}
    assert failure(partner.http.post(f"{LOGIN}/generate-token", data=form)) == (400, "INVALID_PARAMETER")
    assert partner.http.post(f"{LOGIN}/generate-token", json=form | {"more": 1}).status_code == 200


def test_access_tokens_end(partner, sandbox):
    token = partner.tokens()["accessToken"]
    assert bare(partner.me("wrong")) == (401, GRANT)
    for header in ({}, {"Authorization": token}, {"Authorization": f"Basic {token}"}):
        assert bare(partner.http.get(f"{LOGIN}/login-me", headers=header)) == (401, GRANT)
    sandbox.state.clock.advance(3590)
    assert partner.me(token).status_code == 200
    sandbox.state.clock.advance(10)
    assert bare(partner.me(token)) == (401, GRANT)
    fresh = partner.tokens()["accessToken"]
    sandbox.state.mini_apps.revoke_tokens()
    assert bare(partner.me(fresh)) == (401, GRANT)


def test_refresh_tokens_rotate_and_live_fourteen_days(partner, sandbox):
    first = partner.tokens()
    second = success(partner.refresh(first["refreshToken"]))
    assert set(second) == set(first)
    assert second["refreshToken"] != first["refreshToken"]
    assert failure(partner.refresh(first["refreshToken"])) == (200, "4010")
    assert partner.me(second["accessToken"]).status_code == 200
    sandbox.state.clock.advance(14 * 86400)
    assert failure(partner.refresh(second["refreshToken"])) == (200, "4010")


def test_refresh_tokens_may_overlap_or_stay(partner, sandbox):
    token = partner.tokens()["refreshToken"]
    sandbox.state.set_switches(refresh_rotation="overlap")
    assert success(partner.refresh(token))["refreshToken"] != token
    sandbox.state.set_switches(refresh_rotation="keep")
    sandbox.state.clock.advance(13 * 86400)
    assert success(partner.refresh(token))["refreshToken"] == token
    sandbox.state.clock.advance(2 * 86400)
    assert failure(partner.refresh(token)) == (200, "4010")
    sandbox.state.set_switches(refresh_refusal_code=None)
    assert bare(partner.refresh(token)) == (400, GRANT)


def test_a_login_may_end_older_tokens(partner, sandbox):
    sandbox.state.set_switches(login_ends_older_tokens=True)
    first, second = partner.tokens(), partner.tokens()
    assert bare(partner.me(first["accessToken"])) == (401, GRANT)
    assert partner.me(second["accessToken"]).status_code == 200


def test_without_consent_fields_are_null(partner, sandbox):
    tokens = partner.tokens(scopes=[])
    assert tokens["scope"] == "user_key"
    me = success(partner.me(tokens["accessToken"]))
    assert {me[name] for name in ENCRYPTED} == {None}
    again = success(partner.me(partner.tokens()["accessToken"]))
    assert again["scope"] == "user_key"
    sandbox.state.mini_apps.configure("my-granite-app", scopes=["user_name", "user_email"], agreed_terms=["a", "b"])
    minor = success(partner.me(partner.tokens("minor")["accessToken"]))
    assert (minor["scope"], minor["agreedTerms"]) == ("user_name, user_email, user_key", ["a", "b"])
    assert partner.opened(minor) == {"name": "이미래"}


def test_users_can_be_made(partner, sandbox):
    person = {"phone": "01000000000", "birthday": "20000101", "gender": "MALE", "nationality": "LOCAL"}
    sandbox.state.mini_apps.add_user(TossUser(id="new", name="새사람", ci="ci of new", **person))
    me = success(partner.me(partner.tokens("new")["accessToken"]))
    assert partner.opened(me) == {"name": "새사람", "ci": "ci of new", **person}
    with pytest.raises(NotPossible):
        partner.code("nobody")


def test_a_mini_app_without_toss_login(partner, sandbox):
    code, tokens = partner.code(), partner.tokens()
    sandbox.state.mini_apps.configure("my-granite-app", is_login_configured=False)
    assert failure(partner.exchange(code)) == (200, "4050")
    assert failure(partner.me(tokens["accessToken"])) == (200, "4050")


def test_another_key_and_another_aad(partner, sandbox):
    token = partner.tokens()["accessToken"]
    sandbox.state.set_switches(decryption_key="second", wrong_aad_fields=["name"])
    me = success(partner.me(token))
    with pytest.raises(InvalidTag):
        open_field(me["name"], sandbox.second_decryption_key)
    assert open_field(me["name"], sandbox.second_decryption_key, "not TOSS") == "선우하람"
    assert open_field(me["gender"], sandbox.second_decryption_key) == "MALE"
    sandbox.state.set_switches(decryption_key="first", wrong_aad_fields=[])
    sandbox.state.mini_apps.configure("my-granite-app", aad="OTHER")
    assert sandbox.aad == "OTHER"
    assert open_field(success(partner.me(token))["name"], sandbox.decryption_key, "OTHER") == "선우하람"


def test_answers_may_look_otherwise(partner, sandbox):
    sandbox.state.set_switches(
        payload_key="result",
        user_key_as_text=True,
        numbers_as_text=True,
        scope_blanks=False,
        agree_terms_spelling=True,
        login_me_extras=True,
        explicit_error_null=True,
    )
    body = partner.exchange(partner.code()).json()
    assert set(body) == {"resultType", "result", "error"}
    assert body["result"]["expiresIn"] == "3599"
    me = partner.me(body["result"]["accessToken"]).json()["result"]
    assert me["userKey"] == str(sandbox.state.mini_apps.user_key("man"))
    assert "," in me["scope"]
    assert " " not in me["scope"]
    assert {"agreeTerms", "policy", "certTxId"} < set(me)
    assert open_field(me["callingCode"], sandbox.decryption_key) == "82"
    unlinked = partner.unlink_token(body["result"]["accessToken"]).json()
    assert unlinked["result"] == {"userKey": me["userKey"]}


def test_failures_may_look_otherwise(partner, sandbox):
    sandbox.state.set_switches(failure_without_success=True, short_errors=True, invalid_grant_status=200)
    answer = partner.refresh("unknown")
    assert set(answer.json()) == {"resultType", "error"}
    assert set(answer.json()["error"]) == {"errorCode", "reason"}
    for refused in (partner.exchange("unknown"), partner.me("unknown")):
        assert bare(refused) == (200, GRANT)


def test_unlinking_by_token_ends_all_of_it(partner, sandbox):
    tokens, code = partner.tokens(), partner.code()
    user_key = sandbox.state.mini_apps.user_key("man")
    assert success(partner.unlink_token(tokens["accessToken"])) == {"userKey": user_key}
    assert not sandbox.state.mini_apps.is_linked("man")
    for after in (partner.me(tokens["accessToken"]), partner.unlink_token(tokens["accessToken"])):
        assert bare(after) == (401, GRANT)
    assert failure(partner.refresh(tokens["refreshToken"])) == (200, "4010")
    assert bare(partner.exchange(code)) == (400, GRANT)
    again = sandbox.state.mini_apps.log_in("man")
    assert again.asked_for_consent
    fresh = success(partner.exchange(again.authorization_code))
    assert success(partner.me(fresh["accessToken"]))["userKey"] == user_key
    sandbox.state.set_switches(unlink_token_empty=True)
    assert success(partner.unlink_token(fresh["accessToken"])) == {}


def test_unlinking_by_user_key(partner, sandbox):
    tokens = partner.tokens()
    user_key = sandbox.state.mini_apps.user_key("man")
    assert success(partner.unlink_user(user_key)) == {"userKey": user_key}
    assert bare(partner.me(tokens["accessToken"])) == (401, GRANT)
    assert failure(partner.unlink_user(user_key)) == (200, "USER_KEY_NOT_FOUND")
    sandbox.state.set_switches(unlink_unknown_is_success=True)
    assert success(partner.unlink_user(user_key)) == {"userKey": user_key}


def test_unlinking_by_user_key_may_need_the_users_token(partner, sandbox):
    sandbox.state.set_switches(unlink_user_needs_bearer=True)
    mine, theirs = partner.tokens(), partner.tokens("minor")
    user_key = sandbox.state.mini_apps.user_key("man")
    for token in (None, "wrong", theirs["accessToken"]):
        assert bare(partner.unlink_user(user_key, token)) == (401, GRANT)
    assert success(partner.unlink_user(user_key, mine["accessToken"])) == {"userKey": user_key}


def test_anonymous_keys(partner, other_app, sandbox):
    key = sandbox.state.mini_apps.anon_key("man")
    assert key == sandbox.state.mini_apps.anon_key("man")
    assert len(key) <= 64
    assert success(partner.anon(key)) is True
    for client, wrong in ((partner, "unknown"), (partner, ""), (other_app, key)):
        assert failure(client.anon(wrong)) == (401, "4010")
    sandbox.state.set_switches(anon_success_as_text=True, anon_failure_status=200)
    assert success(partner.anon(key)) == "true"
    assert failure(partner.anon("unknown")) == (200, "4010")
    with_body = partner.http.post(f"{PREFIX}/users/anon-key/verify", json={}, headers={"x-anon-key": key})
    assert success(with_body) == "true"


def test_who_leaves_toss_is_gone(partner, sandbox):
    tokens, key = partner.tokens(), sandbox.state.mini_apps.anon_key("man")
    sandbox.state.mini_apps.disconnect("man", referrer="WITHDRAWAL_TOSS")
    assert bare(partner.me(tokens["accessToken"])) == (401, GRANT)
    assert failure(partner.anon(key)) == (401, "4010")
    for gone in (partner.code, sandbox.state.mini_apps.user_key, sandbox.state.mini_apps.disconnect):
        with pytest.raises(NotPossible):
            gone("man")
