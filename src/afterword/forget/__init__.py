"""Erases a user: rows, adapters, files and bytes, with a report that others can check.

    find -> redact -> fall back and put aside -> files -> rewrite the database -> search every byte -> report

Each step may be done twice. What is to be done, with the words to look for, lies in `forget/ID.pending` until the
report is written: a run that was killed is finished by running the same command again. Never decides what is served
(that is a release row) and never trains.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import orjson

from afterword.chat.redact import redact
from afterword.errors import NothingToDo
from afterword.forget.files import clean, exported, searched
from afterword.forget.plan import ErasurePlan, unfinished
from afterword.forget.report import as_text, check, read_report, report_of
from afterword.records import Candidate, Json
from afterword.release.publish import fall_back, put_aside
from afterword.store import Store
from afterword.store.erasure.erase import Eraser
from afterword.store.erasure.erasure_search import rejects_of
from afterword.store.files import write_whole
from afterword.store.locks import ERASE, EVALUATE, TRAIN, alone

__all__ = ["as_text", "check", "forget_user", "held_of", "read_report", "tainted_by"]


def held_of(store: Store, user: str) -> dict[str, int]:
    """How many rows of each table an erasure would take; nothing is changed."""
    with Eraser(store.path) as eraser:
        held = eraser.find(user)
    rejects = sum(1 for _ in rejects_of(store.path.parent, user))
    return {**{table: len(ids) for table, ids in (*held.rows.items(), *held.pruned.items())}, "rejects": rejects}


def tainted_by(store: Store, user: str) -> list[str]:
    """Candidates that learned from this user, themselves or through an ancestor: an erasure puts them aside."""
    with Eraser(store.path) as eraser:
        gone = set(eraser.find(user).rows["interactions"])
    found: list[str] = []
    for row in store.rows(Candidate) if gone else ():
        if gone.intersection(row.interactions) or row.parent in found:
            found.append(row.id)
    return found


def forget_user(
    store: Store, user: str, *, delete_adapters: bool = False, note: Callable[[str], None] = lambda text: None
) -> Json:
    """Erase a user and everything derived from their rows.

    Args:
        store: The database; its connections are closed before the file is rewritten.
        user: As the client named them.
        delete_adapters: Delete adapters that learned from them, instead of moving them to `quarantine/`.
        note: Called with each step.

    Returns:
        The report, which is also in `forget/ID.json` beside the database. `clean` is False when a byte of theirs was
        found at the end.

    Raises:
        ConflictError: A training or an evaluation runs.
        NothingToDo: Nothing is held about the user.
        StoreError: The database cannot be rewritten now; rows are redacted by then, and a second run goes on.
    """
    directory = store.path.parent
    (directory / "forget").mkdir(parents=True, exist_ok=True)
    with (
        # A run that goes on would write their words into files that were cleaned, and learn from them.
        alone(directory, TRAIN, "an erasure"),
        alone(directory, EVALUATE, "an erasure"),
        alone(directory, ERASE, "an erasure"),
        Eraser(store.path) as eraser,
    ):
        plan = _planned(store, eraser, user, directory)
        note("rows become tombstones")
        eraser.redact(user, plan.erasure)
        note("adapters are put aside")
        fall_back(store, f"erasure {plan.erasure}: what was served learned from a user who was forgotten")
        adapters = put_aside(store, directory, delete=delete_adapters)
        note("files are cleaned")
        clean(eraser, store, directory, plan)
        outside = exported(store)
        note("the database is rewritten")
        store.close()  # its readers would keep the old log alive
        eraser.scrub()
        note("every byte is searched")
        report = report_of(store, plan, adapters, searched(eraser, directory, plan, outside))
    for name, data in (("json", orjson.dumps(report, option=orjson.OPT_INDENT_2)), ("txt", as_text(report).encode())):
        write_whole(directory / "forget" / f"{plan.erasure}.{name}", data, private=True)
    if report["clean"]:
        plan.file.unlink(missing_ok=True)
    return report


def _planned(store: Store, eraser: Eraser, user: str, directory: Path) -> ErasurePlan:
    """The plan of this erasure: that of a run that was killed, if there is one, together with what is held now."""
    plan = unfinished(directory, user)
    held = eraser.find(user)
    if plan is None and not held and not any(True for _ in rejects_of(directory, user)):
        raise NothingToDo(f"no data is stored of the user {user!r}. User names are matched exactly.")
    plan = plan or ErasurePlan.new(directory, user)
    words = plan.words()
    for table, row in eraser.bodies(held):
        words.add(table, row)
    words.texts |= {redact(text).text for text in words.texts}  # as they stand in files to train on
    mine = set(held.rows["exports"])
    plan.exports = sorted({*plan.exports, *(str(path) for name, _, path, _, _ in store.exports() if name in mine)})
    plan.ids, plan.texts = sorted(words.ids), sorted(words.texts)
    plan.keep()
    return plan
