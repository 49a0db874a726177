"""The whole way, as reference 1 tells it, by a client that shares no code with the fake."""

import base64
import json
import re
from datetime import datetime, timedelta

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from tests.sandbox.client import PATH, code

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
KOREAN_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+09:00")


def test_one_touch_from_token_to_person(cert, sandbox):
    started = cert.request()
    assert started.status_code == 200
    assert started.json()["resultType"] == "SUCCESS"
    success = started.json()["success"]
    assert set(success) == {"txId", "requestedDt"}
    assert UUID.fullmatch(success["txId"])
    assert KOREAN_TIME.fullmatch(success["requestedDt"])
    tx_id = success["txId"]

    assert cert.status(tx_id).json() == {
        "resultType": "SUCCESS",
        "success": {"txId": tx_id, "status": "REQUESTED", "requestedDt": success["requestedDt"]},
    }
    assert code(cert.result(tx_id)) == (400, "CE3102")
    sandbox.state.open(tx_id)
    assert cert.status(tx_id).json()["success"]["status"] == "IN_PROGRESS"
    assert code(cert.result(tx_id)) == (400, "CE3102")
    sandbox.state.approve(tx_id)
    assert cert.status(tx_id).json()["success"]["status"] == "COMPLETED"

    session = cert.session(version="v1_0.0.14")
    result = cert.result(tx_id, session).json()["success"]
    personal = result.pop("personalData")
    assert base64.b64decode(result.pop("signature"), validate=True)
    completed = result.pop("completedDt")
    assert KOREAN_TIME.fullmatch(completed)
    assert result == {
        "txId": tx_id,
        "status": "COMPLETED",
        "userIdentifier": None,
        "userCiToken": None,
        "randomValue": None,
        "requestedDt": success["requestedDt"],
    }
    assert (personal.pop("ci2"), personal.pop("ciUpdate")) == (None, None)
    opened = {name: session.open(envelope) for name, envelope in personal.items()}
    ci, di = opened.pop("ci"), opened.pop("di")
    assert (len(ci), ci[:15]) == (88, "CI0110000000001")
    assert (len(di), di[:15]) == (88, "DI0110000000001")
    assert opened == {
        "name": "김토스",
        "birthday": "19930324",
        "gender": "FEMALE",
        "nationality": "LOCAL",
        "ageGroup": "ADULT",
    }


def test_personal_data_requests_are_opened_and_answered_with_links(cert, sandbox):
    session = cert.session()
    success = cert.post("request", cert.personal(session)).json()["success"]
    assert list(success) == ["txId", "appScheme", "androidAppUri", "iosAppUri", "requestedDt"]
    assert {success[link] for link in ("appScheme", "androidAppUri", "iosAppUri")} == {"null"}
    sent = sandbox.state.transaction(success["txId"]).sent_person
    assert (sent.name, sent.phone, sent.birthday) == ("홍길동", "01012345678", "19900101")
    sandbox.state.approve(success["txId"])
    assert cert.result(success["txId"]).status_code == 200


def test_the_token_is_shaped_as_the_published_sample(cert):
    answer = cert.token()
    body = answer.json()
    assert answer.status_code == 200
    assert {name: body[name] for name in ("scope", "token_type", "expires_in")} == {
        "scope": "ca",
        "token_type": "Bearer",
        "expires_in": 31536000,
    }
    head, claims_part, signature = body["access_token"].split(".")
    assert json.loads(base64.urlsafe_b64decode(head + "==")) == {"kid": "cert", "alg": "RS256"}
    claims = json.loads(base64.urlsafe_b64decode(claims_part + "=="))
    client_id = cert.credentials["client_id"]
    assert claims["exp"] - claims["iat"] == 31536000
    assert claims["nbf"] == claims["iat"]
    assert UUID.fullmatch(claims.pop("jti"))
    assert {name: claims[name] for name in ("sub", "aud", "scope", "iss")} == {
        "sub": client_id,
        "aud": client_id,
        "scope": ["ca"],
        "iss": "https://cert.toss.im",
    }
    cert.sandbox._token_key.public_key().verify(
        base64.urlsafe_b64decode(signature + "=="),
        f"{head}.{claims_part}".encode(),
        padding.PKCS1v15(),
        hashes.SHA256(),
    )


def test_real_credentials_get_an_hour_and_another_person(cert, sandbox):
    sandbox.state.add_client("partner", "secret")
    cert.credentials = {"client_id": "partner", "client_secret": "secret"}
    token = cert.token().json()
    assert token["expires_in"] == 3600
    tx_id = cert.approved()
    session = cert.session()
    personal = cert.result(tx_id, session).json()["success"]["personalData"]
    assert session.open(personal["name"]) == "선우하람"
    assert len(session.open(personal["ci"])) == 88


