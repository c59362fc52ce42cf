"""Runs sequences through a model as one packed row and returns the hidden states that predict each scored token.

A sequence is its parts in turn: ids that are read, ids that are scored, read, scored ... A prompt with its completion
is the sequence of two parts; a conversation whose answers are all scored has more. Owns the alignment of hidden states
with ids, and padding for models whose attention cannot be packed. Computes no logits and chooses no adapter.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from afterword.model.attention import reading
from afterword.model.attention_kernel import KeyValues, SharedPrefix, Unsupported
from afterword.model.rotary import sequence_lengths, switch_length

Ids = Sequence[int]
Parts = Sequence[Ids]
"""A sequence: ids that are read and ids that are scored, in turn; the first are never empty."""


def scored_count(parts: Parts) -> int:
    """Scored ids of a sequence."""
    return sum(map(len, parts[1::2]))


@dataclass(frozen=True, slots=True)
class Packed:
    """A row of sequences with T tokens, N of them scored."""

    ids: Tensor
    """[T]"""
    sizes: tuple[int, ...]
    """Length of each sequence."""
    picks: Tensor
    """[N] for each scored token, the position in the row that predicts it."""
    targets: Tensor
    """[N] the scored ids."""


def packed(sequences: Sequence[Parts], device: torch.device | str = "cpu") -> Packed:
    """Lay out sequences in one row.

    Args:
        sequences: Parts of each; (prompt ids, completion ids) for one answer.
        device: Where the tensors go.
    """
    picks, start = [], 0
    for parts in sequences:
        for number, part in enumerate(parts):
            if number % 2:
                picks.append(torch.arange(len(part)) + start - 1)
            start += len(part)
    return Packed(
        ids=torch.tensor([i for parts in sequences for part in parts for i in part]).to(device),
        sizes=tuple(sum(map(len, parts)) for parts in sequences),
        picks=torch.cat(picks).to(device),
        targets=torch.tensor([i for parts in sequences for part in parts[1::2] for i in part], dtype=torch.long).to(
            device
        ),
    )


def hidden_states(model: Any, batch: Packed, keep: KeyValues | None = None) -> Tensor:
    """Hidden states that predict the scored tokens.

    Args:
        model: A transformers or PEFT causal model.
        batch: The row to read.
        keep: Fused layers store their keys and values here.

    Returns:
        [N, H] last hidden states, after the final norm.
    """
    causal = _causal(model)
    if not can_pack(causal):
        return _padded_states(causal, batch.ids, batch.sizes)[batch.picks]
    return packed_states(causal, batch.ids, batch.sizes, keep)[batch.picks]


@dataclass(frozen=True, slots=True)
class ReadBatch:
    """A row that the model has read, for `hidden_states_after`."""

    pairs: Sequence[Parts]
    states: Tensor
    """[N, H] hidden states that predict its scored tokens."""
    kept: KeyValues


def hidden_states_after(model: Any, pairs: Sequence[Parts], read: ReadBatch) -> Tensor:
    """Hidden states for other ids to read before the same scored ids, without a gradient, reusing shared prefixes.

    Args:
        model: The model that read `read`, with the same weights.
        pairs: Parts of each sequence, in the order of `read.pairs`.
        read: The row that was read before; a sequence that equals its partner there is not computed again.

    Returns:
        [N, H] as `hidden_states` returns it.
    """
    causal = _causal(model)
    if len(read.kept) < causal.config.num_hidden_layers:
        return hidden_states(model, packed(pairs, read.states.device))
    found = list(torch.split(read.states.detach(), list(map(scored_count, pairs))))
    switch = switch_length(causal)
    lengths = [_common(old, new, switch) for old, new in zip(read.pairs, pairs, strict=True)]
    rows = [i for i, length in enumerate(lengths) if length is not None]
    if not rows:
        return torch.cat(found)
    after = SharedPrefix(read.kept, tuple(rows), tuple(length for length in lengths if length is not None))
    rest = [(pairs[i][0][n:], *pairs[i][1:]) for i, n in zip(rows, after.lengths, strict=True)]
    batch = packed(rest, found[0].device)
    states = packed_states(causal, batch.ids, batch.sizes, after=after)[batch.picks]
    for i, part in zip(rows, torch.split(states, [scored_count(pairs[i]) for i in rows]), strict=True):
        found[i] = part
    return torch.cat(found)


def _common(old: Parts, new: Parts, switch: int | None) -> int | None:
    """Length of the shared prefix, without the new prompt's last id, which predicts; None for equal sequences, 0 where
    the two lengths have different rotary factors (`rotary.switch_length`)."""
    whole, second = [i for part in old for i in part], new[0]
    size = sum(map(len, new))
    if list(map(tuple, old)) == list(map(tuple, new)):
        return None
    if switch is not None and (len(whole) > switch) != (size > switch):
        return 0
    same = next((i for i, (a, b) in enumerate(zip(whole, second, strict=False)) if a != b), len(second))
    return min(same, len(whole), len(second) - 1)


def _causal(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "peft_config") else model


def packed_states(
    causal: Any, ids: Tensor, sizes: Sequence[int], keep: KeyValues | None = None, after: SharedPrefix | None = None
) -> Tensor:
    """Last hidden states of every token of a row.

    Args:
        causal: A transformers causal model.
        ids: [T] the sequences one after the other.
        sizes: Length of each sequence; they sum to T.
        keep: Fused layers store their keys and values here.
        after: Prefixes that the sequences go on after.

    Returns:
        [T, H]
    """
    starts = [0] * len(sizes) if after is None else after.lengths
    places = torch.cat([torch.arange(n, device=ids.device) + start for n, start in zip(sizes, starts, strict=True)])
    totals = [start + n for n, start in zip(sizes, starts, strict=True)]
    lengths = torch.repeat_interleave(torch.tensor(totals), torch.tensor(sizes)).to(ids.device)
    with reading(causal, sizes, keep, after), sequence_lengths(causal, lengths[None]):
        out = causal.base_model(input_ids=ids[None], position_ids=places[None], use_cache=False)
    return out.last_hidden_state[0]  # type: ignore[no-any-return]


def _padded_states(causal: Any, ids: Tensor, sizes: Sequence[int]) -> Tensor:
    """[T, H] by a padded pass. The pad id 0 is masked, so it may equal a real id."""
    rows = pad_sequence(list(torch.split(ids, list(sizes))), batch_first=True)
    mask = torch.arange(rows.shape[1], device=ids.device) < torch.tensor(sizes, device=ids.device)[:, None]
    with sequence_lengths(causal, torch.tensor(sizes, device=ids.device)[:, None]):
        out = causal.base_model(input_ids=rows, attention_mask=mask.long(), use_cache=False)
    return out.last_hidden_state[mask]  # type: ignore[no-any-return]


_CAN_PACK: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def can_pack(causal: Any) -> bool:
    """Whether sequences of a packed row stay independent in this model, by one trial for each model.

    Sliding windows, soft caps and token mixing other than attention need padded rows.
    """
    if causal not in _CAN_PACK:
        _CAN_PACK[causal] = _tried(causal)
    return _CAN_PACK[causal]


@torch.no_grad()
def _tried(causal: Any) -> bool:
    if "position_ids" not in inspect.signature(causal.base_model.forward).parameters:
        return False
    device = next(causal.parameters()).device
    ids = torch.arange(1, 12, device=device).remainder(causal.get_input_embeddings().weight.shape[0])
    other = torch.cat([ids[:4].flip(0), ids[4:]])
    try:
        first, second = (packed_states(causal, row, (4, 7))[4:].float() for row in (ids, other))
    except Unsupported:
        return False
    alone = _padded_states(causal, ids[4:], (7,)).float()
    near = (first - alone).norm() < 0.3 * alone.norm()  # in bf16 two ways to the same states differ by a tenth
    return bool(near) and torch.equal(first, second)


def by_budget(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Group sequences so that (count x longest) of each group stays within a budget.

    Args:
        sizes: Tokens of each sequence.
        budget: Tokens; a single longer sequence is a group of its own.

    Returns:
        Groups of indices, longest first; the same for the same input.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        if groups and (len(groups[-1]) + 1) * sizes[groups[-1][0]] <= budget:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
