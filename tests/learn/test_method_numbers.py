"""Numbers computed by hand from the papers' formulas, for methods over groups of answers, from the recipes' parts."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from tests.learn.recipe_inputs import INPUTS

from afterword.errors import ConfigError
from afterword.learn.loss.loss_stage import COLUMNS, Scores
from afterword.learn.loss.terms import Term
from afterword.learn.loss.tiles import tile_of
from afterword.learn.loss.token_batch import AnswerInfo, Group, Member, TokenBatch, group_of, layout
from afterword.learn.parts.advantages import (
    FirstAttemptBaseline,
    GroupBaseline,
    LogRatio,
    Masked,
    PPOClip,
    Product,
    Reward,
    Scaled,
    Sum,
    TeacherMagnitude,
    TeacherRatioClip,
)
from afterword.learn.parts.contexts import CONTEXTS, Opening, Sibling, with_hint
from afterword.learn.parts.divergences import FORWARD_KL, NegativeLogLikelihood, PolicyGradient
from afterword.learn.parts.generation import STUDENT, Generation, Right
from afterword.learn.parts.schedules import Anneal, Linear
from afterword.learn.parts.targets import GeometricBridge
from afterword.learn.parts.teachers import EMA, LIVE, START, External
from afterword.learn.parts.weights import (
    SEQUENCE_MEAN,
    TOKEN_MEAN,
    AnswerPower,
    Both,
    ByCorrectness,
    ByOrigin,
    ByPassRate,
    GapGate,
    GroupSoftmax,
    InDistribution,
    LikeliestRight,
    Other,
    Solvable,
    TeacherConfidence,
)
from afterword.learn.recipes import Recipe, describe, recipe
from afterword.learn.recipes.formula import formula
from afterword.learn.recipes.validate import validate

S, T = torch.tensor([[0.5, 0.3, 0.2], [0.7, 0.2, 0.1]], dtype=torch.float64)


def scores(student: torch.Tensor = S, teacher: torch.Tensor = T, **columns: float) -> Scores:
    """One token for each id, as the loss stage scores it."""
    n = len(student)
    given: dict[str, Any] = {"logp_student": student.log(), "logp_teacher": teacher.log()}
    given |= {name: torch.full((n,), value).double() for name, value in columns.items()}
    return Scores(**{name: given.get(name, torch.ones(n).double()) for name in COLUMNS})


def batch(n: int = 3, **answer: Any) -> TokenBatch:
    return layout([n], [1.0], [True], answers=[AnswerInfo(**answer)])


KEEP = torch.ones(3, dtype=torch.bool)


@pytest.mark.parametrize(("reward", "want"), [(1.0, 1.1), (0.0, -0.9)])
def test_rlsd_scales_the_outcome_by_at_most_a_tenth(reward: float, want: float) -> None:
    """methods_menu C 12: w = 1.4 -> 1.2 -> 1.1 for A > 0, .714 -> .8 -> .9 for A < 0; core 16: a gap of 0.1."""
    part = TeacherMagnitude(Reward(0.5), mix=0.5, bound=0.2)
    found = part(scores(), batch(reward=reward), KEEP) / 0.5
    assert found[0].item() == pytest.approx(want, abs=1e-6)
    assert bool((found.sign() == math.copysign(1, reward - 0.5)).all())
    near = scores(teacher=S * math.exp(0.1))
    want_near = 1.0525855 if reward else -0.9524187
    assert (part(near, batch(reward=reward), KEEP) / 0.5)[0].item() == pytest.approx(want_near, abs=1e-5)
    off = dataclasses.replace(part, mix=0.0)
    assert torch.equal(off(scores(), batch(reward=reward), KEEP), Reward(0.5)(scores(), batch(reward=reward), KEEP))


def test_rlad_has_the_teacher_inside_the_ratio() -> None:
    """methods_menu C 14: at the sampling policy token 1 has .845154, token 3 1.414214, already outside of 1.28."""
    one, ratio = torch.ones(3).double(), torch.ones(3).double()
    clip = TeacherRatioClip(mix=0.5, low=0.2, high=0.28)
    assert clip(one, ratio, scores()).tolist() == pytest.approx([0.845154, math.sqrt(1.5), 0.0], abs=1e-6)
    assert clip(-one, ratio, scores()).tolist()[2] == pytest.approx(1.414214, abs=1e-6)
    plain = dataclasses.replace(clip, mix=1.0)
    some = torch.tensor([0.5, 1.1, 1.4]).double()
    for advantage in (one, -one):
        assert torch.equal(plain(advantage, some, scores()), PPOClip(0.2, 0.28)(advantage, some))


def test_rlads_clip_has_the_gradient_of_its_surrogate() -> None:
    """By autograd in float64, over ratios on both sides of the clip and both signs."""
    old, teacher = torch.tensor([0.6, 0.2, 0.2]).double(), T
    for sign in (1.0, -1.0):
        s = S.log().clone().requires_grad_()
        r = (0.5 * (s - old.log()) + 0.5 * (s - teacher.log())).exp()
        (want,) = torch.autograd.grad(torch.minimum(r * sign, r.clamp(0.8, 1.28) * sign).sum(), s)
        ratio = (S.log() - old.log()).exp()
        got = sign * TeacherRatioClip()(torch.full((3,), sign).double(), ratio, scores())
        torch.testing.assert_close(got, want)


def test_hdpos_distance_of_two_teacher_tokens() -> None:
    """methods_menu C 11: JSD .087439 on the teacher's top 2."""
    term = recipe("hdpo", k=2, **INPUTS["hdpo"]).terms[1]
    tile = tile_of(S.log()[None], T.log()[None], torch.tensor([0]))
    loss, *_ = term.support.apply(tile, term.estimator)
    assert loss.item() == pytest.approx(0.087439, abs=1e-6)


