"""Runs the code blocks of a documentation page as a reader would: in order, in one empty folder, with one server.

A page's blocks are fenced as `bash` or `python`; a `text` block behind one is what it prints. In it `…` stands for
anything, and lines that the command prints besides are allowed. A bash block with the line `afterword serve` is left
running until the page ends. A comment `<!-- exit 3 -->` before a block allows that exit code beside 0.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
PORT = 8400
SECONDS = 30.0
"""What a reader waits for one block on a machine of their own."""
PATIENCE = 4.0
"""A busy machine may take so many times longer: its limit is a guard against a block that never ends."""
LONG = ("afterword cycle", "afterword demo")
LONG_SECONDS = 600.0
MADE = "make "
"""Lines that begin so are targets of the Makefile: `.ci/run` runs those."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_EXIT = re.compile(r"<!-- exit (\d+) -->\s*\Z")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: Path
    line: int
    language: str
    text: str
    codes: tuple[int, ...] = (0,)
    shows: str = ""
    """The `text` block behind it."""

    @property
    def place(self) -> str:
        """Where it stands."""
        return f"{self.page.name}:{self.line}"

    @property
    def serves(self) -> bool:
        """Does it start the server?"""
        return self.language == "bash" and re.search(r"^afterword serve\b", self.text, re.MULTILINE) is not None

    @property
    def long(self) -> bool:
        """May it take minutes?"""
        return any(word in self.text for word in LONG)


def blocks(page: Path) -> list[Block]:
    """The `bash` and `python` blocks of a page, in order."""
    text = page.read_text("utf-8")
    found: list[Block] = []
    for match in _FENCE.finditer(text):
        language, body = match.groups()
        line = text.count("\n", 0, match.start()) + 1
        if language in ("bash", "python"):
            code = _EXIT.search(text[: match.start()])
            codes = (0, int(code[1])) if code else (0,)
            found.append(Block(page, line, language, body, codes))
        elif language == "text" and found:
            found[-1] = Block(**{**vars(found[-1]), "shows": body})
    return found


def commands(block: Block) -> Iterator[str]:
    """The command lines of a bash block, without comments and empty lines."""
    if block.language == "bash":
        for line in block.text.replace("\\\n", " ").splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                yield line.strip()


def missing(shows: str, printed: str) -> list[str]:
    """The shown lines that were not printed, in order; `…` stands for anything and white space is one space."""
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    absent, start = [], 0
    for shown in filter(None, (" ".join(line.split()) for line in shows.splitlines())):
        pattern = re.compile(".*".join(map(re.escape, shown.split("…"))) + r"\Z")
        at = next((i for i in range(start, len(lines)) if pattern.match(lines[i])), None)
        if at is None:
            absent.append(shown)
        else:
            start = at + 1
    return absent


@dataclass
class Reader:
    """Somebody who follows a page in a folder of their own. Use it as a context: the server ends with it."""

    folder: Path
    port: int = field(default_factory=lambda: PORT if _free(PORT) else _any_port())
    """8400 as the pages say; another one where that is taken on this machine."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Place of a block -> how long it took."""
    _server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Reader:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None and self._server.poll() is None:
            os.killpg(self._server.pid, signal.SIGTERM)
            self._server.wait(30)

    def follow(self, block: Block) -> str:
        """Run a block; what it printed. AssertionError for a wrong exit code, another output, or too slow a block."""
        limit = LONG_SECONDS if block.long else SECONDS
        started = time.monotonic()
        printed = self._serve(block, limit) if block.serves else self._run(block, limit)
        self.seconds[block.place] = took = time.monotonic() - started
        assert took <= limit or _busy(), f"{block.place} took {took:.0f} s, more than {limit:g} s:\n{block.text}"
        absent = missing(self._here(block.shows), printed)
        assert not absent, f"{block.place} does not print {absent}, but:\n{printed}"
        return printed

    def _environment(self) -> dict[str, str]:
        bin_folder = str(Path(sys.executable).parent)
        port = {} if self.port == PORT else {"AFTERWORD_SERVE_PORT": str(self.port)}
        return {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", **port}

    def _here(self, text: str) -> str:
        return text.replace(str(PORT), str(self.port))

    def _line(self, block: Block) -> list[str]:
        text = self._here(block.text)
        return ["bash", "-euo", "pipefail", "-c", text] if block.language == "bash" else [sys.executable, "-c", text]

    def _run(self, block: Block, limit: float) -> str:
        try:
            done = subprocess.run(
                self._line(block), cwd=self.folder, env=self._environment(), timeout=limit * PATIENCE, check=False,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"{block.place} took more than {limit * PATIENCE:g} s:\n{block.text}") from error
        printed = done.stdout.decode("utf-8", "replace")
        assert done.returncode in block.codes, f"{block.place} ended with {done.returncode}:\n{printed}"
        return printed

    def _serve(self, block: Block, limit: float) -> str:
        log = self.folder.parent / f"{self.folder.name}-serve.log"
        with log.open("wb") as sink:
            self._server = subprocess.Popen(
                self._line(block), cwd=self.folder, env=self._environment(), start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT,
            )  # fmt: skip
        end, said = time.monotonic() + limit * PATIENCE, ""
        while not _ready(self.port) or missing(self._here(block.shows), said):
            assert self._server.poll() is None, f"{block.place} ended with {self._server.returncode}:\n{said}"
            assert time.monotonic() < end, f"{block.place} is not ready after {limit * PATIENCE:g} s:\n{said}"
            time.sleep(0.1)
            said = log.read_text("utf-8", "replace")
        return said


def _busy() -> bool:
    """Is there other work than the reader's? The server alone keeps about every core busy."""
    if "READER_ALONE" in os.environ:  # `.ci/run` runs nothing beside the README: there 30 s are 30 s
        return False
    return os.getloadavg()[0] > (os.cpu_count() or 1) + 1


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=2) as answer:
            return int(answer.status) == 200
    except OSError:
        return False


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _any_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
