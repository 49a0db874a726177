"""The partner API's envelope in all its forms, and what a call costs: budget, deadline, repetitions."""

import asyncio
import itertools
import json
import traceback
from contextlib import suppress
from datetime import timedelta

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from app.toss.errors import (
    BudgetExhausted,
    NotSent,
    OutcomeUnknown,
    TossError,
    TossFault,
    TossRejected,
    Unintelligible,
)
from app.toss.governor import MAX_PAUSE, MIN_PAUSE, USUAL_PAUSE, Lane, SubLimit
from app.toss.partner import PartnerWire, Payload, plain_text, read_envelope, whole_number
from app.toss.transport import Answer
from tests.hosts import Connection, Host, answering, silence, tls_of
from tests.servers import free_port
from tests.toss.partners import Canned, Pot, api_of, partner_at, partner_over

INNER_FAULTS = ["HTTP_TIMEOUT", "NETWORK_ERROR", "EXECUTION_FAIL", "INTERRUPTED", "INTERNAL_ERROR"]
STATUSES = [200, 400, 401, 429, 500, 502]
SECRET = "s3cr3t value §"
SHORT = timedelta(milliseconds=80)
ERROR = {"errorType": 0, "errorCode": "INVALID_PARAMETER", "reason": SECRET, "data": {}, "title": None}


def answer(body: object, status: int = 200) -> Answer:
    return Answer(status, body if isinstance(body, bytes) else json.dumps(body).encode())


def outcome(body: object, status: int = 200) -> Payload | TossError:
    """What comes of an answer. An error, and all that it drags along, tells nothing of the body."""
    try:
        return read_envelope(answer(body, status))
    except TossError as error:
        caught = error
    assert SECRET not in everything_said_by(caught)
    return caught


def everything_said_by(error: BaseException) -> str:
    said, links = "".join(traceback.format_exception(error)), [error]
    while links:
        one = links.pop()
        said += str(one) + repr(one) + repr(one.args) + str(getattr(one, "doc", ""))
        links += [linked for linked in (one.__cause__, one.__context__) if linked is not None]
    return said


def content(body: object, status: int = 200) -> object:
    payload = outcome(body, status)
    assert isinstance(payload, Payload), payload
    assert payload.http_status == status
    return payload.content


def rejection(body: object, status: int = 200) -> str:
    error = outcome(body, status)
    assert isinstance(error, TossRejected), error
    assert error.http_status == status
    return error.error_code


def unintelligible(body: object, status: int = 200) -> Unintelligible:
    error = outcome(body, status)
    assert isinstance(error, Unintelligible), error
    assert error.http_status == status
    return error


# --- The body decides whatever the HTTP status (reference 3.1) --------------------------------------------


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("extra", [{}, {"error": None}, {"unknown": [{"deep": {}}]}])
def test_success_is_what_the_body_says(status, extra):
    assert content({"resultType": "SUCCESS", "success": {"a": 1}} | extra, status) == {"a": 1}


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("extra", [{}, {"success": None}, {"success": {"a": 1}}, {"unknown": 1}])
def test_fail_is_a_no(status, extra):
    error = outcome({"resultType": "FAIL", "error": ERROR} | extra, status)
    assert type(error) is TossRejected
    assert (error.http_status, error.error_code, error.reason) == (status, "INVALID_PARAMETER", SECRET)


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("result_type", INNER_FAULTS)
def test_a_failure_inside_toss_leaves_the_outcome_unknown(status, result_type):
    error = outcome({"resultType": result_type, "success": None, "error": ERROR}, status)
    assert type(error) is TossFault
    assert isinstance(error, OutcomeUnknown)
    assert error.error_code == "INVALID_PARAMETER"
    assert result_type in str(error)
    assert type(outcome({"resultType": result_type}, status)) is TossFault


@pytest.mark.parametrize("kind", ["fail", "Success", "", "PENDING", 1, True, [], {}, ["FAIL"]], ids=repr)
@pytest.mark.parametrize("status", STATUSES)
def test_any_other_result_type_is_unintelligible(kind, status):
    for body in ({"error": ERROR}, {"success": {"a": 1}}, {}):
        assert unintelligible({"resultType": kind} | body, status).is_json


