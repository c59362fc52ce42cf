"""Tiny random models that are served in this process: the engine, an upstream that renders as vLLM does, a gateway in
front of either, and the encoding of what was stored. Nothing is fetched."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import torch
import transformers as t
from aiohttp import web
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from afterword.chat.sampling_fields import PLAIN
from afterword.engine.host import Host
from afterword.engine.server import Server
from afterword.gateway import GatewaySettings, serve_in_thread
from afterword.learn.recipes import Recipe, recipe
from afterword.model.generation.runner import Runner
from afterword.model.generation.text import Codec, stop_ids
from afterword.model.loading import base_hash, load_model, load_tokenizer
from afterword.records import Interaction, Json, Turn
from afterword.store import Store
from afterword.train.data.examples import Example, Prepared, encode_examples

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "initializer_range": 0.2,
}  # fmt: skip


def write_tokenizer(
    folder: Path,
    template: str,
    *,
    special: Sequence[str],
    eos: str,
    bos: str | None = None,
    words: Sequence[str] = (),
) -> Any:
    """A tokenizer of single bytes with these special tokens, `words` as added tokens that are not special, and a
    template. The first special token is the pad token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate([*special, *letters])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(special))
    core.add_tokens([AddedToken(word, special=False, normalized=False) for word in words])
    made = t.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=eos, bos_token=bos, pad_token=special[0], clean_up_tokenization_spaces=False
    )
    made.chat_template = template
    made.save_pretrained(folder)
    return made


def write_model(folder: Path, tokenizer: Any, make: Callable[..., Any] = t.LlamaConfig, **more: Any) -> Path:
    """A random model of that configuration for that tokenizer."""
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0, "bos_token_id": tokenizer.bos_token_id}
    config = make(vocab_size=len(tokenizer), **ids, **{**SIZES, **more})
    torch.manual_seed(0)
    t.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@contextmanager
def engine(folder: Path) -> Iterator[str]:
    """The engine over a model folder, in float32, on loopback; its URL."""
    model, tokenizer = load_model(str(folder), dtype="float32"), load_tokenizer(str(folder))
    codec = Codec(tokenizer)
    runner = Runner(model, ends=frozenset(stop_ids(model, tokenizer)))
    host = Host(runner, codec, folder.name, base_hash(folder))
    server = Server(host, codec, folder.name, str(folder))
    loop, ready, urls = asyncio.new_event_loop(), threading.Event(), []

    async def begin() -> web.AppRunner:
        app = web.AppRunner(server.app, access_log=None, handler_cancellation=True)
        await app.setup()
        await web.TCPSite(app, "127.0.0.1", 0).start()
        urls.append(f"http://127.0.0.1:{app.addresses[0][1]}/v1")
        return app

    def run() -> None:
        app = loop.run_until_complete(begin())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(app.cleanup())
        loop.close()

    http = threading.Thread(target=run)
    work = threading.Thread(target=host.run, args=(lambda made: loop.call_soon_threadsafe(server.distribute, made),))
    http.start()
    work.start()
    try:
        assert ready.wait(30)
        yield urls[0]
    finally:
        host.stop()
        work.join()
        loop.call_soon_threadsafe(loop.stop)
        http.join()


@cache
def tokenizer_of(folder: Path) -> Any:
    """The tokenizer of a folder, loaded once: its marks are found once."""
    return load_tokenizer(str(folder))


