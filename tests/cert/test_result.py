"""The result, safely: G1 (one call, two reads), G2 (nothing lost), G3 (per field), G4 (no blind repetition)."""

import asyncio
import time

import pytest
from sqlalchemy import select, update

from app.cert.service import CertService, PartnerServer
from app.cert.tables import ResultState, Verification
from app.database import LateWrites
from app.errors import ResultInProgress, StorageUnavailable, UpstreamInvalid, VerificationNotCompleted
from app.toss.cert import StartedRequest
from tests.conftest import settings_for
from tests.hosts import Host, answering
from tests.scenarios import Bff, assert_problem
from tests.servers import free_port


async def row_of(bff, verification) -> Verification:
    async with bff.resources.database.transaction() as session:
        return await session.scalar(select(Verification).where(Verification.tx_id == verification.tx_id))


async def test_fifty_concurrent_callers_make_one_upstream_call(bff, sandbox):
    verification = await bff.completed()
    answers = await asyncio.gather(*(bff.result(verification) for _ in range(50)))
    assert sandbox.state.count("result") == 1
    assert {answer.status_code for answer in answers} <= {200, 409}
    for answer in answers:
        if answer.status_code == 409:
            assert_problem(answer, 409, "result_in_progress")
    assert (await bff.result(verification)).json()["retrieval"]["source"] == "STORED"
    assert bff.reads(verification) == 1


LOST = [
    {"kind": "reset_after"},
    {"kind": "truncated_json"},
    {"kind": "html_502", "after_effect": True},
    {"kind": "big_body"},
    {"kind": "wrong_tx"},
    {"kind": "oauth_error", "error": "Gateway Timeout", "http_status": 504, "after_effect": True},
]


@pytest.mark.parametrize("fault", LOST, ids=lambda fault: fault["kind"])
async def test_a_lost_answer_is_stated_and_the_last_read_recovers_it(bff, sandbox, fault):
    verification = await bff.completed()
    sandbox.state.order_fault("result", **fault)

    problem = assert_problem(await bff.result(verification), 504, "result_outcome_unknown")

    assert (problem["retryable"], problem["readsLeft"]) == (True, 1)
    assert sandbox.state.count("result") == 1  # nothing is repeated by itself
    answer = await bff.result(verification)
    assert answer.status_code == 200, answer.text
    assert answer.json()["retrieval"] == {"source": "LAST_READ", "readsLeft": 0}
    assert sandbox.state.count("result") == 2


@pytest.mark.parametrize("fault", LOST, ids=lambda fault: fault["kind"])
async def test_there_is_never_a_third_read(bff, sandbox, fault):
    verification = await bff.completed()
    sandbox.state.order_fault("result", times=2, **fault)
    assert_problem(await bff.result(verification), 504, "result_outcome_unknown")
    problem = assert_problem(await bff.result(verification), 504, "result_outcome_unknown")
    assert (problem["retryable"], problem["readsLeft"]) == (False, 0)
    for _ in range(3):
        assert_problem(await bff.result(verification), 410, "result_reads_exhausted")
    assert sandbox.state.count("result") == 2


async def test_a_call_that_dies_before_its_effect_counts_as_possibly_read(bff, sandbox):
    # We cannot know that nothing happened: only the count at Toss shows that the read is still there.
    verification = await bff.completed()
    sandbox.state.order_fault("result", "reset_before")
    assert_problem(await bff.result(verification), 504, "result_outcome_unknown")
    assert (await bff.result(verification)).json()["retrieval"]["source"] == "LAST_READ"
    assert bff.reads(verification) == 1


async def test_a_slow_answer_is_lost_at_the_deadline(embedded, sandbox):
    settings = settings_for(embedded, sandbox, read_timeout="PT1S", call_deadline="PT5S")
    async with Bff.running(settings, sandbox) as bff:
        verification = await bff.completed()
        sandbox.state.order_fault("result", "hold")
        assert_problem(await bff.result(verification), 504, "result_outcome_unknown")
        sandbox.state.release()
        assert (await bff.result(verification)).json()["retrieval"]["source"] == "LAST_READ"


NOTHING_READ = [
    ({"kind": "fail", "code": "CE0001", "http_status": 500}, 503, "upstream_unavailable"),
    ({"kind": "fail_200", "code": "CE0002"}, 503, "upstream_unavailable"),
    ({"kind": "fail", "code": "CE3200", "http_status": 400}, 409, "verification_refused"),
    ({"kind": "fail_200", "code": "CE9999"}, 409, "verification_refused"),
]


