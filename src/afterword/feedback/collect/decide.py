"""One turn and its feedback -> an interaction, skips, or nothing yet. Pure functions in lists.

Owns the order of the rules and how several feedback rows on one turn combine. Never reads or writes a store, never
looks at a clock.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from afterword.chat.redact import redact
from afterword.feedback.collect.signals import Case, Refusal, Signal, Waiting, read
from afterword.feedback.settings import CollectSettings
from afterword.feedback.text.guards import is_injection, is_right_refusal, is_standing
from afterword.feedback.text.minhash import Index, Sketch, old_sketch_of, packed, sketch_of, unpacked
from afterword.kinds import KINDS, disproved, spoken
from afterword.records import Feedback, Interaction, Skip, content_hash, not_to_imitate
from afterword.store.attribution import speaker

SKETCHED = (250, 500, 250)
"""Characters of request, answer and hindsight that are compared in the search for duplicates."""


@dataclass(slots=True)
class Decision:
    """What became of a case: every feedback row is in exactly one of the three."""

    interaction: Interaction | None = None
    kept: list[Feedback] = field(default_factory=list)
    """The rows that the interaction was made from."""
    skips: list[tuple[Feedback, Skip]] = field(default_factory=list)
    waiting: list[tuple[Feedback, str]] = field(default_factory=list)
    said: tuple[str, str] = ("", "")
    """Request and answer, which the sketches of older versions are compared by."""

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
    reason = case.turn.finish_reason or ""
    return Refusal(reason, _UNFINISHED[reason]) if reason in _UNFINISHED else None


_UNFINISHED = {
    "aborted": "the client left before the answer ended",
    "error": "the upstream broke off",
    "content_filter": "the upstream withheld the answer",
}


def _answered(case: Case) -> Refusal | None:
    return None if case.answer else Refusal("empty_answer", "the answer has neither words nor tool calls")


def _asked(case: Case) -> Refusal | None:
    return None if case.request.strip() else Refusal("no_request", "the turn has no message of a user")


TURN_RULES: tuple[Callable[[Case], Refusal | None], ...] = (_consent, _finished, _answered, _asked)
"""What a turn must satisfy before any of its feedback is read; the first refusal counts."""


def turn_refusal(case: Case, settings: CollectSettings | None = None) -> Refusal | None:
    """Why nothing can be learned from this turn, None when something can."""
    found = next((refusal for rule in TURN_RULES if (refusal := rule(case)) is not None), None)
    return found or _length(case, settings or CollectSettings())


def _length(case: Case, settings: CollectSettings) -> Refusal | None:
    size = len(case.answer)
    if size < settings.min_answer_chars:
        return Refusal("answer_too_short", f"the answer has {size} characters, less than {settings.min_answer_chars}")
    if size > settings.max_answer_chars:
        return Refusal("answer_too_long", f"the answer has {size} characters, more than {settings.max_answer_chars}")
    return None


def decide(case: Case, settings: CollectSettings) -> Decision:
    """Decide every feedback row of a case."""
    decision = Decision(said=(case.request, case.answer))
    refused = turn_refusal(case, settings)
    signals: list[Signal] = []
    for feedback in case.feedback:
        if feedback.id in case.retracted:
            decision.skip(feedback, Refusal("retracted", "the user took it back"))
            continue
        if feedback.id in case.changed:
            decision.skip(feedback, Refusal("changed", "the user changed this vote; the newest one counts"))
            continue
        if feedback.id in case.left_behind:
            why = "the conversation went on from another message: a program asked beside it, or the user put it anew"
            decision.skip(feedback, Refusal("left_behind", why))
            continue
        reading = refused or read(case, feedback, settings)
        if isinstance(reading, Refusal):
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


def _praise_of_excluded(case: Case, signal: Signal, decision: Decision, signals: list[Signal]) -> None:
    """Nothing reinforces an answer that its file excludes; what the user made of it may still be shown."""
    if signal.feedback.kind == "edited" and signal.hindsight and guarded(case, signal) is None:
        signals.append(replace(signal, polarity=0))
    else:
        why = "the file marks this answer as one not to imitate (weight 0); praise of it teaches nothing"
        decision.skip(signal.feedback, Refusal("excluded", why))


def guarded(case: Case, signal: Signal) -> Refusal | None:
    """Why this must not be taught although a user said so, None when it may."""
    words = spoken(signal.feedback.kind, signal.feedback.text)
    if signal.hindsight and (is_injection(words) or (not words and is_injection(signal.hindsight, said=False))):
        return Refusal("injection", "the words are aimed at the trainer or the template, not at the answer")
    edited = signal.feedback.kind == "edited" and signal.hindsight
    if signal.polarity >= 0 and signal.category not in {"question", "unsure"} and not edited:
        return None
    if is_right_refusal(case.request, case.answer, words):
        return Refusal("punished_refusal", "the answer declined what it should decline; that is not unlearned")
    return None


def _without_who_came_back(case: Case, signals: list[Signal], decision: Decision) -> list[Signal]:
    """Skips presumed departures before a later reaction, also one that teaches nothing itself."""
    if not any(KINDS[signal.feedback.kind].presumed for signal in signals):
        return signals
    absent = {row.id for row, skip in decision.skips if skip.reason in _NO_REACTION}
    back = disproved((row.id, row.kind) for row in case.feedback if row.id not in absent)
    kept: list[Signal] = []
    for signal in signals:
        if signal.feedback.id in back:
            decision.skip(signal.feedback, Refusal("came_back", "the user came back and reacted after that"))
        else:
            kept.append(signal)
    return kept


_NO_REACTION = frozenset({"retracted", "changed", "left_behind", "automated"})
"""Skipped rows that show no user: taken back, replaced, or written by a program."""


def _without_contradictions(case: Case, signals: list[Signal], decision: Decision) -> list[Signal]:
    """Two signs of like strength refuse each other; a much weaker one (less than half) gives way."""
    if len(signals) < 2:
        return signals
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
    """Late feedback may add words, but not repeat. One that denies what an earlier collection decided is skipped, and
    unless it is much weaker (less than half) the earlier interaction is not used any more (`Store.usable`)."""
    if not case.earlier:
        return signals
    signs = {interaction.polarity for interaction in case.earlier} - {0}
    strongest = max((interaction.weight for interaction in case.earlier), default=0.0)
    kept: list[Signal] = []
    for signal in signals:
        if signs and signal.firm and signal.polarity and signal.polarity not in signs:
            if signal.weight * 2 < strongest:
                refusal = Refusal("outweighed", "a stronger earlier interaction of this turn says otherwise")
            else:
                refusal = Refusal("contradictory", "an earlier interaction of this turn says otherwise; both are out")
            decision.skip(signal.feedback, refusal)
        elif not signal.hindsight:
            decision.skip(signal.feedback, Refusal("confirmed", "the turn already gave an interaction of this sign"))
        else:
            kept.append(signal)
    return kept


def _more_than_placeholders(case: Case, signals: list[Signal], decision: Decision) -> list[Signal]:
    """Words of which nothing is left without private data teach nothing."""
    kept: list[Signal] = []
    for signal in signals:
        said = redact(signal.hindsight) if signal.hindsight else None
        if said is not None and said.kinds and not _PLACEHOLDERS.sub("", said.text).strip():
            decision.skip(signal.feedback, Refusal("private", f"it holds only private data ({', '.join(said.kinds)})"))
        else:
            kept.append(signal)
    return kept


_PLACEHOLDERS = re.compile(r"\[[A-Z]+\]|[\W_]")


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
    _more_than_placeholders,
    _without_who_came_back,
    _without_contradictions,
    _against_earlier,
    _with_something_to_teach,
)
"""What the signals of one turn must satisfy together, in order."""


def _interaction(case: Case, signals: list[Signal], settings: CollectSettings) -> Interaction:
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


def without_repetition(decision: Decision, index: Index, settings: CollectSettings) -> None:
    """Turn an interaction that repeats an earlier one of the same user into skips; remember it otherwise."""
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
    detail = f"the same user said the like before (turn {near[0]}, similarity {near[1]:.2f})"
    for feedback in decision.kept:
        decision.skip(feedback, Refusal(reason, detail))
    decision.interaction, decision.kept = None, []


def split_of(conversation: str, holdout: float) -> Literal["train", "holdout"]:
    """The split of a conversation: a share `holdout` of all conversations, by their hash, for ever."""
    number = int(content_hash("split", conversation)[:8], 16)
    return "holdout" if number < holdout * 2**32 else "train"
