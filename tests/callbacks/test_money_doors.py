"""The doors for callbacks about money: what is let in, read, kept, left for later (reference 14.0, 14.2, 14.4)."""

import asyncio
import json
import logging
from datetime import timedelta

import pytest

from app.callbacks.inbox import MAX_HANDLING, MAX_WRITING
from app.callbacks.tables import CallbackName
from app.errors import InternalError, StorageUnavailable
from tests.callbacks.toss import at_rest, content, notices, only_notice
from tests.conftest import PAYMENT_AUTH, SUBSCRIPTION_AUTH, settings_for
from tests.login.store import everything
from tests.scenarios import Bff, assert_problem

PAYMENT = "/callbacks/toss/payment"
SUBSCRIPTION = "/callbacks/toss/iap-subscription"
VALUES = {PAYMENT: PAYMENT_AUTH, SUBSCRIPTION: SUBSCRIPTION_AUTH}
CHANGE = {
    "eventType": "subscription.status_changed",
    "occurredAt": "2026-08-24T09:05:11",
    "orderId": "0199f0aa-1111-7222-8333-444455556666",
    "sku": "gold",
    "changeReason": "RENEWED",
    "status": "PAUSED",
    "subscription": {"current": {"status": "ACTIVE", "accessGranted": True, "expiresAt": None, "autoRenew": True}},
}


@pytest.fixture
def settings(backend, sandbox):
    return settings_for(backend, sandbox)


@pytest.fixture
async def one(embedded, sandbox):
    """The embedded backend alone, for what does not depend on it."""
    async with Bff.running(settings_for(embedded, sandbox), sandbox) as bff:
        yield bff


async def call(bff, path, body):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await bff.http.post(path, content=raw, headers={"Authorization": f"Bearer {VALUES[path]}"})


def changed(**different):
    current = {**CHANGE["subscription"]["current"], **different.pop("current", {})}
    body = {**CHANGE, "subscription": {"current": current}, **different}
    return {name: value for name, value in body.items() if value is not ...}


class Payments:
    """Stands where the payments will: hears of an orderNo, and can be slow."""

    def __init__(self, bff):
        self.heard, self.errors, self.may_end = [], [], asyncio.Event()
        self.may_end.set()
        bff.resources.inbox._handlers[CallbackName.PAYMENT] = self

    async def __call__(self, given):
        self.heard.append(given["orderNo"])
        await self.may_end.wait()
        if self.errors:
            raise self.errors.pop(0)
        return "ASKED"


# --- Who is let in -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", VALUES)
async def test_only_who_knows_this_callback_s_value(one, path):
    for header in (None, "", "Bearer wrong", *(f"Bearer {value}" for at, value in VALUES.items() if at != path)):
        headers = {"Authorization": header} if header is not None else {}
        assert_problem(await one.http.post(path, json=CHANGE, headers=headers), 401, "callback_unauthorized")
    assert await notices(one) == []
    assert_problem(await one.http.get(path), 405, "method_not_allowed")


@pytest.mark.parametrize("path", VALUES)
async def test_without_a_value_there_is_no_callback(settings, sandbox, path):
    none = settings.callbacks.model_copy(update={"payment_auth": None, "iap_subscription_auth": None})
    async with Bff.running(settings.model_copy(update={"callbacks": none}), sandbox) as bff:
        assert_problem(await call(bff, path, CHANGE), 404, "not_found")


# --- What is read --------------------------------------------------------------------------------------------


async def test_of_a_subscription_the_current_state_is_read_and_not_the_word_above_it(bff):
    answer = await call(bff, SUBSCRIPTION, CHANGE)
    assert (answer.status_code, answer.json()) == (200, {"received": True})
    assert answer.headers["cache-control"] == "no-store"
    notice = await only_notice(bff)
    assert (notice.state, notice.outcome) == ("HANDLED", "PARKED")
    assert await content(bff, notice) == {
        "orderId": CHANGE["orderId"],
        "sku": "gold",
        "occurredAt": "2026-08-24T09:05:11",
        "changeReason": "RENEWED",
        "status": "ACTIVE",
        "accessGranted": True,
        "expiresAt": None,
        "autoRenew": True,
    }


