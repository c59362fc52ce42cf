"""What loads and would crash later, or train nothing, is refused at load."""

from __future__ import annotations

import dataclasses
import inspect
import math
from types import SimpleNamespace, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from tests.learn.recipe_inputs import INPUTS

from afterword.errors import ConfigError
from afterword.learn.loss import terms
from afterword.learn.loss.terms import Term
from afterword.learn.parts import (
    advantages,
    anchors,
    contexts,
    divergences,
    generation,
    schedules,
    supports,
    targets,
    teachers,
    weights,
)
from afterword.learn.parts.advantages import PPOClip, Truncated
from afterword.learn.parts.contexts import CONTEXTS
from afterword.learn.parts.divergences import FORWARD_KL, PolicyGradient
from afterword.learn.parts.fields import Finite, Positive, Share, UnitInterval, allowed, faults
from afterword.learn.parts.schedules import Linear, Metric, OnMetric, Switch
from afterword.learn.parts.supports import TopK
from afterword.learn.parts.targets import Extrapolation
from afterword.learn.parts.teachers import EMA, START, External, Released
from afterword.learn.parts.weights import ChangedTokens, ImportanceRatio, LeastRatio, Position, Prefix, Staleness
from afterword.learn.recipes import RECIPES, Lora, Recipe, recipe
from afterword.learn.recipes.validate import advice, validate
from afterword.train.monitoring.metrics import StepMetrics

AWAY: dict[str, Any] = {"target": Extrapolation(1.2)}
SAMPLED: dict[str, Any] = {"estimator": PolicyGradient()}


def single(settings: dict[str, Any], changes: dict[str, Any]) -> Recipe:
    named: dict[str, Any] = {"name": "t", "estimator": FORWARD_KL, "teacher": START, "context": CONTEXTS["appended"]}
    return Recipe(name="x", terms=(Term(**{**named, **changes}),), **settings)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"context": dataclasses.replace(CONTEXTS["together"], together=0)}, "together=0 must be a whole number"),
        ({"schedules": (("target.beta", Linear()),)}, "leads to no number of the term"),
        ({**AWAY, "reference": START, "reference_context": CONTEXTS["appended"]}, "cancels"),
        ({**AWAY, "reference": External()}, "train.teacher"),
        ({**AWAY, "reference": Released()}, "train.teacher"),
        ({**AWAY, "reference": EMA(rate=5.0)}, "rate=5.0"),
        ({"schedule": OnMetric("entropy_studnet", 1.0)}, "metric='entropy_studnet' must be one of"),  # type: ignore[arg-type]
        ({"weights": (Staleness(0.0),)}, "half_life=0.0"),
        ({"weights": (Position(0.0),)}, "half_life=0.0"),
        ({"weights": (ImportanceRatio(cap=-1.0),)}, "cap=-1.0"),
        ({"weights": (ChangedTokens(boost=-1.0),)}, "boost=-1.0"),
        ({"masks": (Prefix(0),)}, "tokens=0"),
        ({**SAMPLED, "policy_clip": Truncated(cap=0.0)}, "cap=0.0"),
        ({**SAMPLED, "policy_clip": PPOClip(dual=0.5)}, "dual=0.5"),
        ({**SAMPLED, "policy_clip": Truncated(), "weights": (ImportanceRatio(),)}, "leave out ImportanceRatio"),
        ({"scale": float("inf")}, "scale=inf"),
        ({"support": TopK(8, of="studnet")}, "of='studnet' must be one of"),  # type: ignore[arg-type]
        ({"teacher": EMA(rank=0)}, "rank=0"),
    ],
)
def test_parts_out_of_bounds_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        validate(single({}, changes))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"lora": Lora(alpha=0.0)}, "alpha=0.0"),
        ({"lora": Lora(rank=1.5)}, "rank=1.5"),  # type: ignore[arg-type]
        ({"batch": 2.5}, "batch=2.5 must be a whole number"),
        ({"redact": "ruels"}, "redact='ruels' must be one of rules"),
        ({"schedule": OnMetric("nope", 1.0)}, "metric='nope'"),  # type: ignore[arg-type]
    ],
)
def test_settings_out_of_bounds_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        validate(single(settings, {}))


