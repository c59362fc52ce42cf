"""Speaks OpenEnv's protocol: a client of an environment server, and a server for our environments.

Messages over the WebSocket `/ws`, as OpenEnv 0.3 sends them: `{"type": "reset", "data": {"seed", "episode_id", ...}}`
and `{"type": "step", "data": ACTION}` are answered by `{"type": "observation", "data": {"observation", "reward",
"done"}}` or `{"type": "error", "data": {"message", "code"}}`. One connection is one episode at a time.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
from aiohttp import web

from afterword.environments.adapters import parity_panel
from afterword.environments.protocol import (
    TEXT_LIMIT,
    AgentAction,
    Environment,
    EnvironmentFault,
    EnvironmentSpec,
    EnvTask,
    Observation,
    StepResult,
    cut,
    cut_observation,
)
from afterword.errors import ConfigError
from afterword.records import Json
from afterword.sampling.urls import is_loopback

_MESSAGE_BYTES = 16 << 20


class OpenEnvClient:
    """An environment of an OpenEnv server.

    `task` and `text` are sent as OpenEnv's own fields; an observation without a `text` is shown as its JSON.
    """

    def __init__(self, url: str, *, seconds: float = 30.0, action_field: str = "text") -> None:
        """`action_field`: the name of the text in the server's action schema ("message" for its echo environment)."""
        self._url = url.rstrip("/") + "/ws"
        self._seconds, self._field = seconds, action_field
        self._runner, self._closed = asyncio.Runner(), False
        self._session: aiohttp.ClientSession | None = None
        self._link: aiohttp.ClientWebSocketResponse | None = None

    def reset(self, task: EnvTask, seed: int) -> Observation:
        """Begins an episode; the task's own fields travel beside `seed` and `episode_id`."""
        data = {"seed": seed, "episode_id": task.id, "task": task.to_dict(), **task.data}
        return _observed(self._exchange({"type": "reset", "data": data}))

    def step(self, action: AgentAction) -> StepResult:
        """Sends the action."""
        data: Json = {self._field: action.text}
        if action.tool_calls:
            data["tool_calls"] = list(action.tool_calls)
        found = self._exchange({"type": "step", "data": data})
        reward = found.get("reward")
        observation = found.get("observation")
        info = observation.get("metadata") or {} if isinstance(observation, dict) else {}
        return StepResult(
            _observed(found), None if reward is None else float(reward), bool(found.get("done")),
            info if isinstance(info, dict) else {},
        )  # fmt: skip

    def close(self) -> None:
        """Ends the connection."""
        if not self._closed:
            self._closed = True
            self._runner.run(self._disconnect())
            self._runner.close()

    def _exchange(self, message: Json) -> Json:
        try:
            return self._runner.run(asyncio.wait_for(self._ask(message), self._seconds))
        except TimeoutError:
            self._runner.run(self._disconnect())
            raise EnvironmentFault(
                f"the environment at {self._url} did not answer within {self._seconds:g} s", "environment_timeout"
            ) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self._runner.run(self._disconnect())
            raise EnvironmentFault(
                f"no environment answers at {self._url}: {type(error).__name__} {error}", "environment_down"
            ) from None

    async def _ask(self, message: Json) -> Json:
        if self._link is None or self._link.closed:
            await self._disconnect()
            # A proxy in the environment is not for this machine.
            self._session = aiohttp.ClientSession(trust_env=not is_loopback(self._host()))
            self._link = await self._session.ws_connect(
                self._url, max_msg_size=_MESSAGE_BYTES, timeout=aiohttp.ClientWSTimeout(ws_close=0.5)
            )
        await self._link.send_json(message)
        got = await self._link.receive()
        if got.type is not aiohttp.WSMsgType.TEXT:
            raise aiohttp.ClientConnectionError(f"the server ended the connection ({got.type.name.lower()})")
        found = json.loads(got.data)
        data = found.get("data") if isinstance(found, dict) else None
        if not isinstance(data, dict):
            raise ValueError(f"its answer is {cut(got.data, 100)!r}")
        if found.get("type") == "error":
            raise EnvironmentFault(
                f"the environment at {self._url} reports: {cut(str(data.get('message')), 500)}",
                str(data.get("code") or "environment_error").lower(),
            )
        return data

    def _host(self) -> str | None:
        from urllib.parse import urlsplit

        return urlsplit(self._url).hostname

    async def _disconnect(self) -> None:
        session, link, self._session, self._link = self._session, self._link, None, None
        if link is not None:
            await link.close()
        if session is not None:
            await session.close()


