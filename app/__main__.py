"""`python -m app serve | migrate | doctor | reconcile | keys`."""

import argparse
import asyncio
import base64
import math
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import structlog
import uvicorn
from typing_extensions import override
from uvicorn.supervisors import Multiprocess

from app.doctor import examine
from app.error_reports import reporting
from app.errors import AppError, StorageUnavailable
from app.metrics import FOLDER_VARIABLE
from app.observability import configure_logging
from app.reconcile import reconcile
from app.reseal import reseal
from app.resources import Resources, open_resources
from app.server_keys import MAX_NAME, Scope
from app.settings import Settings, SettingsError

T = TypeVar("T")

OK, FAILED, MISCONFIGURED = 0, 1, 2
ENDED = 128 + signal.SIGTERM

Command = Callable[[argparse.Namespace], int]

MAX_NUMBER = 36_500
"""A hundred years in days; more than any batch wants."""
ARRIVAL = 0.1
"""Seconds from a connection to its request, within a data centre and with room to spare."""
ROUNDS = 2
"""Of the event loop, from the acceptance of a connection until its server knows it."""
MIGRATION_TIMEOUT = timedelta(minutes=10)


class OutdatedTables(Exception):
    """The database is there, and not ready for this release."""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    command: Command = options.command
    # Process 1 of a container is not ended by a signal that it does not handle.
    signal.signal(signal.SIGTERM, _end)
    try:
        return command(options)
    except SettingsError as error:
        print(
            "The settings cannot be used:",
            *(f"  - {fault}" for fault in error.faults),
            sep="\n",
            file=sys.stderr,
        )
        return MISCONFIGURED
    except OutdatedTables:
        print("The database's tables are missing or old. Run: python -m app migrate", file=sys.stderr)
        return FAILED
    except AppError as error:
        print(f"{error.title}.", file=sys.stderr)
        return FAILED
    except OSError as error:
        print(f"{error.strerror or type(error).__name__}.", file=sys.stderr)
        return FAILED
    except Exception:  # noqa: BLE001 - the end of the line for a command
        # Through the redacting log: a library's message may show what it was given.
        structlog.stdlib.get_logger("app").exception("command_failed")
        return FAILED


