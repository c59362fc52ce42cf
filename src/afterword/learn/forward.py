"""Served ids through a model: padded batches in, the hidden states that predict each served token out.

Owns the alignment of prompts and completions (which hidden state predicts which id). It never computes logits
and never decides which adapter is active.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Ids = Sequence[int]


@dataclass(frozen=True, slots=True)
class Padded:
    """R sequences, padded on the right to T. `picks` [N] indexes the flattened [R*T] hidden states: the place
    before each completion id, in the order of the sequences."""

    ids: Tensor
    mask: Tensor | None
    """[R, T], None when nothing is padded."""
    picks: Tensor
    targets: Tensor
    """[N] the completion ids, one after the other."""


def padded(pairs: Sequence[tuple[Ids, Ids]], device: torch.device | str = "cpu") -> Padded:
    """Lay out (prompt, completion) pairs; no prompt is empty. The pad id is 0 and masked, so it never matters
    whether it equals a real id such as the end of turn."""
    sizes = [len(p) + len(c) for p, c in pairs]
    width = max(sizes)
    ids = torch.zeros(len(pairs), width, dtype=torch.long)
    mask = torch.zeros(len(pairs), width, dtype=torch.long)
    picks = []
    for r, (prompt, completion) in enumerate(pairs):
        ids[r, : sizes[r]] = torch.tensor([*prompt, *completion])
        mask[r, : sizes[r]] = 1
        picks.append(torch.arange(len(completion)) + r * width + len(prompt) - 1)
    targets = torch.tensor([i for _, completion in pairs for i in completion], dtype=torch.long)
    return Padded(
        ids.to(device),
        None if min(sizes) == width else mask.to(device),
        torch.cat(picks).to(device),
        targets.to(device),
    )


def hidden_states(model: Any, batch: Padded) -> Tensor:
    """[N, H] last hidden states (after the final norm) of a transformers or PEFT causal model."""
    causal = model.get_base_model() if hasattr(model, "peft_config") else model
    out = causal.base_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
    states: Tensor = out.last_hidden_state
    return states.flatten(0, 1)[batch.picks]


def by_budget(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Indices grouped so that (rows x longest) stays within `budget` padded tokens, longest first.

    A single row over the budget is a group of its own. Equal input, equal groups.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        if groups and (len(groups[-1]) + 1) * sizes[groups[-1][0]] <= budget:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