def test_a_refused_field_says_which_but_not_in_the_error():
    details = [{"field": "orderNo", "message": SECRET, "rejectedValue": SECRET}]
    error = outcome({"resultType": "FAIL", "error": ERROR | {"data": {"errorDetails": details}}}, 400)
    assert type(error) is TossRejected
    assert error.data == {"errorDetails": details}


@pytest.mark.parametrize("data", [None, [], "text", 1, True, {}])
def test_data_of_another_type_are_none(data):
    error = outcome({"resultType": "FAIL", "error": ERROR | {"data": data}})
    assert isinstance(error, TossRejected)
    assert error.data == {}


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        ({"code": 4109, "message": "m"}, "4109", "m"),
        ({"errorCode": 4109, "reason": "r", "message": "m"}, "4109", "r"),
        ({"errorCode": None, "code": "X"}, "X", ""),
        ({"errorCode": "4109", "code": 1, "reason": None}, "4109", ""),
        ({"errorCode": "C-1_a"}, "C-1_a", ""),
        ({"errorCode": True}, "True", ""),
        ({"errorCode": 0}, "0", ""),
        ({"errorCode": SECRET, "reason": {"a": SECRET}}, "UNREADABLE", ""),
        ({"errorCode": "", "reason": ["r"]}, "UNREADABLE", ""),
        ({"errorCode": "x" * 65}, "UNREADABLE", ""),
        ({"errorCode": "코드"}, "UNREADABLE", ""),
        ({"errorCode": ["4095"]}, "UNREADABLE", ""),
        ({"errorCode": {}}, "UNREADABLE", ""),
        ({}, "MISSING", ""),
        (None, "MISSING", ""),
        ([], "UNREADABLE", ""),
        ("INVALID", "INVALID", ""),
        (4109, "4109", ""),
    ],
)
def test_an_error_has_a_code_and_a_reason_in_one_of_its_spellings(error, code, reason):
    caught = outcome({"resultType": "FAIL", "error": error})
    assert isinstance(caught, TossRejected)
    assert (caught.error_code, caught.reason) == (code, reason)


def test_a_failure_without_an_error_is_a_no():
    assert rejection({"resultType": "FAIL"}) == "MISSING"


# --- Bare bodies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 400, 401, 403, 499])
@pytest.mark.parametrize("extra", [{}, {"resultType": None}, {"error_description": SECRET}, {"success": None}])
def test_a_bare_oauth_error_is_a_no(status, extra):
    assert rejection({"error": "invalid_grant"} | extra, status) == "invalid_grant"


@pytest.mark.parametrize(
    "name",
    [
        "invalid_request",
        "invalid_client",
        "invalid_grant",
        "unauthorized_client",
        "unsupported_grant_type",
        "invalid_scope",
        "invalid_token",
        "insufficient_scope",
    ],
)
def test_so_are_the_others_of_the_standard(name):
    """RFC 6749 5.2, RFC 6750 3.1."""
    assert rejection({"error": name}, 400) == name


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_server_error_is_no_no_whatever_it_calls_itself(status):
    assert not unintelligible({"error": "invalid_grant"}, status).was_refused


