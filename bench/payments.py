"""What a payment through the BFF costs, against the same two calls of Toss made bare. Prints ratios of one run.

python -m bench.payments
"""

import asyncio
import base64
import json
import ssl
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2

from app.database import Database
from app.main import create_app
from app.observability import configure_logging
from app.settings import Settings
from sandbox.server import SandboxServer

PAYMENTS = 200
CONCURRENCY = (1, 16)
PRODUCT = {"description": "americano", "amount": 4500, "amountTaxFree": 0}
TOSS_PAY = "/api-partner/v1/apps-in-toss/pay"
AMPLE = 1_000_000
"""Requests in a minute: no limit is to be measured here."""

Pay = Callable[[], Awaitable[None]]


def settings_for(sandbox: SandboxServer, folder: Path) -> Settings:
    certificates, catalogue = folder / "certificates", folder / "catalogue.json"
    certificates.mkdir()
    sandbox.issue_client_certificate().write(certificates)
    catalogue.write_text(json.dumps({"products": {"coffee": PRODUCT}}), encoding="utf-8")
    key = base64.b64encode(bytes(32)).decode()
    return Settings.model_validate(
        {
            "database": {"url": f"sqlite+aiosqlite:///{folder / 'bff.db'}"},
            "vault": {"keys": {"k1": key}, "active_key": "k1", "hash_key": key},
            "cert": {"client_id": "unused", "client_secret": "unused", "public_key": sandbox.public_key},
            "toss": {
                "api_url": sandbox.partner_url,
                "pay_url": sandbox.pay_url,
                "ca_file": str(sandbox.ca_file),
                "certificate_folder": str(certificates),
            },
            "limits": {"per_minute": AMPLE, "starts_per_minute": AMPLE},
            "budget": {"per_minute": AMPLE},
            "pay": {"mode": "test", "catalogue_file": str(catalogue)},
        }
    )


async def answered(client: httpx2.AsyncClient, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    response = await client.post(path, json=body)
    response.raise_for_status()
    answer: dict[str, Any] = response.json()
    return answer


def mutual_tls(sandbox: SandboxServer, certificates: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=sandbox.ca_file)
    (certificate,), (key,) = certificates.glob("*_public.crt"), certificates.glob("*_private.key")
    context.load_cert_chain(certificate, key)
    return context


@asynccontextmanager
async def bare(sandbox: SandboxServer, certificates: Path) -> AsyncIterator[Pay]:
    """make-payment and execute-payment, and nothing that outlives them."""
    context = mutual_tls(sandbox, certificates)
    headers = {"x-anon-key": sandbox.state.mini_apps.anon_key("man")}
    async with httpx2.AsyncClient(verify=context, base_url=sandbox.pay_url + TOSS_PAY, headers=headers) as client:

        async def pay() -> None:
            about: dict[str, Any] = {"orderNo": uuid.uuid4().hex, "isTestPayment": True}
            charge = {"productDesc": PRODUCT["description"], "amount": 4500, "amountTaxFree": 0}
            made = await answered(client, "/make-payment", about | charge)
            pay_token = made["success"]["payToken"]
            sandbox.state.pay.authenticate(pay_token)
            executed = await answered(client, "/execute-payment", about | {"payToken": pay_token})
            if executed["resultType"] != "SUCCESS":
                raise RuntimeError(str(executed))

        yield pay


@asynccontextmanager
async def through_the_bff(sandbox: SandboxServer, settings: Settings) -> AsyncIterator[Pay]:
    """In this process, but for the network with all that a request goes through."""
    database = Database(settings.database.url.get_secret_value(), pool_size=1, timeout=timedelta(seconds=30))
    await database.migrate()
    await database.aclose()
    app = create_app(settings)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://bff.bench") as client,
    ):
        key = {"anonKey": sandbox.state.mini_apps.anon_key("man")}
        session = await answered(client, "/api/v1/login/anonymous", key)
        client.headers["Authorization"] = f"Bearer {session['sessionToken']}"

        async def pay() -> None:
            begun = await answered(client, "/api/v1/payments", {"productId": "coffee"})
            sandbox.state.pay.authenticate(begun["payToken"])
            executed = await answered(client, f"/api/v1/payments/{begun['orderNo']}/execute")
            if executed["state"] != "PAID":
                raise RuntimeError(str(executed))

        yield pay


async def seconds(pay: Pay, *, at_once: int) -> float:
    """For all payments, so many of them at a time."""
    await pay()
    left = iter(range(PAYMENTS))

    async def worker() -> None:
        for _ in left:
            await pay()

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(at_once)))
    return time.perf_counter() - started


async def main(sandbox: SandboxServer, folder: Path) -> None:
    sandbox.state.budget.set_limit(sandbox.app_name, AMPLE)
    settings = settings_for(sandbox, folder)
    async with bare(sandbox, folder / "certificates") as bare_pay, through_the_bff(sandbox, settings) as bff_pay:
        alone = 0.0
        for at_once in CONCURRENCY:
            of_toss, of_bff = [await seconds(pay, at_once=at_once) for pay in (bare_pay, bff_pay)]
            print(f"{at_once:>2} at once: a payment takes {of_bff / of_toss:.1f} times as long as its bare calls")
            if alone:
                print(f"{at_once:>2} at once: {alone / of_bff:.1f} times as many payments a second as one by one")
            alone = alone or of_bff


if __name__ == "__main__":
    configure_logging(level="ERROR", is_json=True)
    with tempfile.TemporaryDirectory() as name, SandboxServer(Path(name) / "sandbox") as server:
        asyncio.run(main(server, Path(name)))
