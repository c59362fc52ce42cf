"""Training in two processes against one, on the same cores.

    python benchmarks/workers.py [--workers 2] [--interactions 48] [--model MODEL] [--out FILE]

One process pinned to one core, then `train.workers` processes with a core each, over the same interactions of made-up
text; the time of a step is the median of all but the first. The first epoch is over the stored answers alone: no
answers are drawn.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from afterword.config import TrainConfig
from afterword.feedback.select.plan import plan_training
from afterword.model.embedded import EMBEDDED
from afterword.records import Feedback, Interaction, Turn
from afterword.store import Store
from afterword.train.monitoring.metrics import read_metrics
from afterword.train.run_state import run_folder
from afterword.train.stage import StoreEncoder, train_stage

RESULTS = Path(__file__).parent / "results" / "workers.json"


def filled(folder: Path, interactions: int, words: int) -> Store:
    """A store with interactions of `words` words an answer."""
    rng = random.Random(0)
    vocabulary = ("the", "a", "river", "house", "learns", "quickly", "model", "answer", "user", "letter", "seven")
    store = Store.open(folder / "afterword.db")
    for i in range(interactions):
        text = " ".join(rng.choices(vocabulary, k=words))
        turn = Turn(
            id=f"turn-{i}",
            messages=({"role": "user", "content": f"Write about number {i}."},),
            answer={"role": "assistant", "content": text},
        )
        feedback = Feedback(id=f"fb-{i}", turn=turn.id, kind="follow_up", text="Shorter, please.")
        row = Interaction(
            id=f"int-{i}", turn=turn.id, feedback=(feedback.id,), kind="follow_up", hindsight="Shorter, please.",
            polarity=-1, weight=1.0, split="train", on_policy=False,
        )  # fmt: skip
        store.write(turn)
        store.write(feedback)
        store.write(row)
    return store


def measured(model: str, interactions: int, words: int, workers: int) -> dict[str, float]:
    """Seconds of a step, and of the whole run with the start of its processes."""
    settings = TrainConfig(
        min_interactions=1, max_interactions=interactions, off_policy=True, epochs=1, fresh=0, workers=workers,
        stop_rules=False, options={"batch": 8},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name, filled(Path(name), interactions, words) as store:
        home = Path(name)

        def plan() -> Any:
            return plan_training(store, settings, encoder=StoreEncoder(store, settings, model))

        candidate = train_stage(store, home, plan, device="cpu")
        steps = [m.seconds for m in read_metrics(run_folder(home, candidate.id))][1:]
    return {"step_s": statistics.median(steps), "steps": len(steps)}


def main() -> None:
    """Measure both, each in a process of its own, and write the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--interactions", type=int, default=48)
    parser.add_argument("--words", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.one])
        print(json.dumps(measured(args.model, args.interactions, args.words, args.one)))
        return
    cores = sorted(os.sched_getaffinity(0))[: args.workers]
    if len(cores) < args.workers:
        raise SystemExit(f"{args.workers} workers need as many cores; this machine offers {len(cores)}")
    rounds = []
    for _ in range(args.rounds):
        times = {}
        for workers in (1, args.workers):
            done = subprocess.run(
                [sys.executable, __file__, "--one", str(workers), "--model", args.model, "--words", str(args.words),
                 "--interactions", str(args.interactions)],
                env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=True, text=True,
            )  # fmt: skip
            times[workers] = json.loads(done.stdout.splitlines()[-1])["step_s"]
        rounds.append({"one": times[1], "several": times[args.workers], "times": times[1] / times[args.workers]})
    result = {
        "workers": args.workers, "interactions": args.interactions, "words": args.words,
        "times_as_fast": statistics.median(one["times"] for one in rounds), "rounds": rounds,
        "load": os.getloadavg()[0],
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    args.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
