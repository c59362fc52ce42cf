"""What each kind of feedback says about its turn: one small reader for each, in one table.

Owns the step from a feedback row to a `Signal` (good or bad, how strongly, in which words), or to a `Refusal` or
`Waiting`. Pure functions; never reads a store, never combines several feedback rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from afterword.chat.canonical import text_of
from afterword.chat.machine import Hints, Said, calls_in_text, hints_of, origin_of, read_message
from afterword.feedback.settings import CollectSettings
from afterword.feedback.text.edits import align
from afterword.feedback.text.followup_classifier import POLARITY, categorise, read_follow_up
from afterword.feedback.text.guards import blames_the_cut
from afterword.feedback.text.outputs import structured_output
from afterword.kinds import KINDS
from afterword.records import BESIDE, Feedback, Interaction, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One turn and the feedback to decide, with everything that the decision may look at."""

    turn: Turn
    feedback: tuple[Feedback, ...]
    """Undecided, oldest first."""
    retracted: frozenset[str] = frozenset()
    """Ids of feedback that was taken back."""
    changed: frozenset[str] = frozenset()
    """Ids of votes that a newer one of the same user replaces."""
    left_behind: frozenset[str] = frozenset()
    """Ids of follow-ups that the conversation did not go on from, but from another one (`left_behind`)."""
    earlier: tuple[Interaction, ...] = ()
    """Interactions that this turn already gave."""
    conversation: str = ""
    """What the split is a hash of."""
    peer: str | None = None
    """For a retried turn: the answer of a later attempt at the same request that was accepted."""
    now: float = 0.0
    """Unix seconds."""
    request: str = field(init=False)
    """What the answer is an answer to."""
    answer: str = field(init=False)
    """The words of the answer."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "request", request_of(self.turn))
        object.__setattr__(self, "answer", answer_text(self.turn))


@dataclass(frozen=True, slots=True)
class Signal:
    """What one feedback row says."""

    feedback: Feedback
    polarity: int
    weight: float
    hindsight: str = ""
    firm: bool = True
    """Its sign takes part in the search for contradictions (an edit goes with either sign)."""
    category: str = ""
    """What the detectors read in the words."""
    confidence: float = 1.0
    """How sure that is."""
    spans: tuple[tuple[int, int], ...] = ()
    """Edits: which characters of the answer were changed or removed; behind its words stand its tool calls."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a feedback row teaches nothing: a code that is counted, and a sentence."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """Not decided yet: the row is left alone and looked at again by the next collection."""

    reason: str


Read = Signal | Refusal | Waiting
Reader = Callable[[Case, Feedback, CollectSettings, float], Read]


def read(case: Case, feedback: Feedback, settings: CollectSettings) -> Read:
    """What `feedback` says about its turn."""
    kind = KINDS.get(feedback.kind)
    if kind is None:
        return Refusal("unknown_kind", f"the kind {feedback.kind!r:.60} is not one that this version reads")
    if kind.silent and beside_a_conversation(case.turn):
        return Refusal("automated", f"{feedback.kind} of an answer that a program asked for beside the conversation")
    weight = settings.weight(feedback.kind, case.turn.task)
    weight = weight and _given_weight(feedback, weight)
    if weight == 0:
        return Refusal("off", f"feedback of the kind {feedback.kind} has weight 0 for this task")
    missing = _missing(feedback, kind.carries, settings.max_hindsight_chars)
    if missing is not None:
        return missing
    said = _READERS.get(feedback.kind, _plain)(case, feedback, settings, weight)
    return _sure_enough(said, settings) if isinstance(said, Signal) else said


def beside_a_conversation(turn: Turn) -> bool:
    """Did a program ask for this answer beside a conversation (a title, a summary)?

    A request that stands alone may as well be a product's own template, so it must have been declared.
    """
    if turn.automated == "declared":
        return True
    if not any(message.get("role") == "assistant" for message in turn.messages):
        return False
    return (turn.automated or origin_of(turn.messages, hints_of(turn.messages, turn.sampling, turn.tools))) in BESIDE


def _given_weight(feedback: Feedback, weight: float) -> float:
    """The client may say how strong its signal is (`signal_weight` of the events record, 0 .. 1), in place of the
    table; what the operator switched off stays off."""
    given = feedback.metadata.get("signal_weight")
    if given is None:
        return weight
    known = isinstance(given, int | float) and not isinstance(given, bool) and 0.0 <= given <= 1.0
    return float(given) if known else weight


