"""Detects messages in the user's role that a program wrote: a front end's title request, a tool result.

Vocabulary: `machine.toml`. In doubt a message counts as a program's, so that nothing is learned from it. Measured on
1,030 messages in 19 languages (docs/feedback.md). Pure.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from itertools import islice
from typing import Any, Literal

import orjson

from afterword.chat import machine_classifier
from afterword.chat.canonical import text_of
from afterword.chat.vocabulary import LinePattern, Phrases
from afterword.chat.wrapped import user_words
from afterword.records import BESIDE

Origin = Literal["declared", "task", "tool_result", "context", "notice", "unsure"]
"""How a program gives itself away: the client says so, it asks for something beside the conversation, it passes on
what a tool returned, it only adds context, it tells the model how to go on."""

HEAD, TAIL = 1600, 600
"""Characters at the beginning and at the end of a message that are read."""
THRESHOLD, FOR_SUMMARY, WITHOUT_META = 2.0, 3.0, 3.5
"""Points from which a message is a program's task: one that speaks of the conversation; when it wants a summary, for
which people ask too; and when it speaks of no conversation."""
CERTAIN = 8.0
"""Points from which a task that carries its own copy of the conversation is no notice, whatever form it wants."""
MOST_NEW = 64
"""Messages after the last answer that are read, the newest ones: nobody says more at once."""
UNSURE = 1.2
"""Log odds from which a message may be a program's prompt: nothing is learned from it, and nothing else follows."""
EDGE = 150
"""Characters at the beginning and at the end in which the classifier looks for signs of a task."""
SHORTEST_TEMPLATE = 40
"""Characters that a template has at least."""
LONGEST = 200_000
"""Characters in which envelopes are looked for."""
AROUND = 400
"""Characters that a program may put around the user's own words without an envelope."""
MAX_ENDLESS = 32
"""Tags without an end after which no more are looked at: it is no text with envelopes."""
HEADER = 120
"""Characters of a first line that may announce a tool's result."""
SMALL_ANSWER = 100
"""An answer of so few tokens at most is a label."""


@dataclass(frozen=True, slots=True)
class MessageWords:
    """The words of a person in a message of the user's role, or the origin of the message."""

    words: str
    """The words of a person, without what a program put around them; "" when there are none."""
    origin: Origin | None = None
    """Why they are no person's; None: a person's, as far as can be seen."""


@dataclass(frozen=True, slots=True)
class Hints:
    """Properties of the request around a message."""

    system: str = ""
    """Its system message, when nothing was answered under it: a product's own stays the same all along."""
    sampling: Mapping[str, Any] | None = None
    """Its sampling parameters, `response_format` among them."""
    dropped_tools: bool = False
    """The history has tool calls, the request offers no tools."""
    after_call: bool = False
    """The answer before it calls a tool in its text."""


NO_HINTS = Hints()


def read_message(text: str, hints: Hints = NO_HINTS) -> MessageWords:
    """Extracts the words of a person from a message, without retrieved text around them.

    Args:
        text: The message.
        hints: Properties of its request.

    Returns:
        The words; or the message's origin when a program wrote it.
    """
    read = _read(text, hints)
    asked, certain = user_words(text)  # "Answer the question with these passages" is a task around a person's words
    if read.origin is None:
        if asked == text:
            return MessageWords(user_words(read.words)[0])
        return MessageWords(_read(asked, hints).words if certain else "")
    if read.origin == "task" and certain and asked != text and asked and _ANSWERS.search(_normal(text)):
        return _read(asked, hints)
    return read


def _read(text: str, hints: Hints) -> MessageWords:
    bare, own = _unwrapped(text)
    if own:
        return MessageWords(own)
    if not bare:
        return MessageWords("", "context") if text.strip() else MessageWords("")
    origin = _origin(_normal(bare), bare, hints)
    return MessageWords("" if origin else bare, origin)


def origin_of(messages: Sequence[Mapping[str, Any]], hints: Hints = NO_HINTS) -> Origin | None:
    """Returns the origin of a request's newest message.

    Args:
        messages: Messages of the request.
        hints: Its properties.

    Returns:
        None for a person, or when the newest message is not a user's.
    """
    if not messages or messages[-1].get("role") != "user":
        return None
    return newest_user_words(messages, hints).origin


