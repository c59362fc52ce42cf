"""Scores all answers of a conversation in one row, not only the one that the interaction is about.

The earlier answers stand in the served prompt, between the template's generation header and an end of turn. They become
scored spans; the text between them is context.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from afterword.chat.render import Tokenizer, end_of_turn_ids, generation_header
from afterword.learn.parts.contexts import Context
from afterword.records import Json
from afterword.train.data.rows import Between, Encoded
from afterword.train.data.token_spans import private_positions

Ids = tuple[int, ...]


def with_earlier_answers(
    row: Encoded, tokenizer: Tokenizer, redact: str = "off", arguments: Json | None = None
) -> Encoded:
    """`row` with the answers in its prompt as further scored spans.

    Their log-probabilities at sampling are unknown. A context whose prompt does not begin with the same answers is left
    out of `teacher_prompts`.

    Args:
        row: A row of one answer.
        tokenizer: Whose chat template wrote its prompts.
        redact: How private data in the earlier answers is found, as in `chat.redact`.
        arguments: Template arguments of the turn.
    """
    header, ends = generation_header(tokenizer, arguments), frozenset(end_of_turn_ids(tokenizer, arguments))
    read, spans = answer_spans(row.prompt, header, ends)
    if not spans:
        return row
    earlier = tuple(i for span in spans for i in span)
    prompts: dict[Context, Ids] = {}
    between: dict[Context, Between] = {}
    for where, prompt in row.teacher_prompts.items():
        theirs, said = answer_spans(prompt, header, ends, at_most=len(spans))
        if said == spans:
            prompts[where], between[where] = theirs[0], _between(theirs, spans)
    places = [
        start + place
        for start, span in zip(_starts(spans), spans, strict=False)
        for place in private_positions(tokenizer, span, redact)
    ]
    return replace(
        row,
        prompt=read[0],
        completion=(*earlier, *row.completion),
        between=_between(read, spans),
        teacher_prompts=prompts,
        teacher_between=between,
        served=(*[math.nan] * len(earlier), *row.served) if row.served else (),
        private=(*places, *(place + len(earlier) for place in row.private)),
        changed=tuple(place + len(earlier) for place in row.changed),
    )


def answer_spans(
    prompt: Ids, header: Ids, ends: frozenset[int], *, at_most: int | None = None
) -> tuple[list[Ids], list[Ids]]:
    """Divide a prompt at the answers in it.

    Args:
        prompt: Ids of a prompt that ends with the generation header.
        header: Ids of the generation header.
        ends: Ids that end a turn.
        at_most: Answers to find; all by default.

    Returns:
        What is read, each with the header at its end, one more than the answers; the answers with their end of turn.
    """
    read: list[Ids] = []
    spans: list[Ids] = []
    begun = place = 0
    while place <= len(prompt) - len(header) and len(spans) != at_most:
        if prompt[place : place + len(header)] != header:
            place += 1
            continue
        start = place + len(header)
        end = next((k + 1 for k in range(start, len(prompt)) if prompt[k] in ends), None)
        if end is None:
            break
        read.append(prompt[begun:start])
        spans.append(prompt[start:end])
        begun = place = end
    return [*read, prompt[begun:]], spans


def _starts(spans: Sequence[Ids]) -> list[int]:
    """Position in the completion at which each span begins, and the one behind the last."""
    found = [0]
    for span in spans:
        found.append(found[-1] + len(span))
    return found


def _between(read: Sequence[Ids], spans: Sequence[Ids]) -> Between:
    return tuple(zip(_starts(spans)[1:], read[1:], strict=True))
