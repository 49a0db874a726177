"""Schema-driven fuzzing of our own OpenAPI document: no 5xx, no undocumented status, header or body."""

import asyncio
import os
import re
import subprocess
import sys

import pytest

from app.server_keys import Scope
from tests.callbacks.conftest import with_callbacks
from tests.callbacks.toss import AUTHORIZED, VALUE, call, only_notice
from tests.conftest import settings_for
from tests.processes import serving
from tests.purchases.shop import SKU, grant, store
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
    """A real server, one finished verification, one notice, one purchase, and the credentials of every door."""
    names = ("consent_withdrawal_auth", "iap_subscription_auth", "payment_auth")
    settings = with_callbacks(settings_for(embedded, sandbox), **dict.fromkeys(names, VALUE))

    async def prepare():
        async with Bff.running(settings, sandbox) as bff:
            await call(bff)
            order_id = store(bff).buy("man", SKU)
            assert (await grant(bff, await bff.log_in(), order_id)).status_code == 200
            return await bff.completed(), await only_notice(bff), order_id, await bff.server_key(*Scope)

    verification, notice, order_id, key = asyncio.run(prepare())
    credentials = {"^/api": verification.headers, "^/server": key, "^/callbacks": AUTHORIZED, "(z|metrics)$": {}}
    with serving(settings) as server:
        yield (
            server.url,
            {"txId": verification.tx_id, "noticeId": notice.notice_id, "orderId": order_id},
            credentials,
        )


@pytest.mark.parametrize(
    "door",
    ["^/api", "^/server", "^/callbacks", "(z|metrics)$"],
    ids=["mini-app", "partner server", "callbacks", "health"],
)
@pytest.mark.parametrize("is_known", [True, False], ids=["what is known", "anything"])
def test_whatever_comes_is_answered_as_documented(served, tmp_path, door, is_known):
    url, ids, credentials = served
    parameters = ", ".join(f'"path.{name}" = "{value}"' for name, value in ids.items())
    known = f"parameters = {{ {parameters} }}\n" if is_known else ""
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
