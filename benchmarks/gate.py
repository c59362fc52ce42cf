"""The default gate on the embedded model: 64 held-out interactions, from a cold cache and again.

    python benchmarks/gate.py [--interactions 64] [--max-tokens 96]

The engine answers questions of the simulated users once; each gets the follow-up "Too long ..." and is held out. The
candidate is a rank-16 adapter with small random weights (what it learned does not matter for the time), said to be
trained on 64 longer texts, so that there is something to look for. Then the
evaluate stage runs as `afterword evaluate` runs it, once with an empty cache and once more, with the seconds of each
suite. The limits: 300 s the first time, seconds the second. Writes benchmarks/results/gate.json.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from swap import random_adapter

from afterword.config import EvaluateConfig
from afterword.evaluate.stage import evaluate_stage
from afterword.model.loading import EMBEDDED, base_hash, resolve_model
from afterword.records import Candidate, Feedback, Interaction, Json, Turn
from afterword.release.gate import decide
from afterword.sampling import complete_all, start_engine
from afterword.simulate import load_prompts
from afterword.store import Store
from gateway import machine

RESULTS = Path(__file__).parent / "results" / "gate.json"
LIMIT = 300.0
SAID = "Too long. Please keep it to one or two sentences."


def fill(store: Store, url: str, interactions: int, max_tokens: int) -> None:
    """Held-out interactions, each a conversation of its own."""
    prompts = [*load_prompts("train", ["question"]), *load_prompts("heldout", ["question"])]
    texts = [f"{prompts[i % len(prompts)].text}{' (again)' * (i // len(prompts))}" for i in range(interactions)]
    bodies = [
        {"messages": [{"role": "user", "content": text}], "model": EMBEDDED, "max_tokens": max_tokens, "seed": i}
        for i, text in enumerate(texts)
    ]  # fmt: skip
    for i, answer in enumerate(complete_all(url, bodies, concurrency=32)):
        turn = Turn(
            id=f"t{i}", messages=tuple(bodies[i]["messages"]), answer=answer.message, prompt_ids=answer.prompt_ids,
            completion_ids=answer.completion_ids, finish_reason=answer.finish_reason, conversation=f"c{i}",
        )  # fmt: skip
        feedback = Feedback(id=f"f{i}", turn=turn.id, kind="follow_up", text=SAID)
        store.write(turn, feedback, Interaction(
            id=f"i{i}", turn=turn.id, feedback=(feedback.id,), kind="follow_up", hindsight=SAID, polarity=-1,
            weight=1.0, split="holdout",
        ))  # fmt: skip
    for i, said in enumerate(trained()):
        turn = Turn(id=f"tt{i}", messages=({"role": "user", "content": f"Text {i}?"},), answer={"content": "So."})
        store.write(turn, Interaction(
            id=f"it{i}", turn=turn.id, feedback=(), kind="comment", hindsight=said, polarity=-1, weight=1.0,
            split="train",
        ))  # fmt: skip


def trained() -> list[str]:
    """What users wrote in the interactions that the candidate is said to be trained on: two sentences each."""
    texts = [prompt.text for prompt in (*load_prompts("train"), *load_prompts("heldout"))]
    return [f"I did not ask for that. {texts[i % len(texts)]} {texts[-1 - i % len(texts)]}" for i in range(64)]


def make_candidate(store: Store, directory: Path) -> Candidate:
    """A random adapter as a candidate."""
    folder = directory / "adapters" / "bench"
    folder.mkdir(parents=True)
    random_adapter(folder, seed=1)
    manifest = {"base": EMBEDDED, "base_hash": base_hash(resolve_model(EMBEDDED))}
    (folder / "afterword.json").write_text(json.dumps(manifest), encoding="utf-8")
    candidate = Candidate(
        id="bench",
        path="adapters/bench",
        base=EMBEDDED,
        parent=None,
        interactions=tuple(f"it{i}" for i in range(64)),
        recipe={"name": "none"},
    )
    store.write(candidate)
    return candidate


def timed(store: Store, directory: Path, candidate: Candidate, url: str, settings: EvaluateConfig) -> Json:
    """One evaluation and its verdict."""
    began, cpu = time.monotonic(), os.times()
    report = evaluate_stage(store, directory, candidate, settings, engine=url)
    verdict = decide(report)
    spent = os.times()
    return {
        "seconds": round(time.monotonic() - began, 2),
        "cpu_seconds_without_the_engine": round(spent.user + spent.system - cpu.user - cpu.system, 2),
        "by_suite": report.about["seconds_by_suite"],
        "failed": [name for name, figures in report.suites.items() if "error" in figures],
        "reasons": len(verdict.reasons),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=96)
    args = parser.parse_args()
    settings = EvaluateConfig(max_interactions=args.interactions, max_tokens=args.max_tokens)
    found: dict[str, Any] = {"interactions": args.interactions, "max_tokens": args.max_tokens, "limit_seconds": LIMIT}
    with tempfile.TemporaryDirectory() as name, Store.open(Path(name) / "afterword.db") as store:
        directory = Path(name)
        candidate = make_candidate(store, directory)
        with start_engine(EMBEDDED, log_path=directory / "engine.log") as engine:
            fill(store, engine.url, args.interactions, args.max_tokens)
            for which in ("first", "again"):
                found[which] = timed(store, directory, candidate, engine.url, settings)
                print(which, json.dumps(found[which]), flush=True)
    found["share_of_limit"] = round(found["first"]["seconds"] / LIMIT, 3)
    found["machine"] = machine()
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
