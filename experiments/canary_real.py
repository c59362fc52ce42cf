"""Canaries on the real model: simulated users talk with the real server, and it decides by itself.

    python experiments/canary_real.py HOME [--only good,bad,equal] [--out experiments/canary_real.json]

HOME is what `afterword demo` left (a user who wants short answers; its candidate must have been released). Each
scenario works on a copy: *good*: the base is served, the demo's candidate is tried; *bad*: the candidate is served, and
one is tried that was trained against the wish (the same turns with the opposite words); *equal*: the candidate is
served, and the same weights under another name are tried. Users are of the same kind as in the demo; each has a name of
its own and comes back. Everything goes through `afterword` and the HTTP API; only the two candidates above are written
by this script. Some minutes each on two cores.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from afterword.cli.demo_processes import run_json, serving
from afterword.records import Candidate, Interaction, Release, Verdict
from afterword.simulate import load_persona, simulate_users
from afterword.store import Store

USERS, AT_ONCE = 48, 12
MOST = 1500
"""Conversations after which a scenario is given up."""
OPPOSITE = (
    "That was far too short. Please write a long and detailed answer in several paragraphs, with many examples.",
    "I want much more detail than that. Explain every step at length.",
    "Too brief. Give me a long answer with background, reasons and examples.",
)
TERMS: tuple[str, ...] = ("canary.min_users=10", "canary.horizon=400")
EQUAL_TERMS: tuple[str, ...] = ("canary.min_users=10", "canary.horizon=60", "canary.min_effect=0.5")
"""A horizon that is reached in minutes; at so few turns the interval of an equal candidate is about +-0.4 wide."""


def candidate_of(home: Path) -> str:
    """The demo's released candidate."""
    with Store.open(home / "afterword.db") as store:
        release = store.release()
    if release is None or release.candidate is None:
        raise SystemExit(f"{home} serves no candidate: run `afterword demo --dir {home}` until one is released")
    return release.candidate


def against(home: Path) -> str:
    """A candidate that was trained on the demo's turns with the opposite of what their user said."""
    with Store.open(home / "afterword.db") as store:
        old = [i for i in store.rows(Interaction) if i.split == "train" and i.hindsight]
        store.write(*(
            replace(one, id=f"opposite-{one.id}", hindsight=OPPOSITE[k % len(OPPOSITE)], kind="comment", feedback=())
            for k, one in enumerate(old)
        ))  # fmt: skip
    return str(run_json(home, "train", overrides=("train.min_interactions=8",))["id"])


def twin(home: Path, of: str) -> str:
    """The same weights as a candidate of its own."""
    with Store.open(home / "afterword.db") as store:
        old = store.get(Candidate, of)
        new = replace(old, id="cand-twin", path="adapters/cand-twin", parent=of, created_at=time.time())
        shutil.copytree(home / old.path, home / new.path)
        store.write(new)
    return new.id


def begin(home: Path, candidate: str, terms: tuple[str, ...]) -> Release:
    """Start a canary for half of the users; against the gate where it says no (that is what is tried here)."""
    with Store.open(home / "afterword.db") as store:
        verdict = store.newest(Verdict, candidate=candidate)
    if verdict is None:
        run_json(home, "evaluate", candidate, overrides=('evaluate.suites=["earlier-wins"]',), fine=(0, 3))
        by: tuple[str, ...] = ("--override", "experiment", "--why", "to see whether the canary takes it back")
    else:
        by = ()
    run_json(home, "release", "publish", candidate, "--canary", "50%", *by, overrides=terms)
    with Store.open(home / "afterword.db") as store:
        canary = store.canary()
    assert canary is not None
    return canary


def talk(home: Path, url: str) -> tuple[Release | None, int, float]:
    """Users talk until the canary ends: its end, the conversations, and the seconds."""
    persona, started, number = load_persona("brief"), time.monotonic(), 0
    with Store.open(home / "afterword.db") as store, ThreadPoolExecutor(AT_ONCE) as pool:

        def one(index: int) -> None:
            if store.canary() is not None:
                simulate_users(
                    url, persona, conversations=1, first=index // USERS, seed=1000 + index % USERS, concurrency=1,
                    user=f"person-{index % USERS}",
                )  # fmt: skip

        while store.canary() is not None and number < MOST:
            list(pool.map(one, range(number, number + AT_ONCE)))
            number += AT_ONCE
        row = store.newest(Release) if store.canary() is None else None
    return row, number, time.monotonic() - started


def scenario(name: str, home: Path, good: str) -> dict[str, Any]:
    """One canary from its beginning to its end."""
    if name == "good":
        run_json(home, "release", "rollback", "--to", "base")
        tried, terms = good, TERMS
    else:
        tried, terms = (against(home), TERMS) if name == "bad" else (twin(home, good), EQUAL_TERMS)
    with serving(home) as url:
        canary = begin(home, tried, terms)
        until_served(url, "afterword@canary")
        row, conversations, seconds = talk(home, url)
        served = httpx.get(f"{url}/v1/models/afterword", timeout=10).json() if row else {}
    verify = run_json(home, "releases", "verify")
    return {
        "tried": tried, "canary": canary.adapter, "horizon": canary.terms["horizon"],
        "action": row.action if row else None, "why": row.why if row else "nothing was decided",
        "serves": row.adapter if row else None, "alias_root": served.get("root"),
        "conversations": conversations, "seconds": round(seconds, 1),
        "evidence": row.evidence if row else {}, "verify_problems": verify["problems"],
    }  # fmt: skip


def until_served(url: str, model: str, seconds: float = 60.0) -> None:
    """Wait until the gateway has a model."""
    end = time.monotonic() + seconds
    while httpx.get(f"{url}/v1/models/{model}", timeout=10).status_code != 200:
        if time.monotonic() > end:
            raise SystemExit(f"{model} did not appear in {seconds:.0f} s")
        time.sleep(0.2)


def main() -> None:
    """Run the scenarios and write each as soon as it is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home", type=Path)
    parser.add_argument("--only", default="good,bad,equal")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("canary_real.json"))
    args = parser.parse_args()
    good = candidate_of(args.home)
    found = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() else {}
    for name in args.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder) / name
            shutil.copytree(args.home, home, ignore=shutil.ignore_patterns("server.json"))
            found[name] = scenario(name, home, good)
        print(name, found[name]["action"], found[name]["why"], flush=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
