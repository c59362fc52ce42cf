"""Suite `episodes`: does the candidate still succeed at the tasks of an environment, and at what cost?

Both arms play the same held-out tasks with the same seeds, straight on the model server; nothing is recorded. Pairs are
resampled by task.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from afterword.environments.registry import find_environment
from afterword.environments.results import EpisodeResult, RunFile
from afterword.environments.runner import PlaySettings, plan_episodes, play
from afterword.errors import ConfigError, UpstreamError
from afterword.evaluate.comparison.answers import Arm, base_name
from afterword.evaluate.comparison.comparison import Comparison, Findings
from afterword.evaluate.stats.statistics import exact, mean, paired_share, ratio_of_sums
from afterword.records import Json
from afterword.sampling import Upstream
from afterword.sampling.urls import base_urls

Pairs = list[tuple[EpisodeResult, EpisodeResult]]


def episodes(comparison: Comparison) -> Findings:
    """Success, turns to success, invalid actions and tokens of both arms, and their paired differences."""
    served, candidate = (_played(comparison, arm) for arm in comparison.arms)
    pairs = [(a, b) for a, b in zip(served, candidate, strict=True) if a.scored and b.scored]
    if not pairs:
        faults = sorted({str(one.reason) for one in (*served, *candidate)})
        raise UpstreamError(f"no episode of both arms could be scored: {', '.join(faults)}. The log says more.")
    return Findings(
        differences(pairs, comparison.settings.seed)
        | {"episodes_unscored": exact(sum(not one.scored for one in (*served, *candidate)), 2 * len(served))},
        about={"environment": comparison.settings.environment, "episodes": len(served)},
    )


def differences(pairs: Pairs, seed: int) -> Json:
    """The metrics of paired episodes, each with an interval that resamples whole tasks."""
    tasks = [a.task for a, _ in pairs]
    found: Json = {
        "episode_success_rise": paired_share([a.success for a, _ in pairs], [b.success for _, b in pairs], tasks),
        "tool_errors_rise": mean([float(b.tool_errors - a.tool_errors) for a, b in pairs], tasks, seed=seed),
    }
    for name, arm in (("served", [a for a, _ in pairs]), ("candidate", [b for _, b in pairs])):
        found[f"episode_success_{name}"] = mean([float(one.success) for one in arm], tasks, seed=seed)
        found[f"tool_errors_{name}"] = mean([float(one.tool_errors) for one in arm], tasks, seed=seed)
    tokens = [[float(one.prompt_tokens + one.completion_tokens) for one in arm] for arm in zip(*pairs, strict=True)]
    if all(any(arm) for arm in tokens):
        found["episode_tokens_ratio"] = ratio_of_sums(tokens[1], tokens[0], tasks, seed=seed)
    won = [(a, b) for a, b in pairs if a.success and b.success]
    if won:
        found["turns_to_success_rise"] = mean(
            [float(b.turns - a.turns) for a, b in won], [a.task for a, _ in won], seed=seed
        )
    return found


def _played(comparison: Comparison, arm: Arm) -> list[EpisodeResult]:
    settings = comparison.settings
    if settings.environment is None:
        raise ConfigError(
            "the suite episodes needs the name of an environment: set evaluate.environment (docs/agents.md)",
            param="evaluate.environment",
        )
    spec = find_environment(settings.environment)
    planned = plan_episodes(spec.panel("heldout"), settings.episodes, settings.seed)
    model = asyncio.run(_load(comparison, arm))
    try:
        with tempfile.TemporaryDirectory() as folder, RunFile(Path(folder) / "run.jsonl", {}) as run:
            play_settings = PlaySettings(
                url=str(base_urls(comparison.upstream)[0]), model=model, api_key=comparison.api_key or "none",
                seed=settings.seed, record=False,
            )  # fmt: skip
            return play(
                spec, planned, play_settings, run, lambda done, total: comparison.progress(arm.name, done, total)
            )
    finally:
        asyncio.run(_unload(comparison, arm))


async def _load(comparison: Comparison, arm: Arm) -> str:
    async with Upstream(comparison.upstream, comparison.api_key) as upstream:
        if arm.alias is None:
            return await base_name(upstream)
        await upstream.load_adapter(arm.alias, str(arm.path))
        return arm.alias


async def _unload(comparison: Comparison, arm: Arm) -> None:
    if arm.alias is not None:
        async with Upstream(comparison.upstream, comparison.api_key) as upstream:
            await upstream.unload_adapter(arm.alias)