@pytest.mark.parametrize(
    "body",
    [
        {"timestamp": "2026-09-01T00:00:00Z", "status": 500, "error": "Internal Server Error", "path": "/x"},
        {"timestamp": 1, "status": 404, "error": "Not Found", "message": SECRET, "path": "/x"},
        {"error": "Bad Gateway"},
        {"error": "Unauthorized"},
        {"error": "unauthorized"},
        {"error": "forbidden"},
        {"error": "not_found"},
        {"error": "rate_limit_exceeded"},
        {"error": "too_many_requests"},
        {"error": "access_denied"},
        {"error": "request_timeout"},
        {"error": "server_error"},
        {"error": "temporarily_unavailable"},
        {"error": "invalid_grant\n"},
        {"error": "INVALID_GRANT"},
        {"error": ""},
        {"error": None},
        {"error": 4095},
        {"error": True},
        {"error": ["invalid_grant"]},
        {"error": {"code": 503, "message": SECRET, "status": "UNAVAILABLE"}},
        {"error": {"errorCode": "INVALID_PARAMETER", "reason": SECRET}},
        {"error": {"errorCode": "4095", "data": {"retryAfterSeconds": 9}}},
        {"error": {"error": "invalid_grant"}},
        {"error": "invalid_grant", "resultType": "PENDING"},
        {"error": "invalid_grant", "resultType": {}},
        {"message": "no Route matched with those values"},
        {"message": SECRET, "request_id": "7"},
        {"fault": {"faultstring": SECRET, "detail": {"errorcode": "policies.ratelimit"}}},
        {"code": 403, "message": SECRET},
        {"type": "about:blank", "title": "Forbidden", "status": 403},
        {"success": {"a": 1}},
        {"success": False},
        {},
    ],
    ids=lambda body: json.dumps(body)[:60],
)
@pytest.mark.parametrize("status", STATUSES)
def test_what_somebody_else_says_in_json_is_not_tosss_no(body, status):
    assert unintelligible(body, status).is_json


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"<html>502 Bad Gateway</html>",
        b'{"resultType":"SUCCESS","success":{"a":',
        b'{"resultType":"SUCCESS","success":{"a":"s3cr3t value \xc2\xa7"}',
        b"SUCCESS",
        b"\xff\xfe\x00",
        b'{"error":"\xc3("}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"resultType":"SUCCESS","success":' + b"9" * 5000 + b"}",
    ],
    ids=lambda body: repr(body[:40]),
)
def test_what_is_no_json_is_unintelligible(body, status):
    assert not unintelligible(body, status).is_json


@pytest.mark.parametrize(
    "body", [b"null", b"true", b"0", b'"SUCCESS"', b"[]", b'[{"resultType":"SUCCESS"}]', b"NaN"]
)
def test_json_that_is_no_object_is_unintelligible(body):
    assert unintelligible(body).is_json


def test_of_a_key_that_comes_twice_the_last_counts():
    assert rejection(b'{"resultType":"SUCCESS","success":{},"resultType":"FAIL"}') == "MISSING"
    assert content(b'{"resultType":"SUCCESS","success":1,"success":2}') == 2


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_other_encodings_of_json_are_read_or_refused(encoding):
    body = json.dumps({"resultType": "SUCCESS", "success": "가"}, ensure_ascii=False).encode(encoding)
    assert content(body) == "가"


# --- The payload ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["true", "", True, False, 0, 1.5, [], [1], {}, {"a": None}, "PENDING"])
@pytest.mark.parametrize("key", ["success", "result"])
def test_a_payload_may_be_of_any_type_under_either_name(key, value):
    assert content({"resultType": "SUCCESS", key: value}) == value


def test_success_comes_first_unless_it_is_null():
    body = {"resultType": "SUCCESS", "result": 2}
    assert content(body | {"success": 1}) == 1
    assert content(body | {"success": False}) is False
    assert content(body | {"success": None}) == 2
    assert content({"resultType": "SUCCESS"}) is None
    assert content({"resultType": "SUCCESS", "success": None, "result": None}) is None


def test_a_deep_payload_is_read():
    deep: object = SECRET
    for _ in range(200):
        deep = {"a": [deep]}
    assert content({"resultType": "SUCCESS", "success": {"code": None, "x": deep}}) == {"code": None, "x": deep}


@pytest.mark.parametrize("inner", [0, "0", " 0 ", 0.0, "0.0", None])
def test_an_inner_zero_is_success(inner):
    assert content({"resultType": "SUCCESS", "success": {"code": inner}}) == {"code": inner}


@pytest.mark.parametrize(
    ("inner", "code"),
    [
        ({"code": -1}, "-1"),
        ({"code": "-1"}, "-1"),
        ({"code": True}, "True"),
        ({"code": False}, "False"),
        ({"code": -1, "errorCode": "COMMON_PAY_ERROR", "msg": SECRET}, "COMMON_PAY_ERROR"),
        ({"code": -1, "errorCode": None, "msg": None}, "-1"),
        ({"code": -1, "errorCode": SECRET}, "UNREADABLE"),
        ({"code": SECRET}, "UNREADABLE"),
        ({"code": ""}, "UNREADABLE"),
        ({"code": {}}, "UNREADABLE"),
    ],
)
@pytest.mark.parametrize("key", ["success", "result"])
def test_an_inner_code_of_anything_else_is_a_no(key, inner, code):
    """SUCCESS with `code: -1`: reference 8.3."""
    error = outcome({"resultType": "SUCCESS", key: inner})
    assert isinstance(error, TossRejected)
    assert error.error_code == code
    assert error.reason in ("", SECRET)


