"""The page, the dashboard and the alert rules say what is there: by the code's list, and by Prometheus' own tool."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from idp_middleware import opentelemetry
from idp_middleware.errors import IdPError
from idp_middleware.observers import AccessLog, AuditLog, TokenRecord
from idp_middleware.prometheus import METRICS, Prometheus
from tests.test_prometheus import a_request, scraped

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "observability.md").read_text()
DASHBOARD = json.loads((ROOT / "examples" / "grafana-dashboard.json").read_text())
ALERTS = (ROOT / "examples" / "prometheus-alerts.yml").read_text()
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]

_METRIC = re.compile(r"\b(idp_middleware_[a-z_]+)(?:\{([^}]*)\})?")
_GROUPED = re.compile(r"\bby \(([^)]*)\)")
_CONDITION = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')
_OF_HISTOGRAMS = re.compile(r"_(bucket|sum|count)$")

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")


def used(text):
    """(metric, labels) for each that a query or a page names."""
    for name, conditions in _METRIC.findall(text):
        base = name if name in METRICS else _OF_HISTOGRAMS.sub("", name)
        yield base, {label for label, _ in _CONDITION.findall(conditions)}


@pytest.mark.parametrize("text", [*QUERIES, ALERTS, PAGE], ids=lambda text: text[:40])
def test_what_is_named_exists(text):
    """A metric or label that was renamed would leave a panel empty, and an alert silent."""
    for name, labels in used(text):
        assert name in METRICS
        assert labels <= set(METRICS[name].labels)
    grouped = {label.strip() for group in _GROUPED.findall(text) for label in group.split(",")} - {"le"}
    assert grouped <= {label for name, _ in used(text) for label in METRICS[name].labels}


def test_problems_and_outcomes_that_are_named_exist():
    """An alert on a word that nothing says never goes off."""

    def names(kind):
        return {kind.name, *(name for each in kind.__subclasses__() for name in names(each))}

    known = names(IdPError)
    for text in (ALERTS, "\n".join(QUERIES)):
        for label, value in _CONDITION.findall(text):
            if label in ("problem", "outcome") and value:
                patterns = value.split("|")
                assert all(any(re.fullmatch(pattern, name) for name in known) for pattern in patterns), value


def test_every_metric_is_on_the_dashboard():
    """What is counted and not shown is counted for nobody."""
    shown = {name for query in QUERIES for name, _ in used(query)}
    assert shown == set(METRICS)


def test_the_page_lists_every_metric_as_the_code_has_it():
    """Both ways: the table is the code's list."""
    rows = {
        name: (kind, tuple(re.findall(r"`(\w+)`", labels)), text)
        for name, kind, labels, text in re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*?) ?\| (.+) \|$", PAGE, re.M)
    }
    assert rows == {name: (each.kind, each.labels, each.help) for name, each in METRICS.items()}
    others = dict(re.findall(r"^\| `(idp_middleware\.[\w.]+)` \| (.+) \|$", PAGE, re.M))
    assert others == opentelemetry.METRICS


def test_the_page_shows_the_lines_of_the_logs_as_they_are(caplog):
    """Field for field: somebody's parser is made from it."""
    caplog.set_level("INFO", "idp_middleware")
    AccessLog()(a_request())
    AuditLog()(TokenRecord(event="failed", route="github", source="S", caller="c"))
    shown = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.S)]
    assert [list(each) for each in shown] == [list(record.idp) for record in caplog.records]


def test_the_dashboard_stands_by_itself():
    """Importable as it is: nobody's own data source in it, and no panel over another."""
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"] if "targets" in panel} == {"${datasource}"}
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def run_promtool(*arguments, text=None):
    done = subprocess.run(["promtool", *arguments], input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_the_alerts_go_off_when_they_should_and_not_otherwise():
    """Prometheus' own word on it."""
    run_promtool("check", "rules", str(ROOT / "examples" / "prometheus-alerts.yml"))
    run_promtool("test", "rules", str(ROOT / "tests" / "alerts.yml"))


@promtool
def test_the_queries_of_the_dashboard_and_the_page_are_queries(tmp_path):
    """With Grafana's variables filled in; as rules, since those are what the tool checks."""
    shown = [*QUERIES, *re.split(r"^#.*$", re.search(r"```promql\n(.*?)```", PAGE, re.S)[1], flags=re.M)[1:]]
    queries = [query.replace("$__rate_interval", "5m").replace("$route", ".*").strip() for query in shown]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    # JSON is YAML.
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    run_promtool("check", "rules", str(tmp_path / "rules.yml"))


@promtool
def test_what_is_exposed_is_as_prometheus_would_have_it():
    """Names, units, help texts and types, by its own lint."""
    prometheus = Prometheus()
    prometheus(a_request())
    run_promtool("check", "metrics", text=scraped(prometheus).text)
