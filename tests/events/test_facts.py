"""What has happened to verifications and links is told exactly once, and without anything of a person."""

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.cert.service import PartnerServer
from app.departure import NoticeOutcome
from app.errors import ResultOutcomeUnknown, StorageUnavailable
from app.events.tables import EventType
from app.reconcile import reconcile
from sandbox.personas import personas
from tests.cert.test_result import Crash, crash_at, service
from tests.events.partner import events
from tests.login.store import users

COMPLETED, UNLINKED = EventType.VERIFICATION_COMPLETED, EventType.LOGIN_UNLINKED
LAWFUL = PartnerServer("test")


async def verified(bff, login=None):
    """A verification that its owner has finished."""
    headers = login.headers if login else {}
    answer = await bff.http.post("/api/v1/cert/requests", json={"requestType": "USER_NONE"}, headers=headers)
    tx_id = answer.json()["txId"]
    bff.sandbox.state.approve(tx_id, "man")
    return tx_id


async def told(bff, type_) -> list[tuple[str, dict]]:
    return [(event.subject, event.data) for event in await events(bff, type_)]


# --- verification.completed -----------------------------------------------------------------------------------


async def test_a_result_that_is_stored_is_told_once_however_many_ask(bff):
    login = await bff.log_in()
    tx_id = await verified(bff, login)
    cert = bff.resources.cert
    await asyncio.gather(*(cert.result(tx_id, LAWFUL) for _ in range(10)), return_exceptions=True)
    retrieved = await cert.result(tx_id, LAWFUL)
    completed_at = retrieved.verification.completed_at.isoformat().replace("+00:00", "Z")
    expected = {"txId": tx_id, "userId": login.user_id, "completedAt": completed_at}
    assert await told(bff, COMPLETED) == [(tx_id, expected)]


async def test_of_somebody_who_has_not_logged_in_no_user_is_named(bff):
    verification = await bff.completed()
    assert await told(bff, COMPLETED) == []  # that they have finished is not yet a result
    await bff.result(verification)
    (told_of,) = await told(bff, COMPLETED)
    assert told_of[1]["userId"] is None


async def test_an_answer_that_a_crash_left_closed_is_told_when_it_is_opened(bff):
    tx_id = await verified(bff)
    with pytest.raises(Crash):
        await service(bff, checkpoint=crash_at("answer_kept")).result(tx_id, LAWFUL)
    assert await told(bff, COMPLETED) == []
    await asyncio.gather(*(bff.resources.cert.result(tx_id, LAWFUL) for _ in range(5)), reconcile(bff.resources))
    assert [subject for subject, _ in await told(bff, COMPLETED)] == [tx_id]


async def test_without_its_event_a_result_is_not_stored(bff):
    """One transaction: here the table of events is in the way."""
    tx_id = await verified(bff)
    async with bff.resources.database.transaction() as session:
        await session.execute(text("ALTER TABLE event RENAME TO event_away"))
    with pytest.raises((DBAPIError, StorageUnavailable)):
        await bff.resources.cert.result(tx_id, LAWFUL)
    async with bff.resources.database.transaction() as session:
        await session.execute(text("ALTER TABLE event_away RENAME TO event"))
        (state,) = (await session.scalars(text("SELECT result_state FROM verification"))).all()
    assert state == "ANSWERED"
    await reconcile(bff.resources)
    assert [subject for subject, _ in await told(bff, COMPLETED)] == [tx_id]


async def test_what_brought_nothing_is_not_told(bff, sandbox):
    verification = await bff.start()
    await bff.result(verification)
    sandbox.state.order_fault("result", "reset_after")
    tx_id = await verified(bff)
    with pytest.raises(ResultOutcomeUnknown):
        await bff.resources.cert.result(tx_id, LAWFUL)
    assert await told(bff, COMPLETED) == []


# --- login.unlinked -------------------------------------------------------------------------------------------


async def notice(bff, referrer: str = "UNLINK") -> str:
    (user,) = await users(bff)
    user_key = bff.resources.login.user_key_of(user)
    return await bff.resources.departure.by_notice(user_key, referrer)