UNREADABLE = {
    SUBSCRIPTION: [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b'{"eventType": "subscription.status_changed"',
        {},
        {"eventType": 5},
        {"eventType": "subscription.status_changed"},
        changed(eventType=...),
        *(changed(**{name: ...}) for name in ("occurredAt", "orderId", "sku", "changeReason", "subscription")),
        *(changed(orderId=value) for value in ("", 5, None, "a b", "x" * 65, "\x00", "\ud800")),
        *(
            changed(occurredAt=value)
            for value in ("", "soon", 5, None, "0001-01-01T00:00:00", "9999-12-31T23:59:59")
        ),
        changed(sku="\ud800"),
        changed(sku="\x00"),
        changed(subscription=None),
        changed(subscription=[]),
        changed(subscription={"current": None, "status": "ACTIVE", "accessGranted": True}),
        *(changed(current={"accessGranted": value}) for value in (None, "true", 1)),
        *(changed(current={"status": value}) for value in (None, "", 5, "\x00", "x" * 65)),
        b'{"eventType": "callback.registration_verification", "eventType": "subscription.status_changed"}',
        b"[" * 10_000,
    ],
    PAYMENT: [
        b"",
        b"[]",
        b"null",
        b"orderNo=1",
        {},
        *({"orderNo": value} for value in ("", 5, None, "a b", "x" * 51, "\x00", "\ud800", ["1"])),
        b'{"orderNo": "1", "orderNo": "2"}',
        b"[" * 10_000,
    ],
}


@pytest.mark.parametrize(("path", "body"), [(path, body) for path, bodies in UNREADABLE.items() for body in bodies])
async def test_what_cannot_be_read_is_kept_as_it_came(one, path, body):
    assert_problem(await call(one, path, body), 422, "invalid_request")
    notice = await only_notice(one)
    assert (notice.state, notice.outcome) == ("UNREADABLE", None)
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert (await content(one, notice))["body"] == raw.decode("utf-8", "backslashreplace")


@pytest.mark.parametrize(
    ("different", "read"),
    [
        ({"current": {"expiresAt": 5, "autoRenew": "yes"}}, {"expiresAt": "5", "autoRenew": None}),
        ({"current": {"expiresAt": ["x"]}}, {"expiresAt": None}),
        ({"occurredAt": "2026-08-24T09:05:11.123+09:00"}, {"occurredAt": "2026-08-24T09:05:11.123+09:00"}),
        ({"changeReason": "BRAND_NEW", "current": {"status": "UNSEEN"}}, {"changeReason": "BRAND_NEW"}),
    ],
)
async def test_what_can_be_understood_is(one, different, read):
    assert (await call(one, SUBSCRIPTION, changed(**different))).status_code == 200
    notice = await only_notice(one)
    assert notice.outcome == "PARKED"
    assert read.items() <= (await content(one, notice)).items()


async def test_a_payment_is_handed_over_by_its_number_and_kept_whole(bff):
    payments = Payments(bff)
    body = {"orderNo": "a-B_1:.^@", "status": "PAY_COMPLETE", "cardNumber": "5555-****", "amount": 1}
    assert (await call(bff, PAYMENT, body)).json() == {"received": True}
    assert payments.heard == ["a-B_1:.^@"]
    notice = await only_notice(bff)
    assert (notice.callback, notice.state, notice.outcome) == ("payment", "HANDLED", "ASKED")
    kept = await content(bff, notice)
    assert kept == {"orderNo": "a-B_1:.^@", "status": "PAY_COMPLETE", "body": json.dumps(body)}


async def test_a_payment_without_a_word_for_its_status(one):
    payments = Payments(one)
    for index, status in enumerate((None, 5, "\x00")):
        assert (await call(one, PAYMENT, {"orderNo": str(index), "status": status})).status_code == 200
        assert (await content(one, (await notices(one))[-1]))["status"] is None
    assert payments.heard == ["0", "1", "2"]


