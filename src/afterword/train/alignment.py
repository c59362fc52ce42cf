"""The alignment report: proof, at the start of every run, that both sides score the same ids from the right
place, and that the hindsight says something that a random hindsight does not.

Reads the model before the first step; changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from afterword.chat.render import Tokenizer, decode, render_prompt
from afterword.learn.contexts import shuffled
from afterword.learn.diagnostics import log_probs
from afterword.learn.recipes import Recipe
from afterword.train.encoded import Encoded, Example, Prepared
from afterword.train.policy import Policy

_PROBED = 16
_PROBED_TOKENS = 4096
_SHOWN = 12
_FILE = "signal.json"


@dataclass(frozen=True, slots=True)
class Signal:
    """What the hindsight says about the served answers before training (nats), over the first 16 interactions,
    fewer when they are long."""

    real: float
    """Mean |log p(y|x,o) - log p(y|x)| per token under the user's own hindsight."""
    other: float | None
    """The same under another interaction's hindsight; None when all interactions have the same words."""
    gap: float
    """Mean log p(y|x,o) - log p(y|x): the privileged gap (negative where users disagree with the answers)."""
    n: int


def write_alignment(
    policy: Policy, tokenizer: Tokenizer, prepared: Prepared, recipe: Recipe, run_dir: Path, seed: int
) -> Signal | None:
    """Write `alignment.txt` and `signal.json`. None for a recipe without hindsight. A resumed run keeps the
    files of its start."""
    file = run_dir / _FILE
    if file.is_file() and (run_dir / "alignment.txt").is_file():
        kept = json.loads(file.read_text(encoding="utf-8"))
        return Signal(**kept) if kept else None
    where = next((t.context for t in recipe.terms if t.context.privileged), None)
    lines = _counts(prepared)
    signal = None
    if where is not None:
        name, n = where.name, _probed(prepared)
        used = prepared.rows[:n]
        other = _other_prompts(tokenizer, prepared.used[:n], recipe, seed)
        pairs = [(r.prompt, r.completion) for r in used]
        pairs += [(r.teacher_prompts[name], r.completion) for r in used]
        pairs += [(p, r.completion) for p, r in zip(other, used, strict=True)]
        scores = log_probs(policy.model, policy.head, pairs, budget=recipe.micro_tokens)
        plain, real, wrong = scores[:n], scores[n : 2 * n], scores[2 * n :]
        tokens = sum(len(r.completion) for r in used)
        distinct = len({e.interaction.hindsight for e in prepared.used[:n]})
        signal = Signal(
            real=_mean_size(real, plain),
            other=_mean_size(wrong, plain) if distinct > 1 else None,
            gap=sum(float((q - s).sum()) for q, s in zip(real, plain, strict=True)) / tokens,
            n=n,
        )
        lines += [_serve_gap(used, plain)]
        lines += _first(tokenizer, used[0], name, (real[0] - plain[0]).tolist())
        lines += ["", f"signal per token (nats): {json.dumps(asdict(signal))}"]
    (run_dir / "alignment.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    file.write_text(json.dumps(asdict(signal) if signal else None), encoding="utf-8")
    return signal


def _probed(prepared: Prepared) -> int:
    """How many interactions to score: the first 16, fewer when they are long, but two where there are two."""
    total = list(accumulate(len(r.prompt) + len(r.completion) for r in prepared.rows[:_PROBED]))
    return max(sum(size <= _PROBED_TOKENS for size in total), min(2, len(total)))


def _serve_gap(used: Sequence[Encoded], plain: Sequence[Tensor]) -> str:
    """What the server said against what this model says of the same tokens: the first place to look when training
    and serving differ (another adapter, another template, another dtype)."""
    gaps = [p - torch.tensor(r.served) for r, p in zip(used, plain, strict=True) if r.served]
    known = [g[torch.isfinite(g)] for g in gaps]
    flat = torch.cat(known) if known else torch.empty(0)
    if not len(flat):
        return "log-probabilities from the server: none to compare with"
    return (
        f"log-probabilities from the server: {len(flat)} tokens, ours minus theirs {float(flat.mean()):+.4f} on "
        f"average, {float(flat.abs().max()):.4f} at most (nats)"
    )


def _mean_size(hindsight: Sequence[Tensor], plain: Sequence[Tensor]) -> float:
    """Mean |log-ratio| over all tokens."""
    return float((torch.cat(list(hindsight)) - torch.cat(list(plain))).abs().mean())


def _counts(prepared: Prepared) -> list[str]:
    cut = [r.cut for r in prepared.rows if r.cut]
    lines = [
        f"interactions: {len(prepared.rows)} trained, {len(prepared.left)} left out",
        f"tokenised here (answers without served ids): {sum(not r.on_policy for r in prepared.rows)}",
        f"hindsight cut: {len(cut)} interactions, {sum(cut)} tokens",
    ]
    return lines + [f"left out {one.interaction}: {one.reason}: {one.detail}" for one in prepared.left]


def _other_prompts(tokenizer: Tokenizer, used: Sequence[Example], recipe: Recipe, seed: int) -> list[tuple[int, ...]]:
    where = next(t.context for t in recipe.terms if t.context.privileged)
    texts = shuffled([e.interaction.hindsight for e in used], seed)
    prompts = []
    for example, text in zip(used, texts, strict=True):
        short = text[: 4 * recipe.max_hindsight]
        messages = where.place(example.turn.messages, example.turn.answer, short)
        prompts.append(render_prompt(tokenizer, messages, example.turn.tools).ids)
    return prompts


def _first(tokenizer: Tokenizer, row: Encoded, name: str, ratios: Sequence[float]) -> list[str]:
    shown = list(zip(row.completion, ratios, strict=True))[:_SHOWN]
    return [
        "",
        f"first interaction {row.interaction}",
        f"--- student reads ({len(row.prompt)} ids)",
        decode(tokenizer, row.prompt, special=True),
        f"--- teacher reads ({len(row.teacher_prompts[name])} ids, context {name!r})",
        decode(tokenizer, row.teacher_prompts[name], special=True),
        f"--- both score ({len(row.completion)} ids; the last is {row.completion[-1]} "
        f"{decode(tokenizer, row.completion[-1:], special=True)!r})",
        *[f"{i:>7} {decode(tokenizer, [i], special=True)!r:<20} {x:+.3f}" for i, x in shown],
    ]
