"""The CMS signature: the vectors, and values forged by people who can build whatever they like."""

import base64
import hashlib
import itertools
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from asn1crypto import cms, core
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_der_private_key
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from app.toss.signature import CHECKS, MAX_LENGTH, POLICY_OID, SignatureChecker, load_pem_certificates

VECTORS = json.loads((Path(__file__).parents[1] / "data" / "toss-cert.json").read_text(encoding="utf-8"))["cms"]
CASES = {case["case"]: case["signature_base64"] for case in VECTORS["cases"]}
VECTOR_CAS = [VECTORS["ca_pem"].encode(), VECTORS["root_pem"].encode()]

TX_ID = json.loads(VECTORS["econtent_utf8"])["txId"]
KOREAN_TIME = timezone(timedelta(hours=9))
REQUESTED_AT = datetime(2026, 3, 4, 12, 0, 0, tzinfo=KOREAN_TIME)
COMPLETED_AT = REQUESTED_AT + timedelta(minutes=2)
SIGNED_AT = REQUESTED_AT + timedelta(minutes=1)
SECOND = timedelta(seconds=1)

LEAF_KEY = load_der_private_key(base64.b64decode(VECTORS["leaf_private_key_pkcs8_der_base64"]), password=None)
SERIALS = itertools.count(1000)


def content(**changes):
    """The signed text, in the sample's shape (reference 6)."""
    claims = json.loads(VECTORS["econtent_utf8"]) | {"requestTs": REQUESTED_AT.isoformat()} | changes
    return json.dumps(claims, ensure_ascii=False, separators=(",", ":")).encode()


def name(common_name):
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "KR"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "TEST ONLY"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def key_usage(**usages):
    every = [
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ]
    return x509.KeyUsage(**(dict.fromkeys(every, False) | usages))


@dataclass
class Authority:
    """A certificate authority of our own making; no issuer means a root."""

    common_name: str
    issuer: "Authority | None" = None
    not_before: datetime = datetime(2024, 1, 1, tzinfo=UTC)
    not_after: datetime = datetime(2044, 1, 1, tzinfo=UTC)
    path_length: int | None = None
    key: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))

    def __post_init__(self):
        issuer = self.issuer or self
        self.certificate = issuer.sign(
            self.common_name,
            self.key.public_key(),
            [
                x509.BasicConstraints(ca=True, path_length=self.path_length),
                key_usage(key_cert_sign=True, crl_sign=True),
            ],
            not_before=self.not_before,
            not_after=self.not_after,
        )

    @property
    def pem(self):
        return self.certificate.public_bytes(Encoding.PEM)

    def sign(self, common_name, public_key, extensions, *, not_before, not_after):
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(common_name))
            .issuer_name(name(self.common_name))
            .public_key(public_key)
            .serial_number(next(SERIALS))
            .not_valid_before(not_before)
            .not_valid_after(not_after)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=True)
        return builder.sign(self.key, hashes.SHA256())

    def leaf(
        self,
        *,
        policies=(POLICY_OID,),
        not_before=datetime(2025, 1, 1, tzinfo=UTC),
        not_after=datetime(2028, 1, 1, tzinfo=UTC),
        usage=None,
        key=LEAF_KEY,
    ):
        extensions = [usage or key_usage(digital_signature=True, content_commitment=True)]
        if policies:
            named = [x509.PolicyInformation(x509.ObjectIdentifier(oid), None) for oid in policies]
            extensions.append(x509.CertificatePolicies(named))
        return self.sign("김토스", key.public_key(), extensions, not_before=not_before, not_after=not_after)


@pytest.fixture(scope="module")
def root():
    return Authority("Sim Root CA1")


@pytest.fixture(scope="module")
def ca(root):
    return Authority("Sim CA1", issuer=root)


@pytest.fixture(scope="module")
def foreign_ca():
    """Same names, other keys."""
    return Authority("Sim CA1", issuer=Authority("Sim Root CA1"))


@pytest.fixture(scope="module")
def pinned(ca, root):
    return SignatureChecker(ca_certificates=[ca.pem, root.pem])


def attribute(kind, *values):
    return cms.CMSAttribute({"type": kind, "values": list(values)})


def attributes(text, *, signed_at=SIGNED_AT, digest="sha256"):
    return [
        attribute("content_type", "data"),
        attribute("signing_time", cms.Time({"utc_time": signed_at.astimezone(UTC)})),
        attribute("message_digest", hashlib.new(digest, text).digest()),
    ]


