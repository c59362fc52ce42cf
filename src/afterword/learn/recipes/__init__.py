"""Recipes: every method is a composition of parts, found by its name.

To add a method, write a short function in the module of its family, name it in RECIPES and give it a page in
docs/recipes. Nothing subclasses a trainer, nothing branches on a recipe's name.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any

from afterword.errors import ConfigError
from afterword.learn.parts.contexts import Context, context, with_hint, with_template, with_text
from afterword.learn.parts.fields import Rank, check_values
from afterword.learn.recipes.distil import (
    eopd,
    exopd,
    fast_opd,
    gkd,
    lightning_opd,
    minillm,
    mopd,
    opd,
    reopold,
    revisit_opd,
    stable_opd,
    veto,
)
from afterword.learn.recipes.episodes import (
    episode_grpo,
    episode_hindsight,
    episode_opd,
    episode_sdar,
    episode_sdpo,
    opid,
    skill_sd,
    tamtrl,
)
from afterword.learn.recipes.group import (
    dasd,
    essd,
    hdpo,
    kdrl,
    ra_opd,
    rlad,
    rlsd,
    rltf,
    sage,
    scope,
    sd_zero,
    sdar,
    srpo,
)
from afterword.learn.recipes.guided import erl, iterative_sft, npo, nurl, pi_distill, pope, varreason, vold
from afterword.learn.recipes.hindsight import (
    crisp,
    follow_ups,
    opcd,
    opsd,
    opsd_clipped,
    sdft,
    sdpo,
    sdpo_interactions,
    sdpo_interactions_offline,
    sdpo_interactions_online,
)
from afterword.learn.recipes.outcome import grpo, idft, sft
from afterword.learn.recipes.recipe import Lora, Recipe, describe
from afterword.learn.recipes.spec import current, generation_changes, kinds, read, rewordable

__all__ = ["RECIPES", "Lora", "Recipe", "describe", "follow_ups", "recipe", "sdpo_interactions", "sft"]

RECIPES: dict[str, Callable[..., Recipe]] = {
    "follow-ups": follow_ups,
    "sdpo-interactions": sdpo_interactions,
    "sdpo-interactions-offline": sdpo_interactions_offline,
    "sdpo-interactions-online": sdpo_interactions_online,
    "sdpo": sdpo,
    "sdft": sdft,
    "opsd": opsd,
    "opsd-clipped": opsd_clipped,
    "opcd": opcd,
    "gkd": gkd,
    "minillm": minillm,
    "opd": opd,
    "fast-opd": fast_opd,
    "lightning-opd": lightning_opd,
    "mopd": mopd,
    "eopd": eopd,
    "veto": veto,
    "stable-opd": stable_opd,
    "revisit-opd": revisit_opd,
    "exopd": exopd,
    "reopold": reopold,
    "crisp": crisp,
    "sft": sft,
    "idft": idft,
    "essd": essd,
    "dasd": dasd,
    "grpo": grpo,
    "kdrl": kdrl,
    "rlad": rlad,
    "rlsd": rlsd,
    "sdar": sdar,
    "srpo": srpo,
    "scope": scope,
    "hdpo": hdpo,
    "sage": sage,
    "rltf": rltf,
    "sd-zero": sd_zero,
    "ra-opd": ra_opd,
    "iterative-sft": iterative_sft,
    "varreason": varreason,
    "nurl": nurl,
    "pope": pope,
    "npo": npo,
    "erl": erl,
    "pi-distill": pi_distill,
    "vold": vold,
    "episode-grpo": episode_grpo,
    "episode-sdar": episode_sdar,
    "skill-sd": skill_sd,
    "opid": opid,
    "tamtrl": tamtrl,
    "episode-sdpo": episode_sdpo,
    "episode-opd": episode_opd,
    "episode-hindsight": episode_hindsight,
}
"""By the name that `train.recipe` takes."""

_WORDS = ("context", "template", "template_praise")
_KEYS: dict[str, Any] = {**dict.fromkeys(_WORDS, str | None), "rank": Rank}
"""What every recipe takes beside the fields of `Recipe` and its own arguments."""


def recipe(name: str, /, **overrides: Any) -> Recipe:
    """The recipe of that name with settings from a configuration.

    Any recipe takes the fields of `Recipe` but its terms (lr, epochs, batch ...), `rank`, `context` (a name), and
    `template` with `template_praise` (the user's own words around the hindsight); its function's own arguments come
    on top. A part may be spelled in words (`teacher="ema:0.01"`, see `spec`). Raises ConfigError for an unknown
    name, with the nearest, or an unknown key.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name.lower().replace("_", "-"), RECIPES, n=1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"unknown recipe {name!r}: {guess}use one of {', '.join(sorted(RECIPES))}", param="recipe")
    overrides = current(RECIPES[name], overrides)
    _known(name, overrides)
    check_values(name, _KEYS, overrides)
    options = read(name, RECIPES[name], {key: value for key, value in overrides.items() if key not in _WORDS})
    if "rank" in options and "lora" in options:
        raise ConfigError(f"recipe {name!r}: rank and lora both set the rank: omit one of them", param="rank")
    if "rank" in options:
        rank = options.pop("rank")
        options["lora"] = Lora(rank=rank, alpha=2.0 * rank)
    drawn = overrides.get("generation")
    if isinstance(drawn, str):  # the recipe's own generation with some of its numbers changed
        del options["generation"]
    made = RECIPES[name](**options)
    if isinstance(drawn, str):
        changed = dataclasses.replace(made.generation, **generation_changes(name, drawn))
        made = dataclasses.replace(made, generation=changed)
    words = {key: value for key, value in overrides.items() if key in _WORDS and value is not None}
    return _reworded(made, **words) if words else made


def _known(name: str, overrides: dict[str, Any]) -> None:
    known = sorted({*kinds(RECIPES[name]), *_KEYS})
    for key in overrides:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            guess = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"recipe {name!r} takes no {key!r}: {guess}it takes {', '.join(known)}", param=key)


def _reworded(
    made: Recipe, context: str | None = None, template: str | None = None, template_praise: str | None = None
) -> Recipe:
    """The same recipe with another context, or other words around the privileged text, in every term that has one."""
    if not any(rewordable(term.context) for term in made.terms):
        raise ConfigError(
            f"recipe {made.name!r} shows its teacher no hindsight: leave out context, template and template_praise",
            param="context",
        )
    if template is None and template_praise is not None:
        raise ConfigError("template_praise without template: give both", param="template_praise")

    def changed(old: Context) -> Context:
        if not rewordable(old):
            return old
        new = old if context is None else _named(context, old)
        return new if template is None else with_template(new, template, template_praise)

    terms = tuple(dataclasses.replace(term, context=changed(term.context)) for term in made.terms)
    return dataclasses.replace(made, terms=terms)


def _named(name: str, old: Context) -> Context:
    new = context(name) if old.text is None else with_text(context(name), old.text)
    return new if old.hint is None else with_hint(new, old.hint)
