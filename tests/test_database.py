"""Transactions, instants, and what a database that is away looks like."""

import asyncio
from datetime import UTC, datetime, timedelta, timezone

import asyncpg
import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError, StatementError

from app.database import Database, Instant, LateWrites
from app.errors import StorageUnavailable
from app.server_keys import ServerKey
from tests.servers import free_port

SECOND = timedelta(seconds=1)
LONG = timedelta(seconds=10)


@pytest.fixture
async def database(backend):
    made = Database(backend.database_url, pool_size=5, timeout=LONG)
    yield made
    await made.aclose()


def key(key_id: str = "k", **changes) -> ServerKey:
    usual = {"name": "n", "key_hash": key_id, "scopes": [], "created_at": datetime(2026, 1, 1, tzinfo=UTC)}
    return ServerKey(key_id=key_id, **usual | changes)


async def ids(database: Database) -> list[str]:
    async with database.transaction() as session:
        return sorted((await session.scalars(select(ServerKey.key_id))).all())


async def test_a_transaction_is_committed_when_its_block_ends(database):
    async with database.transaction() as session:
        session.add(key("a"))
    assert await ids(database) == ["a"]


@pytest.mark.parametrize("error", [RuntimeError("bug"), asyncio.CancelledError()])
async def test_a_transaction_is_undone_when_its_block_fails(database, error):

    async def fail() -> None:
        async with database.transaction() as session:
            session.add(key("a"))
            await session.flush()
            raise error

    with pytest.raises(type(error)):
        await fail()
    assert await ids(database) == []


async def test_a_broken_constraint_is_no_outage_and_undoes_everything(database):
    async with database.transaction() as session:
        session.add(key("a"))
    with pytest.raises(IntegrityError):
        async with database.transaction() as session:
            session.add_all([key("b"), key("c", key_hash="a")])
    assert await ids(database) == ["a"]


async def test_an_error_does_not_show_the_values(database):
    with pytest.raises(IntegrityError) as caught:
        async with database.transaction() as session:
            session.add_all([key("a", name="s3cr3t"), key("a2", key_hash="a", name="s3cr3t")])
    assert "s3cr3t" not in str(caught.value)


async def test_what_was_read_can_be_used_after_its_transaction(database):
    async with database.transaction() as session:
        session.add(added := key("a"))
    assert added.name == "n"


# --- Instants ---------------------------------------------------------------------------------------------

KST = timezone(timedelta(hours=9))


@pytest.mark.parametrize(
    "instant",
    [
        datetime(2026, 3, 24, 23, 59, 59, 123456, tzinfo=UTC),
        datetime(2026, 3, 24, 0, 30, tzinfo=KST),
        datetime(2026, 3, 24, 12, tzinfo=timezone(-timedelta(hours=11, minutes=30))),
    ],
)
async def test_an_instant_comes_back_aware_in_utc_and_equal(database, instant):
    async with database.transaction() as session:
        session.add(key("a", created_at=instant, expires_at=None))
    async with database.transaction() as session:
        read = await session.get(ServerKey, "a")
    assert (read.created_at, read.created_at.tzinfo, read.expires_at) == (instant, UTC, None)


async def test_instants_compare_across_time_zones(database):
    async with database.transaction() as session:
        session.add_all(
            [
                key("a", created_at=datetime(2026, 3, 24, 0, 0, tzinfo=KST)),  # 15:00 UTC the day before
                key("b", created_at=datetime(2026, 3, 23, 15, 1, tzinfo=UTC)),
            ]
        )
    async with database.transaction() as session:
        limit = datetime(2026, 3, 24, 0, 0, 30, tzinfo=KST)
        found = (await session.scalars(select(ServerKey.key_id).where(ServerKey.created_at < limit))).all()
    assert found == ["a"]


async def test_an_instant_without_a_time_zone_is_refused(database):
    naive = datetime(2026, 3, 24, tzinfo=UTC).replace(tzinfo=None)
    with pytest.raises(StatementError, match="time zone"):
        async with database.transaction() as session:
            session.add(key("a", created_at=naive))
    assert Instant().process_bind_param(None, None) is None


# --- A database that is away ------------------------------------------------------------------------------


async def unavailable(url: str, *, patience: timedelta = LONG) -> None:
    database = Database(url, pool_size=1, timeout=patience)
    for use in (database.ping, database.is_current, database.migrate):
        with pytest.raises(StorageUnavailable) as caught:
            await use()
        assert caught.value.__cause__ is not None
        assert "pa55word" not in str(caught.value)
    await database.aclose()


async def test_a_refused_connection_is_an_outage():
    await unavailable(f"postgresql+asyncpg://bff:pa55word@127.0.0.1:{free_port()}/bff")


