"""What is stored, as somebody with access to the database sees it."""

import contextlib
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from sqlalchemy import select, text

from app.database import Base, Database
from app.login.tables import LoginExchange, LoginSession, User
from app.resources import Resources
from app.settings import Settings


async def rows(resources: Resources, table) -> Sequence:
    async with resources.database.transaction() as session:
        return (await session.scalars(select(table))).all()


async def users(bff) -> Sequence[User]:
    return await rows(bff.resources, User)


async def sessions(bff) -> Sequence[LoginSession]:
    return await rows(bff.resources, LoginSession)


async def exchanges(bff) -> Sequence[LoginExchange]:
    return await rows(bff.resources, LoginExchange)


async def row_of(bff, login) -> User | None:
    async with bff.resources.database.transaction() as session:
        return await session.get(User, login.user_id)


@contextlib.asynccontextmanager
async def database_of(settings: Settings):
    database = Database(settings.database.url.get_secret_value(), pool_size=1, timeout=timedelta(seconds=10))
    try:
        yield database
    finally:
        await database.aclose()


async def everything(settings: Settings) -> str:
    """All tables as text, and for SQLite the bytes of its files as well."""
    found = []
    async with database_of(settings) as database:
        for table in Base.metadata.sorted_tables:
            async with database.transaction() as session:
                found += [repr(tuple(row)) for row in await session.execute(text(f'SELECT * FROM "{table.name}"'))]
    if database.is_sqlite:
        path = Path(database.engine.url.database)
        found += [file.read_bytes().decode("latin-1") for file in sorted(path.parent.glob(f"{path.name}*"))]
    return "\n".join(found)
