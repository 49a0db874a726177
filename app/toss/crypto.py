"""How personal data travels to and from Toss: the Toss Cert session cipher, and the fields of Toss login.

Sections are of the toss-cert reference where nothing else is said.

One key and one nonce serve every field of one API call. The format leaves no choice, so whoever sees two
envelopes of a session learns about both texts (reference 4.9): an envelope protects nothing at rest. Never
log or forward one, and keep none but under our own seal.
"""

import base64
import hashlib
import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, Literal, Self

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)

TOSS_PUBLIC_KEY: Final = (
    "MIICIjANBgkqhkiG9w0BAQEFAAOCAg8AMIICCgKCAgEAoVdxG0Qi9pip46Jw9ImSlPVD8+L2mM47ey6EZna7D7utgNdh8Tzkjrm1Yl4h"
    "6kPJrhdWvMIJGS51+6dh041IXcJEoUquNblUEqAUXBYwQM8PdfnS12SjlvZrP4q6whBE7IV1SEIBJP0gSK5/8Iu+uld2ctJiU4p8uswL"
    "2bCPGWdvVPltxAg6hfAG/ImRUKPRewQsFhkFvqIDCpO6aeaR10q6wwENZltlJeeRnl02VWSneRmPqqypqCxz0Y+yWCYtsA+ngfZmwRMa"
    "FkXcWjaWnvSqqV33OAsrQkvuBHWoEEkvQ0P08+h9Fy2+FhY9TeuukQ2CVFz5YyOhp25QtWyQI+IaDKk+hLxJ1APR0c3tmV0ANEIjO6Hh"
    "JIdu2KQKtgFppvqSrZp2OKtI8EZgVbWuho50xvlaPGzWoMi9HSCb+8ARamlOpesxHH3O0cTRUnft2Zk1FHQb2Pidb2z5onMEnzP2xpTq"
    "AIVQyb6nMac9tof5NFxwR/c4pmci+1n8GFJIFN18j2XGad1mNyio/R8LabqnzNwJC6VPnZJz5/pDUIk9yKNOY0KJe64SRiL0a4SNMoht"
    "yj6QlA/3SGxaEXb8UHpophv4G9wN1CgfyUamsRqp8zo5qDxBvlaIlfkqJvYPkltj7/23FHDjPi8q8UkSiAeu7IV5FTfB5KsiN8+sGSMC"
    "AwEAAQ=="
)
"""The key Toss publishes, Base64 of DER (reference 4.5). A default only: another may be agreed (Q15)."""

VERSION: Final = "v1"
"""What all documentation sends (reference 4.4)."""

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
MIN_RSA_BITS: Final = 2048

TAG_BYTES: Final = 16
MAX_LOGIN_FIELD: Final = 16 * 1024
"""Characters; no name or connection information comes near."""

_ALGORITHM: Final = "AES_GCM"
_SEPARATOR: Final = "$"

EnvelopeFault = Literal["format", "version", "session", "base64", "tag", "text"]


class EnvelopeError(Exception):
    """A field envelope that cannot be opened, or a text that cannot be put in one.

    Says which rule was broken and nothing else: neither envelope, key nor plaintext is in it.
    """

    def __init__(self, reason: EnvelopeFault) -> None:
        super().__init__(f"field envelope refused: {reason}")
        self.reason: Final = reason


def decode_base64(text: str) -> bytes:
    """The bytes of standard Base64 in its one canonical spelling; ValueError, without the text, for others.

    Comparing with the spelling we would have written refuses missing padding, the URL alphabet, white space
    and stray trailing bits in one go; the SDK lets all that through (reference 5).
    """
    with suppress(ValueError):
        data = base64.b64decode(text)
        if _encode_base64(data) == text:
            return data
    raise ValueError("not canonical Base64")


