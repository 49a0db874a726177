"""Granting: once per order in the world, to the first who presents it, when Toss says it is paid (reference 10)."""

import asyncio
import logging
from datetime import timedelta

import pytest

from app.main import rate_limits
from app.settings import LimitSettings
from app.toss.governor import Lane
from sandbox.purchases import Shown
from tests.conftest import settings_for, without_callbacks
from tests.login.odd import OddToss, success
from tests.login.store import everything
from tests.purchases.shop import (
    AUTHENTIC,
    CALLBACK,
    MONTHLY,
    SKU,
    Patience,
    entitlements,
    event_types,
    events,
    grant,
    later,
    purchases,
    shown,
    store,
    with_purchases,
)
from tests.scenarios import Bff, Login, assert_problem

STATUS = "get-order-status"


async def test_a_paid_order_is_granted_and_granted_again(bff):
    login = await bff.log_in()
    order_id = store(bff).buy("man", SKU)
    answer = await grant(bff, login, order_id)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert body == {
        "orderId": order_id,
        "sku": SKU,
        "state": "GRANTED",
        "grantedAt": body["grantedAt"],
        "refundedAt": None,
    }
    store(bff).complete(order_id)
    again = await grant(bff, login, order_id)
    assert (again.status_code, again.json()) == (200, body)
    assert bff.sandbox.state.count("iap_status") == 1, "an order that was granted is not asked for again"
    assert (await shown(bff, login, order_id)).json() == body
    (row,) = await purchases(bff)
    data = {"orderId": order_id, "userId": login.user_id, "sku": SKU, "grantedAt": body["grantedAt"]}
    (event,) = await events(bff)
    assert event[:2] == ("purchase.granted", order_id)
    assert {**event[2], "grantedAt": row.granted_at.isoformat()} == {
        **data,
        "grantedAt": row.granted_at.isoformat(),
    }
    assert await entitlements(bff, login) == [
        {"sku": SKU, "kind": "ONE_TIME", "expiresAt": None, "autoRenew": None, "orderIds": [order_id]}
    ]


@pytest.mark.parametrize("is_completed", [False, True])
@pytest.mark.parametrize("words_of_2025", [False, True])
async def test_both_words_mean_paid_whichever_year_defines_them(bff, words_of_2025, is_completed):
    bff.sandbox.state.set_switches(iap_words_of_2025=words_of_2025)
    login = await bff.log_in()
    order_id = store(bff).buy("man", SKU)
    if is_completed:
        store(bff).complete(order_id)
    assert (await grant(bff, login, order_id)).status_code == 200
    (row,) = await purchases(bff)
    assert row.toss_status == ("PURCHASED" if is_completed is not words_of_2025 else "PAYMENT_COMPLETED")


SWITCHES = [
    {"payload_key": "result"},
    {"failure_without_success": True},
    {"explicit_error_null": True},
    {"iap_zone": True},
    {"iap_user_header_required": True},
    {"iap_words_of_2025": True, "iap_zone": True, "iap_user_header_required": True, "payload_key": "result"},
]


@pytest.mark.parametrize("switches", SWITCHES, ids="-".join)
async def test_granted_and_refunded_under_every_switch(bff, switches):
    bff.sandbox.state.set_switches(**switches)
    login = await bff.log_in()
    order_id = store(bff).buy("man", SKU)
    assert (await grant(bff, login, order_id)).status_code == 200
    store(bff).refund(order_id)
    later(bff, days=1, seconds=1)
    assert (await bff.resources.purchases.reconcile()).refunded == 1
    (row,) = await purchases(bff)
    assert abs(row.refunded_at - bff.clock() + timedelta(days=1, seconds=1)) < timedelta(minutes=1)


# --- Not visible yet -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", list(Shown))
async def test_what_toss_does_not_show_yet_is_waited_for(bff, patience, word):
    login = await bff.log_in()
    order_id = store(bff).buy("man", SKU, shown=word, shown_asks=4)
    assert (await grant(bff, login, order_id)).status_code == 200
    assert bff.sandbox.state.count("iap_status") == 5
    assert patience.waited == pytest.approx(0.35 + 0.7 + 1.4 + 2.8)


