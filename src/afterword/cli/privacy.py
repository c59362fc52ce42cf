"""`afterword forget`: erase a user, look at what would be erased, or check the report of an erasure."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.markup import escape

from afterword.cli.context import Context
from afterword.errors import NothingToDo, UsageError
from afterword.forget import as_text, check, forget_user, held_of, read_report


def register(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    forget = commands.add_parser("forget", parents=[common], help="erase a user and everything derived")
    forget.add_argument("--user", metavar="U", help="as the client named them")
    forget.add_argument("--dry-run", action="store_true", help="only say what is held")
    forget.add_argument(
        "--delete-adapters", action="store_true", help="delete adapters that learned from them, instead of quarantine"
    )
    forget.add_argument("--check", type=Path, metavar="REPORT", help="is all that this report says still so?")
    forget.set_defaults(run=run_forget)


def run_forget(context: Context) -> int:
    """Erase, look, or check; exit 1 when bytes are left or a check fails."""
    args = context.args
    if args.check is not None:
        return _check(context, args.check, args.user)
    if not args.user:
        raise UsageError("name the user to forget: `afterword forget --user U`.", param="user")
    with context.open_store() as store:
        if args.dry_run:
            return _held(context, held_of(store, args.user))
        report = forget_user(
            store, args.user, delete_adapters=args.delete_adapters, note=lambda text: context.say(f"[dim]{text}[/]")
        )
        written = store.path.parent / "forget" / f"{report['erasure']}.json"
    if context.json:
        context.emit(report)
    else:
        context.out.print(escape(as_text(report)), end="")
    context.say(f"report written to {written}")
    return 0 if report["clean"] else 1


def _held(context: Context, counts: dict[str, int]) -> int:
    if not any(counts.values()):
        raise NothingToDo(f"nothing is held of the user {context.args.user!r}.")
    if context.json:
        context.emit(counts)
    else:
        context.table("would be erased", ("what", "rows"), counts.items())
    return 0


def _check(context: Context, path: Path, user: str | None) -> int:
    with context.open_store() as store:
        checks = check(store, read_report(path), user)
    if context.json:
        context.emit({"checks": checks})
    else:
        for one in checks:
            word = "[green]ok[/]  " if one["ok"] else "[red]FAIL[/]"
            context.out.print(f"{word} {one['check']:<9} {escape(one['detail'])}")
    return 0 if all(one["ok"] for one in checks) else 1
