"""Each fault order does what it says, once, to the call it names."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from cryptography.exceptions import InvalidTag

from sandbox.server import SandboxServer
from sandbox.state import SandboxState
from tests.sandbox.client import CertClient, code

LOST = (httpx2.ReadError, httpx2.RemoteProtocolError)


@pytest.fixture
def threads():
    with ThreadPoolExecutor(80) as pool:
        yield pool


def reads(sandbox, tx_id):
    return sandbox.state.transaction(tx_id).reads


def test_reset_before_has_no_effect(cert, sandbox):
    tx_id = cert.approved()
    sandbox.state.order_fault("result", "reset_before")
    with pytest.raises(LOST):
        cert.result(tx_id)
    assert reads(sandbox, tx_id) == 0
    assert cert.result(tx_id).status_code == 200


def test_reset_after_costs_a_read(cert, sandbox):
    tx_id = cert.approved()
    sandbox.state.order_fault("result", "reset_after")
    with pytest.raises(LOST):
        cert.result(tx_id)
    assert reads(sandbox, tx_id) == 1
    (record,) = sandbox.state.calls("result", tx_id)
    assert (record.answer, record.fault) == ("SUCCESS", "reset_after")


@pytest.mark.parametrize("call", ["token", "request", "status"])
@pytest.mark.parametrize("kind", ["reset_before", "reset_after"])
def test_any_call_can_be_cut(cert, sandbox, call, kind):
    tx_id = cert.started()
    sandbox.state.order_fault(call, kind)
    calls = {"token": cert.token, "request": cert.request, "status": lambda: cert.status(tx_id)}
    with pytest.raises(LOST):
        calls[call]()
    assert calls[call]().status_code == 200


def test_a_held_call_has_taken_effect_and_answers_when_released(cert, sandbox, threads):
    tx_id = cert.approved()
    sandbox.state.order_fault("result", "hold")
    answer = threads.submit(cert.result, tx_id)
    sandbox.state.wait_until(lambda state: state.held("result") == 1)
    assert reads(sandbox, tx_id) == 1
    assert not answer.done()
    assert sandbox.state.release() == 1
    assert answer.result(5).status_code == 200
    assert sandbox.state.held() == 0


def test_a_call_held_before_has_not_taken_effect(cert, sandbox, threads):
    tx_id = cert.approved()
    sandbox.state.order_fault("result", "hold_before")
    answer = threads.submit(cert.result, tx_id)
    sandbox.state.wait_until(lambda state: state.held("result") == 1)
    assert reads(sandbox, tx_id) == 0
    sandbox.state.release("result")
    assert answer.result(5).status_code == 200
    assert reads(sandbox, tx_id) == 1


@pytest.mark.parametrize(("kind", "spent"), [("hold", 1), ("hold_before", 0)])
def test_a_client_that_dies_while_held_is_let_go(cert, sandbox, kind, spent):
    tx_id = cert.approved()
    sandbox.state.order_fault("result", kind)
    with pytest.raises(httpx2.ReadTimeout):
        cert.http.post(
            "/api/v2/sign/user/auth/id/result",
            json={"txId": tx_id, "sessionKey": cert.session().session_key()},
            headers={"Authorization": f"Bearer {cert.access_token}"},
            timeout=0.2,
        )
    sandbox.state.wait_until(lambda state: state.held() == 0 and state.in_flight("result", tx_id) == 0)
    assert reads(sandbox, tx_id) == spent


def test_slow_calls_are_slow_and_then_answer(cert, sandbox):
    tx_id = cert.started()
    sandbox.state.order_fault("status", "slow", delay=0.05)
    answer = cert.status(tx_id)
    assert answer.status_code == 200
    assert answer.elapsed.total_seconds() >= 0.05


def test_a_bad_gateway_before_the_effect_and_after_it(cert, sandbox):
    tx_id = cert.approved()
    for after, spent in ((False, 0), (True, 1)):
        sandbox.state.order_fault("result", "html_502", after_effect=after)
        answer = cert.result(tx_id)
        assert answer.status_code == 502
        assert answer.headers["content-type"].startswith("text/html")
        assert reads(sandbox, tx_id) == spent


def test_failures_by_order(cert, sandbox):
    tx_id = cert.approved()
    sandbox.state.order_fault("result", "fail_200", code="CE3102")
    assert code(cert.result(tx_id)) == (200, "CE3102")
    sandbox.state.order_fault("result", "fail", code="CE3006")
    assert code(cert.result(tx_id)) == (400, "CE3006")
    sandbox.state.order_fault("result", "fail", code="CE9999", http_status=503)
    assert code(cert.result(tx_id)) == (503, "CE9999")
    sandbox.state.order_fault("result", "fail", code="CE0001", after_effect=True)
    assert code(cert.result(tx_id)) == (400, "CE0001")
    assert reads(sandbox, tx_id) == 1


def test_bare_oauth_errors(cert, sandbox):
    sandbox.state.order_fault("token", "oauth_error", error="temporarily_unavailable", http_status=503)
    answer = cert.token()
    assert (answer.status_code, answer.json()) == (503, {"error": "temporarily_unavailable"})


def test_a_good_token_can_be_rejected_once(cert, sandbox):
    tx_id = cert.approved()
    sandbox.state.order_fault("result", "token_rejected")
    assert code(cert.result(tx_id)) == (401, "CE1000")
    assert reads(sandbox, tx_id) == 0
    assert cert.result(tx_id).status_code == 200


def opens(session, envelope):
    try:
        session.open(envelope)
    except (InvalidTag, AssertionError):
        return False
    return True


@pytest.mark.parametrize("kind", ["damaged_tag", "wrong_session_id", "wrong_version"])
@pytest.mark.parametrize("field", [None, "name"])
def test_envelopes_can_be_spoilt_one_or_all(cert, sandbox, kind, field):
    tx_id, session = cert.approved(), cert.session()
    sandbox.state.order_fault("result", kind, field=field)
    personal = cert.result(tx_id, session).json()["success"]["personalData"]
    bad = {name for name, envelope in personal.items() if envelope and not opens(session, envelope)}
    everything = {"ci", "name", "birthday", "gender", "nationality", "di", "ageGroup"}
    assert bad == ({field} if field else everything)
    again = cert.session()
    personal = cert.result(tx_id, again).json()["success"]["personalData"]
    assert all(opens(again, envelope) for envelope in personal.values() if envelope)


@pytest.mark.parametrize("field", ["signature", "completedDt", "personalData", "name", "ci2"])
def test_fields_can_be_missing(cert, sandbox, field):
    tx_id = cert.approved()
    sandbox.state.order_fault("result", "missing_field", field=field)
    success = cert.result(tx_id).json()["success"]
    assert field not in success | success.get("personalData", {})


@pytest.mark.parametrize(("call", "field"), [("token", "access_token"), ("request", "txId"), ("status", "txId")])
def test_the_main_field_is_missing_when_none_is_named(cert, sandbox, call, field):
    tx_id = cert.started()
    sandbox.state.order_fault(call, "missing_field")
    answer = {"token": cert.token, "request": cert.request, "status": lambda: cert.status(tx_id)}[call]()
    body = answer.json()
    assert field not in body.get("success", body)


def test_unknown_fields_can_be_added(cert, sandbox):
    tx_id = cert.approved()
    sandbox.state.order_fault("result", "extra_field")
    body = cert.result(tx_id).json()
    assert "sandboxExtra" in body
    assert "sandboxExtra" in body["success"]
    assert "sandboxExtra" in body["success"]["personalData"]


def test_the_answer_for_another_transaction(cert, sandbox):
    tx_id = cert.approved()
    sandbox.state.order_fault("result", "wrong_tx")
    assert cert.result(tx_id).json()["success"]["txId"] != tx_id


def test_half_an_answer(cert, sandbox):
    tx_id = cert.approved()
    sandbox.state.order_fault("result", "truncated_json")
    answer = cert.result(tx_id)
    assert answer.status_code == 200
    with pytest.raises(json.JSONDecodeError):
        answer.json()
    assert reads(sandbox, tx_id) == 1


def test_a_huge_answer(cert, sandbox):
    tx_id = cert.approved()
    sandbox.state.order_fault("result", "big_body", size=3_000_000)
    assert len(cert.result(tx_id).content) > 3_000_000


def test_orders_wait_for_their_call_transaction_and_success(cert, sandbox):
    tx_id, other = cert.approved(), cert.approved()
    pending = cert.started()
    sandbox.state.order_fault("result", "wrong_tx", tx_id=tx_id, times=2)
    assert cert.result(other).json()["success"]["txId"] == other
    assert code(cert.result(pending)) == (400, "CE3102")
    assert cert.status(tx_id).json()["success"]["txId"] == tx_id
    assert cert.result(tx_id).json()["success"]["txId"] != tx_id
    assert [order.times for order in sandbox.state.pending_faults()] == [1]
    assert cert.result(tx_id).json()["success"]["txId"] != tx_id
    assert sandbox.state.pending_faults() == []


def test_one_order_before_and_one_after_meet_in_one_call(cert, sandbox):
    tx_id = cert.approved()
    sandbox.state.order_fault("result", "slow", delay=0.01)
    sandbox.state.order_fault("result", "html_502", after_effect=True)
    assert cert.result(tx_id).status_code == 502
    assert reads(sandbox, tx_id) == 1


def test_concurrent_results_are_counted_and_never_more_than_two_succeed(sandbox, threads):
    clients = [CertClient(sandbox) for _ in range(8)]
    tx_id = clients[0].approved()
    sandbox.state.order_fault("result", "hold_before", times=8)
    answers = [threads.submit(client.result, tx_id) for client in clients]
    sandbox.state.wait_until(lambda state: state.held("result") == 8)
    assert sandbox.state.max_in_flight("result", tx_id) == 8
    sandbox.state.release()
    statuses = [answer.result(10).status_code for answer in answers]
    assert sorted(statuses) == [200] * 2 + [400] * 6
    assert sandbox.state.count("result", tx_id) == 8
    for client in clients:
        client.http.close()


def test_sixty_four_calls_at_once(sandbox, threads):
    clients = [CertClient(sandbox) for _ in range(64)]
    barrier = threading.Barrier(64)

    def ask(client):
        barrier.wait(10)
        return client.request().status_code

    assert list(threads.map(ask, clients)) == [200] * 64
    for client in clients:
        client.http.close()


@pytest.mark.parametrize(("kind", "details"), [("hold", {}), ("hold_before", {}), ("slow", {"delay": 60})])
def test_it_stops_at_once_while_calls_wait(tmp_path, vectors, threads, kind, details):
    key = vectors["keys"]["test_rsa_4096"]["pkcs8_der_base64"]
    with SandboxServer(tmp_path, session_key=key) as server:
        client = CertClient(server)
        server.state.order_fault("status", kind, **details)
        tx_id = client.started()
        answer = threads.submit(client.status, tx_id)
        server.state.wait_until(lambda state: state.in_flight("status") == 1 and not state.pending_faults())
    with pytest.raises(LOST):
        answer.result(1)
    client.http.close()


def test_waiting_for_what_never_comes_ends():
    with pytest.raises(TimeoutError):
        SandboxState().wait_until(lambda state: state.held() == 1, timeout=0.01)
