"""The gap of a real tiny model: controls, regression to the mean, intervals, and nothing that changes the weights."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from afterword.errors import ConfigError, NothingToDo
from afterword.forecast.contexts import TEACHER_CONTEXTS, teacher_context
from afterword.forecast.gap import GapMeasurement, TaskSource
from afterword.forecast.predict import predict_gain
from afterword.forecast.student import Student, context_recipe, training_tokens
from tests.train.tiny_model import tiny_folder

from .tiny import Evens


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    return Student(tiny_folder(tmp_path_factory.mktemp("tiny")), device="cpu", dtype="float32")


def measurement(student: Student, number: int = 40, task: Evens | None = None) -> GapMeasurement:
    task = task or Evens()
    return GapMeasurement(student, TaskSource(task, task.items("train", number, 0)), seed=0, peers=True)


@pytest.fixture(scope="module")
def measured(student: Student) -> GapMeasurement:
    return measurement(student)


def test_a_pass_at_learning_rate_zero_changes_no_weight_and_is_counted(student: Student) -> None:
    before = {name: tensor.clone() for name, tensor in student.policy.model.state_dict().items()}
    tokens = student.work.tokens
    one = measurement(student, 8)
    one.measure(TEACHER_CONTEXTS["hints"])
    after = student.policy.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert student.work.tokens > tokens + 8 * 5 * 10  # five draws of prompts of more than ten ids


def test_none_draws_everything_anew_and_finds_no_gap(measured: GapMeasurement) -> None:
    none = measured.measure(TEACHER_CONTEXTS["none"])
    assert (
        none.redrawn == none.prompts == 40
        and none.shuffled is None
        and none.observables.keys() == {"pass_rate", "redrawn"}
    )
    assert none.gap["low"] < 0 < none.gap["high"]


def test_chance_recovery_of_failures_is_in_the_raw_gap_and_not_in_the_gap(measured: GapMeasurement) -> None:
    found = measured.measure(TEACHER_CONTEXTS["feedback"])
    failures = sum(score < 1 for score in measured.first.scores)
    assert 8 < failures < 32 and found.redrawn == failures
    # A random model recovers half of its failures whatever it reads: all of the raw gap is regression to the mean.
    assert found.raw["low"] > 0 and found.regression["low"] > 0
    assert found.gap["value"] == pytest.approx(found.raw["value"] - found.regression["value"])
    assert found.gap["low"] < 0 < found.gap["high"]
    assert found.shuffled is not None and found.slices["tiny:evens"] == found.gap


def test_a_peer_never_comes_from_the_control_draw(measured: GapMeasurement) -> None:
    found = measured.measure(TEACHER_CONTEXTS["peer"], shuffled=False)
    shown = [i for i, one in enumerate(measured.shown(TEACHER_CONTEXTS["peer"])) if one.text]
    assert found.redrawn == len(shown) > 3
    control = sum(measured.again.scores[i] for i in shown) / len(shown)
    assert 0.1 < control < 0.9  # with peers from the control draw it would be 1


def test_observables_are_those_of_a_training_step(measured: GapMeasurement) -> None:
    found = measured.measure(TEACHER_CONTEXTS["reference"], shuffled=False).observables
    for name in (
        "overlap",
        "overlap_advantage",
        "entropy_gap",
        "divergence",
        "divergence_at_0",
        "signal_real",
        "signal_other",
    ):
        assert math.isfinite(found[name]), name
    assert 0 < found["overlap"] <= 1 and found["context_tokens"] > 10
    static = measured.measure(TEACHER_CONTEXTS["static"], shuffled=True)
    assert static.redrawn == 40 and static.shuffled is None  # all read the same: nothing can be shuffled


def test_the_interval_is_over_prompts_and_all_alike_is_not_certain(student: Student) -> None:
    none = measurement(student, 12, Evens(always=0.0))
    found = none.measure(TEACHER_CONTEXTS["feedback"])
    assert found.gap["value"] == 0 and found.gap["low"] < -0.1 and found.gap["high"] > 0.1 and found.gap_se > 0.05
    told = predict_gain(found.measured(student), [], heldout=64)
    assert told.problem == "none_solved" and told.gain is None
    broken = measurement(student, 6, Evens(always=math.nan)).measure(TEACHER_CONTEXTS["static"])
    assert predict_gain(broken.measured(student), [], heldout=64).problem == "not_finite"


def test_the_cost_of_a_training_counts_backward_passes_and_fresh_answers(measured: GapMeasurement) -> None:
    where = TEACHER_CONTEXTS["reference"]
    rows = measured.student.encode(measured.examples(where), context_recipe(where.where)).rows
    student = sum(len(r.prompt) + len(r.completion) for r in rows)
    teacher = sum(len(r.reads(where.where)) + len(r.completion) for r in rows)
    assert training_tokens(rows, context_recipe(where.where, epochs=2, fresh=0)) == 2 * (3 * student + teacher)
    assert training_tokens(rows, context_recipe(where.where, epochs=0, fresh=1)) == 4 * student + teacher


def test_unknown_context_and_no_prompts(student: Student, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'hints'"):
        teacher_context("hint")
    with pytest.raises(NothingToDo, match="no prompt"):
        GapMeasurement(student, TaskSource(Evens(), []))
