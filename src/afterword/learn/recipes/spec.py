"""Reads and writes parts in short words, as a settings file has them: `ema:0.01`, `linear:warmup=10`, `jsd:0.5`.

A part is its name, after a colon its first field, and any field as `name=value`; several have commas between them. Owns
the names of the parts that a recipe's argument can take, both ways; valid values are annotated at the parts.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_type_hints

from afterword.errors import ConfigError
from afterword.learn.parts import divergences, schedules, teachers, weights
from afterword.learn.parts.contexts import CONTEXTS, Context
from afterword.learn.parts.fields import Rank, allowed, shown
from afterword.learn.parts.generation import Generation
from afterword.learn.recipes.recipe import Lora, Recipe

SLOTS: dict[Any, Mapping[str, Any]] = {
    teachers.Teacher: {
        "start": teachers.START,
        "base": teachers.BASE,
        "live": teachers.LIVE,
        "ema": teachers.EMA,
        "trust": teachers.TrustRegion,
        "copy": teachers.Copy,
        "released": teachers.Released,
        "external": teachers.External,
    },
    divergences.Estimator: {
        "forward-kl": divergences.ForwardKL,
        "reverse-kl": divergences.ReverseKL,
        "jsd": divergences.JSD,
        "skew-forward-kl": divergences.SkewForwardKL,
        "skew-reverse-kl": divergences.SkewReverseKL,
        "policy-gradient": divergences.PolicyGradient,
        "k1": divergences.K1,
        "k2": divergences.K2,
        "k3": divergences.K3,
        "nll": divergences.NegativeLogLikelihood,
    },
    schedules.Schedule: {
        "constant": schedules.Constant,
        "linear": schedules.Linear,
        "cosine": schedules.Cosine,
        "switch": schedules.Switch,
        "anneal": schedules.Anneal,
        "on-metric": schedules.OnMetric,
    },
    weights.Reduction: {
        "sequence-mean": weights.SEQUENCE_MEAN,
        "token-mean": weights.TOKEN_MEAN,
        "weight-mean": weights.WEIGHT_MEAN,
    },
    Context: CONTEXTS,
    Generation: {"answers": Generation},
    Lora: {"lora": Lora},
}
"""Kind of argument -> part by name. A class takes its fields after a colon."""
OLD_ARGUMENTS = {"average": "reduction", "passes": "epochs", "answers": "num_generations"}
_OLD_WORDS: dict[Any, Mapping[str, str]] = {
    teachers.Teacher: {"average": "ema"},
    weights.Reduction: {"per-sequence": "sequence-mean", "per-token": "token-mean"},
}
"""Names of earlier versions, read for one more release."""


@dataclass(frozen=True, slots=True)
class Option:
    """An argument that a recipe takes."""

    name: str
    default: str
    takes: str
    """The parts of a slot, each with its fields after a colon; else the valid values in words."""


@cache
def kinds(make: Callable[..., Recipe]) -> dict[str, Any]:
    """The annotation of each argument of a recipe: its own, and the fields of `Recipe`."""
    own = {p.name for p in inspect.signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY}
    of_all = {f.name for f in dataclasses.fields(Recipe)} - {"name", "terms", "extra_generations"}
    hints = get_type_hints(Recipe, include_extras=True) | get_type_hints(make, include_extras=True)
    return {name: hints[name] for name in (*(n for n in hints if n in own), *sorted(of_all))}


def read(recipe: str, make: Callable[..., Recipe], given: Mapping[str, Any]) -> dict[str, Any]:
    """Read the parts in `given` from words.

    Args:
        recipe: Name of the recipe, for messages.
        make: Its function.
        given: Arguments; plain values pass through.

    Raises:
        ConfigError: A part is unknown or its fields are invalid; names the argument, the word and the nearest part.
    """
    wanted, found = kinds(make), dict(given)
    for key, value in given.items():
        if (names := _slot(wanted.get(key))) is None:
            continue
        if isinstance(value, str):
            found[key] = _part(recipe, key, value, names)
        elif isinstance(value, type) or not isinstance(value, wanted[key]):
            forms = ", ".join(map(_form, names.items()))
            raise ConfigError(f"recipe {recipe!r}: {key}={shown(value)} must be one of {forms}", param=key)
    return found


def generation_changes(recipe: str, text: str) -> dict[str, Any]:
    """The fields of a recipe's own generation that `answers:...` changes.

    Raises:
        ConfigError: The word or a field is unknown.
    """
    names = SLOTS[Generation]
    _part(recipe, "generation", text, names)
    name, _, rest = text.partition(":")
    where = f"recipe {recipe!r}: generation={shown(text)}"
    return _values(where, "generation", name, rest, _fields(Generation))


def rewordable(context: Context) -> bool:
    """True for a context with configurable place and words."""
    return context.privileged and context.where != "continue"


def _slot(kind: Any) -> Mapping[str, Any] | None:
    """The names of the parts of a kind, None for a plain value."""
    return SLOTS.get(kind) if isinstance(kind, type) else None


def current(make: Callable[..., Recipe], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` with arguments and parts under their present names; a FutureWarning names those that were renamed."""
    wanted, found = kinds(make), {}
    for key, value in given.items():
        name = OLD_ARGUMENTS.get(key, key)
        if name != key and name in wanted:
            _renamed(key, name)
            key = name
        word, colon, rest = value.partition(":") if isinstance(value, str) else ("", "", "")
        kind = wanted.get(key)
        old = _OLD_WORDS.get(kind, {}) if isinstance(kind, type) else {}
        if (new := old.get(word)) is not None:
            _renamed(f"{key}={word}", f"{key}={new}")
            value = f"{new}{colon}{rest}"
        found[key] = value
    return found


