"""Runs `afterword completion`: the lines that a shell reads to complete this command line.

The shell calls `afterword` with `_ARGCOMPLETE` set; `complete` answers from the parser itself, so that every command
and option is known. Only the modules of the commands on the line are loaded.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from afterword.cli.context import CommandContext

SHELLS = ("bash", "zsh", "fish")


def register(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    completion = commands.add_parser(
        "completion", parents=[common],
        description="Print the completion of commands for bash, zsh or fish. For bash, put "
        '`eval "$(afterword completion bash)"` into ~/.bashrc; for zsh the same with zsh into ~/.zshrc, after '
        "`compinit`; for fish run `afterword completion fish > ~/.config/fish/completions/afterword.fish`.",
    )  # fmt: skip
    completion.add_argument("shell", choices=SHELLS, help="the shell that reads it")
    completion.set_defaults(run=run_completion)


def run_completion(context: CommandContext) -> int:
    """Print the shell's lines."""
    from argcomplete.shell_integration import shellcode

    lines = shellcode(["afterword"], shell=context.args.shell)
    if context.json:
        context.emit({"shell": context.args.shell, "code": lines})
    else:
        sys.stdout.write(lines + "\n")  # not through rich, which would read its brackets
    return 0


def complete(parser_of: Callable[[list[str]], argparse.ArgumentParser]) -> None:
    """Answer the shell that asked, and end the process.

    Args:
        parser_of: Makes the parser for the words of a command line.
    """
    import argcomplete

    words = os.environ.get("COMP_LINE", "").split()[1:]
    parser = parser_of(words)
    for action in _actions(parser):
        if "--set" in action.option_strings:
            action.completer = _settings  # type: ignore[attr-defined]
        elif "--dir" in action.option_strings:
            action.completer = argcomplete.DirectoriesCompleter()  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser)


def _settings(prefix: str, **_: Any) -> list[str]:
    """Every `section.key=` that begins so."""
    import dataclasses

    from afterword.cli.context import SECTIONS

    keys = (f"{name}.{field.name}=" for name, kind in SECTIONS.items() for field in dataclasses.fields(kind))
    return [key for key in keys if key.startswith(prefix)]


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    found: list[argparse.Action] = []
    for action in parser._actions:
        found.append(action)
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                found += _actions(command)
    return found
