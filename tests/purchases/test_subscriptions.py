"""Subscriptions, as Toss tells of them: in any order, doubled, before and after the grant (reference 14.2)."""

import asyncio
import json
import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from sandbox.callbacks import AuthEncoding
from sandbox.purchases import ChangeReason, OrderStatus
from tests.callbacks.toss import notices, only_notice
from tests.conftest import SUBSCRIPTION_AUTH, settings_for
from tests.purchases.shop import (
    CALLBACK,
    MONTHLY,
    SKU,
    Patience,
    entitlements,
    event_types,
    events,
    grant,
    later,
    moved,
    purchases,
    shown,
    store,
    subscriptions,
    tell,
    with_purchases,
)
from tests.scenarios import Bff, assert_problem

YEARLY = "ait.0000010000.c3d4e5f6.a7b8c9d0.3456789012"


@pytest.fixture
def settings(backend, sandbox):
    return with_purchases(settings_for(backend, sandbox), renewal_cycles={MONTHLY: "MONTHLY"})


async def subscribed(bff, login, sku=MONTHLY, user="man"):
    order_id = store(bff).buy_subscription(user, sku)
    assert (await grant(bff, login, order_id)).status_code == 200
    return order_id


async def state_of(bff):
    """What is stored, but for when."""
    return [
        {column.name: getattr(row, column.name) for column in row.__table__.columns if column.name != "changed_at"}
        for row in await subscriptions(bff)
    ]


async def test_a_life_in_all_its_changes(bff):
    login = await bff.log_in()
    order_id = await subscribed(bff, login)

    async def has(reason, **how):
        await tell(bff, await moved(bff, order_id, reason, **how))
        return await entitlements(bff, login)

    (new,) = await has("CREATED")
    end = datetime.fromisoformat(new["expiresAt"])
    assert {**new, "expiresAt": None} == {
        "sku": MONTHLY,
        "kind": "SUBSCRIPTION",
        "expiresAt": None,
        "autoRenew": True,
        "orderIds": [order_id],
    }
    assert abs(end - bff.clock() - timedelta(days=30)) < timedelta(minutes=1), "by its cycle, as Toss named no end"
    later(bff, days=31)
    login = await bff.log_in()
    assert await entitlements(bff, login) == [], "not renewed, and the grace is over"
    (renewed,) = await has("RENEWED")
    assert datetime.fromisoformat(renewed["expiresAt"]) > end + timedelta(days=29)
    (off,) = await has("AUTO_RENEW_DISABLED")
    assert (off["autoRenew"], off["expiresAt"]) == (False, renewed["expiresAt"])
    (on,) = await has("AUTO_RENEW_ENABLED")
    assert on["autoRenew"] is True
    (extended,) = await has("EXTENDED")
    assert datetime.fromisoformat(extended["expiresAt"]) > datetime.fromisoformat(renewed["expiresAt"])
    assert len(await has("ENTERED_GRACE_PERIOD")) == 1
    assert await has("ON_HOLD") == []
    assert len(await has("RECOVERED")) == 1
    assert await has("PAUSED") == []
    (restarted,) = await has("RESTARTED", auto_renew=False)
    assert restarted["autoRenew"] is False, "the flag, not the name, tells"
    assert await has("EXPIRED") == []
    assert await has("REVOKED") == []
    assert (await shown(bff, login, order_id)).json()["state"] == "REFUNDED"
    told = await event_types(bff)
    assert told == ["purchase.granted", *["subscription.changed"] * 11, "purchase.refunded", "subscription.changed"]
    assert {each.value for each in ChangeReason} == {
        data["reason"] for type_, _, data in await events(bff) if type_ == "subscription.changed"
    }
    assert {notice.outcome for notice in await notices(bff)} == {"APPLIED"}


