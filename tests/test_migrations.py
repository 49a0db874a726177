"""The tables as the migrations make them, on both databases."""

import asyncio
import signal
import sys
from datetime import timedelta

import asyncpg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.exc import DBAPIError

import app.callbacks.tables
import app.cert.tables
import app.events.tables
import app.login.tables
import app.payments.tables
import app.purchases.tables
import app.server_keys  # noqa: F401 - for its table
from app.database import MIGRATION_LOCK, Base, Database, alembic_config
from app.errors import StorageUnavailable
from tests.conftest import Backend, _create_database, settings_for
from tests.processes import PATIENCE, ROOT, environment_of
from tests.processes import command as command_of

LONG = timedelta(seconds=20)
WAITING = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = $1 AND NOT granted"
"""How many wait for an advisory lock of PostgreSQL."""


@pytest.fixture(params=["sqlite", "postgresql"])
async def empty(request, tmp_path, postgres_server) -> str:
    """The address of a database without tables."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/empty.db"
    return await _create_database(postgres_server, "empty")


@pytest.fixture
async def database(empty):
    made = Database(empty, pool_size=2, timeout=LONG)
    yield made
    await made.aclose()


async def tables(database: Database) -> set[str]:
    async with database.engine.begin() as connection:
        return set(await connection.run_sync(lambda sync: inspect(sync).get_table_names()))


async def test_an_empty_database_becomes_current_and_stays_so(database):
    assert await database.is_current() is False
    await database.migrate()
    assert await database.is_current() is True
    assert await tables(database) == {"alembic_version", *Base.metadata.tables}
    await database.migrate()
    assert await database.is_current() is True


async def test_the_migrations_make_what_the_models_describe(database):
    await database.migrate()

    def differences(connection):
        return compare_metadata(
            MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True}),
            Base.metadata,
        )

    async with database.engine.begin() as connection:
        assert await connection.run_sync(differences) == []


async def test_constraints_and_indexes_have_the_names_of_the_models(database):
    """Autogenerate does not look at check constraints."""
    await database.migrate()

    def names(connection):
        inspector = inspect(connection)
        return {
            name
            for table in Base.metadata.tables
            for found in (
                inspector.get_check_constraints(table),
                inspector.get_unique_constraints(table),
                [inspector.get_pk_constraint(table)],
                inspector.get_foreign_keys(table),
                [index for index in inspector.get_indexes(table) if not index.get("duplicates_constraint")],
            )
            for name in (each["name"] for each in found)
        }

    async with database.engine.begin() as connection:
        found = await connection.run_sync(names)
    expected = {
        str(item.name) for table in Base.metadata.tables.values() for item in (*table.constraints, *table.indexes)
    }
    assert found == expected


async def test_a_downgrade_takes_everything_away_and_an_upgrade_brings_it_back(database):
    await database.migrate()

    def downgrade(connection):
        command.downgrade(alembic_config(connection), "base")

    async with database.engine.begin() as connection:
        await connection.run_sync(downgrade)
    assert await tables(database) == {"alembic_version"}
    assert await database.is_current() is False
    await database.migrate()
    assert await database.is_current() is True


async def test_a_database_of_a_newer_version_still_serves_this_one(database):
    """Replicas are replaced one by one, so the old ones have to live with the new tables for a while."""
    await database.migrate()
    async with database.transaction() as session:
        await session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert await database.is_current() is True


async def test_replicas_that_migrate_at_once_all_succeed(empty):
    replicas = [Database(empty, pool_size=1, timeout=LONG) for _ in range(4)]
    await asyncio.gather(*(replica.migrate() for replica in replicas))
    for replica in replicas:
        assert await replica.is_current() is True
        await replica.aclose()


async def test_processes_that_migrate_at_once_wait_for_each_other(postgres_server, sandbox):
    url = await _create_database(postgres_server, "guarded")
    settings = settings_for(Backend("production", url, None), sandbox)
    holder = await asyncpg.connect(url.replace("+asyncpg", ""))
    await holder.execute("SELECT pg_advisory_lock($1)", MIGRATION_LOCK)
    migrating = [asyncio.create_task(command_of(settings, "migrate")) for _ in range(2)]
    while await holder.fetchval(WAITING, MIGRATION_LOCK) < 2:
        assert not any(each.done() for each in migrating)
    await holder.close()
    assert [each.returncode for each in await asyncio.gather(*migrating)] == [0, 0]
    database = Database(url, pool_size=1, timeout=LONG)
    assert await database.is_current() is True
    await database.aclose()


async def test_a_migration_that_waits_can_be_ended(postgres_server, sandbox):
    """Not by the signal itself: process 1 of a container would never see it."""
    url = await _create_database(postgres_server, "ended")
    environment = environment_of(settings_for(Backend("production", url, None), sandbox))
    holder = await asyncpg.connect(url.replace("+asyncpg", ""))
    await holder.execute("SELECT pg_advisory_lock($1)", MIGRATION_LOCK)
    migrating = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "app", "migrate", cwd=ROOT, env=environment
    )
    while await holder.fetchval(WAITING, MIGRATION_LOCK) < 1:
        assert migrating.returncode is None
    migrating.terminate()
    assert await asyncio.wait_for(migrating.wait(), PATIENCE) == 128 + signal.SIGTERM
    await holder.close()


async def test_a_migration_that_fails_leaves_nothing_behind(database):
    """A table of that name is in the way of the last step; the first ones are undone with it."""
    async with database.transaction() as session:
        await session.execute(text("CREATE TABLE server_key (in_the_way INTEGER)"))
    with pytest.raises((DBAPIError, StorageUnavailable)):
        await database.migrate()
    assert "verification" not in await tables(database)
    assert await database.is_current() is False
