"""The engine against transformers' `generate`, and against what memory bandwidth allows, side by side in one run.

    python benchmarks/engine.py [--tokens 128] [--rounds 3] [--vllm PYTHON] [--json FILE]

All answer the same prompts with the embedded model in bf16, ignore the end token and sample at temperature 1.
`generate` runs in this process (sdpa attention), the engine in its own behind HTTP with every answer streamed
token by token to this process with ids and log-probabilities, as the gateway asks for them. `--vllm` names the Python
of an environment with vLLM for CPUs, whose server is asked in the same way. Rounds alternate between them, the best
round of each counts: other work on a shared machine only ever slows a round.

`of_bandwidth` is the share of the tokens a second that memory bandwidth allows: a step reads every weight once (of a
tied embedding once, as the output head), and each request's keys and values at half of the new tokens. The bandwidth
is that of the fastest read of 512 MiB by all cores in the same run. Writes benchmarks/results/engine.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import peft
import torch
import transformers

from afterword.model import loading
from afterword.model.embedded import embedded_model

RESULTS = Path(__file__).parent / "results" / "engine.json"
BATCHES = (1, 16, 64)
PROMISED = ("alone", "16", "16 with two adapters")
"""Cases that must reach 1.3 times `generate`."""
AHEAD = ("16", "64")
"""Cases that must be ahead of every peer."""
OF_BANDWIDTH = 0.8
"""Share of the bandwidth's limit that one request must reach."""
READ = 512 << 20
"""Bytes that a measurement of the bandwidth reads: more than any cache holds."""
TOPICS = (
    "tides", "clocks", "radios", "pianos", "engines", "cameras", "hearts", "brains",
    "rivers", "clouds", "markets", "laws", "poems", "banks", "bridges", "seeds",
)  # fmt: skip


def chats() -> list[list[dict[str, str]]]:
    """Prompts of about forty tokens, as many as the largest batch."""
    few = ("a few", "some", "very few", "ten")
    return [
        [{"role": "user", "content": f"Explain in {words} words how {topic} work."}]
        for words in few
        for topic in TOPICS
    ]