async def test_what_the_partner_is_told(bff):
    login = await bff.log_in()
    order_id = await subscribed(bff, login)
    body = await moved(bff, order_id, "CREATED")
    await tell(bff, body)
    type_, subject, data = (await events(bff))[-1]
    occurred_at = datetime.fromisoformat(data.pop("occurredAt"))
    ends_at = datetime.fromisoformat(data.pop("expiresAt"))
    assert (type_, subject, data) == (
        "subscription.changed",
        order_id,
        {
            "orderId": order_id,
            "userId": login.user_id,
            "sku": MONTHLY,
            "status": "ACTIVE",
            "accessGranted": True,
            "autoRenew": True,
            "reason": "CREATED",
        },
    )
    assert occurred_at == datetime.fromisoformat(body["occurredAt"] + "+09:00")
    assert ends_at == occurred_at + timedelta(days=30)
    key = await bff.server_key()
    seen = (await bff.http.get(f"/server/v1/purchases/{order_id}", headers=key)).json()["subscription"]
    assert datetime.fromisoformat(seen.pop("occurredAt")) == occurred_at
    assert datetime.fromisoformat(seen.pop("expiresAt")) == ends_at
    assert seen == {
        "sku": MONTHLY,
        "status": "ACTIVE",
        "reason": "CREATED",
        "accessGranted": True,
        "autoRenew": True,
    }


async def test_a_refund_ends_access_at_once_and_is_told_once(bff):
    login = await bff.log_in()
    order_id = await subscribed(bff, login)
    await tell(bff, await moved(bff, order_id, "CREATED"))
    revoked = await moved(bff, order_id, "REVOKED")
    for _ in range(3):
        await tell(bff, revoked)
    assert await entitlements(bff, login) == []
    assert_problem(await grant(bff, login, order_id), 409, "purchase_refunded")
    later(bff, days=2)
    await bff.resources.purchases.reconcile()
    assert (await event_types(bff)).count("purchase.refunded") == 1
    (row,) = await purchases(bff)
    assert row.refunded_at == datetime.fromisoformat(revoked["occurredAt"] + "+09:00")


# --- Any order -----------------------------------------------------------------------------------------------


async def test_duplicates_change_nothing_and_are_told_of_once(bff):
    login = await bff.log_in()
    order_id = await subscribed(bff, login)
    bodies = [await moved(bff, order_id, reason) for reason in ("CREATED", "RENEWED", "EXPIRED")]
    for body in bodies:
        for _ in range(3):
            await tell(bff, body)
    assert [data["reason"] for type_, _, data in await events(bff) if type_ == "subscription.changed"] == [
        "CREATED",
        "RENEWED",
        "EXPIRED",
    ]
    assert [notice.outcome for notice in await notices(bff)] == ["APPLIED", "STALE", "STALE"] * 3


async def test_an_older_one_does_not_overwrite(bff):
    login = await bff.log_in()
    order_id = await subscribed(bff, login)
    created, renewed, expired = [await moved(bff, order_id, each) for each in ("CREATED", "RENEWED", "EXPIRED")]
    await tell(bff, created)
    await tell(bff, expired)
    await tell(bff, renewed)
    assert await entitlements(bff, login) == []
    assert [notice.outcome for notice in await notices(bff)] == ["APPLIED", "APPLIED", "STALE"]


async def test_a_refund_that_is_told_late_is_one_and_what_toss_granted_since_stays(bff):
    login = await bff.log_in()
    order_id = await subscribed(bff, login)
    revoked, restarted = [await moved(bff, order_id, each) for each in ("REVOKED", "RESTARTED")]
    await tell(bff, restarted)
    await tell(bff, revoked)
    (row,) = await purchases(bff)
    assert row.state == "REFUNDED"
    assert len(await entitlements(bff, login)) == 1


