"""Suite `collapse`: does the candidate still give answers? From the held-out answers of both arms.

Shares are differences (candidate minus served); lengths, variety and entropy are ratios. `NAME_candidate` and
`NAME_served` are the shares themselves. The entropy is that of the next token along the answers that users reacted to,
the same for both arms.
"""

from __future__ import annotations

from collections.abc import Sequence

from afterword.chat.canonical import text_of
from afterword.evaluate import text
from afterword.evaluate.answers import Given
from afterword.evaluate.comparison import Comparison, Findings
from afterword.evaluate.heldout import HeldOut, clusters_of
from afterword.evaluate.hindsight import needs, with_need
from afterword.evaluate.statistics import exactly, mean, ratio_of_sums, wilson
from afterword.records import Json

_WRITTEN_BY_USER = ("edited", "demonstration", "regenerated", "retried")
"""Kinds whose hindsight is a better answer: to say the same is no leak."""


def collapse(comparison: Comparison) -> Findings:
    """Empty, truncated and repetitive answers, copies of the question, leaks, length, variety, self-similarity."""
    served, candidate = (comparison.answers[arm] for arm in ("served", "candidate"))
    seed, clusters, items = comparison.settings.seed, comparison.clusters, comparison.items
    figures: Json = {}
    marks = [_marks(item, s) for item, s in zip(items, served, strict=True)]
    others = [_marks(item, c) for item, c in zip(items, candidate, strict=True)]
    for name in marks[0]:
        before, after = [m[name] for m in marks], [m[name] for m in others]
        figures[name] = mean([float(b) - float(a) for a, b in zip(before, after, strict=True)], clusters, seed=seed)
        figures[f"{name}_served"] = wilson(sum(before), len(before))
        figures[f"{name}_candidate"] = wilson(sum(after), len(after))
    figures["length_ratio"] = ratio_of_sums(_lengths(candidate), _lengths(served), clusters, seed=seed)
    texts = {arm: [given.text for given in comparison.answers[arm]] for arm in ("served", "candidate")}
    variety = text.distinct_2(texts["served"])
    ratio = text.distinct_2(texts["candidate"]) / variety if variety else 1.0
    figures["distinct_ratio"] = exactly(ratio, len(items))
    prompts = {item.question: i for i, item in enumerate(items)}
    for arm, name in (("candidate", "similarity"), ("served", "similarity_served")):
        likeness = text.self_similarity([texts[arm][i] for i in prompts.values()])
        if likeness is not None:
            figures[name] = exactly(likeness, len(prompts))
    return Findings(figures | _entropy(comparison))


def _entropy(comparison: Comparison) -> Json:
    """`entropy_ratio`: how sure of itself the candidate is, against what is served (1: the same, 0: no choice left)."""
    items = with_need(comparison.items)
    if not items:
        return {}
    served, candidate = ([one.entropy for one in needs(comparison, arm, items)] for arm in comparison.arms)
    clusters, seed = clusters_of(items), comparison.settings.seed
    if not sum(served):
        return {}
    return {
        "entropy_ratio": ratio_of_sums(candidate, served, clusters, seed=seed),
        "entropy_served": mean(served, clusters, seed=seed),
        "entropy_candidate": mean(candidate, clusters, seed=seed),
    }


def _marks(item: HeldOut, given: Given) -> dict[str, bool]:
    prompt = "\n".join(text_of(m.get("content")) for m in item.turn.messages)
    hindsight = "" if item.interaction.kind in _WRITTEN_BY_USER else item.interaction.hindsight
    return {
        "empty": not text.words(given.text),
        "truncated": given.finish_reason == "length",
        "repetitive": text.loops(given.text),
        "copies": text.is_copy(given.text, item.question),
        "leaks": text.leaks(given.text, hindsight, prompt),
    }


def _lengths(answers: Sequence[Given]) -> list[float]:
    """Tokens where the server tells them, else words; at least 1, so that a ratio exists."""
    return [float(max(1, len(text.words(a.text)) if a.ids is None else len(a.ids))) for a in answers]
