"""The faces of the sandbox, on loopback unless told otherwise, in one background thread with its own event loop."""

import asyncio
import socket
import ssl
import threading
from concurrent.futures import Future
from contextlib import ExitStack
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self, cast

from cryptography.hazmat.primitives.asymmetric import rsa
from starlette.applications import Starlette
from typing_extensions import override
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from sandbox.certificates import ServerTls
from sandbox.client_certificates import (
    LIFE_DAYS,
    ClientAuthority,
    ClientCertificate,
    DemandingTls,
    Demands,
    KeyType,
)
from sandbox.connection import Protocol
from sandbox.control import ControlFace
from sandbox.crypto import kept_rsa_key, public_key_text, rsa_key_from_text
from sandbox.login import LoginFace
from sandbox.miniapps import DEFAULT_APP
from sandbox.own_backend import EVENTS_PATH, OwnBackend
from sandbox.pay import PayFace
from sandbox.signature import SigningAuthority
from sandbox.state import TEST_CLIENT_ID, TEST_CLIENT_SECRET, SandboxState
from sandbox.switches import MissingCertificate
from sandbox.toss import TossFace

LOOPBACK = "127.0.0.1"
_START_SECONDS = 10.0


class SandboxServer:
    """Keys and certificates are kept in `folder` and made on first use.

    `app_name` is the mini-app whose decryption key and AAD this object shows; there may be more.
    `events_secret` (`whsec_…`) is what `own_backend`, which stands in for the team's, verifies events with.
    `host` is the address to listen on, `name` the one by which whoever calls finds it.
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
        partner_port: int = 0,
        pay_port: int = 0,
        app_name: str = DEFAULT_APP,
        events_secret: str | None = None,
        bff_url: str = "http://127.0.0.1:8000",
        host: str = LOOPBACK,
        name: str = LOOPBACK,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.state = SandboxState()
        self._folder = folder
        self._given_session_key = session_key
        self._ports = (toss_port, partner_port, pay_port, control_port)
        self.app_name = app_name
        self._client_authority = ClientAuthority(folder)
        self.client_ca_file = self._client_authority.ca_file
        self.own_backend = OwnBackend(events_secret)
        self._bff_url = bff_url
        self._host = host
        self._name = name
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
        tls = ServerTls(self._folder, self._name)
        self.ca_file = tls.ca_file
        bound = [self._listening(port) for port in self._ports]
        toss_port, partner_port, pay_port, control_port = (listening.getsockname()[1] for listening in bound)
        self.toss_url = f"https://{self._name}:{toss_port}"
        self.token_url = f"{self.toss_url}/token"
        self.partner_url = f"https://{self._name}:{partner_port}"
        self.pay_url = f"https://{self._name}:{pay_port}"
        self.control_url = f"http://{self._name}:{control_port}"
        self.events_url = f"{self.control_url}{EVENTS_PATH}"
        toss = TossFace(
            state=self.state,
            session_key=self._session_key,
            token_key=lambda: self._token_key,
            signing=signing,
        )
        login = LoginFace(state=self.state, token_key=lambda: self._token_key)
        control = ControlFace(
            state=self.state,
            issue=self.issue_client_certificate,
            own_backend=self.own_backend,
            config={
                "bffUrl": self._bff_url,
                "tossUrl": self.toss_url,
                "partnerUrl": self.partner_url,
                "payUrl": self.pay_url,
                "controlUrl": self.control_url,
                "appName": self.app_name,
            },
        )
        partner_tls = DemandingTls.of(self._client_authority, tls.context, self._demands)
        self._servers = [
            _server(toss.app(), tls.context()),
            _server(login.app(), partner_tls),
            _server(PayFace(self.state).app(), partner_tls),
            _server(control.app(), None),
        ]
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(bound, started)),
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

    @property
    def decryption_key(self) -> str:
        """Base64, as it comes by e-mail (reference of Apps in Toss, 6.5)."""
        return self.state.mini_apps.app(self.app_name).decryption_key

    @property
    def second_decryption_key(self) -> str:
        """In use when `decryption_key` is switched to `second`."""
        return self.state.mini_apps.app(self.app_name).second_decryption_key

    @property
    def aad(self) -> str:
        return self.state.mini_apps.app(self.app_name).aad

    def issue_client_certificate(
        self,
        app_name: str | None = None,
        *,
        days: float = LIFE_DAYS,
        days_left: float | None = None,
        not_before: datetime | None = None,
        key_type: KeyType | str = KeyType.RSA,
    ) -> ClientCertificate:
        """See `ClientAuthority.issue`; without a name, for this object's mini-app."""
        return self._client_authority.issue(
            app_name or self.app_name, days=days, days_left=days_left, not_before=not_before, key_type=key_type
        )

    def revoke(self, serial: int) -> None:
        """At once, on kept connections too."""
        self.state.mini_apps.revoke(serial)

    def _demands(self) -> Demands:
        switches = self.state.switches
        return Demands(
            certificate=switches.missing_certificate is MissingCertificate.HANDSHAKE,
            revoked=self.state.mini_apps.revoked,
            tls_1_3=switches.tls_1_3,
        )

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
        listening.bind((self._host, port))
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