def bandwidth() -> float:
    """Bytes a second that all cores read, the best of ten."""
    words = torch.ones(READ // 8, dtype=torch.int64)
    best = 0.0
    for _ in range(10):
        began = time.perf_counter()
        words.sum()
        best = max(best, READ / (time.perf_counter() - began))
    return best


def bytes_a_step(model: Any, rows: int, length: float) -> float:
    """Bytes that a step of so many rows must read, whose sequences have so many tokens."""
    config = model.config.get_text_config()
    table = model.get_input_embeddings().weight
    weights = sum(weight.nbytes for weight in model.parameters())  # a tied embedding is one of them
    if not config.tie_word_embeddings:
        weights -= table.nbytes
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * width * table.itemsize
    return weights + rows * length * token


def write_adapters(root: Path, names: tuple[str, ...]) -> None:
    """Random LoRAs of rank 16 on all linear layers, of the size that training leaves behind."""
    config = peft.LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = peft.get_peft_model(loading.load_model(loading.EMBEDDED), config)
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        for path, weight in model.named_parameters():
            if "lora_B" in path:
                torch.nn.init.normal_(weight, std=0.002)
        model.save_pretrained(root / name)


class Generate:
    """The peer."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.model = loading.load_model(loading.EMBEDDED)
        tokenizer = loading.load_tokenizer(loading.EMBEDDED)
        tokenizer.padding_side = "left"
        texts = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats()]
        self.inputs = tokenizer(texts, return_tensors="pt", padding=True)
        self.prompt_tokens = float(self.inputs["attention_mask"].sum() / len(texts))

    def run(self, batch: int) -> float:
        """Tokens a second at this batch."""
        inputs = {key: value[:batch] for key, value in self.inputs.items()}
        began = time.perf_counter()
        with torch.inference_mode():
            out = self.model.generate(
                **inputs, do_sample=True, temperature=1.0, top_k=0,
                max_new_tokens=self.tokens, min_new_tokens=self.tokens,
            )  # fmt: skip
        took = time.perf_counter() - began
        assert out.shape[1] == inputs["input_ids"].shape[1] + self.tokens
        return batch * self.tokens / took


class Served:
    """The engine in its own process."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        command = [
            sys.executable, "-m", "afterword.engine", "--port", "0", "--parent-pid", str(os.getpid()), "--max-batch",
            str(max(BATCHES)),
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        ready: dict[str, Any] = {}
        while not ready.get("ready"):
            ready = json.loads(self.process.stdout.readline())
        self.url, self.model = f"http://127.0.0.1:{ready['port']}", ready["model"]

    def close(self) -> None:
        """End the process."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)

    def load(self, name: str, folder: Path) -> None:
        """Load an adapter."""

        async def post() -> None:
            body = {"lora_name": name, "lora_path": str(folder)}
            async with (
                aiohttp.ClientSession() as session,
                session.post(f"{self.url}/v1/load_lora_adapter", json=body) as response,
            ):
                response.raise_for_status()

        asyncio.run(post())

    def run(self, names: list[str]) -> dict[str, float]:
        """One streamed request for each name at once: tokens a second and time to the first token."""
        return asyncio.run(self._run(names))

    async def _run(self, names: list[str]) -> dict[str, float]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            began = time.perf_counter()
            firsts = await asyncio.gather(
                *(self._stream(session, name, chat) for name, chat in zip(names, chats(), strict=False))
            )
            took = time.perf_counter() - began
        return {
            "tokens_per_second": len(names) * self.tokens / took,
            "first_token_ms": 1000 * (max(firsts) - began),
        }

    async def _stream(self, session: aiohttp.ClientSession, name: str, chat: list[dict[str, str]]) -> float:
        body = {
            "model": name, "messages": chat, "max_tokens": self.tokens, "temperature": 1.0, "ignore_eos": True,
            "stream": True, "logprobs": True, "return_token_ids": True,
        }  # fmt: skip
        count, first = 0, 0.0
        async with session.post(f"{self.url}/v1/chat/completions", data=orjson.dumps(body)) as response:
            response.raise_for_status()
            async for line in response.content:
                if line.startswith(b"data: {"):
                    count += len(orjson.loads(line[6:])["choices"][0]["token_ids"])
                    first = first or time.perf_counter()
        assert count == self.tokens
        return first


class Vllm(Served):
    """vLLM's server on the CPU, in another environment."""

    def __init__(self, tokens: int, python: str) -> None:
        self.tokens = tokens
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.model = f"http://127.0.0.1:{port}", "model"
        command = [
            python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(embedded_model()), "--port", str(port),
            "--dtype", "bfloat16", "--served-model-name", self.model, "--max-num-seqs", str(max(BATCHES)),
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while True:
            if self.process.poll() is not None:
                raise SystemExit(f"vLLM ended with status {self.process.returncode}: {' '.join(command)}")
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except OSError:
                time.sleep(1.0)


def measure(tokens: int, rounds: int, vllm: str | None) -> dict[str, Any]:
    """All figures, the best of `rounds` for each."""
    peer, ours = Generate(tokens), Served(tokens)
    other = Vllm(tokens, vllm) if vllm else None
    try:
        with tempfile.TemporaryDirectory() as scratch:
            write_adapters(Path(scratch), ("one", "two"))
            for name in ("one", "two"):
                ours.load(name, Path(scratch) / name)
            cases = {
                "alone": [ours.model],
                "16": [ours.model] * 16,
                "16 with two adapters": [["one", "two", ours.model][i % 3] for i in range(16)],
                "alone on an adapter": ["one"],
                "64": [ours.model] * 64,
                "64 with two adapters": [["one", "two", ours.model][i % 3] for i in range(64)],
            }
            speeds: list[float] = []
            rates: dict[str, list[float]] = {}
            first: dict[str, list[float]] = {}
            for _ in range(rounds):
                for case, names in cases.items():
                    figures = ours.run(names)
                    rates.setdefault(f"engine {case}", []).append(figures["tokens_per_second"])
                    first.setdefault(f"engine {case}", []).append(figures["first_token_ms"])
                for batch in BATCHES:
                    rates.setdefault(f"generate {batch}", []).append(peer.run(batch))
                    if other is not None:
                        rate = other.run([other.model] * batch)["tokens_per_second"]
                        rates.setdefault(f"vllm {batch}", []).append(rate)
                speeds.append(bandwidth())
                print({name: round(values[-1], 1) for name, values in rates.items()}, file=sys.stderr)
    finally:
        ours.close()
        if other is not None:
            other.close()
    best = {name: round(max(values), 1) for name, values in rates.items()}
    length = peer.prompt_tokens + tokens / 2
    limits = {rows: rows * max(speeds) / bytes_a_step(peer.model, rows, length) for rows in BATCHES}
    return {
        "tokens_per_second": best,
        "bandwidth_gb_per_second": round(max(speeds) / 1e9, 1),
        "tokens_per_second_that_bandwidth_allows": {str(rows): round(limit, 1) for rows, limit in limits.items()},
        "of_bandwidth": {case: round(best[f"engine {case}"] / limits[len(names)], 2) for case, names in cases.items()},
        "all_rounds": {name: [round(value, 1) for value in values] for name, values in rates.items()},
        "slowest_first_token_ms": {name: round(min(values), 1) for name, values in first.items()},
        "prompt_tokens": round(peer.prompt_tokens, 1),
    }


def ratios(rates: dict[str, float], peer: str = "generate") -> dict[str, float]:
    """Against a peer with the base model at the same number of rows, also where ours carries adapters."""
    pairs = {
        "alone": 1, "alone on an adapter": 1, "16": 16, "16 with two adapters": 16, "64": 64,
        "64 with two adapters": 64,
    }  # fmt: skip
    return {case: round(rates[f"engine {case}"] / rates[f"{peer} {n}"], 2) for case, n in pairs.items()}


def missed(figures: dict[str, Any]) -> list[str]:
    """The aims that were not reached."""
    found = [f"{case}: 1.3 of generate" for case in PROMISED if figures["ratio_to_generate"][case] < 1.3]
    for peer in ("generate", "vllm"):
        ratio = figures.get(f"ratio_to_{peer}", {})
        found += [f"{case}: ahead of {peer}" for case in AHEAD if ratio and ratio[case] <= 1.0]
    if figures["of_bandwidth"]["alone"] < OF_BANDWIDTH:
        found.append(f"alone: {OF_BANDWIDTH} of what memory bandwidth allows")
    return found


def main() -> int:
    """Measure, print and write; 1 when an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vllm", metavar="PYTHON", help="of an environment with vLLM for CPUs")
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    figures = measure(options.tokens, options.rounds, options.vllm)
    for peer in ("generate", "vllm") if options.vllm else ("generate",):
        figures[f"ratio_to_{peer}"] = ratios(figures["tokens_per_second"], peer)
    figures["missed"] = missed(figures)
    figures["new_tokens"] = options.tokens
    figures["machine"] = {
        "cores": os.cpu_count(), "processor": platform.machine(), "torch": torch.__version__,
        "transformers": transformers.__version__, "load_average": [round(x, 2) for x in os.getloadavg()],
    }  # fmt: skip
    options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))
    return 1 if figures["missed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
