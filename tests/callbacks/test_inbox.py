"""The inbox (G9): recorded once before it is handled; duplicates, reordering and failures change nothing."""

import asyncio
import itertools
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from app.callbacks.inbox import Arrival, Inbox, unlinking
from app.callbacks.tables import FIRST_PAUSE, LONGEST_PAUSE, CallbackName, Notice, NoticeState
from app.database import pause_after, time_ordered_id
from app.errors import StorageUnavailable, UpstreamTimeout, UpstreamUnavailable
from app.reconcile import reconcile
from app.reseal import reseal
from app.vault import Vault
from tests.callbacks.conftest import with_callbacks
from tests.callbacks.toss import AUTHORIZED, UNLINK, USER, Unlinks, at_rest, call, notices, only_notice
from tests.conftest import settings_for
from tests.scenarios import Bff


def inbox_of(bff, unlinks=None, **changes) -> Inbox:
    """Another replica: the same database, other collaborators."""
    resources = bff.resources

    async def nothing(_step: str) -> None:
        pass

    return Inbox(
        **{
            "database": resources.database,
            "vault": resources.vault,
            "clock": resources.clock,
            "handlers": {CallbackName.LOGIN_UNLINK: unlinking(unlinks)} if unlinks else {},
            "checkpoint": nothing,
            "retention": timedelta(days=90),
            "answer_within": timedelta(seconds=30),
        }
        | changes
    )


def unlink_of(user_key: int = USER, referrer: str = "UNLINK") -> Arrival:
    content = {"userKey": user_key, "referrer": referrer}
    return Arrival(CallbackName.LOGIN_UNLINK, content, user_key=user_key)


# --- Duplicates and order ---------------------------------------------------------------------------------


async def test_fifty_equal_deliveries_at_once_are_one_notice(bff, unlinks):
    bff.resources.inbox._answer_within = timedelta(0)
    unlinks.may_end.clear()
    calling = [asyncio.create_task(call(bff)) for _ in range(50)]
    await asyncio.gather(*calling)  # each is answered though nothing has been handled
    assert {task.result().status_code for task in calling} == {200}
    notice = await only_notice(bff)
    assert (notice.state, notice.deliveries) == ("OPEN", 50)
    unlinks.may_end.set()
    await at_rest(bff)
    notice = await only_notice(bff)
    assert (notice.state, notice.outcome, notice.deliveries) == ("HANDLED", "ENDED", 50)
    assert set(unlinks.calls) == {(USER, "UNLINK")}


async def test_fifty_equal_deliveries_at_once_all_count_however_they_fall(bff, unlinks):
    await asyncio.gather(*(call(bff) for _ in range(50)))
    await at_rest(bff)
    rows = await notices(bff)
    assert {row.state for row in rows} == {"HANDLED"}
    assert sum(row.deliveries for row in rows) == 50
    assert set(unlinks.calls) == {(USER, "UNLINK")}


async def test_spellings_of_one_notice_are_equal(bff):
    bff.resources.inbox._handlers.clear()
    for body in ({"user_key": USER}, {"userKey": str(USER)}, {"userKey": float(USER), "other": 1}):
        await bff.http.post(UNLINK, json=body | {"referrer": "UNLINK"}, headers=AUTHORIZED)
    assert (await only_notice(bff)).deliveries == 3  # nobody handles them here
    await call(bff, referrer="WITHDRAWAL_TOSS")
    await call(bff, USER + 1)
    assert [notice.deliveries for notice in await notices(bff)] == [3, 1, 1]


async def test_after_the_first_is_handled_an_equal_one_is_new(bff, unlinks):
    """The same user can come back and unlink again; nothing tells the two apart (no event id, reference 14.0)."""
    for _ in range(3):
        await call(bff)
    assert [(notice.state, notice.deliveries) for notice in await notices(bff)] == [("HANDLED", 1)] * 3
    assert len(unlinks.calls) == 3


@pytest.mark.parametrize("is_reversed", [False, True])
async def test_the_order_of_different_notices_does_not_matter(bff, unlinks, is_reversed):
    arrivals = [(USER, "UNLINK"), (USER, "WITHDRAWAL_TOSS"), (USER + 1, "UNLINK"), (USER, "UNLINK")]
    for each in arrivals[::-1] if is_reversed else arrivals:
        await call(bff, *each)
    assert sorted(unlinks.calls) == sorted(arrivals)
    assert [notice.state for notice in await notices(bff)] == ["HANDLED"] * 4


