"""Every recipe through the whole training run: on a tiny model in the fast suite, on the embedded one in the slow."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from afterword.errors import ConfigError, NothingToDo
from afterword.learn.parts.anchors import entropy_bonus
from afterword.learn.recipes import RECIPES, Recipe, recipe
from afterword.learn.recipes.validate import validate
from afterword.train.artifact import TrainResult
from afterword.train.data.examples import Example
from afterword.train.loop import train_candidate
from afterword.train.monitoring.metrics import read_metrics
from tests.learn.recipe_inputs import INPUTS
from tests.train.tiny_model import example, tiny_folder

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

KINDS = ("follow_up", "edited", "retried", "tests")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "other", seed=1)


def told(name: str, teacher: str) -> dict[str, Any]:
    given = INPUTS.get(name, {})
    # two answers, so that some prompts have no right one
    few = {"num_generations": 2, "fresh": 2 if name == "hdpo" else 1} if "verifier" in given and name != "grpo" else {}
    return {**given, **few, "teacher": teacher} if "teacher" in given else {**given, **few}


def some(model: str, n: int, **changes: Any) -> list[Example]:
    found = []
    for i in range(n):
        served = example(model, i, text=f"Answer {i}" + "!" * (i % 3), hindsight=f"Wish {i}.")
        size = len(served.turn.completion_ids or ())
        turn = dataclasses.replace(served.turn, logprobs=(-5.5,) * size)
        fields: dict[str, Any] = {"kind": KINDS[i % 4], "polarity": 1 if i == 4 else -1, **changes}
        found.append(Example(dataclasses.replace(served.interaction, **fields), turn))
    return found


def run(model: str, folder: Path, examples: list[Example], one: Recipe) -> TrainResult:
    return train_candidate(examples, model=model, out=folder / "out", run_dir=folder / "run", recipe=one)


@pytest.mark.parametrize("name", [n for n in sorted(RECIPES) if recipe(n, **INPUTS.get(n, {})).data != "episodes"])
def test_every_recipe_trains(name: str, model: str, other: str, tmp_path: Path) -> None:
    """Those that learn from episodes: `test_episode_training`."""
    if name == "npo":  # its guide is an adapter of the same base
        other = str(run(model, tmp_path / "guide", some(model, 4), recipe("sft", batch=4, dtype="float32")).path)
    one = recipe(name, **told(name, other), batch=4, dtype="float32", max_fresh=6)
    if name == "dasd":  # the answers of a random model do not end by themselves
        one = dataclasses.replace(one, generation=dataclasses.replace(one.generation, keep=()))
    result = run(model, tmp_path, some(model, 8), one)
    metrics = read_metrics(tmp_path / "run")
    assert result.interactions
    assert all(math.isfinite(m.loss) and math.isfinite(m.grad_norm) for m in metrics)
    assert any(m.grad_norm > 0 for m in metrics)
    assert set(metrics[0].terms) == {term.name for term in one.terms}
    for term in one.terms:
        assert any(m.terms[term.name] != 0 for m in metrics), f"{term.name} never said anything"


def test_the_entropy_bonus_trains_beside_another_term(model: str, tmp_path: Path) -> None:
    base = recipe("sdpo-interactions", batch=4, dtype="float32", epochs=1, fresh=0)
    run(model, tmp_path, some(model, 4), dataclasses.replace(base, terms=(*base.terms, entropy_bonus(0.01))))
    (step,) = read_metrics(tmp_path / "run")
    assert math.isfinite(step.grad_norm)
    assert step.terms["entropy_bonus"] == pytest.approx(-0.01 * step.entropy_student, rel=1e-3)


@pytest.mark.parametrize("name", ["sdpo", "sdft", "opsd", "opsd-clipped"])
def test_a_recipe_without_its_kind_of_interaction_says_which_it_wants(name: str, model: str, tmp_path: Path) -> None:
    wanted = recipe(name).terms[0].route
    with pytest.raises(NothingToDo, match=f"6 other_kind.*learns from .*{wanted.kinds[-1]}"):  # type: ignore[attr-defined]
        run(model, tmp_path, some(model, 6, kind="follow_up"), recipe(name))


@pytest.mark.parametrize("name", sorted(INPUTS))
def test_a_recipe_without_what_it_has_to_be_told_fails_before_anything_is_loaded(name: str, tmp_path: Path) -> None:
    for key in INPUTS[name]:
        others = {other: value for other, value in INPUTS[name].items() if other != key}
        with pytest.raises(ConfigError, match=rf"train\.{key}"):
            validate(recipe(name, **others))
    with pytest.raises(ConfigError, match="|".join(rf"train\.{key}" for key in INPUTS[name])):
        run(str(tmp_path / "no such model"), tmp_path, [], recipe(name))
