"""From a request to what its route needs; the only `Depends()` of the project."""

import re
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Header, Request, Response
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr
from starlette.requests import HTTPConnection
from typing_extensions import override

from app.callbacks.authorization import is_authentic
from app.callbacks.inbox import Inbox
from app.cert.service import CertService, Holder, LoggedIn, PartnerServer
from app.customer import Customer
from app.departure import Departure
from app.errors import (
    CallbackUnauthorized,
    IdempotencyKeyRequired,
    NotFound,
    ScopeMissing,
    ServerKeyRequired,
    SessionRequired,
    VerificationTokenRequired,
)
from app.events.delivery import Delivery
from app.login.service import LoginService
from app.login.sessions import TOKEN_PREFIX, LiveSession
from app.payments.billing import BillingService
from app.payments.ledger import Ledger
from app.payments.orders import Orders
from app.payments.service import PaymentService
from app.purchases.service import PurchaseService
from app.resources import Resources
from app.server_keys import Scope
from app.settings import CallbackSettings, Settings

IDEMPOTENCY_KEY = re.compile(r"[ -~]{1,255}")


def _resources(request: Request) -> Resources:
    resources: Resources = request.app.state.resources
    return resources


ResourcesDep = Annotated[Resources, Depends(_resources)]


def _settings(resources: ResourcesDep) -> Settings:
    return resources.settings


def _cert(resources: ResourcesDep) -> CertService:
    return resources.cert


def _login(resources: ResourcesDep) -> LoginService:
    return resources.login


def _inbox(resources: ResourcesDep) -> Inbox:
    return resources.inbox


def _delivery(resources: ResourcesDep) -> Delivery:
    return resources.delivery


def _departure(resources: ResourcesDep) -> Departure:
    return resources.departure


def _ledger(resources: ResourcesDep) -> Ledger:
    return resources.payments.ledger


def _orders(resources: ResourcesDep) -> Orders:
    return resources.orders


def _payments(resources: ResourcesDep) -> PaymentService:
    return resources.payments


def _billing(resources: ResourcesDep) -> BillingService:
    return resources.billing


def _purchases(resources: ResourcesDep) -> PurchaseService:
    return resources.purchases


SettingsDep = Annotated[Settings, Depends(_settings)]
InboxDep = Annotated[Inbox, Depends(_inbox)]
LoginDep = Annotated[LoginService, Depends(_login)]
DeliveryDep = Annotated[Delivery, Depends(_delivery)]
DepartureDep = Annotated[Departure, Depends(_departure)]
LedgerDep = Annotated[Ledger, Depends(_ledger)]
OrdersDep = Annotated[Orders, Depends(_orders)]
PaymentsDep = Annotated[PaymentService, Depends(_payments)]
BillingDep = Annotated[BillingService, Depends(_billing)]
CertDep = Annotated[CertService, Depends(_cert)]
PurchasesDep = Annotated[PurchaseService, Depends(_purchases)]


class _Bearer(HTTPBearer):
    """With two of them, who stands before us may have looked at the other one: neither counts."""

    @override
    async def __call__(self, request: HTTPConnection) -> HTTPAuthorizationCredentials | None:
        if len(request.headers.getlist("authorization")) > 1:
            return None
        return await super().__call__(request)


SESSION_TOKEN = _Bearer(
    scheme_name="sessionToken", description="The `sessionToken` that a login answered", auto_error=False
)
OWNERS_TOKEN = _Bearer(
    scheme_name="ownersToken",
    description="The session token with which the verification was started or claimed, or the `verificationToken` "
    "that its start answered",
    auto_error=False,
)
SERVER_KEY = _Bearer(
    scheme_name="serverKey", description="A key made by `python -m app keys issue`", auto_error=False
)
CONSOLE_VALUE = APIKeyHeader(
    name="Authorization",
    scheme_name="consoleValue",
    description="The callback's value in the console: as it is or in Base64, after Basic, Bearer or nothing",
    auto_error=False,
)


async def _session(
    login: LoginDep, bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(SESSION_TOKEN)]
) -> LiveSession:
    live = await login.sessions.verify(bearer.credentials) if bearer is not None else None
    if live is None:
        raise SessionRequired
    return live


SessionDep = Annotated[LiveSession, Depends(_session)]


async def _owner(
    request: Request,
    login: LoginDep,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(SESSION_TOKEN)],
) -> LoggedIn | None:
    """Nobody without a token; whatever else is no session token is an error, lest its owner be lost."""
    if "authorization" not in request.headers:
        return None
    live = await _session(login, bearer)
    return LoggedIn(live.session.session_id, live.user.user_id)


def _customer(live: SessionDep, login: LoginDep) -> Customer:
    """Whom Toss is told is paying: from the session only, never from what a mini-app says."""
    return Customer(live.user.user_id, live.user.key_hash, login.toss_user_of(live.user))


