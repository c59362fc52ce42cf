"""A term means the same alone and in company: its value depends neither on its neighbours nor on its place."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
import torch

from afterword.errors import ConfigError
from afterword.learn.loss.loss_stage import Scores
from afterword.learn.loss.terms import Term, divisors
from afterword.learn.loss.token_batch import layout
from afterword.learn.parts.advantages import (
    NO_CLIP,
    FeedbackPolarity,
    LogRatio,
    Masked,
    PPOClip,
    Product,
    ReturnToGo,
    Reward,
    Scaled,
    Sum,
    TeacherMagnitude,
    TeacherRatioClip,
    Truncated,
)
from afterword.learn.parts.anchors import GOLD, gold_mix
from afterword.learn.parts.contexts import CONTEXTS, with_template, with_text
from afterword.learn.parts.divergences import (
    JSD,
    K2,
    ForwardKL,
    NegativeLogLikelihood,
    PolicyGradient,
    ReverseKL,
    SkewForwardKL,
)
from afterword.learn.parts.schedules import Switch
from afterword.learn.parts.supports import FULL, TopK
from afterword.learn.parts.targets import Extrapolation, GeometricBridge, Temperature
from afterword.learn.parts.teachers import BASE, LIVE, START
from afterword.learn.parts.weights import (
    EVERYTHING,
    SEQUENCE_MEAN,
    TOKEN_MEAN,
    WEIGHT_MEAN,
    AnswerPower,
    ByCorrectness,
    Cap,
    ChangedTokens,
    EntropyGate,
    GapGate,
    ImportanceRatio,
    InteractionWeight,
    LeastRatio,
    NotKind,
    Position,
    Prefix,
    TeacherConfidence,
    TopEntropy,
    Weight,
)
from afterword.learn.recipes import Lora, Recipe, follow_ups
from afterword.learn.recipes.validate import validate
from afterword.model.loading import load_tokenizer
from afterword.train.data.batches import rows_of
from afterword.train.data.examples import Example, prepare
from afterword.train.data.rows import Encoded
from afterword.train.monitoring.metrics import Tally
from afterword.train.runtime.policy import Policy, load_policy
from afterword.train.runtime.teacher_cache import TeacherCache, TeacherStates
from afterword.train.runtime.teacher_runtime import TeacherRuntime
from tests.train.test_episodes import conversation
from tests.train.tiny_model import backward, example, tiny_folder

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

SYSTEM = CONTEXTS["system"]
WHERE = (
    SYSTEM,
    with_text(SYSTEM, "Never use lists."),
    with_template(SYSTEM, "They said: {hindsight}"),
    CONTEXTS["appended"],
    CONTEXTS["block"],
)
ESTIMATORS = (ForwardKL(), ReverseKL(), JSD(0.5), SkewForwardKL(), PolicyGradient(), K2(), NegativeLogLikelihood())
TARGETS = (Temperature(0.5), GeometricBridge(0.5), Extrapolation(1.5, plausible=0.01))
SUPPORTS = (FULL, TopK(8, of="student", remainder="tail"), TopK(8, of="teacher", remainder="renormalise"))
ADVANTAGES = (
    LogRatio(centre=True), ReturnToGo(), FeedbackPolarity(), Sum((FeedbackPolarity(), Scaled(LogRatio(), 0.5))),
    Product((Reward(0.5), LogRatio())), TeacherMagnitude(FeedbackPolarity()),
)  # fmt: skip
WEIGHTS: tuple[Weight, ...] = (
    ChangedTokens(), ImportanceRatio(), EntropyGate(4.0), Position(8.0), Cap(0.5), LeastRatio(-1.0), TopEntropy(0.5),
    TeacherConfidence(), GapGate(),
)  # fmt: skip
CLIPS = (PPOClip(), Truncated(), Masked(), TeacherRatioClip())
LORA: dict[str, Any] = {"dtype": "float32", "fresh": 0, "epochs": 1, "lora": Lora(rank=4)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "model", initializer_range=0.3)


def drawn(dice: Random, name: str) -> Term:
    """A random term of parts that may stand together."""
    while True:
        estimator = dice.choice(ESTIMATORS)
        signed = isinstance(estimator, NegativeLogLikelihood)
        plain = estimator.sampled or signed
        advantage = dice.choice(ADVANTAGES) if signed else None
        reads = not signed or (advantage is not None and advantage.needs_teacher)
        target = dice.choice(TARGETS) if reads and not plain and dice.random() < 0.4 else None
        term = Term(
            name=name,
            estimator=estimator,
            teacher=dice.choice((START, BASE, LIVE)) if reads else None,
            context=dice.choice(WHERE) if reads else CONTEXTS["none"],
            student_context=dice.choice((CONTEXTS["none"], CONTEXTS["none"], WHERE[3])),
            reduction=dice.choice((TOKEN_MEAN, SEQUENCE_MEAN, WEIGHT_MEAN)),
            support=FULL if plain or target is not None else dice.choice(SUPPORTS),
            route=dice.choice((EVERYTHING, NotKind((GOLD,)), ByCorrectness(False))),
            weights=(InteractionWeight(), *dice.sample(WEIGHTS, dice.randint(0, 2))),
            masks=(Prefix(9),) if dice.random() < 0.3 else (),
            advantage=advantage,
            policy_clip=dice.choice((PPOClip(), Truncated(), Masked(), TeacherRatioClip()))
            if plain and dice.random() < 0.5
            else NO_CLIP,
            skip_first=dice.choice((0, 0, 1, 3)),
            scale=dice.choice((0.0, 0.5, 1.0, 2.0)),
        )
        if target is not None:
            term = dataclasses.replace(term, target=target, reference=BASE if target.needs_reference else None)
        try:
            validate(Recipe(name="drawn", terms=(dataclasses.replace(term, scale=1.0),), **LORA))
        except ConfigError:
            continue
        return term


def some(model: str) -> list[Example]:
    """Answers with words, one with praise alone, one with private data, one that the user edited."""
    found = [example(model, i, text=f"Answer {i}, and more of it.", hindsight=f"Wish {i}.") for i in range(3)]
    found.append(example(model, 3, text="Write to ana.reis@example.com, she knows.", hindsight="Not her."))
    found.append(example(model, 4, hindsight=""))
    changes: tuple[dict[str, Any], ...] = ({}, {"spans": ((2, 6),), "kind": "edited"}, {}, {}, {"polarity": 1})
    return [
        Example(
            dataclasses.replace(e.interaction, weight=1.0 - 0.1 * i, **changes[i]),
            dataclasses.replace(
                e.turn, logprobs=tuple(-5.5 - 0.1 * k for k in range(len(e.turn.completion_ids or ())))
            ),
        )
        for i, e in enumerate(found)
    ]


class Lab:
    """A policy away from its base, and the value and gradient of objectives on it."""

    def __init__(self, model: str) -> None:
        self.ref, self.tokenizer = model, load_tokenizer(model)
        self.policy: Policy = load_policy(model, Recipe(name="x", terms=(), **LORA), parent=None, seed=0, device="cpu")
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in self.policy.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))

    def values(
        self, terms: Sequence[Term], micro: Sequence[Sequence[int]] = (), scored: str = "answer"
    ) -> tuple[list[float], list[torch.Tensor], tuple[Encoded, ...]]:
        """(value of each term, gradients of their sum) of one step, in these micro-batches."""
        settings = {**LORA, "scored": scored}
        recipe = Recipe(name="drawn", terms=(*terms, gold_mix(0.0)), **settings)  # as with accepted answers
        given = [*some(self.ref), *([conversation(self.ref, 5)] if scored == "conversation" else [])]
        rows = prepare(given, self.tokenizer, recipe, limit=512, vocabulary=259).rows
        teachers = TeacherStates(TeacherRuntime(self.policy, recipe, self.ref), rows, recipe, TeacherCache(None), "x")
        tally = Tally(terms)
        self.policy.model.zero_grad(set_to_none=True)
        whole = divisors(terms, rows_of(rows))
        backward(self.policy, teachers, terms, whole, *(micro or [range(len(rows))]), tally=tally)
        step = tally.close(step=1, steps=1, grad_norm=0.0, lr=0.0, off_policy=0, seconds=1.0, scored=1)
        gradients = [p.grad.clone() for p in self.policy.parameters() if p.grad is not None]
        assert len(gradients) == len(self.policy.parameters())
        return [step.terms[t.name] for t in terms], gradients, rows


@pytest.fixture(scope="module")
def lab(model: str) -> Lab:
    return Lab(model)


@pytest.mark.parametrize("seed", range(24))
def test_each_term_of_a_random_objective_is_worth_what_it_is_worth_alone(lab: Lab, seed: int) -> None:
    dice = Random(seed)
    terms = [drawn(dice, f"t{i}") for i in range(dice.randint(2, 4))]
    alone = [lab.values([term]) for term in terms]
    for order in (terms, terms[::-1]):
        together, gradients, _ = lab.values(order)
        want = [alone[terms.index(term)][0][0] for term in order]
        assert together == pytest.approx(want, rel=1e-4, abs=1e-6)
        for place, gradient in enumerate(gradients):
            summed = torch.stack([one[1][place] for one in alone]).sum(0)
            torch.testing.assert_close(gradient, summed, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("seed", range(24, 32))
def test_micro_batches_change_no_random_objective(lab: Lab, seed: int) -> None:
    dice = Random(seed)
    terms = [drawn(dice, f"t{i}") for i in range(dice.randint(1, 3))]
    whole, gradients, rows = lab.values(terms, scored="conversation")
    assert any(row.between for row in rows)
    order = dice.sample(range(len(rows)), len(rows))
    for micro in ([[i] for i in order], [order[:2], order[2:]]):
        values, parts, _ = lab.values(terms, micro, "conversation")
        assert values == pytest.approx(whole, rel=1e-4, abs=1e-6)
        for one, other in zip(parts, gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-5)


def test_a_weighted_mean_divides_by_the_weights_of_the_whole_step(lab: Lab) -> None:
    """Half of the weight everywhere changes nothing; the interactions' own weights stay in the numerator alone."""
    term = Term(name="t", estimator=ForwardKL(), teacher=BASE, context=SYSTEM, reduction=WEIGHT_MEAN)
    half = dataclasses.replace(term, weights=(InteractionWeight(), AnswerPower("phi", cap=0.5)))
    (plain,), gradients, rows = lab.values([term])
    (halved,), same, _ = lab.values([half], [[i] for i in range(len(rows))])
    assert halved == pytest.approx(plain, rel=1e-5)
    for one, other in zip(gradients, same, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-6)
    (mean,), *_ = lab.values([dataclasses.replace(term, reduction=TOKEN_MEAN)])
    assert plain == pytest.approx(mean, rel=1e-5)


