"""The proxy of the compose file, with its own configuration file, in front of the service (G10).

Loopback has many addresses: what stands for Toss and for a stranger here are two that the proxy tells apart.
"""

import os
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from app.settings import Settings
from tests.callbacks.toss import AUTHORIZED, UNLINK, USER
from tests.conftest import settings_for
from tests.hosts import Host, answering
from tests.processes import ROOT, serving
from tests.servers import free_port

CADDY = Path(sysconfig.get_path("scripts")) / "caddy"
CONFIGURATION = ROOT / "deploy" / "proxy" / "Caddyfile"
PROXY, TOSS, STRANGER = "127.0.0.1", "127.0.0.5", "127.0.0.6"
"""A proxy calls the service from the first, as loopback gives it to whoever does not choose."""
FORGED = [
    TOSS,
    f"{TOSS}, {TOSS}",
    f"{TOSS}, {PROXY}",
    f"{STRANGER}, {TOSS}",
    "117.52.3.80",
    "::ffff:127.0.0.5",
]


@contextmanager
def proxy(folder: Path, upstream: str) -> Iterator[str]:
    port = free_port()
    own = {"SITE": f":{port}", "UPSTREAM_NAME": PROXY, "UPSTREAM_PORT": str(urlsplit(upstream).port)}
    places = {name: str(folder) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")}
    process = subprocess.Popen(
        [CADDY, "run", "--config", CONFIGURATION, "--adapter", "caddyfile"],
        env=os.environ | own | places,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "serving initial configuration" in line:
                break
        else:
            raise AssertionError("".join(said))
        try:
            yield f"http://{PROXY}:{port}"
        finally:
            process.terminate()
            process.stderr.read()  # so that it never waits for a reader


def calling_from(address: str, url: str) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=url, transport=httpx2.AsyncHTTPTransport(local_address=address), timeout=20)


@pytest.fixture
def behind_the_proxy(embedded, sandbox) -> Settings:
    settings = settings_for(embedded, sandbox)
    addresses = {"trusted_proxies": (ip_network(PROXY),), "callback_allowlist": (ip_network(TOSS),)}
    return settings.model_copy(update={"network": settings.network.model_copy(update=addresses)})


async def call_back(url: str, source: str, **headers: str) -> int:
    said = {name.replace("_", "-"): text for name, text in headers.items()}
    async with calling_from(source, url) as http:
        answer = await http.post(UNLINK, json={"userKey": USER, "referrer": "UNLINK"}, headers=AUTHORIZED | said)
    return answer.status_code


async def test_toss_passes_and_nobody_who_says_to_be_toss(behind_the_proxy, tmp_path):
    with serving(behind_the_proxy) as server, proxy(tmp_path, server.url) as url:
        assert await call_back(url, TOSS) == 200
        assert await call_back(url, TOSS, X_Forwarded_For=STRANGER) == 200
        assert await call_back(url, STRANGER) == 403
        for forged in FORGED:
            assert await call_back(url, STRANGER, X_Forwarded_For=forged) == 403, forged
            assert await call_back(url, STRANGER, X_Real_IP=forged, Forwarded=f"for={forged}") == 403, forged
            assert await call_back(server.url, STRANGER, X_Forwarded_For=forged) == 403, forged


async def test_the_proxy_passes_on_only_what_it_has_seen(tmp_path):
    async with Host.running(answering(b"{}")) as host:
        with proxy(tmp_path, host.url) as url:
            for forged in FORGED:
                async with calling_from(STRANGER, url) as http:
                    await http.get("/livez", headers={"X-Forwarded-For": forged, "X-Forwarded-Proto": "https"})
    for request in host.requests:
        head = request.decode().lower().split("\r\n")
        said = [line.partition(": ")[2] for line in head if line.startswith("x-forwarded-for:")]
        assert said == [STRANGER]
    assert len(host.requests) == len(FORGED)


async def test_metrics_stay_inside(behind_the_proxy, tmp_path):
    with serving(behind_the_proxy) as server, proxy(tmp_path, server.url) as url:
        async with calling_from(PROXY, url) as outside, calling_from(PROXY, server.url) as inside:
            for path in ("/metrics", "/metrics/", "/%6detrics", "//metrics", "/metrics%0A"):
                assert (await outside.get(path)).status_code == 404, path
            assert (await outside.get("/livez")).status_code == 200
            assert (await inside.get("/metrics")).status_code == 200
