"""Refunds, of which nobody tells: granted orders are asked for again (reference 10.2)."""

import asyncio
from datetime import timedelta

import pytest

from app.login.tables import User
from app.purchases.service import BATCH
from app.purchases.tables import Purchase
from app.resources import open_resources
from app.server_keys import Scope
from tests.conftest import settings_for
from tests.purchases.shop import (
    MONTHLY,
    NOBODY,
    SKU,
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
from tests.scenarios import Bff, assert_problem
from tests.toss.partners import Pot, governor_of


async def reconcile(bff):
    return await bff.resources.purchases.reconcile()


async def granted(bff, login, count=1):
    order_ids = [store(bff).buy("man", SKU) for _ in range(count)]
    for order_id in order_ids:
        assert (await grant(bff, login, order_id)).status_code == 200
    return order_ids


async def test_a_refund_is_seen_once(bff):
    login = await bff.log_in()
    (order_id,) = await granted(bff, login)
    store(bff).refund(order_id)
    assert (await reconcile(bff)).checked == 0, "not due yet"
    later(bff, days=1, seconds=1)
    done = await reconcile(bff)
    assert (done.checked, done.refunded) == (1, 1)
    body = (await shown(bff, login, order_id)).json()
    assert body["state"] == "REFUNDED"
    data = {"orderId": order_id, "userId": login.user_id, "sku": SKU, "refundedAt": body["refundedAt"]}
    assert (await events(bff))[1:] == [("purchase.refunded", order_id, data)]
    (row,) = await purchases(bff)
    assert abs(row.refunded_at - row.granted_at) < timedelta(minutes=1), "Toss's time of it, not ours"
    assert await entitlements(bff, login) == []
    assert_problem(await grant(bff, login, order_id), 409, "purchase_refunded")
    later(bff, days=10)
    assert (await reconcile(bff)).checked == 0
    assert len(await events(bff)) == 2


async def test_it_is_asked_at_intervals_for_as_long_as_is_set(settings, sandbox):
    rules = {"refund_check_every": "PT12H", "refund_watch_days": 2}
    async with Bff.running(with_purchases(settings, **rules), sandbox) as bff:
        login = await bff.log_in()
        await granted(bff, login)
        checks = []
        for _ in range(8):
            later(bff, hours=12, seconds=1)
            checks.append((await reconcile(bff)).checked)
            assert (await reconcile(bff)).checked == 0
        assert checks == [1, 1, 1, 0, 0, 0, 0, 0]
        (row,) = await purchases(bff)
        assert (row.state, row.next_check_at) == ("GRANTED", None)


async def test_who_does_not_watch_asks_nothing(settings, sandbox):
    async with Bff.running(with_purchases(settings, refund_watch_days=0), sandbox) as bff:
        await granted(bff, await bff.log_in())
        later(bff, days=30)
        assert (await reconcile(bff)).checked == 0


async def test_more_than_one_batch_in_one_run(embedded, sandbox):
    async with Bff.running(settings_for(embedded, sandbox), sandbox) as bff:
        login = await bff.log_in()
        (order_id,) = await granted(bff, login)
        (row,) = await purchases(bff)
        copied = {column.name: getattr(row, column.name) for column in Purchase.__table__.columns}
        async with bff.resources.database.transaction() as session:
            session.add_all(Purchase(**copied | {"order_id": f"{index}"}) for index in range(BATCH))
        store(bff).refund(order_id)
        later(bff, days=1, seconds=1)
        done = await reconcile(bff)
        assert (done.checked, done.refunded) == (BATCH + 1, 1)


async def test_not_found_says_nothing_of_a_subscription(bff):
    login = await bff.log_in()
    order_id = store(bff).buy_subscription("man", MONTHLY)
    assert (await grant(bff, login, order_id)).status_code == 200
    bff.sandbox.state.set_switches(iap_knows_subscriptions=False)
    later(bff, days=1, seconds=1)
    assert (await reconcile(bff)).checked == 1
    (row,) = await purchases(bff)
    assert (row.state, row.toss_status) == ("GRANTED", "NOT_FOUND")
    assert len(await entitlements(bff, login)) == 1


async def test_what_contradicts_a_grant_is_an_alarm_and_takes_nothing_away(bff, caplog):
    login = await bff.log_in()
    (order_id,) = await granted(bff, login)
    store(bff).fail(order_id)
    later(bff, days=1, seconds=1)
    assert (await reconcile(bff)).refunded == 0
    assert "purchase_contradicted" in caplog.text
    assert (await shown(bff, login, order_id)).json()["state"] == "GRANTED"


async def test_without_room_the_run_ends_and_the_next_one_goes_on(bff):
    login = await bff.log_in()
    await granted(bff, login, count=3)
    later(bff, days=1, seconds=1)
    asked = bff.sandbox.state.count("iap_status")
    bff.sandbox.state.order_fault("iap_status", "fail_200", code="4095", retry_after_seconds=1)
    assert (await reconcile(bff)).checked == 0
    assert bff.sandbox.state.count("iap_status") == asked + 1, "not one more after the refusal"
    bff.resources.purchases._api._partner._governor = governor_of(Pot())  # the pause is over
    assert (await reconcile(bff)).checked == 2
    later(bff, minutes=10)
    assert (await reconcile(bff)).checked == 1


async def test_an_answer_without_sense_is_of_its_order_alone(bff):
    await granted(bff, await bff.log_in(), count=3)
    later(bff, days=1, seconds=1)
    bff.sandbox.state.order_fault("iap_status", "missing_field", field="status")
    assert (await reconcile(bff)).checked == 3


async def test_a_user_whose_key_cannot_be_opened_keeps_nobody_else_from_a_refund(bff):
    lost, login = await bff.log_in("minor"), await bff.log_in()
    of_lost = store(bff).buy("minor", SKU)
    assert (await grant(bff, lost, of_lost)).status_code == 200
    (order_id,) = await granted(bff, login)
    store(bff).refund(order_id)
    async with bff.resources.database.transaction() as session:
        user = await session.get(User, lost.user_id)
        user.user_key = bff.resources.vault.seal("1", user.place_of("profile"))
    later(bff, days=1, seconds=1)
    assert (await reconcile(bff)).refunded == 1


async def test_while_toss_is_away_the_run_ends(bff):
    await granted(bff, await bff.log_in(), count=3)
    later(bff, days=1, seconds=1)
    bff.sandbox.state.order_fault("iap_status", "html_502")
    assert (await reconcile(bff)).checked == 0
    assert (await reconcile(bff)).checked == 2


async def test_one_order_that_toss_refuses_does_not_keep_the_others(bff):
    order_ids = await granted(bff, await bff.log_in(), count=3)
    later(bff, days=1, seconds=1)
    bff.sandbox.state.order_fault("iap_status", "fail_200", code="SOMETHING_NEW", subject=order_ids[0])
    for order_id in order_ids:
        store(bff).refund(order_id)
    done = await reconcile(bff)
    assert (done.checked, done.refunded) == (3, 2)
    later(bff, minutes=10, seconds=1)
    assert (await reconcile(bff)).refunded == 1


async def test_two_replicas_share_the_work_and_tell_once(settings, sandbox):
    async with Bff.running(settings, sandbox) as bff, open_resources(settings, clock=bff.clock) as other:
        order_ids = await granted(bff, await bff.log_in(), count=6)
        for order_id in order_ids:
            store(bff).refund(order_id)
        later(bff, days=1, seconds=1)
        asked = sandbox.state.count("iap_status")
        done = await asyncio.gather(reconcile(bff), other.purchases.reconcile())
        assert sum(each.checked for each in done) == sum(each.refunded for each in done) == 6
        assert sandbox.state.count("iap_status") == asked + 6
        assert (await event_types(bff)).count("purchase.refunded") == 6


async def test_a_user_who_has_left_is_asked_for_without_their_key(bff):
    login = await bff.log_in()
    (order_id,) = await granted(bff, login)
    assert (await bff.http.delete("/api/v1/me", headers=login.headers)).status_code == 204
    store(bff).refund(order_id)
    later(bff, days=1, seconds=1)
    assert (await reconcile(bff)).refunded == 1


async def test_what_is_old_is_forgotten(settings, sandbox):
    async with Bff.running(with_purchases(settings, retention_days=30), sandbox) as bff:
        login = await bff.log_in()
        await granted(bff, login)
        later(bff, days=29, hours=23)
        assert (await reconcile(bff)).erased == 0
        later(bff, hours=2)
        assert (await reconcile(bff)).erased == 1
        assert await purchases(bff) == []


# --- The partner's server ------------------------------------------------------------------------------------


async def test_the_partner_asks_now(bff):
    login, key = await bff.log_in(), await bff.server_key(Scope.PURCHASE_READ)
    (order_id,) = await granted(bff, login)
    path = f"/server/v1/purchases/{order_id}"
    first = (await bff.http.post(f"{path}/check", headers=key)).json()
    assert (first["state"], first["tossStatus"], first["userId"]) == ("GRANTED", "PAYMENT_COMPLETED", login.user_id)
    store(bff).complete(order_id)
    assert (await bff.http.post(f"{path}/check", headers=key)).json()["tossStatus"] == "PURCHASED"
    store(bff).refund(order_id)
    checked = await bff.http.post(f"{path}/check", headers=key)
    assert checked.json()["state"] == "REFUNDED"
    assert checked.headers["cache-control"] == "no-store"
    assert (await bff.http.get(path, headers=key)).json() == checked.json()
    assert await event_types(bff) == ["purchase.granted", "purchase.refunded"]
    bff.sandbox.state.order_fault("iap_status", "html_502")
    assert_problem(await bff.http.post(f"{path}/check", headers=key), 503, "upstream_unavailable")


async def test_the_partner_lists_page_by_page(bff):
    man, other = await bff.log_in(), await bff.log_in("foreigner")
    key = await bff.server_key(Scope.PURCHASE_READ)
    made = await granted(bff, man, count=5)
    theirs = store(bff).buy("foreigner", SKU)
    assert (await grant(bff, other, theirs)).status_code == 200

    async def page(**params):
        answer = await bff.http.get("/server/v1/purchases", params=params, headers=key)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        return [each["orderId"] for each in body["purchases"]], body["next"]

    ordered = sorted(made, reverse=True)
    assert await page(userId=man.user_id) == (ordered, None)
    assert await page(userId=man.user_id, limit=2) == (ordered[:2], ordered[1])
    assert await page(userId=man.user_id, limit=2, before=ordered[1]) == (ordered[2:4], ordered[3])
    assert await page(userId=man.user_id, limit=2, before=ordered[3]) == (ordered[4:], None)
    assert await page(userId=NOBODY) == ([], None)
    assert set((await page())[0]) == {*made, theirs}


async def test_the_partner_asks_what_a_user_may_use(bff):
    login, key = await bff.log_in(), await bff.server_key(Scope.PURCHASE_READ)
    await granted(bff, login, count=2)
    answer = await bff.http.get(f"/server/v1/users/{login.user_id}/entitlements", headers=key)
    assert answer.json()["entitlements"] == await entitlements(bff, login)
    assert len(answer.json()["entitlements"][0]["orderIds"]) == 2
    nobody = await bff.http.get(f"/server/v1/users/{NOBODY}/entitlements", headers=key)
    assert_problem(nobody, 404, "user_not_found")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/server/v1/purchases"),
        ("GET", "/server/v1/purchases/an-order"),
        ("POST", "/server/v1/purchases/an-order/check"),
        ("GET", f"/server/v1/users/{NOBODY}/entitlements"),
    ],
)
async def test_without_its_scope_a_key_opens_nothing(bff, method, path):
    assert_problem(await bff.http.request(method, path), 401, "server_key_required")
    others = await bff.server_key(*(set(Scope) - {Scope.PURCHASE_READ}))
    assert_problem(await bff.http.request(method, path, headers=others), 403, "scope_missing")


async def test_an_order_that_nobody_was_granted_is_not_there(bff):
    key = await bff.server_key(Scope.PURCHASE_READ)
    for method, path in (("GET", ""), ("POST", "/check")):
        answer = await bff.http.request(method, f"/server/v1/purchases/an-order{path}", headers=key)
        assert_problem(answer, 404, "purchase_not_found")
    assert bff.sandbox.state.count("iap_status") == 0
