"""Fingerprints the end of a conversation, newest message first, so that a changed history is still found.

Clients change their history: clocks in system prompts, retrieved text, removed thoughts, dropped messages. A trail
keeps only the words of user and model. Stored as text; the scope (API key and user) keys every fingerprint.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from afterword.chat.canonical import text_of
from afterword.chat.wrapped import user_words
from afterword.records import Json

DEPTH = 8
"""Messages of user and model that a trail goes back."""
SIZE = 16
"""Characters of one fingerprint: `a` (model) or `u` (user) and 15 hex digits."""
WHOLE = "."
"""Ends a trail that reaches the start of its conversation."""
LONG = 60
"""Characters of a question (without white space) from which on it may be the user's words within other text."""
_ASIDE = "|"
"""Before the question that stands at the end because it is LONG."""


@dataclass(frozen=True, slots=True)
class Trail:
    """The end of a conversation, newest message first."""

    prints: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    """The compared words of each message, without white space."""
    whole: bool = True
    """Does it reach the start of what was sent?"""

    @property
    def text(self) -> str:
        """The stored form: the fingerprints in order.

        A LONG question before the answer may change in the next request, so it moves to the end and the first letter is
        `w`: turns that agree in all the rest are neighbours in an index.
        """
        prints, end = self.prints, WHOLE if self.whole else ""
        if len(prints) > 1 and prints[0][0] == "a" and prints[1][0] == "u" and len(self.words[1]) >= LONG:
            return "".join(aside(prints)) + end + _ASIDE + prints[1]
        return "".join(prints) + end

    def answered(self) -> Trail:
        """The trail up to the newest answer; empty without one."""
        start = next((i for i, name in enumerate(self.prints) if name[0] == "a"), len(self.prints))
        cut = slice(start, start + DEPTH)
        return Trail(self.prints[cut], self.words[cut], self.whole and start + DEPTH >= len(self.prints))


def aside(prints: Sequence[str]) -> tuple[str, ...]:
    """Returns the fingerprints up to an answer in the stored form for a LONG question: without that question."""
    return ("w" + prints[0][1:], *prints[2:])


def stored_prints(text: str) -> tuple[list[str], bool]:
    """Splits a stored trail into fingerprints, newest first; tells whether it reaches the start of its conversation."""
    text, _, question = text.partition(_ASIDE)
    whole = text.endswith(WHOLE)
    prints = [text[i : i + SIZE] for i in range(0, len(text) - whole, SIZE)]
    if question:
        prints[:1] = ["a" + text[1:SIZE], question]
    return prints, whole


def trail_of(scope: Sequence[str | None], messages: Sequence[Json], depth: int = DEPTH) -> Trail:
    """Computes the trail of messages.

    Args:
        scope: API key and user.
        messages: The conversation.
        depth: Maximal number of messages.
    """
    key = _key(scope)
    found: list[tuple[str, str]] = []
    whole = _gather(messages, depth, found)
    words = tuple(text for _, text in found)
    prints = tuple(_print(key, role, text) for role, text in found)
    return Trail(prints, words, whole)


def trail_of_turn(
    scope: Sequence[str | None], messages: Sequence[Json], answer: Json, sent: Trail | None = None
) -> str:
    """Computes the stored trail of a turn.

    An answer that continues the last message forms one answer with it, whether the server sends all of it or only the
    rest.

    Args:
        scope: API key and user.
        messages: Messages of the request.
        answer: The served answer.
        sent: Trail of the request, where known already.
    """
    last = messages[-1].get("role") if messages else None
    if sent is not None and last == "user" and not any(text.startswith(_STEPS) for text in sent.words):
        name, text = _read(answer)
        if text:
            whole = sent.whole and len(sent.prints) < DEPTH
            prints, words = (_print(_key(scope), name, text), *sent.prints), (text, *sent.words)
            return Trail(prints[:DEPTH], words[:DEPTH], whole).text
    if last == "assistant":
        begun = squeezed(text_of(messages[-1].get("content")))
        if begun and squeezed(text_of(answer.get("content"))).startswith(begun):
            messages = messages[:-1]
    return trail_of(scope, [*messages, answer]).text


