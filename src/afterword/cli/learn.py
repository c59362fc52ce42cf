"""`afterword learn`: from files of conversations to a judged adapter in one command, with a page of what is in them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.markup import escape

from afterword.chat.redact import redact
from afterword.cli.context import CommandContext
from afterword.cli.data import import_all
from afterword.cli.releases import show_release
from afterword.cli.report_view import show_verdict
from afterword.cli.stages import stage_progress, stage_settings
from afterword.cycle import Settings, collect_stage, run_cycle, select_stage
from afterword.errors import GateRefused, NothingToDo
from afterword.feedback.digest import Digest, digest
from afterword.feedback.settings import CollectSettings
from afterword.formats.registry import ALIASES, FORMATS
from afterword.store.files import write_whole

PAGE = "learn.html"
_SIGN = {1: "content", -1: "not content", 0: "neither"}
_MOSTLY = 0.5
"""Share of usable interactions without served token ids from which they are trained off-policy."""


def register(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    learn = commands.add_parser("learn", parents=[common])
    learn.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="conversations: files or folders, as `import`"
    )
    learn.add_argument("--model", dest="serve.model", metavar="REF", help="built-in name, folder or hub id")
    learn.add_argument("--format", default="auto", choices=("auto", *FORMATS, *ALIASES), help="default: detected")
    learn.add_argument("--encoding", metavar="NAME", help="text encoding (default: detected from the file)")
    learn.add_argument("--look", action="store_true", help="stop after the page of what is in the files")
    learn.set_defaults(run=run_learn)


def run_learn(context: CommandContext) -> int:
    """Import, collect, tell what is there, then train, judge and publish by the gate."""
    with context.open_store(create=True) as store:
        files, failed = import_all(context, store, context.args.files)
        progress = stage_progress(context)
        settings = stage_settings(context, model=False)
        collect_stage(store, settings, progress)
        selection = select_stage(store, settings)
        found = digest(store, selection)
        page = context.dir / PAGE
        write_whole(page, _page(context, found))
        if not context.json:
            _show(context, found)
        context.say(f"what is in the files: {escape(str(page))}")
        if context.args.look or not found.usable:
            if context.json:
                context.emit({"files": files, "found": found.to_dict(), "page": str(page)})
            if not found.usable:
                raise NothingToDo(f"nothing in {len(files)} files can be trained: {escape(str(page))} says why")
            return 1 if failed else 0
        result = run_cycle(store, _for_files(context, found), progress)
    if context.json:
        context.emit({"files": files, "found": found.to_dict(), "page": str(page), **result.to_dict()})
    else:
        show_verdict(context, result.verdict)
        if result.release:
            show_release(context, result.release)
        context.say(f"the adapter is in {escape(str(context.dir / result.candidate.path))}")
    return 0 if result.release else GateRefused.exit_code


def _for_files(context: CommandContext, found: Digest) -> Settings:
    """The settings of the round: files seldom hold token ids, so that their answers are trained off-policy."""
    settings = stage_settings(context)
    if settings.train.off_policy or found.without_ids < _MOSTLY * found.usable:
        return settings
    context.say(
        f"{found.without_ids} of {found.usable} answers have no served token ids: they are trained off-policy "
        "(train.off_policy)"
    )
    return replace(settings, train=replace(settings.train, off_policy=True))


def _show(context: CommandContext, found: Digest) -> None:
    context.table("in the files", ("what", "number"), _numbers(found))
    rows = [
        (one.category, _SIGN[one.polarity], one.count, escape(one.examples[0][1] if one.examples else ""))
        for one in found.said[:10]
    ]
    if rows:
        context.table("what users said", ("about", "they are", "times", "for example"), rows)
    for title, counts in _reasons(found):
        context.table(title, ("reason", "number"), counts.items())


def _numbers(found: Digest) -> list[tuple[str, int]]:
    return [
        ("answers", found.turns), ("named users", found.users), ("feedback", sum(found.feedback.values())),
        ("interactions to train on", found.usable), ("held out to judge by", found.held_out),
        ("without served token ids", found.without_ids),
    ]  # fmt: skip


def _reasons(found: Digest) -> list[tuple[str, Mapping[str, int]]]:
    """The tables that have rows."""
    tables = [
        ("feedback by kind", found.feedback), ("not used, by reason", found.left),
        ("feedback about no answer, by reason", found.skipped), ("private data that was replaced", found.private),
    ]  # fmt: skip
    return [(title, counts) for title, counts in tables if counts]


def _page(context: CommandContext, found: Digest) -> str:
    """The page; requests are shown without private data, as remarks are stored."""
    from afterword.evaluate.report.pages import render

    how = context.config.get(CollectSettings).redact
    groups = [
        {"category": one.category, "sign": _SIGN[one.polarity], "count": one.count,
         "examples": [(redact(asked, how).text, redact(said, how).text) for asked, said in one.examples]}
        for one in found.said
    ]  # fmt: skip
    return str(render(
        "digest.html", title="What is in the conversations", numbers=_numbers(found), groups=groups,
        tables=_reasons(found),
    ))  # fmt: skip
