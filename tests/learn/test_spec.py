"""Parts in short words: every name reads as its part and is written as it was read; what is no part is told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.learn.recipe_inputs import INPUTS

from afterword.errors import ConfigError
from afterword.learn.parts import divergences, schedules, teachers, weights
from afterword.learn.parts.contexts import CONTEXTS
from afterword.learn.parts.generation import STUDENT, Generation
from afterword.learn.recipes import RECIPES, Lora, recipe
from afterword.learn.recipes.spec import SLOTS, _value, options, read, word
from afterword.learn.recipes.validate import validate

DEFAULT = "sdpo-interactions"
DEFAULTS = {"teacher": teachers.START, "estimator": divergences.FORWARD_KL, "schedule": schedules.CONSTANT,
            "reduction": weights.SEQUENCE_MEAN, "lora": Lora(), "generation": STUDENT}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "text", "part"),
    [
        ("teacher", "start", teachers.START),
        ("teacher", "base", teachers.BASE),
        ("teacher", "live", teachers.LIVE),
        ("teacher", "ema", teachers.EMA()),
        ("teacher", "ema:0.01", teachers.EMA(rate=0.01)),
        ("teacher", "ema: rate = 0.01, rank=8", teachers.EMA(rate=0.01, rank=8)),
        ("teacher", "ema:0.01,rank=none", teachers.EMA(rate=0.01)),
        ("teacher", "trust:bound=0.2", teachers.TrustRegion(bound=0.2)),
        ("teacher", "copy:20", teachers.Copy(every=20)),
        ("teacher", "released:/home/a=b/adapter", teachers.Released(folder="/home/a=b/adapter")),
        ("teacher", r"released:C:\adapter", teachers.Released(folder=r"C:\adapter")),
        ("teacher", "external:org/model,dtype=float32", teachers.External(model="org/model", dtype="float32")),
        ("estimator", "forward-kl", divergences.FORWARD_KL),
        ("estimator", "reverse-kl", divergences.ReverseKL()),
        ("estimator", "jsd:0.3", divergences.JSD(0.3)),
        ("estimator", "skew-forward-kl:alpha=0.2", divergences.SkewForwardKL(0.2)),
        ("estimator", "skew-reverse-kl", divergences.SkewReverseKL()),
        ("estimator", "policy-gradient:floor=-1.5", divergences.PolicyGradient(floor=-1.5)),
        ("estimator", "policy-gradient:k2", divergences.PolicyGradient("k2")),
        ("estimator", "k1", divergences.K1()),
        ("estimator", "k2", divergences.K2()),
        ("estimator", "k3", divergences.K3()),
        ("estimator", "nll", divergences.NegativeLogLikelihood()),
        ("schedule", "constant:3", schedules.Constant(3)),
        ("schedule", "linear:warmup=2,floor=0.1", schedules.Linear(2, 0.1)),
        ("schedule", "cosine", schedules.Cosine()),
        ("schedule", "switch:0.5,after=0.2", schedules.Switch(0.5, after=0.2)),
        ("schedule", "on-metric:overlap,threshold=0.8,above=true", schedules.OnMetric("overlap", 0.8, above=True)),
        ("reduction", "token-mean", weights.TOKEN_MEAN),
        ("reduction", "sequence-mean", weights.SEQUENCE_MEAN),
        ("reduction", "weight-mean", weights.WEIGHT_MEAN),
        ("schedule", "anneal:50", schedules.Anneal(50)),
        ("generation", "answers:temperature=0.7,top_p=0.9", Generation(temperature=0.7, top_p=0.9)),
        ("where", "system", CONTEXTS["system"]),
        ("lora", "lora:rank=8,targets=.*(q_proj|v_proj)", Lora(rank=8, targets=".*(q_proj|v_proj)")),
    ],
)
def test_words_read_as_the_part(key: str, text: str, part: Any) -> None:
    found = read(DEFAULT, RECIPES[DEFAULT], {key: text, "lr": 0.1})
    assert found == {key: part, "lr": 0.1}
    assert read(DEFAULT, RECIPES[DEFAULT], {key: word(part)})[key] == part


def test_every_name_is_read_by_some_test() -> None:
    marks = getattr(test_words_read_as_the_part, "pytestmark")  # noqa: B009  mypy knows no mark on a function
    said = {text.partition(":")[0] for _, text, _ in marks[0].args[1]} | set(CONTEXTS)
    assert said == {name for names in SLOTS.values() for name in names}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"teacher": "eam"}, r"teacher='eam' is unknown: did you mean 'ema'\? use one of start, base"),
        ({"teacher": "EMA"}, "did you mean 'ema'"),
        ({"teacher": ""}, "is unknown: use one of"),
        ({"teacher": "start:1"}, "takes nothing after it, write 'start' alone"),
        ({"teacher": "ema:rte=1"}, r"'ema' cannot take 'rte=1': it takes rate, rank as NAME=VALUE"),
        ({"teacher": "ema:0.1,0.2"}, "cannot take '0.2'"),
        ({"teacher": "ema:0.1,rate=0.2"}, "cannot take 'rate=0.2'"),
        ({"teacher": "ema:weights=base"}, "cannot take 'weights=base'"),
        ({"teacher": "released"}, "is missing folder: write released:folder"),
        ({"estimator": "forward-kl:1"}, "it takes nothing"),
        ({"schedule": "switch:before=1"}, "is missing at: write switch:at,before=1.0,after=0.0"),
        ({"where": "blok"}, "did you mean 'block'"),
        ({"teacher": 3}, "teacher=3 must be one of start, base, live, ema:rate"),
        ({"rank": 4, "lora": "lora:8"}, "omit one of them"),
        ({"name": "x"}, "takes no 'name'"),
        ({"terms": "x"}, "takes no 'terms'"),
    ],
)  # fmt: skip
def test_what_is_no_part_is_told_with_what_is(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        recipe(DEFAULT, **given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"teacher": "ema:fast"}, "EMA.rate='fast' must be a number"),
        ({"teacher": "ema:2"}, "EMA.rate=2 must be a number above 0 and at most 1"),
        ({"teacher": "ema:NaN"}, "EMA.rate=nan must be"),
        ({"schedule": "linear:floor=3"}, "Linear.floor=3 must be a number from 0 to 1"),
        ({"estimator": "jsd:1"}, "use ForwardKL or ReverseKL there"),
        ({"estimator": "k1"}, "use PolicyGradient or K2"),
        ({"batch": "four"}, "Recipe.batch='four' must be a whole number"),
        ({"lora": "lora:0"}, "Lora.rank=0 must be"),
    ],
)
def test_values_in_words_are_held_to_the_same_bounds(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        validate(recipe(DEFAULT, **given))


@given(st.text(max_size=30), st.sampled_from(["teacher", "estimator", "schedule", "where", "reduction", "lora"]))
def test_any_text_is_a_part_or_refused(text: str, key: str) -> None:
    try:
        validate(recipe(DEFAULT, **{key: text}))
    except ConfigError as error:
        assert key in error.message or "cannot be trained" in error.message
    else:
        assert any(text.partition(":")[0] in names for names in SLOTS.values())


SLOT_ARGUMENTS = {*DEFAULTS, "where", "context"}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_option_set_to_its_own_default_changes_nothing(name: str) -> None:
    needs = INPUTS.get(name, {})
    usual = recipe(name, **needs)
    listed = options(RECIPES[name])
    assert {"lr", "batch", "max_hindsight", "schedule", "rank"} <= {o.name for o in listed}
    for option in listed:
        if option.default != "none" and option.name not in needs:
            value = option.default if option.name in SLOT_ARGUMENTS else _value(option.default)
            assert recipe(name, **needs, **{option.name: value}) == usual, option


def test_the_page_writes_parts_as_they_are_read() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text("utf-8")
    read_from_page = 0
    for key in ("teacher", "estimator", "schedule", "reduction", "lora"):
        row = next(line for line in page.splitlines() if line.startswith(f"| `{key}` |"))
        names = next(names for names in SLOTS.values() if word(DEFAULTS[key]) in names)
        parts = [text for text in re.findall(r"`([^`]+)`", row)[1:] if text.partition(":")[0] in names]
        made = [read(DEFAULT, RECIPES[DEFAULT], {key: text})[key] for text in parts]
        assert len(made) >= len(names) - 2  # k1 and k3 cannot be trained
        read_from_page += len(made)
    assert read_from_page >= 24


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"teacher": "average:0.01,rank=8"}, {"teacher": "ema:0.01,rank=8"}),
        ({"teacher": "average"}, {"teacher": "ema"}),
        ({"average": "per-token"}, {"reduction": "token-mean"}),
        ({"reduction": "per-sequence"}, {"reduction": "sequence-mean"}),
    ],
)
def test_names_of_the_version_before_are_read_with_a_warning(old: dict[str, Any], new: dict[str, Any]) -> None:
    with pytest.warns(FutureWarning, match="is now called"):
        assert recipe(DEFAULT, **old) == recipe(DEFAULT, **new)
