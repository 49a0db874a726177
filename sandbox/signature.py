"""The user's CMS signature, in the exact shape of reference 6, by a signing CA of our own."""

import base64
import hashlib
import json
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from threading import Lock

from asn1crypto import cms
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from sandbox.clock import korean_time
from sandbox.crypto import kept_rsa_key
from sandbox.faults import SignatureVariant
from sandbox.personas import Persona

_POLICY = x509.ObjectIdentifier("1.2.410.200098.5.1.1.1.3")
_CA_NOT_BEFORE = datetime(2020, 1, 1, tzinfo=UTC)
_CA_NOT_AFTER = datetime(2060, 1, 1, tzinfo=UTC)
_BITS = 2048


@dataclass(frozen=True)
class Issuer:
    """A root and the CA under it: serial 1 and 2, as at Toss."""

    root: x509.Certificate
    ca: x509.Certificate
    ca_key: rsa.RSAPrivateKey


class SigningAuthority:
    """Keeps its keys in `folder`; the CA files there are what an operator would pin."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = Lock()
        self._issuer = self._kept_issuer("signing")

    @property
    def ca_files(self) -> list[Path]:
        """The CA, then the root."""
        return [self._folder / "signing-ca.pem", self._folder / "signing-root.pem"]

    def sign(
        self,
        *,
        tx_id: str,
        persona: Persona,
        requested_at: datetime,
        completed_at: datetime,
        variant: SignatureVariant | None = None,
    ) -> str:
        """Base64 of the DER. `variant` spoils it in one way."""
        signed_tx = str(uuid.uuid4()) if variant is SignatureVariant.OTHER_TX else tx_id
        content = _content(signed_tx, requested_at)
        issuer = self._foreign_issuer if variant is SignatureVariant.FOREIGN_CA else self._issuer
        # User certificates live three years (reference 6); this one is a year old.
        not_before = completed_at - timedelta(days=365)
        if variant is SignatureVariant.EXPIRED_LEAF:
            not_before -= timedelta(days=3 * 365)
        with self._lock:
            user_key = self._user_key
        certificate = _user_certificate(persona, user_key, issuer, not_before)
        attributes = cms.CMSAttributes(
            [
                cms.CMSAttribute({"type": "content_type", "values": ["data"]}),
                cms.CMSAttribute({"type": "signing_time", "values": [cms.Time({"utc_time": completed_at})]}),
                cms.CMSAttribute({"type": "message_digest", "values": [hashlib.sha256(content).digest()]}),
            ]
        )
        signature = user_key.sign(attributes.dump(), padding.PKCS1v15(), hashes.SHA256())
        if variant is SignatureVariant.SIGNATURE_FLIP:
            signature = bytes([signature[0] ^ 1]) + signature[1:]
        if variant is SignatureVariant.CONTENT_CHANGED:
            content = content.replace(b'"partnerCode":"TEST1"', b'"partnerCode":"TEST2"')
        return base64.b64encode(_signed_data(content, certificate, attributes, signature)).decode()

    @cached_property
    def _user_key(self) -> rsa.RSAPrivateKey:
        return kept_rsa_key(self._folder / "signing-user.key", _BITS)

    @cached_property
    def _foreign_issuer(self) -> Issuer:
        """The same names, other keys."""
        return self._kept_issuer("foreign")

    def _kept_issuer(self, label: str) -> Issuer:
        root_key = kept_rsa_key(self._folder / f"{label}-root.key", _BITS)
        ca_key = kept_rsa_key(self._folder / f"{label}-ca.key", _BITS)
        root_file, ca_file = self._folder / f"{label}-root.pem", self._folder / f"{label}-ca.pem"
        if not (root_file.exists() and ca_file.exists()):
            root_name, ca_name = _name("Sandbox Root CA1"), _name("Sandbox CA1")
            root = _authority(root_name, root_key, serial=1, issuer=root_name, issuer_key=root_key)
            ca = _authority(ca_name, ca_key, serial=2, issuer=root_name, issuer_key=root_key)
            root_file.write_bytes(root.public_bytes(Encoding.PEM))
            ca_file.write_bytes(ca.public_bytes(Encoding.PEM))
        return Issuer(
            root=x509.load_pem_x509_certificate(root_file.read_bytes()),
            ca=x509.load_pem_x509_certificate(ca_file.read_bytes()),
            ca_key=ca_key,
        )


def _content(tx_id: str, requested_at: datetime) -> bytes:
    # Keys and their order: reference 6. The serviceType of 본인확인 is not known (Q6).
    content = {
        "txId": tx_id,
        "partnerCode": "TEST1",
        "serviceType": "본인확인",
        "identifier": None,
        "userIdentifier": None,
        "requestTs": korean_time(requested_at),
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _name(common_name: str, uid: str | None = None) -> x509.Name:
    # All UTF8String, the country too (reference 6), which the library offers by a private name only.
    utf8 = _ASN1Type.UTF8String
    parts = [
        x509.NameAttribute(NameOID.COUNTRY_NAME, "KR", utf8),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "TEST ONLY", utf8),
        x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "Cert Sandbox", utf8),
    ]
    if uid is not None:
        parts.append(x509.NameAttribute(NameOID.USER_ID, uid, utf8))
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common_name, utf8)])


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=not ca,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _authority(
    name: x509.Name,
    key: rsa.RSAPrivateKey,
    *,
    serial: int,
    issuer: x509.Name,
    issuer_key: rsa.RSAPrivateKey,
) -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(_CA_NOT_BEFORE)
        .not_valid_after(_CA_NOT_AFTER)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


def _user_certificate(
    persona: Persona, key: rsa.RSAPrivateKey, issuer: Issuer, not_before: datetime
) -> x509.Certificate:
    policy = x509.PolicyInformation(_POLICY, None)
    crl = x509.UniformResourceIdentifier("http://ca.sandbox.invalid/crl/sandbox_crl.crl")
    ocsp = x509.UniformResourceIdentifier("http://ocsp.sandbox.invalid/")
    return (
        x509.CertificateBuilder()
        .subject_name(_name(persona.name, persona.uid))
        .issuer_name(issuer.ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_before + timedelta(days=3 * 365))
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.CertificatePolicies([policy]), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.ca_key.public_key()), critical=False
        )
        .add_extension(
            x509.CRLDistributionPoints([x509.DistributionPoint([crl], None, None, None)]), critical=False
        )
        .add_extension(
            x509.AuthorityInformationAccess([x509.AccessDescription(AuthorityInformationAccessOID.OCSP, ocsp)]),
            critical=False,
        )
        .sign(issuer.ca_key, hashes.SHA256())
    )


def _signed_data(
    content: bytes, certificate: x509.Certificate, attributes: cms.CMSAttributes, signature: bytes
) -> bytes:
    """Built by hand because `cryptography`'s builder always stamps the real time as signingTime."""
    user = asn1_x509.Certificate.load(certificate.public_bytes(Encoding.DER))
    signer = cms.SignerInfo(
        {
            "version": "v1",
            "sid": cms.SignerIdentifier(
                "issuer_and_serial_number",
                cms.IssuerAndSerialNumber({"issuer": user.issuer, "serial_number": user.serial_number}),
            ),
            "digest_algorithm": {"algorithm": "sha256"},
            "signed_attrs": attributes,
            "signature_algorithm": {"algorithm": "rsassa_pkcs1v15"},
            "signature": signature,
        }
    )
    signed = cms.SignedData(
        {
            "version": "v1",
            "digest_algorithms": [{"algorithm": "sha256"}],
            "encap_content_info": {"content_type": "data", "content": content},
            "certificates": [user],
            "signer_infos": [signer],
        }
    )
    der: bytes = cms.ContentInfo({"content_type": "signed_data", "content": signed}).dump()
    return der
