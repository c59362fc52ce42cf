"""Which score of an answer under a follow-up agrees with a program-decided trait, and which can be gamed?

    python experiments/holdout_score.py [--prompts 16] [--out results.json]

For several simulated users: the embedded model answers held-out questions plainly and with the user's complaint
appended (what a good candidate would do); beside them stand degenerate answers (empty, an echo of the question, the
complaint parroted, the trait's bare mark, one sentence repeated, the right style on another question). Each score
is asked how often a checked good answer beats the plain one, and how often a degenerate one beats the good one.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from afterword.chat.render import decode, encode, end_of_turn_ids, render_prompt
from afterword.learn.contexts import CONTEXTS
from afterword.learn.diagnostics import log_probs
from afterword.learn.head import head_of
from afterword.learn.models import EMBEDDED, load_model, load_tokenizer
from afterword.simulate.checkers import check
from afterword.simulate.personas import load_persona
from afterword.simulate.prompts import load_prompts

BARE = {"greeting": "Hello friend!", "numbered": "1. 2. 3.", "spanish": "Sí.", "pirate": "Arr, matey!",
        "emojis": "😀🎉😊", "brief": "Yes.", "plain": "Sure."}  # fmt: skip
Score = Callable[[np.ndarray, np.ndarray], float]


def clipped(values: np.ndarray, bound: float) -> np.ndarray:
    return np.clip(values, -bound, bound)


def scores() -> dict[str, Score]:
    """Name -> f(log p(y|x), log p(y|x,o)), each [n] nats a token."""
    return {
        "sum": lambda s, q: float((q - s).sum()),
        "mean": lambda s, q: float((q - s).mean()),
        "first16": lambda s, q: float((q - s)[:16].mean()),
        "first16/16": lambda s, q: float((q - s)[:16].sum() / 16),
        "clip3/sum": lambda s, q: float(clipped(q - s, 3).sum()),
        "clip3/floor32": lambda s, q: float(clipped(q - s, 3).sum() / max(len(s), 32)),
        "clip1/floor32": lambda s, q: float(clipped(q - s, 1).sum() / max(len(s), 32)),
        "mean/floor32": lambda s, q: float((q - s).sum() / max(len(s), 32)),
        "logq mean": lambda s, q: float(q.mean()),
        "logq floor32": lambda s, q: float((q.sum() - 4 * max(0, 32 - len(s))) / max(len(s), 32)),
        "A+q/2": lambda s, q: float((q - s).mean() + q.mean() / 2),
        "A min q": lambda s, q: float(np.minimum(clipped(q - s, 3), q + 2).mean()),
        "A min q floor": lambda s, q: float(np.minimum(clipped(q - s, 3), q + 2).sum() / max(len(s), 32)),
        "A gated by q": lambda s, q: float((clipped(q - s, 3) * np.exp(np.minimum(q, 0) / 2)).sum() / max(len(s), 32)),
    }


def generate(model, tokenizer, conversations, cap):
    tokenizer.padding_side = "left"
    batch = tokenizer([render_prompt(tokenizer, c).text for c in conversations], return_tensors="pt", padding=True,
                      add_special_tokens=False)  # fmt: skip
    out = model.generate(**batch, max_new_tokens=cap, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    ends = end_of_turn_ids(tokenizer)
    answers = []
    for row in out[:, batch["input_ids"].shape[1] :].tolist():
        stop = next((i + 1 for i, t in enumerate(row) if t in ends), len(row))
        answers.append(tuple(row[:stop]))
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--cap", type=int, default=64)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model, tokenizer = load_model(EMBEDDED), load_tokenizer(EMBEDDED)
    eot = end_of_turn_ids(tokenizer)[0]
    prompts = [p.text for p in load_prompts("heldout")][: args.prompts]
    asked = [[{"role": "user", "content": p}] for p in prompts]
    with torch.no_grad():
        plain = generate(model, tokenizer, asked, args.cap)
        rows = []
        for name in BARE:
            persona = load_persona(name)
            complaints = persona.complaints
            said = [complaints[i % len(complaints)] for i in range(len(prompts))]
            hinted = [CONTEXTS["appended"].place(a, {}, o) for a, o in zip(asked, said, strict=True)]
            good = generate(model, tokenizer, hinted, args.cap)
            for i, question in enumerate(prompts):
                first = decode(tokenizer, plain[i]).split(". ")[0] + ". "
                kinds = {
                    "plain": plain[i], "good": good[i], "off-topic": good[(i + 1) % len(good)], "empty": (eot,),
                    "echo": (*encode(tokenizer, question), eot), "parrot": (*encode(tokenizer, said[i]), eot),
                    "bare": (*encode(tokenizer, BARE[name]), eot),
                    "repeat": encode(tokenizer, first * 8)[: args.cap],
                    "bare repeat": encode(tokenizer, (BARE[name] + " ") * 16)[: args.cap],
                }  # fmt: skip
                marks = {
                    k: check(persona.checker, decode(tokenizer, ids), question=question, options=persona.options).passed
                    for k, ids in kinds.items()
                }
                rows.append((name, i, hinted[i], kinds, marks))
        pairs = [
            pair for _, i, hinted, kinds, _ in rows for ids in kinds.values()
            for pair in ((render_prompt(tokenizer, asked[i]).ids, ids), (render_prompt(tokenizer, hinted).ids, ids))
        ]  # fmt: skip
        scored = [t.numpy().astype(float) for t in log_probs(model, head_of(model), pairs)]
    at = 0
    results: dict[str, dict[str, list[float]]] = {k: defaultdict(list) for k in scores()}
    shown: dict[str, list[int]] = defaultdict(list)
    keep = []
    for name, i, _, kinds, marks in rows:
        logps = {k: (scored[at + 2 * j], scored[at + 2 * j + 1]) for j, k in enumerate(kinds)}
        at += 2 * len(kinds)
        keep.append({"persona": name, "prompt": i, "marks": marks,
                     "logps": {k: [v[0].tolist(), v[1].tolist()] for k, v in logps.items()},
                     "text": {k: decode(tokenizer, ids) for k, ids in kinds.items()}})  # fmt: skip
        shown[name].append(marks["good"])
        shown[name + " plain"].append(marks["plain"])
        for label, f in scores().items():
            value = {k: f(*v) for k, v in logps.items()}
            if marks["good"] and not marks["plain"]:
                results[label]["good>plain"].append(value["good"] > value["plain"])
                for k in value:
                    if k not in ("good", "plain"):
                        results[label][f"{k}>good"].append(value[k] >= value["good"])
            for k in ("empty", "echo", "parrot", "bare", "repeat", "bare repeat"):
                results[label][f"{k}>plain"].append(value[k] >= value["plain"])
    for name, hits in shown.items():
        print(f"{name:20} {np.mean(hits):.2f}")
    columns = list(next(iter(results.values())))
    print(f"{'score':16}" + "".join(f"{c:>12}" for c in columns))
    for label, found in results.items():
        print(f"{label:16}" + "".join(f"{np.mean(found[c]):12.2f}" for c in columns))
    if args.out:
        args.out.write_text(json.dumps(keep), encoding="utf-8")


if __name__ == "__main__":
    main()