async def test_a_file_that_cannot_be_opened_is_an_outage(tmp_path):
    (tmp_path / "file").write_text("in the way of the folder")
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/file/bff.db", pool_size=1, timeout=LONG)
    for use in (database.ping, database.is_current):
        with pytest.raises(StorageUnavailable):
            await use()
    await database.aclose()


async def test_a_folder_that_cannot_be_made_is_an_outage(tmp_path):
    (tmp_path / "file").write_text("in the way of the folder")
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/file/bff.db", pool_size=1, timeout=LONG)
    with pytest.raises(StorageUnavailable):
        await database.migrate()


async def test_a_server_that_never_answers_is_an_outage():
    tasks = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.current_task())
        while await reader.read(1024):
            pass
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    await unavailable(f"postgresql+asyncpg://bff@127.0.0.1:{port}/bff", patience=timedelta(seconds=0.1))
    server.close()
    await asyncio.gather(*tasks)


async def test_a_database_that_does_not_exist_is_an_outage(postgres_server):
    await unavailable(f"{postgres_server}/no_such_database")


async def test_a_connection_that_was_cut_is_replaced_and_one_cut_in_the_middle_is_an_outage(production):
    database = Database(production.database_url, pool_size=1, timeout=LONG)
    killer = await asyncpg.connect(production.database_url.replace("+asyncpg", ""))
    everybody_else = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await database.ping()
    await killer.execute(everybody_else)
    await database.ping()

    async def be_cut() -> None:
        async with database.transaction() as session:
            await session.execute(text("SELECT 1"))
            await killer.execute(everybody_else)
            await session.execute(text("SELECT 1"))

    with pytest.raises(StorageUnavailable):
        await be_cut()
    await database.ping()
    await killer.close()
    await database.aclose()


@pytest.mark.parametrize("state", ["25006", "40001", "40P01", "55P03"])
async def test_a_standby_a_deadlock_and_a_lock_not_had_are_outages(production, state):
    """What a call to Toss has brought is then written once more, not lost (LateWrites)."""
    database = Database(production.database_url, pool_size=1, timeout=LONG)
    writes, attempts = LateWrites(database=database), []

    async def write(session) -> None:
        attempts.append(state)
        if len(attempts) == 1:
            await session.execute(text(f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END $$"))
        session.add(key("a"))

    await writes.commit(write)
    assert (len(attempts), await ids(database)) == (2, ["a"])
    await database.aclose()


async def test_a_pool_that_is_used_up_is_an_outage(production):
    database = Database(production.database_url, pool_size=1, timeout=timedelta(seconds=0.2))
    async with database.transaction() as session:
        await session.execute(text("SELECT 1"))
        with pytest.raises(StorageUnavailable):
            await database.ping()
    await database.aclose()


async def test_a_statement_that_waits_too_long_is_an_outage(backend):
    one, other = (Database(backend.database_url, pool_size=1, timeout=timedelta(seconds=0.3)) for _ in range(2))
    async with one.transaction() as session:
        session.add(key("a"))
        await session.flush()
        with pytest.raises(StorageUnavailable):
            async with asyncio.timeout(5), other.transaction() as second:
                await second.execute(insert(ServerKey).values(key_id="a", **vars_of(key("a"))))
    assert await ids(one) == ["a"]
    for database in (one, other):
        await database.aclose()


def vars_of(row: ServerKey) -> dict:
    return {"name": row.name, "key_hash": row.key_hash, "scopes": row.scopes, "created_at": row.created_at}


# --- SQLite -----------------------------------------------------------------------------------------------


async def test_sqlite_is_durable_and_erases_what_is_erased(embedded):
    database = Database(embedded.database_url, pool_size=1, timeout=LONG)
    async with database.transaction() as session:
        pragmas = {
            name: (await session.execute(text(f"PRAGMA {name}"))).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete", "busy_timeout")
        }
    await database.aclose()
    assert pragmas == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "secure_delete": 1,
        "busy_timeout": 10_000,
    }


async def test_twenty_writers_who_read_first_all_get_their_turn(database):
    """A deferred BEGIN would let two readers deadlock on the way to writing."""
    async with database.transaction() as session:
        session.add(key("counter", name="0"))

    async def add_one() -> None:
        async with database.transaction() as session:
            row = await session.get(ServerKey, "counter", with_for_update=True)
            await asyncio.sleep(0)
            row.name = str(int(row.name) + 1)

    await asyncio.gather(*(add_one() for _ in range(20)))
    async with database.transaction() as session:
        assert (await session.get(ServerKey, "counter")).name == "20"
