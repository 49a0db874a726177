"""What the documents promise is compared with the code: settings, problem codes, routes, links."""

import base64
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from standardwebhooks.webhooks import Webhook

from app import __version__
from app.errors import AppError
from app.main import create_app
from app.server_keys import Scope
from app.settings import FILE_SUFFIX, PREFIX, Settings, SettingsError
from tests.documents import Environment

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / ".env.example"
READMES = {"README.md": "필수", "README.en.md": "required"}
"""Each with its word for a required variable."""
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

CODES = {
    "address_not_allowed": 403,
    "age_restricted": 403,
    "anon_key_rejected": 401,
    "billing_key_not_active": 409,
    "billing_key_not_found": 404,
    "callback_unauthorized": 401,
    "event_not_found": 404,
    "events_not_configured": 409,
    "idempotency_key_required": 400,
    "idempotency_key_reused": 422,
    "internal_error": 500,
    "invalid_request": 422,
    "login_in_progress": 409,
    "login_rejected": 401,
    "method_not_allowed": 405,
    "not_found": 404,
    "notice_not_found": 404,
    "notice_not_replayable": 409,
    "order_not_found": 404,
    "order_not_payable": 409,
    "payload_too_large": 413,
    "payment_ended": 409,
    "payment_held": 409,
    "payment_in_progress": 409,
    "payment_not_approved": 409,
    "payment_not_found": 404,
    "payment_refused": 409,
    "product_not_found": 404,
    "purchase_failed": 409,
    "purchase_not_found": 404,
    "purchase_not_ready": 409,
    "purchase_refunded": 409,
    "refund_not_possible": 409,
    "refund_refused": 409,
    "request_timeout": 408,
    "result_in_progress": 409,
    "result_outcome_unknown": 504,
    "result_reads_exhausted": 410,
    "scope_missing": 403,
    "sealed_data_unreadable": 503,
    "server_key_required": 401,
    "service_stopping": 503,
    "session_not_found": 404,
    "session_required": 401,
    "storage_unavailable": 503,
    "too_many_requests": 429,
    "toss_not_configured": 503,
    "unlink_needs_login": 409,
    "upstream_budget_exhausted": 503,
    "upstream_invalid": 502,
    "upstream_refused": 502,
    "upstream_timeout": 504,
    "upstream_unavailable": 503,
    "user_not_found": 404,
    "verification_erased": 410,
    "verification_expired": 410,
    "verification_not_completed": 409,
    "verification_not_found": 404,
    "verification_refused": 409,
    "verification_token_required": 401,
    "verification_unknown_to_toss": 410,
}
"""Frozen: callers switch on these. Written by hand; a change here is a change of the contract."""


def variables(model: type[BaseModel] = Settings, prefix: str = PREFIX) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from variables(field.annotation, f"{prefix}{name}__".upper())
        else:
            yield f"{prefix}{name}".upper(), field


VARIABLES = dict(variables())
REQUIRED = {name for name, field in VARIABLES.items() if field.is_required()}
DEFAULTS = {name: field.get_default() for name, field in VARIABLES.items() if not field.is_required()}


SECRET = REQUIRED - {"BFF_VAULT__ACTIVE_KEY"}
"""A key's id is no secret."""


def errors(root: type[AppError] = AppError) -> Iterator[type[AppError]]:
    for error in root.__subclasses__():
        if error.__module__.startswith("app."):
            yield error
        yield from errors(error)


def rows(text: str, cell: str) -> list[list[str]]:
    """The table rows whose first cell is code of this form."""
    lines = re.findall(rf"^\| (`{cell}` \|.*) \|$", text, re.MULTILINE)
    return [[part.strip() for part in line.split(" | ")] for line in lines]


def code(cell: str) -> str:
    return cell.strip("`")


@pytest.fixture(params=sorted(READMES))
def readme(request) -> str:
    return request.param


@pytest.fixture
def text(readme) -> str:
    return (ROOT / readme).read_text("utf-8")


@pytest.fixture
def environment(monkeypatch) -> Environment:
    return Environment(monkeypatch)