async def test_the_delay_is_waited_for_in_toss_s_time(bff, patience):
    login = await bff.log_in()
    order_id = store(bff).buy("man", SKU, shown_seconds=10)
    assert (await grant(bff, login, order_id)).status_code == 200
    assert 10 <= patience.waited <= 15


@pytest.mark.parametrize("word", list(Shown))
async def test_after_the_wait_it_is_not_ready_and_nothing_is_bound(bff, patience, word):
    login = await bff.log_in()
    order_id = store(bff).buy("man", SKU, shown=word, shown_seconds=3600)
    answer = await grant(bff, login, order_id)
    problem = assert_problem(answer, 409, "purchase_not_ready")
    assert (problem["retryable"], answer.headers["retry-after"]) == (True, "2")
    assert patience.waited == pytest.approx(15)
    assert bff.sandbox.state.count("iap_status") == 7
    assert (await purchases(bff), await events(bff)) == ([], [])
    assert_problem(await shown(bff, login, order_id), 404, "purchase_not_found")
    later(bff, hours=1)
    assert (await grant(bff, login, order_id)).status_code == 200


async def test_a_new_word_is_waited_for_and_never_granted(embedded, sandbox, tmp_path):
    toss = OddToss()
    toss.answers[STATUS] = success({"status": "SOMETHING_NEW", "sku": SKU})
    async with (
        toss.serving(settings_for(embedded, sandbox), tmp_path) as settings,
        Bff.running(settings, sandbox) as bff,
    ):
        login = await logged_in_at(bff, toss)
        Patience(bff)
        assert_problem(await grant(bff, login, "an-order"), 409, "purchase_not_ready")
        assert await purchases(bff) == []


async def test_no_wait_is_one_question(settings, sandbox):
    async with Bff.running(with_purchases(settings, visibility_wait=0), sandbox) as bff:
        login = await bff.log_in()
        order_id = store(bff).buy("man", SKU, shown_asks=1)
        assert_problem(await grant(bff, login, order_id), 409, "purchase_not_ready")
        assert (await grant(bff, login, order_id)).status_code == 200


async def test_the_answer_comes_before_the_sdk_gives_up(bff):
    login = await bff.log_in()
    bff.resources.purchases._answer_within = timedelta(milliseconds=50)
    bff.sandbox.state.order_fault("iap_status", "hold")
    order_id = store(bff).buy("man", SKU)
    assert_problem(await grant(bff, login, order_id), 504, "upstream_timeout")
    bff.sandbox.state.release()
    assert (await grant(bff, login, order_id)).status_code == 200


# --- Not to be granted ---------------------------------------------------------------------------------------


async def test_a_payment_that_failed(bff):
    login = await bff.log_in()
    order_id = store(bff).buy("man", SKU, is_paid=False)
    store(bff).fail(order_id)
    problem = assert_problem(await grant(bff, login, order_id), 409, "purchase_failed")
    assert (problem["tossCode"], problem["retryable"]) == ("FAILED", False)
    assert (await purchases(bff), await events(bff)) == ([], [])


async def test_an_order_of_another_mini_app_is_an_alarm(bff, caplog):
    login = await bff.log_in()
    bff.sandbox.state.mini_apps.app("another-app")
    order_id = store(bff).buy("man", SKU, app_name="another-app")
    problem = assert_problem(await grant(bff, login, order_id), 409, "purchase_failed")
    assert problem["tossCode"] == "MINIAPP_MISMATCH"
    alarms = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [alarm.msg["event"] for alarm in alarms] == ["order_of_another_mini_app"]
    assert await purchases(bff) == []


