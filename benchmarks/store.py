"""What the store and collection cost: import, collect, group commit, events over HTTP, forgetting.

    python benchmarks/store.py [--messages 1000000] [--turns 20000] [--repeats 1] [--parts import,collect,...]

Each part runs in a fresh process, on one core, on a written file of made-up chats. `import`: messages a second of
`import_file` (and of processor time, which other work on the machine changes less), beside bare batched inserts of the
very same rows, encoded beforehand, into the same schema: with the settings that a connection has by default, in the
order of the file, `executemany` of 1,000 rows a commit. Import sorts and has settings of its own, which is how it can
be faster than that. And peak memory.
`collect`: turns a second without a model pass. `commit`: durable rows a second through the writer, one at a time from
1, 8 and 32 threads. `http`: events acknowledged a second by a gateway alone on its core, each a POST of its own with
its commit, from 32 connections of a client on the other. `forget`: seconds to erase one of a hundred users, the
rewriting of the file and the search of its bytes included. Medians; writes the parts that ran into results/store.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from afterword.feedback.collect.collect import collect
from afterword.feedback.importing.branches import ImportNames
from afterword.feedback.importing.files import FileRow, Source
from afterword.feedback.importing.imports import ImportSummary, _parsed, import_file
from afterword.feedback.importing.unfold import Threads
from afterword.forget import forget_user
from afterword.formats.naming import Traces
from afterword.records import Feedback, Turn
from afterword.store import Store
from afterword.store.codec import INSERT, encode
from afterword.store.schema import open_database

RESULTS = Path(__file__).parent / "results" / "store.json"
WORDS = (
    "garden", "water", "recipe", "train", "station", "morning", "flour", "engine", "window", "letter",
    "river", "music", "budget", "ticket", "python", "list", "function", "error", "table", "window",
    "simple", "answer", "because", "before", "little", "steps", "mountain", "coffee", "teacher", "number",
    "question", "short", "longer", "please", "reason", "winter", "market", "travel", "lesson", "example",
    "second", "colour", "bridge", "doctor", "paper",
)  # fmt: skip
REACTIONS = ("Shorter, please.", "Thanks!", "Who painted the ceiling?", "Why is that?", "That's wrong.", "go on")


def write_chats(path: Path, messages: int) -> None:
    """ShareGPT lines: six messages each, about 100 characters a question and 1,100 an answer."""
    dice = random.Random(0)
    with path.open("wb") as file:
        for number in range(messages // 6):
            parts = []
            for i in range(3):
                ask = " ".join(dice.choices(WORDS, k=16)) if i == 0 else dice.choice(REACTIONS)
                parts.append({"from": "human", "value": ask})
                parts.append({"from": "gpt", "value": " ".join(dice.choices(WORDS, k=170))})
            file.write(orjson.dumps({"id": f"c{number}", "conversations": parts}, option=orjson.OPT_APPEND_NEWLINE))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def import_part(folder: Path, messages: int) -> dict[str, float]:
    path = folder / "chats.jsonl"
    write_chats(path, messages)
    before = peak_mib()
    with Store.open(folder / "import.db") as store:
        started, worked = time.perf_counter(), time.process_time()
        summary = import_file(store, path)
        seconds, worked = time.perf_counter() - started, time.process_time() - worked
    peak = peak_mib()
    bare = bare_inserts(folder, path)
    return {
        "messages_per_s": summary.messages / seconds, "messages_per_cpu_s": summary.messages / worked,
        "bare_messages_per_s": summary.messages / bare,
        "share_of_bare": bare / seconds, "peak_mib": peak, "peak_above_start_mib": peak - before,
        "file_mib": path.stat().st_size / 2**20,
    }  # fmt: skip


def bare_inserts(folder: Path, path: Path) -> float:
    """Seconds for inserting the same rows, encoded beforehand, a part at a time; the encoding is not timed."""
    connection = open_database(folder / "bare.db")
    source = Source(path)
    summary, store = ImportSummary(file="", format="sharegpt"), Store.open(folder / "bare.db")
    known = Threads(store), Traces(store), ImportNames(store)
    records = (
        record
        for row in source.rows()
        if isinstance(row, FileRow)
        for record in _parsed(row.value, summary, "sharegpt", known)[0]
    )
    seconds = 0.0
    while group := [encode(record) for record in islice(records, 1000)]:
        started = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        for table in ("turns", "feedback"):
            connection.executemany(INSERT[table], [row.values for row in group if row.table == table])
        connection.execute("COMMIT")
        seconds += time.perf_counter() - started
    connection.close()
    source.close()
    return seconds


def collect_part(folder: Path, turns: int) -> dict[str, float]:
    path = folder / "chats.jsonl"
    write_chats(path, turns * 3)  # two turns with a follow-up in every six messages
    with Store.open(folder / "collect.db") as store:
        import_file(store, path)
        started = time.perf_counter()
        funnel = collect(store)
        seconds = time.perf_counter() - started
    return {"turns_per_s": funnel.paired / seconds, "turns": funnel.paired, "interactions": funnel.interactions,
            "peak_mib": peak_mib()}  # fmt: skip


def commit_part(folder: Path, rows: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for threads in (1, 8, 32):
        with Store.open(folder / f"commit{threads}.db") as store:
            store.write(Turn(id="t", messages=(), answer={}))
            found[f"rows_per_s_{threads}"] = _commit(store, threads, rows)
    return found


def _commit(store: Store, threads: int, rows: int) -> float:
    def work(number: int) -> None:
        for i in range(rows // threads):
            store.write(Feedback(id=f"{number}-{i}", turn="t", kind="follow_up", text="Shorter, please. " * 6))

    workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return rows / (time.perf_counter() - started)


def http_part(folder: Path, events: int) -> dict[str, float]:
    """The gateway on core 0, its client here on another."""
    with Store.open(folder / "afterword.db") as store:
        store.write(*(Turn(id=f"t{i}", messages=(), answer={}) for i in range(100)))
    port = 18400 + os.getpid() % 1000
    command = [sys.executable, "-m", "afterword", "serve", "--dir", str(folder), "--port", str(port), "--upstream",
               "http://127.0.0.1:9/v1", "--quiet"]  # fmt: skip
    server = subprocess.Popen(["taskset", "-c", "0", *command], stderr=subprocess.DEVNULL)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0) | {(os.cpu_count() or 1) - 1})})
    try:
        wait_for(port)
        seconds, waits = asyncio.run(post_events(f"http://127.0.0.1:{port}/v1/feedback", events))
    finally:
        server.terminate()
        server.wait()
    with Store.open(folder / "afterword.db") as store:
        kept = store.count(Feedback)
    assert kept == events, f"{kept} of {events} acknowledged events are in the store"
    waits.sort()
    return {"events_per_s": events / seconds, "p50_ms": 1000 * waits[len(waits) // 2],
            "p99_ms": 1000 * waits[int(len(waits) * 0.99)], "events": events}  # fmt: skip


def wait_for(port: int) -> None:
    """Until the port takes connections."""
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise SystemExit(f"nothing listens on port {port}")


async def post_events(url: str, events: int) -> tuple[float, list[float]]:
    """Seconds for all, and each one's wait, from 32 connections."""
    waits: list[float] = []
    numbers = iter(range(events))

    async def one(session: aiohttp.ClientSession) -> None:
        for i in numbers:
            event = {"id": f"e{i}", "turn": f"t{i % 100}", "kind": "comment", "text": f"Shorter, please, {i}. " * 4}
            begun = time.perf_counter()
            async with session.post(url, json=event) as reply:
                assert reply.status == 202 and (await reply.json())["status"] == "stored", reply.status
            waits.append(time.perf_counter() - begun)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=32)) as session:
        started = time.perf_counter()
        await asyncio.gather(*(one(session) for _ in range(32)))
        return time.perf_counter() - started, waits


