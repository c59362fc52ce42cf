"""Aligns a draft with the user's edit: kept, changed and removed words. Pure; knows nothing of feedback."""

from __future__ import annotations

import bisect
import difflib
import itertools
import re
from collections import Counter
from dataclasses import dataclass

from afterword.chat.words import UNITS_AND_SIGNS

EXACT_WORDS = 2000
"""Stretches of more words than this are first cut where `RUN` words in a row stand once in both texts, in the same
order. Of a stretch that is longer still only neighbours are compared, so that the cost stays linear."""
RUN = 3
"""Words in a row by which two long texts are held together."""


@dataclass(frozen=True, slots=True)
class Change:
    """Changes between a draft and its final text. `share` is the share of words (characters of scripts without spaces)
    that are not common
    to both texts: 0.0 the same but for white space, 1.0 nothing in common. `spans` are the characters [start, end)
    of the draft that were changed or removed, in order; an empty span is a place where something was put in."""

    share: float
    spans: tuple[tuple[int, int], ...] = ()


def align(draft: str, final: str) -> Change:
    """Aligns `draft` with `final` word by word: kept, changed and removed words."""
    found = list(UNITS_AND_SIGNS.finditer(draft))
    before, after = [m.group() for m in found], UNITS_AND_SIGNS.findall(final)
    if before == after:
        moved = _indented(draft, final)
        return Change(len(moved) / max(len(before), len(moved), 1), moved)
    first = _alike(before, after)
    last = _alike(before[first:][::-1], after[first:][::-1])
    inner, left = before[first : len(before) - last], after[first : len(after) - last]
    anchors = _anchors(inner, left) if max(len(inner), len(left)) > EXACT_WORDS else []
    common, spans, a, c = first + last + len(anchors), list[tuple[int, int]](), 0, 0
    for b, d in (*anchors, (len(inner), len(left))):
        same, changed = _stretch(draft, found, first + a, inner[a:b], left[c:d])
        common, a, c = common + same, b + 1, d + 1
        spans += changed
    return Change(_share(common, before, after), tuple(spans))


def _anchors(before: list[str], after: list[str]) -> list[tuple[int, int]]:
    """Places of the same word in both texts, rising in both, as many as there are: of those that begin `RUN` words
    that stand once in each (the "patience" alignment of Bram Cohen)."""
    once = [{run: n for run, n in _runs(text).items() if n >= 0} for text in (before, after)]
    pairs = sorted((n, once[1][run]) for run, n in once[0].items() if run in once[1])
    ends: list[int] = []  # the smallest place in `after` at which a rising chain of each length ends
    chain: list[tuple[int, int]] = []  # for each pair: how long the chain is that it ends
    for _, place in pairs:
        length = bisect.bisect_left(ends, place)
        ends[length : length + 1] = [place]
        chain.append((length, place))
    found: list[tuple[int, int]] = []
    length, below = len(ends) - 1, len(after)
    for (n, place), (mine, _) in zip(reversed(pairs), reversed(chain), strict=True):
        if mine == length and place < below:
            found.append((n, place))
            length, below = length - 1, place
    return found[::-1]


def _runs(words: list[str]) -> dict[tuple[str, ...], int]:
    """Each run of words with its place, -1 when it stands there more than once."""
    found: dict[tuple[str, ...], int] = {}
    for n in range(len(words) - RUN + 1):
        run = tuple(words[n : n + RUN])
        found[run] = -1 if run in found else n
    return found


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


def _stretch(
    draft: str, found: list[re.Match[str]], at: int, before: list[str], after: list[str]
) -> tuple[int, list[tuple[int, int]]]:
    """How many words a stretch of both texts has in common, and what was changed of the draft: word by word."""
    if max(len(before), len(after)) > EXACT_WORDS:
        return _by_neighbours(found[at : at + len(before)], before, Counter(itertools.pairwise(after)))
    common, spans = 0, []
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for what, start, end, _, _ in matcher.get_opcodes():
        if what == "equal":
            common += end - start
        else:
            spans.append(_characters(draft, found, at + start, at + end))
    return common, spans


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


def _by_neighbours(
    found: list[re.Match[str]], before: list[str], left: Counter[tuple[str, str]]
) -> tuple[int, list[tuple[int, int]]]:
    """Long stretches that nothing holds together: a word is kept where the final text has it beside the same
    neighbour as often; so a text that says the same thing again and again is not all new, and another text is."""
    kept = bytearray(len(before))
    for n, pair in enumerate(itertools.pairwise(before)):
        if left[pair] > 0:
            left[pair] -= 1
            kept[n] = kept[n + 1] = 1
    spans: list[tuple[int, int]] = []
    for n, match in enumerate(found):
        if not kept[n]:
            joined = bool(spans) and n > 0 and not kept[n - 1]
            spans[-1:] = [(spans[-1][0], match.end())] if joined else [*spans[-1:], match.span()]
    return sum(kept), spans
