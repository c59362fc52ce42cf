"""Defines every kind of feedback, once: meaning, polarity, weight, hindsight, and its metric in status and canaries.

Collection, live metrics, canaries, import, export and the settings read this table. It is the lowest room: it imports
nothing and never sees a turn.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Carries = Literal["", "text", "final_text", "value", "exit_code"]
Hindsight = Literal["", "words", "answer", "attempt", "environment", "observation"]
Reaction = Literal["accepted", "edited", "corrected", "retried", "abandoned"]
"""What a user did with an answer, as the live metrics and the canaries count it."""
Counted = Literal["accepted", "corrected", "retried", "abandoned", "by_value", "by_exit_code", "by_words", "by_edit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackKind:
    """One kind of feedback: its meaning, training use and metrics."""

    meaning: str
    """One sentence for the documentation."""
    polarity: int
    """+1 positive, -1 negative, 0 depends on the content."""
    weight: float
    """Default weight; 0 is off."""
    counted: Counted
    """The reaction that it counts as, or the field that decides (`reaction_of`)."""
    carries: Carries = ""
    """The field that it must have."""
    template: str = ""
    """Rendering for the teacher, a format string over `text`, `final`, `answer`, `code`, `output`, `call`; "" for a
    kind without hindsight."""
    hindsight: Hindsight = ""
    """Source of the hindsight: the user's words, the answer that they wanted, an accepted attempt, a program,
    or what an environment said after a turn of an episode."""
    rank: int = 0
    """With several rows on one turn the highest rank gives the interaction its kind."""
    silent: bool = False
    """Follows from what the user did or did not do, without a word."""
    spoken: bool = False
    """Its `text` is addressed to the assistant. The `text` of other kinds is content: a better answer, an output."""
    presumed: bool = False
    """A guess of the application, disproved by a later reaction on the same turn (`disproved`)."""
    actions: tuple[str, ...] = ()
    """Values of `user_action` in an `events` record that mean this kind."""


KINDS: dict[str, FeedbackKind] = {
    "accepted": FeedbackKind(
        meaning="The user took the answer as it is.", polarity=1, weight=1.0, counted="accepted", rank=3, silent=True,
        actions=("accepted", "accepted unchanged", "accept"),
    ),
    "edited": FeedbackKind(
        meaning="The user changed the answer. An edit that changes no word counts as `accepted`.",
        polarity=0, weight=0.8, counted="by_edit", carries="final_text", rank=9,
        template="I changed your answer to this:\n{final}", hindsight="answer",
        actions=("edited", "edit", "accepted after edit"),
    ),
    "retried": FeedbackKind(
        meaning="The user asked again. A later accepted attempt at the same request becomes the hindsight.",
        polarity=-1, weight=0.5, counted="retried", rank=4, silent=True,
        template="I asked again. This is the answer that I accepted:\n{answer}", hindsight="attempt",
        actions=("retried", "retry", "reformulated"),
    ),
    "regenerated": FeedbackKind(
        meaning="The user let the model answer again; as `retried`.",
        polarity=-1, weight=0.5, counted="retried", rank=4, silent=True,
        template="I asked again. This is the answer that I accepted:\n{answer}", hindsight="attempt",
        actions=("regenerated",),
    ),
    "abandoned": FeedbackKind(
        meaning="The application takes the user for gone. A later reaction on the same turn disproves it.",
        polarity=-1, weight=0.0, counted="abandoned", silent=True, presumed=True, actions=("abandoned",),
    ),
    "follow_up": FeedbackKind(
        meaning="The user's next message; the detectors decide whether it is about the answer.",
        polarity=0, weight=1.0, counted="by_words", carries="text", rank=6, template="{text}", hindsight="words",
        spoken=True,
    ),
    "comment": FeedbackKind(
        meaning="Words about the answer.", polarity=0, weight=1.0, counted="by_words", carries="text", rank=7,
        template="{text}", hindsight="words", spoken=True,
    ),
    "demonstration": FeedbackKind(
        meaning="The answer that the user wanted.", polarity=-1, weight=1.0, counted="corrected", carries="text",
        rank=8, template="This is the answer that I wanted:\n{text}", hindsight="answer",
    ),
    "rating": FeedbackKind(
        meaning="A vote: its sign is the polarity, its size the weight. Words beside it are read like a comment's.",
        polarity=0, weight=1.0, counted="by_value", carries="value", rank=2, template="{text}", hindsight="words",
        spoken=True,
    ),
    "stopped": FeedbackKind(
        meaning="The user stopped the answer.", polarity=-1, weight=0.3, counted="abandoned", silent=True,
        actions=("stopped",),
    ),
    "copied": FeedbackKind(
        meaning="The user copied the answer.", polarity=1, weight=0.3, counted="accepted", rank=1, silent=True,
        actions=("copied",),
    ),
    "saved": FeedbackKind(
        meaning="The user saved the answer.", polarity=1, weight=0.5, counted="accepted", rank=1, silent=True,
        actions=("saved",),
    ),
    "executed": FeedbackKind(
        meaning="The answer was run: exit code 0 is a success; otherwise the output is the hindsight.",
        polarity=0, weight=1.0, counted="by_exit_code", carries="exit_code", rank=5,
        template="I ran it. It failed{code}. It printed:\n{output}", hindsight="environment",
        actions=("executed", "ran", "executed successfully"),
    ),
    "tests": FeedbackKind(
        meaning="Tests were run on the answer; as `executed`.",
        polarity=0, weight=1.0, counted="by_exit_code", carries="exit_code", rank=5,
        template="I ran the tests. They failed{code}:\n{output}", hindsight="environment",
    ),
    "reverted": FeedbackKind(
        meaning="The user undid the answer's effect.", polarity=-1, weight=0.8, counted="corrected", rank=2,
        silent=True, actions=("reverted", "user reverted"),
    ),
    "tool_approved": FeedbackKind(
        meaning="The user allowed the tool call.", polarity=1, weight=0.5, counted="accepted", rank=2,
    ),
    "tool_rejected": FeedbackKind(
        meaning="The user rejected the tool call; the words, if any, give the reason.",
        polarity=-1, weight=0.8, counted="corrected", rank=5, template="I did not allow this call: {call}. {text}",
        hindsight="environment", spoken=True,
    ),
    "outcome": FeedbackKind(
        meaning="The reward of an episode or of one of its turns, and by rubric item; no value: it cannot be scored.",
        polarity=0, weight=1.0, counted="by_value", template="{output}", hindsight="observation",
    ),
}  # fmt: skip
"""Kinds by name. A `retraction` is not among them: it takes another row back."""

ACTIONS: dict[str, str] = {action: name for name, kind in KINDS.items() for action in kind.actions}
"""`user_action` of an `events` record (lower case, blanks for underscores) -> kind."""


def with_hindsight(source: Hindsight) -> tuple[str, ...]:
    """Names of the kinds whose hindsight has this source."""
    return tuple(name for name, kind in KINDS.items() if kind.hindsight == source)


def counted_as(*counted: Counted) -> tuple[str, ...]:
    """Names of the kinds that are counted in one of these ways."""
    return tuple(name for name, kind in KINDS.items() if kind.counted in counted)


def spoken(kind: str, text: str | None) -> str:
    """The words that feedback of this kind addresses to the assistant, "" for none."""
    known = KINDS.get(kind)
    return (text or "").strip() if known is not None and known.spoken else ""


def reaction_of(
    kind: str, *, value: float | None = None, exit_code: int | None = None, sign: int = 0
) -> Reaction | None:
    """The reaction that one feedback row counts as.

    Args:
        kind: Its kind.
        value: Its vote, for `by_value`.
        exit_code: Its exit code, for `by_exit_code`.
        sign: Polarity of its words (+1, 0, -1), for `by_words` and a vote of 0; of an edit: -1 when it changes
            anything, +1 otherwise.

    Returns:
        None for a row that is neutral, incomplete, or of an unknown kind.
    """
    known = KINDS.get(kind)
    match known.counted if known is not None else None:
        case "by_value":
            sign = ((value or 0.0) > 0) - ((value or 0.0) < 0) or sign
        case "by_exit_code":
            sign = 0 if exit_code is None else 1 if exit_code == 0 else -1
        case "by_edit" if sign < 0:
            return "edited"
        case "accepted" | "corrected" | "retried" | "abandoned" as plain:
            return plain
    return None if known is None or sign == 0 else "accepted" if sign > 0 else "corrected"


def disproved(rows: Iterable[tuple[str, str]]) -> set[str]:
    """Finds presumed departures after which the user came back.

    A stop is an act, not a guess: it stays, and it is no sign that the user came back.

    Args:
        rows: (id, kind) of the rows of one turn that count, oldest first.

    Returns:
        Ids of the `abandoned` rows before the last reaction.
    """
    gone: list[str] = []
    found: set[str] = set()
    for name, kind in rows:
        known = KINDS.get(kind)
        if known is not None and known.presumed:
            gone.append(name)
        elif known is None or known.counted != "abandoned":
            found.update(gone)
            gone.clear()
    return found
