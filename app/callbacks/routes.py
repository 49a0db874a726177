"""Callbacks over HTTP: the doors through which Toss calls, and the partner server's view of what came."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.requests import ClientDisconnect

from app.callbacks.inbox import Arrival, Inbox
from app.callbacks.schemas import (
    NoticeBody,
    NoticesBody,
    NoticeWithContentBody,
    ReceivedBody,
    iap_subscription,
    kept,
    login_unlink_of_body,
    login_unlink_of_query,
    payment,
)
from app.callbacks.tables import CallbackName, NoticeState
from app.deps import (
    CONSENT_WITHDRAWAL_CALLER,
    IAP_SUBSCRIPTION_CALLER,
    LOGIN_UNLINK_CALLER,
    NO_STORE,
    PAYMENT_CALLER,
    InboxDep,
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
from app.toss.login import MAX_USER_KEY

UUID = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
NoticeId = Annotated[str, Path(alias="noticeId", pattern=UUID)]

FROM_TOSS = documented(*ALWAYS, AddressNotAllowed, CallbackUnauthorized, NotFound)

LOGIN_UNLINK_QUERY: dict[str, Any] = {
    "parameters": [
        {
            "name": "userKey",
            "in": "query",
            "required": True,
            "description": f"0 is the console's test; up to {MAX_USER_KEY}. `user_key` is understood too",
            "schema": {"type": "string", "pattern": "^[0-9]{1,19}$"},
        },
        {
            "name": "referrer",
            "in": "query",
            "description": "UNLINK, WITHDRAWAL_TERMS, WITHDRAWAL_TOSS, or a new one",
            "schema": {},
        },
    ]
}
LOGIN_UNLINK_JSON: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "`userKey` (or `user_key`), a number or its decimal text, and `referrer`; more is ignored",
        "content": {
            "application/json": {
                "schema": {"type": "object"},
                "example": {"userKey": 443731103, "referrer": "UNLINK"},
            }
        },
    }
}
IAP_SUBSCRIPTION_JSON: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "`eventType` subscription.status_changed, or callback.registration_verification, which "
        "needs no more; any other is recorded only. `changeReason` and `status` may be new ones, `expiresAt` null",
        "content": {
            "application/json": {
                "schema": {"type": "object"},
                "example": {
                    "eventType": "subscription.status_changed",
                    "eventVersion": "1.0",
                    "occurredAt": "2026-08-24T09:05:11",
                    "orderId": "0199f0aa-1111-7222-8333-444455556666",
                    "sku": "ait.0000010000.a1b2c3d4.e5f6a7b8.1234567890",
                    "changeReason": "RENEWED",
                    "subscription": {
                        "current": {
                            "status": "ACTIVE",
                            "accessGranted": True,
                            "expiresAt": "2026-09-24T09:05:11",
                            "autoRenew": True,
                        }
                    },
                },
            }
        },
    }
}
PAYMENT_JSON: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "`orderNo`; everything else is kept, and Toss is asked what is true of it",
        "content": {
            "application/json": {
                "schema": {"type": "object"},
                "example": {"orderNo": "order-20260824-0001", "status": "PAY_COMPLETE"},
            }
        },
    }
}
ANYTHING: dict[str, Any] = {
    "requestBody": {"description": "Not documented by Toss: kept as it comes", "content": {"*/*": {"schema": {}}}}
}

# Below what the allowlist guards (app.main).
toss = APIRouter(
    prefix="/callbacks/toss", tags=["Callbacks from Toss"], dependencies=[NO_STORE], responses=FROM_TOSS
)
partner_server = APIRouter(prefix="/server/v1/notices", tags=["Notices (partner server)"], dependencies=[NO_STORE])


@toss.get("/login-unlink", dependencies=[LOGIN_UNLINK_CALLER], openapi_extra=LOGIN_UNLINK_QUERY)
async def receive_login_unlink_in_query(request: Request, inbox: InboxDep) -> ReceivedBody:
    """A user has cut the connection between Toss and the mini-app."""
    return await _receive(inbox, login_unlink_of_query(_query(request)))


@toss.post("/login-unlink", dependencies=[LOGIN_UNLINK_CALLER], openapi_extra=LOGIN_UNLINK_JSON)
async def receive_login_unlink(request: Request, inbox: InboxDep) -> ReceivedBody:
    """A user has cut the connection between Toss and the mini-app."""
    return await _receive(inbox, login_unlink_of_body(_query(request), await _body(request)))


@toss.get("/consent-withdrawal", dependencies=[CONSENT_WITHDRAWAL_CALLER])
async def receive_consent_withdrawal_in_query(request: Request, inbox: InboxDep) -> ReceivedBody:
    """Recorded for a person to read; nothing else is done."""
    return await _receive(inbox, kept(CallbackName.CONSENT_WITHDRAWAL, _query(request), b""))


@toss.post("/consent-withdrawal", dependencies=[CONSENT_WITHDRAWAL_CALLER], openapi_extra=ANYTHING)
async def receive_consent_withdrawal(request: Request, inbox: InboxDep) -> ReceivedBody:
    """Recorded for a person to read; nothing else is done."""
    return await _receive(inbox, kept(CallbackName.CONSENT_WITHDRAWAL, _query(request), await _body(request)))


@toss.post("/iap-subscription", dependencies=[IAP_SUBSCRIPTION_CALLER], openapi_extra=IAP_SUBSCRIPTION_JSON)
async def receive_iap_subscription(request: Request, inbox: InboxDep) -> ReceivedBody:
    """A subscription has changed, or the address of this callback has."""
    return await _receive(inbox, iap_subscription(_query(request), await _body(request)))


@toss.post("/payment", dependencies=[PAYMENT_CALLER], openapi_extra=PAYMENT_JSON)
async def receive_payment(request: Request, inbox: InboxDep) -> ReceivedBody:
    """Something has happened to a payment. A hint: what it was, Toss is asked."""
    return await _receive(inbox, payment(_query(request), await _body(request)))


async def _receive(inbox: Inbox, arrival: Arrival) -> ReceivedBody:
    await inbox.receive(arrival)
    if arrival.state is NoticeState.UNREADABLE:
        raise InvalidRequest("does not say what it is about; it was recorded all the same")
    return ReceivedBody()


def _query(request: Request) -> bytes:
    query: bytes = request.scope["query_string"]
    return query


async def _body(request: Request) -> bytes:
    # Not FastAPI's parsing: that would come before the authorization and refuse what has to be recorded.
    try:
        return await request.body()
    except ClientDisconnect:
        raise InvalidRequest from None


@partner_server.get("", responses=documented(*ALWAYS, *PARTNER))
async def list_notices(
    inbox: InboxDep,
    _partner: NoticeReader,
    state: NoticeState | None = None,
    callback: CallbackName | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: Annotated[str | None, Query(pattern=UUID)] = None,
) -> NoticesBody:
    return NoticesBody.of(await inbox.list(state=state, callback=callback, limit=limit, before=before))


@partner_server.get("/{noticeId}", responses=documented(*ALWAYS, *PARTNER, NoticeNotFound, SealedDataUnreadable))
async def get_notice(notice_id: NoticeId, inbox: InboxDep, _partner: NoticeReader) -> NoticeWithContentBody:
    return NoticeWithContentBody.with_content(*await inbox.get(notice_id))


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
async def replay_notice(notice_id: NoticeId, inbox: InboxDep, partner: NoticeReplayer) -> NoticeBody:
    """Handle it now, also if it has been handled before. After an error it is as it was."""
    return NoticeBody.of(await inbox.replay(notice_id, key_id=partner.key_id))
