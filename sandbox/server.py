"""Both faces of the sandbox on loopback, in one background thread with its own event loop."""

import asyncio
import socket
import ssl
import threading
from concurrent.futures import Future
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self, cast

from cryptography.hazmat.primitives.asymmetric import rsa
from starlette.applications import Starlette
from typing_extensions import override
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from sandbox.certificates import server_tls
from sandbox.connection import Protocol
from sandbox.control import ControlFace
from sandbox.crypto import kept_rsa_key, public_key_text, rsa_key_from_text
from sandbox.signature import SigningAuthority
from sandbox.state import TEST_CLIENT_ID, TEST_CLIENT_SECRET, SandboxState
from sandbox.toss import TossFace

_HOST = "127.0.0.1"
_START_SECONDS = 10.0


class SandboxServer:
    """Keys and certificates are kept in `folder` and made on first use.

    `session_key` (PKCS#8, DER, Base64) saves making the RSA-4096 key. Port 0 means any free one.
    """

    client_id = TEST_CLIENT_ID
    client_secret = TEST_CLIENT_SECRET

    def __init__(
        self,
        folder: Path,
        *,
        session_key: str | None = None,
        toss_port: int = 0,
        control_port: int = 0,
        bff_url: str = "http://127.0.0.1:8000",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.state = SandboxState()
        self._folder = folder
        self._given_session_key = session_key
        self._ports = (toss_port, control_port)
        self._bff_url = bff_url
        self._sockets = ExitStack()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Raises OSError when a given port is taken."""
        signing = SigningAuthority(self._folder)
        self.signature_ca_files = signing.ca_files
        self.public_key = public_key_text(self._session_key)
        self.ca_file, tls = server_tls(self._folder)
        toss_socket, control_socket = (self._listening(port) for port in self._ports)
        self.toss_url = f"https://{_HOST}:{toss_socket.getsockname()[1]}"
        self.token_url = f"{self.toss_url}/token"
        self.control_url = f"http://{_HOST}:{control_socket.getsockname()[1]}"
        toss = TossFace(
            state=self.state,
            session_key=self._session_key,
            token_key=lambda: self._token_key,
            signing=signing,
        )
        control = ControlFace(
            state=self.state,
            config={"bffUrl": self._bff_url, "tossUrl": self.toss_url, "controlUrl": self.control_url},
        )
        self._servers = [_server(toss.app(), tls), _server(control.app(), None)]
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run([toss_socket, control_socket], started)),
            name="sandbox",
            daemon=True,
        )
        self._thread.start()
        started.result(_START_SECONDS)

    def stop(self) -> None:
        """Held and slow calls are cut off."""
        self._loop.call_soon_threadsafe(self._shut)
        self._thread.join()
        self._sockets.close()

    async def _run(self, sockets: list[socket.socket], started: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        serving = [
            asyncio.create_task(server.serve(sockets=[bound]))
            for server, bound in zip(self._servers, sockets, strict=True)
        ]
        for server in self._servers:
            await server.listening.wait()
        started.set_result(None)
        await asyncio.gather(*serving)

    def _shut(self) -> None:
        for server in self._servers:
            server.should_exit = True
            for connection in list(server.server_state.connections):
                cast(H11Protocol, connection).transport.abort()

    def _listening(self, port: int) -> socket.socket:
        # asyncio sends without delay only where the protocol is named; else each answer waits for an ACK.
        listening = self._sockets.enter_context(
            socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        )
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((_HOST, port))
        listening.listen(512)
        return listening

    @cached_property
    def _session_key(self) -> rsa.RSAPrivateKey:
        if self._given_session_key is not None:
            return rsa_key_from_text(self._given_session_key)
        return kept_rsa_key(self._folder / "session.key", 4096)  # reference 4.1

    @cached_property
    def _token_key(self) -> rsa.RSAPrivateKey:
        return kept_rsa_key(self._folder / "token.key", 2048)  # reference 3.1: 256 bytes of signature


class _Server(Server):
    """Says when it listens."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


def _server(app: Starlette, tls: ssl.SSLContext | None) -> _Server:
    config = Config(
        app,
        http=Protocol,
        ws="none",
        interface="asgi3",
        lifespan="off",
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=1,
        ssl_context_factory=(lambda _config, _default: tls) if tls is not None else None,
    )
    return _Server(config)
