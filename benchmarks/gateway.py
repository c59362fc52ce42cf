"""What the gateway costs: time added to a streamed answer, and streamed requests a second on one core.

    python benchmarks/gateway.py [--litellm PYTHON] [--reef PYTHON] [--seconds 8] [--repeats 3]

Two parts, each in one run with all its arms. (a) `latency`: 32 streams at once against an upstream that paces its
tokens, straight and through the gateway: with starts spread over one answer, as users come, and in step, where all
answers end in the same moment; and one stream at a time, not paced, for the first token. (b) `throughput`: 32 clients
in a closed loop against an upstream that answers at once; the server under test is alone on core 0, upstream and
client share core 1. `--litellm` and `--reef` name the Python of environments that have these peers; without them
the peers are skipped and the result says so. Writes benchmarks/results/gateway.json.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import secrets
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "gateway.json"
TOKENS = 20
PACE = 0.02
"""Seconds between two tokens of the paced upstream."""
NUMBER = "(request 00000000) "
"""Begins each prompt, with a number of its own: nothing of an earlier request can be remembered."""
PROMPT = NUMBER + "Explain why the sky is blue. " * 70  # about 2 KB
ASK = {"messages": [{"role": "user", "content": PROMPT}], "stream": True, "max_tokens": TOKENS}


# ---- the upstream: raw asyncio, so that it is not what is measured


def _chunks(native: bool) -> list[bytes]:
    def chunk(delta: dict[str, Any], ids: list[int], reason: str | None = None, first: bool = False) -> bytes:
        choice: dict[str, Any] = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        body: dict[str, Any] = {"id": "up", "object": "chat.completion.chunk", "created": 1, "model": "base"}
        if native:
            choice["token_ids"] = ids
            if ids:
                token = {"token": delta.get("content", ""), "logprob": -0.25, "bytes": None, "top_logprobs": []}
                choice["logprobs"] = {"content": [token]}
            if first:
                body["prompt_token_ids"] = list(range(500))
        data = json.dumps({**body, "choices": [choice]}).encode()
        payload = b"data: " + data + b"\n\n"
        return b"%x\r\n%s\r\n" % (len(payload), payload)

    found = [chunk({"role": "assistant", "content": ""}, [], first=True)]
    found += [chunk({"content": f"word{i} "}, [i + 5], "stop" if i == TOKENS - 1 else None) for i in range(TOKENS)]
    done = b"data: [DONE]\n\n"
    return [*found, b"%x\r\n%s\r\n0\r\n\r\n" % (len(done), done)]


_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class _Upstream(asyncio.Protocol):
    """Answers chat requests with a fixed stream; speaks vLLM's dialect when it is asked to."""

    native = tuple(_chunks(True))
    plain = tuple(_chunks(False))
    pace = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            start = head.find(b"content-length:")
            length = int(head[start + 15 : (head + b"\r\n").find(b"\r\n", start)]) if start >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            body = self.buffer[end + 4 : end + 4 + length]
            self.buffer = self.buffer[end + 4 + length :]
            self.answer(head, body)

    def answer(self, head: bytes, body: bytes) -> None:
        transport: Any = self.transport
        if b"/chat/completions" not in head:
            data = b'{"object": "list", "data": [{"id": "base", "object": "model", "parent": null}]}'
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data)
            transport.write(head + data)
            return
        chunks = self.native if b'"return_token_ids":true' in body else self.plain
        if not self.pace:
            transport.write(_HEAD)
            for chunk in chunks:
                transport.write(chunk)
            return
        asyncio.get_running_loop().create_task(self.paced(transport, chunks))

    async def paced(self, transport: Any, chunks: tuple[bytes, ...]) -> None:
        """Token i leaves at its own time, not after the one before, so that delays do not add up."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        transport.write(_HEAD + chunks[0])
        for number, chunk in enumerate(chunks[1:-1], 1):
            await asyncio.sleep(start + number * self.pace - loop.time())
            transport.write(chunk if number < TOKENS else chunk + chunks[-1])


def upstream_main(port: int, pace: float) -> None:
    """The upstream's process."""
    import uvloop

    _Upstream.pace = pace

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(_Upstream, "127.0.0.1", port, backlog=1024)
        await server.serve_forever()

    uvloop.run(run())


