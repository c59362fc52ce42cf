"""Searches a text for lists of phrases, each a regular expression, without trying every position of the text.

A phrase begins with a word, or with a Chinese, Japanese or Korean character. The words of the text are looked up among
the beginnings of the phrases, and a list is compared only where one of its phrases can begin. The results are those of
`re`. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

CJK_RANGES = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
"""Kana, Chinese characters and Hangul, for a character class."""
CJK = re.compile(f"[{CJK_RANGES}]")
WORD_START = rf"(?<![^\W_{CJK_RANGES}])"
"""Where a phrase may begin: not behind a letter or digit, but behind Chinese, Japanese and Korean characters."""
KEY = 4
"""Characters of the beginning of a word, at most."""
LENGTHS, MOST = (14, 10, 7, KEY), 40
"""Characters of the beginning of a phrase: the first length that gives at most so many beginnings."""
SHORT = 60
"""Characters from which an index pays."""
CACHED = 128
"""Indexes in memory: the parts of some recent messages."""
_WORD = re.compile(rf"[^\W_{CJK_RANGES}]+|[{CJK_RANGES}]")
_DIGIT = re.compile(r"\d")
_END = "\0"
"""Stands for the end of a word in a beginning; no message holds it in a place of its own."""


@dataclass(frozen=True, slots=True)
class TextIndex:
    """The words of a text, by their beginnings."""

    keyed: str
    """The text with "0" in place of each digit."""
    words: tuple[set[str], ...]
    """The words of `keyed`, and the first 1 to `KEY` characters of each. A Chinese, Japanese or Korean character is a
    word."""


@lru_cache(maxsize=CACHED)
def index_of(text: str) -> TextIndex:
    """Indexes a text; recent ones are cached."""
    keyed = _DIGIT.sub("0", text)
    words = set(_WORD.findall(keyed))
    prefixes = [{word[:KEY] for word in words}]
    for size in range(KEY - 1, 0, -1):
        prefixes.append({prefix[:size] for prefix in prefixes[-1]})
    return TextIndex(keyed, (words, *reversed(prefixes)))


@dataclass(frozen=True)
class Phrases:
    """A list of phrases. `found` and `finditer` agree with `search` and `finditer` of `pattern`."""

    entries: tuple[str, ...]
    """Regular expressions over lower-case text."""
    before: str = WORD_START
    """Assertion before each entry, except the `anywhere` ones."""
    end: str = ""
    """Assertion behind each entry, except the `anywhere` ones: "" or the end of a word."""
    anywhere: re.Pattern[str] | None = CJK
    """Entries that hold this match anywhere: by default those with a Chinese, Japanese or Korean character."""
    pattern: re.Pattern[str] = field(init=False)
    _beginnings: tuple[dict[str, set[str]], ...] = field(init=False)
    """For each set of `TextIndex.words`: a word of it -> the beginnings of phrases that it may be the start of."""
    _signs: tuple[str, ...] = field(init=False)
    """Beginnings that are no words, or may be inside a word."""
    _others: tuple[tuple[str, re.Pattern[str]], ...] = field(init=False)
    """Entries with an unknown beginning, each behind a text that its matches hold ("" when there is none)."""

    def __post_init__(self) -> None:
        """Compiles the entries and finds how they begin."""
        known: tuple[dict[str, set[str]], ...] = tuple({} for _ in range(KEY + 1))
        signs: set[str] = set()
        others: list[tuple[str, re.Pattern[str]]] = []
        for entry in self.entries:
            free = self._is_free(entry)  # may begin inside a word, unless it begins with a CJK character
            begins = beginnings(entry, ends_word=bool(self.end) and not free)
            if not begins:
                others.append((_literal(entry), self._compiled([entry])))
            if not all((CJK if free else _WORD).match(one) for one in begins):
                signs.update(one.rstrip(_END) for one in begins)
                continue
            for one in begins:
                word = _first_word(one)
                size = min(len(word), KEY) if word == one else 0  # else the word ends there: 0, whole words
                word = word[:size] if size else word
                known[size].setdefault(word, set()).add(one.rstrip(_END))
        object.__setattr__(self, "pattern", self._compiled(self.entries))
        object.__setattr__(self, "_beginnings", known)
        object.__setattr__(self, "_signs", tuple(signs))
        object.__setattr__(self, "_others", tuple(others))

    def _compiled(self, entries: Iterable[str]) -> re.Pattern[str]:
        apart = [f"(?:{e})" for e in entries if not self._is_free(e)]
        free = [f"(?:{e})" for e in entries if self._is_free(e)]
        return re.compile("|".join([*([f"{self.before}(?:{'|'.join(apart)}){self.end}"] if apart else []), *free]))

    def _is_free(self, entry: str) -> bool:
        return self.anywhere is not None and self.anywhere.search(entry) is not None

    def found(self, text: str) -> bool:
        """True when the text holds a phrase."""
        if len(text) < SHORT:
            return self.pattern.search(text) is not None
        match = self.pattern.match
        index = index_of(text)
        if any(match(text, start) for start in self._candidates(index)):
            return True
        return any(entry.search(text) for entry in self._possible(index))

    def finditer(self, text: str) -> Iterator[re.Match[str]]:
        """Finds the phrases that do not overlap, from left to right."""
        index = index_of(text) if len(text) >= SHORT else None
        if index is None or any(True for _ in self._possible(index)):
            yield from self.pattern.finditer(text)
            return
        end = 0
        for start in sorted(self._candidates(index)):
            if start >= end and (match := self.pattern.match(text, start)):
                yield match
                end = match.end()

    def _candidates(self, index: TextIndex) -> Iterator[int]:
        """Positions at which a phrase may begin; not sorted, some more than once."""
        for wanted, known in zip(self._beginnings, index.words, strict=True):
            for word in wanted.keys() & known:
                for beginning in wanted[word]:
                    yield from _places(beginning, index.keyed)
        for sign in self._signs:
            yield from _places(sign, index.keyed)

    def _possible(self, index: TextIndex) -> Iterator[re.Pattern[str]]:
        return (entry for literal, entry in self._others if literal in index.keyed)


def _places(part: str, text: str) -> Iterator[int]:
    start = text.find(part)
    while start >= 0:
        yield start
        start = text.find(part, start + 1)


def _first_word(beginning: str) -> str:
    found = _WORD.match(beginning)
    return found.group() if found else ""


class LinePattern:
    """A regular expression that begins with `(?:^|\\n)`, compared at the starts of lines only."""

    def __init__(self, pattern: str) -> None:
        self.pattern = re.compile(pattern)

    def finditer(self, text: str) -> Iterator[re.Match[str]]:
        """Finds the matches that do not overlap, as `re.finditer` does."""
        start = 0
        while start >= 0:
            match = self.pattern.match(text, start)
            if match:
                yield match
            start = text.find("\n", max(start + 1, match.end()) if match else start + 1)

    def found(self, text: str) -> bool:
        """True when a line begins like this."""
        return next(self.finditer(text), None) is not None


# ---- how an entry begins


_ATOM = re.compile(
    r"(?P<end>\(\?!\\w\))|(?P<look>\(\?<?[=!])|(?P<group>\((?:\?:)?)|(?P<set>\[\^?\]?(?:\\.|[^\]\\])*\])|(?P<zero>\\[bBAZ]|[\^$])|"
    r"(?P<digit>\\d)|(?P<kind>\\[wWsSDnrtfvx]|\.)|\\(?P<escaped>.)|(?P<plain>.)",
    re.DOTALL,
)
_QUANTIFIER = re.compile(r"(?:[*+?]|\{(\d*)(?:,\d*)?\})\??")
_Open = tuple[str, bool]
"""The first characters of a match, and whether the next ones can follow them."""


def beginnings(entry: str, *, ends_word: bool = False) -> frozenset[str]:
    """Lists how the matches of a regular expression begin.

    Args:
        entry: Literals, classes, groups without names, alternatives and quantifiers.
        ends_word: No letter or digit follows a match.

    Returns:
        Strings, digits as "0", a NUL where a word ends: each match begins with one of them. Empty when nothing is known
        about the first character.
    """
    if entry.replace(" ", "").isalpha():
        return frozenset([(entry + _END * ends_word)[: LENGTHS[0]]])
    if ends_word:
        entry = f"(?:{entry}){_END}"
    for length in LENGTHS:
        found, end = _alternatives(entry, 0, length)
        texts = frozenset(text for text, _ in found)
        if len(texts) <= MOST:
            break
    return frozenset() if end != len(entry) or "" in texts else texts


def _alternatives(entry: str, at: int, length: int) -> tuple[set[_Open], int]:
    """What the alternatives from `at` to the end of their group begin with, and the position of its end."""
    found: set[_Open] = set()
    so_far: set[_Open] = {("", True)}
    while at < len(entry) and entry[at] != ")":
        if entry[at] == "|":
            found |= so_far
            so_far = {("", True)}
            at += 1
            continue
        options, at = _atom(entry, at, length)
        quantifier = _QUANTIFIER.match(entry, at)
        optional = repeated = False
        if quantifier:
            at = quantifier.end()
            sign = quantifier.group()[0]
            optional = sign in "*?" or (sign == "{" and int(quantifier.group(1) or 0) == 0)
            repeated = sign != "?"
        so_far = _followed(so_far, options, length, optional=optional, repeated=repeated)
    return found | so_far, at


def _followed(so_far: set[_Open], options: set[_Open], length: int, *, optional: bool, repeated: bool) -> set[_Open]:
    found: set[_Open] = set()
    for text, is_open in so_far:
        if not is_open:
            found.add((text, False))
            continue
        for more, goes_on in options:
            whole = (text + more)[:length]
            found.add((whole, goes_on and not repeated and len(whole) < length))
        if optional:
            found.add((text, True))
    return found


def _atom(entry: str, at: int, length: int) -> tuple[set[_Open], int]:
    """What the atom at this position begins with, and the position behind it."""
    atom = _ATOM.match(entry, at)
    assert atom is not None  # `plain` is any character
    if atom["look"] or atom["group"]:
        options, end = _alternatives(entry, atom.end(), length)
        return ({("", True)} if atom["look"] else options), end + 1
    if atom["end"]:
        return {(_END, False)}, atom.end()
    if atom["zero"]:
        return {("", True)}, atom.end()
    if atom["digit"]:
        return {("0", True)}, atom.end()
    if atom["set"]:
        return _set(atom["set"]), atom.end()
    if atom["kind"]:
        return {("", False)}, atom.end()
    return {(_DIGIT.sub("0", atom["escaped"] or atom["plain"]), True)}, atom.end()


def _set(text: str) -> set[_Open]:
    inside = text[1:-1].replace(r"\d", "0")
    if inside.startswith("^") or "\\" in inside or "-" in inside[1:-1]:
        return {("", False)}
    return {(_DIGIT.sub("0", sign), True) for sign in inside}


def _literal(entry: str) -> str:
    """The longest run of letters outside of groups and classes that each match holds; "" when there is none."""
    outside = re.sub(r"\\.|\[[^\]]*\]", "\0", entry)
    while (smaller := re.sub(r"\([^()]*\)", "\0", outside)) != outside:
        outside = smaller
    if "|" in outside:
        return ""
    outside = re.sub(r"[^\W\d_][*?{]", "\0", outside)
    return max(re.findall(r"[^\W\d_]+", outside), key=len, default="")
