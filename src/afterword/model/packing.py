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
from afterword.model.attention_kernel import KeyValues, Ranges, SharedPrefix, Unsupported, count
from afterword.model.prefix_tree import PrefixTree, Root, common, first_tokens, tree_of
from afterword.model.rotary import sequence_lengths, switch_length

Ids = Sequence[int]
Parts = Sequence[Ids]
"""A sequence: ids that are read and ids that are scored, in turn; the first are never empty."""


def scored_count(parts: Parts) -> int:
    """Scored ids of a sequence."""
    return sum(map(len, parts[1::2]))


@dataclass(frozen=True, slots=True)
class Packed:
    """A row of T tokens in segments, N of them scored."""

    ids: Tensor
    """[T]"""
    sizes: tuple[int, ...]
    """Length of each segment: a sequence, or what is left of it after a prefix that others have too."""
    picks: Tensor
    """[N] for each scored token, the position in the row that predicts it."""
    targets: Tensor
    """[N] the scored ids."""
    sequences: tuple[Parts, ...]
    prefixes: tuple[Ranges, ...] = ()
    """For each segment the tokens of the row that it goes on after; empty where nothing is shared."""
    paths: tuple[Ranges, ...] = ()
    """For each sequence its tokens in the row; empty where nothing is shared."""

    @property
    def apart(self) -> Packed:
        """The same sequences, each read whole."""
        return packed(self.sequences, self.ids.device) if self.prefixes else self


_LEAST_SHARED = 1 / 16
"""Share of all tokens that sharing has to save: a row of equal sequences is computed with less overhead."""


def packed(sequences: Sequence[Parts], device: torch.device | str = "cpu", *, share: bool = False) -> Packed:
    """Lay out sequences in one row.

    Args:
        sequences: Parts of each; (prompt ids, completion ids) for one answer.
        device: Where the tensors go.
        share: Read common prefixes once, where that saves enough.
    """
    if share and len(sequences) > 1:
        tree = tree_of([[i for part in parts for i in part] for parts in sequences])
        if len(tree.ids) <= (1 - _LEAST_SHARED) * sum(map(count, tree.paths)):
            return _packed_tree(sequences, tree, device)
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
        targets=_targets(sequences, device),
        sequences=tuple(sequences),
    )


def _packed_tree(sequences: Sequence[Parts], tree: PrefixTree, device: torch.device | str) -> Packed:
    picks = []
    for parts, path in zip(sequences, tree.paths, strict=True):
        places = torch.cat([torch.arange(*one) for one in path])
        start = 0
        for number, part in enumerate(parts):
            if number % 2:
                picks.append(places[start - 1 : start - 1 + len(part)])
            start += len(part)
    return Packed(
        ids=torch.tensor(tree.ids).to(device),
        sizes=tree.sizes,
        picks=torch.cat(picks).to(device),
        targets=_targets(sequences, device),
        sequences=tuple(sequences),
        prefixes=tree.prefixes,
        paths=tree.paths,
    )


def _targets(sequences: Sequence[Parts], device: torch.device | str) -> Tensor:
    return torch.tensor([i for parts in sequences for part in parts[1::2] for i in part], dtype=torch.long).to(device)


def cut_at_switch(parts: Parts, switch: int | None) -> list[Parts]:
    """A sequence as it was sampled by a model whose rotary factors switch.

    Tokens are drawn under the factors of the tokens before them. A sequence that grew over the switch becomes two:
    the first scored ids, and the others after all ids before them.

    Args:
        parts: The sequence.
        switch: Longest sequence with the short factors, in tokens (`rotary.switch_length`); None without a switch.
    """
    if switch is None or _known(parts) <= switch:
        return [parts]
    start, number = 0, 0
    while number < len(parts) and start + len(parts[number]) <= switch + 1:
        start, number = start + len(parts[number]), number + 1
    rest, scored = switch + 1 - start, number % 2 == 1
    before = [*parts[:number], *([parts[number][:rest]] if scored and rest > 0 else [])]
    short = before[: len(before) - len(before) % 2]
    if not scored_count(short):
        return [parts]
    whole = [i for part in parts[:number] for i in part]
    if scored:
        return [short, ([*whole, *parts[number][:rest]], parts[number][rest:], *parts[number + 1 :])]
    return [short, ([*whole, *parts[number]], *parts[number + 1 :])] if number < len(parts) - 1 else [short]


def _known(parts: Parts) -> int:
    """Tokens that are known when the last one is drawn."""
    return sum(map(len, parts)) - 1


def why_not_shared(model: Any, batch: Packed) -> str | None:
    """Reason why `model` cannot read the common prefixes of `batch` once; None where it can, or where none are."""
    causal = _causal(model)
    if not batch.prefixes:
        return None
    if not can_pack(causal):
        return "its attention reads padded rows: sliding windows, soft caps, or token mixing other than attention"
    switch = switch_length(causal)
    sizes = list(map(_known, batch.sequences))
    if switch is not None and min(sizes) <= switch < max(sizes):
        return f"its rotary factors differ for sequences of up to {switch} tokens and longer ones"
    return None


def as_read(model: Any, batch: Packed) -> Packed:
    """`batch` as `model` reads it: with every sequence whole where it cannot share prefixes (`why_not_shared`), and in
    two where it grew over the model's switch of rotary factors (`cut_at_switch`)."""
    switch = switch_length(_causal(model))
    if switch is not None:
        cut = [part for parts in batch.sequences for part in cut_at_switch(parts, switch)]
        if len(cut) > len(batch.sequences):
            return packed(cut, batch.ids.device)
    return batch if why_not_shared(model, batch) is None else batch.apart


