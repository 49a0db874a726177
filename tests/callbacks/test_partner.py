"""The partner server's view of notices: list, look, replay."""

import asyncio
import uuid

import pytest

from app.callbacks.tables import CallbackName, Notice
from app.errors import UpstreamTimeout, UpstreamUnavailable
from app.server_keys import Scope
from tests.callbacks.toss import (
    AUTHORIZED,
    OTHER_VALUE,
    UNLINK,
    USER,
    WITHDRAWAL,
    call,
    notices,
    only_notice,
)
from tests.scenarios import assert_problem

NOTICES = "/server/v1/notices"
UNKNOWN = str(uuid.UUID(int=7))


@pytest.fixture
async def key(bff) -> dict[str, str]:
    return await bff.server_key(Scope.NOTICE_READ, Scope.NOTICE_REPLAY)


async def get(bff, key, path: str = "", **params: object):
    return await bff.http.get(NOTICES + path, headers=key, params=params)


async def replay(bff, key, notice_id: str):
    return await bff.http.post(f"{NOTICES}/{notice_id}/replay", headers=key)


async def one_of_each(bff, unlinks) -> None:
    await call(bff, 1)
    await call(bff, 0)
    await bff.http.post(UNLINK, content=b"unreadable", headers=AUTHORIZED)
    await bff.http.get(WITHDRAWAL, headers={"Authorization": OTHER_VALUE})
    unlinks.errors.append(UpstreamTimeout())
    await call(bff, 2)


async def test_notices_are_listed_newest_first_and_without_content(bff, unlinks, key):
    await one_of_each(bff, unlinks)
    answer = await get(bff, key)
    assert answer.headers["cache-control"] == "no-store"
    listed = answer.json()
    assert listed["next"] is None
    assert [(each["callback"], each["state"], each["outcome"]) for each in listed["notices"]] == [
        ("login-unlink", "OPEN", None),
        ("consent-withdrawal", "KEPT", None),
        ("login-unlink", "UNREADABLE", None),
        ("login-unlink", "HANDLED", "CONSOLE_TEST"),
        ("login-unlink", "HANDLED", "ENDED"),
    ]
    row = (await notices(bff))[-1]
    assert listed["notices"][0] == {
        "noticeId": row.notice_id,
        "callback": "login-unlink",
        "state": "OPEN",
        "outcome": None,
        "receivedAt": row.received_at.isoformat().replace("+00:00", "Z"),
        "lastReceivedAt": row.last_received_at.isoformat().replace("+00:00", "Z"),
        "deliveries": 1,
        "attempts": 1,
        "nextAttemptAt": row.next_attempt_at.isoformat().replace("+00:00", "Z"),
        "handledAt": None,
    }


async def test_the_list_can_be_narrowed(bff, unlinks, key):
    await one_of_each(bff, unlinks)

    async def count(**params: object) -> int:
        return len((await get(bff, key, **params)).json()["notices"])

    assert [await count(state=state) for state in ("OPEN", "HANDLED", "UNREADABLE", "KEPT")] == [1, 2, 1, 1]
    assert [await count(callback=name) for name in CallbackName] == [4, 1, 0, 0]
    assert await count(state="OPEN", callback="consent-withdrawal") == 0
    for wrong in ({"state": "x"}, {"callback": "x"}, {"limit": 0}, {"limit": 201}, {"before": "x"}, {"limit": "x"}):
        assert_problem(await get(bff, key, **wrong), 422, "invalid_request")


async def test_pages_are_stable_while_notices_come_and_go(bff, unlinks, key):
    for user_key in range(1, 8):
        await call(bff, user_key)
    ids = [notice.notice_id for notice in reversed(await notices(bff))]
    pages, before = [], None
    for _ in range(10):
        page = (await get(bff, key, limit=3, **({"before": before} if before else {}))).json()
        pages.append([each["noticeId"] for each in page["notices"]])
        before = page["next"]
        if before is None:
            break
        await call(bff, 99)
        if len(pages) == 1:  # what the first page ended with is erased, and the second begins there all the same
            async with bff.resources.database.transaction() as session:
                await session.delete(await session.get(Notice, before))
    assert unlinks.calls
    assert [one for page in pages for one in page] == ids
    assert [len(page) for page in pages] == [3, 3, 1]


async def test_a_full_last_page_has_no_next(bff, key):
    for user_key in (1, 2):
        await call(bff, user_key)
    assert (await get(bff, key, limit=2)).json()["next"] is None


async def test_a_notice_is_shown_with_its_content(bff, unlinks, key):
    await one_of_each(bff, unlinks)
    shown = [(await get(bff, key, f"/{row.notice_id}")).json()["content"] for row in await notices(bff)]
    assert shown == [
        {"userKey": 1, "referrer": "UNLINK"},
        {"userKey": 0, "referrer": "UNLINK"},
        {"query": "", "body": "unreadable"},
        {"query": "", "body": ""},
        {"userKey": 2, "referrer": "UNLINK"},
    ]


