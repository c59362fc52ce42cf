"""What the experiments share: their options, their shape, and the prompts that they measure on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from afterword.errors import UsageError
from afterword.model.loading import EMBEDDED
from afterword.simulate import TaskPrompt, load_prompts

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line asked for."""

    seeds: int = 3
    personas: tuple[str, ...] = ()
    """Empty: the experiment's own."""
    variants: tuple[str, ...] = ()
    """Empty: all."""
    recipe: str = "follow-ups"
    """The variant by which arms distil that are not themselves about recipes."""
    tasks: tuple[str, ...] | None = None
    heldout: int = 64
    max_tokens: int = 64
    model: str = EMBEDDED
    device: str = "auto"
    scale: float = 1.0
    """Factor on the numbers of interactions; a smoke run takes a small one."""
    files: tuple[str, ...] = ()
    """Logs to import, for offline_logs."""

    def sized(self, interactions: int) -> int:
        """A number of interactions under `scale`, at least 6."""
        return max(6, round(interactions * self.scale))

    def train(self) -> tuple[TaskPrompt, ...]:
        """Requests for conversations."""
        return load_prompts("train", self.tasks)

    def measured(self) -> tuple[TaskPrompt, ...]:
        """Requests that only measure."""
        return load_prompts("heldout", self.tasks)[: self.heldout]

    def chosen(self, own: Sequence[str], of: str) -> list[str]:
        """The experiment's own names, or those asked for."""
        asked: tuple[str, ...] = getattr(self, of)
        if of == "variants" and (unknown := [name for name in asked if name not in own]):
            raise UsageError(f"there is no variant {unknown[0]!r}: the variants are {', '.join(own)}")
        return list(asked or own)


@dataclass(frozen=True, slots=True)
class Experiment:
    """One command."""

    about: str
    cells: Callable[[Options], list[Row]]
    run: Callable[[Row, Options], Row]
    report: Callable[[list[Row]], tuple[str, str | None]]
    """Rows to a Markdown table and a picture."""
