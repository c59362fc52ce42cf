"""The one table of feedback kinds: what each carries, how it is read, its weight, its words as hindsight.

Owns the table and the plain-text renderings; never looks at a turn, never decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from afterword.records import Feedback

Needs = Literal["", "text", "final_text", "value", "outcome"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How one kind of feedback is read."""

    polarity: int
    """+1 content, -1 wants something else, 0 decided by what it carries."""
    weight: float
    """Default strength; 0 is off."""
    needs: Needs = ""
    """What the feedback must carry: `text`, `final_text`, `value`, or `outcome` (an exit code or output)."""
    hindsight: str = ""
    """Rendering for the teacher, a format string over `text`, `final`, `answer`, `code`, `output`, `call`.
    Empty: the kind has no words, it only says good or bad."""
    rank: int = 0
    """Which feedback decides when a turn has several: the highest."""
    reading: str = ""
    """One sentence for the documentation."""


KINDS: dict[str, Kind] = {
    "accepted": Kind(polarity=1, weight=1.0, rank=3, reading="the answer was taken as it is"),
    "edited": Kind(
        polarity=0, weight=0.8, needs="final_text", rank=9,
        hindsight="I changed your answer to this:\n{final}",
        reading="the final text is the hindsight, scaled by how much changed; unchanged it is an acceptance",
    ),
    "retried": Kind(
        polarity=-1, weight=0.5, rank=4,
        hindsight="I asked again. This is the answer that I accepted:\n{answer}",
        reading="negative; a later accepted attempt of the same request is the hindsight (peer success)",
    ),
    "regenerated": Kind(
        polarity=-1, weight=0.5, rank=4,
        hindsight="I asked again. This is the answer that I accepted:\n{answer}",
        reading="as `retried`",
    ),
    "abandoned": Kind(polarity=-1, weight=0.0, reading="weak negative, off; without words it teaches nothing alone"),
    "follow_up": Kind(
        polarity=0, weight=1.0, needs="text", rank=6, hindsight="{text}",
        reading="hindsight if it is about the answer; the detectors give relevance and polarity",
    ),
    "comment": Kind(
        polarity=0, weight=1.0, needs="text", rank=7, hindsight="{text}", reading="words about the answer",
    ),
    "demonstration": Kind(
        polarity=-1, weight=1.0, needs="text", rank=8, hindsight="This is the answer that I wanted:\n{text}",
        reading="the answer that the user wanted",
    ),
    "rating": Kind(
        polarity=0, weight=1.0, needs="value", rank=2, hindsight="{text}",
        reading="its sign is the polarity, its size the weight; words beside it are read like a comment's",
    ),
    "stopped": Kind(polarity=-1, weight=0.3, reading="weak negative: the user stopped the answer"),
    "copied": Kind(polarity=1, weight=0.3, rank=1, reading="weak positive"),
    "saved": Kind(polarity=1, weight=0.5, rank=1, reading="weak positive"),
    "executed": Kind(
        polarity=0, weight=1.0, needs="outcome", rank=5,
        hindsight="I ran it. It failed{code}. It printed:\n{output}",
        reading="exit code 0 is positive; otherwise what was printed is the hindsight",
    ),
    "tests": Kind(
        polarity=0, weight=1.0, needs="outcome", rank=5,
        hindsight="I ran the tests. They failed{code}:\n{output}",
        reading="as `executed`",
    ),
    "reverted": Kind(polarity=-1, weight=0.8, rank=2, reading="negative: the user undid it"),
    "tool_approved": Kind(polarity=1, weight=0.5, rank=2, reading="the tool call was allowed"),
    "tool_rejected": Kind(
        polarity=-1, weight=0.8, rank=5, hindsight="I did not allow this call: {call}. {text}",
        reading="the tool call was refused; the words, if any, say why",
    ),
}  # fmt: skip
"""`retraction` is no kind of signal: it takes another feedback back."""

SILENT = frozenset({"accepted", "abandoned", "stopped", "copied", "saved", "retried", "regenerated", "reverted"})
"""Kinds that follow from what was done or not done, without a word."""

SPOKEN = frozenset({"follow_up", "comment", "rating", "tool_rejected"})
"""Kinds whose `text` a user says to the assistant; the words of the others are content: a better answer, an output."""


def spoken(feedback: Feedback) -> str:
    """What the user says to the assistant with it, "" when nothing."""
    return (feedback.text or "").strip() if feedback.kind in SPOKEN else ""
