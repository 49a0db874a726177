"""What the guides name exists: commands, routes, log events, tables, files, addresses; in both languages."""

import ast
import base64
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import app.resources  # noqa: F401 - all tables
from app.__main__ import main
from app.database import Base
from app.doctor import TOSS_ADDRESSES
from app.events.tables import EventType
from app.server_keys import Scope
from app.settings import TOSS_CALLBACK_NETWORKS, Settings
from app.vault import SealedColumn
from tests.documents import Environment, openapi_document

ROOT = Path(__file__).parent.parent
GUIDES = ("going-live", "operating", "troubleshooting", "data-protection", "threat-model")
LANGUAGES = ("", ".en")
CONSOLE = {"mTLS 인증서", "+ 발급받기", "이메일로 복호화 키 받기", "유저 정보 불러오기", "연동 키", "결제 알림 URL"}
"""Labels of Toss's console, as Toss writes them (apps-in-toss reference 0.2, 2.2, 6.5, 8.7, 14.2)."""
PAY_ADDRESSES = {"117.52.3.195", "211.115.96.195", "106.249.5.195"}
"""Of Toss Pay's host (apps-in-toss reference 2.3)."""
WORDS_OF_TOSS = {"USER_CI"}
"""Scope of Toss login (apps-in-toss reference 6.7)."""
GUARANTEES = {f"G{number}" for number in range(1, 16)}
UNDOCUMENTED_ROUTES = {"/docs", "/openapi.json"}


def read(guide: str, language: str) -> str:
    return (ROOT / "docs" / f"{guide}{language}.md").read_text("utf-8")


@pytest.fixture(params=LANGUAGES)
def language(request) -> str:
    return request.param


@pytest.fixture(params=[(guide, language) for guide in GUIDES for language in LANGUAGES], ids="".join)
def text(request) -> str:
    return read(*request.param)


@pytest.fixture
def environment(monkeypatch) -> Environment:
    return Environment(monkeypatch)


@pytest.fixture(scope="module")
def openapi() -> dict[str, Any]:
    return openapi_document()


@pytest.fixture(scope="module")
def words() -> set[str]:
    """Every name and every text in the code of the service and of the sandbox."""
    sources = [path for folder in ("app", "sandbox") for path in (ROOT / folder).rglob("*.py")]
    found = {word for path in sources for word in in_code(path)}
    assert "event_" in found  # the log events of a delivery are put together
    return found | {f"event_{outcome}" for outcome in ("delivered", "failed", "given_up") if outcome in found}