async def test_a_delivery_that_comes_while_the_first_is_handled_is_handled_too(bff, unlinks):
    bff.resources.inbox._answer_within = timedelta(0)
    unlinks.may_end.clear()
    await call(bff)
    await unlinks.has_begun.wait()
    await call(bff)
    notice = await only_notice(bff)
    assert (notice.state, notice.deliveries) == ("OPEN", 2)
    unlinks.may_end.set()
    await at_rest(bff)
    assert len(unlinks.calls) == 2
    notice = await only_notice(bff)
    assert (notice.state, notice.deliveries) == ("HANDLED", 2)


async def test_a_delivery_between_handling_and_closing_is_handled_too(bff):
    unlinks, deliveries = Unlinks(), iter(range(1))

    async def checkpoint(step: str) -> None:
        if step == "notice_handled" and next(deliveries, None) is not None:
            await replica.record(unlink_of(), received_at=bff.clock())

    replica = inbox_of(bff, unlinks, checkpoint=checkpoint)
    await replica.receive(unlink_of())
    notice = await only_notice(bff)
    assert (notice.state, notice.deliveries, notice.attempts) == ("HANDLED", 2, 1)
    assert len(unlinks.calls) == 2


async def test_two_replicas_may_handle_the_same_notice(bff):
    first, second = Unlinks(outcome="FIRST"), Unlinks(outcome="SECOND")
    for unlinks in (first, second):
        unlinks.may_end.clear()
    replicas = [inbox_of(bff, unlinks) for unlinks in (first, second)]
    recorded = await replicas[0].record(unlink_of(), received_at=bff.clock())
    handling = [asyncio.create_task(replica._handle(recorded.notice_id)) for replica in replicas]
    await asyncio.gather(first.has_begun.wait(), second.has_begun.wait())
    second.may_end.set()
    await handling[1]
    first.may_end.set()
    assert (await handling[0]).outcome == "SECOND"
    notice = await only_notice(bff)
    assert (notice.outcome, notice.attempts, len(first.calls), len(second.calls)) == ("SECOND", 1, 1, 1)


async def test_a_failure_does_not_reopen_what_another_replica_has_closed(bff):
    failing, working = Unlinks(errors=[UpstreamTimeout()]), Unlinks()
    failing.may_end.clear()
    replicas = [inbox_of(bff, unlinks) for unlinks in (failing, working)]
    recorded = await replicas[0].record(unlink_of(), received_at=bff.clock())
    handling = asyncio.create_task(replicas[0]._settle(recorded.notice_id))
    await failing.has_begun.wait()
    await replicas[1]._handle(recorded.notice_id)
    failing.may_end.set()
    await handling
    notice = await only_notice(bff)
    assert (notice.state, notice.next_attempt_at, notice.attempts) == ("HANDLED", None, 1)


# --- Answering --------------------------------------------------------------------------------------------


async def test_toss_is_answered_before_a_slow_handler_ends(bff, unlinks):
    bff.resources.inbox._answer_within = timedelta(milliseconds=1)
    unlinks.may_end.clear()
    assert (await call(bff)).status_code == 200
    assert (await only_notice(bff)).state == "OPEN"
    unlinks.may_end.set()
    await at_rest(bff)
    assert (await only_notice(bff)).state == "HANDLED"


@pytest.mark.usefixtures("unlinks")
async def test_a_quick_handler_has_ended_when_toss_is_answered(bff):
    await call(bff)
    assert (await only_notice(bff)).state == "HANDLED"


async def test_recorded_before_it_is_handled(bff):
    seen = []

    async def unlink(_user_key: int, _referrer: str) -> str:
        # In a transaction of its own: what is not committed is not seen, or not reached.
        seen.append((await only_notice(bff)).state)
        return "ENDED"

    await inbox_of(bff, unlink).receive(unlink_of())
    assert seen == ["OPEN"]


async def test_without_a_handler_a_notice_stays_open(bff):
    bff.resources.inbox._handlers.clear()
    assert (await call(bff)).status_code == 200
    notice = await only_notice(bff)
    assert (notice.state, notice.attempts) == ("OPEN", 0)
    done = (await reconcile(bff.resources)).notices
    assert (done.handled, done.left_open) == (0, 0)


class Faltering:
    """A database that is away for a number of transactions."""

    def __init__(self, database, away_for: int):
        self._database = database
        self.away_for = away_for
        self.has_failed = asyncio.Event()

    @property
    def is_sqlite(self):
        return self._database.is_sqlite

    def transaction(self):
        if self.away_for > 0:
            self.away_for -= 1
            self.has_failed.set()
            raise StorageUnavailable
        return self._database.transaction()


