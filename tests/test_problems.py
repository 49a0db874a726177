"""One shape for every way in which a request can fail, and never a word of what was sent."""

import json
import uuid
from datetime import timedelta

import httpx2
import pytest

from app.errors import AppError, ServerKeyRequired
from app.main import create_app
from app.problems import MEDIA_TYPE, TYPE_PREFIX, render
from tests.conftest import settings_for
from tests.scenarios import Bff, assert_problem

START = "/api/v1/cert/requests"
PERSON = {"requestType": "USER_PERSONAL", "name": "김토스", "phone": "01012345678", "birthday": "19930324"}
ORIGIN = "https://mini.example"
ECHO = "Ech0ed-Value"


@pytest.fixture
async def one(embedded, sandbox):
    """The application on the embedded backend alone: what is tested here never gets as far as a database."""
    settings = settings_for(embedded, sandbox)
    settings = settings.model_copy(
        update={"network": settings.network.model_copy(update={"allowed_origins": (ORIGIN,)})}
    )
    async with Bff.running(settings, sandbox) as bff:
        yield bff


def assert_shape(answer: httpx2.Response, status: int, code: str) -> dict:
    problem = assert_problem(answer, status, code)
    assert set(problem) <= {
        "type", "title", "status", "detail", "instance", "code", "retryable", "errors", "tossCode", "readsLeft",
    }  # fmt: skip
    assert problem["type"] == TYPE_PREFIX + code
    assert problem["title"]
    assert problem["instance"] == f"urn:uuid:{uuid.UUID(answer.headers['x-request-id'])}"
    assert isinstance(problem["retryable"], bool)
    assert answer.headers["cache-control"] == "no-store"
    assert ECHO not in answer.text
    assert ECHO not in str(answer.headers)
    return problem


async def test_an_unknown_address_is_a_problem(one):
    for path in ("/", f"/{ECHO}", f"/api/v1/{ECHO}", "/api/v1/cert/requests/", "/%00", "/api//v1"):
        assert_shape(await one.http.get(path), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", START, {"POST"}),
        ("DELETE", "/livez", {"GET"}),
        ("PATCH", f"{START}/x/status", {"GET"}),
        ("OPTIONS", "/server/v1/notices", {"GET"}),
    ],
)
async def test_a_wrong_method_is_a_problem_that_says_which_are_right(one, method, path, allowed):
    answer = await one.http.request(method, path)
    assert_shape(answer, 405, "method_not_allowed")
    assert {method.strip() for method in answer.headers["allow"].split(",")} == allowed


LIMIT = 16 * 1024


@pytest.mark.parametrize("way", ["announced", "in pieces"])
async def test_a_body_over_the_limit_is_a_problem(one, sandbox, way):
    body = json.dumps({"requestType": "USER_NONE"}).encode()
    fits, over = body + b" " * (LIMIT - len(body)), body + b" " * (LIMIT + 1 - len(body))

    async def pieces(whole: bytes):
        for at in range(0, len(whole), 1000):
            yield whole[at : at + 1000]

    def content(whole: bytes):
        return whole if way == "announced" else pieces(whole)

    headers = {"Content-Type": "application/json"}
    answer = await one.http.post(START, content=content(over), headers=headers)
    assert_shape(answer, 413, "payload_too_large")
    assert sandbox.state.count() == 0
    assert (await one.http.post(START, content=content(fits), headers=headers)).status_code == 201


async def test_a_body_over_the_limit_is_a_problem_on_every_door_and_no_bug(one, caplog):
    for path in (f"/server/v1/cert/requests/{uuid.uuid4()}/compare", START, "/nowhere"):
        answer = await one.http.post(path, content=b"x" * 100_000, headers={"Content-Type": "application/json"})
        assert answer.status_code in {401, 404, 413}
        assert answer.headers["content-type"] == MEDIA_TYPE
    assert "internal_error" not in caplog.text


