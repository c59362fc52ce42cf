"""A swap under load: from the release row to the first answer by the new adapter, with no failed request.

    python benchmarks/swap.py [--clients 4] [--swaps 4] [--seconds 6]

The embedded engine with its own model, the gateway in front of it, clients that chat without a pause, and release
rows that name two random adapters in turn. One more client asks for single tokens, so that the moment of the
swap is seen and not the length of an answer. For each release: seconds from the row to the first answer by the new
adapter, to the moved alias as the gateway counts it, and the longest answer around it. Every answer must have
status 200; the stored turns must be the answers. Writes benchmarks/results/swap.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from afterword.gateway import GatewaySettings, serve_in_thread
from afterword.records import Release, Turn, new_id
from afterword.sampling import start_engine
from afterword.store import Store
from gateway import machine

RESULTS = Path(__file__).parent / "results" / "swap.json"
MAX_TOKENS = 16


def random_adapter(folder: Path, seed: int) -> None:
    """A plain PEFT folder of rank 16 on all linear layers, with small random weights."""
    import torch
    from peft import LoraConfig, get_peft_model

    from afterword.model import loading

    torch.manual_seed(seed)
    base = loading.load_model(loading.EMBEDDED, device="cpu")
    adapted = get_peft_model(base, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=1e-3)
    adapted.save_pretrained(str(folder))


@dataclass
class Seen:
    """What the clients saw."""

    answers: list[tuple[float, float, str]] = field(default_factory=list)
    """(asked, answered, model) on the wall clock."""
    failures: list[str] = field(default_factory=list)
    stop: bool = False


async def client(session: aiohttp.ClientSession, url: str, number: int, seen: Seen, tokens: int) -> None:
    """Chats without a pause."""
    count = 0
    while not seen.stop:
        count += 1
        body = {
            "model": "afterword",
            "messages": [{"role": "user", "content": f"Tell me something about the number {number * 1000 + count}."}],
            "max_tokens": tokens,
        }
        asked = time.time()
        try:
            async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                answer = await response.json()
                if response.status != 200:
                    seen.failures.append(f"{response.status}: {answer}")
                else:
                    seen.answers.append((asked, time.time(), answer["model"]))
        except (aiohttp.ClientError, TimeoutError) as error:
            seen.failures.append(repr(error))


async def drive(
    url: str, store: Store, folders: list[str], args: argparse.Namespace
) -> tuple[Seen, list[Release], float]:
    """Load and releases together; also the gateway's mean of row to moved alias."""
    seen, releases = Seen(), []
    async with aiohttp.ClientSession() as session:
        lengths = [1] + [MAX_TOKENS] * args.clients
        clients = [asyncio.create_task(client(session, url, n, seen, t)) for n, t in enumerate(lengths)]
        await asyncio.sleep(args.seconds)
        for number in range(1, args.swaps + 1):
            release = Release(
                id=new_id("rel"),
                channel="default",
                adapter=f"afterword@v{number:06d}",
                candidate=f"cand-{number}",
                path=folders[number % len(folders)],
                verdict=None,
                previous=releases[-1].id if releases else None,
                action="publish",
                why="benchmark",
            )
            await asyncio.to_thread(store.write, release)
            releases.append(release)
            await asyncio.sleep(args.seconds)
        seen.stop = True
        await asyncio.gather(*clients)
        async with session.get(f"{url}/metrics") as response:
            moved = re.findall(r"afterword_swap_seconds_(?:sum|count) ([0-9.e-]+)", await response.text())
    return seen, releases, float(moved[1]) / float(moved[0])


def figures(seen: Seen, releases: list[Release]) -> list[dict[str, Any]]:
    """One row for each swap."""
    rows = []
    for release in releases:
        at = release.created_at
        new = [a for a in seen.answers if a[2] == release.adapter]
        old = [a for a in seen.answers if a[0] < at and a[1] >= at]
        around = [a for a in seen.answers if at - 3 <= a[0] <= at + 3]
        rows.append(
            {
                "adapter": release.adapter,
                "first_answer_s": round(min(a[1] for a in new) - at, 3) if new else None,
                "first_asked_s": round(min(a[0] for a in new) - at, 3) if new else None,
                "in_flight_at_release": len(old),
                "longest_answer_around_s": round(max(a[1] - a[0] for a in around), 3),
            }
        )
    return rows


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--swaps", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=6.0, help="load before, between and after the releases")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        directory = Path(work) / "data"
        folders = ["adapters/random-0", "adapters/random-1"]
        for seed, folder in enumerate(folders):
            random_adapter(directory / folder, seed)
        settings: dict[str, Any] = {"dir": directory, "port": 0}
        with start_engine(log_path=Path(work) / "engine.log") as engine:
            given = GatewaySettings(upstream=engine.url, **settings)
            with serve_in_thread(given) as url, Store.open(given.database) as store:
                seen, releases, moved = asyncio.run(drive(url, store, folders, args))
                stored = store.count(Turn)
    rows = figures(seen, releases)
    lengths = [b - a for a, b, _ in seen.answers]
    result = {
        "machine": machine(),
        "clients": args.clients,
        "max_tokens": MAX_TOKENS,
        "answers": len(seen.answers),
        "failed": len(seen.failures),
        "failures": seen.failures[:5],
        "stored_turns": stored,
        "answer_s": {"p50": round(statistics.median(lengths), 3), "max": round(max(lengths), 3)},
        "mean_row_to_alias_s": round(moved, 3),
        "swaps": rows,
        "worst_first_answer_s": max((r["first_answer_s"] or float("inf")) for r in rows),
    }
    print(json.dumps(result, indent=2))
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