def _encode_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class PublicKey:
    """The RSA key that session keys are wrapped for."""

    def __init__(self, key: rsa.RSAPublicKey) -> None:
        if key.key_size < MIN_RSA_BITS:
            raise ValueError(f"the public key has fewer than {MIN_RSA_BITS} bits")
        self._key = key

    @classmethod
    def parse(cls, text: str) -> Self:
        """From PEM, or from Base64 of DER with or without line breaks; ValueError never shows the text.

        A private key pasted here by mistake must not end up in a log.
        """
        text = text.strip()
        try:
            if text.startswith("-----BEGIN"):
                key = load_pem_public_key(text.encode())
            else:
                key = load_der_public_key(decode_base64("".join(text.split())))
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, rsa.RSAPublicKey):
            raise ValueError("not an RSA public key in PEM or in Base64 of DER")  # noqa: TRY004 - a value, not a type
        return cls(key)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the DER form, in hex: tells a sandbox's key from Toss's."""
        der = self._key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(der).hexdigest()

    def wrap(self, plaintext: bytes) -> bytes:
        # SHA-1 is what Toss expects (reference 4.1); OAEP does not rest on its collision resistance.
        sha1 = SHA1()  # noqa: S303
        return self._key.encrypt(plaintext, padding.OAEP(mgf=padding.MGF1(sha1), algorithm=sha1, label=None))


class Session:
    """The key, nonce and id of ONE API call.

    A second call needs a second session: Toss forbids reuse (reference 3.6) and the shared nonce makes it
    dangerous (4.9). So the session key is handed out once, and never by a session that was loaded.
    """

    __slots__ = ("_id", "_key", "_nonce", "_spent", "_version")

    def __init__(self, *, version: str, session_id: str, key: bytes, nonce: bytes) -> None:
        """For a known key, as in test vectors; everybody else calls `new` or `load`."""
        if not version or not session_id or _SEPARATOR in version + session_id:
            raise ValueError("a session needs a version and an id without separators")
        if len(key) != KEY_BYTES or len(nonce) != NONCE_BYTES:
            raise ValueError("a session needs a key of 32 bytes and a nonce of 12")
        self._version = version
        self._id = session_id
        self._key = key
        self._nonce = nonce
        self._spent = False

    @classmethod
    def new(cls, version: str = VERSION) -> Self:
        return cls(
            version=version,
            session_id=str(uuid.uuid4()),
            key=os.urandom(KEY_BYTES),
            nonce=os.urandom(NONCE_BYTES),
        )

    @classmethod
    def load(cls, text: str) -> Self:
        """The session that `dump` wrote, to open with; ValueError, without the text, for anything else."""
        try:
            version, session_id, algorithm, key, nonce = text.split(_SEPARATOR)
            session = cls(
                version=version,
                session_id=session_id,
                key=decode_base64(key),
                nonce=decode_base64(nonce),
            )
        except ValueError:
            algorithm = ""
        # Not the SDK's AES_CBC either: its integrity check has two forms that disagree (reference 4.8).
        if algorithm != _ALGORITHM:
            raise ValueError("not a serialised Toss Cert session")
        session._spent = True
        return session

    def dump(self) -> str:
        """The session in clear, in the SDK's form (reference 5). It IS the key.

        Its only place is our database, sealed, from before a result is asked for until it was opened (G2).
        """
        return self._join(self._version, self._id, self._secret())

    def session_key(self, public_key: PublicKey) -> str:
        """What the call carries as `sessionKey` (reference 4.2); RuntimeError when asked a second time."""
        if self._spent:
            raise RuntimeError("a Toss Cert session serves one call")
        self._spent = True
        return self._join(self._version, self._id, _encode_base64(public_key.wrap(self._secret().encode())))

    def seal(self, text: str) -> str:
        """The field envelope of a text (reference 4.3); EnvelopeError for a text that UTF-8 cannot carry."""
        plaintext = None
        with suppress(UnicodeEncodeError):
            plaintext = text.encode()
        if plaintext is None:  # raised out here because a UnicodeEncodeError carries the text
            raise EnvelopeError("text")
        sealed = AESGCM(self._key).encrypt(self._nonce, plaintext, self._key)
        return self._join(self._version, self._id, _encode_base64(sealed))

    def open(self, envelope: str) -> str:
        """The text of a field envelope of this session (reference 4.6); EnvelopeError for anything else."""
        parts = envelope.split(_SEPARATOR)
        if len(parts) != 3:  # noqa: PLR2004
            raise EnvelopeError("format")
        version, session_id, payload = parts
        if version != self._version:
            raise EnvelopeError("version")
        if session_id != self._id:
            raise EnvelopeError("session")
        try:
            sealed = decode_base64(payload)
        except ValueError:
            raise EnvelopeError("base64") from None
        try:
            # The additional data are the key bytes themselves (4.1). Fewer than 16 bytes have no room for a
            # tag and fail like a wrong one.
            plaintext = AESGCM(self._key).decrypt(self._nonce, sealed, self._key)
        except InvalidTag:
            raise EnvelopeError("tag") from None
        with suppress(UnicodeDecodeError):
            return plaintext.decode()
        raise EnvelopeError("text")  # raised out here because a UnicodeDecodeError carries the plaintext

    def _secret(self) -> str:
        return self._join(_ALGORITHM, _encode_base64(self._key), _encode_base64(self._nonce))

    @staticmethod
    def _join(*parts: str) -> str:
        return _SEPARATOR.join(parts)


class LoginFieldCipher:
    """Opens the encrypted fields of Toss login: Base64 of IV, ciphertext and tag (apps-in-toss reference 6.5).

    Several keys and additional data may be in force: while Toss changes them, fields of both kinds arrive.
    """

    def __init__(self, *, keys: Sequence[bytes], aads: Sequence[str]) -> None:
        """The newest first. Without a key nothing opens. ValueError, without the key, for one of another length."""
        if any(len(key) != KEY_BYTES for key in keys):  # a shorter one would make AES-128 of it
            raise ValueError(f"a key of Toss login has {KEY_BYTES} bytes")
        self._ciphers = [AESGCM(key) for key in keys]
        self._aads = [aad.encode() for aad in aads]

    def open(self, field: object) -> str:
        """The text of a field; EnvelopeError for anything else. Says neither key, field nor text."""
        if not isinstance(field, str) or len(field) > MAX_LOGIN_FIELD:
            raise EnvelopeError("format")
        try:
            box = decode_base64(field)
        except ValueError:
            raise EnvelopeError("base64") from None
        if len(box) < NONCE_BYTES + TAG_BYTES:
            raise EnvelopeError("format")
        plaintext = self._decrypted(box[:NONCE_BYTES], box[NONCE_BYTES:])
        if plaintext is None:
            raise EnvelopeError("tag")
        with suppress(UnicodeDecodeError):
            return plaintext.decode()
        raise EnvelopeError("text")  # raised out here because a UnicodeDecodeError carries the plaintext

    def _decrypted(self, nonce: bytes, sealed: bytes) -> bytes | None:
        for cipher in self._ciphers:
            for aad in self._aads:
                with suppress(InvalidTag):
                    return cipher.decrypt(nonce, sealed, aad)
        return None
