"""The database: one declarative base, constraint names, UTC instants, short transactions."""

import asyncio
import secrets
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, DateTime, Dialect, MetaData, Select, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute
from sqlalchemy.types import TypeDecorator
from typing_extensions import override

from app.errors import StorageUnavailable

T = TypeVar("T")

MIGRATION_LOCK = 7_302_116
"""Advisory lock of PostgreSQL: any number that nobody else in this database uses."""


FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between attempts to commit what a call to Toss has brought."""
CALLERS_PATIENCE = timedelta(seconds=6)
"""For that commit; a failover of the database may take longer, and the write then goes on alone."""

OUTAGES = frozenset({"08", "25", "28", "3D", "40", "53", "55", "57", "58"})
"""Classes of SQLSTATE that say nothing about our statement: connection, read-only as a standby is, authorization,
no such database, undone as in a deadlock, resources, a lock not had, shutdown and start-up, input and output."""


EPOCH = datetime.fromtimestamp(0, UTC)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Instant(TypeDecorator[datetime]):
    """An aware UTC instant. SQLite has no such type and would hand back naive values."""

    impl = DateTime(timezone=True)
    cache_ok = True

    @override
    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise TypeError("an instant without a time zone")
        return value.astimezone(UTC)

    @override
    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


@dataclass(frozen=True)
class Page(Generic[T]):
    items: Sequence[T]
    next: str | None
    """`before` of the page that follows; None at the end."""


class Database:
    """The engine, and the only way to a transaction."""

    def __init__(self, url: str, *, pool_size: int, timeout: timedelta) -> None:
        self.is_sqlite = make_url(url).get_backend_name() == "sqlite"
        seconds = timeout.total_seconds()
        options: dict[str, Any] = (
            {"connect_args": {"timeout": seconds}}
            if self.is_sqlite
            else {
                "pool_size": pool_size,
                "max_overflow": 0,
                "pool_timeout": seconds,
                "pool_pre_ping": True,
                "connect_args": {"timeout": seconds, "command_timeout": seconds},
            }
        )
        # hide_parameters: an error text must not carry the bound values.
        self.engine = create_async_engine(url, hide_parameters=True, **options)
        if self.is_sqlite:
            _prepare_sqlite(self.engine.sync_engine)
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """A transaction that is committed when the block ends. No network call belongs inside.

        Raises: StorageUnavailable when the database cannot be reached in time.
        """
        with _outages_named():
            async with self._sessions.begin() as session:
                yield session

    async def page(
        self, query: Select[T], *, key: InstrumentedAttribute[str], limit: int, before: str | None
    ) -> Page[T]:
        """Newest first, as `key` is an id that sorts by time; `before` is the one at which the last page ended."""
        query = query.order_by(key.desc()).limit(limit + 1)
        if before is not None:
            query = query.where(key < before)
        async with self.transaction() as session:
            found = (await session.scalars(query)).all()
        items = found[:limit]
        return Page(items, next=getattr(items[-1], key.key) if len(found) > limit else None)

    async def ping(self) -> None:
        async with self.transaction() as session:
            await session.execute(text("SELECT 1"))

    async def forget(self) -> None:
        """Take erased values out of SQLite's write-ahead log too; elsewhere that is the server's own affair."""

        def checkpoint(connection: Connection) -> None:
            cursor = connection.connection.cursor()  # beside SQLAlchemy's transaction: none may be open
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            cursor.close()

        if self.is_sqlite:
            with _outages_named():
                async with self.engine.connect() as connection:
                    await connection.run_sync(checkpoint)

    async def is_current(self) -> bool:
        """Whether every migration that this release knows has been applied.

        One that it does not know comes from a newer release, which must leave the older one able to work:
        replicas are replaced one by one.
        """

        def heads(connection: Connection) -> set[str]:
            return set(MigrationContext.configure(connection).get_current_heads())

        async with self.transaction() as session:
            applied = await (await session.connection()).run_sync(heads)
        scripts = ScriptDirectory.from_config(alembic_config())
        known = {script.revision for script in scripts.walk_revisions()}
        return applied == set(scripts.get_heads()) or not applied <= known

    async def migrate(self) -> None:
        """Apply every migration that is missing. Replicas that do this at once wait for each other.

        Raises: StorageUnavailable.
        """

        def upgrade(connection: Connection) -> None:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
            command.upgrade(alembic_config(connection), "head")

        with _outages_named():
            if self.is_sqlite and self.engine.url.database:
                _make_private_file(Path(self.engine.url.database))
            async with self.engine.begin() as connection:
                await connection.run_sync(upgrade)

    async def aclose(self) -> None:
        await self.engine.dispose()


class LateWrites:
    """Commits what a call to Toss has brought, however long the database is away."""

    def __init__(self, *, database: Database) -> None:
        self._database = database
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = structlog.stdlib.get_logger("app.database")

    async def commit(self, write: Callable[[AsyncSession], Awaitable[None]], **about: str) -> None:
        """The caller waits for a while; the write goes on without it until it succeeds or the process ends.

        `about` goes into the log.

        Raises: StorageUnavailable when the caller has waited long enough.
        """
        task = asyncio.create_task(self._until_written(write, about))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            async with asyncio.timeout(CALLERS_PATIENCE.total_seconds()):
                await asyncio.shield(task)
        except TimeoutError:
            raise StorageUnavailable from None

    async def _until_written(self, write: Callable[[AsyncSession], Awaitable[None]], about: dict[str, str]) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                async with self._database.transaction() as session:
                    return await write(session)
            except StorageUnavailable:
                self._log.warning("write_delayed", **about)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def aclose(self) -> None:
        """Give writes that wait for the database a last moment; what they hold is lost with the process."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CALLERS_PATIENCE.total_seconds())
        for task in self._tasks:
            task.cancel()


def time_ordered_id(now: datetime) -> str:
    """A UUID of version 7 (RFC 9562, with method 3 of its 6.2): ids sort by time, to a quarter of a microsecond.

    So a page ends at an id, even at one that is erased.
    """
    milliseconds, fraction = divmod((now - EPOCH) // timedelta(microseconds=1), 1000)
    return str(
        uuid.UUID(
            int=milliseconds << 80 | 0x7 << 76 | (fraction * 4096 // 1000) << 64 | 0b10 << 62 | secrets.randbits(62)
        )
    )


def pause_after(attempts: int, *, first: timedelta, longest: timedelta) -> timedelta:
    """Before the next attempt at something: twice as long each time."""
    factor: int = 2 ** min(attempts, 20)  # enough for the longest; more would overflow
    return min(first * factor, longest)


def alembic_config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def _make_private_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)


@contextmanager
def _outages_named() -> Iterator[None]:
    try:
        yield
    # asyncpg raises OSError for a refused connection and TimeoutError for a slow one, unwrapped.
    except (OperationalError, InterfaceError, PoolTimeoutError, OSError) as error:
        raise StorageUnavailable from error
    except DBAPIError as error:
        if error.connection_invalidated or _sqlstate(error)[:2] in OUTAGES:
            raise StorageUnavailable from error
        raise


def _sqlstate(error: DBAPIError) -> str:
    return str(getattr(error.orig, "sqlstate", None) or "")


def _prepare_sqlite(engine: Any) -> None:  # noqa: ANN401 - the event API takes any engine
    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: object) -> None:  # noqa: ANN401 - a DBAPI connection
        # The driver's own implicit BEGIN is deferred: two writers would deadlock on the upgrade.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        # Erased personal data is overwritten in the file, not only unlinked.
        cursor.execute("PRAGMA secure_delete=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
