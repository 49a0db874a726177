"""Who may call: which pages from a browser, and which addresses."""

import asyncio
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from app.network import BodyLimit, Caller, caller_key, resolve_caller
from tests.conftest import settings_for, without_callbacks
from tests.processes import serving
from tests.scenarios import Bff, assert_problem

PATH = "/api/v1/cert/requests"


@pytest.fixture
def one(embedded, sandbox):
    settings = without_callbacks(settings_for(embedded, sandbox))
    network = {"app_name": "my-granite-app", "allowed_origins": ["http://localhost:5173"]}
    return settings.model_copy(update={"network": type(settings.network).model_validate(network)})


async def allowed(bff, origin: str) -> bool:
    """Whether a browser would let a page of this origin call and read the answer."""
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "authorization, content-type"
    preflight = await bff.http.options(PATH, headers=asked)
    answer = await bff.http.post(PATH, headers={"Origin": origin}, json={"x": 1})
    granted = {response.headers.get("access-control-allow-origin") for response in (preflight, answer)}
    assert "access-control-allow-credentials" not in answer.headers
    return granted == {origin}


@pytest.mark.parametrize(
    "origin",
    [
        "https://my-granite-app.apps.tossmini.com",
        "https://my-granite-app.private-apps.tossmini.com",
        "https://my-granite-app.web.tossmini.com",
        "https://my-granite-app.private-web.tossmini.com",
        "http://localhost:5173",
    ],
)
async def test_the_mini_apps_four_origins_and_configured_ones_may_call(one, sandbox, origin):
    async with Bff.running(one, sandbox) as bff:
        assert await allowed(bff, origin)


@pytest.mark.parametrize(
    "origin",
    [
        "http://my-granite-app.apps.tossmini.com",
        "https://other.apps.tossmini.com",
        "https://my-granite-app.apps.tossmini.com.evil.example",
        "https://evil-my-granite-app.apps.tossmini.com",
        "https://my-granite-app.tossmini.com",
        "null",
    ],
)
async def test_no_other_page_may(one, sandbox, origin):
    async with Bff.running(one, sandbox) as bff:
        assert not await allowed(bff, origin)


async def test_without_a_name_no_page_may(embedded, sandbox):
    async with Bff.running(without_callbacks(settings_for(embedded, sandbox)), sandbox) as bff:
        assert not await allowed(bff, "https://my-granite-app.apps.tossmini.com")


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "*", "A b", "-a", "a" * 64])
def test_a_name_that_is_none_is_refused(one, name):
    with pytest.raises(ValueError, match="app_name"):
        type(one.network).model_validate({"app_name": name})


CONSOLE = "https://apps-in-toss.toss.im"
UNLINK = "/callbacks/toss/login-unlink"


async def preflight(bff, path: str, origin: str, method: str = "POST") -> httpx2.Response:
    asked = {
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization, content-type",
    }
    return await bff.http.options(path, headers={"Origin": origin, **asked})