def gateway_main(port: int, upstream: str, directory: str) -> None:
    """The gateway's process."""
    from afterword.gateway import GatewaySettings, run_gateway

    run_gateway(GatewaySettings(dir=Path(directory), upstream=upstream, port=port))


def passthrough_main(port: int, upstream: str) -> None:
    """The floor: aiohttp in, aiohttp out, nothing looked at, nothing stored."""
    import aiohttp
    import uvloop
    from aiohttp import web

    async def run() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def chat(request: web.Request) -> web.StreamResponse:
                body = await request.read()
                async with session.post(f"{upstream}/v1/chat/completions", data=body) as answer:
                    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
                    await response.prepare(request)
                    while data := await answer.content.readany():
                        await response.write(data)
                    await response.write_eof()
                return response

            app = web.Application()
            app.router.add_post("/v1/chat/completions", chat)
            app.router.add_get("/health/live", lambda request: _ok())
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port).start()
            await asyncio.Event().wait()

        async def _ok() -> web.Response:
            return web.Response()

    uvloop.run(run())


# ---- the client: raw asyncio too


@dataclass
class Timing:
    """Milliseconds of one answer."""

    first: float
    total: float


class _Client(asyncio.Protocol):
    """One connection; one request at a time."""

    numbers = itertools.count(1)

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def ask(self) -> asyncio.Future[Timing]:
        self.answer: asyncio.Future[Timing] = self.loop.create_future()
        self.tail, self.first, self.head = b"", 0.0, b""
        self.started = time.perf_counter()
        self.transport.write(self.request.replace(NUMBER.encode(), b"(request %08d) " % next(self.numbers), 1))
        return self.answer

    def data_received(self, data: bytes) -> None:
        if not self.head:
            self.head = data[:15]
        if not self.first and b"data:" in data:
            self.first = time.perf_counter()
        self.tail = (self.tail + data)[-64:]
        if self.tail.endswith(b"0\r\n\r\n"):
            now = time.perf_counter()
            if b" 200" not in self.head or b"[DONE]" not in self.tail:
                self.answer.set_exception(RuntimeError(f"not an answer: {self.head + data[:300]!r}"))
            else:
                self.answer.set_result(Timing((self.first - self.started) * 1e3, (now - self.started) * 1e3))
        elif self.head and b" 200" not in self.head and not self.answer.done():
            self.answer.set_exception(RuntimeError(f"not an answer: {data[:300]!r}"))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_exception(ConnectionError(f"connection lost: {error}"))