async def test_a_body_over_the_limit_is_refused_on_every_door_before_it_is_read(one):
    for path in (f"/server/v1/cert/requests/{uuid.uuid4()}/compare", START):
        answer = await one.http.post(path, content=b"x" * 100_000, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413


NOT_READABLE = {
    "invalid json": b'{"requestType": "USER_NONE"',
    "trailing comma": b'{"requestType": "USER_NONE",}',
    "single quotes": b"{'a': 1}",
    "deep nesting": b"[" * 8000 + b"]" * 8000,
    "deep object": b'{"a":' * 2500 + b"1" + b"}" * 2500,
    "huge int": b'{"requestType": ' + b"9" * 5000 + b"}",
    "invalid utf-8": b'{"requestType": "\xff\xfe"}',
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "echoed text": b'{"' + ECHO.encode() + b'": ',
}


@pytest.mark.parametrize("kind", NOT_READABLE)
async def test_a_body_that_cannot_be_read_is_a_problem(one, kind):
    answer = await one.http.post(START, content=NOT_READABLE[kind], headers={"Content-Type": "application/json"})
    assert_shape(answer, 422, "invalid_request")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "x"]
)
async def test_a_body_of_another_type_is_a_problem(one, sandbox, content_type):
    body = json.dumps(PERSON | {"name": ECHO}).encode()
    answer = await one.http.post(START, content=body, headers={"Content-Type": content_type})
    problem = assert_shape(answer, 422, "invalid_request")
    assert PERSON["phone"] not in json.dumps(problem)
    assert sandbox.state.count() == 0


NOT_VALID = {
    "no object": [],
    "text": ECHO,
    "number": 1e308,
    "a list of objects": [PERSON],
    "an unknown kind": {"requestType": ECHO},
    "a kind of another type": {"requestType": {ECHO: ECHO}},
    "kind null": {"requestType": None},
    "an extra field": {"requestType": "USER_NONE", ECHO: 1},
    "an extra field of a person": PERSON | {ECHO: {ECHO: ECHO}},
    "an extra field in capitals": PERSON | {"ECH0ED-VALUE": 1},
    "many extra fields": {"requestType": "USER_NONE"} | {f"{ECHO}{number}": 1 for number in range(300)},
    "a bad value": PERSON | {"phone": ECHO},
    "a bad name": PERSON | {"name": f"{ECHO}1"},
    "a value of another type": PERSON | {"name": {ECHO: [ECHO]}},
    "a huge number": PERSON | {"phone": 10**300},
    "a missing field": {"requestType": "USER_PERSONAL"},
}


@pytest.mark.parametrize("kind", NOT_VALID)
async def test_a_body_that_is_not_valid_is_a_problem_that_echoes_nothing(one, sandbox, kind):
    answer = await one.http.post(START, json=NOT_VALID[kind])
    problem = assert_shape(answer, 422, "invalid_request")
    assert 1 <= len(problem["errors"]) <= 20
    assert all(set(fault) == {"pointer", "detail"} and fault["detail"] for fault in problem["errors"])
    assert "ECH0ED" not in answer.text
    assert sandbox.state.count() == 0


@pytest.mark.parametrize(
    "body",
    [
        b'{"requestType":"\\ud800"}',
        b'{"\\ud800":1}',
        b'{"requestType":"USER_PERSONAL","name":"\\udfff","phone":"01012345678","birthday":"19930324"}',
        b'{"requestType":"USER_PERSONAL","name":"a","phone":"\\ud800","birthday":"\\ud800","\\ud800":"\\ud800"}',
        b'{"requestType":"USER_NONE","\\u0000":"\\u0000"}',
    ],
)
async def test_lone_surrogates_are_a_problem_and_no_bug(one, body):
    answer = await one.http.post(START, content=body, headers={"Content-Type": "application/json"})
    assert_shape(answer, 422, "invalid_request")


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        (PERSON | {"phone": "x", "birthday": "19930230"}, {"/phone", "/birthday"}),
        (PERSON | {ECHO: 1}, {""}),
        ({"requestType": "USER_PERSONAL", "name": "김토스"}, {"/phone", "/birthday"}),
        ({"requestType": "x"}, {""}),
    ],
)
async def test_a_pointer_points_into_the_body(one, body, pointers):
    answer = await one.http.post(START, json=body)
    assert {fault["pointer"] for fault in answer.json()["errors"]} == pointers


