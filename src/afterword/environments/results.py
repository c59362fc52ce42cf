"""Keeps what came of episodes in a run file: one JSON line each, on disk before the next episode of its place begins.

The run file is what a resumed run reads; an episode that has a line is never played again.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TextIO

from afterword.errors import ConflictError, UsageError
from afterword.records import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeResult:
    """What an episode came to."""

    id: str
    """Its id on the server."""
    task: str
    index: int
    """Its place in the run, from 0."""
    seed: int
    status: str
    """"finished", "truncated" (a limit) or "failed" (the environment or the server)."""
    reason: str | None = None
    """Why it was truncated or failed, as a short code."""
    detail: str | None = None
    """The message of the fault."""
    outcome: float | None = None
    """Sum of the rewards; None: it cannot be scored."""
    success: bool = False
    turns: int = 0
    tool_errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    versions: tuple[str, ...] = ()
    """Adapter versions that answered; "base" for the base model."""

    @property
    def scored(self) -> bool:
        """False where the environment or the server broke it off: it says nothing of the model."""
        return self.status != "failed"

    def to_dict(self) -> Json:
        """All fields, JSON-compatible."""
        return dataclasses.asdict(self) | {"versions": list(self.versions)}

    @classmethod
    def from_dict(cls, data: Json) -> Self:
        """The result of a JSON form."""
        return cls(**{**data, "versions": tuple(data["versions"])})


@dataclass(slots=True)
class RunFile:
    """The results of one run. Use as a context."""

    path: Path
    header: Json
    """What the run is: environment, split, seed, ...; a file of another run is rejected."""
    results: dict[int, EpisodeResult] = field(default_factory=dict)
    """By index."""
    _file: TextIO | None = None

    def __enter__(self) -> Self:
        """Opens the file and reads what is done.

        Raises:
            ConflictError: If it is the file of another run.
            UsageError: If it is no run file.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+", encoding="utf-8") as file:
            file.seek(0)
            text = file.read()
            whole = text[: text.rfind("\n") + 1]
            lines = whole.splitlines()
            self._read(lines)
            if len(whole) < len(text):  # the last line of a run that was killed
                file.truncate(len(whole.encode()))
        self._file = self.path.open("a", encoding="utf-8")
        if not lines:
            self._write(self.header)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def _read(self, lines: list[str]) -> None:
        if not lines:
            return
        try:
            header, *rest = [json.loads(line) for line in lines]
            found = [EpisodeResult.from_dict(one) for one in rest]
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(f"{str(self.path)!r} is no run file ({error}): name another run with --run") from error
        if header != self.header:
            changed = sorted(name for name in {*header, *self.header} if header.get(name) != self.header.get(name))
            raise ConflictError(
                f"the run {self.path.stem!r} was started with another {', '.join(changed)}: give the same values to "
                "resume it, or name another run with --run"
            )
        self.results = {one.index: one for one in found}

    def add(self, result: EpisodeResult) -> None:
        """Writes a result durably."""
        self._write(result.to_dict())
        self.results[result.index] = result

    def _write(self, data: Json) -> None:
        assert self._file is not None
        self._file.write(json.dumps(data, ensure_ascii=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def summary(results: list[EpisodeResult]) -> Json:
    """Counts and means of a run. `success` is over the episodes that could be scored."""
    scored = [one for one in results if one.scored]
    won = [one for one in scored if one.success]
    reasons: dict[str, int] = {}
    for one in results:
        if one.reason is not None:
            reasons[one.reason] = reasons.get(one.reason, 0) + 1
    turns = sum(one.turns for one in scored)
    return {
        "episodes": len(results), "scored": len(scored), "successes": len(won),
        "success": round(len(won) / len(scored), 4) if scored else None,
        "turns_to_success": round(sum(one.turns for one in won) / len(won), 3) if won else None,
        "turns": turns, "tool_errors": sum(one.tool_errors for one in scored),
        "tool_errors_per_turn": round(sum(one.tool_errors for one in scored) / turns, 4) if turns else None,
        "prompt_tokens": sum(one.prompt_tokens for one in results),
        "completion_tokens": sum(one.completion_tokens for one in results),
        "reasons": dict(sorted(reasons.items())),
        "versions": sorted({name for one in results for name in one.versions}),
    }  # fmt: skip
