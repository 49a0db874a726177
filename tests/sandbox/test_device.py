"""The control API's console and device: what a person or another process can do without Python."""

import re

import httpx2
import pytest

from sandbox.client_certificates import ClientCertificate
from tests.sandbox.partner import PartnerClient, failure, partner_tls, success


@pytest.fixture
def control(sandbox):
    with httpx2.Client(base_url=f"{sandbox.control_url}/control/", trust_env=False) as client:
        yield client


def test_certificates_are_issued_and_revoked(control, sandbox, tmp_path):
    issued = control.post("certificates", json={"daysLeft": 3, "keyType": "ec"}).json()
    assert re.fullmatch(r"\d+", issued["serial"])
    pair = ClientCertificate(
        app_name=issued["appName"],
        serial=int(issued["serial"]),
        not_before=None,
        not_after=None,
        public_crt=issued["publicCrt"],
        private_key=issued["privateKey"],
    )
    partner = PartnerClient(sandbox, partner_tls(sandbox, pair, tmp_path))
    assert partner.me("x").status_code == 401
    assert control.post("certificates/revoke", json={"serial": issued["serial"]}).json()["miniApps"]["revoked"]
    with pytest.raises((httpx2.ReadError, httpx2.RemoteProtocolError)):
        partner.me("x")
    partner.http.close()


def test_a_login_by_hand(control, partner, sandbox):
    assert {"id": "man", "name": "선우하람"} in control.get("users").json()
    person = {"name": "새사람", "phone": "01000000000", "birthday": "20000101", "gender": "FEMALE"}
    control.post("users", json={"id": "new", **person, "nationality": "LOCAL", "ci": "ci", "email": "n@x.invalid"})
    control.post("mini-apps/my-granite-app", json={"agreedTerms": ["a"], "aad": "OTHER"})
    handed = control.post("users/new/login", json={"referrer": "SANDBOX", "scopes": ["user_name"]}).json()
    assert (handed["referrer"], handed["askedForConsent"]) == ("SANDBOX", True)
    tokens = success(partner.exchange(handed["authorizationCode"], handed["referrer"]))
    me = success(partner.me(tokens["accessToken"]))
    assert me["agreedTerms"] == ["a"]
    keys = control.get("mini-apps/my-granite-app/decryption-key").json()
    assert keys == {
        "decryptionKey": sandbox.decryption_key,
        "secondDecryptionKey": sandbox.second_decryption_key,
        "aad": "OTHER",
    }
    control.post("login-tokens/revoke")
    assert partner.me(tokens["accessToken"]).status_code == 401
    anon = control.post("users/new/anon-key").json()
    assert anon["type"] == "HASH"
    assert success(partner.anon(anon["hash"])) is True
    state = control.get("state")
    (link,) = state.json()["miniApps"]["links"]
    assert link == {
        "appName": "my-granite-app",
        "user": "new",
        "userKey": me["userKey"],
        "isLinked": True,
        "consents": ["user_name"],
    }
    secrets = (tokens["accessToken"], tokens["refreshToken"], handed["authorizationCode"], anon["hash"], "새사람")
    for secret in (*secrets, sandbox.decryption_key):
        assert secret not in state.text


def test_the_budget_by_hand(control, partner):
    shown = control.post("budget", json={"requests": 0}).json()["budget"]["my-granite-app"]
    assert shown == {"limit": 0, "windowSeconds": 60, "calls": 0, "refusals": 0, "mostInAnyMinute": 0}
    assert failure(partner.me("x")) == (200, "4095")
    shown = control.get("state").json()["budget"]["my-granite-app"]
    assert (shown["refusals"], shown["mostInAnyMinute"]) == (1, 1)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("users/nobody/login", {}, 409),
        ("users/nobody/anon-key", {}, 409),
        ("users/man/unlink", {}, 409),
        ("users/man/login", {"referrer": "default"}, 422),
        ("users/man/login", {"scopes": ["nonsense"]}, 422),
        ("users", {"id": "x"}, 422),
        ("budget", {"requests": -1}, 422),
        ("certificates", {"keyType": "dsa"}, 422),
        ("certificates/revoke", {"serial": "x"}, 422),
        ("faults", {"call": "login_me", "kind": "wrong_tx"}, 422),
    ],
)
def test_orders_that_make_no_sense_are_refused(control, path, body, status):
    assert control.post(path, json=body).status_code == status


def test_where_the_partner_api_is(control, sandbox):
    config = control.get("config").json()
    assert (config["partnerUrl"], config["appName"]) == (sandbox.partner_url, "my-granite-app")
