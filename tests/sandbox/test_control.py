"""The control API and the page, over plain HTTP."""

import re

import httpx2
import pytest

from sandbox.purchases import ChangeReason
from tests.sandbox.client import code


@pytest.fixture
def control(sandbox):
    with httpx2.Client(base_url=sandbox.control_url, trust_env=False) as client:
        yield client


def test_a_person_can_play_the_toss_app(control, cert):
    tx_id = cert.started()
    opened = control.post(f"/control/transactions/{tx_id}/open").json()
    assert opened["transactions"][0]["status"] == "IN_PROGRESS"
    control.post(f"/control/transactions/{tx_id}/approve", json={"persona": "minor"})
    session = cert.session()
    personal = cert.result(tx_id, session).json()["success"]["personalData"]
    assert session.open(personal["ageGroup"]) == "MINOR"


def test_a_person_can_let_it_expire(control, cert):
    tx_id = cert.started()
    control.post(f"/control/transactions/{tx_id}/expire")
    assert cert.status(tx_id).json()["success"]["status"] == "EXPIRED"
    late = control.post(f"/control/transactions/{tx_id}/approve")
    assert (late.status_code, late.json()["detail"]) == (409, "this transaction is EXPIRED already")


@pytest.mark.parametrize("action", ["open", "approve", "expire"])
def test_what_is_not_there_cannot_be_played(control, action):
    assert control.post(f"/control/transactions/unknown/{action}").status_code == 409


def test_an_unknown_person_cannot_approve(control, cert):
    tx_id = cert.started()
    answer = control.post(f"/control/transactions/{tx_id}/approve", json={"persona": "nobody"})
    assert answer.status_code == 409
    assert cert.status(tx_id).json()["success"]["status"] == "REQUESTED"


def test_the_state_counts_and_holds_no_people_tokens_or_envelopes(control, cert, sandbox):
    session = cert.session()
    tx_id = cert.post("request", cert.personal(session)).json()["success"]["txId"]
    sandbox.state.approve(tx_id)
    cert.result(tx_id)
    answer = control.get("/control/state")
    state = answer.json()
    called = {name: count for name, count in state["counts"].items() if count}
    assert called == {"token": 1, "request": 1, "result": 1}
    assert state["transactions"][0]["reads"] == 1
    assert [call["answer"] for call in state["calls"]] == ["SUCCESS"] * 3
    for secret in ("홍길동", "01012345678", "19900101", "김토스", "19930324", "CI0110", "DI0110", session.id):
        assert secret not in answer.text
    assert cert.access_token not in answer.text
    assert cert.credentials["client_secret"] not in answer.text


def test_clock_switches_faults_clients_and_tokens(control, cert, sandbox):
    tx_id = cert.started(expireSeconds=60)
    control.post("/control/clock", json={"advanceSeconds": 61})
    assert cert.status(tx_id).json()["success"]["status"] == "EXPIRED"
    control.post("/control/switches", json={"explicitErrorNull": True})
    control.post("/control/switches", json={"authUrl": True})
    assert {"error", "success"} < set(cert.request().json())
    control.post("/control/faults", json={"call": "status", "kind": "fail_200", "times": 2, "code": "CE0002"})
    for _ in range(2):
        assert code(cert.status(tx_id)) == (200, "CE0002")
    control.post("/control/tokens/revoke")
    assert code(cert.status(tx_id)) == (401, "CE1000")
    control.post("/control/clients", json={"clientId": "partner", "clientSecret": "secret"})
    assert cert.token(client_id="partner", client_secret="secret").json()["expires_in"] == 3600
    control.post("/control/reset")
    assert sandbox.state.transactions() == []


def test_releasing_over_http(control):
    assert control.post("/control/faults/release").json()["held"] == []
    assert control.post("/control/faults/release", json={"call": "result"}).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("faults", {"call": "status", "kind": "nonsense"}),
        ("faults", {"call": "status", "kind": "slow", "unknown": 1}),
        ("switches", {"nonsense": True}),
        ("clock", {}),
        ("clients", {"clientId": "", "clientSecret": "x"}),
    ],
)
def test_orders_that_make_no_sense_are_refused(control, path, body):
    answer = control.post(f"/control/{path}", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"]


def test_personas_are_listed_without_ci_and_di(control):
    people = control.get("/control/personas").json()
    assert people[0]["key"] == "test_person"
    assert len(people) == 4
    assert not {"ci", "di", "uid"} & set(people[0])


def test_the_page_and_where_its_bff_is(control, sandbox):
    page = control.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "본인확인" in page.text
    for outside in ('src="http', 'href="http', "@import", "url(http"):
        assert outside not in page.text
    config = control.get("/control/config").json()
    assert config["bffUrl"] == "http://127.0.0.1:8000"
    assert config["controlUrl"] == sandbox.control_url


@pytest.mark.parametrize("card", ["login", "pay", "iap", "events"])
def test_the_page_hides_what_the_bff_does_not_offer(control, card):
    page = control.get("/").text
    assert re.search(rf'<section [^>]*id="{card}-card"[^>]* hidden>', page)
    for route in ("/openapi.json", "/api/v1/login", "/api/v1/me", "/api/v1/payments", "/api/v1/entitlements"):
        assert route in page


def test_the_page_uses_only_elements_that_it_has(control):
    page = control.get("/").text
    ids = re.findall(r' id="([^"]+)"', page)
    actions = re.findall(r'^  "([a-z-]+)":', page, re.MULTILINE)
    used = {*re.findall(r'\$\("([^"]+)"\)', page), *actions}
    assert len(ids) == len(set(ids))
    assert {"pay-begin", "iap-buy", "sheet"} < used <= set(ids)


def test_the_page_knows_every_reason_and_product(control):
    page = control.get("/").text
    assert all(f'"{reason}"' in page for reason in ChangeReason)
    products = control.get("/control/iap/products").json()
    assert [product["type"] for product in products] == ["CONSUMABLE", "SUBSCRIPTION"]
    assert [product["renewalCycle"] for product in products] == [None, "MONTHLY"]