def test_scopes_weights_of_a_half_of_the_group() -> None:
    """methods_menu C 13: mean log-probabilities -1 and -2 give .537883 and 1.462117, the other half the reverse."""
    for measure, temperature, order in (("logp_student", -1.0, 1), ("logp_teacher", 1.0, -1)):
        reward = 1.0 if order == 1 else 0.0
        members = [Member(reward, "student", ((measure, value),)) for value in (-1.0, -2.0)]
        members += [Member(1 - reward, "student", ((measure, -9.0),)), Member(reward, "served", ((measure, -9.0),))]
        soft = GroupSoftmax(measure, temperature)  # type: ignore[arg-type]
        found = [
            soft._of(
                AnswerInfo(reward=reward, origin="student", measures=m.measures, group=Group(members=tuple(members)))
            )
            for m in members[:2]
        ]
        assert found[::order] == pytest.approx([0.537883, 1.462117], abs=1e-6)
    uniform = GroupSoftmax("logp_student", 1e9)
    info = AnswerInfo(reward=1.0, origin="student", measures=members[0].measures, group=Group(members=tuple(members)))
    assert uniform._of(info) == pytest.approx(1.0, abs=1e-6)


def test_sdars_gate() -> None:
    """methods_core 0.3."""
    student, teacher = torch.tensor([0.5, 0.3, 0.15, 0.05]).double(), torch.tensor([0.2, 0.6, 0.1, 0.1]).double()
    found = GapGate(5.0)(scores(student, teacher), batch(4), torch.ones(4, dtype=torch.bool))
    assert found.tolist() == pytest.approx([0.010136, 0.969697, 0.116364, 0.969697], abs=1e-6)


def test_idfts_weights() -> None:
    """methods_menu C 15: gamma (.7143, 1.1904, 1.7857), weights (.6095, .2385, .0565); mix 0 is S(y) (DFT)."""
    entropy = float(-(S * S.log()).sum())
    given = scores(entropy_student=entropy)
    assert InDistribution()(given, batch(), KEEP).tolist() == pytest.approx([0.6095, 0.2385, 0.0565], abs=1e-4)
    assert InDistribution(mix=0.0)(given, batch(), KEEP).tolist() == pytest.approx([0.5, 0.3, 0.2])


def test_varreason_takes_the_right_answer_that_needs_its_hint_least() -> None:
    """The likeliest one is wrong, and what is likely only with the hint is not taken."""
    measured = [(1.0, -1.0, -0.2), (1.0, -1.5, -1.4), (0.0, -0.1, -2.0), (1.0, -9.0, -1.0)]
    members = [Member(r, "privileged", (("logp_student", s), ("logp_teacher", t))) for r, s, t in measured]
    members.append(Member(1.0, "student", (("logp_student", -0.1), ("logp_teacher", -3.0))))
    group = Group(members=tuple(members))
    found = [
        LikeliestRight()._of(AnswerInfo(reward=m.reward, origin=m.origin, measures=m.measures, group=group))
        for m in members[:4]
    ]
    assert found == [0.0, 1.0, 0.0, 0.0]


