"""Toss's side of a callback, and a handler that does what a test tells it."""

import asyncio
import base64
from dataclasses import dataclass, field

import httpx2
from sqlalchemy import select

from app.callbacks.inbox import unlinking
from app.callbacks.tables import CallbackName, Notice
from tests.conftest import CONSENT_AUTH, UNLINK_AUTH
from tests.scenarios import Bff

VALUE = UNLINK_AUTH
OTHER_VALUE = CONSENT_AUTH
AUTHORIZED = {"Authorization": "Basic " + base64.b64encode(VALUE.encode()).decode()}
UNLINK = "/callbacks/toss/login-unlink"
WITHDRAWAL = "/callbacks/toss/consent-withdrawal"
USER = 443731103


@dataclass
class Unlinks:
    """Stands where the login service will."""

    outcome: str = "ENDED"
    errors: list[Exception] = field(default_factory=list)
    """Raised first, in this order."""
    calls: list[tuple[int, str]] = field(default_factory=list)
    has_begun: asyncio.Event = field(default_factory=asyncio.Event)
    may_end: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.may_end.set()

    async def __call__(self, user_key: int, referrer: str) -> str:
        self.calls.append((user_key, referrer))
        self.has_begun.set()
        await self.may_end.wait()
        if self.errors:
            raise self.errors.pop(0)
        return self.outcome

    def serve(self, bff: Bff) -> None:
        """From now on."""
        bff.resources.inbox._handlers[CallbackName.LOGIN_UNLINK] = unlinking(self)


async def call(bff: Bff, user_key: object = USER, referrer: object = "UNLINK", **fields: object) -> httpx2.Response:
    body = {"userKey": user_key, "referrer": referrer, **fields}
    return await bff.http.post(UNLINK, json=body, headers=AUTHORIZED)


async def notices(bff: Bff) -> list[Notice]:
    async with bff.resources.database.transaction() as session:
        return list((await session.scalars(select(Notice).order_by(Notice.notice_id))).all())


async def only_notice(bff: Bff) -> Notice:
    (notice,) = await notices(bff)
    return notice


async def content(bff: Bff, notice: Notice) -> dict:
    _, found = await bff.resources.inbox.get(notice.notice_id)
    return dict(found)


async def at_rest(bff: Bff) -> None:
    """Until nothing is being handled any more."""
    while tasks := bff.resources.inbox._tasks():
        await asyncio.wait(tasks)
