"""The one table of metrics: names are unique, every suite has its function, and the pages hold what it says."""

from __future__ import annotations

import dataclasses
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from afterword.evaluate import suites
from afterword.metrics import ALIASES, SUITES, current, difference, interval, margins, rows_of, spec_of
from afterword.release.gate import GateThresholds

ROOT = Path(__file__).parents[1]
SPECS = [(suite.name, spec) for suite in SUITES.values() for spec in suite.metrics]
PAGE = runpy.run_path(str(ROOT / "dev/metrics_page.py"), run_name="metrics_page")


def test_labels_settings_and_names_are_unique() -> None:
    for names in ([spec.label for _, spec in SPECS], [margin.setting for _, _, margin in margins()]):
        assert not [name for name, number in Counter(names).items() if number > 1]
    assert len({(suite, spec.name) for suite, spec in SPECS}) == len(SPECS)
    assert {field.name for field in dataclasses.fields(GateThresholds)} == {
        "required", *(margin.setting for _, _, margin in margins()),
    }  # fmt: skip


def test_every_suite_has_its_function_and_every_margin_its_reason() -> None:
    assert list(suites.SUITES) == list(SUITES)
    names = [getattr(function, "__name__", "") for function in suites.SUITES.values()]
    assert names == [name.replace("-", "_") for name in SUITES]
    assert all(margin.why for _, _, margin in margins())
    assert all(spec.direction and spec.difference for _, spec in SPECS if spec.tested)


@pytest.mark.parametrize("page", PAGE["PAGES"])
def test_the_pages_hold_the_table(page: str) -> None:
    text = (ROOT / "docs" / page).read_text("utf-8")
    assert PAGE["BEGIN"] in text
    assert text == PAGE["written"](text, PAGE["PAGES"][page]()), "run: python dev/metrics_page.py"


def test_the_names_of_an_earlier_version_are_read() -> None:
    assert not {spec.name for _, spec in SPECS} & set(ALIASES)
    assert current({"need_drop": 1, "gain": 2}) == {"hindsight_kl_drop": 1, "gain": 2}
    assert spec_of("holdout", "need_drop") == spec_of("holdout", "hindsight_kl_drop")
    assert spec_of("holdout", "my_own").label == "my own"


def test_arms_are_put_beside_their_difference() -> None:
    values = {
        name: {"value": float(i), "low": 0.0, "high": 9.0, "n": 3}
        for i, name in enumerate((
            "loss_rise", "loss", "loss_served", "loss_served_text", "loss_text", "drift", "mine_before", "mine_after",
            "mine", "unheard_of", "accuracy", "accuracy_served", "accuracy_candidate",
        ))
    }  # fmt: skip
    secrets = {
        name: {"value": float(i), "low": 0.0, "high": 9.0, "n": 3}
        for i, name in enumerate((
            "exposure_base", "exposure_candidate", "exposure_rise",
        ))
    }  # fmt: skip
    rows = {row.spec.name: row for row in rows_of("forgetting", values)}
    assert list(rows) == ["mine", "drift", "loss_rise", "loss", "loss_text", "accuracy", "unheard_of"]
    assert [name for name, row in rows.items() if row.paired] == ["mine", "loss", "loss_text", "accuracy"]
    assert rows["loss"].candidate["value"] == 1.0 and rows["loss"].reference["value"] == 2.0
    (exposure,) = rows_of("privacy", secrets)
    assert exposure.paired and exposure.against == "base" and rows["accuracy"].against == "served"
    assert rows["accuracy"].value["value"] == 10.0 and rows["loss_rise"].value["value"] == 0.0


def test_numbers_are_written_with_their_unit() -> None:
    assert difference(-0.188, -0.353, -0.06, "points") == "18.8 points fewer [6.0, 35.3]"
    assert difference(-0.00001, -0.05, 0.05, "points") == "0.0 points fewer [-5.0, 5.0]"
    assert difference(0.1, 0.1, 0.1, "nats") == "+0.100 nats a token"
    assert interval(-0.00001, -0.1, 0.1, "score") == "0.000 [-0.100, 0.100]"
    assert interval(0.5, float("-inf"), float("inf"), "share") == "50.0 % [unknown, unknown]"
    assert interval(0.0123, 0.0123, 0.0123, "p") == "0.012"


USES_THE_SUITE = """
from types import SimpleNamespace as Simple
from afterword.evaluate.comparison.answers import Arm, Given
from afterword.evaluate.report.report_html import render_report
from afterword.evaluate.suites import SUITES
from afterword.records import Candidate, Report
from afterword.release.gate import GateThresholds, decide

polite, curt = Given("Please sit.", None, "stop"), Given("Sit.", None, "stop")
arms = Arm("served", None, None), Arm("candidate", None, None)
answers = {"served": [polite] * 20, "candidate": [polite] * 8 + [curt] * 12}
found = SUITES["tone"](Simple(arms=arms, answers=answers, clusters=[str(i) for i in range(20)])).metrics
report = Report(id="r", candidate="c", against=None, suites={"tone": found})
verdict = decide(report, GateThresholds(required=()))
print(verdict.reasons[0], decide(report, GateThresholds(required=(), min_polite=-0.9)).passed)
print("Polite answers" in render_report(
    Candidate(id="c", path="p", base="b", parent=None, interactions=(), recipe={}), report, verdict
))
"""


def test_adding_a_suite_is_one_file_and_one_line_as_the_docs_say(tmp_path: Path) -> None:
    page = (ROOT / "docs/evaluation.md").read_text("utf-8").partition("## Add a suite")[2]
    file, line = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "src/afterword/evaluate/suites/tone.py").write_text(file, encoding="utf-8")
    table = tmp_path / "src/afterword/metrics.py"
    before, marker, after = table.read_text("utf-8").partition("_LATENCY,\n")
    assert marker
    table.write_text(f"{before}{marker}        {line}{after}", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    done = subprocess.run(
        [sys.executable, "-c", USES_THE_SUITE], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "Polite answers: 60.0 points fewer [34.2, 78.1] (n = 20), at most 20 allowed at the upper end: no True", "True",
    ]  # fmt: skip