async def test_a_database_that_is_away_for_a_moment_costs_no_notice(bff):
    unlinks, times = Unlinks(), itertools.count()
    came_at = bff.clock()
    replica = inbox_of(
        bff,
        unlinks,
        database=Faltering(bff.resources.database, 2),
        clock=lambda: came_at + timedelta(hours=next(times)),
    )
    await replica.receive(unlink_of())
    notice = await only_notice(bff)
    assert (notice.state, notice.outcome) == ("HANDLED", "ENDED")
    assert notice.received_at == came_at  # not when it could be written


async def test_toss_does_not_wait_for_ever_and_the_notice_is_written_all_the_same(bff):
    unlinks, database = Unlinks(), Faltering(bff.resources.database, 1)
    replica = inbox_of(bff, unlinks, database=database, write_patience=timedelta(milliseconds=1))
    with pytest.raises(StorageUnavailable):
        await replica.receive(unlink_of())
    await replica.aclose()
    assert (await only_notice(bff)).state == "HANDLED"
    assert len(unlinks.calls) == 1


# --- Failures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [UpstreamUnavailable(), StorageUnavailable(), RuntimeError("a bug")])
async def test_what_cannot_be_decided_now_stays_open_until_reconcile(bff, unlinks, error):
    unlinks.errors.append(error)
    assert (await call(bff)).status_code == 200
    notice = await only_notice(bff)
    assert (notice.state, notice.outcome, notice.attempts) == ("OPEN", None, 1)
    pause = notice.next_attempt_at - notice.received_at
    assert timedelta(seconds=30) <= pause < timedelta(seconds=40)
    assert (await bff.resources.inbox.reconcile()).handled == 0  # not due
    bff.clock.advance(seconds=40)
    done = await bff.resources.inbox.reconcile()
    assert (done.handled, done.left_open) == (1, 0)
    notice = await only_notice(bff)
    assert (notice.state, notice.outcome, notice.attempts) == ("HANDLED", "ENDED", 2)
    assert unlinks.calls == [(USER, "UNLINK")] * 2


