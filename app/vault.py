"""Sealing of personal data at rest, and keyed hashes for look-up.

A sealed value is AES-256-GCM with a random nonce, bound to the place (table, column, row) where it is stored, and
carries the id of its key so that keys can rotate. What is only ever compared is hashed with HMAC-SHA256 instead.
"""

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Dialect, Text
from sqlalchemy.types import TypeDecorator
from typing_extensions import override

NONCE_BYTES = 12


class UnsealError(Exception):
    """A sealed value that cannot be opened: an unknown key, another place, or damage."""


@dataclass(frozen=True, repr=False)
class Sealed:
    """Encrypted text, safe to store. Only `Vault.seal` makes one from plain text."""

    text: str

    @property
    def key_id(self) -> str:
        return self.text.partition("$")[0]

    @override
    def __repr__(self) -> str:
        return "Sealed(...)"


@dataclass(frozen=True)
class Place:
    """Where a sealed value lives. A value that is moved elsewhere does not open."""

    table: str
    column: str
    row: str

    def to_bytes(self) -> bytes:
        return f"{self.table}\x1f{self.column}\x1f{self.row}".encode()


class SealedColumn(TypeDecorator[Sealed]):
    """A column that takes nothing but `Sealed`: storing plain text is a type error, here and for mypy."""

    impl = Text
    cache_ok = True

    @override
    def process_bind_param(self, value: Sealed | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        if not isinstance(value, Sealed):
            raise TypeError("a sealed column takes a Sealed, not plain text")
        return value.text

    @override
    def process_result_value(self, value: str | None, dialect: Dialect) -> Sealed | None:
        return None if value is None else Sealed(value)


class Vault:
    def __init__(self, keys: Mapping[str, bytes], *, active_key: str, hash_key: bytes) -> None:
        self._ciphers = {key_id: AESGCM(key) for key_id, key in keys.items()}
        self._hash_key = hash_key
        self.active_key = active_key

    def seal(self, plain: str, place: Place) -> Sealed:
        nonce = os.urandom(NONCE_BYTES)
        box = self._ciphers[self.active_key].encrypt(nonce, plain.encode(), place.to_bytes())
        return Sealed(f"{self.active_key}${base64.b64encode(nonce + box).decode()}")

    def open(self, sealed: Sealed, place: Place) -> str:
        """Raises: UnsealError."""
        key_id, _, text = sealed.text.partition("$")
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise UnsealError(f"sealed with a key that is not configured: {key_id}")
        try:
            box = base64.b64decode(text, validate=True)
            return cipher.decrypt(box[:NONCE_BYTES], box[NONCE_BYTES:], place.to_bytes()).decode()
        except (InvalidTag, ValueError, binascii.Error):
            raise UnsealError("damaged, or sealed for another place") from None

    def hash(self, kind: str, plain: str) -> str:
        """Keyed hash for look-up. `kind` keeps equal texts of different meaning apart."""
        message = f"{kind}\x1f{plain}".encode()
        return hmac.new(self._hash_key, message, hashlib.sha256).hexdigest()
