"""Methods over groups of answers that a verifier judges: a teacher says where, hints make the hard ones solvable.

Each recipe wants `train.verifier`; those that learn from another model also `train.teacher`.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from afterword.learn.loss.terms import Term
from afterword.learn.parts.advantages import (
    NO_CLIP,
    FirstAttemptBaseline,
    GroupBaseline,
    PPOClip,
    TeacherMagnitude,
    TeacherRatioClip,
)
from afterword.learn.parts.contexts import (
    AGAIN,
    CONTEXTS,
    REFERENCE_KINDS,
    Context,
    Disclosed,
    Reflection,
    Sibling,
    with_hint,
)
from afterword.learn.parts.divergences import JSD, K2, NegativeLogLikelihood, PolicyGradient, ReverseKL
from afterword.learn.parts.fields import Count, NonNegative, OpenShare, Positive, Share, TermScale, UnitInterval, method
from afterword.learn.parts.generation import Ended, Generation, Longest, Right
from afterword.learn.parts.schedules import Anneal
from afterword.learn.parts.supports import TopK
from afterword.learn.parts.teachers import EMA, LIVE, START, Copy, External
from afterword.learn.parts.weights import (
    TOKEN_MEAN,
    WEIGHT_MEAN,
    Both,
    ByCorrectness,
    ByKind,
    ByOrigin,
    ByPassRate,
    GapGate,
    GroupSoftmax,
    Other,
    TeacherConfidence,
)
from afterword.learn.recipes.recipe import ON_POLICY, Recipe

GROUP: dict[str, Any] = {**ON_POLICY, "num_generations": 8, "batch": 16}
_CLIP = PPOClip(low=0.2, high=0.28)
NONE = CONTEXTS["none"]
_SOLVED: dict[str, Any] = {"low": 1e-6}
"""Prompts of which some answer is right."""
Extra = Annotated[int, Field(ge=1, le=1024)]
"""Further answers to a prompt."""


def outcome(name: str = "outcome", **parts: Any) -> Term:
    """GRPO's term: the reward within the group, every token counting the same."""
    fixed: dict[str, Any] = {
        "estimator": NegativeLogLikelihood(),
        "teacher": None,
        "context": NONE,
        "reduction": TOKEN_MEAN,
        "weights": (),
        "advantage": GroupBaseline("grpo"),
        "policy_clip": _CLIP,
    }
    return Term(name=name, **{**fixed, **parts})


@method
def kdrl(*, teacher: str | None = None, beta: TermScale = 2e-3, **settings: Any) -> Recipe:
    """Policy gradient on a verifier's score, and a reverse KL to another model (arXiv 2506.02208)."""
    near = Term(
        name="teacher", estimator=K2(), teacher=External(model=teacher or ""), context=NONE, reduction=TOKEN_MEAN,
        weights=(), scale=beta,
    )  # fmt: skip
    return Recipe(name="kdrl", terms=(outcome(), near), **{**GROUP, **settings})


@method
def rlad(*, teacher: str | None = None, mix: UnitInterval = 0.5, **settings: Any) -> Recipe:
    """Policy gradient on a verifier's score, another model inside the clipped ratio (arXiv 2602.22495)."""
    clip = TeacherRatioClip(mix=mix, low=0.2, high=0.28)
    term = outcome(teacher=External(model=teacher or ""), policy_clip=clip)
    return Recipe(name="rlad", terms=(term,), **{**GROUP, **settings})


@method
def rlsd(*, mix: UnitInterval = 0.5, bound: OpenShare = 0.2, steps: Count = 50, **settings: Any) -> Recipe:
    """The verifier says whether, a teacher that knows the answer how much (arXiv 2604.03128)."""
    term = outcome(
        teacher=Copy(every=10),
        context=CONTEXTS["reference"],
        route=ByKind(REFERENCE_KINDS),
        advantage=TeacherMagnitude(GroupBaseline("grpo"), mix=mix, bound=bound),
        schedules=(("advantage.mix", Anneal(steps)),),
    )
    return Recipe(name="rlsd", terms=(term,), **{**GROUP, **settings})


@method
def sdar(*, beta: NonNegative = 5.0, scale: TermScale = 0.01, anchor: TermScale = 0.01, **settings: Any) -> Recipe:
    """Policy gradient on a verifier's score, and a push on tokens that hindsight likes (arXiv 2605.15155)."""
    gated = Term(
        name="gated", estimator=NegativeLogLikelihood(), teacher=LIVE, context=CONTEXTS["system"],
        reduction=TOKEN_MEAN, weights=(GapGate(beta),), scale=scale,
    )  # fmt: skip
    start = Term(
        name="anchor_start", estimator=ReverseKL(), teacher=START, context=NONE, reduction=TOKEN_MEAN, weights=(),
        scale=anchor,
    )  # fmt: skip
    return Recipe(name="sdar", terms=(outcome(), gated, start), **{**GROUP, **settings})


@method
def srpo(*, beta: NonNegative = 1.0, k: Count = 100, rate: Share = 0.05, **settings: Any) -> Recipe:
    """Wrong answers learn from a right sibling, all others from their reward (arXiv 2604.02288)."""
    missed = Both((ByCorrectness(False), ByPassRate(**_SOLVED)))
    sibling = Term(
        name="sibling", estimator=JSD(0.5), teacher=EMA(rate=rate), context=with_hint(CONTEXTS["peer"], Sibling()),
        support=TopK(k, of="student", remainder="tail"), route=missed, reduction=WEIGHT_MEAN,
        weights=(TeacherConfidence(beta),), pool="tokens",
    )  # fmt: skip
    terms = (sibling, outcome(route=Other(missed), pool="tokens"))
    return Recipe(name="srpo", terms=terms, **{**GROUP, **settings})