@pytest.mark.parametrize(
    ("persona", "expected"),
    [
        ("man", ("선우하람", "MALE", "LOCAL", "ADULT")),
        ("minor", ("이미래", "FEMALE", "LOCAL", "MINOR")),
        ("foreigner", ("JOHANSSON EMMA", "FEMALE", "FOREIGNER", "ADULT")),
    ],
)
def test_another_person_can_be_chosen(cert, persona, expected):
    session = cert.session()
    personal = cert.result(cert.approved(persona), session).json()["success"]["personalData"]
    fields = ("name", "gender", "nationality", "ageGroup")
    assert tuple(session.open(personal[name]) for name in fields) == expected


def test_two_results_and_not_a_third(cert, sandbox):
    tx_id = cert.approved()
    assert cert.result(tx_id).status_code == 200
    assert sandbox.state.transaction(tx_id).reads == 1
    assert cert.result(tx_id).status_code == 200
    assert code(cert.result(tx_id)) == (400, "CE3101")
    assert sandbox.state.transaction(tx_id).reads == 2


def test_refused_results_cost_nothing(cert, sandbox):
    tx_id = cert.started()
    for _ in range(3):
        assert code(cert.result(tx_id)) == (400, "CE3102")
    assert sandbox.state.transaction(tx_id).reads == 0


def test_sixty_minutes_after_completion_it_is_too_late(cert, sandbox):
    tx_id = cert.approved()
    sandbox.state.clock.advance(59 * 60)
    assert cert.result(tx_id).status_code == 200
    sandbox.state.clock.advance(61)
    assert code(cert.result(tx_id)) == (400, "CE3103")


def test_a_request_expires_with_its_life(cert, sandbox):
    short, usual = cert.started(expireSeconds=30), cert.started()
    sandbox.state.clock.advance(31)
    assert cert.status(short).json()["success"]["status"] == "EXPIRED"
    assert code(cert.result(short)) == (400, "CE3103")
    assert cert.status(usual).json()["success"]["status"] == "REQUESTED"
    sandbox.state.expire(usual)
    assert cert.status(usual).json()["success"]["status"] == "EXPIRED"


def test_completed_stays_completed_when_the_life_is_over(cert, sandbox):
    tx_id = cert.approved()
    sandbox.state.clock.advance(3600 - 1)
    assert cert.status(tx_id).json()["success"]["status"] == "COMPLETED"


def test_an_unknown_transaction(cert):
    unknown = "633f3e1b-1a11-4e7c-9b35-dd391f440be4"
    assert code(cert.status(unknown)) == (400, "CE3100")
    assert code(cert.result(unknown)) == (400, "CE3100")


def test_another_clients_transaction_does_not_exist(cert, sandbox):
    tx_id = cert.approved()
    sandbox.state.add_client("other", "secret")
    cert.credentials, cert.access_token = {"client_id": "other", "client_secret": "secret"}, None
    assert code(cert.status(tx_id)) == (400, "CE3100")
    assert code(cert.result(tx_id)) == (400, "CE3100")


def test_sibling_paths_answer_until_switched_off(cert, sandbox):
    sibling = PATH.removesuffix("/id")
    body = {"requestType": "USER_NONE", "requestUrl": "intoss://app"}
    assert cert.post("request", body, path=sibling).status_code == 200
    sandbox.state.set_switches(sibling_paths=False)
    assert cert.post("request", body, path=sibling).status_code == 404
    assert cert.post("request", body).status_code == 200


def test_time_is_korean_and_follows_the_clock(cert, sandbox):
    instant = datetime.fromisoformat("2026-02-13T17:52:22+09:00")
    sandbox.state.clock.set(instant)
    said = datetime.fromisoformat(cert.request().json()["success"]["requestedDt"])
    assert timedelta() <= said - instant < timedelta(seconds=10)


def test_a_token_ends_with_its_lifetime(cert, sandbox):
    sandbox.state.set_switches(token_expires_in=60)
    tx_id = cert.started()
    sandbox.state.clock.advance(59)
    assert cert.status(tx_id).status_code == 200
    sandbox.state.clock.advance(2)
    assert code(cert.status(tx_id)) == (401, "CE1000")


def test_revoked_tokens_are_refused_and_new_ones_are_not(cert, sandbox):
    tx_id = cert.started()
    sandbox.state.revoke_tokens()
    assert code(cert.status(tx_id)) == (401, "CE1000")
    cert.access_token = None
    assert cert.status(tx_id).status_code == 200
