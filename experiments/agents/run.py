"""Compares ways to train an agent on two environments, at equal episodes, and writes docs/results/agents.md.

    python experiments/agents/run.py cells [--environments sum guess] [--arms grpo ...] [--seeds 0] [--homes DIR]
    python experiments/agents/run.py page

A cell is one environment, arm and seed: `afterword agent train` in a data directory of its own, or for `skills` the
same episodes by the untrained model, whose successes become the skill that stands in the prompt of the held-out tasks.
`cells` runs what rows.jsonl does not hold yet; a cell that was interrupted goes on where it stopped. `page` writes the
page from the rows alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from afterword.cli.agent_train import interval
from afterword.cli.demo_processes import serving
from afterword.environments.builtin import BUILT_IN
from afterword.environments.results import RunFile, summary
from afterword.environments.runner import PlaySettings, plan_episodes, play
from afterword.evaluate.report.curves import success_curve
from afterword.evaluate.stats.statistics import wilson
from afterword.feedback.collect.collect import collect
from afterword.feedback.settings import CollectSettings
from afterword.feedback.skills import write_skills
from afterword.records import TaskSkill
from afterword.store import Store

HERE = Path(__file__).parent
ROWS = HERE / "rows.jsonl"
DOCS = HERE.parent.parent / "docs" / "results"
ARMS = {
    "grpo": ("episode-grpo", "reward of the episode alone (GRPO)"),
    "turns": ("episode-sdpo", "self-distillation from what came back after each turn; no reward"),
    "both": ("episode-sdar", "GRPO and SDAR's gated push from a skill"),
    "skills": (None, "untrained, with a skill in the prompt of held-out tasks"),
}
ROUNDS, EPISODES, GROUP, HELDOUT = 4, 32, 8, 50


def cell(environment: str, arm: str, seed: int, home: Path) -> dict[str, Any]:
    """Run one cell; returns its row."""
    began = time.monotonic()
    recipe = ARMS[arm][0]
    found = with_skills(environment, seed, home) if recipe is None else trained(environment, recipe, seed, home)
    return {
        "environment": environment, "arm": arm, "seed": seed, "recipe": recipe, "rounds": ROUNDS,
        "episodes": EPISODES, "group": GROUP, "cpus": os.cpu_count(), "load": round(os.getloadavg()[1], 1),
        "seconds": round(time.monotonic() - began, 1), **found,
    }  # fmt: skip


def trained(environment: str, recipe: str, seed: int, home: Path) -> dict[str, Any]:
    """Train in rounds by the command that users have."""
    words = ["agent", "train", environment, "--recipe", recipe, "--rounds", ROUNDS, "--episodes", EPISODES, "--group",
             GROUP, "--heldout", HELDOUT, "--seed", seed, "--run", "cell", "--no-report", "--json"]  # fmt: skip
    line = [sys.executable, "-m", "afterword", "--dir", str(home), *map(str, words)]
    done = subprocess.run(line, stdout=subprocess.PIPE, check=False)
    shown = json.loads(done.stdout)
    if done.returncode:
        raise SystemExit(f"{environment}/{arm_of(recipe)}/{seed}: {shown['error']['message']}")
    return {"steps": shown["rows"]}


def arm_of(recipe: str) -> str:
    """The arm of a recipe."""
    return next(name for name, (one, _) in ARMS.items() if one == recipe)


def with_skills(environment: str, seed: int, home: Path) -> dict[str, Any]:
    """Play the same training tasks untrained, and the held-out tasks with and without a skill of a success."""
    spec, steps, total = BUILT_IN[environment], [], 0
    tasks = list(spec.panel("train"))
    heldout = plan_episodes(spec.panel("heldout"), HELDOUT, seed)
    with serving(home) as url:
        base = PlaySettings(url=f"{url}/v1", seed=seed)
        for number in range(1, ROUNDS + 1):
            first = seed + 1000 * number  # as `agent train` draws them
            drawn = random.Random(first).sample(tasks, EPISODES // GROUP)
            with RunFile(home / f"train-{number}.jsonl", {}) as run:
                planned = plan_episodes(drawn, EPISODES, first, same_seed=True)
                results = play(spec, planned, replace(base, run=f"train-{number}"), run)
            shown = summary(results)
            total += shown["prompt_tokens"] + shown["completion_tokens"]
            steps.append({"step": "train", "round": number, **shown})
        with Store.open(home / "afterword.db") as store:
            collect(store, CollectSettings())
            write_skills(store)
            texts = [row for row in store.rows(TaskSkill) if row.state is None]
        skill = random.Random(seed).choice(texts) if texts else None
        for place, chosen in ((0, None), (ROUNDS, skill)):
            given = {one.task.id: chosen for one in heldout} if chosen else {}
            with RunFile(home / f"heldout-{place}.jsonl", {}) as run:
                play_settings = replace(base, run=f"heldout-{place}", record=False, split="heldout", skills=given)
                results = play(spec, heldout, play_settings, run)
            steps.append({"step": "evaluate", "round": place, "trained_episodes": place * EPISODES,
                          "interval": interval(results), **summary(results)})  # fmt: skip
    return {"steps": steps, "skill": skill.text if skill else None}


def rows() -> list[dict[str, Any]]:
    """The finished cells."""
    return [json.loads(line) for line in ROWS.read_text("utf-8").splitlines()] if ROWS.exists() else []


def run_cells(args: argparse.Namespace) -> None:
    """Run the cells that have no row."""
    have = {(row["environment"], row["arm"], row["seed"]) for row in rows()}
    for seed in args.seeds:
        for environment in args.environments:
            for arm in args.arms:
                if (environment, arm, seed) in have:
                    continue
                home = args.homes / f"{environment}-{arm}-{seed}"
                home.mkdir(parents=True, exist_ok=True)
                row = cell(environment, arm, seed, home)
                with ROWS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{environment} {arm} seed {seed}: {row['seconds']:.0f} s", flush=True)


def held(row: dict[str, Any], first: bool) -> dict[str, Any]:
    """The first or last evaluation of a row."""
    found: list[dict[str, Any]] = [one for one in row["steps"] if one["step"] == "evaluate"]
    return found[0 if first else -1]


def tokens(row: dict[str, Any]) -> int:
    """Tokens of the episodes that were played to train."""
    return sum(one["prompt_tokens"] + one["completion_tokens"] for one in row["steps"] if one["step"] == "train")


def pooled(found: Sequence[dict[str, Any]]) -> str:
    """Success of several evaluations together, with Wilson's interval."""
    won, n = sum(one["successes"] for one in found), sum(one["scored"] for one in found)
    if not n:
        return "-"
    share = wilson(won, n)
    return f"{won} of {n}, {100 * share['value']:.0f} % ({100 * share['low']:.0f} to {100 * share['high']:.0f})"