def rsa_sign(key, data, digest="sha256"):
    return key.sign(data, padding.PKCS1v15(), {"sha256": hashes.SHA256(), "sha1": hashes.SHA1()}[digest])


def signer_info(leaf, text, *, signed_attributes=None, key=LEAF_KEY, digest="sha256", serial=None, issuer=None):
    """One signer, honest by default; an empty list of attributes signs the content directly."""
    asn1_leaf = asn1_x509.Certificate.load(leaf.public_bytes(Encoding.DER))
    if signed_attributes is None:
        signed_attributes = attributes(text, digest=digest)
    signed = cms.CMSAttributes(signed_attributes)
    fields = {
        "version": "v1",
        "sid": cms.SignerIdentifier(
            {
                "issuer_and_serial_number": {
                    "issuer": issuer or asn1_leaf.issuer,
                    "serial_number": serial or asn1_leaf.serial_number,
                }
            }
        ),
        "digest_algorithm": {"algorithm": digest},
        "signature_algorithm": {"algorithm": "rsassa_pkcs1v15"},
        "signature": rsa_sign(key, signed.dump() if signed_attributes else text, digest),
    }
    return fields | ({"signed_attrs": signed} if signed_attributes else {})


def der(leaf, text, *, signers=None, certificates=None, digests=("sha256",), content_type="data", attached=True):
    signed_data = cms.SignedData(
        {
            "version": "v1",
            "digest_algorithms": [{"algorithm": digest} for digest in digests],
            "encap_content_info": {"content_type": content_type} | ({"content": text} if attached else {}),
            "certificates": [
                asn1_x509.Certificate.load(certificate.public_bytes(Encoding.DER))
                for certificate in ([leaf] if certificates is None else certificates)
            ],
            "signer_infos": [signer_info(leaf, text)] if signers is None else signers,
        }
    )
    return cms.ContentInfo({"content_type": "signed_data", "content": signed_data}).dump()


def value(*args, **kwargs):
    return base64.b64encode(der(*args, **kwargs)).decode()


def nested(depth):
    """Empty sequences, one in the other."""
    encoded = b""
    for _ in range(depth):
        encoded = core.Sequence(contents=encoded).dump()
    return encoded


def check(checker, signature, *, tx_id=TX_ID, requested_at=REQUESTED_AT, completed_at=COMPLETED_AT):
    report = checker.check(signature, tx_id=tx_id, requested_at=requested_at, completed_at=completed_at)
    assert tuple(report.checks) == CHECKS
    return report


def failed(report):
    return [name for name, outcome in report.checks.items() if outcome == "failed"]


def skipped(report):
    return [name for name, outcome in report.checks.items() if outcome == "skipped"]


def check_vector(signature, *, tx_id=TX_ID, **settings):
    """The vectors were signed years after the instant in their content, so the times cannot be checked."""
    return check(SignatureChecker(**settings), signature, tx_id=tx_id, requested_at=None, completed_at=None)


class TestVectors:
    EXPECTED = (
        ("valid", []),
        ("content_changed", ["digest"]),
        ("signature_bit_flip", ["signature"]),
        ("expired_leaf", ["validity"]),
        ("other_tx", ["tx_id"]),
    )

    def test_are_all_here(self):
        assert [name for name, _ in self.EXPECTED] == list(CASES)

    @pytest.mark.parametrize(("case", "problems"), EXPECTED)
    def test_without_pinned_authority(self, case, problems):
        report = check_vector(CASES[case])
        assert failed(report) == problems
        assert skipped(report) == ["times", "chain", "policy"]
        assert report.is_valid == (not problems)
        assert report.problem == (problems[0] if problems else None)

    @pytest.mark.parametrize(("case", "problems"), EXPECTED)
    def test_with_pinned_authorities(self, case, problems):
        report = check_vector(CASES[case], ca_certificates=VECTOR_CAS, policy_oid=None)
        assert failed(report) == problems
        assert skipped(report) == ["times", "policy"]

    def test_their_certificates_name_no_policy(self):
        assert failed(check_vector(CASES["valid"], ca_certificates=VECTOR_CAS)) == ["policy"]

    def test_the_other_tx_passes_for_that_tx(self):
        assert check_vector(CASES["other_tx"], tx_id=TX_ID.replace("c1ce9214", "ffffffff")).is_valid

    def test_the_signing_time_is_reported_once_proved(self):
        signed_at = datetime(2026, 11, 23, 10, 1, 51, tzinfo=UTC)
        assert check_vector(CASES["valid"]).signed_at == signed_at
        assert check_vector(CASES["expired_leaf"]).signed_at == signed_at
        assert check_vector(CASES["signature_bit_flip"]).signed_at is None