@dataclass
class VLLM:
    """An upstream that renders as vLLM does: the template of the model with the request's template arguments, tool
    arguments decoded, text parts joined by newlines, control tokens in messages read as such; with `reasoning` a
    parser that moves the thought into `reasoning_content`, with `tools` one that moves `<tool_call>` blocks."""

    folder: Path
    says: Callable[[Json], str]
    reasoning: bool = False
    tools: bool = False
    drop_reasoning: bool = False
    """A proxy in front of it removes the fields that OpenAI does not have."""
    alter: Callable[[list[int]], list[int]] = list
    """What else it does to the ids of a prompt."""
    seen: list[Json] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._tokenizer = tokenizer_of(self.folder)

    def answer(self, body: Json) -> Json:
        self.seen.append(body)
        messages = [self._message(message) for message in body["messages"]]
        text = self._tokenizer.apply_chat_template(
            messages, tools=body.get("tools"), tokenize=False,
            add_generation_prompt=body.get("add_generation_prompt", True),
            continue_final_message=body.get("continue_final_message", False),
            **(body.get("chat_template_kwargs") or {}),
        )  # fmt: skip
        prompt = self.alter(self._tokenizer.encode(text, add_special_tokens=False))
        raw = self.says(body)
        ids = [*self._tokenizer.encode(raw, add_special_tokens=False), self._tokenizer.eos_token_id]
        message: Json = {"role": "assistant", "content": raw}
        if self.reasoning and "</think>" in raw:
            thought, _, rest = raw.partition("</think>")
            message |= {"reasoning_content": thought.replace("<think>", "").strip("\n"), "content": rest.strip("\n")}
        if self.drop_reasoning:
            message.pop("reasoning_content", None)
        if body.get("skip_special_tokens") is False:
            message["content"] += self._tokenizer.eos_token
        for stop in body["stop"] if isinstance(body.get("stop"), list) else ():
            message["content"] = message["content"].split(stop)[0]
        reason = "stop"
        if self.tools and "<tool_call>" in message["content"]:
            before, _, call = message["content"].partition("<tool_call>")
            made = json.loads(call.partition("</tool_call>")[0])
            function = {"name": made["name"], "arguments": json.dumps(made["arguments"])}
            call_of = {"id": f"call_{len(self.seen)}", "type": "function", "function": function}
            message |= {"content": before or None, "tool_calls": [call_of]}
            reason = "tool_calls"
        logprobs: Json = {"content": [{"token": "", "logprob": -1.0, "bytes": None, "top_logprobs": []} for _ in ids]}
        choice = {"index": 0, "message": message, "finish_reason": reason, "token_ids": ids, "logprobs": logprobs}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(ids), "total_tokens": len(prompt) + len(ids)}
        return {
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": body["model"],
            "prompt_token_ids": prompt, "choices": [choice], "usage": usage,
        }  # fmt: skip

    def _message(self, message: Json) -> Json:
        message = json.loads(json.dumps(message))
        if isinstance(message.get("content"), list):
            message["content"] = "\n".join(part["text"] for part in message["content"])
        message = {name: value for name, value in message.items() if value is not None or name == "content"}
        if not message.get("tool_calls"):
            message.pop("tool_calls", None)
        message["content"] = message.get("content") or ""
        for call in message.get("tool_calls") or []:
            given = call["function"].get("arguments") or "{}"
            call["function"]["arguments"] = json.loads(given) if isinstance(given, str) else given
        return message

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Its URL while it serves."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def _write(self, body: Json, status: int = 200) -> None:
                raw = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def do_GET(self) -> None:
                card = {"id": "base", "object": "model", "root": "base", "parent": None, "max_model_len": 2048}
                self._write({"object": "list", "data": [card]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                try:
                    self._write(outer.answer(body))
                except Exception as error:  # noqa: BLE001  as vLLM answers what a template raises
                    self._write({"error": {"message": str(error), "type": "BadRequestError", "code": 400}}, 400)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


@dataclass
class Gateway:
    """A gateway in front of a model server, and what it stores."""

    url: str
    store: Store
    http: httpx.Client

    def post(self, messages: Sequence[Json], **more: Any) -> httpx.Response:
        body = {"model": "afterword", "messages": list(messages), "max_tokens": 12, "temperature": 1.0, "seed": 1}
        return self.http.post(f"{self.url}/v1/chat/completions", json={**body, **more})

    def chat(self, messages: Sequence[Json], **more: Any) -> Turn:
        """One answer, as its turn was stored."""
        response = self.post(messages, **more)
        assert response.status_code == 200, response.text
        return self.store.get(Turn, response.json()["id"])


@contextmanager
def gateway(upstream: str, directory: Path, **settings: Any) -> Iterator[Gateway]:
    """A gateway in front of `upstream`, whose unset sampling fields are plain."""
    with ExitStack() as stack:
        given = {"sampling_defaults": PLAIN, "capture_wait_ms": 5000.0, "port": 0, **settings}
        chosen = GatewaySettings(dir=directory, upstream=upstream, **given)
        url = stack.enter_context(serve_in_thread(chosen))
        store = stack.enter_context(Store.open(chosen.database))
        yield Gateway(url, store, stack.enter_context(httpx.Client(timeout=60, verify=False, trust_env=False)))


def encoded(
    folder: Path, turns: Sequence[Turn], *, hindsight: str = "Shorter, please.", using: Recipe | None = None
) -> Prepared:
    """The turns as a run would train them, each with a follow-up of these words."""
    examples = [
        Example(
            Interaction(id=f"i{n}", turn=turn.id, feedback=(f"f{n}",), kind="follow_up", hindsight=hindsight,
                        polarity=-1, weight=1.0, split="train"),
            turn,
        )
        for n, turn in enumerate(turns)
    ]  # fmt: skip
    tokenizer = tokenizer_of(folder)
    chosen = using or recipe("follow-ups")
    return encode_examples(examples, tokenizer, chosen, limit=2048, vocabulary=len(tokenizer))