_STEPS = "\0["
"""Begins the words of an answer that only calls tools."""


def asked_key(trail: Trail, messages: Sequence[Json]) -> str:
    """Hashes the question of a request: its trail and the tool results at its end.

    Equal for the same request in another wrapping.
    """
    results: list[str] = []
    for message in reversed(messages):
        if message.get("role") not in _TOOLS:
            break
        results.append(squeezed(text_of(message.get("content"))))
    hashed = hashlib.blake2b(trail.text.encode(), digest_size=16)
    for text in results:
        hashed.update(b"\0" + text.encode("utf-8", "surrogatepass"))
    return hashed.hexdigest()


def newest_question(messages: Sequence[Json]) -> str:
    """Returns the text of the user's newest message, or of the consecutive messages that form it."""
    end = len(messages)
    while end > 0 and messages[end - 1].get("role") != "user":
        end -= 1
    start = end
    while start > 0 and messages[start - 1].get("role") == "user":
        start -= 1
    return "".join(text_of(message.get("content")) for message in messages[start:end])


_TOOLS = ("tool", "function")
HIDDEN = ("system", "developer")
"""Roles that an application fills in anew for each request."""


def _gather(messages: Sequence[Json], depth: int, found: list[tuple[str, str]]) -> bool:
    """Fill `found` with (role, words), newest first; False when there are more than `depth`.

    Messages of one role that follow each other are one message. Calls of tools count only where the newest answer has
    no words: front ends drop the steps that led to an answer.
    """
    role = ""
    texts: list[str] = []
    calls: list[Json] = []
    """Of the newest answer, if it has no words: with those of the steps before it, each step is another one."""

    def close() -> None:
        nonlocal role
        if role:
            steps = "\0" + orjson.dumps([call_form(c) for c in reversed(calls)]).decode() if calls else ""
            found.append((role, "".join(reversed(texts)) + steps))
        role = ""
        texts.clear()
        calls.clear()

    for message in reversed(messages):
        kind = message.get("role")
        if kind in _TOOLS and not calls:
            close()  # answers before and after a tool's result are two
        if kind in HIDDEN or kind in _TOOLS:
            continue
        name, text = _read(message)
        if name == "a" and not text:
            newest = role != "a" and all(other != "a" for other, _ in found)
            if newest:
                close()
                role = "a"
            if newest or calls:
                calls.extend(reversed(_calls(message)))
            continue
        if name == "u" and not text:
            continue
        if name != role or calls:
            close()
            if len(found) >= depth:
                return False
            role = name
        texts.append(text)
    close()
    return True


def _read(message: Json) -> tuple[str, str]:
    """Who speaks, and the words that are compared."""
    content = message.get("content")
    text = text_of(content)
    if message.get("role") == "user":
        return "u", squeezed(user_words(text)[0] or text) or _parts(content)
    return "a", squeezed(without_reasoning(text))