class TestAnHonestSignature:
    def test_passes_every_check(self, pinned, ca):
        report = check(pinned, value(ca.leaf(), content()))
        assert set(report.checks.values()) == {"passed"}
        assert report.is_valid
        assert report.signed_at == SIGNED_AT

    def test_may_bear_another_name_than_the_result(self, pinned, ca):
        # In the test environment the certificate is the tester's own (reference 6), so no name is compared.
        assert check(pinned, value(ca.leaf(), content(userIdentifier="somebody"))).is_valid

    def test_may_have_further_signed_attributes(self, pinned, ca):
        leaf, text = ca.leaf(), content()
        extra = attribute("1.2.840.113549.1.9.16.2.47", core.Null())
        signer = signer_info(leaf, text, signed_attributes=[*attributes(text), extra])
        assert check(pinned, value(leaf, text, signers=[signer])).is_valid

    def test_may_name_the_combined_algorithm(self, pinned, ca):
        leaf, text = ca.leaf(), content()
        signer = signer_info(leaf, text) | {"signature_algorithm": {"algorithm": "sha256_rsa"}}
        assert check(pinned, value(leaf, text, signers=[signer])).is_valid


class TestStructure:
    """Each of these is refused before anything in it is believed."""

    @pytest.fixture
    def refuse(self, pinned):
        def refuse(signature):
            for checker in (SignatureChecker(), pinned):
                report = check(checker, signature)
                assert failed(report) == ["structure"]
                assert skipped(report) == list(CHECKS[1:])
                assert report.problem == "structure"
                assert report.signed_at is None

        return refuse

    @pytest.mark.parametrize(
        "damage",
        [
            pytest.param(lambda _: "", id="empty"),
            pytest.param(lambda _: "김토스", id="not Base64"),
            pytest.param(lambda text: text + "\n", id="newline at the end"),
            pytest.param(lambda text: text[:64] + "\n" + text[64:], id="folded"),
            pytest.param(lambda text: text.replace("+", "-").replace("/", "_"), id="URL alphabet"),
            pytest.param(lambda text: text.rstrip("="), id="no padding"),
            pytest.param(lambda text: text[:-4], id="cut"),
            pytest.param(lambda text: base64.b64encode(base64.b64decode(text) + b"\0").decode(), id="a byte more"),
            pytest.param(lambda text: base64.b64encode(base64.b64decode(text) * 2).decode(), id="twice"),
            pytest.param(lambda _: base64.b64encode(b"\x30\x80" * 20000).decode(), id="endless"),
            pytest.param(lambda _: base64.b64encode(nested(10_000)).decode(), id="deeply nested"),
            pytest.param(lambda _: base64.b64encode(b"\x05\x00" * 20000).decode(), id="many elements"),
            pytest.param(lambda _: base64.b64encode(VECTOR_CAS[0]).decode(), id="a PEM file"),
            pytest.param(lambda _: base64.b64encode(b"\x30\x00").decode(), id="an empty sequence"),
        ],
    )
    def test_damaged_text(self, refuse, ca, damage):
        refuse(damage(value(ca.leaf(), content(nonce="+/>?" * 9))))

    def test_indefinite_length(self, refuse, ca):
        honest = der(ca.leaf(), content())
        assert honest[1] == 0x82
        refuse(base64.b64encode(b"\x30\x80" + honest[4:] + b"\0\0").decode())

    def test_longer_length_than_needed(self, refuse, ca):
        honest = der(ca.leaf(), content())
        refuse(base64.b64encode(b"\x30\x83\0" + honest[2:]).decode())

    def test_content_in_pieces(self, refuse, ca):
        """BER's constructed string: tag 0x24, and inside it smaller strings."""
        text = content()
        whole = b"\x04\x81" + bytes([len(text)]) + text
        one_piece = b"\x24\x81" + bytes([len(text)]) + b"\x04\x81" + bytes([len(text) - 3]) + text[3:]
        honest = der(ca.leaf(), text)
        assert whole in honest
        refuse(base64.b64encode(honest.replace(whole, one_piece)).decode())

    def test_huge(self, refuse, ca):
        refuse(value(ca.leaf(), content(nonce="x" * MAX_LENGTH)))

    def test_no_signer(self, refuse, ca):
        refuse(value(ca.leaf(), content(), signers=[]))

    def test_two_signers(self, refuse, ca):
        leaf, text = ca.leaf(), content()
        other = attributes(text, signed_at=SIGNED_AT + SECOND)
        refuse(
            value(
                leaf,
                text,
                signers=[signer_info(leaf, text), signer_info(leaf, text, signed_attributes=other)],
            )
        )

    def test_no_certificate(self, refuse, ca):
        refuse(value(ca.leaf(), content(), certificates=[]))

    def test_a_second_certificate(self, refuse, ca):
        leaf = ca.leaf()
        refuse(value(leaf, content(), certificates=[leaf, ca.certificate]))

    def test_a_certificate_that_is_not_the_signers(self, refuse, ca):
        leaf, text = ca.leaf(), content()
        refuse(value(leaf, text, signers=[signer_info(leaf, text, serial=leaf.serial_number + 1)]))

    def test_a_certificate_of_another_issuer(self, refuse, ca):
        leaf, text = ca.leaf(), content()
        other = asn1_x509.Name.build({"common_name": "Sim CA2"})
        refuse(value(leaf, text, signers=[signer_info(leaf, text, issuer=other)]))

    def test_a_signer_named_by_key_id(self, refuse, ca):
        leaf, text = ca.leaf(), content()
        signer = signer_info(leaf, text) | {
            "version": "v3",
            "sid": cms.SignerIdentifier({"subject_key_identifier": b"\1" * 20}),
        }
        refuse(value(leaf, text, signers=[signer]))

    def test_detached_content(self, refuse, ca):
        refuse(value(ca.leaf(), content(), attached=False))

    def test_signed_over_the_content_without_attributes(self, refuse, ca):
        leaf, text = ca.leaf(), content()
        refuse(value(leaf, text, signers=[signer_info(leaf, text, signed_attributes=[])]))

    def test_attributes_passed_off_as_content(self, refuse, ca):
        """The known trick with optional attributes: drop them, and call what was signed the content."""
        leaf, text = ca.leaf(), content()
        signer = signer_info(leaf, text)
        really_signed = signer.pop("signed_attrs").dump()
        refuse(value(leaf, really_signed, signers=[signer]))

    def test_sha1_for_the_signer(self, refuse, ca):
        leaf, text = ca.leaf(), content()
        refuse(value(leaf, text, signers=[signer_info(leaf, text, digest="sha1")]))

    @pytest.mark.parametrize("digests", [(), ("sha1",), ("sha256", "sha1"), ("sha256", "sha256")])
    def test_other_digests_announced(self, refuse, ca, digests):
        refuse(value(ca.leaf(), content(), digests=digests))

    def test_another_signature_algorithm(self, refuse, ca):
        leaf, text = ca.leaf(), content()
        signer = signer_info(leaf, text) | {"signature_algorithm": {"algorithm": "sha1_rsa"}}
        refuse(value(leaf, text, signers=[signer]))

    @pytest.mark.parametrize("kind", ["content_type", "signing_time", "message_digest"])
    def test_a_missing_attribute(self, refuse, ca, kind):
        leaf, text = ca.leaf(), content()
        kept = [each for each in attributes(text) if each["type"].native != kind]
        refuse(value(leaf, text, signers=[signer_info(leaf, text, signed_attributes=kept)]))

    @pytest.mark.parametrize("kind", ["content_type", "signing_time", "message_digest"])
    def test_an_attribute_twice(self, refuse, ca, kind):
        leaf, text = ca.leaf(), content()
        (again,) = [
            each for each in attributes(b"other", signed_at=SIGNED_AT + SECOND) if each["type"].native == kind
        ]
        refuse(value(leaf, text, signers=[signer_info(leaf, text, signed_attributes=[*attributes(text), again])]))

    def test_an_attribute_with_two_values(self, refuse, ca):
        leaf, text = ca.leaf(), content()
        digests = attribute("message_digest", hashlib.sha256(text).digest(), hashlib.sha256(b"other").digest())
        both = [*attributes(text)[:2], digests]
        refuse(value(leaf, text, signers=[signer_info(leaf, text, signed_attributes=both)]))

    def test_attributes_out_of_order(self, refuse, ca):
        """Not DER, though the signature over the bytes as sent is good."""
        leaf, text = ca.leaf(), content()
        honest = attributes(text)
        encodings = sorted(each.dump() for each in honest)
        in_order, out_of_order = b"".join(encodings), b"".join(reversed(encodings))
        signer = signer_info(leaf, text, signed_attributes=honest)
        as_set = b"\x31" + bytes([len(out_of_order)]) + out_of_order
        signer["signature"] = rsa_sign(LEAF_KEY, as_set)
        forged = der(leaf, text, signers=[signer])
        assert in_order in forged
        refuse(base64.b64encode(forged.replace(in_order, out_of_order)).decode())

    @pytest.mark.parametrize(
        "kind",
        ["content_type of the content", "content_type of the attributes"],
    )
    def test_content_of_another_type(self, refuse, ca, kind):
        leaf, text = ca.leaf(), content()
        if kind == "content_type of the content":
            refuse(value(leaf, text, content_type="1.2.3.4", attached=False))
        else:
            changed = [attribute("content_type", "signed_data"), *attributes(text)[1:]]
            refuse(value(leaf, text, signers=[signer_info(leaf, text, signed_attributes=changed)]))

    def test_a_certificate_alone(self, refuse, ca):
        refuse(base64.b64encode(ca.leaf().public_bytes(Encoding.DER)).decode())

    def test_encrypted_data_instead(self, refuse):
        refuse(base64.b64encode(cms.ContentInfo({"content_type": "data", "content": b"x"}).dump()).decode())


