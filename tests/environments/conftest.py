"""A gateway over a scripted model, and environments that misbehave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.conftest import launch  # noqa: F401
from tests.gateway.fake_upstream import Fake
from tests.gateway.gateway_setup import Launch, Setup

from afterword.environments.protocol import EnvironmentSpec
from afterword.environments.results import EpisodeResult, RunFile
from afterword.environments.runner import PlaySettings, plan_episodes, play


@dataclass
class Player(Fake):
    """A model whose words are a function of the messages."""

    answer: Callable[[list[dict[str, Any]]], str] = lambda messages: "5"

    def words_of(self, body: dict[str, Any]) -> tuple[str, ...]:
        return (self.answer(body["messages"]),)


@pytest.fixture
def player() -> Player:
    return Player()


@pytest.fixture
def gateway(launch: Launch, player: Player) -> Setup:  # noqa: F811
    return launch(player)


PlayRun = Callable[..., list[EpisodeResult]]


@pytest.fixture
def played(gateway: Setup, tmp_path: Path) -> PlayRun:
    """Play N episodes of an environment: `played(spec, 4, split="train", run="r", **settings)`."""

    def start(
        spec: EnvironmentSpec, number: int, *, split: Any = "train", run: str = "r", **more: Any
    ) -> list[EpisodeResult]:
        settings = PlaySettings(**{"url": f"{gateway.url}/v1", "run": run, "concurrency": 4, **more})
        with RunFile(tmp_path / f"{run}.jsonl", {"environment": spec.name}) as file:
            return play(spec, plan_episodes(spec.panel(split), number, 0), settings, file)

    return start