def _parts(content: Any) -> str:
    """Something that stands for content without text."""
    kinds = [str(part.get("type")) for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    return "\0" + ",".join(kinds) if any(kind != "text" for kind in kinds) else ""


def _key(scope: Sequence[str | None]) -> bytes:
    return hashlib.blake2b(orjson.dumps(list(scope)), digest_size=16).digest()


def _print(key: bytes, role: str, words: str) -> str:
    body = role.encode() + words.encode("utf-8", "surrogatepass")
    return role + hashlib.blake2b(body, key=key, digest_size=8).hexdigest()[: SIZE - 1]


def squeezed(text: str) -> str:
    """Removes white space; composes Unicode (NFC)."""
    text = "".join(text.split())
    return text if text.isascii() else unicodedata.normalize("NFC", text)


# ---- tool calls


def _calls(message: Json) -> list[Json]:
    said = message.get("tool_calls")
    calls = [call for call in said if isinstance(call, dict)] if isinstance(said, list) else []
    old = message.get("function_call")
    return [*calls, {"function": old}] if isinstance(old, dict) else calls


def call_form(call: Json) -> list[str]:
    """Normalises a tool call to its name and arguments: clients renumber ids, indexes and types."""
    function = call.get("function")
    function = function if isinstance(function, dict) else call
    return [str(function.get("name") or ""), arguments_form(function.get("arguments"))]


def arguments_form(arguments: Any) -> str:
    """Normalises arguments, text or object, to JSON with sorted keys."""
    try:
        value = orjson.loads(arguments) if isinstance(arguments, str) else arguments
        return orjson.dumps(_whole_numbers(value), option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS).decode()
    except (orjson.JSONDecodeError, TypeError, RecursionError):
        return squeezed(str(arguments))


def _whole_numbers(value: Any) -> Any:
    """JavaScript writes 2.0 as 2."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, dict):
        return {name: _whole_numbers(part) for name, part in value.items()}
    return [_whole_numbers(part) for part in value] if isinstance(value, list) else value


# ---- reasoning

_TAGS = (
    "think", "thinking", "thought", "thoughts", "reasoning", "reflection", "seed:think", "antthinking", "scratchpad",
    "reason", "internal_thought", "inner_monologue",
)  # fmt: skip
_PAIRS = (
    *((f"<{tag}>", f"</{tag}>") for tag in _TAGS),
    ("[THINK]", "[/THINK]"), ("◁think▷", "◁/think▷"), ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"), ("<|channel|>analysis", "<|end|>"), (":::thinking", ":::"),
    ('<details type="', "</details>"), ("<unused94>", "<unused95>"),
)  # fmt: skip
_LEFT_OVER = (
    "<|start|>assistant", "<|channel|>final", "<|message|>", "<|return|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>",
    "<|begin_of_solution|>", "<|end_of_solution|>",
)  # fmt: skip
"""Marks of the same formats around what is shown."""


def without_reasoning(text: str) -> str:
    """Removes a model's thoughts from an answer, in any of the usual marks.

    A thought whose start mark the template wrote ends at its end mark; one without an end stays.
    """
    rest = after_reasoning(text)
    return rest if rest.strip() else text


def after_reasoning(text: str) -> str:
    """As `without_reasoning`, but "" for an answer that is only a finished thought."""
    if not ("<" in text or "THINK]" in text or "◁" in text or ":::" in text):
        return text
    rest = text
    lowered = rest.lower()
    if len(lowered) != len(rest):  # a letter whose small form is longer: positions would differ
        lowered = rest
    for start, end in _PAIRS:
        if end.lower() in lowered:
            rest, lowered = _without(rest, lowered, start.lower(), end.lower())
    for mark in _LEFT_OVER:
        rest = rest.replace(mark, "")
    return rest


def in_thought(text: str, *, opened: bool = False) -> bool:
    """True when an answer ends inside of a thought; `opened` when the template has written the start mark already."""
    rest = after_reasoning(text)
    start = rest.lstrip().lower()
    return (opened and rest == text) or any(start.startswith(mark.lower()) for mark, _ in _PAIRS)


def opens_thought(header: str) -> bool:
    """True when a text of the template, read to its end, has just opened a thought."""
    return header.rstrip().lower().endswith(tuple(mark.lower() for mark, _ in _PAIRS))


def _without(text: str, lowered: str, start: str, end: str) -> tuple[str, str]:
    """Take out every [start .. end]; an end before any start takes all that is before it, but for plain fences."""
    kept: list[tuple[int, int]] = []
    at = 0
    first_end, first_start = lowered.find(end), lowered.find(start)
    if end.startswith("</") and end != "</details>" and (first_start < 0 or first_end < first_start):
        at = first_end + len(end)
    while (opened := lowered.find(start, at)) >= 0 and (closed := lowered.find(end, opened + len(start))) >= 0:
        kept.append((at, opened))
        at = closed + len(end)
    kept.append((at, len(text)))
    return "".join(text[a:b] for a, b in kept), "".join(lowered[a:b] for a, b in kept)