class TestContent:
    @pytest.mark.parametrize(
        "text",
        [
            pytest.param(content().replace(b"{", b'{"txId":"another",', 1), id="txId twice, right one last"),
            pytest.param(content().replace(b"}", b',"txId":"another"}', 1), id="txId twice, right one first"),
            pytest.param(content().replace(b"}", b',"partnerCode":"TEST2"}', 1), id="another name twice"),
            pytest.param(content(txId="another"), id="another txId"),
            pytest.param(content(txId=TX_ID.upper()), id="txId in capitals"),
            pytest.param(content(txId=None), id="txId null"),
            pytest.param(content(txId=[TX_ID]), id="txId in a list"),
            pytest.param(content().replace(b"txId", b"txid"), id="no txId"),
            pytest.param(b'{"a":' + content() + b"}", id="txId further down"),
            pytest.param(json.dumps(TX_ID).encode(), id="not an object"),
            pytest.param(b"[" * 10000, id="deep nesting"),
            pytest.param(b"{" + b"}", id="empty object"),
            pytest.param(b"", id="empty"),
            pytest.param(content() + b"x", id="more after the object"),
            pytest.param(content(partnerCode="é").decode().encode("latin-1", "ignore"), id="not UTF-8"),
        ],
    )
    def test_that_does_not_name_the_tx_clearly(self, pinned, ca, text):
        report = check(pinned, value(ca.leaf(), text))
        assert report.problem == "tx_id"
        assert report.checks["signature"] == "passed"

    def test_changed_after_signing(self, pinned, ca):
        leaf, text = ca.leaf(), content()
        forged = value(leaf, content(partnerCode="TEST2"), signers=[signer_info(leaf, text)])
        assert failed(check(pinned, forged)) == ["digest"]


