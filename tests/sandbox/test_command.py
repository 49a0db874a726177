"""`python -m sandbox`, as a newcomer runs it."""

import base64
import json
import os
import re
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx2
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sandbox.__main__ import _free_port
from sandbox.crypto import rsa_key_from_text
from sandbox.purchases import PRODUCTS
from tests.sandbox.receiver import receiving

GIVE_UP_SECONDS = 60


@pytest.fixture
def state_dir(tmp_path, vectors):
    """With a ready-made RSA key, which takes seconds to make."""
    key = rsa_key_from_text(vectors["keys"]["test_rsa_4096"]["pkcs8_der_base64"])
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "session.key").write_bytes(pem)
    return tmp_path


@contextmanager
def running(state_dir, *options, **environment):
    command = [sys.executable, "-m", "sandbox", "--state-dir", str(state_dir), "--toss-port", "0", *options]
    own = {name: value for name, value in os.environ.items() if not name.startswith("BFF_")}
    process = subprocess.Popen(
        command, env=own | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    watchdog = threading.Timer(GIVE_UP_SECONDS, process.kill)
    watchdog.start()
    with process:
        try:
            yield process
        finally:
            watchdog.cancel()
            if process.poll() is None:
                process.send_signal(signal.SIGINT)


def read_until(process, mark):
    lines = []
    for line in process.stdout:
        lines.append(line)
        if mark in line:
            return "".join(lines)
    raise AssertionError(f"ended without saying {mark!r}:\n{''.join(lines)}")


def test_alone_it_prints_what_a_bff_needs_and_ends_when_asked(state_dir):
    with running(state_dir, "--only", "--port", "0") as process:
        said = read_until(process, "# Toss Pay")
        exports = dict(re.findall(r"^export (\w+)=(.*)$", said, re.MULTILINE))
        page = re.search(r"# Page +(\S+)", said).group(1)
        assert "본인확인" in httpx2.get(page, trust_env=False).text
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert exports["BFF_CERT__TOKEN_URL"] == f"{exports['BFF_CERT__API_URL']}/token"
    assert exports["BFF_CERT__CLIENT_ID"].startswith("test_")
    assert (state_dir / "tls-ca.pem").samefile(shlex.split(exports["BFF_CERT__CA_FILE"])[0])
    assert len(base64.b64decode(exports["BFF_VAULT__HASH_KEY"])) == 32
    exports = {name: shlex.split(value)[0] for name, value in exports.items()}
    assert exports["BFF_TOSS__PAY_URL"] == exports["BFF_BILLING__API_URL"] != exports["BFF_TOSS__API_URL"]
    assert exports["BFF_EVENTS__URL"] == f"{page}partner/events"
    assert exports["BFF_CALLBACKS__PAYMENT_AUTH"] != exports["BFF_CALLBACKS__IAP_SUBSCRIPTION_AUTH"]
    assert set(json.loads(exports["BFF_PURCHASES__RENEWAL_CYCLES"]).values()) == {"MONTHLY"}


def test_what_is_kept_outlives_a_restart(state_dir):
    own = '{"products": {}}'
    (state_dir / "catalogue.json").write_text(own, encoding="utf-8")
    said = []
    for _ in range(2):
        with running(state_dir, "--only", "--port", "0") as process:
            said.append(read_until(process, "# Toss Pay"))
    for name in ("BFF_EVENTS__SECRETS", "BFF_CALLBACKS__PAYMENT_AUTH", "BFF_VAULT__KEYS"):
        first, second = (re.search(rf"^export {name}=(.*)$", each, re.MULTILINE).group(1) for each in said)
        assert first == second
    assert (state_dir / "catalogue.json").read_text(encoding="utf-8") == own


def test_what_is_said_of_a_busy_port_is_not_among_what_a_shell_loads(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert _free_port("the page", taken.getsockname()[1]) != taken.getsockname()[1]
    out, err = capsys.readouterr()
    assert (out, "is busy" in err) == ("", True)


def test_a_busy_port_is_said_and_replaced(state_dir):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with running(state_dir, "--only", "--port", str(port)) as process:
            said = read_until(process, "# Toss Pay")
    assert f"Port {port} for the page is busy" in said
    assert f"http://127.0.0.1:{port}/" not in said


@pytest.mark.allow_hosts(["127.0.0.1", "127.0.0.7"])
def test_a_bff_elsewhere_finds_it_by_its_name_and_reads_its_variables(state_dir):
    """As in the compose file: another address, a name of its own, and the BFF behind a proxy."""
    host, folder = "127.0.0.7", state_dir / "variables"
    elsewhere = ("--host", host, "--name", "sandbox.test", "--variables", str(folder))
    with receiving() as bff:
        behind = ("--bff-url", "http://127.0.0.1:8080", "--callbacks-url", bff.url.rpartition("/callbacks")[0])
        with running(state_dir, "--only", "--port", "0", *elsewhere, *behind) as process:
            said = read_until(process, "# Toss Pay")
            found = re.findall(r"^export (\w+)=(.*)$", said, re.MULTILINE)
            exports = {name: shlex.split(value)[0] for name, value in found}
            assert {path.name: path.read_text("utf-8") for path in folder.iterdir()} == exports
            assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())
            urls = [urlsplit(exports[f"BFF_{group}__API_URL"]) for group in ("CERT", "TOSS", "BILLING")]
            assert {url.hostname for url in urls} == {"sandbox.test"}
            trusting = ssl.create_default_context(cafile=exports["BFF_CERT__CA_FILE"])
            with socket.create_connection((host, urls[0].port)) as plain:
                trusting.wrap_socket(plain, server_hostname="sandbox.test").close()
            page = urlsplit(exports["BFF_EVENTS__URL"]).port
            with httpx2.Client(base_url=f"http://{host}:{page}", trust_env=False) as client:
                assert client.get("/control/config").json()["bffUrl"] == "http://127.0.0.1:8080"
                client.post("/control/callbacks/send", json={"kind": "payment", "body": {}})
    assert [request["path"] for request in bff.requests] == ["/callbacks/toss/payment"]


def test_secrets_on_disk_are_for_the_owner_only(state_dir):
    with running(state_dir, "--only", "--port", "0") as process:
        read_until(process, "# Toss Pay")
    for name in ("signing-ca.key", "tls-ca.key", "client-ca.key", "vault.json"):
        assert (state_dir / name).stat().st_mode & 0o077 == 0


def test_a_newcomer_gets_verified_through_the_bff(state_dir):
    with running(state_dir, "--port", "0", "--bff-port", "0") as process:
        said = read_until(process, "Ctrl+C")
        page = re.search(r"Open +(\S+)/", said).group(1)
        bff = re.search(r"(\S+)/docs", said).group(1)
        with httpx2.Client(trust_env=False, timeout=10) as client:
            assert client.get(f"{page}/control/config").json()["bffUrl"] == bff
            headers = {"Origin": page}
            started = client.post(f"{bff}/api/v1/cert/requests", json={"requestType": "USER_NONE"}, headers=headers)
            assert started.status_code == 201
            assert started.headers["access-control-allow-origin"] == page
            verification = f"{bff}/api/v1/cert/requests/{started.json()['txId']}"
            headers["Authorization"] = f"Bearer {started.json()['verificationToken']}"
            early = client.post(f"{verification}/result", headers=headers)
            assert early.status_code == 409
            client.post(f"{page}/control/transactions/{started.json()['txId']}/approve")
            result = client.post(f"{verification}/result", headers=headers)
            assert result.status_code == 200
            assert result.json()["outcome"]["ageGroup"] == "ADULT"
        process.send_signal(signal.SIGINT)
        process.communicate()
        assert process.returncode == 0


def test_a_newcomer_sells_and_the_team_is_told(state_dir):
    """What the page does, without a browser: pay, buy, subscribe, and see what the team's backend received."""
    with running(state_dir, "--port", "0", "--bff-port", "0") as process:
        said = read_until(process, "Ctrl+C")
        page = re.search(r"Open +(\S+)/", said).group(1)
        bff = re.search(r"(\S+)/docs", said).group(1)
        with httpx2.Client(trust_env=False, timeout=10, headers={"Origin": page}) as client:

            def control(path, **body):
                return client.post(f"{page}/control/{path}", json=body).json()

            handed = control("users/man/login")
            del handed["askedForConsent"]
            session = client.post(f"{bff}/api/v1/login", json=handed).json()["sessionToken"]
            client.headers["Authorization"] = f"Bearer {session}"
            begun = client.post(f"{bff}/api/v1/payments", json={"productId": "americano"}).json()
            control(f"pay/{begun['payToken']}/authenticate")
            paid = client.post(f"{bff}/api/v1/payments/{begun['orderNo']}/execute").json()
            assert (paid["state"], paid["amount"]) == ("PAID", 4500)
            for kind, sku in (("orders", PRODUCTS[0].sku), ("subscriptions", PRODUCTS[1].sku)):
                order_id = control(f"iap/{kind}", user="man", sku=sku)["orderId"]
                assert client.post(f"{bff}/api/v1/purchases/{order_id}/grant").json()["state"] == "GRANTED"
            (delivery,) = control(f"iap/{order_id}/transition", reason="CREATED")["deliveries"]
            assert delivery["status"] == 200
            owned = client.get(f"{bff}/api/v1/entitlements").json()["entitlements"]
            assert {each["sku"] for each in owned} == {product.sku for product in PRODUCTS}
            expected = ["payment.paid", "purchase.granted", "purchase.granted", "subscription.changed"]
            assert sorted(each["type"] for each in told(client, page, len(expected))) == expected


def told(client, page, count):
    """Events come by themselves; the watchdog of `running` ends the wait for one that does not."""
    while len(events := client.get(f"{page}/partner/events").json()) < count:
        pass
    return [each["event"] for each in events]


def test_it_ends_with_a_reason_when_the_bff_cannot_start(state_dir):
    with running(state_dir, "--port", "0", "--bff-port", "0", BFF_VAULT__ACTIVE_KEY="unknown") as process:
        said, _ = process.communicate()
    assert process.returncode == 1
    assert "could not be prepared" in said or "The BFF has ended" in said
