"""`Store`: append records, read them back by named queries. The only door to the database.

Reads use one connection per thread and see every commit; writes go through the process's one `Writer`.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar, cast

from afterword.errors import NotFoundError, StoreError
from afterword.records import (
    RECORDS,
    Candidate,
    Episode,
    Feedback,
    Interaction,
    Record,
    Release,
    Report,
    Review,
    Skip,
    Turn,
    Verdict,
    new_id,
)
from afterword.store.artifacts import Artifacts
from afterword.store.channels import wider
from afterword.store.codec import SEARCHED, decoder, encode, select
from afterword.store.schema import CLEARED, FORGOTTEN, TOMBSTONE, connect, open_database, reader
from afterword.store.votes import VOTE, Vote, first_id, standing_reviews, superseded, voter_of
from afterword.store.writer import Outcome, Rows, Writer

R = TypeVar("R", bound=Record)


_BEHIND = "z"
"""Sorts behind all that a thread goes on with: letters and digits of hexadecimal, and marks."""


class TrailTurn(NamedTuple):
    """A turn as far as linking needs it."""

    id: str
    seq: int
    """Grows with every turn that is written."""
    thread: str
    conversation: str | None


_ALIVE = f"NOT {TOMBSTONE.format('t')}"
"""Tombstones are no records: no query returns them, and nobody can tell them from rows that never were."""
_UNDECIDED = f"""
    WHERE t.kind NOT IN ('retraction', '{FORGOTTEN}')
      AND EXISTS (SELECT 1 FROM turns x WHERE x.id = t.turn)
      AND NOT EXISTS (SELECT 1 FROM skips s WHERE s.feedback = t.id)
      AND NOT EXISTS (SELECT 1 FROM interactions i, json_each(i.feedback) j WHERE i.turn = t.turn AND j.value = t.id)
