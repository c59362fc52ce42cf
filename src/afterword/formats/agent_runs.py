"""Shared by the readers of agents' traces: one run of an agent as an episode with its turns, end and reward.

Ids are hashes of the run's name and the history, so that a turn finds the one that it continues also when the two stand
in different rows. The turns have no token ids: they are trained off-policy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from afterword.chat.canonical import thread_hashes
from afterword.formats.parsing import MISSING_IDS, bad, checked, dumps, shown, text
from afterword.records import Episode, EpisodeEnd, Feedback, Json, Record, Turn, content_hash


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentAnswer:
    """One answer of the model in a run."""

    messages: Sequence[Json]
    """The request, OpenAI's messages."""
    answer: Json
    model: str = ""
    created_at: float | None = None
    """Unix seconds of the answer's end."""
    about: Json = field(default_factory=dict)
    """Other fields of `Turn`: usage, sampling, tools, finish_reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRun:
    """What a trace says of one run."""

    format: str
    name: str
    """Names the run within its format; a part of all ids."""
    answers: Sequence[AgentAnswer]
    started_at: float | None = None
    ended_at: float | None = None
    """None: the row may not hold all of the run."""
    harness: str | None = None
    metadata: Json = field(default_factory=dict)
    """`task_id`, `seed`, `user` and `reward` are read; everything is kept."""
    reward: float | None = None


def run_records(run: AgentRun) -> list[Record]:
    """The episode, its turns, its end where that is known, and its reward.

    Raises:
        UsageError: If a message is invalid or the reward is not finite.
    """
    identifier = "ep-" + content_hash("agent-run", run.format, run.name)
    seed, reward = run.metadata.get("seed"), _reward(run)
    source, user = f"import:{run.format}", text(run.metadata.get("user"))
    moments = [one.created_at for one in run.answers if one.created_at is not None]
    started = run.started_at if run.started_at is not None else min(moments, default=0.0)
    found: list[Record] = [
        Episode(
            id=identifier,
            task_id=text(run.metadata.get("task_id")),
            harness=run.harness,
            started_at=started,
            seed=seed if isinstance(seed, int) and not isinstance(seed, bool) else None,
            created_at=started,
            metadata=run.metadata,
            user=user,
            source=source,
        )
    ]
    found += [_turn(run, identifier, one, source, user, started) for one in run.answers]
    if run.ended_at is not None:
        found.append(EpisodeEnd(
            id="end-" + content_hash("agent-run", run.format, run.name), episode=identifier, status="finished",
            ended_at=max([run.ended_at, *moments]), created_at=run.ended_at,
        ))  # fmt: skip
    if reward is not None:
        at = run.ended_at if run.ended_at is not None else max(moments, default=started)
        found.append(Feedback(
            id="fb-" + content_hash("agent-run", run.format, run.name, reward), turn=identifier, kind="outcome",
            value=reward, metadata={"episode": identifier}, created_at=at, user=user,
        ))  # fmt: skip
    return found


def _turn(run: AgentRun, episode: str, one: AgentAnswer, source: str, user: str | None, started: float) -> Turn:
    messages = [checked(message) for message in one.messages]
    answer = checked({**one.answer, "role": "assistant"})
    if not messages:
        raise bad("no_messages", f"an answer without a request: {shown(answer, 120)}")
    hashes = thread_hashes((run.format, run.name), [*messages, answer])
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=None)
    return Turn(
        id=f"turn-{hashes[-1]}", messages=tuple(messages), answer=answer, model=one.model, source=source, user=user,
        previous=None if last is None else f"turn-{hashes[last]}", episode_id=episode, missing_ids=MISSING_IDS,
        created_at=started if one.created_at is None else one.created_at, **one.about,
    )  # fmt: skip


def _reward(run: AgentRun) -> float | None:
    value = run.metadata.get("reward") if run.reward is None else run.reward
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise bad("bad_reward", f"the reward is {shown(value, 60)}: a finite number is needed", "reward")
    return float(value)


def call(identifier: Any, name: Any, arguments: Any) -> Json:
    """A tool call in OpenAI's form; arguments that are an object become JSON.

    Raises:
        UsageError: If it has no name.
    """
    if not isinstance(name, str) or not name:
        raise bad("bad_message", f"a tool call without a name: {shown(name, 60)}")
    words = arguments if isinstance(arguments, str) else dumps(arguments if arguments is not None else {})
    return {"id": text(identifier) or "", "type": "function", "function": {"name": name, "arguments": words}}


def result(identifier: Any, content: Any) -> Json:
    """A tool's result in OpenAI's form; what is no text becomes JSON."""
    words = content if isinstance(content, str) else "" if content is None else dumps(content)
    return {"role": "tool", "tool_call_id": text(identifier) or "", "content": words}