@pytest.mark.parametrize("origin", [CONSOLE, "https://toss.im", "https://console.apps-in-toss.toss.im"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_the_consoles_pages_may_call_callbacks_and_nothing_else(one, sandbox, origin, method):
    """Its page has moved between subdomains (apps-in-toss reference 5.1)."""
    async with Bff.running(with_network(one, callback_allowlist=["192.0.2.10/32"]), sandbox) as bff:
        granted = await preflight(bff, UNLINK, origin, method)
        assert granted.status_code == 200
        assert granted.headers["access-control-allow-origin"] == origin
        assert {"authorization", "content-type"} <= {
            name.strip().lower() for name in granted.headers["access-control-allow-headers"].split(",")
        }
        answer = await bff.http.request(method, UNLINK, headers={"Origin": origin})
        assert answer.headers["access-control-allow-origin"] == origin
        assert "access-control-allow-credentials" not in answer.headers
        assert not await allowed(bff, origin)
        for path in ("/callbacks/tossed", "/server/v1/x", "/livez"):
            assert "access-control-allow-origin" not in (await preflight(bff, path, origin)).headers


@pytest.mark.parametrize(
    "origin",
    [
        *("http://apps-in-toss.toss.im", "https://toss.im.evil.com", "https://eviltoss.im", "https://evil-toss.im"),
        *("https://apps-in-toss.toss.im:8443", "https://apps-in-toss.toss.im/", "https://apps-in-toss.toss.im."),
        *("https://.toss.im", "https://a..toss.im", "https://tossxim", "https://a.tossxim", "null", "*"),
        *("https://toss.im@evil.com", "https://evil.com/.toss.im", "https://evil.com#.toss.im", "https://toss.imx"),
        *("https://my-granite-app.apps.tossmini.com", "http://localhost:5173"),
    ],
)
async def test_no_other_page_may_call_a_callback(one, sandbox, origin):
    async with Bff.running(one, sandbox) as bff:
        for path in ("/callbacks/toss", UNLINK, f"{UNLINK}/x"):
            refused = await preflight(bff, path, origin)
            assert refused.status_code == 400
            assert "access-control-allow-origin" not in refused.headers


async def test_the_console_may_not_delete(one, sandbox):
    async with Bff.running(one, sandbox) as bff:
        assert (await preflight(bff, UNLINK, CONSOLE, "DELETE")).status_code == 400
        assert (await preflight(bff, PATH, "http://localhost:5173", "DELETE")).status_code == 200


# --- Addresses (G10) --------------------------------------------------------------------------------------

PROXIES = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]
TOSS = "117.52.3.11"
ME = "198.51.100.7"


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        # Without a trusted proxy no header counts.
        (ME, [], ME),
        (ME, [TOSS], ME),
        (TOSS, [ME], TOSS),
        ("::ffff:117.52.3.11", [], TOSS),
        ("2001:db8::1", [TOSS], "2001:db8::1"),
        # Behind trusted proxies the walk goes from the right.
        ("10.0.0.1", [TOSS], TOSS),
        ("10.0.0.1", [f"{TOSS}, 10.0.0.2"], TOSS),
        ("10.0.0.1", [TOSS, "10.0.0.2"], TOSS),
        ("10.0.0.1", [f"{TOSS}, {ME}"], ME),
        ("10.0.0.1", [TOSS, ME], ME),
        ("10.0.0.1", [f"{TOSS}, {ME}, 10.0.0.2"], ME),
        ("10.0.0.1", [f"{TOSS}:4711"], TOSS),
        ("10.0.0.1", ["[2001:db8::1]:443"], "2001:db8::1"),
        ("10.0.0.1", ["[::ffff:117.52.3.11]"], TOSS),
        ("10.0.0.1", ["::ffff:117.52.3.11"], TOSS),
        ("fd00::1", [f"\t{TOSS} "], TOSS),
        ("::ffff:10.0.0.1", [TOSS], TOSS),
        # All of them ours: nobody else is known.
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        # What cannot be read hides whoever stands to the left of it.
        *(
            ("10.0.0.1", [f"{TOSS}, {unreadable}"], None)
            for unreadable in (
                *("", "unknown", "_hidden", "localhost", "117.52.3.11.", "117.52.3", "117.52.3.011", "0x7f.1"),
                *("117.52.3.11:", "117.52.3.11:x", "117.52.3.11:123456", "[117.52.3.11]", "[::1", "::1]", "[::1]x"),
                *("fe80::1%eth0", "117.52.3.11/32", "１１７.52.3.11", '"117.52.3.11"', "for=117.52.3.11"),
            )
        ),
        ("10.0.0.1", [f"{TOSS},"], None),
        ("10.0.0.1", [""], None),
        ("10.0.0.1", [TOSS + ", 10.0.0.2" * 200], None),
        # A peer that is none.
        ("", [TOSS], None),
        ("testclient", [TOSS], None),
        (None, [TOSS], None),
    ],
)
def test_who_is_calling(peer, forwarded, client):
    caller = resolve_caller(peer, forwarded, PROXIES)
    assert (str(caller.client_ip) if caller.client_ip else None) == client


@given(st.lists(st.text(alphabet="0123456789abcdef.:[], \tx%", max_size=60), max_size=4))
def test_whatever_a_client_writes_only_the_peer_counts_without_a_trusted_proxy(forwarded):
    assert str(resolve_caller(ME, forwarded, PROXIES).client_ip) == ME


@given(st.lists(st.text(alphabet="0123456789abcdef.:[], \tx%", max_size=60), max_size=4))
def test_whatever_a_client_writes_the_last_hop_counts_behind_one(forwarded):
    caller = resolve_caller("10.0.0.1", [*forwarded, ME], PROXIES)
    assert str(caller.client_ip) in {ME, "None"}


def with_network(settings, **network):
    return settings.model_copy(update={"network": type(settings.network).model_validate(network)})


CALLBACK = "/callbacks/toss/login-unlink"


