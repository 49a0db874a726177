"""What Toss's words mean: which notice is newer, who may use what, until when."""

from datetime import UTC, datetime, timedelta, timezone
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.purchases.states import (
    Change,
    Entitlement,
    Holding,
    Kind,
    Meaning,
    PurchaseState,
    entitlements_of,
    meaning_of,
)
from app.toss.iap import instant_of

KOREA = timezone(timedelta(hours=9))
NOON = datetime(2026, 8, 24, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def change(reason="RENEWED", **different):
    fields = {
        "order_id": "one",
        "sku": "gold",
        "reason": reason,
        "status": "ACTIVE",
        "access_granted": True,
        "expires_at": NOON + 30 * DAY,
        "auto_renew": True,
        "occurred_at": NOON,
    }
    return Change(**{**fields, **different})


def holding(of=None, **different):
    fields = {
        "order_id": "one",
        "sku": "gold",
        "state": PurchaseState.GRANTED,
        "granted_at": NOON,
        "refunded_at": None,
        "change": of,
        "cycle": None,
    }
    return Holding(**{**fields, **different})


def has_access(of, at=NOON, grace=DAY, **different):
    return holding(of, **different).has_access(at, grace=grace)


@pytest.mark.parametrize(
    ("word", "meaning"),
    [
        ("PAYMENT_COMPLETED", Meaning.PAID),
        ("PURCHASED", Meaning.PAID),
        ("REFUNDED", Meaning.REFUNDED),
        ("FAILED", Meaning.FAILED),
        ("MINIAPP_MISMATCH", Meaning.FOREIGN),
        ("NOT_FOUND", Meaning.OPEN),
        ("ORDER_IN_PROGRESS", Meaning.OPEN),
        ("PAYMENT_PENDING", Meaning.OPEN),
        ("ERROR", Meaning.OPEN),
        ("purchased", Meaning.OPEN),
        ("SOMETHING_NEW", Meaning.OPEN),
    ],
)
def test_what_a_status_means(word, meaning):
    assert meaning_of(word) is meaning


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("2026-08-24T21:00:00", NOON),
        ("2026-08-24T21:00:00.0", NOON),
        ("2026-08-24T21:00:00.123456", NOON + timedelta(microseconds=123456)),
        ("2026-08-24T21:00:00.123456789", NOON + timedelta(microseconds=123456)),
        ("2026-08-24T12:00:00Z", NOON),
        ("2026-08-24T12:00:00+00:00", NOON),
        ("2026-08-24T21:00:00+09:00", NOON),
        ("2026-08-24T21:00", NOON),
        *((text, None) for text in ("", "soon", "24.08.2026", "0001-01-01T00:00:00", "9999-12-31T23:59:59")),
        (None, None),
    ],
)
def test_a_time_is_of_the_zone_that_is_set_unless_it_names_one(text, read):
    assert instant_of(text, KOREA) == read


# --- Which one is newer --------------------------------------------------------------------------------------

instants = st.sampled_from([NOON + index * timedelta(seconds=1) for index in range(3)])
changes = st.builds(
    Change,
    order_id=st.just("one"),
    sku=st.sampled_from(["gold", "silver"]),
    reason=st.sampled_from(["CREATED", "RENEWED", "AUTO_RENEW_DISABLED", "EXPIRED", "REVOKED", "SOMETHING_NEW"]),
    status=st.sampled_from(["ACTIVE", "EXPIRED", "REVOKED"]),
    access_granted=st.booleans(),
    expires_at=st.none() | instants,
    auto_renew=st.none() | st.booleans(),
    occurred_at=instants,
)


def settled(arrived):
    current = None
    for each in arrived:
        if current is None or each.is_newer(current):
            current = each
    return current


