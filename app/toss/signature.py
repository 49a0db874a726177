"""The CMS `signature` of a verification result, and whether it proves what it should (reference 6).

The signer's certificate carries the person's name, so the value is personal data: nothing of it goes into
a report, an error or a log.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from asn1crypto import cms, parser
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256

from app.toss.crypto import MIN_RSA_BITS, decode_base64

CHECKS: Final = ("structure", "digest", "signature", "tx_id", "times", "validity", "chain", "policy")
"""Every report names all of them, in this order."""

POLICY_OID: Final = "1.2.410.200098.5.1.1.1.3"
"""The certificate policy of Toss's user certificates (reference 6)."""

TIME_TOLERANCE: Final = timedelta(minutes=5)
"""How far the clocks involved may stand apart. A guess: nothing is documented."""

MAX_DEPTH: Final = 32
"""Structures within structures. A real value has about ten; deeper ones are built to exhaust the parser."""

MAX_LENGTH: Final = 64 * 1024
"""Characters. A real value has a few thousand; a longer one is not worth parsing."""


class CheckOutcome(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class SignatureReport:
    """What was checked and how it went; holds nothing about the person."""

    checks: Mapping[str, CheckOutcome]
    signed_at: datetime | None
    """By the signer's own clock; None unless the signature over it holds."""

    @property
    def is_valid(self) -> bool:
        """Nothing failed. `checks` says what was skipped: without pinned authorities anybody can sign."""
        return self.problem is None

    @property
    def problem(self) -> str | None:
        """The first of CHECKS that failed."""
        return next((name for name, outcome in self.checks.items() if outcome is CheckOutcome.FAILED), None)


@dataclass(frozen=True, repr=False)
class _Signed:
    """A well-formed value, taken apart; nothing in it is proved yet."""

    content: bytes
    attributes: bytes
    """The signed attributes as the SET that was signed."""
    message_digest: bytes
    signing_time: datetime
    signature: bytes
    certificate: x509.Certificate


class SignatureChecker:
    """Checks signature values, and never raises for what is inside one.

    `chain` and `policy` run only with pinned authorities. Toss CA1 must be among these, because a value
    brings the user's certificate alone; when Toss Root CA1 is there as well, CA1 must be proved by it.
    """

    def __init__(
        self,
        *,
        ca_certificates: Sequence[bytes] = (),
        policy_oid: str | None = POLICY_OID,
        time_tolerance: timedelta = TIME_TOLERANCE,
    ) -> None:
        """Each of `ca_certificates` is the content of a PEM file; ValueError for one that holds no authority.

        No `policy_oid` skips the policy, for authorities that set none (test vectors).
        """
        self._authorities = [ca for pem in ca_certificates for ca in load_pem_certificates(pem)]
        if not all(map(_is_authority, self._authorities)):
            raise ValueError("a pinned certificate does not belong to a certificate authority")
        self._policy_oid = policy_oid
        self._time_tolerance = time_tolerance

    def check(
        self,
        signature: str,
        *,
        tx_id: str,
        requested_at: datetime | None,
        completed_at: datetime | None,
    ) -> SignatureReport:
        """Both instants are Toss's (`requestedDt`, `completedDt`), aware; an unknown one bounds nothing."""
        try:
            signed = _parse(signature)
        except Exception:  # noqa: BLE001 - asn1crypto raises whatever it trips over, and the value is not ours
            skipped = dict.fromkeys(CHECKS, CheckOutcome.SKIPPED)
            return SignatureReport(checks=skipped | {"structure": CheckOutcome.FAILED}, signed_at=None)

        certificate = signed.certificate
        # Never today's date: the certificate may have run out when evidence is checked again years later. The
        # signing time is the signer's word, so Toss's own instant has to agree.
        moments = [signed.signing_time] + ([completed_at] if completed_at else [])
        questions: dict[str, Callable[[], bool | None]] = {
            "structure": lambda: True,
            "digest": lambda: signed.message_digest == hashlib.sha256(signed.content).digest(),
            "signature": lambda: _signature_holds(signed),
            "tx_id": lambda: _claims(signed.content)["txId"] == tx_id,
            "times": lambda: self._times_hold(signed, requested_at, completed_at),
            "validity": lambda: _in_force(certificate, moments),
            "chain": lambda: self._reaches_anchor(certificate, moments) if self._authorities else None,
            "policy": lambda: self._policy_holds(certificate) if self._authorities else None,
        }
        checks = {name: _outcome(questions[name]) for name in CHECKS}
        signature_holds = checks["signature"] is CheckOutcome.PASSED
        return SignatureReport(checks=checks, signed_at=signed.signing_time if signature_holds else None)

    def _times_hold(
        self,
        signed: _Signed,
        requested_at: datetime | None,
        completed_at: datetime | None,
    ) -> bool | None:
        slack = self._time_tolerance
        rules = []
        if requested_at is not None:
            claimed_at = datetime.fromisoformat(_claims(signed.content)["requestTs"])
            rules += [abs(claimed_at - requested_at) <= slack, signed.signing_time >= requested_at - slack]
        if completed_at is not None:
            rules += [signed.signing_time <= completed_at + slack]
        return all(rules) if rules else None

    def _reaches_anchor(
        self,
        certificate: x509.Certificate,
        moments: Sequence[datetime],
        below: int = 0,
    ) -> bool:
        """Whether a pinned authority issued this, and so on up to one whose own issuer is not pinned.

        Names alone prove nothing: another authority can bear the same ones. `below` counts the authorities
        passed on the way; it is bounded, so authorities that certify one another cannot send us in circles.
        """
        if below > len(self._authorities):
            return False
        return any(
            _issued(certificate, by=ca)
            and _in_force(ca, moments)
            and _path_length_allows(ca, below)
            and (self._is_anchor(ca) or self._reaches_anchor(ca, moments, below + 1))
            for ca in self._authorities
        )

    def _is_anchor(self, ca: x509.Certificate) -> bool:
        return ca.issuer == ca.subject or all(ca.issuer != other.subject for other in self._authorities)

    def _policy_holds(self, certificate: x509.Certificate) -> bool | None:
        """Whether the certificate was issued for a person's signatures, not for some other purpose."""
        if self._policy_oid is None:
            return None
        extensions = certificate.extensions
        policies = extensions.get_extension_for_class(x509.CertificatePolicies).value
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        named = {policy.policy_identifier.dotted_string for policy in policies}
        return self._policy_oid in named and usage.digital_signature


def load_pem_certificates(pem: bytes) -> list[x509.Certificate]:
    """All certificates of a PEM file; ValueError when there is none, or one that cannot be read."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise ValueError("no readable certificate in PEM form") from None


def _outcome(question: Callable[[], bool | None]) -> CheckOutcome:
    try:
        answer = question()
    except Exception:  # noqa: BLE001 - a question that hostile input makes unanswerable has failed
        return CheckOutcome.FAILED
    if answer is None:
        return CheckOutcome.SKIPPED
    return CheckOutcome.PASSED if answer else CheckOutcome.FAILED


def _parse(signature: str) -> _Signed:
    """The one form Toss sends; any other raises something.

    One-element unpacking is the rule "exactly one" of digest algorithms, certificates, signers, attributes of
    a type and their values. Unsigned attributes and revocation lists are passed over: nothing relies on them.
    """
    if len(signature) > MAX_LENGTH:
        raise ValueError("too long")
    der = decode_base64(signature)
    if not _is_der(der):
        raise ValueError("not DER")
    envelope = cms.ContentInfo.load(der, strict=True)
    signed_data = envelope["content"]
    content = signed_data["encap_content_info"]
    (digest_algorithm,) = signed_data["digest_algorithms"]
    (certificate,) = signed_data["certificates"]
    (signer,) = signed_data["signer_infos"]
    signer_id = signer["sid"]
    is_toss_form = (
        envelope["content_type"].native == "signed_data"
        and signed_data["version"].native == signer["version"].native == "v1"
        and content["content_type"].native == "data"
        and certificate.name == "certificate"
        and signer_id.name == "issuer_and_serial_number"
        and signer_id.chosen["issuer"].dump() == certificate.chosen.issuer.dump()
        and signer_id.chosen["serial_number"].native == certificate.chosen.serial_number
        and _algorithm(digest_algorithm) == _algorithm(signer["digest_algorithm"]) == "sha256"
        and _algorithm(signer["signature_algorithm"]) in {"rsassa_pkcs1v15", "sha256_rsa"}
    )
    # A signature directly over the content has no attributes, so it fails here.
    attributes = signer["signed_attrs"]
    if not is_toss_form or _only_value(attributes, "content_type") != "data":
        raise ValueError("not the form of Toss")
    return _Signed(
        content=_bytes(content["content"].native),
        attributes=_as_signed(attributes),
        message_digest=_bytes(_only_value(attributes, "message_digest")),
        signing_time=_only_value(attributes, "signing_time"),
        signature=_bytes(signer["signature"].native),
        certificate=x509.load_der_x509_certificate(certificate.chosen.dump()),
    )


def _algorithm(identifier: Any) -> str | None:  # noqa: ANN401 - asn1crypto has no types
    """Its name; None when it comes with parameters, as none of ours does."""
    name: str = identifier["algorithm"].native
    return name if identifier["parameters"].native is None else None


def _only_value(attributes: Any, name: str) -> Any:  # noqa: ANN401 - asn1crypto has no types
    (attribute,) = [attribute for attribute in attributes if attribute["type"].native == name]
    (value,) = attribute["values"]
    return value.native


def _bytes(value: object) -> bytes:
    """Nothing else: content left out (a detached signature) is None here."""
    if not isinstance(value, bytes):
        raise TypeError("not bytes")
    return value


def _as_signed(attributes: Any) -> bytes:  # noqa: ANN401 - asn1crypto has no types
    """The attributes tagged and sorted as the SET that the signer signed (RFC 5652, 5.4).

    What was sent must be that very encoding: sorting somebody else's bytes into shape would accept values
    that other readers of our evidence refuse.
    """
    encoded: bytes = attributes.untag().dump(force=True)
    if encoded[1:] != attributes.dump()[1:]:
        raise ValueError("signed attributes not in DER")
    return encoded


def _is_der(encoded: bytes, depth: int = MAX_DEPTH) -> bool:
    """Whether every length is definite and as short as can be.

    asn1crypto reads the looser BER as well, in which one value has many spellings.
    """
    while encoded:
        class_, is_constructed, tag, header, content, trailer = parser.parse(encoded)
        if trailer or parser.emit(class_, is_constructed, tag, content) != header + content:
            return False
        if is_constructed and not (depth and _is_der(content, depth - 1)):
            return False
        encoded = encoded[len(header) + len(content) :]
    return True


def _signature_holds(signed: _Signed) -> bool:
    """Raises InvalidSignature for a wrong one."""
    key = signed.certificate.public_key()
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size < MIN_RSA_BITS:
        return False
    key.verify(signed.signature, signed.attributes, PKCS1v15(), SHA256())
    return True


def _claims(content: bytes) -> Mapping[str, Any]:
    """The signed JSON object; ValueError when a name stands twice, as readers differ in which one counts."""
    claims = json.loads(content.decode(), object_pairs_hook=_without_repetition)
    if not isinstance(claims, dict):
        raise TypeError("not a JSON object")
    return claims


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("repeated name")
    return result


def _in_force(certificate: x509.Certificate, moments: Sequence[datetime]) -> bool:
    return all(certificate.not_valid_before_utc <= moment <= certificate.not_valid_after_utc for moment in moments)


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return False
    return constraints.ca and usage.key_cert_sign


def _path_length_allows(ca: x509.Certificate, below: int) -> bool:
    path_length = ca.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
    return path_length is None or below <= path_length


def _issued(certificate: x509.Certificate, *, by: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
