"""Rejects recipes that cannot work before a model is loaded, each with its reason and remedy.

Owns the constraints between terms and settings. `loss_stage.Distance` owns those between estimator, target and support,
`parts.fields` those of single values. `advice` only warns.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from afterword.errors import ConfigError
from afterword.learn.loss.loss_stage import Distance
from afterword.learn.loss.terms import Term, scaled_field
from afterword.learn.parts.advantages import GroupBaseline, LogRatio, PPOClip, ReturnToGo
from afterword.learn.parts.divergences import K3, Follows
from afterword.learn.parts.fields import faults
from afterword.learn.parts.schedules import OnMetric, Schedule
from afterword.learn.parts.targets import IDENTITY, GeometricBridge
from afterword.learn.parts.teachers import External, Released, Routed, Teacher
from afterword.learn.parts.weights import Cap, ChangedTokens, EntropyGate, ImportanceRatio, LeastRatio, Prefix
from afterword.learn.recipes import Recipe
from afterword.learn.recipes.formula import part_text
from afterword.records import Turn

_LONG = 1000
"""Steps of the run on which schedules are tried."""


def validate(recipe: Recipe) -> None:
    """Check a recipe.

    Raises:
        ConfigError: With every fault, a sentence each; values of a wrong type alone where there are any.
    """
    invalid = dict.fromkeys(faults(recipe))
    found = [fault.message for fault in invalid if fault.wrong_type]
    if not found:
        found = [*_recipe_faults(recipe), *(fault.message for fault in invalid), *_term_faults(recipe)]
    if found:
        raise ConfigError(f"recipe {recipe.name!r} cannot be trained: " + "; ".join(found))


def check_runnable(recipe: Recipe) -> None:
    """Check everything that a run needs of a recipe, before a model is loaded: `validate`, and the verifier's import.

    Raises:
        ConfigError: The recipe cannot be trained, or its verifier cannot be imported.
    """
    validate(recipe)
    if recipe.verifier:
        load_verifier(recipe.verifier)


def load_verifier(name: str) -> Callable[[Turn, str], Any]:
    """Import a verifier.

    Args:
        name: `package.module:function`; the function takes a turn and an answer's text and returns a number.

    Raises:
        ConfigError: It cannot be imported, or is no function.
    """
    module, _, function = name.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"the verifier {name!r} cannot be imported ({error}): name it `package.module:function`", param="verifier"
        ) from error
    if not callable(found):
        raise ConfigError(f"the verifier {name!r} is {found!r}, not a function", param="verifier")
    return found  # type: ignore[no-any-return]


def _recipe_faults(recipe: Recipe) -> list[str]:
    return [fault for check in _RECIPE_CHECKS if (fault := check(recipe))]


def _term_faults(recipe: Recipe) -> list[str]:
    pairs = ((term, check) for term in recipe.terms for check in _TERM_CHECKS)
    return [f"term {term.name!r}: {fault}" for term, check in pairs if (fault := check(recipe, term))]


def advice(recipe: Recipe) -> list[str]:
    """Warnings about settings that can be trained but went wrong in experiments, a sentence each."""
    found = []
    if not recipe.lr:
        found.append("the learning rate is 0: the run measures and learns nothing")
    teachers = {t.teacher.weights for t in recipe.terms if t.teacher is not None}
    if teachers == {"live"}:
        found.append("the live model is its own teacher without an anchor: an EMA or the start was more stable")
    if recipe.epochs > 1 and any(_sampled(t) or _credits(t) for t in recipe.terms if not t.policy_clip.needs_served):
        found.append("from the second epoch on the served answers are no longer the student's own samples")
    if any(isinstance(t.advantage, ReturnToGo) for t in recipe.terms):
        found.append("credit for what follows a token has a variance that grows with the answer's length")
    return found


def _work(recipe: Recipe) -> str | None:
    if not recipe.epochs and not recipe.fresh:
        return "epochs=0 and fresh=0 leave nothing to train on: set one of them to 1 or more"
    if _zero(recipe.schedule):
        return f"{recipe.schedule} is 0 throughout, so nothing would be learned: leave it out"
    return None


def _zero(schedule: Schedule) -> bool:
    """Whether a schedule is 0 at every step."""
    if isinstance(schedule, OnMetric):
        return schedule.before == 0 and schedule.after == 0
    return all(schedule(step, _LONG) == 0 for step in range(_LONG))


def _has_terms(recipe: Recipe) -> str | None:
    if not recipe.terms:
        return "it has no terms: give at least one"
    if len({t.name for t in recipe.terms}) < len(recipe.terms):
        return f"two terms have one name ({', '.join(t.name for t in recipe.terms)}): metrics are stored by name"
    if recipe.fresh and all(t.teacher is None and t.advantage is None for t in recipe.terms):
        return "without a teacher the student would imitate its own fresh answers: set fresh to 0"
    if not any(_teaches(t) for t in recipe.terms):
        return (
            "in every term the teacher reads the same as the student, so nothing can be learned: "
            "use a context with hindsight"
        )
    return None


def _teaches(term: Term) -> bool:
    """Whether the term can differ from the student at the start of the run."""
    if term.teacher is None or term.context.privileged:
        return True
    return any(isinstance(t, External | Released) for t in _all(term.teacher))


def _all(teacher: Teacher) -> tuple[Teacher, ...]:
    return teacher.parts if isinstance(teacher, Routed) else (teacher,)


def _sampled(term: Term) -> bool:
    """Whether it compares with a teacher at the served tokens alone."""
    return term.estimator.sampled and term.estimator.needs_teacher


def _credits(term: Term) -> bool:
    return term.advantage is not None and term.advantage.needs_teacher


def _wants_teacher(term: Term) -> bool:
    return term.estimator.needs_teacher or _credits(term)


def _teacher(recipe: Recipe, term: Term) -> str | None:
    if _wants_teacher(term) and term.teacher is None:
        return "it compares with a teacher: name one (START, BASE or LIVE)"
    if not _wants_teacher(term) and (term.teacher is not None or term.context.privileged):
        return "it reads only the served ids: leave out the teacher and use the context 'none'"
    gates = [
        w for w in term.weights if isinstance(w, LeastRatio) or (isinstance(w, EntropyGate) and w.side == "teacher")
    ]
    if gates and term.teacher is None:
        return f"{type(gates[0]).__name__} reads the teacher's scores, and there is no teacher: leave it out"
    if term.teacher is not None and not term.teacher.frozen and not term.context.privileged:
        return (
            "a teacher that is or follows the student and reads no hindsight equals it, the loss is 0: freeze it or "
            "give a context"
        )
    return None


def _teacher_settings(recipe: Recipe, term: Term) -> str | None:
    for teacher in (part for side in (term.teacher, term.reference) if side is not None for part in _all(side)):
        if isinstance(teacher, External) and not teacher.model:
            return "it learns from another model: name its folder in train.teacher"
        if isinstance(teacher, External) and "://" in teacher.model:
            return (
                f"a server such as {teacher.model!r} returns the log-probabilities of a few tokens, a distance needs "
                "whole distributions: name the folder or hub id of the model in train.teacher"
            )
        if isinstance(teacher, External) and isinstance(term.teacher, Routed) and teacher in _all(term.teacher):
            return "an external teacher has a head of its own, so it cannot be routed: give it a term with a route"
        if isinstance(teacher, Released) and not teacher.folder:
            return "its teacher is a released adapter: name its folder in train.teacher"
    return None


def _parts(recipe: Recipe, term: Term) -> str | None:
    faults = Distance(term.estimator, term.target, term.support).faults()
    if isinstance(term.estimator, K3):
        faults.append(
            "k3 back-propagated has the gradient of KL(T||S), not of the KL(S||T) that its value estimates: use "
            "ForwardKL for the one (exact, at the same cost), K2 or PolicyGradient for the other"
        )
    return "; ".join(faults) or None


def _target(recipe: Recipe, term: Term) -> str | None:
    if term.target.needs_reference and term.reference is None:
        return f"{type(term.target).__name__} reads a reference: name its weights (START or BASE)"
    if term.reference is not None and not term.target.needs_reference:
        return f"{type(term.target).__name__} reads no reference: leave it out"
    if term.reference is not None and (term.reference, term.reference_context) == (term.teacher, term.context):
        return "its reference is its teacher, so it cancels: give it other weights or another reference_context"
    if term.target.temperature != 1.0 and _sampled(term):
        return (
            f"{type(term.estimator).__name__} is right only over samples of what it compares, and answers are sampled "
            f"at temperature 1: leave out {term.target}, or use a full-vocabulary divergence"
        )
    if not isinstance(term.target, GeometricBridge) or not term.target.beta:
        return None
    falls = [schedule for path, schedule in term.schedules if path == "target.beta"]
    if not any(schedule(_LONG - 1, _LONG) <= 1e-9 for schedule in falls):
        return (
            f"a bridge of beta {term.target.beta} that does not fall to 0 ends at T^(1/(1-beta)), sharper than the "
            'teacher, or nowhere: give schedules=(("target.beta", Linear(reach=True)),)'
        )
    return None


def _schedules(recipe: Recipe, term: Term) -> str | None:
    """Every scheduled field is there, is a number, and stays valid from the first step to the last."""
    for path, schedule in term.schedules:
        if path.split(".")[0] in ("scale", "schedule", "schedules", "name"):
            return f"{path!r} cannot be scheduled: the factor on the scale is `schedule`"
        try:
            moved = [scaled_field(term, path.split("."), schedule(step, _LONG)) for step in (0, _LONG // 2, _LONG - 1)]
        except (AttributeError, ValueError, IndexError, TypeError) as error:
            return (
                f"{path!r} leads to no number of the term ({error}): name a field by its path, such as 'target.beta' "
                "or 'weights.1.beta'"
            )
        if invalid := [fault.message for one in moved for fault in faults(one)]:
            return f"{part_text(schedule)} on {path!r} makes a value invalid: {invalid[0]}"
    return None


def _text(recipe: Recipe, term: Term) -> str | None:
    if term.context.text is not None and not term.context.text.strip():
        return "it distils a fixed text, which is empty: write it into train.experience"
    return None


def _advantage(recipe: Recipe, term: Term) -> str | None:
    if term.advantage is not None and term.estimator.follows is not Follows.LIKELIHOOD:
        return (
            f"an advantage is a factor on log S(y), not on {type(term.estimator).__name__}: a divergence is no "
            "advantage, and a signed one is no divergence. Use NegativeLogLikelihood"
        )
    if isinstance(term.policy_clip, PPOClip) and term.advantage is None and not _sampled(term):
        return (
            f"a PPO clip needs an advantage, and {type(term.estimator).__name__} has none: use PolicyGradient, or give "
            "one"
        )
    if isinstance(term.policy_clip, PPOClip) and term.advantage is None and term.target != IDENTITY:
        return (
            f"a PPO clip stops tokens by the sign of log T(y) - log S(y), which is not that of the advantage towards "
            f"{type(term.target).__name__}: use Truncated, or the teacher as it is"
        )
    if isinstance(term.advantage, LogRatio) and (fault := _one_sided(term.advantage)):
        return fault
    if term.advantage is not None and term.advantage.needs_reward and recipe.fresh and not recipe.verifier:
        return "fresh answers have no reward: name a function in train.verifier"
    if isinstance(term.advantage, GroupBaseline) and recipe.num_generations < 2:
        return "it compares the answers to one prompt: set num_generations to 2 or more"
    if isinstance(term.advantage, GroupBaseline) and not recipe.fresh:
        return "it compares fresh answers to one prompt: set fresh to 1 or more"
    if term.policy_clip.needs_served and any(isinstance(w, ImportanceRatio) for w in term.weights):
        return f"{type(term.policy_clip).__name__} weighs by the importance ratio already: leave out ImportanceRatio"
    return None


def _one_sided(bounds: LogRatio) -> str | None:
    low, high = bounds.low, bounds.high
    if (low is None or low <= 0) and (high is None or high >= 0):
        return None
    return f"{bounds} has no room for 0, so that tokens on which both sides agree are moved: low <= 0 <= high"


def _off_policy(recipe: Recipe, term: Term) -> str | None:
    if not recipe.include_off_policy:
        return None
    if term.estimator.sampled and (term.estimator.needs_teacher or term.advantage is not None):
        return (
            "a sampled-token estimator is right only on tokens that the model sampled itself: use a "
            "full-vocabulary divergence, or set include_off_policy to false"
        )
    if term.needs_served:
        return (
            "it weighs tokens by the log-probability with which they were sampled, which imported answers do not "
            "have: leave out the weight, or set include_off_policy to false"
        )
    return None


def _clip(recipe: Recipe, term: Term) -> str | None:
    clipped = term.clip is not None or any(isinstance(w, Cap) for w in term.weights)
    if clipped and not term.estimator.distance:
        return f"the value of {type(term.estimator).__name__} is no distance, so it cannot be clipped: leave out clip"
    return None


def _changed(recipe: Recipe, term: Term) -> str | None:
    if not any(isinstance(w, ChangedTokens) for w in term.weights):
        return None
    if term.advantage is None and term.estimator.follows is Follows.LIKELIHOOD:
        return "it would imitate most what the user edited away: leave out ChangedTokens"
    return None


def _counts(recipe: Recipe, term: Term) -> str | None:
    if _zero(term.schedule):
        return f"{term.schedule} is 0 throughout, so the term never counts: leave the term out"
    if term.masks and any(isinstance(m, Prefix) and m.tokens <= term.skip_first for m in term.masks):
        return f"skip_first={term.skip_first} and {term.masks} leave no token: skip fewer"
    return None


_RECIPE_CHECKS: tuple[Callable[[Recipe], str | None], ...] = (_work, _has_terms)
_TERM_CHECKS: tuple[Callable[[Recipe, Term], str | None], ...] = (
    _teacher,
    _teacher_settings,
    _parts,
    _schedules,
    _target,
    _text,
    _advantage,
    _off_policy,
    _clip,
    _changed,
    _counts,
)
