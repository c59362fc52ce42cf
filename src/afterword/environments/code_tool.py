"""Runs a program in a fresh interpreter with limits, for tools that execute an agent's code.

Limits: wall time, processor time, memory, size of files, output. The program sees an empty folder of its own and no
environment variables. It is no sandbox against an attacker: it can reach the network and read what its user can read.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

from afterword.environments.protocol import TEXT_LIMIT

_LAUNCH = """
import sys
seconds, memory, size = map(int, sys.argv[1:4])
try:
    import resource
    for what, most in (("CPU", seconds), ("AS", memory), ("FSIZE", size), ("CORE", 0)):
        resource.setrlimit(getattr(resource, "RLIMIT_" + what), (most, most))
except ImportError:
    pass
text = sys.stdin.read()
sys.argv = ["program"]
exec(compile(text, "program", "exec"), {"__name__": "__main__"})
"""
_FILE_BYTES = 16 << 20
_DRAIN_BYTES = 64 << 20
"""A program that prints more is ended."""


@dataclass(frozen=True, slots=True)
class CodeResult:
    """What a program came to."""

    exit_code: int
    """Negative: the signal that ended it."""
    output: str
    """stdout and stderr in order, cut at the limit with a note."""
    reason: str | None = None
    """"timeout" or "output_limit" where a limit of ours ended it."""


def run_code(code: str, *, seconds: float = 5.0, memory: int = 1 << 30, output: int = TEXT_LIMIT // 10) -> CodeResult:
    """Runs a Python program to its end or to a limit.

    Args:
        code: The program.
        seconds: Wall time; its processor time is bounded by the next whole second.
        memory: Bytes of address space (Linux).
        output: Bytes of the output that are kept.
    """
    with tempfile.TemporaryDirectory(prefix="afterword-code-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _LAUNCH, str(int(seconds) + 1), str(memory), str(_FILE_BYTES)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder,
            env={"PATH": os.defpath, "LANG": "C.UTF-8"}, start_new_session=True,
        )  # fmt: skip
        try:
            return _watched(process, code, time.monotonic() + seconds, output)
        finally:
            # Its children, too: they share its session and hold the pipe open.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()


def _watched(process: subprocess.Popen[bytes], code: str, end: float, most: int) -> CodeResult:
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(code.encode("utf-8", "replace"))
        process.stdin.close()
    kept, total, reason = bytearray(), 0, None
    os.set_blocking(process.stdout.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            left = end - time.monotonic()
            if left <= 0:
                reason = "timeout"
                break
            if not selector.select(left):
                continue
            data = os.read(process.stdout.fileno(), 1 << 16)
            if not data:
                break
            total += len(data)
            kept += data[: max(0, most - len(kept))]
            if total > _DRAIN_BYTES:
                reason = "output_limit"
                break
    if reason is None:
        try:
            process.wait(max(0.05, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            reason = "timeout"
    if reason is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    code_found = process.wait()
    text = kept.decode("utf-8", "replace")
    if total > len(kept):
        text += f"\n[{total - len(kept)} more bytes were cut]"
    return CodeResult(code_found, text, reason)
