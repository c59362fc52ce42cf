"""Answers that the student writes anew to the prompts it is trained on, so that it learns what follows from what
it has just learned: a behaviour that no served answer ever began can only be continued on such answers.

Owns sampling inside a run (temperature 1, nothing cut off) and the file that lets a killed run go on with the
same answers. It never changes the weights: the adapter is merged_adapter into copies that are dropped afterwards.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from transformers import GenerationConfig

from afterword.chat.render import Tokenizer, decode
from afterword.errors import AfterwordError, ConfigError
from afterword.learn.diagnostics import log_probs
from afterword.learn.loss.token_batch import ALONE
from afterword.learn.parts.anchors import GOLD
from afterword.learn.recipes.validate import load_verifier
from afterword.model.packing import by_budget
from afterword.records import Json, Turn
from afterword.store.files import write_whole
from afterword.train.data.examples import Encoded, with_groups
from afterword.train.runtime.policy import Policy

_ROWS = 16
"""Prompts that are answered at once: at 64 the growing caches took 4.8 GiB, at 24 3.2, in the same time."""


class VerifierFailed(AfterwordError):
    """The user's own verifier raised; nothing that was written is lost."""

    kind = "verifier_failed"


RewardFunction = Callable[[Encoded, Sequence[int]], float]
"""The reward of an answer (completion ids) to a row's prompt."""


def rollout_rows(
    policy: Policy,
    rows: Sequence[Encoded],
    ends: Sequence[int],
    run_dir: Path,
    *,
    number: int,
    key: str,
    seed: int,
    most: int,
    limit: int,
    answers: int = 1,
    scored: bool = False,
    judge: RewardFunction | None = None,
) -> list[Encoded]:
    """`rows`, each `answers` times, with answers of the current student, kept in `run_dir`: none is longer than the
    longest of `rows`, nor than `most` tokens, nor than what a model that reads `limit` tokens has left after the
    longest prompt of its row. What was written by people (kind "gold") stays as it is.

    `key` names the run and `number` the pass: a file of the same run and pass is read instead. `scored` adds the
    log-probabilities under the student as it is now, `judge` the rewards: it is asked once, also by a run that is
    killed and goes on.
    """
    file = run_dir / f"fresh-{number}.json"
    gold = [r for r in rows if r.answer.kind == GOLD]
    asked = [r for r in rows if r.answer.kind != GOLD for _ in range(answers)]
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if kept.get("key") == key:
        written, served = kept["answers"], kept["served"]
    else:
        room = [_room(row, rows, most, limit) for row in asked]
        written = _sample(policy, asked, ends, seed=seed * 1_000_003 + number, room=room) if asked else []
        pairs = [(row.prompt, a) for row, a in zip(asked, written, strict=True)]
        served = [p.tolist() for p in log_probs(policy.model, policy.head, pairs)] if scored and pairs else []
        kept = {"key": key, "answers": written, "served": served, "rewards": None}
        _keep(file, kept)  # before they are judged: a judge that fails costs no answer
    if kept["rewards"] is None:
        kept["rewards"] = [judge(row, a) for row, a in zip(asked, written, strict=True)] if judge else []
        _keep(file, kept)
    rewards, n = kept["rewards"], len(written)
    fresh = [
        replace(
            row,
            completion=tuple(a),
            on_policy=True,
            served=tuple(s),
            answer=replace(row.answer, reward=reward, group=ALONE, age=0.0),
        )
        for row, a, s, reward in zip(asked, written, served or [()] * n, rewards or [None] * n, strict=True)
    ]
    return gold + (with_groups(fresh) if judge else fresh)


def _keep(file: Path, what: Json) -> None:
    write_whole(file, json.dumps(what))


def _room(row: Encoded, rows: Sequence[Encoded], most: int, limit: int) -> int:
    """Most tokens of a fresh answer to `row`."""
    return min(most, max(len(r.completion) for r in rows if r.answer.kind != GOLD), limit - row.longest_prompt)


