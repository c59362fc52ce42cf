"""Runs release publish, promote, rollback and status, and the monitor inside `serve`.

Owns parsing and printing, and how users' words are read for a canary (by the detectors of the feedback room).
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from rich.markup import escape

from afterword.cli.context import CommandContext
from afterword.cli.data import short, when
from afterword.cli.report_view import show_verdict
from afterword.cli.server_state import running_server
from afterword.config import ServeConfig
from afterword.errors import GateRefused, NothingToDo, UsageError
from afterword.feedback.collect.signals import answer_text, request_of, words_after
from afterword.feedback.text.edits import changed_share
from afterword.feedback.text.followup_classifier import read_follow_up
from afterword.records import Candidate, Feedback, Json, Release, Turn, Verdict
from afterword.release.canary_monitor import CanaryMonitor
from afterword.release.channel_status import channel_status
from afterword.release.gate import overridden
from afterword.release.publish import promote, publish, rollback, start_canary
from afterword.release.settings import CanarySettings, DriftSettings, parse_share
from afterword.store import Store
from afterword.store.channels import DEFAULT, check_channel


def register(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the commands."""
    release = commands.add_parser("release", parents=[common])
    verbs = release.add_subparsers(dest="verb", metavar="publish|promote|rollback|status")
    release.set_defaults(run=run_status)
    out = verbs.add_parser("publish", parents=[common], help="serve a candidate that the gate passed")
    out.add_argument("candidate", nargs="?", help="default: the newest")
    out.add_argument("--dry-run", action="store_true", help="only print the verdict")
    out.add_argument("--override", metavar="NAME", help="your name, to publish against the verdict; it is recorded")
    out.add_argument("--why", help="the reason for --override")
    canary_flag(out)
    out.set_defaults(run=run_publish)
    up = verbs.add_parser("promote", parents=[common], help="release the canary's candidate to all users")
    up.add_argument("--why", default="")
    up.set_defaults(run=run_promote)
    back = verbs.add_parser("rollback", parents=[common], help="end a canary, or serve the previous version again")
    back.add_argument("--to", metavar="VERSION", help="a version, release or candidate, or 'base'")
    back.add_argument("--why", default="")
    back.set_defaults(run=run_rollback)
    status = verbs.add_parser(
        "status", parents=[common], help="show the served version and live metrics of each channel"
    )
    status.set_defaults(run=run_status)
    for verb in (out, up, back):
        channel_flag(verb)


