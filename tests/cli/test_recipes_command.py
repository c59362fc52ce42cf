"""`afterword recipes`: a researcher sees every method and its slots without reading code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.store.store_rows import interaction, turn

from afterword.cli import main
from afterword.cli.recipes import phrase
from afterword.learn.recipes import RECIPES, describe, recipe
from afterword.store import Store


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


def test_advice_counts_what_was_captured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store(tmp_path / "afterword.db") as store:
        for i in range(14):
            store.write(turn(f"turn-{i}"))
            store.write(interaction(f"one-{i}", f"turn-{i}", kind="follow_up", split="train" if i else "holdout"))
    assert main(["recipes", "advise", "--dir", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["interactions"] == {"follow_up": 13} and found["advice"][0]["recipe"] == "follow-ups"
    assert main(["recipes", "advise", "--dir", str(tmp_path), "--set", "train.verifier=tests.x:y"]) == 0
    shown = capsys.readouterr()
    assert "13 interactions to train on: 13 follow_up" in shown.out
    assert "`afterword train --recipe follow-ups`" in shown.err + shown.out
