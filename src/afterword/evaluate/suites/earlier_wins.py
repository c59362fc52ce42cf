"""Suite `earlier-wins`: does the candidate keep the improvements of earlier releases?

The set grows with every release: a held-out interaction is a win when the report of a released candidate found that it
needed less of the user's correction. Measured like the target of `holdout`, on the same tokens for both arms, without
asking for answers. Before the first release there is nothing to keep, and the suite says so with a count of 0; from
fewer than CONVERSATIONS of them nothing can be told.
"""

from __future__ import annotations

from afterword.evaluate.comparison.comparison import Comparison, Findings
from afterword.evaluate.comparison.heldout import clusters_of
from afterword.evaluate.scoring.hindsight import hindsight_kl
from afterword.evaluate.stats.statistics import exact, mean, wilson
from afterword.records import Json

CONVERSATIONS = 8
"""Below, an interval says more about their number than about the candidate."""


def earlier_wins(comparison: Comparison) -> Findings:
    """`wins` so far; `hindsight_kl_drop` against the served model (below 0: a loss); `kept`, the share that
    still need less correction from the candidate than from the base."""
    items = list(comparison.wins)
    clusters, seed = clusters_of(items), comparison.settings.seed
    metrics: Json = {"wins": exact(len(items), len(items))}
    if len(set(clusters)) < CONVERSATIONS:
        return Findings(metrics)
    served, candidate = ([n.kl for n in hindsight_kl(comparison, arm, items)] for arm in comparison.arms)
    base = [n.kl for n in hindsight_kl(comparison, comparison.base, items)]
    drops = [a - b for a, b in zip(served, candidate, strict=True)]
    still = [b < a for a, b in zip(base, candidate, strict=True)]
    metrics |= {
        "hindsight_kl_drop": mean(drops, clusters, seed=seed),
        "hindsight_kl_served": mean(served, clusters, seed=seed),
        "hindsight_kl_candidate": mean(candidate, clusters, seed=seed),
        "kept": wilson(sum(still), len(items)),
    }
    return Findings(metrics)