@pytest.mark.parametrize("value", [None, True, "text", 5, [{"a": 1}]])
def test_fields_are_wanted_of_an_object_only(value):
    with pytest.raises(Unintelligible) as caught:
        Payload(202, value).fields()
    assert (caught.value.http_status, caught.value.is_json) == (202, True)
    assert Payload(200, {"a": 1}).fields() == {"a": 1}


class Model(PartnerWire):
    text: str
    number: int = 7
    camel_case: str | None = Field(None, alias="camelCase")


def test_numbers_come_as_text_and_texts_as_numbers():
    model = Payload(200, {"text": 123, "number": "4", "camelCase": 5, "unknown": {}}).parse(Model)
    assert (model.text, model.number, model.camel_case) == ("123", 4, "5")


@pytest.mark.parametrize("fields", [{}, {"text": {"a": SECRET}}, {"text": "t", "number": SECRET}, {"text": True}])
def test_bad_fields_are_named_but_never_shown(fields):
    with pytest.raises(Unintelligible, match=r"bad fields: (text|number)") as caught:
        Payload(200, fields).parse(Model)
    assert SECRET not in everything_said_by(caught.value)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (3599, 3599),
        ("3599", 3599),
        (" 3599 ", None),
        (3599.0, 3599),
        (0, 0),
        (-5, -5),
        (2**53, 2**53),
        (float(2**53), None),
        (1.2345678901234567e18, None),
        ("0007", 7),
        (True, None),
        (None, None),
        (1.5, None),
        ("1.5", None),
        ("-5", -5),
        ("--5", None),
        ("+5", None),
        (2**63 - 1, 2**63 - 1),
        (1 - 2**63, 1 - 2**63),
        (2**63, None),
        (-(10**30), None),
        ("9223372036854775807", 2**63 - 1),
        ("9223372036854775808", None),
        ("", None),
        ("１２", None),
        ("1_0", None),
        ("9" * 20, None),
        (float("nan"), None),
        (float("inf"), None),
        ([1], None),
        ({}, None),
    ],
    ids=repr,
)
def test_numbers_are_read_as_far_as_they_can_be_told_apart(value, number):
    """From 2**53 on a float stands for several integers: two users would be one."""
    assert whole_number(value) == number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("결제 완료", "결제 완료"),
        (0, "0"),
        (-5, "-5"),
        ("null", "null"),
        ("x" * 255, "x" * 255),
        ("x" * 256, None),
        (10**30, None),
        ("", None),
        ("a\n", None),
        ("a\0", None),
        ("\ud800", None),
        (1.5, None),
        (True, None),
        (None, None),
        (["a"], None),
        ({}, None),
    ],
    ids=repr,
)
def test_a_text_is_what_can_be_stored_and_shown(value, text):
    assert plain_text(value) == text


def test_a_field_without_which_an_answer_says_nothing():
    payload = Payload(202, {"status": "ACTIVE", "other": [SECRET]})
    assert payload.text("status") == "ACTIVE"
    for name in ("other", "absent"):
        with pytest.raises(Unintelligible, match=f"no {name} ") as caught:
            payload.text(name)
        assert SECRET not in everything_said_by(caught.value)


def test_a_payload_does_not_show_itself():
    payload = Payload(200, {"accessToken": SECRET})
    assert repr(payload) == str(payload) == "Payload(200)"


# --- Whatever arrives -------------------------------------------------------------------------------------