async def test_what_was_refunded_before_is_recorded_and_not_granted(bff):
    login = await bff.log_in()
    order_id = store(bff).buy("man", SKU)
    store(bff).refund(order_id)
    for _ in range(2):
        assert_problem(await grant(bff, login, order_id), 409, "purchase_refunded")
    assert bff.sandbox.state.count("iap_status") == 1
    body = (await shown(bff, login, order_id)).json()
    assert (body["state"], body["grantedAt"]) == ("REFUNDED", None)
    assert body["refundedAt"] is not None
    assert (await events(bff), await entitlements(bff, login)) == ([], [])


@pytest.mark.parametrize("payload", [{"status": "PURCHASED"}, {"sku": SKU}, {}, [], "PURCHASED"])
async def test_an_answer_without_what_a_grant_needs(embedded, sandbox, tmp_path, payload):
    toss = OddToss()
    toss.answers[STATUS] = success(payload)
    async with (
        toss.serving(settings_for(embedded, sandbox), tmp_path) as settings,
        Bff.running(settings, sandbox) as bff,
    ):
        login = await logged_in_at(bff, toss)
        assert_problem(await grant(bff, login, "an-order"), 502, "upstream_invalid")
        assert await purchases(bff) == []


async def logged_in_at(bff, toss):
    toss.answers["login-me"] = success({"userKey": 443731104, "scope": "user_key", "agreedTerms": []})
    answer = await bff.post_code("a-code")
    assert answer.status_code == 200, answer.text
    return Login(answer.json()["sessionToken"], answer.json())


# --- Whose ---------------------------------------------------------------------------------------------------


async def test_an_order_that_somebody_else_has_is_not_there(bff):
    owner, thief = await bff.log_in(), await bff.log_in("foreigner")
    order_id = store(bff).buy("man", SKU)
    assert (await grant(bff, owner, order_id)).status_code == 200
    for answer in (await grant(bff, thief, order_id), await shown(bff, thief, order_id)):
        assert_problem(answer, 404, "purchase_not_found")
    unknown = await shown(bff, thief, "never-made")
    stolen = await shown(bff, thief, order_id)
    assert {**unknown.json(), "instance": ""} == {**stolen.json(), "instance": ""}
    assert await entitlements(bff, thief) == []
    assert bff.sandbox.state.count("iap_status") == 1


@pytest.mark.usefixtures("patience")
async def test_toss_is_told_who_asks_so_that_a_thief_is_not_first(bff):
    owner, thief = await bff.log_in(), await bff.log_in("foreigner")
    order_id = store(bff).buy("man", SKU)
    assert_problem(await grant(bff, thief, order_id), 409, "purchase_not_ready")
    assert (await grant(bff, owner, order_id)).status_code == 200


async def test_without_the_header_the_first_who_presents_it_has_it(settings, sandbox):
    async with Bff.running(with_purchases(settings, sends_user_key=False), sandbox) as bff:
        first, second = await bff.log_in("foreigner"), await bff.log_in()
        order_id = store(bff).buy("man", SKU)
        assert (await grant(bff, first, order_id)).status_code == 200
        assert_problem(await grant(bff, second, order_id), 404, "purchase_not_found")


async def test_an_anonymous_user_is_not_named(bff):
    login = await bff.log_in_anonymously()
    order_id = store(bff).buy("man", SKU)
    assert (await grant(bff, login, order_id)).status_code == 200
    assert len(await entitlements(bff, login)) == 1


async def test_where_toss_wants_to_know_who_it_is_an_anonymous_user_hears_its_code(bff):
    bff.sandbox.state.set_switches(iap_user_header_required=True)
    login = await bff.log_in_anonymously()
    problem = assert_problem(await grant(bff, login, store(bff).buy("man", SKU)), 502, "upstream_refused")
    assert problem["tossCode"] == "4010"


async def test_whoever_comes_back_after_being_erased_still_has_it(bff):
    first = await bff.log_in()
    order_id = store(bff).buy("man", SKU)
    await grant(bff, first, order_id)
    assert (await bff.http.delete("/api/v1/me", headers=first.headers)).status_code == 204
    again = await bff.log_in()
    assert again.user_id != first.user_id
    assert (await grant(bff, again, order_id)).status_code == 200
    assert len(await entitlements(bff, again)) == 1
    (row,) = await purchases(bff)
    assert row.user_id == again.user_id


