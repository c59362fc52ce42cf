"""Scores multiple-choice questions by likelihood, and caches the scores.

The built-in questions are ours (`data/choices.jsonl`). No answer is generated, so that a model that has learned another
manner is not marked down for its manner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from afterword.chat.render import Tokenizer, encode, render_prompt
from afterword.evaluate.comparison.answers import Arm, EvaluationPrompt
from afterword.evaluate.comparison.comparison import Comparison
from afterword.evaluate.data import built_in

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MultipleChoice:
    """A text and its possible ends; the first one is right."""

    text: str
    options: tuple[str, ...]
    chat: bool = False
    """The text is a user's message and the options are how the answer begins."""


@cache
def general_knowledge() -> tuple[MultipleChoice, ...]:
    """128 easy questions with four options each."""
    return tuple(
        MultipleChoice(f"Question: {row['question']}\nAnswer:", tuple(row["options"])) for row in built_in("choices")
    )


def probabilities(comparison: Comparison, arm: Arm, choices: Sequence[MultipleChoice]) -> list[list[float]]:
    """For each choice the probability of each option, given that one of them is said: the softmax over
    log p(option | text), summed over the option's tokens."""
    kept = comparison.cache("choices")
    tokenizer = comparison.tokenizer
    asked = [_ids(tokenizer, choice) for choice in choices]
    key = kept.key(comparison.base_hash, arm.content, asked)
    if (found := kept.get(key)) is None:
        comparison.progress("choices", 0, len(choices))
        found = comparison.models.options(comparison.adapter(arm), asked)
        kept.put({key: found})
    return [_softmax(scores) for scores in found]


def _ids(tokenizer: Tokenizer, choice: MultipleChoice) -> tuple[Ids, list[Ids]]:
    """The text, and each of its ends."""
    if choice.chat:
        read = render_prompt(tokenizer, EvaluationPrompt.of(choice.text).messages).ids
        return read, [encode(tokenizer, option) for option in choice.options]
    return encode(tokenizer, choice.text), [encode(tokenizer, f" {option}") for option in choice.options]


def _softmax(scores: Sequence[float]) -> list[float]:
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    return [weight / math.fsum(weights) for weight in weights]


def right(shares: Sequence[float]) -> bool:
    """Is the first option the likeliest?"""
    return shares[0] == max(shares)
