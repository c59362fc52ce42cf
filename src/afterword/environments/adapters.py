"""Adapts Python functions, reasoning-gym, TextArena and verifiers v1 task sets to the protocol of environments.

The libraries are imported when their first environment is made; they run in a process of their own.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Generator, Sequence
from importlib import import_module
from types import SimpleNamespace
from typing import Any, get_args

from afterword.chat.canonical import text_of
from afterword.environments.protocol import (
    AgentAction,
    EnvironmentFault,
    EnvironmentSpec,
    EnvSplit,
    EnvTask,
    Observation,
    StepResult,
)
from afterword.errors import ConfigError
from afterword.records import Json

PANEL = 200
"""Tasks of a split where the source has no end."""
Play = Generator[str, str, float | None]


def load_module(name: str, extra: str) -> Any:
    """Imports a library of an extra. ConfigError that names the remedy when it is missing."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"this environment needs the package {extra!r}, which is missing ({error.name}): pip install {extra}",
            param="environment",
        ) from error


def parity_panel(name: str, split: EnvSplit, number: int = PANEL) -> list[EnvTask]:
    """Tasks of a source that makes any number: even numbers are trained on, odd ones are held out."""
    first = 0 if split == "train" else 1
    return [EnvTask(f"{name}/{i}", {"number": i}) for i in range(first, 2 * number, 2)]


# -- any Python function ------------------------------------------------------------------------------------------


class FunctionEnvironment:
    """A Python function as an environment.

    A generator function `play(task: dict, seed: int)` yields observations, receives the agent's texts and returns the
    reward. Any other function is `score(task: dict, answer: str) -> float`, for one answer to `task["prompt"]`.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._turns = inspect.isgeneratorfunction(function)
        self._play: Play | None = None

    def reset(self, task: EnvTask, seed: int) -> Observation:
        """Runs the function to its first observation."""
        self.close()
        self._task = task.data
        if not self._turns:
            return Observation(str(task.data["prompt"]), task.data.get("system"))
        self._play = self._function(task.data, seed)
        try:
            return Observation(str(next(self._play)), task.data.get("system"))
        except StopIteration:
            raise EnvironmentFault("the function ended before its first observation", "environment_error") from None

    def step(self, action: AgentAction) -> StepResult:
        """Sends the agent's text to the function."""
        if self._play is None:
            return StepResult(Observation(""), float(self._function(self._task, action.text)), True, {})
        try:
            return StepResult(Observation(str(self._play.send(action.text))), None, False, {})
        except StopIteration as end:
            return StepResult(Observation(""), None if end.value is None else float(end.value), True, {})

    def close(self) -> None:
        """Ends the generator."""
        if self._play is not None:
            self._play.close()
            self._play = None


def function_spec(name: str) -> EnvironmentSpec:
    """`python:MODULE:FUNCTION`. The function may carry `panel(split)`, `max_turns` and `max_tokens` as attributes;
    without `panel` the tasks are numbers."""
    module, _, attribute = name.partition(":")[2].partition(":")
    function = getattr(load_module(module, module.split(".")[0]), attribute, None)
    if not callable(function):
        raise ConfigError(
            f"{module!r} has no function {attribute!r}: write python:MODULE:FUNCTION", param="environment"
        )
    own = getattr(function, "panel", None)

    def panel(split: EnvSplit) -> Sequence[EnvTask]:
        if own is None:
            return parity_panel(name, split)
        return [task if isinstance(task, EnvTask) else EnvTask(task["id"], task) for task in own(split)]

    return EnvironmentSpec(
        name, inspect.getdoc(function) or "a Python function", lambda: FunctionEnvironment(function), panel,
        getattr(function, "max_turns", 8), getattr(function, "max_tokens", 64),
    )  # fmt: skip


# -- reasoning-gym ------------------------------------------------------------------------------------------------


class GymEnvironment:
    """A family of reasoning-gym with several tries: a wrong answer is told its score and what it was compared with
    never."""

    TRIES = 3

    def __init__(self, family: str) -> None:
        gym = load_module("reasoning_gym", "afterword[tasks]")
        self._data = gym.create_dataset(family, size=2 * PANEL, seed=0)

    def reset(self, task: EnvTask, seed: int) -> Observation:
        """Asks the question."""
        self._entry, self._left = self._data[task.data["number"]], self.TRIES
        return Observation(f"{self._entry['question']}\nReply with the answer only.")

    def step(self, action: AgentAction) -> StepResult:
        """Scores the answer with the family's own scorer."""
        self._left -= 1
        score = float(self._data.score_answer(action.text.strip(), self._entry))
        if score >= 1.0 or self._left == 0:
            return StepResult(Observation(f"Score {score:g}."), score, True, {})
        return StepResult(Observation(f"Score {score:g} of 1. Try again with the answer only."), None, False, {})

    def close(self) -> None:
        """Nothing is held."""


def gym_spec(name: str) -> EnvironmentSpec:
    """`gym:FAMILY`."""
    family = name.partition(":")[2]
    return EnvironmentSpec(
        name, f"reasoning-gym's {family}, {GymEnvironment.TRIES} tries", lambda: GymEnvironment(family),
        lambda split: parity_panel(name, split), GymEnvironment.TRIES,
    )  # fmt: skip


# -- TextArena ----------------------------------------------------------------------------------------------------


