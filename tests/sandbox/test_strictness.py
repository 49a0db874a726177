"""The fake refuses what the reference does not allow: a client that passes here sends clean calls."""

import base64
import ssl

import httpx2
import pytest

from tests.sandbox.client import PATH, code

INVALID = (400, "CE3000")


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"client_secret": "wrong"}, (401, "invalid_client")),
        ({"client_id": "test_unknown"}, (401, "invalid_client")),
        ({"grant_type": "password"}, (400, "unsupported_grant_type")),
        ({"scope": "openid"}, (400, "invalid_scope")),
    ],
)
def test_token_errors(cert, form, expected):
    answer = cert.token(**form)
    assert (answer.status_code, answer.json()) == (expected[0], {"error": expected[1]})


def test_camel_case_form_names_are_an_unknown_client(cert):
    form = {
        "grantType": "client_credentials",
        "clientId": cert.credentials["client_id"],
        "clientSecret": cert.credentials["client_secret"],
        "scope": "ca",
    }
    answer = cert.http.post("/token", data=form)
    assert (answer.status_code, answer.json()) == (401, {"error": "invalid_client"})


def test_the_token_call_takes_a_form_only(cert):
    answer = cert.http.post("/token", json={"grant_type": "client_credentials", **cert.credentials})
    assert (answer.status_code, answer.json()) == (400, {"error": "invalid_request"})


def test_repeated_form_parameters_are_refused(cert):
    twice = "grant_type=client_credentials&scope=ca&scope=ca"
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = cert.http.post("/token", content=twice, headers=headers)
    assert (answer.status_code, answer.json()) == (400, {"error": "invalid_request"})


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer wrong", "Basic abc", "bearer x"])
@pytest.mark.parametrize("call", ["request", "status", "result"])
def test_every_call_needs_a_token_in_force(cert, call, authorization):
    headers = {"Authorization": authorization}
    answer = cert.http.post(f"{PATH}/{call}", json={}, headers=headers)
    assert code(answer) == (401, "CE1000")


@pytest.mark.parametrize(
    "fields",
    [
        {"requestType": "USER_ANY"},
        {"requestType": None},
        {"requestUrl": None},
        {"requestUrl": "no address"},
        {"requestUrl": "intoss://" + "a" * 1000},
        {"unknown": "x"},
        {"triggerType": "APP_SCHEME"},
        {"userName": "x"},
        {"userPhone": "x"},
        {"userBirthday": "x"},
        {"sessionKey": "x"},
        {"expireSeconds": 0},
        {"expireSeconds": 1801},
        {"expireSeconds": "60"},
        {"expireSeconds": True},
        {"nonce": "n" * 51},
    ],
    ids=str,
)
def test_one_touch_requests_are_checked(cert, sandbox, fields):
    assert code(cert.request(**fields)) == INVALID
    assert sandbox.state.transactions() == []


def test_the_longest_life_and_optional_fields_are_taken(cert):
    optional = {"expireSeconds": 1800, "nonce": "n" * 50, "successCallbackUrl": "https://a.example/ok"}
    assert cert.request(**optional).status_code == 200


def test_the_return_address_may_be_left_out_when_switched_off(cert, sandbox):
    body = {"requestType": "USER_NONE"}
    assert code(cert.post("request", body)) == INVALID
    sandbox.state.set_switches(request_url_required=False)
    assert cert.post("request", body).status_code == 200


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("userName", ""),
        ("userName", "   "),
        ("userName", "가" * 81),
        ("userName", "홍\n길동"),
        ("userPhone", "010-1234-5678"),
        ("userPhone", "010123456"),
        ("userPhone", "010123456789"),
        ("userPhone", "٠١٠١٢٣٤٥٦٧٨"),
        ("userBirthday", "900101"),
        ("userBirthday", "19900230"),
        ("userBirthday", "00000101"),
        ("userBirthday", "29990101"),
    ],
)
def test_people_are_checked_after_opening(cert, name, text):
    session = cert.session()
    assert code(cert.post("request", cert.personal(session, **{name: session.seal(text)}))) == INVALID


@pytest.mark.parametrize("name", ["userName", "userPhone", "userBirthday", "sessionKey", "triggerType"])
@pytest.mark.parametrize("value", [None, 1, "", "plain"])
def test_personal_fields_must_be_there_and_sealed(cert, name, value):
    assert code(cert.post("request", cert.personal(**{name: value}))) == INVALID


@pytest.mark.parametrize("text", ["홍길동", "남궁민수", "Jean-Luc O'Neil", "가" * 80])
def test_korean_and_foreign_names_are_taken(cert, sandbox, text):
    session = cert.session()
    tx_id = cert.post("request", cert.personal(session, userName=session.seal(text))).json()["success"]["txId"]
    assert sandbox.state.transaction(tx_id).sent_person.name == text


