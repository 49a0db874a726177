"""The console's "mTLS 인증서": a CA of our own, the pairs it issues, the TLS that demands one (reference 2.2)."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from typing_extensions import override

from sandbox.crypto import write_secret

LIFE_DAYS = 390.0  # reference 2.2

_LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
_FAR_AWAY = datetime(2060, 1, 1, tzinfo=UTC)


class KeyType(StrEnum):
    RSA = "rsa"
    """As Toss issues them, says the community (reference 2.2)."""
    EC = "ec"


@dataclass(frozen=True)
class ClientCertificate:
    """A pair as the console hands it out, once."""

    app_name: str
    serial: int
    not_before: datetime
    not_after: datetime
    public_crt: str = field(repr=False)
    private_key: str = field(repr=False)

    def write(self, folder: Path, name: str | None = None) -> tuple[Path, Path]:
        """`<name>_public.crt` and `<name>_private.key`, as in the console's zip; by default named after the app."""
        folder.mkdir(parents=True, exist_ok=True)
        crt, key = (folder / f"{name or self.app_name}{end}" for end in ("_public.crt", "_private.key"))
        write_secret(key, self.private_key.encode())
        crt.write_text(self.public_crt, encoding="ascii")
        return crt, key


class ClientAuthority:
    """Keeps its key in `folder`. Another folder makes another authority of the same name."""

    def __init__(self, folder: Path) -> None:
        self.ca_file = folder / "client-ca.pem"
        key_file = folder / "client-ca.key"
        if not (self.ca_file.exists() and key_file.exists()):
            made = ec.generate_private_key(ec.SECP256R1())
            write_secret(key_file, made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            self.ca_file.write_bytes(_root(made).public_bytes(Encoding.PEM))
        key = load_pem_private_key(key_file.read_bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key
        self._certificate = x509.load_pem_x509_certificate(self.ca_file.read_bytes())

    def issue(
        self,
        app_name: str,
        *,
        days: float = LIFE_DAYS,
        days_left: float | None = None,
        not_before: datetime | None = None,
        key_type: KeyType | str = KeyType.RSA,
    ) -> ClientCertificate:
        """Dates are real time: that is what TLS goes by.

        It begins an hour ago, or at `not_before`, and lasts `days`. `days_left` instead lets a life of `days` end
        that far from now: 3 makes a nearly expired one, -1 an expired one.
        """
        now = datetime.now(UTC).replace(microsecond=0)
        begin = not_before or now - timedelta(hours=1)
        if days_left is not None:
            begin = now + timedelta(days=days_left - days)
        key = _key(KeyType(key_type))
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, app_name)]))
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        return ClientCertificate(
            app_name=app_name,
            serial=certificate.serial_number,
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            public_crt=certificate.public_bytes(Encoding.PEM).decode(),
            private_key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        )

    def revocation_list(self, serials: frozenset[int]) -> bytes:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(_LONG_AGO)
            .next_update(_FAR_AWAY)
        )
        for serial in serials:
            revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(_LONG_AGO)
            builder = builder.add_revoked_certificate(revoked.build())
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)


@dataclass(frozen=True)
class Demands:
    """What a new connection has to bring."""

    certificate: bool
    revoked: frozenset[int]
    tls_1_3: bool


class _Telling(ssl.SSLObject):
    """asyncio drops a connection whose handshake fails without sending the alert that says why; this lets it."""

    _failure: ssl.SSLError | None = None

    @override
    def do_handshake(self) -> None:
        if self._failure is not None:
            raise self._failure
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as failure:
            self._failure = failure
            raise ssl.SSLWantReadError from failure  # it sends what there is and comes back


class DemandingTls(ssl.SSLContext):
    """A context for a listener whose demands may change between two connections."""

    _authority: ClientAuthority
    _base: Callable[[], ssl.SSLContext]
    _demands: Callable[[], Demands]
    _made: tuple[Demands, ssl.SSLContext] | None

    @classmethod
    def of(
        cls, authority: ClientAuthority, base: Callable[[], ssl.SSLContext], demands: Callable[[], Demands]
    ) -> "DemandingTls":
        """`base` makes contexts with the server's certificate."""
        made = cls(ssl.PROTOCOL_TLS_SERVER)
        made._authority, made._base, made._demands, made._made = authority, base, demands, None
        return made

    @override
    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """What asyncio calls for each connection."""
        return self._current().wrap_bio(incoming, outgoing, server_side, server_hostname, session)

    def _current(self) -> ssl.SSLContext:
        demands = self._demands()
        if self._made is None or self._made[0] != demands:
            self._made = demands, self._context(demands)
        return self._made[1]

    def _context(self, demands: Demands) -> ssl.SSLContext:
        context = self._base()
        context.sslobject_class = _Telling
        # An unknown, expired or revoked certificate fails the handshake even where none is needed.
        context.verify_mode = ssl.CERT_REQUIRED if demands.certificate else ssl.CERT_OPTIONAL
        context.load_verify_locations(self._authority.ca_file)
        revoked_file = self._authority.ca_file.with_name("client-revoked.pem")
        revoked_file.write_bytes(self._authority.revocation_list(demands.revoked))
        context.load_verify_locations(revoked_file)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        if not demands.tls_1_3:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        return context


def _key(key_type: KeyType) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey:
    if key_type is KeyType.EC:
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _root(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name(
        [
            # One observer saw `Toss appsintosp Root CA` of Viva Republic (reference 2.2); this one says what it is.
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Apps-in-Toss sandbox, TEST ONLY"),
            x509.NameAttribute(NameOID.COMMON_NAME, "Sandbox appsintosp Root CA"),
        ]
    )
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_LONG_AGO)
        .not_valid_after(_FAR_AWAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
