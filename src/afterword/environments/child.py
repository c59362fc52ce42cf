"""Runs one environment for `isolation`: `python -m afterword.environments.child NAME FD MEMORY`."""

from __future__ import annotations

import json
import socket
import sys
from typing import Any

from afterword.environments.protocol import (
    AgentAction,
    Environment,
    EnvironmentFault,
    EnvTask,
    cut_observation,
)
from afterword.environments.registry import find_environment
from afterword.records import Json


def main() -> None:
    """Serves calls until the socket closes."""
    name, descriptor, memory = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    _limit(memory)
    environment: Environment | None = None
    with socket.socket(fileno=descriptor) as link, link.makefile("rb") as lines:
        for line in lines:
            try:
                environment = environment or find_environment(name).make()
                answer: Json = {"value": _answer(environment, json.loads(line))}
            except EnvironmentFault as error:
                answer = {"fault": error.message, "reason": error.reason}
            except Exception as error:  # noqa: BLE001  (foreign code: its fault is told to whoever plays)
                answer = {"fault": f"{type(error).__name__}: {error}"[:2000], "reason": "environment_error"}
            link.sendall(json.dumps(answer).encode() + b"\n")


def _limit(memory: int) -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def _answer(environment: Environment, message: Json) -> Any:
    if message["call"] == "reset":
        task = EnvTask(message["task"]["id"], message["task"]["data"])
        return cut_observation(environment.reset(task, message["seed"])).to_dict()
    action = AgentAction(message["action"]["text"], tuple(message["action"]["tool_calls"]))
    result = environment.step(action)
    return {
        "observation": cut_observation(result.observation).to_dict(), "reward": result.reward, "done": result.done,
        "info": result.info,
    }  # fmt: skip


if __name__ == "__main__":
    main()
