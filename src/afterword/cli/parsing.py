"""How the command line speaks of a command or a flag that it does not know: in a sentence, with the nearest one."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterator
from typing import Any, NoReturn

_CHOICE = re.compile(r"argument (?P<what>.+?): invalid choice: '(?P<given>.*)' \(choose from (?P<known>.*)\)")
_UNKNOWN = re.compile(r"unrecognized arguments: (?P<given>\S+)")
_MISSING = re.compile(r"the following arguments are required: (?P<names>.+)")


class Parser(argparse.ArgumentParser):
    """argparse with a sentence in place of its usage block. Exit code 2, as everywhere for what was typed wrong."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse's, but what a command does not understand is told by that command and not by the program: its
        own flags are the near ones."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return found, rest

    def error(self, message: str) -> NoReturn:
        sentence = self._sentence(message)
        end = "" if sentence.endswith("?") else "."
        self.exit(2, f"afterword: {sentence}{end} `{self.prog} --help` shows what there is.\n")

    def _sentence(self, message: str) -> str:
        if (found := _CHOICE.match(message)) is not None:
            known = [name.strip().strip("'") for name in found["known"].split(",")]  # quoted before Python 3.12.8
            what = "command" if found["what"] in ("COMMAND", "verb") or "|" in found["what"] else found["what"]
            near = _near(found["given"], known)
            return f"there is no {what} {found['given']!r}{near or ': it is one of ' + ', '.join(known)}"
        if (found := _UNKNOWN.match(message)) is not None:
            near = _near(found["given"].split("=")[0], sorted(set(_flags(self)))) if found["given"][:1] == "-" else ""
            return f"{found['given']!r} is not understood here{near}"
        if (found := _MISSING.match(message)) is not None:
            return f"{self.prog.removeprefix('afterword ')!r} needs {found['names']}"
        return message


def _near(given: str, known: list[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1)
    return f": did you mean {close[0]!r}?" if close else ""


def _flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Every flag of the parser and of all commands below it."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _flags(command)
