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
from afterword.learn.parts.advantages import (
    FirstAttemptBaseline,
    GroupBaseline,
    LogRatio,
    PPOClip,
    Product,
    ReturnToGo,
    Sum,
    TeacherRatioClip,
    advantage_parts,
)
from afterword.learn.parts.contexts import Context, OwnAttempt, Reflection, Sibling
from afterword.learn.parts.divergences import K3, Follows
from afterword.learn.parts.fields import faults
from afterword.learn.parts.schedules import OnMetric, Schedule
from afterword.learn.parts.targets import IDENTITY, GeometricBridge
from afterword.learn.parts.teachers import EMA, External, Released, Routed, Teacher, TrustRegion
from afterword.learn.parts.weights import (
    ByCorrectness,
    ByOrigin,
    ByPassRate,
    Cap,
    ChangedTokens,
    GroupSoftmax,
    ImportanceRatio,
    LikeliestRight,
    Prefix,
    SequenceMean,
    Solvable,
    reads_teacher,
    routes_of,
)
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
    if any(isinstance(part, ReturnToGo) for t in recipe.terms for part in advantage_parts(t.advantage)):
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
    imitates = all(t.teacher is None and t.advantage is None for t in recipe.terms)
    if recipe.fresh and imitates and all(one.plain and not one.keep for one in recipe.generations):
        return "without a teacher the student would imitate its own fresh answers: set fresh to 0"
    if not any(_teaches(t) for t in recipe.terms):
        return (
            "in every term the teacher reads the same as the student, so nothing can be learned: "
            "use a context with hindsight"
        )
    return None


def _teaches(term: Term) -> bool:
    """Whether the term can differ from the student at the start of the run."""
    if term.teacher is None or _read(term.context) != _read(term.student_context):
        return True
    return any(isinstance(t, External | Released) for t in _all(term.teacher))


def _all(teacher: Teacher) -> tuple[Teacher, ...]:
    return teacher.parts if isinstance(teacher, Routed) else (teacher,)


def _sampled(term: Term) -> bool:
    """Whether it compares with a teacher at the served tokens alone."""
    return term.estimator.sampled and term.estimator.needs_teacher


def _credits(term: Term) -> bool:
    return term.advantage is not None and term.advantage.needs_teacher


def _read(context: Context) -> Context | None:
    """The context, None for one that shows nothing."""
    return context if context.privileged else None


def _teacher(recipe: Recipe, term: Term) -> str | None:
    compares = term.estimator.needs_teacher or _credits(term)
    if compares and term.teacher is None:
        return "it compares with a teacher: name one (START, BASE or LIVE)"
    if not term.reads_teacher and (term.teacher is not None or term.context.privileged):
        return "it reads only the served ids: leave out the teacher and use the context 'none'"
    reading = [part for part in (*term.weights, term.policy_clip) if reads_teacher(part)]
    if reading and term.teacher is None:
        return f"{type(reading[0]).__name__} reads the teacher's scores, and there is no teacher: leave it out"
    same = _read(term.context) == _read(term.student_context)
    if term.teacher is not None and not term.teacher.frozen and same:
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
    ppo = isinstance(term.policy_clip, PPOClip | TeacherRatioClip)
    if ppo and term.advantage is None and not _sampled(term):
        return (
            f"a PPO clip needs an advantage, and {type(term.estimator).__name__} has none: use PolicyGradient, or give "
            "one"
        )
    if ppo and term.advantage is None and term.target != IDENTITY:
        return (
            f"a PPO clip stops tokens by the sign of log T(y) - log S(y), which is not that of the advantage towards "
            f"{type(term.target).__name__}: use Truncated, or the teacher as it is"
        )
    parts = advantage_parts(term.advantage)
    for part in parts:
        if isinstance(part, LogRatio) and (fault := _one_sided(part)):
            return fault
        if isinstance(part, Sum | Product) and not part.parts:
            return f"{type(part).__name__} has no parts: name the advantages"
    if term.advantage is not None and term.advantage.needs_reward and recipe.fresh and not recipe.verifier:
        return "fresh answers have no reward: name a function in train.verifier"
    grouped = any(isinstance(part, GroupBaseline) for part in parts)
    if grouped and max(map(recipe.answers_of, recipe.generations)) < 2:
        return "it compares the answers to one prompt: set num_generations to 2 or more"
    if grouped and not recipe.fresh:
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


