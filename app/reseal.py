"""Key rotation: seal every stored value with the active key, in batches, while the service runs."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Table, Text, func, select, type_coerce, update

import app.callbacks.tables
import app.cert.tables
import app.login.tables
import app.payments.tables  # noqa: F401 - tables with sealed columns
from app.database import Base, Database
from app.vault import Place, Sealed, SealedColumn, UnsealError, Vault


@dataclass(frozen=True)
class Resealed:
    column: str
    resealed: int
    unreadable: int
    """Values whose key is not configured: they keep their old key, which must not be removed yet."""


async def reseal(database: Database, vault: Vault, *, batch: int) -> list[Resealed]:
    """Raises: StorageUnavailable. What was done until then stays done."""
    if batch < 1:
        raise ValueError("a batch has at least one value")
    return [
        await _reseal_column(database, vault, table, column, batch=batch)
        for table in Base.metadata.sorted_tables
        for column in table.columns
        if isinstance(column.type, SealedColumn)
    ]


async def keys_in_use(database: Database) -> set[str]:
    """Ids of the keys that stored values still need."""
    found: set[str] = set()
    for table in Base.metadata.sorted_tables:
        for column in table.columns:
            if isinstance(column.type, SealedColumn):
                async with database.transaction() as session:
                    values = await session.stream_scalars(select(column).where(column.is_not(None)))
                    found |= {value.key_id async for value in values}
    return found


async def _reseal_column(
    database: Database, vault: Vault, table: Table, column: Column[Any], *, batch: int
) -> Resealed:
    (key,) = table.primary_key.columns
    prefix = f"{vault.active_key}$"
    is_stale = func.substr(type_coerce(column, Text), 1, len(prefix)) != prefix
    resealed, unreadable, last = 0, 0, ""
    while True:
        async with database.transaction() as session:
            rows = (
                await session.execute(
                    select(key, column).where(column.is_not(None), is_stale, key > last).order_by(key).limit(batch)
                )
            ).all()
            for row_key, old in rows:
                last = row_key
                new = _resealed(vault, old, Place(table.name, column.name, row_key))
                if new is None:
                    unreadable += 1
                    continue
                # Only over the value that was read: a service that wrote meanwhile is right.
                written = await session.execute(
                    update(table).where(key == row_key, column == old).values({column.name: new}).returning(key)
                )
                resealed += len(written.all())
        if not rows:
            return Resealed(f"{table.name}.{column.name}", resealed, unreadable)


def _resealed(vault: Vault, old: Sealed, place: Place) -> Sealed | None:
    try:
        return vault.seal(vault.open(old, place), place)
    except UnsealError:
        return None