def hidden_states(model: Any, batch: Packed, keep: KeyValues | None = None) -> Tensor:
    """Hidden states that predict the scored tokens.

    Args:
        model: A transformers or PEFT causal model.
        batch: The row to read.
        keep: Fused layers store their keys and values here.

    Returns:
        [N, H] last hidden states, after the final norm.
    """
    causal, batch = _causal(model), as_read(model, batch)
    if not can_pack(causal):
        return _padded_states(causal, batch.ids, batch.sizes)[batch.picks]
    return packed_states(causal, batch.ids, batch.sizes, keep, prefixes=batch.prefixes)[batch.picks]


@dataclass(frozen=True, slots=True)
class ReadBatch:
    """A row that the model has read, for `hidden_states_after`."""

    pairs: Sequence[Parts]
    states: Tensor
    """[N, H] hidden states that predict its scored tokens."""
    kept: KeyValues
    paths: tuple[Ranges, ...] = ()
    """`Packed.paths` of the row as it was read."""


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
    switch = switch_length(causal)
    crossing = any(len(cut_at_switch(parts, switch)) > 1 for parts in (*read.pairs, *pairs))
    if crossing or len(read.kept) < causal.config.num_hidden_layers:
        return hidden_states(model, packed(pairs, read.states.device, share=True))
    found = list(torch.split(read.states.detach(), list(map(scored_count, pairs))))
    lengths = [_common(old, new, switch) for old, new in zip(read.pairs, pairs, strict=True)]
    rows = [i for i, length in enumerate(lengths) if length is not None]
    if not rows:
        return torch.cat(found)
    roots = [_root(read, i, lengths[i] or 0, switch, pairs[i]) for i in rows]
    rest = [(pairs[i][0][lengths[i] or 0 :], *pairs[i][1:]) for i in rows]
    tree = tree_of([[i for part in parts for i in part] for parts in rest], roots)
    batch = _packed_tree(rest, tree, found[0].device)
    after = SharedPrefix(read.kept, tuple((row, ranges) for row, ranges, *_ in tree.roots))
    states = packed_states(causal, batch.ids, batch.sizes, after=after, prefixes=batch.prefixes)[batch.picks]
    for i, part in zip(rows, torch.split(states, [scored_count(pairs[i]) for i in rows]), strict=True):
        found[i] = part
    return torch.cat(found)


def _root(read: ReadBatch, number: int, length: int, switch: int | None, parts: Parts) -> Root:
    """Where sequence `number` goes on in the row that was read. Sequences whose rotary factors differ share nothing."""
    if not length:
        long = switch is not None and _known(parts) > switch
        return (int(long), ())
    path = read.paths[number] if read.paths else ((0, length),)
    return (0 if read.paths else number), first_tokens(path, length)


def _common(old: Parts, new: Parts, switch: int | None) -> int | None:
    """Length of the shared prefix, without the new prompt's last id, which predicts; None for equal sequences, 0 where
    the two lengths have different rotary factors (`rotary.switch_length`)."""
    whole, second = [i for part in old for i in part], new[0]
    if list(map(tuple, old)) == list(map(tuple, new)):
        return None
    if switch is not None and (_known(old) > switch) != (_known(new) > switch):
        return 0
    return min(common(whole, second), len(second) - 1)


def _causal(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "peft_config") else model


def packed_states(
    causal: Any,
    ids: Tensor,
    sizes: Sequence[int],
    keep: KeyValues | None = None,
    after: SharedPrefix | None = None,
    prefixes: tuple[Ranges, ...] = (),
) -> Tensor:
    """Last hidden states of every token of a row.

    Args:
        causal: A transformers causal model.
        ids: [T] the segments one after the other.
        sizes: Length of each segment; they sum to T.
        keep: Fused layers store their keys and values here.
        after: Prefixes of another row that the segments go on after.
        prefixes: For each segment the tokens of this row that it goes on after; empty where none does.

    Returns:
        [T, H]
    """
    starts = [0] * len(sizes) if after is None else list(after.lengths)
    if prefixes:
        starts = [start + count(prefix) for start, prefix in zip(starts, prefixes, strict=True)]
    places = torch.cat([torch.arange(n, device=ids.device) + start for n, start in zip(sizes, starts, strict=True)])
    totals = [start + n for n, start in zip(sizes, starts, strict=True)]
    known = [max(total - 1, 1) for total in totals]  # the last token is drawn and predicts nothing
    lengths = torch.repeat_interleave(torch.tensor(known), torch.tensor(sizes)).to(ids.device)
    with reading(causal, sizes, keep, after, prefixes), sequence_lengths(causal, lengths[None]):
        out = causal.base_model(input_ids=ids[None], position_ids=places[None], use_cache=False)
    return out.last_hidden_state[0]  # type: ignore[no-any-return]


def _padded_states(causal: Any, ids: Tensor, sizes: Sequence[int]) -> Tensor:
    """[T, H] by a padded pass. The pad id 0 is masked, so it may equal a real id."""
    rows = pad_sequence(list(torch.split(ids, list(sizes))), batch_first=True)
    mask = torch.arange(rows.shape[1], device=ids.device) < torch.tensor(sizes, device=ids.device)[:, None]
    with sequence_lengths(causal, torch.tensor(sizes, device=ids.device)[:, None] - 1):
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
