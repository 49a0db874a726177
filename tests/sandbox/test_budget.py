"""The budget per mini-app, and the counters that tests of a client read."""

import threading

import pytest

from sandbox.budget import Budget
from sandbox.clock import Clock
from tests.sandbox.partner import PartnerClient, failure, partner_tls

APP = "my-granite-app"


@pytest.fixture
def small(sandbox):
    sandbox.state.budget.set_limit(APP, 3)
    return sandbox.state.budget


def test_over_the_budget_calls_are_refused_until_the_window_ends(partner, sandbox, small):
    statuses = [partner.me("x").status_code for _ in range(3)]
    assert statuses == [401] * 3
    code = partner.code()
    answer = partner.exchange(code)
    assert failure(answer) == (200, "4095")
    assert set(answer.json()["error"]["data"]) == {"retryAfterSeconds"}
    assert 50 <= answer.json()["error"]["data"]["retryAfterSeconds"] <= 60
    assert "retry-after" not in answer.headers
    assert partner.http.get("/unknown").json()["error"]["errorCode"] == "4095"
    sandbox.state.clock.advance(40)
    assert partner.me("x").json()["error"]["data"]["retryAfterSeconds"] <= 20
    sandbox.state.clock.advance(20)
    assert partner.exchange(code).status_code == 200
    assert (small.calls(APP), small.refusals(APP)) == (7, 3)
    assert [call.answer for call in sandbox.state.calls("login_exchange")] == ["4095", "SUCCESS"]


def test_the_refusal_may_look_otherwise(partner, sandbox, small):
    small.set_limit(APP, 0, window_seconds=5)
    sandbox.state.set_switches(rate_limit_status=429, numbers_as_text=True)
    answer = partner.me("x")
    assert failure(answer) == (429, "4095")
    assert answer.json()["error"]["data"] == {"retryAfterSeconds": "5"}


def test_each_mini_app_has_its_own(partner, sandbox, small, tmp_path):
    for _ in range(4):
        partner.me("x")
    pair = sandbox.issue_client_certificate("other-app", key_type="ec")
    other = PartnerClient(sandbox, partner_tls(sandbox, pair, tmp_path))
    assert other.me("x").status_code == 401
    assert small.refusals("other-app") == 0
    other.http.close()


def test_faults_wait_for_a_call_within_the_budget(partner, sandbox, small):
    small.set_limit(APP, 0)
    sandbox.state.order_fault("login_me", "html_502")
    assert failure(partner.me("x")) == (200, "4095")
    small.set_limit(APP, 1)
    assert partner.me("x").status_code == 502


def test_the_default_and_reset(sandbox, small):
    small.spend(APP)
    sandbox.state.reset()
    assert small.limit(APP).requests == 3000
    assert small.calls(APP) == 0


def test_the_most_in_any_window_is_found_wherever_it_lies():
    clock = Clock()
    budget = Budget(clock, threading.Condition(threading.RLock()))
    budget.set_limit(APP, 2, window_seconds=60)
    for pause in (0, 50, 9, 0, 50, 10, 40):
        clock.advance(pause)
        budget.spend(APP)
    # Arrivals at 0, 50, 59, 59, 109, 119, 159: the fixed windows begin at 0 and 109.
    assert budget.most_in_any_window(APP) == 4
    assert budget.most_in_any_window(APP, 5) == 2
    assert budget.refusals(APP) == 3
    assert budget.most_in_any_window("unknown") == 0