@given(st.lists(changes, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_any_order_of_arrival_with_any_duplicates_ends_the_same(sent, random):
    end = settled(sent)
    arrived = sent + random.choices(sent, k=len(sent))
    random.shuffle(arrived)
    assert settled(arrived) == end


@given(changes, changes)
def test_of_two_different_notices_exactly_one_is_newer(one, other):
    assert one.is_newer(other) is not other.is_newer(one) if one != other else not one.is_newer(other)


@given(changes)
def test_the_rank_fits_into_the_column(one):
    assert 0 <= one.rank < 2**63


def test_time_decides_before_anything_else():
    assert change("CREATED", occurred_at=NOON + timedelta(microseconds=1)).is_newer(change("REVOKED"))


@pytest.mark.parametrize("order", [*permutations(["CREATED", "RENEWED", "EXPIRED", "REVOKED"])])
def test_at_one_and_the_same_time_the_end_comes_last(order):
    assert settled(change(reason) for reason in order).reason == "REVOKED"
    assert settled(change(reason) for reason in order if reason != "REVOKED").reason == "EXPIRED"
    assert settled(change(reason) for reason in order if reason in ("CREATED", "RENEWED")).reason == "RENEWED"


def test_the_shape_of_the_rank_does_not_change_by_accident():
    """It is stored: another one would let an old notice win over a newer one of the same time."""
    assert [change(reason).rank >> 56 for reason in ("CREATED", "RENEWED", "EXPIRED", "REVOKED")] == [0, 1, 2, 3]
    assert change().rank == 120785455894612350


# --- Who may use what ----------------------------------------------------------------------------------------


def test_access_is_what_toss_says_it_is():
    assert has_access(change())
    assert not has_access(change(access_granted=False))
    for status in ("ON_HOLD", "PAUSED", "EXPIRED", "SOMETHING_NEW"):
        assert not has_access(change(status=status, access_granted=False))
        assert has_access(change(status=status, access_granted=True))


def test_a_revoked_one_is_over_whatever_else_is_said():
    assert not has_access(change(status="REVOKED"))
    assert not has_access(change("REVOKED"))


def test_it_lives_on_for_the_grace_after_its_end():
    end = NOON + 30 * DAY
    assert has_access(change(), end + DAY - timedelta(seconds=1))
    assert not has_access(change(), end + DAY)
    assert not has_access(change(), end, timedelta())


def test_in_the_store_s_own_grace_there_is_no_end_but_a_notice():
    assert has_access(change(status="IN_GRACE_PERIOD"), NOON + 50 * DAY)
    assert not has_access(change(status="IN_GRACE_PERIOD", access_granted=False), NOON)


@pytest.mark.parametrize(("cycle", "days"), [("WEEKLY", 7), ("MONTHLY", 30), ("YEARLY", 365)])
def test_without_an_end_it_is_reckoned_by_the_cycle(cycle, days):
    new = change("CREATED", expires_at=None)
    assert holding(new, cycle=cycle).expires_at == NOON + days * DAY
    assert holding(new).expires_at is None
    assert has_access(new, NOON + 5000 * DAY)
    assert has_access(new, NOON + (days + 1) * DAY - timedelta(seconds=1), cycle=cycle)
    assert not has_access(new, NOON + (days + 1) * DAY, cycle=cycle)
    assert holding(change(), cycle=cycle).expires_at == NOON + 30 * DAY


def test_before_the_first_notice_a_subscription_is_known_by_its_configured_cycle():
    new = holding(cycle="WEEKLY")
    assert (new.kind, new.expires_at) == (Kind.SUBSCRIPTION, NOON + 7 * DAY)
    assert new.has_access(NOON + 7 * DAY, grace=DAY)
    assert not new.has_access(NOON + 8 * DAY, grace=DAY)


def test_a_refund_ends_it_unless_toss_grants_access_at_a_later_moment():
    refunded = {"state": PurchaseState.REFUNDED}
    assert not has_access(None, **refunded, refunded_at=NOON)
    assert not has_access(change(), **refunded, refunded_at=NOON)
    assert not has_access(change(), **refunded, refunded_at=NOON + DAY)
    assert has_access(change(), **refunded, refunded_at=NOON - DAY)


def test_bought_once_it_does_not_end():
    assert holding().kind is Kind.ONE_TIME
    assert has_access(None, NOON + 5000 * DAY)


def test_what_a_user_may_use_is_the_union_of_their_orders():
    """After a change of plan both run (14.2)."""
    monthly = holding(change(auto_renew=False), order_id="1")
    again = holding(change(expires_at=NOON + 60 * DAY), order_id="3")
    yearly = holding(change(sku="year", expires_at=None), order_id="2", sku="year")
    once = holding(order_id="4", sku="sword")
    over = holding(change(access_granted=False), order_id="5", sku="bronze")
    assert entitlements_of([over, once, yearly, again, monthly], NOON, grace=DAY) == [
        Entitlement("gold", Kind.SUBSCRIPTION, NOON + 60 * DAY, True, ("1", "3")),  # noqa: FBT003
        Entitlement("sword", Kind.ONE_TIME, None, None, ("4",)),
        Entitlement("year", Kind.SUBSCRIPTION, None, True, ("2",)),  # noqa: FBT003
    ]


def test_what_has_no_end_outlasts_what_has_one():
    (both,) = entitlements_of([holding(change(expires_at=None)), holding(change(), order_id="2")], NOON, grace=DAY)
    assert both.expires_at is None
