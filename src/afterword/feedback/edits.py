"""What a user kept, changed and removed of a draft. Pure; knows nothing of feedback."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from dataclasses import dataclass

EXACT_WORDS = 2000
"""Above this many words the order of words is not looked at, so that the cost stays linear."""

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
        return Change(0.0)
    if max(len(before), len(after)) > EXACT_WORDS:
        common = sum((Counter(before) & Counter(after)).values())
        return Change(_share(common, before, after), _by_words(found, Counter(after)))
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    common, spans = 0, []
    for what, start, end, _, _ in matcher.get_opcodes():
        if what == "equal":
            common += end - start
        else:
            spans.append(_characters(draft, found, start, end))
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
