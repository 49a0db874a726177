"""The sender of the unlink callback: every form that the reference knows, and every misfortune."""

import base64
import socket
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest

from sandbox.shared import NotPossible
from tests.sandbox.partner import success
from tests.sandbox.receiver import receiving

VALUE = "toss:long-random-password"
ENCODED = base64.b64encode(VALUE.encode()).decode()
ORIGIN = "https://apps-in-toss.toss.im"


@pytest.fixture
def receiver():
    with receiving() as made:
        yield made


@pytest.fixture
def callbacks(sandbox, receiver):
    sandbox.state.callbacks.configure(url=receiver.url, auth_value=VALUE)
    return sandbox.state.callbacks


@pytest.mark.usefixtures("callbacks")
@pytest.mark.parametrize("referrer", ["UNLINK", "WITHDRAWAL_TERMS", "WITHDRAWAL_TOSS"])
def test_the_user_unlinks_and_the_partner_is_told(partner, sandbox, receiver, referrer):
    tokens = partner.tokens()
    user_key = success(partner.me(tokens["accessToken"]))["userKey"]
    (delivery,) = sandbox.state.unlink_by_user("man", referrer=referrer)
    assert (delivery.status, delivery.body, delivery.is_success) == (200, "{}", True)
    (request,) = receiver.requests
    assert (request["method"], request["path"]) == ("POST", "/callbacks/toss/login-unlink")
    assert request["headers"]["content-type"] == "application/json"
    assert request["json"] == {"userKey": user_key, "referrer": referrer}
    assert request["headers"]["authorization"] == f"Basic {ENCODED}"
    assert partner.me(tokens["accessToken"]).status_code == 401
    with pytest.raises(NotPossible):
        sandbox.state.unlink_by_user("man")