@pytest.mark.parametrize(("fault", "status", "code"), NOTHING_READ)
async def test_a_clear_no_uses_no_read(bff, sandbox, fault, status, code):
    verification = await bff.completed()
    sandbox.state.order_fault("result", times=4, **fault)
    for _ in range(4):
        problem = assert_problem(await bff.result(verification), status, code)
        assert problem["tossCode"] == fault["code"]
    answer = await bff.result(verification)
    assert answer.json()["retrieval"] == {"source": "READ", "readsLeft": 1}


async def test_a_call_that_never_reached_toss_uses_no_read(backend, sandbox):
    async with Bff.running(settings_for(backend, sandbox), sandbox) as bff:
        verification = await bff.completed()
    nowhere = settings_for(backend, sandbox, api_url=f"http://127.0.0.1:{free_port()}")
    async with Bff.running(nowhere, sandbox) as bff:
        for _ in range(3):
            assert_problem(await bff.result(verification), 503, "upstream_unavailable")
    async with Bff.running(settings_for(backend, sandbox), sandbox) as bff:
        assert (await bff.result(verification)).json()["retrieval"] == {"source": "READ", "readsLeft": 1}


@pytest.mark.parametrize(
    ("toss_code", "status", "code"),
    [
        ("CE3100", 410, "verification_unknown_to_toss"),
        ("CE3101", 410, "result_reads_exhausted"),
        ("CE3103", 410, "verification_expired"),
        ("CE3006", 403, "age_restricted"),
    ],
)
@pytest.mark.parametrize("kind", ["fail", "fail_200"])
async def test_a_final_code_ends_the_verification(bff, sandbox, toss_code, status, code, kind):
    verification = await bff.completed()
    sandbox.state.order_fault("result", kind, code=toss_code)
    assert_problem(await bff.result(verification), status, code)
    assert_problem(await bff.result(verification), status, code)
    assert_problem(await bff.status(verification), status, code)
    assert sandbox.state.count("result") == 1


async def test_a_refused_token_is_renewed_once_and_the_read_goes_on(bff, sandbox):
    verification = await bff.completed()
    sandbox.state.revoke_tokens()
    assert (await bff.result(verification)).json()["retrieval"] == {"source": "READ", "readsLeft": 1}
    assert (sandbox.state.count("result"), sandbox.state.count("token")) == (2, 2)


async def test_tokens_that_are_always_refused_are_not_asked_for_endlessly(bff, sandbox):
    verification = await bff.completed()
    sandbox.state.order_fault("result", "token_rejected", times=10)
    assert_problem(await bff.result(verification), 503, "upstream_unavailable")
    assert (sandbox.state.count("result"), sandbox.state.count("token")) == (2, 2)
    assert (await row_of(bff, verification)).reads_left == 2


@pytest.mark.parametrize("field", ["ci", "di", "name", "birthday", "gender", "nationality", "ageGroup"])
@pytest.mark.parametrize("kind", ["damaged_tag", "wrong_session_id", "wrong_version"])
async def test_one_bad_field_costs_that_field(bff, sandbox, field, kind):
    verification = await bff.completed()
    sandbox.state.order_fault("result", kind, field=field)
    full = await bff.as_partner("POST", verification, "/result", await bff.server_key())
    body = full.json()
    assert body["unreadableFields"] == [field]
    known = body["identity"] | {"ageGroup": None if body["ageGroup"]["stated"] == "UNKNOWN" else "x"}
    assert known[field] is None
    absent_anyway = {"ci2", "ciUpdate", field}
    assert all(value is not None for name, value in known.items() if name not in absent_anyway)
    outcome = (await bff.result(verification)).json()
    assert outcome["unreadableFields"] == ([field] if field in {"name", "ageGroup"} else [])


async def test_when_no_field_opens_the_last_read_is_left(bff, sandbox):
    verification = await bff.completed()
    sandbox.state.order_fault("result", "damaged_tag")
    problem = assert_problem(await bff.result(verification), 502, "upstream_invalid")
    assert (problem["readsLeft"], problem["retryable"]) == (1, True)
    assert (await bff.result(verification)).json()["retrieval"] == {"source": "LAST_READ", "readsLeft": 0}


async def test_two_unreadable_answers_end_it(bff, sandbox):
    verification = await bff.completed()
    sandbox.state.order_fault("result", "wrong_session_id", times=2)
    for reads_left in (1, 0):
        problem = assert_problem(await bff.result(verification), 502, "upstream_invalid")
        assert problem["readsLeft"] == reads_left
    assert_problem(await bff.result(verification), 410, "result_reads_exhausted")
    assert sandbox.state.count("result") == 2


