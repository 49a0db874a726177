"""Our client certificates for mTLS: find, repair and check the pairs, and say which is best.

Nothing here shows a private key: neither a repr, nor a fault, nor a log line.
"""

import base64
import binascii
import os
import re
import secrets
import ssl
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import zip_longest
from pathlib import Path
from typing import Final, Literal, Protocol, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)
from cryptography.x509.oid import NameOID
from typing_extensions import override

EXPIRY_MARKS: Final = (30, 7, 1)
"""Days before the end at which Toss announces it (reference 2.2), and so do we."""
MIN_RSA_BITS: Final = 2048
"""OpenSSL refuses shorter keys at its usual security level."""
MAX_FILE_BYTES: Final = 256 * 1024
"""A pair with its chain has about ten thousand."""
PEM_SUFFIXES: Final = frozenset({".crt", ".cer", ".pem", ".key"})
"""Files that have to hold PEM. Others in the folder (a note, the zip from the console) are passed over."""
MAX_WRAPPINGS: Final = 3
"""Base64 around Base64 around PEM; more is not an accident."""

Clock = Callable[[], datetime]
Role = Literal["certificate", "key"] | None


class Repair(StrEnum):
    """Damage of a PEM text that was undone in memory. The text should be put right all the same."""

    BYTE_ORDER_MARK = "byte_order_mark"
    LINE_ENDS = "line_ends"
    QUOTES = "quotes"
    ESCAPED_LINE_ENDS = "escaped_line_ends"
    LOST_LINE_ENDS = "lost_line_ends"
    BASE64_TWICE = "base64_twice"
    MISSING_END_LINE = "missing_end_line"
    SWAPPED = "swapped"
    TOGETHER = "together"


@dataclass(frozen=True)
class RepairNote:
    where: str
    repair: Repair

    @override
    def __str__(self) -> str:
        return f"{self.where}: {_REPAIR_WORDS[self.repair]}"


_REPAIR_WORDS: Final = {
    Repair.BYTE_ORDER_MARK: "began with a byte order mark",
    Repair.LINE_ENDS: "had Windows line ends",
    Repair.QUOTES: "stood in quotation marks",
    Repair.ESCAPED_LINE_ENDS: "had \\n written out instead of line ends",
    Repair.LOST_LINE_ENDS: "had lost its line ends",
    Repair.BASE64_TWICE: "was wrapped in Base64 once more",
    Repair.MISSING_END_LINE: "lacked an END line",
    Repair.SWAPPED: "certificate and key were swapped",
    Repair.TOGETHER: "held certificate and key in one",
}


class FaultKind(StrEnum):
    """Stable: label of the alarm metric."""

    MISSING_KEY = "missing_key"
    MISSING_CERTIFICATE = "missing_certificate"
    MISMATCH = "mismatch"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    IS_CA = "is_ca"
    UNREADABLE = "unreadable"
    UNSUPPORTED_KEY = "unsupported_key"
    EMPTY = "empty"
    REFUSED = "refused"
    UNPROVED = "unproved"


_FAULT_WORDS: Final = {
    FaultKind.MISSING_KEY: "the private key is missing",
    FaultKind.MISSING_CERTIFICATE: "a private key without its certificate",
    FaultKind.MISMATCH: "the private key does not belong to the certificate",
    FaultKind.EXPIRED: "the certificate has expired",
    FaultKind.NOT_YET_VALID: "the certificate is not valid yet",
    FaultKind.IS_CA: "the certificate is that of an authority, not of a client",
    FaultKind.UNREADABLE: "cannot be read",
    FaultKind.UNSUPPORTED_KEY: f"the key is neither RSA of {MIN_RSA_BITS} bits or more nor elliptic curve",
    FaultKind.EMPTY: "holds neither certificate nor key",
    FaultKind.REFUSED: "the other side refuses the certificate",
    FaultKind.UNPROVED: "the handshake that should prove the pair got no answer",
}


@dataclass(frozen=True)
class CertificateFault:
    kind: FaultKind
    where: str
    detail: str = ""

    @override
    def __str__(self) -> str:
        return f"{self.where}: {_FAULT_WORDS[self.kind]}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True, repr=False)
class ClientCertificate:
    """A checked pair; equal when certificate and chain are. Dates alone are left, because time passes."""

    subject: str = field(compare=False)
    """Common name: the mini-app's name (reference 2.2)."""
    serial: str = field(compare=False)
    """In hexadecimal, as the console and OpenSSL show it."""
    fingerprint: str = field(compare=False)
    """SHA-256, hexadecimal."""
    not_before: datetime = field(compare=False)
    not_after: datetime = field(compare=False)
    where: str = field(compare=False)
    chain_pem: bytes
    """The certificate and what stood with it of its chain; public."""
    key: PrivateKeyTypes = field(compare=False)

    def is_valid(self, now: datetime) -> bool:
        return self.not_before <= now <= self.not_after

    def days_left(self, now: datetime) -> int:
        """Whole days; below zero once expired."""
        return (self.not_after - now) // timedelta(days=1)

    @override
    def __repr__(self) -> str:
        return f"ClientCertificate(subject={self.subject!r}, serial={self.serial}, not_after={self.not_after})"


