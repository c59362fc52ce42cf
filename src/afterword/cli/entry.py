"""Parse, run one command, turn every outcome into an exit code.

0 done, 1 failed, 2 usage or configuration, 3 the gate said no, 4 nothing to do, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.markup import escape

from afterword import __version__
from afterword.cli import admin, data, privacy, recipes, releases, review, run, stages
from afterword.cli.context import Context
from afterword.cli.extras import missing_package
from afterword.cli.follow import following
from afterword.cli.parsing import Parser
from afterword.errors import AfterwordError, error_response
from afterword.store.files import refused


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    shared.add_argument("--dir", metavar="DIR", help="data directory (AFTERWORD_HOME, default ./afterword-data)")
    shared.add_argument("--json", action="store_true", help="print data as JSON on stdout, nothing else there")
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
        epilog="Start with `afterword demo` (the whole loop in minutes) or `afterword serve`.",
    )
    root.add_argument("--version", action="version", version=f"afterword {__version__}")
    commands = root.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (run, data, stages, releases, recipes, review, admin, privacy):
        module.register(commands, common)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the return value is the exit code."""
    args = parser().parse_args(argv)
    context = Context.of(args)
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
    except Exception as error:  # the outermost boundary: what the operating system refuses is no fault of ours
        told = refused(error, (context.dir, _cache(), Path.cwd()))
        if told is None:
            raise
        return _fail(context, told)


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


def _fail(context: Context, error: AfterwordError) -> int:
    try:
        if context.json:
            context.emit(error_response(error)[1])
        sys.stdout.flush()
    except OSError:  # stdout itself is what cannot be written
        _drop_stdout()
    # Not through `context.err`: an error is shown even with --quiet.
    colour = {3: "yellow", 4: "yellow"}.get(error.exit_code, "red")
    context.err.quiet = False
    context.err.print(f"[{colour}]afterword:[/] {escape(error.message)}")
    return error.exit_code
