"""Holds the questions of simulated users: everyday requests of several tasks, in two files that share no topic.

`train` requests are asked in conversations; `heldout` ones only measure. Both are data files: a table for each topic,
in it a list for each task. A request with material (a text to sum up, say) has it below its first line.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from afterword.errors import UsageError

FOLDER = Path(__file__).parent / "prompts"
Split = Literal["train", "heldout"]
TASKS = ("question", "explain", "rewrite", "summarise", "write", "ideas", "plan", "compare", "classify", "story")
"""`question` alone is what the demo asks: short questions with short answers."""


@dataclass(frozen=True, slots=True)
class TaskPrompt:
    """One request with its topic and kind of task."""

    topic: str
    text: str
    task: str = "question"


def load_prompts(split: Split, tasks: Sequence[str] | None = None) -> tuple[TaskPrompt, ...]:
    """All requests of a split, or those of some tasks, alternating between topics: any beginning covers them all.

    UsageError for a task that there is not.
    """
    wanted = TASKS if tasks is None else tuple(tasks)
    if unknown := [task for task in wanted if task not in TASKS]:
        raise UsageError(f"there is no task {unknown[0]!r}: the tasks are {', '.join(TASKS)}", param="tasks")
    data = tomllib.loads((FOLDER / f"{split}.toml").read_text(encoding="utf-8"))
    by_topic = [_mixed(topic, {task: tables[task] for task in TASKS if task in wanted and task in tables})
                for topic, tables in data["topics"].items()]  # fmt: skip
    longest = max(len(prompts) for prompts in by_topic)
    return tuple(prompts[i] for i in range(longest) for prompts in by_topic if i < len(prompts))


def _mixed(topic: str, by_task: dict[str, list[str]]) -> list[TaskPrompt]:
    """A topic's requests, alternating between its tasks."""
    placed = [(i, TASKS.index(task), text) for task, texts in by_task.items() for i, text in enumerate(texts)]
    return [TaskPrompt(topic, text, TASKS[task]) for _, task, text in sorted(placed)]