async def test_a_missing_field_is_absent_not_unreadable(bff, sandbox):
    verification = await bff.completed()
    sandbox.state.order_fault("result", "missing_field", field="di")
    full = (await bff.as_partner("POST", verification, "/result", await bff.server_key())).json()
    assert (full["identity"]["di"], full["unreadableFields"]) == (None, [])


async def test_an_unknown_field_is_ignored(bff, sandbox):
    verification = await bff.completed()
    sandbox.state.order_fault("result", "extra_field")
    assert (await bff.result(verification)).status_code == 200


async def test_after_the_window_toss_is_not_asked(bff, sandbox):
    verification = await bff.completed()
    await bff.status(verification)  # we see that the user has finished
    bff.clock.advance(minutes=58)
    seen = await row_of(bff, verification)
    assert seen.completion_seen_at is not None
    bff.clock.advance(minutes=1, seconds=1)  # the margin is a minute
    assert_problem(await bff.result(verification), 410, "verification_expired")
    assert sandbox.state.count("result") == 0


async def test_the_window_is_also_known_without_a_status_call(bff, sandbox):
    verification = await bff.completed()
    bff.clock.advance(minutes=30 + 58)
    assert (await bff.result(verification)).status_code == 200
    other = await bff.completed()
    bff.clock.advance(minutes=30 + 60)
    assert_problem(await bff.result(other), 410, "verification_expired")
    assert sandbox.state.count("result") == 1


async def test_toss_is_believed_when_its_window_ends_first(bff, sandbox):
    verification = await bff.completed()
    sandbox.state.clock.advance(3601)
    assert_problem(await bff.result(verification), 410, "verification_expired")


async def test_a_stored_result_outlives_the_window(bff):
    verification = await bff.completed()
    await bff.result(verification)
    bff.clock.advance(days=30)
    assert (await bff.result(verification)).json()["retrieval"]["source"] == "STORED"


async def test_a_lease_keeps_others_out_until_it_ends(bff, sandbox):
    verification = await bff.completed()
    sandbox.state.order_fault("result", "hold")
    first = asyncio.create_task(bff.result(verification))
    await asyncio.to_thread(sandbox.state.wait_until, lambda state: state.held("result") == 1)

    assert_problem(await bff.result(verification), 409, "result_in_progress")
    bff.clock.advance(seconds=31)
    second = await bff.result(verification)
    assert second.json()["retrieval"] == {"source": "LAST_READ", "readsLeft": 0}

    sandbox.state.release()
    late = await first
    assert late.status_code == 200, late.text
    assert bff.reads(verification) == 2
    assert_row = await row_of(bff, verification)
    assert (assert_row.reads_succeeded, assert_row.reads_unknown) == (1, 1)


async def test_an_answer_that_comes_after_its_lease_is_kept(bff, sandbox):
    verification = await bff.completed()
    sandbox.state.order_fault("result", "hold")
    first = asyncio.create_task(bff.result(verification))
    await asyncio.to_thread(sandbox.state.wait_until, lambda state: state.held("result") == 1)
    bff.clock.advance(seconds=31)
    assert (await bff.resources.cert.reconcile()).leases_settled == 1

    sandbox.state.release()

    assert (await first).status_code == 200
    assert (await bff.result(verification)).json()["retrieval"] == {"source": "STORED", "readsLeft": 1}


async def test_an_answer_that_was_given_up_is_kept_when_it_comes(bff, sandbox):
    verification = await bff.completed()
    sandbox.state.order_fault("result", "reset_after")
    assert_problem(await bff.result(verification), 504, "result_outcome_unknown")
    sandbox.state.order_fault("result", "hold")
    last = asyncio.create_task(bff.result(verification))
    await asyncio.to_thread(sandbox.state.wait_until, lambda state: state.held("result") == 1)
    bff.clock.advance(seconds=31)
    await bff.resources.cert.reconcile()
    assert_problem(await bff.result(verification), 410, "result_reads_exhausted")

    sandbox.state.release()

    assert (await last).json()["retrieval"] == {"source": "LAST_READ", "readsLeft": 0}
    assert (await bff.result(verification)).json()["retrieval"]["source"] == "STORED"


