"""How fast the console's pages are with many rows, and what they cost the answers that are served beside them.

    python benchmarks/console.py [--turns 1000000] [--feedback 300000] [--rate 100] [--rounds 20] [--keep DIR]

Generates a database once (kept with `--keep`), starts the gateway with its console over an upstream that answers at
once, both pinned to core 0, and asks every page `--rounds` times from core 1: first alone, then while `--rate` requests
a second are answered. The same requests without the pages are the baseline of the added latency.
Writes benchmarks/results/console.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from afterword.records import Candidate, Feedback, Interaction, Release, Report, Skip, Turn, Verdict
from afterword.store import Store
from gateway import RESULTS, direct

PAGES = (
    "/console", "/console?part", "/console/turns", "/console/turns?user=user-77", "/console/turns?text=zebra",
    "/console/turns?kind=edited", "/console/turns/TURN", "/console/interactions", "/console/interactions/INTERACTION",
    "/console/review", "/console/review?second=ada", "/console/candidates", "/console/candidates/cand-3",
    "/console/releases", "/console/forecast",
    "/console/episodes", "/console/privacy", "/console/settings",
)  # fmt: skip
WORDS = "the sky is blue because air scatters short waves of light more than long ones".split()  # noqa: SIM905
STARTED = time.time() - 90 * 86400


def fill(path: Path, turns: int, feedback: int) -> None:
    """A database like one of three months of use."""
    draw = random.Random(1)

    def text(words: int) -> str:
        return " ".join(draw.choices(WORDS, k=words))

    step = 90 * 86400 / turns
    with Store.open(path) as store, store.bulk():
        for start in range(0, turns, 5000):
            rows: list[Any] = []
            for i in range(start, min(start + 5000, turns)):
                follows = i % 4 != 0
                at, version = STARTED + i * step, 1 + 9 * i // turns
                rows.append(
                    Turn(id=f"t{i:08}", created_at=at, messages=({"role": "user", "content": f"{text(20)} {i}?"},),
                         answer={"role": "assistant", "content": text(60)}, prompt_ids=tuple(range(40)),
                         completion_ids=tuple(range(80)), logprobs=(-0.5,) * 80, model="base",
                         adapter=f"afterword@v{version:06}", finish_reason="stop", user=f"user-{i // 4 % 5000}",
                         conversation=f"c{i // 4}", previous=f"t{i - 1:08}" if follows else None,
                         task=("code", "email", None)[i % 3], seconds=1.5,
                         unlinked=None if i % 50 else "unmatched", automated="task" if i % 40 == 0 else None)
                )  # fmt: skip
                if i * feedback // turns != (i + 1) * feedback // turns:
                    kind = draw.choice(("follow_up", "follow_up", "rating", "edited", "copied", "retried"))
                    carried: dict[str, dict[str, Any]] = {
                        "follow_up": {"text": text(8)},
                        "rating": {"value": draw.choice((-1.0, 1.0))},
                        "edited": {"final_text": text(60)},
                    }
                    body = carried.get(kind, {})
                    rows.append(Feedback(id=f"f{i:08}", turn=f"t{i:08}", created_at=at, kind=kind,
                                         user=f"user-{i // 4 % 5000}", **body))  # fmt: skip
                    if kind in ("follow_up", "edited") and i % 7:
                        rows.append(Interaction(id=f"i{i:08}", turn=f"t{i:08}", created_at=at, feedback=(f"f{i:08}",),
                                                kind=kind, hindsight=text(8), polarity=-1, weight=1.0,
                                                split="holdout" if i % 10 == 0 else "train",
                                                confidence=draw.random(), category="complaint"))  # fmt: skip
                    else:
                        reason = draw.choice(("thanks", "off_topic", "no_text"))
                        rows.append(Skip(id=f"s{i:08}", feedback=f"f{i:08}", turn=f"t{i:08}", created_at=at,
                                         reason=reason, detail="x"))  # fmt: skip
            store.submit(rows).result()
        ids = tuple(f"i{i:08}" for i in range(0, turns, 97))[:2000]
        for number in range(1, 10):
            name = f"cand-{number}"
            store.write(
                Candidate(id=name, path=f"adapters/{name}", base="base", parent=None, interactions=ids,
                          recipe={"name": "x"}),
                Report(id=f"rep-{number}", candidate=name, against=None, suites={}),
                Verdict(id=f"ver-{number}", candidate=name, report=f"rep-{number}", passed=True, reasons=("ok: x",)),
                Release(id=f"rel-{number}", channel="default", adapter=None, candidate=None, verdict=None, path=None,
                        previous=None, action="rollback", why="x", created_at=STARTED + number * 8e5),
            )  # fmt: skip


ASK = {"model": "afterword", "stream": True}


async def ask(session: aiohttp.ClientSession, url: str) -> tuple[float, int]:
    started = time.perf_counter()
    async with session.get(url) as answer:
        body = await answer.read()
        assert answer.status == 200, (url, answer.status, body[:300])
    return 1000 * (time.perf_counter() - started), len(body)


async def pages(url: str, rounds: int) -> dict[str, dict[str, float]]:
    """Page -> ms at the median and the 95th percentile, bytes."""
    found: dict[str, dict[str, float]] = {}
    async with aiohttp.ClientSession() as session:
        for page in PAGES:
            await ask(session, url + page)
        for page in PAGES:
            times, size = [], 0
            for _ in range(rounds):
                ms, size = await ask(session, url + page)
                times.append(ms)
                await asyncio.sleep(0.02)
            times.sort()
            found[page] = {"p50": statistics.median(times), "p95": times[int(0.95 * (len(times) - 1))], "bytes": size}
    return found


async def answers(url: str, rate: float, seconds: float) -> list[float]:
    """Milliseconds of each of `rate` requests a second."""
    times: list[float] = []
    draw = random.Random(2)

    async def one(session: aiohttp.ClientSession) -> None:
        started = time.perf_counter()
        messages = [{"role": "user", "content": f"question {draw.random()}"}]
        body = {**ASK, "messages": messages}
        async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
            await answer.read()
            assert answer.status == 200
        times.append(1000 * (time.perf_counter() - started))

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session, asyncio.TaskGroup() as group:
        end = time.perf_counter() + seconds
        due = time.perf_counter()
        while due < end:
            group.create_task(one(session))
            due += draw.expovariate(rate)
            await asyncio.sleep(max(due - time.perf_counter(), 0.0))
    return sorted(times)


def quantiles(times: list[float]) -> dict[str, float]:
    return {"p50": statistics.median(times), "p99": times[int(0.99 * (len(times) - 1))], "n": len(times)}


async def beside(url: str, rate: float, rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pages while requests are answered, and those requests."""
    stop = asyncio.Event()
    found: list[float] = []

    async def load() -> None:
        while not stop.is_set():
            found.extend(await answers(url, rate, 2.0))

    task = asyncio.create_task(load())
    await asyncio.sleep(1.0)
    shown = await pages(url, rounds)
    stop.set()
    await task
    return shown, quantiles(sorted(found))


