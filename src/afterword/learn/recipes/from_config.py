"""The recipe that `[train]` asks for: its own settings, and `[train.options]` for every other argument of the recipe.

Owns the mapping of settings to arguments. `recipe_of` is the one place where a configured recipe is checked.
"""

from __future__ import annotations

from afterword.config import TrainConfig
from afterword.errors import ConfigError
from afterword.learn.recipes import Recipe, recipe
from afterword.learn.recipes.spec import OLD_ARGUMENTS
from afterword.learn.recipes.validate import check_runnable

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
    """The recipe that the configuration asks for, ready to run.

    Every command that reads `[train]` calls this function; nothing else checks its recipe.

    Raises:
        ConfigError: An option is unknown or set twice, the recipe cannot be trained, its verifier cannot be imported,
            or `train.revise` does not go with it.
    """
    made = read_recipe(settings)
    check_runnable(made)
    _check_revision(settings.revise, made)
    return made


def read_recipe(settings: TrainConfig) -> Recipe:
    """The recipe by its name with its options, not checked as a whole.

    Raises:
        ConfigError: An option is unknown or set twice.
    """
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


def _check_revision(mode: str, recipe: Recipe) -> None:
    """ConfigError when revisions are to be imitated by a recipe that has a teacher, or shown where none reads."""
    taught = any(term.teacher is not None and term.context.privileged for term in recipe.terms)
    if mode == "target" and any(term.teacher is not None for term in recipe.terms):
        raise ConfigError(
            f"train.revise = 'target' imitates revisions off-policy, but {recipe.name!r} learns from a teacher: use "
            "--recipe sft, or train.revise = 'context'",
            param="train.revise",
        )
    if mode == "context" and not taught:
        raise ConfigError(
            f"train.revise = 'context' shows revisions to a teacher, but {recipe.name!r} has none that reads: "
            "use follow-ups, or train.revise = 'target' with sft",
            param="train.revise",
        )
