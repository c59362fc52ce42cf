"""Plays the built-in environments: `sum`, `guess`, `walk`, `shop` and `code`, of rising length.

A program decides each of them. Panels are fixed: a task belongs to the held-out split by the hash of its id. Texts are
written for small models: one example in the system message, one short reply a turn. `docs/agents.md` has the success
rates of the built-in model.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator

from afterword.environments.code_tool import run_code
from afterword.environments.protocol import (
    AgentAction,
    EnvironmentSpec,
    EnvSplit,
    EnvTask,
    Observation,
    StepResult,
    tool_call,
)
from afterword.records import Json, content_hash

EVERY = 4
"""One task of so many is held out."""
_NUMBER = re.compile(r"-?\d+")


def split_panel(tasks: Iterator[EnvTask], split: EnvSplit) -> list[EnvTask]:
    """The tasks of a split, in an order that is fixed by the hashes of their ids."""
    ordered = sorted(tasks, key=lambda task: content_hash(task.id))
    held = {task.id for task in ordered[::EVERY]}
    return [task for task in ordered if (task.id in held) == (split == "heldout")]


def _over(text: str, reward: float, **info: object) -> StepResult:
    return StepResult(Observation(text), reward, True, dict(info))


def _on(text: str, reward: float | None = None, **info: object) -> StepResult:
    return StepResult(Observation(text), reward, False, dict(info))


class SumEnvironment:
    """Add two numbers; one more try after a wrong answer. At most two turns."""

    def reset(self, task: EnvTask, seed: int) -> Observation:
        """Asks for the sum."""
        self._a, self._b, self._tries = task.data["a"], task.data["b"], 0
        return Observation(f"What is {self._a} plus {self._b}? Reply with one number only.")

    def step(self, action: AgentAction) -> StepResult:
        """Compares the last number of the reply."""
        self._tries += 1
        found, right = _NUMBER.findall(action.text), self._a + self._b
        if found and int(found[-1]) == right:
            return _over("Correct.", 1.0)
        if self._tries == 2:
            return _over("Wrong again.", 0.0, tool_error=not found)
        if not found:
            return _on("That is not a number. Reply with one number only.", tool_error=True)
        said = int(found[-1])
        return _on(f"{said} is too {'low' if said < right else 'high'}. Try again with one number only.")

    def close(self) -> None:
        """Nothing is held."""


class GuessEnvironment:
    """Guess a number of ten; the environment says too low or too high. At most four turns."""

    def reset(self, task: EnvTask, seed: int) -> Observation:
        """Names the range."""
        self._low, self._target, self._tries = task.data["low"], task.data["target"], 0
        return Observation(
            f"I think of a number from {self._low} to {self._low + 9}. Guess it: reply with one number only."
        )

    def step(self, action: AgentAction) -> StepResult:
        """Compares the first number of the reply."""
        self._tries += 1
        found = _NUMBER.search(action.text)
        said = None if found is None else int(found[0])
        if said == self._target:
            return _over("Correct.", 1.0)
        if self._tries == 4:
            return _over(f"It was {self._target}.", 0.0, tool_error=said is None)
        if said is None:
            return _on("That is not a number. Reply with one number only.", tool_error=True)
        return _on(f"{said} is too {'low' if said < self._target else 'high'}. Guess again with one number only.")

    def close(self) -> None:
        """Nothing is held."""


_STEPS = {"north": (0, 1), "south": (0, -1), "east": (1, 0), "west": (-1, 0)}


class WalkEnvironment:
    """Walk to an exit, one direction a turn. At most eight turns."""

    def reset(self, task: EnvTask, seed: int) -> Observation:
        """Says where the exit is."""
        self._x, self._y, self._tries = task.data["x"], task.data["y"], 0
        return Observation(
            f"The exit is {self._where()} of you. Each turn, reply with one word: north, south, east or west."
        )

    def step(self, action: AgentAction) -> StepResult:
        """Moves by the first direction of the reply."""
        self._tries += 1
        word = next((w for w in re.findall(r"[a-z]+", action.text.lower()) if w in _STEPS), None)
        if word is not None:
            self._x, self._y = self._x - _STEPS[word][0], self._y - _STEPS[word][1]
        if (self._x, self._y) == (0, 0):
            return _over("You are at the exit.", 1.0)
        if self._tries == 8:
            return _over("Too late: the exit is closed.", 0.0, tool_error=word is None)
        if word is None:
            return _on("That is no direction. Reply with one word: north, south, east or west.", tool_error=True)
        return _on(f"You went {word}. The exit is {self._where()} of you. Reply with one word.")

    def _where(self) -> str:
        parts = []
        if self._y:
            parts.append(f"{abs(self._y)} {'north' if self._y > 0 else 'south'}")
        if self._x:
            parts.append(f"{abs(self._x)} {'east' if self._x > 0 else 'west'}")
        return " and ".join(parts)

    def close(self) -> None:
        """Nothing is held."""


_GOODS = ("apples", "bread", "cheese", "eggs", "honey", "milk", "rice", "soap", "tea", "wine")
_TOOLS: tuple[Json, ...] = (
    {"type": "function", "function": {"name": "buy", "description": "Buy a number of one item.", "parameters": {
        "type": "object", "required": ["item", "count"],
        "properties": {"item": {"type": "string"}, "count": {"type": "integer"}}}}},
    {"type": "function", "function": {"name": "done", "description": "Leave the shop.", "parameters": {
        "type": "object", "properties": {}}}},
)  # fmt: skip
_SHOP = (
    "You shop with a tool. Each turn, reply with one JSON object and nothing else.\n"
    'To buy: {"tool": "buy", "item": "bread", "count": 2}\n'
    'When everything is bought: {"tool": "done"}'
)


class ShopEnvironment:
    """Buy what a list says with a JSON tool, then leave. At most ten turns; three to five items and one `done`.

    Some shelves are empty at first and are filled after the first failed purchase, so that an error has to be answered.
    """

    def reset(self, task: EnvTask, seed: int) -> Observation:
        """Gives the list."""
        self._list: dict[str, int] = dict(task.data["list"])
        self._bought: dict[str, int] = {}
        self._empty = {random.Random(f"{task.id}/{seed}").choice(sorted(self._list))}
        self._tries = 0
        wanted = ", ".join(f"{count} {item}" for item, count in self._list.items())
        return Observation(f"Buy {wanted}.", _SHOP, _TOOLS)

    def step(self, action: AgentAction) -> StepResult:
        """Carries out the tool call: OpenAI's form, or a JSON object in the text."""
        self._tries += 1
        call = tool_call(action)
        name, arguments = _called(call[1]) if call is not None else _json_call(action.text)
        result = self._do(name, arguments)
        if not result.done and self._tries == 10:
            result = _over(f"{result.observation.text} The shop closes.", self._score(), **result.info)
        if call is None:
            return result
        return result._replace(observation=Observation("", tool_results={call[0]: result.observation.text}))

    def _do(self, name: str | None, arguments: Json) -> StepResult:
        if name == "done":
            return _over("You leave the shop.", self._score())
        item, count = str(arguments.get("item", "")).lower(), arguments.get("count", 1)
        if name != "buy" or not isinstance(count, int):
            return _on('Error: reply with one JSON object, such as {"tool": "buy", "item": "tea", "count": 1}',
                       tool_error=True)  # fmt: skip
        if item not in self._list:
            return _on(f"Error: there is no {item!r:.40} on your list. Left: {self._left()}.", tool_error=True)
        if item in self._empty:
            self._empty.discard(item)
            return _on(f"Error: the shelf of {item} is being filled. Try again. Left: {self._left()}.")
        self._bought[item] = self._bought.get(item, 0) + count
        return _on(f"Bought {count} {item}. Left: {self._left()}.")

    def _left(self) -> str:
        left = {item: count - self._bought.get(item, 0) for item, count in self._list.items()}
        return ", ".join(f"{count} {item}" for item, count in left.items() if count > 0) or "nothing"

    def _score(self) -> float:
        return 1.0 if self._bought == self._list else 0.0

    def close(self) -> None:
        """Nothing is held."""