def _request(port: int, model: str, headers: dict[str, str]) -> bytes:
    body = json.dumps({**ASK, "model": model}).encode()
    lines = [f"Host: 127.0.0.1:{port}", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(["POST /v1/chat/completions HTTP/1.1", *lines, "", ""]).encode() + body


async def _load(target: Target, streams: int, seconds: float, warm: float, spread: float) -> tuple[list[Timing], float]:
    """A closed loop of `streams` clients: the timings after the warm-up and how long they were taken for.

    Their first requests are spread over `spread` seconds; with 0 all of them go in step for ever.
    """
    loop = asyncio.get_running_loop()
    request = _request(target.port, target.model, target.headers)
    start = time.perf_counter() + warm
    end = start + seconds
    found: list[Timing] = []

    async def one(number: int) -> None:
        await asyncio.sleep(spread * number / streams)
        transport, client = await loop.create_connection(lambda: _Client(request), "127.0.0.1", target.port)
        while time.perf_counter() < end:
            timing = await client.ask()
            target.answered += 1
            if start <= time.perf_counter() < end:
                found.append(timing)
        transport.close()

    await asyncio.gather(*(one(number) for number in range(streams)))
    return found, seconds


# ---- processes


@dataclass
class Target:
    """A server under test."""

    name: str
    port: int
    model: str = "afterword"
    headers: dict[str, str] = field(default_factory=dict)
    rows: Callable[[], int] | None = None
    """How many answers it has stored."""
    answered: int = 0


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def process(command: list[str], core: int, port: int, log: Path, wait: float = 60.0, **more: Any) -> Iterator[None]:
    """A server process on one core, ready when its port takes connections."""
    with log.open("ab") as out:
        child = subprocess.Popen(["taskset", "-c", str(core), *command], stdout=out, stderr=out, **more)
    try:
        end = time.monotonic() + wait
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if child.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{command[:4]} did not start:\n{log.read_text('utf-8')[-3000:]}")
            time.sleep(0.1)
        yield
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _me(role: str, *arguments: str) -> list[str]:
    return [sys.executable, __file__, "--role", role, *arguments]


def _count(database: Path, table: str = "turns") -> Callable[[], int]:
    def count() -> int:
        with sqlite3.connect(database) as connection:
            return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    return count


@contextmanager
def direct(work: Path, pace: float, core: int = 1) -> Iterator[Target]:
    """The bare upstream."""
    port = free_port()
    with process(_me("upstream", str(port), str(pace)), core, port, work / "upstream.log"):
        yield Target("direct", port)


@contextmanager
def gateway(work: Path, upstream: int) -> Iterator[Target]:
    """Ours, capture on."""
    port, directory = free_port(), Path(tempfile.mkdtemp(dir=work))
    command = _me("gateway", str(port), f"http://127.0.0.1:{upstream}", str(directory))
    with process(command, 0, port, work / "gateway.log"):
        time.sleep(0.5)
        yield Target("afterword", port, rows=_count(directory / "afterword.db"))


@contextmanager
def passthrough(work: Path, upstream: int) -> Iterator[Target]:
    """aiohttp to aiohttp without anything."""
    port = free_port()
    with process(_me("passthrough", str(port), f"http://127.0.0.1:{upstream}"), 0, port, work / "pass.log"):
        yield Target("aiohttp-passthrough", port)


@contextmanager
def litellm(work: Path, upstream: int, python: str) -> Iterator[Target]:
    """LiteLLM's proxy with its defaults (it stores nothing)."""
    port, config = free_port(), work / "litellm.yaml"
    config.write_text(
        "model_list:\n  - model_name: afterword\n    litellm_params:\n      model: openai/base\n"
        f"      api_base: http://127.0.0.1:{upstream}/v1\n      api_key: none\n"
    )
    command = [
        str(Path(python).parent / "litellm"),
        "--config",
        str(config),
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
    ]
    key = f"sk-{secrets.token_hex(32)}"  # it refuses to start with a well-known one
    environment = {**os.environ, "LITELLM_MASTER_KEY": key, "LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False"}
    with process(command, 0, port, work / "litellm.log", 120, env=environment):
        yield Target("litellm", port, headers={"Authorization": f"Bearer {key}"})


@contextmanager
def reef(work: Path, upstream: int, python: str) -> Iterator[Target]:
    """Reef recording every exchange."""
    port, directory = free_port(), Path(tempfile.mkdtemp(dir=work))
    command = [
        str(Path(python).parent / "reef"), "serve", "--inference.upstream-url", f"http://127.0.0.1:{upstream}",
        "--inference.upstream-model", "base", "--reef.port", str(port),
    ]  # fmt: skip
    with process(command, 0, port, work / "reef.log", 120, cwd=directory):
        time.sleep(2)
        yield Target("reef", port, model="base", headers={"x-reef-scenario": "bench"})


# ---- figures


def _percentiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": round(cuts[49], 3), "p99": round(cuts[98], 3)}


def _late(target: Target) -> dict[str, float]:
    """The gateway's own counters."""
    import httpx

    capture = httpx.get(f"http://127.0.0.1:{target.port}/health", timeout=10).json()["capture"]
    return {name: capture[name] for name in ("late", "dropped")}


def _arm(target: Target, streams: int, seconds: float, warm: float, spread: float = 0.0) -> dict[str, Any]:
    timings, took = asyncio.run(_load(target, streams, seconds, warm, spread))
    found: dict[str, Any] = {
        "requests_per_second": round(len(timings) / took, 1),
        "first_ms": _percentiles([t.first for t in timings]),
        "total_ms": _percentiles([t.total for t in timings]),
        "n": len(timings),
    }
    if target.rows is not None:
        time.sleep(0.5)
        found |= {"answered": target.answered, "stored": target.rows(), **_late(target)}
    return found


def latency(work: Path, seconds: float, repeats: int) -> dict[str, Any]:
    """Paced upstream: what is added at 32 streams, and to the first token at one."""
    rounds = []
    for _ in range(repeats):
        with direct(work, pace=PACE) as bare, gateway(work, bare.port) as ours:
            many = {t.name: _arm(t, 32, seconds, 1.0, PACE * TOKENS) for t in (bare, ours)}
            step = {t.name: _arm(t, 32, seconds, 1.0) for t in (bare, ours)}
        with direct(work, pace=0.0) as bare, gateway(work, bare.port) as ours:
            one = {t.name: _arm(t, 1, seconds, 1.0) for t in (bare, ours)}
        rounds.append({"streams_32": many, "streams_32_in_step": step, "streams_1": one})

    def added(part: str, what: str, which: str) -> float:
        return round(
            statistics.median(r[part]["afterword"][what][which] - r[part]["direct"][what][which] for r in rounds), 3
        )

    return {
        "added_total_ms_at_32": {which: added("streams_32", "total_ms", which) for which in ("p50", "p99")},
        "added_first_ms_at_32": {which: added("streams_32", "first_ms", which) for which in ("p50", "p99")},
        "added_total_ms_at_32_in_step": {w: added("streams_32_in_step", "total_ms", w) for w in ("p50", "p99")},
        "added_first_ms_at_1": {which: added("streams_1", "first_ms", which) for which in ("p50", "p99")},
        "rounds": rounds,
    }


def throughput(work: Path, seconds: float, repeats: int, peers: dict[str, str | None]) -> dict[str, Any]:
    """Upstream that answers at once: requests per second, arms in turn, medians over the repeats."""
    rounds: dict[str, list[dict[str, Any]]] = {}
    skipped = {name: "not given on the command line" for name, python in peers.items() if python is None}
    with direct(work, pace=0.0) as bare:
        arms: list[Callable[[], Any]] = [lambda: gateway(work, bare.port), lambda: passthrough(work, bare.port)]
        if (python := peers["litellm"]) is not None:
            arms.append(lambda: litellm(work, bare.port, python))
        if (python_r := peers["reef"]) is not None:
            arms.append(lambda: reef(work, bare.port, python_r))
        for _ in range(repeats):
            rounds.setdefault("direct", []).append(_arm(bare, 32, seconds, 2.0))
            for arm in arms:
                with arm() as target:
                    rounds.setdefault(target.name, []).append(_arm(target, 32, seconds, 2.0))
    medians = {n: statistics.median(r["requests_per_second"] for r in found) for n, found in rounds.items()}
    return {"requests_per_second": medians, "skipped": skipped, "rounds": rounds}


def machine() -> dict[str, Any]:
    """What it was measured on."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {"cpu": name, "cores": os.cpu_count(), "python": sys.version.split()[0], "load": os.getloadavg()[0]}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--litellm", metavar="PYTHON")
    parser.add_argument("--reef", metavar="PYTHON")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--part", choices=("latency", "throughput"), action="append")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role:
        roles: dict[str, Callable[..., None]] = {
            "upstream": lambda port, pace: upstream_main(int(port), float(pace)),
            "gateway": lambda port, url, directory: gateway_main(int(port), url, directory),
            "passthrough": lambda port, url: passthrough_main(int(port), url),
        }
        return roles[args.role](*args.rest)
    os.sched_setaffinity(0, {1})
    parts = args.part or ["latency", "throughput"]
    result: dict[str, Any] = json.loads(args.out.read_text("utf-8")) if args.part and args.out.exists() else {}
    result |= {"machine": machine(), "tokens": TOKENS, "seconds": args.seconds, "repeats": args.repeats}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if "latency" in parts:
            result["latency"] = latency(work, args.seconds, args.repeats)
            print(json.dumps({k: v for k, v in result["latency"].items() if k != "rounds"}, indent=2))
        if "throughput" in parts:
            peers = {"litellm": args.litellm, "reef": args.reef}
            result["throughput"] = throughput(work, args.seconds, args.repeats, peers)
            print(json.dumps(result["throughput"]["requests_per_second"], indent=2))
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
