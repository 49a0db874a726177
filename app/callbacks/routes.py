"""The callbacks' door, and the notices on the partner-server door."""

import json
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request

from app.callbacks.inbox import Inbox
from app.callbacks.schemas import NoticeBody, NoticesBody, NoticeWithContentBody, ReceivedBody
from app.callbacks.tables import CallbackName, NoticeState
from app.callbacks.unlink import CONSOLE_TEST, Unlink
from app.deps import (
    NO_STORE,
    ConsentWithdrawalGuard,
    InboxDep,
    LoginUnlinkGuard,
    NoticeReader,
    NoticeReplayer,
)
from app.errors import (
    AddressNotAllowed,
    CallbackUnauthorized,
    InvalidRequest,
    NotFound,
    NoticeNotFound,
    NoticeNotReplayable,
    SealedDataUnreadable,
    TossNotConfigured,
    UpstreamRefused,
)
from app.problems import ALWAYS, PARTNER, UPSTREAM, documented

MAX_KEPT = 16 * 1024
"""Characters of a query that is kept as it came; bodies are limited before they get here."""
CALLBACK = documented(*ALWAYS, NotFound, CallbackUnauthorized, AddressNotAllowed)
UNLINK_QUERY: dict[str, Any] = {
    "parameters": [
        {"name": "userKey", "in": "query", "schema": {"type": "integer", "format": "int64", "minimum": 0}},
        {"name": "referrer", "in": "query", "schema": {"type": "string"}},
    ]
}
ANY_JSON: dict[str, Any] = {"requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}}}

NoticeId = Annotated[str, Path(alias="noticeId", pattern=r"^[0-9a-f-]{36}$")]

callbacks = APIRouter(prefix="/callbacks/toss", tags=["Callbacks (Toss)"], dependencies=[NO_STORE])
partner_server = APIRouter(prefix="/server/v1/notices", tags=["Notices (partner server)"], dependencies=[NO_STORE])


@callbacks.get("/login-unlink", responses=CALLBACK, openapi_extra=UNLINK_QUERY)
async def login_unlinked_by_query(request: Request, inbox: InboxDep, _guard: LoginUnlinkGuard) -> ReceivedBody:
    """A user has unlinked. Recorded before it is handled; 200 whatever came of it."""
    return await _unlinked(request, inbox, dict(request.query_params))


@callbacks.post("/login-unlink", responses=CALLBACK, openapi_extra=ANY_JSON)
async def login_unlinked(request: Request, inbox: InboxDep, _guard: LoginUnlinkGuard) -> ReceivedBody:
    fields = None
    with suppress(ValueError, RecursionError):
        fields = json.loads(await request.body())
    return await _unlinked(request, inbox, fields)


async def _unlinked(request: Request, inbox: Inbox, fields: object) -> ReceivedBody:
    name, unlink = CallbackName.LOGIN_UNLINK, Unlink.parse(fields)
    if unlink is None:
        await inbox.keep(name, await _as_it_came(request), NoticeState.UNREADABLE, None)
        raise InvalidRequest("names no user")
    content = {"userKey": unlink.user_key, "referrer": unlink.referrer}
    if unlink.user_key == CONSOLE_TEST:
        await inbox.keep(name, content, NoticeState.HANDLED, "CONSOLE_TEST")
    else:
        await inbox.receive(name, content, subject=str(unlink.user_key))
    return ReceivedBody()


@callbacks.get("/consent-withdrawal", responses=CALLBACK)
async def consent_withdrawn_by_query(
    request: Request, inbox: InboxDep, _guard: ConsentWithdrawalGuard
) -> ReceivedBody:
    """What this callback carries is not documented: it is kept, sealed, until somebody knows."""
    await inbox.keep(CallbackName.CONSENT_WITHDRAWAL, await _as_it_came(request), NoticeState.KEPT, None)
    return ReceivedBody()


@callbacks.post("/consent-withdrawal", responses=CALLBACK, openapi_extra=ANY_JSON)
async def consent_withdrawn(request: Request, inbox: InboxDep, _guard: ConsentWithdrawalGuard) -> ReceivedBody:
    await inbox.keep(CallbackName.CONSENT_WITHDRAWAL, await _as_it_came(request), NoticeState.KEPT, None)
    return ReceivedBody()


async def _as_it_came(request: Request) -> dict[str, str]:
    return {
        "method": request.method,
        "query": request.url.query[:MAX_KEPT],
        "body": (await request.body()).decode("utf-8", "backslashreplace"),
    }


@partner_server.get("", responses=documented(*ALWAYS, *PARTNER, NoticeNotFound))
async def list_notices(
    inbox: InboxDep,
    _partner: NoticeReader,
    state: NoticeState | None = None,
    callback: CallbackName | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: Annotated[str | None, Query(pattern=r"^[0-9a-f-]{36}$", description="The last id of a page")] = None,
) -> NoticesBody:
    """Newest first."""
    notices = await inbox.list(state=state, callback=callback, before=before, limit=limit)
    return NoticesBody(notices=[NoticeBody.of(notice) for notice in notices])


@partner_server.get("/{noticeId}", responses=documented(*ALWAYS, *PARTNER, NoticeNotFound, SealedDataUnreadable))
async def get_notice(notice_id: NoticeId, inbox: InboxDep, _partner: NoticeReader) -> NoticeWithContentBody:
    notice = await inbox.get(notice_id)
    return NoticeWithContentBody.of(notice, inbox.content_of(notice))


@partner_server.post(
    "/{noticeId}/replay",
    responses=documented(
        *ALWAYS,
        *PARTNER,
        *UPSTREAM,
        UpstreamRefused,
        TossNotConfigured,
        NoticeNotFound,
        NoticeNotReplayable,
        SealedDataUnreadable,
    ),
)
async def replay_notice(notice_id: NoticeId, inbox: InboxDep, _partner: NoticeReplayer) -> NoticeBody:
    """Handle it now, also if it was handled before."""
    return NoticeBody.of(await inbox.replay(notice_id))
