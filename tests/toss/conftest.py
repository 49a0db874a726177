"""An authority whose servers and client certificate a test may use, and connections to the sandbox."""

import pytest
import trustme

from tests.toss.partners import transport_at


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    authority = trustme.CA()
    folder = tmp_path_factory.mktemp("ca")
    authority.file, authority.pairs = folder / "ca.pem", folder / "pairs"
    authority.cert_pem.write_to_path(str(authority.file))
    pair = authority.issue_cert("client@mini.app", common_name="mini-app")
    authority.pairs.mkdir()
    pair.private_key_pem.write_to_path(str(authority.pairs / "app_private.key"))
    pair.cert_chain_pems[0].write_to_path(str(authority.pairs / "app_public.crt"))
    return authority


@pytest.fixture(scope="module")
def pair_folder(sandbox_server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    sandbox_server.issue_client_certificate().write(folder)
    return folder


@pytest.fixture(scope="module")
async def transport(sandbox_server, pair_folder):
    """A TLS context costs more than a test."""
    where = {"ca_file": sandbox_server.ca_file, "folder": pair_folder}
    async with transport_at(sandbox_server.partner_url, **where) as transport:
        yield transport
