"""Maps characters of an answer to positions of its token ids: private data, and text that the user changed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from afterword.chat.redact import find_private
from afterword.chat.render import Tokenizer, decode

Span = tuple[int, int]
WINDOW = 64
"""Tokens of parts of characters in a row that are decoded together at most."""
_BROKEN = "\ufffd"
"""What a decoder writes for bytes that are no whole character."""


def private_positions(tokenizer: Tokenizer, ids: Sequence[int], mode: str) -> tuple[int, ...]:
    """Places in `ids` of the tokens that write private data (`mode` as in `chat.redact`): they count in no loss."""
    text = decode(tokenizer, ids, special=True)
    found = find_private(text, mode)
    return places(tokenizer, ids, [(one.start, one.end) for one in found]) if found else ()


def changed_positions(tokenizer: Tokenizer, ids: Sequence[int], answer: str, spans: Sequence[Span]) -> tuple[int, ...]:
    """Places in `ids` of the tokens that the user changed: `spans` are characters of the answer's text, which the ids
    may write with space around it. One that ends behind the text means the tool calls there, however they are written:
    all that follows but the last token, which ends the turn."""
    if not spans:
        return ()
    whole = decode(tokenizer, ids, special=True)
    before = max(whole.find(answer), 0)
    found = places(tokenizer, ids, [(a + before, b + before) for a, b in spans if b <= len(answer)])
    calls = [(a + before, len(whole)) for a, b in spans if b > len(answer)]
    return found + tuple(place for place in places(tokenizer, ids, calls) if place < len(ids) - 1) if calls else found


def places(tokenizer: Tokenizer, ids: Sequence[int], spans: Iterable[Span]) -> tuple[int, ...]:
    """Places of the tokens that write any character of `spans`; for an empty span the token that stands there.

    Every token of a character that several tokens spell counts as writing it.
    """
    wide = [(start, max(end, start + 1)) for start, end in spans]
    return tuple(
        place
        for place, (start, end) in enumerate(_extents(tokenizer, ids))
        if any(start < b and end > a for a, b in wide)
    )


def _extents(tokenizer: Tokenizer, ids: Sequence[int]) -> list[Span]:
    """For each id the characters [start, end) that it writes, in the text of all of them."""
    pieces = [decode(tokenizer, [one], special=True) for one in ids]
    whole = decode(tokenizer, ids, special=True)
    if "".join(pieces) == whole:
        ends = list(itertools.accumulate(map(len, pieces)))
        return list(zip([0, *ends[:-1]], ends, strict=True))
    # A character of several tokens, or a decoder that joins them by rules of its own (a space that it strips, say).
    found, total = _decoded_extents(tokenizer, ids, WINDOW)
    return found if total == len(whole) else _decoded_extents(tokenizer, ids, len(ids))[0]


def _decoded_extents(tokenizer: Tokenizer, ids: Sequence[int], window: int) -> tuple[list[Span], int]:
    """The extents by decoding longer and longer ends of `ids`, and the number of characters in all. Each end begins at
    the last token that is text by itself, or, in a run of more than `window` others, at the last whole character.

    A byte-fallback decoder writes one replacement character for each byte of a run that is not whole. A byte token
    reaches as far as these do: in front of private data it may count as writing it, never the other way round.
    """
    found: list[Span] = []
    split: list[int] = []  # the tokens of a character that is not whole yet
    begun = base = length = 0
    for place in range(len(ids)):
        text = decode(tokenizer, ids[begun : place + 1], special=True)
        before, length = length, base + len(text)
        found.append((before, length))
        if text.endswith(_BROKEN) and place + 1 < len(ids) and len(split) < window:
            split.append(place)
            continue
        if split:
            first = found[split[0]][0]
            for one in (*split, place):
                start, end = found[one]
                found[one] = (min(start, first), max(end, first + 1))
        alone = decode(tokenizer, ids[place : place + 1], special=True)
        if _BROKEN not in alone and window < len(ids):
            begun, base = place, length - len(alone)
        elif place - begun >= window:
            begun = split[0] if split else place
            base = length - len(decode(tokenizer, ids[begun : place + 1], special=True))
        split = []
    return found, length