def test_terms_of_a_pool_share_one_divisor(lab: Lab) -> None:
    own = Term(name="own", estimator=ForwardKL(), teacher=BASE, context=SYSTEM, reduction=TOKEN_MEAN, pool="both")
    right = dataclasses.replace(own, name="right", route=ByCorrectness(True), context=CONTEXTS["none"])
    terms = [dataclasses.replace(own, route=ByCorrectness(False)), right]
    *_, rows = lab.values(terms)
    counts = [term.count(rows_of(rows)) for term in terms]
    assert all(counts) and divisors(terms, rows_of(rows)) == [sum(counts)] * 2
    late = [dataclasses.replace(term, reduction=WEIGHT_MEAN) for term in terms]
    assert lab.values(late)[0] == pytest.approx(lab.values(terms)[0], rel=1e-4)


def test_two_contexts_of_one_name_are_two_contexts(lab: Lab) -> None:
    own, fixed = SYSTEM, with_text(SYSTEM, "Never use lists.")
    assert own.name == fixed.name
    terms = [
        Term(name=name, estimator=ForwardKL(), teacher=BASE, context=where)
        for name, where in (("own", own), ("fixed", fixed))
    ]
    values, _, rows = lab.values(terms)
    assert values[0] != pytest.approx(values[1], rel=1e-3)
    assert rows[0].reads(own) != rows[0].reads(fixed)