def _called(function: Json) -> tuple[str | None, Json]:
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except (TypeError, ValueError):
        arguments = {}
    return function.get("name"), arguments if isinstance(arguments, dict) else {}


def _json_call(text: str) -> tuple[str | None, Json]:
    """The first JSON object of a text that names a tool."""
    decoder, start = json.JSONDecoder(), text.find("{")
    while start >= 0:
        try:
            found, _ = decoder.raw_decode(text, start)
        except ValueError:
            found = None
        if isinstance(found, dict) and isinstance(found.get("tool"), str):
            return found["tool"], found
        start = text.find("{", start + 1)
    return None, {}


class CodeEnvironment:
    """Write a Python program that prints a value; its output comes back. At most four turns, for larger models."""

    def reset(self, task: EnvTask, seed: int) -> Observation:
        """Asks for the program."""
        self._want, self._tries = str(task.data["output"]), 0
        return Observation(f"{task.data['prompt']} Reply with one Python program and nothing else.")

    def step(self, action: AgentAction) -> StepResult:
        """Runs the program in a fresh interpreter."""
        self._tries += 1
        fenced = re.search(r"```(?:python)?\n(.*?)```", action.text, re.DOTALL)
        done = run_code(fenced[1] if fenced else action.text)
        if done.exit_code == 0 and done.output.strip() == self._want:
            return _over("Correct.", 1.0)
        said = f"Exit code {done.exit_code}{f' ({done.reason})' if done.reason else ''}. Output:\n{done.output}"
        if self._tries == 4:
            return _over(said, 0.0, tool_error=done.exit_code != 0)
        return _on(f"{said}\nThis is not the wanted output. Correct the program.", tool_error=done.exit_code != 0)

    def close(self) -> None:
        """Nothing is held."""