def _sure_enough(signal: Signal, settings: CollectSettings) -> Read:
    """The client may say how sure it is (`metadata.confidence`, 0 .. 1): that scales the weight."""
    given = signal.feedback.metadata.get("confidence")
    if given is not None and isinstance(given, int | float) and not isinstance(given, bool) and 0.0 <= given <= 1.0:
        confidence = signal.confidence * given
        signal = replace(signal, weight=signal.weight * given, confidence=confidence)
    if signal.confidence < settings.min_confidence:
        return Refusal(
            "low_confidence", f"{signal.feedback.kind} was read with confidence {signal.confidence:.2f} only"
        )
    return signal


def request_of(turn: Turn) -> str:
    """What the answer is an answer to: the last user message and, in a tool loop, what came after it."""
    texts: list[str] = []
    for message in reversed(turn.messages):
        if message.get("role") == "assistant":
            continue
        texts.append(text_of(message.get("content")))
        if message.get("role") == "user":
            break
    return "\n".join(reversed(texts))


def answer_text(turn: Turn) -> str:
    """The words of the answer; names and arguments for tool calls."""
    calls = [f"{call['name']} {call['arguments']}" for call in _calls(turn)]
    return "\n".join([text_of(turn.answer.get("content")), *calls]).strip()


def _calls(turn: Turn) -> list[dict[str, str]]:
    functions = [c.get("function") or {} for c in turn.answer.get("tool_calls") or () if isinstance(c, dict)]
    return [{"name": str(f.get("name", "")), "arguments": str(f.get("arguments", ""))} for f in functions]


def _missing(feedback: Feedback, needs: str, limit: int) -> Refusal | None:
    text = feedback.final_text if needs == "final_text" else feedback.text
    if needs in {"text", "final_text"}:
        if not text or not text.strip():
            return Refusal(
                "no_text", f"{feedback.kind} without {'`final_text`' if needs == 'final_text' else '`text`'}"
            )
        if len(text) > limit:
            return Refusal("too_long", f"{len(text)} characters; at most {limit} are shown to the teacher")
    if needs == "value" and (feedback.value is None or not math.isfinite(feedback.value) or abs(feedback.value) > 1):
        return Refusal("bad_value", f"the rating is {feedback.value}; it must be between -1 and 1")
    if needs == "outcome" and feedback.exit_code is None:
        return Refusal("no_outcome", f"{feedback.kind} without `exit_code`")
    return None


def _plain(case: Case, feedback: Feedback, settings: CollectSettings, weight: float) -> Read:
    return Signal(feedback, KINDS[feedback.kind].polarity, weight)


def words_after(answer: str, feedback: Feedback) -> Said:
    """What a person says with a follow-up on `answer`, or why no person says it."""
    return read_message((feedback.text or "").strip(), Hints(after_call=calls_in_text(answer)))


def _follow_up(case: Case, feedback: Feedback, settings: CollectSettings, weight: float) -> Read:
    said = words_after(case.answer, feedback)
    if said.origin is not None:
        return Refusal("automated", f"a program wrote this ({said.origin}), no person: {feedback.text!r:.120}")
    text = said.words
    reading = read_follow_up(case.request, case.answer, text)
    if reading.category == "off_topic":
        return Refusal("off_topic", f"the user turns to something else: {text!r:.120}")
    if reading.category == "continuation":
        return Refusal("continuation", f"the user only asks for more: {text!r:.120}")
    if reading.category == "thanks":
        return Signal(feedback, 1, weight, category="thanks", confidence=reading.confidence)
    if case.turn.finish_reason == "length" and blames_the_cut(text):
        return Refusal("truncated", f"the answer was cut off at its length limit, which the user minds: {text!r:.120}")
    words = settings.words("follow_up", case.turn.task).format(text=text)
    strength = weight * reading.relevance
    return Signal(feedback, reading.polarity, strength, words, category=reading.category, confidence=reading.confidence)


def _comment(case: Case, feedback: Feedback, settings: CollectSettings, weight: float) -> Read:
    text = (feedback.text or "").strip()
    category = categorise(case.request, case.answer, text)
    if category == "thanks":
        return Signal(feedback, 1, weight, category=category)
    words = settings.words("comment", case.turn.task).format(text=text)
    return Signal(feedback, POLARITY[category], weight, words, category=category)