def channel_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--channel`."""
    parser.add_argument("--channel", metavar="CHANNEL", help="default, task:NAME, team:NAME, user:NAME, team:N/task:N")


def canary_flag(parser: argparse.ArgumentParser) -> None:
    """`--canary [SHARE]`: to a share of the users first."""
    parser.add_argument(
        "--canary", nargs="?", const="", metavar="SHARE", help="release to a share of the users first, such as 10%%"
    )


def channel_of(context: CommandContext) -> str:
    """The channel of this command."""
    return check_channel(getattr(context.args, "channel", None) or DEFAULT)


def canary_of(context: CommandContext) -> CanarySettings | None:
    """The settings of the wanted canary, None when none is wanted."""
    text = getattr(context.args, "canary", None)
    if text is None:
        return None
    settings = context.config.get(CanarySettings)
    return replace(settings, share=parse_share(text)) if text else settings


def run_publish(context: CommandContext) -> int:
    """Release a candidate because of its verdict."""
    args = context.args
    if bool(args.override) != bool(args.why):
        raise UsageError("--override NAME needs --why REASON, and --why needs --override: both are recorded.")
    channel, canary = channel_of(context), canary_of(context)
    with context.open_store() as store:
        candidate = chosen(context, store)
        verdict = store.newest(Verdict, candidate=candidate.id)
        if verdict is None:
            raise NothingToDo(
                f"{candidate.id} has no verdict yet: run `afterword evaluate {candidate.id}` (all suites) first"
            )
        if args.dry_run:
            show_verdict(context, verdict)
            return 0 if verdict.passed else GateRefused.exit_code
        if args.override:
            verdict = overridden(verdict, by=args.override, why=args.why)
            store.write(verdict)
        name = context.config.get(ServeConfig).name
        if canary is None:
            release = publish(store, candidate, verdict, channel, name)
        else:
            release = start_canary(store, candidate, verdict, canary, channel, name)
    return show_release(context, release)


def chosen(context: CommandContext, store: Store) -> Candidate:
    """The candidate that was named, else the newest."""
    if context.args.candidate:
        return store.get(Candidate, context.args.candidate)
    newest = store.newest(Candidate)
    if newest is None:
        raise NothingToDo("there is no candidate: run `afterword train` first")
    return newest


def run_promote(context: CommandContext) -> int:
    """Everyone gets the canary."""
    with context.open_store() as store:
        release = promote(store, channel_of(context), context.args.why)
    return show_release(context, release)


def run_rollback(context: CommandContext) -> int:
    """End a canary, or return to the previous release."""
    with context.open_store() as store:
        release = rollback(store, channel_of(context), context.args.to, context.args.why)
    return show_release(context, release)


def show_release(context: CommandContext, release: Release) -> int:
    """Print the release that a channel serves from now on."""
    if context.json:
        context.emit(release.to_dict())
        return 0
    served = release.adapter or "the base model"
    who = f" to {100 * (release.share or 0):g} % of its users" if release.action == "canary" else ""
    context.out.print(f"channel {release.channel!r} serves {served}{who}: {escape(short(release.why, 200))}")
    if running_server(context.dir) is None:
        context.say("No server runs here now; `afterword serve` starts with it.")
    elif release.action == "canary":
        context.say("The server decides by itself; see `afterword release status`.")
    return 0


def run_status(context: CommandContext) -> int:
    """Show every channel: its release, its canary with both arms, live metrics by version, alarms."""
    with context.open_store() as store:
        data = channel_status(store, reading)
    if context.json:
        context.emit(data)
        return 0
    if not data["channels"]:
        context.say("nothing was released yet: every channel serves the base model")
    for name, channel in data["channels"].items():
        context.out.print(f"channel [bold]{escape(name)}[/] serves {channel['serves'] or 'the base model'}: "
                          f"{escape(short(channel['why'], 160))}")  # fmt: skip
        columns = ("version", "users", "turns", "judged", "approval", "acceptance", "edits", "retries", "complaints",
                   "abandonment", "errors", "seconds_per_token")  # fmt: skip
        context.table("", columns, (_version(v, columns) for v in channel["versions"]))
        _show_canary(context, channel["canary"])
        for alarm in channel["alarms"]:
            context.out.print(f"[red]alarm[/] {when(alarm['created_at'])} {escape(alarm['why'])}")
    return 0


def _version(figures: Json, columns: tuple[str, ...]) -> list[Any]:
    return [f"{v:.3f}" if isinstance(v := figures[name], float) else v for name in columns]


def _show_canary(context: CommandContext, canary: Json | None) -> None:
    if canary is None:
        return
    context.out.print(f"canary {canary['adapter']} for {100 * canary['share']:g} % of the users since "
                      f"{when(canary['since'])}; both arms, all looks together:")  # fmt: skip
    rows = (
        (name, *("" if f[k] is None else f"{f[k]:+.3f}" for k in ("difference", "low", "high")), f["limit"])
        for name, f in canary["figures"].items()
    )
    context.table("", ("figure", "difference", "low", "high", "limit"), rows)


def reading(turn: Turn, feedback: Feedback) -> int:
    """Polarity of a user's words about the answer: +1 positive, -1 negative, 0 neither."""
    if feedback.kind == "edited":
        return 1 if changed_share(answer_text(turn), (feedback.final_text or "").strip()) == 0 else -1
    words = words_after(answer_text(turn), feedback).words if feedback.kind == "follow_up" else feedback.text or ""
    return read_follow_up(request_of(turn), answer_text(turn), words).polarity


@contextmanager
def watching(context: CommandContext) -> Iterator[None]:
    """Canaries are ended and drift is watched in a thread, as long as the server runs."""
    stop = threading.Event()
    with context.open_store() as store:
        monitor = CanaryMonitor(store, reading, context.config.get(DriftSettings))
        thread = threading.Thread(target=monitor.run, args=(stop,), name="afterword-canary-monitor", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