NAMES = st.sampled_from(
    [
        *("resultType", "success", "result", "error", "errorCode", "code", "reason", "message", "msg", "data"),
        *("title", "errorType", "retryAfterSeconds", "accessToken", "userKey"),
    ]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.just(SECRET)
    | st.text(max_size=5).map(lambda text: f"{text}{SECRET}{text}")
    | st.sampled_from(["SUCCESS", "FAIL", *INNER_FAULTS, "4095", "0", "-1", "invalid_grant", ""])
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5), max_leaves=12
)
TYPED = st.fixed_dictionaries(
    {"resultType": st.sampled_from(["SUCCESS", "FAIL", *INNER_FAULTS, None]) | VALUES},
    optional={"success": VALUES, "result": VALUES, "error": VALUES},
)


@given(TYPED | VALUES, st.sampled_from(STATUSES))
def test_whatever_json_arrives_is_a_payload_or_an_error_of_ours_that_shows_nothing(body, status):
    assert isinstance(outcome(body, status), Payload | TossRejected | TossFault | Unintelligible)


@given(st.binary() | TYPED.map(lambda body: json.dumps(body).encode()), st.data())
def test_so_is_whatever_comes_in_bytes(body, data):
    cut = data.draw(st.integers(0, len(body)))
    junk = data.draw(st.binary(max_size=4))
    outcome(body[:cut] + junk + body[cut + len(junk) :])


@given(TYPED)
def test_a_no_is_said_by_toss_alone(body):
    """Only FAIL, an inner failure of a SUCCESS, 4095, and the standard's bare errors are."""
    error = outcome(body)
    if isinstance(error, TossRejected):
        is_bare = body["resultType"] is None and body.get("error") == "invalid_grant"
        assert body["resultType"] in ("FAIL", "SUCCESS") or error.error_code == "4095" or is_bare


def test_a_plain_word_shows_where_a_code_belongs_and_nowhere_else():
    word = "PL41NW0RD"
    everywhere = {
        "errorType": word,
        "reason": word,
        "message": word,
        "title": word,
        "data": {word: word, "errorDetails": [{"rejectedValue": word}]},
        word: word,
    }
    for status, body in itertools.product(
        STATUSES,
        [
            {"resultType": "FAIL", "error": {"errorCode": "X", **everywhere}, word: word},
            {"resultType": "INTERRUPTED", "error": {"errorCode": "X", **everywhere}, word: word},
            {"resultType": "SUCCESS", "success": {"code": -1, "msg": word, **everywhere}},
            {"resultType": word, "error": {"errorCode": word, **everywhere}},
            {"error": {"errorCode": word, **everywhere}},
            {"error": word},
            {"error": "invalid_grant", "error_description": word},
        ],
    ):
        error = outcome(body, status)
        assert isinstance(error, TossError)
        assert word not in everything_said_by(error).replace(json.dumps(body), "")
    assert word in str(outcome({"resultType": "FAIL", "error": {"errorCode": word}}))


# --- The budget -------------------------------------------------------------------------------------------


LIMITED = {"resultType": "FAIL", "success": None, "error": {"errorCode": "4095", "reason": "…"}}


def limited(code="4095", *, kind="FAIL", **data) -> dict:
    return {"resultType": kind, "error": {"errorType": 0, "errorCode": code, "reason": SECRET, "data": data}}


async def refused_by_the_budget(body: object, status: int = 200) -> tuple[BudgetExhausted, Pot]:
    """Toss has said 4095: the call fails, and the next is not sent at all."""
    pot, transport = Pot(), Canned(answer(body, status))
    api = api_of(transport, pot)
    with pytest.raises(BudgetExhausted) as caught:
        await api.get("/x")
    for call in (api.get("/x"), api.post("/x", {}, lane=Lane.BACKGROUND)):
        with pytest.raises(BudgetExhausted) as next_one:
            await call
        assert (next_one.value.retry_after, next_one.value.limit) == (caught.value.retry_after, "pause")
    assert transport.sent == [("GET", "https://toss/x")]
    assert caught.value.limit == "pause"
    assert isinstance(caught.value, NotSent)
    assert SECRET not in everything_said_by(caught.value)
    return caught.value, pot


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("code", ["4095", 4095])
@pytest.mark.parametrize("kind", ["FAIL", *INNER_FAULTS, "RATE_LIMITED", ""])
async def test_4095_pauses_whatever_else_the_answer_says(status, code, kind):
    error, pot = await refused_by_the_budget(limited(code, kind=kind, retryAfterSeconds=30), status)
    assert error.retry_after == timedelta(seconds=30)
    assert pot.pauses == [timedelta(seconds=30)]


