"""Suite `collapse`: does the candidate still give answers? From the held-out answers of both arms.

Where these are few, built-in requests fill up (`Comparison.pairs`). Shares are differences (candidate minus served);
lengths, variety and entropy are ratios. `NAME_candidate` and `NAME_served` are the shares themselves. The entropy is
that of the next token along the answers that users reacted to, the same for both arms.
"""

from __future__ import annotations

from collections.abc import Sequence

from afterword.chat import text_metrics
from afterword.chat.refusals import declines
from afterword.chat.words import words
from afterword.evaluate.comparison.answers import Given
from afterword.evaluate.comparison.comparison import AnswerPair, Comparison, Findings
from afterword.evaluate.comparison.heldout import clusters_of
from afterword.evaluate.scoring.hindsight import hindsight_kl, with_follow_up
from afterword.evaluate.stats.statistics import exact, jackknifed, mean, paired_share, ratio_of_sums, wilson
from afterword.records import Json

Marks = Sequence[dict[str, bool]]


def collapse(comparison: Comparison) -> Findings:
    """Empty, truncated and repetitive answers, copies of the question, leaks, refusals, length, variety, likeness."""
    cases = comparison.pairs
    clusters, seed = [case.cluster for case in cases], comparison.settings.seed
    served, candidate = [c.served for c in cases], [c.candidate for c in cases]
    before, after = (
        [_marks(case, given) for case, given in zip(cases, side, strict=True)] for side in (served, candidate)
    )
    metrics: Json = {"answers": exact(len(cases), len(cases)), **rises(before, after, clusters)}
    metrics["length_ratio"] = ratio_of_sums(
        [_length(given) for given in candidate], [_length(given) for given in served], clusters, seed=seed
    )
    return Findings(metrics | _variety(cases) | _entropy(comparison), answers=comparison.answers)


def rises(served: Marks, candidate: Marks, clusters: Sequence[str]) -> Json:
    """For each mark the paired difference of its share, and both shares."""
    metrics: Json = {}
    for name in served[0]:
        before, after = [m[name] for m in served], [m[name] for m in candidate]
        metrics[name] = paired_share(before, after, clusters)
        metrics[f"{name}_served"] = wilson(sum(before), len(before))
        metrics[f"{name}_candidate"] = wilson(sum(after), len(after))
    return metrics


def _variety(cases: Sequence[AnswerPair]) -> Json:
    """`distinct_ratio` of different word pairs, candidate to served; `similarity` of the answers to different
    questions, and of the served ones."""
    first = list({case.question: case for case in reversed(cases)}.values())
    said = {"candidate": [c.candidate.text for c in first], "served": [c.served.text for c in first]}
    clusters = [case.cluster for case in first]

    def ratio(picked: Sequence[int]) -> float:
        variety = text_metrics.distinct_2([said["served"][i] for i in picked])
        return text_metrics.distinct_2([said["candidate"][i] for i in picked]) / variety if variety else 1.0

    metrics: Json = {"distinct_ratio": jackknifed(ratio, clusters)}
    for arm, name in (("candidate", "similarity"), ("served", "similarity_served")):
        likeness = text_metrics.likeness(said[arm])
        if likeness:
            metrics[name] = mean(likeness, clusters)
    return metrics


def _entropy(comparison: Comparison) -> Json:
    """`entropy_ratio`: how sure of itself the candidate is, against what is served (1: the same, 0: no choice left)."""
    items = with_follow_up(comparison.items)
    if not items:
        return {}
    served, candidate = ([one.entropy for one in hindsight_kl(comparison, arm, items)] for arm in comparison.arms)
    clusters, seed = clusters_of(items), comparison.settings.seed
    if not sum(served):
        return {}
    return {
        "entropy_ratio": ratio_of_sums(candidate, served, clusters, seed=seed),
        "entropy_served": mean(served, clusters, seed=seed),
        "entropy_candidate": mean(candidate, clusters, seed=seed),
    }


def _marks(case: AnswerPair, given: Given) -> dict[str, bool]:
    return {
        "empty": not words(given.text),
        "truncated": given.finish_reason == "length",
        "repetitive": text_metrics.loops(given.text),
        "copies": text_metrics.is_copy(given.text, case.question),
        "leaks": text_metrics.leaks(given.text, case.hindsight, case.prompt),
        "declined": declines(given.text),
    }


def _length(given: Given) -> float:
    """Tokens where the server tells them, else words; at least 1, so that a ratio exists."""
    return float(max(1, len(words(given.text)) if given.ids is None else len(given.ids)))
