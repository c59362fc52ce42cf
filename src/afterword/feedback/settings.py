"""What can be set about collection; the defaults are the vetted setting. Never decides anything itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from string import Formatter

from afterword.chat.redact import MODES
from afterword.errors import ConfigError
from afterword.kinds import KINDS


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectSettings:
    """How feedback becomes interactions."""

    holdout: float = 0.25
    """Share of conversations whose interactions are held out; fixed by a hash of the conversation."""
    weights: dict[str, float] = field(default_factory=dict)
    """Kind -> weight, in place of the table's. 0 switches the kind off."""
    task_weights: dict[str, dict[str, float]] = field(default_factory=dict)
    """Task -> kind -> weight, in place of `weights` for turns of that task."""
    wait_seconds: float = 3600.0
    """How long a retried turn waits for a later accepted attempt before it is skipped."""
    max_hindsight_chars: int = 8000
    """Longer words of a user are skipped as `too_long`; output of programs is cut to half of this."""
    min_answer_chars: int = 1
    """Shorter answers are skipped as `answer_too_short`."""
    max_answer_chars: int = 32_000
    """Longer answers are skipped as `answer_too_long`."""
    min_confidence: float = 0.3
    """Readings that the detectors, or the client's `metadata.confidence`, are less sure of are skipped as
    `low_confidence`."""
    redact: str = "rules"
    """Private data in hindsight: "rules", "presidio" (needs the extra), or "off"."""
    duplicates: float = 0.85
    """From this similarity on, what one user said before is skipped (`duplicate`, `near_duplicate`); 0 keeps all."""
    hindsight: dict[str, str] = field(default_factory=dict)
    """Kind -> words for the teacher, in place of the table's: a format string with the same fields."""
    task_hindsight: dict[str, dict[str, str]] = field(default_factory=dict)
    """Task -> kind -> words, in place of `hindsight` for turns of that task."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.holdout <= 1.0:
            raise ConfigError(f"`holdout` is {self.holdout}; it is a share of conversations, between 0 and 1.")
        if self.redact not in MODES:
            raise ConfigError(f"`redact` is {self.redact!r}; use one of {', '.join(MODES)}.")
        for name in ("min_confidence", "duplicates"):
            if not 0.0 <= (value := getattr(self, name)) <= 1.0:
                raise ConfigError(f"`{name}` is {value}; it lies between 0 and 1.")
        for words in (self.hindsight, *self.task_hindsight.values()):
            for kind, text in words.items():
                _check_words(kind, text)
        for where, table in (
            ("weights", self.weights),
            *((f"task_weights.{t}", w) for t, w in self.task_weights.items()),
        ):
            for kind, weight in table.items():
                if kind not in KINDS:
                    raise ConfigError(f"`{where}` names the kind {kind!r}; kinds are {', '.join(KINDS)}.")
                if not math.isfinite(weight) or weight < 0:
                    raise ConfigError(f"`{where}.{kind}` is {weight}; a weight is 0 (off) or positive.")

    def words(self, kind: str, task: str | None) -> str:
        """Rendering of a kind as hindsight for turns of a task: a format string."""
        for table in (self.task_hindsight.get(task or "", {}), self.hindsight):
            if kind in table:
                return table[kind]
        return KINDS[kind].template

    def weight(self, kind: str, task: str | None) -> float:
        """Weight of a kind for turns of a task."""
        for table in (self.task_weights.get(task or "", {}), self.weights):
            if kind in table:
                return table[kind]
        return KINDS[kind].weight


def _check_words(kind: str, text: str) -> None:
    """A rendering may use only what its kind carries."""
    if kind not in KINDS or not KINDS[kind].template:
        known = ", ".join(name for name, one in KINDS.items() if one.template)
        raise ConfigError(f"`hindsight` names {kind!r}; kinds with words are {known}.")
    fields = {name: "" for _, name, _, _ in Formatter().parse(KINDS[kind].template) if name}
    try:
        text.format(**fields)
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigError(
            f"`hindsight.{kind}` is {text!r:.80}: {error!r}. It may use {', '.join(f'{{{f}}}' for f in fields)}."
        ) from error
