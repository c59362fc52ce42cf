"""Which settings a later command would refuse, found without running it.

Owns the question; the sections check themselves when they are built, the recipe is held to what `train` asks, the
suites to what `evaluate` asks.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from afterword.cli.context import SECTIONS, Context
from afterword.config import EvaluateConfig, TrainConfig
from afterword.cycle import Settings, recipe_stage
from afterword.errors import AfterwordError


def faults(context: Context) -> list[AfterwordError]:
    """One error for each section, and for the recipe and the suites, that a later command would refuse."""
    checks: list[Callable[[], object]] = [partial(context.config.get, section) for section in SECTIONS.values()]
    changed = {key.partition(".")[0] for key, _, source in context.config.rows() if source != "default"}
    for section, check in (("train", _recipe), ("evaluate", _suites)):
        if section in changed:  # they import torch, and the vetted settings need no look
            checks.append(partial(check, context))
    found: dict[str, AfterwordError] = {}
    for check_one in checks:
        try:
            with suppress(ModuleNotFoundError):  # nothing runs without the packages: `doctor` names those missing
                check_one()
        except AfterwordError as error:
            found.setdefault(error.message, error)
    return list(found.values())


def _recipe(context: Context) -> None:
    recipe_stage(Settings(directory=context.dir, train=context.config.get(TrainConfig)))


def _suites(context: Context) -> None:
    from afterword.evaluate.run import chosen
    from afterword.evaluate.scoring.task_checks import check_of

    settings = context.config.get(EvaluateConfig)
    chosen(settings.suites)
    for check in settings.checks.values():
        check_of(check)
