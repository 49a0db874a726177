"""A partner API client in one piece, and a budget that counts what it is asked."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import combinations, product
from pathlib import Path
from typing import Any

from app.toss.certificates import CertificateSources
from app.toss.governor import BudgetRules, Charge, Decision, Governor, Verdict
from app.toss.partner import PartnerApi
from app.toss.transport import Answer, MutualTransport
from tests.hosts import Connection, Host, tls_of

LONG = timedelta(seconds=20)


@dataclass
class Pot:
    """Admits `room` calls; None is without end."""

    room: int | None = None
    gate: asyncio.Event | None = None
    admitted: list[list[Charge]] = field(default_factory=list)
    asked: int = 0
    pauses: list[timedelta] = field(default_factory=list)

    async def take(self, charges: Sequence[Charge]) -> Decision:
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.room is not None and len(self.admitted) >= self.room:
            return Decision(Verdict.FULL, timedelta(seconds=7), "all")
        self.admitted.append(list(charges))
        return Decision(Verdict.ADMITTED)

    async def pause(self, length: timedelta) -> None:
        self.pauses.append(length)


@dataclass
class Partner:
    api: PartnerApi
    transport: MutualTransport
    pot: Pot


def governor_of(pot: Pot) -> Governor:
    """Its clock stands still."""
    return Governor(store=pot, rules=BudgetRules(processes=1), monotonic=lambda: 1000.0)


def transport_at(
    url: str,
    *,
    ca_file: Path,
    folder: Path,
    pool_size: int = 4,
    connect: timedelta = LONG,
    read: timedelta = LONG,
) -> MutualTransport:
    """`folder` holds the client certificates."""
    return MutualTransport(
        sources=CertificateSources(folder=folder),
        probe_urls=[f"{url}/probe"],
        ca_file=ca_file,
        pool_size=pool_size,
        connect_timeout=connect,
        read_timeout=read,
        longest_call=timedelta(seconds=60),
        clock=lambda: datetime.now(UTC),
    )


def partner_over(
    transport: MutualTransport, url: str, *, pot: Pot | None = None, deadline: timedelta = LONG
) -> Partner:
    pot = pot or Pot()
    api = PartnerApi(transport=transport, governor=governor_of(pot), base_url=url, deadline=deadline)
    return Partner(api, transport, pot)


@asynccontextmanager
async def partner_at(
    url: str, *, pot: Pot | None = None, deadline: timedelta = LONG, **how: Any
) -> AsyncIterator[Partner]:
    async with transport_at(url, **how) as transport:
        yield partner_over(transport, url, pot=pot, deadline=deadline)


class Canned:
    """Answers what it was given, after admission, as the transport does."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.sent: list[tuple[str, str]] = []

    async def post_json(self, url, body, *, bearer, headers, admit) -> Answer:
        del body, bearer, headers
        return await self._send("POST", url, admit)

    async def get_json(self, url, *, bearer, headers, admit) -> Answer:
        del bearer, headers
        return await self._send("GET", url, admit)

    async def _send(self, method, url, admit) -> Answer:
        await admit()
        self.sent.append((method, url))
        return self.answers.pop(0)


def api_of(transport: object, pot: Pot) -> PartnerApi:
    return PartnerApi(
        transport=transport, governor=governor_of(pot), base_url="https://toss", deadline=timedelta(seconds=20)
    )


def saying(payload: object) -> bytes:
    """Success, in Toss's envelope."""
    return json.dumps({"resultType": "SUCCESS", "success": payload}).encode()


@asynccontextmanager
async def talking_to(
    ca: Any, *bodies: bytes | None, status: str = "200 OK"
) -> AsyncIterator[tuple[PartnerApi, Host]]:
    """A host that answers one after the other, the last again and again. None ends a connection without an answer.

    A cookie comes with every answer.
    """
    left = list(bodies)

    async def script(connection: Connection) -> None:
        while await connection.request() is not None:
            body = left.pop(0) if len(left) > 1 else left[0]
            if body is None:
                connection.reset()
                return
            connection.send(body, status=status, Set_Cookie="who=somebody; Path=/")
            await connection.writer.drain()

    async with (
        Host.running(script, tls=tls_of(ca)) as host,
        partner_at(host.url.removesuffix("/call"), ca_file=ca.file, folder=ca.pairs) as toss,
    ):
        yield toss.api, host


def read(request: bytes) -> tuple[str, dict[str, str], Any]:
    """The first line, the headers, the body."""
    head, _, body = request.partition(b"\r\n\r\n")
    line, *headers = head.decode("ascii").split("\r\n")
    named = {name.lower(): value for name, _, value in (header.partition(": ") for header in headers)}
    return line, named, json.loads(body) if body else None


def rows_with_every_pair(switches: Mapping[str, Sequence[object]]) -> list[dict[str, object]]:
    """Settings of all the sandbox's switches in which every two values of two switches meet somewhere."""
    chance, rows = random.Random(20260901), []
    missing = {
        ((one, i), (two, j))
        for one, two in combinations(switches, 2)
        for i, j in product(range(len(switches[one])), range(len(switches[two])))
    }

    def met(row: dict[str, int]) -> set:
        return {pair for pair in missing if all(row[name] == index for name, index in pair)}

    while missing:
        wanted = dict(min(missing))
        tries = [
            {name: chance.randrange(len(values)) for name, values in switches.items()} | wanted for _ in range(30)
        ]
        best = max(tries, key=lambda row: len(met(row)))
        missing -= met(best)
        rows.append({name: switches[name][index] for name, index in best.items()})
    return rows
