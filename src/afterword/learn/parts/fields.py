"""Valid values for each recipe field: types for annotations, and the check that reads them.

A part annotates its fields (`rate: Share`), a recipe its arguments. Constraints between several parts belong to
`recipes.validate` and `loss_stage.Distance`.
"""

from __future__ import annotations

import dataclasses
import inspect
import operator
import reprlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial, reduce, wraps
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError

from afterword.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")

Share = Annotated[float, Field(gt=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Epochs = Annotated[int, Field(ge=0, le=1000)]
Rank = Annotated[int, Field(ge=1, le=1024)]
TermScale = Annotated[float, Field(gt=0, le=1000)]
"""Factor of a term in the objective."""
TermScaleOrZero = Annotated[float, Field(ge=0, le=1000)]
"""The same for a term that a recipe leaves out at 0."""
SkippedTokens = Annotated[int, Field(ge=0, le=100_000)]
Entropy = Annotated[float, Field(ge=0, le=12)]
"""Nats. No entropy exceeds the logarithm of the vocabulary; 12 nats are 160,000 tokens."""

_SCALARS = {float: "a number", int: "a whole number", bool: "true or false", str: "text", NoneType: "None"}
_STRICT = ConfigDict(strict=True)
_RANGE_ERRORS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number"}


class Fault(NamedTuple):
    """One invalid value."""

    message: str
    wrong_type: bool
    """True for a value of another type, False for one out of range."""


def faults(part: Any) -> Iterator[Fault]:
    """Every invalid field of `part` and of the parts in it."""
    if isinstance(part, tuple):
        for element in part:
            yield from faults(element)
    elif dataclasses.is_dataclass(part) and not isinstance(part, type):
        for name, (kind, adapter) in _fields(type(part)).items():
            value = getattr(part, name)
            if (fault := _fault(f"{type(part).__name__}.{name}", value, kind, adapter)) is not None:
                yield fault
            else:
                yield from faults(value)


def check_values(
    recipe: str, kinds: Mapping[str, Any], given: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> None:
    """Check arguments of a recipe by their annotations.

    Args:
        recipe: Name of the recipe, for the message.
        kinds: Annotation of each argument.
        given: Values to check; arguments without a value are skipped.
        defaults: Default of each argument, for the remedy.

    Raises:
        ConfigError: The first invalid value, with its argument, the valid range and the default.
    """
    for name, kind in kinds.items():
        if name in given and (fault := _fault(name, given[name], kind, _adapter(kind))) is not None:
            remedy = f"leave it out for {shown(defaults[name])}" if defaults else "leave it out"
            raise ConfigError(f"recipe {recipe!r}: {fault.message}; {remedy}", param=name)


def method(make: Callable[P, R]) -> Callable[P, R]:
    """Decorate a recipe: its own arguments are checked by their annotations before it is composed."""
    defaults = {p.name: p.default for p in inspect.signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY}

    @wraps(make)
    def checked(*args: P.args, **settings: P.kwargs) -> R:
        hints = get_type_hints(make, include_extras=True)
        check_values(make.__name__.replace("_", "-"), {name: hints[name] for name in defaults}, settings, defaults)
        return make(*args, **settings)

    return checked


def allowed(kind: Any) -> str:
    """The valid values of an annotation in words, as they complete "must be"."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _range(allowed(inner[0]), inner[1])
    if origin in (Union, UnionType):
        return " or ".join(map(allowed, inner))
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple:
        return f"a tuple, each element {allowed(inner[0])}"
    return _SCALARS.get(kind) or f"a part of the kind {kind.__name__}"


def shown(value: Any) -> str:
    """A value for a message, never longer than a line."""
    return repr(value) if isinstance(value, float | bool) else reprlib.repr(value)


def _range(words: str, field: Any) -> str:
    """`words` with the bounds of a pydantic field, and its description in brackets."""
    pairs = ((name, getattr(bound, name, None)) for bound in field.metadata for name in _BOUND_WORDS)
    bounds = {name: value for name, value in pairs if value is not None}
    if bounds.keys() == {"ge", "le"}:
        words += f" from {bounds['ge']} to {bounds['le']}"
    elif bounds:
        words += " " + " and ".join(_BOUND_WORDS[name].format(value) for name, value in bounds.items())
    else:
        words = words.replace("a number", "a finite number")
    return f"{words} ({field.description})" if field.description else words


_BOUND_WORDS = {"gt": "above {}", "ge": "of at least {}", "lt": "below {}", "le": "at most {}"}


def _fault(name: str, value: Any, kind: Any, adapter: TypeAdapter[Any]) -> Fault | None:
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        wrong_type = all(one["type"] not in _RANGE_ERRORS for one in error.errors(include_url=False))
        return Fault(f"{name}={shown(value)} must be {allowed(kind)}", wrong_type)
    return None


@cache
def _fields(part: type) -> dict[str, tuple[Any, TypeAdapter[Any]]]:
    hints = get_type_hints(part, include_extras=True)
    return {field.name: (hints[field.name], _adapter(hints[field.name])) for field in dataclasses.fields(part)}


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(_by_instance(kind), config=_STRICT)


def _by_instance(kind: Any) -> Any:
    """The annotation with parts checked by isinstance alone: pydantic would rebuild dataclasses and protocols."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return Annotated[_by_instance(inner[0]), *inner[1:]]
    if origin in (Union, UnionType):
        return reduce(operator.or_, map(_by_instance, inner))
    if origin is tuple:
        return tuple[tuple(one if one is Ellipsis else _by_instance(one) for one in inner)]  # type: ignore[misc]
    if isinstance(kind, type) and kind not in _SCALARS:
        return Annotated[Any, PlainValidator(partial(_instance, kind))]
    return kind


def _instance(kind: type, value: Any) -> Any:
    if isinstance(value, type) or not isinstance(value, kind):  # a class has the attributes of a protocol, too
        raise ValueError("another kind of part")
    return value