@pytest.mark.parametrize(
    ("referrer", "cause"),
    [
        ("UNLINK", "UNLINK"),
        ("WITHDRAWAL_TERMS", "WITHDRAWAL_TERMS"),
        ("WITHDRAWAL_TOSS", "WITHDRAWAL_TOSS"),
        ("", "OTHER"),
        ("선우하람 wants it", "OTHER"),
    ],
)
async def test_a_link_that_ends_at_toss_is_told_once(bff, referrer, cause):
    login = await bff.log_in()
    (user,) = await users(bff)
    user_key = bff.resources.login.user_key_of(user)
    bff.sandbox.state.unlink_by_user("man")
    departure = bff.resources.departure
    await asyncio.gather(*(departure.by_notice(user_key, referrer) for _ in range(5)))
    assert await departure.by_notice(user_key, referrer) == NoticeOutcome.NOT_LINKED
    assert await told(bff, UNLINKED) == [(login.user_id, {"userId": login.user_id, "cause": cause})]


async def test_a_notice_that_is_stale_is_not_told(bff):
    await bff.log_in()
    assert await notice(bff) == NoticeOutcome.STALE
    assert await told(bff, UNLINKED) == []


@pytest.mark.parametrize("who", ["user", "partner"])
async def test_a_link_that_is_ended_here_is_told_once(bff, who):
    login = await bff.log_in()
    (user,) = await users(bff)
    user_key = bff.resources.login.user_key_of(user)
    path, headers = {
        "user": ("/api/v1/me", login.headers),
        "partner": (f"/server/v1/users/{login.user_id}", await bff.server_key()),
    }[who]
    assert (await bff.http.delete(path, headers=headers)).status_code == 204
    await bff.http.delete(path, headers=headers)
    assert await bff.resources.departure.by_notice(user_key, "UNLINK") == NoticeOutcome.NOT_LINKED
    assert await told(bff, UNLINKED) == [(login.user_id, {"userId": login.user_id, "cause": "REQUEST"})]


async def test_of_a_request_and_a_notice_at_once_one_is_told(bff):
    login = await bff.log_in()
    (user,) = await users(bff)
    user_key = bff.resources.login.user_key_of(user)
    bff.sandbox.state.unlink_by_user("man")
    departure = bff.resources.departure
    await asyncio.gather(
        departure.by_request(login.user_id),
        *(departure.by_notice(user_key, referrer) for referrer in ("UNLINK", "WITHDRAWAL_TOSS")),
    )
    assert await users(bff) == []
    assert [subject for subject, _ in await told(bff, UNLINKED)] == [login.user_id]


async def test_who_was_unlinked_and_is_then_erased_is_not_told_again(bff):
    login = await bff.log_in()
    bff.sandbox.state.unlink_by_user("man")
    await notice(bff)
    await bff.resources.departure.by_request(login.user_id)
    assert await users(bff) == []
    assert [data["cause"] for _, data in await told(bff, UNLINKED)] == ["UNLINK"]


async def test_each_link_has_an_end_of_its_own(bff):
    for _ in range(2):
        await bff.log_in()
        bff.sandbox.state.unlink_by_user("man")
        await notice(bff)
    assert len(await told(bff, UNLINKED)) == 2


async def test_retention_ends_no_link_and_an_anonymous_user_has_none(bff):
    await bff.log_in()
    anonymous = await bff.log_in_anonymously("minor")
    await bff.resources.departure.by_request(anonymous.user_id)
    bff.clock.advance(days=5000)
    assert (await reconcile(bff.resources)).departed.users_erased == 1
    assert await told(bff, UNLINKED) == []


# --- Nothing of a person ----------------------------------------------------------------------------------------


async def test_nothing_of_a_person_is_in_any_event_or_delivery(bff, partner, caplog):
    login = await bff.log_in()
    (user,) = await users(bff)
    user_key = str(bff.resources.login.user_key_of(user))
    await bff.resources.cert.result(await verified(bff, login), LAWFUL)
    bff.sandbox.state.unlink_by_user("man")
    await notice(bff, "선우하람")
    assert (await reconcile(bff.resources)).events.delivered == 2
    man = personas()["man"]
    personal = {man.name, man.birthday, man.ci, man.di, man.phone, man.email, man.uid, user_key, login.token}
    rows = [repr(event.data) + event.subject for event in await events(bff)]
    bodies = [delivered.body.decode() for delivered in partner.deliveries]
    assert {delivered.verified()["type"] for delivered in partner.deliveries} == {COMPLETED, UNLINKED}
    for said in (*rows, *bodies, caplog.text):
        assert [value for value in personal if value in said] == []
