"""Commands for the operator: status, config show, keys."""

from __future__ import annotations

import argparse
from typing import Any

from rich.markup import escape

from afterword.cli.context import CommandContext
from afterword.cli.data import when
from afterword.cli.doctor import config_errors
from afterword.cli.server_state import health, running_server
from afterword.errors import ConfigError, UsageError
from afterword.feedback.select.review_queue import ReviewSettings, agreement
from afterword.gateway import keys
from afterword.records import Feedback, Interaction, Prediction, Skip, Turn, Verdict
from afterword.release.gate import GateThresholds
from afterword.release.held_out_forecast import DAYS, held_out_forecast
from afterword.store import Store
from afterword.store.feedback_stats import GROUPS, feedback_stats
from afterword.store.locks import running_work


def register(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the commands."""
    status = commands.add_parser("status", parents=[common])
    status.add_argument("--by", choices=tuple(GROUPS), default="all", help="group the feedback counts")
    status.set_defaults(run=run_status)
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
    revoke.add_argument("id")
    revoke.set_defaults(run=run_key_revoke)


def run_status(context: CommandContext) -> int:
    """Counts of the spine, skips by reason, the release, and whether a server runs."""
    with context.open_store() as store:
        release = store.release()
        verdict = store.find(Verdict, release.verdict) if release and release.verdict else None
        data: dict[str, Any] = {
            **store.counts(),
            "held": store.held(),
            "undecided": sum(1 for _ in store.undecided()),
            "feedback_by_kind": store.tally(Feedback, "kind"),
            "interactions_by_split": store.tally(Interaction, "split"),
            "skips_by_reason": store.tally(Skip, "reason"),
            "automated_messages": store.automated(),
            "turns_by_adapter": store.tally(Turn, "adapter"),
            "turns_by_finish_reason": store.tally(Turn, "finish_reason"),
            "unlinked_by_reason": store.unlinked(),
            "serving": release.adapter if release and release.adapter else "base",
            "release": release.to_dict() if release else None,
            "verdict": list(verdict.reasons) if verdict else None,
            "live": [row.to_dict() for row in feedback_stats(store, context.args.by)],
            "review": _agreement(store),
            "held_out": _held_out(context, store),
            "server": running_server(context.dir),
            "running": running_work(context.dir),
            "forecast": _forecast(store),
        }
    data["answers"] = health(data["server"]).get("answers")
    if context.json:
        context.emit(data)
        return 0
    server = data["server"]
    context.out.print(f"server   {server['url'] if server else 'not running (start it with `afterword serve`)'}")
    _show_engine(context, server)
    _show_running(context, data["running"])
    since = f" since {when(release.created_at)}: {release.why}" if release else " (nothing was released yet)"
    context.out.print(f"serving  {data['serving']}{since}")
    names = ("turns", "feedback", "interactions", "skips", "candidates", "reports", "verdicts", "releases")
    context.table("", names, [[data[name] for name in names]])
    _show_held_out(context, data["held_out"])
    titles = (
        "turns_by_finish_reason",
        "feedback_by_kind", "interactions_by_split", "skips_by_reason", "automated_messages", "unlinked_by_reason",
    )  # fmt: skip
    for title in titles:
        if data[title]:
            parts = ", ".join(f"{name} {number}" for name, number in data[title].items())
            context.out.print(f"[dim]{title.replace('_', ' ')}:[/] {parts}")
    if (answers := data["answers"]) is not None and any(answers["cut"].values()):
        cut, full = answers["cut"], answers["full_context"]
        context.out.print(
            f"[dim]since the server's start:[/] {cut['length']} answers ended at their bound, {cut['repetition']} for "
            f"repetition; {full['dropped']} requests lost their oldest turns, {full['error']} were too long"
        )
    if (agreed := data["review"])["agreement"] is not None:
        reviewed = agreed["approved"] + agreed["rejected"]
        context.out.print(f"[dim]review:[/] people agree with {agreed['agreement']:.0%} of {reviewed} decisions")
    if (forecast := data["forecast"]) is not None:
        context.out.print(f"[dim]forecast:[/] {escape(forecast['prediction']['says'])}")
        context.out.print(f"[dim]forecast:[/] {escape(forecast['drift']['says'])}")
    _show_live(context, data["live"])
    if data["undecided"]:
        context.say(f"{data['undecided']} feedback events wait for `afterword collect`")
    return 0


def _show_running(context: CommandContext, running: list[dict[str, Any]]) -> None:
    """A line for each command that works on the directory now; the parts of a cycle are its stage."""
    cycles = {(one["host"], one["pid"]) for one in running if "stage" in one}
    for one in running:
        if "stage" in one or (one["host"], one["pid"]) not in cycles:
            stage = f", {one['stage']} since {when(one['stage_since'])}" if "stage" in one else ""
            line = f"{one['doing']}{stage} (process {one['pid']} on {one['host']}, since {when(one['since'])})"
            context.out.print(f"running  {escape(line)}")


def _show_engine(context: CommandContext, server: dict[str, Any] | None) -> None:
    """What happened to the built-in engine since the server started."""
    engine = (server or {}).get("engine") or {}
    if engine.get("restarts"):
        runs = "" if engine.get("status") == "ok" else ", not running now"
        context.out.print(
            f"engine   restarts: {engine['restarts']}{runs}; last {when(engine['last_at'])}: "
            f"{escape(engine['last_reason'])}"
        )


def _held_out(context: CommandContext, store: Store) -> dict[str, Any]:
    """What is held out to judge the next candidate by, and when that is enough."""
    try:
        limits = context.config.get(GateThresholds)
    except (ConfigError, UsageError):  # an invalid configuration keeps nobody from seeing the state
        limits = GateThresholds()
    every, slices = held_out_forecast(store, limits)
    return {**every.to_dict(), "slices": [one.to_dict() for one in slices]}


def _show_held_out(context: CommandContext, found: dict[str, Any]) -> None:
    """How many held-out interactions are missing, of which slice, and by when they are there."""
    context.out.print(
        f"[dim]held out to judge by:[/] {found['interactions']} interactions of {found['conversations']} conversations"
        f"{_missing(found)}"
    )
    lacking = [one for one in found["slices"] if one["missing"] and one["task"] is not None]
    for one in lacking[:3]:
        context.out.print(
            f"[dim]  task {escape(one['task'])}:[/] {one['interactions']} interactions of {one['conversations']} "
            f"conversations{_missing(one)}"
        )


def _missing(one: dict[str, Any]) -> str:
    """What is missing, as the end of a sentence."""
    if not one["missing"]:
        return f", enough for a decision ({one['needed']} needed)"
    need = f"; {one['missing']} more needed"
    if one["ready_at"] is None:
        return f"{need}, none came in the last {DAYS:.0f} days"
    return f"{need}, there by {when(one['ready_at'])} at {one['per_day']:.1f} a day"


def _forecast(store: Store) -> dict[str, Any] | None:
    """The newest prediction and how earlier ones held; None before the first. Without the extra `model` only the
    prediction."""
    newest = store.newest(Prediction)
    if newest is None:
        return None
    try:
        from afterword.forecast.outcomes import forecast_status
    except ModuleNotFoundError:
        return {"prediction": newest.to_dict(), "outcome": None, "drift": {"says": "not computed without scipy"}}
    return forecast_status(store)


def _agreement(store: Store) -> dict[str, Any]:
    """What reviewers said so far; who waits depends on the settings, which `review list` reads."""
    found = agreement((), store.reviews(), ReviewSettings()).to_dict()
    return {name: found[name] for name in ("approved", "rejected", "agreement")}


def _show_live(context: CommandContext, rows: list[dict[str, Any]]) -> None:
    """What users do after an answer, as shares."""
    if not rows:
        return
    shares = [name for name in rows[0] if name not in ("name", "turns")]
    context.table(
        "after an answer", (context.args.by, "turns", *(name.replace("_", " ") for name in shares)),
        [(row["name"], row["turns"], *("-" if row[n] is None else f"{row[n]:.0%}" for n in shares)) for row in rows],
    )  # fmt: skip


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