async def test_without_a_session_nothing_is_to_be_had(bff):
    for method, path in (
        ("POST", "/api/v1/purchases/an-order/grant"),
        ("GET", "/api/v1/purchases/an-order"),
        ("GET", "/api/v1/entitlements"),
    ):
        assert_problem(await bff.http.request(method, path), 401, "session_required")


@pytest.mark.parametrize("order_id", ["x" * 65, "a b", "a.b", "%00", "ä"])
async def test_what_cannot_be_an_order_is_refused_before_toss_is_asked(bff, order_id):
    login = await bff.log_in()
    assert_problem(await grant(bff, login, order_id), 422, "invalid_request")
    assert bff.sandbox.state.count("iap_status") == 0


async def test_without_a_client_certificate_nothing_is_granted(settings, sandbox):
    async with Bff.running(settings, sandbox) as bff:
        login = await bff.log_in()
    async with Bff.running(without_callbacks(settings), sandbox) as bff:
        assert_problem(await grant(bff, login, "an-order"), 503, "toss_not_configured")


# --- At once, and when Toss fails -----------------------------------------------------------------------------


async def test_fifty_at_once_share_one_question(bff):
    login = await bff.log_in()
    order_id = store(bff).buy("man", SKU)
    bff.sandbox.state.order_fault("iap_status", "hold_before")
    asking = [asyncio.create_task(grant(bff, login, order_id)) for _ in range(50)]
    await asyncio.to_thread(bff.sandbox.state.wait_until, lambda state: state.held("iap_status") == 1)
    bff.sandbox.state.release("iap_status")
    answers = await asyncio.gather(*asking)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert bff.sandbox.state.count("iap_status") == 1
    assert await event_types(bff) == ["purchase.granted"]
    assert bff.resources.purchases._granting == {}


async def test_two_users_at_once_get_their_own_answers(settings, sandbox):
    """Without the header Toss would say yes to both: the row decides."""
    async with Bff.running(with_purchases(settings, sends_user_key=False), sandbox) as bff:
        logins = [await bff.log_in(), await bff.log_in("foreigner")]
        order_id = store(bff).buy("man", SKU)
        answers = await asyncio.gather(*(grant(bff, login, order_id) for login in logins * 10))
        first = [answer.status_code for answer in answers[::2]]
        second = [answer.status_code for answer in answers[1::2]]
        assert sorted([set(first) == {200}, set(second) == {200}]) == [False, True]
        assert {404} in (set(first), set(second))
        assert await event_types(bff) == ["purchase.granted"]


async def test_who_hangs_up_has_it_all_the_same(bff):
    login = await bff.log_in()
    order_id = store(bff).buy("man", SKU)
    bff.sandbox.state.order_fault("iap_status", "hold")
    asking = asyncio.create_task(grant(bff, login, order_id))
    await asyncio.to_thread(bff.sandbox.state.wait_until, lambda state: state.held("iap_status") == 1)
    (granting,) = bff.resources.purchases._granting.values()
    asking.cancel()
    await asyncio.wait({asking})
    bff.sandbox.state.release()
    await granting
    assert len(await purchases(bff)) == 1


async def test_at_the_end_of_the_process_no_wait_is_left_over(settings, sandbox):
    async with Bff.running(settings, sandbox) as bff:
        login = await bff.log_in()
        order_id = store(bff).buy("man", SKU)
        bff.sandbox.state.order_fault("iap_status", "hold_before")
        asking = asyncio.create_task(grant(bff, login, order_id))
        await asyncio.to_thread(bff.sandbox.state.wait_until, lambda state: state.held("iap_status") == 1)
        (granting,) = bff.resources.purchases._granting.values()
        asking.cancel()
        await asyncio.wait({asking})
    assert granting.cancelled()
    sandbox.state.release()


