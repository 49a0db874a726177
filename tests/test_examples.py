"""The TypeScript examples are compared with the OpenAPI document: paths, fields, states, problem codes.

That they compile and run is for `npm run check` and `npm run try` (examples/mini-app), which need packages of npm.
"""

import re
from pathlib import Path
from typing import Any

import pytest

from app.errors import AppError
from tests.documents import openapi_document

FOLDER = Path(__file__).parent.parent / "examples" / "mini-app"
HARNESS = {"try.ts", "device.ts"}
"""They play the user and the Toss app."""
SOURCES = {path.name: path.read_text("utf-8") for path in FOLDER.glob("*.ts") if path.name not in HARNESS}
SOURCE = "\n".join(SOURCES.values())

SCHEMAS = {
    "Problem": "Problem",
    "User": "UserBody",
    "LoggedIn": "LoggedInBody",
    "Started": "StartedBody",
    "Status": "StatusBody",
    "Outcome": "Outcome",
    "Result": "OutcomeBody",
    "Person": "PersonalRequest",
    "Payment": "PaymentBody",
    "BillingKey": "BillingKeyBody",
    "Purchase": "PurchaseBody",
    "Entitlement": "EntitlementBody",
}
"""Of each interface, the schema of the OpenAPI document."""
UNUSED = {"GET /api/v1/me/sessions", "DELETE /api/v1/me/sessions/{}"}
"""Routes of the mini-app's door without an example."""


@pytest.fixture(scope="module")
def openapi() -> dict[str, Any]:
    return openapi_document()


def interfaces() -> dict[str, str]:
    return dict(re.findall(r"^(?:export )?interface (\w+) \{\n(.*?)^\}", SOURCE, re.MULTILINE | re.DOTALL))


def bare(path: str) -> str:
    """With `{}` for what varies, in an example and in the OpenAPI document alike."""
    return re.sub(r"\$?\{[^}]*\}", "{}", path)


def calls() -> dict[str, str]:
    """Of each call of the BFF, by method and bare path, the text after them."""
    found = re.findall(r'"(GET|POST|DELETE)", ["`](/api/v1[^"`]*)["`](.*)', SOURCE)
    return {f"{method} {bare(path)}": rest for method, path, rest in found}


def properties(openapi: dict[str, Any], schema: str) -> dict[str, Any]:
    return openapi["components"]["schemas"][schema]["properties"]


def test_every_route_of_the_mini_app_has_an_example(openapi):
    served = {
        f"{method.upper()} {bare(path)}"
        for path, item in openapi["paths"].items()
        if path.startswith("/api/v1")
        for method in item
    }
    assert set(calls()) == served - UNUSED


def test_every_interface_is_compared():
    assert set(interfaces()) == set(SCHEMAS)


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_the_fields_are_those_of_the_schema(openapi, name):
    schema = openapi["components"]["schemas"][SCHEMAS[name]]
    fields = re.findall(r"^  (\w+)(\??):", interfaces()[name], re.MULTILINE)
    assert {field for field, _ in fields} <= set(schema["properties"])
    # What the examples rely on has to be there always. Lists with a default are, though not "required".
    always = set(schema.get("required", ())) | {
        field for field, each in schema["properties"].items() if each.get("type") == "array"
    }
    assert {field for field, mark in fields if not mark} <= always


@pytest.mark.parametrize(
    ("schema", "field", "source"),
    [
        ("PaymentBody", "state", "payment.ts"),
        ("StatusBody", "status", "verification.ts"),
        ("Retrieval", "source", "verification.ts"),
        ("PurchaseBody", "state", "purchase.ts"),
        ("UserBody", "kind", "login.ts"),
    ],
)
def test_the_words_are_those_of_the_schema(openapi, schema, field, source):
    described = properties(openapi, schema)[field]
    reference = described.get("$ref") or described["allOf"][0]["$ref"]
    words = set(openapi["components"]["schemas"][reference.rpartition("/")[2]]["enum"])
    unions = re.findall(r"(?:\"[A-Z_]+\"\s*\|\s*)+\"[A-Z_]+\"", SOURCES[source])
    assert words in [set(re.findall(r"\w+", union)) for union in unions]


def test_what_is_sent_is_in_the_schema(openapi):
    sent = {}
    for call, rest in calls().items():
        if (body := re.match(r", \{ ([^}]*) \}", rest)) is not None:
            sent[call] = {part.partition(":")[0].strip() for part in body[1].split(",")}
    assert sent == {
        "POST /api/v1/login": {"authorizationCode", "referrer"},
        "POST /api/v1/login/anonymous": {"anonKey"},
        "POST /api/v1/cert/requests/{}/claim": {"verificationToken"},
        "POST /api/v1/billing-keys": {"productId"},
    }
    paths = {bare(path): item for path, item in openapi["paths"].items()}
    for call, fields in sent.items():
        method, _, path = call.partition(" ")
        content = paths[path][method.lower()]["requestBody"]["content"]["application/json"]["schema"]
        assert fields == set(properties(openapi, content["$ref"].rpartition("/")[2])), call


def test_the_problem_codes_exist():
    def codes(root: type[AppError]) -> set[str]:
        return {root.code for root in root.__subclasses__()}.union(*(codes(each) for each in root.__subclasses__()))

    compared = " ".join(re.findall(r"error\.code (?:===|!==) \"\w+\"|\[[^\]]*\]\.includes\(error\.code\)", SOURCE))
    mentioned = set(re.findall(r'"(\w+)"', compared))
    assert {"login_rejected", "unlink_needs_login", "payment_refused", "purchase_not_found"} <= mentioned
    assert mentioned <= codes(AppError)