class TestSignature:
    def test_by_another_key(self, pinned, ca):
        leaf, text = ca.leaf(), content()
        stranger = rsa.generate_private_key(65537, 2048)
        forged = value(leaf, text, signers=[signer_info(leaf, text, key=stranger)])
        report = check(pinned, forged)
        assert failed(report) == ["signature"]
        assert report.signed_at is None

    def test_attributes_changed_after_signing(self, pinned, ca):
        leaf, text = ca.leaf(), content()
        later = cms.CMSAttributes(attributes(text, signed_at=SIGNED_AT + SECOND))
        forged = value(leaf, text, signers=[signer_info(leaf, text) | {"signed_attrs": later}])
        assert failed(check(pinned, forged)) == ["signature"]

    def test_with_a_short_key(self, pinned, ca):
        short = rsa.generate_private_key(65537, 1024)
        leaf, text = ca.leaf(key=short), content()
        assert failed(check(pinned, value(leaf, text, signers=[signer_info(leaf, text, key=short)]))) == [
            "signature"
        ]

    def test_empty(self, pinned, ca):
        leaf, text = ca.leaf(), content()
        assert failed(check(pinned, value(leaf, text, signers=[signer_info(leaf, text) | {"signature": b""}]))) == [
            "signature"
        ]


class TestTimes:
    TOLERANCE = timedelta(minutes=5)

    def outcome(
        self, ca, *, signed_at=SIGNED_AT, claimed=None, requested_at=REQUESTED_AT, completed_at=COMPLETED_AT
    ):
        text = content(**({} if claimed is None else {"requestTs": claimed}))
        leaf = ca.leaf()
        signer = signer_info(leaf, text, signed_attributes=attributes(text, signed_at=signed_at))
        signature = value(leaf, text, signers=[signer])
        report = check(SignatureChecker(), signature, requested_at=requested_at, completed_at=completed_at)
        return report.checks["times"]

    @pytest.mark.parametrize(
        ("signed_at", "outcome"),
        [
            (REQUESTED_AT - TOLERANCE, "passed"),
            (REQUESTED_AT - TOLERANCE - SECOND, "failed"),
            (COMPLETED_AT + TOLERANCE, "passed"),
            (COMPLETED_AT + TOLERANCE + SECOND, "failed"),
        ],
        ids=["just not too early", "too early", "just not too late", "too late"],
    )
    def test_of_signing(self, ca, signed_at, outcome):
        assert self.outcome(ca, signed_at=signed_at) == outcome

    @pytest.mark.parametrize(
        ("claimed", "outcome"),
        [
            ((REQUESTED_AT + TOLERANCE).isoformat(), "passed"),
            ((REQUESTED_AT + TOLERANCE + SECOND).isoformat(), "failed"),
            ((REQUESTED_AT - TOLERANCE).isoformat(), "passed"),
            ((REQUESTED_AT - TOLERANCE - SECOND).isoformat(), "failed"),
            (REQUESTED_AT.astimezone(UTC).isoformat(), "passed"),
            (REQUESTED_AT.replace(tzinfo=None).isoformat(), "failed"),
            ("yesterday", "failed"),
            (1772593200, "failed"),
        ],
        ids=["late", "too late", "early", "too early", "UTC", "no offset", "not a time", "a number"],
    )
    def test_of_the_request_in_the_content(self, ca, claimed, outcome):
        assert self.outcome(ca, claimed=claimed) == outcome

    def test_unknown_bound_nothing(self, ca):
        assert self.outcome(ca, requested_at=None, completed_at=None) == "skipped"

    def test_only_the_request_is_known(self, ca):
        much_later = REQUESTED_AT + timedelta(days=1)
        assert self.outcome(ca, signed_at=much_later, completed_at=None) == "passed"

    def test_only_the_completion_is_known(self, ca):
        assert self.outcome(ca, claimed="yesterday", requested_at=None) == "passed"
        assert self.outcome(ca, signed_at=COMPLETED_AT + timedelta(days=1), requested_at=None) == "failed"

    def test_tolerance_is_a_setting(self, ca):
        checker = SignatureChecker(time_tolerance=timedelta(0))
        assert check(checker, value(ca.leaf(), content())).is_valid
        assert failed(check(checker, value(ca.leaf(), content()), requested_at=SIGNED_AT + SECOND)) == ["times"]


