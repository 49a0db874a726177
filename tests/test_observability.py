"""Nothing personal and nothing secret in a log line (G11); one line for every request."""

import io
import json
import logging
import uuid
from collections.abc import Iterator

import pytest
import structlog
from structlog.contextvars import bind_contextvars

from app.observability import QUIET_LOGGERS, REDACTED, SECRET_FIELDS, configure_logging
from tests.conftest import settings_for
from tests.scenarios import Bff

UUID = str(uuid.uuid4())
JWT = "eyJraWQiOiJjZXJ0IiwiYWxnIjoiUlMyNTYifQ.eyJzdWIiOiJ0ZXN0In0.c2lnbmF0dXJl-_"


class Log:
    def __init__(self) -> None:
        self.stream = io.StringIO()

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.text.splitlines()]

    def of(self, event: str) -> list[dict]:
        return [line for line in self.lines if line["event"] == event]


@pytest.fixture
def configured() -> Iterator[Log]:
    """Logging as in production, written to memory; put back as it was afterwards."""
    root, names = logging.getLogger(), [*QUIET_LOGGERS, "uvicorn", "uvicorn.error"]
    before = root.handlers, root.level, structlog.get_config()
    levels = {name: (logging.getLogger(name).level, logging.getLogger(name).handlers) for name in names}
    log = Log()

    def configure(level: str = "DEBUG", *, is_json: bool = True) -> Log:
        configure_logging(level=level, is_json=is_json, stream=log.stream)
        return log

    yield configure
    root.handlers, root.level = before[:2]
    root.setLevel(before[1])
    structlog.configure(**before[2])
    for name, (level, handlers) in levels.items():
        logging.getLogger(name).setLevel(level)
        logging.getLogger(name).handlers = handlers


@pytest.fixture
def log(configured) -> Log:
    return configured()


EVENTS = structlog.stdlib.get_logger("app.test")


@pytest.mark.parametrize("field", sorted(SECRET_FIELDS))
@pytest.mark.parametrize("spelling", [str.lower, str.upper])
def test_secret_fields_are_redacted_however_nested(log, field, spelling):
    name = spelling(field)
    events = structlog.stdlib.get_logger("app.test")
    value = "V4lue"
    if field != "name":  # the logger's own name is no field
        events.info("flat", **{name: value})
    events.info("nested", a={name: value}, b=[{"c": ({name: [value]},)}], d={"e": {name: {"f": value}}})
    assert value not in log.text
    assert REDACTED in log.text


def test_what_a_leak_would_be_named_by_design_is_among_the_secret_fields():
    """Written from the guarantee, not from the code: CI, names, phones, birthdays, tokens, codes, signatures."""
    named = {"ci", "di", "name", "phone", "birthday", "token", "access_token", "authorization", "signature"}
    assert named | {"session_key", "client_secret", "secret", "password", "body", "envelope"} <= SECRET_FIELDS
    assert {"user_key", "anon_key", "session_token", "email"} <= SECRET_FIELDS


@pytest.mark.parametrize(
    "field", ["userName", "accessToken", "sessionKey", "clientSecret", "verificationToken", "userKey"]
)
def test_wire_names_of_secret_fields_are_redacted_too(log, field):
    EVENTS.info("answer", answer={field: "V4lue"})
    assert "V4lue" not in log.text


@pytest.mark.parametrize("container", [{"V4lue"}, frozenset({"V4lue"})])
def test_harmless_fields_stay(log, container):
    EVENTS.info("event", tx_id=UUID, count=3, names=container, nested={"status": "COMPLETED"}, items=[1, "two"])
    (line,) = log.lines
    assert (line["tx_id"], line["count"], line["nested"], line["items"]) == (
        UUID,
        3,
        {"status": "COMPLETED"},
        [1, "two"],
    )
    assert (line["level"], line["logger"]) == ("info", "app.test")
    assert line["timestamp"].endswith("Z")


SECRETS = {
    "envelope": f"v1${UUID}$c2VhbGVkIHRleHQrLz0=",
    "envelope of the SDK": f"v1_0.0.14${UUID}$c2VhbGVkIHRleHQrLz0=",
    "session": "AES_GCM$" + "A" * 43 + "=$" + "B" * 16,
    "jwt": JWT,
    "bearer": "Bearer opaque-t0k3n_~+/=",
    "bearer in lower case": "bearer opaque-t0k3n",
    "basic": "Basic dXNlcjpwYXNz",
    "verification token": "vt_" + "aB-_3" * 8,
    "server key": "sk_" + "aB-_3" * 8,
    "session token": "st_" + "aB-_3" * 8,
    "signature": "MII" + "aB3+/" * 20 + "==",
    "ci of the test person": "CI0110000000001" + "x" * 70,
}


def core(secret: str) -> str:
    return secret.removeprefix("Bearer ").removeprefix("bearer ").removeprefix("Basic ")[4:-1]


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("is_json", [True, False])
def test_secrets_are_known_by_their_form_wherever_they_stand(configured, kind, is_json):
    log, secret = configured(is_json=is_json), SECRETS[kind]
    library = logging.getLogger("some.library")
    library.warning("sent %s to %s", secret, "host")
    library.warning(f'{{"x":"{secret}"}}')
    EVENTS.info("event", note=f"<{secret}>", deep=[{"a": secret}])
    EVENTS.info(f"said {secret}")
    try:
        int(f"bad {secret}")
    except ValueError:
        EVENTS.exception("failed")
        library.exception("failed with %s", secret)
    assert core(secret) not in log.text
    assert log.text.count(REDACTED) >= 8
    if is_json:
        assert len(log.lines) == 6


