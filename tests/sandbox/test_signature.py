"""The CMS value, taken apart with asn1crypto and checked the way reference 6 lists."""

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta

import pytest
from asn1crypto import cms
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.x509.oid import NameOID

POLICY = "1.2.410.200098.5.1.1.1.3"


class Parsed:
    def __init__(self, text):
        der = base64.b64decode(text, validate=True)
        info = cms.ContentInfo.load(der, strict=True)
        assert info["content_type"].native == "signed_data"
        self.data = info["content"]
        (self.signer,) = self.data["signer_infos"]
        (certificate,) = self.data["certificates"]
        self.certificate = x509.load_der_x509_certificate(certificate.chosen.dump())
        self.content = self.data["encap_content_info"]["content"].native
        self.attributes = {
            attribute["type"].native: attribute["values"].native[0] for attribute in self.signer["signed_attrs"]
        }

    def digest_agrees(self):
        return self.attributes["message_digest"] == hashlib.sha256(self.content).digest()

    def signature_agrees(self):
        attributes = self.signer["signed_attrs"].untag().dump(force=True)
        try:
            self.certificate.public_key().verify(
                self.signer["signature"].native, attributes, padding.PKCS1v15(), hashes.SHA256()
            )
        except InvalidSignature:
            return False
        return True

    def issued_by(self, ca):
        try:
            self.certificate.verify_directly_issued_by(ca)
        except InvalidSignature:
            return False
        return True


@pytest.fixture
def chain(sandbox):
    return [x509.load_pem_x509_certificate(path.read_bytes()) for path in sandbox.signature_ca_files]


def signature_of(cert, tx_id):
    return Parsed(cert.result(tx_id).json()["success"]["signature"])


def test_a_good_signature_has_the_documented_shape(cert, sandbox, chain):
    tx_id = cert.approved()
    parsed = signature_of(cert, tx_id)
    transaction = sandbox.state.transaction(tx_id)

    assert parsed.data["version"].native == "v1"
    assert [each["algorithm"].native for each in parsed.data["digest_algorithms"]] == ["sha256"]
    assert parsed.data["encap_content_info"]["content_type"].native == "data"
    assert parsed.data["crls"].native is None
    assert parsed.signer["unsigned_attrs"].native is None
    assert parsed.signer["sid"].name == "issuer_and_serial_number"
    assert parsed.signer["sid"].chosen["serial_number"].native == parsed.certificate.serial_number
    assert parsed.signer["signature_algorithm"]["algorithm"].dotted == "1.2.840.113549.1.1.1"
    assert set(parsed.attributes) == {"content_type", "signing_time", "message_digest"}
    assert parsed.attributes["signing_time"] == transaction.completed_at.replace(microsecond=0)
    assert len(parsed.signer["signature"].native) == 256
    assert parsed.digest_agrees()
    assert parsed.signature_agrees()

    content = json.loads(parsed.content)
    assert list(content) == [
        "txId",
        "partnerCode",
        "serviceType",
        "identifier",
        "userIdentifier",
        "requestTs",
    ]
    assert content["txId"] == tx_id
    assert datetime.fromisoformat(content["requestTs"]) == transaction.requested_at.replace(microsecond=0)
    assert json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() == parsed.content

    ca, root = chain
    assert parsed.issued_by(ca)
    ca.verify_directly_issued_by(root)
    assert (root.serial_number, ca.serial_number) == (1, 2)


def test_the_users_certificate(cert):
    certificate = signature_of(cert, cert.approved()).certificate
    (name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    (uid,) = certificate.subject.get_attributes_for_oid(NameOID.USER_ID)
    assert name.value == "김토스"
    assert len(uid.value) == 24
    assert uid.value.isdigit()
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert usage.value.content_commitment
    policies = certificate.extensions.get_extension_for_class(x509.CertificatePolicies)
    assert policies.critical
    assert [policy.policy_identifier.dotted_string for policy in policies.value] == [POLICY]
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert life == timedelta(days=3 * 365)
    assert certificate.not_valid_before_utc < datetime.now(UTC) < certificate.not_valid_after_utc


def test_the_good_vector_has_the_same_shape(vectors):
    (good,) = [case for case in vectors["cms"]["cases"] if case["case"] == "valid"]
    parsed = Parsed(good["signature_base64"])
    assert set(parsed.attributes) == {"content_type", "signing_time", "message_digest"}
    assert parsed.digest_agrees()
    assert parsed.signature_agrees()


def test_signatures_follow_the_sandboxs_clock(cert, sandbox):
    sandbox.state.clock.advance(400 * 86400)
    tx_id = cert.approved()
    parsed = signature_of(cert, tx_id)
    completed = sandbox.state.transaction(tx_id).completed_at
    assert parsed.attributes["signing_time"] == completed.replace(microsecond=0)
    assert parsed.certificate.not_valid_before_utc < completed < parsed.certificate.not_valid_after_utc


@pytest.mark.parametrize(
    ("variant", "broken"),
    [
        ("content_changed", "digest"),
        ("signature_flip", "signature"),
        ("other_tx", "transaction"),
        ("expired_leaf", "dates"),
        ("foreign_ca", "issuer"),
    ],
)
def test_each_bad_signature_is_bad_in_one_way(cert, sandbox, chain, variant, broken):
    tx_id = cert.approved()
    sandbox.state.order_fault("result", "bad_signature", variant=variant)
    parsed = signature_of(cert, tx_id)
    at = sandbox.state.transaction(tx_id).completed_at
    checks = {
        "digest": parsed.digest_agrees(),
        "signature": parsed.signature_agrees(),
        "issuer": parsed.issued_by(chain[0]),
        "transaction": json.loads(parsed.content)["txId"] == tx_id,
        "dates": parsed.certificate.not_valid_before_utc < at < parsed.certificate.not_valid_after_utc,
    }
    assert {name for name, good in checks.items() if not good} == {broken}
    assert parsed.certificate.issuer == chain[0].subject
    assert signature_of(cert, tx_id).signature_agrees()
