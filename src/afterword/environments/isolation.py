"""Runs an environment in a process of its own: a fault, a hang or a flood of output ends that process alone.

The child is a fresh interpreter (`python -m afterword.environments.child NAME`); both sides exchange one JSON line a
call over a socket of their own, so that what the environment prints cannot be read as an answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

from afterword.environments.protocol import AgentAction, EnvironmentFault, EnvTask, Observation, StepResult
from afterword.records import Json

MEMORY = 4 << 30
"""Bytes of address space of a child (Linux)."""
_LINE_BYTES = 4 << 20
"""Size of one answer; observations are cut in the child, long before."""
_TAIL = 2000


class IsolatedEnvironment:
    """An environment of another process, by its name."""

    def __init__(self, name: str, *, seconds: float = 30.0, memory: int = MEMORY) -> None:
        """`seconds`: limit of one call; the first one includes the start of the interpreter."""
        self._name, self._seconds, self._memory = name, seconds, memory
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._buffer = b""
        self._tail = bytearray()
        self._printed = 0

    @property
    def printed(self) -> int:
        """Bytes that the environment printed; they are dropped but for the last ones."""
        return self._printed

    def reset(self, task: EnvTask, seed: int) -> Observation:
        """See `Environment.reset`."""
        return Observation.from_dict(self._call({"call": "reset", "task": task.to_dict(), "seed": seed}))

    def step(self, action: AgentAction) -> StepResult:
        """See `Environment.step`."""
        found = self._call({"call": "step", "action": action.to_dict()})
        info = found["info"] | ({"printed_bytes": self._printed} if self._printed else {})
        return StepResult(Observation.from_dict(found["observation"]), found["reward"], found["done"], info)

    def end_process(self) -> None:
        """Kills the process and its children; from any thread, also while a call waits for them."""
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Ends the process and its children."""
        self.end_process()
        process, self._process = self._process, None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if process is not None:
            process.wait()

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "afterword.environments.child", self._name, str(theirs.fileno()),
                 str(self._memory)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip
        threading.Thread(target=self._drain, args=(self._process,), name="environment-output", daemon=True).start()
        self._socket, self._buffer = ours, b""
        return ours

    def _drain(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as pipe:
            while data := os.read(pipe.fileno(), 1 << 16):
                self._printed += len(data)
                self._tail = (self._tail + data)[-_TAIL:]

    def _call(self, message: Json) -> Any:
        end = time.monotonic() + self._seconds
        link = self._socket or self._start()
        try:
            link.settimeout(self._seconds)
            link.sendall(json.dumps(message).encode() + b"\n")
            found = json.loads(self._line(link, end))
        except TimeoutError:
            self.close()
            raise EnvironmentFault(
                f"the environment {self._name!r} did not answer within {self._seconds:g} s", "environment_timeout"
            ) from None
        except (OSError, ValueError) as error:
            code = None if self._process is None else self._process.poll()
            said = self._tail.decode("utf-8", "replace").strip()
            self.close()
            raise EnvironmentFault(
                f"the process of the environment {self._name!r} broke off (exit code {code}): {said or error}",
                "environment_down",
            ) from None
        if "fault" in found:
            raise EnvironmentFault(found["fault"], found["reason"])
        return found["value"]

    def _line(self, link: socket.socket, end: float) -> bytes:
        while b"\n" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError
            link.settimeout(left)
            data = link.recv(1 << 16)
            if not data:
                raise ConnectionError("the connection ended")
            self._buffer += data
            if len(self._buffer) > _LINE_BYTES:
                raise ValueError(f"its answer is longer than {_LINE_BYTES} bytes")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line
