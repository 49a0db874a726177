"""The table of moves: pure. Whatever Toss is seen to say, money counts once and nothing over comes back."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.payments.states import MOVES, OPEN, OVER, SEEN, Ours, PaymentState, contradiction, is_proof, way
from app.toss.pay import Claim
from sandbox.payments import PayStatus

S = PaymentState
STATES = st.sampled_from(S)
ENDS = frozenset({S.REFUNDED, S.CANCELED, S.FAILED})
MONEY = frozenset({S.PAID, S.REFUNDING, S.REFUNDED})

# How a payment goes at Toss (reference 8.6), failures of what was in progress included.
AT_TOSS = {
    "PAY_STANDBY": ["PAY_APPROVED", "PAY_CANCEL"],
    "PAY_APPROVED": ["PAY_PROGRESS", "PAY_CANCEL"],
    "PAY_PROGRESS": ["PAY_COMPLETE", "PAY_APPROVED", "PAY_CANCEL"],
    "PAY_COMPLETE": ["REFUND_PROGRESS", "SETTLEMENT_COMPLETE"],
    "REFUND_PROGRESS": ["REFUND_SUCCESS", "PAY_COMPLETE"],
    "REFUND_SUCCESS": ["SETTLEMENT_REFUND_COMPLETE"],
    "PAY_CANCEL": [],
    "SETTLEMENT_COMPLETE": [],
    "SETTLEMENT_REFUND_COMPLETE": [],
}


def arrived(state: S, seen: S) -> S:
    """After the way to what was seen, each of whose steps must be a move."""
    for step in way(state, seen):
        assert step in MOVES[state], f"{state} does not go to {step}"
        state = step
    return state


def reachable(start: S) -> set[S]:
    """By any number of moves, without a person."""
    found, new = {start}, {start}
    while new:
        new = {to for state in new - {S.HELD} for to in MOVES[state]} - found
        found |= new
    return found


# --- Moves -----------------------------------------------------------------------------------------------


def test_every_state_has_its_place():
    assert set(MOVES) == set(S)
    assert OPEN | ENDS | {S.PAID, S.HELD} == set(S)
    assert OVER < ENDS
    assert not OPEN & ENDS
    assert S.CREATED not in set().union(*MOVES.values())
    assert all(state not in to for state, to in MOVES.items())


def test_every_word_of_toss_is_known():
    assert set(SEEN) == set(AT_TOSS) == {status.value for status in PayStatus}
    assert {word for word, state in SEEN.items() if state in MONEY} == {
        word for word in AT_TOSS if word == "PAY_COMPLETE" or word.startswith(("REFUND", "SETTLEMENT"))
    }


@pytest.mark.parametrize("end", sorted(ENDS))
def test_what_is_over_stays_so_or_is_held(end):
    assert reachable(end) == {end, S.HELD}


def test_what_is_paid_is_never_executed_again():
    assert reachable(S.PAID) == {*MONEY, S.HELD}


def test_everything_can_be_held():
    assert all(S.HELD in to for state, to in MOVES.items() if state is not S.HELD)


# --- Ways ------------------------------------------------------------------------------------------------


@given(STATES, STATES)
def test_a_way_ends_where_it_says_or_in_held_or_is_not_needed(state, seen):
    end = arrived(state, seen)
    if way(state, seen):
        assert end in (seen, S.HELD)
    else:
        assert state is seen or (state in OVER and seen in {S.READY, *OVER}) or state is S.HELD


@given(st.lists(STATES, max_size=30))
def test_no_sequence_of_sightings_leaves_the_table_or_takes_back_money(sightings):
    state, is_refunded, was_paid = S.CREATED, False, False
    for seen in sightings:
        before, state = state, arrived(state, seen)
        if before is S.HELD:
            state = before  # without a person nothing is looked at any more
        is_refunded |= state is S.REFUNDED
        was_paid |= state in MONEY
        assert state in (MONEY | {S.HELD} if was_paid else set(S))
        assert state in ({S.REFUNDED, S.HELD} if is_refunded else set(S))


@given(STATES, st.sampled_from(sorted(set(S) - {S.CREATED, S.FAILED})))
def test_out_of_held_a_payment_comes_to_what_is_seen(before, seen):
    assert S.HELD in MOVES[before] or before is S.HELD
    assert arrived(S.HELD, seen) is seen


@pytest.mark.parametrize("over", OVER)
def test_of_what_is_over_only_money_is_news(over):
    assert {seen for seen in S if arrived(over, seen) is over} == {S.READY, *OVER}
    assert {seen for seen in SEEN.values() if arrived(over, seen) is S.HELD} == {S.PENDING, *MONEY}


@pytest.mark.parametrize("state", sorted(S))
def test_a_refund_past_us_goes_by_way_of_paid(state):
    steps = way(state, S.REFUNDED)
    expected = {
        S.READY: (S.PAID, S.REFUNDED),
        S.PENDING: (S.PAID, S.REFUNDED),
        S.PAID: (S.REFUNDED,),
        S.REFUNDING: (S.REFUNDED,),
        S.REFUNDED: (),
        S.HELD: (S.PAID, S.REFUNDED),
    }
    assert steps == expected.get(state, (S.HELD,))


@st.composite
def journeys(draw) -> list[tuple[str, bool]]:
    """A payment's words at Toss, one after the other, and after which of them we look."""
    word, looks = "PAY_STANDBY", [("PAY_STANDBY", draw(st.booleans()))]
    while AT_TOSS[word] and len(looks) < 20:
        word = draw(st.sampled_from(AT_TOSS[word]))
        looks.append((word, draw(st.booleans())))
    return looks


