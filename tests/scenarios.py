"""Scenarios: what a mini-app, a partner's server and a person do, each in one call."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import httpx2

from app.main import create_app
from app.resources import Resources
from app.server_keys import Scope
from app.settings import Settings
from sandbox.server import SandboxServer

MINI_APP_ADDRESS = "192.0.2.10"


@dataclass
class TestClock:
    """The application's time: real until it is advanced."""

    __test__ = False
    offset: timedelta = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.offset

    def advance(self, **by: float) -> None:
        self.offset += timedelta(**by)


@dataclass(frozen=True)
class Verification:
    tx_id: str
    token: str
    body: dict[str, Any]

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


@dataclass(frozen=True)
class Login:
    token: str
    body: dict[str, Any]

    @property
    def user_id(self) -> str:
        return self.body["user"]["userId"]

    @property
    def session_id(self) -> str:
        return self.body["sessionId"]

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


@dataclass
class Bff:
    """A running BFF, seen through HTTP; in this process or in another."""

    http: httpx2.AsyncClient
    sandbox: SandboxServer
    resources: Resources | None = None
    clock: TestClock = field(default_factory=TestClock)

    @classmethod
    @asynccontextmanager
    async def running(cls, settings: Settings, sandbox: SandboxServer) -> AsyncIterator[Self]:
        """An answer to a callback then means that its handler has ended, however slow the machine is."""
        clock = TestClock()
        app = create_app(settings, clock=clock)
        async with app.router.lifespan_context(app):
            app.state.resources.inbox._answer_within = timedelta(seconds=30)
            transport = httpx2.ASGITransport(app, client=(MINI_APP_ADDRESS, 40000))
            async with httpx2.AsyncClient(transport=transport, base_url="http://bff.test") as http:
                yield cls(http, sandbox, app.state.resources, clock)

    async def start(self, **person: str) -> Verification:
        body = {"requestType": "USER_PERSONAL", **person} if person else {"requestType": "USER_NONE"}
        answer = await self.http.post("/api/v1/cert/requests", json=body)
        assert answer.status_code == 201, answer.text
        started = answer.json()
        return Verification(started["txId"], started["verificationToken"], started)

    async def post_code(self, code: str, referrer: str = "DEFAULT") -> httpx2.Response:
        body = {"authorizationCode": code, "referrer": referrer}
        return await self.http.post("/api/v1/login", json=body)

    async def log_in(self, user: str = "man", **how: Any) -> Login:
        """In the mini-app: `appLogin()`, then our login."""
        handed = self.sandbox.state.mini_apps.log_in(user, **how)
        answer = await self.post_code(handed.authorization_code, handed.referrer)
        assert answer.status_code == 200, answer.text
        return Login(answer.json()["sessionToken"], answer.json())

    async def log_in_anonymously(self, user: str = "man") -> Login:
        key = self.sandbox.state.mini_apps.anon_key(user)
        answer = await self.http.post("/api/v1/login/anonymous", json={"anonKey": key})
        assert answer.status_code == 200, answer.text
        return Login(answer.json()["sessionToken"], answer.json())

    async def me(self, login: Login) -> httpx2.Response:
        return await self.http.get("/api/v1/me", headers=login.headers)

    async def completed(self, persona: str | None = None) -> Verification:
        """A verification whose user has finished."""
        verification = await self.start()
        self.sandbox.state.approve(verification.tx_id, persona)
        return verification

    async def status(self, verification: Verification) -> httpx2.Response:
        path = f"/api/v1/cert/requests/{verification.tx_id}/status"
        return await self.http.get(path, headers=verification.headers)

    async def result(self, verification: Verification) -> httpx2.Response:
        path = f"/api/v1/cert/requests/{verification.tx_id}/result"
        return await self.http.post(path, headers=verification.headers)

    async def server_key(self, *scopes: Scope) -> dict[str, str]:
        """The headers of a partner's server."""
        assert self.resources is not None
        issued = await self.resources.server_keys.issue(name="partner", scopes=scopes or list(Scope))
        return {"Authorization": f"Bearer {issued.secret}"}

    async def as_partner(
        self, method: str, verification: Verification, what: str, headers: dict[str, str], **content: Any
    ) -> httpx2.Response:
        path = f"/server/v1/cert/requests/{verification.tx_id}{what}"
        return await self.http.request(method, path, headers=headers, **content)

    def reads(self, verification: Verification) -> int:
        """Successful reads as Toss counts them."""
        return self.sandbox.state.transaction(verification.tx_id).reads


def assert_problem(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    problem: dict[str, Any] = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), answer.text
    assert problem["status"] == status
    return problem