def forget_part(folder: Path, messages: int) -> dict[str, float]:
    """One of a hundred users goes."""
    path = folder / "chats.jsonl"
    dice = random.Random(0)
    with path.open("wb") as file:
        for number in range(messages // 6):
            said = [{"role": ("user", "assistant")[i % 2], "content": " ".join(dice.choices(WORDS, k=(16, 170)[i % 2]))}
                    for i in range(6)]  # fmt: skip
            row = {"id": f"c{number}", "user": f"user-{number % 100}", "messages": said}
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    with Store.open(folder / "data" / "afterword.db") as store:
        import_file(store, path)
        size = store.path.stat().st_size
        started = time.perf_counter()
        report = forget_user(store, "user-7")
        seconds = time.perf_counter() - started
    assert report["clean"]
    return {"seconds": seconds, "database_mib": size / 2**20, "rows": sum(map(len, report["rows"].values())),
            "needles": report["search"]["needles"], "needles_left_out": report["search"]["needles_left_out"],
            "peak_mib": peak_mib()}  # fmt: skip


def _in_process(part: Callable[[Path, int], dict[str, float]], size: int, queue: Any) -> None:
    os.sched_setaffinity(0, {(os.cpu_count() or 1) - 1})
    with tempfile.TemporaryDirectory(prefix="afterword-bench-") as folder:
        queue.put(part(Path(folder), size))


def measure(part: Callable[[Path, int], dict[str, float]], size: int, repeats: int) -> dict[str, Any]:
    """Median, and all values of the runs."""
    context = multiprocessing.get_context("spawn")
    runs = []
    for _ in range(repeats):
        queue: Any = context.Queue()
        process = context.Process(target=_in_process, args=(part, size, queue))
        process.start()
        runs.append(queue.get(timeout=1800))
        process.join()
    medians = {name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}
    return {**medians, "runs": [{name: round(value, 2) for name, value in run.items()} for run in runs]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=20_000)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--parts", default="import,collect,commit,http,forget")
    given = parser.parse_args()
    parts = {
        "import": (import_part, given.messages), "collect": (collect_part, given.turns), "commit": (commit_part, 4000),
        "http": (http_part, given.events), "forget": (forget_part, given.messages // 5),
    }  # fmt: skip
    report = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    report |= {"cores": os.cpu_count()}
    for name in given.parts.split(","):
        part, size = parts[name]
        command = (
            f"python benchmarks/store.py --messages {given.messages} --turns {given.turns} --repeats {given.repeats}"
        )
        about = {"command": f"{command} --parts {name}", "load_at_start": round(os.getloadavg()[0], 2)}
        report[name] = {**about, **measure(part, size, given.repeats)}
    report.pop("command", None)
    report.pop("load_at_start", None)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
