"""Rows out of the store into files and streams: which shapes there are, and all that is held of one user.

Owns the table of exports; streams, holds one row at a time, never changes a row. Each export to a file is noted in
the store, so that it can be found again when a user is to be forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from afterword.errors import NotFoundError, UsageError
from afterword.records import Candidate, Feedback, Interaction, Json, Record, Release, Turn
from afterword.store import shapes, shapes_logs
from afterword.store.codec import BY_TABLE
from afterword.store.containers import Out
from afterword.store.erasure.erase import Eraser
from afterword.store.erasure.erasure_search import rejects_of
from afterword.store.export_filter import View
from afterword.store.shapes import Shape
from afterword.store.store import Store

EXPORTS: dict[tuple[str, str], Shape] = {
    ("turns", "afterword"): shapes.own(Turn),
    ("turns", "openai"): shapes.conversations,
    ("turns", "sharegpt"): shapes_logs.sharegpt,
    ("turns", "wildchat"): shapes_logs.wildchat,
    ("turns", "tensorzero"): shapes_logs.tensorzero_turns,
    ("turns", "langfuse"): shapes_logs.langfuse_turns,
    ("turns", "trl-prompt-completion"): shapes.turn_completions,
    ("feedback", "afterword"): shapes.own(Feedback),
    ("feedback", "events"): shapes.events,
    ("feedback", "tensorzero"): shapes_logs.tensorzero_feedback,
    ("feedback", "langfuse"): shapes_logs.langfuse_feedback,
    ("interactions", "afterword"): shapes.own(Interaction),
    ("interactions", "openai"): shapes.openai,
    ("interactions", "openai-preference"): shapes.openai_preferences,
    ("interactions", "triples"): shapes.triples,
    ("interactions", "wildfeedback"): shapes_logs.wildfeedback,
    ("interactions", "trl-prompt-completion"): shapes.completions,
    ("interactions", "trl-preference"): shapes.preferences,
}
"""(what, format) -> the rows."""


TRAINING = frozenset(
    (what, form) for what, form in EXPORTS
    if (what == "interactions" and form != "afterword")
    or (what == "turns" and form in ("openai", "sharegpt", "wildchat", "trl-prompt-completion"))
)  # fmt: skip
"""Shapes of data sets and training libraries: redacted, and without what is held out. Products' own logs are not."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What became of an export."""

    rows: int
    left_out: dict[str, int]
    """Turns, conversations, feedback or interactions that did not leave, by reason."""


def export(
    store: Store,
    what: str,
    format: str,
    out: Out,
    *,
    to: Path | None = None,
    clean: Callable[[Record], Record] | None = None,
    split: str = "train",
) -> Exported:
    """Write `what` (turns, feedback, interactions) in `format` to `out`.

    Our own form holds everything and says of each row what may be done with it. Every other one leaves out what may
    not be trained on; those of `TRAINING` pass `clean`, and are of one `split` (`view.SPLITS`). `to` is the file behind
    `out`, which is then noted in the store. Raises UsageError for a pair that makes no sense, with those that do.
    """
    shape = EXPORTS.get((what, format))
    if shape is None:
        pairs = ", ".join(f"{w} as {f}" for w, f in EXPORTS)
        raise UsageError(f"{what!r} cannot be exported as {format!r}. Possible: {pairs}.")
    if to is not None:  # noted before the first row is written: a kill in between must not hide the file
        store.note_export(to, what, format, None)
    view = View(store, clean, split) if (what, format) in TRAINING else View(store)
    return Exported(_written(shape(view), out), dict(view.left.most_common()))


def export_user(store: Store, user: str, out: Out, *, to: Path | None = None) -> int:
    """Write all that is held of a user: their rows, what was made of them, the adapters that learned from them, and
    rows of theirs that an import rejected.

    The shape is our own. Raises NotFoundError when nothing is held.
    """
    with Eraser(store.path) as eraser:
        held = eraser.find(user)
        refused = [{"record": "rejects", **line} for line in rejects_of(store.path.parent, user)]
        if not held and not refused:
            raise NotFoundError(f"nothing is held of the user {user!r}. Users are matched as the client named them.")
        if to is not None:
            store.note_export(to, "user", "afterword", user)
        rows = eraser.bodies(held)
        written = _written(({"record": table, **row} for table, row in _decoded(store, rows) if table in BY_TABLE), out)
    learned = [c for c in store.rows(Candidate) if set(c.interactions) & set(held.rows["interactions"])]
    more: list[Json] = refused + [{"record": c.TABLE, **c.to_dict()} for c in learned]
    for candidate in learned:
        more += [{"record": r.TABLE, **r.to_dict()} for r in store.rows(Release, candidate=candidate.id)]
    return written + _written(iter(more), out)


def _decoded(store: Store, rows: Iterator[tuple[str, Json]]) -> Iterator[tuple[str, Json]]:
    for table, row in rows:
        record = store.find(BY_TABLE[table], row["id"]) if table in BY_TABLE else None
        yield table, row if record is None else record.to_dict()


def _written(rows: Iterator[Json], out: Out) -> int:
    number = 0
    for row in rows:
        out.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        number += 1
    return number
