"""`python -m app`, as an operator runs it: real processes, their exit codes and what they print."""

import base64
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.__main__ import main
from tests.conftest import HASH_KEY, VAULT_KEY, settings_for
from tests.scenarios import Bff

ROOT = Path(__file__).parents[1]
OK, FAILED, MISCONFIGURED = 0, 1, 2


class App:
    """Runs commands with settings that come from the environment alone."""

    def __init__(self, **environment: str) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith("BFF_")}
        self.environment = inherited | environment

    def __call__(self, *arguments: str, **changes: str | None) -> subprocess.CompletedProcess[str]:
        environment = self.environment | changes
        done = subprocess.run(
            [sys.executable, "-m", "app", *arguments],
            env={name: value for name, value in environment.items() if value is not None},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        shown = done.stdout + done.stderr
        for secret in (VAULT_KEY, HASH_KEY, environment.get("BFF_CERT__CLIENT_SECRET"), "pa55word"):
            assert not secret or secret not in shown
        return done


@pytest.fixture
def app_command(sandbox, embedded) -> App:
    return App(
        BFF_DATABASE__URL=embedded.database_url,
        BFF_VAULT__KEYS=json.dumps({"k1": VAULT_KEY}),
        BFF_VAULT__ACTIVE_KEY="k1",
        BFF_VAULT__HASH_KEY=HASH_KEY,
        BFF_CERT__CLIENT_ID=sandbox.client_id,
        BFF_CERT__CLIENT_SECRET=sandbox.client_secret,
        BFF_CERT__TOKEN_URL=sandbox.token_url,
        BFF_CERT__API_URL=sandbox.toss_url,
        BFF_CERT__CA_FILE=str(sandbox.ca_file),
        BFF_CERT__PUBLIC_KEY=sandbox.public_key,
    )


def test_without_settings_everything_that_is_missing_is_listed():
    done = App()("migrate")
    assert done.returncode == MISCONFIGURED
    first, *faults = done.stderr.splitlines()
    assert first == "The settings cannot be used:"
    assert set(faults) == {
        f"  - BFF_{name}: is required"
        for name in (
            "VAULT__KEYS",
            "VAULT__ACTIVE_KEY",
            "VAULT__HASH_KEY",
            "CERT__CLIENT_ID",
            "CERT__CLIENT_SECRET",
        )
    }
    assert done.stdout == ""


async def test_every_fault_of_the_settings_is_listed(app_command):
    changes = {"BFF_SERVER__PORT": "0", "BFF_CERT__CLIENT_ID": "", "BFF_TYPO": "x", "BFF_CERT__API_URL": "http://h"}
    done = app_command("serve", **changes)
    assert done.returncode == MISCONFIGURED
    assert set(re.findall(r"BFF_\w+", done.stderr)) == set(changes)
    assert "Traceback" not in done.stderr


async def test_files_that_cannot_be_used_are_faults_of_the_settings(app_command, tmp_path):
    (tmp_path / "empty.pem").write_text("nothing")
    done = app_command(
        "doctor", BFF_CERT__CA_FILE=str(tmp_path / "none.pem"), BFF_CERT__PUBLIC_KEY="bm90IGEga2V5",
        BFF_CERT__SIGNATURE_CA_FILES=json.dumps([str(tmp_path / "empty.pem")]), BFF_REDIS__URL="nonsense://pa55word",
    )  # fmt: skip
    assert done.returncode == MISCONFIGURED
    named = set(re.findall(r"BFF_\w+", done.stderr))
    assert named == {
        "BFF_CERT__CA_FILE",
        "BFF_CERT__PUBLIC_KEY",
        "BFF_CERT__SIGNATURE_CA_FILES",
        "BFF_REDIS__URL",
    }
    assert "Traceback" not in done.stderr


async def test_migrate_makes_the_folder_and_the_tables_and_serve_refuses_before(app_command, tmp_path):
    url = f"sqlite+aiosqlite:///{tmp_path}/a/b/bff.db"
    refused = app_command("serve", BFF_DATABASE__URL=f"sqlite+aiosqlite:///{tmp_path}/empty.db")
    assert refused.returncode == FAILED
    assert "python -m app migrate" in refused.stderr
    done = app_command("migrate", BFF_DATABASE__URL=url)
    assert (done.returncode, done.stdout) == (OK, "The database is up to date.\n")
    assert (tmp_path / "a" / "b" / "bff.db").exists()


async def test_migrate_says_what_is_wrong_with_its_database(app_command):
    urls = (
        "postgresql+asyncpg://bff:pa55word@127.0.0.1:1/bff",
        "postgresql+asyncpg://bff:pa55word/x@127.0.0.1/bff",
        "no address, pa55word",
    )
    with ThreadPoolExecutor(3) as threads:
        for done in threads.map(lambda url: app_command("migrate", BFF_DATABASE__URL=url), urls):
            assert done.returncode in {FAILED, MISCONFIGURED}
            assert "Traceback" not in done.stderr
            assert done.stderr


async def test_doctor_says_that_all_is_well_or_what_is_not(app_command):
    wrong = {"BFF_CERT__CLIENT_ID": "wrong", "BFF_CERT__CA_FILE": ""}
    with ThreadPoolExecutor(2) as threads:
        well, ill = threads.map(lambda changes: app_command("doctor", **changes), ({}, wrong))
    assert (well.returncode, well.stdout.splitlines()[-1]) == (OK, "All is well."), well.stdout
    assert "FAULT" not in well.stdout
    assert ill.returncode == FAILED
    assert ill.stdout.count("FAULT") == ill.stdout.count("->") == 2
    assert ill.stdout.splitlines()[-1] == "Faults found: 2"
    assert "Traceback" not in ill.stderr


async def test_keys_are_issued_listed_and_revoked(app_command, embedded, sandbox):
    issued = app_command("keys", "issue", "--name", "주문 서버", "--scope", "cert:read", "--days", "30")
    assert issued.returncode == OK
    key_id, secret = re.findall(r": +(\S+)", issued.stdout)[:2]
    async with Bff.running(settings_for(embedded, sandbox), sandbox) as bff:
        verification = await bff.completed()
        headers = {"Authorization": f"Bearer {secret}"}
        assert (await bff.as_partner("POST", verification, "/result", headers)).status_code == 200
        assert (await bff.as_partner("DELETE", verification, "", headers)).status_code == 403
        assert app_command("keys", "revoke", key_id).returncode == OK
        assert (await bff.as_partner("POST", verification, "/result", headers)).status_code == 401
    with ThreadPoolExecutor(2) as threads:
        again, listed = threads.map(lambda command: app_command("keys", *command), (("revoke", key_id), ("list",)))
    assert (again.returncode, again.stdout) == (FAILED, "There is no such active key.\n")
    line = rf"^{key_id}  revoked \d{{4}}-\d\d-\d\d +until \d{{4}}-\d\d-\d\d +cert:read  주문 서버$"
    assert re.search(line, listed.stdout, re.MULTILINE)
    assert secret not in listed.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        "", "dance", "keys", "keys issue", "keys issue --name n", "keys issue --name n --scope cert:everything",
        *(f"keys issue --name n --scope cert:read --days {days}" for days in (0, -1, "soon")),
        *(f"keys issue --scope cert:read --name {name}" for name in ("n" * 81,)),
        *(f"keys reseal --batch {batch}" for batch in (0, -1)),
    ],
)  # fmt: skip
def test_commands_that_make_no_sense_are_refused_with_a_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments.split())
    shown = capsys.readouterr()
    assert (caught.value.code, shown.out) == (2, "")
    assert "usage: python -m app" in shown.err


