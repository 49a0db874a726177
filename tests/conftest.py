"""Fixtures: real servers once a session, a fresh database for every test, scenarios instead of fragments."""

import asyncio
import json
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest
from redis import Redis

from app.database import Database
from app.observability import configure_logging
from app.settings import Settings
from sandbox.server import SandboxServer
from tests.leaks import HASH_KEY, MANY, VAULT_KEY, leaks
from tests.scenarios import MINI_APP_ADDRESS, Bff
from tests.servers import postgres, redis

UNLINK_AUTH = "toss-calls:G8k2pX5vQ9sT1mZ7"
CONSENT_AUTH = "toss-tells:W4n6cR3jY8hB2dL5"
PAYMENT_AUTH = "toss-pays:K7m3xD9wF5qH2vN8"
SUBSCRIPTION_AUTH = "toss-renews:P4s8bL6zC1tY9gR3"
CATALOGUE = Path(__file__).parent / "data" / "catalogue.json"
VECTORS = Path(__file__).parent / "data" / "toss-cert.json"


def pytest_configure(config) -> None:
    """Each worker has a log of its own, for `nothing_secret_is_logged`."""
    config.option.log_file = str(Path(tempfile.mkdtemp(prefix="bff-tests-")) / "run.log")


def pytest_xdist_auto_num_workers() -> int:
    """Each has servers of its own, unless they are given: then they serve one."""
    is_given = any(name in os.environ for name in ("TEST_DATABASE_URL", "TEST_REDIS_URL"))
    return 1 if is_given else min(os.cpu_count() or 1, 4)


@pytest.fixture(scope="session")
def handed_out() -> set[str]:
    """Every code, token, key and userKey that Toss has given out during the run."""
    return set()


@pytest.fixture(scope="session", autouse=True)
def nothing_secret_is_logged(request, handed_out) -> Iterator[None]:
    """G11 over the whole run: pytest writes everything that is logged, at DEBUG and unredacted, into one file, and
    the servers that tests start write there too. It is searched when they have all ended."""
    yield
    lines = Path(request.config.option.log_file).read_text("utf-8").splitlines()
    assert leaks(lines, handed_out) == []
    if request.session.testscollected >= MANY:
        assert any("verification_result_stored" in line for line in lines)
        assert any("logged_in" in line for line in lines)
        assert handed_out


@pytest.fixture(scope="session", autouse=True)
def logging_as_in_production(tmp_path_factory) -> Iterator[None]:
    with (tmp_path_factory.mktemp("logs") / "service.log").open("w", encoding="utf-8") as stream:
        root = logging.getLogger()
        of_pytest = root.handlers[:]
        configure_logging(level="DEBUG", is_json=True, stream=stream)
        root.handlers += of_pytest
        yield
        root.handlers = of_pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def vectors() -> dict:
    return json.loads(VECTORS.read_text("utf-8"))


@pytest.fixture(scope="session")
def sandbox_server(tmp_path_factory, vectors) -> Iterator[SandboxServer]:
    """One Toss for the whole session, over real TLS; `sandbox` hands it out as new."""
    key = vectors["keys"]["test_rsa_4096"]["pkcs8_der_base64"]
    with SandboxServer(tmp_path_factory.mktemp("sandbox"), session_key=key) as server:
        folder = client_certificates_of(server)
        folder.mkdir()
        server.issue_client_certificate().write(folder)
        yield server


@pytest.fixture
def sandbox(sandbox_server, handed_out) -> Iterator[SandboxServer]:
    sandbox_server.state.reset()
    yield sandbox_server
    sandbox_server.state.release()
    toss = sandbox_server.state.mini_apps
    handed_out.update(toss._codes, toss._access, toss._refresh, toss._anon_keys)
    handed_out.update(str(link.user_key) for link in toss._links.values())
    handed_out.update(payment.pay_token for payment in sandbox_server.state.pay.payments())
    keys = sandbox_server.state.billing.keys()
    handed_out.update(key.wrapped_token for key in keys)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    with redis() as url:
        yield url


@dataclass(frozen=True)
class Backend:
    """Where facts and shared state live. The same tests run on both (G15)."""

    name: str
    database_url: str
    redis_url: str | None


