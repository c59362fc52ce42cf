"""Runs a bridge: fetches rows, reads them as `import` does, stores and counts them, keeps how far it came.

Ids come from the ids of the source, so that a row that comes again is a duplicate. The mark in `DIR/bridges` only saves
work: losing it costs time. A row of an erased user from before the erasure stays out.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import orjson

from afterword.errors import UsageError
from afterword.feedback.importing.branches import ImportNames, remarked, unfolded_tree
from afterword.feedback.importing.imports import replace_surrogates
from afterword.feedback.importing.unfold import Threads, unfolded
from afterword.formats.naming import Traces
from afterword.formats.parsing import Hashed, Remark, Tree
from afterword.formats.registry import FORMATS
from afterword.records import Feedback, Json, Record, Turn, content_hash
from afterword.store import Store
from afterword.store.codec import encode
from afterword.store.erasure.erase import user_hash
from afterword.store.erasure.erasure_search import user_of
from afterword.store.files import write_whole

GROUP = 500
"""Records of one commit, about; the mark is kept after each."""
GROUP_BYTES = 1 << 23
"""Bytes of their rows, about."""


class SourceRow(NamedTuple):
    """One row as the source gave it."""

    id: str
    """The source's own id of it."""
    value: Any
    changed_at: float | None = None
    """Unix seconds of its last change; None: unknown."""
    feedback: bool = False
    """It is a vote that its user may take back by deleting it."""


class BridgeSource(Protocol):
    """What a bridge reads from."""

    name: str
    """As on the command line."""
    format: str
    """A name of `registry.FORMATS` that reads its rows."""
    where: str
    """Address, for the mark: two installations have two marks."""

    def rows(self, mark: Json) -> Iterator[SourceRow]:
        """Rows changed since `mark`, oldest change first within each kind. The source changes `mark` as it yields:
        what stands there after a row has been asked for is true of all rows before it."""
        ...

    def present(self) -> set[str] | None:
        """Ids of all votes that exist there now; None: the source cannot say."""
        ...


@dataclass(slots=True)
class BridgeSummary:
    """Counts of one run."""

    bridge: str
    rows: int = 0
    """Rows that came."""
    turns: int = 0
    feedback: int = 0
    stored: int = 0
    """Records that are new in the store."""
    duplicates: int = 0
    conflicts: int = 0
    """Records whose id was there with other content; the first one stays."""
    forgotten: int = 0
    """Rows and records of users who were erased."""
    retracted: int = 0
    """Votes that their user took back there."""
    captured: int = 0
    """Answers that the gateway had captured: feedback goes to that turn."""
    held: int = 0
    """Feedback on an answer that is not known (a deleted message, a chat that did not come)."""
    left_out: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    """Rows by reason."""
    examples: list[str] = field(default_factory=list)
    """The first rejected rows: reason and what was wrong."""

    def to_dict(self) -> dict[str, Any]:
        """All counts as JSON."""
        plain: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        for name in ("left_out", "rejected"):
            plain[name] = dict(sorted(plain[name].items()))
        return plain


def mark_file(directory: Path, source: BridgeSource) -> Path:
    """Where a bridge keeps how far it came."""
    digest = hashlib.blake2b(source.where.encode(), digest_size=6).hexdigest()
    return directory / "bridges" / f"{source.name}-{digest}.json"


def run_bridge(store: Store, source: BridgeSource, *, again: bool = False) -> BridgeSummary:
    """Fetch what is new and store it.

    Args:
        store: Receives the rows.
        source: Where they come from.
        again: Read everything once more; nothing is stored twice.

    Returns:
        Counts of this run.

    Raises:
        UsageError: The source rejects the credentials.
        BridgeError: The source cannot be read; what came before is stored, and the next run goes on behind it.
        StoreError: The database cannot be written.
    """
    return _Run(store, source, again).finish()