class TestValidity:
    @pytest.mark.parametrize(
        ("not_before", "not_after", "problems"),
        [
            (SIGNED_AT, COMPLETED_AT, []),
            (SIGNED_AT + SECOND, COMPLETED_AT + SECOND, ["validity"]),
            (SIGNED_AT - SECOND, SIGNED_AT, ["validity"]),
            (SIGNED_AT - timedelta(days=9), SIGNED_AT - timedelta(days=1), ["validity"]),
        ],
        ids=["just long enough", "not yet at signing", "over at completion", "long over"],
    )
    def test_counts_at_signing_and_at_completion(self, pinned, ca, not_before, not_after, problems):
        leaf = ca.leaf(not_before=not_before.astimezone(UTC), not_after=not_after.astimezone(UTC))
        assert failed(check(pinned, value(leaf, content()))) == problems

    def test_today_does_not_count(self):
        old = datetime(2019, 6, 1, tzinfo=UTC)
        authority = Authority("Sim CA9", not_before=old, not_after=old + timedelta(days=2))
        leaf = authority.leaf(not_before=old, not_after=old + timedelta(days=2))
        text = content(requestTs=old.isoformat())
        signer = signer_info(leaf, text, signed_attributes=attributes(text, signed_at=old))
        signature = value(leaf, text, signers=[signer])
        checker = SignatureChecker(ca_certificates=[authority.pem])
        assert check(checker, signature, requested_at=old, completed_at=old).is_valid


