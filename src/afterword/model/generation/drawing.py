"""Generates answers in this process with the serving engine, for training.

Owns a copy of the model's modules over the same weights, and the run of one set of prompts; transformers' `generate`
for architectures that the engine does not compute. Never changes the model.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from transformers import GenerationConfig

from afterword.errors import ModelError
from afterword.model.generation.adapters import Adapter, lay_out
from afterword.model.generation.engine import Engine, Request
from afterword.model.generation.request import GenerationRequest, TokenOutput
from afterword.model.generation.runner import Runner
from afterword.model.lora import Delta
from afterword.model.lora_folder import PREFIX, LoraWeights
from afterword.sharing import BACKGROUND

log = logging.getLogger(__name__)


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
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
    ) -> list[DrawnAnswer]:
        """An answer to each prompt.

        Args:
            prompts: ids, each at least one.
            limits: most new tokens of each.
            adapter: the update to draw under, by module name; None is the base.
            temperature: 0 takes the likeliest token.
            top_p: draw from the fewest likeliest tokens that hold this share.
            top_k: draw from so many likeliest tokens; 0 is all. It cuts before `top_p`.
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

        engine = Engine(
            self._runner, deliver, max_batch=self._rows, working=lambda phase: BACKGROUND.give_way() if phase else None
        )
        laid = None if adapter is None else _adapter(adapter)
        adding = None if laid is None else engine.add_adapter(laid)
        for number, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
            # large odd factors: neighbouring seeds and places give generators that share nothing
            own = (seed * 1_000_003 + number) * 2_654_435_761 % (1 << 61)
            asked = GenerationRequest(temperature=temperature, top_p=top_p, top_k=top_k, seed=own, logprobs=True)
            engine.submit(Request(number, asked, list(prompt), limit, laid, None))
        if prompts:
            with BACKGROUND.piece():
                engine.run()
            if adding is not None:
                adding.result()
                engine.drop_adapters()
        if failed:
            raise ModelError(f"answers to {len(failed)} of {len(prompts)} prompts could not be drawn: the log has why")
        return answers


def _adapter(deltas: Mapping[str, Delta]) -> Adapter:
    """The update as the engine lays it into its layers."""
    layers = {name.removeprefix(PREFIX): LoraWeights(d.down, d.up, d.scale) for name, d in deltas.items()}
    return lay_out("live", "", layers)


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


def drawer_of(model: Any, ends: Sequence[int], *, rows: int = 16) -> Drawer | TransformersDrawer:
    """A Drawer; a TransformersDrawer for an architecture that the engine does not compute (Falcon, GPT-J, hybrids)."""
    try:
        return Drawer(model, ends, rows=rows)
    except ModelError as error:
        log.warning("answers are drawn by transformers, which is slower: %s", error.message)
        return TransformersDrawer(model, ends, rows=rows)


class TransformersDrawer:
    """Draws answers with transformers' `generate` over the model as it is, its active adapter unmerged.

    Args:
        model: PEFT's model over a transformers model.
        ends: ids that end an answer.
        rows: answers in the making at once.
    """

    def __init__(self, model: Any, ends: Sequence[int], *, rows: int = 16) -> None:
        self._model, self._ends, self._rows = model, list(ends), rows

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        *,
        adapter: Mapping[str, Delta] | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
    ) -> list[DrawnAnswer]:
        """An answer to each prompt, as `Drawer.draw` gives it; `adapter` None leaves the active adapter out. What
        `top_p` and `top_k` cut off is not in the log-probabilities.

        An answer depends on those that are drawn beside it: they share one random generator.
        """
        device = self._model.device
        found: dict[int, DrawnAnswer] = {}
        cuda = [device.index or 0] if device.type == "cuda" else []
        off = adapter is None and hasattr(self._model, "peft_config")
        with torch.random.fork_rng(devices=cuda), self._model.disable_adapter() if off else nullcontext():
            torch.manual_seed(seed)
            for limit in sorted(set(limits), reverse=True):  # one room each, so that no position is beyond the context
                mine = [i for i, own in enumerate(limits) if own == limit]
                for start in range(0, len(mine), self._rows):
                    group = mine[start : start + self._rows]
                    how = {"temperature": temperature, "top_p": top_p, "top_k": top_k} if temperature else {}
                    drawn = self._answers([prompts[i] for i in group], limit, how)
                    found.update(zip(group, drawn, strict=True))
        return [found[i] for i in range(len(prompts))]

    def _answers(self, prompts: Sequence[Sequence[int]], limit: int, how: dict[str, Any]) -> Iterator[DrawnAnswer]:
        model = self._model.get_base_model() if hasattr(self._model, "peft_config") else self._model
        width, pad = max(map(len, prompts)), self._ends[0]
        plain = GenerationConfig(
            do_sample=bool(how), max_new_tokens=limit, pad_token_id=pad, eos_token_id=self._ends,
            output_logits=True, return_dict_in_generate=True, **how,
        )  # fmt: skip
        ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
        with _without_generation_config(model):
            out = model.generate(input_ids=ids, attention_mask=mask, generation_config=plain)
        written = out.sequences[:, width:]
        heat, tokens_of = how.get("temperature", 1.0), written[:, :, None].unbind(1)
        # a step at a time: the scores of all are as large as the vocabulary times the tokens
        steps = zip(out.logits, tokens_of, strict=True)
        known = torch.cat([(one.float() / heat).log_softmax(-1).gather(1, ids) for one, ids in steps], 1)
        for tokens, logprobs in zip(written.tolist(), known.tolist(), strict=True):
            size = next((k for k, token in enumerate(tokens) if token in self._ends), len(tokens) - 1) + 1
            yield DrawnAnswer(tokens[:size], logprobs[:size])


@contextmanager
def _without_generation_config(model: Any) -> Iterator[None]:
    """`generate` takes from the model's own configuration whatever the given one leaves open."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
