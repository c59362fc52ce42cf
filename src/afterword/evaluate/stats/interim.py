"""Looks at a comparison before its end: is the correction still needed so clearly less, or not, that few answers do?

Scoring the hindsight KL asks for no answers, which are what a comparison costs; so it is scored in portions, and the
answers are asked for only as far as it was looked. The stopping rule is `group_sequential`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from afterword.evaluate.comparison.comparison import Comparison
from afterword.evaluate.comparison.heldout import HeldOut, clusters_of
from afterword.evaluate.scoring.hindsight import hindsight_kl, with_follow_up
from afterword.evaluate.stats.group_sequential import stop_early
from afterword.records import Json


def interim_looks(comparison: Comparison) -> tuple[Comparison, Json]:
    """Look up to `evaluate.looks` times.

    Args:
        comparison: All held-out items; it stays as it is.

    Returns:
        The comparison of the items that decide, with the level of its interval, and a record of the looks for the
        report: {why, looks, n, of, level}.
    """
    everything = _together(comparison.items)
    judged = with_follow_up(everything)
    if not judged:
        return comparison, {"looks": 0, "of": len(everything)}

    def drops(n: int) -> list[float]:
        served, candidate = (hindsight_kl(comparison, arm, judged[:n]) for arm in comparison.arms)
        return [a.kl - b.kl for a, b in zip(served, candidate, strict=True)]

    settings = comparison.settings
    look = stop_early(drops, clusters_of(judged), settings.looks, seed=settings.seed, level=comparison.level)
    items = comparison.items
    if look.why != "end":
        seen = {item.interaction.id for item in judged[: look.n]}
        last = max(i for i, item in enumerate(everything) if item.interaction.id in seen)
        items = everything[: last + 1]
    decided = replace(
        comparison,
        items=items,
        level=look.level,
        undecided=look.why in ("better", "end"),
        substitutes=comparison.substitutes if look.why == "end" else (),  # it was decided without them
    )
    return decided, {"why": look.why, "looks": look.number, "n": look.n, "of": len(judged), "level": look.level}


def _together(items: Sequence[HeldOut]) -> list[HeldOut]:
    """The items with those of one cluster side by side, clusters by first appearance."""
    names = clusters_of(items)
    place = {name: i for i, name in reversed(list(enumerate(names)))}
    order = sorted(range(len(items)), key=lambda i: (place[names[i]], i))
    return [items[i] for i in order]
