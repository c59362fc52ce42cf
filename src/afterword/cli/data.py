"""Commands for rows: import, export, list, show and forget."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from rich.markup import escape

from afterword.chat.canonical import text_of
from afterword.chat.private import redactor
from afterword.cli.context import CommandContext
from afterword.cli.progress import step_bar
from afterword.cli.server_state import served_model
from afterword.errors import NothingToDo, UsageError
from afterword.feedback.examples import EXAMPLES, EXAMPLES_MODEL
from afterword.feedback.importing.imports import files_of, import_file
from afterword.feedback.importing.rejects import rejects_file
from afterword.feedback.settings import CollectSettings
from afterword.forget import as_text, check, forget_user, held_of, read_report
from afterword.formats.containers import Out, container
from afterword.formats.export import Exported, export, export_user
from afterword.formats.export_filter import SPLITS
from afterword.formats.registry import ALIASES, EXPORTS, FORMATS, TRAINING
from afterword.records import Candidate, Feedback, Interaction, Record, Release, Report, Turn, Verdict
from afterword.release.signed_chain import verify
from afterword.store import Store
from afterword.store.codec import calendar_time


def register(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the commands."""
    into = commands.add_parser("import", parents=[common])
    into.add_argument(
        "files",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="JSON, JSON lines or Parquet; plain, gzip, zstd or zip; or a folder",
    )
    into.add_argument(
        "--examples", action="store_true",
        help="load the packaged example conversations with answers of the built-in model",
    )  # fmt: skip
    into.add_argument(
        "--format", default="auto", choices=("auto", *FORMATS, *ALIASES), help="default: detected from the file"
    )
    into.add_argument("--encoding", metavar="NAME", help="text encoding (default: detected from the file)")
    into.set_defaults(run=run_import)

    out = commands.add_parser("export", parents=[common])
    out.add_argument("what", nargs="?", choices=dict.fromkeys(what for what, _ in EXPORTS), help="the rows to write")
    out.add_argument("--user", metavar="U", help="all stored data of this user, in the native format")
    out.add_argument("--format", default="afterword", choices=dict.fromkeys(form for _, form in EXPORTS))
    out.add_argument(
        "--split", choices=SPLITS, help="split of training files; `train` (default) excludes held-out rows",
    )  # fmt: skip
    out.add_argument(
        "--output", type=Path, metavar="FILE", help="default: JSON lines on stdout; format by suffix: .jsonl, .json, "
        ".parquet, .gz, .zst",
    )  # fmt: skip
    out.set_defaults(run=run_export)

    for name, (kind, _, _) in LISTS.items():
        group = commands.add_parser(name, parents=[common])
        verbs = group.add_subparsers(dest="verb", metavar="list|show")
        group.set_defaults(run=run_list, kind=name, limit=20)
        listing = verbs.add_parser("list", parents=[common], help="list, newest first")
        listing.add_argument("--limit", type=int, default=20, metavar="N")
        listing.set_defaults(run=run_list, kind=name)
        show = verbs.add_parser("show", parents=[common], help=f"show one {kind.__name__.lower()} and its derived rows")
        show.add_argument("id", help="its id or a prefix of it")
        show.set_defaults(run=run_show, kind=name)
        if kind is Release:
            verify = verbs.add_parser(
                "verify", parents=[common], help="check that files and rows are unchanged since their release"
            )
            verify.add_argument("--key", metavar="HEX", help="a public key kept elsewhere; default: DIR/release.pub")
            verify.set_defaults(run=run_verify)

    _register_forget(commands, common)


def run_import(context: CommandContext) -> int:
    """Import every file; a bad row is counted and set aside, the rest is kept."""
    paths = _wanted(context)
    with context.open_store(create=True) as store:
        found, failed = import_all(context, store, paths)
    if context.json:
        context.emit({"files": found})
    refused = [one for one in found if one.get("rows") and one["rows"] == sum(one["rejected"].values())]
    for one in refused:
        context.say(f"[red]nothing imported:[/] {escape(_why_nothing(one))}")
    for one in (one for one in found if one.get("conflicts")):
        context.say(
            f"{one['conflicts']} records exist with other content and were not replaced. They are in "
            f"{escape(one['rejects'])} with the reason `conflict`."
        )
    if not refused and not failed and not context.json:
        new = any(one["stored"] for one in found)
        context.say(_NEXT if new else "Nothing new: what is in there was stored before, or erased at a user's wish.")
    if refused and len(refused) == len(found):
        return UsageError.exit_code
    return 1 if failed or refused else 0


