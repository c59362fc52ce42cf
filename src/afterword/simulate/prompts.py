"""The questions that simulated users ask: everyday ones, in two files that share no topic.

`train` questions are asked in conversations; `heldout` questions only measure. Both are data files.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FOLDER = Path(__file__).parent / "prompts"
Split = Literal["train", "heldout"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question and the topic that it belongs to."""

    topic: str
    text: str


def load_prompts(split: Split) -> tuple[Prompt, ...]:
    """All questions of a split, alternating between its topics so that any beginning covers them all."""
    data = tomllib.loads((FOLDER / f"{split}.toml").read_text(encoding="utf-8"))
    by_topic = [[Prompt(topic, text) for text in texts] for topic, texts in data["topics"].items()]
    longest = max(len(prompts) for prompts in by_topic)
    return tuple(prompts[i] for i in range(longest) for prompts in by_topic if i < len(prompts))