@pytest.mark.parametrize("status", [302, 401, 403, 404, 429])
async def test_a_refusal_by_somebody_in_between_uses_no_read(backend, sandbox, status):
    """A firewall's page or a rate limit's: HTTP says that the request was not processed."""
    async with Bff.running(settings_for(backend, sandbox), sandbox) as bff:
        verification = await bff.completed()
    page = answering(b"<html>no</html>", status=f"{status} No")
    async with Host.running(page) as host:
        blocked = settings_for(backend, sandbox, api_url=host.url[: -len("/call")])
        async with Bff.running(blocked, sandbox) as bff:
            for _ in range(3):
                assert_problem(await bff.result(verification), 503, "upstream_unavailable")
    async with Bff.running(settings_for(backend, sandbox), sandbox) as bff:
        assert (await bff.result(verification)).json()["retrieval"] == {"source": "READ", "readsLeft": 1}


@pytest.mark.parametrize("code", ["CE3100", "CE3101", "CE3103", "CE3006"])
async def test_a_status_call_does_not_end_what_a_result_call_is_about_to_bring(bff, sandbox, code):
    verification = await bff.completed()
    sandbox.state.order_fault("result", "hold")
    asking = asyncio.create_task(bff.result(verification))
    await asyncio.to_thread(sandbox.state.wait_until, lambda state: state.held("result") == 1)
    sandbox.state.order_fault("status", "fail", code=code)
    await bff.status(verification)
    assert_problem(await bff.result(verification), 409, "result_in_progress")  # to others it is not over either
    sandbox.state.release()
    assert (await asking).json()["retrieval"] == {"source": "READ", "readsLeft": 1}


async def test_what_another_call_has_stored_meanwhile_answers_a_lost_one(embedded, sandbox):
    impatient = settings_for(embedded, sandbox, read_timeout="PT2S")
    async with Bff.running(impatient, sandbox) as bff:
        verification = await bff.completed()
        sandbox.state.order_fault("result", "hold")
        first = asyncio.create_task(bff.result(verification))
        await asyncio.to_thread(sandbox.state.wait_until, lambda state: state.held("result") == 1)
        bff.clock.advance(seconds=31)
        assert (await bff.result(verification)).json()["retrieval"]["source"] == "LAST_READ"
        assert (await first).json()["retrieval"] == {"source": "STORED", "readsLeft": 0}
        sandbox.state.release()


async def test_a_process_that_was_stopped_before_its_call_does_not_call(bff, sandbox):
    now = iter([0.0, 16.0, 16.0])
    stopped = service(bff, monotonic=lambda: next(now))
    verification = await bff.completed()
    with pytest.raises(ResultInProgress):
        await stopped.result(verification.tx_id, PartnerServer("test"))
    assert sandbox.state.count("result") == 0
    assert (await bff.result(verification)).json()["retrieval"] == {"source": "READ", "readsLeft": 1}


async def test_an_unreadable_answer_does_not_take_a_better_one_with_it(bff, sandbox):
    crash = crash_at("answer_kept")
    verification = await bff.completed()
    sandbox.state.order_fault("result", "damaged_tag")
    with pytest.raises(Crash):
        await service(bff, checkpoint=crash).result(verification.tx_id, PartnerServer("test"))
    unreadable = await row_of(bff, verification)
    assert_problem(await bff.result(verification), 502, "upstream_invalid")
    with pytest.raises(Crash):
        await service(bff, checkpoint=crash).result(verification.tx_id, PartnerServer("test"))

    with pytest.raises(UpstreamInvalid):
        await bff.resources.cert._open(unreadable)  # a reconcile that had loaded the row before

    assert (await bff.result(verification)).json()["retrieval"]["source"] == "RECOVERED"


class Faltering:
    """A database that is away for a number of transactions, once `falter` is called."""

    def __init__(self, database):
        self._database = database
        self.away_for = 0

    def transaction(self):
        if self.away_for > 0:
            self.away_for -= 1
            raise StorageUnavailable
        return self._database.transaction()


@pytest.mark.parametrize("step_before", ["leased", "answer_received"])
async def test_a_database_that_is_away_for_a_moment_does_not_cost_the_answer(bff, sandbox, step_before):
    database = Faltering(bff.resources.database)

    async def falter(step: str) -> None:
        database.away_for = 2 if step == step_before else 0

    verification = await bff.completed()
    retrieved = await service(bff, database=database, checkpoint=falter).result(
        verification.tx_id, PartnerServer("test")
    )
    assert retrieved.source == "READ"
    assert sandbox.state.count("result") == 1


async def test_a_database_that_is_away_for_a_moment_does_not_cost_a_read_that_was_none(bff, sandbox):
    database = Faltering(bff.resources.database)

    async def falter(step: str) -> None:
        database.away_for = 2 if step == "leased" else 0

    verification = await bff.start()
    with pytest.raises(VerificationNotCompleted):
        await service(bff, database=database, checkpoint=falter).result(verification.tx_id, PartnerServer("test"))
    sandbox.state.approve(verification.tx_id)
    assert (await bff.result(verification)).json()["retrieval"] == {"source": "READ", "readsLeft": 1}


