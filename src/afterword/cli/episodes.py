"""`afterword episodes`: lists episodes and skills, and shows an episode turn by turn with its rewards."""

from __future__ import annotations

import argparse
from typing import Any

from rich.markup import escape

from afterword.chat.canonical import text_of
from afterword.chat.observations import observation_after
from afterword.cli.context import CommandContext
from afterword.cli.data import short, when
from afterword.errors import NotFoundError
from afterword.feedback.settings import CollectSettings
from afterword.feedback.skills import write_skills
from afterword.records import Episode, TaskSkill, Turn
from afterword.store.episodes import EpisodeTurn, EpisodeView, current, episode_view, episode_views, statuses
from afterword.store.skills import SkillBank, Use

_WIDTH = 100


def register(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    group = commands.add_parser("episodes", parents=[common])
    verbs = group.add_subparsers(dest="verb", metavar="list|show|skills")
    group.set_defaults(run=run_list, limit=20, task=None, status=None)
    listing = verbs.add_parser("list", parents=[common], help="list, newest first")
    listing.add_argument("--limit", type=int, default=20, metavar="N")
    listing.add_argument("--task", metavar="ID", help="only episodes of this task")
    listing.add_argument(
        "--status", metavar="S", choices=("running", "finished", "failed", "truncated"), help="only with this status"
    )
    listing.set_defaults(run=run_list)
    show = verbs.add_parser("show", parents=[common], help="show one turn by turn, with rewards")
    show.add_argument("id", help="its id or a prefix of it")
    show.set_defaults(run=run_show)
    skills = verbs.add_parser("skills", parents=[common], help="list the skills of the bank with their uses")
    skills.add_argument("--write", action="store_true", help="first write skills of episodes that have none")
    skills.set_defaults(run=run_skills)


def run_list(context: CommandContext) -> int:
    """The newest episodes."""
    args = context.args
    equal: dict[str, Any] = {"task_id": args.task} if args.task else {}
    found: list[EpisodeView] = []
    with context.open_store() as store:
        for row in store.rows(Episode, newest=True, **equal):
            if len(found) >= args.limit:
                break
            if args.status is None or current(store, [row])[0].status == args.status:
                found += episode_views(store, [row])
        counts, total = statuses(store), store.count(Episode)
    if context.json:
        context.emit({"episodes": [view.to_dict() for view in found], "total": total, "statuses": counts})
        return 0
    columns = ("id", "time", "task", "harness", "status", "turns", "reward", "versions")
    context.table(f"episodes: {len(found)} of {total}", columns, map(_line, found))
    return 0


def _line(view: EpisodeView) -> tuple[Any, ...]:
    row = view.episode
    status = row.status if row.reason is None else f"{row.status} ({row.reason})"
    return (
        row.id, when(row.started_at), short(row.task_id), short(row.harness, 24), short(status, 32),
        len(view.task_turns), _number(row.outcome), ", ".join(view.versions),
    )  # fmt: skip


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def run_show(context: CommandContext) -> int:
    """Show one episode: every turn with the agent's answer, the observation after it, and its rewards."""
    with context.open_store() as store:
        view = episode_view(store, context.args.id)
    if context.json:
        context.emit(view.to_dict())
        return 0
    row, out = view.episode, context.out
    out.print(f"[bold]{escape(row.id)}[/]  {when(row.started_at)}  {_line(view)[4]}")
    for name, value in (
        ("task", row.task_id), ("seed", row.seed), ("harness", row.harness), ("parent", row.parent_id),
        ("versions", ", ".join(view.versions)), ("reward", _number(row.outcome)),
        ("rubric", _named(row.rubric)), ("metrics", _named(row.metrics)), ("rewards received", len(view.rewards)),
    ):  # fmt: skip
        if value not in (None, "", 0):
            out.print(f"  [dim]{name}[/] {short(value, _WIDTH)}")
    first = view.turns[0].turn if view.turns else None
    if first is None:
        raise NotFoundError(f"the episode {row.id!r} has no turns yet.")
    out.print(f"\n[dim]asked[/] {short(_last_words(first), _WIDTH)}")
    after = {one.parent: one for one in reversed(view.turns) if one.parent is not None}
    branched = {one.parent for one in view.turns}
    for one in view.turns:
        _show_turn(context, one, after.get(one.turn.id), one.parent in branched and one.parent is not None)
    return 0


def run_skills(context: CommandContext) -> int:
    """The bank of skills, each with its uses and mean outcome."""
    with context.open_store(create=context.args.write) as store:
        new = write_skills(store, redaction=context.config.get(CollectSettings).redact) if context.args.write else 0
        bank = SkillBank(store)
        rows = list(store.rows(TaskSkill))
    uses = [bank.uses.get(row.id, Use()) for row in rows]
    if context.json:
        told = [{**row.to_dict(), "tries": u.tries, "mean": u.mean} for row, u in zip(rows, uses, strict=True)]
        context.emit({"skills": told, "new": new})
        return 0
    lines = [
        (row.id, short(row.task), "step" if row.state else "task", use.tries, _number(use.mean if use.tries else None),
         short(row.text, _WIDTH))
        for row, use in zip(rows, uses, strict=True)
    ]  # fmt: skip
    context.table(f"skills: {len(rows)}, {new} new", ("id", "task", "for", "uses", "mean reward", "text"), lines)
    return 0


def _show_turn(context: CommandContext, one: EpisodeTurn, after: EpisodeTurn | None, continues: bool) -> None:
    reward = "" if one.reward is None else f"  [{_colour(one.reward)}]reward {one.reward:+g}[/]"
    rubric = f"  {_named(one.rubric)}" if one.rubric else ""
    outside = f"  [yellow]no part of the task: {one.outside}[/]" if one.outside else ""
    start = "" if continues or one.index == 0 else "  [dim]begins a branch[/]"
    context.out.print(f"\n[bold]turn {one.index}[/]  [dim]{escape(one.turn.id)}[/]{reward}{rubric}{outside}{start}")
    context.out.print(f"  [cyan]agent[/] {short(_answer(one.turn), _WIDTH)}")
    if after is not None:
        context.out.print(f"  [dim]then[/]  {short(observation_after(one.turn, after.turn), _WIDTH)}")


def _colour(reward: float) -> str:
    return "green" if reward > 0 else "red" if reward < 0 else "dim"


def _named(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {'unscored' if value is None else format(value, 'g')}" for name, value in values.items())


def _last_words(turn: Turn) -> str:
    return text_of(turn.messages[-1].get("content")) if turn.messages else ""


def _answer(turn: Turn) -> str:
    calls = [call.get("function") or {} for call in turn.answer.get("tool_calls") or () if isinstance(call, dict)]
    said = [text_of(turn.answer.get("content")), *(f"{c.get('name')}({c.get('arguments')})" for c in calls)]
    return " ".join(part for part in said if part)
