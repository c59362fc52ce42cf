"""Which recipe should be the default? One factor at a time around the reference setting, on the embedded model.

    python experiments/default_recipe/run.py teachers          what each context makes the teacher itself write
    python experiments/default_recipe/run.py train [--shard I/N] [--only TEXT]
    python experiments/default_recipe/run.py table             results as Markdown

Results are appended to results.jsonl beside this file; a run that is there is not repeated. The trait checkers
score held-out answers only; training sees the users' words and the served ids.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tasks import TRAITS, Trait, distinct2, poor, prompts

from afterword.chat.render import decode, encode, end_of_turn_ids, render_prompt
from afterword.learn.diagnostics import log_probs
from afterword.learn.parts.contexts import CONTEXTS
from afterword.learn.parts.divergences import JSD, PolicyGradient, ReverseKL
from afterword.learn.parts.schedules import Linear
from afterword.learn.parts.teachers import LIVE
from afterword.learn.parts.weights import TokenMean
from afterword.learn.recipes import sdpo_interactions, sft
from afterword.model.head import head_of
from afterword.model.loading import EMBEDDED, load_model, load_tokenizer
from afterword.records import Interaction, Turn
from afterword.train.data.examples import Example
from afterword.train.loop import train_candidate

HERE = Path(__file__).parent
RESULTS = Path(os.environ.get("RESULTS", HERE / "results.jsonl"))
TRAIN, HOLDOUT, CAP = 64, 32, 48

SERVED_ONLY: dict[str, Any] = {"epochs": 2, "fresh": 0}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "served only, 2 passes": SERVED_ONLY,
    "fresh 2": {"fresh": 2},
    "reverse KL": {"estimator": ReverseKL()},
    "JSD 0.5": {"estimator": JSD(0.5)},
    "policy gradient": {"estimator": PolicyGradient()},
    "context block": {"where": CONTEXTS["block"]},
    "context next turn": {"where": CONTEXTS["next_turn"]},
    "live teacher": {"teacher": LIVE},
    "anchor 0.1": {"anchor": 0.1},
    "token mean": {"reduction": TokenMean()},
    "lr 3e-4": {"lr": 3e-4},
    "lr 2e-3": {"lr": 2e-3},
    "batch 8": {"batch": 8},
    "batch 16": {"batch": 16},
    "lr falls": {"schedule": Linear(warmup=1)},
    "sft control": SERVED_ONLY,
}
"""One factor at a time around the class defaults."""


class Distributed:
    """The base model, its answers to all prompts, and general text to measure drift on."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.tokenizer = load_tokenizer(EMBEDDED)
        self.model = load_model(EMBEDDED, device=device)
        self.ends = end_of_turn_ids(self.tokenizer)
        self.train, self.holdout = prompts(TRAIN, HOLDOUT)
        self.head = head_of(self.model)

    def answers(self, model: Any, chats: Sequence[list[dict[str, str]]], *, sample: int | None) -> list[list[int]]:
        """Completion ids, the end of turn included where the answer ended; greedy when `sample` is None."""
        found = []
        for start in range(0, len(chats), 32):
            ids = [render_prompt(self.tokenizer, c).ids for c in chats[start : start + 32]]
            width = max(map(len, ids))
            pad = self.ends[0]
            batch = torch.tensor([[pad] * (width - len(i)) + list(i) for i in ids], device=model.device)
            mask = torch.tensor([[0] * (width - len(i)) + [1] * len(i) for i in ids], device=model.device)
            if sample is not None:
                torch.manual_seed(sample + start)
            options = {"temperature": 1.0, "top_p": 1.0, "top_k": 0} if sample is not None else {}
            out = model.generate(
                input_ids=batch, attention_mask=mask, max_new_tokens=CAP, do_sample=sample is not None,
                pad_token_id=pad, eos_token_id=list(self.ends), **options,
            )  # fmt: skip
            found += [self._cut(row) for row in out[:, width:].tolist()]
        return found

    def _cut(self, ids: list[int]) -> list[int]:
        stops = [k for k, i in enumerate(ids) if i in self.ends]
        return ids[: stops[0] + 1] if stops else ids

    def text(self, ids: Sequence[int]) -> str:
        return decode(self.tokenizer, ids).strip()

    def quality(self, answers: Sequence[Sequence[int]], questions: Sequence[str], trait: Trait) -> dict[str, float]:
        """Means over the answers."""
        texts = [self.text(a) for a in answers]
        n = len(texts)
        has = [trait.check(t, a[-1] in self.ends) for t, a in zip(texts, answers, strict=True)]
        bad = [poor(t, q, trait) for t, q in zip(texts, questions, strict=True)]
        return {
            "share": sum(has) / n,
            "good": sum(h and not b for h, b in zip(has, bad, strict=True)) / n,
            "poor": sum(bad) / n,
            "tokens": sum(map(len, answers)) / n,
            "distinct2": sum(map(distinct2, texts)) / n,
        }

    def examples(self, model: Any, questions: Sequence[str], trait: Trait, seed: int) -> list[Example]:
        """Answers of `model` at temperature 1, each with a follow-up of that trait."""
        chats = [[{"role": "user", "content": q}] for q in questions]
        served = self.answers(model, chats, sample=seed)
        rng = random.Random(f"{trait.name}-{seed}")
        made = []
        for k, (chat, ids) in enumerate(zip(chats, served, strict=True)):
            body = ids[:-1] if ids[-1] in self.ends else ids
            if not body:
                continue
            text = decode(self.tokenizer, body)
            turn = Turn(
                id=f"t{k}", messages=tuple(chat), answer={"role": "assistant", "content": text},
                prompt_ids=render_prompt(self.tokenizer, chat).ids, completion_ids=tuple(ids),
            )  # fmt: skip
            made.append(Example(
                Interaction(
                    id=f"{trait.name}-{seed}-{k}", turn=turn.id, feedback=(), kind="follow_up",
                    hindsight=rng.choice(trait.wordings), polarity=-1, weight=1.0, split="train",
                ), turn,
            ))  # fmt: skip
        return made


