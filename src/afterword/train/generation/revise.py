"""Revises disliked answers: the model writes them again with the user's words in view; the better text is used.

A teacher reads the revision beside the user's words, or (off-policy) it is imitated. Writes Revision rows.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from afterword.chat.canonical import text_of
from afterword.chat.render import (
    Tokenizer,
    check_template,
    decode,
    encode_content,
)
from afterword.chat.turn_prompt import turn_prompt
from afterword.errors import ModelError
from afterword.learn.diagnostics import log_probs
from afterword.learn.hindsight_score import score
from afterword.learn.parts.contexts import CONTEXTS, PEER_KINDS, REFERENCE_KINDS, Context, turn_hindsight
from afterword.learn.recipes import Recipe
from afterword.model.generation.text import stop_ids
from afterword.model.loading import load_tokenizer, longest_context
from afterword.records import Revision, content_hash
from afterword.store import Store
from afterword.train.data.examples import Example
from afterword.train.generation.generation import generate
from afterword.train.runtime.policy import Policy, load_policy

_WORD = re.compile(r"\w+")
AT_ONCE = 8
"""Answers that are written together, and then committed."""
WRITTEN = CONTEXTS["next_turn"]
"""For writing, the user's words stand where they stood: after the draft."""
SCORED = CONTEXTS["appended"]
"""For scoring, as in the held-out score: draft and revision are both unseen."""
LEAST = 0.02
"""Nats a token by which a revision must beat the draft; less is noise of the number format."""
ECHO = 0.6
"""Share of a revision's words that may be the user's own."""
SHOWN = "{words}\n\nAn answer that takes this into account:\n{text}"


@dataclass(frozen=True, slots=True)
class RevisionCost:
    """Cost and yield of the second pass."""

    looked_at: int
    """Answers whose score under the user's words was taken."""
    written: int
    """Of those the ones that the words speak against: written again."""
    kept: int
    """Better than the draft under the user's words; the others are dropped."""
    tokens: int
    seconds: float

    @property
    def sentence(self) -> str:
        """For a person."""
        return (
            f"second pass: {self.looked_at} answers looked at, {self.written} written again ({self.tokens} tokens), "
            f"{self.kept} of them better than the draft, in {self.seconds:.1f} s"
        )


def worth_revising(example: Example) -> bool:
    """Could a second draft say more than the user did? Not after praise, nor where the user wrote the answer."""
    row = example.interaction
    said = row.hindsight.strip() and row.polarity <= 0 and row.kind not in (*REFERENCE_KINDS, *PEER_KINDS)
    return bool(said) and bool(text_of(example.turn.answer.get("content")).strip())


def revision_model(model: str, parent: str | None) -> str:
    """The name under which revisions of this model and adapter are kept."""
    return model if parent is None else f"{model}+{parent}"


