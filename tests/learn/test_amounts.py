"""What loads and would crash later, or train nothing, is refused at load."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from afterword.errors import ConfigError
from afterword.learn.contexts import CONTEXTS
from afterword.learn.divergences import FORWARD_KL, PolicyGradient
from afterword.learn.recipes import Lora, Recipe, recipe
from afterword.learn.schedules import METRICS, Linear, OnMetric
from afterword.learn.supports import TopK
from afterword.learn.targets import Extrapolation
from afterword.learn.teachers import START, Average, External, Released
from afterword.learn.terms import Term
from afterword.learn.updates import PPOClip, Truncated
from afterword.learn.validate import validate
from afterword.learn.weights import ChangedTokens, ImportanceRatio, Position, Prefix, Staleness
from afterword.train.metrics import StepMetrics

AWAY: dict[str, Any] = {"target": Extrapolation(1.2)}
SAMPLED: dict[str, Any] = {"estimator": PolicyGradient()}


def single(settings: dict[str, Any], changes: dict[str, Any]) -> Recipe:
    named: dict[str, Any] = {"name": "t", "estimator": FORWARD_KL, "teacher": START, "context": CONTEXTS["appended"]}
    return Recipe(name="x", terms=(Term(**{**named, **changes}),), **settings)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"target_schedule": Linear()}, "no beta"),
        ({**AWAY, "reference": START, "reference_context": CONTEXTS["appended"]}, "cancels"),
        ({**AWAY, "reference": External()}, "train.teacher"),
        ({**AWAY, "reference": Released()}, "train.teacher"),
        ({**AWAY, "reference": Average(rate=5.0)}, "rate of an average"),
        ({"schedule": OnMetric("entropy_studnet", 1.0)}, "metric='entropy_studnet' must be one of"),
        ({"weights": (Staleness(0.0),)}, "half_life=0.0"),
        ({"weights": (Position(0.0),)}, "half_life=0.0"),
        ({"weights": (ImportanceRatio(cap=-1.0),)}, "cap=-1.0"),
        ({"weights": (ChangedTokens(boost=-1.0),)}, "boost=-1.0"),
        ({"masks": (Prefix(0),)}, "tokens=0"),
        ({**SAMPLED, "update": Truncated(cap=0.0)}, "cap=0.0"),
        ({**SAMPLED, "update": PPOClip(dual=0.5)}, "dual=0.5"),
        ({**SAMPLED, "update": Truncated(), "weights": (ImportanceRatio(),)}, "leave out ImportanceRatio"),
        ({"scale": float("inf")}, "scale=inf"),
        ({"support": TopK(8, of="studnet")}, "of='studnet' must be one of"),  # type: ignore[arg-type]
        ({"teacher": Average(rank=0)}, "rank=0"),
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
        ({"schedule": OnMetric("nope", 1.0)}, "metric='nope'"),
    ],
)
def test_settings_out_of_bounds_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        validate(single(settings, {}))


def test_groups_need_answers_written_anew() -> None:
    with pytest.raises(ConfigError, match="set fresh to 1"):
        validate(dataclasses.replace(recipe("grpo", verifier="a:b"), passes=1, fresh=0))


def test_a_schedule_follows_a_metric_that_is_not_measured_at_every_step() -> None:
    past = [SimpleNamespace(drift=value) for value in (None, 3.0, None, 3.0, None)]
    follow = OnMetric("drift", 1.0, above=True, window=2)
    assert follow(5, 10, past) == 0.0 and follow(3, 10, past[:3]) == 1.0


def test_schedules_follow_metrics_that_there_are() -> None:
    assert set(METRICS) <= {f.name for f in dataclasses.fields(StepMetrics)}
