"""Who is calling: the client's address, the allowlist, the pages that may call, and how much may come in.

A forged header must not pass (G10): only the socket's peer counts, or a walk from the right through proxies that
the operator has named. What cannot be read is refused, and an empty list refuses everybody.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import structlog
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import AddressNotAllowed, PayloadTooLarge
from app.observability import request_id_of
from app.problems import render

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_FORWARDED = 1000
"""Characters of X-Forwarded-For; no honest chain of proxies is longer."""


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


class Allowlist:
    """Lets only these networks through to everything below `prefix`; the body of others is not even read."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        prefix: str,
        networks: Sequence[Network],
        trusted_proxies: Sequence[Network],
    ) -> None:
        self._app = app
        self._prefix = prefix
        self._networks = tuple(networks)
        self._trusted = tuple(trusted_proxies)
        self._log = structlog.stdlib.get_logger("app.network")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not f"{scope['path']}/".startswith(f"{self._prefix}/"):
            await self._app(scope, receive, send)
            return
        peer = scope.get("client")
        forwarded = Headers(scope=scope).getlist("x-forwarded-for")
        caller = resolve_caller(peer[0] if peer else None, forwarded, self._trusted)
        if caller.client_ip is not None and _is_in(caller.client_ip, self._networks):
            await self._app(scope, receive, send)
            return
        self._log.warning(
            "address_not_allowed",
            peer_ip=str(caller.peer_ip),
            client_ip=str(caller.client_ip),
            prefix=self._prefix,
        )
        response = render(AddressNotAllowed(), request_id=request_id_of(Request(scope)))
        await response(scope, receive, send)


def mini_app_origins(app_name: str) -> tuple[str, ...]:
    """Live and console test, of both generations of the SDK (apps-in-toss reference 5.1, 18: allow all four)."""
    places = ("apps", "private-apps", "web", "private-web")
    return tuple(f"https://{app_name}.{place}.tossmini.com" for place in places)


class BodyLimit:
    """Refuses a body over the limit: by its announced length at once, else at the byte that is too many.

    FastAPI's own limit answers in plain text and outside our middleware.
    """

    def __init__(self, app: ASGIApp, *, limit_bytes: int) -> None:
        self._app = app
        self._limit = limit_bytes

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

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                # The one exception that FastAPI lets pass from the reading of a body to our handlers.
                raise HTTPException(PayloadTooLarge.status)
            return message

        await self._app(scope, counted, send)