def revise_stage(
    store: Store,
    examples: Sequence[Example],
    recipe: Recipe,
    *,
    model: str,
    parent: tuple[str, Path] | None,
    most: int,
    device: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RevisionCost:
    """Write a Revision for each of the newest `most` examples that pay and have none by this model; see `RevisionCost`.

    A run that is killed goes on where its last commit was. ModelError or AdapterError when the model does not load.
    """
    started, name = time.monotonic(), revision_model(model, parent[0] if parent else None)
    known = {row.interaction for row in store.rows(Revision) if row.model == name}
    wanted = sorted(filter(worth_revising, examples), key=lambda e: e.turn.created_at)[-most:] if most else []
    waiting = [example for example in wanted if example.interaction.id not in known]
    if not waiting:
        return RevisionCost(0, 0, 0, 0, 0.0)
    tokenizer = load_tokenizer(model)
    check_template(tokenizer)  # without a header no revision could be written: an error, not so many empty rows
    policy = load_policy(model, recipe, parent=parent[1] if parent else None, seed=0, device=device)
    made, tokens = [], 0
    for start in range(0, len(waiting), AT_ONCE):
        rows, count = revised(policy, tokenizer, waiting[start : start + AT_ONCE], longest=recipe.max_fresh, name=name)
        store.write(*rows)
        made += rows
        tokens += count
        progress(len(made), len(waiting))
    written, kept = sum(bool(row.text) for row in made), sum(row.kept for row in made)
    return RevisionCost(len(made), written, kept, tokens, time.monotonic() - started)


@torch.no_grad()
def revised(
    policy: Policy, tokenizer: Tokenizer, examples: Sequence[Example], *, longest: int, name: str
) -> tuple[list[Revision], int]:
    """A Revision for each example, and how many tokens were written. Its text is empty where the user's words do not
    speak against the draft, or where they do not fit the model: then nothing was written."""
    ends = stop_ids(policy.model.get_base_model(), tokenizer)
    room = longest_context(policy.model) - longest
    drafts = [_draft(example, tokenizer, ends) for example in examples]
    before = _scores(policy, tokenizer, examples, drafts, room)
    prompts = [_prompt(tokenizer, example, WRITTEN, room) for example in examples]
    chosen = [i for i, (one, p) in enumerate(zip(before, prompts, strict=True)) if p and one is not None and one < 0]
    answers: dict[int, list[int]] = {}
    if chosen:
        drawn = generate(policy, [prompts[i] or () for i in chosen], ends, [longest] * len(chosen), temperature=0.0)
        answers = {i: one.tokens for i, one in zip(chosen, drawn, strict=True)}
    after = _scores(policy, tokenizer, [examples[i] for i in chosen], list(answers.values()), room)
    scores = dict(zip(chosen, after, strict=True))
    rows = []
    for i, example in enumerate(examples):
        text = decode(tokenizer, answers[i]).strip() if i in answers else ""
        draft, new = before[i] or 0.0, scores.get(i)
        better = (
            bool(text) and new is not None and new > draft + LEAST and not echoes(text, example.interaction.hindsight)
        )
        rows.append(
            Revision(
                id=content_hash("revision", example.interaction.id, name),
                interaction=example.interaction.id,
                model=name,
                text=text,
                draft_score=draft,
                score=draft if new is None else new,
                kept=better,
            )
        )
    return rows, sum(map(len, answers.values()))


def echoes(text: str, words: str) -> bool:
    """Does the revision only say again what the user said? A small model that is asked for less does that, and nothing
    is likelier under the user's words than the words themselves."""
    said, own = set(_WORD.findall(words.lower())), _WORD.findall(text.lower())
    return sum(word in said for word in own) > ECHO * len(own)


def _draft(example: Example, tokenizer: Tokenizer, ends: Sequence[int]) -> list[int]:
    if example.turn.completion_ids:
        return list(example.turn.completion_ids)
    return [*encode_content(tokenizer, text_of(example.turn.answer.get("content")), "assistant"), ends[0]]


def _prompt(tokenizer: Tokenizer, example: Example, where: Context, room: int) -> tuple[int, ...] | None:
    """None where it does not fit, or where the template refuses such a conversation."""
    row, turn = example.interaction, example.turn
    try:
        seen = turn_hindsight(
            tokenizer, where, turn, row.hindsight, room=room, longest=512, polarity=row.polarity, kind=row.kind
        )
    except ModelError:
        return None
    return None if seen is None else seen.prompt.ids


def _scores(
    policy: Policy, tokenizer: Tokenizer, examples: Sequence[Example], answers: Sequence[Sequence[int]], room: int
) -> list[float | None]:
    """The implied reward of each answer under its example's words (nats a token); None where they do not fit."""
    pairs: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None] = []
    for example, answer in zip(examples, answers, strict=True):
        hinted = _prompt(tokenizer, example, SCORED, room)
        if hinted is None or not answer:
            pairs.append(None)
            continue
        plain = turn_prompt(tokenizer, example.turn).ids
        pairs.append((plain, hinted, tuple(answer)) if len(plain) + len(answer) <= room else None)
    flat = [(prompt, answer) for pair in pairs if pair for prompt, answer in ((pair[0], pair[2]), (pair[1], pair[2]))]
    found = iter(log_probs(policy.model, policy.head, flat)) if flat else iter(())
    return [None if pair is None else score(next(found).tolist(), next(found).tolist(), pair[2]) for pair in pairs]


def with_revisions(store: Store, examples: Sequence[Example], mode: str, name: str) -> tuple[list[Example], int]:
    """The examples as a run with revisions sees them, and how many have one that is better than its draft.

    "context": the teacher reads the revision after the user's words. "target": the revision stands in place of the
    served answer, without ids and so labelled off-policy; examples without one are left out.
    """
    kept = {row.interaction: row.text for row in store.rows(Revision) if row.kept and row.model == name}
    found = []
    for example in examples:
        text = kept.get(example.interaction.id)
        if text is None:
            found += [example] if mode == "context" else []
        elif mode == "context":
            words = SHOWN.format(words=example.interaction.hindsight, text=text)
            found.append(Example(replace(example.interaction, hindsight=words), example.turn))
        else:
            found.append(_imitated(example, text))
    return found, sum(example.interaction.id in kept for example in examples)


def _imitated(example: Example, text: str) -> Example:
    turn = replace(
        example.turn, answer={**example.turn.answer, "content": text}, prompt_ids=None, completion_ids=None,
        logprobs=None, missing_ids="a revision, imitated off-policy",
    )  # fmt: skip
    return Example(replace(example.interaction, on_policy=False, polarity=1, spans=()), turn)