def _end(_number: int, _frame: object) -> None:
    sys.exit(ENDED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m app", description="The Apps-in-Toss BFF")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Command, text: str, to: Any = commands) -> argparse.ArgumentParser:  # noqa: ANN401 - argparse names no public type for it
        added: argparse.ArgumentParser = to.add_parser(name, help=text, description=text)
        added.set_defaults(command=command)
        return added

    add("serve", _serve, "run the HTTP service")
    add("migrate", _migrate, "bring the database's tables up to date")
    add("doctor", _doctor, "examine settings, database, Redis, Toss and clock, and explain every fault")
    add(
        "reconcile",
        _reconcile,
        "settle what crashes left open, deliver events, and erase what is past its retention",
    )

    keys = commands.add_parser("keys", help="server keys and sealing keys").add_subparsers(
        required=True, metavar="ACTION"
    )
    issue = add("issue", _issue, "make a server key; it is shown once", keys)
    issue.add_argument("--name", required=True, type=_key_name, help="who will hold it")
    issue.add_argument(
        "--scope", required=True, action="append", choices=[str(scope) for scope in Scope], help="may be repeated"
    )
    issue.add_argument("--days", type=_positive, help="lifetime; without it the key lives until it is revoked")
    add("list", _list, "list server keys", keys)
    revoke = add("revoke", _revoke, "revoke a server key, at once on every replica", keys)
    revoke.add_argument("key_id")
    add("generate", _generate, "make a random key for BFF_VAULT__KEYS or BFF_VAULT__HASH_KEY", keys)
    again = add("reseal", _reseal, "seal all stored personal data with the active key, in batches", keys)
    again.add_argument("--batch", type=_positive, default=500)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if not 1 <= number <= MAX_NUMBER:
        raise argparse.ArgumentTypeError(f"must be from 1 to {MAX_NUMBER}")
    return number


def _key_name(text: str) -> str:
    if not 1 <= len(text) <= MAX_NAME:
        raise argparse.ArgumentTypeError(f"must have 1 to {MAX_NAME} letters")
    return text


def _serve(_options: argparse.Namespace) -> int:
    settings = _settings()
    if not _run(settings, _is_current):
        raise OutdatedTables
    config = uvicorn.Config(
        "app.main:from_environment",
        factory=True,
        workers=settings.server.workers,
        # Who is calling is decided in one place, by us; FORWARDED_ALLOW_IPS and its kin have no say.
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=math.ceil(settings.server.shutdown_grace.total_seconds()),
    )
    with listen(settings.server.host, settings.server.port) as listening:
        if settings.server.workers > 1:
            with tempfile.TemporaryDirectory(prefix="bff-metrics-") as folder:
                os.environ[FOLDER_VARIABLE] = folder
                Multiprocess(config, sockets=[listening]).run()
            return OK
        server = PatientServer(config)
        # One that comes before uvicorn minds signals counts too. And it raises the signal again when it is done: a
        # stop that went well should not look like a death.
        signal.signal(signal.SIGTERM, server.handle_exit)
        server.run(sockets=[listening])
        return OK if server.started else FAILED


class PatientServer(uvicorn.Server):
    """Answers also those who have just come when it is told to stop."""

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.sleep(0)  # in which those who wait are accepted
        # asyncio loses, without closing it, a connection that it accepts in the round before its server closes.
        for listening in sockets or []:
            asyncio.get_running_loop().remove_reader(listening)
        for _ in range(ROUNDS):
            await asyncio.sleep(0)
        for server in self.servers:
            server.close()
        # uvicorn closes at once a connection whose request it has not read.
        await asyncio.sleep(ARRIVAL)
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket that names its protocol.

    asyncio turns Nagle's algorithm off only for sockets that do; uvicorn's own for several workers does not, and
    every answer on a kept connection then waits 40 ms for the client's acknowledgement.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError:
        listening.close()
        raise
    listening.set_inheritable(True)
    structlog.stdlib.get_logger("app").info("listening", host=host, port=port)
    return listening


async def _is_current(resources: Resources) -> bool:
    try:
        return await resources.database.is_current()
    except StorageUnavailable:
        # A database that is away may come back; /readyz says so until then.
        structlog.stdlib.get_logger("app").warning("database_unavailable_at_start")
        return True


def _migrate(_options: argparse.Namespace) -> int:
    settings = _settings()
    patient = settings.model_copy(
        update={"database": settings.database.model_copy(update={"timeout": MIGRATION_TIMEOUT})}
    )
    _run(patient, lambda resources: resources.database.migrate())
    print("The database is up to date.")
    return OK


def _doctor(_options: argparse.Namespace) -> int:
    settings = _settings()

    async def run(resources: Resources) -> int:
        faults = 0
        async for finding in examine(resources):
            faults += finding.is_fault
            print(f"{'FAULT' if finding.is_fault else 'ok   '}  {finding.check}: {finding.what}")
            if finding.fix:
                print(f"       -> {finding.fix}")
        print("All is well." if not faults else f"Faults found: {faults}")
        return FAILED if faults else OK

    return _run(settings, run)


def _reconcile(_options: argparse.Namespace) -> int:
    settings = _settings()
    done = _run_on_tables(settings, reconcile)
    for name, part in vars(done).items():
        counts = "FAILED" if part is None else ", ".join(_counted(vars(part)))
        print(f"{name}: {counts}")
    return FAILED if done.has_failed else OK


def _counted(counts: Mapping[str, int]) -> Iterator[str]:
    return (f"{count} {what.replace('_', ' ')}" for what, count in counts.items())


def _issue(options: argparse.Namespace) -> int:
    settings = _settings()

    async def issue(resources: Resources) -> None:
        issued = await resources.server_keys.issue(
            name=options.name,
            scopes={Scope(scope) for scope in options.scope},
            lifetime=timedelta(days=options.days) if options.days else None,
        )
        print(
            f"key id:     {issued.key_id}\nserver key: {issued.secret}\nThe key is not stored and not shown again."
        )

    _run_on_tables(settings, issue)
    return OK


def _list(_options: argparse.Namespace) -> int:
    settings = _settings()

    async def show(resources: Resources) -> None:
        for key in await resources.server_keys.list():
            state = f"revoked {key.revoked_at:%Y-%m-%d}" if key.revoked_at else "active"
            end = f"until {key.expires_at:%Y-%m-%d}" if key.expires_at else "no end"
            print(f"{key.key_id}  {state:<18}  {end:<16}  {','.join(key.scopes)}  {key.name}")

    _run_on_tables(settings, show)
    return OK


def _revoke(options: argparse.Namespace) -> int:
    settings = _settings()
    is_revoked = _run_on_tables(settings, lambda resources: resources.server_keys.revoke(options.key_id))
    print("Revoked." if is_revoked else "There is no such active key.")
    return OK if is_revoked else FAILED


def _generate(_options: argparse.Namespace) -> int:
    print(base64.b64encode(os.urandom(32)).decode())
    return OK


def _reseal(options: argparse.Namespace) -> int:
    settings = _settings()
    columns = _run_on_tables(settings, lambda opened: reseal(opened.database, opened.vault, batch=options.batch))
    for column in columns:
        print(f"{column.column}: {column.resealed} resealed, {column.unreadable} unreadable")
    return FAILED if any(column.unreadable for column in columns) else OK


def _settings() -> Settings:
    """With the log on standard error, out of the way of what a command has to say; the service logs to output."""
    settings = Settings.from_environment()
    is_json = settings.logging.format == "json"
    configure_logging(level=settings.logging.level, is_json=is_json, stream=sys.stderr)
    return settings


def _run_on_tables(settings: Settings, use: Callable[[Resources], Awaitable[T]]) -> T:
    async def use_tables(resources: Resources) -> T:
        if not await resources.database.is_current():
            raise OutdatedTables
        return await use(resources)

    return _run(settings, use_tables)


def _run(settings: Settings, use: Callable[[Resources], Awaitable[T]]) -> T:
    async def run() -> T:
        async with reporting(settings), open_resources(settings) as resources:
            return await use(resources)

    return asyncio.run(run())


if __name__ == "__main__":
    sys.exit(main())
