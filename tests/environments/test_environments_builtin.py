"""The built-in environments: a perfect player wins, the panels are fixed and disjoint, wrong actions are told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from afterword.environments.builtin import BUILT_IN
from afterword.environments.protocol import AgentAction, EnvTask
from afterword.records import content_hash


def perfect_guess(seen: list[str]) -> str:
    low, high = 1, 100
    for text in seen:
        if found := re.search(r"from (\d+) to (\d+)", text):
            low, high = int(found[1]), int(found[2])
        elif found := re.search(r"(\d+) is too (low|high)", text):
            low, high = (int(found[1]) + 1, high) if found[2] == "low" else (low, int(found[1]) - 1)
    return str((low + high) // 2)


def perfect_walk(seen: list[str]) -> str:
    found = re.findall(r"\d (north|south|east|west)", seen[-1])
    return str(found[0])


def perfect_shop(seen: list[str]) -> str:
    left = re.findall(r"(\d+) ([a-z]+)", seen[-1].split("Left:")[-1])
    if not left or "Left: nothing" in seen[-1]:
        return '{"tool": "done"}'
    return json.dumps({"tool": "buy", "item": left[0][1], "count": int(left[0][0])})


def perfect_sum(seen: list[str]) -> str:
    a, b = re.findall(r"\d+", seen[0])
    return str(int(a) + int(b))


def perfect_code(seen: list[str]) -> str:
    last = re.findall(r"to (\d+)", seen[0])[0]
    return f"```python\nprint(sum(i * i for i in range(1, {last} + 1)))\n```"


PERFECT: dict[str, Callable[[list[str]], str]] = {
    "sum": perfect_sum, "guess": perfect_guess, "walk": perfect_walk, "shop": perfect_shop, "code": perfect_code,
}  # fmt: skip


def run(name: str, task: EnvTask, answer: Callable[[list[str]], str]) -> tuple[float | None, int]:
    environment = BUILT_IN[name].make()
    seen = [environment.reset(task, 0).text]
    for turn in range(1, BUILT_IN[name].max_turns + 1):
        result = environment.step(AgentAction(answer(seen)))
        if result.done:
            return result.reward, turn
        seen.append(result.observation.text)
    return None, turn


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_perfect_player_wins_and_a_silent_one_ends_in_time(name: str) -> None:
    spec = BUILT_IN[name]
    tasks = [*spec.panel("train"), *spec.panel("heldout")][:: 12 if name == "code" else 1]
    assert {run(name, task, PERFECT[name])[0] for task in tasks} == {1.0}
    reward, turns = run(name, tasks[0], lambda seen: "")
    assert (reward, turns) == (0.0, spec.max_turns)


def test_panels_are_fixed_and_share_no_task() -> None:
    for spec in BUILT_IN.values():
        train, held = spec.panel("train"), spec.panel("heldout")
        assert train == spec.panel("train") and not {t.id for t in train} & {t.id for t in held}
        assert len(held) >= 10 and len(train) == 3 * len(held)
    ids = [[task.id for task in spec.panel(split)] for spec in BUILT_IN.values() for split in ("train", "heldout")]
    assert content_hash(ids) == "a2f295e0d7c9948d2982b7569aa68c83", "the panels of measured results never change"


def test_the_shop_answers_tool_calls_in_openai_form_and_tells_errors() -> None:
    environment = BUILT_IN["shop"].make()
    start = environment.reset(EnvTask("t", {"list": {"tea": 2}}), 0)
    assert [tool["function"]["name"] for tool in start.tools] == ["buy", "done"]

    def call(name: str, arguments: str) -> str:
        action = AgentAction("", ({"id": "c1", "function": {"name": name, "arguments": arguments}},))
        result = environment.step(action)
        told.append(bool(result.info.get("tool_error")))
        return str(result.observation.tool_results["c1"])

    told: list[bool] = []
    assert "no 'wine'" in call("buy", '{"item": "wine", "count": 1}')
    assert call("buy", "not json").startswith("Error")
    assert call("buy", '{"item": "tea", "count": "2"}').startswith("Error")
    assert "being filled" in call("buy", '{"item": "tea", "count": 2}')
    assert call("buy", '{"item": "tea", "count": 2}') == "Bought 2 tea. Left: nothing."
    assert told == [True, True, True, False, False]
