"""How simulated users reach a server: one streamed answer at a time through the `openai` client.

Owns the connection, its errors in our words, and the questions that only measure (`store: false`, so that measuring
leaves no turn behind). Knows no persona.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import openai
from openai.types.chat import ChatCompletionMessageParam

from afterword.errors import UpstreamError, UsageError
from afterword.sampling.urls import is_loopback
from afterword.simulate.prompts import TaskPrompt

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

TIMEOUT = 120.0
"""Seconds for one answer."""
SERVE = "Start one with `afterword serve`, or name it with --url."


@dataclass(frozen=True, slots=True)
class ServedAnswer:
    """One answer and the model that gave it."""

    turn: str
    """Id of the turn (the id of the HTTP answer)."""
    text: str
    adapter: str | None
    """Adapter version by the header `x-afterword-adapter`; None where the server names none."""


def ask_heldout(
    base_url: str,
    prompts: Sequence[TaskPrompt],
    *,
    model: str = "afterword",
    seed: int = 0,
    concurrency: int = 16,
    max_tokens: int = 64,
    temperature: float = 0.0,
    api_key: str = "none",
    user: str | None = None,
    system: str | None = None,
    progress: Progress | None = None,
) -> list[ServedAnswer]:
    """Ask every prompt once, each as a conversation of its own, and return the answers in the prompts' order.

    `system` is told to the model before each of them: with a persona's wish in it the answers are those of a model
    that was simply told (the oracle in context).
    """
    told: list[ChatCompletionMessageParam] = [{"role": "system", "content": system}] if system else []

    async def ask_all() -> list[ServedAnswer]:
        async with connect(base_url, api_key) as client:

            async def one(index: int) -> ServedAnswer:
                question: list[ChatCompletionMessageParam] = [*told, {"role": "user", "content": prompts[index].text}]
                return await ask(
                    client, question, model=model, max_tokens=max_tokens, temperature=temperature,
                    user=user or "sim-heldout", store=False, seed=seed + index,
                )  # fmt: skip

            return await bounded([one(i) for i in range(len(prompts))], concurrency, progress)

    return asyncio.run(ask_all())


async def ask(
    client: openai.AsyncOpenAI,
    messages: Sequence[ChatCompletionMessageParam],
    *,
    model: str,
    max_tokens: int,
    temperature: float,
    user: str,
    seed: int,
    store: bool = True,
    conversation: str | None = None,
) -> ServedAnswer:
    """One streamed answer, in a named `conversation` or none. UpstreamError for a stream that breaks off."""
    raw = await client.chat.completions.with_raw_response.create(
        model=model, messages=list(messages), max_tokens=max_tokens, temperature=temperature, user=user,
        seed=seed, store=store, stream=True,
        extra_headers={"x-afterword-conversation": conversation} if conversation else None,
    )  # fmt: skip
    turn, parts, ended = "", [], False
    async for chunk in raw.parse():
        turn = chunk.id or turn
        parts += [choice.delta.content or "" for choice in chunk.choices]
        ended = ended or any(choice.finish_reason for choice in chunk.choices)
    if not ended:
        raise UpstreamError(f"the stream of answer {turn!r} of {client.base_url} ended without a finish_reason")
    return ServedAnswer(turn, "".join(parts), raw.headers.get("x-afterword-adapter"))


@asynccontextmanager
async def connect(
    base_url: str, api_key: str, remedy: str = SERVE, key: str = "--api-key"
) -> AsyncIterator[openai.AsyncOpenAI]:
    """A client that was answered once; fatal errors leave as UpstreamError with a remedy, a refused key as that of the
    option `key`."""
    url = api_root(base_url)
    # A proxy in the environment (`HTTP_PROXY`) is not for this machine, also where `NO_PROXY` does not say so.
    direct = openai.DefaultAsyncHttpxClient(trust_env=False) if is_loopback(_host(url)) else None
    async with openai.AsyncOpenAI(
        base_url=url, api_key=api_key, timeout=TIMEOUT, max_retries=2, http_client=direct
    ) as client:
        try:
            with suppress(openai.NotFoundError):  # some servers only chat, and list nothing
                await client.with_options(max_retries=0, timeout=10.0).models.list()
            yield client
        except openai.APITimeoutError as error:
            raise UpstreamError(f"the server at {url} did not answer in time: {error}", timed_out=True) from error
        except openai.APIConnectionError as error:
            raise UpstreamError(f"no server answers at {url} ({_root(error)}). {remedy}") from error
        except openai.APIStatusError as error:
            hint = f". Check {key}." if error.status_code in (401, 403) else ""
            raise UpstreamError(
                f"the server at {url} rejects the request with {error.status_code}: {error.message}{hint}"
            ) from error


def api_root(url: str) -> str:
    """The address below which an API lies: with /v1 at its end, unless it names a version already (".../v1beta/x").

    UsageError for one that is no web address.
    """
    if not re.match(r"https?://[^/]", url) or _host(url) is None:
        raise UsageError(f"{url!r} is not a URL of a server: begin it with http:// or https://", param="url")
    url = url.rstrip("/")
    return url if re.search(r"/v\d\w*(?:/|$)", url) else f"{url}/v1"


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:  # a bracket without its other half
        return None


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__


async def bounded(jobs: Sequence[Coroutine[Any, Any, Any]], concurrency: int, progress: Progress | None) -> list[Any]:
    """Run all, `concurrency` at once; the first error ends the others and is raised as it was."""
    gate, done = asyncio.Semaphore(concurrency), 0

    async def one(job: Coroutine[Any, Any, Any]) -> Any:
        nonlocal done
        async with gate:
            result = await job
        done += 1
        if progress is not None:
            progress(done, len(jobs))
        return result

    tasks = [asyncio.ensure_future(one(job)) for job in jobs]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for job in jobs:
            job.close()
