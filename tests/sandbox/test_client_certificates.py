"""The partner API's door: real TLS, with every kind of client certificate and none."""

import ssl
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID

from sandbox.client_certificates import ClientAuthority
from tests.sandbox.partner import LOGIN, PartnerClient, bare, failure, partner_tls, success

REFUSED = (httpx2.HTTPError, ssl.SSLError)


@pytest.fixture
def calling(sandbox, tmp_path):
    @contextmanager
    def client(pair, **switches):
        sandbox.state.set_switches(**switches)
        with PartnerClient(sandbox, partner_tls(sandbox, pair, tmp_path)).http as http:
            yield http

    return client


def reason(caught):
    error = caught.value
    while not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error.reason


def ask(http):
    return http.get(f"{LOGIN}/login-me")


def test_a_pair_is_as_the_console_hands_it_out(sandbox, tmp_path):
    pair = sandbox.issue_client_certificate()
    crt, key = pair.write(tmp_path / "new", "my-cert")
    assert (crt.name, key.name) == ("my-cert_public.crt", "my-cert_private.key")
    assert key.stat().st_mode & 0o077 == 0
    certificate = x509.load_pem_x509_certificate(crt.read_bytes())
    assert [part.value for part in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == [
        "my-granite-app"
    ]
    assert certificate.serial_number == pair.serial
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == timedelta(days=390)
    assert key.read_text().startswith("-----BEGIN PRIVATE KEY-----")
    private = load_pem_private_key(key.read_bytes(), None)
    assert isinstance(private, rsa.RSAPrivateKey)
    assert private.public_key() == certificate.public_key()
    assert pair.private_key not in repr(pair)
    assert pair.write(tmp_path)[0].name == "my-granite-app_public.crt"


def test_dates_and_keys_by_wish(sandbox):
    begin = datetime(2030, 1, 1, tzinfo=UTC)
    pair = sandbox.issue_client_certificate("other", days=5, not_before=begin, key_type="ec")
    assert (pair.not_before, pair.not_after) == (begin, begin + timedelta(days=5))
    assert isinstance(load_pem_private_key(pair.private_key.encode(), None), ec.EllipticCurvePrivateKey)
    soon = sandbox.issue_client_certificate(days_left=3, key_type="ec")
    assert timedelta(days=2, hours=23) < soon.not_after - datetime.now(UTC) <= timedelta(days=3)
    assert soon.not_after - soon.not_before == timedelta(days=390)


@pytest.mark.parametrize("options", [{}, {"days_left": 3}, {"key_type": "ec"}])
@pytest.mark.parametrize("tls_1_3", [True, False])
def test_valid_pairs_are_let_in(sandbox, calling, options, tls_1_3):
    with calling(sandbox.issue_client_certificate(**options), tls_1_3=tls_1_3) as http:
        assert bare(ask(http)) == (401, {"error": "invalid_grant"})


def test_several_pairs_of_one_app_work_at_once(sandbox, calling, partner):
    tokens = partner.tokens()
    with calling(sandbox.issue_client_certificate(key_type="ec")) as http:
        headers = {"Authorization": f"Bearer {tokens['accessToken']}"}
        assert success(http.get(f"{LOGIN}/login-me", headers=headers))["userKey"]


@pytest.mark.parametrize("tls_1_3", [True, False])
def test_without_a_certificate_the_handshake_fails(calling, tls_1_3):
    with calling(None, tls_1_3=tls_1_3) as http, pytest.raises(REFUSED) as caught:
        ask(http)
    expected = "TLSV13_ALERT_CERTIFICATE_REQUIRED" if tls_1_3 else "SSLV3_ALERT_HANDSHAKE_FAILURE"
    assert reason(caught) == expected


@pytest.mark.parametrize("tls_1_3", [True, False])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"days_left": -1}, "SSLV3_ALERT_CERTIFICATE_EXPIRED"),
        ({"not_before": datetime.now(UTC) + timedelta(days=2)}, "SSLV3_ALERT_BAD_CERTIFICATE"),
    ],
)
def test_a_certificate_out_of_its_dates_fails_the_handshake(sandbox, calling, options, expected, tls_1_3):
    pair = sandbox.issue_client_certificate(**options)
    with calling(pair, tls_1_3=tls_1_3) as http, pytest.raises(REFUSED) as caught:
        ask(http)
    assert reason(caught) == expected


@pytest.mark.parametrize("missing_certificate", ["handshake", "status_401"])
def test_a_certificate_of_another_authority_fails_the_handshake(calling, tmp_path, missing_certificate):
    pair = ClientAuthority(tmp_path).issue("my-granite-app")
    with calling(pair, missing_certificate=missing_certificate) as http, pytest.raises(REFUSED) as caught:
        ask(http)
    # The same name with another key: a signature that does not verify.
    assert reason(caught) in {"TLSV1_ALERT_UNKNOWN_CA", "TLSV1_ALERT_DECRYPT_ERROR"}


def test_a_revoked_certificate_fails_the_handshake_and_the_others_do_not(sandbox, calling, partner):
    pair, other = (sandbox.issue_client_certificate(key_type="ec") for _ in range(2))
    for serial in (pair.serial, other.serial):
        sandbox.revoke(serial)
        with calling(pair) as http, pytest.raises(REFUSED) as caught:
            ask(http)
        assert reason(caught) == "SSLV3_ALERT_CERTIFICATE_REVOKED"
    with calling(other) as http, pytest.raises(REFUSED):
        ask(http)
    assert ask(partner.http).status_code == 401


def test_revocation_ends_a_kept_connection_at_its_next_request(sandbox, calling):
    pair = sandbox.issue_client_certificate(key_type="ec")
    with calling(pair) as http:
        assert ask(http).status_code == 401
        sandbox.revoke(pair.serial)
        with pytest.raises((httpx2.ReadError, httpx2.RemoteProtocolError)):
            ask(http)
        with pytest.raises(REFUSED):
            ask(http)
    assert len(sandbox.state.calls("login_me")) == 1


def test_reset_forgets_revocations(sandbox, calling):
    pair = sandbox.issue_client_certificate(key_type="ec")
    sandbox.revoke(pair.serial)
    sandbox.state.reset()
    with calling(pair) as http:
        assert ask(http).status_code == 401


def test_a_certificate_expires_by_the_moved_clock_too(sandbox, partner):
    assert ask(partner.http).status_code == 401
    sandbox.state.clock.advance(timedelta(days=391).total_seconds())
    with pytest.raises((httpx2.ReadError, httpx2.RemoteProtocolError)):
        ask(partner.http)


def test_without_a_certificate_it_may_answer_instead(calling):
    with calling(None, missing_certificate="status_401") as http:
        assert failure(ask(http)) == (401, "4010")
    with calling(None, missing_certificate="html_400") as http:
        answer = ask(http)
        assert answer.status_code == 400
        assert answer.headers["content-type"].startswith("text/html")


def test_demands_change_between_two_connections(calling, sandbox):
    with calling(None, missing_certificate="status_401") as http:
        assert ask(http).status_code == 401
    with calling(None, missing_certificate="handshake") as http, pytest.raises(REFUSED):
        ask(http)
    sandbox.state.reset()


def test_other_paths_and_methods_are_not_found(partner):
    for method, path in (("GET", "/"), ("GET", f"{LOGIN}/generate-token"), ("POST", f"{LOGIN}/login-me")):
        assert partner.http.request(method, path).status_code == 404
    assert partner.sandbox.state.calls() == []


def test_partner_paths_are_not_served_without_mtls(cert):
    assert cert.http.get(f"{LOGIN}/login-me").status_code == 404
