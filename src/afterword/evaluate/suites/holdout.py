"""Suite `holdout`: would the user still have to correct it? Both arms answer held-out prompts.

The hindsight itself is the judge: the frozen base reads what the user wrote next and says how much better that makes
an answer. Where the user left an edited text, the distance to it; where a task has a program that decides, or the
caller passes programs, their marks; where a judge is configured, whom it prefers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from statistics import pstdev

from afterword.chat.text_metrics import edit_distance
from afterword.errors import NothingToDo
from afterword.evaluate.comparison.comparison import Check, Comparison, Findings
from afterword.evaluate.comparison.heldout import HeldOut, clusters_of
from afterword.evaluate.scoring.hindsight import Scored, hindsight_kl, score_answers, with_follow_up
from afterword.evaluate.scoring.judge import judged, undecided
from afterword.evaluate.scoring.task_checks import check_of
from afterword.evaluate.stats.control_variate import Substitutes, adjusted_mean
from afterword.evaluate.stats.power import detectable, interactions_needed
from afterword.evaluate.stats.statistics import design_effect, exact, mean, paired_share, sign_test, wilson
from afterword.records import Json

ARMS = ("served", "candidate")


def holdout(comparison: Comparison) -> Findings:
    """`hindsight_kl_drop` is the reduction of the correction that the candidate needs, against the served model (nats a
    token);
    `gain` the paired difference of the hindsight scores (candidate minus served, nats a token); `edit_gain` how much
    nearer the answers are to the user's final texts; `checks` the difference of the marks of the tasks' own programs;
    `judge` the judge's preference; `NAME_before`, `NAME_after`, `NAME` the marks of a caller's program."""
    notes: list[Json] = [{} for _ in comparison.items]
    metrics = _hindsight(comparison, notes)
    metrics.update(_edits(comparison, notes))
    metrics.update(_task_checks(comparison, notes))
    if comparison.settings.judge:
        metrics.update(judged(comparison, notes))
    for name, check in comparison.checks.items():
        metrics.update(_marks(comparison, name, check, notes))
    whys = undecided(notes)
    return Findings(metrics, notes, about={"judge_undecided": whys} if whys else {}, answers=comparison.answers)


def _hindsight(comparison: Comparison, notes: list[Json]) -> Json:
    picked = [i for i, item in enumerate(comparison.items) if item.interaction.hindsight.strip()]
    if not picked:
        raise NothingToDo("no held-out interaction has words of the user to judge an answer by")
    items = [comparison.items[i] for i in picked]
    clusters = clusters_of(items)
    scores = score_answers(comparison, [[comparison.answers[arm][i] for i in picked] for arm in ARMS], items)
    found: dict[str, list[Scored]] = dict(zip(ARMS, scores, strict=True))
    for arm in ARMS:
        for i, scored in zip(picked, found[arm], strict=True):
            notes[i][f"score_{arm}"] = scored.score
    seed = comparison.settings.seed
    correction = _correction(comparison, notes)
    gains = [b.score - a.score for a, b in zip(found["served"], found["candidate"], strict=True)]
    means = [b.mean - a.mean for a, b in zip(found["served"], found["candidate"], strict=True)]
    return {
        "interactions": exact(len(items), len(items)),
        "conversations": exact(len({item.conversation for item in items}), len(items)),
        **correction,
        "gain": mean(gains, clusters, seed=seed),
        "gain_mean": mean(means, clusters, seed=seed),
        "score_served": mean([s.score for s in found["served"]], clusters, seed=seed),
        "score_candidate": mean([s.score for s in found["candidate"]], clusters, seed=seed),
    }


def _correction(comparison: Comparison, notes: list[Json]) -> Json:
    """The correction that each arm still needs, and what so many interactions could have shown."""
    items = with_follow_up(comparison.items)
    place = {item.interaction.id: i for i, item in enumerate(comparison.items)}
    clusters, seed = clusters_of(items), comparison.settings.seed
    kl: dict[str, list[float]] = {}
    for arm in comparison.arms:
        kl[arm.name] = [one.kl for one in hindsight_kl(comparison, arm, items)]
        for item, value in zip(items, kl[arm.name], strict=True):
            notes[place[item.interaction.id]][f"hindsight_kl_{arm.name}"] = value
    drops = [a - b for a, b in zip(kl["served"], kl["candidate"], strict=True)]
    wins, losses = sum(d > 0 for d in drops), sum(d < 0 for d in drops)
    alone = mean(drops, clusters, seed=seed, level=comparison.level)
    return {
        "hindsight_kl_drop": alone,
        **_with_substitutes(comparison, items, drops, alone),
        "hindsight_kl_served": mean(kl["served"], clusters, seed=seed),
        "hindsight_kl_candidate": mean(kl["candidate"], clusters, seed=seed),
        "wins": exact(wins, len(items)),
        "losses": exact(losses, len(items)),
        "sign_p": exact(sign_test(wins, losses), len(items)),
        **_power(drops, clusters),
    }


def _with_substitutes(comparison: Comparison, items: Sequence[HeldOut], drops: Sequence[float], alone: Json) -> Json:
    """The drop with what adapters that resemble the candidate show on conversations that they have not seen: it decides
    in place of the drop on the held-out interactions `alone`, and their interactions and conversations count."""
    edits = all(item.final_text for item in items)
    unseen = [
        (one, [item for item in one.items if bool(item.final_text) == edits]) for one in comparison.substitutes
    ]  # fmt: skip
    unseen = [(one, picked) for one, picked in unseen if picked]
    if not unseen:
        return {}
    since = unseen[0][0].since
    early = {item.conversation for item in items if item.turn.created_at <= since}
    inside = [i for i, item in enumerate(items) if item.conversation not in early]
    total = sum(len(picked) for _, picked in unseen)
    own: list[float | None] = [None] * len(items)
    found: list[float] = []
    for one, picked in unseen:
        pair = replace(comparison, candidate=one.arm, substitutes=())
        asked = [*(items[i] for i in inside), *picked]
        served, theirs = ([each.kl for each in hindsight_kl(pair, arm, asked)] for arm in pair.arms)
        values = [a - b for a, b in zip(served, theirs, strict=True)]
        for i, value in zip(inside, values, strict=False):
            own[i] = (own[i] or 0.0) + value * len(picked) / total
        found += values[len(inside) :]
    everything = [*items, *(item for _, picked in unseen for item in picked)]
    names = clusters_of(everything)
    substitutes = Substitutes(own, found, names[len(items) :])
    adjusted = adjusted_mean(drops, names[: len(items)], substitutes, level=comparison.level)
    if adjusted is None:
        return {}
    n = len(everything)
    return {
        "interactions": exact(n, n),
        "conversations": exact(len({item.conversation for item in everything}), n),
        "hindsight_kl_drop": adjusted,
        "drop_alone": alone,
        "drop_substitutes": mean(found, names[len(items) :], seed=comparison.settings.seed),
        "unseen": exact(total, total),
    }


def _power(drops: Sequence[float], clusters: Sequence[str]) -> Json:
    """`needed`: interactions after which a drop like this one would be found in four cases of five. `detectable`: the
    smallest drop that these interactions would have shown as often."""
    n, spread, inflation = len(drops), pstdev(drops), design_effect(drops, clusters)
    found: Json = {"needed": exact(interactions_needed(sum(drops) / n, spread, inflation=inflation), n)}
    least = detectable(n, spread, inflation=inflation)
    return found | ({"detectable": exact(least, n)} if isfinite(least) else {})


def _task_checks(comparison: Comparison, notes: list[Json]) -> Json:
    """Marks of the programs that the configuration names for tasks, all tasks together."""
    programs = {task: check_of(spec) for task, spec in comparison.settings.checks.items()}
    picked = [i for i, item in enumerate(comparison.items) if item.task in programs]
    if not picked:
        return {}
    marks: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for i in picked:
        item = comparison.items[i]
        for arm in ARMS:
            mark = programs[str(item.task)](item, comparison.answers[arm][i].text)
            marks[arm].append(mark)
            notes[i][f"check_{arm}"] = mark
    items, seed = [comparison.items[i] for i in picked], comparison.settings.seed
    return {
        "checks": _rise(marks, items, seed),
        "checks_served": _share(marks["served"], items, seed),
        "checks_candidate": _share(marks["candidate"], items, seed),
    }


def _edits(comparison: Comparison, notes: list[Json]) -> Json:
    picked = [(i, item) for i, item in enumerate(comparison.items) if item.final_text]
    if not picked:
        return {}
    distances: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for arm in ARMS:
        for i, item in picked:
            distance = edit_distance(comparison.answers[arm][i].text, item.final_text or "")
            distances[arm].append(distance)
            notes[i][f"edit_{arm}"] = distance
    nearer = [a - b for a, b in zip(distances["served"], distances["candidate"], strict=True)]
    clusters, seed = clusters_of([item for _, item in picked]), comparison.settings.seed
    return {
        "edit_gain": mean(nearer, clusters, seed=seed),
        "edit_served": mean(distances["served"], clusters, seed=seed),
        "edit_candidate": mean(distances["candidate"], clusters, seed=seed),
    }


def _marks(comparison: Comparison, name: str, check: Check, notes: list[Json]) -> Json:
    marks: dict[str, list[float]] = {}
    for arm in ARMS:
        answers = comparison.answers[arm]
        marks[arm] = [float(check(item, given.text)) for item, given in zip(comparison.items, answers, strict=True)]
        for note, mark in zip(notes, marks[arm], strict=True):
            note[f"{name}_{arm}"] = mark
    seed = comparison.settings.seed
    return {
        f"{name}_before": _share(marks["served"], comparison.items, seed),
        f"{name}_after": _share(marks["candidate"], comparison.items, seed),
        name: _rise(marks, comparison.items, seed),
    }


def _rise(marks: dict[str, list[float]], items: Sequence[HeldOut], seed: int) -> Json:
    """The paired difference: Tango's interval where the marks are yes or no, else a bootstrap."""
    if {*marks["served"], *marks["candidate"]} <= {0.0, 1.0}:
        served, candidate = ([bool(mark) for mark in marks[arm]] for arm in ARMS)
        return paired_share(served, candidate, clusters_of(items))
    difference = [b - a for a, b in zip(marks["served"], marks["candidate"], strict=True)]
    return mean(difference, clusters_of(items), seed=seed)


def _share(marks: Sequence[float], items: Sequence[HeldOut], seed: int) -> Json:
    """Wilson's interval where the marks are yes or no, else a bootstrap by conversation."""
    if set(marks) <= {0.0, 1.0}:
        return wilson(int(sum(marks)), len(marks))
    return mean(marks, clusters_of(items), seed=seed)
