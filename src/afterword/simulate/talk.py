"""Simulated users at the door: conversations through the public HTTP API with the `openai` client.

Owns the traffic and its summary. The users re-send their history as any chat program does and name nobody but
themselves (`user`); recognising a follow-up is the gateway's work. Held-out questions are asked with
`store: false`, so that measuring leaves no turn behind.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import openai
from openai.types.chat import ChatCompletionMessageParam

from afterword.errors import UpstreamError, UsageError
from afterword.simulate.personas import Persona
from afterword.simulate.prompts import Prompt, load_prompts
from afterword.simulate.users import plan, react

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

TIMEOUT = 120.0
"""Seconds for one answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer and who gave it."""

    turn: str
    """Id of the turn (the id of the HTTP answer)."""
    text: str
    adapter: str | None
    """Adapter version by the header `x-afterword-adapter`; None where the server names none."""


@dataclass(slots=True)
class SimulationSummary:
    """What a simulation did. `marks` is the users' private knowledge, for measuring only."""

    persona: str
    seed: int
    conversations: int
    turns: int = 0
    """Answers received."""
    acts: Counter[str] = field(default_factory=Counter)
    """Reactions by kind: complain, thank, off_topic, edit, leave."""
    events: Counter[str] = field(default_factory=Counter)
    """Feedback events that the server took, by kind."""
    first_passed: int = 0
    """Conversations whose first answer already showed the trait."""
    last_passed: int = 0
    """Conversations whose last marked answer showed it."""
    failed: int = 0
    """Conversations that broke off because of the server."""
    first_failure: str | None = None
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON-compatible."""
        return {
            "persona": self.persona, "seed": self.seed, "conversations": self.conversations, "turns": self.turns,
            "acts": dict(self.acts), "events": dict(self.events), "first_passed": self.first_passed,
            "last_passed": self.last_passed, "failed": self.failed, "first_failure": self.first_failure,
            "seconds": round(self.seconds, 2),
        }  # fmt: skip


def simulate_users(
    base_url: str,
    persona: Persona,
    *,
    conversations: int,
    seed: int,
    concurrency: int = 16,
    model: str = "afterword",
    max_tokens: int = 64,
    temperature: float = 1.0,
    api_key: str = "none",
    user: str | None = None,
    progress: Progress | None = None,
) -> SimulationSummary:
    """Let a persona hold `conversations` conversations with the server at `base_url` (with or without /v1).

    Blocks until all are over. UpstreamError when no server answers or it refuses us; a conversation that the
    server breaks off later is counted in `failed`.
    """
    if conversations < 1 or concurrency < 1:
        raise UsageError(f"{conversations} conversations, {concurrency} at once: both must be at least 1")
    job = _Simulation(persona, seed, model, max_tokens, temperature, user or f"sim-{persona.name}")
    return asyncio.run(job.run(base_url, api_key, conversations, concurrency, progress))


def ask_heldout(
    base_url: str,
    prompts: Sequence[Prompt],
    *,
    model: str = "afterword",
    seed: int = 0,
    concurrency: int = 16,
    max_tokens: int = 64,
    temperature: float = 0.0,
    api_key: str = "none",
    user: str | None = None,
    progress: Progress | None = None,
) -> list[Answer]:
    """Ask every prompt once, each as a conversation of its own, and return the answers in the prompts' order."""

    async def ask_all() -> list[Answer]:
        async with _connect(base_url, api_key) as client:

            async def one(index: int) -> Answer:
                question: list[ChatCompletionMessageParam] = [{"role": "user", "content": prompts[index].text}]
                return await _ask(
                    client, question, model=model, max_tokens=max_tokens, temperature=temperature,
                    user=user or "sim-heldout", store=False, seed=seed + index,
                )  # fmt: skip

            return await _bounded([one(i) for i in range(len(prompts))], concurrency, progress)

    return asyncio.run(ask_all())