@given(journeys())
def test_however_seldom_we_look_we_agree_with_toss_and_nothing_is_held(journey):
    state = S.READY
    for word, is_looked_at in journey:
        if word == "PAY_PROGRESS" and state is S.READY:
            state = S.PENDING  # that is us, executing
        if word == "REFUND_PROGRESS" and state is S.PAID:
            state = S.REFUNDING  # that is us too
        if is_looked_at:
            state = arrived(state, SEEN[word])
            assert state is SEEN[word]
    assert arrived(state, SEEN[journey[-1][0]]) is SEEN[journey[-1][0]]


# --- What an answer is compared with -----------------------------------------------------------------------

OURS = Ours(order_no="test-1", pay_token="token-1", amount=4500, is_test=True)
SAME = Claim(order_no="test-1", pay_token="token-1", amount=4500, mode="TEST")
SILENT = Claim(order_no=None, pay_token=None, amount=None, mode=None)
OTHERS = {"order_no": "test-2", "pay_token": "token-2", "amount": 4501, "mode": "LIVE"}
NAMES = {"order_no": "orderNo", "pay_token": "payToken", "amount": "amount", "mode": "mode"}


def test_the_same_payment_contradicts_in_nothing():
    assert contradiction(OURS, SAME) is None
    assert contradiction(replace(OURS, is_test=False), replace(SAME, mode="LIVE")) is None


@pytest.mark.parametrize("field", OTHERS)
def test_each_field_contradicts_by_itself(field):
    other = {field: OTHERS[field]}
    assert contradiction(OURS, replace(SAME, **other)) == NAMES[field]
    assert contradiction(OURS, replace(SILENT, **other)) == NAMES[field]


@pytest.mark.parametrize("amount", [0, -4500, 4499, 450000])
def test_no_other_amount_will_do(amount):
    assert contradiction(OURS, replace(SAME, amount=amount)) == "amount"


def test_a_mode_that_is_new_to_us_is_not_ours():
    assert contradiction(OURS, replace(SAME, mode="test")) == "mode"


def test_what_is_not_said_contradicts_nothing():
    assert contradiction(OURS, SILENT) is None


def test_without_a_token_of_ours_any_is_believed():
    assert contradiction(replace(OURS, pay_token=None), replace(SAME, pay_token="token-2")) is None


@pytest.mark.parametrize("field", ["order_no", "pay_token", "amount"])
def test_an_answer_that_leaves_out_what_was_paid_proves_nothing(field):
    assert is_proof(SAME)
    assert not is_proof(replace(SAME, **{field: None}))


def test_the_mode_is_not_needed_for_proof():
    assert is_proof(replace(SAME, mode=None))


def test_a_claim_shows_no_token():
    assert "token-1" not in repr(SAME)
