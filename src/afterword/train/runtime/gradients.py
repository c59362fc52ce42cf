"""Adds up the gradient of a step over its micro-batches, with divisors that are known before scoring or only after it.

A term that is divided by the sum of its weights has a gradient of its own until the last micro-batch is scored, so that
neither micro-batches nor processes change the result. All other terms share one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from afterword.learn.loss.terms import Term
from afterword.train.runtime.distributed import Distributed
from afterword.train.runtime.steps import ForwardBatch


class StepGradient:
    """The gradient of one step; `add` for each micro-batch, then `close` once.

    Args:
        parameters: Trainable tensors; their `grad` is None at the start.
        terms: Terms as `Term.at` gives them for this step.
        divisors: Of each term, as `loss.terms.divisors` gives them.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], terms: Sequence[Term], divisors: Sequence[float]) -> None:
        self.parameters, self.terms, self.divisors = parameters, terms, divisors
        self.late = [i for i, term in enumerate(terms) if term.by_weight and term.scale]
        self.sums = torch.zeros(len(terms), dtype=torch.float64)
        """Sum of the weights of each term that is divided by it."""
        self.buffers: dict[int, list[Tensor | None]] = {}

    def add(self, batch: ForwardBatch) -> list[Tensor]:
        """Run the backward pass of a micro-batch.

        Returns:
            Each term's part of the loss; those of terms that are divided by weights before that division.
        """
        pairs = list(zip(self.terms, batch.scores, strict=True))
        losses = [
            term.value(scores, batch.tokens, 1.0 if i in self.late else divisor)
            for i, ((term, scores), divisor) in enumerate(zip(pairs, self.divisors, strict=True))
        ]
        for i in self.late:
            self.sums[i] += float(pairs[i][0].weight_sum(pairs[i][1], batch.tokens))
        early = [loss for i, loss in enumerate(losses) if i not in self.late]
        # Where no token counts the gradient is zero and not missing: the sum of no states keeps the graph.
        nothing = batch.student_NH[:0].sum()
        groups = [(i, losses[i] + nothing) for i in self.late]
        if not self.late or any(loss.requires_grad for loss in early):
            groups.insert(0, (-1, torch.stack(early).sum() + nothing))
        for place, (group, loss) in enumerate(groups):
            loss.backward(retain_graph=place + 1 < len(groups))  # type: ignore[no-untyped-call]
            if self.late:
                self._keep(group)
        return losses

    def _keep(self, group: int) -> None:
        """Move the gradient from the parameters to the buffer of a group."""
        kept = self.buffers.setdefault(group, [None] * len(self.parameters))
        for n, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                old = kept[n]
                kept[n] = parameter.grad if old is None else old.add_(parameter.grad)
                parameter.grad = None

    def close(self, workers: Distributed) -> list[float]:
        """Divide and add up, so that `grad` holds the gradient of the whole step, over all processes.

        Returns:
            The factor of each term's part of the loss that `add` left out.
        """
        workers.all_reduce(self.sums)
        factors = [1.0] * len(self.terms)
        for i in self.late:
            whole = float(self.sums[i]) * self.divisors[i]
            factors[i] = 1.0 / whole if whole > 0 else 0.0
        for group, kept in self.buffers.items():
            factor = factors[group] if group >= 0 else 1.0
            for parameter, gradient in zip(self.parameters, kept, strict=True):
                if gradient is not None:
                    gradient = gradient.mul_(factor)
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        workers.all_reduce_gradients(self.parameters)
        return factors
