"""Chooses rotary factors by sequence length: longrope of Phi-3 and Phi-4-mini.

transformers picks one of two sets for a whole call; rows of several sequences need one for each. An answer that grew
over the switch was sampled under both sets, so `packing` scores it in two readings. Dynamic scaling (NTK) changes the
factors only beyond `max_position_embeddings`, which no sequence exceeds here.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

_LENGTHS: ContextVar[Tensor | None] = ContextVar("sequence_lengths", default=None)
_SWITCHES: WeakKeyDictionary[Any, int | None] = WeakKeyDictionary()


def switch_length(causal: Any) -> int | None:
    """The longest sequence that takes the short factors, in tokens; None for a model whose factors do not change.

    The first call lets the model's rotary modules choose by sequence.
    """
    if causal not in _SWITCHES:
        modules = [m for m in causal.modules() if getattr(m, "rope_type", None) == "longrope"]
        for module in modules:
            module.forward = types.MethodType(_forward, module)
        _SWITCHES[causal] = _switch(modules[0]) if modules else None
    return _SWITCHES[causal]


@contextmanager
def sequence_lengths(causal: Any, lengths: Tensor) -> Iterator[None]:
    """Inside, each token takes the factors of its sequence.

    Args:
        causal: A transformers causal model.
        lengths: Length in tokens of each token's sequence, in a shape that broadcasts to [B, T].
    """
    if switch_length(causal) is None:
        yield
        return
    token = _LENGTHS.set(lengths)
    try:
        yield
    finally:
        _LENGTHS.reset(token)


def _switch(module: Any) -> int:
    return int(module.config.rope_parameters["original_max_position_embeddings"])


def _forward(self: Any, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """cos and sin [B, T, D] of positions [B, T] (or [1, T])."""
    lengths, switch = _LENGTHS.get(), _switch(self)
    if lengths is None:
        return type(self).forward(self, x, position_ids, *args, **kwargs)  # type: ignore[no-any-return]
    long = lengths > switch
    if not long.any():
        return type(self).forward(self, x, position_ids, *args, **kwargs)  # type: ignore[no-any-return]
    # One position more, the first that only a long sequence has, makes transformers take the long factors.
    more = torch.cat([position_ids, torch.full_like(position_ids[:, :1], switch)], 1)
    cos, sin = (part[:, :-1] for part in type(self).forward(self, x, more, *args, **kwargs))
    if long.all():
        return cos, sin
    short = type(self).forward(self, x, position_ids.clamp(max=switch - 1), *args, **kwargs)
    return torch.where(long[..., None], cos, short[0]), torch.where(long[..., None], sin, short[1])
