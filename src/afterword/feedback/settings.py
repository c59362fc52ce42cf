"""Holds the settings of collection."""

from __future__ import annotations

from dataclasses import dataclass, field
from string import Formatter
from typing import Literal

from afterword.config import CountOrZero, NonNegative, UnitInterval, check_section
from afterword.errors import ConfigError
from afterword.kinds import KINDS


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectSettings:
    """`[collect]`: from feedback to interactions."""

    holdout: UnitInterval = 0.25
    """Share of conversations that are held out, by a hash of the conversation."""
    weights: dict[str, NonNegative] = field(default_factory=dict)
    """Kind -> weight, in place of the default; 0 disables the kind."""
    task_weights: dict[str, dict[str, NonNegative]] = field(default_factory=dict)
    """Task -> kind -> weight, in place of `weights` for turns of that task."""
    wait_seconds: NonNegative = 3600.0
    """Seconds that a retried turn waits for an accepted later attempt before it is skipped."""
    max_hindsight_chars: CountOrZero = 8000
    """Longer messages of users are skipped as `too_long`; program output is cut to half of this."""
    min_answer_chars: CountOrZero = 1
    """Shorter answers are skipped as `answer_too_short`."""
    max_answer_chars: CountOrZero = 32_000
    """Longer answers are skipped as `answer_too_long`."""
    min_confidence: UnitInterval = 0.3
    """Feedback with a lower confidence of the detectors, or a lower `metadata.confidence`, is skipped as
    `low_confidence`."""
    follow_ups: Literal["detectors", "classifier", "embeddings"] = "detectors"
    """Reader of follow-ups: "detectors" (rules), "classifier" (trained on top of them) or "embeddings" (with sentence
    embeddings, extra `followups`)."""
    redact: Literal["off", "rules", "presidio"] = "rules"
    """Redaction of hindsight: "rules", "presidio" (needs the extra `privacy`) or "off"."""
    duplicates: UnitInterval = 0.85
    """Similarity from which a user's repeated messages are skipped (`duplicate`, `near_duplicate`); 0 keeps all."""
    episode_idle: NonNegative = 3600.0
    """Seconds without a request after which a running episode is ended as truncated (`idle`) and collected."""
    hindsight: dict[str, str] = field(default_factory=dict)
    """Kind -> template of its hindsight, in place of the default, with the same fields."""
    task_hindsight: dict[str, dict[str, str]] = field(default_factory=dict)
    """Task -> kind -> template, in place of `hindsight` for turns of that task."""

    def __post_init__(self) -> None:
        check_section("collect", self)
        for words in (self.hindsight, *self.task_hindsight.values()):
            for kind, text in words.items():
                _check_words(kind, text)
        for where, table in (
            ("weights", self.weights),
            *((f"task_weights.{t}", w) for t, w in self.task_weights.items()),
        ):
            for kind in table:
                if kind not in KINDS:
                    raise ConfigError(f"collect.{where} has the unknown kind {kind!r}; use one of {', '.join(KINDS)}.")

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
    """Check that a template uses only the fields of its kind."""
    if kind not in KINDS or not KINDS[kind].template:
        known = ", ".join(name for name, one in KINDS.items() if one.template)
        raise ConfigError(f"collect.hindsight has the kind {kind!r}, which has no template; use one of {known}.")
    fields = {name: "" for _, name, _, _ in Formatter().parse(KINDS[kind].template) if name}
    try:
        text.format(**fields)
    except (KeyError, IndexError, ValueError) as error:
        names = ", ".join(f"{{{name}}}" for name in fields)
        raise ConfigError(
            f"collect.hindsight.{kind} = {text!r:.80} is invalid: {error!r}. Use only {names}."
        ) from error