def _demonstration(case: Case, feedback: Feedback, settings: CollectSettings, weight: float) -> Read:
    words = settings.words(feedback.kind, case.turn.task).format(text=(feedback.text or "").strip())
    return Signal(feedback, -1, weight, words)


def _edited(case: Case, feedback: Feedback, settings: CollectSettings, weight: float) -> Read:
    final = (feedback.final_text or "").strip()
    if not text_of(case.turn.answer.get("content")).strip() and _calls(case.turn):
        return Refusal("edited_call", "the answer is a tool call and has no words to edit: send `tool_rejected`")
    change = align(text_of(case.turn.answer.get("content")), final)
    if change.share == 0:
        strength = settings.weight("accepted", case.turn.task)
        if strength == 0:
            return Refusal("off", "an edit that changes nothing is an acceptance, which has weight 0 for this task")
        return Signal(feedback, 1, _given_weight(feedback, strength))
    words = settings.words("edited", case.turn.task).format(final=final)
    strength = weight * (0.25 + 0.75 * change.share)
    return Signal(feedback, 1 if change.share < 0.5 else -1, strength, words, firm=False, spans=change.spans)


def _retried(case: Case, feedback: Feedback, settings: CollectSettings, weight: float) -> Read:
    if case.peer is not None:
        if len(case.peer) > settings.max_hindsight_chars:
            return Refusal("too_long", f"the accepted attempt has {len(case.peer)} characters")
        words = settings.words(feedback.kind, case.turn.task).format(answer=case.peer)
        return Signal(feedback, -1, weight, words)
    # A time far in the future counts as long ago: because of a clock that was wrong nothing waits for ever.
    if abs(case.now - feedback.created_at) < settings.wait_seconds:
        return Waiting("no_accepted_attempt_yet")
    return Refusal("no_hindsight", "asked again, but no later attempt at the same request was accepted")


def _rating(case: Case, feedback: Feedback, settings: CollectSettings, weight: float) -> Read:
    value, text = feedback.value or 0.0, (feedback.text or "").strip()
    sign = (value > 0) - (value < 0)
    category = categorise(case.request, case.answer, text) if text else "thanks"
    if category == "thanks":
        return Signal(feedback, sign, weight * abs(value))
    if len(text) > settings.max_hindsight_chars:
        return Refusal("too_long", f"{len(text)} characters; at most {settings.max_hindsight_chars} are shown")
    words = settings.words("rating", case.turn.task).format(text=text)
    return Signal(feedback, sign or POLARITY[category], weight * (abs(value) or 1.0), words, category=category)


def _outcome(case: Case, feedback: Feedback, settings: CollectSettings, weight: float) -> Read:
    if feedback.exit_code == 0:
        return Signal(feedback, 1, weight)
    output = structured_output(feedback.output or "", settings.max_hindsight_chars // 2) or "nothing"
    words = settings.words(feedback.kind, case.turn.task).format(
        code=f" with exit code {feedback.exit_code}", output=output
    )
    return Signal(feedback, -1, weight, words)


def _tool(case: Case, feedback: Feedback, settings: CollectSettings, weight: float) -> Read:
    calls = _calls(case.turn)
    if not calls:
        return Refusal("no_tool_call", f"{feedback.kind}, but the answer calls no tool")
    if feedback.kind == "tool_approved":
        return Signal(feedback, 1, weight)
    call = ", ".join(f"{c['name']}({c['arguments']})" for c in calls)
    template = settings.words(feedback.kind, case.turn.task)
    words = template.format(call=call[:1000], text=(feedback.text or "").strip()).strip()
    if len(words) > settings.max_hindsight_chars:
        return Refusal("too_long", f"{len(words)} characters; at most {settings.max_hindsight_chars} are shown")
    said = len(text_of(case.turn.answer.get("content")))
    behind = ((said, said + len(call)),) if said else ()  # nothing to tell apart in an answer that is all call
    return Signal(feedback, -1, weight, words, spans=behind)


_READERS: dict[str, Reader] = {
    "follow_up": _follow_up, "comment": _comment, "demonstration": _demonstration, "edited": _edited,
    "retried": _retried, "regenerated": _retried, "rating": _rating, "executed": _outcome, "tests": _outcome,
    "tool_approved": _tool, "tool_rejected": _tool,
}  # fmt: skip
"""Kinds that are not here only say good or bad."""
