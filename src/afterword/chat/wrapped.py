"""Extracts the user's words from a message that a front end filled with retrieved text.

Owns the forms of these wrappers ("Use the following context ... <query>...</query>"). Pure; never interprets the words.
"""

from __future__ import annotations

import re
from bisect import bisect_right

_QUERY = ("user_query", "userquery", "user_question", "userrequest", "user_request", "user_message", "raw_query")
"""Elements that no person writes: their content is what was asked."""
_ASKED = (*_QUERY, "query", "question", "request")
"""Elements that are the question when the message has an element of context as well."""
_CONTEXT = (
    "context", "contexts", "documents", "document", "sources", "source", "search_results", "search_result",
    "web_search_results", "results", "retrieved_context", "files", "files_info", "file", "attachments", "attachment",
    "attached_files", "attachment_file", "knowledge", "passages", "chunks", "excerpts", "context.instruction",
    "environment_details", "additional_data", "memories", "knowledge_base",
)  # fmt: skip
_KNOWN = frozenset((*_ASKED, *_CONTEXT))
_MOST_MARKS = 5000
"""A message with more of them is no text that somebody retrieved."""
_MARK = re.compile(r"</?([a-zA-Z_.]{4,24})(?:\s[^<>]{0,400})?>")
_COMMENTS = re.compile(r"<!--[^<>]{0,200}-->")
_ORDER = re.compile(
    r"\b(?:us(?:e|ing)|based on|given|according to|consider|refer to|below (?:is|are)|here (?:is|are)|following)\b"
    r"[^\n]{0,160}\b(?:context|sources?|documents?|passages?|excerpts?|information|search results|web results|"
    r"knowledge|files?|code|references?|snippets?)\b",
    re.IGNORECASE,
)
_CONTEXT_LABEL = re.compile(
    r"^[#*\s]{0,8}(?:retrieved |relevant |additional |web |search )?"
    r"(?:context|sources|documents|passages|search results|information|references|reference material)\b"
    r"[^\n]{0,60}:[* ]*$"
    r"|^[#*\s]{0,8}(?:context|sources|documents)[* ]*:",
    re.IGNORECASE | re.MULTILINE,
)
_ASKED_LABEL = re.compile(
    r"^[#*>\s]{0,8}(?:(?:the |my |current |actual |original |new )?(?:user(?:'s|’s)? )?"
    r"(?:question|query|request|message|input|prompt)(?: is)?(?: below)?)[* ]*[:：][* ]*",
    re.IGNORECASE | re.MULTILINE,
)
_ANSWER_LABEL = re.compile(
    r"\n[#*\s]{0,8}(?:helpful |your |final )?(?:answer|response)[* ]*[:：][*\s]*$", re.IGNORECASE
)
_CODE_ABOVE = re.compile(
    r"```[^\S\n]*\n\s*use the above [^\n]{0,60}(?:answer|question)[^\n]{0,60}?[:.][ \n]+", re.IGNORECASE
)
_NEAR_START = 600
"""Characters in which a wrapper says what it is."""


def user_words(text: str) -> tuple[str, bool]:
    """Extracts the user's words.

    Returns:
        The words, and whether they are certain. A message without a wrapper is returned unchanged; ("", False) when it
            holds retrieved text and the words cannot be located.
    """
    if len(text) < 24 or not _may_be_wrapped(text):
        return text, True
    spans = _elements(text)
    asked = [text[start:end] for name, _, start, end, _ in spans if name in _ASKED]
    context = [span for span in spans if span[0] in _CONTEXT]
    named = [text[start:end] for name, _, start, end, _ in spans if name in _QUERY]
    if named or (asked and context):
        inner = (named or asked)[-1].strip()
        return (user_words(inner)[0], True) if inner else ("", False)
    if context:
        return _outside(text, context)
    return _labelled(text)


