"""Alert rules and the dashboard name metrics that a gateway exports, with labels that it writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from afterword.gateway.metrics import Metrics

DEPLOY = Path(__file__).parents[1] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
BOARD = DEPLOY / "grafana" / "afterword.json"


def exported() -> dict[str, set[str]]:
    """Series of a gateway with their labels, those of a scrape included."""
    series: dict[str, set[str]] = {}
    for metric in vars(Metrics()).values():
        for described in metric.describe() if hasattr(metric, "describe") else ():
            labels = {*metric._labelnames, "instance", "job"}
            if described.type == "counter":
                series[f"{described.name}_total"] = labels
            elif described.type == "histogram":
                series |= {f"{described.name}_{part}": {*labels, "le"} for part in ("bucket", "sum", "count")}
            else:
                series[described.name] = labels
    return series


def rules() -> list[dict[str, object]]:
    return [rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str]]:
    for rule in rules():
        yield f"rule {rule['alert']}", str(rule["expr"])
    board = json.loads(BOARD.read_text("utf-8"))
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield f"panel {panel['title']}", target["expr"]
    for note in board["annotations"]["list"]:
        yield f"annotation {note['name']}", note["expr"]


ALL = list(expressions())


@pytest.mark.parametrize("expression", [text for _, text in ALL], ids=[name for name, _ in ALL])
def test_expressions_read_what_a_gateway_exports(expression: str) -> None:
    series = exported()
    named = re.findall(r"\bafterword_\w+", expression)
    assert named or "up{" in expression
    unknown = [name for name in named if name not in series]
    assert not unknown, f"no gateway exports {unknown}"
    known = set().union(*(series[name] for name in named)) | {"instance", "job"}
    grouped = {one.strip() for names in re.findall(r"\bby \(([^)]*)\)", expression) for one in names.split(",")}
    selected = set(re.findall(r"(\w+)(?:=~|!=|!~|=)\"", expression))
    assert grouped | selected <= known, f"no series has the labels {sorted((grouped | selected) - known)}"


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    for rule in rules():
        notes = rule["annotations"]
        assert isinstance(notes, dict) and notes["summary"] and notes["remedy"], rule["alert"]


def test_panels_have_ids_and_places_of_their_own() -> None:
    panels = json.loads(BOARD.read_text("utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24
