"""Parses the command line, runs one command and turns every outcome into an exit code.

0 done, 1 failed, 2 usage or configuration, 3 rejected by the gate, 4 nothing to do, 130 interrupted. Only the module of
the command is imported, so that `--help` is immediate.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from afterword import __version__
from afterword.errors import AfterwordError, error_response

if TYPE_CHECKING:
    from afterword.cli.context import CommandContext

COMMANDS = {
    "demo": ("demo", "run the whole loop with a simulated user, in minutes"),
    "serve": ("run", "run the gateway, and the embedded engine behind it"),
    "simulate": ("simulate", "let simulated users talk to a running server"),
    "import": ("data", "read conversations or events from files"),
    "bridge": ("bridge", "fetch what users did in a front end, by its API"),
    "learn": ("learn", "from files of conversations to a judged adapter, in one command"),
    "export": ("data", "write rows to a file, or everything stored of one user"),
    "turns": ("data", "list turns, or show one"),
    "agent": ("agent", "play episodes of an environment, compare versions on them"),
    "episodes": ("episodes", "list the runs of agents, or show one by turn"),
    "interactions": ("data", "list interactions, or show one"),
    "candidates": ("data", "list candidates, or show one"),
    "releases": ("data", "list releases, show or verify one"),
    "forget": ("data", "erase a user and everything derived from their data"),
    "collect": ("stages", "turn feedback into interactions and skips"),
    "measure": ("stages", "measure the model's signal under users' words"),
    "train": ("stages", "train a candidate adapter on new interactions"),
    "evaluate": ("stages", "compare a candidate with what is served, and decide"),
    "cycle": ("stages", "collect, train, evaluate, decide and publish"),
    "forecast": ("forecast", "predict the gain of a training before it runs"),
    "heatmap": ("stages", "show the hindsight advantage of each token of an answer"),
    "release": ("releases", "publish, promote or roll back; show what is served"),
    "recipes": ("recipes", "list the training recipes and their parts"),
    "review": ("review", "approve or reject queued interactions"),
    "status": ("status", "show counts, what is served and what runs now"),
    "doctor": ("doctor", "check the installation and the data directory"),
    "config": ("admin", "show the resolved settings"),
    "keys": ("admin", "create, list and revoke API keys of the gateway"),
    "completion": ("completion", "print the completion of commands for bash, zsh or fish"),
}
"""Command -> (module of this room that runs it, help)."""


class _Commands:
    """Adds the subparsers of the modules that are loaded; each command's help comes from `COMMANDS`."""

    def __init__(self, subparsers: Any) -> None:
        self._subparsers = subparsers

    def add_parser(self, name: str, **options: Any) -> Any:
        """As argparse's; the description is the help unless another one is given."""
        text = COMMANDS[name][1]
        options.setdefault("description", f"{text[0].upper()}{text[1:]}.")
        return self._subparsers.add_parser(name, help=text, **options)


def parser(words: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """Make the parser of the command line.

    Args:
        words: The command line, to load only the modules of the commands that it names; None loads all.
    """
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    shared.add_argument("--dir", metavar="DIR", help="data directory (AFTERWORD_HOME, default ./afterword-data)")
    shared.add_argument("--json", action="store_true", help="print JSON on stdout and nothing else")
    shared.add_argument("--quiet", action="store_true", help="no progress and no logs on stderr")
    common = argparse.ArgumentParser(add_help=False, parents=[shared], argument_default=argparse.SUPPRESS)
    common.add_argument("--config", dest="config_file", metavar="FILE", help="settings (default DIR/afterword.toml)")
    common.add_argument(
        "--set", dest="settings", action="append", metavar="SECTION.KEY=VALUE", help="override one setting"
    )
    root = Parser(
        prog="afterword",
        parents=[shared],
        description="A deployed language model that learns from what its users do next.",
        epilog="Without a command, `afterword` shows what to do next. Start with `afterword demo` (the whole loop in "
        "minutes) or `afterword serve`.",
    )
    root.add_argument("--version", action="version", version=f"afterword {__version__}")
    commands = _Commands(root.add_subparsers(dest="command", metavar="COMMAND"))
    loaded = {module for name, (module, _) in COMMANDS.items() if words is None or name in words}
    for module in dict.fromkeys(module for module, _ in COMMANDS.values()):
        if module in loaded:
            importlib.import_module(f"afterword.cli.{module}").register(commands, common)
        else:
            for name in (name for name, (owner, _) in COMMANDS.items() if owner == module):
                commands.add_parser(name)
    return root


_CHOICE = re.compile(r"argument (?P<what>.+?): invalid choice: '(?P<given>.*)' \(choose from (?P<known>.*)\)")
_UNKNOWN = re.compile(r"unrecognized arguments: (?P<given>\S+)")
_MISSING = re.compile(r"the following arguments are required: (?P<names>.+)")


class Parser(argparse.ArgumentParser):
    """argparse with a sentence in place of its usage block. Exit code 2, as for all usage errors."""

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the return value is the exit code."""
    words = sys.argv[1:] if argv is None else argv
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what could come next
        from afterword.cli.completion import complete

        complete(parser)
    args = parser(words).parse_args(words)
    if args.command is None:
        from afterword.cli.guide import run_guide

        args.run = run_guide
    from afterword.cli.context import CommandContext
    from afterword.cli.extras import missing_package
    from afterword.cli.progress import following
    from afterword.store.files import file_system_error

    context = CommandContext.of(args)
    warnings.formatwarning = _format_warning
    try:
        with _terminable(), following(context):
            code = int(args.run(context) or 0)
        sys.stdout.flush()  # a full disk behind `> FILE` is told here, not by the interpreter at its end
        return code
    except AfterwordError as error:
        return _fail(context, error)
    except ModuleNotFoundError as error:
        explained = missing_package(error)
        if explained is None:
            raise
        return _fail(context, explained)
    except KeyboardInterrupt:
        context.say("interrupted")
        return 130
    except BrokenPipeError:  # the reader of our stdout went away, as `| head` does
        _drop_stdout()
        return 0
    except Exception as error:  # the outermost boundary: errors of the operating system get a remedy
        failure = file_system_error(error, (context.dir, _cache(), Path.cwd()))
        if failure is None:
            raise
        return _fail(context, failure)


_format_others = warnings.formatwarning


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format our own notes about old names as a sentence, without the place in the code."""
    if category is FutureWarning and Path(filename).is_relative_to(Path(__file__).parents[1]):
        return f"afterword: {message}\n"
    return _format_others(message, category, filename, lineno, line)


def _drop_stdout() -> None:
    """What waits to be printed goes nowhere, so that the interpreter does not complain about it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _cache() -> Path:
    return Path(os.environ.get("AFTERWORD_CACHE") or os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends a command like Ctrl-C: engines that it started end with it, and it says so (`serve` has a handler of
    its own once it is ready)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(context: CommandContext, error: AfterwordError) -> int:
    try:
        if context.json:
            context.emit(error_response(error)[1])
        sys.stdout.flush()
    except OSError:  # stdout itself is what cannot be written
        _drop_stdout()
    from rich.markup import escape

    # Not through `context.err`: an error is shown even with --quiet.
    colour = {3: "yellow", 4: "yellow"}.get(error.exit_code, "red")
    context.err.quiet = False
    context.err.print(f"[{colour}]afterword:[/] {escape(error.message)}")
    return error.exit_code
