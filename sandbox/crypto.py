"""Toss's side of the session cipher (reference 4): opens what the client sends, seals what it gets back."""

import base64
import binascii
import os
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_pem_private_key,
)

_PARTS = 3
_KEY_BYTES = 32
_IV_BYTES = 12
_TAG_BYTES = 16
# Reference 4.4: `v1`, or `v1_<sdk version>` from the newer Java SDK.
_VERSION = re.compile(r"v1(_[0-9A-Za-z.-]+)?")
# Reference 4.1: UUID version 4, lower case.
_SESSION_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
# Reference 4.1: SHA-1 for both the hash and MGF1, empty label.
_OAEP = padding.OAEP(mgf=padding.MGF1(hashes.SHA1()), algorithm=hashes.SHA1(), label=None)  # noqa: S303


class CannotOpen(Exception):
    """A session key or an envelope that does not follow reference 4; the message holds no content."""


@dataclass(frozen=True, repr=False)
class Session:
    version: str
    id: str
    key: bytes
    iv: bytes

    def open(self, envelope: str) -> str:
        """Raises `CannotOpen`."""
        parts = envelope.split("$")
        if len(parts) != _PARTS:
            raise CannotOpen("an envelope has three parts")
        version, session_id, sealed = parts
        if (version, session_id) != (self.version, self.id):
            raise CannotOpen("the envelope is of another session")
        data = strict_base64(sealed)
        if len(data) < _TAG_BYTES:
            raise CannotOpen("the envelope is shorter than its tag")
        try:
            return AESGCM(self.key).decrypt(self.iv, data, self.key).decode("utf-8", "strict")
        except (InvalidTag, UnicodeDecodeError):
            raise CannotOpen("the envelope does not open with its session") from None

    def seal(self, text: str) -> str:
        """An envelope with the given key and IV; version and id are echoed verbatim (reference 4.4, 4.6)."""
        sealed = AESGCM(self.key).encrypt(self.iv, text.encode(), self.key)
        return f"{self.version}${self.id}${base64.b64encode(sealed).decode()}"


def open_session(session_key: str, private_key: rsa.RSAPrivateKey) -> Session:
    """Raises `CannotOpen`. GCM only: reference 4.8 and Q10 leave the CBC mode unclear."""
    parts = session_key.split("$")
    if len(parts) != _PARTS:
        raise CannotOpen("a session key has three parts")
    version, session_id, wrapped_text = parts
    if not _VERSION.fullmatch(version):
        raise CannotOpen("unknown version")
    if not _SESSION_ID.fullmatch(session_id):
        raise CannotOpen("the session id is no lower-case UUID of version 4")
    wrapped = strict_base64(wrapped_text)
    try:
        inner = private_key.decrypt(wrapped, _OAEP).decode("ascii").split("$")
    except (ValueError, UnicodeDecodeError):
        raise CannotOpen("the session key does not open with this RSA key") from None
    if len(inner) != _PARTS or inner[0] != "AES_GCM":
        raise CannotOpen("the session is not AES_GCM$key$iv")
    key, iv = strict_base64(inner[1]), strict_base64(inner[2])
    if len(key) != _KEY_BYTES or len(iv) != _IV_BYTES:
        raise CannotOpen("the session needs a key of 32 bytes and an IV of 12")
    return Session(version, session_id, key, iv)


def seal_login_field(text: str, *, key: str, aad: str, iv: bytes | None = None) -> str:
    """A field of login-me: Base64 of IV, ciphertext and tag (reference of Apps in Toss, 6.5). `key` is Base64."""
    nonce = iv or os.urandom(_IV_BYTES)
    sealed = AESGCM(base64.b64decode(key, validate=True)).encrypt(nonce, text.encode(), aad.encode())
    return base64.b64encode(nonce + sealed).decode()


def strict_base64(text: str) -> bytes:
    """The standard alphabet, padded, no line breaks (reference 4.1), and one text per value."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise CannotOpen("not Base64") from None
    if base64.b64encode(data).decode() != text:
        raise CannotOpen("not canonical Base64")
    return data


def public_key_text(private_key: rsa.RSAPrivateKey) -> str:
    """SPKI, DER, Base64, as Toss publishes its own (reference 4.5)."""
    der = private_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(der).decode()


def rsa_key_from_text(pkcs8_der_base64: str) -> rsa.RSAPrivateKey:
    der = base64.b64decode(pkcs8_der_base64, validate=True)
    key = load_der_private_key(der, password=None, unsafe_skip_rsa_key_validation=True)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key


def kept_rsa_key(path: Path, bits: int) -> rsa.RSAPrivateKey:
    """The key in `path`, made on first use: RSA keys are slow to make."""
    if path.exists():
        # Checking the primes again would cost more than the rest of a start.
        key = load_pem_private_key(path.read_bytes(), password=None, unsafe_skip_rsa_key_validation=True)
        assert isinstance(key, rsa.RSAPrivateKey)
        return key
    key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    write_secret(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key


def write_secret(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
