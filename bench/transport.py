"""What a pooled client saves, and how large its pool should be. Prints ratios of one run, not absolute promises.

python -m bench.transport
"""

import asyncio
import tempfile
import time
from datetime import timedelta
from pathlib import Path

from app.toss.transport import Transport
from sandbox.server import SandboxServer

CALLS = 640
CONCURRENCY = 64
POOL_SIZES = (5, 10, 20, 40, 64, 100)
FEW = 20
"""Calls with a client of their own; each costs so much that more would only take time."""


def transport(sandbox: SandboxServer, pool_size: int) -> Transport:
    return Transport(
        ca_file=sandbox.ca_file,
        pool_size=pool_size,
        connect_timeout=timedelta(seconds=5),
        read_timeout=timedelta(seconds=30),
    )


async def call(client: Transport, sandbox: SandboxServer) -> None:
    # A refused token is the cheapest answer that Toss gives.
    await client.post_json(f"{sandbox.toss_url}/api/v2/sign/user/auth/id/status", {"txId": "x"}, bearer="x")


async def concurrently(calls: int, client: Transport, sandbox: SandboxServer) -> float:
    """Seconds for all calls, `CONCURRENCY` of them at a time."""
    left = iter(range(calls))

    async def worker() -> None:
        for _ in left:
            await call(client, sandbox)

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
    return time.perf_counter() - started


async def main(sandbox: SandboxServer) -> None:
    async with transport(sandbox, 1) as client:
        await call(client, sandbox)
        started = time.perf_counter()
        for _ in range(FEW):
            await call(client, sandbox)
        pooled = (time.perf_counter() - started) / FEW
    started = time.perf_counter()
    for _ in range(FEW):
        async with transport(sandbox, 1) as client:
            await call(client, sandbox)
    fresh = (time.perf_counter() - started) / FEW
    print(f"a new client for each call: {fresh / pooled:.1f} times the call on a pooled one")

    seconds: dict[int, float] = {}
    for size in POOL_SIZES:
        async with transport(sandbox, size) as client:
            await concurrently(CONCURRENCY * 2, client, sandbox)
            seconds[size] = await concurrently(CALLS, client, sandbox)
    best = min(seconds.values())
    for size, taken in seconds.items():
        print(f"pool of {size:>3}, {CONCURRENCY} concurrent calls: {taken / best:.2f} times the fastest")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, SandboxServer(Path(folder)) as server:
        asyncio.run(main(server))
