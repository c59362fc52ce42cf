"""Plays episodes of an environment against a server, many at once.

The agent loop is the plainest one: observation, request to `/chat/completions`, action, and so on. The server records
the episode; this module names it, rewards its turns and ends it. A fault of the environment or the server ends its
episode alone, with the reason.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp

from afterword.environments.isolation import IsolatedEnvironment
from afterword.environments.protocol import (
    AgentAction,
    Environment,
    EnvironmentFault,
    EnvironmentSpec,
    EnvSplit,
    EnvTask,
    Observation,
    StepResult,
    cut,
    cut_observation,
)
from afterword.environments.results import EpisodeResult, RunFile
from afterword.errors import UpstreamError, UsageError
from afterword.records import Json, TaskSkill, content_hash
from afterword.sampling.urls import is_loopback

log = logging.getLogger("afterword.environments")
T = TypeVar("T")
RETRIES = 2
"""Repetitions of a request that failed for a passing reason: 429, 502, 503, 504 or no connection."""
HARNESS = "afterword-agent"
INTERRUPTED = "interrupted"
"""Reason of an episode whose run was killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaySettings:
    """How episodes are played."""

    url: str
    """Address of the server's API, with /v1."""
    model: str = "afterword"
    api_key: str = "none"
    temperature: float = 0.7
    seed: int = 0
    concurrency: int = 16
    record: bool = True
    """Record the episodes on the server; False sends `store: false`, and no turn is kept."""
    tools: bool = False
    """Send the environment's tools in OpenAI's form; for models whose template writes tools."""
    step_seconds: float = 30.0
    """Limit of one call of an isolated or remote environment."""
    request_seconds: float = 120.0
    """Limit of one answer."""
    episode_seconds: float = 600.0
    """Limit of an episode, answers and environment together."""
    max_turns: int | None = None
    """Turns of an episode; None: the environment's own."""
    run: str = "run"
    """Name of the run, part of the episodes' ids."""
    split: EnvSplit = "train"
    """Split of the tasks; recorded with the episodes, so that held-out ones are never trained on."""
    skills: Mapping[str, TaskSkill] = field(default_factory=dict)
    """Task -> the skill that stands before its system message; recorded with the episode, as the bank reads it."""


@dataclass(frozen=True, slots=True)
class PlannedEpisode:
    """An episode that is to be played."""

    index: int
    task: EnvTask
    seed: int
    """Of the environment; episodes of one task and seed are compared with each other."""
    draw: int = 0
    """Which of the episodes of its task it is; the answers are sampled by it."""


def plan_episodes(tasks: Sequence[EnvTask], number: int, seed: int, *, same_seed: bool = False) -> list[PlannedEpisode]:
    """`number` episodes over the tasks in turn; the n-th episode of each task has the seed `seed` + n.

    Two runs with the same arguments are paired: same tasks, same seeds of environment and sampling.

    Args:
        tasks: The tasks.
        number: Episodes of all tasks together.
        seed: The first seed.
        same_seed: Give all episodes of a task the seed `seed`, so that they form the group of a baseline; only their
            sampling differs.
    """
    if not tasks or number < 1:
        raise UsageError(f"{number} episodes of {len(tasks)} tasks: both must be at least 1")
    draws = [divmod(i, len(tasks)) for i in range(number)]
    return [
        PlannedEpisode(i, tasks[place], seed if same_seed else seed + draw, draw)
        for i, (draw, place) in enumerate(draws)
    ]


