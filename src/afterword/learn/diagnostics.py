"""Computes log p(y|x), log p(y|x,o) and their difference for each served token.

For heat maps, alignment reports and controls. Reads a model without changing it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from afterword.chat.canonical import text_of
from afterword.chat.render import (
    Tokenizer,
    decode,
    encode_content,
    end_of_turn_ids,
    pieces,
    template_arguments,
)
from afterword.chat.turn_prompt import turn_prompt
from afterword.errors import UsageError
from afterword.learn.loss.loss_stage import token_losses
from afterword.learn.parts.contexts import Context, turn_hindsight
from afterword.learn.parts.divergences import NegativeLogLikelihood
from afterword.learn.token_advantage import TokenAdvantage
from afterword.model.head import Head, head_of
from afterword.model.loading import longest_context
from afterword.model.packing import Parts, by_budget, hidden_states, packed, scored_count
from afterword.records import Turn
from afterword.sharing import BACKGROUND

_ROWS = 1 << 14
"""Embedding rows in a block."""


@torch.no_grad()
def readable_ids(model: Any) -> Tensor:
    """[V] which ids the model has a finite embedding for. Some models ship rows that were never trained, as NaN."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    weight = base.get_input_embeddings().weight
    return torch.cat([part.isfinite().all(-1) for part in weight.split(_ROWS)]).cpu()


def unreadable(readable: Tensor, ids: Iterable[int]) -> int | None:
    """The first of `ids` that the model cannot read: it has no embedding for it, or one that is not finite."""
    return next((i for i in ids if not 0 <= i < len(readable) or not readable[i]), None)


@torch.no_grad()
def log_probs(model: Any, head: Head, pairs: Sequence[Parts], *, budget: int = 4096) -> list[Tensor]:
    """Log-probabilities of scored ids.

    Args:
        model: A transformers or PEFT causal model.
        head: Its head.
        pairs: The parts of each sequence: prompt ids and completion ids for one answer.
        budget: Most tokens of a forward pass.

    Returns:
        For each sequence [n] nats, float32 on the CPU.
    """
    found: dict[int, Tensor] = {}
    for group in BACKGROUND.between(by_budget([sum(map(len, parts)) for parts in pairs], budget)):
        batch = packed([pairs[i] for i in group], head.weight.device)
        scores = token_losses(hidden_states(model, batch), None, head, batch.targets, NegativeLogLikelihood())
        pieces = torch.split(scores.logp_student.float().cpu(), [scored_count(pairs[i]) for i in group])
        found.update(zip(group, pieces, strict=True))
    return [found[i] for i in range(len(pairs))]


def token_advantages(
    model: Any, tokenizer: Tokenizer, turn: Turn, hindsight: str, context: Context
) -> list[TokenAdvantage]:
    """Compute the advantage of each token of an answer under hindsight.

    With the context "none" every advantage is 0 up to rounding (a control); another interaction's hindsight is the
    other control.

    Args:
        model: A transformers or PEFT causal model.
        tokenizer: Its tokenizer.
        turn: The turn; without served ids its answer is tokenised here.
        hindsight: The privileged text.
        context: Its template.

    Raises:
        UsageError: The answer is empty, the prompt with hindsight exceeds the context length, or a token has no
            embedding.
    """
    completion = turn.completion_ids or encode_content(tokenizer, text_of(turn.answer.get("content")), "assistant")
    if not completion:
        raise UsageError(f"turn {turn.id} has an empty answer: there is no token to show")
    if not turn.completion_ids:
        completion = (*completion, end_of_turn_ids(tokenizer, template_arguments(turn.sampling))[0])
    plain = turn.prompt_ids or turn_prompt(tokenizer, turn).ids
    room = longest_context(model) - len(completion)
    seen = turn_hindsight(tokenizer, context, turn, hindsight, room=room, longest=room)
    if seen is None:
        raise UsageError(f"turn {turn.id} and its hindsight are longer than the model's context")
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    wrong = unreadable(readable_ids(base), (*plain, *completion, *seen.prompt.ids))
    if wrong is not None:
        raise UsageError(
            f"turn {turn.id} or its hindsight has the token {decode(tokenizer, [wrong], special=True)!r} (id {wrong}), "
            "for which this model has no embedding: use the model that served it, or other words with --text"
        )
    pairs = [(plain, completion), (seen.prompt.ids, completion)]
    without, with_hindsight = log_probs(model, head_of(base), pairs)
    return [
        TokenAdvantage(text, float(s), float(q), float(q - s))
        for text, s, q in zip(pieces(tokenizer, completion), without, with_hindsight, strict=True)
    ]