def _generations(recipe: Recipe) -> str | None:
    """Whether every generation can be written, and is what terms may read."""
    if not recipe.fresh:
        return (
            "extra_generations are written in fresh passes: set fresh to 1 or more"
            if recipe.extra_generations
            else None
        )
    for place, one in enumerate(recipe.generations):
        name = f"its {one.origin} answers"
        if not place and one.when != "always":
            return f"{name} are written first, so {one.when!r} has no answers to ask: leave it out"
        if one.needs_reward and not recipe.verifier:
            return f"{name} are chosen by rewards, and fresh answers have none: name a function in train.verifier"
        for writer in (one.weights, one.finish):
            if isinstance(writer, EMA | TrustRegion | Routed):
                return (
                    f"{name}: averaged and routed weights only score, so let LIVE, START, BASE or another model write"
                )
            if isinstance(writer, External) and not writer.model:
                return "it learns from another model: name its folder in train.teacher"
            if isinstance(writer, Released) and not writer.folder:
                return f"{name} are written by a released adapter: name its folder in train.teacher"
        if isinstance(one.context.hint, Sibling | OwnAttempt | Reflection):
            hint = type(one.context.hint).__name__
            return f"{name} cannot read what is made of themselves, a {hint}: show it to a teacher"
        if recipe.scored == "conversation" and (one.prefix or one.finish is not None):
            return f"{name} have a prefix or two writers, which fills a row: set scored to 'answer'"
    return None


def _hints(recipe: Recipe) -> str | None:
    hints = [c.hint for t in recipe.terms for c in (t.context, t.student_context, t.reference_context)]
    made = [one for one in hints if isinstance(one, Sibling | OwnAttempt | Reflection)]
    if made and recipe.scored == "conversation":
        return f"{part_text(made[0])} is made for one answer: set scored to 'answer'"
    judged = [one for one in made if not isinstance(one, Reflection) or one.told == "outcome"]
    if judged and recipe.fresh and not recipe.verifier:
        return (
            f"{type(judged[0]).__name__} shows an answer by its reward, and fresh answers have none: name a function "
            "in train.verifier"
        )
    return None


def _pools(recipe: Recipe) -> str | None:
    pools: dict[str, set[bool]] = {}
    for term in recipe.terms:
        if term.pool:
            pools.setdefault(term.pool, set()).add(isinstance(term.reduction, SequenceMean))
    mixed = [pool for pool, kinds in pools.items() if len(kinds) > 1]
    if mixed:
        return f"the pool {mixed[0]!r} adds answers of one term to tokens of another: give its terms one reduction"
    return None


def _measured(recipe: Recipe) -> str | None:
    """A measure is kept once for each answer, so that terms which take it have to mean the same."""
    readers = [term for term in recipe.terms if "logp_teacher" in term.measures]
    if len({(term.teacher, term.context) for term in readers}) > 1 and not _apart(readers):
        return "logp_teacher is measured under one teacher and context: give the terms that read it routes by reward"
    if len({_read(term.student_context) for term in recipe.terms if term.measures}) > 1:
        return "measures of the student are taken under one context: give the terms that read them one student_context"
    return None


def _apart(terms: list[Term]) -> bool:
    """Whether no answer belongs to two of the terms, as far as routes by correctness say."""
    sides = [route.correct for term in terms for route in routes_of(term.route) if isinstance(route, ByCorrectness)]
    return len(sides) == len(terms) == len(set(sides))


def _origins(recipe: Recipe, term: Term) -> str | None:
    """A term that reads only answers of some origin finds them, and they are what its estimator is right over."""
    named = [origin for route in routes_of(term.route) if isinstance(route, ByOrigin) for origin in route.origins]
    if not recipe.fresh:
        return None
    writing = [one for one in recipe.generations if not named or one.origin in named]
    served = recipe.epochs and (not named or "served" in named)
    if named and not writing and not served:
        there = ", ".join(sorted({one.origin for one in recipe.generations} | ({"served"} if recipe.epochs else set())))
        return f"no answer is of the origin {', '.join(named)}: the recipe has {there}"
    if not (term.needs_plain or term.needs_served) or served:
        return None
    if not any(one.known and _read(one.context) == _read(term.student_context) for one in writing):
        return (
            "it is right only over samples of the whole vocabulary, as the term's student reads them, and no "
            "generation that it reads draws so: use a full-vocabulary divergence or the likelihood, or generate "
            "with top_p=1, top_k=0 and context = student_context"
        )
    return None


def _judged(recipe: Recipe, term: Term) -> str | None:
    """Routes and weights by reward find rewards."""
    if not recipe.fresh or recipe.epochs or recipe.verifier:
        return None
    routes = [one for one in routes_of(term.route) if isinstance(one, ByCorrectness | ByPassRate)]
    weights = [one for one in term.weights if isinstance(one, GroupSoftmax | LikeliestRight | Solvable)]
    reading: list[Any] = [*routes, *weights]
    if reading:
        return f"{part_text(reading[0])} reads rewards, and fresh answers have none: name a function in train.verifier"
    return None


def _first_attempts(recipe: Recipe, term: Term) -> str | None:
    reads = any(isinstance(part, FirstAttemptBaseline) for part in advantage_parts(term.advantage))
    if reads and not any(one.origin == "student" for one in recipe.generations):
        return "FirstAttemptBaseline reads the student's own answers, and no generation writes them"
    return None


_RECIPE_CHECKS: tuple[Callable[[Recipe], str | None], ...] = (
    _work,
    _has_terms,
    _generations,
    _hints,
    _pools,
    _measured,
)
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
    _origins,
    _judged,
    _first_attempts,
)
