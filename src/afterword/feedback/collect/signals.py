"""Reads one feedback row: its polarity, weight and hindsight as a `Signal`, or a `SkipReason`, or `Waiting`.

One reader for each kind, in one table; shared properties of the kinds are in `afterword.kinds`. Pure functions, no
store.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from afterword.chat.canonical import text_of
from afterword.chat.machine import Hints, MessageWords, calls_in_text, hints_of, origin_of, read_message
from afterword.feedback.settings import CollectSettings
from afterword.feedback.text.edits import align
from afterword.feedback.text.followup_classifier import POLARITY, categorise, read_follow_up
from afterword.feedback.text.followup_model import read_by_classifier
from afterword.feedback.text.guards import blames_the_cut
from afterword.kinds import KINDS
from afterword.records import BESIDE, Feedback, Interaction, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackCase:
    """One turn and its undecided feedback, with everything that the decision depends on."""

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
    """One feedback row as a training signal."""

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
class SkipReason:
    """The reason to skip a feedback row: a code that is counted, and a sentence."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """Not decided yet: the next collection reads the row again."""

    reason: str


Read = Signal | SkipReason | Waiting
Reader = Callable[[FeedbackCase, Feedback, CollectSettings, float], Read]


def read(case: FeedbackCase, feedback: Feedback, settings: CollectSettings) -> Read:
    """Reads one feedback row of a case.

    Returns:
        Its signal; the reason to skip it; or `Waiting` when a later collection will know more.
    """
    kind = KINDS.get(feedback.kind)
    if kind is None:
        return SkipReason("unknown_kind", f"the kind {feedback.kind!r:.60} is unknown to this version")
    if feedback.kind == "outcome":
        return SkipReason("episode_reward", "a reward is read with its episode, when that is collected")
    if kind.silent and beside_a_conversation(case.turn):
        return SkipReason("automated", f"{feedback.kind} on an answer to a program's request beside the conversation")
    weight = settings.weight(feedback.kind, case.turn.task)
    weight = weight and _given_weight(feedback, weight)
    if weight == 0:
        return SkipReason("off", f"{feedback.kind} has weight 0 for this task")
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
        return SkipReason(
            "low_confidence", f"{signal.feedback.kind} was read with a confidence of {signal.confidence:.2f} only"
        )
    return signal


def request_of(turn: Turn) -> str:
    """The request of an answer: the last user message and, in a tool loop, the messages after it."""
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


def _missing(feedback: Feedback, needs: str, limit: int) -> SkipReason | None:
    text = feedback.final_text if needs == "final_text" else feedback.text
    if needs in {"text", "final_text"}:
        if not text or not text.strip():
            return SkipReason(
                "no_text", f"{feedback.kind} without {'`final_text`' if needs == 'final_text' else '`text`'}"
            )
        if len(text) > limit:
            return SkipReason("too_long", f"{len(text)} characters; the most is {limit}")
    if needs == "value" and (feedback.value is None or not math.isfinite(feedback.value) or abs(feedback.value) > 1):
        return SkipReason("bad_value", f"the rating is {feedback.value}; it must be between -1 and 1")
    if needs == "exit_code" and feedback.exit_code is None:
        return SkipReason("no_outcome", f"{feedback.kind} without `exit_code`")
    return None


def _plain(case: FeedbackCase, feedback: Feedback, settings: CollectSettings, weight: float) -> Read:
    return Signal(feedback, KINDS[feedback.kind].polarity, weight)


def words_after(answer: str, feedback: Feedback) -> MessageWords:
    """The words of a person in a follow-up on `answer`, or the origin when a program wrote it."""
    return read_message((feedback.text or "").strip(), Hints(after_call=calls_in_text(answer)))


def _follow_up(case: FeedbackCase, feedback: Feedback, settings: CollectSettings, weight: float) -> Read:
    said = words_after(case.answer, feedback)
    if said.origin is not None:
        return SkipReason("automated", f"a program wrote this message ({said.origin}): {feedback.text!r:.120}")
    text = said.words
    if settings.follow_ups == "detectors":
        reading = read_follow_up(case.request, case.answer, text)
    else:
        embedded = settings.follow_ups == "embeddings"
        reading = read_by_classifier(case.request, case.answer, text, embedded=embedded)
    if reading.category == "off_topic":
        return SkipReason("off_topic", f"the user turns to something else: {text!r:.120}")
    if reading.category == "continuation":
        return SkipReason("continuation", f"the user only asks for more: {text!r:.120}")
    if reading.category == "thanks":
        return Signal(feedback, 1, weight, category="thanks", confidence=reading.confidence)
    if case.turn.finish_reason == "length" and blames_the_cut(text):
        return SkipReason("truncated", f"the user minds that the answer ended at its length limit: {text!r:.120}")
    words = settings.words("follow_up", case.turn.task).format(text=text)
    strength = weight * reading.relevance
    return Signal(feedback, reading.polarity, strength, words, category=reading.category, confidence=reading.confidence)


def _comment(case: FeedbackCase, feedback: Feedback, settings: CollectSettings, weight: float) -> Read:
    text = (feedback.text or "").strip()
    category = categorise(case.request, case.answer, text)
    if category == "thanks":
        return Signal(feedback, 1, weight, category=category)
    words = settings.words("comment", case.turn.task).format(text=text)
    return Signal(feedback, POLARITY[category], weight, words, category=category)


def _demonstration(case: FeedbackCase, feedback: Feedback, settings: CollectSettings, weight: float) -> Read:
    words = settings.words(feedback.kind, case.turn.task).format(text=(feedback.text or "").strip())
    return Signal(feedback, -1, weight, words)


def _edited(case: FeedbackCase, feedback: Feedback, settings: CollectSettings, weight: float) -> Read:
    final = (feedback.final_text or "").strip()
    if not text_of(case.turn.answer.get("content")).strip() and _calls(case.turn):
        return SkipReason("edited_call", "the answer is a tool call and has no words to edit: send `tool_rejected`")
    change = align(text_of(case.turn.answer.get("content")), final)
    if change.share == 0:
        strength = settings.weight("accepted", case.turn.task)
        if strength == 0:
            return SkipReason("off", "an edit that changes nothing is an acceptance, which has weight 0 for this task")
        return Signal(feedback, 1, _given_weight(feedback, strength))
    words = settings.words("edited", case.turn.task).format(final=final)
    strength = weight * (0.25 + 0.75 * change.share)
    return Signal(feedback, 1 if change.share < 0.5 else -1, strength, words, firm=False, spans=change.spans)


def _retried(case: FeedbackCase, feedback: Feedback, settings: CollectSettings, weight: float) -> Read:
    if case.peer is not None:
        if len(case.peer) > settings.max_hindsight_chars:
            return SkipReason("too_long", f"the accepted attempt has {len(case.peer)} characters")
        words = settings.words(feedback.kind, case.turn.task).format(answer=case.peer)
        return Signal(feedback, -1, weight, words)
    # A time far in the future counts as long ago: because of a clock that was wrong nothing waits for ever.
    if abs(case.now - feedback.created_at) < settings.wait_seconds:
        return Waiting("no_accepted_attempt_yet")
    return SkipReason("no_hindsight", "asked again, and no later attempt at the same request was accepted")


def _rating(case: FeedbackCase, feedback: Feedback, settings: CollectSettings, weight: float) -> Read:
    value, text = feedback.value or 0.0, (feedback.text or "").strip()
    sign = (value > 0) - (value < 0)
    category = categorise(case.request, case.answer, text) if text else "thanks"
    if category == "thanks":
        return Signal(feedback, sign, weight * abs(value))
    if len(text) > settings.max_hindsight_chars:
        return SkipReason("too_long", f"{len(text)} characters; at most {settings.max_hindsight_chars} are shown")
    words = settings.words("rating", case.turn.task).format(text=text)
    return Signal(feedback, sign or POLARITY[category], weight * (abs(value) or 1.0), words, category=category)


def _outcome(case: FeedbackCase, feedback: Feedback, settings: CollectSettings, weight: float) -> Read:
    if feedback.exit_code == 0:
        return Signal(feedback, 1, weight)
    output = structured_output(feedback.output or "", settings.max_hindsight_chars // 2) or "nothing"
    words = settings.words(feedback.kind, case.turn.task).format(
        code=f" with exit code {feedback.exit_code}", output=output
    )
    return Signal(feedback, -1, weight, words)


def _tool(case: FeedbackCase, feedback: Feedback, settings: CollectSettings, weight: float) -> Read:
    calls = _calls(case.turn)
    if not calls:
        return SkipReason("no_tool_call", f"{feedback.kind}, but the answer calls no tool")
    if feedback.kind == "tool_approved":
        return Signal(feedback, 1, weight)
    call = ", ".join(f"{c['name']}({c['arguments']})" for c in calls)
    template = settings.words(feedback.kind, case.turn.task)
    words = template.format(call=call[:1000], text=(feedback.text or "").strip()).strip()
    if len(words) > settings.max_hindsight_chars:
        return SkipReason("too_long", f"{len(words)} characters; at most {settings.max_hindsight_chars} are shown")
    said = len(text_of(case.turn.answer.get("content")))
    behind = ((said, said + len(call)),) if said else ()  # nothing to tell apart in an answer that is all call
    return Signal(feedback, -1, weight, words, spans=behind)


_READERS: dict[str, Reader] = {
    "follow_up": _follow_up, "comment": _comment, "demonstration": _demonstration, "edited": _edited,
    "retried": _retried, "regenerated": _retried, "rating": _rating, "executed": _outcome, "tests": _outcome,
    "tool_approved": _tool, "tool_rejected": _tool,
}  # fmt: skip
"""Kinds that are not here only say good or bad."""


# ---- output of programs: the first error and the cases that failed

FEW_LINES = 12
MAX_CASES = 8
"""Failing cases that are named."""
MAX_SEEN = 200_000
"""Characters that are looked at, half from each end."""

_FIRST = re.compile(
    r"(?i)(error\b|exception\b|\btraceback|\bfailed|\bassert\w*|\bpanic|\bfatal|\bundefined|\bsegfault)|^E  "
)
_CASES = re.compile(
    r"^(?:FAILED|ERROR) (?P<pytest>\S+::\S+)(?: - (?P<why>.*))?$|^--- FAIL: (?P<go>\S+)"
    r"|^\s*(?:✕|✗|×|not ok(?: \d+)? ?-?) (?P<tap>.+)$"
    r"|^(?:FAIL|ERROR): (?P<unittest>\w+ \([\w.]+\))|^test (?P<rust>\S+) \.\.\. FAILED$",
    re.MULTILINE,
)
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def structured_output(output: str, limit: int) -> str:
    """Shortens printed output to about `limit` characters. Short output stays as it is; of long output the failing
    cases are named, then its beginning, the first lines that name an error with what follows them, and its end."""
    text = _ANSI.sub("", output.replace("\x00", "")).strip()
    if len(text) <= limit:
        return text
    if len(text) > MAX_SEEN:
        text = text[: MAX_SEEN // 2] + "\n" + text[-MAX_SEEN // 2 :]
    cases = failing_cases(text)
    named = "Failed: " + "; ".join(cases) + "\n" if cases else ""
    return (named[: limit // 2] + _shortened(text, limit - min(len(named), limit // 2))).strip()


def failing_cases(text: str) -> list[str]:
    """Names of the cases that failed, with the reason where one line gives it (pytest, unittest, Go, Rust, TAP)."""
    found: list[str] = []
    for match in _CASES.finditer(text):
        name = next(v for k, v in match.groupdict().items() if k != "why" and v)
        found.append(f"{name}: {match['why']}"[:200] if match["why"] else name.strip()[:200])
    unique = list(dict.fromkeys(found))
    more = len(unique) - MAX_CASES
    return unique if more <= 0 else [*unique[:MAX_CASES], f"and {more} more"]


def _shortened(text: str, limit: int) -> str:
    """Lines are kept whole where they fit; cuts are marked with "[...]"."""
    lines = text.splitlines()
    first = next((i for i, line in enumerate(lines) if _FIRST.search(line)), None)
    middle = [] if first is None else lines[max(first - 2, 0) : first + FEW_LINES]
    parts = [lines[:3], middle, text[-limit:].splitlines()[-FEW_LINES:]]
    share = max(limit // 3, 1)
    return "\n[...]\n".join(_clip("\n".join(part), share, tail=i == 2) for i, part in enumerate(parts) if part)


def _clip(text: str, limit: int, *, tail: bool) -> str:
    if len(text) <= limit:
        return text
    return text[-limit:] if tail else text[:limit]
