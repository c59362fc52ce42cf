"""Finds near duplicates by MinHash: the 32 smallest hashes of a text's word triples (a bottom-k sketch, Broder 1997).

Two sketches share about as much as the texts do (Jaccard similarity; standard error 0.06 at 0.85). The hash of a triple
is the CRC-32 (zlib's) of its UTF-8 words joined by blanks, so that sketches mean the same in every Python.
"""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Callable, Iterable
from zlib import crc32

SIZE = 32
"""Hashes kept of a text."""
LOOKED_UP = 6
"""The smallest hashes by which a sketch is found: near duplicates share at least one of them almost surely."""
FEW = 12
"""Texts with fewer triples are duplicates only when they are equal."""

Sketch = tuple[int, ...]
_CRC = "crc:"
"""Marks a stored sketch of this hash. Without it an older version wrote the sketch: `old_sketch_of`."""


def sketch_of(*texts: str, limits: tuple[int, ...]) -> Sketch:
    """The sketch of several texts together.

    Args:
        texts: What is compared.
        limits: How many characters of each text count.

    Returns:
        At most SIZE ascending 32-bit numbers.
    """
    words = _words(texts, limits)
    triples = list(map(crc32, map(b" ".join, zip(words, words[1:], words[2:], strict=False))))
    return _smallest(triples or [crc32(b" ".join(words))])


def old_sketch_of(*texts: str, limits: tuple[int, ...]) -> Sketch:
    """The same by the hash of older versions, CPython's of a tuple: for comparison with what they stored."""
    codes = list(map(crc32, _words(texts, limits)))
    return _smallest(list(map(hash, zip(codes, codes[1:], codes[2:], strict=False))) or [hash(tuple(codes))])


def _words(texts: Iterable[str], limits: tuple[int, ...]) -> list[bytes]:
    joined = " | ".join(t[:limit] for t, limit in zip(texts, limits, strict=True)).lower()
    words = joined.encode("utf-8", "replace").split()
    if len(words) * 12 < len(joined):  # a script without spaces
        words = [c.encode("utf-8", "replace") for c in joined]
    return words


def _smallest(triples: list[int]) -> Sketch:
    # Hashes are spread evenly: below this bound lie about half as many again as are kept, and only these are sorted.
    bound = (SIZE * 3 // 2 << 32) // len(triples)
    small = {low for t in triples if (low := t & 0xFFFFFFFF) < bound}
    if len(small) < SIZE and bound < 1 << 32:
        small = {t & 0xFFFFFFFF for t in triples}
    return tuple(sorted(small)[:SIZE])


def packed(sketch: Sketch) -> str:
    """As text for a record: little-endian 32-bit numbers in base64, behind the mark of their hash."""
    return _CRC + base64.b64encode(_little(array("I", sketch)).tobytes()).decode() if sketch else ""


def unpacked(text: str) -> Sketch:
    """Inverse of `packed`, also for sketches of older versions; empty for an invalid text."""
    try:
        return tuple(_little(array("I", base64.b64decode(text.removeprefix(_CRC)))))
    except ValueError:
        return ()


def is_old(text: str) -> bool:
    """Did an older version store this sketch, by its hash?"""
    return not text.startswith(_CRC)


def _little(numbers: array[int]) -> array[int]:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def similarity(one: Sketch, two: Sketch) -> float:
    """Estimated Jaccard similarity."""
    if one == two:
        return 1.0
    if len(one) < FEW or len(two) < FEW:
        return 0.0
    size = min(len(one), len(two))
    smallest = sorted({*one, *two})[:size]
    return len(set(one).intersection(two, smallest)) / size


class DuplicateIndex:
    """Sketches seen so far, each within its group (a user): who says it twice repeats himself, two who say the same
    agree."""

    def __init__(self) -> None:
        self._at: dict[str | None, dict[int, tuple[str, Sketch]]] = {}
        self._old: dict[str | None, dict[int, tuple[str, Sketch]]] = {}
        """Sketches of older versions, which only theirs are compared with."""

    def add(self, name: str, group: str | None, sketch: Sketch, *, old: bool = False) -> None:
        """Remember a text by its name. `old`: an older version stored its sketch."""
        index = self._old if old else self._at
        index.setdefault(group, {}).update(dict.fromkeys(sketch[:LOOKED_UP], (name, sketch)))

    def nearest(
        self, name: str, group: str | None, sketch: Sketch, old_sketch: Callable[[], Sketch] = lambda: ()
    ) -> tuple[str, float] | None:
        """Finds the most similar other text of a group among those that share a look-up hash.

        Args:
            name: The text, which is not compared with itself.
            group: Whose texts are searched.
            sketch: Its sketch.
            old_sketch: Makes its sketch by the older hash; called only when the group has such sketches.

        Returns:
            (name, similarity), None without one.
        """
        rated = _rated(name, sketch, self._at.get(group, {}))
        if older := self._old.get(group):
            rated += _rated(name, old_sketch(), older)
        if not rated:
            return None
        best, who = max(rated)
        return who, best


def _rated(name: str, sketch: Sketch, known: dict[int, tuple[str, Sketch]]) -> list[tuple[float, str]]:
    seen = {known[key] for key in sketch[:LOOKED_UP] if key in known}
    return [(similarity(sketch, other), who) for who, other in seen if who != name]