def import_all(context: CommandContext, store: Store, paths: Sequence[Path]) -> tuple[list[dict[str, Any]], int]:
    """Import files and folders as `--format` and `--encoding` say, and print a table of each.

    Returns:
        The summary of each file, and how many files of a folder could not be read.

    Raises:
        UsageError: A file that was named cannot be read.
    """
    found: list[dict[str, Any]] = []
    failed = 0
    for path in paths:
        for file, name in files_of(path):
            rejects = rejects_file(store, file, name)
            with step_bar(context, f"importing {file.name}", "bytes") as advance:
                try:
                    summary = import_file(
                        store, file, context.args.format, rejects=rejects, progress=advance,
                        encoding=context.args.encoding,
                    )  # fmt: skip
                except UsageError as error:
                    if file == path:
                        raise
                    failed += 1  # one bad file of a folder does not keep the others out
                    found.append({"file": str(file), "error": error.message})
                    context.say(f"[red]passed over:[/] {escape(error.message)}")
                else:
                    found.append(summary.to_dict())
    if not context.json:
        for one in found:
            context.table("", ("imported", one["file"]), _told(one))
    return found, failed


def _wanted(context: CommandContext) -> list[Path]:
    """The files to read. UsageError for none, and for examples that the served model did not write."""
    paths = list(context.args.files)
    if context.args.examples:
        model = served_model(context)
        if model != EXAMPLES_MODEL:
            raise UsageError(
                f"the example conversations hold answers of {EXAMPLES_MODEL!r}, and {str(context.dir)!r} works with "
                f"{model!r}: an adapter learns from its own model's answers. Start `afterword serve`, then let a "
                "simulated user talk to it: `afterword simulate --personas brief --conversations 40`.",
                param="examples",
            )
        paths.append(EXAMPLES)
    if not paths:
        raise UsageError("'import' needs FILE, or --examples for the conversations that come with the package.")
    return paths


_NEXT = "Next: `afterword collect` turns what users did into interactions."


def _told(one: dict[str, Any]) -> list[tuple[str, Any]]:
    """What a person reads of an import: its rows, what was stored, and every other count that is not nothing."""
    counted = {
        name: ", ".join(f"{count} {reason}" for reason, count in one.get(name, {}).items())
        for name in ("left_out", "rejected")
    }
    counted["encoding"] = one.get("encoding", "").replace("utf-8", "")  # said when it is another
    rows = {**one, **counted, "seconds": round(one.get("seconds", 0.0), 1)}
    del rows["file"]
    return [(name, value) for name, value in rows.items() if value or name in {"rows", "stored"}]


def _why_nothing(summary: dict[str, Any]) -> str:
    """The first of the rejected rows, in a sentence."""
    with Path(summary["rejects"]).open("rb") as lines:
        first = orjson.loads(lines.readline())
    return (
        f"all {summary['rows']} rows of {summary['file']} were rejected, the first ({first['where']}) because "
        f"{first['detail']}. Each row with its reason is in {summary['rejects']}; mend the file or name its --format."
    )


def run_export(context: CommandContext) -> int:
    """Stream rows to a file or stdout; report excluded rows with reasons on stderr (or, beside a file, as JSON)."""
    args = context.args
    if (args.what is None) == (args.user is None):
        raise UsageError("say what to export, `afterword export turns`, or of whom, `afterword export --user U`.")
    training = (args.what, args.format) in TRAINING
    if args.split is not None and not training:
        raise UsageError(f"--split is for files to train on: {', '.join(f'{w} as {f}' for w, f in sorted(TRAINING))}.")
    with context.open_store() as store, _sink(args.output) as sink:
        if args.user is not None:
            found = Exported(export_user(store, args.user, sink, to=args.output), {})
        else:
            clean = redactor(context.config.get(CollectSettings).redact) if training else None
            found = export(
                store, args.what, args.format, sink, to=args.output, clean=clean, split=args.split or "train"
            )  # fmt: skip
    if context.json and args.output is not None:
        context.emit({"file": str(args.output), "rows": found.rows, "left_out": found.left_out})
    context.say(f"{found.rows} rows written")
    if found.left_out:
        reasons = ", ".join(f"{number} {reason}" for reason, number in found.left_out.items())
        more = "; held-out ones leave with --split all" if "holdout" in found.left_out else ""
        context.say(f"left out: {reasons}{more}")
    return 0


@contextmanager
def _sink(path: Path | None) -> Iterator[Out]:
    if path is None:
        yield sys.stdout.buffer
        return
    with container(path) as out:
        yield out


def when(seconds: float) -> str:
    """Local time, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(calendar_time(seconds)))


def short(text: Any, width: int = 48) -> str:
    """One line of at most `width` characters, safe for the terminal's markup."""
    line = " ".join(str(text or "").split())
    return escape(line if len(line) <= width else line[: width - 1] + "…")


def _turn(row: Turn) -> tuple[Any, ...]:
    asked = text_of(row.messages[-1].get("content")) if row.messages else ""
    answer = text_of(row.answer.get("content"))
    return row.id, when(row.created_at), row.user, row.adapter or "base", short(asked), short(answer)


def _interaction(row: Interaction) -> tuple[Any, ...]:
    sign = {1: "+", -1: "-"}.get(row.polarity, "0")
    return row.id[:16], when(row.created_at), row.kind, sign, f"{row.weight:.2f}", row.split, short(row.hindsight)


def _candidate(row: Candidate) -> tuple[Any, ...]:
    return row.id, when(row.created_at), row.base, row.parent, len(row.interactions), row.recipe.get("name")


