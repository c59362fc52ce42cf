"""Near duplicates by MinHash: the 32 smallest hashes of a text's word triples (a bottom-k sketch, Broder 1997).

Owns the sketch and the index in memory; never reads a store. Two sketches share about as much as the texts do
(Jaccard similarity; standard error 0.06 at 0.85).
"""

from __future__ import annotations

import base64
from array import array
from zlib import crc32

SIZE = 32
"""Hashes kept of a text."""
LOOKED_UP = 6
"""The smallest hashes by which a sketch is found: near duplicates share at least one of them almost surely."""
FEW = 12
"""Texts with fewer triples are duplicates only when they are equal."""

Sketch = tuple[int, ...]


def sketch_of(*texts: str, limits: tuple[int, ...]) -> Sketch:
    """The sketch of several texts together, of each the first `limits` characters; ascending 32-bit numbers.

    Hashes of tuples of integers are the same in every CPython of 64 bits, so that sketches can be kept.
    """
    joined = " | ".join(t[:limit] for t, limit in zip(texts, limits, strict=True)).lower()
    words = joined.encode("utf-8", "replace").split()
    if len(words) * 12 < len(joined):  # a script without spaces
        words = [c.encode("utf-8", "replace") for c in joined]
    codes = list(map(crc32, words))
    triples = list(map(hash, zip(codes, codes[1:], codes[2:], strict=False))) or [hash(tuple(codes))]
    # Hashes are spread evenly: below this bound lie about half as many again as are kept, and only these are sorted.
    bound = (SIZE * 3 // 2 << 32) // len(triples)
    small = {low for t in triples if (low := t & 0xFFFFFFFF) < bound}
    if len(small) < SIZE and bound < 1 << 32:
        small = {t & 0xFFFFFFFF for t in triples}
    return tuple(sorted(small)[:SIZE])


def packed(sketch: Sketch) -> str:
    """As text for a record."""
    return base64.b64encode(array("I", sketch).tobytes()).decode()


def unpacked(text: str) -> Sketch:
    """Inverse of `packed`; empty for a text that is none."""
    try:
        return tuple(array("I", base64.b64decode(text)))
    except ValueError:
        return ()


def similarity(one: Sketch, two: Sketch) -> float:
    """Estimated Jaccard similarity."""
    if one == two:
        return 1.0
    if len(one) < FEW or len(two) < FEW:
        return 0.0
    size = min(len(one), len(two))
    smallest = sorted({*one, *two})[:size]
    return len(set(one).intersection(two, smallest)) / size


class Index:
    """Sketches seen so far, each within its group (a user): who says it twice repeats himself, two who say the same
    agree."""

    def __init__(self) -> None:
        self._at: dict[str | None, dict[int, tuple[str, Sketch]]] = {}

    def add(self, name: str, group: str | None, sketch: Sketch) -> None:
        """Remember a text by its name."""
        self._at.setdefault(group, {}).update(dict.fromkeys(sketch[:LOOKED_UP], (name, sketch)))

    def nearest(self, name: str, group: str | None, sketch: Sketch) -> tuple[str, float] | None:
        """(name, similarity) of the most similar other text of the group that shares a look-up hash."""
        known = self._at.get(group, {})
        seen = {known[key] for key in sketch[:LOOKED_UP] if key in known}
        rated = [(similarity(sketch, other), who) for who, other in seen if who != name]
        if not rated:
            return None
        best, who = max(rated)
        return who, best
