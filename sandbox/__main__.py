"""`python -m sandbox`: the sandbox, and the BFF beside it, wired by environment variables alone."""

import argparse
import base64
import contextlib
import json
import os
import queue
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from sandbox.callbacks import CallbackKind
from sandbox.crypto import write_secret
from sandbox.purchases import PRODUCTS
from sandbox.server import LOOPBACK, SandboxServer

_READY_SECONDS = 30.0
_STOP_SECONDS = 10.0


class _Stop:
    """A signal handler interrupts whoever waits, so it may not need their lock, as `threading.Event` does."""

    def __init__(self) -> None:
        self._signals: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._has_come = False

    def set(self) -> None:
        self._has_come = True
        self._signals.put(None)

    def is_set(self) -> bool:
        return self._has_come

    def wait(self, seconds: float | None = None) -> bool:
        if not self._has_come:
            with contextlib.suppress(queue.Empty):
                self._signals.get(timeout=seconds)
        return self._has_come


def main() -> int:
    options = _options()
    folder: Path = options.state_dir.resolve()
    host = options.host
    page_port = _free_port("the page", options.port, host)
    toss_port = _free_port("Toss", options.toss_port, host)
    bff_port = options.bff_port if options.only else _free_port("the BFF", options.bff_port)
    bff_url = options.bff_url or f"http://{LOOPBACK}:{bff_port}"
    partner_port = _free_port("the partner API", options.partner_port, host)
    pay_port = _free_port("Toss Pay", options.pay_port, host)
    folder.mkdir(parents=True, exist_ok=True)
    keys = _kept_keys(folder / "vault.json")
    server = SandboxServer(
        folder,
        toss_port=toss_port,
        control_port=page_port,
        partner_port=partner_port,
        pay_port=pay_port,
        events_secret=_events_secret(keys),
        bff_url=bff_url,
        host=host,
        name=options.name,
    )
    with _stop_signals() as stopped, server:
        wiring = _bff_environment(server, folder, keys, bff_port)
        for kind in CallbackKind:
            server.state.callbacks.configure(
                server.app_name,
                kind=kind,
                url=f"{options.callbacks_url or bff_url}/callbacks/toss/{kind.value}",
                auth_value=wiring[f"BFF_CALLBACKS__{kind.name}_AUTH"],
            )
        if options.only:
            if options.variables is not None:
                _write_variables(options.variables, wiring)
            _print_exports(server, wiring)
            stopped.wait()
            return 0
        # What the caller has set already wins, but for the port: it may have been busy.
        environment = wiring | os.environ | {"BFF_SERVER__PORT": str(bff_port)}
        return _run_bff(server, environment, stopped)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sandbox", description=__doc__)
    parser.add_argument("--port", type=int, default=9480, help="the page and the control API")
    parser.add_argument("--toss-port", type=int, default=9443, help="Toss, over TLS")
    parser.add_argument("--partner-port", type=int, default=9444, help="Toss's partner API, over mutual TLS")
    parser.add_argument("--pay-port", type=int, default=9445, help="Toss Pay, over mutual TLS")
    bff_port = int(os.environ.get("BFF_SERVER__PORT", "8000"))
    parser.add_argument("--bff-port", type=int, default=bff_port, help="the BFF")
    parser.add_argument("--state-dir", type=Path, default=Path("var/sandbox"), help="keys and the BFF's database")
    parser.add_argument("--only", action="store_true", help="do not start a BFF; print what it needs")
    elsewhere = parser.add_argument_group("with --only, for a BFF on another machine or in another container")
    elsewhere.add_argument("--host", default=LOOPBACK, help="address to listen on")
    elsewhere.add_argument("--name", default=LOOPBACK, help="host name by which that BFF finds the sandbox")
    elsewhere.add_argument("--bff-url", help="where a browser finds that BFF")
    elsewhere.add_argument("--callbacks-url", help="where the sandbox finds it, to call back; default: --bff-url")
    elsewhere.add_argument("--variables", type=Path, help="folder for one file with the value of each variable")
    return parser.parse_args()