HOSTILE: tuple[Any, ...] = (
    0, 1, -1, 0.0, 2.5, -0.5, math.nan, math.inf, -math.inf, 10**400, 1e300, True, None, "x", "", b"x", [], {}, (),
    object(), Recipe,
)  # fmt: skip
NUMBERS = {
    ("sdpo-interactions", "skip_first"): {0, 1}, ("sdpo-interactions", "clip"): {1, 2.5, 1e300, None},
    ("sdpo-interactions", "anchor"): {0, 1, 2.5}, ("sdpo-interactions", "contrast"): {0, 1, 2.5},
    ("sdpo-interactions", "beyond"): {0, 1, 2.5},
    ("sdpo-interactions", "hold"): {0, 1, 2.5},
    **{("follow-ups", key): {0, 1, 2.5} for key in ("beyond", "hold", "anchor")},
    ("sdpo", "k"): {1, 10**400}, ("sdpo", "rate"): {1}, ("sdft", "rate"): {1}, ("sdft", "skip_first"): {0, 1},
    ("opsd-clipped", "clip"): {1, 2.5, 1e300}, ("opcd", "k"): {1, 10**400}, ("gkd", "beta"): {0, 1},
    ("eopd", "threshold"): {0, 1, 2.5}, ("veto", "beta"): {0, 1}, ("stable-opd", "gold"): {1, 2.5},
    ("stable-opd", "anchor"): {1, 2.5}, ("revisit-opd", "k"): {10**400}, ("exopd", "scale"): {1, 2.5},
    ("crisp", "every"): {1, 10**400}, ("essd", "temperature"): {1, 2.5}, ("essd", "top_p"): {1},
    ("essd", "top_k"): {0, 1, 10**400}, ("kdrl", "beta"): {1, 2.5}, ("rlad", "mix"): {0, 1}, ("rlsd", "mix"): {0, 1},
    ("rlsd", "bound"): set(), ("rlsd", "steps"): {1, 10**400}, ("sdar", "beta"): {0, 1, 2.5, 1e300},
    ("sdar", "scale"): {1, 2.5}, ("sdar", "anchor"): {1, 2.5}, ("srpo", "beta"): {0, 1, 2.5, 1e300},
    ("srpo", "k"): {1, 10**400}, ("srpo", "rate"): {1}, ("scope", "temperature"): {1, 2.5, 1e300},
    ("hdpo", "scale"): {1, 2.5}, ("hdpo", "k"): {10**400}, ("hdpo", "n"): {1}, ("sage", "n"): {1}, ("rltf", "n"): {1},
    ("sd-zero", "k"): {1, 10**400}, ("ra-opd", "tokens"): {1}, ("ra-opd", "rate"): {1},
    ("reopold", "blame"): set(), ("reopold", "share"): {1},
    ("reopold", "switch"): set(), ("episode-grpo", "discount"): {0, 1},
    **{(name, "anchor"): {0, 1, 2.5} for name in ("episode-grpo", "episode-sdar", "opid", "tamtrl")},
    ("episode-sdar", "beta"): {0, 1, 2.5, 1e300},
    **{(name, "scale"): {1, 2.5} for name in ("episode-sdar", "skill-sd", "episode-hindsight", "opid")},
    ("episode-sdpo", "k"): {1, 10**400}, ("episode-sdpo", "rate"): {1},
    ("episode-hindsight", "k"): {1, 10**400}, ("fast-opd", "horizon"): {1}, ("lightning-opd", "cap"): {1, 2.5, 1e300},
    ("mopd", "outcome"): {0, 1, 2.5}, ("idft", "beta"): {1, 2.5, 1e300}, ("idft", "warmup"): {0, 1},
    ("iterative-sft", "n"): {1}, ("varreason", "hold"): {0, 1, 2.5}, ("erl", "scale"): {1, 2.5},
    **{(name, "n"): {1} for name in ("varreason", "nurl", "pope", "npo", "erl")},
    ("pi-distill", "share"): set(), ("pi-distill", "beta"): {1, 2.5}, ("vold", "beta"): {1, 2.5},
}  # fmt: skip
"""Which of HOSTILE a recipe's own numbers may be."""
ALSO = {("mopd", "outcome"): {"verifier": INPUTS["grpo"]["verifier"]}}
"""What else has to be told where an argument is set."""
SWITCHES = {("episode-grpo", "decisions")}
"""Arguments that are true or false."""
OF_ALL = {
    "lr": {0, 1}, "epochs": {0, 1}, "fresh": {0, 1}, "num_generations": {1}, "rank": {1}, "batch": {1, 10**400},
    "weight_decay": {0, 1}, "max_grad_norm": {1, 2.5, math.inf, 1e300}, "micro_tokens": {1, None, 10**400},
    "max_tokens": {1, 10**400}, "max_hindsight": {1, 10**400}, "max_fresh": {1, 10**400}, "lora": set(),
    "schedule": set(), "checkpointing": {True}, "include_off_policy": {True}, "redact": set(), "dtype": set(),
    "scored": set(), "generation": set(), "data": set(),
    "context": {None}, "template": {None}, "template_praise": {None}, "verifier": {None, "x", ""},
}  # fmt: skip


def arguments(name: str) -> list[str]:
    parameters = inspect.signature(RECIPES[name]).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


def taken(name: str, key: str) -> list[Any]:
    """Which of HOSTILE are taken; whatever is not is refused with its value and what it may be."""
    found = []
    for value in HOSTILE:
        try:
            made = recipe(name, **{**INPUTS.get(name, {}), **ALSO.get((name, key), {}), key: value})
            validate(made)
            advice(made)
        except ConfigError as error:
            assert key in error.message and ("must be" in error.message or value in (None, "x", "")), error.message
        else:
            found.append(value)
    return found