def expiry_mark(certificate: ClientCertificate, now: datetime) -> int | None:
    """The smallest of EXPIRY_MARKS that has been reached; None while the end is far."""
    reached = [mark for mark in EXPIRY_MARKS if certificate.not_after - now <= timedelta(days=mark)]
    return min(reached, default=None)


@dataclass(frozen=True)
class Found:
    """What the sources hold."""

    pairs: tuple[ClientCertificate, ...] = ()
    faults: tuple[CertificateFault, ...] = ()
    repairs: tuple[RepairNote, ...] = ()

    def usable(self, now: datetime) -> list[ClientCertificate]:
        """The pairs in force, best first: the latest issued, then the longest lasting."""
        valid = [pair for pair in self.pairs if pair.is_valid(now)]
        return sorted(valid, key=lambda pair: (pair.not_before, pair.not_after, pair.fingerprint), reverse=True)

    def faults_at(self, now: datetime) -> list[CertificateFault]:
        """With those that time brings."""
        dated = [
            CertificateFault(FaultKind.EXPIRED, pair.where, f"on {pair.not_after.date()}")
            if pair.not_after < now
            else CertificateFault(FaultKind.NOT_YET_VALID, pair.where, f"until {pair.not_before.date()}")
            for pair in self.pairs
            if not pair.is_valid(now)
        ]
        return [*self.faults, *dated]


# --- Sources ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CertificateSources:
    """Where pairs may lie. Which key belongs to which certificate is seen from the keys, never from the names."""

    folder: Path | None = None
    """Hidden entries are ignored, which leaves out Kubernetes's `..data`; links are followed."""
    files: Sequence[tuple[Path, Path | None]] = ()
    """Certificate and key; no key path when both are in one file."""
    texts: Sequence[tuple[str, str | None]] = field(default=(), repr=False)
    """Certificate and key as PEM, however an environment has mangled them."""

    @property
    def is_configured(self) -> bool:
        return self.folder is not None or bool(self.files) or bool(self.texts)

    def stamp(self) -> tuple[object, ...]:
        """Differs from an earlier one if a file may have changed; a few system calls."""
        named = [path for pair in self.files for path in pair if path is not None]
        return tuple(_stamp(path) for path in [*named, *self._entries()])

    def read(self) -> Found:
        """Never raises for what lies there."""
        found = [
            *(_pairs_in([_read_file(path, role) for path, role in _roles(pair)]) for pair in self.files),
            *(_pairs_in([_given(text, role) for text, role in _roles(pair)]) for pair in self.texts),
        ]
        if self.folder is not None:
            found.append(self._read_folder(self.folder))
        pairs = {pair: pair for one in found for pair in one.pairs}  # one pair may lie in two places
        return Found(
            pairs=tuple(pairs),
            faults=tuple(fault for one in found for fault in one.faults),
            repairs=tuple(note for one in found for note in one.repairs),
        )

    def _read_folder(self, folder: Path) -> Found:
        try:
            entries = _visible(folder)
        except OSError as error:
            return Found(faults=(_unreadable(folder.name, error),))
        texts = [_read_file(path, _ROLES.get(path.suffix.lower())) for path in entries if not path.is_dir()]
        found = _pairs_in([text for text in texts if text.is_pem_expected or text.has_blocks], is_folder=True)
        if not found.pairs and not found.faults:
            return Found(faults=(CertificateFault(FaultKind.EMPTY, folder.name),))
        return found

    def _entries(self) -> list[Path]:
        if self.folder is None:
            return []
        try:
            return [self.folder, *_visible(self.folder)]
        except OSError:
            return [self.folder]


_ROLES: Final[dict[str, Role]] = {".crt": "certificate", ".cer": "certificate", ".key": "key"}
_T = TypeVar("_T")


