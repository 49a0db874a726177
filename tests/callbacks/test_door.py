"""The door: who is let in, what is read, what is answered and what is recorded (apps-in-toss reference 14)."""

import base64
import io
import json
import logging

import pytest
from sqlalchemy import text

from app.observability import configure_logging
from sandbox.callbacks import AuthEncoding
from tests.callbacks.conftest import with_callbacks
from tests.callbacks.toss import (
    AUTHORIZED,
    OTHER_VALUE,
    UNLINK,
    USER,
    VALUE,
    WITHDRAWAL,
    Unlinks,
    at_rest,
    call,
    content,
    notices,
    only_notice,
)
from tests.conftest import settings_for
from tests.processes import serving
from tests.scenarios import Bff, assert_problem

OTHER_AUTHORIZED = {"Authorization": f"Bearer {OTHER_VALUE}"}
REFERRERS = ["UNLINK", "WITHDRAWAL_TERMS", "WITHDRAWAL_TOSS", "SOMETHING_NEW", "", "탈퇴", "x" * 64]


def assert_received(answer) -> None:
    assert (answer.status_code, answer.json()) == (200, {"received": True}), answer.text
    assert answer.headers["cache-control"] == "no-store"


@pytest.fixture
async def one(embedded, sandbox):
    """The embedded backend alone, for what does not depend on it."""
    async with Bff.running(with_callbacks(settings_for(embedded, sandbox)), sandbox) as bff:
        bff.unlinks = Unlinks()
        bff.unlinks.serve(bff)
        yield bff


# --- Login-unlink -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("referrer", REFERRERS)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_every_referrer_by_either_method(bff, unlinks, method, referrer):
    fields = {"userKey": USER, "referrer": referrer}
    sent = {"params": fields} if method == "GET" else {"json": fields}
    assert_received(await bff.http.request(method, UNLINK, headers=AUTHORIZED, **sent))
    assert unlinks.calls == [(USER, referrer)]
    notice = await only_notice(bff)
    assert (notice.callback, notice.state, notice.outcome) == ("login-unlink", "HANDLED", "ENDED")
    assert (notice.deliveries, notice.attempts, notice.open_key, notice.next_attempt_at) == (1, 1, None, None)
    assert notice.subject_hash == bff.resources.vault.hash("user_key", str(USER))
    assert await content(bff, notice) == fields


READABLE = [
    ({"userKey": "443731103"}, (USER, "")),
    ({"user_key": 443731103, "referrer": "UNLINK"}, (USER, "UNLINK")),
    ({"user_key": "443731103", "referrer": "UNLINK", "more": [1, {"a": None}]}, (USER, "UNLINK")),
    ({"userKey": None, "user_key": USER}, (USER, "")),
    ({"userKey": USER, "user_key": "nonsense"}, (USER, "")),
    ({"userKey": 443731103.0, "referrer": "UNLINK"}, (USER, "UNLINK")),
    ({"userKey": 2**63 - 1}, (2**63 - 1, "")),
    ({"userKey": str(2**63 - 1)}, (2**63 - 1, "")),
    ({"userKey": "1"}, (1, "")),
    ({"userKey": USER, "referrer": None}, (USER, "")),
    ({"userKey": USER, "referrer": 5}, (USER, "")),
    ({"userKey": USER, "referrer": ["UNLINK"]}, (USER, "")),
    ({"userKey": USER, "referrer": "y" * 65}, (USER, "y" * 64)),
    ({"userKey": USER, "referrer": "half \ud83d of one"}, (USER, "half ? of one")),
]


@pytest.mark.parametrize(("fields", "handed"), READABLE)
async def test_what_can_be_understood_is(one, fields, handed):
    body = json.dumps(fields)
    assert_received(await one.http.post(UNLINK, content=body, headers=AUTHORIZED))
    assert one.unlinks.calls == [handed]


