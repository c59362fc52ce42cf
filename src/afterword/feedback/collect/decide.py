"""Decides one turn with its feedback: an interaction, skips, or nothing yet.

Owns the order of the rules and how several feedback rows on one turn combine. Pure: reads no store and no clock.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from afterword.chat.redact import redact
from afterword.feedback.collect.signals import FeedbackCase, Signal, SkipReason, Waiting, read
from afterword.feedback.settings import CollectSettings
from afterword.feedback.text.guards import is_injection, is_right_refusal, is_standing
from afterword.feedback.text.minhash import DuplicateIndex, Sketch, old_sketch_of, packed, sketch_of, unpacked
from afterword.kinds import KINDS, disproved, spoken
from afterword.records import Feedback, Interaction, Skip, content_hash, not_to_imitate
from afterword.store.attribution import speaker

SKETCHED = (250, 500, 250)
"""Characters of request, answer and hindsight that are compared in the search for duplicates."""


@dataclass(slots=True)
class CaseDecision:
    """The decision on a case: every feedback row is in exactly one of `kept`, `skips` and `waiting`."""

    interaction: Interaction | None = None
    kept: list[Feedback] = field(default_factory=list)
    """The rows that the interaction was made from."""
    skips: list[tuple[Feedback, Skip]] = field(default_factory=list)
    waiting: list[tuple[Feedback, str]] = field(default_factory=list)
    said: tuple[str, str] = ("", "")
    """Request and answer, which the sketches of older versions are compared by."""

    def skip(self, feedback: Feedback, refusal: SkipReason) -> None:
        """Add a skip of a row with its reason."""
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


def _consent(case: FeedbackCase) -> SkipReason | None:
    return None if case.turn.consent else SkipReason("no_consent", "the turn may not be trained on")


def _finished(case: FeedbackCase) -> SkipReason | None:
    reason = case.turn.finish_reason or ""
    return SkipReason(reason, _UNFINISHED[reason]) if reason in _UNFINISHED else None


_UNFINISHED = {
    "aborted": "the client left before the answer ended",
    "error": "the upstream broke off",
    "content_filter": "the upstream withheld the answer",
}


def _answered(case: FeedbackCase) -> SkipReason | None:
    return None if case.answer else SkipReason("empty_answer", "the answer has neither words nor tool calls")


def _asked(case: FeedbackCase) -> SkipReason | None:
    return None if case.request.strip() else SkipReason("no_request", "the turn has no message of a user")


TURN_RULES: tuple[Callable[[FeedbackCase], SkipReason | None], ...] = (_consent, _finished, _answered, _asked)
"""Requirements on a turn, checked before its feedback is read; the first unmet one is the reason."""


def turn_skip_reason(case: FeedbackCase, settings: CollectSettings | None = None) -> SkipReason | None:
    """The reason to skip all feedback on this turn, None for a usable turn."""
    found = next((refusal for rule in TURN_RULES if (refusal := rule(case)) is not None), None)
    return found or _length(case, settings or CollectSettings())


def _length(case: FeedbackCase, settings: CollectSettings) -> SkipReason | None:
    size = len(case.answer)
    if size < settings.min_answer_chars:
        return SkipReason(
            "answer_too_short", f"the answer has {size} characters; the least is {settings.min_answer_chars}"
        )
    if size > settings.max_answer_chars:
        return SkipReason(
            "answer_too_long", f"the answer has {size} characters; the most is {settings.max_answer_chars}"
        )
    return None


def decide(case: FeedbackCase, settings: CollectSettings) -> CaseDecision:
    """Decides every feedback row of a case.

    Args:
        case: A turn with its undecided feedback.
        settings: Weights, limits and templates.

    Returns:
        The interaction that its rows make together, the skips with reasons, and the rows that wait.
    """
    decision = CaseDecision(said=(case.request, case.answer))
    refused = turn_skip_reason(case, settings)
    signals: list[Signal] = []
    for feedback in case.feedback:
        if feedback.id in case.retracted:
            decision.skip(feedback, SkipReason("retracted", "the user retracted it"))
            continue
        if feedback.id in case.changed:
            decision.skip(feedback, SkipReason("changed", "a newer vote of the same user replaces it"))
            continue
        if feedback.id in case.left_behind:
            why = "the conversation went on from another message: a program asked beside it, or the user put it anew"
            decision.skip(feedback, SkipReason("left_behind", why))
            continue
        reading = refused or read(case, feedback, settings)
        if isinstance(reading, SkipReason):
            decision.skip(feedback, reading)
        elif isinstance(reading, Waiting):
            decision.waiting.append((feedback, reading.reason))
        elif reading.polarity > 0 and not_to_imitate(case.turn.answer):
            _praise_of_excluded(case, reading, decision, signals)
        elif (unsafe := guarded(case, reading)) is not None:
            decision.skip(feedback, unsafe)
        else:
            signals.append(reading)
    for rule in SIGNAL_RULES:
        signals = rule(case, signals, decision)
    if signals:
        decision.interaction = _interaction(case, signals, settings)
        decision.kept = [signal.feedback for signal in signals]
    return decision


def _praise_of_excluded(case: FeedbackCase, signal: Signal, decision: CaseDecision, signals: list[Signal]) -> None:
    """Skips praise of an answer that its file excludes; keeps an edit of it as neutral hindsight."""
    if signal.feedback.kind == "edited" and signal.hindsight and guarded(case, signal) is None:
        signals.append(replace(signal, polarity=0))
    else:
        why = "the file excludes this answer from training (weight 0), so praise of it is skipped"
        decision.skip(signal.feedback, SkipReason("excluded", why))


def guarded(case: FeedbackCase, signal: Signal) -> SkipReason | None:
    """The reason that a guard skips a signal (injection, a rightly declined request), None for a safe one."""
    words = spoken(signal.feedback.kind, signal.feedback.text)
    if signal.hindsight and (is_injection(words) or (not words and is_injection(signal.hindsight, said=False))):
        return SkipReason("injection", "the words address the trainer or the template, not the answer")
    edited = signal.feedback.kind == "edited" and signal.hindsight
    if signal.polarity >= 0 and signal.category not in {"question", "unsure"} and not edited:
        return None
    if is_right_refusal(case.request, case.answer, words):
        return SkipReason("punished_refusal", "the answer rightly declined the request")
    return None


def _without_disproved_departures(case: FeedbackCase, signals: list[Signal], decision: CaseDecision) -> list[Signal]:
    """Skips presumed departures before a later reaction, also one that teaches nothing itself."""
    if not any(KINDS[signal.feedback.kind].presumed for signal in signals):
        return signals
    absent = {row.id for row, skip in decision.skips if skip.reason in _NO_REACTION}
    back = disproved((row.id, row.kind) for row in case.feedback if row.id not in absent)
    kept: list[Signal] = []
    for signal in signals:
        if signal.feedback.id in back:
            decision.skip(signal.feedback, SkipReason("came_back", "the user reacted after that"))
        else:
            kept.append(signal)
    return kept


_NO_REACTION = frozenset({"retracted", "changed", "left_behind", "automated"})
"""Skipped rows that show no user: taken back, replaced, or written by a program."""


def _without_contradictions(case: FeedbackCase, signals: list[Signal], decision: CaseDecision) -> list[Signal]:
    """Skips both signs when they are of like strength, else the weaker one (less than half the weight)."""
    if len(signals) < 2:
        return signals
    best = {sign: max((s.weight for s in signals if s.firm and s.polarity == sign), default=0.0) for sign in (-1, 1)}
    if not best[-1] or not best[1]:
        return signals
    weaker = min(best, key=lambda sign: best[sign])
    kept: list[Signal] = []
    for signal in signals:
        if best[weaker] * 2 >= best[-weaker]:
            decision.skip(
                signal.feedback, SkipReason("contradictory", "feedback on this turn is both positive and negative")
            )
        elif signal.firm and signal.polarity == weaker:
            decision.skip(signal.feedback, SkipReason("outweighed", "stronger feedback on this turn contradicts it"))
        else:
            kept.append(signal)
    return kept


def _against_earlier(case: FeedbackCase, signals: list[Signal], decision: CaseDecision) -> list[Signal]:
    """Skips late feedback that repeats or contradicts an earlier interaction of the turn; keeps new words.

    Unless a contradiction is much weaker (less than half), it also takes the earlier interaction out of use
    (`Store.usable`)."""
    if not case.earlier:
        return signals
    signs = {interaction.polarity for interaction in case.earlier} - {0}
    strongest = max((interaction.weight for interaction in case.earlier), default=0.0)
    kept: list[Signal] = []
    for signal in signals:
        if signs and signal.firm and signal.polarity and signal.polarity not in signs:
            if signal.weight * 2 < strongest:
                refusal = SkipReason("outweighed", "a stronger earlier interaction of this turn contradicts it")
            else:
                refusal = SkipReason(
                    "contradictory", "it contradicts an earlier interaction of this turn; neither is used"
                )
            decision.skip(signal.feedback, refusal)
        elif not signal.hindsight:
            decision.skip(signal.feedback, SkipReason("confirmed", "an interaction of this turn already has this sign"))
        else:
            kept.append(signal)
    return kept


def _more_than_placeholders(case: FeedbackCase, signals: list[Signal], decision: CaseDecision) -> list[Signal]:
    """Skips words with nothing left after redaction."""
    kept: list[Signal] = []
    for signal in signals:
        said = redact(signal.hindsight) if signal.hindsight else None
        if said is not None and said.kinds and not _PLACEHOLDERS.sub("", said.text).strip():
            decision.skip(signal.feedback, SkipReason("private", f"nothing but private data ({', '.join(said.kinds)})"))
        else:
            kept.append(signal)
    return kept


_PLACEHOLDERS = re.compile(r"\[[A-Z]+\]|[\W_]")


def _with_something_to_teach(case: FeedbackCase, signals: list[Signal], decision: CaseDecision) -> list[Signal]:
    """Without hindsight keeps positive signals only: a negative one does not say what was wanted."""
    if any(signal.hindsight for signal in signals):
        return signals
    kept: list[Signal] = []
    for signal in signals:
        if signal.polarity > 0:
            kept.append(signal)
        elif signal.polarity < 0:
            decision.skip(
                signal.feedback,
                SkipReason("no_hindsight", f"{signal.feedback.kind} is negative and has no words to learn from"),
            )
        else:
            decision.skip(
                signal.feedback, SkipReason("neutral", f"{signal.feedback.kind} is neither positive nor negative")
            )
    return kept


SIGNAL_RULES: tuple[Callable[[FeedbackCase, list[Signal], CaseDecision], list[Signal]], ...] = (
    _more_than_placeholders,
    _without_disproved_departures,
    _without_contradictions,
    _against_earlier,
    _with_something_to_teach,
)
"""Rules for the signals of one turn together, in order."""


def _interaction(case: FeedbackCase, signals: list[Signal], settings: CollectSettings) -> Interaction:
    ordered = sorted(signals, key=lambda s: -KINDS[s.feedback.kind].rank) if len(signals) > 1 else signals
    first = ordered[0]
    polarity = next((s.polarity for s in ordered if s.polarity), 0)
    words = list(dict.fromkeys(s.hindsight for s in ordered if s.hindsight))
    if not words:
        weight = max(s.weight for s in ordered)
    else:
        weight = max(s.weight for s in ordered if s.hindsight or s.polarity == first.polarity != 0)
    said = redact("\n".join(words), settings.redact)
    addressed = "\n".join(spoken(s.feedback.kind, s.feedback.text) for s in ordered if s.hindsight)
    sketch = sketch_of(case.request, case.answer, said.text, limits=SKETCHED) if settings.duplicates else ()
    return Interaction(
        # Keyed by the oldest row: two collectors that see more or fewer rows of a turn still write one interaction.
        id=content_hash("interaction", case.turn.id, signals[0].feedback.id),
        turn=case.turn.id,
        feedback=tuple(s.feedback.id for s in signals),
        kind=first.feedback.kind,
        hindsight=said.text,
        polarity=polarity,
        weight=weight,
        split=split_of(case.conversation, settings.holdout),
        on_policy=case.turn.on_policy,
        user=speaker((s.feedback for s in ordered), case.turn.user),
        task=case.turn.task,
        team=case.turn.team,
        scope="user" if is_standing(addressed) else "global",
        category=first.category or first.feedback.kind,
        confidence=round(min(s.confidence for s in signals), 4),
        spans=next((s.spans for s in ordered if s.spans), ()),
        redacted=said.kinds,
        sketch=packed(sketch),
    )


def without_repetition(decision: CaseDecision, index: DuplicateIndex, settings: CollectSettings) -> None:
    """Replaces an interaction that repeats an earlier one of the same user by skips; remembers it otherwise."""
    made = decision.interaction
    if made is None or not settings.duplicates:
        return
    sketch = unpacked(made.sketch)

    def old_sketch() -> Sketch:
        return old_sketch_of(*decision.said, made.hindsight, limits=SKETCHED)

    near = index.nearest(made.turn, made.user, sketch, old_sketch)
    if near is None or near[1] < settings.duplicates:
        index.add(made.turn, made.user, sketch)
        return
    reason = "duplicate" if near[1] == 1.0 else "near_duplicate"
    detail = f"the same user said nearly the same before (turn {near[0]}, similarity {near[1]:.2f})"
    for feedback in decision.kept:
        decision.skip(feedback, SkipReason(reason, detail))
    decision.interaction, decision.kept = None, []


def split_of(conversation: str, holdout: float) -> Literal["train", "holdout"]:
    """The split of a conversation: a share `holdout` of all conversations, by their hash, for ever."""
    number = int(content_hash("split", conversation)[:8], 16)
    return "holdout" if number < holdout * 2**32 else "train"
