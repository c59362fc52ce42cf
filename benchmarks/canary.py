"""What canary decisions cost: processor time of the watch at 1,000 events a second, beside a bare read of the rows.

    python benchmarks/canary.py [--seconds 30] [--rate 1000]      writes benchmarks/results/canary.json
    python benchmarks/canary.py --validate [--pairs 2000]         the sequential test by simulation

A writer commits turns and feedback (a third of the turns get one; a third of those in words, which the detectors read)
in groups, as a gateway does. The watch ticks twice a second in a thread of its own, and the thread's processor time is
what is measured. Beside it, in the same run: a thread that only fetches the same columns of the same rows and keeps
nothing, which is the least that any watch pays.

`--validate`: pairs of arms are looked at after every single turn. Equal arms give the rate of false claims, which must
stay below alpha; unequal ones the number of judged turns until a decision.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from afterword.cli.releases import reading
from afterword.records import Candidate, Feedback, Record, Release, Turn, content_hash
from afterword.release.always_valid import ArmSums, compare
from afterword.release.canary_monitor import INTERVAL, CanaryMonitor
from afterword.release.settings import CanarySettings
from afterword.store import Store
from afterword.store.polling import feedback_after, turns_of_canary

RESULTS = Path(__file__).parent / "results" / "canary.json"
ALPHA = 0.05
WORDS = ("Too long. One short sentence, please.", "Thanks!", "No, that is not what I asked for.", "And in winter?")


def begin(store: Store) -> Release:
    """A canary that nothing will end: its horizon is out of reach, its arms are equal."""
    settings = CanarySettings(share=0.1, horizon=10**7)
    candidate = Candidate(id="c", path="adapters/c", base="m", parent=None, interactions=(), recipe={})
    canary = Release(
        id="rel-canary", channel="default", adapter="afterword@v000001", candidate="c", path="adapters/c", verdict="v",
        previous=None, action="canary", why="benchmark", share=settings.share,
        terms={**settings.terms(), "after": {"turns": 0, "feedback": 0}},
    )  # fmt: skip
    store.write(candidate, canary)
    return canary


def traffic(canary: Release, number: int, dice: random.Random) -> list[Record]:
    """A turn and what was made of it."""
    user = dice.randrange(5000)
    unit = content_hash("user", None, f"u{user}")
    name = f"chatcmpl-{number:09d}"
    question = {"role": "user", "content": "How do I water a cactus in the winter, and how often? " * 4}
    rows: list[Record] = [
        Turn(
            id=name, messages=(question,), answer={"role": "assistant", "content": "Only rarely, and a little. " * 20},
            prompt_ids=tuple(range(60)), completion_ids=tuple(range(120)), logprobs=(-0.5,) * 120, user=f"u{user}",
            unit=unit, canary=canary.id, adapter=canary.adapter if canary.gets(unit) else None, finish_reason="stop",
            seconds=2.4 * dice.uniform(0.8, 1.25),
        )
    ]  # fmt: skip
    draw = dice.random()
    if draw < 1 / 9:
        rows.append(Feedback(id=f"fb-{name}", turn=name, kind="follow_up", text=dice.choice(WORDS), source="detector"))
    elif draw < 1 / 3:
        rows.append(Feedback(id=f"fb-{name}", turn=name, kind=dice.choice(("accepted", "retried", "copied"))))
    return rows


def measured(loop: Callable[[], int], stop: threading.Event) -> tuple[threading.Thread, dict[str, float]]:
    """A thread that calls `loop` every INTERVAL; its processor seconds and rows, filled in at its end."""
    found: dict[str, float] = {}

    def run() -> None:
        rows, begun = 0, time.thread_time()
        while not stop.wait(INTERVAL):
            rows += loop()
        found.update(cpu=time.thread_time() - begun, rows=rows)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


def bare(store: Store, canary: Release) -> Callable[[], int]:
    """Fetch the same columns of the same rows, and keep nothing."""
    after = {"turns": 0, "feedback": 0}

    def loop() -> int:
        number = 0
        while turns := turns_of_canary(store, canary.id, after["turns"], 5000):
            after["turns"] = turns[-1].seq
            number += len(turns)
        while feedback := feedback_after(store, after["feedback"], 5000):
            after["feedback"] = feedback[-1].seq
            number += len(feedback)
        return number

    return loop


def cost(directory: Path, rate: int, seconds: float) -> dict[str, Any]:
    """Processor time a second of the watch, and of the bare reader, under the same traffic."""
    dice = random.Random(0)
    with Store.open(directory / "afterword.db") as store, Store.open(directory / "afterword.db") as mine:
        canary = begin(store)
        watch = CanaryMonitor(mine, reading)

        def tick() -> int:
            watch.tick()
            return 0

        stop = threading.Event()
        threads = [measured(tick, stop), measured(bare(mine, canary), stop)]
        sent, turns, begun = 0, 0, time.perf_counter()
        while (elapsed := time.perf_counter() - begun) < seconds:
            group: list[Record] = []
            while sent + len(group) < elapsed * rate:
                group += traffic(canary, turns, dice)
                turns += 1
            sent += len(group)
            store.write(*group) if group else time.sleep(0.002)
        span = time.perf_counter() - begun
        stop.set()
        for thread, _ in threads:
            thread.join()
        trial = watch.trials["default"]
        seen = trial.new.turns.turns + trial.old.turns.turns
    watch_cpu, bare_cpu = threads[0][1]["cpu"], threads[1][1]["cpu"]
    return {
        "events_a_second": round(sent / span), "seconds": round(span, 1), "turns_sent": turns, "turns_seen": seen,
        "watch_share_of_a_core": round(watch_cpu / span, 4), "bare_read_share_of_a_core": round(bare_cpu / span, 4),
        "watch_over_bare_read": round(watch_cpu / bare_cpu, 2),
        "microseconds_an_event": round(1e6 * watch_cpu / sent, 1), "aim_share_of_a_core": 0.05,
    }  # fmt: skip


def claimed(seed: int, share: float, draw: Callable[[random.Random, bool], float], moody: float, turns: int) -> int:
    """Judged turns of the new arm at the first claim of a difference, looked for after every turn; 0 for none."""
    dice = random.Random(seed)
    new, old = ArmSums(), ArmSums()
    inside = [dice.random() < share for _ in range(800)]
    moods = [dice.uniform(-moody, moody) for _ in range(800)]
    for _ in range(turns):
        user = dice.randrange(800)
        arm = new if inside[user] else old
        arm.turn(str(user))
        value = draw(dice, inside[user])
        if value and moods[user]:
            value = abs(value) if dice.random() < moods[user] else value
        if value:
            arm.count(str(user), "y", value)
        if min(len(new.units), len(old.units)) >= CanarySettings().min_users:
            interval = compare(new, old, "y", ALPHA)
            if interval.low > 0 or interval.high < 0:
                return new.turns
    return 0


def three_way(accepted: float, corrected: float, gain: float = 0.0) -> Callable[[random.Random, bool], float]:
    """Approval: 1, -1 or 0; the new arm's share of corrections is lower by `gain`, its acceptance higher."""

    def draw(dice: random.Random, new: bool) -> float:
        by = gain if new else 0.0
        number = dice.random()
        return 1.0 if number < accepted + by else -1.0 if number > 1 - corrected + by else 0.0

    return draw


