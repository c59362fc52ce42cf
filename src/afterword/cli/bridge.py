"""`afterword bridge NAME`: what users did in a front end becomes feedback on the answers that were served to it."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from rich.markup import escape

from afterword.cli.context import CommandContext
from afterword.errors import UsageError
from afterword.feedback.bridges.bridge import BridgeSource, BridgeSummary, run_bridge
from afterword.feedback.bridges.http import BridgeError
from afterword.feedback.bridges.registry import BRIDGES, URLS
from afterword.store import Store

TOKEN = "AFTERWORD_BRIDGE_TOKEN"


def register(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    bridge = commands.add_parser("bridge", parents=[common])
    bridge.add_argument("name", choices=tuple(BRIDGES), metavar="NAME", help=", ".join(BRIDGES))
    bridge.add_argument("--url", metavar="URL", help="its address; default: " + ", ".join(URLS.values()))
    bridge.add_argument(
        "--token-file", type=Path, metavar="FILE", help=f"file with its API token; default: the variable {TOKEN}"
    )
    bridge.add_argument("--watch", type=float, metavar="SECONDS", help="fetch again every so many seconds")
    bridge.add_argument("--again", action="store_true", help="read everything once more; nothing is stored twice")
    bridge.set_defaults(run=run_command)


def run_command(context: CommandContext) -> int:
    """Fetch once, or again and again until stopped."""
    args = context.args
    if args.watch is not None and not args.watch > 0:
        raise UsageError(f"--watch {args.watch} must be more than 0 seconds.", param="watch")
    source = BRIDGES[args.name](args.url or URLS[args.name], _token(args.token_file))
    with context.open_store(create=True) as store:
        if args.watch is None:
            _show(context, run_bridge(store, source, again=args.again))
            return 0
        _watch(context, store, source)
    return 0


def _watch(context: CommandContext, store: Store, source: BridgeSource) -> None:
    again = context.args.again
    while True:
        try:
            summary = run_bridge(store, source, again=again)
            again = False
            if summary.stored or summary.rejected or summary.retracted:
                _show(context, summary)
        except BridgeError as error:  # it may come back; a rejected token does not
            context.say(f"[yellow]bridge {source.name}:[/] {escape(error.message)}")
        time.sleep(context.args.watch)


def _token(file: Path | None) -> str:
    if file is None:
        token = os.environ.get(TOKEN, "")
        where = f"the variable {TOKEN}"
    else:
        try:
            token = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--token-file {file} cannot be read: {error}.", param="token_file") from error
        where = str(file)
    if not token.strip():
        raise UsageError(f"{where} holds no API token: create one in the application and put it there.", param="token")
    return token.strip()


def _show(context: CommandContext, summary: BridgeSummary) -> None:
    if context.json:
        context.emit(summary.to_dict())
        return
    rows = summary.to_dict()
    for name in ("left_out", "rejected"):
        rows[name] = ", ".join(f"{count} {reason}" for reason, count in rows[name].items())
    rows["examples"] = "; ".join(rows["examples"])
    context.table("", ("bridge", summary.bridge), [
        (name, value) for name, value in rows.items() if name != "bridge" and (value or name in ("rows", "stored"))
    ])  # fmt: skip
    if summary.stored:
        context.say("Next: `afterword collect` turns what users did into interactions.")
