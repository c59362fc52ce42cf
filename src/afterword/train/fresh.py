"""Answers that the student writes anew to the prompts it is trained on, so that it learns what follows from what
it has just learned: a behaviour that no served answer ever began can only be continued on such answers.

Owns sampling inside a run (temperature 1, nothing cut off) and the file that lets a killed run go on with the
same answers. It never changes the weights: the adapter is merged into copies that are dropped afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from afterword.learn.forward import by_budget
from afterword.train.examples import Encoded
from afterword.train.policy import Policy

_ROWS = 16
"""Prompts that are answered at once: at 64 the growing caches took 4.8 GiB, at 24 3.2, in the same time."""


def fresh_rows(
    policy: Policy,
    rows: Sequence[Encoded],
    ends: Sequence[int],
    run_dir: Path,
    *,
    number: int,
    key: str,
    seed: int,
    most: int,
) -> list[Encoded]:
    """`rows` with answers of the current student, kept in `run_dir`: none is longer than the longest of `rows` nor
    than `most` tokens.

    `key` names the run and `number` the pass: a file of the same run and pass is read instead.
    """
    file = run_dir / f"fresh-{number}.json"
    if file.is_file() and (kept := json.loads(file.read_text(encoding="utf-8")))["key"] == key:
        answers: list[list[int]] = kept["answers"]
    else:
        answers = _sample(policy, rows, ends, seed=seed * 1_000_003 + number, most=most)
        work = file.with_suffix(".new")
        work.write_text(json.dumps({"key": key, "answers": answers}), encoding="utf-8")
        work.replace(file)
    return [replace(row, completion=tuple(a), on_policy=True) for row, a in zip(rows, answers, strict=True)]


def clear_fresh(run_dir: Path) -> None:
    """Forget the answers of a finished run."""
    for file in run_dir.glob("fresh-*"):
        file.unlink()


@torch.no_grad()
def _sample(policy: Policy, rows: Sequence[Encoded], ends: Sequence[int], *, seed: int, most: int) -> list[list[int]]:
    longest = min(most, max(len(r.completion) for r in rows))
    sizes = [len(r.prompt) for r in rows]
    found: dict[int, list[int]] = {}
    cuda = [policy.device.index or 0] if policy.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), _merged(policy):
        torch.manual_seed(seed)
        for group in by_budget(sizes, _ROWS * max(sizes)):
            found.update(zip(group, _answer(policy, [rows[i].prompt for i in group], ends, longest), strict=True))
    return [found[i] for i in range(len(rows))]


def _answer(policy: Policy, prompts: Sequence[Sequence[int]], ends: Sequence[int], longest: int) -> list[list[int]]:
    """Completion ids, the end of turn included where the answer ended by itself."""
    width, pad = max(map(len, prompts)), ends[0]
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=policy.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=policy.device)
    out = policy.model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=longest,
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        pad_token_id=pad,
        eos_token_id=list(ends),
    )
    return [_cut(row, ends) for row in out[:, width:].tolist()]


def _cut(ids: list[int], ends: Sequence[int]) -> list[int]:
    first = next((k for k, i in enumerate(ids) if i in ends), len(ids) - 1)
    return ids[: first + 1]


@contextmanager
def _merged(policy: Policy) -> Iterator[None]:
    """The live adapter merged into copies of the weights: several times faster than beside them, and the
    originals come back as they were, to the bit."""
    originals: list[tuple[Any, torch.Tensor]] = []
    try:
        for module in policy.model.modules():
            if isinstance(module, LoraLayer):
                layer = module.get_base_layer()
                weight = layer.weight.data
                originals.append((layer, weight))
                layer.weight.data = (weight.float() + module.get_delta_weight("default").float()).to(weight.dtype)
        with policy.model.disable_adapter():
            yield
    finally:
        for layer, weight in originals:
            layer.weight.data = weight
