"""Hosts on loopback that do with a connection what a test has written, over TLS where wanted."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

OK = b'{"resultType":"SUCCESS","success":{}}'


@dataclass
class Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    host: "Host"
    number: int

    async def request(self) -> bytes | None:
        """The next request, head and body; None when the other side has gone."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, OSError):
            return None
        length = [
            line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
        ]
        request = head + await self.reader.readexactly(int(length[0]) if length else 0)
        self.host.requests.append(request)
        return request

    def send(self, body: bytes = OK, *, status: str = "200 OK", length: int | None = None, **headers: str) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def reset(self) -> None:
        """As a crash would: RST, not an orderly end."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


Script = Callable[[Connection], Awaitable[None]]


@dataclass
class Host:
    """A host on loopback that does with every connection what the test has written."""

    script: Script
    url: str = ""
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)
    _open: dict[asyncio.Task[None], asyncio.StreamWriter] = field(default_factory=dict)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        # asyncio reports a handler's cancellation as an unhandled exception, so it ends here.
        with suppress(OSError, asyncio.CancelledError):
            await self.script(Connection(reader, writer, self, self.connections))
            await writer.drain()
        writer.close()

    @classmethod
    @asynccontextmanager
    async def running(cls, script: Script, *, tls: ssl.SSLContext | None = None) -> AsyncIterator["Host"]:
        host = cls(script)
        server = await asyncio.start_server(host.accept, "127.0.0.1", 0, ssl=tls)
        host.url = f"http{'s' if tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}/call"
        try:
            yield host
        finally:
            server.close()
            for task, writer in host._open.items():
                writer.transport.abort()
                task.cancel()
            await asyncio.gather(*host._open, return_exceptions=True)


def answering(body: bytes = OK, **how: str) -> Script:
    """Answer every request of a connection alike, and keep it open."""

    async def script(connection: Connection) -> None:
        while await connection.request() is not None:
            connection.send(body, **how)
            await connection.writer.drain()

    return script


async def silence(connection: Connection) -> None:
    """Take everything and answer nothing."""
    while await connection.reader.read(65536):
        pass


def tls_of(ca, *names: str, **details) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*(names or ("127.0.0.1",)), **details).configure_cert(context)
    return context
