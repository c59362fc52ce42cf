"""Users' requests beside training, evaluation and busy processes of others, on one machine.

    python benchmarks/beside.py [--quick] [--write]

One `afterword serve` with the embedded model in a fresh data directory, and two patterns of streamed requests of 32
tokens through its gateway: one every 2 seconds, whatever became of the one before, and 8 at once, the next 8 when all
are answered. Both run on the idle machine, beside `afterword train`, beside `afterword evaluate`, and beside two busy
processes of others at normal priority and at nice 10. Reported: time to the first token and to the whole answer at p50
and p99, requests lost, and the training's steps a minute, alone and under each pattern. Aims are relative to idle in
the same run. A request is lost when it fails, ends early, or takes over 60 seconds.

Each process runs in a session of its own, as in terminals of their own: Linux shares the cores evenly between sessions,
whatever the nice values. What the scheduler did is counted, too, which says more than times on a machine with other
work: how long the server's threads waited for a core for each request, how often a thread was put off its core, CPU
time, and for which share of the time the work beside was confined to some of the cores.

Takes 8 minutes, with --quick (without nice 10, shorter windows) 3. --write puts the figures into
benchmarks/results/beside.json and the table into beside.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from afterword.cli.server_state import running_server

RESULTS = Path(__file__).parent / "results"
TOKENS, PERIOD, AT_ONCE, PATIENCE = 32, 2.0, 8, 60.0
PATTERNS = SINGLE, EIGHT = "1 every 2 s", "8 at once"
LOADS = ("idle", "train", "evaluate", "2 busy", "2 busy at nice 10")
TOPICS = ("tides", "clocks", "radios", "pianos", "engines", "cameras", "hearts", "rivers")
BUSY = "while True: pass"


@dataclass(frozen=True)
class Windows:
    """Seconds of each part."""

    single: float
    eight: float
    alone: float
    """Of the training without requests."""
    niced: bool
    """Whether foreign processes at nice 10 are a part."""


FULL, QUICK = Windows(45.0, 18.0, 30.0, True), Windows(14.0, 7.0, 12.0, False)


@dataclass
class Requests:
    """What the users saw, in seconds."""

    first: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Figures by name; percentiles by the nearest rank, so p99 of fewer than 100 is the slowest."""
        found: dict[str, Any] = {"requests": len(self.total) + len(self.lost), "lost": len(self.lost)}
        for name, values in (("first", self.first), ("total", self.total)):
            ordered = sorted(values)
            for q in (50, 99):
                rank = max(0, -(-len(ordered) * q // 100) - 1)
                found[f"{name}_p{q}_s"] = round(ordered[rank], 3) if ordered else None
        if self.lost:
            found["why_lost"] = sorted(set(self.lost))
        return found


class Users:
    """Sends the requests."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._sent = 0

    def run(self, pattern: str, seconds: float) -> dict[str, Any]:
        """One pattern for so many seconds."""
        return asyncio.run(self._run(pattern, seconds)).summary()

    async def _run(self, pattern: str, seconds: float) -> Requests:
        seen, end = Requests(), time.monotonic() + seconds
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            if pattern == EIGHT:
                while time.monotonic() < end:
                    await asyncio.gather(*(self._ask(session, seen) for _ in range(AT_ONCE)))
                return seen
            tasks, began = [], time.monotonic()
            while began + len(tasks) * PERIOD < end:
                await asyncio.sleep(max(0.0, began + len(tasks) * PERIOD - time.monotonic()))
                tasks.append(asyncio.create_task(self._ask(session, seen)))
            await asyncio.gather(*tasks)
        return seen

    async def _ask(self, session: aiohttp.ClientSession, seen: Requests) -> None:
        self._sent += 1
        text = f"{self._sent}. Explain in a few words how {TOPICS[self._sent % len(TOPICS)]} work."
        body = {
            "model": "afterword", "messages": [{"role": "user", "content": text}], "max_tokens": TOKENS,
            "min_tokens": TOKENS, "temperature": 1.0, "stream": True,
        }  # fmt: skip
        began, first, finish = time.perf_counter(), 0.0, None
        try:
            async with (
                asyncio.timeout(PATIENCE),
                session.post(f"{self.url}/v1/chat/completions", data=orjson.dumps(body)) as response,
            ):
                response.raise_for_status()
                async for line in response.content:
                    if line.startswith(b"data: {"):
                        (choice,) = orjson.loads(line[6:])["choices"] or ({},)
                        first = first or (time.perf_counter() if choice.get("delta", {}).get("content") else 0.0)
                        finish = choice.get("finish_reason") or finish
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            seen.lost.append(f"{type(error).__name__}: {error}")
            return
        if finish is None or not first:
            seen.lost.append(f"ended early (finish_reason {finish})")
            return
        seen.first.append(first - began)
        seen.total.append(time.perf_counter() - began)


class Training:
    """`afterword train` of a run that lasts longer than we watch, and the moments at which its steps ended."""

    def __init__(self, home: Path) -> None:
        self.home, self.moments = home, list[float]()
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        begun = {path.parent.name for path in self.home.glob("runs/*/metrics.jsonl")}
        while not self._ended.wait(0.05):
            for path in self.home.glob("runs/*/metrics.jsonl"):
                if path.parent.name not in begun:
                    new = path.read_bytes().count(b"\n") - len(self.moments)
                    self.moments += [time.monotonic()] * max(0, new)

    def wait_for(self, steps: int, process: subprocess.Popen[bytes]) -> None:
        """Until so many steps are done: the first ones are slower."""
        while len(self.moments) < steps:
            if process.poll() is not None:
                raise SystemExit(f"`afterword train` ended with status {process.returncode}; its log is printed above")
            time.sleep(0.1)

    def rate(self, begin: float, end: float) -> float:
        """Steps a minute between two moments. A step that lies across one counts by its part."""
        done = 0.0
        for before, after in zip(self.moments, self.moments[1:], strict=False):
            inside = min(after, end) - max(before, begin)
            done += max(0.0, inside) / max(after - before, 1e-9)
        return 60.0 * done / (min(end, self.moments[-1]) - begin)

    def close(self) -> None:
        """No longer watch."""
        self._ended.set()


class Scheduling:
    """Counts what the scheduler does to the threads of some sessions (`/proc`), ten times a second.

    Args:
        sessions: Name -> id of a session.
    """

    def __init__(self, **sessions: int) -> None:
        self._sessions = sessions
        self._sums = {name: dict.fromkeys(("cpu_s", "waited_s", "preempted"), 0.0) for name in sessions}
        self._before: dict[int, tuple[float, float, float]] = {}
        self._looks, self._confined = 0, dict.fromkeys(sessions, 0)
        self._ended = threading.Event()
        self._look()
        for sums in self._sums.values():
            sums.update(dict.fromkeys(sums, 0.0))
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self, requests: int) -> dict[str, Any]:
        """The counts by session since the start."""
        self._ended.set()
        self._thread.join()
        self._look()
        found: dict[str, Any] = {}
        for name, sums in self._sums.items():
            found[name] = {key: round(value, 3) for key, value in sums.items()}
            found[name]["confined_share"] = round(self._confined[name] / max(1, self._looks), 2)
        found["server"]["waited_ms_a_request"] = round(1e3 * self._sums["server"]["waited_s"] / max(1, requests), 1)
        return found

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            self._look()

    def _look(self) -> None:
        self._looks += 1
        names = {session: name for name, session in self._sessions.items()}
        confined = set()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, ValueError, IndexError):  # it has ended
                name = names.get(os.getsid(int(process.name)))
                if name is not None:
                    self._read(process, self._sums[name])
                    if len(os.sched_getaffinity(int(process.name))) < len(os.sched_getaffinity(0)):
                        confined.add(name)
        for name in confined:
            self._confined[name] += 1

    def _read(self, process: Path, sums: dict[str, float]) -> None:
        for thread in process.glob("task/[0-9]*"):
            cpu, waited, _ = map(int, (thread / "schedstat").read_text().split())
            status = (thread / "status").read_text()
            now = cpu / 1e9, waited / 1e9, float(status.split("nonvoluntary_ctxt_switches:")[1].split()[0])
            before = self._before.get(int(thread.name), (0.0, 0.0, 0.0))
            for key, new, old in zip(sums, now, before, strict=True):
                sums[key] += max(0.0, new - old)
            self._before[int(thread.name)] = now


def command(home: Path, *words: str) -> list[str]:
    """A command line of ours."""
    return [sys.executable, "-m", "afterword", "--quiet", "--dir", str(home), *words]


@contextmanager
def running(line: Sequence[str], nice: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its children, ended at the end. Its output goes to our stderr when it fails by itself."""
    prefix = ["nice", "-n", str(nice)] if nice else []
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*prefix, *line], stdout=log, stderr=log, start_new_session=True)
        try:
            yield process
        finally:
            if process.poll() not in (None, 0):
                log.seek(0)
                sys.stderr.buffer.write(log.read()[-4000:])
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