def _renamed(old: str, new: str) -> None:
    warnings.warn(f"recipe option {old} is now called {new}: the old name ends with the next release", FutureWarning, 3)


def _part(recipe: str, key: str, text: str, names: Mapping[str, Any]) -> Any:
    name, colon, rest = text.partition(":")
    where = f"recipe {recipe!r}: {key}={shown(text)}"
    if name not in names:
        near = difflib.get_close_matches(name.lower(), names, n=1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"{where} is unknown: {guess}use one of {', '.join(map(_form, names.items()))}", param=key)
    part = names[name]
    if not isinstance(part, type):
        if colon:
            raise ConfigError(f"{where}: {name!r} takes nothing after it, write {name!r} alone", param=key)
        return part
    values = _values(where, key, name, rest, _fields(part))
    missing = [f.name for f in _fields(part) if f.name not in values and _needed(f)]
    if missing:
        raise ConfigError(f"{where} is missing {missing[0]}: write {_form((name, part))}", param=key)
    return part(**values)


def _values(where: str, key: str, name: str, rest: str, fields: tuple[dataclasses.Field[Any], ...]) -> dict[str, Any]:
    known, found = [f.name for f in fields], {}
    for place, piece in enumerate(rest.split(",") if rest else ()):
        field, equals, value = (x.strip() for x in piece.partition("="))
        if not (equals and field.isidentifier()):
            field, value = (known[0] if known and place == 0 else ""), piece.strip()
        if field not in known or field in found:
            takes = f"it takes {', '.join(known)} as NAME=VALUE, the first also alone" if known else "it takes nothing"
            raise ConfigError(f"{where}: {name!r} cannot take {piece.strip()!r}: {takes}", param=key)
        found[field] = _value(value)
    return found


def _value(text: str) -> Any:
    """A number, true, false or none where the text is one, the text itself otherwise."""
    try:
        value = None if text == "none" else json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, list | dict | str) else value


def _fields(part: type) -> tuple[dataclasses.Field[Any], ...]:
    """Fields that a user can set: a teacher's weights are its name, a generation's parts are the recipe's."""
    inner = ("context", "finish", "keep") if part is Generation else ()
    return tuple(f for f in dataclasses.fields(part) if f.name not in ("weights", *inner))


def _form(named: tuple[str, Any]) -> str:
    """The form in which a part is written."""
    name, part = named
    fields = _fields(part) if isinstance(part, type) else ()
    if not fields:
        return name
    return f"{name}:{','.join(f.name if _needed(f) else f'{f.name}={word(f.default)}' for f in fields)}"


def _needed(field: dataclasses.Field[Any]) -> bool:
    """Whether a user must set the field."""
    return field.default is dataclasses.MISSING or field.default == ""


def word(value: Any) -> str:
    """A value as it is written in the settings: a part by its short name."""
    for names in SLOTS.values():
        for name, part in names.items():
            if part is value or (not isinstance(part, type) and part == value):
                return name
            if isinstance(part, type) and type(value) is part:
                usual = {f.name: f.default for f in _fields(part)}
                changed = [f"{k}={word(getattr(value, k))}" for k, d in usual.items() if getattr(value, k) != d]
                return f"{name}:{','.join(changed)}" if changed else name
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def options(make: Callable[..., Recipe]) -> list[Option]:
    """Arguments of a recipe with default and valid values, its own first."""
    own = {p.name: p.default for p in inspect.signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY}
    made = make()
    found = [
        Option(name, word(own[name] if name in own else getattr(made, name)), _takes(kind))
        for name, kind in kinds(make).items()
    ]
    found.append(Option("rank", word(made.lora.rank), _takes(Rank)))
    read_by = [term.context for term in made.terms if rewordable(term.context)]
    if read_by:
        words = (("context", read_by[0].name, Context), ("template", "none", str), ("template_praise", "none", str))
        found += [Option(name, usual, _takes(kind)) for name, usual, kind in words]
    return found


def _takes(kind: Any) -> str:
    names = _slot(kind)
    return allowed(kind) if names is None else ", ".join(map(_form, names.items()))