@pytest.mark.parametrize(
    "body",
    [
        LIMITED,
        {"resultType": "FAIL", "error": {"code": 4095, "message": SECRET}},
        {"resultType": "FAIL", "error": "4095"},
        {"resultType": "FAIL", "error": 4095},
        {"resultType": "SUCCESS", "success": {"code": -1, "errorCode": "4095"}},
    ],
)
async def test_4095_in_its_other_forms_pauses_for_the_usual_time(body):
    error, pot = await refused_by_the_budget(body)
    assert error.retry_after == USUAL_PAUSE
    assert pot.pauses == [USUAL_PAUSE]


@pytest.mark.parametrize(
    ("seconds", "pause"),
    [
        (30, timedelta(seconds=30)),
        ("30", timedelta(seconds=30)),
        (" 30 ", timedelta(seconds=30)),
        (1.5, timedelta(seconds=1.5)),
        ("1.5", timedelta(seconds=1.5)),
        (0, MIN_PAUSE),
        ("0", MIN_PAUSE),
        (0.2, MIN_PAUSE),
        (-1, USUAL_PAUSE),
        ("-30", USUAL_PAUSE),
        (None, USUAL_PAUSE),
        (True, USUAL_PAUSE),
        ("soon", USUAL_PAUSE),
        ("", USUAL_PAUSE),
        ([30], USUAL_PAUSE),
        ({"seconds": 30}, USUAL_PAUSE),
        (float("nan"), USUAL_PAUSE),
        (float("-inf"), USUAL_PAUSE),
        (float("inf"), MAX_PAUSE),
        (10**400, MAX_PAUSE),
        (86400, MAX_PAUSE),
        ("9" * 4000, MAX_PAUSE),
    ],
    ids=lambda value: repr(value)[:20],
)
async def test_toss_says_for_how_long_within_reason(seconds, pause):
    error, pot = await refused_by_the_budget(limited(retryAfterSeconds=seconds))
    assert error.retry_after == pause
    assert pot.pauses == [pause]


@pytest.mark.parametrize("data", [None, "30", 30, [30], {}])
async def test_data_that_tell_no_time_mean_the_usual_pause(data):
    error, _ = await refused_by_the_budget(
        {"resultType": "FAIL", "error": {"errorCode": "4095", "data": data}}, 429
    )
    assert error.retry_after == USUAL_PAUSE


@pytest.mark.parametrize(
    "body",
    [
        {"resultType": "FAIL", "error": {"errorCode": "4096", "data": {"retryAfterSeconds": 9}}},
        {"resultType": "FAIL", "error": {"errorCode": "X", "data": {"errorCode": "4095"}}},
        {"resultType": "SUCCESS", "success": {"errorCode": "4095"}},
        {"error": "4095"},
        {"status": 4095, "error": "Too Many Requests"},
    ],
)
async def test_nothing_else_pauses(body):
    pot, transport = Pot(), Canned(answer(body, 429), answer({"resultType": "SUCCESS", "success": 1}))
    api = api_of(transport, pot)
    with suppress(TossRejected, Unintelligible):
        await api.post("/x", {})
    assert (await api.post("/x", {})).content == 1
    assert pot.pauses == []


async def test_lanes_and_limits_reach_the_budget():
    pot = Pot()
    api = api_of(Canned(*[answer({"resultType": "SUCCESS", "success": 1})] * 4), pot)
    await api.get("/x")
    await api.get("/x", lane=Lane.BACKGROUND)
    await api.post("/x", {})
    await api.post("/x", {}, lane=Lane.BACKGROUND, sub_limits=[SubLimit("mine", 100)])
    counters = [[charge.counter for charge in charges] for charges in pot.admitted]
    assert counters == [["all"], ["all", "background"], ["all"], ["all", "background", "mine"]]


# --- Real connections -------------------------------------------------------------------------------------