@method
def scope(*, teacher: str | None = None, temperature: Positive = 1.0, **settings: Any) -> Recipe:
    """Right answers are imitated, wrong ones led by another model, by perplexity in the group (arXiv 2604.10688)."""
    right = Term(
        name="right", estimator=NegativeLogLikelihood(), teacher=None, context=NONE, reduction=TOKEN_MEAN,
        route=ByCorrectness(True), weights=(GroupSoftmax("logp_student", -temperature),),
    )  # fmt: skip
    wrong = Term(
        name="wrong", estimator=PolicyGradient(), teacher=External(model=teacher or ""), context=NONE,
        reduction=TOKEN_MEAN, route=ByCorrectness(False), weights=(GroupSoftmax("logp_teacher", temperature),),
    )  # fmt: skip
    return Recipe(name="scope", terms=(right, wrong), **{**GROUP, **settings})


@method
def hdpo(*, scale: TermScale = 0.1, k: Annotated[int, Field(ge=2)] = 64, n: Extra = 8, **settings: Any) -> Recipe:
    """Prompts without a right answer learn from right ones that knew the solution (arXiv 2603.23871)."""
    known = CONTEXTS["reference"]
    privileged = Term(
        name="privileged", estimator=JSD(0.5), teacher=LIVE, context=known, reduction=TOKEN_MEAN, weights=(),
        support=TopK(k, of="teacher", remainder="teacher"), scale=scale,
        route=Both((ByOrigin(("privileged",)), ByKind(REFERENCE_KINDS))),
    )  # fmt: skip
    route = Both((ByOrigin(("student",)), ByKind(REFERENCE_KINDS)))
    own = outcome(route=route, advantage=GroupBaseline("leave_one_out"), policy_clip=PPOClip())
    cliff = Generation(context=known, n=n, when="none_right", keep=(Right(),))
    return Recipe(name="hdpo", terms=(own, privileged), **{**GROUP, "extra_generations": (cliff,), **settings})


@method
def sage(*, hint: Context = CONTEXTS["system"], n: Extra = 8, **settings: Any) -> Recipe:
    """Prompts without a right answer are tried again with a hint, which the student then reads (arXiv 2602.03143)."""
    own = outcome("plain", route=ByOrigin(("student",)), pool="tokens")
    hinted = outcome("hinted", route=ByOrigin(("privileged",)), student_context=hint, pool="tokens")
    again = Generation(context=hint, n=n, when="none_right")
    return Recipe(name="sage", terms=(own, hinted), **{**GROUP, "extra_generations": (again,), **settings})


@method
def rltf(*, n: Extra = 8, **settings: Any) -> Recipe:
    """Second attempts that read the user's words are reinforced without them (arXiv 2602.02482)."""
    first = outcome("first", route=ByOrigin(("student",)))
    second = outcome("second", route=ByOrigin(("privileged",)), advantage=FirstAttemptBaseline(), policy_clip=NO_CLIP)
    again = Generation(context=CONTEXTS["next_turn"], n=n)
    return Recipe(name="rltf", terms=(first, second), **{**GROUP, "extra_generations": (again,), **settings})


@method
def sd_zero(*, k: Count = 64, **settings: Any) -> Recipe:
    """The model that reads its answer and whether it is right scores the same answer again (arXiv 2604.12002)."""
    term = Term(
        name="reviser", estimator=ReverseKL(), teacher=START, context=AGAIN, reduction=TOKEN_MEAN, weights=(),
        support=TopK(k, of="student", remainder="tail"),
    )  # fmt: skip
    return Recipe(name="sd-zero", terms=(term,), **{**ON_POLICY, **settings})


@method
def ra_opd(
    *,
    told: Disclosed = "outcome",
    tokens: Annotated[int, Field(ge=1, le=4096)] = 64,
    rate: Share = 1e-4,
    **settings: Any,
) -> Recipe:
    """Wrong answers are scored by the model that reads its own reflection on them (after arXiv 2605.12741).

    `told` is what the student knows when it reflects: nothing, that the answer is wrong, or the interaction's text.
    """
    where = with_hint(CONTEXTS["reflected"], Reflection(tokens=tokens, told=told))
    term = Term(
        name="reflected", estimator=ReverseKL(), teacher=EMA(rate=rate), context=where, reduction=TOKEN_MEAN,
        weights=(), route=ByCorrectness(False),
    )  # fmt: skip
    return Recipe(name="ra-opd", terms=(term,), **{**ON_POLICY, **settings})


@method
def essd(
    *,
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.5,
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.8,
    top_k: Annotated[int, Field(ge=0)] = 20,
    **settings: Any,
) -> Recipe:
    """Imitate the model's own hot, truncated samples; no teacher, no verifier (arXiv 2604.01193)."""
    term = Term(name="own", estimator=NegativeLogLikelihood(), teacher=None, context=NONE, reduction=TOKEN_MEAN)
    hot = Generation(weights=START, temperature=temperature, top_p=top_p, top_k=top_k, keep=(Longest(0.9),))
    return Recipe(name="essd", terms=(term,), **{"epochs": 0, "fresh": 1, "generation": hot, **settings})


@method
def dasd(*, teacher: str | None = None, **settings: Any) -> Recipe:
    """Imitate answers that the student begins and another model ends: the mixed stage (arXiv 2601.09088)."""
    term = Term(name="spliced", estimator=NegativeLogLikelihood(), teacher=None, context=NONE, reduction=TOKEN_MEAN)
    mixed = Generation(finish=External(model=teacher or ""), keep=(Ended(),))
    return Recipe(name="dasd", terms=(term,), **{"epochs": 0, "fresh": 1, "generation": mixed, **settings})
