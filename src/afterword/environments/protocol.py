"""Defines the protocol of environments: tasks, actions, observations and their JSON forms.

The shape is that of OpenEnv and Gymnasium: `reset(task, seed)` gives an observation, `step(action)` gives observation,
reward, done and info.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from afterword.errors import AfterwordError
from afterword.records import Json

EnvSplit = Literal["train", "heldout"]
TEXT_LIMIT = 20_000
"""Characters of an observation; more are cut with a note."""

_NOTE = 60
"""Characters that the note of a cut may have."""


class EnvironmentFault(AfterwordError):
    """An environment is down, late or broken. `reason` is the short code that the episode ends with."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message, code=reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class EnvTask:
    """One task of an environment's panel."""

    id: str
    """Unique within the environment; the same in every run."""
    data: Json = field(default_factory=dict)
    """What the environment needs to begin it."""

    def to_dict(self) -> Json:
        """Both fields, JSON-compatible."""
        return {"id": self.id, "data": self.data}


@dataclass(frozen=True, slots=True)
class AgentAction:
    """What the agent did: its text, and its tool calls in OpenAI's form."""

    text: str
    tool_calls: tuple[Json, ...] = ()

    def to_dict(self) -> Json:
        """Both fields, JSON-compatible."""
        return {"text": self.text, "tool_calls": list(self.tool_calls)}


@dataclass(frozen=True, slots=True)
class Observation:
    """What the agent reads next."""

    text: str
    system: str | None = None
    """System message of the episode; only of `reset`."""
    tools: tuple[Json, ...] = ()
    """Tools in OpenAI's form; only of `reset`."""
    tool_results: Json = field(default_factory=dict)
    """Id of a tool call -> its result. `text` is then sent only where it is not empty."""

    def to_dict(self) -> Json:
        """All fields, JSON-compatible."""
        return {"text": self.text, "system": self.system, "tools": list(self.tools), "tool_results": self.tool_results}

    @classmethod
    def from_dict(cls, data: Json) -> Observation:
        """The observation of a JSON form; other fields are ignored."""
        return cls(
            str(data.get("text", "")), data.get("system"), tuple(data.get("tools") or ()),
            {str(name): str(text) for name, text in (data.get("tool_results") or {}).items()},
        )  # fmt: skip


class StepResult(NamedTuple):
    """What a step came to."""

    observation: Observation
    reward: float | None
    """Reward of this action; None: the action has none. The sum over an episode is its outcome."""
    done: bool
    info: Json
    """`tool_error` True: the action was no valid one. Other entries are kept as they are."""


class Environment(Protocol):
    """One episode at a time. An instance is used by one thread and may be reset again."""

    def reset(self, task: EnvTask, seed: int) -> Observation:
        """Begins a task.

        Raises:
            EnvironmentFault: If the environment cannot begin it.
        """

    def step(self, action: AgentAction) -> StepResult:
        """Answers an action.

        Raises:
            EnvironmentFault: If the environment is down, late or broken.
        """

    def close(self) -> None:
        """Frees what the environment holds; harmless when done twice."""


@dataclass(frozen=True, slots=True)
class EnvironmentSpec:
    """An environment by its name, with its panel of tasks and its limits."""

    name: str
    about: str
    make: Callable[[], Environment]
    panel: Callable[[EnvSplit], Sequence[EnvTask]]
    """The tasks of a split, in a fixed order; the splits share none."""
    max_turns: int = 8
    max_tokens: int = 64
    """Length bound of one answer, in tokens."""
    success_at: float = 1.0
    """Outcome from which an episode counts as a success."""
    isolated: bool = True
    """Run each instance in a process of its own; False for environments that only compute for microseconds."""


def cut(text: str, limit: int = TEXT_LIMIT) -> str:
    """Cuts a text to `limit` characters, with a note on how many are missing; a text that was cut stays as it is."""
    if len(text) <= limit + _NOTE:
        return text
    return f"{text[:limit]}\n[{len(text) - limit} more characters were cut]"


def cut_observation(observation: Observation, limit: int = TEXT_LIMIT) -> Observation:
    """Cuts the text and each tool result of an observation."""
    results = {name: cut(text, limit) for name, text in observation.tool_results.items()}
    return Observation(cut(observation.text, limit), observation.system, observation.tools, results)


def tool_call(action: AgentAction) -> tuple[str, Any] | None:
    """The id and function of the first tool call; None without one."""
    for call in action.tool_calls:
        function = call.get("function")
        if isinstance(function, dict):
            return str(call.get("id", "")), function
    return None