@pytest.mark.parametrize("seed", range(3))
async def test_every_arrival_ends_in_the_same_state(bff, seed):
    """All twelve changes of two orders, doubled, shuffled, and at once; one order granted before, one after."""
    login = await bff.log_in()
    known, unknown = await subscribed(bff, login), store(bff).buy_subscription("man", YEARLY)
    reasons = [*ChangeReason][:-1]  # after a refund the other order could not be granted
    bodies = [await moved(bff, order_id, reason) for reason in reasons for order_id in (known, unknown)]
    for body in bodies:
        await tell(bff, body)
    end = await state_of(bff)
    assert {row["reason"] for row in end} == {"EXPIRED"}

    async with bff.resources.database.transaction() as session:
        for row in await subscriptions(bff):
            await session.delete(await session.get(type(row), row.order_id))
    arriving = bodies * 2
    random.Random(seed).shuffle(arriving)
    for start in range(0, len(arriving), 8):
        await asyncio.gather(*(tell(bff, body) for body in arriving[start : start + 8]))
    assert await state_of(bff) == end
    assert (await grant(bff, login, unknown)).status_code == 200
    assert await entitlements(bff, login) == []


SAMPLE = {
    "eventType": "subscription.status_changed",
    "eventVersion": "1.0",
    "occurredAt": "2026-08-24T09:05:11",
    "orderId": "0199f0aa-1111-7222-8333-444455556666",
    "sku": MONTHLY,
    "changeReason": "CREATED",
    "subscription": {"current": {"status": "ACTIVE", "accessGranted": True, "expiresAt": None, "autoRenew": True}},
}


def sample(current=None, **different):
    body = json.loads(json.dumps(SAMPLE))
    body["subscription"]["current"] |= current or {}
    return {**body, **different}


bodies_of_one_second = st.lists(
    st.builds(
        lambda second, reason, access, end: sample(
            {"accessGranted": access, "expiresAt": end},
            occurredAt=f"2026-08-24T09:05:1{second}",
            changeReason=reason,
        ),
        st.integers(0, 1),
        st.sampled_from([each.value for each in ChangeReason]),
        st.booleans(),
        st.none() | st.just("2026-09-24T09:05:11"),
    ),
    min_size=2,
    max_size=6,
)


async def test_the_database_decides_as_the_pure_rule_does(settings, sandbox):
    """Whatever arrives in whatever order, also within one second; through the service, on both databases."""
    async with Bff.running(settings, sandbox) as bff:
        service = bff.resources.purchases
        count = 0

        async def arrive(bodies, name):
            for body in bodies:
                content = {**body, **body["subscription"]["current"], "orderId": name}
                await service.follow(content)
            (row,) = [row for row in await state_of(bff) if row.pop("order_id") == name]
            return row

        loop = asyncio.get_running_loop()

        @hypothesis_settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(bodies_of_one_second, st.randoms(use_true_random=False))
        def check(bodies, shuffler):
            nonlocal count
            count += 1
            other = bodies + shuffler.choices(bodies, k=2)
            shuffler.shuffle(other)

            def run(arriving, name):
                return asyncio.run_coroutine_threadsafe(arrive(arriving, name), loop).result(30)

            assert run(bodies, f"one-{count}") == run(other, f"other-{count}")

        await asyncio.to_thread(check)


# --- Before the order is known -------------------------------------------------------------------------------


async def test_what_comes_before_the_grant_waits_for_it(bff):
    login = await bff.log_in()
    order_id = store(bff).buy_subscription("man", YEARLY)
    await tell(bff, await moved(bff, order_id, "CREATED"))
    await tell(bff, await moved(bff, order_id, "RENEWED"))
    assert [notice.outcome for notice in await notices(bff)] == ["PARKED", "PARKED"]
    assert (await events(bff), await entitlements(bff, login)) == ([], [])
    assert (await grant(bff, login, order_id)).status_code == 200
    (has,) = await entitlements(bff, login)
    assert (has["kind"], has["orderIds"]) == ("SUBSCRIPTION", [order_id])
    told = await events(bff)
    assert [type_ for type_, _, _ in told] == ["purchase.granted", "subscription.changed"]
    assert (told[1][2]["reason"], told[1][2]["userId"]) == ("RENEWED", login.user_id)


