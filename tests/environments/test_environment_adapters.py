"""Adapters keep to the protocols of their libraries: OpenEnv over a socket, the others against local doubles of the
documented calls; with the library itself where it is installed."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from tests.environments.conftest import Player, PlayRun
from tests.environments.test_environments_builtin import perfect_guess

from afterword.environments.builtin import BUILT_IN
from afterword.environments.protocol import AgentAction, EnvironmentFault, EnvTask
from afterword.environments.registry import find_environment
from afterword.environments.remote import OpenEnvClient, environment_app
from afterword.errors import ConfigError

GUESS = EnvTask("guess/1/7", {"low": 1, "target": 7})


@contextmanager
def served(app: web.Application) -> Iterator[str]:
    """An application on a free port of a thread."""
    ready, box = threading.Event(), SimpleNamespace()

    async def main() -> None:
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        box.url, box.loop, box.end = (
            f"http://127.0.0.1:{runner.addresses[0][1]}",
            asyncio.get_running_loop(),
            asyncio.Event(),
        )
        ready.set()
        await box.end.wait()
        await runner.cleanup()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert ready.wait(10)
    try:
        yield box.url
    finally:
        box.loop.call_soon_threadsafe(box.end.set)
        thread.join(10)


def test_an_environment_is_served_to_an_openenv_client() -> None:
    app = environment_app(BUILT_IN["guess"].make, {GUESS.id: GUESS}.get)
    with served(app) as url:
        client = OpenEnvClient(url)
        seen = [client.reset(GUESS, 3).text]
        for _ in range(4):
            result = client.step(AgentAction(perfect_guess(seen)))
            seen.append(result.observation.text)
            if result.done:
                break
        assert (result.reward, result.done, seen[-1]) == (1.0, True, "Correct.")
        client.reset(GUESS, 3)
        invalid = client.step(AgentAction("dunno"))
        assert invalid.info == {"tool_error": True} and not invalid.done
        with pytest.raises(EnvironmentFault, match="no task") as unknown:
            client.reset(EnvTask("guess/none"), 0)
        assert unknown.value.reason == "unknown_task"
        client.close()
        client.close()


def test_episodes_are_played_on_an_openenv_server(player: Player, played: PlayRun) -> None:
    player.answer = lambda messages: perfect_guess([m["content"] for m in messages if m["role"] == "user"])
    with served(environment_app(BUILT_IN["guess"].make, lambda name: GUESS)) as url:
        results = played(find_environment(f"openenv:{url}"), 6, record=False)
    assert [(one.success, one.reason) for one in results] == [(True, None)] * 6
    (down,) = played(find_environment(f"openenv:{url}"), 1, run="down", record=False)
    assert (down.status, down.reason) == ("failed", "environment_down")


def test_a_foreign_openenv_server_late_down_and_with_other_fields() -> None:
    async def talk(request: web.Request) -> web.WebSocketResponse:
        link = web.WebSocketResponse()
        await link.prepare(request)
        async for message in link:
            asked = message.json()
            if asked["data"].get("message") == "slow":
                await asyncio.sleep(5)
            if asked["data"].get("message") == "end":
                break
            said = {"message": f"heard {asked['data'].get('message')}", "done": False, "metadata": {"n": 1}}
            await link.send_json({"type": "observation", "data": {"observation": said, "reward": 0.5, "done": False}})
        return link

    app = web.Application()
    app.router.add_get("/ws", talk)
    with served(app) as url:
        client = OpenEnvClient(url, seconds=1.0, action_field="message")
        assert client.reset(GUESS, 0).text == "heard None"
        result = client.step(AgentAction("hello"))
        assert (result.observation.text, result.reward, result.done, result.info) == (
            "heard hello",
            0.5,
            False,
            {"n": 1},
        )
        for text, reason in (("slow", "environment_timeout"), ("end", "environment_down")):
            with pytest.raises(EnvironmentFault) as fault:
                client.step(AgentAction(text))
            assert fault.value.reason == reason
        client.close()
    down = OpenEnvClient(url, seconds=2.0)
    with pytest.raises(EnvironmentFault, match="no environment answers"):
        down.reset(GUESS, 0)
    down.close()


class Arena:
    """A game of TextArena: guess "win" within three moves."""

    def reset(self, num_players: int, seed: int | None = None) -> None:
        self.seed, self.moves, self.seen = seed, 0, [(-1, f"Say win ({num_players})", "PROMPT")]

    def get_observation(self) -> tuple[int, Any]:
        seen, self.seen = self.seen, []
        return 0, seen

    def step(self, action: str) -> tuple[bool, Any]:
        self.moves += 1
        self.last = action
        self.seen = [(-1, f"You said {action}", "GAME_MESSAGE")]
        return action == "win" or self.moves == 3, {}

    def close(self) -> tuple[dict[int, int], dict[int, Any]]:
        won = self.last == "win"
        return {0: int(won)}, {0: {"reason": "won" if won else "lost", "invalid_move": not won}}


def test_textarena_games(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    fake = ModuleType("textarena")

    def make(game: str) -> Arena:
        made.append(game)
        return Arena()

    fake.make = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "textarena", fake)
    spec = find_environment("textarena:Say-v0")
    game = spec.make()
    assert game.reset(spec.panel("train")[1], 2).text == "Say win (1)" and made == ["Say-v0"]
    assert game.step(AgentAction("no")).observation.text == "You said no"
    won = game.step(AgentAction("win"))
    assert (won.reward, won.done, won.observation.text, won.info) == (1.0, True, "won", {"tool_error": False})
    game.close()


class Data:
    """Task data of verifiers v1."""

    def __init__(self, number: int) -> None:
        self.prompt, self.system_prompt, self.number = f"Say {number}.", "Be brief.", number


class VerifiersTask:
    """A task of verifiers v1: its rewards are recorded on the trace."""

    def __init__(self, number: int) -> None:
        self.data = Data(number)

    async def score(self, trace: Any, runtime: Any = None) -> None:
        trace.record_reward("right", float(trace.last_reply == str(self.data.number)), 2.0)
        trace.record_metric("length", len(trace.messages[-1]["content"]))


def test_verifiers_task_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "verifiers", ModuleType("verifiers"))
    monkeypatch.setitem(sys.modules, "verifiers.v1", ModuleType("verifiers.v1"))
    own = ModuleType("own_tasks")
    own.numbers = lambda: [VerifiersTask(n) for n in range(6)]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_tasks", own)
    spec = find_environment("verifiers:own_tasks:numbers")
    assert [task.data["number"] for task in spec.panel("heldout")] == [1, 3, 5]
    environment = spec.make()
    seen = environment.reset(spec.panel("heldout")[1], 0)
    assert (seen.text, seen.system) == ("Say 3.", "Be brief.")
    right = environment.step(AgentAction("3"))
    assert (right.reward, right.done, right.info["metrics"]) == (2.0, True, {"length": 1})
    with pytest.raises(ConfigError, match="no task set"):
        find_environment("verifiers:own_tasks:none").make()


def test_reasoning_gym_with_three_tries() -> None:
    pytest.importorskip("reasoning_gym")
    spec = find_environment("gym:chain_sum")
    task = spec.panel("train")[0]
    environment = spec.make()
    question = environment.reset(task, 0).text
    right = str(eval(question.split("simplified problem:")[-1].split("=")[0].split(":")[-1]))
    wrong = environment.step(AgentAction("no"))
    assert not wrong.done and wrong.reward is None and "Try again" in wrong.observation.text
    assert environment.step(AgentAction(right))[1:3] == (1.0, True)
    environment.reset(task, 0)
    assert [environment.step(AgentAction("no")).done for _ in range(3)] == [False, False, True]


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textarena", None)
    with pytest.raises(ConfigError, match="pip install textarena"):
        find_environment("textarena:X").make()


def test_imports_stay_lazy() -> None:
    begin = time.monotonic()
    find_environment("gym:chain_sum"), find_environment("textarena:X"), find_environment("openenv:http://127.0.0.1:9")
    assert time.monotonic() - begin < 5
