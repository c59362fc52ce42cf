"""Numbers that were computed by hand from the papers' formulas and stand in no other test, each from our own parts.

Others are where the parts are: `test_divergences`, `test_supports`, `test_targets`, `test_parts`, `test_loss_stage`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from afterword.errors import ConfigError
from afterword.learn.loss import loss_stage
from afterword.learn.loss.loss_stage import Scores, token_losses
from afterword.learn.loss.tiles import tile_of
from afterword.learn.loss.token_batch import layout
from afterword.learn.parts.divergences import FORWARD_KL, JSD, K1, K2, K3, Estimator, PolicyGradient, ReverseKL
from afterword.learn.parts.supports import FULL, Support, TopK
from afterword.learn.parts.weights import Cap
from afterword.learn.recipes import Recipe, recipe, sdpo_interactions
from afterword.learn.recipes.validate import validate
from afterword.model.head import Head

MENU = ([0.5, 0.3, 0.2], [0.7, 0.2, 0.1])
"""Student and teacher."""
CUT = ([0.5, 0.3, 0.15, 0.05], [0.45, 0.45, 0.05, 0.05])
PEERS = ([0.8, 0.2], [0.5, 0.5])
PEERS_REVERSE = 0.19274476


def scored(
    pair: tuple[list[float], list[float]], estimator: Estimator, support: Support = FULL, ids: tuple[int, ...] = (0,)
) -> tuple[Scores, Tensor]:
    """What the loss stage says at each of `ids`, and the gradient towards the student's logits [n, V]."""
    student, teacher = (torch.tensor([p], dtype=torch.float64).log().repeat(len(ids), 1) for p in pair)
    student.requires_grad_()
    head = Head(torch.eye(len(pair[0]), dtype=torch.float64))
    scores = token_losses(student, teacher, head, torch.tensor(ids), estimator, support=support)
    (gradient,) = torch.autograd.grad(scores.loss.sum(), student)
    return scores, gradient


REVERSE, FORWARD = [-0.214253, 0.094030, 0.120223], [-0.2, 0.1, 0.1]


@pytest.mark.parametrize(
    ("pair", "estimator", "value", "gradient"),
    [
        (MENU, PolicyGradient(), None, REVERSE),
        (MENU, K2(), 0.101009, REVERSE),
        (MENU, K3(), 0.092033, FORWARD),
        (PEERS, PolicyGradient(), None, [0.22180710, -0.22180710]),
        (PEERS, K2(), None, [0.22180710, -0.22180710]),
        (PEERS, K3(), None, [0.3, -0.3]),
    ],
)
def test_sampled_estimators_in_expectation(
    pair: tuple[list[float], list[float]], estimator: Estimator, value: float | None, gradient: list[float]
) -> None:
    ids = tuple(range(len(pair[0])))
    chance = torch.tensor(pair[0], dtype=torch.float64)
    scores, each = scored(pair, estimator, ids=ids)
    assert (chance @ each).tolist() == pytest.approx(gradient, abs=1e-6)
    if value is not None:
        assert (chance @ scores.loss.detach()).item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(("pair", "value"), [(MENU, 0.092033), (PEERS, PEERS_REVERSE)])
def test_k1_estimates_the_reverse_kl_and_teaches_nothing(pair: tuple[list[float], list[float]], value: float) -> None:
    ids = torch.arange(len(pair[0]))
    s, t = (torch.tensor([p], dtype=torch.float64).log().repeat(len(ids), 1) for p in pair)
    chance = torch.tensor(pair[0], dtype=torch.float64)
    loss, gradient = K1()(tile_of(s, t, ids))
    assert (chance @ loss).item() == pytest.approx(value, abs=1e-6)
    assert (chance @ gradient).tolist() == pytest.approx([0.0] * len(ids), abs=1e-12)
    scores, _ = scored(pair, ReverseKL())
    assert scores.loss.item() == pytest.approx(value, abs=1e-6)


