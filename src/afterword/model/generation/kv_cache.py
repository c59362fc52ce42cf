"""Stores keys and values of the running requests. Owns their memory and its bound; never schedules requests.

Each layer has one tensor [rows, heads, length, width]; a request owns a row, rows in use are always the
first ones, so that decoding reads a plain view and copies nothing. Rows and length grow together with the
need, up to `budget` tokens in all.
"""

from __future__ import annotations

import torch

_STEP = 256


class KeyValues:
    """`shapes`: per layer (heads, width of keys, width of values)."""

    def __init__(
        self, shapes: list[tuple[int, int, int]], dtype: torch.dtype, device: torch.device, budget: int
    ) -> None:
        self.shapes, self.dtype, self.device, self.budget = shapes, dtype, device, budget
        self.rows = self.length = 0
        self.reusable = True
        """The keys of a prompt's beginning do not depend on what follows: other prompts may go on after them."""
        self.keys: list[torch.Tensor] = [self._zeros(0, 0, h, k) for h, k, _ in shapes]
        self.values: list[torch.Tensor] = [self._zeros(0, 0, h, v) for h, _, v in shapes]

    def _zeros(self, rows: int, length: int, heads: int, width: int) -> torch.Tensor:
        # Zeros, not empty: what lies behind a mask is multiplied by 0 and must not be NaN.
        return torch.zeros(rows, heads, length, width, dtype=self.dtype, device=self.device)

    def fits(self, rows: int, length: int) -> bool:
        """Would `rows` requests of up to `length` tokens stay inside the budget?"""
        return rows * _round(length) <= self.budget

    def reserve(self, rows: int, length: int) -> None:
        """Make room for `rows` requests of up to `length` tokens; stored keys and values stay."""
        if rows <= self.rows and length <= self.length:
            return
        wide, long = max(self.rows, 1 << (rows - 1).bit_length()), max(self.length, _round(length))
        if wide * long > self.budget:
            wide, long = rows, _round(length)
        keep_rows, keep = min(self.rows, wide), min(self.length, long)
        for store, which in ((self.keys, 1), (self.values, 2)):
            for layer, shape in enumerate(self.shapes):
                fresh = self._zeros(wide, long, shape[0], shape[which])
                fresh[:keep_rows, :, :keep] = store[layer][:keep_rows, :, :keep]
                store[layer] = fresh
        self.rows, self.length = wide, long

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of row `source` over row `target`."""
        for store in (self.keys, self.values):
            for layer in store:
                layer[target, :, :length] = layer[source, :, :length]


def _round(length: int) -> int:
    return -(-length // _STEP) * _STEP
