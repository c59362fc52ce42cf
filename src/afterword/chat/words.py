"""Splits text of any script into words, for comparisons.

Scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) give one unit for each character with its marks; a
run of units counts as fewer words than it has units. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1a20-\u1aaf\u2e80-\u2fdf\u3005-\u3007\u3021-\u30fa\u30fc-\u30ff"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
"""Characters, as the inside of a class of a regular expression, of scripts that put no spaces between words."""
_CLUSTER = (
    "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u102b-\u103e\u17b4-\u17d3\u3099\u309a\uff9e\uff9f"
)
"""Marks that belong to the character before them."""
_MARKS = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed"
    "\u0900-\u0903\u093a-\u094f\u0981-\u0dff"
)
"""Marks inside of words of scripts with spaces (Hebrew, Arabic, those of India), which `\\w` leaves out."""
_UNIT = rf"[{UNSPACED}][{_CLUSTER}]*|[^\W{UNSPACED}](?:[^\W{UNSPACED}]|[{_MARKS}])*"
UNITS = re.compile(_UNIT)
"""Words, and characters of scripts without spaces."""
UNITS_AND_SIGNS = re.compile(rf"{_UNIT}|[^\w\s]")
"""The same, and every other sign that shows."""
_CHARACTERS = re.compile(rf"[{UNSPACED}][{_CLUSTER}]*|[^{UNSPACED}]+")
_HAS_UNSPACED = re.compile(rf"[{UNSPACED}]")


def words(text: str) -> list[str]:
    """Returns lower-case words without signs; characters of scripts without spaces."""
    return [unit.casefold() for unit in UNITS.findall(text)]


def parts(text: str) -> list[str]:
    """Splits at white space, keeps signs and capitals; characters of scripts without spaces."""
    if text.isascii() or not _HAS_UNSPACED.search(text):
        return text.split()
    return [one for part in text.split() for one in _CHARACTERS.findall(part)]


def runs(units: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    """Yields the shortest runs of `units` that hold `length` words, one for each start.

    An English word counts as about 1.4 Chinese characters, 2 Japanese kana or 3.3 Thai characters.
    """
    sizes = [_size(unit) for unit in units]
    end = held = 0
    for start, size in enumerate(sizes):
        while end < len(sizes) and held < 10 * length:
            held += sizes[end]
            end += 1
        if held < 10 * length:
            return
        yield tuple(units[start:end])
        held -= size


def quotes(text: str, source: str, known: str, length: int) -> bool:
    """True when `text` repeats `length` consecutive words of `source` that are not consecutive in `known`."""
    shared = set(runs(words(source), length)).intersection(runs(words(text), length))
    return bool(shared) and not shared.issubset(runs(words(known), length))


_HANGUL = re.compile("[\uac00-\ud7a3]")


def mentions(text: str, name: str) -> bool:
    """True when `text` names a thing, as a word of its own or in an English inflection: "sails" names "sail", but
    "been" does not name "bee". In scripts without spaces, and in Korean, whose particles follow the word, anywhere."""
    text, name = text.casefold(), name.casefold()
    if _HAS_UNSPACED.search(name) or _HANGUL.search(name):
        return name in text
    return re.search(rf"(?<!\w){re.escape(name)}(?:s|es|ed|ing)?(?!\w)", text) is not None


def _size(unit: str) -> int:
    """Tenths of a word that a unit counts as."""
    first = unit[0]
    if first < "\u0e00" or not _HAS_UNSPACED.match(first):
        return 10
    if first < "\u2e80":
        return 3
    return 5 if "\u3021" <= first <= "\u31ff" or "\uff66" <= first <= "\uff9f" else 7