def test_a_guide_is_compared_with_the_answers_of_others() -> None:
    """methods_menu C 17: rewards (1, 0, 0, 0) give (1.5, -.5, -.5, -.5); by origin nothing is left of a lone guide."""
    members = [Member(1.0, "teacher"), *[Member(0.0, "student")] * 3]
    whole = group_of(members, members)
    for across, want in ((True, [1.5, -0.5]), (False, [0.0, 0.0])):
        part = GroupBaseline("grpo", across=across)
        found = [part.of(AnswerInfo(reward=m.reward, origin=m.origin, group=whole.of(m.origin))) for m in members[:2]]
        assert found == pytest.approx(want, abs=1e-3)


def test_pope_shows_the_opening_of_the_answer() -> None:
    assert Opening(0.25).of("One two three four\nfive  six seven eight.") == "One two"
    assert Opening(0.5).of("a  b\nc d") == "a  b"
    assert Opening(0.1).of("word") == "word" and Opening().of(" ") == ""


def test_mopd_has_an_expert_for_each_task() -> None:
    made = recipe("mopd", teacher="code=/a, math=/b", outcome=0.5, verifier=INPUTS["grpo"]["verifier"])
    validate(made)
    assert [(t.name, t.teacher.model) for t in made.terms] == [("expert_code", "/a"), ("expert_math", "/b")]  # type: ignore[union-attr]
    code, maths = (AnswerInfo(task=task) for task in ("code", "math"))
    assert [t.route(code) for t in made.terms] == [True, False] == [not t.route(maths) for t in made.terms]
    for bad in ("a=/x,a=/y", "/x,b=/y", "=/x,b=/y"):
        with pytest.raises(ConfigError, match="a task once before each folder"):
            recipe("mopd", teacher=bad)
    with pytest.raises(ConfigError, match="name its folder"):
        validate(recipe("mopd"))


def test_srpos_weight_and_phi() -> None:
    """methods_menu C 6 and C 15: H(T) .801819; phi (.336506, -.174320, -.579785), 0 under S."""
    found = TeacherConfidence(1.0)(scores(entropy_teacher=0.801819), batch(), KEEP)
    assert found.tolist() == pytest.approx([math.exp(-0.801819)] * 3)
    phi = S.log() - (S * S.log()).sum()
    assert phi.tolist() == pytest.approx([0.336506, -0.174320, -0.579785], abs=1e-6)
    assert float((S * phi).sum()) == pytest.approx(0.0, abs=1e-12)
    power = AnswerPower("phi", factor=-1.0, cap=2.0)
    assert power(scores(), batch(measures=(("phi", 0.336506),)), KEEP)[0].item() == pytest.approx(0.7143, abs=1e-4)
    assert power(scores(), batch(measures=(("phi", -5.0),)), KEEP)[0].item() == pytest.approx(2.0)


def test_kdrls_penalty() -> None:
    """methods_menu C 5: E[k2] .101009."""
    term = recipe("kdrl", **INPUTS["kdrl"]).terms[1]
    tile = tile_of(S.log().expand(3, 3), T.log().expand(3, 3), torch.arange(3))
    assert float((S * term.estimator(tile)[0]).sum()) == pytest.approx(0.101009, abs=1e-6)
    assert term.scale == 2e-3