def reward_function(verifier: str | None, used: Mapping[str, Turn], tokenizer: Tokenizer) -> RewardFunction | None:
    """Asks `verifier` (`package.module:function`) about (turn, text); None without one. `used` has the turns by
    interaction. Raises ConfigError when there is no such function or, when asked, it returns no finite number, and
    VerifierFailed when it raises."""
    if verifier is None:
        return None
    function = load_verifier(verifier)

    def judge(row: Encoded, completion: Sequence[int]) -> float:
        turn = used[row.interaction]
        try:
            value = function(turn, decode(tokenizer, completion))
        except Exception as error:  # whatever someone else's code raises
            raise VerifierFailed(
                f"the verifier {verifier!r} failed on an answer to turn {turn.id}: {type(error).__name__}: {error}. "
                "The answers are kept: mend it, train again with the same settings, and it is asked about the same ones"
            ) from error
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(f"the verifier {verifier!r} returned {value!r}: it has to return a finite number")
        return float(value)

    return judge


def clear_rollouts(run_dir: Path) -> None:
    """Forget the answers of a finished run."""
    for file in run_dir.glob("fresh-*"):
        file.unlink()


@torch.no_grad()
def _sample(
    policy: Policy, rows: Sequence[Encoded], ends: Sequence[int], *, seed: int, room: Sequence[int]
) -> list[list[int]]:
    """An answer of at most `room` tokens to each prompt. Prompts that are answered together have the same room, so
    that no position is beyond what the model reads."""
    sizes = [len(r.prompt) for r in rows]
    found: dict[int, list[int]] = {}
    cuda = [policy.device.index or 0] if policy.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), merged_adapter(policy):
        torch.manual_seed(seed)
        for longest in sorted(set(room), reverse=True):
            mine = [i for i, n in enumerate(room) if n == longest]
            for part in by_budget([sizes[i] for i in mine], _ROWS * max(sizes)):
                group = [mine[k] for k in part]
                texts = generate(policy, [rows[i].prompt for i in group], ends, longest)
                found.update(zip(group, texts, strict=True))
    return [found[i] for i in range(len(rows))]


def generate(
    policy: Policy, prompts: Sequence[Sequence[int]], ends: Sequence[int], longest: int, *, greedy: bool = False
) -> list[list[int]]:
    """Completion ids of at most `longest` tokens, the end of turn included where the answer ended by itself: drawn
    from the model's own distribution, or the likeliest, whatever its `generation_config.json` would change of it."""
    width, pad = max(map(len, prompts)), ends[0]
    how: dict[str, Any] = {} if greedy else {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    plain = GenerationConfig(
        do_sample=not greedy, max_new_tokens=longest, pad_token_id=pad, eos_token_id=list(ends), **how
    )
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=policy.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=policy.device)
    model = policy.model.get_base_model()
    own = model.generation_config
    model.generation_config = GenerationConfig()  # generate() takes from it whatever `plain` leaves open
    # The prompts' last states are a slice, and a product with a slice copies the head's weights once for each row.
    whole = model.get_output_embeddings().register_forward_pre_hook(lambda _, given: (given[0].contiguous(),))
    try:
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=plain)
    finally:
        whole.remove()
        model.generation_config = own
    return [_cut(row, ends) for row in out[:, width:].tolist()]


def _cut(ids: list[int], ends: Sequence[int]) -> list[int]:
    first = next((k for k, i in enumerate(ids) if i in ends), len(ids) - 1)
    return ids[: first + 1]


@contextmanager
def merged_adapter(policy: Policy) -> Iterator[None]:
    """The live adapter merged_adapter into copies of the weights: several times faster than beside them, and the
    originals come back as they were, to the bit."""
    originals: list[tuple[Any, torch.nn.Parameter]] = []
    try:
        for module in policy.model.modules():
            if isinstance(module, LoraLayer):
                layer = module.get_base_layer()
                weight = layer.weight
                originals.append((layer, weight))
                changed = (weight.float() + module.get_delta_weight("default").float()).to(weight.dtype)
                # a parameter of its own: the weight of a tied head is the embedding's too, which has no adapter
                layer.weight = torch.nn.Parameter(changed, requires_grad=False)
        with policy.model.disable_adapter():
            yield
    finally:
        for layer, weight in originals:
            layer.weight = weight
