"""Makes privileged text from the answers of a pass: a right sibling, the own attempt, or the student's reflection on
it.

The text is redacted, cut to fit and placed by `data.examples`, as the words of users are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from afterword.chat.canonical import text_of
from afterword.chat.render import Tokenizer, decode, render_prompt, template_arguments
from afterword.chat.turn_prompt import continues, messages_before
from afterword.learn.parts.contexts import Context, OwnAttempt, Reflection, Sibling
from afterword.learn.recipes import Recipe
from afterword.records import Turn
from afterword.store.files import write_whole
from afterword.train.data.examples import Prepared, RowEncoder, contexts_of
from afterword.train.data.rows import Encoded

Write = Callable[[Sequence[Sequence[int]], int], list[list[int]]]
"""The likeliest answers of the student to some prompts, of at most so many tokens."""
_QUESTION = 64
"""Tokens that the question of a reflection and the marks of the chat template may take."""


def hint_contexts(recipe: Recipe) -> list[Context]:
    """The contexts of a recipe with text made in each pass."""
    return [c for c in contexts_of(recipe) if isinstance(c.hint, Sibling | OwnAttempt | Reflection)]


def with_hints(
    rows: Sequence[Encoded], prepared: Prepared, tokenizer: Tokenizer, write: Write, file: Path, key: str
) -> list[Encoded]:
    """`rows` with the hints of their contexts.

    Args:
        rows: The rows of a pass, with groups.
        prepared: The encoder of the rows.
        tokenizer: The student's.
        write: Draws reflections.
        file: Where reflections are kept, so that a resumed run shows the same.
        key: Names the run in that file.
    """
    contexts = hint_contexts(prepared.encoder.recipe)
    if not contexts:
        return list(rows)
    turns = {e.interaction.id: e.turn for e in prepared.used}
    words = {e.interaction.id: e.interaction.hindsight for e in prepared.used}
    found = list(rows)
    for where in contexts:
        texts = _texts(where, found, turns, words, prepared.encoder, tokenizer, write, file, key)
        for i, (row, text) in enumerate(zip(found, texts, strict=True)):
            if row.answer.accepted:
                polarity = 1 if (row.answer.reward or 0.0) > 0 else -1
                found[i] = prepared.encoder.hinted(row, turns[row.interaction], where, text, polarity)
    return found


def _texts(
    where: Context,
    rows: Sequence[Encoded],
    turns: Mapping[str, Turn],
    words: Mapping[str, str],
    encoder: RowEncoder,
    tokenizer: Tokenizer,
    write: Write,
    file: Path,
    key: str,
) -> list[str]:
    answers = [decode(tokenizer, row.answer_ids) for row in rows]
    if isinstance(where.hint, Sibling):
        return [_sibling(i, rows, answers) for i in range(len(rows))]
    if isinstance(where.hint, Reflection):
        told = [_told(where.hint, row, words.get(row.interaction, ""), encoder) for row in rows]
        return _reflections(where.hint, rows, answers, told, turns, tokenizer, write, file, key)
    return answers


def _sibling(own: int, rows: Sequence[Encoded], answers: Sequence[str]) -> str:
    """The first other right answer to the same prompt; empty without one."""
    row = rows[own]
    for i, other in enumerate(rows):
        same = i != own and other.asked == row.asked and other.answer.origin == row.answer.origin
        if same and other.answer.accepted and (other.answer.reward or 0.0) > 0:
            return answers[i]
    return ""


def _told(hint: Reflection, row: Encoded, words: str, encoder: RowEncoder) -> str | None:
    """The text before the question; None where the row lacks it, and then no teacher is shown a reflection."""
    if hint.told == "words":
        room = encoder.limit - len(row.asked) - len(row.completion) - hint.tokens - _QUESTION
        given = encoder.shortened(words, room)
        return f"{given}\n\n" if given.strip() else None
    if hint.told == "outcome":
        if row.answer.reward is None:
            return None
        return "This answer is right. " if row.answer.reward > 0 else "This answer is wrong. "
    return ""


def _reflections(
    hint: Reflection,
    rows: Sequence[Encoded],
    answers: Sequence[str],
    told: Sequence[str | None],
    turns: Mapping[str, Turn],
    tokenizer: Tokenizer,
    write: Write,
    file: Path,
    key: str,
) -> list[str]:
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    named = f"{hint.ask}/{hint.tokens}/{hint.told}"
    if kept.get("key") == key and named in kept["texts"]:
        return list(kept["texts"][named])
    prompts = []
    asked = [i for i, said in enumerate(told) if said is not None]
    for i in asked:
        row, answer = rows[i], answers[i]
        turn = turns[row.interaction]
        begun = text_of(turn.messages[-1].get("content")) if continues(turn) else ""
        said = [
            *messages_before(turn),
            {"role": "assistant", "content": begun + answer},
            {"role": "user", "content": f"{told[i]}{hint.ask}"},
        ]
        prompts.append(render_prompt(tokenizer, said, turn.tools, template_arguments(turn.sampling)).ids)
    written = write(prompts, hint.tokens) if prompts else []
    texts = [""] * len(rows)
    for i, ids in zip(asked, written, strict=True):
        texts[i] = decode(tokenizer, ids)
    before = kept["texts"] if kept.get("key") == key else {}
    write_whole(file, json.dumps({"key": key, "texts": {**before, named: texts}}))
    return texts
