"""What a user kept, changed and removed of a draft. Pure; knows nothing of feedback."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from dataclasses import dataclass

EXACT_WORDS = 2000
"""Above this many words between the first and the last change their order is not looked at: the cost stays linear."""

_UNITS = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]|\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a draft. `share` is the share of words (characters for Chinese and Japanese) that are not common
    to both texts: 0.0 the same but for white space, 1.0 nothing in common. `spans` are the characters [start, end)
    of the draft that were changed or removed, in order; an empty span is a place where something was put in."""

    share: float
    spans: tuple[tuple[int, int], ...] = ()


def align(draft: str, final: str) -> Change:
    """What a user kept, changed and removed of `draft` on the way to `final`, word by word."""
    found = list(_UNITS.finditer(draft))
    before, after = [m.group() for m in found], _UNITS.findall(final)
    if before == after:
        moved = _indented(draft, final)
        return Change(len(moved) / max(len(before), len(moved), 1), moved)
    first = _alike(before, after)
    last = _alike(before[first:][::-1], after[first:][::-1])
    inner, left = before[first : len(before) - last], after[first : len(after) - last]
    if max(len(inner), len(left)) > EXACT_WORDS:
        common = first + last + sum((Counter(inner) & Counter(left)).values())
        return Change(_share(common, before, after), _by_words(found[first : len(found) - last], Counter(left)))
    return _middle(draft, found, before, after, first, last)


def _alike(one: list[str], other: list[str]) -> int:
    """How many words both begin with."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _indented(draft: str, final: str) -> tuple[tuple[int, int], ...]:
    """The leading white space of lines of code whose indentation alone was changed; () for prose."""
    if not re.search(r"^(?: {2,}|\t)\S|```", f"{draft}\n{final}", re.MULTILINE):
        return ()
    lines = [m for m in re.finditer(r"^([ \t]*)\S.*$", draft, re.MULTILINE)]
    others = re.findall(r"^([ \t]*)\S.*$", final, re.MULTILINE)
    if len(lines) != len(others):
        return ()
    # The first line's is not known: what surrounds a whole text is cut off on the way here.
    return tuple(m.span(1) for m, other in list(zip(lines, others, strict=True))[1:] if m.group(1) != other)


def _middle(
    draft: str, found: list[re.Match[str]], before: list[str], after: list[str], first: int, last: int
) -> Change:
    """Long texts that differ in a short part only: that part is aligned word by word."""
    inner, left = before[first : len(before) - last], after[first : len(after) - last]
    matcher = difflib.SequenceMatcher(None, inner, left, autojunk=False)
    common, spans = first + last, []
    for what, start, end, _, _ in matcher.get_opcodes():
        if what == "equal":
            common += end - start
        else:
            spans.append(_characters(draft, found, first + start, first + end))
    return Change(_share(common, before, after), tuple(spans))


def changed_share(draft: str, final: str) -> float:
    """`align(draft, final).share`."""
    return align(draft, final).share


def _share(common: int, before: list[str], after: list[str]) -> float:
    share = 1.0 - 2.0 * common / (len(before) + len(after))
    return share if share > 0 else 1.0 / (len(before) + len(after))


def _characters(draft: str, found: list[re.Match[str]], start: int, end: int) -> tuple[int, int]:
    if start < end:
        return found[start].start(), found[end - 1].end()
    place = found[start].start() if start < len(found) else len(draft)
    return place, place


def _by_words(found: list[re.Match[str]], left: Counter[str]) -> tuple[tuple[int, int], ...]:
    """Long texts: each word of the draft that the final text has fewer of is a change, whatever the order."""
    spans: list[tuple[int, int]] = []
    for match in found:
        if left[match.group()] > 0:
            left[match.group()] -= 1
        elif spans and match.start() - spans[-1][1] <= 1:
            spans[-1] = (spans[-1][0], match.end())
        else:
            spans.append(match.span())
    return tuple(spans)
