"""Lays out sequences with common prefixes so that each token is read once, and groups rows that share prefixes.

A sequence becomes a segment: the tokens that no earlier one has, after a path of ranges that others have laid out.
Answers to one prompt share it; a turn of a conversation goes on after the turns before it. Reads no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from afterword.model.attention_kernel import Ranges

Ids = Sequence[int]
Root = tuple[int, Ranges]
"""Where a sequence goes on after another row: the sequence there and its tokens."""
NOWHERE: Root = (0, ())


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """Segments of a row, in order, and where each sequence stands."""

    ids: list[int]
    """[T]"""
    sizes: tuple[int, ...]
    """Tokens of each segment."""
    prefixes: tuple[Ranges, ...]
    """For each segment the tokens of the row that it goes on after."""
    roots: tuple[Root, ...]
    """For each segment, where it and its prefix go on after another row."""
    paths: tuple[Ranges, ...]
    """For each sequence its tokens in the row."""


def tree_of(sequences: Sequence[Ids], roots: Sequence[Root] | None = None) -> PrefixTree:
    """Lay out sequences with every common prefix once.

    Args:
        sequences: Ids of each.
        roots: Where each goes on after another row; only sequences of one root share tokens.
    """
    places = list(roots) if roots is not None else [NOWHERE] * len(sequences)
    whole = [tuple(one) for one in sequences]
    ids: list[int] = []
    sizes: list[int] = []
    prefixes: list[Ranges] = []
    starts: list[Root] = []
    paths: dict[int, Ranges] = {}
    last: int | None = None
    # In this order the longest prefix that a sequence shares with any before it is that with the last.
    for i in sorted(range(len(whole)), key=lambda i: (places[i], whole[i])):
        same = 0 if last is None or places[last] != places[i] else common(whole[last], whole[i])
        prefix = first_tokens(paths[last], same) if last is not None and same else ()
        rest = whole[i][same:]
        if rest or not prefix:
            own = (len(ids), len(ids) + len(rest))
            ids += rest
            sizes.append(len(rest))
            prefixes.append(prefix)
            starts.append(places[i])
            prefix = _joined(prefix, own)
        paths[i], last = prefix, i
    return PrefixTree(ids, tuple(sizes), tuple(prefixes), tuple(starts), tuple(paths[i] for i in range(len(whole))))


def common(first: Ids, second: Ids) -> int:
    """Length of the common prefix."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def first_tokens(path: Ranges, size: int) -> Ranges:
    """The first `size` tokens of a path."""
    found = []
    for start, end in path:
        if size <= 0:
            break
        found.append((start, min(end, start + size)))
        size -= end - start
    return tuple(found)


def _joined(path: Ranges, own: tuple[int, int]) -> Ranges:
    if path and path[-1][1] == own[0]:
        return (*path[:-1], (path[-1][0], own[1]))
    return (*path, own)


TOGETHER = 4
"""Most tokens of a group whose sequences share a prefix, as a multiple of the budget: divided they would be read
again."""


def shared_groups(sequences: Sequence[Ids], longest: Sequence[int], budget: int) -> tuple[list[list[int]], list[int]]:
    """Group sequences that share at least half of the shorter one with a neighbour, each shared token counted once.

    Args:
        sequences: Ids of each as the student reads it.
        longest: Tokens of each on the side that reads most.
        budget: Tokens; a group may have `TOGETHER` times as many.

    Returns:
        Groups of indices with two or more members, and the indices of all other sequences.
    """
    whole = [tuple(one) for one in sequences]
    groups: list[list[int]] = []
    size, last = 0, -1
    for i in sorted(range(len(whole)), key=lambda i: (whole[i], i)):
        same = common(whole[last], whole[i]) if last >= 0 else 0
        near = last >= 0 and 2 * same >= min(len(whole[last]), len(whole[i]))
        new = len(whole[i]) - same + max(0, longest[i] - len(whole[i])) if near else longest[i]
        if near and size + new <= TOGETHER * budget:
            groups[-1].append(i)
            size += new
        else:
            groups.append([i])
            size = longest[i]
        last = i
    return [sorted(g) for g in groups if len(g) > 1], sorted(i for g in groups if len(g) == 1 for i in g)