def test_advantages_add_multiply_and_scale() -> None:
    """OPID: the outcome and a thousandth of the log-ratio."""
    some = scores()
    info: dict[str, Any] = {"reward": 1.0, "group": Group(size=4, mean=0.25, deviation=0.5)}
    gap = T.log() - S.log()
    both = Sum((GroupBaseline(), Scaled(LogRatio(), 1e-3)))
    assert both(some, batch(**info), KEEP).tolist() == pytest.approx((1.4997 + 1e-3 * gap).tolist(), abs=1e-4)
    product = Product((Reward(0.5), LogRatio()))
    assert product(some, batch(**info), KEEP).tolist() == pytest.approx((0.5 * gap).tolist(), abs=1e-6)
    assert (both.needs_teacher, both.needs_reward, Sum((Reward(),)).needs_teacher) == (True, True, False)
    members = (Member(1.0, "student"), Member(0.0, "student"), Member(1.0, "privileged"))
    first = FirstAttemptBaseline()(some, batch(reward=1.0, origin="privileged", group=Group(members=members)), KEEP)
    assert first.tolist() == [0.5] * 3  # the second attempts' own mean would leave 0
    assert Masked(0.5, 2.0)(KEEP.double(), torch.tensor([0.4, 1.5, 2.1]).double()).tolist() == [0.0, 1.5, 0.0]


def test_routes_by_group_and_their_opposites() -> None:
    solved = Group(members=(Member(1.0), Member(0.0)))
    wrong, alone = AnswerInfo(reward=0.0, group=solved), AnswerInfo(reward=0.0, group=Group(members=(Member(0.0),)))
    missed = Both((ByCorrectness(False), ByPassRate(low=1e-6)))
    assert [missed(one) for one in (wrong, alone, AnswerInfo(reward=1.0, group=solved))] == [True, False, False]
    assert [Other(missed)(one) for one in (wrong, alone)] == [False, True]
    assert ByOrigin(("student",))(AnswerInfo(origin="student")) and not ByOrigin(("student",))(AnswerInfo())
    weight = Solvable()(scores(), batch(group=solved), KEEP)
    assert weight.tolist() == [1.0] * 3 and Solvable()(scores(), batch(), KEEP).tolist() == [0.0] * 3


def test_any_number_of_a_term_follows_a_schedule() -> None:
    term = recipe("rlsd", **INPUTS["rlsd"]).terms[0]
    mixes = [term.at(step, 200, []).advantage.mix for step in (0, 25, 50, 199)]  # type: ignore[union-attr]
    assert mixes == pytest.approx([0.5, 0.25, 0.0, 0.0])
    gated = Term(
        name="t", estimator=NegativeLogLikelihood(), teacher=LIVE, context=CONTEXTS["appended"], clip=2.0,
        weights=(GapGate(4.0),), skip_first=4, schedules=(("weights.0.beta", Linear()), ("skip_first", Anneal(10))),
    )  # fmt: skip
    late = gated.at(5, 10, [])
    assert late.weights == (GapGate(2.0),) and late.skip_first == 2 and late.clip == 2.0
    assert [Anneal(50)(step, 9) for step in (0, 25, 50, 99)] == [1.0, 0.5, 0.0, 0.0]


def test_the_old_name_of_a_targets_schedule_still_works() -> None:
    with pytest.warns(FutureWarning, match="target_schedule is now schedules"):
        old = Term(
            name="t", estimator=FORWARD_KL, teacher=START, context=CONTEXTS["appended"], target=GeometricBridge(0.8),
            target_schedule=Linear(reach=True),
        )  # fmt: skip
    assert old.schedules == (("target.beta", Linear(reach=True)),)
    assert dataclasses.replace(old, scale=2.0).schedules == old.schedules
    assert old.at(9, 10, []).target == GeometricBridge(0.0)


PLAIN = Term(name="t", estimator=NegativeLogLikelihood(), teacher=None, context=CONTEXTS["none"], weights=())
GROUP: dict[str, Any] = {"epochs": 0, "fresh": 1, "num_generations": 4, "verifier": "a:b"}
HINT = with_hint(CONTEXTS["peer"], Sibling())


