"""Write the reference of the command line (docs/cli.md) from its parser.

python dev/cli_page.py
"""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path

from afterword.cli.entry import parser

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
HEAD = """# Command line

<!-- Written by dev/cli_page.py from the parser: change the help there. -->

`afterword COMMAND --help` prints the same. Without a command `afterword` shows what to do next from the state of the
data directory. Exit codes: 0 done, 1 failed, 2 wrong use, 3 the gate refused, 4 nothing to do.

Every command takes these:

"""


def page() -> str:
    """The whole page."""
    os.environ["COLUMNS"] = "100"
    root = parser()
    commands = _below(root)
    shared = {"--dir", "--json", "--quiet", "--config", "--set", "--help"}
    any_command = next(iter(commands.values()))
    parts = [HEAD, _table([one for one in any_command._actions if one.option_strings and _name(one) in shared])]
    for name, command in commands.items():
        parts.append(f"\n## {name}\n\n{_prose(command.description)}\n".replace("\\\n", "\n"))
        parts.append(_body(command, shared))
        for verb, below in _below(command).items():
            parts.append(f"\n### {name} {verb}\n\n{_prose(below.description)}\n".replace("\\\n", "\n"))
            parts.append(_body(below, shared))
    return "".join(parts)


def _below(command: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _body(command: argparse.ArgumentParser, shared: set[str]) -> str:
    own = [one for one in _actions(command) if not one.option_strings or _name(one) not in shared]
    return f"\n{_table(own)}".replace("\\\n", "\n") if own else ""


def _actions(command: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in command._actions:
        hidden = action.help == argparse.SUPPRESS or isinstance(action, argparse._SubParsersAction)
        if not hidden:
            yield action


def _name(action: argparse.Action) -> str:
    return max(action.option_strings, key=len)


def _table(actions: list[argparse.Action]) -> str:
    rows = "".join(f"| {_flag(one)} | {_cell(_help(one))} |\n" for one in actions)
    return f"| | |\n|---|---|\n{rows}".replace("\\\n", "\n")


def _flag(action: argparse.Action) -> str:
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else None)
    if isinstance(value, tuple):
        value = " ".join(value)
    if not action.option_strings:
        shown = value or action.dest
        shown = f"[{shown} ...]" if action.nargs in ("*", "+") else f"[{shown}]" if action.nargs == "?" else shown
        return f"`{_cell(shown)}`"
    takes = action.nargs != 0
    shown = value or action.dest.rpartition(".")[2].upper()
    flags = ", ".join(f"`{flag}`" for flag in action.option_strings)
    return flags if not takes else f"{flags} `{_cell(f'[{shown}]' if action.nargs == '?' else shown)}`"


def _help(action: argparse.Action) -> str:
    text = " ".join((action.help or "").split()) % {**vars(action), "prog": "afterword"}
    shown = action.default not in (None, False, argparse.SUPPRESS) and "default" not in text and action.nargs != 0
    return f"{text} (default {action.default})".strip() if shown else text


def _prose(text: str | None) -> str:
    return textwrap.fill(" ".join((text or "").replace("%%", "%").split()), 118, break_on_hyphens=False)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
