"""From a request to what its route needs; the only `Depends()` of the project."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.cert.service import CertService, Holder, PartnerServer
from app.errors import ScopeMissing, ServerKeyRequired, VerificationTokenRequired
from app.resources import Resources
from app.server_keys import Scope
from app.settings import Settings


def _resources(request: Request) -> Resources:
    resources: Resources = request.app.state.resources
    return resources


ResourcesDep = Annotated[Resources, Depends(_resources)]


def _settings(resources: ResourcesDep) -> Settings:
    return resources.settings


def _cert(resources: ResourcesDep) -> CertService:
    return resources.cert


SettingsDep = Annotated[Settings, Depends(_settings)]
CertDep = Annotated[CertService, Depends(_cert)]

VERIFICATION_TOKEN = HTTPBearer(
    scheme_name="verificationToken",
    description="The `verificationToken` that the start of the verification answered",
    auto_error=False,
)
SERVER_KEY = HTTPBearer(
    scheme_name="serverKey", description="A key made by `python -m app keys issue`", auto_error=False
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


def _no_store(response: Response) -> None:
    response.headers["Cache-Control"] = "no-store"


NO_STORE = Depends(_no_store)
"""For routers whose answers may carry personal data."""