@pytest.mark.parametrize("outcome", ["ENDED", "UNKNOWN"])
async def test_an_open_notice_is_replayed_at_once(bff, unlinks, key, outcome):
    unlinks.errors.append(UpstreamTimeout())
    await call(bff)
    unlinks.outcome = outcome
    answer = await replay(bff, key, (await only_notice(bff)).notice_id)
    assert answer.status_code == 200
    shown = answer.json()
    assert (shown["state"], shown["outcome"], shown["attempts"]) == ("HANDLED", outcome, 2)
    assert "content" not in shown
    assert unlinks.calls == [(USER, "UNLINK")] * 2


async def test_a_handled_notice_can_be_replayed(bff, unlinks, key):
    await call(bff)
    before = await only_notice(bff)
    unlinks.outcome = "STALE"
    shown = (await replay(bff, key, before.notice_id)).json()
    assert (shown["state"], shown["outcome"], shown["attempts"]) == ("HANDLED", "STALE", 2)
    after = await only_notice(bff)
    assert (after.outcome, after.deliveries) == ("STALE", 1)
    assert after.handled_at > before.handled_at


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(UpstreamUnavailable(), 503, "upstream_unavailable"), (RuntimeError("a bug"), 500, "internal_error")],
)
@pytest.mark.parametrize("is_open", [True, False])
async def test_a_replay_that_fails_says_so_and_changes_nothing(bff, unlinks, key, error, status, code, is_open):
    if is_open:
        unlinks.errors.append(UpstreamTimeout())
    await call(bff)
    before = await only_notice(bff)
    unlinks.errors.append(error)
    answer = await replay(bff, key, before.notice_id)
    assert_problem(answer, status, code)
    assert "a bug" not in answer.text
    after = await only_notice(bff)
    assert (after.state, after.outcome, after.handled_at) == (before.state, before.outcome, before.handled_at)
    assert after.state == ("OPEN" if is_open else "HANDLED")


async def test_a_replay_waits_for_its_handler(bff, unlinks, key):
    unlinks.errors.append(UpstreamTimeout())
    await call(bff)
    unlinks.has_begun.clear()
    unlinks.may_end.clear()
    replaying = asyncio.create_task(replay(bff, key, (await only_notice(bff)).notice_id))
    await unlinks.has_begun.wait()
    assert (await only_notice(bff)).state == "OPEN"
    unlinks.may_end.set()
    assert (await replaying).json()["state"] == "HANDLED"


async def test_what_cannot_be_handled_cannot_be_replayed(bff, unlinks, key):
    await one_of_each(bff, unlinks)
    unlinks.calls.clear()
    rows = {row.outcome or row.state: row.notice_id for row in await notices(bff)}
    for kind in ("UNREADABLE", "KEPT", "CONSOLE_TEST"):
        assert_problem(await replay(bff, key, rows[kind]), 409, "notice_not_replayable")
    bff.resources.inbox._handlers.clear()
    assert_problem(await replay(bff, key, rows["OPEN"]), 409, "notice_not_replayable")
    assert unlinks.calls == []


async def test_an_unknown_notice_is_not_there(bff, key):
    assert_problem(await get(bff, key, f"/{UNKNOWN}"), 404, "notice_not_found")
    assert_problem(await replay(bff, key, UNKNOWN), 404, "notice_not_found")
    for malformed in ("x", UNKNOWN.upper().replace("0", "A"), f"{UNKNOWN}%00"):
        assert_problem(await get(bff, key, f"/{malformed}"), 422, "invalid_request")


async def test_every_route_wants_exactly_its_scope(bff, unlinks):
    await call(bff)
    notice_id = (await only_notice(bff)).notice_id
    routes = [
        ("GET", NOTICES, Scope.NOTICE_READ),
        ("GET", f"{NOTICES}/{notice_id}", Scope.NOTICE_READ),
        ("POST", f"{NOTICES}/{notice_id}/replay", Scope.NOTICE_REPLAY),
    ]
    for method, path, scope in routes:
        for headers in ({}, AUTHORIZED, {"Authorization": "Bearer sk_made-up"}):
            answer = await bff.http.request(method, path, headers=headers)
            assert_problem(answer, 401, "server_key_required")
        others = await bff.server_key(*(each for each in Scope if each is not scope))
        assert_problem(await bff.http.request(method, path, headers=others), 403, "scope_missing")
        exactly = await bff.server_key(scope)
        assert (await bff.http.request(method, path, headers=exactly)).status_code == 200
    assert len(unlinks.calls) == 2
