import json
from pathlib import Path

import pytest

from sandbox.server import SandboxServer
from tests.sandbox.client import CertClient
from tests.sandbox.partner import PartnerClient, PayClient, partner_tls

VECTORS = Path(__file__).parents[1] / "data" / "toss-cert.json"
EVENTS_SECRET = "whsec_QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVoxMjM0NTY="


@pytest.fixture(scope="session")
def vectors():
    return json.loads(VECTORS.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def running_sandbox(tmp_path_factory, vectors):
    key = vectors["keys"]["test_rsa_4096"]["pkcs8_der_base64"]
    folder = tmp_path_factory.mktemp("sandbox")
    with SandboxServer(folder, session_key=key, events_secret=EVENTS_SECRET) as server:
        yield server


@pytest.fixture
def sandbox(running_sandbox):
    yield running_sandbox
    running_sandbox.state.reset()


@pytest.fixture(scope="session")
def pair(running_sandbox):
    return running_sandbox.issue_client_certificate()


@pytest.fixture(scope="session")
def pair_tls(running_sandbox, pair, tmp_path_factory):
    return partner_tls(running_sandbox, pair, tmp_path_factory.mktemp("pair"))


@pytest.fixture
def partner(sandbox, pair_tls):
    client = PartnerClient(sandbox, pair_tls)
    yield client
    client.http.close()


@pytest.fixture
def pay(partner, pair_tls):
    client = PayClient(partner, pair_tls)
    yield client
    client.http.close()


@pytest.fixture
def cert(sandbox):
    client = CertClient(sandbox)
    yield client
    client.http.close()
