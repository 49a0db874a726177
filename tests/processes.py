"""Real server processes: `python -m app serve` with the environment that a deployment would give it."""

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
from pydantic import BaseModel, SecretStr

from app.settings import PREFIX, Settings
from sandbox.server import SandboxServer
from tests.scenarios import Bff
from tests.servers import free_port

ROOT = Path(__file__).parent.parent
PATIENCE = 30.0


def environment_of(settings: Settings) -> dict[str, str]:
    """The variables that make these settings."""
    variables: dict[str, str] = {f"{PREFIX}ENVIRONMENT": settings.environment}
    for group, content in settings:
        if isinstance(content, BaseModel):
            for field, value in content:
                if value is not None:
                    variables[f"{PREFIX}{group}__{field}".upper()] = _text(value)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return kept | variables


def _text(value: Any) -> str:
    def plain(item: Any) -> Any:
        return item.get_secret_value() if isinstance(item, SecretStr) else str(item)

    if isinstance(value, SecretStr | str | Path):
        return str(plain(value))
    if isinstance(value, dict):
        return json.dumps({key: plain(item) for key, item in value.items()})
    if isinstance(value, tuple | frozenset):
        return json.dumps([plain(item) for item in value])
    return str(value.total_seconds() if hasattr(value, "total_seconds") else value)


class Server:
    """One process. Its log is read as it comes, so that it never waits for a reader."""

    COMMAND: tuple[str, ...] = (sys.executable, "-m", "app", "serve")

    def __init__(self, settings: Settings, **environment: str) -> None:
        port = free_port()
        self._address = ("127.0.0.1", port)
        self.url = f"http://127.0.0.1:{port}"
        own = settings.model_copy(
            update={
                "server": settings.server.model_copy(update={"port": port}),
                "logging": settings.logging.model_copy(update={"level": "DEBUG"}),
            }
        )
        self._process = subprocess.Popen(
            self.COMMAND,
            cwd=ROOT,
            env=environment_of(own) | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        self.log: list[str] = []
        self._has_ended = False
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                logging.getLogger("server-process").debug(line.rstrip())
                with self._news:
                    self.log.append(line)
                    self._news.notify_all()
        with self._news:
            self._has_ended = True
            self._news.notify_all()

    def wait_for(self, text: str, patience: float = PATIENCE) -> None:
        """Until a line of the log contains this text."""

        def has_said() -> bool:
            return any(text in line for line in self.log)

        with self._news:
            self._news.wait_for(lambda: has_said() or self._has_ended, patience)
            assert has_said(), f"did not say {text!r}: {''.join(self.log)}"

    def wait_until_listening(self, patience: float = PATIENCE) -> None:
        """uvicorn listens a moment after it says that it has started, and does not say so."""
        self.wait_for("Application startup complete", patience)
        while not self._has_ended:
            with suppress(ConnectionRefusedError), socket.create_connection(self._address, PATIENCE):
                return

    async def says(self, text: str) -> None:
        await asyncio.to_thread(self.wait_for, text)

    def end(self, with_signal: signal.Signals) -> int:
        self._process.send_signal(with_signal)
        code = self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def kill(self) -> None:
        """As kill -9 does."""
        self.end(signal.SIGKILL)


async def command(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m app`, as an operator runs it; what it does elsewhere goes on meanwhile."""
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "app", *arguments],
        env=environment_of(settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE * 2,
    )


@contextmanager
def serving(settings: Settings, **environment: str) -> Iterator[Server]:
    server = Server(settings, **environment)
    try:
        server.wait_until_listening()
        yield server
    finally:
        server.kill()


@asynccontextmanager
async def running(settings: Settings, sandbox: SandboxServer) -> AsyncIterator[tuple[Server, Bff]]:
    """A server, and who calls it."""
    with serving(settings) as server:
        async with bff_at(server, sandbox) as bff:
            yield server, bff


@asynccontextmanager
async def bff_at(server: Server, sandbox: SandboxServer) -> AsyncIterator[Bff]:
    async with httpx2.AsyncClient(base_url=server.url, timeout=PATIENCE, trust_env=False) as http:
        yield Bff(http, sandbox)
