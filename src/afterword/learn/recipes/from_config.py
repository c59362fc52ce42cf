"""The recipe that `[train]` asks for: its own settings, and `[train.options]` for every other argument of the recipe.

Owns which setting stands for which argument, and that no argument is set twice. What a recipe takes is `recipes`.
"""

from __future__ import annotations

from afterword.config import TrainConfig
from afterword.errors import ConfigError
from afterword.learn.recipes import Recipe, recipe
from afterword.learn.recipes.spec import OLD_ARGUMENTS
from afterword.learn.recipes.validate import validate

SETTINGS = {
    "lr": "learning_rate",
    "include_off_policy": "off_policy",
    **{
        name: name
        for name in (
            "epochs", "fresh", "max_tokens", "context", "template", "template_praise", "experience", "teacher",
            "verifier", "redact",
        )
    },
}  # fmt: skip
"""Argument of a recipe -> the setting of `[train]` that stands for it."""


def recipe_of(settings: TrainConfig) -> Recipe:
    """The recipe that the configuration asks for. ConfigError for what it does not know or the recipe does not take,
    and for what is set twice."""
    given = {key: getattr(settings, name) for key, name in SETTINGS.items() if key != "include_off_policy"}
    given = {key: value for key, value in given.items() if value is not None}
    for name, value in settings.options.items():
        key = OLD_ARGUMENTS.get(name, name)
        if key == "include_off_policy":  # it also decides which interactions a run takes
            raise ConfigError(f"train.options.{key}={value!r} is not an option: write train.off_policy", param=key)
        if key in given:
            raise ConfigError(
                f"train.{SETTINGS[key]}={given[key]!r} and train.options.{key}={value!r} are one setting: leave one of "
                "them out",
                param=key,
            )
    imitated = settings.revise == "target"
    given["include_off_policy"] = settings.off_policy or imitated
    return recipe(settings.recipe, **given, **settings.options)


def checked(settings: TrainConfig) -> Recipe:
    """The same, refused when it cannot be trained."""
    made = recipe_of(settings)
    validate(made)
    return made
