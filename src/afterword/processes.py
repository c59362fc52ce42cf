"""Fresh interpreters for work of our own: how they are started.

Owns the command line and the environment of a child process. Never forks without executing a new program: a library
that has started threads (torch's OpenMP pool, tokenizers' rayon pool) leaves a forked child waiting for threads that
do not exist there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def python_command(module: str, *arguments: str) -> list[str]:
    """The command line of `python -m module` in this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def python_environment() -> dict[str, str]:
    """Our environment, with this package importable wherever the child's working directory is."""
    package = str(Path(__file__).parents[1])
    known = filter(None, (package, os.environ.get("PYTHONPATH")))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(known)}