def _roles(pair: tuple[_T, _T | None]) -> list[tuple[_T, Role]]:
    certificate, key = pair
    if not key or key == certificate:
        return [(certificate, None)]
    return [(certificate, "certificate"), (key, "key")]


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _stamp(path: Path) -> tuple[object, ...]:
    """Kubernetes swaps a link two steps away, so where the path leads counts as much as what is there."""
    try:
        found = path.stat()
    except OSError as error:
        return (str(path), error.errno)
    return (str(path), os.path.realpath(path), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


# --- PEM --------------------------------------------------------------------------------------------------


@dataclass(repr=False)
class _Text:
    """One file or text, taken apart."""

    where: str
    role: Role
    is_pem_expected: bool = True
    certificates: list[x509.Certificate] = field(default_factory=list)
    keys: list[PrivateKeyTypes] = field(default_factory=list)
    faults: list[CertificateFault] = field(default_factory=list)
    repairs: list[Repair] = field(default_factory=list)
    has_blocks: bool = False

    def fault(self, kind: FaultKind, detail: str = "") -> None:
        self.faults.append(CertificateFault(kind, self.where, detail))

    def note(self, repair: Repair) -> None:
        if repair not in self.repairs:
            self.repairs.append(repair)


_BEGIN: Final = re.compile(r"-----[ \t]*BEGIN ([A-Z0-9 ]+?)[ \t]*-----")
_ESCAPED: Final = re.compile(r"(?:\\+r)?\\+n|\\+r")
_QUOTES: Final = "\"'`"


def _given(text: str, role: Role) -> _Text:
    return _take_apart(text, _Text(where=f"{role or 'certificate and key'} text", role=role))


def _read_file(path: Path, role: Role) -> _Text:
    text = _Text(where=path.name, role=role, is_pem_expected=path.suffix.lower() in PEM_SUFFIXES)
    try:
        found = path.stat()
        # Opening a pipe would wait for its other end.
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_FILE_BYTES:
            text.fault(FaultKind.UNREADABLE, "no file, or too large")
            return text
        content = path.read_bytes()
    except OSError as error:
        text.faults.append(_unreadable(path.name, error))
        return text
    return _take_apart(_decoded(content, text), text)


def _unreadable(where: str, error: OSError) -> CertificateFault:
    return CertificateFault(FaultKind.UNREADABLE, where, error.strerror or type(error).__name__)


def _decoded(content: bytes, text: _Text) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        text.note(Repair.BYTE_ORDER_MARK)
        return content.decode("utf-16", "replace")
    return content.decode("utf-8", "replace")


def _take_apart(content: str, text: _Text) -> _Text:
    content = _unwrapped(content, text)
    begins = list(_BEGIN.finditer(content))
    for begin, following in zip_longest(begins, begins[1:]):
        _take_block(begin[1], content[begin.end() : following.start() if following else None], text)
    text.has_blocks = bool(begins)
    if text.role == "certificate" and text.keys:
        text.note(Repair.TOGETHER if text.certificates else Repair.SWAPPED)
    if text.role == "key" and text.certificates:
        text.note(Repair.TOGETHER if text.keys else Repair.SWAPPED)
    if not (text.certificates or text.keys or text.faults):
        text.fault(FaultKind.UNREADABLE if content else FaultKind.EMPTY, "no PEM in it" if content else "")
    return text


def _unwrapped(content: str, text: _Text) -> str:
    """The text with everything undone that surrounds the blocks."""
    for _ in range(MAX_WRAPPINGS):
        if content.startswith("\ufeff"):
            text.note(Repair.BYTE_ORDER_MARK)
        content = content.lstrip("\ufeff").strip()
        if content[:1] in _QUOTES and content[:1] == content[-1:]:
            text.note(Repair.QUOTES)
            content = content.strip(_QUOTES)
        if "\r" in content:
            text.note(Repair.LINE_ENDS)
            content = content.replace("\r\n", "\n").replace("\r", "\n")
        if _ESCAPED.search(content):
            text.note(Repair.ESCAPED_LINE_ENDS)
            content = _ESCAPED.sub("\n", content)
        inner = None if _BEGIN.search(content) else _base64(content)
        if inner is None:
            break
        text.note(Repair.BASE64_TWICE)
        content = _decoded(inner, text)
    return content


def _take_block(label: str, rest: str, text: _Text) -> None:
    body, _, tail = rest.partition("--")  # which Base64 does not have
    if not tail.startswith(f"---END {label}-----"):
        text.note(Repair.MISSING_END_LINE)
    if not rest.startswith("\n"):
        text.note(Repair.LOST_LINE_ENDS)
    if label == "ENCRYPTED PRIVATE KEY" or "ENCRYPTED" in body:
        text.fault(FaultKind.UNREADABLE, "the key is locked with a password")
        return
    is_certificate = label in {"CERTIFICATE", "X509 CERTIFICATE"}
    if not is_certificate and not label.endswith("PRIVATE KEY"):
        return
    der = _base64(body)
    inner = _base64(der.decode("ascii", "replace")) if der else None
    if inner is not None:
        text.note(Repair.BASE64_TWICE)
        der = inner
    try:
        if is_certificate:
            text.certificates.append(x509.load_der_x509_certificate(der or b""))
        else:
            text.keys.append(load_der_private_key(der or b"", None))
    except UnsupportedAlgorithm:
        text.fault(FaultKind.UNSUPPORTED_KEY)
    except (ValueError, TypeError):
        # What the parser says is dropped: it may quote what it read.
        text.fault(FaultKind.UNREADABLE, f"damaged {'certificate' if is_certificate else 'private key'}")


def _base64(text: str) -> bytes | None:
    try:
        return base64.b64decode("".join(text.split()), validate=True) or None
    except (binascii.Error, ValueError):
        return None


# --- Pairs ------------------------------------------------------------------------------------------------


def _pairs_in(texts: list[_Text], *, is_folder: bool = False) -> Found:
    """Put certificates and keys together by the public key, wherever each of them stands."""
    pairs: list[ClientCertificate] = []
    faults = [fault for text in texts for fault in text.faults]
    keys = {_public_bytes(key.public_key()): (text.where, key) for text in texts for key in text.keys}
    used: set[bytes] = set()
    lone: list[_Text] = []
    for text in texts:
        public = [(certificate, _certificate_key(certificate)) for certificate in text.certificates]
        matched = [(certificate, key) for certificate, key in public if key in keys]
        # A certificate that is matched in a file with others is the client's; the rest is its chain.
        ours = [(certificate, key) for certificate, key in matched if not _is_ca(certificate)] or matched
        chain = [one for one in text.certificates if _is_ca(one) and all(one != leaf for leaf, _ in ours)]
        for certificate, key in ours:
            used.add(key)
            checked = _checked(certificate, keys[key][1], chain, text.where)
            if isinstance(checked, CertificateFault):
                faults.append(checked)
            else:
                pairs.append(checked)
        is_bundle = is_folder and all(map(_is_ca, text.certificates))
        if not ours and not is_bundle:
            lone += [text] if text.certificates else []
    orphans = [where for key, (where, _) in keys.items() if key not in used]
    kind = FaultKind.MISMATCH if orphans else FaultKind.MISSING_KEY
    faults += [CertificateFault(kind, text.where) for text in lone]
    if not lone:
        faults += [CertificateFault(FaultKind.MISSING_CERTIFICATE, where) for where in orphans]
    repairs = [RepairNote(text.where, repair) for text in texts for repair in text.repairs]
    return Found(pairs=tuple(pairs), faults=tuple(faults), repairs=tuple(repairs))


def _checked(
    certificate: x509.Certificate,
    key: PrivateKeyTypes,
    chain: list[x509.Certificate],
    where: str,
) -> ClientCertificate | CertificateFault:
    is_strong = isinstance(key, ec.EllipticCurvePrivateKey) or (
        isinstance(key, rsa.RSAPrivateKey) and key.key_size >= MIN_RSA_BITS
    )
    if not is_strong:
        return CertificateFault(FaultKind.UNSUPPORTED_KEY, where)
    if _is_ca(certificate):
        return CertificateFault(FaultKind.IS_CA, where)
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return ClientCertificate(
        subject=str(names[0].value) if names else "",
        serial=f"{certificate.serial_number:x}",
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        where=where,
        chain_pem=b"".join(one.public_bytes(Encoding.PEM) for one in [certificate, *chain]),
        key=key,
    )


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
    except (ValueError, x509.DuplicateExtension):
        return True  # nobody should present what cannot be read


def _certificate_key(certificate: x509.Certificate) -> bytes:
    try:
        return _public_bytes(certificate.public_key())
    except (ValueError, UnsupportedAlgorithm):
        return b""


def _public_bytes(key: "_Public") -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


class _Public(Protocol):
    def public_bytes(self, encoding: Encoding, format: PublicFormat, /) -> bytes: ...  # noqa: A002 - theirs


def ssl_context(certificate: ClientCertificate | None, ca_file: Path | None) -> ssl.SSLContext:
    """Tens of milliseconds: the store of authorities is loaded.

    Python's ssl takes a private key from a file only. So it is given one that is of no use to anybody else:
    encrypted under a password that nobody keeps, in anonymous memory where the system has that.

    Raises: OSError (ssl.SSLError included) for a CA file or a pair that OpenSSL does not take.
    """
    context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate is not None:
        password = secrets.token_hex(32)
        encryption = BestAvailableEncryption(password.encode())
        key = certificate.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
        with _short_lived_file(certificate.chain_pem + key) as path:
            context.load_cert_chain(path, password=password)
    return context


@contextmanager
def _short_lived_file(content: bytes) -> Iterator[str]:
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("pair")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            path = f"/proc/self/fd/{handle}"
            if Path(path).exists():
                yield path
                return
    handle, path = tempfile.mkstemp(prefix="pair-")  # made for its owner alone (0600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        yield path
    finally:
        with suppress(FileNotFoundError):
            Path(path).unlink()
