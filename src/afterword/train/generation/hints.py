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
from afterword.train.data.examples import Prepared, contexts_of
from afterword.train.data.rows import Encoded

Write = Callable[[Sequence[Sequence[int]], int], list[list[int]]]
"""The likeliest answers of the student to some prompts, of at most so many tokens."""


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
    found = list(rows)
    for where in contexts:
        texts = _texts(where, found, turns, tokenizer, write, file, key)
        for i, (row, text) in enumerate(zip(found, texts, strict=True)):
            if row.answer.accepted:
                polarity = 1 if (row.answer.reward or 0.0) > 0 else -1
                found[i] = prepared.encoder.hinted(row, turns[row.interaction], where, text, polarity)
    return found


def _texts(
    where: Context,
    rows: Sequence[Encoded],
    turns: Mapping[str, Turn],
    tokenizer: Tokenizer,
    write: Write,
    file: Path,
    key: str,
) -> list[str]:
    answers = [decode(tokenizer, row.answer_ids) for row in rows]
    if isinstance(where.hint, Sibling):
        return [_sibling(i, rows, answers) for i in range(len(rows))]
    if isinstance(where.hint, Reflection):
        return _reflections(where.hint, rows, answers, turns, tokenizer, write, file, key)
    return answers


def _sibling(own: int, rows: Sequence[Encoded], answers: Sequence[str]) -> str:
    """The first other right answer to the same prompt; empty without one."""
    row = rows[own]
    for i, other in enumerate(rows):
        same = i != own and other.asked == row.asked and other.answer.origin == row.answer.origin
        if same and other.answer.accepted and (other.answer.reward or 0.0) > 0:
            return answers[i]
    return ""


def _reflections(
    hint: Reflection,
    rows: Sequence[Encoded],
    answers: Sequence[str],
    turns: Mapping[str, Turn],
    tokenizer: Tokenizer,
    write: Write,
    file: Path,
    key: str,
) -> list[str]:
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    named = f"{hint.ask}/{hint.tokens}"
    if kept.get("key") == key and named in kept["texts"]:
        return list(kept["texts"][named])
    prompts = []
    for row, answer in zip(rows, answers, strict=True):
        turn = turns[row.interaction]
        begun = text_of(turn.messages[-1].get("content")) if continues(turn) else ""
        said = [
            *messages_before(turn),
            {"role": "assistant", "content": begun + answer},
            {"role": "user", "content": hint.ask},
        ]
        prompts.append(render_prompt(tokenizer, said, turn.tools, template_arguments(turn.sampling)).ids)
    texts = [decode(tokenizer, ids) for ids in write(prompts, hint.tokens)]
    before = kept["texts"] if kept.get("key") == key else {}
    write_whole(file, json.dumps({"key": key, "texts": {**before, named: texts}}))
    return texts
