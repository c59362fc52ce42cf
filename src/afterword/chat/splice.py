"""Inserts the difference between two renderings of a prompt into the prompt that was served.

A served prompt is known by its ids and may differ from today's rendering (a date, the order of tool schemas). The
teacher reads the same ids plus the difference, placed where it belongs.
"""

from __future__ import annotations

from collections.abc import Sequence

BESIDE = 8
"""Ids around the place of the difference that must be the same in what was served, where neither side of it is."""

AROUND = 256
"""Ids on either side of such a run that are compared when it stands in several places."""

Ids = Sequence[int]


def spliced(plain: Ids, extended: Ids, served: Ids) -> tuple[int, ...] | None:
    """Adds to `served` the difference between the renderings `plain` and `extended`.

    Args:
        plain: Ids of the conversation in today's rendering.
        extended: Ids of the same conversation with more text in one place.
        served: Ids of the served prompt.

    Returns:
        The new ids; None when the place of the difference is not found or ambiguous.
    """
    plain, extended, served = tuple(plain), tuple(extended), tuple(served)
    if served == plain:
        return extended
    start = _common(plain, extended)
    end = _common(plain[start:][::-1], extended[start:][::-1])  # never over what stands before the difference
    old, new = plain[start : len(plain) - end], extended[start : len(extended) - end]
    behind, before = (*old, *plain[len(plain) - end :]), (*plain[:start], *old)
    if end and served[max(0, len(served) - len(behind)) :] == behind:
        return (*served[: len(served) - len(behind)], *new, *behind[len(old) :])
    if start and served[: len(before)] == before:
        return (*before[:start], *new, *served[len(before) :])
    return _inside(plain, served, start, old, new)


def _inside(plain: Ids, served: Ids, start: int, old: Ids, new: Ids) -> tuple[int, ...] | None:
    """Both ends differ: the place is where a run of ids around it is the same, of several runs the one with the most
    ids in common around it. None without a run, and where two are equally good."""
    low, high = max(0, start - BESIDE), min(len(plain), start + len(old) + BESIDE)
    run = plain[low:high]
    shared = {
        at: _common(served[max(0, at - AROUND) : at][::-1], plain[max(0, low - AROUND) : low][::-1])
        + _common(served[at + len(run) : at + len(run) + AROUND], plain[high : high + AROUND])
        for at in range(len(served) - len(run) + 1)
        if served[at : at + len(run)] == run
    }
    most = max(shared.values(), default=0)
    best = [at for at, number in shared.items() if number == most]
    if len(best) != 1:
        return None
    at = best[0] + start - low
    return (*served[:at], *new, *served[at + len(old) :])


def _common(one: Ids, other: Ids) -> int:
    """Length of the common beginning."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))