def in_code(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Constant(value=str(word)):
                yield word
            case ast.Name(id=word) | ast.Attribute(attr=word) | ast.arg(arg=word):
                yield word
            case ast.FunctionDef(name=word) | ast.AsyncFunctionDef(name=word) | ast.ClassDef(name=word):
                yield word
            case _:
                pass


def shape(markdown: str) -> list[str]:
    lines = markdown.splitlines()
    return [match[0] for line in lines if (match := re.match(r"#+ |```\w*|\||\* |\d+\. ", line))]


def spans(markdown: str) -> set[str]:
    """What stands in code marks within the prose."""
    prose = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    return set(re.findall(r"`([^`]+)`", prose))


def table(markdown: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading."""
    below = markdown.partition(f"\n{heading}\n")[2]
    lines = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)
    assert lines is not None, heading
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[0].splitlines()[2:]]


# --- Every guide ----------------------------------------------------------------------------------------------


def test_every_document_is_in_both_languages():
    names = {path.name for path in (ROOT / "docs").glob("*.md")} - {
        "glossary.md",
        "licences.md",
    }  # which have both in one
    guides = {name.removesuffix(".md").removesuffix(".en") for name in names}
    assert names == {f"{guide}{language}.md" for guide in guides for language in LANGUAGES}
    assert guides >= set(GUIDES)


@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_has_the_same_shape_in_both_languages(guide):
    assert shape(read(guide, "")) == shape(read(guide, ".en"))


@pytest.mark.parametrize("guide", GUIDES)
def test_both_languages_name_the_same_things(guide):
    assert spans(read(guide, "")) == spans(read(guide, ".en"))


def test_commands_exist(text, capsys):
    commands = re.findall(r"python -m app ((?:keys )?[a-z]+(?: --[a-z]+(?: [\w:.-]+)?)*)", text)
    for command in commands:
        with pytest.raises(SystemExit) as ended:
            main([*command.split(), "--help"])
        assert ended.value.code == 0, capsys.readouterr().err


def test_routes_exist(openapi, text):
    served = {f"{method.upper()} {path}" for path, item in openapi["paths"].items() for method in item}
    named = {span.partition("?")[0] for span in spans(text) if re.match(r"(GET|POST|DELETE) /", span)}
    assert named <= served


def test_paths_exist(openapi, text):
    doors = r"/(?:api|server|callbacks|livez|readyz|metrics|docs|openapi\.json)\b[^ ]*$"
    for path in (span for span in spans(text) if re.match(doors, span)):
        is_served = any(f"{served}/".startswith(f"{path}/") for served in openapi["paths"])
        assert is_served or path in UNDOCUMENTED_ROUTES, path


def test_words_of_the_code_exist(words, text):
    """Log events, problem codes, tables, columns, states."""
    named = {span for span in spans(text) if re.fullmatch(r"[a-z]+(?:_[a-z0-9]+)+|[A-Z]+(?:_[A-Z]+)*", span)}
    known = words | WORDS_OF_TOSS | {f"bff_{word}" for word in words}  # the namespace of metrics
    assert {word for word in named if not word.startswith("BFF_")} <= known


def test_events_and_scopes_exist(text):
    types = {
        span
        for span in spans(text)
        if re.fullmatch(r"(verification|login|payment|purchase|subscription)\.(?!ts$)\w+", span)
    }
    assert types <= {str(each) for each in EventType}
    scopes = set(re.findall(r"`([a-z]+:[a-z]+)`|--scope ([\w:]+)", text))
    assert {first or second for first, second in scopes} <= {str(each) for each in Scope}


def test_files_exist(text):
    paths = {
        span
        for span in spans(text)
        if re.fullmatch(r"(?:app|tests|docs|sandbox|bench|examples)/[\w./-]+|\.env\.\w+", span)
    }
    assert {path for path in paths if not (ROOT / path).exists()} == set()


# --- Going live -----------------------------------------------------------------------------------------------


def test_every_label_of_the_console_is_in_the_guide(language):
    assert set(re.findall(r"「([^」]+)」", read("going-live", language))) == CONSOLE


def test_every_place_of_the_console_has_the_same_variables_and_addresses():
    def places(language: str, heading: str) -> list[list[str]]:
        cells = table(read("going-live", language), heading)
        return [sorted(spans(" ".join(row))) + re.findall(r"「[^」]+」", row[0]) for row in cells]

    assert places("", "## 콘솔") == places(".en", "## Console")


def test_the_callbacks_of_the_console_are_all_there(openapi, language):
    addresses = {path for path in openapi["paths"] if path.startswith("/callbacks")}
    without_a_field = {"/callbacks/toss/payment"}  # apps-in-toss reference 14.4
    assert {span for span in spans(read("going-live", language)) if span.startswith("/callbacks/toss/")} == (
        addresses - without_a_field
    )


def test_the_files_of_the_console_s_zip_are_those_of_the_sandbox(words, language):
    files = {span for span in spans(read("going-live", language)) if span.startswith("<name>")}
    assert len(files) == 2
    assert {file.removeprefix("<name>") for file in files} <= words


def test_the_firewall_tables_are_those_of_the_code(language):
    text = read("going-live", language)
    address = r"(?:\d+\.){3}\d+"
    allowed = {str(host) for network in TOSS_CALLBACK_NETWORKS for host in IPv4Network(network)}
    heading = {"": "## 방화벽", ".en": "## Firewall"}[language]
    stated = set()
    for row in table(text, heading):
        single, first, last = re.findall(address, row[0])
        place = first.rpartition(".")[0]
        numbers = range(int(first.rpartition(".")[2]), int(last.rpartition(".")[2]) + 1)
        stated |= {single, *(f"{place}.{number}" for number in numbers)}
    assert stated == allowed
    called = set(re.findall(address, " ".join(TOSS_ADDRESSES.values()))) | PAY_ADDRESSES
    elsewhere = {"0.0.0.0", "10.0.1.0"}  # to listen on; a sample of one's own network
    assert set(re.findall(address, text)) - stated - elsewhere == called


def test_the_hosts_are_those_of_the_settings(language):
    groups = [field.annotation for field in Settings.model_fields.values()]
    defaults = [
        str(field.default)
        for group in groups
        if hasattr(group, "model_fields")
        for field in group.model_fields.values()
    ]
    hosts = {urlsplit(text).hostname for text in defaults if text.startswith("https://")}
    assert {
        span for span in spans(read("going-live", language)) if re.fullmatch(r"[\w.-]+\.toss\.im", span)
    } == hosts


def random_key() -> str:
    return base64.b64encode(os.urandom(32)).decode()


def test_production_accepts_the_environment_of_the_guide(environment, language, tmp_path):
    [block] = [
        block
        for block in re.findall(r"^```sh\n(.*?)^```", read("going-live", language), re.MULTILINE | re.DOTALL)
        if "BFF_ENVIRONMENT=production" in block
    ]
    given = {
        "postgresql://USER:PASSWORD@HOST:5432/NAME": "postgresql://bff:secret@db:5432/bff",
        "redis://HOST:6379/0": "redis://redis:6379/0",
        "10.0.1.0/24": "10.0.1.0/24",
        "appName": "my-granite-app",
        "folder": str(tmp_path),
    }
    random = {"keys generate", "key from the mail", "client_id", "client_secret", "additional data from the mail"}
    assert set(re.findall(r"<([^>]+)>", block)) == given.keys() | random
    filled = re.sub(r"<([^>]+)>", lambda placeholder: given.get(placeholder[1]) or random_key(), block)
    path = tmp_path / "production.env"
    path.write_text(filled, "utf-8")
    run = subprocess.run(
        ["/bin/sh", "-euc", f"set -a; . {path}; env -0"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    pairs = (line.partition("=") for line in run.stdout.split("\0"))
    environment.set({name: value for name, _, value in pairs if name.startswith("BFF_")})
    assert Settings.from_environment().environment == "production"


# --- Data protection ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    column: str
    how: str


def sheet(language: str) -> dict[str, list[Stored]]:
    """Of every table, what the sheet says of its columns."""
    text = read("data-protection", language)
    return {
        name: [
            Stored(column, row[2])
            for row in table(text, f"### `{name}`")
            for column in re.findall(r"`(\w+)`", row[0])
        ]
        for name in re.findall(r"^### `(\w+)`$", text, re.MULTILINE)
    }


def test_the_sheet_has_every_table_and_column(language):
    stored = {name: sorted(column.column for column in columns) for name, columns in sheet(language).items()}
    assert stored == {
        name: sorted(column.name for column in table.columns) for name, table in Base.metadata.tables.items()
    }


def test_the_sheet_says_what_is_sealed_and_what_is_hashed(language):
    sealed, hashed, clear = {"": ("봉인", "해시", "그대로"), ".en": ("sealed", "hashed", "clear")}[language]
    for name, columns in sheet(language).items():
        for stored in columns:
            column = Base.metadata.tables[name].columns[stored.column]
            is_hash = column.name.endswith("_hash")
            kind = sealed if isinstance(column.type, SealedColumn) else hashed if is_hash else clear
            assert stored.how == kind, column


def test_the_sheet_names_every_retention(language):
    retentions = {
        f"BFF_{group}__{name}".upper()
        for group, field in Settings.model_fields.items()
        if hasattr(field.annotation, "model_fields")
        for name in field.annotation.model_fields
        if name.endswith("retention_days")
    }
    assert retentions <= spans(read("data-protection", language))


# --- Threat model ---------------------------------------------------------------------------------------------


def test_every_guarantee_is_in_the_threat_model(language):
    assert set(re.findall(r"\bG\d+\b", read("threat-model", language))) == GUARANTEES


def test_every_test_of_the_threat_model_exists(language):
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", read("threat-model", language))
    threats = re.findall(r" \| `app/", read("threat-model", language))
    assert len(named) == len(threats) > 0
    assert [each for each in named if each[1] not in set(in_code(ROOT / each[0]))] == []
