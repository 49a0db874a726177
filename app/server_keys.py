"""Server keys: how a partner's own backend proves itself. Only a keyed hash is stored; the key is shown once."""

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import JSON, String, select, update
from sqlalchemy.orm import Mapped, mapped_column
from typing_extensions import override

from app.database import Base, Database, Instant
from app.vault import Vault

MAX_NAME = 80
KEY_PREFIX = "sk_"
"""Makes a leaked key recognisable."""


class Scope(StrEnum):
    CERT_READ = "cert:read"
    CERT_COMPARE = "cert:compare"
    CERT_EVIDENCE = "cert:evidence"
    CERT_ERASE = "cert:erase"
    SESSION_INTROSPECT = "session:introspect"
    USER_READ = "user:read"
    USER_ERASE = "user:erase"
    NOTICE_READ = "notice:read"
    NOTICE_REPLAY = "notice:replay"
    ORDER_CREATE = "order:create"
    PAYMENT_READ = "payment:read"
    PAYMENT_REFUND = "payment:refund"
    BILLING_CHARGE = "billing:charge"
    PURCHASE_READ = "purchase:read"
    EVENT_READ = "event:read"
    EVENT_REPLAY = "event:replay"


class ServerKey(Base):
    __tablename__ = "server_key"

    key_id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(MAX_NAME))
    key_hash: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[str]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(Instant)
    expires_at: Mapped[datetime | None] = mapped_column(Instant)
    revoked_at: Mapped[datetime | None] = mapped_column(Instant)


@dataclass(frozen=True)
class IssuedKey:
    key_id: str
    secret: str

    @override
    def __repr__(self) -> str:
        return f"IssuedKey({self.key_id})"


class ServerKeys:
    def __init__(self, *, database: Database, vault: Vault, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._vault = vault
        self._clock = clock

    async def issue(self, *, name: str, scopes: Iterable[Scope], lifetime: timedelta | None = None) -> IssuedKey:
        """The only moment at which the key itself exists."""
        issued = IssuedKey(secrets.token_hex(6), KEY_PREFIX + secrets.token_urlsafe(32))
        now = self._clock()
        async with self._database.transaction() as session:
            session.add(
                ServerKey(
                    key_id=issued.key_id,
                    name=name,
                    key_hash=self._hash(issued.secret),
                    scopes=sorted(scopes),
                    created_at=now,
                    expires_at=now + lifetime if lifetime is not None else None,
                )
            )
        return issued

    async def verify(self, secret: str) -> ServerKey | None:
        """The key, unless it is unknown, revoked or past its end."""
        async with self._database.transaction() as session:
            key = await session.scalar(select(ServerKey).where(ServerKey.key_hash == self._hash(secret)))
        if key is None or key.revoked_at is not None:
            return None
        if key.expires_at is not None and key.expires_at <= self._clock():
            return None
        return key

    async def list(self) -> Sequence[ServerKey]:
        async with self._database.transaction() as session:
            return (await session.scalars(select(ServerKey).order_by(ServerKey.created_at))).all()

    async def revoke(self, key_id: str) -> bool:
        """False if there is no such key, or it was revoked before."""
        async with self._database.transaction() as session:
            revoked = await session.scalar(
                update(ServerKey)
                .where(ServerKey.key_id == key_id, ServerKey.revoked_at.is_(None))
                .values(revoked_at=self._clock())
                .returning(ServerKey.key_id)
            )
        return revoked is not None

    def _hash(self, secret: str) -> str:
        return self._vault.hash("server_key", secret)