def server_url(home: Path, process: subprocess.Popen[bytes]) -> str:
    """The gateway's address once it answers."""
    while (server := running_server(home)) is None:
        if process.poll() is not None:
            raise SystemExit(f"`afterword serve` ended with status {process.returncode}")
        time.sleep(0.1)
    return str(server["url"])


def long_training(home: Path) -> list[str]:
    """A run that is still going when we stop it."""
    return command(
        home, "train", "--epochs", "400", "--set", "train.fresh=0", "--set", "train.stop_rules=false", "--set",
        "train.min_interactions=0",
    )  # fmt: skip


def evaluations(home: Path) -> list[str]:
    """One evaluation after another, each with a seed of its own, for answers are cached."""
    line = shlex.join(command(home, "evaluate"))
    return ["sh", "-c", f"seed=0; while true; do {line} --set evaluate.seed=$seed; seed=$((seed + 1)); done"]


def prepare(home: Path) -> None:
    """Example interactions, and a candidate for `evaluate`."""
    for words in (
        ("import", "--examples"),
        ("collect",),
        ("train", "--epochs", "1", "--max-interactions", "8", "--set", "train.fresh=0", "--set",
         "train.min_interactions=0"),
    ):  # fmt: skip
        subprocess.run(command(home, *words), check=True, stdout=subprocess.DEVNULL)