@dataclass(frozen=True, slots=True)
class _Simulation:
    persona: Persona
    seed: int
    model: str
    max_tokens: int
    temperature: float
    user: str

    async def run(
        self, base_url: str, api_key: str, conversations: int, concurrency: int, progress: Progress | None
    ) -> SimulationSummary:
        summary = SimulationSummary(self.persona.name, self.seed, conversations)
        started = time.monotonic()
        questions = plan(load_prompts("train"), conversations, self.seed)
        async with _connect(base_url, api_key) as client:
            talks = [self._guarded(client, i, question.text, summary) for i, question in enumerate(questions)]
            await _bounded(talks, concurrency, progress)
        summary.seconds = time.monotonic() - started
        if summary.failed == conversations:
            raise UpstreamError(f"every conversation with {base_url} broke off, the first with {summary.first_failure}")
        return summary

    async def _guarded(self, client: openai.AsyncOpenAI, index: int, question: str, summary: SimulationSummary) -> None:
        """One conversation; a server's fault in the middle (5xx, a cut stream, slowness) ends it and is counted."""
        try:
            await self._talk(client, index, question, summary)
        except (openai.APIError, UpstreamError) as error:
            if isinstance(error, openai.APIStatusError) and error.status_code < 500 and error.status_code != 429:
                raise  # a wrong key or model: every other conversation would meet it too
            summary.failed += 1
            summary.first_failure = summary.first_failure or f"{type(error).__name__}: {error}"

    async def _talk(self, client: openai.AsyncOpenAI, index: int, question: str, summary: SimulationSummary) -> None:
        messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": question}]
        said, passed, over = [question], False, False
        while True:
            answer = await self._answer(client, messages, summary)
            if over:
                break
            mark = self.persona.mark(answer.text, question)
            passed = mark.passed
            summary.first_passed += passed and len(said) == 1
            reaction = react(
                self.persona, mark, answer.text, seed=self.seed, conversation=index, asked=len(said), said=said
            )
            summary.acts[reaction.act] += 1
            for event in reaction.events:
                await self._send(client, {**event, "turn": answer.turn}, summary)
            if reaction.text is None:
                break
            said.append(reaction.text)
            messages += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": reaction.text}]
            over = reaction.last
        summary.last_passed += passed

    async def _answer(
        self, client: openai.AsyncOpenAI, messages: Sequence[ChatCompletionMessageParam], summary: SimulationSummary
    ) -> Answer:
        answer = await _ask(
            client, messages, model=self.model, max_tokens=self.max_tokens, temperature=self.temperature,
            user=self.user, seed=None,
        )  # fmt: skip
        summary.turns += 1
        return answer

    async def _send(self, client: openai.AsyncOpenAI, event: dict[str, Any], summary: SimulationSummary) -> None:
        body = {**event, "user": self.user, "source": "end_user"}
        await client.post("/feedback", cast_to=cast(Any, object), body=body)
        summary.events[event["kind"]] += 1


async def _ask(
    client: openai.AsyncOpenAI,
    messages: Sequence[ChatCompletionMessageParam],
    *,
    model: str,
    max_tokens: int,
    temperature: float,
    user: str,
    seed: int | None,
    store: bool = True,
) -> Answer:
    """One streamed answer."""
    raw = await client.chat.completions.with_raw_response.create(
        model=model, messages=list(messages), max_tokens=max_tokens, temperature=temperature, user=user,
        seed=seed if seed is not None else openai.omit, store=store, stream=True,
    )  # fmt: skip
    turn, parts, ended = "", [], False
    async for chunk in raw.parse():
        turn = chunk.id or turn
        parts += [choice.delta.content or "" for choice in chunk.choices]
        ended = ended or any(choice.finish_reason for choice in chunk.choices)
    if not ended:
        raise UpstreamError(f"the stream of answer {turn!r} ended without a finish_reason")
    return Answer(turn, "".join(parts), raw.headers.get("x-afterword-adapter"))


@asynccontextmanager
async def _connect(base_url: str, api_key: str) -> AsyncIterator[openai.AsyncOpenAI]:
    """A client that was answered once; fatal errors leave as UpstreamError with a remedy."""
    url = base_url.rstrip("/")
    url = url if url.endswith("/v1") else f"{url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key=api_key, timeout=TIMEOUT, max_retries=2) as client:
        try:
            await client.with_options(max_retries=0, timeout=10.0).models.list()
            yield client
        except openai.APITimeoutError as error:
            raise UpstreamError(f"the server at {url} did not answer in time: {error}", timed_out=True) from error
        except openai.APIConnectionError as error:
            raise UpstreamError(
                f"no server answers at {url} ({_root(error)}). Start one with `afterword serve`, or name it with --url."
            ) from error
        except openai.APIStatusError as error:
            raise UpstreamError(f"the server at {url} refuses with {error.status_code}: {error.message}") from error


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__


async def _bounded(jobs: Sequence[Coroutine[Any, Any, Any]], concurrency: int, progress: Progress | None) -> list[Any]:
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