@pytest.mark.parametrize("tx_id", ["a%20b", "%00", "x" * 65, "%F0%9F%98%80", "a.b", f"{ECHO}!"])
async def test_a_tx_id_of_another_form_is_a_problem(one, tx_id):
    headers = {"Authorization": "Bearer vt_x"}
    answer = await one.http.get(f"{START}/{tx_id}/status", headers=headers)
    problem = assert_shape(answer, 422, "invalid_request")
    assert [fault["pointer"] for fault in problem["errors"]] == ["/txId"]


@pytest.mark.parametrize("authorization", ["", "Bearer", "Basic dXNlcjpw", "Token abc", "vt_x"])
async def test_a_missing_token_is_a_problem_that_says_what_is_wanted(one, authorization):
    answer = await one.http.get(f"{START}/x/status", headers={"Authorization": authorization})
    assert_shape(answer, 401, "verification_token_required")
    assert answer.headers["www-authenticate"] == "Bearer"


# --- Bugs -------------------------------------------------------------------------------------------------


def break_(one: Bff) -> None:
    def broken(_token: str) -> None:
        raise RuntimeError(ECHO)

    one.resources.cert.holder = broken


async def test_a_bug_is_a_problem_inside_cors_with_an_id_and_no_detail(one):
    break_(one)
    headers = {"Authorization": "Bearer t", "Origin": ORIGIN}
    answer = await one.http.get(f"{START}/x/status", headers=headers)
    problem = assert_shape(answer, 500, "internal_error")
    assert "detail" not in problem
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "X-Request-Id" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize("path", ["/nowhere", f"{START}/x/status"])
async def test_refusals_carry_cors_headers_for_known_origins_alone(one, path):
    known = await one.http.get(path, headers={"Origin": ORIGIN})
    assert known.headers["access-control-allow-origin"] == ORIGIN
    unknown = await one.http.get(path, headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in unknown.headers
    assert "access-control-allow-credentials" not in known.headers


async def test_a_preflight_is_answered(one):
    headers = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type",
    }
    answer = await one.http.options(START, headers=headers)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, ORIGIN)
    refused = await one.http.options(START, headers=headers | {"Origin": "https://evil.example"})
    assert refused.status_code == 400
    assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize("has_started", [False, True])
async def test_a_bug_after_the_answer_has_begun_is_not_answered_twice(embedded, sandbox, has_started):
    application = create_app(settings_for(embedded, sandbox))

    async def half(_scope, _receive, send) -> None:
        if has_started:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError(ECHO)

    application.mount("/half", half)
    transport = httpx2.ASGITransport(application, raise_app_exceptions=has_started)
    async with httpx2.AsyncClient(transport=transport, base_url="http://bff.test") as http:
        if has_started:
            with pytest.raises(RuntimeError):
                await http.get("/half/")
        else:
            assert_shape(await http.get("/half/"), 500, "internal_error")


# --- The renderer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "header"),
    [(timedelta(seconds=2), "2"), (timedelta(seconds=2.1), "3"), (timedelta(0), "1"), (timedelta(seconds=-5), "1")],
)
def test_retry_after_is_whole_seconds_rounded_up_and_never_zero(after, header):
    answer = render(AppError(retry_after=after), request_id="x")
    assert answer.headers["retry-after"] == header


def test_absent_members_are_left_out():
    body = json.loads(render(ServerKeyRequired(), request_id="x").body)
    assert set(body) == {"type", "title", "status", "instance", "code", "retryable"}
    body = json.loads(render(AppError("a sentence", toss_code="CE1", reads_left=0), request_id="x").body)
    assert (body["detail"], body["tossCode"], body["readsLeft"]) == ("a sentence", "CE1", 0)