def test_generated_keys_are_random_and_long_enough_and_need_no_settings(capsys):
    for _ in range(2):
        assert main(["keys", "generate"]) == OK
    texts = capsys.readouterr().out.split()
    assert len(set(texts)) == 2
    assert all(len(base64.b64decode(text, validate=True)) == 32 for text in texts)


async def test_reseal_and_reconcile_say_what_they_did(app_command, embedded, sandbox):
    async with Bff.running(settings_for(embedded, sandbox), sandbox) as bff:
        await bff.result(await bff.completed())
    both = {
        "BFF_VAULT__KEYS": json.dumps({"k1": VAULT_KEY, "k2": base64.b64encode(b"\x07" * 32).decode()}),
        "BFF_VAULT__ACTIVE_KEY": "k2",
    }
    done = app_command("keys", "reseal", **both)
    assert done.returncode == OK
    assert "verification.identity: 1 resealed, 0 unreadable" in done.stdout
    with ThreadPoolExecutor(2) as threads:
        runs = ((("keys", "reseal"), {}), (("reconcile",), both))
        without, settled = threads.map(lambda run: app_command(*run[0], **run[1]), runs)
    assert without.returncode == FAILED
    assert "verification.identity: 0 resealed, 1 unreadable" in without.stdout
    assert settled.returncode == OK
    assert settled.stdout == (
        "cert: 0 leases settled, 0 answers opened, 0 identities erased, 0 signatures erased\n"
        "notices: 0 handled, 0 left open, 0 erased\n"
        "departed: 0 unlinks finished, 0 users erased\n"
        "payments: 0 looked at, 0 moved, 0 erased\n"
        "billing: 0 looked at, 0 erased\n"
        "purchases: 0 checked, 0 refunded, 0 erased\n"
        "purged: 0 sessions ended, 0 codes forgotten\n"
        "events: 0 delivered, 0 not delivered, 0 erased\n"
    )
