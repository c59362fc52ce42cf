"""Recipes are compositions that describe themselves; impossible ones are refused with the remedy."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from tests.learn.recipe_inputs import INPUTS

from afterword.errors import ConfigError
from afterword.learn.loss.terms import Term
from afterword.learn.parts.advantages import LogRatio, PPOClip, Truncated
from afterword.learn.parts.anchors import entropy_bonus, gold_mix, imitation, kl_to_base
from afterword.learn.parts.contexts import CONTEXTS
from afterword.learn.parts.divergences import (
    FORWARD_KL,
    JSD,
    K1,
    K2,
    K3,
    NegativeLogLikelihood,
    PolicyGradient,
    ReverseKL,
    SkewForwardKL,
)
from afterword.learn.parts.schedules import Linear
from afterword.learn.parts.supports import TopK
from afterword.learn.parts.targets import Extrapolation, GeometricBridge, Temperature
from afterword.learn.parts.teachers import BASE, EMA, LIVE, START, Copy, External, Released, Routed, TrustRegion
from afterword.learn.parts.weights import Cap, ChangedTokens, EntropyGate, ImportanceRatio
from afterword.learn.recipes import RECIPES, Lora, Recipe, describe, recipe, sdpo_interactions, sft
from afterword.learn.recipes.validate import advice, validate


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_is_valid_and_describes_itself_as_json(name: str) -> None:
    made = recipe(name, **INPUTS.get(name, {}))
    validate(made)
    assert made.name == name
    described = describe(made)
    assert json.loads(json.dumps(described)) == described
    assert described["terms"][0]["estimator"]["part"] == type(made.terms[0].estimator).__name__


def test_settings_reach_the_recipe() -> None:
    made = recipe("sdpo-interactions", lr=3e-4, rank=8, context="block", anchor=0.2)
    assert (made.lr, made.lora, made.terms[0].context) == (3e-4, Lora(rank=8, alpha=16.0), CONTEXTS["block"])
    assert [t.name for t in made.terms] == ["hindsight", "anchor_kl"]
    assert describe(made) != describe(recipe("sdpo-interactions"))


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("sdpo-interaction", {}, "did you mean 'sdpo-interactions"),
        ("SDPO", {}, "did you mean 'sdpo'"),
        ("stable_opd", {}, "did you mean 'stable-opd'"),
        ("nonsense", {}, "use one of .*sdpo-interactions"),
        ("sdpo-interactions", {"epoch": 1}, "did you mean 'epochs'"),
        ("sdpo-interactions", {"context": "blok"}, "did you mean 'block'"),
        ("sdpo-interactions", {"template": "shorter"}, "does not name"),
        ("sdpo-interactions", {"template_praise": "{hindsight}"}, "give both"),
        ("sft", {"context": "block"}, "leave out context"),
    ],
)
def test_a_typo_names_what_is_known(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        recipe(name, **options)


def test_own_words_reach_every_term_and_the_description() -> None:
    made = recipe("sdpo-interactions", context="system", template="Note: {hindsight}", anchor=0.1)
    assert made.terms[0].context.place([], {}, "No.")[0] == {"role": "system", "content": "Note: No."}
    assert made.terms[1].context == CONTEXTS["none"]
    assert "Note: {hindsight}" in json.dumps(describe(made))
    assert recipe("sdpo-interactions", template=None) == recipe("sdpo-interactions")


def single(**changes: Any) -> Recipe:
    settings: dict[str, Any] = {"name": "t", "estimator": FORWARD_KL, "teacher": START}
    return Recipe(name="x", terms=(Term(**{**settings, "context": CONTEXTS["appended"], **changes}),))


@pytest.mark.parametrize(
    ("bad", "remedy"),
    [
        (Recipe(name="x", terms=()), "give at least one"),
        (single(context=CONTEXTS["none"]), "use a context with hindsight"),
        (single(context=CONTEXTS["none"], teacher=LIVE), "freeze it or give a context"),
        (single(teacher=None), "name one"),
        (single(estimator=NegativeLogLikelihood()), "leave out the teacher"),
        (single(estimator=JSD(1.0)), "use ForwardKL or ReverseKL there"),
        (single(estimator=PolicyGradient(), clip=1.0), "leave out clip"),
        (single(clip=0.0), "clip=0.0 must be a number above 0 or None"),
        (single(weights=(Cap(-1.0),)), "most=-1.0 must be a number above 0"),
        (single(estimator=PolicyGradient(), weights=(Cap(1.0),)), "no distance"),
        (single(skip_first=-1), "skip_first=-1"),
        (sdpo_interactions(estimator=PolicyGradient(), include_off_policy=True), "full-vocabulary"),
        (sdpo_interactions(lr=float("nan")), "lr=nan"),
        (sdpo_interactions(batch=-1, max_fresh=0), "batch=-1 must be .*max_fresh=0 must be"),
        (sdpo_interactions(fresh=-1), "fresh=-1"),
        (sdpo_interactions(epochs=0, fresh=0), "epochs=0 and fresh=0 leave nothing"),
        (recipe("opcd"), r"train\.experience"),
        (sft(fresh=1), "set fresh to 0"),
        (sdpo_interactions(dtype="float16"), "bfloat16"),
    ],
)
def test_impossible_combinations_are_refused_with_the_remedy(bad: Recipe, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        validate(bad)


def compared(**changes: Any) -> Recipe:
    """One term that compares with another model."""
    return single(**{"context": CONTEXTS["none"], "teacher": External(model="/models/other"), **changes})


@pytest.mark.parametrize(
    ("bad", "remedy"),
    [
        (single(estimator=K1()), "zero in expectation.*use PolicyGradient or K2"),
        (single(estimator=K3()), "ForwardKL .*K2 or PolicyGradient"),
        (single(estimator=PolicyGradient(reward="k3")), "gradient of no distance.*use k1"),
        (single(estimator=ReverseKL(), advantage=LogRatio()), "a divergence is no advantage.*NegativeLogLikelihood"),
        (single(support=TopK(16), advantage=LogRatio()), "a divergence is no advantage"),
        (single(estimator=PolicyGradient(), support=TopK(16)), "leave out TopK"),
        (single(support=TopK(0)), "TopK.k=0 must be a whole number of at least 1"),
        (single(estimator=SkewForwardKL(1.0)), "use ForwardKL or ReverseKL there"),
        (single(policy_clip=PPOClip()), "a PPO clip needs an advantage"),
        (single(estimator=PolicyGradient(), policy_clip=PPOClip(low=1.5)), "low=1.5 must be a number above 0 and"),
        (single(estimator=NegativeLogLikelihood(), context=CONTEXTS["none"], teacher=None, advantage=LogRatio()),
         "it compares with a teacher"),
        (single(teacher=EMA(), context=CONTEXTS["none"]), "equals it, the loss is 0"),
        (single(teacher=EMA(rate=0.0)), "rate=0.0 must be a number above 0 and at most 1"),
        (single(teacher=TrustRegion(bound=0.0)), "bound=0.0 must be a number above 0"),
        (single(teacher=Copy(every=0)), "every=0 must be a whole number of at least 1"),
        (single(teacher=Released()), r"train\.teacher"),
        (compared(teacher=External()), r"train\.teacher"),
        (recipe("opd", teacher="http://localhost:8000/v1"), "needs whole distributions: name the folder"),
        (compared(teacher=Routed(routes=(("code", External(model="x")),))), "a term with a route"),
        (compared(target=GeometricBridge(0.5)), r"sharper than the teacher.*Linear\(reach=True\)"),
        (compared(target=GeometricBridge(1.5)), "beta=1.5 must be a number from 0 to 1"),
        (compared(target=Extrapolation()), "name its weights"),
        (compared(reference=START), "reads no reference"),
        (compared(target=Temperature(0.0)), "temperature=0.0 must be a number above 0"),
        (compared(estimator=NegativeLogLikelihood(), teacher=None, weights=(EntropyGate(),)), "there is no teacher"),
        (compared(estimator=NegativeLogLikelihood(), teacher=None, weights=(ChangedTokens(),)),
         "imitate most what the user edited away: leave out ChangedTokens"),
        (compared(estimator=PolicyGradient(), policy_clip=PPOClip(), target=Extrapolation(), reference=START),
         "the advantage towards Extrapolation: use Truncated"),
        (compared(
            estimator=K2(), policy_clip=PPOClip(), target=GeometricBridge(0.8),
            schedules=(("target.beta", Linear()),),
        ),
         "the advantage towards GeometricBridge: use Truncated"),
        (compared(estimator=PolicyGradient(floor=0.5), policy_clip=PPOClip()), "floor=0.5 must be a number at most 0"),
        (compared(estimator=NegativeLogLikelihood(), teacher=None, policy_clip=PPOClip()),
         "NegativeLogLikelihood has none"),
        (compared(estimator=PolicyGradient(), target=Temperature(2.0)), "sampled at temperature 1: leave out Temp"),
        (compared(estimator=K2(), target=Temperature(0.7)), "or use a full-vocabulary divergence"),
        (compared(estimator=ReverseKL(), support=TopK(16, "teacher", "teacher")), r"KL\(S\|\|T\) is infinite: use"),
        (compared(support=TopK(16, "both", "teacher")), "share no token: use its own"),
        (compared(estimator=NegativeLogLikelihood(), advantage=LogRatio(low=0.1)), "no room for 0"),
        (compared(estimator=NegativeLogLikelihood(), advantage=LogRatio(low=1.0, high=-1.0)), "low <= 0 <= high"),
        (recipe("grpo", verifier="a:b", num_generations=1), "set num_generations to 2 or more"),
        (recipe("sdpo", include_off_policy=True), "log-probability with which they were sampled"),
        (recipe("opd", teacher="x", include_off_policy=True), "own samples|sampled itself"),
        (Recipe(name="x", terms=sdpo_interactions().terms * 2), "two terms have one name"),
    ],
)  # fmt: skip
def test_meaningless_parts_are_refused_with_the_remedy(bad: Recipe, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        validate(bad)


UNWEIGHTED = ("sdpo", "opsd-clipped", "rlsd", "sdar", "srpo", "hdpo", "sd-zero", "pi-distill", "varreason",
              "episode-sdar", "skill-sd", "opid", "tamtrl", "episode-sdpo", "episode-hindsight", "ra-opd")  # fmt: skip
"""Recipes whose teacher reads something of each answer and that weigh all of its tokens alike."""


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_only_a_teacher_that_reads_the_edit_dwells_on_what_was_edited_away(name: str) -> None:
    for term in (*recipe(name, **INPUTS.get(name, {})).terms, imitation(1.0), gold_mix(1.0), kl_to_base(1.0)):
        reads = term.context.privileged and term.context.text is None
        dwells = any(isinstance(w, ChangedTokens) for w in term.weights)
        assert dwells is (reads and name not in UNWEIGHTED), term.name


@pytest.mark.parametrize(
    ("beta", "estimator"), [(0.0, FORWARD_KL), (0, FORWARD_KL), (1.0, ReverseKL()), (0.1, JSD(0.1)), (0.9, JSD(0.9))]
)
def test_gkd_takes_the_ends_that_were_published(beta: float, estimator: Any) -> None:
    made = recipe("gkd", teacher="x", beta=beta)
    validate(made)
    assert made.terms[0].estimator == estimator


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        validate(recipe("exopd", batch=0))
    assert all(words in caught.value.message for words in ("batch=0", "train.teacher"))


def test_advice_is_given_where_something_was_seen_to_go_wrong() -> None:
    assert advice(sdpo_interactions()) == []
    assert "learns nothing" in advice(sdpo_interactions(lr=0.0))[0]
    assert len(advice(recipe("sdpo-interactions-offline"))) == 2
    assert advice(sdpo_interactions(teacher=LIVE)) == advice(recipe("follow-ups", teacher=LIVE)) != []
    assert advice(sdpo_interactions(teacher=LIVE, anchor=0.1)) == []  # the base holds it
    (said,) = advice(recipe("minillm", teacher="x"))
    assert "variance" in said
    stale = single(estimator=NegativeLogLikelihood(), advantage=LogRatio())
    assert "own samples" in advice(dataclasses.replace(stale, epochs=2))[0]
    clipped = single(estimator=NegativeLogLikelihood(), advantage=LogRatio(), policy_clip=PPOClip())
    assert advice(dataclasses.replace(clipped, epochs=2)) == []


def test_useful_combinations_are_not_refused() -> None:
    validate(sdpo_interactions(teacher=LIVE))
    validate(sdpo_interactions(teacher=BASE, anchor=0.1, lr=0.0))
    validate(sft())
    validate(compared(target=GeometricBridge(0.5), schedules=(("target.beta", Linear(reach=True)),)))
    validate(compared(estimator=K2()))
    validate(compared(estimator=ReverseKL(), target=Temperature(2.0)))
    validate(compared(support=TopK(16, "teacher", "teacher")))
    validate(
        compared(estimator=NegativeLogLikelihood(), advantage=LogRatio(low=-1.72, high=0.0), policy_clip=PPOClip())
    )
    validate(compared(estimator=PolicyGradient(floor=-1.72), policy_clip=PPOClip()))
    validate(compared(estimator=PolicyGradient(), policy_clip=Truncated(), target=Extrapolation(), reference=START))
    validate(Recipe(name="x", terms=(*sdpo_interactions().terms, entropy_bonus(0.01))))
    validate(single(teacher=EMA(), weights=(ImportanceRatio(),), support=TopK(20, remainder="tail")))
    validate(Recipe(name="x", terms=(*sdpo_interactions().terms, imitation(0.1))))
