"""A Toss that says what the sandbox never would."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trustme

from app.settings import Settings
from tests.hosts import Connection, Host, tls_of

EXCHANGE, REFRESH, ME, UNLINK_TOKEN, UNLINK_USER, ANON = (
    "generate-token",
    "refresh-token",
    "login-me",
    "remove-by-access-token",
    "remove-by-user-key",
    "verify",
)
GRANT = {
    "tokenType": "Bearer",
    "accessToken": "an-access-token",
    "refreshToken": "a-refresh-token",
    "expiresIn": 3599,
}


def success(payload: object) -> dict:
    return {"resultType": "SUCCESS", "success": payload}


@dataclass
class OddToss:
    """Answers each call with the body that the test has put down for it, as JSON or as it is."""

    answers: dict[str, object] = field(
        default_factory=lambda: {EXCHANGE: success(GRANT), REFRESH: success(GRANT), ANON: success(True)}  # noqa: FBT003
    )
    statuses: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def script(self, connection: Connection) -> None:
        while (request := await connection.request()) is not None:
            name = request.split(b" ", 2)[1].decode().rsplit("/", 1)[-1]
            self.asked.append(name)
            answer = self.answers.get(name, success({}))
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            connection.send(body, status=self.statuses.get(name, "200 OK"))
            await connection.writer.drain()

    @asynccontextmanager
    async def serving(self, settings: Settings, folder) -> AsyncIterator[Settings]:
        """Settings that point here."""
        ca = trustme.CA()
        file = folder / "odd-ca.pem"
        file.write_bytes(ca.cert_pem.bytes())
        async with Host.running(self.script, tls=tls_of(ca)) as host:
            here = {"api_url": host.url.removesuffix("/call"), "ca_file": file}
            yield settings.model_copy(update={"toss": settings.toss.model_copy(update=here)})