@pytest.mark.parametrize(
    ("fault", "details", "status", "code"),
    [
        ("html_502", {}, 503, "upstream_unavailable"),
        ("fail_200", {"code": "INTERNAL_ERROR"}, 503, "upstream_unavailable"),
        ("fail_200", {"code": "4050"}, 503, "toss_not_configured"),
        ("fail_200", {"code": "SOMETHING_NEW"}, 502, "upstream_refused"),
    ],
)
async def test_a_failure_of_toss_binds_nothing_and_the_next_call_grants(bff, fault, details, status, code):
    login = await bff.log_in()
    order_id = store(bff).buy("man", SKU)
    bff.sandbox.state.order_fault("iap_status", fault, **details)
    assert_problem(await grant(bff, login, order_id), status, code)
    assert await purchases(bff) == []
    assert (await grant(bff, login, order_id)).status_code == 200


async def test_a_lost_answer_is_asked_for_again(bff):
    login = await bff.log_in()
    order_id = store(bff).buy("man", SKU)
    bff.sandbox.state.order_fault("iap_status", "reset_after")
    assert (await grant(bff, login, order_id)).status_code == 200


async def test_a_grant_goes_before_background_work(bff):
    lanes = []
    api = bff.resources.purchases._api
    ask = api.order_status

    async def order_status(order_id, *, user, lane):
        lanes.append(lane)
        return await ask(order_id, user=user, lane=lane)

    api.order_status = order_status
    login = await bff.log_in()
    order_id = store(bff).buy("man", SKU)
    await grant(bff, login, order_id)
    later(bff, days=2)
    await bff.resources.purchases.reconcile()
    assert lanes == [Lane.INTERACTIVE, Lane.BACKGROUND]


async def test_no_key_of_a_user_is_in_the_log_or_in_clear_in_the_database(settings, sandbox, caplog):
    caplog.set_level(logging.DEBUG)
    async with Bff.running(settings, sandbox) as bff:
        login = await bff.log_in()
        order_id = store(bff).buy("man", SKU)
        await grant(bff, login, order_id)
        await bff.http.post(CALLBACK, json={"eventType": "x", "who": "someone"}, headers=AUTHENTIC)
        later(bff, days=2)
        await bff.resources.purchases.reconcile()
        key = str(sandbox.state.mini_apps.user_key("man"))
        told = str(await events(bff))
    stored = await everything(settings)
    assert order_id in stored
    assert order_id in caplog.text
    assert key not in caplog.text
    assert key not in stored
    assert key not in told


async def test_a_grant_counts_as_a_start(settings, sandbox):
    limits = settings.limits.model_copy(update={"starts_per_minute": 3})
    async with Bff.running(settings.model_copy(update={"limits": limits}), sandbox) as bff:
        login = await bff.log_in()  # one
        order_id = store(bff).buy("man", MONTHLY)
        assert (await grant(bff, login, order_id)).status_code == 200
        assert (await grant(bff, login, order_id)).status_code == 200
        assert_problem(await grant(bff, login, order_id), 429, "too_many_requests")
        assert (await shown(bff, login, order_id)).status_code == 200


@pytest.mark.parametrize(
    ("path", "is_start"),
    [
        ("purchases/an-order/grant", True),
        ("payments", True),
        ("payments/an-order/execute", True),
        ("billing-keys", True),
        ("billing-keys/a-key/confirm", True),
        ("login", True),
        ("login/anonymous", True),
        ("cert/requests", True),
        ("purchases/an-order", False),
        ("purchases/an/order/grant", False),
        ("payments/an-order", False),
        ("logout", False),
        ("cert/requests/a/status", False),
    ],
)
def test_what_costs_a_call_to_toss_is_limited_more_tightly(path, is_start):
    _, starts = rate_limits(LimitSettings())
    assert starts.applies_to("POST", f"/api/v1/{path}") is is_start
    assert not starts.applies_to("GET", f"/api/v1/{path}")
