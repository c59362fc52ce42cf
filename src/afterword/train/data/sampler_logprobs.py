"""What the server said about the tokens it sampled: log-probabilities that may be compared with ours, or NaN.

Owns the rules of `learning.md`, property 9: what is missing stays missing, and what was measured under a temperature,
a penalty or a cut-off vocabulary is not mixed with the plain softmax.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from afterword.learn.loss.token_batch import ALONE, Group
from afterword.records import Json, Turn
from afterword.train.data.encoded import Encoded

_PLAIN: Json = {
    "temperature": (None, 1, 1.0),
    "top_p": (None, 1, 1.0),
    "top_k": (None, 0, -1),
    "min_p": (None, 0, 0.0),
    "typical_p": (None, 1, 1.0),
    "frequency_penalty": (None, 0, 0.0),
    "presence_penalty": (None, 0, 0.0),
    "repetition_penalty": (None, 1, 1.0),
    "logit_bias": (None, {}),
}


def served_logprobs(turn: Turn) -> tuple[tuple[float, ...], str | None]:
    """One log-probability per completion id, NaN where there is none to compare with, and why all are missing."""
    n = len(turn.completion_ids or ())
    none = (math.nan,) * n
    if turn.logprobs is None:
        return none, "the server reported no log-probabilities"
    if len(turn.logprobs) != n:
        return none, f"{len(turn.logprobs)} log-probabilities for {n} tokens"
    for name, plain in _PLAIN.items():
        if (value := turn.sampling.get(name)) not in plain:
            return none, f"it was sampled with {name}={value}, so its log-probabilities are not those of the model"
    # a log-probability above 0 is none; tiny excess is rounding
    known = tuple(x if x is not None and math.isfinite(x) and x <= 1e-3 else math.nan for x in turn.logprobs)
    return known, None if any(map(math.isfinite, known)) else "all of its log-probabilities are missing or not finite"


def with_groups(rows: Sequence[Encoded]) -> list[Encoded]:
    """`rows` with the rewards of all answers to the same prompt."""
    rewards: dict[tuple[int, ...], list[float]] = {}
    for row in rows:
        if row.answer.reward is not None:
            rewards.setdefault(row.prompt, []).append(row.answer.reward)
    groups = {prompt: _group(values) for prompt, values in rewards.items()}
    return [replace(r, answer=replace(r.answer, group=groups.get(r.prompt, ALONE))) for r in rows]


def _group(rewards: Sequence[float]) -> Group:
    n = len(rewards)
    mean = sum(rewards) / n
    spread = sum((r - mean) ** 2 for r in rewards)
    return Group(size=n, mean=mean, deviation=math.sqrt(spread / (n - 1)) if n > 1 else 0.0)
