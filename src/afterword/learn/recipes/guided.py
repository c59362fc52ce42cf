"""Methods with guided answers: by a hint, the opening of a good answer, a later checkpoint, or a second attempt.

Each recipe wants `train.verifier`; `vold` and `npo` also `train.teacher`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from afterword.learn.loss.terms import Term
from afterword.learn.parts.advantages import NO_CLIP, GroupBaseline
from afterword.learn.parts.contexts import BEGUN, CONTEXTS, REFERENCE_KINDS, Context
from afterword.learn.parts.divergences import FORWARD_KL, NegativeLogLikelihood, ReverseKL
from afterword.learn.parts.fields import OpenShare, TermScale, TermScaleOrZero, method
from afterword.learn.parts.generation import Generation, Right
from afterword.learn.parts.teachers import LIVE, External, Released
from afterword.learn.parts.weights import (
    TOKEN_MEAN,
    WEIGHT_MEAN,
    Both,
    ByCorrectness,
    ByKind,
    ByOrigin,
    LikeliestRight,
)
from afterword.learn.recipes.group import GROUP, NONE, Extra, outcome
from afterword.learn.recipes.recipe import ON_POLICY, Recipe

_OWN, _GUIDED = ByOrigin(("student",)), ByOrigin(("privileged",))


@method
def nurl(*, hint: Context = CONTEXTS["system"], n: Extra = 7, **settings: Any) -> Recipe:
    """All but one of a failed group are drawn again with a hint, all compared in one group (arXiv 2509.25666)."""
    across = GroupBaseline("grpo", across=True)
    own = outcome("plain", route=_OWN, advantage=across, pool="tokens")
    hinted = outcome("hinted", route=_GUIDED, student_context=hint, advantage=across, pool="tokens")
    again = Generation(context=hint, n=n, when="none_right")
    return Recipe(name="nurl", terms=(own, hinted), **{**GROUP, "extra_generations": (again,), **settings})


@method
def pope(*, n: Extra = 8, **settings: Any) -> Recipe:
    """Half of the answers go on from the opening of the answer that was wanted, half without (arXiv 2601.18779)."""
    own = outcome("plain", route=_OWN, pool="tokens")
    guided = outcome("guided", route=_GUIDED, student_context=BEGUN, pool="tokens")
    begun = Generation(context=BEGUN, n=n)
    return Recipe(name="pope", terms=(own, guided), **{**GROUP, "extra_generations": (begun,), **settings})


@method
def npo(*, teacher: str | None = None, n: Extra = 1, **settings: Any) -> Recipe:
    """A right answer of a later checkpoint joins the group where no answer is right (arXiv 2604.20733)."""
    later = Generation(weights=Released(folder=teacher or ""), n=n, when="none_right", keep=(Right(),))
    term = outcome(advantage=GroupBaseline("grpo", across=True))
    return Recipe(name="npo", terms=(term,), **{**GROUP, "extra_generations": (later,), **settings})


@method
def erl(*, scale: TermScale = 1.0, n: Extra = 8, **settings: Any) -> Recipe:
    """Failures are tried again with the user's words; what then succeeds is imitated (arXiv 2602.13949)."""
    again = CONTEXTS["next_turn"]
    first = outcome("first", route=_OWN)
    second = outcome("second", route=_GUIDED, student_context=again)
    kept = Term(
        name="internalised", estimator=NegativeLogLikelihood(), teacher=None, context=NONE, reduction=TOKEN_MEAN,
        weights=(), route=Both((_GUIDED, ByCorrectness(True))), scale=scale,
    )  # fmt: skip
    retry = Generation(context=again, n=n, when="none_right")
    return Recipe(name="erl", terms=(first, second, kept), **{**GROUP, "extra_generations": (retry,), **settings})


@method
def pi_distill(*, share: OpenShare = 0.5, beta: TermScale = 0.1, **settings: Any) -> Recipe:
    """The model that knows the answer and the one that does not learn from the same answers (arXiv 2602.04942)."""
    known, route = CONTEXTS["reference"], ByKind(REFERENCE_KINDS)
    near: dict[str, Any] = {"teacher": LIVE, "reduction": TOKEN_MEAN, "weights": (), "route": route}
    knowing = outcome("knowing", student_context=known, scale=share, route=route)
    close = Term(
        name="close", estimator=ReverseKL(), context=NONE, student_context=known, scale=share * beta, **near,
    )  # fmt: skip
    plain = outcome("plain", scale=1 - share, route=route, policy_clip=NO_CLIP)
    led = Term(name="led", estimator=FORWARD_KL, context=known, scale=(1 - share) * beta, **near)
    drawn = Generation(context=known)
    return Recipe(name="pi-distill", terms=(knowing, close, plain, led), **{**GROUP, "generation": drawn, **settings})


@method
def vold(*, teacher: str | None = None, beta: TermScale = 0.1, **settings: Any) -> Recipe:
    """Policy gradient on a verifier's score, and another model's distribution on failures (arXiv 2510.23497)."""
    led = Term(
        name="failures", estimator=FORWARD_KL, teacher=External(model=teacher or ""), context=NONE,
        reduction=TOKEN_MEAN, weights=(), route=ByCorrectness(False), scale=beta,
    )  # fmt: skip
    return Recipe(name="vold", terms=(outcome(), led), **{**GROUP, **settings})


@method
def varreason(*, hold: TermScaleOrZero = 0.0, n: Extra = 8, **settings: Any) -> Recipe:
    """Imitate, of the right answers that knew the solution, the likeliest without it (arXiv 2509.22637)."""
    known = CONTEXTS["reference"]
    best = Term(
        name="best", estimator=NegativeLogLikelihood(), teacher=LIVE, context=known, reduction=WEIGHT_MEAN,
        weights=(LikeliestRight(),), route=Both((_GUIDED, ByKind(REFERENCE_KINDS))),
    )  # fmt: skip
    led = Term(
        name="posterior", estimator=NegativeLogLikelihood(), teacher=None, context=NONE, student_context=known,
        reduction=TOKEN_MEAN, weights=(),
        route=Both((_GUIDED, ByCorrectness(True), ByKind(REFERENCE_KINDS))),
    )  # fmt: skip
    drawn = Generation(context=known, n=n)
    terms = (best, replace(led, scale=hold)) if hold else (best,)
    return Recipe(name="varreason", terms=terms, **{**ON_POLICY, "generation": drawn, **settings})


@method
def iterative_sft(*, n: Annotated[int, Field(ge=1, le=1024)] = 5, **settings: Any) -> Recipe:
    """Imitate the student's own right answers, drawn anew in every pass (arXiv 2510.18874)."""
    term = Term(name="right", estimator=NegativeLogLikelihood(), teacher=None, context=NONE, reduction=TOKEN_MEAN)
    drawn = Generation(n=n, keep=(Right(),))
    return Recipe(name="iterative-sft", terms=(term,), **{**ON_POLICY, "generation": drawn, **settings})
