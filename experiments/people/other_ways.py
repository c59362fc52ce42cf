"""What else the same interactions could be spent on: imitating edits, preferring edits, and merging adapters.

The recipes are the product's where it has them; preference optimisation and merging are written here, because the
product does without them. Owns nothing but that: data in, a Candidate out.
"""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from lab import Lab
from safetensors.torch import load_file, save_file

from afterword.chat.canonical import text_of
from afterword.chat.render import Tokenizer, encode, end_of_turn_ids, render_prompt
from afterword.learn.diagnostics import log_probs
from afterword.learn.loss.loss_stage import token_losses
from afterword.learn.parts.divergences import NegativeLogLikelihood
from afterword.learn.recipes import describe, sft
from afterword.model.loading import load_tokenizer
from afterword.model.packing import Ids, hidden_states, packed
from afterword.records import Candidate, Json, new_id
from afterword.simulate import Persona
from afterword.simulate.users import mend
from afterword.train.artifact import TrainResult, candidate_record, identify, publish
from afterword.train.data.examples import Example
from afterword.train.runtime.policy import Policy, load_policy

BETA = 0.1
"""Strength of the reference in preference optimisation (arXiv 2305.18290)."""


def edited(examples: Sequence[Example], persona: Persona) -> list[tuple[Example, str]]:
    """Each example whose answer the persona's editors mend, with the mended text."""
    found = []
    for example in examples:
        text = text_of(example.turn.answer.get("content"))
        mended = mend(text, persona.unmet(text) or persona.wished())
        if mended is not None:
            found.append((example, mended))
    return found


def as_answers(pairs: Sequence[tuple[Example, str]]) -> list[Example]:
    """The mended texts as answers to imitate."""
    return [
        Example(
            dataclasses.replace(e.interaction, hindsight=""),
            dataclasses.replace(
                e.turn, answer={"role": "assistant", "content": text}, prompt_ids=None, completion_ids=None,
                logprobs=None,
            ),
        )
        for e, text in pairs
    ]  # fmt: skip


def imitate(lab: Lab, examples: Sequence[Example], parent: Candidate | None = None, passes: int = 2) -> Candidate:
    """Plain fine-tuning on the answers of `examples`."""
    return lab.learn(examples, sft(epochs=passes, include_off_policy=True), parent=parent)


Pair = tuple[tuple[Ids, Ids], tuple[Ids, Ids]]
"""(prompt, mended answer), (prompt, served answer)."""


def prefer(
    lab: Lab,
    pairs: Sequence[tuple[Example, str]],
    parent: Candidate | None = None,
    *,
    lr: float = 2e-4,
    passes: int = 2,
) -> Candidate:
    """Direct preference optimisation (arXiv 2305.18290): the mended answer over the served one, batches of 4 pairs."""
    tokenizer, made = load_tokenizer(lab.model), sft(lr=lr, epochs=passes)
    folder = lab.directory / parent.path if parent else None
    name, examples = new_id("cand"), [example for example, _ in pairs]
    with lab.timed("train"):
        policy = load_policy(lab.model, made, parent=folder, seed=lab.seed, device=lab.device)
        losses = _optimise(policy, _rows(tokenizer, pairs), lr, passes, lab.seed)
        about: Json = {**describe(made), "name": "preference", "beta": BETA}
        metrics: Json = {"loss_first": losses[0], "loss_last": losses[-1], "drift_last": None, "steps": len(losses)}
        result = TrainResult(
            path=lab.directory / "adapters" / name, base=lab.model, left=(), recipe=about, metrics=metrics,
            interactions=tuple(e.interaction.id for e in examples),
        )  # fmt: skip
        identity = identify(lab.model, tokenizer, made, folder, examples, lab.seed)
        run_dir = lab.directory / "runs" / name
        run_dir.mkdir(parents=True)
        publish(policy, dataclasses.replace(identity, recipe=about), result, run_dir)
    candidate = candidate_record(result, id=name, path=f"adapters/{name}", parent=parent.id if parent else None)
    lab.store.write(candidate)
    lab.trained |= set(candidate.interactions)
    return candidate


def _rows(tokenizer: Tokenizer, pairs: Sequence[tuple[Example, str]]) -> list[Pair]:
    end, rows = end_of_turn_ids(tokenizer)[0], []
    for example, text in pairs:
        prompt = render_prompt(tokenizer, example.turn.messages, example.turn.tools).ids
        served = example.turn.completion_ids or encode(tokenizer, text_of(example.turn.answer.get("content")))
        rows.append(((prompt, (*encode(tokenizer, text), end)), (prompt, served)))
    return rows


def _optimise(policy: Policy, rows: Sequence[Pair], lr: float, passes: int, seed: int) -> list[float]:
    """The loss of every step."""
    reference = [float(s.sum()) for s in log_probs(policy.model, policy.head, [pair for row in rows for pair in row])]
    optimiser = torch.optim.AdamW(policy.parameters(), lr=lr, weight_decay=0.0)
    order, losses = list(range(len(rows))), []
    dice = random.Random(seed)
    for _ in range(passes):
        dice.shuffle(order)
        for picked in _fours(order):
            both = [pair for i in picked for pair in rows[i]]
            batch = packed(both, policy.device)
            states = hidden_states(policy.model, batch)
            scores = token_losses(states, None, policy.head, batch.targets, NegativeLogLikelihood())
            sums = torch.stack([-part.sum() for part in torch.split(scores.loss, [len(ids) for _, ids in both])])
            known = torch.tensor([reference[2 * i + k] for i in picked for k in (0, 1)], device=sums.device)
            margin = (sums - known).view(-1, 2)
            loss = -torch.nn.functional.logsigmoid(BETA * (margin[:, 0] - margin[:, 1])).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            losses.append(float(loss.detach()))
    return losses


def _fours(order: Sequence[int]) -> list[list[int]]:
    """Groups of four (Python 3.11 has no `batched`)."""
    return [list(order[i : i + 4]) for i in range(0, len(order), 4)]


def merged(lab: Lab, candidates: Sequence[Candidate], share: float) -> Candidate:
    """One adapter whose update is `share` times the sum of the candidates' updates, exactly (factors side by side)."""
    name = new_id("cand")
    target = lab.directory / "adapters" / name
    first = lab.directory / candidates[0].path
    shutil.copytree(first, target)
    states = [load_file(lab.directory / c.path / "adapter_model.safetensors") for c in candidates]
    combined = {}
    for key in states[0]:
        parts = [state[key] for state in states]
        if key.endswith("lora_A.weight"):
            combined[key] = torch.cat(parts, 0).contiguous()
        else:
            combined[key] = torch.cat([share * part for part in parts], 1).contiguous()
    save_file(combined, target / "adapter_model.safetensors", metadata={"format": "pt"})
    _widen(target / "adapter_config.json", len(candidates))
    candidate = dataclasses.replace(
        candidates[0], id=name, path=f"adapters/{name}", parent=None,
        interactions=tuple(i for c in candidates for i in c.interactions), recipe={"name": "merge", "share": share},
    )  # fmt: skip
    lab.store.write(candidate)
    return candidate


def _widen(file: Path, times: int) -> None:
    """The configuration of an adapter with `times` as many columns and the same scale."""
    config = json.loads(file.read_text("utf-8"))
    config["r"], config["lora_alpha"] = config["r"] * times, config["lora_alpha"] * times
    file.write_text(json.dumps(config), encoding="utf-8")
