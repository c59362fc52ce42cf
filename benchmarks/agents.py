"""Episodes through the gateway against single requests of the same tokens, and prompts' keys that turns reuse.

    python benchmarks/agents.py [--environment walk] [--episodes 64] [--rounds 2] [--turns 8] [--json FILE]

Part 1, episodes: `--episodes` episodes of an environment, 16 at once, through `afterword serve`, beside the same number
of single requests, 16 at once, straight to the same engine with prompts of the same lengths and the same numbers of
answer tokens. Its aim: 0.8 of the tokens a second. The single requests are read in full: no two begin alike.

Part 2, reuse: 16 conversations of `--turns` turns at once, each observation some 150 tokens, with `serve.prefix_mib`
384 and 0 in turn. Counts the tokens of prompts that the engine computed and reused (exact), and times episodes a
minute. Its aim: 2 times.

Rounds alternate; the best round of each counts. Writes benchmarks/results/agents.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from afterword.cli.demo_processes import cpu_seconds, process_tree, serving
from afterword.cli.server_state import running_server
from afterword.environments.builtin import BUILT_IN
from afterword.environments.results import RunFile, summary
from afterword.environments.runner import PlaySettings, plan_episodes, play

RESULTS = Path(__file__).parent / "results" / "agents.json"
AT_ONCE = 16
WORDS = ("river", "stone", "paper", "green", "seven", "cloud", "table", "north", "apple", "music", "winter", "letter")


def words(seed: str, number: int) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(number))


def engine_url(directory: Path) -> str:
    server = running_server(directory)
    assert server is not None
    return str(server["upstream"]).removesuffix("/v1")


def used() -> float:
    """Processor seconds of this process and of those that it started."""
    return cpu_seconds(process_tree(os.getpid()))


async def counts(engine: str) -> dict[str, int]:
    async with aiohttp.ClientSession() as http, http.get(f"{engine}/health") as response:
        found: dict[str, int] = await response.json()
        return found


async def requests(base: str, model: str, jobs: list[tuple[list[dict[str, str]], int]]) -> int:
    """Single requests, 16 at once; the number of answer tokens."""
    gate, total = asyncio.Semaphore(AT_ONCE), 0

    async def one(http: aiohttp.ClientSession, messages: list[dict[str, str]], tokens: int) -> None:
        nonlocal total
        body = {"model": model, "messages": messages, "max_tokens": tokens, "min_tokens": tokens, "ignore_eos": True}
        async with gate, http.post(f"{base}/v1/chat/completions", json=body) as response:
            found = await response.json()
            total += found["usage"]["completion_tokens"]

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as http:
        await asyncio.gather(*(one(http, messages, tokens) for messages, tokens in jobs))
    return total


def episodes_beside_requests(directory: Path, url: str, args: argparse.Namespace, round_: int) -> dict[str, Any]:
    spec, engine = BUILT_IN[args.environment], engine_url(directory)
    before, began, cpu = asyncio.run(counts(engine)), time.perf_counter(), used()
    with RunFile(directory / f"bench-{round_}.jsonl", {}) as run:
        planned = plan_episodes(spec.panel("train"), args.episodes, 1000 * round_)
        results = play(spec, planned, PlaySettings(url=f"{url}/v1", run=f"bench-{round_}"), run)
    seconds, cpu = time.perf_counter() - began, used() - cpu
    after, found = asyncio.run(counts(engine)), summary(results)
    turns = found["turns"]
    prompt, answer = round(found["prompt_tokens"] / turns), max(1, round(found["completion_tokens"] / turns))
    model = json.loads(_get(f"{engine}/v1/models"))["data"][0]["id"]
    header = 32  # tokens of the template and its system message
    jobs = [
        ([{"role": "user", "content": words(f"{round_}/{i}", max(1, prompt - header))}], answer) for i in range(turns)
    ]
    single_began, single_cpu = time.perf_counter(), used()
    tokens = asyncio.run(requests(engine, model, jobs))
    single, single_cpu = time.perf_counter() - single_began, used() - single_cpu
    return {
        "episodes_a_minute": 60 * args.episodes / seconds, "turns": turns, "seconds": seconds, "cpu_seconds": cpu,
        "success": found["success"], "failed": found["episodes"] - found["scored"],
        "answer_tokens_a_second": found["completion_tokens"] / seconds,
        "prompt_tokens_read": after["prompt_tokens_read"] - before["prompt_tokens_read"],
        "prompt_tokens_reused": after["prompt_tokens_reused"] - before["prompt_tokens_reused"],
        "single_requests": {
            "seconds": single, "cpu_seconds": single_cpu, "answer_tokens_a_second": tokens / single,
            "prompt_tokens": prompt, "answer_tokens": answer,
        },
        "of_single_requests": (found["completion_tokens"] / seconds) / (tokens / single),
        "of_single_requests_cpu": (found["completion_tokens"] / cpu) / (tokens / single_cpu),
    }  # fmt: skip


def _get(url: str) -> str:
    async def get() -> str:
        async with aiohttp.ClientSession() as http, http.get(url) as response:
            return await response.text()

    return asyncio.run(get())


async def long_observations(base: str, turns: int, round_: int) -> None:
    """16 conversations at once with tool outputs of 100 words (some 150 tokens) and answers of 12 tokens."""

    async def one(http: aiohttp.ClientSession, number: int) -> None:
        messages = [{"role": "system", "content": f"You are agent {number} of {round_}. Answer in one word."}]
        for turn in range(turns):
            messages.append({"role": "user", "content": words(f"{round_}/{number}/{turn}", 100)})
            body = {"model": "afterword", "messages": messages, "max_tokens": 12, "min_tokens": 12, "store": False,
                    "seed": turn}  # fmt: skip
            async with http.post(f"{base}/v1/chat/completions", json=body) as response:
                answer = await response.json()
            messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as http:
        await asyncio.gather(*(one(http, number) for number in range(AT_ONCE)))


def reuse(directory: Path, url: str, turns: int, round_: int) -> dict[str, Any]:
    engine = engine_url(directory)
    before, began, cpu = asyncio.run(counts(engine)), time.perf_counter(), used()
    asyncio.run(long_observations(url, turns, round_))
    seconds, cpu, after = time.perf_counter() - began, used() - cpu, asyncio.run(counts(engine))
    return {
        "seconds": seconds, "cpu_seconds": cpu, "episodes_a_minute": 60 * AT_ONCE / seconds,
        "prompt_tokens_read": after["prompt_tokens_read"] - before["prompt_tokens_read"],
        "prompt_tokens_reused": after["prompt_tokens_reused"] - before["prompt_tokens_reused"],
    }  # fmt: skip


def main() -> None:
    """Measure, print and write."""
    it = argparse.ArgumentParser(description=__doc__)
    it.add_argument("--environment", default="walk", choices=sorted(BUILT_IN))
    it.add_argument("--episodes", type=int, default=64)
    it.add_argument("--rounds", type=int, default=2)
    it.add_argument("--turns", type=int, default=8)
    it.add_argument("--parts", default="episodes,reuse")
    it.add_argument("--json", type=Path, default=RESULTS)
    args = it.parse_args()
    found: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(), "cpus": os.cpu_count(), "load": os.getloadavg(),
        "arguments": {name: str(value) for name, value in vars(args).items() if name != "json"},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        if "reuse" in args.parts:
            arms: dict[str, list[dict[str, Any]]] = {"384": [], "0": []}
            for round_ in range(args.rounds):
                for mib, rounds in arms.items():
                    directory = Path(folder) / f"reuse-{mib}-{round_}"
                    directory.mkdir()
                    with serving(directory, [f"serve.prefix_mib={mib}"]) as url:
                        rounds.append(reuse(directory, url, args.turns, round_))
                        print(f"reuse, prefix_mib {mib}: {rounds[-1]}", flush=True)
            best = {mib: min(rounds, key=lambda one: one["seconds"]) for mib, rounds in arms.items()}
            least = {mib: min(one["cpu_seconds"] for one in rounds) for mib, rounds in arms.items()}
            found["reuse"] = {
                "rounds": arms, "times_as_many_episodes_a_minute": best["0"]["seconds"] / best["384"]["seconds"],
                "times_by_cpu": least["0"] / least["384"],
                "of_prompt_tokens_computed": best["384"]["prompt_tokens_read"] / best["0"]["prompt_tokens_read"],
            }  # fmt: skip
        if "episodes" in args.parts:
            directory = Path(folder) / "episodes"
            directory.mkdir()
            with serving(directory) as url:
                rounds = [episodes_beside_requests(directory, url, args, n) for n in range(args.rounds)]
            for one in rounds:
                print(f"episodes: {one}", flush=True)
            found["episodes"] = {
                "rounds": rounds,
                "of_single_requests": max(one["of_single_requests"] for one in rounds),
            }
    found["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for part in ("reuse", "episodes"):
        if part in found:
            print(part, {name: value for name, value in found[part].items() if name != "rounds"})


if __name__ == "__main__":
    main()
