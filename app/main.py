"""The application: middleware, routers, problem handlers, lifespan."""

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache, partial

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute
from starlette.types import Scope

import app.callbacks.routes
import app.cert.routes
import app.events.routes
import app.health
import app.login.routes
import app.payments.routes
import app.purchases.routes
from app import __version__, problems
from app.background import every, repeating
from app.error_reports import reporting
from app.errors import RequestTimeout, TooManyRequests
from app.metrics import Metrics
from app.network import (
    Allowlist,
    BodyLimit,
    CrossOrigin,
    OneLine,
    RateLimit,
    RateLimits,
    Rates,
    is_below,
    mini_app_origins,
)
from app.observability import RequestLog, configure_logging, request_id_of
from app.reconcile import reconcile
from app.resources import Clock, Resources, open_resources, utc_now
from app.settings import LimitSettings, NetworkSettings, Settings, SettingsError
from app.tracing import Tracing

MINI_APP = "/api/v1"
CALLBACKS = "/callbacks/toss"
PARTNER_SERVER = "/server/v1"
METRICS = "/metrics"
STARTS = re.compile(
    MINI_APP
    + r"/(cert/requests|login|login/anonymous|payments|payments/[^/]+/execute|billing-keys"
    + r"|billing-keys/[^/]+/confirm|purchases/[^/]+/grant)"
)
"""Where a POST costs a call to Toss, or a push."""


def create_app(settings: Settings, *, clock: Clock = utc_now) -> FastAPI:
    """Raises: SettingsError."""
    if faults := settings.faults(now=clock()):
        raise SettingsError(faults)
    metrics = Metrics()
    tracing = Tracing(settings)
    network = settings.network

    @asynccontextmanager
    async def lifespan(application: FastAPI) -> AsyncIterator[None]:
        interval = settings.server.reconcile_every
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(reporting(settings))
            await stack.enter_async_context(tracing.running())
            opened = open_resources(settings, clock=clock, metrics=metrics, tracing=tracing)
            resources = await stack.enter_async_context(opened)
            application.state.resources = resources
            if interval:
                await stack.enter_async_context(repeating(every(interval), partial(reconcile, resources)))
                await stack.enter_async_context(repeating(resources.outbox.news, resources.delivery.run))
            yield

    application = FastAPI(
        title="Apps-in-Toss BFF",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url="/openapi.json" if settings.serves_docs else None,
        routes=_routes(),
        telemetry=tracing.telemetry,
    )
    problems.install(application, request_id_of=request_id_of)
    # Added last is outermost: the log sees everything, CORS also covers what is refused further in.
    application.add_middleware(
        BodyLimit, limit_bytes=settings.server.body_limit_bytes, timeout=settings.server.body_timeout
    )
    application.add_middleware(
        RateLimits,
        limits=rate_limits(settings.limits),
        rates_of=_rates_of,
        trusted_proxies=network.trusted_proxies,
        metrics=metrics,
    )
    application.add_middleware(
        Allowlist,
        prefix=METRICS,
        networks=network.metrics_allowlist,
        trusted_proxies=network.trusted_proxies,
        metrics=metrics,
        clock=clock,
        refuses_unknown_hops=True,
    )
    application.add_middleware(
        Allowlist,
        prefix=CALLBACKS,
        networks=network.callback_allowlist,
        trusted_proxies=network.trusted_proxies,
        metrics=metrics,
        clock=clock,
        exceptions=network.callback_exceptions,
    )
    application.add_middleware(OneLine)
    application.add_middleware(problems.LastResort, request_id_of=request_id_of)
    application.add_middleware(
        CrossOrigin, prefix=CALLBACKS, servers=PARTNER_SERVER, origins=allowed_origins(network)
    )
    application.add_middleware(RequestLog, metrics=metrics)
    return application


@cache
def _routes() -> list[BaseRoute]:
    """Every route, made ready here and once a process: FastAPI by itself does it while the first request waits, for
    half a second in which nobody else is served either. A route holds nothing of the application it serves.
    """
    router = APIRouter(generate_unique_id_function=_operation_id)
    router.include_router(app.health.router)
    timed = problems.documented(RequestTimeout)
    limited = problems.documented(RequestTimeout, TooManyRequests)
    for mini_app in (
        app.cert.routes.mini_app,
        app.login.routes.mini_app,
        app.payments.routes.mini_app,
        app.purchases.routes.mini_app,
    ):
        router.include_router(mini_app, responses=limited)
    for other in (
        app.cert.routes.partner_server,
        app.login.routes.partner_server,
        app.payments.routes.partner_server,
        app.purchases.routes.partner_server,
        app.callbacks.routes.partner_server,
        app.events.routes.partner_server,
        app.callbacks.routes.toss,
    ):
        router.include_router(other, responses=timed)
    for route in router.routes:
        route.matches({"type": "http", "method": "GET", "path": "/", "headers": []})
    return router.routes


def from_environment() -> FastAPI:
    """What each worker of the server builds."""
    settings = Settings.from_environment()
    configure_logging(level=settings.logging.level, is_json=settings.logging.format == "json")
    return create_app(settings)


def allowed_origins(network: NetworkSettings) -> tuple[str, ...]:
    return (*network.allowed_origins, *(mini_app_origins(network.app_name) if network.app_name else ()))


def rate_limits(limits: LimitSettings) -> tuple[RateLimit, ...]:
    """Named like their settings. A preflight costs nothing and asks for nothing."""
    return (
        RateLimit(
            "per_minute", limits.per_minute, lambda method, path: method != "OPTIONS" and is_below(path, MINI_APP)
        ),
        RateLimit(
            "starts_per_minute",
            limits.starts_per_minute,
            lambda method, path: method == "POST" and STARTS.fullmatch(path) is not None,
        ),
    )


def _rates_of(scope: Scope) -> Rates:
    resources: Resources = scope["app"].state.resources
    return resources.caller_rates


def _operation_id(route: APIRoute) -> str:
    return route.name