def measure(home: Path, windows: Windows) -> dict[str, Any]:
    """All figures."""
    say("preparing: example interactions, a small candidate")
    prepare(home)
    found: dict[str, Any] = {}

    def both(name: str, beside: subprocess.Popen[bytes] | None = None) -> None:
        found[name] = {}
        for pattern, seconds in ((SINGLE, windows.single), (EIGHT, windows.eight)):
            say(f"{name}: {pattern}")
            found[name][pattern] = counted(users, pattern, seconds, server, beside)
            say(json.dumps(found[name][pattern]))

    with running(command(home, "serve", "--port", "0")) as server:
        users = Users(server_url(home, server))
        users.run(EIGHT, 1.0)  # warm
        both("idle")
        found["train"], found["training"] = beside_training(home, windows, users, server)
        with running(evaluations(home)) as process:
            time.sleep(12.0)  # until it has loaded
            both("evaluate", process)
        for name, nice in (("2 busy", 0), ("2 busy at nice 10", 10)):
            if nice == 0 or windows.niced:
                with running([sys.executable, "-c", BUSY], nice), running([sys.executable, "-c", BUSY], nice):
                    time.sleep(1.0)
                    both(name)
    return found


def counted(
    users: Users,
    pattern: str,
    seconds: float,
    server: subprocess.Popen[bytes],
    beside: subprocess.Popen[bytes] | None = None,
) -> dict[str, Any]:
    """One pattern, and what the scheduler did meanwhile to the server and to the work beside it."""
    watch = Scheduling(server=server.pid, **({} if beside is None else {"beside": beside.pid}))
    seen = users.run(pattern, seconds)
    return seen | {"scheduling": watch.close(seen["requests"])}


