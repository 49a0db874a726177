"""From a request to what its route needs; the only `Depends()` of the project."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request, Response
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr

from app.callbacks.authorization import is_authentic
from app.callbacks.inbox import Inbox
from app.cert.service import CertService, Holder, PartnerServer
from app.errors import CallbackUnauthorized, NotFound, ScopeMissing, ServerKeyRequired, VerificationTokenRequired
from app.resources import Resources
from app.server_keys import Scope
from app.settings import CallbackSettings, Settings


def _resources(request: Request) -> Resources:
    resources: Resources = request.app.state.resources
    return resources


ResourcesDep = Annotated[Resources, Depends(_resources)]


def _settings(resources: ResourcesDep) -> Settings:
    return resources.settings


def _cert(resources: ResourcesDep) -> CertService:
    return resources.cert


def _inbox(resources: ResourcesDep) -> Inbox:
    return resources.inbox


SettingsDep = Annotated[Settings, Depends(_settings)]
CertDep = Annotated[CertService, Depends(_cert)]
InboxDep = Annotated[Inbox, Depends(_inbox)]

VERIFICATION_TOKEN = HTTPBearer(
    scheme_name="verificationToken",
    description="The `verificationToken` that the start of the verification answered",
    auto_error=False,
)
SERVER_KEY = HTTPBearer(
    scheme_name="serverKey", description="A key made by `python -m app keys issue`", auto_error=False
)

CONSOLE_VALUE = APIKeyHeader(
    name="Authorization",
    scheme_name="consoleValue",
    description="The callback's value in the console: as it is or in Base64, after Basic, Bearer or nothing",
    auto_error=False,
)


def _holder(
    cert: CertDep, bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(VERIFICATION_TOKEN)]
) -> Holder:
    if bearer is None:
        raise VerificationTokenRequired
    return cert.holder(bearer.credentials)


HolderDep = Annotated[Holder, Depends(_holder)]


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
NoticeReader = Annotated[PartnerServer, Depends(_partner(Scope.NOTICE_READ))]
NoticeReplayer = Annotated[PartnerServer, Depends(_partner(Scope.NOTICE_REPLAY))]


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


def _no_store(response: Response) -> None:
    response.headers["Cache-Control"] = "no-store"


NO_STORE = Depends(_no_store)
"""For routers whose answers may carry personal data."""
