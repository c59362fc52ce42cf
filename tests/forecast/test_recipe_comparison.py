"""Recipes are compared on equal terms: the same answers, the same held-out prompts, tokens within one budget."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from afterword.cli import main
from afterword.errors import NothingToDo, UsageError
from afterword.forecast import recipe_comparison
from afterword.forecast.recipe_comparison import (
    RecipeComparison,
    RecipeRun,
    comparison_page,
    for_task,
    read_runs,
    reads,
    run_comparison,
    summary,
)
from afterword.forecast.tasks import task_of, task_reward
from afterword.learn.recipes import recipe
from afterword.model.loading import EMBEDDED
from afterword.records import Turn
from tests.learn.recipe_inputs import INPUTS
from tests.train.tiny_model import tiny_folder

from .tiny import Evens


@pytest.mark.parametrize(
    ("name", "source"),
    [("follow-ups", "words"), ("sdpo", "attempt"), ("sdft", "answer"), ("rlsd", "answer"), ("pope", "answer"),
     ("grpo", "nothing"), ("srpo", "nothing"), ("sd-zero", "nothing"), ("rltf", "words"), ("opd", "nothing")],
)  # fmt: skip
def test_a_recipe_is_given_what_it_reads(name: str, source: str) -> None:
    assert reads(recipe(name, **INPUTS.get(name, {}))) == source


def test_the_verifier_marks_personas_and_families() -> None:
    task = task_of("persona:brief")
    (item,) = task.items("train", 1, 0)
    for text in ("Yes.", "word " * 60):
        turn = Turn(
            id="x#1", messages=item.messages, answer={"role": "assistant", "content": "-"}, task="persona:brief"
        )
        assert task_reward(turn, text) == task.score(item, text)
    assert task_reward(turn, "Yes.") > task_reward(turn, "word " * 60)


def run(name: str, seed: int, gain: float, **more: Any) -> RecipeRun:
    values: dict[str, Any] = {
        "recipe": name, "task": "t", "model": "m", "base_hash": "b", "seed": seed, "before": 0.25, "after": 0.25 + gain,
        "gain_se": 0.1, "heldout": 8, "examples": 8, "steps": 2, "tokens": 100, "seconds": 1.0, "length": 5.0,
    }  # fmt: skip
    return RecipeRun(**{**values, **more})


def test_the_summary_has_students_interval_over_seeds() -> None:
    """Gains 0, 0.1 and 0.2: mean 0.1, standard error 0.1 / sqrt 3, t(2) = 4.3027."""
    rows = summary([*(run("a", i, 0.1 * i) for i in range(3)), run("b", 0, 0.3)])
    assert [row["recipe"] for row in rows] == ["b", "a"]
    assert rows[1]["gain"] == pytest.approx(0.1) and rows[1]["high"] - rows[1]["gain"] == pytest.approx(
        0.248414, abs=1e-5
    )
    assert rows[0]["low"] == pytest.approx(0.3 - 1.96 * 0.1)
    page = comparison_page(rows, "t", 8)
    assert page.count("<svg") >= 2 and "+0.300" in page


def test_runs_of_other_settings_are_not_mixed() -> None:
    """Another option, budget, number of prompts or, without a budget, another recipe beside it is another figure."""
    sft, wide, grpo = (
        for_task(recipe, name, "gym:gcd", options)
        for name, options in (("sft", {}), ("sft", {"batch": 8}), ("grpo", {}))
    )
    how = RecipeComparison(task="gym:gcd", recipes=(sft,), model="m", seeds=(0, 1))
    runs = [run("sft", seed, 0.1, task="gym:gcd", settings=how.settings_of(sft)) for seed in range(3)]
    assert [one.seed for one in how.own(runs)] == [0, 1]
    for changes in (
        {"recipes": (wide,)},
        {"prompts": 32},
        {"tokens": 9},
        {"recipes": (sft, grpo)},
        {"task": "gym:lcm"},
    ):
        assert dataclasses.replace(how, **changes).own(runs) == []
    with_budget = dataclasses.replace(how, tokens=9)
    beside = dataclasses.replace(with_budget, recipes=(sft, grpo))
    assert beside.settings_of(sft) == with_budget.settings_of(sft)


def test_an_unreadable_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    file.write_text('{"recipe": "a"}\n')
    with pytest.raises(UsageError, match="line 1 of"):
        read_runs(file)
    assert read_runs(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("argument", ["--seeds=0", "--prompts=3", "--heldout=0", "--tokens=0"])
def test_too_little_is_rejected(argument: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "compare", "sft", "--on", "gym:gcd", argument, "--dir", str(tmp_path)]) == 2
    assert "too small" in capsys.readouterr().err


def test_three_recipes_on_a_tiny_model_and_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, file = tiny_folder(tmp_path / "tiny"), tmp_path / "runs.jsonl"
    monkeypatch.setattr(recipe_comparison, "task_of", lambda name: Evens())
    even = {"verifier": "tests.forecast.tiny:even", "batch": 4, "redact": "off", "max_fresh": 8}
    made = (
        recipe("sdpo", **{**even, "fresh": 1}),
        recipe("grpo", **{**even, "fresh": 1, "num_generations": 2}),
        recipe("sft", **{**even, "include_off_policy": True}),
    )
    how = RecipeComparison(task="evens", recipes=made, model=model, seeds=(0,), prompts=8, heldout=4, samples=1)
    assert run_comparison(how, file, tmp_path, device="cpu") == 3
    runs = read_runs(file)
    assert [one.recipe for one in runs] == ["sdpo", "grpo", "sft"] and len({one.before for one in runs}) == 1
    assert all(one.steps > 0 and one.examples > 0 and one.tokens > 0 and one.length > 0 for one in runs)
    file.write_bytes(b"\n".join(file.read_bytes().splitlines()[:2]) + b"\n")
    assert run_comparison(how, file, tmp_path, device="cpu") == 1
    assert read_runs(file)[2].after == runs[2].after and not list((tmp_path / "adapters").iterdir())


def compared(**more: Any) -> RecipeComparison:
    few = {"num_generations": 2, "fresh": 1, "batch": 4}
    made = tuple(
        for_task(recipe, name, "gym:syllogism", few if name == "grpo" else {"batch": 4})
        for name in ("sdpo", "grpo", "sft")
    )
    return RecipeComparison(
        task="gym:syllogism", recipes=made, model=EMBEDDED, seeds=(0,), prompts=8, heldout=4, samples=1, **more
    )


@pytest.mark.slow
def test_recipes_learn_with_equal_tokens_and_an_interrupted_comparison_goes_on(tmp_path: Path) -> None:
    file, how = tmp_path / "runs.jsonl", compared()
    assert run_comparison(how, file, tmp_path) == 3
    runs = read_runs(file)
    assert [r.recipe for r in runs] == ["sdpo", "grpo", "sft"] and len({r.before for r in runs}) == 1
    assert max(r.tokens for r in runs) <= min(r.tokens for r in runs) * 2  # within one example of the budget
    file.write_bytes(b"\n".join(file.read_bytes().splitlines()[:2]) + b"\n")
    assert run_comparison(how, file, tmp_path) == 1 and [r.recipe for r in read_runs(file)] == ["sdpo", "grpo", "sft"]
    assert read_runs(file)[2].after == runs[2].after


@pytest.mark.slow
def test_a_budget_that_pays_for_nothing_is_told(tmp_path: Path) -> None:
    said: list[str] = []
    assert run_comparison(compared(tokens=10), tmp_path / "runs.jsonl", tmp_path, say=said.append) == 0
    assert len(said) == 3 and all("give more --tokens" in line for line in said)
    with pytest.raises(NothingToDo, match="different prompts"):
        task_of("gym:syllogism").items("heldout", 100_000, 0)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["sft", "sft:batch=2"], "named twice"),
        (["sft:batch"], "write NAME:KEY=VALUE"),
        (["sftt"], "did you mean 'sft'"),
        (["sft:bach=2"], "did you mean 'batch'"),
        (["gkd"], "train.teacher"),
    ],
)
def test_recipes_are_checked_before_a_model_is_loaded(
    names: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipes", "compare", *names, "--on", "gym:gcd", "--dir", str(tmp_path)]) == 2
    assert says in capsys.readouterr().err