def _free_port(whose: str, wanted: int, host: str = LOOPBACK) -> int:
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            found: int = probe.getsockname()[1]
            if wanted not in (found, 0):
                # Not to standard output: with --only a shell loads that.
                print(f"Port {wanted} for {whose} is busy; using {found}.", file=sys.stderr)
            return found
    raise SystemExit(f"No port is free for {whose}.")


def _bff_environment(server: SandboxServer, folder: Path, keys: dict[str, str], bff_port: int) -> dict[str, str]:
    page_port = server.control_url.rpartition(":")[2]
    return {
        "BFF_ENVIRONMENT": "development",
        "BFF_SERVER__HOST": LOOPBACK,
        "BFF_SERVER__PORT": str(bff_port),
        "BFF_SERVER__RECONCILE_EVERY": "5",
        "BFF_DATABASE__URL": f"sqlite+aiosqlite:///{folder / 'bff.db'}",
        "BFF_VAULT__KEYS": json.dumps({"k1": keys["vault"]}),
        "BFF_VAULT__ACTIVE_KEY": "k1",
        "BFF_VAULT__HASH_KEY": keys["hash"],
        "BFF_NETWORK__ALLOWED_ORIGINS": json.dumps(
            [f"http://127.0.0.1:{page_port}", f"http://localhost:{page_port}"]
        ),
        "BFF_CERT__CLIENT_ID": server.client_id,
        "BFF_CERT__CLIENT_SECRET": server.client_secret,
        "BFF_CERT__TOKEN_URL": server.token_url,
        "BFF_CERT__API_URL": server.toss_url,
        "BFF_CERT__CA_FILE": str(server.ca_file),
        "BFF_CERT__PUBLIC_KEY": server.public_key,
        "BFF_CERT__SIGNATURE_CA_FILES": json.dumps([str(path) for path in server.signature_ca_files]),
        "BFF_CERT__REQUEST_URL": "intoss://my-granite-app",
        "BFF_NETWORK__APP_NAME": server.app_name,
        "BFF_NETWORK__CALLBACK_ALLOWLIST": json.dumps([f"{LOOPBACK}/32"]),
        "BFF_CALLBACKS__LOGIN_UNLINK_AUTH": keys["callback"],
        "BFF_CALLBACKS__IAP_SUBSCRIPTION_AUTH": keys["iap_callback"],
        "BFF_CALLBACKS__PAYMENT_AUTH": keys["payment_callback"],
        "BFF_LOGIN__DECRYPTION_KEYS": json.dumps([server.decryption_key]),
        "BFF_LOGIN__AADS": json.dumps([server.aad]),
        "BFF_TOSS__API_URL": server.partner_url,
        "BFF_TOSS__PAY_URL": server.pay_url,
        "BFF_TOSS__CA_FILE": str(server.ca_file),
        "BFF_TOSS__CERTIFICATE_FOLDER": str(_client_certificates(server, folder / "client-certificates")),
        "BFF_PAY__MODE": "test",
        "BFF_PAY__CATALOGUE_FILE": str(_catalogue(folder / "catalogue.json")),
        "BFF_BILLING__ENABLED": "true",
        "BFF_BILLING__API_URL": server.pay_url,
        "BFF_PURCHASES__RENEWAL_CYCLES": json.dumps(
            {product.sku: product.cycle for product in PRODUCTS if product.cycle is not None}
        ),
        "BFF_PURCHASES__REFUND_CHECK_EVERY": "10",
        "BFF_EVENTS__URL": server.events_url,
        "BFF_EVENTS__SECRETS": json.dumps([_events_secret(keys)]),
    }


