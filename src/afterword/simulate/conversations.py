"""Runs conversations of simulated users through the public HTTP API with the `openai` client.

Owns the traffic and its summary. The users re-send their history as any chat program does and name nobody but
themselves (`user`) and, on request, their conversation; recognising a follow-up is the gateway's work.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import openai
from openai.types.chat import ChatCompletionMessageParam

from afterword.errors import ConfigError, UpstreamError, UsageError
from afterword.simulate.client import Progress, ServedAnswer, ask, bounded, connect
from afterword.simulate.llm_user import LLMUser
from afterword.simulate.personas import Persona
from afterword.simulate.prompts import TaskPrompt, load_prompts
from afterword.simulate.users import Reaction, answer_seed, opening, plan, react

MOST = 8
"""Conversations begun for each interaction that was asked for, before it is given up."""


@dataclass(slots=True)
class SimulationSummary:
    """Summary of a simulation. The marks behind `first_passed` and `last_passed` are the users' private knowledge."""

    persona: str
    seed: int
    conversations: int
    turns: int = 0
    """Answers received."""
    interactions: int = 0
    """Answers that the user did something about: wrote, edited, rated, took over, asked again."""
    acts: Counter[str] = field(default_factory=Counter)
    """Reactions by kind: complain, thank, off_topic, edit, retry, leave."""
    events: Counter[str] = field(default_factory=Counter)
    """Feedback events that the server took, by kind."""
    first_passed: int = 0
    """Conversations whose first answer already granted every wish."""
    last_passed: int = 0
    """Conversations whose last marked answer did."""
    failed: int = 0
    """Conversations that broke off because of the server."""
    first_failure: str | None = None
    seconds: float = 0.0

    @property
    def rates(self) -> dict[str, float]:
        """Each act and event by answer that was looked at."""
        looked = max(1, sum(self.acts.values()))
        return {name: round(n / looked, 4) for name, n in sorted((self.acts + self.events).items())}

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON-compatible."""
        return {
            "persona": self.persona, "seed": self.seed, "conversations": self.conversations, "turns": self.turns,
            "interactions": self.interactions, "acts": dict(self.acts), "events": dict(self.events),
            "rates": self.rates, "first_passed": self.first_passed, "last_passed": self.last_passed,
            "failed": self.failed, "first_failure": self.first_failure, "seconds": round(self.seconds, 2),
        }  # fmt: skip


def simulate_users(
    base_url: str,
    persona: Persona,
    *,
    conversations: int | None = None,
    interactions: int | None = None,
    seed: int,
    first: int = 0,
    prompts: Sequence[TaskPrompt] | None = None,
    user_model: LLMUser | None = None,
    concurrency: int = 16,
    model: str = "afterword",
    max_tokens: int = 64,
    temperature: float = 1.0,
    api_key: str = "none",
    user: str | None = None,
    name_conversations: bool = False,
    progress: Progress | None = None,
) -> SimulationSummary:
    """Let a persona talk with the server at `base_url` (with or without /v1), and wait until it is over.

    It holds `conversations` conversations, or as many as give `interactions` interactions. Their numbers, which are the
    persona's time, begin at `first`; their questions are the persona's own or come from `prompts` (default: all
    training requests). Each request carries a seed of its own, a function of `seed`, the persona, the conversation and
    the answer's number. `name_conversations` sends a name that is the same in every run, so that the same ones are held
    out; without it the gateway goes by random ids. `user_model` plays the persona instead of its own phrases.

    Raises:
        UpstreamError: no server answers or it refuses us; a conversation that the server breaks off later is counted in
            `failed`.
    """
    if (conversations is None) == (interactions is None):
        raise UsageError("give the number of conversations or of interactions, not both")
    wanted = conversations if interactions is None else interactions
    if not wanted or wanted < 1 or concurrency < 1 or first < 0:
        what = "conversations" if interactions is None else "interactions"
        least = {what: (wanted, 1), "concurrency": (concurrency, 1), "from": (first, 0)}
        wrong = [f"{name} is {value}: at least {low}" for name, (value, low) in least.items() if (value or 0) < low]
        raise UsageError("; ".join(wrong))
    own = tuple(TaskPrompt("own", text) for text in persona.questions)
    job = _Simulation(
        persona, seed, own or tuple(prompts or load_prompts("train")), model, max_tokens, temperature,
        user or f"sim-{persona.name}", interactions, user_model, name_conversations,
    )  # fmt: skip
    most = wanted if interactions is None else MOST * wanted
    concurrency = min(concurrency, wanted)  # nobody begins to talk who would not be heard
    return asyncio.run(job.run(base_url, api_key, first, most, concurrency, progress))


@dataclass(slots=True)
class _Simulation:
    persona: Persona
    seed: int
    prompts: tuple[TaskPrompt, ...]
    model: str
    max_tokens: int
    temperature: float
    user: str
    enough: int | None
    user_model: LLMUser | None
    named: bool = False
    player: openai.AsyncOpenAI | None = None

    async def run(
        self, base_url: str, api_key: str, first: int, most: int, concurrency: int, progress: Progress | None
    ) -> SimulationSummary:
        summary = SimulationSummary(self.persona.name, self.seed, 0)
        started = time.monotonic()
        questions = plan(self.prompts, first + most, self.seed)
        async with AsyncExitStack() as stack:
            if self.user_model is not None:
                told = connect(
                    self.user_model.url, self.user_model.api_key, "Check the URL of --user-model.", "--user-key"
                )
                self.player = await stack.enter_async_context(told)
            client = await stack.enter_async_context(connect(base_url, api_key))
            talks = [self._guarded(client, i, questions[i].text, summary) for i in range(first, first + most)]
            await bounded(talks, concurrency, self._counted(summary, progress))
        summary.seconds = time.monotonic() - started
        if summary.failed == summary.conversations:
            raise UpstreamError(f"every conversation broke off, the first with {summary.first_failure}")
        return summary

    def _counted(self, summary: SimulationSummary, progress: Progress | None) -> Progress | None:
        """Progress by interactions where those are asked for."""
        if progress is None or self.enough is None:
            return progress
        told, enough = progress, self.enough
        return lambda done, total: told(min(summary.interactions, enough), enough)

    def _over(self, summary: SimulationSummary) -> bool:
        return self.enough is not None and summary.interactions >= self.enough

    async def _guarded(self, client: openai.AsyncOpenAI, index: int, question: str, summary: SimulationSummary) -> None:
        """One conversation; a server's fault in the middle (5xx, a cut stream, slowness) ends it and is counted."""
        if self._over(summary):
            return
        summary.conversations += 1
        try:
            await self._talk(client, index, question, summary)
        except (openai.APIError, UpstreamError) as error:
            if isinstance(error, openai.APIStatusError) and error.status_code < 500 and error.status_code != 429:
                raise  # a wrong key or model: every other conversation would meet it too
            summary.failed += 1
            theirs = isinstance(error, UpstreamError)  # says itself who failed
            said = str(error) if theirs else f"{type(error).__name__} of {client.base_url}: {error}"
            summary.first_failure = summary.first_failure or said

    async def _talk(self, client: openai.AsyncOpenAI, index: int, question: str, summary: SimulationSummary) -> None:
        asks = opening(self.persona, question, seed=self.seed, conversation=index)
        messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": asks}]
        said, looked, passed = [question], 0, False
        while True:
            answer = await self._answer(client, messages, summary, index, looked)
            if self._over(summary):
                break
            looked += 1
            passed = self.persona.mark(answer.text, question, index).passed
            summary.first_passed += passed and looked == 1
            reaction = await self._react(answer.text, index, looked, said)
            if self._over(summary):  # others reached it while a model was thinking
                break
            summary.acts[reaction.act] += 1
            summary.interactions += reaction.informs
            for event in reaction.events:
                await self._send(client, {**event, "turn": answer.turn}, summary)
            if reaction.text is not None:
                said.append(reaction.text)
                messages += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": reaction.text}]
            elif reaction.act != "retry":
                break
            if reaction.last:
                await self._answer(client, messages, summary, index, looked)
                break
        summary.last_passed += passed

    async def _react(self, answer: str, index: int, looked: int, said: Sequence[str]) -> Reaction:
        if self.user_model is not None and self.player is not None:
            return await self.user_model.react(self.player, self.persona, said, answer, index, looked)
        mark = self.persona.mark(answer, said[0], index)
        return react(self.persona, mark, answer, seed=self.seed, conversation=index, asked=looked, said=said)

    async def _answer(
        self,
        client: openai.AsyncOpenAI,
        messages: Sequence[ChatCompletionMessageParam],
        summary: SimulationSummary,
        index: int,
        number: int,
    ) -> ServedAnswer:
        answer = await ask(
            client, messages, model=self.model, max_tokens=self.max_tokens, temperature=self.temperature,
            user=self.user, seed=answer_seed(self.persona.name, self.seed, index, number),
            conversation=f"{self.user}/{self.seed}/{index}" if self.named else None,
        )  # fmt: skip
        summary.turns += 1
        return answer

    async def _send(self, client: openai.AsyncOpenAI, event: dict[str, Any], summary: SimulationSummary) -> None:
        body = {**event, "user": self.user, "source": "end_user"}
        try:
            await client.post("/feedback", cast_to=cast(Any, object), body=body)
        except openai.APIStatusError as error:
            if error.status_code not in (404, 405):
                raise
            raise ConfigError(
                f"{client.base_url}feedback answers {error.status_code} to an event ({error.message}). Simulated users "
                "need the gateway of `afterword serve`, not the server of a model alone.",
                param="url",
            ) from error
        summary.events[event["kind"]] += 1
