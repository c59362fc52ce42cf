"""Suite `latency`: measures the adapter's cost while it serves.

Both arms answer the same prompts in turns (served, candidate, candidate, served ...), uncached, on the machine that
runs the gate: the ratio is what counts, the tokens a second are this machine's. An adapter's memory is its weights'.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from afterword.evaluate.comparison.answers import base_name
from afterword.evaluate.comparison.comparison import Comparison, Findings
from afterword.evaluate.stats.statistics import exact, mean, ratio_of_sums
from afterword.model.loading import resolve_model
from afterword.records import Json
from afterword.sampling import Answer, Upstream

PROMPTS, ROUNDS, TOKENS = 8, 4, 32
"""Requests at once, rounds of each arm, tokens of an answer."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One round of one arm."""

    seconds: float
    tokens: int
    first: float
    """Seconds until one request alone had its first token."""


def latency(comparison: Comparison) -> Findings:
    """`speed_ratio` of tokens a second (candidate over served, rounds paired), `first_token_ratio`, both arms' tokens
    a second, and the adapter's weights in MiB and as a share of the base model's."""
    found = asyncio.run(_measure(comparison))
    seed = comparison.settings.seed
    served, candidate = found["served"], found["candidate"]
    speeds = {arm: [one.tokens / one.seconds for one in rounds] for arm, rounds in found.items()}
    size = _bytes(comparison.candidate.path)
    return Findings(
        {
            "speed_ratio": ratio_of_sums(speeds["candidate"], speeds["served"], seed=seed),
            "first_token_ratio": ratio_of_sums([c.first for c in candidate], [s.first for s in served], seed=seed),
            "tokens_per_second_served": mean(speeds["served"], seed=seed),
            "tokens_per_second_candidate": mean(speeds["candidate"], seed=seed),
            "adapter_mib": exact(size / 2**20, 1),
            "memory_rise": exact(size / _bytes(resolve_model(comparison.resources.model)), 1),
        }
    )


def _bytes(folder: Path | None) -> int:
    return 0 if folder is None else sum(file.stat().st_size for file in folder.glob("*.safetensors"))


async def _measure(comparison: Comparison) -> dict[str, list[Timed]]:
    found: dict[str, list[Timed]] = {arm.name: [] for arm in comparison.arms}
    async with Upstream(comparison.upstream, comparison.api_key, background=True) as upstream:
        root = await base_name(upstream)
        loaded = [arm for arm in comparison.arms if arm.alias is not None]
        try:
            for arm in loaded:
                await upstream.load_adapter(str(arm.alias), str(arm.path))
            for arm in comparison.arms:  # the first round of each warms up
                await _round(comparison, upstream, arm.alias or root)
            for number in range(ROUNDS):
                for arm in comparison.arms if number % 2 else reversed(comparison.arms):
                    found[arm.name].append(await _round(comparison, upstream, arm.alias or root))
                    comparison.progress("rounds", number, ROUNDS)
        finally:
            for arm in loaded:
                await upstream.unload_adapter(str(arm.alias))
    return found


async def _round(comparison: Comparison, upstream: Upstream, model: str) -> Timed:
    messages = [list(item.turn.messages) for item in comparison.items[:PROMPTS]]
    bodies: list[Json] = [{"messages": m, "model": model, "temperature": 0.0, "max_tokens": TOKENS} for m in messages]
    started = time.perf_counter()
    await upstream.complete_many([bodies[0] | {"max_tokens": 1}])
    first = time.perf_counter()
    answers = await upstream.complete_many(bodies, PROMPTS)
    ended = time.perf_counter()
    return Timed(ended - first, _tokens(answers), first - started)


def _tokens(answers: Sequence[Answer]) -> int:
    """Tokens where the server tells them, else words; both arms are counted alike."""
    return sum(len(a.completion_ids) if a.completion_ids else len(a.text.split()) for a in answers) or 1
