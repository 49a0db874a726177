"""What the image is made of: licences, bill of materials, and whether anything in it is known to be broken."""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from deploy.licences import locked, table
from tests.processes import ROOT
from tests.servers import free_port

KNOWN = {
    "id": "GHSA-0000-0000-0000",
    "modified": "2026-01-01T00:00:00Z",
    "published": "2026-01-01T00:00:00Z",
    "summary": "made up",
    "affected": [],
}


@contextmanager
def vulnerability_database(*, is_affected: bool) -> Iterator[str]:
    """Answers as OSV does (its API of version 1)."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
            found = {"vulns": [{"id": KNOWN["id"], "modified": KNOWN["modified"]}]}
            self.answer({"results": [found if is_affected else {} for _ in asked]})

        def do_GET(self):
            self.answer(KNOWN)

        def answer(self, body):
            text = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def audited(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", ".ci/audit", *options], cwd=ROOT, capture_output=True, text=True, check=False)


def audit(url: str) -> tuple[int, str]:
    done = audited("--service-url", url)
    return done.returncode, done.stdout.strip()


@pytest.mark.parametrize(
    ("is_affected", "said"), [(False, (0, "vulnerabilities: none known")), (True, (1, "vulnerabilities: FOUND"))]
)
def test_the_audit_says_what_the_database_knows(is_affected, said):
    with vulnerability_database(is_affected=is_affected) as url:
        assert audit(url) == said


def test_an_audit_that_could_not_ask_does_not_say_that_all_is_well():
    code, said = audit(f"http://127.0.0.1:{free_port()}/")
    assert (code, said) == (0, "vulnerabilities: NOT CHECKED (the database could not be asked)")


def test_an_audit_that_did_not_work_says_why():
    done = audited("--no-such-option")
    assert "NOT CHECKED" in done.stdout
    assert "--no-such-option" in done.stderr


def test_the_list_of_licences_is_current():
    assert (ROOT / "docs" / "licences.md").read_text("utf-8") == table()
    assert not re.search(r"\| *\|$", table(), re.MULTILINE)


def test_the_bill_of_materials_names_what_the_image_installs():
    """By the same command as in the Dockerfile."""
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    (options,) = re.findall(r"uv export (.*) --output-file", dockerfile)
    made = subprocess.run(
        [ROOT / ".venv" / "bin" / "uv", "export", *options.replace("${EXTRAS}", "").split()],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    bill = json.loads(made.stdout)
    assert bill["bomFormat"] == "CycloneDX"
    named = {(each["name"], each["version"]) for each in bill["components"]}
    assert set(locked()) <= named
    assert not {name for name, _ in named} & {"pytest", "ruff", "trustme"}
