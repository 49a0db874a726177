"""Probes: /livez asks nothing but the process, /readyz asks what a request would need. And /metrics."""

from typing import Literal

import structlog
from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field

from app.deps import ResourcesDep
from app.errors import AddressNotAllowed, StorageUnavailable
from app.metrics import MEDIA_TYPE
from app.problems import documented
from app.resources import Resources
from app.shared_state import SharedStateUnavailable
from app.toss.certificates import expiry_mark

router = APIRouter(tags=["Health"])

Condition = Literal["ok", "down", "outdated"]
CertificateCondition = Literal["ok", "expires_soon", "alarm"]


class Liveness(BaseModel):
    status: Literal["alive"] = "alive"


class Readiness(BaseModel):
    status: Literal["ready", "degraded", "not_ready"]
    database: Condition
    sharedState: Condition  # noqa: N815 - wire name
    clientCertificate: CertificateCondition | None = Field(  # noqa: N815 - wire name
        None,
        description="expires_soon: 30 days are left or fewer. alarm: a pair cannot be used; the one in use stays. "
        "Absent without a client certificate",
    )


@router.get("/livez")
async def livez() -> Liveness:
    return Liveness()


@router.get(
    "/readyz",
    response_model_exclude_none=True,
    responses={503: {"model": Readiness, "description": "The database is away or outdated"}},
)
async def readyz(resources: ResourcesDep, response: Response) -> Readiness:
    """Without the database nothing works. Without Redis each process merely keeps a token of its own."""
    database = await _database(resources)
    shared_state = await _shared_state(resources)
    certificate = _client_certificate(resources)
    status: Literal["ready", "degraded", "not_ready"] = "ready"
    if database != "ok":
        response.status_code = 503
        status = "not_ready"
    elif shared_state != "ok" or certificate not in (None, "ok"):
        status = "degraded"
    return Readiness(status=status, database=database, sharedState=shared_state, clientCertificate=certificate)


@router.get("/metrics", response_class=PlainTextResponse, responses=documented(AddressNotAllowed))
async def metrics(resources: ResourcesDep) -> Response:
    """What this service counts and measures, for Prometheus. Only `BFF_NETWORK__METRICS_ALLOWLIST` may read it."""
    return Response(resources.metrics.exposition(await resources.gauges.read()), media_type=MEDIA_TYPE)


async def _database(resources: ResourcesDep) -> Condition:
    try:
        return "ok" if await resources.database.is_current() else "outdated"
    except StorageUnavailable:
        return "down"


def _client_certificate(resources: Resources) -> CertificateCondition | None:
    if resources.partner_transport is None:
        return None
    keeper = resources.partner_transport.keeper
    keeper.look_if_due()  # without traffic nobody else does
    if keeper.alarm is not None:
        return "alarm"
    soon = keeper.certificate is not None and expiry_mark(keeper.certificate, resources.clock()) is not None
    return "expires_soon" if soon else "ok"


async def _shared_state(resources: ResourcesDep) -> Condition:
    try:
        await resources.shared_state.ping()
    except SharedStateUnavailable as error:
        structlog.stdlib.get_logger("app.health").warning("shared_state_unavailable", why=str(error))
        return "down"
    return "ok"
