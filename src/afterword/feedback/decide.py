"""One turn and its feedback -> an interaction, skips, or nothing yet. Pure functions in lists.

Owns the order of the rules and how several feedback rows on one turn combine. Never reads or writes a store, never
looks at a clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from afterword.feedback.kinds import KINDS
from afterword.feedback.readings import Case, Refusal, Signal, Waiting, answer_text, read, request_of
from afterword.feedback.settings import CollectSettings
from afterword.records import Feedback, Interaction, Skip, content_hash


@dataclass(slots=True)
class Decision:
    """What became of a case: every feedback row is in exactly one of the three."""

    interaction: Interaction | None = None
    kept: list[Feedback] = field(default_factory=list)
    """The rows that the interaction was made from."""
    skips: list[tuple[Feedback, Skip]] = field(default_factory=list)
    waiting: list[tuple[Feedback, str]] = field(default_factory=list)

    def skip(self, feedback: Feedback, refusal: Refusal) -> None:
        """Note why a row teaches nothing."""
        identifier = content_hash("skip", feedback.turn, feedback.id)
        self.skips.append(
            (
                feedback,
                Skip(
                    id=identifier,
                    feedback=feedback.id,
                    turn=feedback.turn,
                    reason=refusal.reason,
                    detail=refusal.detail,
                ),
            )
        )


def _consent(case: Case) -> Refusal | None:
    return None if case.turn.consent else Refusal("no_consent", "the turn may not be trained on")


def _finished(case: Case) -> Refusal | None:
    reasons = {
        "aborted": "the client left before the answer ended",
        "error": "the upstream broke off",
        "content_filter": "the upstream withheld the answer",
    }
    reason = case.turn.finish_reason or ""
    return Refusal(reason, reasons[reason]) if reason in reasons else None


def _answered(case: Case) -> Refusal | None:
    return None if answer_text(case.turn) else Refusal("empty_answer", "the answer has neither words nor tool calls")


def _asked(case: Case) -> Refusal | None:
    return None if request_of(case.turn).strip() else Refusal("no_request", "the turn has no message of a user")


TURN_RULES: tuple[Callable[[Case], Refusal | None], ...] = (_consent, _finished, _answered, _asked)
"""What a turn must satisfy before any of its feedback is read; the first refusal counts."""


def turn_refusal(case: Case) -> Refusal | None:
    """Why nothing can be learned from this turn, None when something can."""
    return next((refusal for rule in TURN_RULES if (refusal := rule(case)) is not None), None)


def decide(case: Case, settings: CollectSettings) -> Decision:
    """Decide every feedback row of a case."""
    decision = Decision()
    refused = turn_refusal(case)
    signals: list[Signal] = []
    for feedback in case.feedback:
        if feedback.id in case.retracted:
            decision.skip(feedback, Refusal("retracted", "the user took it back"))
            continue
        reading = refused or read(case, feedback, settings)
        if isinstance(reading, Refusal):
            decision.skip(feedback, reading)
        elif isinstance(reading, Waiting):
            decision.waiting.append((feedback, reading.reason))
        else:
            signals.append(reading)
    for rule in SIGNAL_RULES:
        signals = rule(case, signals, decision)
    if signals:
        decision.interaction = _interaction(case, signals, settings)
        decision.kept = [signal.feedback for signal in signals]
    return decision


def _without_contradictions(case: Case, signals: list[Signal], decision: Decision) -> list[Signal]:
    """Two signs of like strength refuse each other; a much weaker one (less than half) gives way."""
    best = {sign: max((s.weight for s in signals if s.firm and s.polarity == sign), default=0.0) for sign in (-1, 1)}
    if not best[-1] or not best[1]:
        return signals
    weaker = min(best, key=lambda sign: best[sign])
    kept: list[Signal] = []
    for signal in signals:
        if best[weaker] * 2 >= best[-weaker]:
            decision.skip(signal.feedback, Refusal("contradictory", "feedback on this turn says both yes and no"))
        elif signal.firm and signal.polarity == weaker:
            decision.skip(signal.feedback, Refusal("outweighed", "stronger feedback on this turn says otherwise"))
        else:
            kept.append(signal)
    return kept


def _against_earlier(case: Case, signals: list[Signal], decision: Decision) -> list[Signal]:
    """What an earlier collection decided stands: late feedback may add words, but neither repeat nor deny."""
    signs = {interaction.polarity for interaction in case.earlier} - {0}
    kept: list[Signal] = []
    for signal in signals:
        if signs and signal.firm and signal.polarity and signal.polarity not in signs:
            decision.skip(
                signal.feedback, Refusal("contradictory", "an earlier interaction of this turn says otherwise")
            )
        elif case.earlier and not signal.hindsight:
            decision.skip(signal.feedback, Refusal("confirmed", "the turn already gave an interaction of this sign"))
        else:
            kept.append(signal)
    return kept


def _with_something_to_teach(case: Case, signals: list[Signal], decision: Decision) -> list[Signal]:
    """Without words only praise is kept (it reinforces); blame without words says nothing of what was wanted."""
    if any(signal.hindsight for signal in signals):
        return signals
    kept: list[Signal] = []
    for signal in signals:
        if signal.polarity > 0:
            kept.append(signal)
        elif signal.polarity < 0:
            decision.skip(
                signal.feedback, Refusal("no_hindsight", f"{signal.feedback.kind} says no, but not what instead")
            )
        else:
            decision.skip(signal.feedback, Refusal("neutral", f"{signal.feedback.kind} says neither yes nor no"))
    return kept


SIGNAL_RULES: tuple[Callable[[Case, list[Signal], Decision], list[Signal]], ...] = (
    _without_contradictions,
    _against_earlier,
    _with_something_to_teach,
)
"""What the signals of one turn must satisfy together, in order."""


def _interaction(case: Case, signals: list[Signal], settings: CollectSettings) -> Interaction:
    ordered = sorted(signals, key=lambda s: -KINDS[s.feedback.kind].rank)
    first = ordered[0]
    polarity = next((s.polarity for s in ordered if s.polarity), 0)
    words = list(dict.fromkeys(s.hindsight for s in ordered if s.hindsight))
    if not words:
        weight = max(s.weight for s in ordered)
    else:
        weight = max(s.weight for s in ordered if s.hindsight or s.polarity == first.polarity != 0)
    return Interaction(
        # Keyed by the oldest row: two collectors that see more or fewer rows of a turn still write one interaction.
        id=content_hash("interaction", case.turn.id, signals[0].feedback.id),
        turn=case.turn.id,
        feedback=tuple(s.feedback.id for s in signals),
        kind=first.feedback.kind,
        hindsight="\n".join(words),
        polarity=polarity,
        weight=weight,
        split=split_of(case.conversation, settings.holdout),
        on_policy=case.turn.on_policy,
        user=first.feedback.user or case.turn.user,
        task=case.turn.task,
    )


def split_of(conversation: str, holdout: float) -> Literal["train", "holdout"]:
    """The split of a conversation: a share `holdout` of all conversations, by their hash, for ever."""
    number = int(content_hash("split", conversation)[:8], 16)
    return "holdout" if number < holdout * 2**32 else "train"
