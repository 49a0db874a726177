"""Probes: /livez asks nothing but the process, /readyz asks what a request would need."""

from typing import Literal

import structlog
from fastapi import APIRouter, Response
from pydantic import BaseModel

from app.deps import ResourcesDep
from app.errors import StorageUnavailable
from app.shared_state import SharedStateUnavailable

router = APIRouter(tags=["Health"])

Condition = Literal["ok", "down", "outdated"]


class Liveness(BaseModel):
    status: Literal["alive"] = "alive"


class Readiness(BaseModel):
    status: Literal["ready", "degraded", "not_ready"]
    database: Condition
    sharedState: Condition  # noqa: N815 - wire name


@router.get("/livez")
async def livez() -> Liveness:
    return Liveness()


@router.get("/readyz", responses={503: {"model": Readiness, "description": "The database is away or outdated"}})
async def readyz(resources: ResourcesDep, response: Response) -> Readiness:
    """Without the database nothing works. Without Redis each process merely keeps a token of its own."""
    database = await _database(resources)
    shared_state = await _shared_state(resources)
    if database != "ok":
        response.status_code = 503
        return Readiness(status="not_ready", database=database, sharedState=shared_state)
    status: Literal["ready", "degraded"] = "ready" if shared_state == "ok" else "degraded"
    return Readiness(status=status, database=database, sharedState=shared_state)


async def _database(resources: ResourcesDep) -> Condition:
    try:
        return "ok" if await resources.database.is_current() else "outdated"
    except StorageUnavailable:
        return "down"


async def _shared_state(resources: ResourcesDep) -> Condition:
    try:
        await resources.shared_state.ping()
    except SharedStateUnavailable as error:
        structlog.stdlib.get_logger("app.health").warning("shared_state_unavailable", why=str(error))
        return "down"
    return "ok"