@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded", "x"]
)
async def test_the_content_type_does_not_matter(one, content_type):
    headers = AUTHORIZED | {"Content-Type": content_type}
    answer = await one.http.post(UNLINK, content=b'\xef\xbb\xbf {"userKey": 5}\n', headers=headers)
    assert_received(answer)
    assert one.unlinks.calls == [(5, "")]


UNREADABLE_BODIES = [
    b"",
    b"userKey=443731103&referrer=UNLINK",
    b'{"userKey": 443731103',
    b"443731103",
    b"[]",
    b"null",
    b"{}",
    b'{"userKey": true}',
    b'{"userKey": null}',
    b'{"userKey": -1}',
    b'{"userKey": 9223372036854775808}',
    b'{"userKey": 1.5}',
    b'{"userKey": 9007199254740993.0}',  # a float that stands for its neighbour
    b'{"userKey": NaN}',
    b'{"userKey": Infinity}',
    b'{"userKey": ""}',
    b'{"userKey": " 5"}',
    b'{"userKey": "-5"}',
    b'{"userKey": "5.0"}',
    b'{"userKey": "0x5"}',
    b'{"userKey": "1_0"}',
    '{"userKey": "\u0665"}'.encode(),
    b'{"userKey": "00000000000000000005"}',
    b'{"userKey": [5]}',
    b'{"userKey": {"userKey": 5}}',
    b'{"userKey": ' + b"9" * 5000 + b"}",
    b"[" * 8000,
    b"\xff\xfe\x00",
]


@pytest.mark.parametrize("body", UNREADABLE_BODIES, ids=lambda body: repr(body[:30]))
async def test_what_cannot_be_read_is_recorded_and_refused(one, body):
    answer = await one.http.post(f"{UNLINK}?a=%31", content=body, headers=AUTHORIZED)
    problem = assert_problem(answer, 422, "invalid_request")
    assert "443731103" not in answer.text
    assert "errors" not in problem
    notice = await only_notice(one)
    assert (notice.state, notice.outcome, notice.subject_hash, notice.open_key) == ("UNREADABLE", None, None, None)
    assert await content(one, notice) == {"query": "a=%31", "body": body.decode("utf-8", "backslashreplace")}
    assert one.unlinks.calls == []


@pytest.mark.parametrize(
    "query",
    [
        "",
        "referrer=UNLINK",
        "userKey=",
        "userKey=abc",
        "userKey=1&userKey=2",
        "userKey=-1",
        "userkey=1",
        "userKey=%FF",
        "&".join(f"a{n}=1" for n in range(60)) + "&userKey=1",
    ],
)
async def test_a_query_that_cannot_be_read_is_recorded_and_refused(one, query):
    assert_problem(await one.http.get(f"{UNLINK}?{query}", headers=AUTHORIZED), 422, "invalid_request")
    assert await content(one, await only_notice(one)) == {"query": query, "body": ""}


async def test_unreadable_ones_are_not_merged(one):
    for _ in range(2):
        await one.http.post(UNLINK, content=b"x", headers=AUTHORIZED)
    assert [notice.deliveries for notice in await notices(one)] == [1, 1]


@pytest.mark.parametrize("user_key", [0, "0", 0.0])
async def test_the_consoles_test_is_recorded_and_not_handled(bff, unlinks, user_key):
    assert_received(await call(bff, user_key))
    notice = await only_notice(bff)
    assert (notice.state, notice.outcome, notice.subject_hash) == ("HANDLED", "CONSOLE_TEST", None)
    assert unlinks.calls == []


# --- Who is let in ----------------------------------------------------------------------------------------


WRONG = [
    [],
    [("Authorization", "")],
    [("Authorization", VALUE[:-1])],
    [("Authorization", f"Basic {OTHER_VALUE}")],
    [("Authorization", f"Digest {VALUE}")],
    [("Authorization", VALUE), ("Authorization", VALUE)],
    [("Proxy-Authorization", VALUE)],
]


