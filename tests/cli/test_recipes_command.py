"""`afterword recipes`: a researcher sees every method and its slots without reading code."""

from __future__ import annotations

import json

import pytest

from afterword.cli import main
from afterword.cli.recipes import phrase
from afterword.learn.recipes import RECIPES, describe, recipe


def test_the_list_has_every_recipe_and_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["recipes"]}
    assert list(rows) == list(RECIPES)
    assert rows["sdpo-interactions"]["needs"] is None
    assert all(row["summary"] for row in rows.values())
    assert main(["recipes", "list"]) == 0
    assert "sdpo-interactions" in capsys.readouterr().out


def test_show_prints_the_slots_as_the_manifest_records_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "show", "sdpo-interactions", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"] == describe(recipe("sdpo-interactions"))
    assert main(["recipes", "show", "sdpo-interactions"]) == 0
    shown = capsys.readouterr().out
    assert "hindsight.estimator" in shown
    assert "Context(name=appended, version=1)" in shown


def test_a_typo_suggests_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "show", "sdpo-interaction"]) == 2
    assert "did you mean 'sdpo-interactions'" in capsys.readouterr().err


def test_phrases() -> None:
    assert phrase({"part": "JSD", "beta": 0.5}) == "JSD(beta=0.5)"
    assert phrase({"part": "ForwardKL"}) == "ForwardKL"
    assert phrase([{"part": "A"}, {"part": "B", "x": None}]) == "A, B(x=-)"
    assert phrase([]) == phrase(None) == "-"