class ServerFault(UpstreamError):
    """The server failed an episode. `reason` is the short code that the episode ends with."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def play(
    spec: EnvironmentSpec,
    planned: Sequence[PlannedEpisode],
    settings: PlaySettings,
    run: RunFile,
    progress: Callable[[int, int], None] | None = None,
) -> list[EpisodeResult]:
    """Plays the episodes that the run file does not have yet, and waits until all are over.

    Returns:
        The results of all planned episodes, in their order.

    Raises:
        UpstreamError: If the server rejects us or is not there.
    """
    if settings.concurrency < 1:
        raise UsageError(f"concurrency is {settings.concurrency}: at least 1")
    asyncio.run(_Player(spec, settings, run).play(planned, progress))
    return [run.results[one.index] for one in planned]


@dataclass(slots=True)
class _Tally:
    """What an episode has come to so far."""

    rewards: list[float | None] = field(default_factory=list)
    turns: int = 0
    tool_errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    versions: set[str] = field(default_factory=set)


class _Player:
    def __init__(self, spec: EnvironmentSpec, settings: PlaySettings, run: RunFile) -> None:
        self._spec, self._settings, self._run = spec, settings, run
        self._direct = not spec.isolated

    async def play(self, planned: Sequence[PlannedEpisode], progress: Callable[[int, int], None] | None) -> None:
        left = [one for one in planned if one.index not in self._run.results]
        done = len(planned) - len(left)
        if progress is not None:
            progress(done, len(planned))
        gate = asyncio.Semaphore(self._settings.concurrency)
        host = self._settings.url.split("//", 1)[-1].split("/")[0].rsplit(":", 1)[0].strip("[]")
        with ThreadPoolExecutor(self._settings.concurrency, thread_name_prefix="environment") as self._threads:
            async with aiohttp.ClientSession(
                headers={"authorization": f"Bearer {self._settings.api_key}"},
                timeout=aiohttp.ClientTimeout(total=self._settings.request_seconds),
                connector=aiohttp.TCPConnector(limit=0),
                trust_env=not is_loopback(host),  # a proxy in the environment is not for this machine
            ) as self._http:
                await self._check_server()

                async def one(episode: PlannedEpisode) -> None:
                    nonlocal done
                    async with gate:
                        self._run.add(await self._episode(episode))
                    done += 1
                    if progress is not None:
                        progress(done, len(planned))

                tasks = [asyncio.ensure_future(one(episode)) for episode in left]
                try:
                    await asyncio.gather(*tasks)
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)

    # -- one episode ------------------------------------------------------------------------------------------

    async def _episode(self, planned: PlannedEpisode) -> EpisodeResult:
        """Plays one episode to its end. A fault becomes its reason; UpstreamError when the server rejects us."""
        began, tally, identifier = time.monotonic(), _Tally(), ""
        status, reason, detail = "finished", None, None
        environment = self._environment()
        try:
            identifier, known = await self._begin(planned)
            if known is not None:
                return known
            async with asyncio.timeout(self._settings.episode_seconds):
                reason = await self._loop(environment, planned, identifier, tally)
            status = "finished" if reason is None else "truncated"
        except TimeoutError:
            status, reason = "truncated", "episode_seconds"
        except (EnvironmentFault, ServerFault) as fault:
            status, reason, detail = "failed", fault.reason, cut(fault.message, 500)
        finally:
            await self._close(environment)
        scores = [reward for reward in tally.rewards if reward is not None]
        outcome = sum(scores) if scores else 0.0 if status == "truncated" else None
        outcome = None if status == "failed" else outcome
        result = EpisodeResult(
            id=identifier, task=planned.task.id, index=planned.index, seed=planned.seed, status=status, reason=reason,
            detail=detail, outcome=outcome, success=outcome is not None and outcome >= self._spec.success_at,
            turns=tally.turns, tool_errors=tally.tool_errors, prompt_tokens=tally.prompt_tokens,
            completion_tokens=tally.completion_tokens, seconds=round(time.monotonic() - began, 3),
            versions=tuple(sorted(tally.versions)),
        )  # fmt: skip
        await self._end(result)
        log.info("episode %d of %s: %s%s, outcome %s, %d turns, %.1f s", planned.index, planned.task.id, status,
                 f" ({reason}: {detail})" if reason else "", outcome, tally.turns, result.seconds)  # fmt: skip
        return result

    async def _loop(
        self, environment: Environment, planned: PlannedEpisode, identifier: str, tally: _Tally
    ) -> str | None:
        """The agent loop; the reason when a limit ends it."""
        seen = cut_observation(await self._call(lambda: environment.reset(planned.task, planned.seed)))
        tools = list(seen.tools) if self._settings.tools else []
        skill = self._settings.skills.get(planned.task.id)
        system = "\n\n".join(text for text in (skill.text if skill else "", seen.system) if text)
        messages: list[Json] = [{"role": "system", "content": system}] if system else []
        messages += _messages_of(seen)
        most = self._settings.max_turns or self._spec.max_turns
        while tally.turns < most:
            message = await self._answer(messages, tools, planned, identifier, tally)
            action = AgentAction(message.get("content") or "", tuple(message.get("tool_calls") or ()))
            result: StepResult = await self._call(lambda action=action: environment.step(action))  # type: ignore[misc]
            tally.tool_errors += bool(result.info.get("tool_error"))
            tally.rewards.append(result.reward)
            if result.done:
                return None
            kept = {"role": "assistant", "content": message.get("content")}
            if message.get("tool_calls"):
                kept["tool_calls"] = message["tool_calls"]
            messages += [kept, *_messages_of(cut_observation(result.observation))]
        return "turns"

    def _environment(self) -> Environment:
        """Isolated where it is not one of ours; a remote one keeps its own connection in a thread."""
        if self._direct or self._spec.name.startswith("openenv:"):
            return self._spec.make()
        return IsolatedEnvironment(self._spec.name, seconds=self._settings.step_seconds)

    async def _call(self, action: Callable[[], T]) -> T:
        if self._direct:
            return action()
        return await asyncio.get_running_loop().run_in_executor(self._threads, action)

    async def _close(self, environment: Environment) -> None:
        if self._direct:
            environment.close()
            return
        # After a timeout of the episode a call may still run: the end of its process ends it, too.
        if isinstance(environment, IsolatedEnvironment):
            environment.end_process()
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, environment.close)
        except Exception:  # foreign code: what it played counts, whatever its end does
            log.warning("the environment %s failed when it was closed", self._spec.name, exc_info=True)

    # -- the server -------------------------------------------------------------------------------------------

    async def _check_server(self) -> None:
        """UpstreamError with a remedy when nobody answers or the key is rejected."""
        url = self._settings.url
        try:
            async with self._http.get(f"{url}/models") as response:
                if response.status in (401, 403):
                    raise UpstreamError(f"the server at {url} rejects the API key: check --api-key")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UpstreamError(
                f"no server answers at {url} ({error}): start one with `afterword serve`, or name it with --url"
            ) from error

    async def _begin(self, planned: PlannedEpisode) -> tuple[str, EpisodeResult | None]:
        """Starts the episode on the server.

        Returns:
            Its id; its result where an interrupted run ended it but did not write it down. An episode that was
            interrupted in the middle is ended as failed, and the next name is taken: no turn is added to it.
        """
        name = content_hash([self._settings.run, self._spec.name, planned.task.id, planned.seed, planned.index])[:20]
        if not self._settings.record:
            return f"ep-{name}", None
        attempt, skill = 0, self._settings.skills.get(planned.task.id)
        while True:
            identifier = f"ep-{name}" + (f"-{attempt + 1}" if attempt else "")
            body = {
                "id": identifier, "task_id": planned.task.id, "seed": planned.seed, "harness": HARNESS,
                "metadata": {
                    "environment": self._spec.name, "run": self._settings.run, "index": planned.index,
                    "split": self._settings.split, **({"skill": skill.id} if skill else {}),
                },
            }  # fmt: skip
            status, found = await self._post("/episodes", body)
            if status == 201:
                return identifier, None
            async with self._http.get(f"{self._settings.url}/episodes/{identifier}") as response:
                found = await response.json(content_type=None)
            if found.get("status") == "running":
                await self._post(f"/episodes/{identifier}/end", {"status": "failed", "reason": INTERRUPTED})
            elif found.get("reason") != INTERRUPTED:
                return identifier, self._known(planned, found)
            attempt += 1

    def _known(self, planned: PlannedEpisode, found: Json) -> EpisodeResult:
        """The result of an episode that the server has ended."""
        metrics, outcome = found.get("metrics") or {}, found.get("outcome")

        def count(name: str) -> int:
            return int(metrics.get(name) or 0)

        return EpisodeResult(
            id=found["id"], task=planned.task.id, index=planned.index, seed=planned.seed, status=found["status"],
            reason=found.get("reason"), outcome=outcome,
            success=outcome is not None and outcome >= self._spec.success_at, turns=count("turns"),
            tool_errors=count("tool_errors"), prompt_tokens=count("prompt_tokens"),
            completion_tokens=count("completion_tokens"), seconds=float(metrics.get("seconds") or 0.0),
            versions=tuple(found.get("versions") or ()),
        )  # fmt: skip

    async def _answer(
        self, messages: list[Json], tools: list[Json], planned: PlannedEpisode, identifier: str, tally: _Tally
    ) -> Json:
        settings = self._settings
        drawn = content_hash([settings.seed, planned.task.id, planned.seed, planned.draw, tally.turns])
        body: Json = {
            "model": settings.model, "messages": messages, "max_tokens": self._spec.max_tokens,
            "temperature": settings.temperature,
            "seed": int(drawn[:7], 16),
        }  # fmt: skip
        body |= {"tools": tools} if tools else {}
        body |= {"metadata": {"episode_id": identifier}} if settings.record else {"store": False}
        _, found = await self._post("/chat/completions", body, tally)
        try:
            message = found["choices"][0]["message"]
            usage = found.get("usage") or {}
        except (KeyError, IndexError, TypeError) as error:
            raise ServerFault(
                f"the answer of {settings.url} has no message: {str(found)[:300]}", "server_error"
            ) from error
        tally.turns += 1
        tally.prompt_tokens += int(usage.get("prompt_tokens") or 0)
        tally.completion_tokens += int(usage.get("completion_tokens") or 0)
        return dict(message)

    async def _end(self, result: EpisodeResult) -> None:
        """Tells the server the outcome. A server that is gone keeps the result in the run file alone."""
        if not self._settings.record or not result.id:
            return
        metrics = {
            "turns": result.turns, "tool_errors": result.tool_errors, "prompt_tokens": result.prompt_tokens,
            "completion_tokens": result.completion_tokens, "seconds": result.seconds,
        }  # fmt: skip
        body: Json = {"status": result.status, "value": result.outcome, "metrics": metrics}
        body |= {"reason": result.reason} if result.reason else {}
        try:
            await self._post(f"/episodes/{result.id}/end", body)
        except ServerFault as fault:
            log.warning("the end of episode %s was not recorded: %s", result.id, fault.message)

    async def _post(self, path: str, body: Json, tally: _Tally | None = None) -> tuple[int, Any]:
        """Status and JSON. ServerFault for what ends this episode, UpstreamError for what would end all."""
        url, said = self._settings.url + path, ""
        reason = "server_error"
        for attempt in range(RETRIES + 1):
            if attempt:
                await asyncio.sleep(0.2 * 2**attempt)
            try:
                async with self._http.post(url, json=body) as response:
                    if response.status < 300:
                        if tally is not None:
                            tally.versions.add(response.headers.get("x-afterword-adapter") or "base")
                        return response.status, await response.json(content_type=None)
                    said = f"{response.status}: {(await response.text())[:300]}"
                    if response.status in (401, 403) or (response.status == 404 and tally is None):
                        raise UpstreamError(f"{url} answers {said}")
                    if response.status not in (429, 502, 503, 504):
                        reason = "rejected" if response.status < 500 else "server_error"
                        break
            except TimeoutError:
                raise ServerFault(
                    f"{url} did not answer within {self._settings.request_seconds:g} s", "request_timeout"
                ) from None
            except aiohttp.ClientError as error:
                said, reason = f"{type(error).__name__} {error}", "server_down"
        raise ServerFault(f"{url} answers {said}", reason)


def _messages_of(seen: Observation) -> list[Json]:
    results = [{"role": "tool", "tool_call_id": name, "content": text} for name, text in seen.tool_results.items()]
    return [*results, {"role": "user", "content": seen.text}] if seen.text or not results else results