def _release(row: Release) -> tuple[Any, ...]:
    return row.id, when(row.created_at), row.channel, row.action, row.adapter or "base", short(row.why)


LISTS: dict[str, tuple[type[Record], tuple[str, ...], Callable[[Any], tuple[Any, ...]]]] = {
    "turns": (Turn, ("id", "time", "user", "adapter", "asked", "answered"), _turn),
    "interactions": (Interaction, ("id", "time", "kind", "sign", "weight", "split", "hindsight"), _interaction),
    "candidates": (Candidate, ("id", "time", "base", "parent", "interactions", "recipe"), _candidate),
    "releases": (Release, ("id", "time", "channel", "action", "serves", "why"), _release),
}


def run_list(context: CommandContext) -> int:
    """The newest rows of a kind."""
    kind, columns, row_of = LISTS[context.args.kind]
    with context.open_store() as store:
        rows = list(store.rows(kind, newest=True, limit=context.args.limit))
        total = store.count(kind)
    if context.json:
        context.emit({context.args.kind: [row.to_dict() for row in rows], "total": total})
    else:
        context.table(f"{context.args.kind}: {len(rows)} of {total}", columns, map(row_of, rows))
    return 0


def run_show(context: CommandContext) -> int:
    """One record with everything that came of it."""
    kind = LISTS[context.args.kind][0]
    with context.open_store() as store:
        record = store.get(kind, context.args.id)
        found: dict[str, list[Record]] = {kind.TABLE: [record]}
        if isinstance(record, Turn):
            found = store.lineage(record.id)
        elif isinstance(record, Interaction):
            found["turns"] = [store.get(Turn, record.turn)]
            found["feedback"] = [store.get(Feedback, identifier) for identifier in record.feedback]
        elif isinstance(record, Candidate):
            for derived in (Report, Verdict, Release):
                found[derived.TABLE] = list(store.rows(derived, candidate=record.id))
    plain = {table: [row.to_dict() for row in rows] for table, rows in found.items()}
    if context.json:
        context.emit(plain)
        return 0
    for table, rows in plain.items():
        for row in rows:
            context.out.print(f"[bold]{table}[/] {escape(row['id'])}  {when(row['created_at'])}")
            for key, value in row.items():
                if key not in ("id", "created_at", "schema") and value not in (None, {}, [], ""):
                    context.out.print(f"  [dim]{key}[/] {short(value, 400)}")
    return 0


def run_verify(context: CommandContext) -> int:
    """Signatures, hashes, and the chain from the first release to the newest; exit 1 when anything is wrong."""
    with context.open_store() as store:
        found = verify(store, key=context.args.key)
    if context.json:
        serving = {channel: state.adapter for channel, state in found.serving.items()}
        context.emit({"releases": found.releases, "problems": found.problems, "notes": found.notes, "serving": serving})
    else:
        for sentence in (*found.problems, *found.notes):
            context.out.print(
                f"{'[red]wrong[/]' if sentence in found.problems else '[dim]note[/]'}  {escape(sentence)}"
            )
        word = "[red]not as they were released[/]" if found.problems else "whole, signed, and as they were released"
        context.out.print(f"{found.releases} releases: {word}")
    return 1 if found.problems else 0


def _register_forget(commands: Any, common: argparse.ArgumentParser) -> None:
    forget = commands.add_parser("forget", parents=[common])
    forget.add_argument("--user", metavar="U", help="name of the user, as the client sends it")
    forget.add_argument("--dry-run", action="store_true", help="only count the stored rows")
    forget.add_argument(
        "--delete-adapters",
        action="store_true",
        help="delete adapters trained on their data instead of quarantining them",
    )
    forget.add_argument("--check", type=Path, metavar="REPORT", help="check an earlier report against the database")
    forget.set_defaults(run=run_forget)


def run_forget(context: CommandContext) -> int:
    """Erase, look, or check; exit 1 when bytes are left or a check fails."""
    args = context.args
    if args.check is not None:
        return _check_report(context, args.check, args.user)
    if not args.user:
        raise UsageError("name the user to forget: `afterword forget --user U`.", param="user")
    with context.open_store() as store:
        if args.dry_run:
            return _show_held(context, held_of(store, args.user))
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


def _show_held(context: CommandContext, counts: dict[str, int]) -> int:
    if not any(counts.values()):
        raise NothingToDo(f"no data is stored of the user {context.args.user!r}.")
    if context.json:
        context.emit(counts)
    else:
        context.table("would be erased", ("what", "rows"), counts.items())
    return 0


def _check_report(context: CommandContext, path: Path, user: str | None) -> int:
    with context.open_store() as store:
        checks = check(store, read_report(path), user)
    if context.json:
        context.emit({"checks": checks})
    else:
        for one in checks:
            word = "[green]ok[/]  " if one["ok"] else "[red]FAIL[/]"
            context.out.print(f"{word} {one['check']:<9} {escape(one['detail'])}")
    return 0 if all(one["ok"] for one in checks) else 1
