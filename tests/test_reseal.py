"""Key rotation while data exist: sealed with the new key, in batches, beside a service that writes."""

import base64
import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import event, select, update

from app.cert.tables import Verification
from app.database import Database
from app.reseal import Resealed, keys_in_use, reseal
from app.vault import Place, Vault
from tests.conftest import VAULT_KEY, settings_for
from tests.scenarios import Bff

OLD, NEW, HASH = (hashlib.sha256(text).digest() for text in (b"old", b"new", b"hash"))
NOW = datetime(2026, 3, 24, tzinfo=UTC)
COLUMNS = ("answer", "identity", "signature")


@pytest.fixture
async def database(backend):
    made = Database(backend.database_url, pool_size=5, timeout=timedelta(seconds=10))
    yield made
    await made.aclose()


def vault(active: str, **keys: bytes) -> Vault:
    return Vault(keys, active_key=active, hash_key=HASH)


def row(number: int, sealer: Vault, *columns: str) -> Verification:
    tx_id = f"tx-{number:03}"
    return Verification(
        tx_id=tx_id,
        request_type="USER_NONE",
        status="COMPLETED",
        created_at=NOW,
        requested_at=NOW,
        expires_at=NOW,
        result_state="STORED",
        reads_succeeded=1,
        reads_unknown=0,
        **{
            column: sealer.seal(f"{column} of {tx_id}", Place("verification", column, tx_id))
            for column in columns or COLUMNS
        },
    )


async def add(database: Database, *rows: Verification) -> None:
    async with database.transaction() as session:
        session.add_all(rows)


async def rows_of(database: Database) -> list[Verification]:
    async with database.transaction() as session:
        return list((await session.scalars(select(Verification).order_by(Verification.tx_id))).all())


def assert_opens(rows: list[Verification], with_: Vault) -> None:
    for each in rows:
        for column in COLUMNS:
            sealed = getattr(each, column)
            if sealed is not None:
                assert with_.open(sealed, each.place_of(column)) == f"{column} of {each.tx_id}"


def counts(done: list[Resealed]) -> dict[str, tuple[int, int]]:
    """Of the table of verifications."""
    return {
        column.column.removeprefix("verification."): (column.resealed, column.unreadable)
        for column in done
        if column.column.startswith("verification.")
    }


@pytest.mark.parametrize("batch", [1, 3, 7, 100])
async def test_everything_is_sealed_anew_whatever_the_batch(database, batch):
    await add(database, *(row(number, vault("k1", k1=OLD)) for number in range(7)))
    both = vault("k2", k1=OLD, k2=NEW)
    assert counts(await reseal(database, both, batch=batch)) == dict.fromkeys(COLUMNS, (7, 0))
    assert await keys_in_use(database) == {"k2"}
    assert_opens(await rows_of(database), vault("k2", k2=NEW))
    assert counts(await reseal(database, both, batch=batch)) == dict.fromkeys(COLUMNS, (0, 0))


async def test_a_batch_is_a_transaction_of_its_own(database):
    await add(database, *(row(number, vault("k1", k1=OLD), "identity") for number in range(5)))
    sizes: list[int] = []

    @event.listens_for(database.engine.sync_engine, "before_cursor_execute")
    def note(_connection, _cursor, statement, *_rest) -> None:
        if statement.startswith("UPDATE"):
            sizes[-1] += 1

    @event.listens_for(database.engine.sync_engine, "begin")
    def begin(_connection) -> None:
        sizes.append(0)

    await reseal(database, vault("k2", k1=OLD, k2=NEW), batch=2)
    assert max(sizes) == 2
    assert sum(sizes) == 5


async def test_values_sealed_before_and_after_the_rotation_live_side_by_side(database):
    both = vault("k2", k1=OLD, k2=NEW)
    await add(database, row(1, vault("k1", k1=OLD)), row(2, both), row(3, both, "identity"))
    assert await keys_in_use(database) == {"k1", "k2"}
    untouched = (await rows_of(database))[1].identity
    assert counts(await reseal(database, both, batch=10)) == dict.fromkeys(COLUMNS, (1, 0))
    assert (await rows_of(database))[1].identity == untouched


