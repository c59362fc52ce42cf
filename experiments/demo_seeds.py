"""Runs `afterword demo` on several seeds, one row a run in `demo_seeds.jsonl`.

A run that came to a verdict is not run again; one that failed is.

    python experiments/demo_seeds.py                  # seeds 0 to 4 and 90210, and 90210 once more
    python experiments/demo_seeds.py --seeds 7 8 --twice 7
    python experiments/demo_seeds.py --avx2           # as on a CPU without AVX512
    python experiments/demo_seeds.py --table          # the table of the rows, without running anything

Nothing else should compute on the machine. A run takes about five minutes on two cores with AVX512-BF16 and its data
directory is removed afterwards; `--keep DIR` keeps it there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROWS = HERE / "demo_seeds.jsonl"
SEEDS = (0, 1, 2, 3, 4, 90210)
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
"""What torch, oneDNN and MKL read to leave AVX512 out."""
LEAST, SPREAD, PASSES = 0.60, 0.20, 4
"""Aims: the trait after in each passed run, between the passed runs, and how many of five seeds pass."""

Row = dict[str, Any]


def rows() -> list[Row]:
    """All rows so far."""
    return [json.loads(line) for line in ROWS.read_text("utf-8").splitlines()] if ROWS.is_file() else []


def run(seed: int, number: int, *, avx2: bool, keep: Path | None, more: Sequence[str]) -> Row:
    """One demo; its row."""
    folder = Path(tempfile.mkdtemp(prefix=f"demo-{seed}-")) if keep is None else keep / f"demo-{seed}-{number}"
    words = [sys.executable, "-m", "afterword", "--dir", str(folder), "demo", "--seed", str(seed), "--json", *more]
    environment = {**os.environ, **(AVX2 if avx2 else {})}
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, check=False)
    row: Row = {
        "seed": seed,
        "run": number,
        "avx2": avx2,
        "more": list(more),
        "code": commit(),
        "exit": done.returncode,
    }
    if (folder / "report.json").is_file():
        row |= of_report(json.loads((folder / "report.json").read_text("utf-8")), folder)
    if keep is None:
        shutil.rmtree(folder)
    return row


def of_report(report: Row, folder: Path) -> Row:
    """What the table needs of a demo's report."""
    weights = sorted((folder / "adapters").glob("*/adapter_model.safetensors"))
    return {
        "gate": report["verdict"]["passed"],
        "reasons": report["verdict"]["reasons"],
        "before": report["before"],
        "after": report["after"],
        "candidate": report["candidate"]["after"],
        "unrelated": {side: report["unrelated"][side] for side in ("before", "after")} if report["unrelated"] else None,
        "interactions": report["interactions"],
        "splits": report["splits"],
        "seconds": report["seconds"],
        "cpu_seconds": report["cpu_seconds"],
        "peak_memory_bytes": report["peak_memory_bytes"],
        "stages": report["stages"],
        "adapter": hashlib.sha256(weights[0].read_bytes()).hexdigest() if weights else None,
    }


def commit() -> str:
    """The code that runs, with `-changed` where the product was edited since."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("-changed" if git("status", "--porcelain", "--", ":(top)src") else "")


def table(found: Sequence[Row]) -> str:
    """The rows for a person, and whether the aims are met."""
    lines = ["| seed | run | gate | before | after | interval | s | CPU s | GiB | adapter | code |", "|" + "---|" * 11]
    for row in found:
        if "gate" not in row:
            lines.append(f"| {row['seed']} | {row['run']} | ended with {row['exit']} |" + " |" * 8)
            continue
        after = row["after"] if row["gate"] else row["candidate"] or row["after"]
        gib = "" if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 2**30:.2f}"
        lines.append(
            f"| {row['seed']} | {row['run']} | {'yes' if row['gate'] else 'no'} | {row['before']['value']:.2f} | "
            f"{after['value']:.2f} | {after['low']:.2f} to {after['high']:.2f} | {row['seconds']:.0f} | "
            f"{row['cpu_seconds'] or 0:.0f} | {gib} | {(row['adapter'] or '')[:12]} | {row.get('code', '')} |"
        )
    return "\n".join([*lines, "", *aims([row for row in found if "gate" in row])])


def aims(found: Sequence[Row]) -> list[str]:
    """One sentence for each aim that the rows can tell."""
    first = [row for row in found if row["run"] == 0]
    passed = [row["after"]["value"] for row in first if row["gate"]]
    said = [f"The gate passed {len(passed)} of {len(first)} seeds; the aim is {PASSES} of 5."]
    if passed:
        said.append(
            f"Trait after, in passed runs: {min(passed):.2f} to {max(passed):.2f} (median "
            f"{statistics.median(passed):.2f}); the aims are {LEAST} in each and {SPREAD} between them."
        )
    for row in found:
        if row["run"] > 0:
            same = [one["adapter"] == row["adapter"] for one in first if one["seed"] == row["seed"]]
            said += [f"Seed {row['seed']} again gave {'the same' if one else 'another'} adapter." for one in same]
    return said


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS))
    parser.add_argument("--twice", type=int, nargs="*", help="seeds to run once more (default 90210 if listed)")
    parser.add_argument("--avx2", action="store_true")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--quick", action="store_true", help="quick demos: they show whether adapters are the same")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args(arguments)
    more = ["--quick"] if options.quick else []
    mine = lambda row: row["avx2"] == options.avx2 and row["more"] == more  # noqa: E731
    if options.twice is None:
        options.twice = [seed for seed in (90210,) if seed in options.seeds]
    wanted = [] if options.table else [*((s, 0) for s in options.seeds), *((s, 1) for s in options.twice)]
    for seed, number in wanted:
        if any(mine(row) and "gate" in row and (row["seed"], row["run"]) == (seed, number) for row in rows()):
            continue
        row = run(seed, number, avx2=options.avx2, keep=options.keep, more=more)
        with ROWS.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(table([row]), flush=True)
    print(table([row for row in rows() if mine(row)]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