"""


def _equal(columns: dict[str, Any]) -> tuple[str, tuple[Any, ...]]:
    """The condition and its values; not `IS ?`, which no index without empty values serves."""
    parts = [f"t.{name} IS NULL" if value is None else f"t.{name} = ?" for name, value in columns.items()]
    return " AND ".join(parts) or "1", tuple(value for value in columns.values() if value is not None)


class Store:
    """The database of one data directory. Open it with `Store.open(dir / "afterword.db")`; use as a context."""

    def __init__(
        self, path: Path, before: Callable[[Record], Record] | None = None, artifacts: str | None = None
    ) -> None:
        self.path = path
        self.artifacts = Artifacts(path.parent, artifacts)
        """The adapter folders that rows name."""
        self._before = before
        open_database(path).close()
        self._writer: Writer | None = None
        self._bulk = False
        self._lock = threading.Lock()
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []

    @classmethod
    def open(cls, path: Path, before: Callable[[Record], Record] | None = None, artifacts: str | None = None) -> Self:
        """Open or create.

        Args:
            path: The database's file; adapters lie beside it.
            before: Transforms every record before it is written (redaction).
            artifacts: URL of the object store that has the adapters too (`store.artifacts`).

        Raises:
            StoreError: It is no database, too new, or cannot be written.
        """
        return cls(path, before, artifacts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write queued rows and close every connection."""
        with self._lock:
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            for reader in self._readers:
                reader.close()
            self._readers.clear()
            self._local = threading.local()

    # ---- writing

    def submit(self, records: Sequence[Record], *, live: bool = False) -> Future[list[Outcome]]:
        """Queue records for the next commit; never blocks: redaction runs in the writer's thread.

        Args:
            records: Records to append.
            live: They happen now and are not read from a file.

        Returns:
            A future that is done when they are on disk, or fails with StoreError.

        Raises:
            UsageError: A record cannot be stored (a lone surrogate, a number as an id).
            StoreError: The database cannot be opened for writing.
        """
        rows: Rows = [encode(record, live=live) for record in records]
        if self._before is not None:
            taken = list(records)
            rows = lambda: [encode(self.as_stored(record), live=live) for record in taken]  # noqa: E731
        with self._lock:
            if self._writer is None:
                try:
                    self._writer = Writer(self.path, bulk=self._bulk)
                except sqlite3.Error as error:
                    raise StoreError(
                        f"cannot write to {self.path}: {error}. Nothing was stored; make the data directory writable "
                        "for this user, free disk space, or name another place with --dir."
                    ) from error
            return self._writer.submit(rows)

    def as_stored(self, record: R) -> R:
        """A record as it would be stored."""
        return record if self._before is None else cast(R, self._before(record))

    def without_private(self, text: str, value: Any = None) -> tuple[str, Any]:
        """A text and a JSON value as they would be stored, for files beside the database."""
        if self._before is None:
            return text, value
        row = self._before(Feedback(id="-", turn="-", kind="comment", text=text, metadata={"row": value}))
        assert isinstance(row, Feedback)
        return row.text or "", row.metadata["row"]

    def write(self, *records: Record) -> list[Outcome]:
        """Append records and wait until they are on disk: "stored", "duplicate" or "conflict" for each."""
        return self.submit(records).result()

    @contextmanager
    def bulk(self) -> Iterator[None]:
        """While this is open the writer has settings for very many rows; as durable, and as open to others."""
        self._renew(bulk=True)
        try:
            yield
        finally:
            self._renew(bulk=False)

    def _renew(self, *, bulk: bool) -> None:
        with self._lock:
            if self._writer is not None:
                self._writer.close()
            self._writer, self._bulk = None, bulk

    @property
    def pending(self) -> int:
        """Submissions that wait for a commit."""
        writer = self._writer
        return writer.pending if writer is not None else 0

    def note_export(self, to: Path, what: str, format: str, user: str | None) -> None:
        """Remember that rows leave for a file, so that it is found when a user is to be forgotten."""
        row = (new_id("exp"), time.time(), b"\x01", str(to.resolve()), what, format, user, b"{}")
        connection = None
        try:
            connection = connect(self.path)
            connection.execute(
                "INSERT INTO exports (id, created_at, digest, path, what, format, user, body) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
        except sqlite3.Error as error:
            raise StoreError(
                f"cannot note the export in {self.path}: {error}. Nothing was exported: a file that nobody knows of "
                "could not be cleaned when a user is forgotten. Make the data directory writable, or export to stdout."
            ) from error
        finally:
            if connection is not None:
                connection.close()

    def exports(self) -> list[tuple[str, float, Path, str, str]]:
        """(id, time, file, what, format) of every export to a file, oldest first."""
        sql = f"SELECT t.id, t.created_at, t.path, t.what, t.format FROM exports t WHERE {_ALIVE} ORDER BY t.seq"
        return [(name, at, Path(path), what, form) for name, at, path, what, form in self.read(sql)]

    def note_traces(self, last: Mapping[str, tuple[str, float]]) -> None:
        """Remember the last turn of each trace: trace -> (turn, when it was answered)."""
        connection = None
        try:
            connection = connect(self.path)
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(
                "INSERT INTO traces VALUES (?, ?, ?) ON CONFLICT(trace) DO UPDATE "
                "SET turn = excluded.turn, at = excluded.at WHERE excluded.at >= at",
                [(trace, *turn) for trace, turn in last.items()],
            )
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise StoreError(f"cannot note the traces in {self.path}: {error}. Run the import again.") from error
        finally:
            if connection is not None:
                connection.close()

    # ---- reading

    def read(self, sql: str, parameters: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """For the named queries of this room: rows as they are fetched; StoreError when they cannot be read."""
        try:
            connection = getattr(self._local, "connection", None)
            if connection is None:
                connection = reader(self.path)
                self._local.connection = connection
                with self._lock:
                    self._readers.append(connection)
            return self._fetched(connection.execute(sql, parameters))
        except sqlite3.Error as error:
            raise StoreError(f"cannot read {self.path}: {error}") from error

    def _fetched(self, cursor: sqlite3.Cursor) -> Iterator[tuple[Any, ...]]:
        try:
            yield from cursor
        except sqlite3.Error as error:
            raise StoreError(f"cannot read {self.path}: {error}") from error

    def find(self, kind: type[R], identifier: str) -> R | None:
        """The record with this id, or None."""
        row = next(self.read(f"{select(kind.TABLE)} WHERE t.id = ? AND {_ALIVE}", (identifier,)), None)
        return None if row is None else cast(R, decoder(kind.TABLE)(row))

    def get(self, kind: type[R], identifier: str) -> R:
        """The record with this id; a unique beginning of it is enough. NotFoundError otherwise."""
        found = self.find(kind, identifier)
        if found is not None:
            return found
        like = identifier.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        rows = list(self.read(f"{select(kind.TABLE)} WHERE t.id LIKE ? ESCAPE '\\' AND {_ALIVE} LIMIT 2", (like,)))
        if len(rows) != 1 or not identifier:
            why = "more than one id begins so" if rows else "there is none"
            raise NotFoundError(
                f"no {kind.__name__.lower()} {identifier!r} in {self.path}: {why}. "
                f"List them with `afterword {kind.TABLE} list`."
            )
        return cast(R, decoder(kind.TABLE)(rows[0]))

    def rows(self, kind: type[R], /, *, newest: bool = False, limit: int | None = None, **equal: Any) -> Iterator[R]:
        """Stream records in the order written (or newest first) whose searched columns equal the given values.

        A value of None means "is empty". Columns: see `codec.SEARCHED`.
        """
        unknown = set(equal) - set(SEARCHED[kind.TABLE])
        assert not unknown, f"{kind.TABLE} has no searched column {unknown}"
        where, values = _equal(equal)
        where = f"{where} AND {_ALIVE}"
        sql = f"{select(kind.TABLE)} WHERE {where} ORDER BY t.seq {'DESC' if newest else 'ASC'}"
        cursor = self.read(sql + (f" LIMIT {int(limit)}" if limit is not None else ""), values)
        decode = decoder(kind.TABLE)
        return (cast(R, decode(row)) for row in cursor)

    def count(self, kind: type[Record], /, **equal: Any) -> int:
        """How many rows; filters as in `rows`."""
        where, values = _equal(equal)
        number = int(next(self.read(f"SELECT count(*) FROM {kind.TABLE} t WHERE {where}", values))[0])
        if kind.TABLE in CLEARED:  # counting all and taking the few tombstones off reads indexes only
            gone = f"{kind.TABLE} t INDEXED BY {kind.TABLE}_forgotten WHERE {TOMBSTONE.format('t')} AND {where}"
            number -= int(next(self.read(f"SELECT count(*) FROM {gone}", values))[0])
        return number

    def counts(self) -> dict[str, int]:
        """Rows of every kind, in the order of the spine."""
        return {kind.TABLE: self.count(kind) for kind in RECORDS}

    def tally(self, kind: type[Record], column: str) -> dict[str, int]:
        """Rows per value of a searched column, most frequent first."""
        assert column in SEARCHED[kind.TABLE]
        sql = f"SELECT {column}, count(*) FROM {kind.TABLE} t WHERE %s GROUP BY 1 ORDER BY 2 DESC, 1"
        numbers = {str(value): int(number) for value, number in self.read(sql % "1")}
        if kind.TABLE in CLEARED:
            for value, number in self.read(sql % TOMBSTONE.format("t")):
                numbers[str(value)] -= int(number)
        return {value: number for value, number in numbers.items() if number}

    # ---- named queries

    def automated(self) -> dict[str, int]:
        """Turns whose request ends with a message that a program wrote, by how it was known; most frequent first."""
        sql = f"""SELECT automated, count(*) FROM turns t WHERE automated IS NOT NULL AND {_ALIVE}
            GROUP BY 1 ORDER BY 2 DESC, 1"""
        return {name: int(number) for name, number in self.read(sql)}

    def turns_of_thread(self, thread: str) -> list[str]:
        """Ids of turns whose conversation up to the answer has this hash; two at most (two are ambiguous)."""
        return [row[0] for row in self.read("SELECT id FROM turns WHERE thread = ? LIMIT 2", (thread,))]

    def turns_on_trails(self, starts: Sequence[str], limit: int) -> list[TrailTurn]:
        """Turns whose `thread` begins with one of `starts` (see `chat.trail`), `limit` at most for each, in no
        order."""
        one = (
            "SELECT * FROM (SELECT t.id, t.seq, t.thread, t.conversation FROM turns t INDEXED BY turns_thread "
            "WHERE t.thread >= ? AND t.thread < ? LIMIT ?)"
        )
        values = [value for start in starts for value in (start, start + _BEHIND, limit)]
        return [TrailTurn(*row) for row in self.read(" UNION ALL ".join([one] * len(starts)), values)]

    def turns_of_conversation_on_trail(self, conversation: str, start: str, limit: int) -> list[TrailTurn]:
        """The same for one conversation and one start, where very many turns of others begin so."""
        # The unary plus keeps the index of threads out.
        sql = (
            "SELECT t.id, t.seq, t.thread, t.conversation FROM turns t INDEXED BY turns_conversation "
            "WHERE t.conversation = ? AND +t.thread >= ? AND +t.thread < ? LIMIT ?"
        )
        return [TrailTurn(*row) for row in self.read(sql, (conversation, start, start + _BEHIND, limit))]

    def turns_on_trail_later(self, start: str, at: int, rest: str, within: int, limit: int) -> list[TrailTurn] | None:
        """The same for turns that also have `rest` from character `at` of their thread on. None when more than
        `within` turns begin with `start`: too many to look at each."""
        among = (
            "SELECT t.seq, t.thread FROM turns t INDEXED BY turns_thread WHERE t.thread >= ? AND t.thread < ? LIMIT ?"
        )
        ends = (start, start + _BEHIND)
        if next(self.read(f"SELECT count(*) FROM ({among})", (*ends, within + 1)))[0] > within:
            return None
        sql = (
            "SELECT t.id, t.seq, t.thread, t.conversation FROM turns t WHERE t.seq IN "
            f"(SELECT a.seq FROM ({among}) a WHERE substr(a.thread, ?, ?) = ? LIMIT ?)"
        )
        values = (*ends, within, at + 1, len(rest), rest, limit)
        return [TrailTurn(*row) for row in self.read(sql, values)]

    def unlinked(self) -> dict[str, int]:
        """Turns whose request had a history and was linked to nothing, by the reason, most frequent first."""
        sql = "SELECT unlinked, count(*) FROM turns WHERE unlinked IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"
        return dict(self.read(sql))

    def turn_of_trace(self, trace: str) -> str | None:
        """The last turn of a trace, as `note_traces` was told."""
        row = next(self.read("SELECT turn FROM traces WHERE trace = ?", (trace,)), None)
        return None if row is None else str(row[0])

    def uncollected_episodes(self) -> Iterator[Episode]:
        """Episodes with turns of which no interaction was made, oldest first."""
        decode = decoder("episodes")
        turns = "SELECT 1 FROM turns x WHERE x.episode_id = t.id"
        made = "SELECT 1 FROM turns x JOIN interactions i ON i.turn = x.id WHERE x.episode_id = t.id"
        sql = (
            f"{select('episodes')} WHERE {_ALIVE} AND EXISTS ({turns}) AND NOT EXISTS ({made} AND i.kind = 'outcome') "
            "ORDER BY t.seq"
        )
        return (cast(Episode, decode(row)) for row in list(self.read(sql)))

    def undecided(self) -> Iterator[Feedback]:
        """Feedback on known turns that is neither in an interaction nor skipped."""
        decode = decoder("feedback")
        cursor = self.read(f"{select('feedback')} {_UNDECIDED} ORDER BY t.seq")
        return (cast(Feedback, decode(row)) for row in cursor)

    def undecided_after(self, seq: int, limit: int) -> list[tuple[int, str]]:
        """A page of undecided feedback as (row number, turn id), oldest first, from beyond row `seq`."""
        sql = f"SELECT t.seq, t.turn FROM feedback t {_UNDECIDED} AND t.seq > ? ORDER BY t.seq LIMIT ?"
        return list(self.read(sql, (seq, limit)))

    def among(self, kind: type[R], column: str, values: Sequence[str]) -> list[tuple[int, R]]:
        """(row number, record) of every row whose `column` (the id or a searched one) is one of `values`."""
        assert column == "id" or column in SEARCHED[kind.TABLE], f"{kind.TABLE} has no searched column {column}"
        decode = decoder(kind.TABLE)
        head = select(kind.TABLE)
        found: list[tuple[int, R]] = []
        for start in range(0, len(values), 500):
            part = values[start : start + 500]
            sql = f"{head.replace('SELECT ', 'SELECT t.seq, ', 1)} WHERE t.{column} IN ({', '.join('?' * len(part))})"
            sql += f" AND {_ALIVE}"
            rows = sorted(self.read(sql, part), key=itemgetter(0))  # SQLite would sort whole bodies
            found += [(row[0], cast(R, decode(row[1:]))) for row in rows]
        return found

    def continued(self, turns: Sequence[str]) -> set[str]:
        """Those of `turns` that a later turn goes on from."""
        found: set[str] = set()
        for start in range(0, len(turns), 500):
            part = turns[start : start + 500]
            where = f"t.previous IN ({', '.join('?' * len(part))}) AND {_ALIVE}"
            found.update(row[0] for row in self.read(f"SELECT DISTINCT t.previous FROM turns t WHERE {where}", part))
        return found

    def ancestors(self, turn: str) -> Iterator[tuple[str, str | None]]:
        """(turn id, conversation) of a turn and of those before it, newest first; a circle ends it."""
        sql = """WITH RECURSIVE chain(id, previous, conversation) AS (
            SELECT id, previous, conversation FROM turns WHERE id = ?
            UNION SELECT t.id, t.previous, t.conversation FROM turns t JOIN chain c ON t.id = c.previous)
            SELECT id, conversation FROM chain"""
        return self.read(sql, (turn,))

    def leaves(self) -> Iterator[Turn]:
        """Turns that no other turn continues: the last of each conversation, or of each branch of it."""
        decode = decoder("turns")
        last = "NOT EXISTS (SELECT 1 FROM turns x WHERE x.previous = t.id)"
        sql = f"{select('turns')} WHERE {last} AND {_ALIVE} ORDER BY t.seq"
        return (cast(Turn, decode(row)) for row in self.read(sql))

    def without_consent(self) -> Iterator[Turn]:
        """Turns that may not be trained on."""
        decode = decoder("turns")
        # Within a text of the body quotes are escaped: only a key reads so. Whose key it is, the record says.
        sql = f"{select('turns')} WHERE instr(t.body, CAST('\"consent\":false' AS BLOB)) AND {_ALIVE} ORDER BY t.seq"
        turns = (cast(Turn, decode(row)) for row in self.read(sql))
        return (turn for turn in turns if not turn.consent)

    def following(self, turns: Sequence[str]) -> set[str]:
        """Ids of all turns that continue one of `turns`, directly or through others."""
        found: set[str] = set()
        while turns:
            after: set[str] = set()
            for start in range(0, len(turns), 500):
                part = turns[start : start + 500]
                sql = f"SELECT id FROM turns WHERE previous IN ({', '.join('?' * len(part))})"
                after.update(row[0] for row in self.read(sql, part))
            turns = sorted(after - found)
            found |= after
        return found

    def held(self) -> int:
        """How much feedback waits for its turn."""
        sql = (
            "SELECT count(*) FROM feedback t WHERE NOT EXISTS (SELECT 1 FROM turns x WHERE x.id = t.turn) "
            "AND NOT EXISTS (SELECT 1 FROM episodes e WHERE e.id = t.turn)"
        )
        return int(next(self.read(sql))[0])

    def retracted(self) -> set[str]:
        """Ids of feedback that was taken back."""
        return {row[0] for row in self.read("SELECT retracts FROM feedback WHERE retracts IS NOT NULL")}

    def versions(self, event: Feedback) -> list[str]:
        """Ids under which an event is stored: its own, and those of a vote that was sent again with another content."""
        if event.kind != VOTE:
            return [event.id]
        rows = self.rows(Feedback, turn=event.turn)
        return [event.id, *(row.id for row in rows if row.id != event.id and first_id(row.id) == event.id)]

    def superseded(self, turns: Sequence[str] | None = None) -> set[str]:
        """Ids of votes (on these turns, or on all) that a newer one of the same user replaces."""
        if turns is None:
            sql = "SELECT turn FROM feedback WHERE kind = ? GROUP BY turn HAVING count(*) > 1"
            turns = [row[0] for row in self.read(sql, (VOTE,))]
        rows = [(seq, row) for seq, row in self.among(Feedback, "turn", turns) if row.kind == VOTE]
        if len(rows) < 2:
            return set()
        taken_back = {row.retracts for _, row in self.among(Feedback, "retracts", [row.id for _, row in rows])}
        asked = {turn.id: turn.user for _, turn in self.among(Turn, "id", list({row.turn for _, row in rows}))}
        return superseded(
            Vote(seq, row.id, row.turn, voter_of(row.to_dict(), asked.get(row.turn)), row.occurred_at)
            for seq, row in rows if row.id not in taken_back
        )  # fmt: skip

    def reviews(self) -> dict[str, Review]:
        """The newest review of each interaction that has one; withdrawn ones do not count."""
        return {name: [*by.values()][-1] for name, by in standing_reviews(self.rows(Review)).items()}

    def barred(self) -> Callable[[Interaction], str | None]:
        """A function that says why an interaction is not used any more, None when it is: its feedback was taken back,
        its user changed the vote, a reviewer rejected it, or later feedback of like strength contradicted it."""
        gone, changed = self.retracted(), self.superseded()
        denied = {skip.turn: skip.created_at for skip in self.rows(Skip, reason="contradictory")
                  if skip.feedback not in gone}  # fmt: skip
        rejected = {name for name, review in self.reviews().items() if review.decision == "reject"}

        def why(row: Interaction) -> str | None:
            if row.id in rejected:
                return "rejected"
            if gone.intersection(row.feedback):
                return "retracted"
            if changed.intersection(row.feedback):
                return "changed"
            return "contradicted" if row.created_at < denied.get(row.turn, 0.0) else None

        return why

    def usable(self, split: str, *, episodes: bool = False) -> list[Interaction]:
        """Interactions of a split that are not `barred`, oldest first: those of episodes, or all others."""
        barred = self.barred()
        rows = (row for row in self.rows(Interaction, split=split) if (row.episode_id is not None) == episodes)
        return [row for row in rows if barred(row) is None]

    def held_out(self) -> tuple[set[str], set[str]]:
        """Turns with a held-out interaction, and the conversations of these."""
        sql = "SELECT t.id, t.conversation FROM interactions i JOIN turns t ON t.id = i.turn WHERE i.split = 'holdout'"
        found = list(self.read(sql))
        return {turn for turn, _ in found}, {name for _, name in found if name is not None}

    def spent(self, channel: str = "default") -> set[str]:
        """Interactions in the ancestry of the adapter that the channel serves now."""
        release = self.release(channel)
        return self.learned_by(release.candidate if release else None)

    def learned_by(self, candidate: str | None) -> set[str]:
        """Interactions that a candidate and its ancestors were trained on; none for the base model (None)."""
        spent: set[str] = set()
        while candidate is not None:
            row = self.get(Candidate, candidate)
            spent.update(row.interactions)
            candidate = row.parent
        return spent

    def release(self, channel: str = "default") -> Release | None:
        """By which row the channel serves everyone now: its own newest one that is no canary. A channel of a scope
        or task that has nothing of its own is served by the next wider one; None before the first."""
        own: Release | None = None
        for name in (channel, *wider(channel)):
            own = next((r for r in self.rows(Release, newest=True, channel=name) if r.action != "canary"), None)
            if own is not None and own.candidate is not None:
                break
        return own

    def canary(self, channel: str = "default") -> Release | None:
        """The canary that runs on the channel: its newest row, if it is one."""
        row = self.newest(Release, channel=channel)
        return row if row is not None and row.action == "canary" else None

    # ---- forgotten users

    def tainted(self) -> dict[str, tuple[str, ...]]:
        """Candidates that learned from a forgotten user, themselves or through an ancestor -> the interactions.

        Never released, never trained on; an empty tuple: only an ancestor learned from them.
        """
        gone = {name for name, _ in self.tombstones("interactions")}
        found: dict[str, tuple[str, ...]] = {}
        if gone:
            for row in self.rows(Candidate):
                own = tuple(i for i in row.interactions if i in gone)
                if own or row.parent in found:
                    found[row.id] = own
        return found

    def tombstones(self, table: str) -> list[tuple[str, str]]:
        """(id, erasure) of the rows of a table that were erased, oldest first."""
        where = f"{table} t INDEXED BY {table}_forgotten WHERE {TOMBSTONE.format('t')}"
        sql = f"SELECT t.id, CAST(t.body AS TEXT) FROM {where} ORDER BY t.seq"
        return list(self.read(sql))

    def erasures(self) -> list[tuple[str, float, str, str]]:
        """(id, time, salt, hash of the user) of every erasure; see `erase.user_hash`."""
        return list(self.read("SELECT id, created_at, salt, user_hash FROM erasures ORDER BY seq"))

    def newest(self, kind: type[R], /, **equal: Any) -> R | None:
        """The row written last."""
        return next(self.rows(kind, newest=True, limit=1, **equal), None)

    def lineage(self, turn: str) -> dict[str, list[Record]]:
        """Everything that came of a turn, by table: its episode, feedback, interactions, skips, and the candidates,
        reports, verdicts and releases that contain them."""
        row = self.get(Turn, turn)
        found: dict[str, list[Record]] = {"turns": [row]}
        if row.episode_id is not None and (episode := self.find(Episode, row.episode_id)) is not None:
            found["episodes"] = [episode]
        found["feedback"] = list(self.rows(Feedback, turn=turn))
        interactions = list(self.rows(Interaction, turn=turn))
        found["interactions"] = list(interactions)
        found["skips"] = list(self.rows(Skip, turn=turn))
        ids = {i.id for i in interactions}
        candidates = [c for c in self.rows(Candidate) if ids.intersection(c.interactions)]
        found["candidates"] = list(candidates)
        for kind in (Report, Verdict, Release):
            found[kind.TABLE] = [r for c in candidates for r in self.rows(kind, candidate=c.id)]
        return found
