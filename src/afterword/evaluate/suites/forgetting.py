"""Suite `forgetting`: loss and drift on general texts and chats that have nothing to do with the feedback, and easy
questions with four options each, scored by likelihood.

Texts and questions are ours (`data/`) and are no user's. Base, served and candidate are scored in one process, adapter
on and off, on the same ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from afterword.chat.render import Tokenizer, encode, end_of_turn_ids, render_prompt
from afterword.evaluate.comparison.comparison import Comparison, Findings
from afterword.evaluate.data import built_in
from afterword.evaluate.scoring.multiple_choice import general_knowledge, probabilities, right
from afterword.evaluate.stats.statistics import paired_share, ratio_of_sums, wilson
from afterword.records import Json
from afterword.store.files import folder_hash

PREFIX = 4
"""Ids of a plain text that are read but not scored."""
Sums = list[tuple[float, float, float]]
"""Per text: KL(base || adapter), -log p_base, -log p_adapter."""


def forgetting(comparison: Comparison) -> Findings:
    """Drift (nats a token) and relative loss rise of the candidate, on texts and on chats.

    `drift` and `loss_rise` cover plain text and chat together; `*_text` and `*_chat` each alone. `loss_rise` is against
    the served model, `loss_rise_base` against the base. `accuracy` is the paired difference of the share of
    questions answered rightly.
    """
    texts = general()
    pairs = [_pair(comparison.tokenizer, entry) for entry in texts]
    candidate = _scored(comparison, "candidate", pairs)
    served = _scored(comparison, "served", pairs) if comparison.served.path is not None else None
    metrics: Json = {}
    groups = {"": range(len(texts)), "_text": _of(texts, "text"), "_chat": _of(texts, "answer")}
    for suffix, picked in groups.items():
        metrics.update(_metrics(suffix, picked, pairs, candidate, served, comparison.settings.seed))
    return Findings(metrics | _questions(comparison))


def general() -> list[Json]:
    """The built-in texts: {"text"} or {"messages", "answer"}."""
    return built_in("general")


def _questions(comparison: Comparison) -> Json:
    choices = general_knowledge()
    served, candidate = ([right(p) for p in probabilities(comparison, arm, choices)] for arm in comparison.arms)
    return {
        "accuracy": paired_share(served, candidate),
        "accuracy_served": wilson(sum(served), len(choices)),
        "accuracy_candidate": wilson(sum(candidate), len(choices)),
    }


def _of(texts: Sequence[Json], key: str) -> list[int]:
    return [i for i, entry in enumerate(texts) if key in entry]


def _pair(tokenizer: Tokenizer, entry: Json) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(read, scored) ids of one text."""
    if "text" in entry:
        ids = encode(tokenizer, entry["text"])
        return ids[:PREFIX], ids[PREFIX:]
    answer = (*encode(tokenizer, entry["answer"]), end_of_turn_ids(tokenizer)[0])
    return render_prompt(tokenizer, entry["messages"]).ids, answer


def _scored(comparison: Comparison, arm: str, pairs: Any) -> Sums:
    path = getattr(comparison, arm).path
    cache = comparison.cache("forgetting")
    key = cache.key(comparison.base_hash, folder_hash(path), pairs)
    kept = cache.get(key)
    if kept is None:
        comparison.progress("texts", 0, len(pairs))
        kept = comparison.models.drift(arm, pairs)
        cache.put({key: kept})
    return [tuple(entry) for entry in kept]


def _metrics(suffix: str, picked: Sequence[int], pairs: Any, candidate: Sums, served: Sums | None, seed: int) -> Json:
    tokens = [float(len(pairs[i][1])) for i in picked]
    drift, base, own = ([candidate[i][k] for i in picked] for k in range(3))
    before = base if served is None else [served[i][2] for i in picked]
    return {
        f"drift{suffix}": ratio_of_sums(drift, tokens, seed=seed),
        f"loss_rise{suffix}": ratio_of_sums(_minus(own, before), before, seed=seed),
        f"loss_rise_base{suffix}": ratio_of_sums(_minus(own, base), base, seed=seed),
        f"loss{suffix}": ratio_of_sums(own, tokens, seed=seed),
        f"loss{suffix}_served": ratio_of_sums(before, tokens, seed=seed),
    }


def _minus(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]