def test_ordinary_text_is_not_redacted(log):
    text = f"verification {UUID} v1 $5 sk_short MIIshort basically bearers eyJ CI of the build"
    EVENTS.info(text)
    assert log.lines[0]["event"] == text


def test_at_debug_the_libraries_stay_silent(log):
    for name in (
        "httpx2",
        "httpcore2.http11",
        "aiosqlite",
        "sqlalchemy.engine.Engine",
        "asyncio",
        "alembic.runtime",
    ):
        logging.getLogger(name).debug("headers, parameters, statements")
        logging.getLogger(name).info("headers, parameters, statements")
    logging.getLogger("uvicorn.access").error("GET /?secret=1")
    assert log.text == ""
    logging.getLogger("httpx2").warning("a warning")
    assert len(log.lines) == 1


def test_at_debug_the_redis_client_stays_silent_too(log):
    logging.getLogger("redis.asyncio.connection").debug("a connection")
    assert log.text == ""


@pytest.mark.parametrize(("level", "expected"), [("DEBUG", 3), ("INFO", 2), ("WARNING", 1), ("ERROR", 0)])
def test_the_level_is_the_operators(configured, level, expected):
    log = configured(level)
    for speak in (EVENTS.debug, EVENTS.info, EVENTS.warning):
        speak("event")
    assert len(log.lines) == expected


def test_a_second_configuration_does_not_double_the_lines(configured):
    configured()
    log = configured()
    EVENTS.info("event")
    assert len(log.lines) == 1


# --- The canonical line -----------------------------------------------------------------------------------


async def test_every_request_leaves_one_line_with_its_route_and_not_its_address(bff, log):
    verification = await bff.start()
    await bff.status(verification)
    await bff.http.get(f"/nowhere/{UUID}?secret=abc")
    await bff.http.get("/api/v1/cert/requests/a%20b/status?secret=abc", headers=verification.headers)
    lines = log.of("request_finished")
    assert [(line["method"], line["route"], line["status"]) for line in lines] == [
        ("POST", "/api/v1/cert/requests", 201),
        ("GET", "/api/v1/cert/requests/{txId}/status", 200),
        ("GET", None, 404),
        ("GET", "/api/v1/cert/requests/{txId}/status", 422),
    ]
    assert all(line["duration_ms"] >= 0 for line in lines)
    assert "secret" not in log.text
    assert verification.token not in log.text
    assert "/nowhere" not in log.text


async def test_the_id_of_a_request_is_in_its_header_and_in_all_its_lines(bff, log):
    answers = [await bff.http.post("/api/v1/cert/requests") for _ in range(2)]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == 2
    assert all(str(uuid.UUID(each)) == each for each in ids)
    for event in ("verification_started", "request_finished"):
        assert [line["request_id"] for line in log.of(event)] == ids


async def test_a_callers_own_request_id_is_not_believed(bff, log):
    answer = await bff.http.get("/livez", headers={"X-Request-Id": "mine\\n"})
    assert answer.headers.get_list("x-request-id") == [log.of("request_finished")[0]["request_id"]]


async def test_what_one_request_bound_does_not_stick_to_the_next(bff, log):
    bind_contextvars(left_over="from elsewhere")
    await bff.http.get("/livez")
    await bff.http.get("/livez")
    assert "left_over" not in log.text


async def test_a_bug_leaves_its_line_and_a_cleaned_traceback(embedded, sandbox, log):
    async with Bff.running(settings_for(embedded, sandbox), sandbox) as bff:

        def broken(_token: str) -> None:
            raise RuntimeError(f"unforeseen {SECRETS['jwt']}")

        bff.resources.cert.holder = broken
        answer = await bff.http.get("/api/v1/cert/requests/x/status", headers={"Authorization": "Bearer t"})
    assert answer.status_code == 500
    (error,) = log.of("internal_error")
    assert (error["level"], error["request_id"]) == ("error", answer.headers["x-request-id"])
    assert "RuntimeError: unforeseen [redacted]" in error["exception"]
    assert [line["status"] for line in log.of("request_finished")] == [500]
    assert JWT not in log.text


async def test_a_whole_verification_at_debug_says_nothing_personal(bff, sandbox, log):
    verification = await bff.start(name="김토스", phone="01012345678", birthday="19930324")
    sandbox.state.approve(verification.tx_id)
    await bff.status(verification)
    await bff.result(verification)
    headers = await bff.server_key()
    full = (await bff.as_partner("POST", verification, "/result", headers)).json()
    for secret in (*full["identity"].values(), "01012345678", verification.token, headers["Authorization"][7:]):
        assert secret is None or str(secret) not in log.text
    assert sandbox.client_secret not in log.text
    speakers = {line["logger"] for line in log.lines if not line["logger"].startswith("redis.")}
    assert speakers == {"app.request", "app.cert"}
