"""Asks both arms the same prompts, with the same sampling and seed, in one batch, and caches results by content.

Adapters get temporary names on the model server. Never scores an answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from afterword.chat.render import Tokenizer, encode_content
from afterword.chat.trail import after_reasoning, in_thought
from afterword.chat.turn_prompt import request_fields
from afterword.errors import UpstreamError
from afterword.records import Json, Turn, content_hash
from afterword.sampling import Answer, Upstream

THOUGHT = 4096
"""Tokens beyond an answer's limit that a model which thinks first is given, where its context has them."""
REASONING = ("reasoning_content", "reasoning")
"""Fields in which servers give a thought beside the text."""
AT_ONCE = 24
"""Questions in flight: fewer than an engine runs at once (`serve.max_batch`), for it serves in order of arrival, and
users go on asking while a candidate is measured."""


class Cache:
    """Results by content: get and put by a key; `folder` None keeps nothing beyond the process.

    One append-only file of JSON lines per kind of result. The key is a hash over everything that decides the value
    (weights, adapter bytes, prompt ids, sampling), so an entry is never stale. A line that was cut off by a kill is
    skipped when the file is read.
    """

    def __init__(self, folder: Path | None, kind: str) -> None:
        self._file = None if folder is None else folder / f"{kind}.jsonl"
        self._known: dict[str, Any] = {}
        if self._file is not None and self._file.is_file():
            for line in self._file.read_bytes().split(b"\n"):
                self._read(line)

    def _read(self, line: bytes) -> None:
        try:
            key, value = orjson.loads(line)
        except (orjson.JSONDecodeError, ValueError, TypeError):
            return
        self._known[key] = value

    @staticmethod
    def key(*parts: Any) -> str:
        """Hash of everything that decides a value."""
        return content_hash(*parts)

    def get(self, key: str) -> Any:
        """The value, or None."""
        return self._known.get(key)

    def put(self, entries: dict[str, Any]) -> None:
        """Store values in one write that begins on a new line."""
        self._known.update(entries)
        if self._file is not None and entries:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("ab") as stream:
                stream.write(b"\n" + b"\n".join(orjson.dumps([k, v]) for k, v in entries.items()) + b"\n")


@dataclass(frozen=True, slots=True)
class Arm:
    """One side of the comparison: an adapter by its bytes, or the base model."""

    name: str
    """"served" or "candidate"."""
    path: Path | None
    content: str | None
    """Hash of the adapter folder, None for the base model."""

    @property
    def alias(self) -> str | None:
        """Temporary name on the model server: the same bytes always get the same name."""
        return None if self.content is None else f"measure-{self.content[:16]}"


@dataclass(frozen=True, slots=True)
class EvaluationPrompt:
    """A prompt of the evaluation."""

    messages: tuple[Json, ...]
    tools: tuple[Json, ...] | None = None
    fields: Json = field(default_factory=dict)
    """Further fields of the request: template arguments, the continuation of the last message."""

    @classmethod
    def of_turn(cls, turn: Turn) -> EvaluationPrompt:
        """The request of a stored turn."""
        return cls(turn.messages, turn.tools, request_fields(turn))

    @classmethod
    def of(cls, text: str, *before: Json) -> EvaluationPrompt:
        """One user message, after others where there are any."""
        return cls((*before, {"role": "user", "content": text}))


@dataclass(frozen=True, slots=True)
class Given:
    """An answer of one arm to one prompt."""

    text: str
    ids: tuple[int, ...] | None
    """Token ids with the end of turn where it ended by itself; None when the server does not tell."""
    finish_reason: str | None
    thought: bool = False
    """The server gave a thought beside the text."""