def test_unlinking_by_the_partner_calls_nobody(partner, callbacks, receiver):
    partner.unlink_token(partner.tokens()["accessToken"])
    assert (receiver.requests, callbacks.waiting()) == ([], [])


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("raw", VALUE),
        ("base64", ENCODED),
        ("basic_raw", f"Basic {VALUE}"),
        ("basic_base64", f"Basic {ENCODED}"),
        ("bearer_raw", f"Bearer {VALUE}"),
        ("bearer_base64", f"Bearer {ENCODED}"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_every_encoding_by_either_method(callbacks, receiver, method, encoding, expected):
    callbacks.configure(method=method, encoding=encoding)
    callbacks.announce(443731103, "UNLINK")
    (request,) = receiver.requests
    assert (request["method"], request["headers"]["authorization"]) == (method, expected)
    if method == "GET":
        assert request["query"] == {"userKey": ["443731103"], "referrer": ["UNLINK"]}
        assert request["json"] is None


def test_no_value_means_no_header(callbacks, receiver):
    callbacks.configure(auth_value=None)
    callbacks.announce(1, "UNLINK")
    assert "authorization" not in receiver.requests[0]["headers"]


def test_the_user_key_as_text_and_under_another_name(callbacks, receiver):
    callbacks.configure(user_key_as_text=True)
    callbacks.announce(7, "UNLINK")
    callbacks.configure(user_key_as_text=False, user_key_spelling="user_key")
    callbacks.announce(7, "SOMETHING_NEW")
    assert receiver.bodies() == [
        {"userKey": "7", "referrer": "UNLINK"},
        {"user_key": 7, "referrer": "SOMETHING_NEW"},
    ]


def test_a_query_in_the_url_stays(callbacks, receiver):
    callbacks.configure(url=f"{receiver.url}?app=mine", method="GET")
    callbacks.announce(7, "UNLINK")
    assert receiver.requests[0]["query"] == {"app": ["mine"], "userKey": ["7"], "referrer": ["UNLINK"]}


def test_duplicates(callbacks, receiver):
    callbacks.configure(copies=3)
    notice, made = callbacks.announce(7, "UNLINK")
    assert [delivery.notice_id for delivery in made] == [notice.id] * 3
    callbacks.deliver([notice.id], copies=1)
    assert receiver.bodies() == [{"userKey": 7, "referrer": "UNLINK"}] * 4


def test_notices_can_wait_and_be_swapped(callbacks, receiver):
    callbacks.configure(is_automatic=False)
    first, second, third = (callbacks.announce(number, "UNLINK")[0] for number in (1, 2, 3))
    assert receiver.requests == []
    assert [notice.id for notice in callbacks.waiting()] == [first.id, second.id, third.id]
    callbacks.deliver([third.id])
    callbacks.deliver(reverse=True)
    assert [body["userKey"] for body in receiver.bodies()] == [3, 2, 1]
    assert callbacks.waiting() == []
    assert callbacks.deliver() == []
    with pytest.raises(NotPossible):
        callbacks.deliver([99])


def test_delayed_notices_become_due_by_the_clock(callbacks, receiver, sandbox):
    callbacks.configure(delay_seconds=30)
    callbacks.announce(7, "UNLINK")
    assert callbacks.deliver() == []
    sandbox.state.clock.advance(31)
    assert len(callbacks.deliver()) == 1
    assert len(receiver.requests) == 1


def test_a_failed_delivery_is_tried_again_as_often_as_told(callbacks, receiver):
    receiver.statuses = [503, 401]
    callbacks.configure(retries=4)
    _, made = callbacks.announce(7, "UNLINK")
    assert [delivery.status for delivery in made] == [503, 401, 200]
    callbacks.configure(retries=0)
    receiver.statuses = [500]
    _, made = callbacks.announce(8, "UNLINK")
    assert [delivery.is_success for delivery in made] == [False]
    assert [delivery.status for delivery in callbacks.deliveries()] == [503, 401, 200, 500]


def test_nobody_there_and_nowhere_to_go(callbacks):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        callbacks.configure(url=f"http://127.0.0.1:{bound.getsockname()[1]}/")
        _, (delivery,) = callbacks.announce(7, "UNLINK")
    assert (delivery.status, delivery.error, delivery.is_success) == (None, "ConnectError", False)
    callbacks.configure(url=None)
    notice, made = callbacks.announce(8, "UNLINK")
    assert made == []
    for impossible in (lambda: callbacks.deliver([notice.id]), callbacks.test_from_console):
        with pytest.raises(NotPossible):
            impossible()


def test_an_untrusted_receiver_gets_nothing(callbacks, sandbox):
    callbacks.configure(url=sandbox.toss_url)
    _, (delivery,) = callbacks.announce(7, "UNLINK")
    assert delivery.error == "ConnectError"
    callbacks.configure(ca_file=str(sandbox.ca_file))
    _, (delivery,) = callbacks.announce(7, "UNLINK")
    assert delivery.status == 404


def test_other_addresses_and_headers(callbacks, receiver):
    callbacks.configure(source_address="127.0.0.9", headers={"X-Forwarded-For": "117.52.3.11"})
    callbacks.announce(7, "UNLINK")
    (request,) = receiver.requests
    assert (request["peer"], request["headers"]["x-forwarded-for"]) == ("127.0.0.9", "117.52.3.11")


@pytest.mark.usefixtures("callbacks")
def test_each_mini_app_has_its_own_receiver(sandbox, receiver):
    sandbox.state.mini_apps.log_in("man", app_name="other-app")
    assert sandbox.state.unlink_by_user("man", app_name="other-app") == []
    assert receiver.requests == []


@pytest.mark.parametrize(("method", "asked"), [("POST", "authorization,content-type"), ("GET", "authorization")])
def test_the_consoles_button_passes_with_cors(callbacks, receiver, method, asked):
    callbacks.configure(method=method)
    receiver.cors = {
        "Access-Control-Allow-Origin": ORIGIN,
        "Access-Control-Allow-Headers": "Authorization, Content-Type",
    }
    test = callbacks.test_from_console()
    assert test.is_success
    preflight, call = receiver.requests
    assert preflight["method"] == "OPTIONS"
    assert "authorization" not in preflight["headers"]
    assert preflight["headers"]["access-control-request-method"] == method
    assert preflight["headers"]["access-control-request-headers"] == asked
    assert {request["headers"]["origin"] for request in receiver.requests} == {ORIGIN}
    assert call["headers"]["authorization"] == f"Basic {ENCODED}"
    sent = call["json"] if method == "POST" else {name: value for name, (value,) in call["query"].items()}
    assert {name: str(value) for name, value in sent.items()} == {"userKey": "0", "referrer": "UNLINK"}


@pytest.mark.parametrize(
    "cors",
    [
        {},
        {
            "Access-Control-Allow-Origin": "https://elsewhere.example",
            "Access-Control-Allow-Headers": "authorization",
        },
        {"Access-Control-Allow-Origin": ORIGIN, "Access-Control-Allow-Headers": "Content-Type"},
        {"Access-Control-Allow-Origin": ORIGIN, "Access-Control-Allow-Headers": "*"},
    ],
)
def test_the_consoles_button_fails_without_cors(callbacks, receiver, cors):
    receiver.cors = cors
    test = callbacks.test_from_console()
    assert (test.is_preflight_allowed, test.call, test.is_success) == (False, None, False)
    assert [request["method"] for request in receiver.requests] == ["OPTIONS"]


def test_the_consoles_button_fails_with_the_answer(callbacks, receiver):
    receiver.cors = {
        "Access-Control-Allow-Origin": ORIGIN,
        "Access-Control-Allow-Headers": "Authorization,content-type",
    }
    receiver.statuses = [204, 401]
    test = callbacks.test_from_console()
    assert (test.is_preflight_allowed, test.call.status, test.is_success) == (True, 401, False)
    receiver.statuses = [403]
    assert not callbacks.test_from_console().is_preflight_allowed


def test_all_of_it_over_the_control_api(sandbox, receiver):
    with httpx2.Client(base_url=f"{sandbox.control_url}/control/", trust_env=False) as control:
        told = control.post("callback", json={"url": receiver.url, "authValue": VALUE, "encoding": "bearer_raw"})
        assert VALUE not in told.text
        control.post("callback", json={"method": "GET"})
        control.post("users/man/login")
        answer = control.post("users/man/unlink", json={"referrer": "WITHDRAWAL_TERMS"}).json()
        assert [delivery["status"] for delivery in answer["deliveries"]] == [200]
        assert control.post("users/man/unlink").status_code == 409
        assert receiver.requests[0]["headers"]["authorization"] == f"Bearer {VALUE}"
        assert receiver.requests[0]["query"]["referrer"] == ["WITHDRAWAL_TERMS"]
        control.post("callback", json={"isAutomatic": False})
        announced = control.post("callbacks", json={"userKey": 5, "referrer": "UNLINK"}).json()
        assert announced["deliveries"] == []
        assert len(control.post("callbacks/deliver", json={"copies": 2}).json()["deliveries"]) == 2
        control.post("callbacks/deliver", json={"ids": [announced["id"], 1], "reverse": True})
        assert len(receiver.requests) == 5
        assert control.post("callbacks/console-test").json()["isSuccess"] is False
        seen = control.get("callbacks")
        assert len(seen.json()["notices"]) == 2
        assert len(seen.json()["deliveries"]) == 6
        assert VALUE not in seen.text
        for path, body in (
            ("callback", {"encoding": "x"}),
            ("callbacks", {}),
            ("users/man/unlink", {"referrer": "X"}),
        ):
            assert control.post(path, json=body).status_code == 422


# The other kinds


def test_each_kind_has_settings_of_its_own(callbacks, receiver):
    callbacks.configure(kind="iap-subscription", url=f"{receiver.url}/iap", auth_value="iap:value")
    callbacks.send("iap-subscription", {"eventType": "x"})
    callbacks.configure(kind="payment", url=f"{receiver.url}/payment", auth_value="pay:value", is_automatic=False)
    callbacks.send("payment", {"orderNo": "o"})
    callbacks.announce(7, "UNLINK")
    sent = [request["headers"]["authorization"] for request in receiver.requests]
    assert sent == ["Bearer iap:value", f"Basic {ENCODED}"]
    assert callbacks.deliver(kind="login-unlink") == []
    assert [delivery.status for delivery in callbacks.deliver(kind="payment")] == [200]
    assert [request["path"].rpartition("/")[2] for request in receiver.requests] == [
        "iap",
        "login-unlink",
        "payment",
    ]
    with pytest.raises(ValueError, match="not a valid CallbackKind"):
        callbacks.send("nonsense", {})


def test_notices_that_have_nowhere_to_go_wait(callbacks):
    callbacks.send("iap-subscription", {"eventType": "x"})
    callbacks.configure(is_automatic=False)
    callbacks.announce(7, "UNLINK")
    assert len(callbacks.deliver()) == 1
    assert [notice.kind for notice in callbacks.waiting()] == ["iap-subscription"]


@pytest.mark.parametrize(("status", "holds"), [(204, True), (401, False)])
def test_an_address_holds_once_it_has_answered(sandbox, receiver, status, holds):
    receiver.statuses = [status]
    delivery = sandbox.state.callbacks.register(url=receiver.url, auth_value=VALUE, encoding="basic_base64")
    assert (delivery.status, delivery.notice_id) == (status, None)
    (request,) = receiver.requests
    assert request["headers"]["authorization"] == f"Basic {ENCODED}"
    assert request["json"]["eventType"] == "callback.registration_verification"
    assert set(request["json"]) == {"eventType", "occurredAt"}
    assert (sandbox.state.callbacks.settings(kind="iap-subscription").url == receiver.url) is holds
    sandbox.state.reset()
    with pytest.raises(NotPossible):
        sandbox.state.callbacks.register()


@pytest.mark.parametrize("fractions", [False, True])
@pytest.mark.parametrize(("zone", "hours"), [("Asia/Seoul", 9), ("UTC", 0)])
def test_times_name_no_zone(sandbox, receiver, zone, hours, fractions):
    kind = "iap-subscription"
    sandbox.state.callbacks.configure(kind=kind, url=receiver.url, zone=zone, fractions=fractions)
    sandbox.state.clock.set(datetime(2026, 9, 1, 3, tzinfo=UTC))
    order_id = sandbox.state.iap.buy_subscription("man", "sku")
    sandbox.state.iap.transition(order_id, "RENEWED")
    body = receiver.bodies()[0]
    for text in (body["occurredAt"], body["subscription"]["current"]["expiresAt"]):
        moment = datetime.fromisoformat(text)
        assert (moment.tzinfo, moment.hour) == (None, 3 + hours)
        assert ("." in text) is fractions


def test_a_payment_is_told_of_only_where_an_address_is_set(pay, sandbox, receiver):
    pay.paid("one")
    assert sandbox.state.callbacks.waiting() == []
    sandbox.state.callbacks.configure(kind="payment", url=receiver.url, auth_value=VALUE)
    token = pay.paid("two")
    sandbox.state.wait_until(lambda state: state.callbacks.deliveries())
    (body,) = receiver.bodies()
    facts = {"status": "PAY_COMPLETE", "payToken": token, "orderNo": "two", "amount": 4500, "paidAmount": 4500}
    assert facts.items() <= body.items()
    pay.refund(token)
    assert (len(receiver.requests), sandbox.state.callbacks.waiting()) == (1, [])
    sandbox.state.callbacks.configure(kind="payment", is_automatic=False)
    pay.paid("three")
    sandbox.state.callbacks.deliver(copies=2, reverse=True)
    assert [body["orderNo"] for body in receiver.bodies()] == ["two", "three", "three"]


def test_a_receiver_may_ask_toss_before_it_answers(pay, sandbox):
    """Else the two would wait for each other."""
    answers = []

    class Asking(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            answers.append(success(pay.status(orderNo="order-1"))["payStatus"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Asking) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        sandbox.state.callbacks.configure(kind="payment", url=f"http://127.0.0.1:{server.server_port}/")
        pay.paid()
        sandbox.state.wait_until(lambda state: state.callbacks.deliveries())
        server.shutdown()
        serving.join()
    assert answers == ["PAY_COMPLETE"]
    assert sandbox.state.callbacks.deliveries()[0].is_success