def test_what_is_privileged_is_so_by_context(lab: Lab) -> None:
    """A text that all read makes no words of a user who wrote none."""
    own = Term(name="own", estimator=ForwardKL(), teacher=BASE, context=CONTEXTS["appended"])
    fixed = Term(name="fixed", estimator=ForwardKL(), teacher=BASE, context=with_text(SYSTEM, "Never use lists."))
    *_, rows = lab.values([own, fixed])
    whole = rows_of(rows)
    assert own.count(whole) == 4 and fixed.count(whole) == 5


def test_no_teacher_reads_rows_of_which_no_term_keeps_a_token(lab: Lab) -> None:
    recipe = follow_ups(**LORA)
    rows = prepare(some(lab.ref), lab.tokenizer, recipe, limit=512, vocabulary=259).rows
    gold = {i for i, row in enumerate(rows) if row.answer.kind == GOLD}
    assert gold and len(gold) < len(rows)
    states = TeacherStates(TeacherRuntime(lab.policy, recipe, lab.ref), rows, recipe, TeacherCache(None), "x")
    assert [set(sides) for sides in states.sides.values()] == [set(range(len(rows))) - gold] * 2
    got = states.get(BASE, CONTEXTS["appended"], range(len(rows)))
    assert got is not None and len(got.states) == sum(len(row.completion) for row in rows)