async def test_what_holds_personal_data_is_neither_logged_nor_stored_in_clear(settings, sandbox, caplog):
    caplog.set_level(logging.DEBUG)
    async with Bff.running(settings, sandbox) as bff:
        Payments(bff)
        await call(bff, PAYMENT, {"orderNo": "1", "cardNumber": "5555443322221111"})
        await call(bff, PAYMENT, {"cardNumber": "5555443322221111"})
        await call(bff, SUBSCRIPTION, {"eventType": "x", "who": "5555443322221111"})
        assert len(await notices(bff)) == 3
    assert "5555443322221111" not in caplog.text
    assert "5555443322221111" not in await everything(settings)


# --- Later ---------------------------------------------------------------------------------------------------


async def test_without_a_handler_a_notice_stays_open(bff):
    bff.resources.inbox._handlers.pop(CallbackName.PAYMENT, None)
    assert (await call(bff, PAYMENT, {"orderNo": "1"})).status_code == 200
    assert (await bff.resources.inbox.reconcile()).handled == 0
    assert (await only_notice(bff)).state == "OPEN"
    payments = Payments(bff)
    assert (await bff.resources.inbox.reconcile()).handled == 1
    assert payments.heard == ["1"]


async def test_a_handler_that_fails_is_tried_again_later_each_time(bff):
    payments = Payments(bff)
    payments.errors = [InternalError(), RuntimeError(), StorageUnavailable()]
    assert (await call(bff, PAYMENT, {"orderNo": "1"})).status_code == 200
    assert (await bff.resources.inbox.reconcile()).handled == 0
    for seconds in (31, 61, 121):
        assert (await only_notice(bff)).state == "OPEN"
        bff.clock.advance(seconds=seconds)
        await bff.resources.inbox.reconcile()
    notice = await only_notice(bff)
    assert (notice.state, notice.attempts) == ("HANDLED", 4)


async def test_an_outcome_of_one_callback_erases_nothing_of_another(bff):
    """`ERASED` is a word of login; whoever else says it forgets no more than this notice."""

    async def erasing(_content):
        return "ERASED"

    assert (await call(bff, SUBSCRIPTION, CHANGE)).status_code == 200
    bff.resources.inbox._handlers[CallbackName.PAYMENT] = erasing
    assert (await call(bff, PAYMENT, {"orderNo": "1"})).status_code == 200
    kept = {notice.callback: notice.content is not None for notice in await notices(bff)}
    assert kept == {"iap-subscription": True, "payment": False}


async def test_in_a_storm_few_are_handled_at_once_and_none_is_lost(embedded, sandbox):
    async with Bff.running(settings_for(embedded, sandbox), sandbox) as bff:
        payments = Payments(bff)
        payments.may_end.clear()
        bff.resources.inbox._answer_within = timedelta(0)
        count = MAX_HANDLING + 20
        for start in range(0, count, 20):
            calls = (call(bff, PAYMENT, {"orderNo": str(number)}) for number in range(start, start + 20))
            assert {answer.status_code for answer in await asyncio.gather(*calls)} == {200}
        assert len(bff.resources.inbox._handling) == MAX_HANDLING
        payments.may_end.set()
        await at_rest(bff)
        assert (await bff.resources.inbox.reconcile()).handled == 20
        assert sorted(payments.heard, key=int) == [str(number) for number in range(count)]
        assert {notice.state for notice in await notices(bff)} == {"HANDLED"}


async def test_while_the_database_is_away_only_so_many_wait_for_it(one):
    inbox, record = one.resources.inbox, one.resources.inbox.record
    inbox._write_patience = timedelta(0)

    async def away(_arrival, *, received_at):
        raise StorageUnavailable(f"at {received_at}")

    inbox.record = away
    for start in range(0, MAX_WRITING + 100, 100):
        calls = (call(one, PAYMENT, {"orderNo": str(number)}) for number in range(start, start + 100))
        for answer in await asyncio.gather(*calls):
            assert_problem(answer, 503, "storage_unavailable")
    assert len(inbox._writing) == MAX_WRITING
    inbox.record = record
    for task in [*inbox._writing]:
        task.cancel()
    await asyncio.wait([*inbox._writing])