@pytest.mark.parametrize("path", ["/callbacks/toss", CALLBACK, "/callbacks/toss/", "/callbacks/toss//x"])
async def test_a_stranger_is_refused_below_the_prefix_before_the_body_is_read(one, sandbox, path):
    async with Bff.running(one, sandbox) as bff:
        refused = await bff.http.post(path, headers={"X-Forwarded-For": TOSS}, content=b"x" * 10**6)
        assert_problem(refused, 403, "address_not_allowed")
        assert (await bff.http.get("/livez", headers={"X-Forwarded-For": TOSS})).status_code == 200
        assert (await bff.http.get("/callbacks/tossed")).status_code == 404


@pytest.mark.parametrize(
    "address", ["117.52.3.11", "211.115.96.80", "106.249.5.87", "117.52.3.79", "117.52.3.88", "117.52.3.12"]
)
async def test_toss_s_published_addresses_are_the_default(one, sandbox, address):
    behind = with_network(one, trusted_proxies=["192.0.2.10/32"])
    last = int(address.rpartition(".")[2])
    async with Bff.running(behind, sandbox) as bff:
        answer = await bff.http.post(CALLBACK, headers={"X-Forwarded-For": address})
        assert answer.status_code == (404 if last == 11 or 80 <= last <= 87 else 403)


async def test_a_line_end_leads_past_no_guard(one, sandbox):
    async with Bff.running(with_network(one, metrics_allowlist=[]), sandbox) as bff:
        assert_problem(await bff.http.get("/metrics"), 403, "address_not_allowed")
        assert_problem(await bff.http.get("/metrics%0A"), 404, "not_found")
        assert_problem(await bff.http.post(f"{PATH}%0A", json={}), 404, "not_found")


async def test_an_empty_list_refuses_everybody(one, sandbox):
    async with Bff.running(with_network(one, callback_allowlist=[]), sandbox) as bff:
        assert_problem(await bff.http.post(CALLBACK), 403, "address_not_allowed")


@pytest.mark.parametrize("believes", [True, False], ids=["behind a trusted proxy", "without one"])
async def test_through_a_real_socket_no_forged_header_passes(one, believes):
    """Nor does the environment that widens uvicorn's own trust."""
    trusted = {"trusted_proxies": ["127.0.0.1/32"]} if believes else {}
    settings = with_network(one, callback_allowlist=["117.52.3.11/32"], **trusted)
    with serving(settings, FORWARDED_ALLOW_IPS="*", UVICORN_PROXY_HEADERS="1") as server:
        forged = [
            {"X-Forwarded-For": f"{TOSS}, {ME}"},
            {"X-Forwarded-For": f"{TOSS}, nonsense"},
            {"X-Real-IP": TOSS},
            {"Forwarded": f"for={TOSS}"},
            {"X-Forwarded-For": ME},
            {},
        ]
        async with httpx2.AsyncClient(base_url=server.url, trust_env=False) as http:
            answers = [(await http.post(CALLBACK, headers=headers)).status_code for headers in forged]
            genuine = (await http.post(CALLBACK, headers={"X-Forwarded-For": TOSS})).status_code
    assert set(answers) == {403}
    assert genuine == (404 if believes else 403)


@pytest.mark.parametrize(
    ("network", "fault"),
    [
        ({"callback_allowlist": []}, "empty"),
        ({"callback_allowlist": ["0.0.0.0/0"]}, "everybody"),
        ({"trusted_proxies": ["0.0.0.0/0"]}, "far more"),
        ({"trusted_proxies": ["::/0"]}, "far more"),
    ],
)
def test_production_refuses_lists_that_protect_nothing(one, network, fault):
    production = with_network(one, **network).model_copy(update={"environment": "production"})
    assert any(fault in text and text.startswith("BFF_NETWORK__") for text in production.faults())
    sound = with_network(one, trusted_proxies=["10.0.0.0/8"]).model_copy(update={"environment": "production"})
    assert not any(text.startswith("BFF_NETWORK__") for text in sound.faults())


# --- Exceptions for the console's test button ---------------------------------------------------------------


def excepting(settings, **until: timedelta):
    """`until`: by name, with _ for -."""
    now = datetime.now(UTC)
    exceptions = {name.replace("_", "-"): (now + left).isoformat() for name, left in until.items()}
    return with_network(settings, callback_exceptions=exceptions)


HOUR = timedelta(hours=1)