def serve(directory: Path, upstream: str) -> tuple[subprocess.Popen[str], str]:
    command = ["taskset", "-c", "0", sys.executable, "-m", "afterword", "serve", "--dir", str(directory)]
    command += ["--port", "0", "--json", "--upstream", upstream]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line.startswith("}"):
            break
    return process, str(json.loads(text)["url"])


async def measure(directory: Path, given: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as work, direct(Path(work), 0.0) as upstream:
        process, url = serve(directory, f"http://127.0.0.1:{upstream.port}")
        try:
            started = time.perf_counter()
            async with aiohttp.ClientSession() as session:
                first, _ = await ask(session, f"{url}/console")
                while "Counting" in await (await session.get(f"{url}/console?part")).text():
                    await asyncio.sleep(0.2)
            counted = time.perf_counter() - started
            await asyncio.sleep(30)  # live metrics and review queue are computed once
            alone = await pages(url, given.rounds)
            base = quantiles(await answers(url, given.rate, 20.0))
            shown, under = await beside(url, given.rate, given.rounds)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(20)
    return {"first_page_ms": first, "counted_after_s": counted, "alone": alone, "beside": shown,
            "answers_alone": base, "answers_beside": under}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=1_000_000)
    parser.add_argument("--feedback", type=int, default=300_000)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        directory = given.keep or Path(folder)
        directory.mkdir(parents=True, exist_ok=True)
        database = directory / "afterword.db"
        if not database.exists():
            started = time.perf_counter()
            fill(database, given.turns, given.feedback)
            print(f"filled in {time.perf_counter() - started:.0f} s: {database.stat().st_size / 2**20:.0f} MiB")
        os.sched_setaffinity(0, {1} if (os.cpu_count() or 1) > 1 else {0})
        with Store.open(database) as store:
            turn = next(store.rows(Turn, newest=True, limit=1)).id
            interaction = next(store.rows(Interaction, newest=True, limit=1)).id
        global PAGES
        PAGES = tuple(p.replace("TURN", turn).replace("INTERACTION", interaction) for p in PAGES)
        found = asyncio.run(measure(directory, given))
    found |= {"turns": given.turns, "feedback": given.feedback, "rate": given.rate}
    for page, row in found["beside"].items():
        one = found["alone"][page]
        times = f"alone {one['p50']:7.1f} {one['p95']:7.1f}   beside {row['p50']:7.1f} {row['p95']:7.1f} ms"
        print(f"{page[:44]:<46} {times}  {row['bytes'] / 1000:6.1f} kB")
    for name in ("answers_alone", "answers_beside"):
        print(f"{name:<16} p50 {found[name]['p50']:.1f} ms, p99 {found[name]['p99']:.1f} ms, n {found[name]['n']}")
    print(f"counted after {found['counted_after_s']:.1f} s, first page {found['first_page_ms']:.0f} ms")
    (RESULTS.parent / "console.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
