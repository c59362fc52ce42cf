"""The suite of episodes plays both arms on the same held-out tasks and pairs them by task and seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from afterword.config import EvaluateConfig
from afterword.errors import ConfigError, UpstreamError
from afterword.evaluate.comparison.answers import Arm
from afterword.evaluate.comparison.comparison import Comparison
from afterword.evaluate.suites.episodes import episodes
from afterword.metrics import SUITES
from tests.environments.conftest import Player
from tests.environments.test_environments_builtin import PERFECT
from tests.gateway.fake_upstream import fake_upstream


@dataclass
class Two(Player):
    """A base model that never says a number and an adapter that plays perfectly."""

    asked: list[tuple[str, Any]] = field(default_factory=list)

    def words_of(self, body: dict[str, Any]) -> tuple[str, ...]:
        self.asked.append((body["model"], body["seed"]))
        if body["model"] == self.base:
            return ("hm",)
        return (PERFECT["guess"]([m["content"] for m in body["messages"] if m["role"] == "user"]),)


def comparison(url: str, tmp_path: Path, **settings: Any) -> Comparison:
    @dataclass
    class Shown:
        upstream: str = url
        api_key: str | None = None
        settings: EvaluateConfig = field(default_factory=EvaluateConfig)
        arms: tuple[Arm, Arm] = (Arm("served", None, None), Arm("candidate", tmp_path, "c" * 64))

        def progress(self, step: str, done: int, total: int) -> None:
            assert 0 <= done <= total

    return cast(Comparison, Shown(settings=EvaluateConfig(**settings)))


def test_both_arms_play_the_same_episodes(tmp_path: Path) -> None:
    fake = Two()
    with fake_upstream(fake):
        found = episodes(comparison(fake.url, tmp_path, environment="guess", episodes=30))
    metrics = found.metrics
    assert metrics["episode_success_rise"]["value"] == 1.0 and metrics["episode_success_rise"]["n"] == 30
    assert (metrics["episode_success_served"]["value"], metrics["episode_success_candidate"]["value"]) == (0.0, 1.0)
    assert metrics["tool_errors_rise"]["value"] == -4.0 and "turns_to_success_rise" not in metrics
    assert metrics["episodes_unscored"]["value"] == 0 and metrics["episode_tokens_ratio"]["value"] < 1
    assert {spec.name for spec in SUITES["episodes"].metrics} > set(metrics) - {
        f"{name}_{arm}" for name in ("episode_success", "tool_errors") for arm in ("served", "candidate")
    }
    assert fake.adapters == {} and fake.unloads, "the adapter was there for the suite alone"
    first = {seed for model, seed in fake.asked if model == fake.base}
    assert {seed for model, seed in fake.asked if model != fake.base} <= first


def test_no_environment_and_no_scored_episode_are_told(tmp_path: Path) -> None:
    fake = Two(fails={"base-model"})
    with fake_upstream(fake):
        with pytest.raises(ConfigError, match=r"evaluate\.environment"):
            episodes(comparison(fake.url, tmp_path))
        with pytest.raises(UpstreamError, match="server_error"):
            episodes(comparison(fake.url, tmp_path, environment="sum", episodes=2))
