"""Who is calling: the client's address, the allowlist, the pages that may call, and how much may come in.

A forged header must not pass (G10): only the socket's peer counts, or a walk from the right through proxies that
the operator has named. What cannot be read is refused, and an empty list refuses everybody.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Protocol

import structlog
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import AddressNotAllowed, NotFound, PayloadTooLarge, RequestTimeout, TooManyRequests
from app.metrics import Metrics
from app.observability import request_id_of
from app.problems import render

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

TRACES_OF_HOPS = frozenset({"forwarded", "via", "x-forwarded-for", "x-real-ip"})
"""Headers by which proxies tell of those before them. Nothing in them is believed; that they are there suffices."""
MAX_FORWARDED = 1000
"""Characters of X-Forwarded-For; no honest chain of proxies is longer."""
CONSOLE_ORIGINS = r"https://(?:[a-z0-9-]+\.)*toss\.im"
"""Whole origins of Toss's console, whose page has moved between subdomains (apps-in-toss reference 5.1)."""
ONE_CALLER_V6 = 64
"""Bits that all addresses of one IPv6 network share: a household, or a single telephone, has all of the rest."""


@dataclass(frozen=True)
class Caller:
    """Both addresses; None where there is none that can be read."""

    peer_ip: Address | None
    client_ip: Address | None


def resolve_caller(peer: str | None, forwarded: Sequence[str], trusted_proxies: Iterable[Network]) -> Caller:
    """The peer, unless it is a trusted proxy: then the last hop that is none.

    `forwarded` are the X-Forwarded-For headers in their order. A proxy appends whom it saw, so only what stands to
    the right of the first untrusted entry was written by somebody we trust.
    """
    trusted = tuple(trusted_proxies)
    peer_ip = _parse(peer or "")
    if peer_ip is None or not _is_in(peer_ip, trusted):
        return Caller(peer_ip, peer_ip)
    if sum(map(len, forwarded)) > MAX_FORWARDED:
        return Caller(peer_ip, None)
    client_ip: Address | None = peer_ip
    for entry in reversed(",".join(forwarded).split(",") if forwarded else []):
        client_ip = _parse(entry.strip(" \t"))
        if client_ip is None or not _is_in(client_ip, trusted):
            break
    return Caller(peer_ip, client_ip)


def _parse(text: str) -> Address | None:
    """An address, perhaps with a port (`1.2.3.4:80`, `[::1]:80`); IPv4 inside IPv6 is IPv4."""
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        is_well_formed = bool(bracket) and (not port or _is_port(port))
        text = host if is_well_formed and ":" in host else ""
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
        text = host if _is_port(f":{port}") else ""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return None if address.scope_id else address.ipv4_mapped or address
    return address


def _is_port(text: str) -> bool:
    return text[:1] == ":" and text[1:].isascii() and text[1:].isdigit() and len(text) <= len(":65535")


def _is_in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def _caller_of(scope: Scope, trusted: Iterable[Network]) -> Caller:
    peer = scope.get("client")
    return resolve_caller(peer[0] if peer else None, Headers(scope=scope).getlist("x-forwarded-for"), trusted)


def is_below(path: str, prefix: str) -> bool:
    """`/a`, `/a/` and `/a/b`, but not `/ab`, are below `/a`; by the decoded path, as the routes are matched."""
    return f"{path}/".startswith(f"{prefix}/")


class OneLine:
    """Knows no path with a line end. Routes are found before one that comes last, and whoever guards them by their
    path would take it for another.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "\n" in scope["path"]:
            response = render(NotFound(), request_id=request_id_of(Request(scope)))
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)


class Allowlist:
    """Lets only these networks through to everything below `prefix`; the body of others is not even read."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        prefix: str,
        networks: Sequence[Network],
        trusted_proxies: Sequence[Network],
        metrics: Metrics,
        clock: Callable[[], datetime],
        exceptions: Mapping[str, datetime] | None = None,
        refuses_unknown_hops: bool = False,
    ) -> None:
        """`exceptions`: names below the prefix, and until when every address that can be read may call each.

        `refuses_unknown_hops`: who sends X-Forwarded-For without being a trusted proxy is refused. For lists of
        private networks, in which a proxy that nobody has configured would speak for the whole internet.
        """
        self._app = app
        self._prefix = prefix
        self._networks = tuple(networks)
        self._trusted = tuple(trusted_proxies)
        self._metrics = metrics
        self._clock = clock
        self._exceptions = {f"{prefix}/{name}": (name, until) for name, until in (exceptions or {}).items()}
        self._refuses_unknown_hops = refuses_unknown_hops
        self._log = structlog.stdlib.get_logger("app.network")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not is_below(scope["path"], self._prefix):
            await self._app(scope, receive, send)
            return
        caller = _caller_of(scope, self._trusted)
        if self._is_listed(caller, scope) or self._is_excepted(caller, scope):
            await self._app(scope, receive, send)
            return
        self._metrics.address_denied(prefix=self._prefix)
        self._log.warning(
            "address_not_allowed",
            peer_ip=str(caller.peer_ip),
            client_ip=str(caller.client_ip),
            prefix=self._prefix,
        )
        response = render(AddressNotAllowed(), request_id=request_id_of(Request(scope)))
        await response(scope, receive, send)

    def _is_listed(self, caller: Caller, scope: Scope) -> bool:
        if caller.client_ip is None or not _is_in(caller.client_ip, self._networks):
            return False
        is_peer_trusted = caller.peer_ip is not None and _is_in(caller.peer_ip, self._trusted)
        return is_peer_trusted or not self._refuses_unknown_hops or TRACES_OF_HOPS.isdisjoint(Headers(scope=scope))

    def _is_excepted(self, caller: Caller, scope: Scope) -> bool:
        name, until = self._exceptions.get(scope["path"], ("", None))
        # As it was sent: an encoded letter is decoded in `path`.
        is_exact = scope.get("raw_path") == scope["path"].encode()
        if until is None or not is_exact or caller.client_ip is None or self._clock() >= until:
            return False
        self._metrics.address_excepted(callback=name)
        self._log.warning(
            "address_excepted", peer_ip=str(caller.peer_ip), client_ip=str(caller.client_ip), callback=name
        )
        return True


