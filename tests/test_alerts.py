"""Alert rules, runbook and dashboard speak of one another, and of metrics that exist."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import promql_parser
import pytest
import yaml

from app.main import create_app
from app.settings import PREFIX
from tests.scenarios import Bff
from tests.story import observed_settings, shown, story
from tests.test_docs import VARIABLES, anchors

ROOT = Path(__file__).parent.parent
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboard.json"
RUNBOOKS = [ROOT / "docs" / "runbook.md", ROOT / "docs" / "runbook.en.md"]
OF_PROMETHEUS = {"up"}
QUESTIONS = 5
"""A section says what it means, what the user sees, what to look at, what to do, and what not."""


def rules() -> list[dict]:
    groups = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict]:
    return json.loads(DASHBOARD.read_text("utf-8"))["panels"]


def queries() -> list[str]:
    of_rules = [rule["expr"] for rule in rules()]
    of_panels = [target["expr"] for panel in panels() for target in panel.get("targets", [])]
    return of_rules + [query.replace("$__rate_interval", "5m") for query in of_panels]


def selectors(query: str) -> Iterator[promql_parser.VectorSelector]:
    found = []

    def visit(node) -> None:
        if isinstance(node, promql_parser.MatrixSelector):
            found.append(node.vector_selector)
        elif isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(query), pre_visit=visit)
    yield from found


@pytest.fixture(params=RUNBOOKS, ids=lambda path: path.name)
def runbook(request) -> Path:
    return request.param


def sections(runbook: Path) -> dict[str, str]:
    """Text by alert."""
    parts = re.split(r"^### (Bff\w+)\n", runbook.read_text("utf-8"), flags=re.MULTILINE)
    texts = (re.split(r"^## ", text, flags=re.MULTILINE)[0] for text in parts[2::2])
    return dict(zip(parts[1::2], texts, strict=True))


def test_every_alert_has_a_section_and_every_section_an_alert(runbook):
    names = [rule["alert"] for rule in rules()]
    assert list(sections(runbook)) == names
    assert len(set(names)) == len(names) > 15


def test_every_section_answers_the_same_questions(runbook):
    for name, text in sections(runbook).items():
        assert len(re.findall(r"^\* \*\*", text, re.MULTILINE)) == QUESTIONS, name


def test_every_alert_leads_to_its_section():
    for rule in rules():
        path, anchor = rule["annotations"]["runbook_url"].split("#")
        assert anchor == rule["alert"].lower()
        assert anchor in anchors(ROOT / path)
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_both_runbooks_have_the_same_shape():
    def shape(path: Path) -> list[str]:
        lines = path.read_text("utf-8").splitlines()
        return [match[0] for line in lines if (match := re.match(r"### Bff\w+|#+ |```\w*|\| `[^`]+` \||\* ", line))]

    assert shape(RUNBOOKS[0]) == shape(RUNBOOKS[1])


async def test_every_name_and_label_that_is_asked_for_exists(embedded, sandbox):
    async with Bff.running(observed_settings(embedded, sandbox), sandbox) as bff:
        await story(bff)
        names = (await shown(bff)).names()
    asked = [selector for query in queries() for selector in selectors(query)]
    assert len(asked) > 50
    for selector in asked:
        if selector.name in OF_PROMETHEUS:
            continue
        assert selector.name in names
        series = names[selector.name]
        for matcher in selector.matchers.matchers:
            assert any(matcher.name in labels for labels in series), (selector.name, matcher.name)
            if matcher.op == promql_parser.MatchOp.Equal:
                values = {labels.get(matcher.name) for labels in series}
                assert matcher.value in values, (selector.name, matcher.value)
    documented = {text: set(re.findall(r"`(bff_\w+)`", text.read_text("utf-8"))) for text in RUNBOOKS}
    for path, found in documented.items():
        assert found <= set(names), path.name
        in_table = set(re.findall(r"^\| `(bff_\w+)` \|", path.read_text("utf-8"), re.MULTILINE))
        derived = re.compile(r"(_bucket|_count|_sum|_created)$")
        assert in_table == {name for name in names if name.startswith("bff_") and not derived.search(name)}


def test_the_runbook_names_what_there_is(runbook, embedded, sandbox):
    text = runbook.read_text("utf-8")
    source = "".join(path.read_text("utf-8") for path in ROOT.glob("app/**/*.py"))
    events = {line for line in re.findall(r"`([a-z]+(?:_[a-z]+)+)`", text) if not line.startswith("bff_")}
    known = {*re.findall(r'"([a-z_]+)"', source), *re.findall(r"\b([a-z_]+)=", source)}
    known |= {"event_given_up", "event_failed"}  # put together in app/events/delivery.py
    known |= {name for rule in rules() for name in rule["annotations"]}
    assert events <= known
    assert len(events) > 10
    paths = create_app(observed_settings(embedded, sandbox)).openapi()["paths"]
    routes = re.findall(r"`(GET|POST|DELETE) (/[^`?]*)", text)
    assert len(routes) > 5
    for method, path in routes:
        assert method.lower() in paths[path], path
    assert {name for name in re.findall(rf"{PREFIX}\w+", text) if name not in VARIABLES} == set()
    commands = set(re.findall(r"`python -m app (\w+)", text))
    assert commands <= {"serve", "migrate", "doctor", "reconcile", "keys"}


def test_the_dashboard_has_its_rows_and_names_no_source_of_its_own():
    assert [panel["title"] for panel in panels() if panel["type"] == "row"] == [
        "Requests",
        "Toss",
        "Money",
        "Callbacks and events",
        "Certificates and dependencies",
    ]
    for panel in panels():
        assert "id" not in panel
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (of Prometheus) is not installed")
@pytest.mark.parametrize(
    "arguments",
    [("check", "rules", RULES.name), ("test", "rules", "alerts_test.yml"), ("check", "config", "prometheus.yml")],
    ids=" ".join,
)
def test_prometheus_itself_takes_the_files(arguments):
    run = subprocess.run(["promtool", *arguments], cwd=RULES.parent, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_each_rule_is_tested_to_fire():
    tested = (RULES.parent / "alerts_test.yml").read_text("utf-8")
    loud = tested.split("everything at once")[1]
    assert f"value: {len(rules())}" in loud
