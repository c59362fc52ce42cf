"""The first looks at a comparison: is the correction still needed so clearly less, or not less, that few answers do?

Owns how many of the held-out interactions are compared. Scoring the need asks no answers, which are what a comparison
costs; so it is scored in portions, and the answers are asked for only as far as it was looked. The rule is
`sequential`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

from afterword.evaluate.comparison.comparison import Comparison
from afterword.evaluate.comparison.heldout import HeldOut, clusters_of
from afterword.evaluate.scoring.hindsight import hindsight_kl, with_follow_up
from afterword.evaluate.stats.group_sequential import stop_early
from afterword.records import Json


def look_first(comparison: Comparison) -> Json:
    """Cut the comparison's items to those that decide, and set the level of its interval; says what was done."""
    everything = _together(comparison.items)
    judged = with_follow_up(everything)
    if not judged:
        return {"looks": 0, "of": len(everything)}

    def drops(n: int) -> list[float]:
        served, candidate = (hindsight_kl(comparison, arm, judged[:n]) for arm in comparison.arms)
        return [a.kl - b.kl for a, b in zip(served, candidate, strict=True)]

    settings = comparison.settings
    look = stop_early(drops, clusters_of(judged), settings.looks, seed=settings.seed)
    if look.why != "end":
        seen = {item.interaction.id for item in judged[: look.n]}
        last = max(i for i, item in enumerate(everything) if item.interaction.id in seen)
        comparison.items = everything[: last + 1]
    comparison.level = look.level
    comparison.undecided = look.why in ("better", "end")
    return {"why": look.why, "looks": look.number, "n": look.n, "of": len(judged), "level": look.level}


def _together(items: Sequence[HeldOut]) -> list[HeldOut]:
    """The items with those of one cluster side by side, clusters by first appearance."""
    names = clusters_of(items)
    place = {name: i for i, name in reversed(list(enumerate(names)))}
    order = sorted(range(len(items)), key=lambda i: (place[names[i]], i))
    return [items[i] for i in order]