async def test_a_parked_refund_is_not_granted(bff):
    login = await bff.log_in()
    order_id = store(bff).buy_subscription("man", MONTHLY)
    revoked = await moved(bff, order_id, "REVOKED")
    await tell(bff, revoked)
    store(bff)._orders[order_id].status = OrderStatus.PURCHASED  # what Toss says of the order may lag behind
    assert_problem(await grant(bff, login, order_id), 409, "purchase_refunded")
    assert await entitlements(bff, login) == []
    assert await event_types(bff) == ["subscription.changed"]


async def test_without_a_yes_of_toss_a_notice_gives_the_order_to_nobody(bff):
    """A notice names no user; whose order it is, only get-order-status can tell."""
    bff.sandbox.state.set_switches(iap_knows_subscriptions=False)
    Patience(bff)
    login = await bff.log_in()
    order_id = store(bff).buy_subscription("man", MONTHLY)
    await tell(bff, await moved(bff, order_id, "CREATED"))
    assert_problem(await grant(bff, login, order_id), 409, "purchase_not_ready")
    assert await entitlements(bff, login) == []


async def test_grant_and_notice_at_the_same_moment_do_not_miss_each_other(bff):
    login = await bff.log_in()
    for _ in range(8):
        order_id = store(bff).buy_subscription("man", MONTHLY)
        body = await moved(bff, order_id, "CREATED")
        await asyncio.gather(grant(bff, login, order_id), tell(bff, body))
        told = [type_ for type_, subject, _ in await events(bff) if subject == order_id]
        assert told == ["purchase.granted", "subscription.changed"]


async def test_two_plans_at_once_are_both_there(bff):
    login = await bff.log_in()
    monthly, yearly = await subscribed(bff, login), await subscribed(bff, login, YEARLY)
    for order_id in (monthly, yearly):
        await tell(bff, await moved(bff, order_id, "CREATED"))
    assert [each["sku"] for each in await entitlements(bff, login)] == [MONTHLY, YEARLY]
    await tell(bff, await moved(bff, monthly, "EXPIRED"))
    assert [each["sku"] for each in await entitlements(bff, login)] == [YEARLY]


async def test_a_refund_seen_by_asking_ends_access_until_toss_grants_it_anew(bff):
    login = await bff.log_in()
    order_id = await subscribed(bff, login)
    await tell(bff, await moved(bff, order_id, "CREATED"))
    later(bff, minutes=1)
    store(bff).refund(order_id)
    later(bff, days=1)
    assert (await bff.resources.purchases.reconcile()).refunded == 1
    assert await entitlements(bff, login) == []
    await tell(bff, await moved(bff, order_id, "RESTARTED"))
    assert len(await entitlements(bff, login)) == 1


# --- Toss's time ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("zone", "hour"), [("Asia/Seoul", 0), ("UTC", 9)])
async def test_times_are_of_the_zone_that_is_set(settings, sandbox, zone, hour):
    async with Bff.running(with_purchases(settings, notice_zone=zone), sandbox) as bff:
        await tell(bff, sample({"expiresAt": "2026-09-24T09:05:11.5"}))
        (row,) = await subscriptions(bff)
        assert row.occurred_at == datetime(2026, 8, 24, hour, 5, 11, tzinfo=UTC)
        assert row.expires_at == datetime(2026, 9, 24, hour, 5, 11, 500000, tzinfo=UTC)


@pytest.mark.parametrize("fractions", [False, True])
@pytest.mark.parametrize("zone", ["Asia/Seoul", "UTC"])
async def test_the_sandbox_and_we_agree_in_every_form_of_time(settings, sandbox, zone, fractions):
    sandbox.state.callbacks.configure(kind="iap-subscription", zone=zone, fractions=fractions)
    async with Bff.running(with_purchases(settings, notice_zone=zone), sandbox) as bff:
        login = await bff.log_in()
        order_id = await subscribed(bff, login)
        await tell(bff, await moved(bff, order_id, "RENEWED"))
        (row,) = await subscriptions(bff)
        assert abs(row.occurred_at - bff.clock()) < timedelta(minutes=1)
        assert abs(row.expires_at - bff.clock() - timedelta(days=60)) < timedelta(minutes=2)