CustomerDep = Annotated[Customer, Depends(_customer)]


def _idempotency_key(
    key: Annotated[
        str | None,
        Header(alias="Idempotency-Key", description="Required: 1 to 255 printable ASCII characters of your choice"),
    ] = None,
) -> str:
    if key is None or IDEMPOTENCY_KEY.fullmatch(key) is None:
        raise IdempotencyKeyRequired
    return key


IdempotencyKeyDep = Annotated[str, Depends(_idempotency_key)]

OwnerDep = Annotated[LoggedIn | None, Depends(_owner)]


async def _caller(
    cert: CertDep,
    login: LoginDep,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(OWNERS_TOKEN)],
) -> Holder | LoggedIn:
    if bearer is None:
        raise VerificationTokenRequired
    if not bearer.credentials.startswith(TOKEN_PREFIX):
        return cert.holder(bearer.credentials)
    live = await _session(login, bearer)
    return LoggedIn(live.session.session_id, live.user.user_id)


OwnersDep = Annotated[Holder | LoggedIn, Depends(_caller)]


def _partner(scope: Scope) -> Callable[..., Awaitable[PartnerServer]]:
    async def partner(
        resources: ResourcesDep, bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(SERVER_KEY)]
    ) -> PartnerServer:
        key = await resources.server_keys.verify(bearer.credentials) if bearer else None
        if key is None:
            raise ServerKeyRequired
        if scope not in key.scopes:
            raise ScopeMissing(f"needs {scope}")
        return PartnerServer(key.key_id)

    return partner


CertReader = Annotated[PartnerServer, Depends(_partner(Scope.CERT_READ))]
CertComparer = Annotated[PartnerServer, Depends(_partner(Scope.CERT_COMPARE))]
CertEvidenceReader = Annotated[PartnerServer, Depends(_partner(Scope.CERT_EVIDENCE))]
CertEraser = Annotated[PartnerServer, Depends(_partner(Scope.CERT_ERASE))]
SessionIntrospector = Annotated[PartnerServer, Depends(_partner(Scope.SESSION_INTROSPECT))]
NoticeReader = Annotated[PartnerServer, Depends(_partner(Scope.NOTICE_READ))]
NoticeReplayer = Annotated[PartnerServer, Depends(_partner(Scope.NOTICE_REPLAY))]
UserReader = Annotated[PartnerServer, Depends(_partner(Scope.USER_READ))]
UserEraser = Annotated[PartnerServer, Depends(_partner(Scope.USER_ERASE))]
OrderCreator = Annotated[PartnerServer, Depends(_partner(Scope.ORDER_CREATE))]
PaymentReader = Annotated[PartnerServer, Depends(_partner(Scope.PAYMENT_READ))]
PaymentRefunder = Annotated[PartnerServer, Depends(_partner(Scope.PAYMENT_REFUND))]
BillingCharger = Annotated[PartnerServer, Depends(_partner(Scope.BILLING_CHARGE))]
PurchaseReader = Annotated[PartnerServer, Depends(_partner(Scope.PURCHASE_READ))]
EventReader = Annotated[PartnerServer, Depends(_partner(Scope.EVENT_READ))]
EventReplayer = Annotated[PartnerServer, Depends(_partner(Scope.EVENT_REPLAY))]


def _from_toss(configured: Callable[[CallbackSettings], SecretStr | None]) -> Callable[..., None]:
    """Who knows the value of this callback. A callback without one is not there at all."""

    def check(
        request: Request, settings: SettingsDep, _documented: Annotated[str | None, Depends(CONSOLE_VALUE)]
    ) -> None:
        value = configured(settings.callbacks)
        if value is None or not value.get_secret_value():
            raise NotFound
        # As they came: Starlette reads headers as Latin-1, and knows only the first of several.
        headers = [text for name, text in request.scope["headers"] if name == b"authorization"]
        if not is_authentic(headers, value.get_secret_value()):
            raise CallbackUnauthorized

    return check


LOGIN_UNLINK_CALLER = Depends(_from_toss(lambda callbacks: callbacks.login_unlink_auth))
CONSENT_WITHDRAWAL_CALLER = Depends(_from_toss(lambda callbacks: callbacks.consent_withdrawal_auth))
PAYMENT_CALLER = Depends(_from_toss(lambda callbacks: callbacks.payment_auth))
IAP_SUBSCRIPTION_CALLER = Depends(_from_toss(lambda callbacks: callbacks.iap_subscription_auth))


def _no_store(response: Response) -> None:
    response.headers["Cache-Control"] = "no-store"


NO_STORE = Depends(_no_store)
"""For routers whose answers may carry personal data."""