def table(environment: str, found: list[dict[str, Any]]) -> list[str]:
    """The table of one environment."""
    lines = [
        "| arm | seeds | before | after | training successes, first and last round | tokens | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        mine = [row for row in found if row["environment"] == environment and row["arm"] == arm]
        if not mine:
            lines.append(f"| `{arm}` | 0 | not run | | | | |")
            continue
        steps = [[one for one in row["steps"] if one["step"] == "train"] for row in mine]
        played = [f"{sum(s[i]['successes'] for s in steps)} of {sum(s[i]['scored'] for s in steps)}" for i in (0, -1)]
        lines.append(
            f"| `{arm}` | {len(mine)} | {pooled([held(r, True) for r in mine])} | "
            f"{pooled([held(r, False) for r in mine])} | {played[0]}, {played[1]} | "
            f"{sum(map(tokens, mine)) // len(mine):,} | {sum(r['seconds'] for r in mine) / len(mine):.0f} |"
        )
    return lines


def reading(found: list[dict[str, Any]]) -> str:
    """A sentence for each environment and arm: the difference of success, and how many rounds trained."""
    lines = []
    for environment in ("sum", "guess"):
        for arm in ARMS:
            mine = [row for row in found if row["environment"] == environment and row["arm"] == arm]
            if not mine:
                continue
            before, after = ([held(row, first) for row in mine] for first in (True, False))
            value, low, high = difference(before, after)
            clear = low > 0 or high < 0
            trained_rounds = [
                one for row in mine for one in row["steps"] if one.get("candidate") and one["step"] == "train"
            ]
            many = f"{len(mine)} seed{'s' if len(mine) > 1 else ''}"
            rounds = "" if arm == "skills" else f", {len(trained_rounds)} of {ROUNDS * len(mine)} rounds trained"
            lines.append(
                f"- `{environment}`, `{arm}` ({many}{rounds}): {value:+.0f} points ({low:+.0f} to {high:+.0f})"
                + ("." if clear else ": no difference is shown.")
            )
    return "\n".join(lines)


def difference(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
    """After minus before in points, with Newcombe's interval from two Wilson intervals (as if unpaired: too wide)."""
    one, two = (
        wilson(sum(step["successes"] for step in steps), sum(step["scored"] for step in steps))
        for steps in (before, after)
    )
    value = two["value"] - one["value"]
    low = value - ((two["value"] - two["low"]) ** 2 + (one["high"] - one["value"]) ** 2) ** 0.5
    high = value + ((two["high"] - two["value"]) ** 2 + (one["value"] - one["low"]) ** 2) ** 0.5
    return 100 * value, 100 * low, 100 * high


def write_page() -> None:
    """Write docs/results/agents.md and its pictures from the rows."""
    found = rows()
    text = (HERE / "page.md").read_text("utf-8").replace("[[reading]]", reading(found))
    for environment in ("sum", "guess"):
        text = text.replace(f"[[{environment}]]", "\n".join(table(environment, found)))
        series = {}
        for arm in ARMS:
            mine = [row for row in found if row["environment"] == environment and row["arm"] == arm]
            if not mine:
                continue
            points = []
            for i, step in enumerate(one for one in mine[0]["steps"] if one["step"] == "evaluate"):
                same = [[one for one in row["steps"] if one["step"] == "evaluate"][i] for row in mine]
                share = wilson(sum(one["successes"] for one in same), sum(one["scored"] for one in same))
                points.append((step["trained_episodes"], (share["value"], share["low"], share["high"])))
            series[arm] = points
        picture = success_curve(f"{environment}: success on held-out tasks, 95 % intervals", series)
        (DOCS / f"agents-{environment}.svg").write_text(picture, encoding="utf-8")
    (DOCS / "agents.md").write_text(text, encoding="utf-8")


def main() -> None:
    """Run or write."""
    it = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = it.add_subparsers(dest="verb", required=True)
    cells = verbs.add_parser("cells")
    cells.add_argument("--environments", nargs="+", default=["sum", "guess"], choices=sorted(BUILT_IN))
    cells.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    cells.add_argument("--seeds", nargs="+", type=int, default=[0])
    cells.add_argument("--homes", type=Path, default=HERE / "homes")
    verbs.add_parser("page")
    args = it.parse_args()
    run_cells(args) if args.verb == "cells" else write_page()


if __name__ == "__main__":
    main()