async def test_an_exception_admits_any_address_to_one_callback_until_it_ends(one, sandbox, caplog):
    async with Bff.running(excepting(one, login_unlink=HOUR), sandbox) as bff:
        for method in ("GET", "POST"):
            assert_problem(await bff.http.request(method, f"{CALLBACK}?userKey=0"), 404, "not_found")
        assert_problem(await bff.http.post("/callbacks/toss/payment"), 403, "address_not_allowed")
        said = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
        events = [event for event in said if event["event"] == "address_excepted"]
        bff.clock.advance(minutes=59)
        assert_problem(await bff.http.post(CALLBACK), 404, "not_found")
        bff.clock.advance(minutes=1)
        assert_problem(await bff.http.post(CALLBACK), 403, "address_not_allowed")
        counted = bff.resources.metrics.exposition().decode()
    assert [(event["level"], event["callback"], event["client_ip"], event["peer_ip"]) for event in events] == [
        ("warning", "login-unlink", "192.0.2.10", "192.0.2.10")
    ] * 2
    assert 'bff_address_exceptions_total{callback="login-unlink"} 3.0' in counted
    assert 'bff_address_denials_total{prefix="/callbacks/toss"} 2.0' in counted


async def test_who_is_listed_needs_no_exception(one, sandbox, caplog):
    settings = excepting(one, login_unlink=HOUR)
    network = settings.network.model_copy(update={"callback_allowlist": (ip_network("192.0.2.10/32"),)})
    async with Bff.running(settings.model_copy(update={"network": network}), sandbox) as bff:
        assert (await bff.http.post(CALLBACK)).status_code == 404
    assert "address_excepted" not in caplog.text


async def test_an_exception_admits_no_address_that_cannot_be_read(one, sandbox):
    settings = excepting(one, login_unlink=HOUR)
    network = settings.network.model_copy(update={"trusted_proxies": (ip_network("192.0.2.10/32"),)})
    async with Bff.running(settings.model_copy(update={"network": network}), sandbox) as bff:
        for forwarded, status in ((ME, 404), (f"{ME}, nonsense", 403), ("nonsense", 403)):
            assert (await bff.http.post(CALLBACK, headers={"X-Forwarded-For": forwarded})).status_code == status


# --- One caller -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "client", "key"),
    [
        (ME, ME, ME),
        ("10.0.0.1", ME, ME),
        ("10.0.0.1", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("10.0.0.1", None, "unreadable behind 10.0.0.1"),
        (None, None, "unreadable behind None"),
    ],
)
def test_one_caller_is_an_ipv4_address_or_an_ipv6_network(peer, client, key):
    caller = Caller(*(ip_address(text) if text else None for text in (peer, client)))
    assert caller_key(caller) == key


# --- Bodies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [[b""], [b"whole"], [b"in ", b"two"]])
async def test_whoever_waits_for_the_client_to_leave_may_wait_for_longer_than_a_body(pieces):
    is_given_up, seen = asyncio.Event(), []

    async def receive():
        if pieces:
            piece = pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(pieces)}
        await is_given_up.wait()
        return {"type": "http.disconnect"}

    async def waiting(_scope, receive, _send):
        while not seen or seen[-1]["type"] != "http.disconnect":
            seen.append(await receive())

    limit = BodyLimit(waiting, limit_bytes=1024, timeout=timedelta(seconds=0.05))
    asyncio.get_running_loop().call_later(0.3, is_given_up.set)
    await limit({"type": "http", "headers": []}, receive, None)
    assert seen[-1] == {"type": "http.disconnect"}


async def test_all_pieces_of_a_body_share_one_deadline():
    async def receive():
        await asyncio.sleep(0.02)  # a slow client is slow
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def reading(_scope, receive, _send):
        while True:
            await receive()

    limit = BodyLimit(reading, limit_bytes=1024, timeout=timedelta(seconds=0.2))
    with pytest.raises(HTTPException) as caught:
        await limit({"type": "http", "headers": []}, receive, None)
    assert caught.value.status_code == 408


async def test_no_page_may_call_the_partner_s_door(one, sandbox):
    """A server key in a mini-app is a mistake: it fails at once, in the browser."""
    origin = "https://my-app.apps.tossmini.com"
    network = one.network.model_copy(update={"app_name": "my-app"})
    async with Bff.running(one.model_copy(update={"network": network}), sandbox) as bff:
        for path, is_open in (("/api/v1/me", True), ("/server/v1/notices", False)):
            asked = {"Origin": origin, "Access-Control-Request-Method": "GET"}
            preflight = await bff.http.options(path, headers=asked)
            answer = await bff.http.get(path, headers={"Origin": origin})
            assert ("access-control-allow-origin" in preflight.headers) == is_open
            assert ("access-control-allow-origin" in answer.headers) == is_open