async def test_old_states_are_forgotten(settings, sandbox):
    async with Bff.running(with_purchases(settings, retention_days=30), sandbox) as bff:
        await tell(bff, SAMPLE)
        later(bff, days=29)
        await bff.resources.purchases.reconcile()
        assert len(await subscriptions(bff)) == 1
        later(bff, days=2)
        await bff.resources.purchases.reconcile()
        assert await subscriptions(bff) == []


async def test_an_order_is_kept_while_toss_tells_of_it(settings, sandbox):
    rules = {"retention_days": 30, "refund_watch_days": 0}
    async with Bff.running(with_purchases(settings, **rules), sandbox) as bff:
        order_id = await subscribed(bff, await bff.log_in())
        later(bff, days=20)
        await tell(bff, await moved(bff, order_id, "RENEWED"))
        later(bff, days=20)
        assert (await bff.resources.purchases.reconcile()).erased == 0
        later(bff, days=11)
        assert (await bff.resources.purchases.reconcile()).erased == 1


# --- The door ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", list(AuthEncoding))
async def test_every_form_of_authorization(bff, encoding):
    headers = {"Authorization": encoding.header(SUBSCRIPTION_AUTH)}
    assert (await bff.http.post(CALLBACK, json=SAMPLE, headers=headers)).status_code == 200
    assert len(await subscriptions(bff)) == 1


async def test_what_is_new_is_taken_as_it_is(bff):
    await tell(bff, sample({"status": "SOMETHING_NEW", "more": 1}, changeReason="ANOTHER_ONE", extra=[{}]))
    (row,) = await subscriptions(bff)
    assert (row.reason, row.status, row.access_granted) == ("ANOTHER_ONE", "SOMETHING_NEW", True)
    await tell(bff, {"eventType": "subscription.something_new", "orderId": "x"})
    *_, notice = await notices(bff)
    assert (notice.state, notice.outcome) == ("KEPT", None)


async def test_the_check_of_a_new_address_is_answered_and_noted(bff):
    await tell(bff, {"eventType": "callback.registration_verification", "occurredAt": "2026-08-24T09:00:00"})
    notice = await only_notice(bff)
    assert (notice.state, notice.outcome) == ("HANDLED", "REGISTRATION")
    key = await bff.server_key()
    replay = await bff.http.post(f"/server/v1/notices/{notice.notice_id}/replay", headers=key)
    assert_problem(replay, 409, "notice_not_replayable")


async def test_a_replay_of_an_old_notice_changes_nothing(bff):
    login = await bff.log_in()
    order_id = await subscribed(bff, login)
    for reason in ("CREATED", "EXPIRED"):
        await tell(bff, await moved(bff, order_id, reason))
    before, told = await state_of(bff), await events(bff)
    key = await bff.server_key()
    for notice in await notices(bff):
        replay = await bff.http.post(f"/server/v1/notices/{notice.notice_id}/replay", headers=key)
        assert (replay.status_code, replay.json()["outcome"]) == (200, "STALE")
    assert (await state_of(bff), await events(bff)) == (before, told)


async def test_once_bought_and_subscribed_are_told_apart(bff):
    login = await bff.log_in()
    once = store(bff).buy("man", SKU)
    assert (await grant(bff, login, once)).status_code == 200
    await subscribed(bff, login)
    assert [(each["sku"], each["kind"]) for each in await entitlements(bff, login)] == [
        (SKU, "ONE_TIME"),
        (MONTHLY, "SUBSCRIPTION"),
    ]
