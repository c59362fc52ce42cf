"""Commands for the operator: config show, keys."""

from __future__ import annotations

import argparse
from typing import Any

from afterword.cli.context import CommandContext
from afterword.cli.data import when
from afterword.cli.doctor import config_errors
from afterword.gateway import keys


def register(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the commands."""
    config = commands.add_parser("config", parents=[common])
    verbs = config.add_subparsers(dest="verb", metavar="show")
    config.set_defaults(run=run_config, sources=False)
    show = verbs.add_parser("show", parents=[common], help="list all settings")
    show.add_argument("--sources", action="store_true", help="with the source of each value")
    show.set_defaults(run=run_config)
    key = commands.add_parser("keys", parents=[common])
    verbs = key.add_subparsers(dest="verb", metavar="list|create|revoke")
    key.set_defaults(run=run_key_list)
    create = verbs.add_parser("create", parents=[common], help="create a key; it is shown once")
    create.add_argument("note", nargs="?", default="", help="a note on its use")
    create.add_argument("--days", type=float, help="days until it expires (default: never)")
    create.add_argument(
        "--scope", action="append", choices=keys.SCOPES, help="allowed routes (default: infer and feedback)"
    )
    create.set_defaults(run=run_key_create)
    verbs.add_parser("list", parents=[common], help="list all keys").set_defaults(run=run_key_list)
    revoke = verbs.add_parser("revoke", parents=[common], help="revoke a key")
    revoke.add_argument("id", help="its public id, as `keys list` shows it")
    revoke.set_defaults(run=run_key_revoke)


def run_config(context: CommandContext) -> int:
    """The tree, one line a setting. Raises ConfigError for settings that a later command would reject."""
    rows, wrong = context.config.rows(), config_errors(context)
    if context.json and not wrong:
        context.emit({key: {"value": _plain(value), "source": source} for key, value, source in rows})
    elif not context.json:  # also what is wrong: its source says where to mend it
        columns = ("setting", "value", "source") if context.args.sources else ("setting", "value")
        context.table("", columns, ([key, _plain(value), source][: len(columns)] for key, value, source in rows))
    if wrong:
        raise wrong[0]
    return 0


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str | list | dict) else str(value)


def run_key_create(context: CommandContext) -> int:
    """Make a key and show it once."""
    text, key = keys.create_key(
        context.dir, context.args.scope or ("infer", "feedback"), context.args.note, context.args.days
    )
    if context.json:
        context.emit({"key": text, **_key(key)})
    else:
        context.out.print(text)
        context.say(f"key {key.id} ({', '.join(key.scopes)}); it is not shown again")
    return 0


def _key(key: keys.Key) -> dict[str, Any]:
    names = ("id", "note", "scopes", "created_at", "expires_at")
    return {name: getattr(key, name) for name in names}


def run_key_list(context: CommandContext) -> int:
    """All keys, never their secrets."""
    found = [_key(key) for key in keys.list_keys(context.dir)]
    if context.json:
        context.emit({"keys": found})
        return 0
    rows = (
        (k["id"], k["note"], ", ".join(k["scopes"]), when(k["created_at"]), k["expires_at"] and when(k["expires_at"]))
        for k in found
    )
    context.table("keys", ("id", "note", "scopes", "created", "expires"), rows)
    return 0


def run_key_revoke(context: CommandContext) -> int:
    """End a key; running gateways notice."""
    key = keys.revoke_key(context.dir, context.args.id)
    context.say(f"key {key.id} is revoked")
    return 0