def ask(
    url: str,
    arms: Sequence[Arm],
    prompts: Sequence[EvaluationPrompt],
    *,
    cache: Cache,
    base: str,
    sampling: Json,
    api_key: str | None = None,
    concurrency: int = AT_ONCE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[Given]]:
    """Answers by arm, in the order of `prompts`. Only uncached prompts are generated.

    `base` is the hash of the base model's weights; `sampling` is temperature, max_tokens and seed. UpstreamError
    when the server is down, refuses an adapter or breaks off.
    """
    keys = {
        arm.name: [
            Cache.key(base, arm.content, prompt.messages, prompt.tools, sampling | prompt.fields) for prompt in prompts
        ]
        for arm in arms
    }
    missing = [(arm, _bodies(keys[arm.name], prompts, sampling, cache)) for arm in arms]
    if any(bodies for _, bodies in missing):
        asyncio.run(_ask_missing(url, missing, cache, api_key, concurrency, progress))
    return {arm.name: [_given(cache.get(key)) for key in keys[arm.name]] for arm in arms}


def _bodies(keys: Sequence[str], prompts: Sequence[EvaluationPrompt], sampling: Json, cache: Cache) -> dict[str, Json]:
    """Cache key -> request (without its model) of what is not known yet; equal prompts are asked once."""
    wanted: dict[str, Json] = {}
    for key, prompt in zip(keys, prompts, strict=True):
        if cache.get(key) is None:
            tools = {"tools": list(prompt.tools)} if prompt.tools else {}
            wanted[key] = {"messages": list(prompt.messages), **tools, **sampling, **prompt.fields}
    return wanted


async def _ask_missing(
    url: str,
    missing: Sequence[tuple[Arm, dict[str, Json]]],
    cache: Cache,
    api_key: str | None,
    concurrency: int,
    progress: Callable[[int, int], None],
) -> None:
    asked = {key: (arm, body) for arm, bodies in missing for key, body in bodies.items()}  # equal bytes: asked once
    done = 0

    def one_more(_: int) -> None:
        nonlocal done
        done += 1
        progress(done, len(asked))

    async with Upstream(url, api_key, background=True) as upstream:
        root = await base_name(upstream)
        requests = [{**body, "model": arm.alias or root} for arm, body in asked.values()]
        loaded: list[str] = []
        try:
            for alias, path in {arm.alias: arm.path for arm, _ in asked.values() if arm.alias is not None}.items():
                await upstream.load_adapter(alias, str(path))
                loaded.append(alias)
            answers = await upstream.complete_many(requests, concurrency, one_more)
        finally:
            for alias in loaded:
                await upstream.unload_adapter(alias)
        cache.put({key: _kept(answer) for key, answer in zip(asked, answers, strict=True)})


async def base_name(upstream: Upstream) -> str:
    """The base model's name on the server: the card without a parent."""
    for card in await upstream.models():
        if not card.get("parent"):
            return str(card["id"])
    raise UpstreamError(f"the model server {upstream.url} lists no base model at /v1/models: is it the engine's URL?")


def _kept(answer: Answer) -> Json:
    ids = None if answer.completion_ids is None else list(answer.completion_ids)
    kept = {"text": answer.text, "ids": ids, "finish_reason": answer.finish_reason}
    return kept | ({"thought": True} if any(answer.message.get(name) for name in REASONING) else {})


def _given(kept: Json) -> Given:
    ids = None if kept["ids"] is None else tuple(kept["ids"])
    return Given(kept["text"], ids, kept["finish_reason"], kept.get("thought", False))


def cut_in_thought(given: Given, *, opened: bool) -> bool:
    """Whether a thought used up the length of an answer that was cut."""
    if given.finish_reason != "length":
        return False
    return given.thought or in_thought(given.text, opened=opened) or after_reasoning(given.text) != given.text


def shown(given: Given, tokenizer: Tokenizer, limit: int, *, opened: bool) -> Given:
    """The answer without its thought, with the length that it has itself; "" and cut where only a thought was written.

    Its ids are those of text and thought together, so they are left out.
    """
    cut = given.finish_reason == "length"
    if cut and not given.thought and in_thought(given.text, opened=opened):
        return Given("", None, "length")
    text = after_reasoning(given.text)
    if text == given.text and not given.thought:
        return given
    ids = encode_content(tokenizer, text.strip(), "assistant")
    if len(ids) > limit:
        return Given(str(tokenizer.decode(list(ids[:limit]))), None, "length")
    return Given(text.strip(), None, given.finish_reason)
