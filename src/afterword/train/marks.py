"""Which tokens of an answer hold private data, and which ones the user changed: characters to places among the ids.

Owns the way from characters to tokens. Never decides what is private (`chat.redact`), never changes an id.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from afterword.chat.redact import find_private
from afterword.chat.render import Tokenizer, decode
from afterword.train.encoded import Encoded

Span = tuple[int, int]


def private_places(tokenizer: Tokenizer, ids: Sequence[int], mode: str) -> tuple[int, ...]:
    """Places in `ids` of the tokens that write private data (`mode` as in `chat.redact`): they count in no loss."""
    text = decode(tokenizer, ids, special=True)
    found = find_private(text, mode)
    return places(tokenizer, ids, [(one.start, one.end) for one in found]) if found else ()


def changed_places(tokenizer: Tokenizer, ids: Sequence[int], answer: str, spans: Sequence[Span]) -> tuple[int, ...]:
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
    """Places of the tokens that write any character of `spans`; for an empty span the token that stands there."""
    ends = _ends(tokenizer, ids)
    starts = [0, *ends[:-1]]
    wide = [(start, max(end, start + 1)) for start, end in spans]
    return tuple(
        place
        for place, (start, end) in enumerate(zip(starts, ends, strict=True))
        if any(start < b and end > a for a, b in wide)
    )


def without_private(rows: Iterable[Encoded], tokenizer: Tokenizer, mode: str) -> list[Encoded]:
    """`rows` with the tokens marked that must not be learned: for answers that the student wrote anew."""
    return [replace(row, private=private_places(tokenizer, row.completion, mode), changed=()) for row in rows]


def _ends(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """For each id the number of characters that it and those before it write."""
    pieces = [decode(tokenizer, [one], special=True) for one in ids]
    whole = decode(tokenizer, ids, special=True)
    if "".join(pieces) != whole:  # a character of several tokens, or a tokenizer that joins them by rules of its own
        return [len(decode(tokenizer, ids[: n + 1], special=True)) for n in range(len(ids))]
    ends, total = [], 0
    for piece in pieces:
        total += len(piece)
        ends.append(total)
    return ends