@pytest.mark.parametrize(("name", "key"), [(name, key) for name in RECIPES for key in arguments(name)])
def test_no_value_of_a_recipes_own_argument_gets_past_or_crashes(name: str, key: str) -> None:
    found = taken(name, key)
    if (name, key) in NUMBERS:
        assert {type(x) for x in found}.isdisjoint({bool, str})
        assert set(found) == NUMBERS[name, key]
    elif (name, key) in SWITCHES:
        assert all(isinstance(x, bool) for x in found)
    else:  # a part or a text
        assert all(isinstance(x, str) for x in found)


@pytest.mark.parametrize("key", OF_ALL)
@pytest.mark.parametrize("name", ["sdpo-interactions", "gkd"])
def test_no_value_of_a_setting_gets_past_or_crashes(name: str, key: str) -> None:
    assert set(taken(name, key)) == OF_ALL[key]


@pytest.mark.parametrize("blame", [0, 1, -0.1, 0.0, 1.0])
def test_a_recipe_that_is_called_directly_names_the_argument_the_range_and_the_default(blame: float) -> None:
    with pytest.raises(ConfigError, match=rf"'reopold': blame={blame} must be a number above 0 and below 1; .* 0\.3"):
        RECIPES["reopold"](teacher="x", blame=blame)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"schedule": Switch(0.0, 1.0, 0.0)}, "is 0 throughout, so the term never counts"),
        ({"masks": (Prefix(2),), "skip_first": 2}, "leave no token: skip fewer"),
        ({"estimator": 5}, "Term.estimator=5 must be a part of the kind Estimator"),
        ({"weights": (LeastRatio,)}, "must be a tuple, each element a part of the kind Weight"),
        ({"weights": [LeastRatio(0.0)]}, "must be a tuple"),
        ({"support": TopK(1, remainder="renormalise")}, "the loss is 0: give k of 2"),
        ({"estimator": PolicyGradient(floor=math.nan)}, "floor=nan must be a number at most 0 or None"),
    ],
)
def test_terms_that_would_never_count_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        validate(single({}, changes))


def test_a_rate_that_is_0_throughout_is_refused_and_one_that_waits_for_a_metric_is_not() -> None:
    with pytest.raises(ConfigError, match="0 throughout, so nothing would be learned"):
        validate(single({"schedule": Switch(0.5, 0.0, 0.0)}, {}))
    validate(single({"schedule": OnMetric("drift", 1.0, above=True, before=0.0, after=1.0)}, {}))


def test_groups_need_answers_written_anew() -> None:
    with pytest.raises(ConfigError, match="set fresh to 1"):
        validate(dataclasses.replace(recipe("grpo", verifier="a:b"), epochs=1, fresh=0))


def test_a_schedule_follows_a_metric_that_is_not_measured_at_every_step() -> None:
    past = [SimpleNamespace(drift=value) for value in (None, 3.0, None, 3.0, None)]
    follow = OnMetric("drift", 1.0, above=True, window=2)
    assert follow(5, 10, past) == 0.0 and follow(3, 10, past[:3]) == 1.0


def test_schedules_follow_metrics_that_there_are() -> None:
    assert set(get_args(Metric)) <= {f.name for f in dataclasses.fields(StepMetrics)}


PARTS = [
    kind
    for module in (
        advantages,
        anchors,
        contexts,
        divergences,
        generation,
        schedules,
        supports,
        targets,
        teachers,
        weights,
        terms,
    )
    for kind in vars(module).values()
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and kind.__module__ == module.__name__
] + [Recipe, Lora]
WITHOUT_A_RANGE = {("Context", "version"), ("TeacherPrompt", "cut")}
"""Numbers that no user sets."""


@pytest.mark.parametrize("part", PARTS, ids=lambda kind: kind.__name__)
def test_every_number_of_a_part_has_a_range_and_every_default_is_in_it(part: type) -> None:
    hints = get_type_hints(part, include_extras=True)
    for field in dataclasses.fields(part):
        kinds = get_args(hints[field.name]) if get_origin(hints[field.name]) is UnionType else (hints[field.name],)
        if (part.__name__, field.name) not in WITHOUT_A_RANGE:
            assert int not in kinds and float not in kinds, f"annotate {part.__name__}.{field.name} with its range"
    if all(field.default is not dataclasses.MISSING for field in dataclasses.fields(part)):
        assert list(faults(part())) == []


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Share, "a number above 0 and at most 1"),
        (UnitInterval, "a number from 0 to 1"),
        (Positive | None, "a number above 0 or None"),
        (Finite, "a finite number"),
        (Literal["a", "b"], "one of a, b"),
        (tuple[str | None, ...], "a tuple, each element text or None"),
        (bool, "true or false"),
        (Lora, "a part of the kind Lora"),
    ],
)
def test_annotations_in_words(kind: Any, words: str) -> None:
    assert allowed(kind) == words