def rare(rate: float) -> Callable[[random.Random, bool], float]:
    """Something that happens seldom, as errors do."""
    return lambda dice, new: float(dice.random() < rate)


def validate(pairs: int, turns: int) -> dict[str, Any]:
    """False claims on equal arms, and how soon unequal ones are told apart."""
    equal: dict[str, tuple[float, Callable[[random.Random, bool], float], float]] = {
        "approval, 10 % of the users": (0.1, three_way(0.4, 0.3), 0.0),
        "approval, 50 % of the users": (0.5, three_way(0.4, 0.3), 0.0),
        "approval, users with moods": (0.1, three_way(0.4, 0.3), 0.5),
        "errors, 2 % of the turns": (0.1, rare(0.02), 0.0),
    }
    false = {}
    for name, (share, draw, moody) in equal.items():
        rate = sum(claimed(seed, share, draw, moody, turns) > 0 for seed in range(pairs)) / pairs
        false[name] = {"false_claims": rate, "pairs": pairs, "turns": turns, "alpha": ALPHA}
        print(f"{name}: {100 * rate:.2f} % of {pairs} equal pairs (alpha {100 * ALPHA:g} %)", flush=True)
    delays = {}
    for gain in (0.05, 0.1, 0.2, 0.3):
        found = [
            claimed(seed, 0.1, three_way(0.4, 0.3, gain), 0.0, 20 * turns) for seed in range(max(20, pairs // 100))
        ]
        told = [n for n in found if n]
        delays[f"{2 * gain:.1f}"] = {
            "told_apart": len(told) / len(found),
            "median_turns_of_the_candidate": statistics.median(told) if told else None,
        }
        print(f"approval differs by {2 * gain:.1f}: {delays[f'{2 * gain:.1f}']}", flush=True)
    return {"equal": false, "delay": delays}


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rate", type=int, default=1000)
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=1500)
    args = parser.parse_args()
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if args.validate:
        known["validation"] = validate(args.pairs, args.turns)
    else:
        with tempfile.TemporaryDirectory() as directory:
            known["cost"] = cost(Path(directory), args.rate, args.seconds)
        print(json.dumps(known["cost"], indent=2))
    known["machine"] = {"python": platform.python_version(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    RESULTS.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