def beside_training(
    home: Path, windows: Windows, users: Users, server: subprocess.Popen[bytes]
) -> tuple[dict[str, Any], dict[str, float]]:
    """What users see beside a run, and the steps a minute of that run, alone and beside them."""
    training, seen, rates = Training(home), {}, {}
    with running(long_training(home)) as process:
        training.wait_for(3, process)
        spans = {"alone": (time.monotonic(), windows.alone)}
        say("train: alone")
        time.sleep(windows.alone)
        for pattern, seconds in ((SINGLE, windows.single), (EIGHT, windows.eight)):
            say(f"train: {pattern}")
            began = time.monotonic()
            seen[pattern] = counted(users, pattern, seconds, server, process)
            spans[pattern] = (began, time.monotonic() - began)
            say(json.dumps(seen[pattern]))
        training.wait_for(len(training.moments) + 1, process)  # the step across the end
        for name, (began, seconds) in spans.items():
            rates[name] = round(training.rate(began, began + seconds), 2)
    training.close()
    say(json.dumps(rates))
    return seen, rates


def aims(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Each aim with its figure, of the pattern with one request every 2 seconds, and the lost ones of all."""
    idle = found["idle"][SINGLE]

    def times(name: str, figure: str) -> float | None:
        value = found[name][SINGLE][figure]
        return None if value is None or not idle[figure] else round(value / idle[figure], 2)

    rows: list[tuple[str, float | None, float, bool]] = [
        ("first token at p99 beside train, of idle", times("train", "first_p99_s"), 2.0, False),
        ("total at p50 beside train, of idle", times("train", "total_p50_s"), 1.6, False),
        ("training beside 1 every 2 s, of alone",
         round(found["training"][SINGLE] / max(found["training"]["alone"], 1e-9), 2), 0.6, True),
        ("first token at p99 beside evaluate, of idle", times("evaluate", "first_p99_s"), 2.0, False),
        ("total at p50 beside evaluate, of idle", times("evaluate", "total_p50_s"), 1.6, False),
        ("first token at p99 beside 2 busy, of idle", times("2 busy", "first_p99_s"), 4.0, False),
        ("total at p50 beside 2 busy, of idle", times("2 busy", "total_p50_s"), 4.0, False),
        ("requests lost", sum(found[name][p]["lost"] for name in LOADS if name in found for p in PATTERNS), 0, False),
    ]  # fmt: skip
    return [
        {"aim": name, "measured": value, "bound": bound, "at_least": least,
         "met": value is not None and (value >= bound if least else value <= bound)}
        for name, value, bound, least in rows
    ]  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "| beside | requests | answered | lost | first token p50, p99 (s) | total p50, p99 (s) "
        "| server waited for cores, ms a request | training steps/min |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in LOADS:
        for pattern in PATTERNS if name in found else ():
            row = found[name][pattern]
            steps = f"{found['training'][pattern]} ({found['training']['alone']} alone)" if name == "train" else ""
            lines.append(
                f"| {name} | {pattern} | {row['requests'] - row['lost']} | {row['lost']} "
                f"| {row['first_p50_s']}, {row['first_p99_s']} | {row['total_p50_s']}, {row['total_p99_s']} "
                f"| {row['scheduling']['server']['waited_ms_a_request']} | {steps} |"
            )
    lines += ["", "| aim | bound | measured | met |", "|---|---|---|---|"]
    for aim in found["aims"]:
        sign = "at least" if aim["at_least"] else "at most"
        lines.append(f"| {aim['aim']} | {sign} {aim['bound']} | {aim['measured']} | {'yes' if aim['met'] else 'no'} |")
    return "\n".join(lines) + "\n"


def say(text: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Measure, print and write; 1 when an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter windows, without nice 10: 3 minutes")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/beside.json and beside.md")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the processes end with us
    began, load = time.monotonic(), os.getloadavg()
    with tempfile.TemporaryDirectory() as scratch:
        # Servers of others on this machine do not slow our training down.
        os.environ["AFTERWORD_RUN_DIR"] = str(Path(scratch) / "run")
        found = measure(Path(scratch) / "home", QUICK if options.quick else FULL)
    found["aims"] = aims(found)
    found["about"] = {
        "quick": options.quick, "seconds": round(time.monotonic() - began), "cores": os.cpu_count(),
        "processor": platform.machine(), "load_average_before": [round(x, 2) for x in load], "tokens": TOKENS,
    }  # fmt: skip
    if options.write:
        (RESULTS / "beside.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        (RESULTS / "beside.md").write_text(table(found), encoding="utf-8")
    print(json.dumps(found, indent=2))
    print(table(found))
    return 0 if all(aim["met"] for aim in found["aims"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