class Rates(Protocol):
    """Who counts callers: by one's own process or by all of them, that is not our affair."""

    async def hit(self, limit: str, caller: str, *, per_minute: int) -> timedelta | None:
        """None if this request is within the limit, else how long to wait."""


@dataclass(frozen=True)
class RateLimit:
    name: str
    per_minute: int
    applies_to: Callable[[str, str], bool]
    """By method and path."""


class RateLimits:
    """Refuses a caller who asks too often, before the body is read. Of the caller only the address counts."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Sequence[RateLimit],
        rates_of: Callable[[Scope], Rates],
        trusted_proxies: Sequence[Network],
        metrics: Metrics,
    ) -> None:
        """`rates_of`: asked with each request, as the application is built before its resources are open."""
        self._app = app
        self._limits = tuple(limits)
        self._rates_of = rates_of
        self._trusted = tuple(trusted_proxies)
        self._metrics = metrics
        self._log = structlog.stdlib.get_logger("app.network")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for limit in self._limits if scope["type"] == "http" else ():
            if not limit.applies_to(scope["method"], scope["path"]):
                continue
            caller = caller_key(_caller_of(scope, self._trusted))
            wait = await self._rates_of(scope).hit(limit.name, caller, per_minute=limit.per_minute)
            if wait is not None:
                self._metrics.rate_limited(limit=limit.name)
                self._log.info("rate_limited", limit=limit.name)
                response = render(TooManyRequests(retry_after=wait), request_id=request_id_of(Request(scope)))
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


def caller_key(caller: Caller) -> str:
    """What is counted as one caller; those whose address cannot be read are one for each peer."""
    if caller.client_ip is None:
        return f"unreadable behind {caller.peer_ip}"
    if isinstance(caller.client_ip, IPv6Address):
        return str(ip_network((caller.client_ip, ONE_CALLER_V6), strict=False))
    return str(caller.client_ip)


class CrossOrigin:
    """Which pages may call from a browser: those of the console below `prefix`, those of the mini-app elsewhere.

    None below `servers`: a key of a partner's server that got into a page does not work there.
    """

    def __init__(self, app: ASGIApp, *, prefix: str, servers: str, origins: Sequence[str]) -> None:
        self._app = app
        self._prefix = prefix
        self._servers = servers
        self._callbacks = CORSMiddleware(
            app,
            allow_origin_regex=CONSOLE_ORIGINS,
            allow_methods=("GET", "POST"),
            allow_headers=("Authorization", "Content-Type"),
        )
        self._elsewhere = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("Authorization", "Content-Type"),
            expose_headers=("Retry-After", "X-Request-Id"),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" else ""
        door = self._callbacks if is_below(path, self._prefix) else self._elsewhere
        await (self._app if is_below(path, self._servers) else door)(scope, receive, send)


def mini_app_origins(app_name: str) -> tuple[str, ...]:
    """Live and console test, of both generations of the SDK (apps-in-toss reference 5.1, 18: allow all four)."""
    places = ("apps", "private-apps", "web", "private-web")
    return tuple(f"https://{app_name}.{place}.tossmini.com" for place in places)


class BodyLimit:
    """Refuses a body over the limit, by its announced length at once, else at the byte that is too many; and one
    that is not here in time, counted from when the first of it is asked for.

    FastAPI's own limit answers in plain text and outside our middleware, and uvicorn waits for ever.
    """

    def __init__(self, app: ASGIApp, *, limit_bytes: int, timeout: timedelta) -> None:
        self._app = app
        self._limit = limit_bytes
        self._timeout = timeout.total_seconds()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"")
        if announced.isdigit() and int(announced) > self._limit:
            response = render(PayloadTooLarge(), request_id=request_id_of(Request(scope)))
            await response(scope, receive, send)
            return
        received = 0
        is_complete = False
        deadline: float | None = None

        async def counted() -> Message:
            nonlocal received, is_complete, deadline
            if is_complete:  # what is waited for now is the client's leaving
                return await receive()
            if deadline is None:
                deadline = asyncio.get_running_loop().time() + self._timeout
            # HTTPException is the one that FastAPI lets pass from the reading of a body to our handlers.
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(RequestTimeout.status) from None
            is_complete = not message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > self._limit:
                raise HTTPException(PayloadTooLarge.status)
            return message

        await self._app(scope, counted, send)