def sourced(script: str) -> dict[str, str]:
    """What a POSIX shell makes of an environment file."""
    run = subprocess.run(
        ["/bin/sh", "-euc", f"set -a; {script}; env -0"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stderr == ""
    pairs = (line.partition("=") for line in run.stdout.split("\0"))
    return {name: value for name, _, value in pairs if name.startswith(PREFIX)}


@pytest.fixture
def example() -> dict[str, str]:
    return sourced(". ./.env.example")


@pytest.fixture
def commented(tmp_path) -> dict[str, str]:
    """The same file with every commented variable in force."""
    path = tmp_path / "all.env"
    path.write_text(re.sub(rf"^# (?={PREFIX})", "", EXAMPLE.read_text("utf-8"), flags=re.MULTILINE), "utf-8")
    return sourced(f". {path}")


# --- .env.example -------------------------------------------------------------------------------------------


def test_the_example_names_every_variable_once():
    named = re.findall(rf"^(?:# )?({PREFIX}\w+)=", EXAMPLE.read_text("utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(VARIABLES)


def test_the_example_sets_what_is_required(example):
    assert set(example) >= REQUIRED


def test_the_example_is_valid_in_development(environment, example):
    environment.set(example)
    assert Settings.from_environment().environment == "development"


def test_production_refuses_the_example(environment, example):
    environment.set(example | {"BFF_ENVIRONMENT": "production"})
    with pytest.raises(SettingsError) as refused:
        Settings.from_environment()
    refused_variables = {re.split(r"[:\[]", fault)[0] for fault in refused.value.faults}
    assert refused_variables == {
        "BFF_CERT__CLIENT_ID",
        "BFF_CERT__CLIENT_SECRET",
        "BFF_VAULT__HASH_KEY",
        "BFF_VAULT__KEYS",
    }
    assert not any(value in str(refused.value) for name, value in example.items() if name in SECRET)


def test_the_commented_lines_are_valid_too(environment, commented):
    environment.set(commented)
    Settings.from_environment()


def test_the_commented_lines_show_the_defaults(environment, example, commented):
    shown = {name for name in set(commented) - set(example) if DEFAULTS[name] is not None}
    environment.set({name: value for name, value in commented.items() if name in shown | REQUIRED})
    in_force = Settings.from_environment()
    environment.set({name: value for name, value in commented.items() if name in REQUIRED})
    assert in_force == Settings.from_environment()


# --- The settings tables ------------------------------------------------------------------------------------


def test_the_settings_table_lists_every_variable_once(text):
    assert [code(row[0]) for row in rows(text, rf"{PREFIX}\w+")] == list(VARIABLES)


def test_the_settings_table_marks_what_is_required(readme, text):
    word = READMES[readme]
    assert {code(row[0]) for row in rows(text, rf"{PREFIX}\w+") if row[1] == f"**{word}**"} == REQUIRED


def test_the_settings_table_has_the_right_defaults(environment, example, text):
    stated = {code(row[0]): row[1] for row in rows(text, rf"{PREFIX}\w+") if code(row[0]) in DEFAULTS}
    assert {name for name, cell in stated.items() if cell == "—"} == {
        name for name, default in DEFAULTS.items() if default is None
    }
    required = {name: value for name, value in example.items() if name in REQUIRED}
    environment.set(required)
    defaults = Settings.from_environment()
    environment.set(required | {name: code(cell) for name, cell in stated.items() if cell != "—"})
    assert Settings.from_environment() == defaults


def test_variables_in_the_prose_exist():
    mentioned = {
        name
        for document in DOCUMENTS
        for name in re.findall(rf"{PREFIX}[A-Z0-9]+(?:_+[A-Z0-9]+)*", document.read_text("utf-8"))
    }
    assert mentioned <= {*VARIABLES, *(name + FILE_SUFFIX for name in VARIABLES)}


# --- Problem codes ------------------------------------------------------------------------------------------


def test_the_codes_are_frozen():
    assert {error.code: error.status for error in errors()} == CODES


def test_no_two_errors_share_a_code():
    codes = [error.code for error in errors()]
    assert sorted(codes) == sorted(set(codes))


@pytest.mark.parametrize(
    ("guide", "no", "yes"), [("troubleshooting.md", "아니요", "예"), ("troubleshooting.en.md", "no", "yes")]
)
def test_the_problem_table_lists_every_code_once(guide, no, yes):
    text = (ROOT / "docs" / guide).read_text("utf-8")
    table = [(code(row[0]), row[1], row[2]) for row in rows(text, "[a-z_]+") if row[1].isdigit()]
    assert sorted(table) == sorted(
        (error.code, str(error.status), yes if error.retryable else no) for error in errors()
    )


@pytest.mark.parametrize(
    ("guide", "doors"),
    [
        (
            "troubleshooting.md",
            {"api": "미니앱", "server": "파트너 서버", "callbacks": "토스", "metrics": "운영자"},
        ),
        (
            "troubleshooting.en.md",
            {"api": "mini-app", "server": "partner server", "callbacks": "Toss", "metrics": "operator"},
        ),
    ],
)
def test_the_problem_table_says_at_which_doors(openapi, guide, doors):
    seen: dict[str, set[str]] = {problem: set() for problem in CODES}
    for path, item in openapi["paths"].items():
        for answer in (answer for operation in item.values() for answer in operation["responses"].values()):
            for problem in re.findall(r"`([a-z_]+)`: ", answer["description"]):
                seen[problem].add(doors[path.split("/")[1]])
    everybody = {doors["api"], doors["server"], doors["callbacks"]}
    seen |= {"not_found": everybody, "method_not_allowed": everybody}  # of addresses that no document has
    text = (ROOT / "docs" / guide).read_text("utf-8")
    assert {code(row[0]): set(row[3].split(", ")) for row in rows(text, "[a-z_]+") if row[1].isdigit()} == seen


@pytest.mark.parametrize("guide", ["troubleshooting.md", "troubleshooting.en.md"])
def test_the_problem_table_says_what_to_do(guide):
    text = (ROOT / "docs" / guide).read_text("utf-8")
    for row in rows(text, "[a-z_]+"):
        assert len(row) == 7
        assert row[4] != "—"
        assert row[5:] != ["—", "—"]


# --- Routes -------------------------------------------------------------------------------------------------


@pytest.fixture
def openapi(environment, example) -> dict[str, Any]:
    environment.set(example)
    return create_app(Settings.from_environment()).openapi()


def test_the_routes_are_those_of_the_openapi_document(openapi, text):
    served = {f"{method.upper()} {path}" for path, item in openapi["paths"].items() for method in item}
    listed = [code(row[0]) for row in rows(text, "(?:GET|POST|PUT|PATCH|DELETE) /[^`]*")]
    assert sorted(listed) == sorted(served)


def test_every_scope_is_named(text):
    assert {scope for scope in Scope if f"`{scope}`" not in text} == set()


# --- The examples -------------------------------------------------------------------------------------------


SECRET_OF_EVENTS = "whsec_" + base64.b64encode(bytes(32)).decode()


def test_the_example_of_a_receiver_takes_signed_events_only(text):
    [source] = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    stored: dict[str, Any] = {}
    names: dict[str, Any] = {"SECRET": SECRET_OF_EVENTS, "store_once": stored.__setitem__}
    exec(source, names)
    now, body = datetime.now(UTC), '{"id": "e1"}'
    headers = {
        "Webhook-Id": "e1",
        "Webhook-Timestamp": str(int(now.timestamp())),
        "Webhook-Signature": Webhook(SECRET_OF_EVENTS).sign("e1", now, body),
    }
    assert names["take"](body.encode(), headers) == 204
    assert stored == {"e1": {"id": "e1"}}
    assert names["take"](b'{"id": "e2"}', headers) == 401
    assert names["take"](body.encode(), {}) == 401
    for malformed in ("nonsense", "v1,AAA", "v1,a,b", "v1,%%%"):
        assert names["take"](body.encode(), headers | {"Webhook-Signature": malformed}) == 401


# --- The documents themselves -------------------------------------------------------------------------------


def without_code(markdown: str) -> str:
    return re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)


def anchors(document: Path) -> set[str]:
    """Those that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(document.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(document.read_text("utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_both_readmes_have_the_same_shape():
    def shape(name: str) -> list[str]:
        lines = (ROOT / name).read_text("utf-8").splitlines()
        return [match[0] for line in lines if (match := re.match(r"#+ |```\w*|\| `[^`]+` \||\* ", line))]

    assert shape("README.md") == shape("README.en.md")


def test_the_version_is_that_of_the_project():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"] == __version__


def test_decisions_are_numbered_without_gaps():
    numbers = sorted(int(path.name[:4]) for path in ROOT.glob("docs/decisions/*.md"))
    assert numbers == list(range(1, len(numbers) + 1))
