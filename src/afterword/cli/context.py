"""Shared by all commands: data directory, settings, printing.

Data goes to stdout (JSON with `--json`, and then nothing else), progress and logs to stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from afterword.chat.printable import printable
from afterword.config import BUILT_IN, Config, PrivacyConfig, StoreConfig, resolve
from afterword.errors import UsageError
from afterword.feedback.select.review_queue import ReviewSettings
from afterword.feedback.select.select import SelectSettings
from afterword.feedback.settings import CollectSettings
from afterword.release.gate import GateThresholds
from afterword.release.settings import CanarySettings, DriftSettings
from afterword.store import Store

SECTIONS: dict[str, type] = {
    **BUILT_IN,
    "collect": CollectSettings,
    "select": SelectSettings,
    "review": ReviewSettings,
    "gate": GateThresholds,
    "canary": CanarySettings,
    "drift": DriftSettings,
}
DEFAULT_DIR = "./afterword-data"


@dataclass
class CommandContext:
    """One run of the command line."""

    args: argparse.Namespace
    dir: Path
    json: bool
    quiet: bool

    @classmethod
    def of(cls, args: argparse.Namespace) -> CommandContext:
        """Global flags, wherever they stood; --dir > AFTERWORD_HOME > ./afterword-data."""
        where = getattr(args, "dir", None) or os.environ.get("AFTERWORD_HOME") or DEFAULT_DIR
        return cls(args, Path(where).expanduser(), getattr(args, "json", False), getattr(args, "quiet", False))

    @cached_property
    def out(self) -> Console:
        """For people: tables and sentences on stdout."""
        # Nobody looks at a pipe: what is copied or cut from there has one line a row.
        return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 4096)

    @cached_property
    def err(self) -> Console:
        """For progress and logs: stderr, silent with --quiet."""
        return Console(stderr=True, highlight=False, quiet=self.quiet, soft_wrap=True)

    @cached_property
    def config(self) -> Config:
        """Settings of this run: `afterword.toml` in the data directory (or --config), environment, flags."""
        given = getattr(self.args, "config_file", None) or os.environ.get("AFTERWORD_CONFIG")
        file = Path(given) if given else self.dir / "afterword.toml"
        return resolve(SECTIONS, file=file if given or file.exists() else None, environ=os.environ, flags=self._flags())

    def _flags(self) -> dict[str, tuple[Any, str]]:
        flags: dict[str, tuple[Any, str]] = {}
        for pair in getattr(self.args, "settings", None) or []:
            key, equals, value = pair.partition("=")
            if not equals:
                raise UsageError(f"--set {pair!r} has no '='. Write --set section.key=value.")
            flags[key.strip()] = (value.strip(), "--set")
        for key, value in vars(self.args).items():
            if "." in key and value is not None:
                flags[key] = (value, f"--{key.split('.')[1].replace('_', '-')}")
        return flags

    def open_store(self, *, create: bool = False) -> Store:
        """The database of the data directory; reading commands refuse to make an empty one by accident."""
        path = self.dir / "afterword.db"
        if not create and not path.exists():
            raise UsageError(
                f"there is no Afterword data in {str(self.dir)!r}. Start with `afterword serve` or "
                "`afterword import FILE`, or name another place with --dir."
            )
        if not create:
            artifacts = None
            with suppress(UsageError):  # what is wrong with the settings must not hide what is stored
                artifacts = self.config.get(StoreConfig).artifacts
            return Store.open(path, artifacts=artifacts)
        artifacts = self.config.get(StoreConfig).artifacts
        from afterword.chat.private import redactor  # loads its libraries

        return Store.open(path, redactor(self.config.get(PrivacyConfig).redact_stored), artifacts)

    def emit(self, data: Any) -> None:
        """JSON on stdout, at once: who reads `serve --json` from a pipe waits for it while the server runs."""
        sys.stdout.write(orjson.dumps(data, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode() + "\n")
        sys.stdout.flush()

    def say(self, text: str) -> None:
        """A sentence on stderr (rich markup)."""
        self.err.print(text)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """A table on stdout."""
        table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold", no_wrap=column == "id")
        for row in rows:
            table.add_row(*("" if cell is None else printable(str(cell)) for cell in row))
        self.out.print(table)
