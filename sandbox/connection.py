"""Connections that can be cut, and calls that notice when theirs is."""

import asyncio
import socket
import ssl
import struct
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

from starlette.requests import Request
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol


class Protocol(H11Protocol):
    """Shows each request its transport as `request.state.transport`, and writes no access log."""

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}
        self.access_log = False


class ClientGone(Exception):
    """There is nobody left to answer."""


async def reset(request: Request) -> NoReturn:
    """Cut the connection as a crash would: RST, not an orderly end. Raises `ClientGone`."""
    transport: asyncio.Transport = request.state.transport
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
    await _disconnect(request)
    raise ClientGone


async def sleep(request: Request, seconds: float) -> None:
    """Raises `ClientGone`."""
    if seconds:
        await while_connected(request, asyncio.sleep(seconds))


async def while_connected(request: Request, wanted: Awaitable[None]) -> None:
    """Wait for `wanted`. Raises `ClientGone` when the client goes away first."""
    waiting = asyncio.ensure_future(wanted)
    gone = asyncio.ensure_future(_disconnect(request))
    await asyncio.wait((waiting, gone), return_when=asyncio.FIRST_COMPLETED)
    arrived = waiting.done()
    for future in (waiting, gone):
        future.cancel()
    await asyncio.gather(waiting, gone, return_exceptions=True)
    if not arrived:
        raise ClientGone


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@dataclass(frozen=True)
class PeerCertificate:
    common_name: str
    serial: int
    not_after: datetime


def peer_certificate(request: Request) -> PeerCertificate | None:
    """The client certificate of this connection, which the handshake has verified. None: there is none."""
    shown: dict[str, Any] | None = request.state.transport.get_extra_info("peercert")
    if not shown:
        return None
    subject = dict(part for parts in shown["subject"] for part in parts)
    not_after = datetime.fromtimestamp(ssl.cert_time_to_seconds(shown["notAfter"]), UTC)
    return PeerCertificate(subject.get("commonName", ""), int(shown["serialNumber"], 16), not_after)
