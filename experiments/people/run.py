"""The experiments with simulated users: one command for each, resumable, a table and a picture from the finished cells.

    python experiments/people/run.py personalise --seeds 3
    python experiments/people/run.py personalise --personas brief,spanish --seeds 1 --smoke --out /tmp/smoke
    python experiments/people/run.py --list
    python experiments/people/run.py personalise --table        only write table and picture again

A finished cell is a row of results/NAME.jsonl and is not run again; the table (NAME.md) and the picture (NAME.svg) are
written after every cell. Ctrl-C loses the cell that runs, nothing else.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import warnings
from pathlib import Path

from book import Book
from common import Experiment, Options
from controls import CONTROL, RECIPES
from learning import CHANGE, COMPLEMENTARY, PERSONALISE, ROBUSTNESS
from logs import HEATMAPS, OFFLINE
from many import ADAPTERS, CONTINUAL
from teachers import CEILINGS, TEACHERS
from variants import VARIANTS

from afterword.errors import AfterwordError, UsageError
from afterword.model.loading import EMBEDDED

EXPERIMENTS: dict[str, Experiment] = {
    "personalise": PERSONALISE, "change_of_mind": CHANGE, "complementary": COMPLEMENTARY, "robustness": ROBUSTNESS,
    "control_sft": CONTROL, "continual": CONTINUAL, "recipes": RECIPES, "adapters": ADAPTERS,
    "offline_logs": OFFLINE, "heatmaps": HEATMAPS, "teachers": TEACHERS,
    "ceilings": CEILINGS,
}  # fmt: skip


def main() -> int:
    """Run the cells that are missing."""
    args = _arguments()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also in the background, where a shell ignores it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the cell's server is stopped
    warnings.filterwarnings("ignore", category=UserWarning, module="peft")  # it looks for the built-in model on the hub
    if args.list or args.experiment is None:
        for name, one in EXPERIMENTS.items():
            print(f"{name:16} {one.about}")
        return 0
    experiment, book, options = EXPERIMENTS[args.experiment], Book(args.out, args.experiment), _options(args)
    wanted = [cell for cell in experiment.cells(options) if all(str(cell.get(k)) in v for k, v in args.only)]
    if args.only and not wanted:
        raise UsageError(f"--only leaves no cell: a cell is {experiment.cells(options)[0]}")
    cells = [] if args.table else [cell for cell in wanted if not book.has(cell)]
    for number, cell in enumerate(cells, 1):
        print(f"[{number}/{len(cells)}] {cell}", flush=True)
        started = time.monotonic()
        try:
            found = experiment.run(cell, options)
        except AfterwordError as error:
            print(f"  this cell ended: {error.message}", file=sys.stderr, flush=True)
            continue
        book.add(cell, found, time.monotonic() - started)
        _write(experiment, book)
        print(f"  {time.monotonic() - started:.0f} s, stages {found.get('stages')}", flush=True)
    _write(experiment, book)
    missing = sum(not book.has(cell) for cell in wanted)
    return 1 if missing and not args.table else 0


def _write(experiment: Experiment, book: Book) -> None:
    rows = book.rows()
    if rows:
        text, picture = experiment.report(rows)
        print(f"\n{text}", flush=True)
        book.write(".md", f"{experiment.about[:1].upper()}{experiment.about[1:]}.\n\n{text}")
        if picture is not None:
            book.write(".svg" if picture.startswith("<svg") else ".html", picture)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", choices=tuple(EXPERIMENTS))
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--personas", default="")
    parser.add_argument("--variants", default="", help="recipes, or the arms of control_sft, continual, adapters")
    parser.add_argument("--recipe", default="follow-ups", choices=tuple(VARIANTS),
                        help="how control_sft, continual and adapters distil")  # fmt: skip
    parser.add_argument("--only", type=_part, nargs="*", default=[], metavar="KEY=VALUES",
                        help="some cells of a seed: share=0,100 gate=on")  # fmt: skip
    parser.add_argument("--tasks", default="", help="what is asked; default all")
    parser.add_argument("--heldout", type=int, default=64, help="requests that measure")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--files", nargs="*", default=[], help="logs, for offline_logs")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the numbers of interactions")
    parser.add_argument("--smoke", action="store_true", help="one seed, tiny numbers: does it run at all?")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


def _part(text: str) -> tuple[str, tuple[str, ...]]:
    key, _, values = text.partition("=")
    return key, tuple(values.split(","))


def _options(args: argparse.Namespace) -> Options:
    def names(text: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in text.split(",") if part.strip())

    return Options(
        seeds=1 if args.smoke else args.seeds, personas=names(args.personas), variants=names(args.variants),
        recipe=args.recipe, tasks=names(args.tasks) or None, heldout=8 if args.smoke else args.heldout,
        max_tokens=32 if args.smoke else args.max_tokens, model=args.model, device=args.device,
        scale=0.04 if args.smoke else args.scale, files=tuple(args.files),
    )  # fmt: skip


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AfterwordError as error:
        print(f"{error.message}", file=sys.stderr)
        sys.exit(error.exit_code)
