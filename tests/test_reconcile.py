"""Reconcile: each of its parts runs, whatever becomes of the others."""

import pytest
from sqlalchemy import text

from app.reconcile import reconcile
from tests.conftest import settings_for
from tests.processes import command
from tests.scenarios import Bff

PARTS = {
    "verification": {"cert", "departed"},
    "notice": {"notices"},
    "app_user": {"departed"},
    "login_exchange": {"purged"},
    "payment": {"payments"},
    "billing_key": {"billing"},
    "purchase": {"purchases"},
    "event": {"events"},
}
"""What cannot run without a table."""


async def lose(bff, table: str) -> None:
    async with bff.resources.database.transaction() as session:
        await session.execute(text(f"ALTER TABLE {table} RENAME TO lost"))


async def test_every_part_reports(bff):
    done = await reconcile(bff.resources)
    assert set(vars(done)) == set().union(*PARTS.values())
    assert all(vars(done).values())
    assert not done.has_failed


@pytest.mark.parametrize("table", PARTS)
async def test_a_part_that_fails_keeps_no_other_from_running(bff, caplog, table):
    await lose(bff, table)
    done = await reconcile(bff.resources)
    assert {name for name, result in vars(done).items() if result is None} == PARTS[table]
    assert done.has_failed
    lines = [line for line in caplog.records if "reconcile_failed" in line.getMessage()]
    assert {line.levelname for line in lines} == {"ERROR"}
    assert all(any(part in line.getMessage() for line in lines) for part in PARTS[table])
    assert "UPDATE" not in caplog.text  # no library's text, which shows statements


async def test_the_command_says_which_part_has_failed(embedded, sandbox):
    settings = settings_for(embedded, sandbox)
    async with Bff.running(settings, sandbox) as bff:
        await lose(bff, "notice")
    done = await command(settings, "reconcile")
    assert done.returncode == 1
    assert done.stdout.splitlines()[1:3] == ["notices: FAILED", "departed: 0 unlinks finished, 0 users erased"]
