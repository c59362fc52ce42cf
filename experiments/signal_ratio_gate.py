"""How well does the model's own signal tell follow-ups about the answer from others, beside the detectors?

    python experiments/signal_ratio_gate.py [--model smollm2-135m-instruct] [--labels FILE --store DB]

Scores the labelled follow-ups of tests/feedback/data with the built-in model: the signal under the real words, under
words of other exchanges, and under neutral ones. A threshold on the ratio is chosen on the even rows (best F1) and
reported on the odd ones, alone and together with the detectors; AUC as well. With --labels (`feedback id <tab> kind`
lines) and --store the same for follow-ups of a store. Prints a table and writes signal_ratio_gate.json beside it.
--keep FILE keeps the scores, so that a run that ends (after --seconds, or a kill) goes on there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from random import Random
from typing import Any

from afterword.evaluate.signal_ratio import Item, measure
from afterword.feedback.collect.signals import answer_text, request_of
from afterword.feedback.text.followup_classifier import categorise
from afterword.model.loading import load_model, load_tokenizer
from afterword.records import Feedback, Interaction, SignalRatio, Turn
from afterword.store import Store

DATA = Path(__file__).parent.parent / "tests" / "feedback" / "data"
ABOUT = {"correction", "complaint", "constraint", "rephrase", "question"}
AT_ONCE = 8
"""Follow-ups that are scored together."""
LEFT_OUT = {"thanks", "continuation"}
"""The detectors know these almost surely, and they give no hindsight."""


def written() -> list[tuple[Turn, str, str]]:
    exchanges = json.loads((DATA / "exchanges.json").read_text("utf-8"))
    found = []
    for line in (DATA / "follow_ups.tsv").read_text("utf-8").splitlines():
        name, _, _, _, kind, text = line.split("\t")
        one = exchanges[name]
        found.append((_turn(name, one["request"], one["answer"]), text, kind))
    return found


def _turn(name: str, request: str, answer: str) -> Turn:
    messages = ({"role": "user", "content": request},)
    return Turn(id=name, messages=messages, answer={"role": "assistant", "content": answer})


def stored(store: Path, labels: Path) -> list[tuple[Turn, str, str]]:
    with Store.open(store) as opened:
        rows = [line.split("\t") for line in labels.read_text("utf-8").splitlines()]
        feedback = [(opened.get(Feedback, name), kind) for name, kind in rows]
        turns = [(opened.get(Turn, row.turn), row.text or "", kind) for row, kind in feedback]
    return [(_turn(t.id, request_of(t)[-800:], answer_text(t)[:2000]), text[:1000], kind) for t, text, kind in turns]


def scored(rows: list[tuple[Turn, str, str]], model: str, keep: Path | None, seconds: float) -> list[SignalRatio]:
    dice = Random(0)
    items = []
    for number, (turn, text, _) in enumerate(rows):
        other = [t for u, t, _ in dice.sample(rows, 12) if u.id != turn.id and t != text][:2]
        made = Interaction(
            id=str(number), turn=turn.id, feedback=(), kind="follow_up", hindsight=text, polarity=0, weight=1.0,
            split="train",
        )  # fmt: skip
        items.append(Item(made, turn, tuple(other)))
    lines = keep.read_text("utf-8").splitlines() if keep is not None and keep.exists() else []
    found = [SignalRatio.from_dict(json.loads(line)) for line in lines]
    started, base, tokenizer = time.monotonic(), load_model(model, device="cpu"), load_tokenizer(model)
    done = max((int(row.interaction) + 1 for row in found), default=0)
    for start in range(done, len(items), AT_ONCE):
        new = measure(base, tokenizer, items[start : start + AT_ONCE], name=model)
        found += new
        if keep is not None:
            with keep.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row.to_dict()) + "\n" for row in new)
        if seconds and time.monotonic() - started > seconds and start + AT_ONCE < len(items):
            raise SystemExit(f"{start + AT_ONCE} of {len(items)} scored: run it again")
    return found


def auc(pairs: list[tuple[float, bool]]) -> float:
    yes, no = [v for v, y in pairs if y], [v for v, y in pairs if not y]
    return sum((a > b) + 0.5 * (a == b) for a in yes for b in no) / max(len(yes) * len(no), 1)


def precision_recall(found: list[bool], wanted: list[bool]) -> dict[str, float]:
    hits = sum(f and w for f, w in zip(found, wanted, strict=True))
    return {"precision": hits / max(sum(found), 1), "recall": hits / max(sum(wanted), 1), "n": len(wanted)}


def best(values: list[float], wanted: list[bool]) -> float:
    def f1(threshold: float) -> float:
        one = precision_recall([v >= threshold for v in values], wanted)
        both = one["precision"] + one["recall"]
        return 2 * one["precision"] * one["recall"] / both if both else 0.0

    return max(sorted(set(values)), key=f1)


def report(rows: list[tuple[Turn, str, str]], scores: list[SignalRatio]) -> dict[str, Any]:
    by_number = {int(row.interaction): row for row in scores}
    kept = [(n, by_number[n], rows[n]) for n in sorted(by_number) if rows[n][2] not in LEFT_OUT]
    tune, test = [k for k in kept if k[0] % 2 == 0], [k for k in kept if k[0] % 2]
    wanted = [kind in ABOUT for _, _, (_, _, kind) in test]
    read = [categorise(request_of(t), answer_text(t), text) in ABOUT for _, _, (t, text, _) in test]
    result: dict[str, Any] = {"n": len(test), "about": sum(wanted), "detectors": precision_recall(read, wanted)}
    measures = {
        "ratio to the larger control": lambda r: r.ratio,
        "ratio to the shuffled": lambda r: r.real / max(r.shuffled or 1e-6, 1e-6),
        "ratio to the neutral": lambda r: r.real / max(r.neutral, 1e-6),
        "signal alone": lambda r: r.real,
    }
    for name, value in measures.items():
        threshold = best([value(r) for _, r, _ in tune], [kind in ABOUT for _, _, (_, _, kind) in tune])
        gate = [value(r) >= threshold for _, r, _ in test]
        result[name] = {
            "auc": auc([(value(r), w) for (_, r, _), w in zip(test, wanted, strict=True)]),
            "threshold": threshold,
            "alone": precision_recall(gate, wanted),
            "and detectors": precision_recall([a and b for a, b in zip(gate, read, strict=True)], wanted),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--seconds", type=float, default=0.0)
    args = parser.parse_args()
    rows = stored(args.store, args.labels) if args.labels else written()
    result = {"model": args.model, **report(rows, scored(rows, args.model, args.keep, args.seconds))}
    print(json.dumps(result, indent=1))
    if not args.labels:
        Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