def newest_user_words(messages: Sequence[Mapping[str, Any]], hints: Hints = NO_HINTS) -> MessageWords:
    """Extracts the words of a person after the last answer.

    Each message is read separately, so that a context message does not hide the user's words.

    Args:
        messages: The conversation.
        hints: Properties of the request.

    Returns:
        The words; when a program wrote all messages, the origin of the last one.
    """
    read = [read_message(text, hints) for text in _new_texts(messages)]
    if read and read[-1].origin in BESIDE:
        return MessageWords("", read[-1].origin)
    words = "\n\n".join(one.words for one in read if one.words)
    origins = [one.origin for one in read if one.origin]
    return MessageWords(words, None if words or not origins else origins[-1])


def new_words(messages: Sequence[Mapping[str, Any]]) -> str:
    """Returns all text in the user's role after the last answer."""
    return "\n\n".join(_new_texts(messages))


def _new_texts(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    last = next((i for i in range(len(messages) - 1, -1, -1) if messages[i].get("role") == "assistant"), -1)
    texts = (text_of(m.get("content")) for m in reversed(messages[last + 1 :]) if m.get("role") == "user")
    return list(islice((text for text in texts if text.strip()), MOST_NEW))[::-1]


def hints_of(
    messages: Sequence[Mapping[str, Any]], sampling: Mapping[str, Any] | None = None, tools: Any = None
) -> Hints:
    """Collects the hints of a request or of a stored turn.

    Args:
        messages: Its messages.
        sampling: Its sampling parameters.
        tools: Its tool definitions.
    """
    before = [m for m in messages if m.get("role") == "assistant"]
    told = [text_of(m.get("content")) for m in messages if not before and m.get("role") in ("system", "developer")]
    return Hints(
        system="\n".join(told),
        sampling=sampling,
        dropped_tools=not tools and any(m.get("tool_calls") for m in before),
        after_call=bool(before) and calls_in_text(text_of(before[-1].get("content"))),
    )


def calls_in_text(answer: str) -> bool:
    """True when an answer calls a tool in its text, so that the next message in the user's role is the result."""
    return _CALL.search(answer[-2000:]) is not None


_DECLARED = re.compile(
    r"(?:title|tags?|follow[_-]?ups?|quer(?:y|ies)|emoji|summar\w*|compact\w*|memor\w*|image_prompt|autocomplet\w*|moa_response|"
    r"function_calling|topic|name)_?(?:generat\w*|extract\w*|creat\w*|request)"
)
_TELLING = ("x-openwebui-task", "x-task-type", "x-request-type", "x-purpose")
_TOLD = re.compile(r"title|tag|summar|follow|quer|autocomplet|compact|memor|background|auxiliary|housekeeping")


def declared(headers: Mapping[str, str], metadata: Mapping[str, Any]) -> Origin | Literal["person"] | None:
    """Reads the origin that the client declares.

    Sources: `x-afterword-automated` or `metadata.automated`; task names of front ends; `x-initiator: agent`.

    Returns:
        An origin, "person", or None without a declaration.
    """
    own = headers.get("x-afterword-automated", metadata.get("automated"))
    if own is not None and str(own).strip():
        return "person" if str(own).strip().lower() in ("false", "0", "no") else "declared"
    if _DECLARED.fullmatch(str(metadata.get("task") or "").lower()):
        return "declared"
    if any(_TOLD.search(headers.get(name, "").lower()) for name in _TELLING):
        return "declared"
    return "notice" if headers.get("x-initiator", "").lower() == "agent" else None


# ---- what a program put around the words


def _unwrapped(text: str) -> tuple[str, str]:
    """The text without envelopes of context, and the user's own words if an envelope says that they are."""
    bare = text.strip()
    if len(bare) > LONGEST + TAIL:
        bare = bare[:LONGEST] + "\n" + bare[-TAIL:]
    if "<" not in bare:
        return bare, ""
    rest, own = _without_blocks(bare, _OWN)
    words = "\n\n".join(inside.strip() for _, inside in own if inside.strip())
    if words and len(_without_blocks(rest, _CONTEXT)[0].strip()) < AROUND:
        return bare, words
    return _without_blocks(bare, _CONTEXT)[0].strip(), ""


def _without_blocks(text: str, tags: frozenset[str] | None) -> tuple[str, list[tuple[str, str]]]:
    """The text without `<tag>...</tag>` blocks of these tags (None: any), and the blocks as (tag, inside).

    Linear: behind each opening tag its end is looked for once, and no further for a tag that has none.
    """
    low = text.lower()
    if len(low) != len(text):  # a letter that becomes two in lower case
        low = text
    kept: list[str] = []
    blocks: list[tuple[str, str]] = []
    start = tried = 0
    endless: set[str] = set()
    for opened in _OPEN_TAG.finditer(text):
        tag = opened.group(1).lower()
        if opened.start() < start or tag in endless or (tags is not None and tag not in tags):
            continue
        end = low.find(f"</{tag}>", opened.end())
        if end < 0:
            endless.add(tag)
            tried += 1
            if tried > MAX_ENDLESS:
                break
            continue
        kept.append(text[start : opened.start()])
        blocks.append((tag, text[opened.end() : end]))
        start = end + len(tag) + 3
    return " ".join([*kept, text[start:]]), blocks


def _program_tags(text: str) -> bool:
    """Is all of the text in tags that a program would choose?"""
    if not text.startswith("<"):
        return False
    rest, blocks = _without_blocks(text, None)
    return bool(blocks) and not rest.strip() and all(_PROGRAM.search(tag) for tag, _ in blocks)


# ---- who wrote it


@lru_cache(maxsize=256)
def _normal(text: str) -> str:
    """Lowered text in one form, its middle left out."""
    if len(text) > HEAD + TAIL:
        text = text[:HEAD] + "\n" + text[-TAIL:]
    return unicodedata.normalize("NFKC", text).replace("’", "'").lower()


def _origin(low: str, text: str, hints: Hints) -> Origin | None:
    if _is_result(low, text, hints):
        return "tool_result"
    points, needed = _task_points(low, hints)
    if _is_notice(low) and not (points >= CERTAIN and _holds_history(low)):
        return "notice"
    if points >= needed:
        return "task"
    return "unsure" if _may_be_a_template(text) else None


def _may_be_a_template(text: str) -> bool:
    if len(text) < SHORTEST_TEMPLATE:
        return False
    return machine_classifier.score(features_of(text)) >= UNSURE


def features_of(text: str) -> dict[str, float]:
    """Returns the classifier's features of a message: words of its start and end, its form, signs of a task."""
    if len(text) > HEAD + TAIL:
        text = text[:HEAD] + "\n" + text[-TAIL:]
    text = unicodedata.normalize("NFKC", text).replace("’", "'")
    low = text.lower()
    asked = _edges(_instruction(low))
    found = machine_classifier.features(text, low)
    found.update({f"#{name}": 0.5 for name, phrases in _SIGNS.items() if phrases.found(asked)})
    low = _edges(low)
    found.update({f"#{name}": 0.5 for name, found_in in _STRUCTURE.items() if found_in(low)})
    return found


def _edges(low: str) -> str:
    """Where a message says what it wants: what it is about is in the middle, and may hold any word."""
    return low if len(low) <= 2 * EDGE else low[:EDGE] + "\n" + low[-EDGE:]


def _is_result(low: str, text: str, hints: Hints) -> bool:
    if _program_tags(text) or _is_result_json(text):
        return True
    bracket = _BRACKET.match(low)
    if bracket:
        inside = bracket.group(1)[:160]
        if bracket.group(2) or _announces(inside) or _OF_A_CALL.match(inside) or _AUTOMATIC.pattern.match(inside):
            return True
    if _is_header(low) or (_SYSTEM_NOTE.match(low) and not _ADDRESSED.found(low[:400])):
        return True
    seen = _OBSERVATION.match(low)
    if seen and not _ADDRESSED.found(low[seen.end() : seen.end() + 400]):
        return True
    return hints.after_call and not _ADDRESSED.found(low[:600]) and _looks_like_data(low)


def _is_header(low: str) -> bool:
    """Does the first line announce what a tool returned ("Tool `x` returned:", "Result of the function x:")?"""
    if _STREAM.match(low) or _TOOL_ERROR.match(low):
        return True
    line = low.split("\n", 1)[0]
    head, colon, _ = line[:HEADER].replace("_", " ").partition(":")
    if not colon and not line.lstrip().startswith(("#", "=", "*", "-")):
        head = head if _MARKED.match(line) or (len(line) < 60 and "\n" in low) else ""
    if _CALLED.match(head) and (colon or "\n" in low):
        return True
    return len(head.split()) <= 9 and _announces(head) and not _ADDRESSED.found(head)


def _announces(head: str) -> bool:
    head = head.replace("_", " ")
    return _SUBJECT.found(head) and _OUTCOME.found(head)


def _is_result_json(text: str) -> bool:
    bare = _FENCE.sub("", text).strip()
    if not bare.startswith(("{", "[")):
        return False
    try:
        data = orjson.loads(bare)
    except orjson.JSONDecodeError:
        return False
    items = data if isinstance(data, list) else [data]
    return bool(items) and all(isinstance(item, dict) and _result_keys(item) for item in items)


def _result_keys(item: Mapping[str, Any]) -> bool:
    if str(item.get("role")) in ("tool", "function") or _RESULT_TYPE.search(str(item.get("type"))):
        return True
    return not _KEYS.isdisjoint(key.lower() for key in item)


def _looks_like_data(low: str) -> bool:
    """After a tool call: is it data, or a report of what was done, rather than a sentence?"""
    words = len(_WORD.findall(low))
    signs = len(_DATA_SIGN.findall(low))
    return low.startswith(("{", "[", "<", "```")) or signs * 4 >= words


def _is_notice(low: str) -> bool:
    found = next(_NOTICE.finditer(low), None)
    return found is not None and not _QUOTING.search(low[max(0, found.start() - 60) : found.start()])


def _task_points(low: str, hints: Hints) -> tuple[float, float]:
    """Is it a request for something beside the conversation?

    What speaks of the conversation, of "the user", or of what the answer is for needs few other signs; without that, a
    wish about form ("a title, five words, no quotes") is a person's unless there are very many.
    """
    asked = _instruction(low)
    label, summary, about, part, third, purpose = (
        phrases.found(asked) for phrases in (_ACTION, _SUMMARY, _OBJECT, _PART, _THIRD, _PURPOSE)
    )
    given = 2.0 * _SYSTEM.found(_normal(hints.system) or asked)
    beside = _BESIDE.found(low)
    action = label or summary or beside
    if not (action or about or third or given):
        return 0.0, WITHOUT_META
    asked_for = _parameter_points(hints) if action or about or third else 0.0
    form = min(2.5, len({m.group() for m in _ONLY.finditer(asked)})) + _LIMIT.found(asked)
    form += _FORMAT.found(low) + _LANGUAGE.found(asked)
    built = _structure_points(low) if action or third else 0.0
    points = given + asked_for + action + 0.5 * (label and about) + form + built + 1.5 * purpose + 2.0 * third
    points += 1.5 if about else 1.0 if part else 0.0
    points += 0.5 * (_START.pattern.match(asked.lstrip(" \n#*[")) is not None)
    meta = beside or about or purpose or built or given or (action and (part or third)) or (third and form > 1)
    needed = WITHOUT_META if not meta else FOR_SUMMARY if summary and not label else THRESHOLD
    if not (action or form or given) or (third and not action and not about and form < 2):
        return 0.0, needed
    return points - _person_points(asked), needed


def _parameter_points(hints: Hints) -> float:
    sampling = hints.sampling or {}
    most = sampling.get("max_tokens") or sampling.get("max_completion_tokens")
    small = isinstance(most, int | float) and not isinstance(most, bool) and most <= SMALL_ANSWER
    return 1.0 * (small or hints.dropped_tools or _is_structured(sampling.get("response_format")))


def _is_structured(format: Any) -> bool:
    return isinstance(format, Mapping) and format.get("type") not in (None, "text")


def _structure_points(low: str) -> float:
    headings = {m.group(1) for m in _HEADING.finditer(low)}
    points = 2.0 * (len(headings) > 1) + 2.0 * _holds_history(low)
    if low[:1] not in "{[" and _TEMPLATE.search(low):
        points += 1.5
    return points + 2.0 * (len({m.group(1) for m in _SPEAKER.finditer(low)}) > 1)


def _holds_history(low: str) -> bool:
    return _HISTORY_TAG.search(low) is not None or _HISTORY_LINE.found(low)


def _person_points(asked: str) -> float:
    asked = _AS_THE_USER.sub(" ", asked)
    points = 2.5 * _THINGS.found(asked) + 1.0 * _MILD.found(asked)
    points += 2.5 * _STRONG.found(asked)
    return points + 1.5 * asked.rstrip().endswith(("?", "？"))


def _instruction(low: str) -> str:
    """The text without what it is about: fenced blocks, tagged blocks, quotations, lines of a transcript."""
    low = _without_blocks(low, None)[0] if "<" in low else low
    for pattern in (_FENCED, _QUOTED):
        low = pattern.sub(" ", low)
    return "\n".join(line for line in low.split("\n") if not _SPEAKER.pattern.match(line))


# ---- patterns

_DATA: dict[str, dict[str, list[str]]] = tomllib.loads(
    files("afterword.chat").joinpath("machine.toml").read_text(encoding="utf-8")
)


def _any(entries: Iterable[str], end: str = "") -> Phrases:
    return Phrases(tuple(entries), end=end)


_CONTEXT = frozenset(_DATA["envelopes"]["context"])
_OWN = frozenset(_DATA["envelopes"]["words"])
_OPEN_TAG = re.compile(r"<([A-Za-z][\w.:-]{0,60})(?:\s[^<>]{0,200})?>")
_PROGRAM = re.compile("|".join(_DATA["envelopes"]["program"]))
_SUBJECT = _any(_DATA["results"]["subject"], r"(?!\w)")
_OUTCOME = _any(_DATA["results"]["outcome"], r"(?!\w)")
_STREAM = re.compile(r"[*#\s]*(?:stdout|stderr|exit ?code|returncode|<returncode)\s*[:=>]")
_CALLED = re.compile(
    r"\W*(?:tool (?:call|result|output|response|use)|(?:tool|function) [`\"'][^`\"']{1,60}[`\"']|"
    r"(?:search|web) results? (?:for|from|of)|ran `|executed `|command `[^`]*` |process finished with exit code)"
)
_OF_A_CALL = re.compile(rf"(?:{'|'.join(_DATA['results']['outcome'])}) (?:from|of|for) ")
_MARKED = re.compile(r"[\W_]{3,}")
_SYSTEM_NOTE = re.compile(
    r"[(\[](?:system|internal|harness|orchestrator|scheduler)(?:[ -][^)\]\n]{0,80})?[)\]]|\[system:|"
    r"system(?: error)?\s*: (?:command|tool|session|the )"
)
_TOOL_ERROR = re.compile(
    r"\W*(?:system )?error\W+(?:unknown (?:tool|function|action|command)|(?:tool|function) |parsing |executing |"
    r"calling |during (?:evaluation|execution)|provider |your (?:last |previous )?(?:response|output|message|reply))"
)
_AUTOMATIC = _any(_DATA["results"]["bracket"])
_BRACKET = re.compile(r"[*#>\s-]*[\[【]+\s*([^\]】\n]{1,2000})[\]】]+\**\s*(result:|output:|response:)?")
_OBSERVATION = re.compile(rf"[*#>\s-]*(?:{'|'.join(_DATA['results']['observation'])})\**\s*\d*\s*[:：]")
_KEYS = frozenset(_DATA["results"]["keys"])
_RESULT_TYPE = re.compile(r"tool_result|tool_response|tool-result|function_call_output|function_result|tool_output")
_ADDRESSED = Phrases(
    (*_DATA["results"]["addressed"], "你", "您", "我", "あなた", "私", "당신", "내가"), before=r"(?<!\w)", end=r"(?!\w)"
)
_FENCE = re.compile(r"^```\w*\n|\n?```$")
_WORD = re.compile(r"[^\W\d_]{2,}")
_DATA_SIGN = re.compile(r"[{}\[\]<>|=/\\_]|\d+|:\s|\n")
_CALL = re.compile("|".join(_DATA["results"]["calls"]), re.IGNORECASE)
_NOTICE = _any(_DATA["notices"]["any"])
_QUOTING = re.compile(r"(?<!\w)(?:my|our) [^.\n]{0,50}$")
_ACTION = _any(_DATA["tasks"]["action"])
_SUMMARY = _any(_DATA["tasks"]["summary"])
_OBJECT = _any(_DATA["tasks"]["object"])
_BESIDE = _any(_DATA["tasks"]["beside"])
_PART = _any(_DATA["tasks"]["part"])
_THIRD = _any(_DATA["tasks"]["third"])
_ONLY = _any(_DATA["tasks"]["only"])
_LIMIT = _any(_DATA["tasks"]["limit"])
_FORMAT = _any(_DATA["tasks"]["format"])
_PURPOSE = _any(_DATA["tasks"]["purpose"])
_START = _any(_DATA["tasks"]["start"])
_LANGUAGE = _any(_DATA["tasks"]["language"])
_THINGS = _any(_DATA["tasks"]["things"], r"(?!\w)")
_MILD = _any(_DATA["tasks"]["mild"], r"(?!\w)")
_STRONG = _any(_DATA["tasks"]["strong"], r"(?!\w)")
_SYSTEM = _any(_DATA["structure"]["system"])
_ANSWERS = re.compile(
    r"(?<!not )(?<!n't )(?:answer|respond to|reply to)(?:ing)? (?:the |this |my )?(?:user|human)?(?:'s)? ?"
    r"(?:query|question|request|message)"
)
_AS_THE_USER = re.compile(
    r"(?<!\w)(?:i|we) (?:could|might|may|can|should|want to|would) (?:ask|say|send|type)|\"i |"
    r"our (?:chat|conversation|dialogue|discussion|exchange)|do(?:n't| not) say[^.]*"
)

_HEADING = LinePattern(rf"(?:^|\n)\s*(?:#{{1,4}}|\*\*)\s*({'|'.join(_DATA['structure']['headings'])})\b")
_HISTORY_TAG = re.compile(rf"<(?:{'|'.join(_DATA['structure']['history_tags'])})>")
_HISTORY_LINE = LinePattern(rf"(?:^|\n)\s*(?:{'|'.join(_DATA['structure']['history_lines'])})\s*:")
_TEMPLATE = re.compile(r"\{\s*\"[a-z_ -]{2,30}\"\s*:")
_SPEAKER = LinePattern(rf"(?:^|\n)[\s>*#-]*({'|'.join(_DATA['structure']['speakers'])})\**\s*(?:[:：]|\n)")
_FENCED = re.compile(r"```.*?(?:```|$)|\"\"\".*?(?:\"\"\"|$)", re.DOTALL)
_QUOTED = re.compile(r"\"[^\"\n]{12,300}\"|“[^”\n]{12,300}”|«[^»\n]{12,300}»|'(?<!\w')[^'\n]{12,300}'(?!\w)")

_SIGNS = {
    "action": _ACTION, "summary": _SUMMARY, "conversation": _OBJECT, "part": _PART, "third": _THIRD, "only": _ONLY,
    "limit": _LIMIT, "purpose": _PURPOSE, "language": _LANGUAGE, "things": _THINGS, "mild": _MILD, "strong": _STRONG,
    "system": _SYSTEM, "addressed": _ADDRESSED,
}  # fmt: skip
_STRUCTURE: dict[str, Callable[[str], object]] = {
    "beside": _BESIDE.found, "format": _FORMAT.found, "heading": _HEADING.found, "history": _holds_history,
    "json": _TEMPLATE.search, "speaker": _SPEAKER.found, "result": _OUTCOME.found, "subject": _SUBJECT.found,
}  # fmt: skip
"""Signs that the classifier weighs, of what a message asks and of all of it."""
