"""Episodes through a real gateway: recorded once, resumed, and faults counted with their reason."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.environments.conftest import Player, PlayRun
from tests.environments.test_environments_builtin import PERFECT
from tests.gateway.gateway_setup import Setup

from afterword.environments.builtin import BUILT_IN
from afterword.environments.protocol import AgentAction, EnvironmentFault, EnvTask
from afterword.environments.registry import find_environment
from afterword.environments.results import RunFile, summary
from afterword.environments.runner import PlaySettings, plan_episodes, play
from afterword.errors import ConfigError, ConflictError, UpstreamError, UsageError
from afterword.records import Episode, Turn
from afterword.store.episodes import episode_view

ODD = "python:tests.environments.odd_environments:"


def perfect(name: str) -> Any:
    return lambda messages: PERFECT[name]([m["content"] for m in messages if m["role"] == "user"])


def test_episodes_are_recorded_with_turns_rewards_and_outcomes(gateway: Setup, player: Player, played: PlayRun) -> None:
    player.answer = perfect("guess")
    results = played(BUILT_IN["guess"], 8)
    assert all(one.success and one.status == "finished" and one.turns <= 4 for one in results)
    assert len({one.id for one in results}) == 8 and gateway.store.count(Episode) == 8
    view = episode_view(gateway.store, results[0].id)
    row = view.episode
    assert (row.task_id, row.seed, row.harness) == (results[0].task, 0, "afterword-agent")
    assert (row.status, row.outcome, row.metrics["turns"]) == ("finished", 1.0, results[0].turns)
    assert len(view.turns) == results[0].turns and row.metadata["environment"] == "guess"
    assert [one.parent for one in view.turns] == [None, *(one.turn.id for one in view.turns[:-1])]
    assert sum(one.turns for one in results) == gateway.store.count(Turn)
    assert results[0].versions == ("base",) and results[0].completion_tokens > 0


def test_evaluation_keeps_nothing_on_the_server(gateway: Setup, player: Player, played: PlayRun) -> None:
    player.answer = perfect("walk")
    results = played(BUILT_IN["walk"], 4, split="heldout", record=False)
    assert summary(results)["success"] == 1.0
    assert gateway.store.count(Turn) == gateway.store.count(Episode) == 0


def test_paired_runs_ask_with_the_same_seeds(player: Player, played: PlayRun) -> None:
    first, second = (played(BUILT_IN["sum"], 3, run=run, record=False) for run in ("a", "b"))
    seeds = [request["seed"] for request in player.requests]
    assert sorted(seeds[: len(seeds) // 2]) == sorted(seeds[len(seeds) // 2 :]) and len(set(seeds)) > 3
    assert [(a.task, a.seed) for a in first] == [(b.task, b.seed) for b in second]


def test_a_run_resumes_and_plays_nothing_twice(gateway: Setup, player: Player, played: PlayRun, tmp_path: Path) -> None:
    player.answer = perfect("guess")
    played(BUILT_IN["guess"], 4)
    asked = len(player.requests)
    file = tmp_path / "r.jsonl"
    lines = file.read_text("utf-8").splitlines(keepends=True)
    # Killed while it wrote the last line: the server has that episode's end, the file has half of its line.
    file.write_text("".join(lines[:-1]) + lines[-1][:20], encoding="utf-8")
    results = played(BUILT_IN["guess"], 6)
    again = len(player.requests) - asked
    assert len({one.id for one in results}) == 6 and gateway.store.count(Episode) == 6
    assert again == sum(one.turns for one in results[4:]), "only the two new ones were played"
    assert json.loads(lines[-1])["turns"] in {one.turns for one in results[:4]}


def test_an_episode_that_was_killed_in_the_middle_begins_anew_under_another_name(
    gateway: Setup, player: Player, played: PlayRun, tmp_path: Path
) -> None:
    player.answer = perfect("guess")
    (first,) = played(BUILT_IN["guess"], 1, run="x")
    # The same run on another database: its episode stands there, running, with one turn.
    body = {"id": first.id, "task_id": first.task, "seed": 0, "harness": "afterword-agent",
            "metadata": {"environment": "guess", "run": "y", "index": 0, "split": "train"}}  # fmt: skip
    (other,) = played(BUILT_IN["guess"], 1, run="y")
    assert other.id != first.id, "runs share no episode"
    name = f"{other.id}-2"
    (tmp_path / "z").mkdir()
    assert httpx.post(f"{gateway.url}/v1/episodes", json={**body, "id": name}).status_code == 201
    # Not ended by a run: play "y" again without its file, while -1 is marked as interrupted.
    httpx.post(f"{gateway.url}/v1/episodes/{other.id}/end", json={"status": "failed", "reason": "interrupted"})
    (tmp_path / "y.jsonl").unlink()
    (third,) = played(BUILT_IN["guess"], 1, run="y")
    assert third.id == f"{other.id}-3" and third.success
    ended = episode_view(gateway.store, name).episode
    assert (ended.status, ended.reason) == ("failed", "interrupted")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("hangs", "environment_timeout"), ("dies", "environment_down"), ("raises", "environment_error")],
)
def test_faults_of_an_environment_end_their_episode_with_the_reason(
    gateway: Setup, played: PlayRun, name: str, reason: str
) -> None:
    results = played(find_environment(ODD + name), 2, step_seconds=8.0)
    assert [(one.status, one.reason, one.outcome) for one in results] == [("failed", reason, None)] * 2
    assert summary(results) | {"versions": []} == summary(results) | {"versions": [], "scored": 0, "success": None}
    row = episode_view(gateway.store, results[0].id).episode
    assert (row.status, row.reason, row.outcome) == ("failed", reason, None)


def test_floods_are_cut_and_good_functions_are_played(gateway: Setup, player: Player, played: PlayRun) -> None:
    (flood,) = played(find_environment(ODD + "floods"), 1, run="flood")
    assert flood.status == "finished" and flood.success
    seen = player.requests[-1]["messages"][-1]["content"]
    assert len(seen) < 21_000 and seen.endswith("[9980000 more characters were cut]")
    player.answer = lambda messages: messages[0]["content"].split()[1].strip(",")
    results = played(find_environment(ODD + "echo"), 3, run="echo")
    assert [(one.success, one.turns) for one in results] == [(True, 3)] * 3
    player.answer = lambda messages: "a"
    (marked,) = played(find_environment(ODD + "score"), 1, run="score")
    assert (marked.task, marked.success, marked.turns) == ("train/a", True, 1)


def test_limits_of_turns_and_time_truncate(gateway: Setup, player: Player, played: PlayRun) -> None:
    player.answer = lambda messages: "hm"
    (few,) = played(BUILT_IN["walk"], 1, run="few", max_turns=3)
    assert (few.status, few.reason, few.turns, few.outcome, few.tool_errors) == ("truncated", "turns", 3, 0.0, 3)
    player.delay = 0.2
    (slow,) = played(BUILT_IN["walk"], 1, run="slow", episode_seconds=0.5)
    assert (slow.status, slow.reason) == ("truncated", "episode_seconds")
    assert episode_view(gateway.store, slow.id).episode.reason == "episode_seconds"


def test_server_faults_are_counted_and_a_missing_server_is_told(
    player: Player, played: PlayRun, tmp_path: Path
) -> None:
    player.fails = {"base-model"}
    (failed,) = played(BUILT_IN["sum"], 1)
    assert (failed.status, failed.reason, failed.scored) == ("failed", "server_error", False)
    spec = BUILT_IN["sum"]
    with RunFile(tmp_path / "none.jsonl", {}) as file, pytest.raises(UpstreamError, match="no server answers"):
        play(spec, plan_episodes(spec.panel("train"), 1, 0), PlaySettings(url="http://127.0.0.1:9/v1"), file)


def test_a_run_file_belongs_to_one_run(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with RunFile(path, {"seed": 1}):
        pass
    with pytest.raises(ConflictError, match="another seed"), RunFile(path, {"seed": 2}):
        pass
    path.write_text("nothing\n", encoding="utf-8")
    with pytest.raises(UsageError, match="no run file"), RunFile(path, {"seed": 1}):
        pass


def test_unknown_environments_are_told() -> None:
    for name in ("gues", "python:no_such_module:f", "python:json:nothing", "openenv:here"):
        with pytest.raises(ConfigError):
            find_environment(name)


def test_the_end_of_an_isolated_environment_takes_its_process_along() -> None:
    from afterword.environments.isolation import IsolatedEnvironment

    environment = IsolatedEnvironment(ODD + "hangs", seconds=30.0)
    environment.reset(EnvTask("t", {"number": 1}), 0)
    ended: list[str] = []

    def wait() -> None:
        try:
            environment.step(AgentAction("x"))
        except EnvironmentFault as fault:
            ended.append(fault.reason)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.2)
    environment.end_process()
    thread.join(10)
    environment.close()
    assert ended == ["environment_down"]
