"""Schema-driven fuzzing of our own OpenAPI document: no 5xx, no undocumented status, header or body."""

import asyncio
import os
import re
import subprocess
import sys
from datetime import timedelta

import pytest

from app.server_keys import Scope
from tests.callbacks.conftest import with_callbacks
from tests.callbacks.toss import AUTHORIZED, VALUE, call, only_notice
from tests.conftest import settings_for
from tests.payments.shop import Shop
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


MONEY = "^/api/v1/(payments|billing-keys|purchases|entitlements)"


@pytest.fixture
def served(embedded, sandbox):
    """A real server, one finished thing of each kind, and the credentials of every door."""
    names = ("consent_withdrawal_auth", "iap_subscription_auth", "payment_auth")
    settings = with_callbacks(settings_for(embedded, sandbox), **dict.fromkeys(names, VALUE))
    # Nobody waits here for an order that will never be shown.
    impatient = settings.purchases.model_copy(update={"visibility_wait": timedelta(0)})
    settings = settings.model_copy(update={"purchases": impatient})

    async def prepare():
        async with Bff.running(settings, sandbox) as bff:
            await call(bff)
            shop = await Shop.opened(bff)
            order_id = store(bff).buy("man", SKU)
            assert (await grant(bff, shop.login, order_id)).status_code == 200
            verification, notice = await bff.completed(), await only_notice(bff)
            known = {
                "txId": verification.tx_id,
                "noticeId": notice.notice_id,
                "orderId": order_id,
                "orderNo": (await shop.paid())["orderNo"],
                "billingKeyId": (await shop.active_key())["billingKeyId"],
            }
            return known, verification.headers, shop.login.headers, await bff.server_key(*Scope)

    known, verification, session, key = asyncio.run(prepare())
    credentials = {
        "^/api": verification,
        MONEY: session,
        "^/server": key,
        "^/callbacks": AUTHORIZED,
        "(z|metrics)$": {},
    }
    with serving(settings) as server:
        yield server.url, known, credentials


@pytest.mark.parametrize(
    "door",
    ["^/api", MONEY, "^/server", "^/callbacks", "(z|metrics)$"],
    ids=["mini-app", "mini-app's money", "partner server", "callbacks", "health"],
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
