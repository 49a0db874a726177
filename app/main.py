"""The application: middleware, routers, problem handlers, lifespan."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware

import app.callbacks.routes
import app.cert.routes
import app.health
from app import problems
from app.network import Allowlist, BodyLimit, mini_app_origins
from app.observability import RequestLog, configure_logging, request_id_of
from app.resources import Clock, open_resources, utc_now
from app.settings import NetworkSettings, Settings, SettingsError

CALLBACKS = "/callbacks/toss"


def create_app(settings: Settings, *, clock: Clock = utc_now) -> FastAPI:
    """Raises: SettingsError."""
    if faults := settings.faults():
        raise SettingsError(faults)

    @asynccontextmanager
    async def lifespan(application: FastAPI) -> AsyncIterator[None]:
        async with open_resources(settings, clock=clock) as resources:
            application.state.resources = resources
            yield

    application = FastAPI(
        title="Apps-in-Toss BFF",
        version="0.1.0",
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url="/openapi.json" if settings.serves_docs else None,
        generate_unique_id_function=_operation_id,
    )
    problems.install(application, request_id_of=request_id_of)
    # Added last is outermost: the log sees everything, CORS also covers what is refused further in.
    application.add_middleware(problems.LastResort, request_id_of=request_id_of)
    application.add_middleware(BodyLimit, limit_bytes=settings.server.body_limit_bytes)
    application.add_middleware(
        Allowlist,
        prefix=CALLBACKS,
        networks=settings.network.callback_allowlist,
        trusted_proxies=settings.network.trusted_proxies,
    )
    application.add_middleware(
        CORSMiddleware,
        allow_origins=allowed_origins(settings.network),
        allow_methods=("GET", "POST", "DELETE"),
        allow_headers=("Authorization", "Content-Type"),
        expose_headers=("Retry-After", "X-Request-Id"),
    )
    application.add_middleware(RequestLog)
    application.include_router(app.health.router)
    application.include_router(app.cert.routes.mini_app)
    application.include_router(app.cert.routes.partner_server)
    application.include_router(app.callbacks.routes.toss)
    application.include_router(app.callbacks.routes.partner_server)
    return application


def from_environment() -> FastAPI:
    """What each worker of the server builds."""
    settings = Settings.from_environment()
    configure_logging(level=settings.logging.level, is_json=settings.logging.format == "json")
    return create_app(settings)


def allowed_origins(network: NetworkSettings) -> tuple[str, ...]:
    return (*network.allowed_origins, *(mini_app_origins(network.app_name) if network.app_name else ()))


def _operation_id(route: APIRoute) -> str:
    return route.name
