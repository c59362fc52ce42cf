"""What a number, a word or a part may be: in words, and as a test that never raises.

Owns single values alone. Which field has which bound is said where the field is known: `amounts`, and `takes` at a
recipe's own arguments.
"""

from __future__ import annotations

import inspect
import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from afterword.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Bound:
    """`words` complete "must be ..."."""

    words: str
    fits: Callable[[Any], bool]


def number(value: Any) -> bool:
    """A finite number; true and false are none."""
    return real(value) and math.isfinite(value)


def real(value: Any) -> bool:
    """A number, infinity too, that a float can hold; NaN is none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return not math.isnan(float(value))
    except OverflowError:
        return False


def integer(value: Any) -> bool:
    """A whole number of the type that counts."""
    return isinstance(value, int) and not isinstance(value, bool)


def one_of(*known: str) -> Bound:
    """One of these words."""
    return Bound(f"one of {', '.join(known)}", lambda x: isinstance(x, str) and x in known)


def up_to(most: float, *, least: float | None = None) -> Bound:
    """Numbers above 0, or from `least`, to `most`."""
    if least is None:
        return Bound(f"a number above 0 and at most {most:g}", lambda x: number(x) and 0 < x <= most)
    return Bound(f"a number from {least:g} to {most:g}", lambda x: number(x) and least <= x <= most)


def counts(least: int, most: int | None = None) -> Bound:
    """Whole numbers of at least `least`."""
    top = "" if most is None else f" and at most {most}"
    return Bound(
        f"a whole number of at least {least}{top}",
        lambda x: integer(x) and x >= least and (most is None or x <= most),
    )


def a_part(kind: Any, words: str) -> Bound:
    """A part of that slot."""
    return Bound(words, lambda x: isinstance(x, kind) and not isinstance(x, type))


def optional(bound: Bound) -> Bound:
    """None, or what `bound` says."""
    return Bound(f"None or {bound.words}", lambda x: x is None or bound.fits(x))


POSITIVE = Bound("a number above 0", lambda x: number(x) and x > 0)
NOT_NEGATIVE = Bound("a number of at least 0", lambda x: number(x) and x >= 0)
NUMBER = Bound("a finite number", number)
SHARE = Bound("a share above 0 and at most 1", lambda x: number(x) and 0 < x <= 1)
INSIDE = Bound("a share above 0 and below 1", lambda x: number(x) and 0 < x < 1)
NAME = optional(Bound("text", lambda x: isinstance(x, str)))


def shown(value: Any) -> str:
    """A value for a message, never longer than a line."""
    return repr(value) if isinstance(value, float | bool) else reprlib.repr(value)


def refuse(recipe: str, bounds: Mapping[str, Bound], given: Mapping[str, Any], advice: str = "leave it out") -> None:
    """ConfigError for the first of `given` that is not what it may be: its name, its value, the bound, what to do."""
    for name, bound in bounds.items():
        if name in given and not bound.fits(given[name]):
            raise ConfigError(
                f"recipe {recipe!r}: {name}={shown(given[name])} must be {bound.words}; {advice}", param=name
            )


def takes(**bounds: Bound) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A recipe whose own arguments are looked at before it is composed.

    ConfigError names the argument, its value, what it may be and the default.
    """

    def wrap(make: Callable[P, R]) -> Callable[P, R]:
        @wraps(make)
        def checked(*args: P.args, **settings: P.kwargs) -> R:
            for name, bound in bounds.items():
                usual = inspect.signature(make).parameters[name].default
                refuse(make.__name__.replace("_", "-"), {name: bound}, settings, f"leave it out for {shown(usual)}")
            return make(*args, **settings)

        return checked

    return wrap