def _catalogue(path: Path) -> Path:
    """What the mini-app sells; one that is there is somebody's."""
    if not path.exists():
        products = {
            "americano": {"description": "아메리카노 1잔", "amount": 4500, "amountTaxFree": 0},
            "beans": {"description": "원두 200g", "amount": 18000, "amountTaxFree": 0},
            "book": {"description": "커피 책", "amount": 15000, "amountTaxFree": 15000},
        }
        path.write_text(json.dumps({"products": products}, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return path


def _client_certificates(server: SandboxServer, folder: Path) -> Path:
    """As somebody would have put them there who has downloaded a pair from the console."""
    folder.mkdir(exist_ok=True)
    if not list(folder.glob("*_public.crt")):
        server.issue_client_certificate().write(folder)
    return folder


def _kept_keys(path: Path) -> dict[str, str]:
    """Kept, so that a database from an earlier run can still be read."""
    kept: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    names = ("vault", "hash", "callback", "iap_callback", "payment_callback", "events")
    if missing := {name: base64.b64encode(secrets.token_bytes(32)).decode() for name in names if name not in kept}:
        kept |= missing
        write_secret(path, json.dumps(kept).encode())
    return kept


def _events_secret(keys: dict[str, str]) -> str:
    return f"whsec_{keys['events']}"


def _write_variables(folder: Path, wiring: dict[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    for name, value in wiring.items():
        write_secret(folder / name, value.encode())


def _print_exports(server: SandboxServer, wiring: dict[str, str]) -> None:
    print("# The sandbox is running. Give a BFF these variables:")
    for name, value in wiring.items():
        print(f"export {name}={shlex.quote(value)}")
    print(f"# Page         {server.control_url}/")
    print(f"# Control API  {server.control_url}/control/state")
    print(f"# Toss         {server.toss_url}")
    print(f"# Partner API  {server.partner_url}")
    print(f"# Toss Pay     {server.pay_url}", flush=True)


def _run_bff(server: SandboxServer, environment: dict[str, str], stopped: "_Stop") -> int:
    migrated = subprocess.run([sys.executable, "-m", "app", "migrate"], env=environment, check=False)
    if migrated.returncode != 0:
        print(f"The BFF's database could not be prepared (exit code {migrated.returncode}).", file=sys.stderr)
        return 1
    # A session of its own: a Ctrl+C reaches it once, through us.
    bff = subprocess.Popen([sys.executable, "-m", "app", "serve"], env=environment, start_new_session=True)
    try:
        bff_url = f"http://{environment['BFF_SERVER__HOST']}:{environment['BFF_SERVER__PORT']}"
        if _answers(f"{bff_url}/livez", bff, stopped):
            _print_addresses(server, bff_url)
        while bff.poll() is None and not stopped.wait(0.2):
            pass
        if stopped.is_set():
            return 0
        print(f"The BFF has ended (exit code {bff.returncode}); its reasons are above.", file=sys.stderr)
        return 1
    finally:
        _end(bff)


def _answers(url: str, bff: subprocess.Popen[bytes], stopped: "_Stop") -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline and bff.poll() is None and not stopped.wait(0.1):
        with contextlib.suppress(OSError), direct.open(url, timeout=1):
            return True
    return False


def _print_addresses(server: SandboxServer, bff_url: str) -> None:
    print()
    print(f"  열어 보세요 · Open   {server.control_url}/")
    print(f"  BFF API docs         {bff_url}/docs")
    print(f"  Control API          {server.control_url}/control/state")
    print(f"  Toss (sandbox)       {server.toss_url}")
    print(f"  Partner API (mTLS)   {server.partner_url}")
    print(f"  Toss Pay (mTLS)      {server.pay_url}")
    print("  Ctrl+C 로 끝내요 · ends it")
    print(flush=True)


def _end(bff: subprocess.Popen[bytes]) -> None:
    if bff.poll() is None:
        bff.terminate()
        try:
            bff.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            bff.kill()
            bff.wait()


@contextlib.contextmanager
def _stop_signals() -> Iterator["_Stop"]:
    stopped = _Stop()
    kinds = (signal.SIGINT, signal.SIGTERM)
    former = {kind: signal.signal(kind, lambda *_: stopped.set()) for kind in kinds}
    try:
        yield stopped
    finally:
        for kind, handler in former.items():
            signal.signal(kind, handler)


if __name__ == "__main__":
    sys.exit(main())
