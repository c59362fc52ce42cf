"""`[train]` as a recipe: its settings and `[train.options]` are one set of arguments, none of them given twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from afterword.config import BUILT_IN, TrainConfig, resolve
from afterword.errors import ConfigError
from afterword.learn.parts.schedules import Linear
from afterword.learn.parts.teachers import BASE, EMA
from afterword.learn.recipes import RECIPES, follow_ups, recipe, sdpo_interactions
from afterword.learn.recipes.from_config import SETTINGS, read_recipe, recipe_of
from afterword.learn.recipes.spec import kinds


def test_options_are_the_arguments_of_the_function(tmp_path: Path) -> None:
    file = tmp_path / "afterword.toml"
    file.write_text(
        '[train]\nrecipe = "sdpo-interactions"\nlearning_rate = 5e-4\n'
        '[train.options]\nbeyond = 0.25\nteacher = "base"\nmax_hindsight = 64\nbatch = 2\n'
    )
    flags: dict[str, tuple[Any, str]] = {
        "train.options.schedule": ("linear:warmup=1", "--set"),
        "train.options.hold": ("0.3", "--set"),
        "train.options.batch": ("8", "--set"),
    }
    settings = resolve(BUILT_IN, file=file, flags=flags).get(TrainConfig)
    made = sdpo_interactions(
        beyond=0.25, hold=0.3, teacher=BASE, schedule=Linear(warmup=1), lr=5e-4, max_hindsight=64, batch=8
    )
    assert recipe_of(settings) == made


def test_no_options_and_no_settings_are_the_recipe() -> None:
    assert recipe_of(TrainConfig()) == recipe("follow-ups") == follow_ups()
    assert recipe_of(TrainConfig(off_policy=True)).include_off_policy
    assert recipe_of(TrainConfig(recipe="sft", revise="target")).include_off_policy


def test_settings_of_train_are_options_too_but_not_both() -> None:
    assert recipe_of(TrainConfig(options={"epochs": 3, "lr": 1e-4})) == recipe("follow-ups", epochs=3, lr=1e-4)
    assert recipe_of(TrainConfig(teacher="ema:0.1")).terms[0].teacher == EMA(rate=0.1)
    with pytest.raises(
        ConfigError, match=r"train.learning_rate=0.1 and train.options.lr=0.2 are one setting: leave one"
    ):
        recipe_of(TrainConfig(learning_rate=0.1, options={"lr": 0.2}))
    with pytest.raises(ConfigError, match=r"is not an option: write train.off_policy"):
        recipe_of(TrainConfig(options={"include_off_policy": True}))


def test_renamed_options_are_read_with_a_warning() -> None:
    with pytest.warns(FutureWarning, match="passes is now called epochs"):
        assert recipe_of(TrainConfig(options={"passes": 3})).epochs == 3
    with pytest.warns(FutureWarning, match="answers is now called num_generations"):
        assert read_recipe(TrainConfig(recipe="grpo", verifier="a:b", options={"answers": 3})).num_generations == 3
    with pytest.raises(ConfigError, match=r"train.epochs=2 and train.options.epochs=3 are one setting"):
        recipe_of(TrainConfig(epochs=2, options={"passes": 3}))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"beyon": 0.25}, "recipe 'follow-ups' takes no 'beyon': did you mean 'beyond'.* anchor, batch"),
        ({"k": 3}, "takes no 'k'"),
        ({"beyond": "far"}, "beyond='far' must be a number from 0 to 9; leave it out for 0.25"),
        ({"beyond": 0.2, "contrast": 0.2}, "takes no 'contrast'"),
        ({"batch": [4]}, r"batch=\[4\] must be a whole number"),
        ({"teacher": {"ema": 0.1}}, "must be one of start, base"),
        ({"max_hindsight": 0}, "max_hindsight=0 must be a whole number of at least 1"),
    ],
)  # fmt: skip
def test_what_the_recipe_does_not_take_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        recipe_of(TrainConfig(options=options))


def test_every_setting_that_stands_for_an_argument_is_one() -> None:
    fields = TrainConfig.__dataclass_fields__
    taken = {*kinds(RECIPES["opcd"]), *kinds(RECIPES["gkd"]), "context", "template", "template_praise"}
    assert {name for name in SETTINGS.values() if name not in fields} == set()
    assert set(SETTINGS) - taken == set()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (TrainConfig(revise="target"), r"imitates revisions off-policy.*--recipe sft"),
        (TrainConfig(recipe="sft", revise="context"), r"has none that reads.*use follow-ups"),
        (TrainConfig(recipe="grpo", verifier="no.such:function"), r"cannot be imported .*package\.module:function"),
        (TrainConfig(recipe="grpo", verifier="math:pi"), r"is 3\.14.*, not a function"),
        (TrainConfig(recipe="gkd"), r"train\.teacher"),
    ],
)
def test_a_configured_recipe_is_ready_to_run_or_rejected(settings: TrainConfig, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        recipe_of(settings)


def test_revisions_go_with_recipes_that_use_them() -> None:
    recipe_of(TrainConfig(revise="context"))
    recipe_of(TrainConfig(recipe="sft", revise="target"))
