"""A transformers model made ready to serve: parts replaced, attention over the engine's cache, shapes
measured, and its own answers compared before anything is served. Owns the one forward call."""

from __future__ import annotations

import logging
from typing import Any

import torch

from afterword.errors import ModelError
from afterword.model.generation.cached_attention import NAME, Plan, Probe, rows_agree
from afterword.model.generation.fused_linear import note_inputs, replace_parts
from afterword.model.generation.kv_cache import KeyValues
from afterword.model.generation.thread_tuner import Cores
from afterword.model.rotary import sequence_lengths, switch_length

log = logging.getLogger("afterword.engine")

_CPU_CACHE_BYTES = 3 << 29
_CUDA_CACHE_SHARE = 0.7


class Runner:
    """`model`: a causal LM from `model.loading.load_model`, changed in place; `max_model_len` None takes the
    model's own context, less when the cache cannot hold it. `cache_bytes` bounds the cache.
    `wide_head`: logits in float32 of a half-precision model, as training computes them; a larger head to read a step.

    Raises ModelError when the architecture does not give the same answers through the engine's attention.
    """

    def __init__(
        self,
        model: Any,
        *,
        ends: frozenset[int],
        max_model_len: int | None = None,
        cache_bytes: int | None = None,
        wide_head: bool = False,
    ) -> None:
        self._model = model
        self.vocabulary = int(model.get_input_embeddings().weight.shape[0])
        """Rows of the embedding: a token id beyond them cannot be read."""
        self.ends = frozenset(end for end in ends if end < self.vocabulary)
        self.dtype, self.device = model.dtype, model.device
        self.switch = switch_length(model)
        self._cores = Cores(torch.get_num_threads())
        check = torch.arange(1, 25, device=self.device)[None] % model.config.get_text_config().vocab_size
        with torch.inference_mode():
            with note_inputs(model) as groups:
                own = model(input_ids=check, use_cache=False).logits[0].float()
            model.set_attn_implementation(NAME)
            shapes = self._probe(check)
            self.lines, self.mask = replace_parts(model, groups, wide_head=wide_head)
            per_token = sum(heads * (k + v) for heads, k, v in shapes) * self.dtype.itemsize
            budget = (cache_bytes or self._cache_bytes()) // per_token
            self.max_model_len = self._context(max_model_len, budget)
            self.cache = KeyValues(shapes, self.dtype, self.device, budget)
            heads = int(model.config.get_text_config().num_attention_heads)
            self.cache.reusable = self.switch is None and (
                self.device.type == "cuda" or rows_agree(heads, *shapes[0], self.dtype)
            )
            self._compare(check, own)

    def _probe(self, check: torch.Tensor) -> list[tuple[int, int, int]]:
        probe = Probe()
        self._model(input_ids=check, use_cache=False, plan=probe)
        layers = self._model.config.get_text_config().num_hidden_layers
        if sorted(probe.shapes) != list(range(layers)):
            raise ModelError(
                f"{type(self._model).__name__} has {layers} layers but attends in {len(probe.shapes)} of them: "
                "the engine serves transformers whose layers all attend; use --upstream with another server"
            )
        return [probe.shapes[layer] for layer in range(layers)]

    def _cache_bytes(self) -> int:
        if self.device.type == "cuda":
            self.free_memory()  # blocks that torch keeps, after training steps say, do not count as free
            return int(torch.cuda.mem_get_info(self.device)[0] * _CUDA_CACHE_SHARE)
        return _CPU_CACHE_BYTES

    def _context(self, asked: int | None, budget: int) -> int:
        own = self._model.config.get_text_config().max_position_embeddings
        if asked is not None and asked > own:
            raise ModelError(f"--max-model-len {asked} is more than the model's context of {own} tokens")
        most = budget // 256 * 256
        if (asked or own) > most:
            log.warning("the cache holds %d tokens: the context is cut from %d", most, asked or own)
        return min(asked or own, most)

    def _compare(self, check: torch.Tensor, own: torch.Tensor) -> None:
        """Read a prompt in two chunks beside another, then write one token, and compare with the model's own
        logits: an architecture that the engine would run wrongly is refused at the start."""
        ids = check[0].tolist()
        self.cache.reserve(2, len(ids))
        half, last = len(ids) // 2, len(ids) - 1
        self.forward(ids[:half] * 2, Plan(self.cache, [], [(0, 0, half), (1, 0, half)]), [0])
        self.forward(ids[half:last], Plan(self.cache, [], [(1, half, last)]), [0])
        got = self.forward(ids[last:], Plan(self.cache, [(1, last)], []), [0])[0]
        want = own[last].log_softmax(-1)
        gap = float((got.log_softmax(-1) - want).abs().mean())
        if not gap < (0.01 if self.dtype == torch.float32 else 0.25):
            raise ModelError(
                f"{type(self._model).__name__} answers differently through the engine (mean log-probability gap "
                f"{gap:.3g}): this architecture is not supported; use --upstream with another server"
            )

    def forward(self, ids: list[int], plan: Plan, ends: list[int], lengths: list[int] | None = None) -> torch.Tensor:
        """One flat row of tokens through the model: logits [len(ends), vocabulary] float32 at `ends` (at the last token
        when there are none: a prompt that is not yet read to its end). `lengths`: for each token, the tokens of its
        sequence that are known, for models whose rotary factors depend on them."""
        totals = (lengths or [len(ids)] * len(ids)) if self.switch is not None else []
        known = torch.tensor([totals], device=self.device)
        with (
            torch.inference_mode(),
            self._cores.share(len(ids), bool(plan.chunks)),
            sequence_lengths(self._model, known),
        ):
            kept = torch.tensor(ends or [len(ids) - 1], dtype=torch.long, device=self.device)
            self.mask.read_at(kept, plan.decoding)
            logits: torch.Tensor = self._model(
                input_ids=torch.tensor([ids], device=self.device),
                position_ids=plan.positions[None],
                use_cache=False,
                logits_to_keep=kept,
                plan=plan,
            ).logits[0]
        return logits[:, : self.vocabulary].float()

    def check(self) -> None:
        """Compute one known token in the unused first row. Raises the device's error, or RuntimeError when the logits
        are not finite.
        """
        self.cache.reserve(1, 1)
        logits = self.forward([1 % self.vocabulary], Plan(self.cache, [(0, 0)], []), [0])
        if not bool(logits.isfinite().all()):
            raise RuntimeError("its logits are not finite")

    def free_memory(self) -> None:
        """Give cached blocks of a GPU back to it, after a step that may have failed for lack of memory."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