class _Run:
    def __init__(self, store: Store, source: BridgeSource, again: bool) -> None:
        self.store, self.source = store, source
        self.file = mark_file(store.path.parent, source)
        self.kept = {} if again else _read_mark(self.file)
        self.mark: Json = self.kept.setdefault("mark", {})
        self.votes: dict[str, list[str]] = self.kept.setdefault("votes", {})
        """A vote's id there -> the ids of its feedback here."""
        self.summary = BridgeSummary(source.name)
        self.names, self.threads, self.traces = ImportNames(store), Threads(store), Traces(store)
        self.erased = [(at, salt, digest) for _, at, salt, digest in store.erasures()]
        self.group: list[Record] = []
        self.size = 0

    def finish(self) -> BridgeSummary:
        try:
            for row in self.source.rows(self.mark):
                self.summary.rows += 1
                try:
                    self._take(row)
                except UsageError as error:
                    self._reject(error.code or "bad_row", f"{row.id}: {error.message}")
                except RecursionError:
                    self._reject("too_deep", f"{row.id}: nested too deeply")
                if len(self.group) >= GROUP or self.size >= GROUP_BYTES:
                    self._commit()
        finally:  # what came before an error stays, with its mark
            self._commit()
        self._retract()
        return self.summary

    def _reject(self, reason: str, why: str) -> None:
        self.summary.rejected[reason] += 1
        if len(self.summary.examples) < 10:
            self.summary.examples.append(f"{reason}: {why}")

    def _take(self, row: SourceRow) -> None:
        if not isinstance(row.value, dict):
            raise UsageError("the row is no object", code="no_object")
        value = _sound(row.value)
        user = user_of(value)
        if user is not None and self._is_erased(user, row.changed_at):
            self.summary.forgotten += 1
            return
        records = self._records(value)
        for record in records:
            self.size += len(encode(record).values[-1])
            self.summary.turns += isinstance(record, Turn)
            self.summary.feedback += isinstance(record, Feedback)
        if row.feedback:
            named = [r.id for r in records if isinstance(r, Feedback) and r.kind != "regenerated"]
            known = self.votes.get(row.id, [])
            self.votes[row.id] = [*known, *(name for name in named[-1:] if name not in known)]
        self.group += records

    def _is_erased(self, user: str, changed_at: float | None) -> bool:
        return any(
            (changed_at is None or changed_at <= at) and user_hash(user, salt) == digest
            for at, salt, digest in self.erased
        )

    def _records(self, value: Json) -> list[Record]:
        parsed = FORMATS[self.source.format].read(value)
        if isinstance(parsed, Tree | Remark):
            if isinstance(parsed, Tree):
                tree: Tree | None = parsed
                found = unfolded_tree(parsed, self.source.format, self.names)
            else:
                tree = parsed.tree
                found = remarked(parsed, self.source.format, self.names)
            self.summary.captured += len(found.captured)
            if tree is not None:
                self.summary.left_out.update({name: n for name, n in tree.left_out.items() if n})
            return list(found.records)
        if isinstance(parsed, Hashed):
            return list(self.names.records(parsed))
        if isinstance(parsed, list):
            linked = [r for one in parsed for r in (self.threads.link(one) if isinstance(one, Turn) else [one])]
            return self.traces.link(value, linked)
        return list(unfolded(parsed, self.source.format, self.names)[0])

    def _commit(self) -> None:
        if self.group:
            outcomes = self.store.write(*self.group)
            self.summary.stored += outcomes.count("stored")
            self.summary.duplicates += outcomes.count("duplicate")
            self.summary.conflicts += outcomes.count("conflict")
            self.summary.forgotten += outcomes.count("forgotten")
            about = sorted({r.turn for r in self.group if isinstance(r, Feedback)})
            here = {turn.id for _, turn in self.store.among(Turn, "id", about)} if about else set()
            self.summary.held += sum(isinstance(r, Feedback) and r.turn not in here for r in self.group)
        self.traces.flush()
        self.group, self.size = [], 0
        self._keep()

    def _keep(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.file, orjson.dumps(self.kept))

    def _retract(self) -> None:
        """Votes that were there and are not any more are taken back by a row of their own."""
        present = self.source.present() if self.votes else None
        if present is None:
            return
        gone = [name for name in self.votes if name not in present]
        rows: list[Record] = []
        for name in gone:
            for _, event in self.store.among(Feedback, "id", self.votes[name]):
                name_here = "fb-" + content_hash("retraction", event.id)
                rows.append(
                    Feedback(id=name_here, turn=event.turn, kind="retraction", retracts=event.id, user=event.user)
                )
        if rows:
            self.summary.retracted = self.store.write(*rows).count("stored")
        for name in gone:
            del self.votes[name]
        if gone:
            self._keep()


def _sound(value: Json) -> Json:
    try:
        orjson.dumps(value)
        return value
    except TypeError:
        mended: Json = replace_surrogates(value)
        return mended


def _read_mark(file: Path) -> Json:
    try:
        found = orjson.loads(file.read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}
