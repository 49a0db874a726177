"""The licences of what the image contains, from the lock file and the installed packages.

`python deploy/licences.py > docs/licences.md` makes the table anew.
"""

import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

from packaging.requirements import Requirement

HEADING = """# 의존성 라이선스 · Licences of the dependencies

`python deploy/licences.py > docs/licences.md`

| package | version | licence |
|---|---|---|
"""
BARE = ("--no-emit-project", "--no-hashes", "--no-annotate", "--no-header")
IMAGE = {"python_version": "3.13", "python_full_version": "3.13.0", "sys_platform": "linux"}


def locked() -> list[tuple[str, str]]:
    """Name and version of everything that the image installs."""
    exported = subprocess.run(  # noqa: S603 - our own uv
        [Path(sys.executable).with_name("uv"), "export", "--quiet", "--frozen", "--no-dev", *BARE],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    needed = map(Requirement, exported.stdout.splitlines())
    return [
        (each.name, str(each.specifier).removeprefix("=="))
        for each in needed
        if each.marker is None or each.marker.evaluate(IMAGE)
    ]


def licence(package: str) -> str:
    """As its metadata say: the expression of today, else the older field or classifier."""
    about = metadata(package)
    classifiers = [text.rpartition(" :: ")[2] for text in about.get_all("Classifier", []) if "License ::" in text]
    free = (about.get("License") or "").strip()
    return about.get("License-Expression") or (free if free and "\n" not in free else " AND ".join(classifiers))


def table() -> str:
    return HEADING + "".join(f"| {name} | {version} | {licence(name)} |\n" for name, version in locked())


if __name__ == "__main__":
    sys.stdout.write(table())