def test_the_full_reverse_kl_of_the_pair_for_truncation() -> None:
    scores, _ = scored(CUT, ReverseKL())
    assert scores.loss.item() == pytest.approx(0.095833, abs=1e-6)


@pytest.mark.parametrize(
    ("pair", "of", "bare"), [(CUT, "student", -0.068959), (MENU, "teacher", -0.046597)], ids=["core", "menu"]
)
def test_the_bare_truncated_sum_is_negative_and_refused(pair: Any, of: Any, bare: float) -> None:
    """What is left of our two tokens when the term of the tail, S log S/T, is taken away again."""
    scores, _ = scored(pair, ReverseKL(), TopK(2, of=of))
    tail = [sum(side[2:]) for side in pair]
    assert scores.loss.item() - tail[0] * math.log(tail[0] / tail[1]) == pytest.approx(bare, abs=1e-6)
    support = TopK(2, of=of, remainder="none")  # type: ignore[arg-type]
    term = replace(sdpo_interactions(estimator=ReverseKL()).terms[0], support=support)
    with pytest.raises(ConfigError, match="remainder='none' must be one of tail, renormalise, teacher"):
        validate(Recipe(name="x", terms=(term,)))


@pytest.mark.parametrize(("k", "value"), [(3, -0.030678), (2, -0.029769)])
def test_overlap_advantage(monkeypatch: pytest.MonkeyPatch, k: int, value: float) -> None:
    monkeypatch.setattr(loss_stage, "TOP", k)
    scores, _ = scored(MENU, FORWARD_KL)
    assert scores.overlap.item() == 1.0
    assert scores.overlap_advantage.item() == pytest.approx(value, abs=1e-6)


def test_the_gap_of_the_entropies() -> None:
    scores, _ = scored(MENU, FORWARD_KL)
    assert (scores.entropy_student - scores.entropy_teacher).item() == pytest.approx(0.227834, abs=1e-6)


def test_the_tail_of_a_teacher_renormalised_alone() -> None:
    """HDPO's JSD: .5 * .2 * ln 2 of it is the student's mass outside, which the teacher has not."""
    half: dict[str, Any] = {"of": "teacher", "remainder": "teacher"}
    whole, _ = scored(MENU, JSD(0.5), TopK(2, **half))
    assert whole.loss.item() == pytest.approx(0.087439, abs=1e-6)
    # a student that spreads its mass inside as the teacher does has only the tail, and what the tail takes from inside
    inside = ([0.8 * 7 / 9, 0.8 * 2 / 9, 0.2], MENU[1])
    scores, _ = scored(inside, JSD(0.5), TopK(2, **half))
    rest = 0.5 * (math.log(1 / 0.9) + 0.8 * math.log(0.8 / 0.9))
    assert scores.loss.item() - rest == pytest.approx(0.069315, abs=1e-6)


def test_a_clip_acts_after_the_sum_over_the_vocabulary() -> None:
    """Entries clipped at 0.05 before the sum would make -0.17725887 of this divergence."""
    pair = ([0.8, 0.15, 0.05], [0.4, 0.35, 0.25])
    scores, _ = scored(pair, FORWARD_KL)
    assert scores.loss.item() == pytest.approx(0.42165486, abs=1e-7)
    rows = layout([1], [1.0], [True])
    plain = recipe("sdpo-interactions", clip=0.05).terms[0]
    capped = recipe("opsd-clipped", clip=0.05).terms[0]
    assert plain.clip == 0.05 and any(isinstance(w, Cap) for w in capped.weights)
    assert plain.value(scores, rows, 1.0).item() == pytest.approx(0.05, abs=1e-7)
    factor = Cap(0.05)(scores, rows, torch.ones(1, dtype=torch.bool))
    assert (factor * scores.loss).item() == pytest.approx(0.05, abs=1e-7)
