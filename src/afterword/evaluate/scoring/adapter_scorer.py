"""Scores texts under the frozen base model and the adapters under comparison, in one process.

Switches the active adapter; the losses are `learn`'s. Never trains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afterword.errors import AdapterError
from afterword.learn.diagnostics import log_probs
from afterword.learn.loss.loss_stage import TILE, token_losses
from afterword.learn.parts.divergences import ForwardKL
from afterword.model.head import Head, head_of, with_adapter
from afterword.model.loading import load_model
from afterword.model.lora import load_adapter, patch_lora_layers
from afterword.model.packing import Ids, by_budget, hidden_states, packed
from afterword.sharing import BACKGROUND

BUDGET = 4096
"""Packed tokens in one forward pass."""


class AdapterScorer:
    """A base model and named adapters on it; without an active adapter it is the base, bit for bit."""

    def __init__(self, base: Any) -> None:
        self._model: Any = base
        self.head: Head = head_of(base)
        self._adapted = False
        for parameter in base.parameters():
            parameter.requires_grad_(False)

    @classmethod
    def load(cls, ref: str, device: str = "auto") -> AdapterScorer:
        """The base model `ref` in the machine's native dtype, which is the engine's default."""
        return cls(load_model(ref, device=device))

    def add(self, name: str, folder: Path) -> None:
        """Put an adapter folder beside the base. AdapterError when it does not fit."""
        try:
            self._model = load_adapter(self._model, folder, name)
        except AdapterError as error:
            raise AdapterError(f"the adapter cannot be measured: {error.message}") from error
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise AdapterError(
                f"the adapter {str(folder)!r} does not fit this base model: {str(error)[:300]}; measure it with the "
                "model that it was trained on"
            ) from error
        if not self._adapted:
            self._adapted = True
            patch_lora_layers(self._model)
        self._model.eval()

    def head_of(self, name: str | None) -> Head:
        """The output head with this adapter, or None for the base's."""
        base = self._model.get_base_model() if self._adapted else self._model
        return with_adapter(self.head, base, name)

    @contextmanager
    def active(self, name: str | None) -> Iterator[Any]:
        """The model with this adapter, or None for the base."""
        if name is not None:
            self._model.set_adapter(name)
            yield self._model
        elif self._adapted:
            with self._model.disable_adapter():
                yield self._model
        else:
            yield self._model

    def log_probs(self, name: str | None, pairs: Sequence[tuple[Ids, Ids]]) -> list[list[float]]:
        """log p of each completion's ids after its prompt (nats); `name` is the adapter, None for the base."""
        with self.active(name) as model:
            return [scores.tolist() for scores in log_probs(model, self.head_of(name), pairs, budget=BUDGET)]

    @torch.no_grad()
    def options(self, name: str | None, choices: Sequence[tuple[Ids, Sequence[Ids]]]) -> list[list[float]]:
        """For each (text, ends of it): log p of each end's ids after the text, summed (nats).

        A text is read once, whatever the number of its ends: their first ids come from its last hidden state, the
        rest from its kept keys and values.
        """
        found: dict[int, list[float]] = {}
        for number in {len(ends) for _, ends in choices}:
            alike = [i for i, (_, ends) in enumerate(choices) if len(ends) == number]
            sizes = [number * (len(choices[i][0]) + max(map(len, choices[i][1]))) for i in alike]
            for group in BACKGROUND.between(by_budget(sizes, BUDGET)):
                picked = [alike[i] for i in group]
                found.update(zip(picked, self._options(name, [choices[i] for i in picked], number), strict=True))
        return [found[i] for i in range(len(choices))]

    def _options(
        self, name: str | None, choices: Sequence[tuple[Ids, Sequence[Ids]]], number: int
    ) -> Iterator[list[float]]:
        """The same for G texts with `number` ends each, in one batch."""
        device = self.head.weight.device
        ends = [tuple(end) for _, each in choices for end in each]  # [G * number]
        texts, mask = _padded([text for text, _ in choices], device)
        rest, width = [end[:-1] for end in ends], max(len(end) for end in ends) - 1
        with self.active(name) as model:
            causal = model.get_base_model() if hasattr(model, "peft_config") else model
            out = causal.base_model(input_ids=texts, attention_mask=mask, use_cache=True)
            rows = torch.arange(len(choices), device=device)
            last = out.last_hidden_state[rows, mask.sum(1) - 1]
            scores = self._said(name, last, torch.tensor([end[0] for end in ends]).view(-1, number)).flatten()
            if width:
                kept, read = out.past_key_values, mask.repeat_interleave(number, 0)
                kept.batch_repeat_interleave(number)
                more, seen = _padded(rest, device)
                states = causal.base_model(
                    input_ids=more, attention_mask=torch.cat([read, seen], 1), past_key_values=kept, use_cache=True,
                    position_ids=read.sum(1, keepdim=True) + torch.arange(width, device=device),
                ).last_hidden_state  # fmt: skip
                later = self._said(
                    name, states[seen.bool()], torch.tensor([i for end in ends for i in end[1:]])[:, None]
                )
                where = torch.arange(len(ends)).repeat_interleave(torch.tensor([len(ids) for ids in rest]))
                scores.index_add_(0, where, later.flatten())
        return iter([scores[k : k + number].tolist() for k in range(0, len(ends), number)])

    def _said(self, name: str | None, states: Tensor, ids: Tensor) -> Tensor:
        """[n, m] float64 log p of these ids [n, m] by hidden states [n, H], a few rows at a time."""
        head = self.head_of(name)
        parts = [
            head.logits(part).log_softmax(-1).gather(1, wanted.to(part.device)).double().cpu()
            for part, wanted in zip(torch.split(states, TILE), torch.split(ids, TILE), strict=True)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def greedy_hits(self, name: str | None, pairs: Sequence[tuple[Ids, Ids]]) -> list[list[bool]]:
        """For each id of each completion: is it what greedy decoding would write after all that stands before it?

        A run of hits is therefore a span that comes out word for word once its beginning is given.
        """
        found: dict[int, list[bool]] = {}
        for group in BACKGROUND.between(by_budget([len(p) + len(c) for p, c in pairs], BUDGET)):
            batch = packed([pairs[i] for i in group], self.head.weight.device)
            with self.active(name) as model:
                states = hidden_states(model, batch)
            head = self.head_of(name)
            best = torch.cat([head.logits(part).argmax(-1) for part in torch.split(states, TILE)])
            sizes = [len(pairs[i][1]) for i in group]
            hits = torch.split((best == batch.targets).cpu(), sizes)
            found.update(zip(group, ([bool(h) for h in part] for part in hits), strict=True))
        return [found[i] for i in range(len(pairs))]

    @torch.no_grad()
    def hindsight_kl(
        self, names: Sequence[str | None], pairs: Sequence[tuple[tuple[Ids, Ids], tuple[Ids, Ids]]]
    ) -> list[list[tuple[list[float], list[float]]]]:
        """For each arm and each ((prompt, y), (prompt with hindsight, y)), at every token of y: KL(base reading the
        second || arm reading the first), and the arm's entropy (nats). `names` are the arms' adapters, None for the
        base; what the base reads with hindsight is computed once for all of them."""
        found: list[dict[int, tuple[list[float], list[float]]]] = [{} for _ in names]
        for group in BACKGROUND.between(by_budget([len(p) + len(c) for _, (p, c) in pairs], BUDGET)):
            plain = packed([pairs[i][0] for i in group], self.head.weight.device)
            hinted = packed([pairs[i][1] for i in group], self.head.weight.device)
            with self.active(None) as model:
                teacher = hidden_states(model, hinted)
            for arm, name in enumerate(names):
                with self.active(name) as model:
                    student = hidden_states(model, plain)
                scores = token_losses(
                    student, teacher, self.head_of(name), plain.targets, ForwardKL(), teacher_head=self.head
                )
                sizes = [len(pairs[i][0][1]) for i in group]
                losses, entropies = (
                    [part.tolist() for part in torch.split(column.double(), sizes)]
                    for column in (scores.loss, scores.entropy_student)
                )
                found[arm].update(zip(group, zip(losses, entropies, strict=True), strict=True))
        return [[each[i] for i in range(len(pairs))] for each in found]

    @torch.no_grad()
    def drift(self, name: str, pairs: Sequence[tuple[Ids, Ids]]) -> list[tuple[float, float, float]]:
        """For each (prompt, completion): summed KL(base || adapter), -log p_base and -log p_adapter (nats)."""
        found: dict[int, tuple[float, float, float]] = {}
        for group in BACKGROUND.between(by_budget([len(p) + len(c) for p, c in pairs], BUDGET)):
            batch = packed([pairs[i] for i in group], self.head.weight.device)
            with self.active(None) as model:
                base = hidden_states(model, batch)
            with self.active(name) as model:
                moved = hidden_states(model, batch)
            scores = token_losses(moved, base, self.head_of(name), batch.targets, ForwardKL(), teacher_head=self.head)
            sizes = [len(pairs[i][1]) for i in group]
            sums = [_sums(t, sizes) for t in (scores.loss, -scores.logp_teacher, -scores.logp_student)]
            found.update(zip(group, zip(*sums, strict=True), strict=True))
        return [found[i] for i in range(len(pairs))]


def _padded(rows: Sequence[Ids], device: torch.device) -> tuple[Tensor, Tensor]:
    """[R, T] ids, padded on the right with 0, and where they are."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, each in enumerate(rows):
        ids[row, : len(each)], mask[row, : len(each)] = torch.tensor(each, dtype=torch.long), 1
    return ids.to(device), mask.to(device)


def _sums(values: Tensor, sizes: Sequence[int]) -> list[float]:
    return [float(part.double().sum()) for part in torch.split(values, list(sizes))]
