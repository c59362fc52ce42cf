"""What each number and word of a part may be: one table, read over every part of a recipe.

Owns bounds that concern one field alone. What parts say of each other is in `validate` and `distances`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from afterword.learn.recipes import Lora, Recipe
from afterword.learn.schedules import METRICS, OnMetric
from afterword.learn.supports import TopK
from afterword.learn.teachers import Average
from afterword.learn.terms import Term
from afterword.learn.updates import PPOClip, Truncated
from afterword.learn.weights import ChangedTokens, ImportanceRatio, Position, Prefix, Staleness, TopEntropy

Bound = tuple[str, Callable[[Any], bool]]
"""What a value has to be, in words and as a test."""


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _one_of(*known: str) -> Bound:
    return f"one of {', '.join(known)}", lambda x: x in known


_POSITIVE: Bound = "a number above 0", lambda x: _number(x) and x > 0
_NOT_NEGATIVE: Bound = "a number of at least 0", lambda x: _number(x) and x >= 0
_WHOLE: Bound = "a whole number", _integer
_COUNT: Bound = "a whole number of at least 1", lambda x: _integer(x) and x >= 1
_SHARE: Bound = "a share above 0 and at most 1", lambda x: _number(x) and 0 < x <= 1

_COUNTED = ("batch", "answers", "passes", "fresh", "micro_tokens", "max_tokens", "max_hindsight", "max_fresh")
_BOUNDS: dict[type, dict[str, Bound]] = {
    Recipe: {
        **dict.fromkeys(_COUNTED, _WHOLE),
        "weight_decay": _NOT_NEGATIVE,
        "redact": _one_of("rules", "presidio", "off"),
    },
    Lora: {"rank": _WHOLE, "alpha": _POSITIVE},
    Term: {"scale": ("finite", lambda x: not math.isinf(x)), "skip_first": _WHOLE},
    Average: {"rank": ("None or a whole number of at least 1", lambda x: x is None or (_integer(x) and x >= 1))},
    OnMetric: {"metric": _one_of(*METRICS), "window": _COUNT},
    Staleness: {"half_life": _POSITIVE},
    Position: {"half_life": _POSITIVE},
    Prefix: {"tokens": _COUNT},
    TopEntropy: {"share": _SHARE},
    ChangedTokens: {"boost": _POSITIVE},
    ImportanceRatio: {"cap": _POSITIVE},
    Truncated: {"cap": _POSITIVE},
    PPOClip: {"dual": ("None or a number above 1", lambda x: x is None or (_number(x) and x > 1))},
    TopK: {"of": _one_of("student", "teacher", "both"), "remainder": _one_of("tail", "renormalise", "teacher")},
}


def out_of_bounds(part: Any) -> Iterator[str]:
    """Every field of `part`, and of the parts in it, that is not what it may be, a sentence each."""
    if isinstance(part, tuple):
        for one in part:
            yield from out_of_bounds(one)
    elif dataclasses.is_dataclass(part) and not isinstance(part, type):
        for name, (words, fits) in _BOUNDS.get(type(part), {}).items():
            if not fits(value := getattr(part, name)):
                yield f"{type(part).__name__}.{name}={value!r} must be {words}"
        for field in dataclasses.fields(part):
            yield from out_of_bounds(getattr(part, field.name))