async def test_a_write_that_waits_for_the_database_is_awaited_at_the_end(embedded, sandbox):
    """A stop in good order does not lose what a call to Toss has brought."""
    attempts, has_failed = [], asyncio.Event()

    async def write(session) -> None:
        attempts.append(session)
        if len(attempts) == 1:
            has_failed.set()
            raise StorageUnavailable

    async with Bff.running(settings_for(embedded, sandbox), sandbox) as bff:
        asking = asyncio.create_task(bff.resources.writes.commit(write))
        await has_failed.wait()
    assert len(attempts) == 2
    await asking


async def test_the_count_of_reads_cannot_pass_two_in_the_database_either(bff):
    verification = await bff.completed()
    with pytest.raises(Exception, match="reads"):
        async with bff.resources.database.transaction() as session:
            await session.execute(
                update(Verification)
                .where(Verification.tx_id == verification.tx_id)
                .values(reads_succeeded=2, reads_unknown=1)
            )


class Crash(Exception):
    """Stands for the end of the process."""


def crash_at(where: str):
    async def checkpoint(step: str) -> None:
        if step == where:
            raise Crash

    return checkpoint


def service(bff, *, api=None, checkpoint=None, database=None, monotonic=time.monotonic) -> CertService:
    """The service of this application with another Toss or database, or with a crash at one step."""
    own = bff.resources.cert
    return CertService(
        database=database or bff.resources.database,
        writes=LateWrites(database=database) if database else bff.resources.writes,
        api=api or own._api,
        vault=bff.resources.vault,
        signatures=own._signatures,
        outbox=own._outbox,
        rules=own._rules,
        clock=bff.clock,
        checkpoint=checkpoint or own._checkpoint,
        counts=own._counts,
        monotonic=monotonic,
    )


async def test_the_answer_is_sealed_before_it_is_opened_and_gone_afterwards(bff, sandbox):
    crash = crash_at("answer_kept")
    verification = await bff.completed()
    with pytest.raises(Crash):
        await service(bff, checkpoint=crash).result(verification.tx_id, PartnerServer("test"))

    row = await row_of(bff, verification)
    assert (row.result_state, row.identity, row.lease_id) == (ResultState.ANSWERED, None, None)
    assert row.answer is not None
    answer = await bff.result(verification)
    assert answer.json()["retrieval"] == {"source": "RECOVERED", "readsLeft": 1}
    assert (await row_of(bff, verification)).answer is None
    assert sandbox.state.count("result") == 1


async def test_reconcile_opens_an_answer_that_a_crash_left_closed(bff, sandbox):
    crash = crash_at("answer_kept")
    verification = await bff.completed()
    with pytest.raises(Crash):
        await service(bff, checkpoint=crash).result(verification.tx_id, PartnerServer("test"))
    assert (await bff.resources.cert.reconcile()).answers_opened == 1
    assert (await bff.resources.cert.reconcile()).answers_opened == 0
    assert (await bff.result(verification)).json()["retrieval"]["source"] == "STORED"
    assert sandbox.state.count("result") == 1


async def test_reconcile_ends_what_has_no_read_left(bff, sandbox):
    crash = crash_at("answer_received")
    verification = await bff.completed()
    for _ in range(2):
        with pytest.raises(Crash):
            await service(bff, checkpoint=crash).result(verification.tx_id, PartnerServer("test"))
        assert_problem(await bff.result(verification), 409, "result_in_progress")
        bff.clock.advance(seconds=31)
        assert (await bff.resources.cert.reconcile()).leases_settled == 1
    assert_problem(await bff.status(verification), 410, "result_reads_exhausted")
    assert_problem(await bff.result(verification), 410, "result_reads_exhausted")
    assert sandbox.state.count("result") == 2


class RepeatingToss:
    """Toss as it should never be: the same txId for everybody."""

    def __init__(self, tx_id):
        self.tx_id = tx_id

    async def request_one_touch(self):
        return StartedRequest(txId=self.tx_id)


async def test_a_tx_id_that_toss_hands_out_twice_does_not_change_hands(bff):
    mine = await bff.completed()
    with pytest.raises(UpstreamInvalid):
        await service(bff, api=RepeatingToss(mine.tx_id)).start()
    assert (await bff.result(mine)).status_code == 200