def test_fields_of_another_session_are_refused(cert):
    assert code(cert.post("request", cert.personal(userName=cert.session().seal("홍길동")))) == INVALID


def test_a_push_may_be_asked_for(cert):
    assert cert.post("request", cert.personal(triggerType="PUSH")).status_code == 200


@pytest.mark.parametrize("body", [[], "text", None, {"txId": 1}, {}, {"txId": "x", "extra": 1}])
def test_status_bodies_are_checked(cert, body):
    assert code(cert.post("status", body)) == INVALID


def test_the_result_needs_a_session(cert, sandbox):
    tx_id = cert.approved()
    assert code(cert.post("result", {"txId": tx_id})) == INVALID
    assert sandbox.state.transaction(tx_id).reads == 0


def test_bodies_must_say_that_they_are_json(cert):
    headers = {"Authorization": f"Bearer {cert.token().json()['access_token']}", "Content-Type": "text/plain"}
    assert code(cert.http.post(f"{PATH}/status", content=b'{"txId":"x"}', headers=headers)) == INVALID
    headers["Content-Type"] = "application/json"
    for content in (b'{"txId":"x",}', b"\xff", b"[" * 100_000):
        assert code(cert.http.post(f"{PATH}/status", content=content, headers=headers)) == INVALID


def test_only_post_is_served(cert):
    assert cert.http.get(f"{PATH}/status").status_code == 405


def test_the_requests_session_is_refused_in_the_result(cert, sandbox):
    session = cert.session()
    tx_id = cert.post("request", cert.personal(session)).json()["success"]["txId"]
    sandbox.state.approve(tx_id)
    assert code(cert.result(tx_id, session)) == INVALID
    same_id = cert.session(id=session.id)
    assert code(cert.result(tx_id, same_id)) == INVALID
    same_key = cert.session(key=session.key, iv=session.iv)
    assert code(cert.result(tx_id, same_key)) == INVALID
    assert sandbox.state.transaction(tx_id).reads == 0
    sandbox.state.set_switches(session_reuse_refused=False)
    assert cert.result(tx_id, session).status_code == 200


def test_a_results_session_is_refused_in_the_next_result(cert):
    session = cert.session()
    tx_id = cert.approved()
    assert cert.result(tx_id, session).status_code == 200
    assert code(cert.result(tx_id, session)) == INVALID


def session_keys(session):
    """Session keys with one thing wrong each."""
    good = session.session_key()
    version, session_id, wrapped = good.split("$")
    key, iv = (base64.b64encode(part).decode() for part in (session.key, session.iv))
    return {
        "two parts": f"{version}${session_id}",
        "four parts": good + "$",
        "other version": f"v2${session_id}${wrapped}",
        "version text empty": f"${session_id}${wrapped}",
        "upper case id": f"{version}${session_id.upper()}${wrapped}",
        "id of UUID version 1": f"{version}$c9a646d3-9c61-11b7-8bcd-0fc0ef2a7e2d${wrapped}",
        "no padding": f"{version}${session_id}${wrapped.rstrip('=')}",
        "line break": f"{version}${session_id}${wrapped[:76]}\n{wrapped[76:]}",
        "url-safe": f"{version}${session_id}$-{wrapped[1:]}",
        "raw key and iv": session.session_key("x" * 44),
        "CBC": session.session_key(f"AES_CBC${key}${iv}"),
        "short key": session.session_key(f"AES_GCM${key[:20]}${iv}"),
        "IV of 16 bytes": session.session_key(f"AES_GCM${key}${base64.b64encode(b'i' * 16).decode()}"),
        "garbage": f"{version}${session_id}${base64.b64encode(b'x' * 512).decode()}",
        "empty": f"{version}${session_id}$",
    }


def test_bad_session_keys_are_refused(cert):
    tx_id = cert.approved()
    for fault, session_key in session_keys(cert.session()).items():
        answer = cert.post("result", {"txId": tx_id, "sessionKey": session_key})
        assert code(answer) == INVALID, fault
    assert cert.result(tx_id).status_code == 200


def test_a_session_for_another_rsa_key_is_refused(cert, vectors):
    session = cert.session()
    session.public_key = vectors["keys"]["toss_default"]["spki_der_base64"]
    assert code(cert.result(cert.approved(), session)) == INVALID


def test_tls_is_by_the_sandboxs_own_ca_and_1_2_will_do(sandbox):
    tls = ssl.create_default_context(cafile=str(sandbox.ca_file))
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    with httpx2.Client(verify=tls, trust_env=False) as client:
        assert client.post(sandbox.token_url, data={"scope": "ca"}).status_code == 401
    stranger = httpx2.Client(verify=ssl.create_default_context(), trust_env=False)
    with stranger, pytest.raises(httpx2.ConnectError):
        stranger.post(sandbox.token_url, data={"scope": "ca"})