@pytest.mark.parametrize(
    ("terms", "settings", "says"),
    [
        ({"advantage": GroupBaseline()}, {"generation": Generation(when="none_right")}, "are written first"),
        ({}, {"generation": Generation(keep=(Right(),)), "verifier": None}, "chosen by rewards.*train.verifier"),
        ({}, {"generation": Generation(weights=EMA())}, "only score"),
        ({}, {"generation": Generation(weights=External())}, "train.teacher"),
        ({}, {"generation": Generation(context=HINT)}, "a Sibling: show it to a teacher"),
        ({}, {"generation": Generation(prefix=4), "scored": "conversation"}, "set scored to 'answer'"),
        ({}, {"generation": Generation(temperature=-1.0)}, "temperature=-1.0"),
        ({}, {"extra_generations": (STUDENT,), "fresh": 0, "epochs": 1}, "set fresh to 1"),
        ({"route": ByOrigin(("teacher",)), "advantage": GroupBaseline()}, {}, "the recipe has student"),
        ({"advantage": GroupBaseline(), "policy_clip": PPOClip()}, {"generation": Generation(top_k=5)},
         "samples of the whole vocabulary"),
        ({"estimator": PolicyGradient(), "teacher": START, "context": CONTEXTS["appended"]},
         {"generation": Generation(top_p=0.9)}, "samples of the whole vocabulary"),
        ({"advantage": FirstAttemptBaseline()}, {"generation": Generation(context=CONTEXTS["appended"])},
         "no generation writes them"),
        ({"weights": (GapGate(),), "advantage": GroupBaseline()}, {}, "GapGate reads the teacher's scores"),
        ({"policy_clip": TeacherRatioClip(), "advantage": GroupBaseline()}, {}, "TeacherRatioClip reads the teacher"),
        ({"advantage": Sum(())}, {}, "has no parts"),
        ({"advantage": Sum((LogRatio(low=0.5),)), "teacher": START, "context": CONTEXTS["appended"]}, {}, "room for 0"),
        ({"advantage": GroupBaseline(), "schedules": (("scale", Linear()),)}, {}, "the factor on the scale is"),
        ({"advantage": GroupBaseline(), "schedules": (("advantage.kind", Linear()),)}, {}, "is not a number"),
        ({"advantage": GroupBaseline(), "schedules": (("weights.3.beta", Linear()),)}, {}, "leads to no number"),
        ({"estimator": FORWARD_KL, "teacher": START, "context": HINT}, {"verifier": None}, "Sibling shows an"),
        ({"estimator": FORWARD_KL, "teacher": LIVE, "context": CONTEXTS["appended"],
          "student_context": CONTEXTS["appended"]}, {}, "equals it"),
    ],
)  # fmt: skip
def test_slots_that_cannot_be_filled_so_are_refused(terms: dict[str, Any], settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        validate(Recipe(name="x", terms=(dataclasses.replace(PLAIN, **terms),), **{**GROUP, **settings}))


def test_a_pool_adds_tokens_to_tokens() -> None:
    one = dataclasses.replace(PLAIN, advantage=GroupBaseline(), pool="p", reduction=TOKEN_MEAN)
    other = dataclasses.replace(one, name="u", reduction=SEQUENCE_MEAN)
    with pytest.raises(ConfigError, match="answers of one term to tokens of another"):
        validate(Recipe(name="x", terms=(one, other), **GROUP))


def test_the_formula_shows_the_slots() -> None:
    text = "\n".join(formula(recipe("hdpo", **INPUTS["hdpo"])))
    assert "8 y ~ student(. | reference(x, c)) [privileged], where none is right, kept: Right" in text
    text = "\n".join(formula(recipe("srpo", **INPUTS["srpo"])))
    assert "T = EMA(. | peer(x, Sibling), y<t)" in text and "divided together with all terms of 'tokens'" in text
    assert "S = student(. | system(x, c), y<t)" in "\n".join(formula(recipe("sage", **INPUTS["sage"])))
    assert "advantage.mix * Anneal(steps=50)" in "\n".join(formula(recipe("rlsd", **INPUTS["rlsd"])))
    text = "\n".join(formula(recipe("dasd", **INPUTS["dasd"])))
    assert "1 y ~ student(. | x), finished by external [spliced], kept: Ended" in text
    assert "temperature=1.5, top_p=0.8, top_k=20" in "\n".join(formula(recipe("essd")))


def test_ra_opd_needs_a_verifier_for_its_route() -> None:
    with pytest.raises(ConfigError, match=r"train\.verifier"):
        validate(recipe("ra-opd"))
    validate(recipe("ra-opd", told="words", **INPUTS["ra-opd"]))
    with pytest.raises(ConfigError, match="told"):
        recipe("ra-opd", told="everything")
    manifests = [describe(recipe("ra-opd", told=told)) for told in ("nothing", "outcome", "words")]
    assert manifests[0] != manifests[1] != manifests[2]
