"""Schema-driven fuzzing of our own OpenAPI document: no 5xx, no undocumented status, header or body."""

import asyncio
import os
import re
import subprocess
import sys

import pytest

from app.server_keys import Scope
from tests.conftest import settings_for
from tests.processes import serving
from tests.scenarios import Bff

EXCLUDED = {
    # JSON Schema cannot say "a real day" or "a person's name".
    "positive_data_acceptance",
    # Whoever shows another verification's token is told 404, not 401 (design 3.1).
    "ignored_auth",
}
"""Every other promise of the document is checked."""


@pytest.fixture
def served(embedded, sandbox):
    """A real server, one finished verification, and the credentials of both doors."""
    settings = settings_for(embedded, sandbox)
    wide = type(settings.limits)(
        per_minute=1_000_000, starts_per_minute=1_000_000
    )  # it is one caller, and asks a lot
    settings = settings.model_copy(update={"limits": wide})

    async def prepare():
        async with Bff.running(settings, sandbox) as bff:
            return await bff.completed(), await bff.server_key(*Scope)

    verification, key = asyncio.run(prepare())
    with serving(settings) as server:
        yield server.url, verification, {"^/api": verification.headers, "^/server": key, "(z|metrics)$": {}}


@pytest.mark.parametrize(
    "door", ["^/api", "^/server", "(z|metrics)$"], ids=["mini-app", "partner server", "health"]
)
@pytest.mark.parametrize("is_known", [True, False], ids=["a known verification", "any verification"])
def test_whatever_comes_is_answered_as_documented(served, tmp_path, door, is_known):
    url, verification, credentials = served
    known = f'parameters = {{ "path.txId" = "{verification.tx_id}" }}\n' if is_known else ""
    headers = "".join(f'{name} = "{value}"\n' for name, value in credentials[door].items())
    # Erasing the known verification would leave nothing to ask about.
    skipped = '[[operations]]\ninclude-name = "DELETE /server/v1/cert/requests/{txId}"\nenabled = false\n'
    config = tmp_path / "schemathesis.toml"
    config.write_text(f"{known}[headers]\n{headers}{skipped if is_known else ''}")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", config, "run", f"{url}/openapi.json"),
            *("--include-path-regex", door, "--exclude-checks", ",".join(EXCLUDED), "--max-examples", "40"),
            *("--continue-on-failure", "--warnings", "off"),
        ],
        cwd=tmp_path,
        env=os.environ | {"NO_COLOR": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b[1-9]\d* generated", done.stdout), done.stdout