def _observed(data: Json) -> Observation:
    found = data.get("observation")
    if isinstance(found, dict):
        if "text" in found:
            return cut_observation(Observation.from_dict(found))
        shown = {name: value for name, value in found.items() if name not in ("reward", "done", "metadata")}
        text = shown.get("message") or shown.get("content") or json.dumps(shown, ensure_ascii=False)
        return Observation(cut(str(text), TEXT_LIMIT))
    return Observation(cut("" if found is None else str(found), TEXT_LIMIT))


def openenv_spec(name: str) -> EnvironmentSpec:
    """`openenv:URL` or `openenv:URL#FIELD`, the field of the action that holds the agent's text."""
    url, _, field = name.partition(":")[2].partition("#")
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{url!r} is no address of a server: write openenv:http://HOST:PORT", param="environment")
    return EnvironmentSpec(
        name, f"the environment at {url}", lambda: OpenEnvClient(url, action_field=field or "text"),
        lambda split: parity_panel(name, split), 20, 256,
    )  # fmt: skip


def environment_app(make: Callable[[], Environment], panel: Callable[[str], EnvTask | None]) -> web.Application:
    """Serves an environment to OpenEnv clients: `/ws` and `/health`.

    Args:
        make: Makes the environment of a connection.
        panel: Gives the task of an id; None for an unknown one.
    """

    async def health(request: web.Request) -> web.Response:
        return web.json_response({"status": "healthy"})

    async def episodes(request: web.Request) -> web.WebSocketResponse:
        link = web.WebSocketResponse(max_msg_size=_MESSAGE_BYTES)
        await link.prepare(request)
        environment, loop = make(), asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="environment") as thread:
            try:
                async for message in link:
                    if message.type is not aiohttp.WSMsgType.TEXT:
                        break
                    answer = await loop.run_in_executor(thread, _reply, environment, panel, message.data)
                    if answer is None:
                        break
                    await link.send_json(answer)
            finally:
                await loop.run_in_executor(thread, environment.close)
        return link

    app = web.Application()
    app.add_routes([web.get("/health", health), web.get("/ws", episodes)])
    return app


def _reply(environment: Environment, panel: Callable[[str], EnvTask | None], raw: str) -> Json | None:
    try:
        message: Any = json.loads(raw)
        data = message.get("data") or {}
        if message["type"] == "close":
            return None
        if message["type"] == "reset":
            task = panel(str(data.get("episode_id", "")))
            if task is None:
                return _wrong(f"there is no task {data.get('episode_id')!r:.80}", "UNKNOWN_TASK")
            seen = environment.reset(task, int(data.get("seed") or 0))
            return _said_of(seen, None, False, {})
        if message["type"] == "step":
            result = environment.step(AgentAction(str(data["text"]), tuple(data.get("tool_calls") or ())))
            return _said_of(*result)
        return _wrong(f"the message type {message['type']!r:.40} is unknown: use reset, step or close", "UNKNOWN_TYPE")
    except EnvironmentFault as fault:
        return _wrong(fault.message, fault.reason)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return _wrong(f"the message is invalid: {type(error).__name__} {error}", "INVALID_MESSAGE")


def _said_of(observation: Observation, reward: float | None, done: bool, info: Json) -> Json:
    seen = cut_observation(observation).to_dict() | {"metadata": info}
    return {"type": "observation", "data": {"observation": seen, "reward": reward, "done": done}}


def _wrong(message: str, code: str) -> Json:
    return {"type": "error", "data": {"message": message, "code": code}}
