"""A tiny random llama behind a byte-level tokenizer, served in this process."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from aiohttp.test_utils import TestClient, TestServer
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models

from afterword.engine.host import Host
from afterword.engine.server import Server
from afterword.model import loading
from afterword.model.generation.runner import Runner
from afterword.model.generation.text import Codec

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'robot' %}{{ raise_exception('no robots') }}{% endif %}"
    "{{ '<s>' + m['role'] + ':' + m['content'] + '<e>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant:' }}{% endif %}"
)


def write_tiny(folder: Path, seed: int = 0, hidden: int = 32, tied: bool = False) -> Path:
    """Byte-level vocabulary (ids 0 <s>, 1 <e> end, 2 <pad>), two layers, a context of 512 tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: index for index, text in enumerate(["<s>", "<e>", "<pad>", *letters])}
    core = Tokenizer(tokenizer_models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="<e>", pad_token="<pad>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=hidden, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2,
        bos_token_id=0, eos_token_id=1, pad_token_id=2, tie_word_embeddings=tied,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@contextmanager
def peft_quiet() -> Iterator[None]:
    """PEFT 0.21 asks transformers 5.23 for a name that is on its way out."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        warnings.filterwarnings("ignore", ".*tie_word_embeddings.*", UserWarning)
        yield


def write_adapter(base: Path, folder: Path, seed: int, rank: int = 4, **options: Any) -> Path:
    """A LoRA folder with random weights on both sides, large enough to change answers."""
    torch.manual_seed(seed)
    targets = options.pop("target_modules", ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"])
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM", **options)
    with peft_quiet():
        model = peft.get_peft_model(loading.load_model(str(base), dtype="float32"), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products only lose by sharing."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def adapters(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        "one": write_adapter(tiny, root / "one", 1, 4),
        "two": write_adapter(tiny, root / "two", 2, 2, use_rslora=True, target_modules=["k_proj", "up_proj"]),
    }


class Peer:
    """The same model in plain transformers (and PEFT): what the engine must say."""

    def __init__(self, folder: Path, adapter: Path | None = None) -> None:
        self.codec = Codec(loading.load_tokenizer(str(folder)))
        self.model = loading.load_model(str(folder), dtype="float32")
        if adapter is not None:
            with peft_quiet():
                self.model = peft.PeftModel.from_pretrained(self.model, adapter).eval()

    def prompt(self, text: str) -> list[int]:
        return self.codec.render([{"role": "user", "content": text}], None)

    def greedy(self, text: str, count: int) -> list[int]:
        ids = torch.tensor([self.prompt(text)])
        out = self.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False
        )
        answer: list[int] = out[0, ids.shape[1] :].tolist()
        return answer

    def logprobs(self, prompt: list[int], answer: list[int]) -> list[float]:
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        scores = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]
        values: list[float] = scores.tolist()
        return values


@pytest.fixture(scope="session")
def peer(tiny: Path) -> Peer:
    return Peer(tiny)


class Client:
    """Shorthands over an in-process server. `engine` is there to look at."""

    def __init__(self, http: TestClient[Any, Any], server: Server, host: Host) -> None:
        self.http, self.server, self.engine, self.runner = http, server, host.engine, host.runner

    async def raw(self, text: str = "Hi", **fields: Any) -> tuple[int, Any]:
        body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "temperature": 0, **fields}
        response = await self.http.post("/v1/chat/completions", json=body)
        return response.status, await response.json()

    async def ask(self, text: str = "Hi", **fields: Any) -> Any:
        status, body = await self.raw(text, return_token_ids=True, **fields)
        assert status == 200, body
        return body

    async def ids(self, text: str, count: int, **fields: Any) -> list[int]:
        body = await self.ask(text, max_tokens=count, **fields)
        ids: list[int] = body["choices"][0]["token_ids"]
        return ids

    async def load(self, name: str, path: Path) -> tuple[int, str]:
        response = await self.http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(path)})
        return response.status, await response.text()

    async def unload(self, name: str) -> tuple[int, str]:
        response = await self.http.post("/v1/unload_lora_adapter", json={"lora_name": name})
        return response.status, await response.text()


Serve = Callable[..., Awaitable[Client]]


@asynccontextmanager
async def serve_tiny(
    folder: Path,
    *,
    cache_tokens: int | None = None,
    max_batch: int = 32,
    chunk: int | None = None,
    prefix_bytes: int = 0,
    dtype: Any = "float32",
) -> AsyncIterator[Client]:
    """The tiny model behind an HTTP server of this process."""
    model = loading.load_model(str(folder), dtype=dtype)
    per_token = 2 * 2 * 2 * 8 * 4
    cache_bytes = None if cache_tokens is None else cache_tokens * per_token
    runner = Runner(model, ends=frozenset([1]), cache_bytes=cache_bytes)
    codec = Codec(loading.load_tokenizer(str(folder)))
    host = Host(runner, codec, "tiny", loading.base_hash(folder), max_batch=max_batch, prefix_bytes=prefix_bytes)
    if chunk is not None:
        host.engine.chunk = chunk
    server, loop = Server(host, codec, "tiny", str(folder)), asyncio.get_running_loop()
    deliver = lambda pieces: loop.call_soon_threadsafe(server.distribute, pieces)  # noqa: E731
    thread = threading.Thread(target=host.run, args=(deliver,))
    thread.start()
    try:
        async with TestClient(TestServer(server.app, handler_cancellation=True)) as http:
            yield Client(http, server, host)
    finally:  # a test that fails inside must not wait for the thread for ever
        host.stop()
        thread.join()


@pytest.fixture
async def client(tiny: Path) -> AsyncIterator[Client]:
    async with serve_tiny(tiny) as it:
        yield it