async def test_the_pauses_double_up_to_an_hour(bff, unlinks):
    unlinks.errors += [UpstreamUnavailable() for _ in range(9)]
    await call(bff)
    pauses = []
    for _ in range(9):
        notice = await only_notice(bff)
        pauses.append(notice.next_attempt_at - bff.clock())
        bff.clock.advance(seconds=pauses[-1].total_seconds() + 1)
        await bff.resources.inbox.reconcile()
    expected = [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert [round(pause.total_seconds() / 10) * 10 for pause in pauses] == expected
    assert (await only_notice(bff)).state == "HANDLED"
    assert pause_after(10_000, first=FIRST_PAUSE, longest=LONGEST_PAUSE) == timedelta(hours=1)


async def test_one_failing_notice_keeps_no_other(bff):
    class Choosy(Unlinks):
        async def __call__(self, user_key: int, referrer: str) -> str:
            self.calls.append((user_key, referrer))
            if user_key % 3 == 0:
                raise RuntimeError("a bug") if user_key % 2 else UpstreamTimeout()
            return "ENDED"

    bff.resources.inbox._handlers.clear()
    for user_key in range(1, 8):
        await call(bff, user_key)
    choosy = Choosy()
    choosy.serve(bff)
    done = await bff.resources.inbox.reconcile()
    assert (done.handled, done.left_open) == (5, 2)
    assert [user_key for user_key, _ in choosy.calls] == list(range(1, 8))  # oldest first
    assert [notice.state for notice in await notices(bff)] == [
        "OPEN" if user_key % 3 == 0 else "HANDLED" for user_key in range(1, 8)
    ]


async def test_more_than_one_batch_is_reconciled_in_one_go(embedded, sandbox):
    async with Bff.running(with_callbacks(settings_for(embedded, sandbox)), sandbox) as bff:
        await bff.resources.inbox.aclose()
        for user_key in range(1, 206):
            await bff.resources.inbox.record(unlink_of(user_key), received_at=bff.clock())
        Unlinks(errors=[UpstreamTimeout() for _ in range(203)]).serve(bff)
        done = await bff.resources.inbox.reconcile()
        assert (done.handled, done.left_open) == (2, 203)


@pytest.mark.usefixtures("unlinks")
async def test_what_a_crash_left_unhandled_is_due_at_once(bff):
    """Recorded, and the process died: nothing has to run out first."""
    await bff.resources.inbox.record(unlink_of(), received_at=bff.clock())
    assert (await bff.resources.inbox.reconcile()).handled == 1


async def test_another_delivery_of_a_postponed_notice_is_due_at_once(bff, unlinks):
    unlinks.errors.append(UpstreamUnavailable())
    await call(bff)
    bff.resources.inbox._handlers.clear()  # as if it crashed before it handles the second
    bff.clock.advance(seconds=1)
    await call(bff)
    unlinks.serve(bff)
    assert (await bff.resources.inbox.reconcile()).handled == 1


async def test_a_late_write_does_not_make_a_delivery_older(bff):
    replica, now = inbox_of(bff), bff.clock()
    await replica.record(unlink_of(), received_at=now)
    await replica.record(unlink_of(), received_at=now - timedelta(seconds=5))
    notice = await only_notice(bff)
    assert (notice.received_at, notice.last_received_at, notice.deliveries) == (now, now, 2)


async def test_a_stop_gives_handlers_a_moment_and_leaves_open_what_does_not_end(bff):
    ending, hanging = Unlinks(), Unlinks()
    for unlinks in (ending, hanging):
        unlinks.may_end.clear()
    at_once = {"answer_within": timedelta(0), "closing_patience": timedelta(milliseconds=50)}
    patient = inbox_of(bff, ending, **(at_once | {"closing_patience": timedelta(minutes=1)}))
    await patient.receive(unlink_of(1))
    await ending.has_begun.wait()
    closing = asyncio.create_task(patient.aclose())
    ending.may_end.set()
    await closing
    impatient = inbox_of(bff, hanging, **at_once)
    await impatient.receive(unlink_of(2))
    await hanging.has_begun.wait()
    await impatient.aclose()
    assert not impatient._tasks()
    first, second = await notices(bff)
    assert (first.state, second.state, second.attempts) == ("HANDLED", "OPEN", 0)
    replica = inbox_of(bff, Unlinks())
    assert (await replica.reconcile()).handled == 1


# --- Time -------------------------------------------------------------------------------------------------


async def test_retention_erases_what_is_done_and_nothing_else(bff):
    unlinks = Unlinks()
    replica = inbox_of(bff, unlinks)
    await replica.receive(unlink_of(1))
    await replica.receive(Arrival(CallbackName.LOGIN_UNLINK, {"body": "x"}, state=NoticeState.UNREADABLE))
    await replica.receive(Arrival(CallbackName.CONSENT_WITHDRAWAL, {"body": "x"}, state=NoticeState.KEPT))
    unlinks.errors += [UpstreamTimeout()] * 5
    await replica.receive(unlink_of(2))
    bff.clock.advance(days=89, hours=23)
    assert (await replica.reconcile()).erased == 0
    bff.clock.advance(hours=1, minutes=1)
    unlinks.errors.append(UpstreamTimeout())
    assert (await replica.reconcile()).erased == 3
    assert (await only_notice(bff)).state == "OPEN"


async def test_retention_is_counted_from_the_handling(bff):
    unlinks = Unlinks(errors=[UpstreamTimeout()])
    replica = inbox_of(bff, unlinks)
    await replica.receive(unlink_of())
    bff.clock.advance(days=91)
    done = await replica.reconcile()
    assert (done.handled, done.erased) == (1, 0)
    bff.clock.advance(days=90, minutes=1)
    assert (await replica.reconcile()).erased == 1


async def test_the_days_of_retention_are_the_operators(embedded, sandbox):
    settings = with_callbacks(settings_for(embedded, sandbox), retention_days=2)
    async with Bff.running(settings, sandbox) as bff:
        Unlinks().serve(bff)
        await call(bff)
        bff.clock.advance(days=2, minutes=1)
        assert (await reconcile(bff.resources)).notices.erased == 1


async def test_ids_sort_by_time():
    at = datetime(2026, 9, 1, tzinfo=UTC)
    ids = [time_ordered_id(at + timedelta(milliseconds=n)) for n in (0, 1, 2, 50, 10**6, 10**9)]
    assert sorted(ids) == ids
    assert len({time_ordered_id(at) for _ in range(100)}) == 100
    assert {(each[14], each[19] in "89ab") for each in ids} == {("7", True)}


# --- The race with a login ----------------------------------------------------------------------------------


async def test_recheck_hands_over_again_what_was_said_since(bff, unlinks):
    before = bff.clock()
    await call(bff)
    await call(bff, USER + 1)
    unlinks.calls.clear()
    await bff.resources.inbox.recheck(USER, since=before)
    assert unlinks.calls == [(USER, "UNLINK")]
    await bff.resources.inbox.recheck(USER + 2, since=before)
    await bff.resources.inbox.recheck(USER, since=bff.clock())
    assert len(unlinks.calls) == 1


async def test_recheck_looks_at_every_state_and_at_later_deliveries(bff, unlinks):
    unlinks.errors.append(UpstreamTimeout())
    await call(bff)  # stays open
    bff.clock.advance(minutes=1)
    since = bff.clock()
    unlinks.errors.append(UpstreamTimeout())
    await call(bff)
    assert (await only_notice(bff)).deliveries == 2
    unlinks.calls.clear()
    await bff.resources.inbox.recheck(USER, since=since)
    assert unlinks.calls == [(USER, "UNLINK")]
    assert (await only_notice(bff)).state == "OPEN"


async def test_recheck_hands_each_referrer_over_once(bff, unlinks):
    before = bff.clock()
    for referrer in ("WITHDRAWAL_TOSS", "UNLINK", "WITHDRAWAL_TOSS"):
        await call(bff, referrer=referrer)
    unlinks.calls.clear()
    await bff.resources.inbox.recheck(USER, since=before)
    assert unlinks.calls == [(USER, "WITHDRAWAL_TOSS"), (USER, "UNLINK")]


async def test_recheck_makes_a_notice_of_what_cannot_be_decided_now(bff, unlinks):
    before = bff.clock()
    await call(bff)
    unlinks.errors.append(UpstreamUnavailable())
    await bff.resources.inbox.recheck(USER, since=before)
    assert [notice.state for notice in await notices(bff)] == ["HANDLED", "OPEN"]
    assert (await bff.resources.inbox.reconcile()).handled == 1
    assert unlinks.calls == [(USER, "UNLINK")] * 3


async def test_recheck_does_without_the_content_and_without_a_handler(bff, unlinks):
    before = bff.clock()
    await call(bff)
    unlinks.calls.clear()
    other = Vault({"k9": bytes(32)}, active_key="k9", hash_key=bff.resources.vault._hash_key)
    await inbox_of(bff, unlinks, vault=other).recheck(USER, since=before)
    assert unlinks.calls == [(USER, "")]
    await inbox_of(bff).recheck(USER, since=before)


# --- Keys, and what the database itself refuses ---------------------------------------------------------------


async def test_a_notice_whose_key_is_missing_waits_for_it(bff):
    unlinks = Unlinks()
    await inbox_of(bff).receive(unlink_of())
    other = Vault({"k9": bytes(32)}, active_key="k9", hash_key=bytes(32))
    done = await inbox_of(bff, unlinks, vault=other).reconcile()
    assert (done.handled, done.left_open, unlinks.calls) == (0, 1, [])
    bff.clock.advance(minutes=1)
    assert (await inbox_of(bff, unlinks).reconcile()).handled == 1


async def test_notices_are_resealed(bff):
    await inbox_of(bff).receive(unlink_of())
    vault = bff.resources.vault
    both = Vault({"k1": bytes(range(32)), "k2": b"\x07" * 32}, active_key="k2", hash_key=vault._hash_key)
    done = {column.column: column.resealed for column in await reseal(bff.resources.database, both, batch=10)}
    assert done["notice.content"] == 1
    new = Vault({"k2": b"\x07" * 32}, active_key="k2", hash_key=vault._hash_key)
    notice, found = await inbox_of(bff, vault=new).get((await only_notice(bff)).notice_id)
    assert (notice.content.key_id, found["userKey"]) == ("k2", USER)


@pytest.mark.parametrize("values", [{"open_key": None}, {"state": "HANDLED"}, {"deliveries": 0}])
async def test_the_database_refuses_rows_that_contradict_themselves(bff, values):
    await inbox_of(bff).receive(unlink_of())
    with pytest.raises(Exception, match=r"open_key|counts"):
        async with bff.resources.database.transaction() as session:
            await session.execute(update(Notice).values(**values))


async def test_what_happens_is_counted(bff):
    counted = []
    unlinks = Unlinks(errors=[UpstreamTimeout()])
    replica = inbox_of(bff, unlinks, count=lambda what, callback: counted.append((what, callback)))
    await replica.receive(unlink_of())
    await replica.receive(unlink_of())
    assert counted == [(what, "login-unlink") for what in ("recorded", "failed", "merged", "handled")]


async def test_a_bug_of_our_own_after_the_handler_keeps_no_other_notice(bff):
    for user_key in (1, 2, 3):
        await inbox_of(bff).receive(unlink_of(user_key))
    bugs = [RuntimeError("a bug")]

    async def checkpoint(_step: str) -> None:
        if bugs:
            raise bugs.pop()

    done = await inbox_of(bff, Unlinks(), checkpoint=checkpoint).reconcile()
    assert (done.handled, done.left_open) == (2, 1)