def words_like(then: str, shown: str, now: str) -> str | None:
    """Extracts the user's words from `now` by an example of the same wrapper.

    Args:
        then: A wrapped message.
        shown: Its words.
        now: Another message in the same wrapper.

    Returns:
        None when the marks around the words cannot be separated from retrieved text.
    """
    shown = shown.strip()
    at = then.rfind(shown)
    if at < 0 or not shown:
        return None
    before, after = then[:at], then[at + len(shown) :].strip()
    start, end = 0, len(now)
    if before.strip():
        mark = before[before.rstrip().rfind("\n") + 1 :]
        found = now.rfind(mark)
        if found < 0 or (mark.rstrip()[-1:].isalnum() and len(mark.strip()) < _SHORT_MARK):
            return None
        start = found + len(mark)
    if after:
        mark = after.split(None, 1)[0]
        end = now.find(mark, start)
        if end < 0 or (mark[0].isalnum() and mark[-1] not in ":："):
            return None
    return now[start:end].strip() or None


_SHORT_MARK = 8
"""Characters of a line of plain words that are too few to be a part of a wrapper."""


def _may_be_wrapped(text: str) -> bool:
    return "<" in text or ":" in text or "：" in text or "```" in text


def _elements(text: str) -> list[tuple[str, int, int, int, int]]:
    """(name, start, start of the content, its end, end) of known elements that lie in no other one.

    One pass over the marks; a start without an end is text.
    """
    if "</" not in text:
        return []
    marks: list[tuple[str, re.Match[str]]] = []
    for mark in _MARK.finditer(text):
        if (name := mark.group(1).lower()) in _KNOWN:
            marks.append((name, mark))
            if len(marks) > _MOST_MARKS:
                return []
    ends: dict[str, list[int]] = {}
    for number, (name, mark) in enumerate(marks):
        if mark.group().startswith("</"):
            ends.setdefault(name, []).append(number)
    found: list[tuple[str, int, int, int, int]] = []
    number = 0
    while number < len(marks):
        name, mark = marks[number]
        last = _end_of(ends.get(name, ()), number, single=name in _ASKED)
        if mark.group().startswith("</") or last is None:
            number += 1
            continue
        found.append((name, mark.start(), mark.end(), marks[last][1].start(), marks[last][1].end()))
        number = last + 1
    return found


def _end_of(ends: list[int] | tuple[int, ...], start: int, *, single: bool) -> int | None:
    """The end that belongs to a start: retrieved text may itself hold such marks, so the last one ends a context."""
    if not ends or ends[-1] <= start:
        return None
    return ends[bisect_right(ends, start)] if single else ends[-1]


def _outside(text: str, context: list[tuple[str, int, int, int, int]]) -> tuple[str, bool]:
    """The words beside elements of context: those behind the last one, or before the first one."""
    after = _COMMENTS.sub("", text[context[-1][4] :]).strip()
    before = _COMMENTS.sub("", text[: context[0][1]]).strip()
    if after:
        label = _last(_ASKED_LABEL, after)
        words = _ANSWER_LABEL.sub("", "\n" + after[label.end() :] if label else "\n" + after).strip()
        return (words, True) if words else ("", False)
    if not before or (_ORDER.search(before[:_NEAR_START]) and _last(_ASKED_LABEL, before) is None):
        return "", False  # an instruction and its passages: the question is elsewhere
    label = _last(_ASKED_LABEL, before)
    words = before[label.end() :].strip() if label else before
    return (words, True) if words else ("", False)


def _labelled(text: str) -> tuple[str, bool]:
    """Words behind a label, in a message that begins by saying what its context is for."""
    if code := _last(_CODE_ABOVE, text):
        words = text[code.end() :].strip()
        return (words, True) if words else ("", False)
    head = text[:_NEAR_START]
    context = _CONTEXT_LABEL.search(text)
    if not _ORDER.search(head) or (context is None and "\n---" not in text and "\n===" not in text):
        return text, True
    label = _last(_ASKED_LABEL, text)
    if label is None:
        return "", False
    rest = text[label.end() :]
    following = _CONTEXT_LABEL.search(rest)
    words = rest[: following.start()] if following else _ANSWER_LABEL.sub("", "\n" + rest)
    return (words.strip(), True) if words.strip() else ("", False)


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = None
    for match in pattern.finditer(text):
        found = match
    return found