def test_teachers_read_what_a_schedule_lets_through_later(lab: Lab) -> None:
    late = Term(
        name="t", estimator=ForwardKL(), teacher=BASE, context=SYSTEM, skip_first=400, masks=(Prefix(500),),
        schedules=(("skip_first", Switch(0.5, 1.0, 0.0)),),
    )  # fmt: skip
    recipe = Recipe(name="x", terms=(late,), **LORA)
    rows = prepare(some(lab.ref), lab.tokenizer, recipe, limit=512, vocabulary=259).rows
    assert late.count(rows_of(rows)) == 0 and late.at(9, 10, []).count(rows_of(rows)) > 0
    states = TeacherStates(TeacherRuntime(lab.policy, recipe, lab.ref), rows, recipe, TeacherCache(None), "x")
    got = states.get(BASE, SYSTEM, range(len(rows)))
    assert got is not None and bool((got.states[late.at(9, 10, []).keep(rows_of(rows))] != 0).any(-1).all())


def test_tokens_that_do_not_count_change_no_other_tokens_factor() -> None:
    """A mean, a running sum and a share of an answer are over the tokens that count."""
    torch.manual_seed(0)
    keep = torch.tensor([0, 1, 1, 0, 1, 0, 1, 1, 1], dtype=torch.bool)
    rows = layout([5, 4], [1.0, 1.0], [True, True])
    counted = layout([3, 3], [1.0, 1.0], [True, True])
    values = {f.name: torch.randn(9) for f in dataclasses.fields(Scores)}
    noisy = Scores(**{k: torch.where(keep, v, 99.0) for k, v in values.items()})
    short = Scores(**{k: v[keep] for k, v in values.items()})
    every = torch.ones(6, dtype=torch.bool)
    for advantage in (LogRatio(centre=True), ReturnToGo()):
        torch.testing.assert_close(advantage(noisy, rows, keep)[keep], advantage(short, counted, every))
    top = TopEntropy(0.4)
    torch.testing.assert_close(top(noisy, rows, keep)[keep], top(short, counted, every))
