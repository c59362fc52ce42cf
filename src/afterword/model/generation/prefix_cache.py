"""Keeps keys and values of prompts that were read, so that the next turn of a conversation reads only what is new.

Pages of 32 tokens form a tree for each adapter: prompts that begin alike share pages. Bounded in bytes; the page that
was used longest ago goes first. Holds only keys that were computed as a prompt's: those of written tokens have other
bits. Used by the model thread only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from afterword.model.generation.kv_cache import KeyValues

PAGE = 32
"""Tokens of a page."""


@dataclass(slots=True, eq=False)
class _Page:
    parent: dict[tuple[int, ...], _Page]
    """The children of the page before."""
    tokens: tuple[int, ...]
    layers: list[tuple[torch.Tensor, torch.Tensor]]
    """Keys and values [heads, PAGE, width] of each layer."""
    children: dict[tuple[int, ...], _Page] = field(default_factory=dict)


class PrefixCache:
    """Pages beside the rows of `rows`. `budget`: bytes of all pages together."""

    def __init__(self, rows: KeyValues, budget: int) -> None:
        per_token = sum(heads * (k + v) for heads, k, v in rows.shapes) * rows.dtype.itemsize
        self._rows, self._most = rows, budget // (PAGE * per_token)
        self._roots: dict[int | None, dict[tuple[int, ...], _Page]] = {}
        self._recent: OrderedDict[int, _Page] = OrderedDict()
        """By identity; the page that was used longest ago first. A page comes before the one that it follows, so that
        the first one has no children."""

    def __len__(self) -> int:
        """Number of pages."""
        return len(self._recent)

    def fetch(self, adapter: object | None, tokens: Sequence[int], row: int) -> int:
        """Copies the keys of the longest known beginning of `tokens` into a row.

        Returns:
            The number of tokens copied, a multiple of PAGE.
        """
        pages = self._chain(adapter, tokens)
        if pages:
            end = len(pages) * PAGE
            for layer, (keys, values) in enumerate(zip(self._rows.keys, self._rows.values, strict=True)):
                keys[row, :, :end] = torch.cat([page.layers[layer][0] for page in pages], 1)
                values[row, :, :end] = torch.cat([page.layers[layer][1] for page in pages], 1)
            self._touch(pages)
        return len(pages) * PAGE

    def keep(self, adapter: object | None, tokens: Sequence[int], row: int) -> None:
        """Copies the whole pages of `tokens`, a prompt whose keys are in `row`, unless they are known."""
        pages = self._chain(adapter, tokens)
        children = pages[-1].children if pages else self._roots.setdefault(_name(adapter), {})
        for begin in range(len(pages) * PAGE, min(len(tokens) // PAGE, self._most) * PAGE, PAGE):
            part = tuple(tokens[begin : begin + PAGE])
            layers = [
                (keys[row, :, begin : begin + PAGE].clone(), values[row, :, begin : begin + PAGE].clone())
                for keys, values in zip(self._rows.keys, self._rows.values, strict=True)
            ]
            page = children[part] = _Page(children, part, layers)
            pages.append(page)
            children = page.children
        self._touch(pages)
        while len(self._recent) > self._most:
            _, oldest = self._recent.popitem(last=False)
            del oldest.parent[oldest.tokens]

    def drop(self, adapter: object | None) -> None:
        """Forgets all pages of an adapter."""
        waiting = list(self._roots.pop(_name(adapter), {}).values())
        while waiting:
            page = waiting.pop()
            waiting += page.children.values()
            del self._recent[id(page)]

    def _chain(self, adapter: object | None, tokens: Sequence[int]) -> list[_Page]:
        children, found = self._roots.get(_name(adapter), {}), []
        for begin in range(0, len(tokens) - PAGE + 1, PAGE):
            page = children.get(tuple(tokens[begin : begin + PAGE]))
            if page is None:
                break
            found.append(page)
            children = page.children
        return found

    def _touch(self, pages: list[_Page]) -> None:
        for page in reversed(pages):
            self._recent[id(page)] = page
            self._recent.move_to_end(id(page))


def _name(adapter: object | None) -> int | None:
    return None if adapter is None else id(adapter)