def teachers(world: Distributed) -> None:
    """What the teacher itself would write, under each context."""
    for trait in TRAITS.values():
        rng = random.Random(trait.name)
        chats = [[{"role": "user", "content": q}] for q in world.holdout]
        plain = world.answers(world.model, chats, sample=None)
        for name, where in CONTEXTS.items():
            told = []
            for chat, ids in zip(chats, plain, strict=True):
                answer = {"role": "assistant", "content": world.text(ids)}
                told.append(where.place(chat, answer, rng.choice(trait.wordings)))
            answers = world.answers(world.model, told, sample=None)
            found = world.quality(answers, world.holdout, trait)
            shown = [world.text(a) for a in answers[:3]]
            record({"what": "teacher", "trait": trait.name, "context": name, "n": len(told), **found, "shown": shown})


def train(world: Distributed, variant: str, trait: Trait, seed: int) -> None:
    """One run and its held-out scores."""
    settings = VARIANTS[variant]
    recipe = sft(**settings) if variant == "sft control" else sdpo_interactions(**settings)
    examples = world.examples(world.model, world.train, trait, seed)
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        out, run = Path(folder) / "out", Path(folder) / "run"
        result = train_candidate(
            examples, model=EMBEDDED, out=out, recipe=recipe, run_dir=run, seed=seed, device=world.device
        )
        seconds = time.monotonic() - started
        loaded = load_model(EMBEDDED, device=world.device)
        tuned = PeftModel.from_pretrained(loaded, str(out)).merge_and_unload()
    chats = [[{"role": "user", "content": q}] for q in world.holdout]
    answers = world.answers(tuned, chats, sample=None)
    record({
        "what": "train", "variant": variant, "trait": trait.name, "seed": seed, "n": len(chats),
        "interactions": len(examples), "device": result.metrics["device"], "seconds": round(seconds, 1),
        **world.quality(answers, world.holdout, trait), "drift": drift(world, tuned),
        "metrics": result.metrics, "shown": [world.text(a) for a in answers[:4]],
    })  # fmt: skip


GENERAL = (
    "The river rises in the northern hills and reaches the sea after four hundred kilometres.",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "She opened the letter slowly, read it twice, and put it back into the drawer without a word.",
    "Water boils at a lower temperature on a mountain because the air pressure is lower there.",
    "In 1969 two people walked on the moon while a third one stayed in orbit around it.",
    "To whom it may concern: please find the signed contract attached to this message.",
)


def drift(world: Distributed, tuned: Any) -> float:
    """Mean loss in log-probability (nats per token) of general text against the base."""
    pairs = [((0,), encode(world.tokenizer, text)) for text in GENERAL]
    before = torch.cat(log_probs(world.model, world.head, pairs))
    after = torch.cat(log_probs(tuned, head_of(tuned), pairs))
    return float((before - after).mean())


def record(row: dict[str, Any]) -> None:
    """Append one result and show it."""
    with RESULTS.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(json.dumps({k: v for k, v in row.items() if k not in ("metrics", "shown")}), flush=True)


def rows() -> list[dict[str, Any]]:
    """All results so far."""
    return [json.loads(x) for x in RESULTS.read_text(encoding="utf-8").splitlines()] if RESULTS.is_file() else []


def jobs() -> list[tuple[str, str, int]]:
    """(variant, trait, seed): every factor on one trait, the contenders on all traits, the winner on more seeds."""
    found = [(v, "steps", 0) for v in VARIANTS]
    found += [(v, t, 0) for v in ("default", "served only, 2 passes", "fresh 2") for t in TRAITS]
    found += [(v, t, s) for v in ("default", "batch 8") for t in ("steps", "brief") for s in (1, 2)]
    return list(dict.fromkeys(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("teachers", "train", "table"))
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--only", default="")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    if options.what == "table":
        table()
        return
    world = Distributed(options.device)
    if options.what == "teachers":
        teachers(world)
        return
    part, of = map(int, options.shard.split("/"))
    done = {(r["variant"], r["trait"], r["seed"]) for r in rows() if r["what"] == "train"}
    for k, (variant, trait, seed) in enumerate(jobs()):
        if k % of == part and (variant, trait, seed) not in done and options.only in f"{variant} {trait} {seed}":
            train(world, variant, TRAITS[trait], seed)


def table() -> None:
    """Both tables, seeds averaged."""
    cells = ("share", "good", "poor", "tokens", "distinct2")
    print("| trait | context | " + " | ".join(cells) + " |\n|" + "---|" * (len(cells) + 2))
    for r in rows():
        if r["what"] == "teacher":
            print(f"| {r['trait']} | {r['context']} | " + " | ".join(f"{r[c]:.2f}" for c in cells) + " |")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for r in rows():
        if r["what"] == "train":
            groups.setdefault((r["trait"], r["variant"]), []).append(r)
    cells = (*cells, "drift", "seconds")
    print("\n| trait | variant | seeds | " + " | ".join(cells) + " |\n|" + "---|" * (len(cells) + 3))
    for (trait, variant), found in sorted(groups.items()):
        means = [sum(r[c] for r in found) / len(found) for c in cells]
        print(f"| {trait} | {variant} | {len(found)} | " + " | ".join(f"{m:.2f}" for m in means) + " |")


if __name__ == "__main__":
    main()