def partner(ca, url: str, **how):
    return partner_at(url.removesuffix("/call"), ca_file=ca.file, folder=ca.pairs, **how)


OK = b'{"resultType":"SUCCESS","success":{"a":1}}'


async def held_by(host: Host, count: int = 1) -> None:
    async with asyncio.timeout(20):
        while len(host.requests) < count:  # noqa: ASYNC110 - real sockets; there is nothing to wait on
            await asyncio.sleep(0)


def gated(gate: asyncio.Event):
    async def script(connection: Connection) -> None:
        while await connection.request() is not None:
            await gate.wait()
            connection.send(OK)
            await connection.writer.drain()

    return script


async def test_a_call_that_waits_for_its_turn_is_not_counted_before_it_is_sent(ca):
    gate = asyncio.Event()
    async with Host.running(gated(gate), tls=tls_of(ca)) as host, partner(ca, host.url, pool_size=1) as toss:
        calls = [asyncio.create_task(toss.api.get("/x"))]
        await held_by(host)
        calls += [asyncio.create_task(toss.api.get("/x")) for _ in range(3)]
        while len(toss.transport._turns._waiters or ()) < 3:  # noqa: ASYNC110 - asyncio says so nowhere else
            await asyncio.sleep(0)
        assert (toss.pot.asked, len(host.requests)) == (1, 1)
        gate.set()
        assert [(await call).content for call in calls] == [{"a": 1}] * 4
        assert (toss.pot.asked, len(host.requests)) == (4, 4)


async def test_a_call_that_is_given_up_before_its_turn_was_not_sent_and_costs_nothing(ca):
    gate = asyncio.Event()
    async with (
        Host.running(gated(gate), tls=tls_of(ca)) as host,
        partner(ca, host.url, pool_size=1) as toss,
    ):
        hasty = partner_over(toss.transport, host.url, pot=toss.pot, deadline=SHORT).api
        first = asyncio.create_task(toss.api.get("/x"))
        await held_by(host)
        with pytest.raises(NotSent) as caught:
            await hasty.post("/x", {})
        assert (type(caught.value), caught.value.is_tls) == (NotSent, False)
        assert (toss.pot.asked, len(host.requests)) == (1, 1)
        gate.set()
        await first


async def test_a_deadline_while_the_budget_is_asked_means_not_sent(ca):
    async with Host.running(answering(OK), tls=tls_of(ca)) as host:
        pot = Pot(gate=asyncio.Event())
        async with partner(ca, host.url, pot=pot, deadline=SHORT) as toss:
            with pytest.raises(NotSent) as caught:
                await toss.api.get("/x")
        assert type(caught.value) is NotSent
        assert host.requests == []


@pytest.mark.parametrize("method", ["get", "post"])
async def test_a_deadline_after_sending_leaves_the_outcome_unknown_and_nothing_is_repeated(ca, method):
    async def script(connection: Connection) -> None:
        await connection.request()
        connection.send(OK)
        await connection.request()
        await silence(connection)

    async with Host.running(script, tls=tls_of(ca)) as host, partner(ca, host.url) as toss:
        await toss.api.get("/x")  # so that a short time is long enough to send in
        hasty = partner_over(toss.transport, host.url, pot=toss.pot, deadline=SHORT).api
        call = hasty.get("/x") if method == "get" else hasty.post("/x", {"secret": SECRET})
        with pytest.raises(OutcomeUnknown) as caught:
            await call
        assert type(caught.value) is OutcomeUnknown
        assert SECRET not in everything_said_by(caught.value)
        await held_by(host, 2)
        assert (host.connections, len(host.requests), toss.pot.asked) == (1, 2, 2)


async def test_a_lost_answer_is_never_asked_for_again(ca):
    async def script(connection: Connection) -> None:
        await connection.request()
        connection.reset()

    async with Host.running(script, tls=tls_of(ca)) as host, partner(ca, host.url) as toss:
        for number, call in enumerate((toss.api.get("/x"), toss.api.post("/x", {})), 1):
            with pytest.raises(OutcomeUnknown):
                await call
            assert (len(host.requests), toss.pot.asked) == (number, number)


