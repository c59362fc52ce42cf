"""Answers of a model in this process, without a server: what training draws comes from the engine that serves.

Owns a copy of the model's modules over the same weights, and the run of one set of prompts. Never changes the model.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft.tuners.lora import LoraLayer

from afterword.errors import ModelError
from afterword.model.generation.adapters import Adapter
from afterword.model.generation.engine import Engine, Request
from afterword.model.generation.request import GenerationRequest, TokenOutput
from afterword.model.generation.runner import Runner
from afterword.model.lora import Delta

_PREFIX = "base_model.model."
"""Of PEFT's module names."""


@dataclass(slots=True)
class DrawnAnswer:
    """One answer."""

    tokens: list[int]
    """Completion ids, the end of turn included where the answer ended by itself."""
    logprobs: list[float]
    """Of each id under the distribution that it was drawn from."""


class Drawer:
    """Draws answers from a causal model, PEFT's adapters left out, with at most `rows` at once.

    Args:
        model: a transformers model, or PEFT's over one; its weights are read in place, but for the linear layers that
            the engine packs (a copy of the base in its own dtype, until the Drawer is dropped).
        ends: ids that end an answer.
        rows: answers in the making at once.
    Raises:
        ModelError: the engine does not compute this architecture.
    """

    def __init__(self, model: Any, ends: Sequence[int], *, rows: int = 16) -> None:
        self._runner = Runner(_same_weights(model), ends=frozenset(ends), wide_head=True)
        self._rows = rows

    def draw(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        *,
        adapter: Mapping[str, Delta] | None = None,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> list[DrawnAnswer]:
        """An answer to each prompt.

        Args:
            prompts: ids, each at least one.
            limits: most new tokens of each.
            adapter: the update to draw under, by module name; None is the base.
            temperature: 0 takes the likeliest token.
            seed: each answer has a generator of its own, made of this and its place, so that an answer does not depend
                on the others that are drawn beside it.
        Raises:
            ModelError: a step failed for a prompt.
        """
        answers = [DrawnAnswer([], []) for _ in prompts]
        left, failed = len(prompts), []

        def deliver(pieces: list[tuple[Request, TokenOutput]]) -> None:
            nonlocal left
            for request, piece in pieces:
                if piece.token is not None and piece.sampled_logprob is not None:
                    answers[request.number].tokens.append(piece.token)
                    answers[request.number].logprobs.append(piece.sampled_logprob)
                if piece.finish == "error":
                    failed.append(request.number)
                left -= piece.finish is not None
            if not left:
                engine.stop()

        engine = Engine(self._runner, deliver, max_batch=self._rows)
        laid = None if adapter is None else _adapter(adapter)
        adding = None if laid is None else engine.add_adapter(laid)
        for number, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
            # large odd factors: neighbouring seeds and places give generators that share nothing
            own = (seed * 1_000_003 + number) * 2_654_435_761 % (1 << 61)
            asked = GenerationRequest(temperature=temperature, seed=own, logprobs=True)
            engine.submit(Request(number, asked, list(prompt), limit, laid, None))
        if prompts:
            engine.run()
            if adding is not None:
                adding.result()
                engine.drop_adapters()
        if failed:
            raise ModelError(f"answers to {len(failed)} of {len(prompts)} prompts could not be drawn: the log has why")
        return answers


def _adapter(deltas: Mapping[str, Delta]) -> Adapter:
    """The update as the engine lays it into its layers."""
    parts = {
        name.removeprefix(_PREFIX): (delta.down.float().t(), delta.up.float().t() * delta.scale)
        for name, delta in deltas.items()
    }
    rank = max(down.shape[1] for down, _ in parts.values())
    return Adapter(name="live", path="", created=0, rank=rank, parts=parts)


def _same_weights(model: Any) -> Any:
    """A copy of the base's modules that shares every tensor, without adapters and without what was put in place of the
    modules' own forward passes."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    tensors = [*base.parameters(), *base.buffers()]
    copied = copy.deepcopy(base, {id(tensor): tensor for tensor in tensors})
    for name, module in list(copied.named_modules()):
        if isinstance(module, LoraLayer):
            copied.set_submodule(name, module.get_base_layer())
    for module in copied.modules():
        module.__dict__.pop("forward", None)
    return copied.eval()