class TestChain:
    def test_foreign_ca_of_the_same_name(self, pinned, foreign_ca):
        forged = value(foreign_ca.leaf(), content())
        assert check(SignatureChecker(), forged).is_valid  # which is why operators should pin
        assert failed(check(pinned, forged)) == ["chain"]

    def test_foreign_ca_of_the_same_name_against_the_vectors(self):
        forged = value(Authority("Sim CA1").leaf(), content())
        assert failed(check(SignatureChecker(ca_certificates=VECTOR_CAS), forged)) == ["chain"]

    def test_the_ca_alone_is_enough(self, ca):
        assert check(SignatureChecker(ca_certificates=[ca.pem]), value(ca.leaf(), content())).is_valid

    def test_the_root_alone_is_not(self, ca, root):
        assert failed(check(SignatureChecker(ca_certificates=[root.pem]), value(ca.leaf(), content()))) == ["chain"]

    def test_one_file_may_hold_both(self, ca, root):
        assert check(SignatureChecker(ca_certificates=[root.pem + ca.pem]), value(ca.leaf(), content())).is_valid

    def test_a_pinned_root_must_have_issued_the_ca(self, ca, foreign_ca):
        checker = SignatureChecker(ca_certificates=[ca.pem, foreign_ca.issuer.pem])
        assert failed(check(checker, value(ca.leaf(), content()))) == ["chain"]

    def test_several_generations_of_authorities(self, ca, root, foreign_ca):
        """While Toss renews its CA, both may be pinned, under one name."""
        checker = SignatureChecker(ca_certificates=[foreign_ca.pem, foreign_ca.issuer.pem, ca.pem, root.pem])
        assert check(checker, value(ca.leaf(), content())).is_valid
        assert check(checker, value(foreign_ca.leaf(), content())).is_valid

    def test_an_expired_ca(self, root):
        old = Authority("Sim CA3", issuer=root, not_after=datetime(2025, 6, 1, tzinfo=UTC))
        checker = SignatureChecker(ca_certificates=[old.pem, root.pem])
        assert failed(check(checker, value(old.leaf(), content()))) == ["chain"]

    def test_an_expired_root(self):
        old_root = Authority("Sim Root CA4", not_after=datetime(2025, 6, 1, tzinfo=UTC))
        ca = Authority("Sim CA4", issuer=old_root)
        checker = SignatureChecker(ca_certificates=[ca.pem, old_root.pem])
        assert failed(check(checker, value(ca.leaf(), content()))) == ["chain"]

    def test_a_path_too_long(self):
        strict_root = Authority("Sim Root CA5", path_length=0)
        ca = Authority("Sim CA5", issuer=strict_root)
        checker = SignatureChecker(ca_certificates=[ca.pem, strict_root.pem])
        assert failed(check(checker, value(ca.leaf(), content()))) == ["chain"]

    def test_authorities_that_certify_one_another(self):
        key = rsa.generate_private_key(65537, 2048)
        first = Authority("Sim CA6", issuer=Authority("Sim CA7", key=key))
        second = Authority("Sim CA7", issuer=first, key=key)
        checker = SignatureChecker(ca_certificates=[first.pem, second.pem])
        assert failed(check(checker, value(first.leaf(), content()))) == ["chain"]