async def test_what_cannot_be_opened_is_counted_and_left_as_it_is(database):
    await add(
        database,
        row(1, vault("k0", k0=bytes(32)), "identity"),
        row(2, vault("k1", k1=OLD), "identity"),
        row(3, vault("k0", k0=bytes(32)), "identity"),
    )
    done = counts(await reseal(database, vault("k2", k1=OLD, k2=NEW), batch=1))
    assert done == {"answer": (0, 0), "identity": (1, 2), "signature": (0, 0)}
    assert await keys_in_use(database) == {"k0", "k2"}
    assert_opens([(await rows_of(database))[0]], vault("k0", k0=bytes(32)))


async def test_the_active_key_is_told_from_one_that_looks_alike(database):
    """In LIKE an underscore stands for any letter."""
    await add(database, row(1, vault("kx1", kx1=OLD), "identity"), row(2, vault("k_10", k_10=OLD), "identity"))
    done = counts(await reseal(database, vault("k_1", kx1=OLD, k_10=OLD, k_1=NEW), batch=10))
    assert done["identity"] == (2, 0)
    assert await keys_in_use(database) == {"k_1"}


async def test_key_ids_that_differ_in_case_are_different_keys(database):
    await add(database, row(1, vault("K1", K1=OLD), "identity"))
    assert counts(await reseal(database, vault("k1", K1=OLD, k1=NEW), batch=10))["identity"] == (1, 0)


async def test_a_service_that_writes_meanwhile_is_right(database):
    """Between the look and the update another has written: its value stays."""
    await add(database, row(1, vault("k1", k1=OLD), "identity"), row(2, vault("k1", k1=OLD), "identity"))
    both = vault("k2", k1=OLD, k2=NEW)
    theirs = both.seal("theirs", Place("verification", "identity", "tx-001"))
    writes = [theirs.text]

    @event.listens_for(database.engine.sync_engine, "before_cursor_execute", retval=True)
    def overtake(connection, _cursor, statement, parameters, *_rest):
        if statement.startswith("UPDATE") and writes:
            # In the same transaction, because SQLite has one writer; the effect on the update is the same.
            text = writes.pop()
            connection.exec_driver_sql(f"UPDATE verification SET identity = '{text}' WHERE tx_id = 'tx-001'")
        return statement, parameters

    done = counts(await reseal(database, both, batch=10))
    assert done["identity"] == (1, 0)
    first, _second = await rows_of(database)
    assert first.identity == theirs


async def test_an_erased_value_does_not_come_back(database):
    await add(database, row(1, vault("k1", k1=OLD)))
    async with database.transaction() as session:
        await session.execute(update(Verification).values(identity=None, answer=None))
    done = counts(await reseal(database, vault("k2", k1=OLD, k2=NEW), batch=10))
    assert done == {"answer": (0, 0), "identity": (0, 0), "signature": (1, 0)}
    (left,) = await rows_of(database)
    assert (left.identity, left.answer) == (None, None)


@pytest.mark.parametrize("batch", [0, -1])
async def test_a_batch_of_nothing_is_refused(database, batch):
    await add(database, row(1, vault("k1", k1=OLD), "identity"))
    with pytest.raises(ValueError, match="batch"):
        await reseal(database, vault("k2", k1=OLD, k2=NEW), batch=batch)


async def test_after_resealing_the_old_key_can_go_and_results_still_open(backend, sandbox):
    new = base64.b64encode(NEW).decode()
    settings = settings_for(backend, sandbox)

    def with_keys(active: str, **keys: str):
        group = type(settings.vault).model_validate(
            {
                "keys": keys,
                "active_key": active,
                "hash_key": settings.vault.hash_key.get_secret_value(),
            }
        )
        return settings.model_copy(update={"vault": group})

    async with Bff.running(settings, sandbox) as bff:
        verification = await bff.completed()
        before = (await bff.result(verification)).json()
        headers = await bff.server_key()
        evidence = (await bff.as_partner("GET", verification, "/signature", headers)).json()
    async with Bff.running(with_keys("k2", k1=VAULT_KEY, k2=new), sandbox) as bff:
        done = await reseal(bff.resources.database, bff.resources.vault, batch=10)
        assert counts(done) == {"answer": (0, 0), "identity": (1, 0), "signature": (1, 0)}
    async with Bff.running(with_keys("k2", k2=new), sandbox) as bff:
        after = (await bff.result(verification)).json()
        assert after["outcome"] == before["outcome"]
        assert (await bff.as_partner("GET", verification, "/signature", headers)).json() == evidence
    assert sandbox.state.count("result") == 1
