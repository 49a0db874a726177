"""Every open point of the reference has a switch, and its default is the documented or the safest value."""

import pytest

from tests.sandbox.client import code

LINKS = ("appScheme", "androidAppUri", "iosAppUri")


@pytest.mark.parametrize(
    ("links", "expected"),
    [("text_null", "null"), ("json_null", None)],
)
def test_links_may_say_nothing_in_two_ways(cert, sandbox, links, expected):
    sandbox.state.set_switches(links=links)
    success = cert.post("request", cert.personal()).json()["success"]
    assert {success[link] for link in LINKS} == {expected}


def test_links_may_be_real_or_absent(cert, sandbox):
    sandbox.state.set_switches(links="real")
    success = cert.post("request", cert.personal()).json()["success"]
    assert success["androidAppUri"].startswith("intent://")
    assert success["iosAppUri"].startswith("https://")
    assert all(success["txId"] in success[link] for link in LINKS)
    sandbox.state.set_switches(links="absent")
    assert not set(LINKS) & set(cert.post("request", cert.personal()).json()["success"])


def test_one_touch_has_an_address_when_switched_on(cert, sandbox):
    sandbox.state.set_switches(auth_url=True)
    success = cert.request().json()["success"]
    assert success["authUrl"].startswith("https://")
    assert not set(LINKS) & set(success)


def test_results_may_come_without_age_group_and_with_null_as_text(cert, sandbox):
    sandbox.state.set_switches(ageGroup=False, nullFieldsAsText=True)
    personal = cert.result(cert.approved()).json()["success"]["personalData"]
    assert "ageGroup" not in personal
    assert (personal["ci2"], personal["ciUpdate"]) == ("null", "null")


def test_successes_may_carry_an_explicit_null_error(cert, sandbox):
    assert "error" not in cert.request().json()
    sandbox.state.set_switches(explicit_error_null=True)
    assert cert.request().json()["error"] is None


def test_token_lifetimes(cert, sandbox):
    sandbox.state.set_switches(token_expires_in=7, token_expires_in_as_text=True)
    assert cert.token().json()["expires_in"] == "7"


def test_the_life_of_a_request(cert, sandbox):
    sandbox.state.set_switches(request_life_seconds=5)
    tx_id = cert.started()
    sandbox.state.clock.advance(6)
    assert cert.status(tx_id).json()["success"]["status"] == "EXPIRED"


def test_codes_and_statuses(cert, sandbox):
    tx_id = cert.started()
    sandbox.state.set_switches(codes={"not_completed": "CE3002"}, fail_statuses={"CE3002": 409})
    assert code(cert.result(tx_id)) == (409, "CE3002")
    assert code(cert.status("unknown")) == (400, "CE3100")


def test_unknown_switches_and_wrong_values_are_refused(sandbox):
    for changes in ({"nonsense": 1}, {"links": "sometimes"}, {"request_life_seconds": 0}):
        with pytest.raises(ValueError, match="validation error"):
            sandbox.state.set_switches(**changes)


def test_reset_restores_everything(cert, sandbox):
    tx_id = cert.started()
    sandbox.state.set_switches(links="real")
    sandbox.state.order_fault("status", "html_502")
    sandbox.state.clock.advance(1_000_000)
    sandbox.state.reset()
    assert sandbox.state.switches.links == "text_null"
    assert sandbox.state.pending_faults() == []
    assert sandbox.state.transactions() == []
    assert code(cert.status(tx_id)) == (401, "CE1000")