@pytest.mark.parametrize("headers", WRONG)
@pytest.mark.parametrize(("method", "body"), [("GET", b""), ("POST", b'{"userKey": 5}'), ("POST", b"nonsense")])
async def test_a_wrong_authorization_is_refused_before_anything_is_read(one, caplog, headers, method, body):
    reads = []

    async def sent():
        reads.append(body)
        yield body

    for path in (UNLINK, WITHDRAWAL):
        answer = await one.http.request(method, f"{path}?userKey=5", headers=headers, content=sent())
        if path == WITHDRAWAL and headers and OTHER_VALUE in headers[0][1]:
            assert answer.status_code == 200
            continue
        assert_problem(answer, 401, "callback_unauthorized")
    if method == "POST" and not (headers and OTHER_VALUE in headers[0][1]):
        assert reads == []
    rows = [notice for notice in await notices(one) if notice.callback == "login-unlink"]
    assert (rows, one.unlinks.calls) == ([], [])
    (warning, *_) = [record for record in caplog.records if "callback_unauthorized" in record.getMessage()]
    assert warning.levelname == "WARNING"
    assert not [record for record in caplog.records if VALUE[:-1] in record.getMessage()]


async def test_the_two_callbacks_have_values_of_their_own(one):
    assert_problem(await one.http.post(UNLINK, headers=OTHER_AUTHORIZED), 401, "callback_unauthorized")
    assert_problem(await one.http.post(WITHDRAWAL, headers=AUTHORIZED), 401, "callback_unauthorized")


@pytest.mark.parametrize("value", [None, ""])
@pytest.mark.parametrize(
    ("path", "group"), [(UNLINK, "login_unlink_auth"), (WITHDRAWAL, "consent_withdrawal_auth")]
)
async def test_without_a_value_there_is_nothing_whatever_is_sent(embedded, sandbox, path, group, value):
    settings = with_callbacks(settings_for(embedded, sandbox), **{group: value})
    async with Bff.running(settings, sandbox) as bff:
        for headers in ({}, AUTHORIZED, OTHER_AUTHORIZED, {"Authorization": ""}, {"Authorization": "Basic "}):
            for method in ("GET", "POST"):
                answer = await bff.http.request(method, f"{path}?userKey=5", headers=headers)
                assert_problem(answer, 404, "not_found")
        assert await notices(bff) == []


async def test_another_method_is_told_both_that_are_known(one):
    for path in (UNLINK, WITHDRAWAL):
        answer = await one.http.put(path, headers=AUTHORIZED)
        assert_problem(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == "GET, POST"


async def test_the_log_names_the_whole_route(one, caplog):
    await call(one)
    assert any("'route': '/callbacks/toss/login-unlink'" in record.getMessage() for record in caplog.records)


async def test_toss_in_every_encoding_by_either_method_over_a_socket(backend, sandbox):
    """The sandbox's own sender against a real server."""
    settings = with_callbacks(settings_for(backend, sandbox))
    callbacks = sandbox.state.callbacks
    with serving(settings) as server:
        callbacks.configure(url=server.url + UNLINK, auth_value=VALUE)
        made, user_key = [], 1
        for encoding in AuthEncoding:
            for method in ("GET", "POST"):
                for form in ({}, {"user_key_as_text": True}, {"user_key_spelling": "user_key"}):
                    plain = {"user_key_as_text": False, "user_key_spelling": "userKey"}
                    callbacks.configure(encoding=encoding, method=method, copies=2, **(plain | form))
                    made += callbacks.announce(user_key, "UNLINK")[1]
                    user_key += 1
        assert {(each.status, each.body, each.error) for each in made} == {(200, '{"received":true}', None)}
        callbacks.configure(auth_value=VALUE + "x")
        (refused, _) = callbacks.announce(5, "UNLINK")[1]
        assert refused.status == 401
    async with Bff.running(settings, sandbox) as bff:
        rows = await notices(bff)
        assert {(await content(bff, row))["userKey"] for row in rows} == set(range(1, user_key))
        assert sum(row.deliveries for row in rows) == len(made)


async def test_the_consoles_button(embedded, sandbox):
    callbacks = sandbox.state.callbacks
    with serving(with_callbacks(settings_for(embedded, sandbox))) as server:
        for method in ("GET", "POST"):
            callbacks.configure(url=server.url + UNLINK, auth_value=VALUE, method=method)
            test = callbacks.test_from_console()
            assert test.is_preflight_allowed
            assert test.is_success


# --- Consent withdrawal -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "query", "body"),
    [
        ("GET", "", b""),
        ("GET", "userKey=5&consentedUserDataKey=cud_1", b""),
        ("POST", "a=1", b'{"anything": ["at all"]}'),
        ("POST", "", b"\xff not text"),
        ("POST", "", b""),
    ],
)
async def test_a_consent_withdrawal_is_kept_as_it_came(bff, unlinks, method, query, body):
    answer = await bff.http.request(method, f"{WITHDRAWAL}?{query}", content=body, headers=OTHER_AUTHORIZED)
    assert_received(answer)
    notice = await only_notice(bff)
    assert (notice.callback, notice.state, notice.open_key) == ("consent-withdrawal", "KEPT", None)
    assert await content(bff, notice) == {"query": query, "body": body.decode("utf-8", "backslashreplace")}
    assert unlinks.calls == []


