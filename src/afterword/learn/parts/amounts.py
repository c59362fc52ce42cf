"""What each number and word of a part may be: one table, read over every part of a recipe.

Owns bounds that concern one field alone. What parts say of each other is in `validate` and `distances`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from afterword.learn.loss.terms import Term
from afterword.learn.parts.advantages import PPOClip, ReturnToGo, Truncated
from afterword.learn.parts.bounds import (
    INSIDE,
    NOT_NEGATIVE,
    NUMBER,
    POSITIVE,
    SHARE,
    Bound,
    counts,
    integer,
    one_of,
    optional,
    real,
    shown,
    up_to,
)
from afterword.learn.parts.contexts import Context
from afterword.learn.parts.divergences import PolicyGradient
from afterword.learn.parts.schedules import METRICS, Constant, Cosine, Linear, OnMetric, Switch
from afterword.learn.parts.supports import TopK
from afterword.learn.parts.targets import Extrapolation
from afterword.learn.parts.teachers import EMA, Copy, TrustRegion
from afterword.learn.parts.weights import (
    Cap,
    ChangedTokens,
    EntropyGate,
    ImportanceRatio,
    LeastRatio,
    Position,
    Prefix,
    Staleness,
    TopEntropy,
)
from afterword.learn.recipes import Lora, Recipe

MOST_NATS = 12.0
"""No model's entropy is above the log of its vocabulary; 12 nats are 160,000 tokens."""
_FALLS = {"warmup": counts(0), "floor": up_to(1, least=0)}
_BOUNDS: dict[type, dict[str, Bound]] = {
    Recipe: {
        **dict.fromkeys(("batch", "micro_tokens", "max_tokens", "max_hindsight", "max_fresh"), counts(1)),
        **dict.fromkeys(("epochs", "fresh"), counts(0, 1000)),
        "num_generations": counts(1, 1024),
        "lr": up_to(1, least=0),
        "max_grad_norm": Bound("a number above 0", lambda x: x > 0),
        "weight_decay": up_to(1, least=0),
        "redact": one_of("rules", "presidio", "off"),
        "dtype": one_of("bfloat16", "float32", "auto"),
    },
    Context: {"together": counts(1, 64)},
    Lora: {"rank": counts(1, 1024), "alpha": POSITIVE},
    Term: {"scale": up_to(1000), "skip_first": counts(0, 100_000), "clip": optional(POSITIVE)},
    EMA: {"rate": SHARE, "rank": optional(counts(1))},
    TrustRegion: {"rate": SHARE, "bound": POSITIVE},
    Copy: {"every": counts(1)},
    Constant: {"warmup": counts(0)},
    Linear: _FALLS,
    Cosine: _FALLS,
    Switch: {"at": up_to(1, least=0), "before": NOT_NEGATIVE, "after": NOT_NEGATIVE},
    OnMetric: {
        "metric": one_of(*METRICS),
        "window": counts(1),
        "threshold": NUMBER,
        "before": NOT_NEGATIVE,
        "after": NOT_NEGATIVE,
    },
    Staleness: {"half_life": POSITIVE},
    Position: {"half_life": POSITIVE},
    Prefix: {"tokens": counts(1, 1_000_000)},
    TopEntropy: {"share": SHARE},
    EntropyGate: {"threshold": up_to(MOST_NATS, least=0)},
    LeastRatio: {"low": NUMBER},
    ChangedTokens: {"boost": POSITIVE},
    ImportanceRatio: {"cap": POSITIVE},
    Truncated: {"cap": POSITIVE},
    Cap: {"most": POSITIVE},
    ReturnToGo: {"limit": POSITIVE},
    PolicyGradient: {
        "floor": optional(Bound("a number of at most 0 (a floor above 0 leaves no token to blame)", lambda x: x <= 0))
    },
    PPOClip: {"low": INSIDE, "high": POSITIVE, "dual": optional(Bound("a number above 1", lambda x: x > 1))},
    TopK: {"k": counts(1)},
    Extrapolation: {"scale": up_to(10)},
}


def misfits(part: Any) -> Iterator[str]:
    """Every field of `part`, and of the parts in it, that holds another kind of value than it is for, a sentence
    each. Nothing else can be asked of a recipe that has one."""
    if isinstance(part, tuple):
        for one in part:
            yield from misfits(one)
    elif dataclasses.is_dataclass(part) and not isinstance(part, type):
        for name, kind in _kinds(type(part)).items():
            if not _is(value := getattr(part, name), kind):
                yield f"{type(part).__name__}.{name}={shown(value)} must be {_words(kind)}"
            else:
                yield from misfits(value)


def out_of_bounds(part: Any) -> Iterator[str]:
    """Every field of `part`, and of the parts in it, that is not what it may be, a sentence each."""
    if isinstance(part, tuple):
        for one in part:
            yield from out_of_bounds(one)
    elif dataclasses.is_dataclass(part) and not isinstance(part, type):
        for name, bound in _BOUNDS.get(type(part), {}).items():
            if not bound.fits(value := getattr(part, name)):
                yield f"{type(part).__name__}.{name}={shown(value)} must be {bound.words}"
        for field in dataclasses.fields(part):
            yield from out_of_bounds(getattr(part, field.name))


@cache
def _kinds(part: type) -> dict[str, Any]:
    """The annotation of each field."""
    hints = get_type_hints(part)
    return {field.name: hints[field.name] for field in dataclasses.fields(part)}


def _is(value: Any, kind: Any) -> bool:
    if kind is float:
        return real(value)
    if kind is int:
        return integer(value)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_is(value, one) for one in inner)
    if origin is Literal:
        return any(value is one or (isinstance(value, str) and value == one) for one in inner)
    if origin is tuple:
        each = inner[:1] * len(value) if isinstance(value, tuple) and inner[-1] is Ellipsis else inner
        return isinstance(value, tuple) and len(value) == len(each) and all(map(_is, value, each))
    return isinstance(value, kind) and not isinstance(value, type)


def _words(kind: Any) -> str:
    known = {float: "a number", int: "a whole number", bool: "true or false", str: "text", NoneType: "None"}
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_words(one) for one in inner)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple:
        return f"a tuple, each of it {_words(inner[0])}"
    return known.get(kind) or f"a part of the kind {kind.__name__}"