def _sums(split: EnvSplit) -> list[EnvTask]:
    return split_panel((EnvTask(f"sum/{a}+{b}", {"a": a, "b": b}) for a in range(11, 31) for b in range(3, 13)), split)


def _guesses(split: EnvSplit) -> list[EnvTask]:
    tasks = (EnvTask(f"guess/{low}/{low + i}", {"low": low, "target": low + i})
             for low in range(1, 92, 10) for i in range(10))  # fmt: skip
    return split_panel(tasks, split)


def _walks(split: EnvSplit) -> list[EnvTask]:
    tasks = (EnvTask(f"walk/{x},{y}", {"x": x, "y": y})
             for x in range(-3, 4) for y in range(-3, 4) if (x, y) != (0, 0))  # fmt: skip
    return split_panel(tasks, split)


def _lists(split: EnvSplit) -> list[EnvTask]:
    found: dict[str, EnvTask] = {}
    draw = random.Random("shop")
    while len(found) < 120:
        goods = {item: draw.randint(1, 4) for item in draw.sample(_GOODS, draw.randint(2, 4))}
        name = "shop/" + "+".join(f"{count}{item}" for item, count in goods.items())
        found[name] = EnvTask(name, {"list": goods})
    return split_panel(iter(found.values()), split)


def _programs(split: EnvSplit) -> list[EnvTask]:
    tasks = (
        EnvTask(f"code/squares/{n}", {"prompt": f"Print the sum of the squares of 1 to {n}.",
                                      "output": sum(i * i for i in range(1, n + 1))})
        for n in range(5, 45)
    )  # fmt: skip
    return split_panel(tasks, split)


BUILT_IN = {
    spec.name: spec
    for spec in (
        EnvironmentSpec("sum", "add two numbers, one more try", SumEnvironment, _sums, 2, 16, isolated=False),
        EnvironmentSpec("guess", "guess a number of ten", GuessEnvironment, _guesses, 4, 16, isolated=False),
        EnvironmentSpec("walk", "walk to an exit", WalkEnvironment, _walks, 8, 12, isolated=False),
        EnvironmentSpec("shop", "buy a list with a JSON tool", ShopEnvironment, _lists, 10, 40, isolated=False),
        EnvironmentSpec("code", "write a program that prints a value", CodeEnvironment, _programs, 4, 256),
    )
}
"""Name -> environment."""