async def test_what_was_not_sent_is_tried_once_more_and_admitted_each_time(ca):
    limit = SubLimit("mine", 100)
    async with partner(ca, f"https://127.0.0.1:{free_port()}") as toss:
        with pytest.raises(NotSent) as caught:
            await toss.api.post("/x", {}, sub_limits=(one for one in [limit]))
        assert type(caught.value) is NotSent
        counters = [[charge.counter for charge in charges] for charges in toss.pot.admitted]
        assert counters == [["all", "mine"]] * 2


async def test_the_second_try_needs_room_too(ca):
    pot = Pot(room=1)
    async with partner(ca, f"https://127.0.0.1:{free_port()}", pot=pot) as toss:
        with pytest.raises(BudgetExhausted) as caught:
            await toss.api.get("/x")
        assert (caught.value.retry_after, caught.value.limit) == (timedelta(seconds=7), "all")
        assert (pot.asked, len(pot.admitted)) == (2, 1)


async def test_a_tls_fault_is_not_tried_again(ca):
    async with Host.running(answering(OK), tls=tls_of(trustme.CA())) as host, partner(ca, host.url) as toss:
        with pytest.raises(NotSent) as caught:
            await toss.api.get("/x")
        assert caught.value.is_tls
        assert (host.requests, toss.pot.asked) == ([], 1)


async def test_a_refused_admission_costs_no_connection_no_retry_and_no_doubt(ca):
    pot = Pot(room=0)
    async with Host.running(answering(OK), tls=tls_of(ca)) as host, partner(ca, host.url, pot=pot) as toss:
        await toss.transport.keeper.look()
        looking = toss.transport.keeper._looking
        for call in (toss.api.get("/x"), toss.api.post("/x", {})):
            with pytest.raises(BudgetExhausted):
                await call
        assert (host.connections, pot.asked) == (0, 2)
        assert toss.transport.keeper._doubt_again_at == 0.0
        assert toss.transport.keeper._looking is looking
        assert toss.transport.keeper.alarm is None
        assert toss.transport._turns._value == 4


async def test_a_connection_that_breaks_makes_the_keeper_doubt(ca):
    """What the test above would see."""
    async with partner(ca, f"https://127.0.0.1:{free_port()}") as toss:
        with pytest.raises(NotSent):
            await toss.api.get("/x")
        assert toss.transport.keeper._doubt_again_at > 0.0


async def test_no_cookie_is_kept_for_the_next_user(ca):
    script = answering(OK, Set_Cookie="session=of-somebody; Path=/")
    async with Host.running(script, tls=tls_of(ca)) as host, partner(ca, host.url) as toss:
        for user in ("a", "b"):
            await toss.api.post("/x", {}, bearer=user)
            await toss.api.get("/x", bearer=user)
        assert len(host.requests) == 4
        assert not [request for request in host.requests if b"cookie" in request.lower()]


async def test_what_is_sent_is_exactly_what_was_given(ca):
    async with Host.running(answering(OK), tls=tls_of(ca)) as host, partner(ca, host.url) as toss:
        await toss.api.get("/a/b")
        await toss.api.get("/a/b", bearer="t0k3n")
        await toss.api.post("/c", {}, headers={"x-anon-key": "h4sh"})
        await toss.api.post("/c", {"a": "가", "b": None}, bearer="t0k3n")
    heads = [request.partition(b"\r\n\r\n")[0].split(b"\r\n") for request in host.requests]
    bodies = [request.partition(b"\r\n\r\n")[2] for request in host.requests]
    assert [head[0] for head in heads] == [b"GET /a/b HTTP/1.1"] * 2 + [b"POST /c HTTP/1.1"] * 2
    named = [dict(line.lower().split(b": ", 1) for line in head[1:]) for head in heads]
    assert [head.get(b"x-anon-key") for head in named] == [None, None, b"h4sh", None]
    assert [head.get(b"authorization") for head in named] == [None, b"bearer t0k3n"] * 2
    assert bodies[:3] == [b"", b"", b"{}"]
    assert json.loads(bodies[3]) == {"a": "가", "b": None}
    assert [head.get(b"content-type") for head in named] == [None, None, *[b"application/json"] * 2]
