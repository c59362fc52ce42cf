"""What collection costs without a model: turns a second, near duplicates, follow-ups read, texts redacted.

    python benchmarks/collect.py [--turns 20000] [--texts 100000] [--store DB] [--repeats 3]

`collect`: turns a second over made-up chats (request 100, answer 1,100 characters), or over a copy of the database
DB, as the command does it (by child processes), in one process, and beside the bare reading of the same rows (the limit
for any collector). `duplicates`: a search
for near duplicates over made-up texts of which every tenth repeats an earlier one with a word changed, with the share
that is found. `redact`: characters a second. CPU seconds of the process count, since other work runs beside.
Medians; writes benchmarks/results/collect.json.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from afterword.chat.redact import redact
from afterword.feedback.collect.collect import collect
from afterword.feedback.collect.workers import processes
from afterword.feedback.text.minhash import DuplicateIndex, sketch_of
from afterword.records import Feedback, Turn
from afterword.store import Store

RESULTS = Path(__file__).parent / "results" / "collect.json"
WORDS = [a + b for a in ("gar", "wat", "rec", "tra", "mor", "flo", "eng", "win", "let", "riv", "mus", "bud") for b in
         ("den", "er", "ipe", "in", "ning", "ur", "ine", "dow", "ter", "ic", "get", "ket", "son", "ple")]  # fmt: skip
REACTIONS = ("Shorter, please.", "Thanks!", "Who painted the ceiling?", "Why is that?", "That's wrong.", "go on",
             "No, I meant the other one.", "Can you put it in a table?", "Write me a poem about the sea.")  # fmt: skip


def made_up(path: Path, turns: int) -> None:
    dice = random.Random(0)
    with Store.open(path) as store:
        rows: list[Turn | Feedback] = []
        for i in range(turns):
            asked = {"role": "user", "content": " ".join(dice.choices(WORDS, k=16))}
            answer = {"role": "assistant", "content": " ".join(dice.choices(WORDS, k=170))}
            name = f"t{i}"
            rows.append(Turn(id=name, messages=(asked,), answer=answer, conversation=f"c{i // 3}", user=f"u{i % 97}"))
            said = f"{dice.choice(REACTIONS)} {dice.choice(WORDS)}"
            rows.append(Feedback(id=f"f{i}", turn=name, kind="follow_up", text=said))
            if len(rows) >= 2000:
                store.write(*rows)
                rows = []
        store.write(*rows)


def stripped(source: Path, target: Path) -> None:
    """A copy without what was decided."""
    shutil.copy(source, target)
    with sqlite3.connect(target) as connection:
        for table in ("interactions", "skips"):
            for name, sql in connection.execute(
                "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?", (table,)
            ).fetchall():
                connection.execute(f"DROP TRIGGER {name}")
                connection.execute(f"DELETE FROM {table}")
                connection.execute(sql)
    connection.close()


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def collect_part(source: Path, folder: Path, number: int) -> dict[str, float]:
    path = folder / f"run{number}.db"
    stripped(source, path)
    with Store.open(path) as store:
        turns = store.count(Turn)
        read_cpu, _ = timed(lambda: sum(1 for kind in (Turn, Feedback) for _ in store.rows(kind)))
        paired = [0]
        cpu, alone = timed(lambda: paired.append(collect(store).paired))
    path.unlink()
    stripped(source, path)
    with Store.open(path) as store:
        _, wall = timed(lambda: collect(store, processes=processes()))
    path.unlink()
    return {
        "turns": turns, "paired": paired[-1], "turns_per_s": paired[-1] / wall, "processes": processes(),
        "one_process_turns_per_s": paired[-1] / alone, "one_process_turns_per_cpu_s": paired[-1] / cpu,
        "bare_read_turns_per_cpu_s": turns / read_cpu,
    }  # fmt: skip


def duplicates_part(texts: int) -> dict[str, float]:
    dice = random.Random(1)
    made: list[str] = []
    for i in range(texts):
        if i % 10 == 9:
            words = made[dice.randrange(max(len(made) - 1000, 0), len(made))].split()
            words[dice.randrange(len(words))] = "changed"
            made.append(" ".join(words))
        else:
            made.append(" ".join(dice.choices(WORDS, k=150)))
    index, found, false = DuplicateIndex(), 0, 0

    def search() -> None:
        nonlocal found, false
        for number, text in enumerate(made):
            sketch = sketch_of(text, limits=(1000,))
            near = index.nearest(str(number), None, sketch)
            hit = near is not None and near[1] >= 0.85
            found += hit and number % 10 == 9
            false += hit and number % 10 != 9
            index.add(str(number), None, sketch)

    cpu, wall = timed(search)
    return {"texts": texts, "cpu_s": cpu, "seconds": wall, "recall": found / (texts // 10), "false": false}


def redact_part() -> dict[str, float]:
    dice = random.Random(2)
    texts = [" ".join(dice.choices(WORDS, k=170)) + (" call 030 1234 or 12.5 kg" if i % 3 else "") for i in range(2000)]
    cpu, _ = timed(lambda: [redact(text) for text in texts])
    return {"characters_per_cpu_s": sum(map(len, texts)) / cpu, "us_per_text": cpu / len(texts) * 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--turns", type=int, default=20_000)
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--store", type=Path, help="a database to collect on, instead of made-up chats")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = args.store or Path(folder) / "made.db"
        if args.store is None:
            made_up(source, args.turns)
        runs = [collect_part(source, Path(folder), n) for n in range(args.repeats)]
    results = {
        "collect": {name: statistics.median(run[name] for run in runs) for name in runs[0]},
        "duplicates": duplicates_part(args.texts),
        "redact": redact_part(),
    }
    print(json.dumps(results, indent=1))
    if args.store is None:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
