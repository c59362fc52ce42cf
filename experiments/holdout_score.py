"""Which score of an answer under a follow-up agrees with a program-decided trait, and which can be gamed?

    python experiments/holdout_score.py [--skip 12] [--prompts 16] [--out results.json]

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
from afterword.evaluate.stats.statistics import mean
from afterword.learn.diagnostics import log_probs
from afterword.learn.hindsight_score import looped, score
from afterword.learn.parts.contexts import CONTEXTS
from afterword.model.head import head_of
from afterword.model.loading import EMBEDDED, load_model, load_tokenizer
from afterword.simulate.personas import load_persona
from afterword.simulate.prompts import load_prompts

BARE = {"greeting": "Hello friend!", "numbered": "1. 2. 3.", "spanish": "Sí.", "pirate": "Arr, matey!",
        "emojis": "😀🎉😊", "brief": "Yes.", "plain": "Sure."}  # fmt: skip
Score = Callable[[np.ndarray, np.ndarray, tuple[int, ...]], float]


def guarded(
    s: np.ndarray, q: np.ndarray, ids: tuple[int, ...], *, floor: int, room: float, loop: float | None
) -> float:
    """Advantage, at most `room` + log p(y|x,o); missing tokens count -1, looped ones at most `loop`."""
    values = np.minimum(np.clip(q - s, -2, 2), q + room)
    if loop is not None:
        values = np.where(looped(ids), np.minimum(values, loop), values)
    missing = max(0, floor - len(values))
    return float((values.sum() - missing) / (len(values) + missing))


def scores() -> dict[str, Score]:
    """Name -> f(log p(y|x), log p(y|x,o), ids), the first two [n] nats a token."""
    return {
        "sum": lambda s, q, _: float((q - s).sum()),
        "mean": lambda s, q, _: float((q - s).mean()),
        "first 16": lambda s, q, _: float((q - s)[:16].mean()),
        "clip 3, sum": lambda s, q, _: float(np.clip(q - s, -3, 3).sum()),
        "clip 3, floor 32": lambda s, q, _: float(np.clip(q - s, -3, 3).sum() / max(len(s), 32)),
        "log p(y|x,o)": lambda s, q, _: float(q.mean()),
        "mean + q/2": lambda s, q, _: float((q - s).mean() + q.mean() / 2),
        "capped, no floor": lambda s, q, i: guarded(s, q, i, floor=0, room=2, loop=None),
        "capped, floor 16": lambda s, q, i: guarded(s, q, i, floor=16, room=2, loop=None),
        "capped, floor 24": lambda s, q, i: guarded(s, q, i, floor=24, room=2, loop=None),
        "room 1, floor 16": lambda s, q, i: guarded(s, q, i, floor=16, room=1, loop=None),
        "capped, loops -0.25": lambda s, q, i: guarded(s, q, i, floor=16, room=2, loop=-0.25),
        "capped, loops -0.5": lambda s, q, i: guarded(s, q, i, floor=16, room=2, loop=-0.5),
        "capped, loops -1": lambda s, q, i: guarded(s, q, i, floor=16, room=2, loop=-1.0),
        "chosen": lambda s, q, i: score(s, q, i),
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


def candidates(model, tokenizer, prompts, cap):
    """One row per persona and prompt: (persona, asked, hinted, answers by kind, checker's marks by kind)."""
    eot = end_of_turn_ids(tokenizer)[0]
    asked = [[{"role": "user", "content": p}] for p in prompts]
    plain = generate(model, tokenizer, asked, cap)
    for name, mark in BARE.items():
        persona = load_persona(name)
        said = [persona.complaints[i % len(persona.complaints)] for i in range(len(prompts))]
        hinted = [CONTEXTS["appended"].place(a, {}, o) for a, o in zip(asked, said, strict=True)]
        good = generate(model, tokenizer, hinted, cap)
        for i, question in enumerate(prompts):
            first = decode(tokenizer, plain[i]).split(". ")[0] + ". "
            kinds = {
                "plain": plain[i],
                "good": good[i],
                "off-topic": good[(i + 1) % len(good)],
                "empty": (eot,),
                "echo": (*encode(tokenizer, question), eot),
                "parrot": (*encode(tokenizer, said[i]), eot),
                "bare": (*encode(tokenizer, mark), eot),
                "repeat": encode(tokenizer, first * 8)[:cap],
                "bare repeat": encode(tokenizer, (mark + " ") * 16)[:cap],
            }
            marks = {k: persona.mark(decode(tokenizer, ids), question).passed for k, ids in kinds.items()}
            yield name, asked[i], hinted[i], kinds, marks


def compare(rows, scored):
    """Score -> how often one kind of answer beats another, over the rows where that can be said."""
    results: dict[str, dict[str, list[bool]]] = {label: defaultdict(list) for label in scores()}
    for (_, _, _, kinds, marks), logps in zip(rows, scored, strict=True):
        for label, f in scores().items():
            value = {k: f(*logps[k], ids) for k, ids in kinds.items()}
            if marks["good"] and not marks["plain"]:
                results[label]["good>plain"].append(value["good"] > value["plain"])
                for k in value:
                    if k not in ("good", "plain"):
                        results[label][f"{k}>good"].append(value[k] >= value["good"])
            for k in ("empty", "echo", "parrot", "bare", "repeat", "bare repeat"):
                results[label][f"{k}>plain"].append(value[k] >= value["plain"])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--skip", type=int, default=0, help="leave out the first ones: the constants were set on 12")
    parser.add_argument("--cap", type=int, default=64)
    parser.add_argument("--out", type=Path, help="also write every answer with its log-probabilities")
    args = parser.parse_args()
    model, tokenizer = load_model(EMBEDDED), load_tokenizer(EMBEDDED)
    prompts = [p.text for p in load_prompts("heldout", ["question"])][args.skip : args.skip + args.prompts]
    with torch.no_grad():
        rows = list(candidates(model, tokenizer, prompts, args.cap))
        pairs = [
            (render_prompt(tokenizer, messages).ids, ids)
            for _, asked, hinted, kinds, _ in rows for ids in kinds.values() for messages in (asked, hinted)
        ]  # fmt: skip
        flat = iter(t.numpy().astype(float) for t in log_probs(model, head_of(model), pairs))
    scored = [{k: (next(flat), next(flat)) for k in kinds} for _, _, _, kinds, _ in rows]
    print("what the base writes with the complaint in view (a perfect candidate), its gain by the chosen score:")
    for name in BARE:
        picked = [i for i, row in enumerate(rows) if row[0] == name]
        share = np.mean([rows[i][4]["good"] for i in picked])
        values = {k: [score(*scored[i][k], rows[i][3][k]) for i in picked] for k in ("good", "plain")}
        gain = mean([g - p for g, p in zip(values["good"], values["plain"], strict=True)])
        print(f"{name:12} trait {share:.2f}  gain {gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]")
    results = compare(rows, scored)
    columns = list(next(iter(results.values())))
    print(f"{'score':20}" + "".join(f"{c:>12}" for c in columns))
    for label, found in results.items():
        print(f"{label:20}" + "".join(f"{np.mean(found[c]):12.2f}" for c in columns))
    if args.out:
        kept = [
            {
                "persona": name,
                "marks": marks,
                "ids": kinds,
                "logps": {k: [v.tolist() for v in w] for k, w in logps.items()},
            }
            for (name, _, _, kinds, marks), logps in zip(rows, scored, strict=True)
        ]
        args.out.write_text(json.dumps(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