class TestPolicy:
    @pytest.mark.parametrize(
        ("policies", "problems"),
        [
            ((POLICY_OID,), []),
            (("1.2.3", POLICY_OID), []),
            (("1.2.410.200098.5.1.1.1.4",), ["policy"]),
            ((), ["policy"]),
        ],
        ids=["Toss's", "among others", "another", "none"],
    )
    def test_must_be_named(self, pinned, ca, policies, problems):
        assert failed(check(pinned, value(ca.leaf(policies=policies), content()))) == problems

    def test_must_allow_signing(self, pinned, ca):
        leaf = ca.leaf(usage=key_usage(key_encipherment=True))
        assert failed(check(pinned, value(leaf, content()))) == ["policy"]

    def test_is_a_setting(self, ca):
        signature = value(ca.leaf(policies=("1.2.3",)), content())
        assert check(SignatureChecker(ca_certificates=[ca.pem], policy_oid="1.2.3"), signature).is_valid
        assert skipped(check(SignatureChecker(ca_certificates=[ca.pem], policy_oid=None), signature)) == ["policy"]


class TestPinnedFiles:
    def test_are_read_in_order(self, ca, root):
        assert load_pem_certificates(ca.pem + root.pem) == [ca.certificate, root.certificate]

    @pytest.mark.parametrize(
        "pem",
        [
            b"",
            "김토스".encode(),
            VECTOR_CAS[0][:-40],
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        ],
        ids=["empty", "text", "cut", "damaged", "a key"],
    )
    def test_without_a_certificate_are_refused(self, pem):
        for read in (load_pem_certificates, lambda pem: SignatureChecker(ca_certificates=[pem])):
            with pytest.raises(ValueError, match=r"^no readable certificate in PEM form$"):
                read(pem)

    @pytest.mark.parametrize(
        ("is_ca", "usage"),
        [(False, key_usage(key_cert_sign=True)), (True, key_usage(digital_signature=True)), (True, None)],
        ids=["not a CA", "may not sign certificates", "no usage"],
    )
    def test_with_something_else_are_refused(self, root, is_ca, usage):
        extensions = [x509.BasicConstraints(ca=is_ca, path_length=None)] + ([usage] if usage else [])
        validity = {"not_before": root.not_before, "not_after": root.not_after}
        certificate = root.sign("Sim CA1", root.key.public_key(), extensions, **validity)
        with pytest.raises(ValueError, match="authority"):
            SignatureChecker(ca_certificates=[certificate.public_bytes(Encoding.PEM)])

    def test_with_a_persons_certificate_are_refused(self, ca):
        with pytest.raises(ValueError, match="authority") as caught:
            SignatureChecker(ca_certificates=[ca.pem, ca.leaf().public_bytes(Encoding.PEM)])
        assert "김토스" not in repr(caught.value)


class TestHostileInput:
    @given(st.text())
    def test_arbitrary_text(self, text):
        assert failed(check(SignatureChecker(), text)) == ["structure"]

    @given(st.binary())
    def test_arbitrary_bytes(self, data):
        assert failed(check(SignatureChecker(), base64.b64encode(data).decode())) == ["structure"]

    @settings(deadline=None)
    @given(case=st.sampled_from(sorted(CASES)), data=st.data(), change=st.integers(1, 255))
    def test_a_changed_byte_is_survived(self, case, data, change):
        changed = bytearray(base64.b64decode(CASES[case]))
        changed[data.draw(st.integers(0, len(changed) - 1))] ^= change
        for settings_ in ({}, {"ca_certificates": VECTOR_CAS, "policy_oid": None}):
            report = check_vector(base64.b64encode(changed).decode(), **settings_)
            assert tuple(report.checks) == CHECKS

    def test_with_pinned_authorities_no_changed_byte_passes(self):
        """Every byte of one good value in turn. Without authorities the certificate itself proves nothing."""
        checker = SignatureChecker(ca_certificates=VECTOR_CAS, policy_oid=None)
        good = base64.b64decode(CASES["valid"])
        passed = []
        for position in range(len(good)):
            changed = bytearray(good)
            changed[position] ^= 1
            signature = base64.b64encode(changed).decode()
            if check(checker, signature, requested_at=None, completed_at=None).is_valid:
                passed.append(position)
        assert passed == []


class TestNothingLeaks:
    @pytest.mark.parametrize("case", [*CASES, "damaged"])
    def test_of_the_person_into_a_report(self, case):
        signature = CASES.get(case, CASES["valid"][:-8])
        shown = repr(check_vector(signature))
        for secret in ("김토스", "700200000000000000000001", TX_ID, signature[100:120], "Sim CA1"):
            assert secret not in shown
