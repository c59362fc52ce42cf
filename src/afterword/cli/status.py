"""Runs `afterword status`: the whole state on one screen, or as JSON.

Counts come from the store, the state of the server from its own file and `/health`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from rich.markup import escape
from rich.table import Table

from afterword.chat.printable import printable
from afterword.cli.context import CommandContext
from afterword.cli.data import when
from afterword.cli.server_state import health, running_server
from afterword.errors import ConfigError, UsageError
from afterword.feedback.select.review_queue import ReviewSettings, agreement
from afterword.records import Feedback, Interaction, Prediction, Skip, Turn, Verdict
from afterword.release.gate import GateThresholds
from afterword.release.held_out_forecast import DAYS, held_out_forecast
from afterword.store import Store
from afterword.store.feedback_stats import GROUPS, feedback_stats
from afterword.store.locks import WATCH, running_work

SHOWN = 4
"""Reasons of a count that are shown; the rest is summed up."""


def register(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    status = commands.add_parser("status", parents=[common])
    status.add_argument("--by", choices=tuple(GROUPS), default="all", help="group what users do after an answer")
    status.set_defaults(run=run_status)


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
    _show(context, data)
    return 0


def _show(context: CommandContext, data: dict[str, Any]) -> None:
    """One labelled line a fact; what is zero or unknown has none."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in _lines(data):
        grid.add_row(label, escape(printable(text)))
    context.out.print(grid)
    _show_live(context, data["live"])
    if data["undecided"]:
        context.say(f"{data['undecided']} feedback events wait for `afterword collect`")


def _lines(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    server, release = data["server"], data["release"]
    yield "server", server["url"] if server else "not running (start it with `afterword serve`)"
    yield from _engine_lines(server)
    yield from _running_lines(data["running"])
    since = f" since {when(release['created_at'])}: {release['why']}" if release else " (nothing was released yet)"
    yield "serving", f"{data['serving']}{since}"
    split = _parts(data["interactions_by_split"])
    yield (
        "learning",
        (
            f"{data['turns']} turns > {data['feedback']} feedback > {data['interactions']} interactions"
            f"{f' ({split})' if split else ''} > {data['candidates']} candidates > {data['releases']} releases"
        ),
    )
    for label, name in _COUNTED.items():
        if data[name]:
            yield label, _parts(data[name])
    if data["held"]:
        yield "held", f"{data['held']} feedback events wait for their turn"
    yield from _held_out_lines(data["held_out"])
    yield from _answer_lines(data["answers"])
    if (agreed := data["review"])["agreement"] is not None:
        reviewed = agreed["approved"] + agreed["rejected"]
        yield "review", f"people agree with {agreed['agreement']:.0%} of {reviewed} decisions"
    if (forecast := data["forecast"]) is not None:
        yield "forecast", forecast["prediction"]["says"]
        yield "", forecast["drift"]["says"]


_COUNTED = {
    "feedback": "feedback_by_kind",
    "skipped": "skips_by_reason",
    "programs": "automated_messages",
    "unlinked": "unlinked_by_reason",
    "endings": "turns_by_finish_reason",
}
"""Label of a line -> the counts that it shows."""


def _parts(counts: dict[str, int]) -> str:
    """The largest counts by name."""
    parts = [f"{name} {number}" for name, number in list(counts.items())[:SHOWN]]
    rest = sum(list(counts.values())[SHOWN:])
    return ", ".join([*parts, *([f"others {rest}"] if rest else [])])


def _running_lines(running: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """A line for each command that works on the directory now; the parts of a cycle are its stage."""
    staged = {(one["host"], one["pid"]) for one in running if "stage" in one}
    for one in running:
        if "stage" in one or (one["host"], one["pid"]) not in staged:
            stage = f", {one['stage']} since {when(one['stage_since'])}" if "stage" in one else ""
            waits = ", waiting" if one["work"] == WATCH else ""
            doing = f"{one['doing']}{stage}{waits}"
            yield "running", f"{doing} (process {one['pid']} on {one['host']}, since {when(one['since'])})"


def _engine_lines(server: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    """What happened to the built-in engine since the server started."""
    engine = (server or {}).get("engine") or {}
    if engine.get("restarts"):
        runs = "" if engine.get("status") == "ok" else ", not running now"
        last = f"last {when(engine['last_at'])}: {engine['last_reason']}"
        yield "engine", f"restarts: {engine['restarts']}{runs}; {last}"


def _answer_lines(answers: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    """Answers that did not end by themselves since the server started."""
    if answers is None or not any(answers["cut"].values()):
        return
    cut, full = answers["cut"], answers["full_context"]
    yield (
        "answers",
        (
            f"since the server's start {cut['length']} ended at their token limit, {cut['repetition']} for repetition; "
            f"{full['dropped']} requests lost their oldest turns, {full['error']} were too long"
        ),
    )


def _held_out(context: CommandContext, store: Store) -> dict[str, Any]:
    """What is held out to judge the next candidate by, and when that is enough."""
    try:
        limits = context.config.get(GateThresholds)
    except (ConfigError, UsageError):  # an invalid configuration keeps nobody from seeing the state
        limits = GateThresholds()
    every, slices = held_out_forecast(store, limits)
    return {**every.to_dict(), "slices": [one.to_dict() for one in slices]}


def _held_out_lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """How many held-out interactions are missing, of which slice, and by when they are there."""
    yield (
        "held out",
        (
            f"{found['interactions']} interactions of {found['conversations']} conversations to judge a candidate"
            f"{_missing(found)}"
        ),
    )
    lacking = [one for one in found["slices"] if one["missing"] and one["task"] is not None]
    for one in lacking[:3]:
        number = f"{one['interactions']} interactions of {one['conversations']} conversations"
        yield "", f"task {one['task']}: {number}{_missing(one)}"


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