class TextArenaEnvironment:
    """A game of TextArena for one player, by its id ("GuessTheNumber-v0")."""

    def __init__(self, game: str) -> None:
        self._arena = load_module("textarena", "textarena")
        self._game = game
        self._env: Any = None

    def reset(self, task: EnvTask, seed: int) -> Observation:
        """Begins the game with a seed of the task."""
        self.close()
        self._env = env = self._arena.make(self._game)
        env.reset(num_players=1, seed=1_000_003 * seed + task.data["number"])
        return Observation(self._seen())

    def step(self, action: AgentAction) -> StepResult:
        """Makes a move."""
        assert self._env is not None
        done, info = self._env.step(action=action.text)
        if not done:
            return StepResult(Observation(self._seen()), None, False, {"info": str(info or "")})
        rewards, game_info = self._env.close()
        self._env = None
        about = dict((game_info or {}).get(0) or {})
        reward = (rewards or {}).get(0)
        invalid = bool(about.get("invalid_move"))
        return StepResult(
            Observation(str(about.get("reason") or "The game is over.")), None if reward is None else float(reward),
            True, {"tool_error": invalid},
        )  # fmt: skip

    def _seen(self) -> str:
        assert self._env is not None
        _, seen = self._env.get_observation()
        return seen if isinstance(seen, str) else "\n".join(str(message[1]) for message in seen)

    def close(self) -> None:
        """Forgets the game."""
        self._env = None


def textarena_spec(name: str) -> EnvironmentSpec:
    """`textarena:GAME`."""
    game = name.partition(":")[2]
    return EnvironmentSpec(
        name, f"TextArena's {game}", lambda: TextArenaEnvironment(game), lambda split: parity_panel(name, split), 20,
    )  # fmt: skip


# -- verifiers v1 -------------------------------------------------------------------------------------------------


class RecordedTrace(SimpleNamespace):
    """What the rewards of a verifiers task read of a run: its messages and last reply; collects what they record."""

    def __init__(self, data: Any, messages: list[Json], reply: str) -> None:
        super().__init__(
            task=SimpleNamespace(data=data), messages=messages, last_reply=reply, root_reply=reply, rewards={},
            metrics={}, info={}, state=SimpleNamespace(), num_turns=1, is_completed=True,
        )  # fmt: skip
        self.assistant_messages = [SimpleNamespace(role="assistant", content=reply, tool_calls=None)]

    def record_reward(self, name: str, value: float, weight: float = 1.0) -> None:
        """Notes a reward."""
        self.rewards[name] = float(value) * weight

    def record_metric(self, name: str, value: float) -> None:
        """Notes a metric."""
        self.metrics[name] = value

    def record_metrics(self, values: dict[str, float]) -> None:
        """Notes several metrics."""
        self.metrics.update(values)


class VerifiersEnvironment:
    """A task set of verifiers v1: one reply to each prompt, scored by the task's own rewards that need no runtime."""

    def __init__(self, source: str) -> None:
        self._tasks = _taskset(source)

    def reset(self, task: EnvTask, seed: int) -> Observation:
        """Gives the prompt."""
        self._task = self._tasks[task.data["number"]]
        data = self._task.data
        prompt = data.prompt
        if prompt is None:
            raise EnvironmentFault(f"the task {task.id!r} has no prompt: its user begins", "environment_error")
        text = prompt if isinstance(prompt, str) else "\n\n".join(_said(one) for one in prompt)
        self._messages: list[Json] = [{"role": "user", "content": text}]
        return Observation(text, data.system_prompt)

    def step(self, action: AgentAction) -> StepResult:
        """Scores the reply: the sum of its rewards, as verifiers adds them."""
        messages = [*self._messages, {"role": "assistant", "content": action.text}]
        trace = RecordedTrace(self._task.data, messages, action.text)
        asyncio.run(self._task.score(trace))
        values = [getattr(value, "value", value) for value in trace.rewards.values()]
        reward = None if not values or any(value is None for value in values) else float(sum(values))
        return StepResult(Observation(""), reward, True, {"rewards": trace.rewards, "metrics": trace.metrics})

    def close(self) -> None:
        """Nothing is held."""


def _said(message: Any) -> str:
    return text_of(message.get("content") if isinstance(message, dict) else message.content)


def _taskset(source: str) -> list[Any]:
    verifiers = load_module("verifiers.v1", "verifiers")
    module, _, attribute = source.partition(":")
    found = getattr(load_module(module, module.split(".")[0]), attribute, None)
    if found is None:
        raise ConfigError(f"{module!r} has no task set {attribute!r}: write verifiers:MODULE:NAME", param="environment")
    if isinstance(found, type):  # a class: with its own default settings
        known = [argument for base in getattr(found, "__orig_bases__", ()) for argument in get_args(base)]
        configs = [one for one in known if isinstance(one, type) and issubclass(one, verifiers.TasksetConfig)]
        found = found((configs[0] if configs else verifiers.TasksetConfig)())
    elif inspect.isfunction(found):
        found = found()
    return [task for task, _ in zip(found, range(2 * PANEL), strict=False)]


def verifiers_spec(name: str) -> EnvironmentSpec:
    """`verifiers:MODULE:NAME`, a task set, its class or a function that gives one."""
    source = name.partition(":")[2]

    def panel(split: EnvSplit) -> list[EnvTask]:
        first = 0 if split == "train" else 1
        return [EnvTask(f"{name}/{i}", {"number": i}) for i in range(first, len(_taskset(source)), 2)]

    return EnvironmentSpec(name, f"the task set {source}", lambda: VerifiersEnvironment(source), panel, 1, 512)