async def migrate(url: str) -> None:
    database = Database(url, pool_size=1, timeout=timedelta(seconds=30))
    await database.migrate()
    await database.aclose()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    asyncio.run(migrate(f"sqlite+aiosqlite:///{path}"))
    return path


@pytest.fixture(scope="session")
async def postgres_template(postgres_server) -> str:
    await _create_database(postgres_server, "bff_template")
    await migrate(f"{postgres_server}/bff_template")
    return "bff_template"


async def _create_database(server: str, name: str, *, template: str = "template1") -> str:
    connection = await asyncpg.connect(f"{server}/postgres".replace("+asyncpg", ""))
    await connection.execute(f'DROP DATABASE IF EXISTS "{name}"')
    await connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    await connection.close()
    return f"{server}/{name}"


@pytest.fixture
def embedded(sqlite_template, tmp_path) -> Backend:
    path = tmp_path / "bff.db"
    shutil.copy(sqlite_template, path)
    return Backend("embedded", f"sqlite+aiosqlite:///{path}", None)


@pytest.fixture
async def production(postgres_server, postgres_template, redis_server) -> Backend:
    with Redis.from_url(redis_server) as client:
        client.flushall()
    name = f"test_{uuid.uuid4().hex}"
    url = await _create_database(postgres_server, name, template=postgres_template)
    return Backend("production", url, redis_server)


@pytest.fixture(params=["embedded", "production"])
def backend(request) -> Backend:
    return request.getfixturevalue(request.param)


def client_certificates_of(sandbox: SandboxServer) -> Path:
    """The folder of pairs that a BFF would have from the console."""
    return sandbox.client_ca_file.parent / "of-the-bff"


def without_callbacks(settings: Settings) -> Settings:
    """As it is before anybody has set up the console: no callback, Toss's addresses, no client certificate."""
    groups = ("network", "callbacks", "toss")
    return settings.model_copy(update={group: Settings.model_fields[group].default for group in groups})


def settings_for(backend: Backend, sandbox: SandboxServer, **cert: object) -> Settings:
    """Settings that point at the sandbox; `cert` overrides fields of its group."""
    return Settings.model_validate(
        {
            "server": {"reconcile_every": 0},
            "database": {"url": backend.database_url},
            "redis": {"url": backend.redis_url},
            "vault": {"keys": {"k1": VAULT_KEY}, "active_key": "k1", "hash_key": HASH_KEY},
            "cert": {
                "client_id": sandbox.client_id,
                "client_secret": sandbox.client_secret,
                "token_url": sandbox.token_url,
                "api_url": sandbox.toss_url,
                "ca_file": str(sandbox.ca_file),
                "public_key": sandbox.public_key,
                "signature_ca_files": [str(file) for file in sandbox.signature_ca_files],
                **cert,
            },
            "toss": {
                "api_url": sandbox.partner_url,
                "pay_url": sandbox.pay_url,
                "ca_file": str(sandbox.ca_file),
                "certificate_folder": str(client_certificates_of(sandbox)),
            },
            "network": {"callback_allowlist": [f"{MINI_APP_ADDRESS}/32", "127.0.0.1/32"]},
            "limits": {"per_minute": 1_000_000, "starts_per_minute": 1_000_000},
            "callbacks": {
                "login_unlink_auth": UNLINK_AUTH,
                "consent_withdrawal_auth": CONSENT_AUTH,
                "payment_auth": PAYMENT_AUTH,
                "iap_subscription_auth": SUBSCRIPTION_AUTH,
            },
            "pay": {"mode": "test", "catalogue_file": str(CATALOGUE)},
            "billing": {"enabled": True, "api_url": sandbox.pay_url},
            "login": {"decryption_keys": [sandbox.decryption_key], "aads": [sandbox.aad]},
        }
    )


def patient(settings: Settings) -> Settings:
    """With time for fifty callers at once, who wait for one another at SQLite."""
    database = settings.database.model_copy(update={"timeout": timedelta(seconds=30)})
    return settings.model_copy(update={"database": database})


@pytest.fixture
def settings(backend, sandbox) -> Settings:
    return settings_for(backend, sandbox)


@pytest.fixture
async def bff(settings, sandbox) -> AsyncIterator[Bff]:
    """The whole application in this process, over ASGI, with the middleware of production."""
    async with Bff.running(settings, sandbox) as running:
        yield running