# --- Nothing personal ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unlinks")
async def test_what_came_is_sealed_in_the_database(bff):
    await call(bff, USER, "REFERRER_OF_ITS_OWN")
    await bff.http.post(UNLINK, content=b"unreadable 443731103", headers=AUTHORIZED)
    await bff.http.post(f"{WITHDRAWAL}?user=443731103", headers=OTHER_AUTHORIZED)
    async with bff.resources.database.transaction() as session:
        stored = str((await session.execute(text("SELECT * FROM notice"))).all())
    assert len(await notices(bff)) == 3
    assert "login-unlink" in stored
    for secret in (str(USER), "REFERRER_OF_ITS_OWN", "unreadable", "user="):
        assert secret not in stored


async def test_what_came_is_in_no_file(embedded, sandbox, tmp_path):
    async with Bff.running(with_callbacks(settings_for(embedded, sandbox)), sandbox) as bff:
        await call(bff, USER, "REFERRER_OF_ITS_OWN")
        stored = b"".join(file.read_bytes() for file in tmp_path.glob("bff.db*"))
    assert b"login-unlink" in stored
    assert str(USER).encode() not in stored
    assert b"REFERRER_OF_ITS_OWN" not in stored


@pytest.fixture
def log():
    """What the service logs at DEBUG, with its own formatter."""
    root, stream = logging.getLogger(), io.StringIO()
    before = root.handlers
    configure_logging(level="DEBUG", is_json=True, stream=stream)
    yield stream
    root.handlers = before


async def test_nothing_of_a_callback_is_logged(bff, log):
    unlinks = Unlinks(errors=[RuntimeError(f"no luck with {USER}")])
    unlinks.serve(bff)
    await call(bff, USER, "REFERRER_OF_ITS_OWN")
    await bff.http.get(UNLINK, params={"userKey": USER, "referrer": "REFERRER_OF_ITS_OWN"}, headers=AUTHORIZED)
    await bff.http.get(UNLINK, params={"userKey": f"{USER}x"}, headers=AUTHORIZED)
    await bff.http.post(UNLINK, content=b"unreadable 443731103", headers=AUTHORIZED)
    await bff.http.get(UNLINK, params={"userKey": USER}, headers={"Authorization": f"Basic {VALUE}x"})
    await at_rest(bff)
    logged = log.getvalue()
    for event in ("notice_recorded", "notice_left_open", "notice_handled", "callback_unauthorized", "RuntimeError"):
        assert event in logged
    encoded = base64.b64encode(VALUE.encode()).decode()
    for secret in (str(USER), "REFERRER_OF_ITS_OWN", "no luck", "unreadable 4", VALUE, encoded):
        assert secret not in logged
