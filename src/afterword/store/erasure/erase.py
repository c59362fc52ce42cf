"""Erases a user from the database: rows, tombstones, quoted words, and the deleted bytes themselves.

Owns the one sanctioned exception to "rows are never changed" (see `schema`): rows of the user, and rows made of them,
become tombstones in one transaction; reports and candidates lose only what they quote. Never touches a file but the
database; adapters and exports are the business of others.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from afterword.errors import StoreError
from afterword.records import Json
from afterword.store.attribution import TURNS_OF_USER
from afterword.store.erasure.erasure_search import PIECE, pieces
from afterword.store.schema import CLEARED, PRUNED, TOMBSTONE, connect

_ALIVE = f"NOT {TOMBSTONE.format('t')}"
_PATIENCE_MS = 60_000
NOTED = ("reviews", "relevances", "revisions", "advantages", "requests")
"""Tables whose rows refer to interactions."""


@dataclass(frozen=True, slots=True)
class UserRows:
    """Rows of one user in the database."""

    rows: dict[str, tuple[str, ...]]
    """Table -> ids of rows of the user, and of rows derived from them."""
    pruned: dict[str, tuple[str, ...]]
    """Table -> ids of rows without a user that quote or name those rows."""

    def __bool__(self) -> bool:
        return any(self.rows.values())


def user_hash(user: str, salt: str) -> str:
    """Keyed hash of a user's name, 32 hex digits: it confirms a known name and reveals none."""
    return hashlib.blake2b(user.encode("utf-8", "surrogatepass"), key=salt.encode(), digest_size=16).hexdigest()


class Eraser:
    """A separate connection that overwrites deleted content. Use as a context."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = connect(path)
        self._db.execute(f"PRAGMA busy_timeout={_PATIENCE_MS}")
        self._db.execute("PRAGMA secure_delete=ON")

    def __enter__(self) -> Eraser:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    @contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise StoreError(
                f"cannot {what} {self._path}: {error}. Nothing is lost; run the same command again to go on."
            ) from error

    # ---- what is held

    def find(self, user: str) -> UserRows:
        """Find all rows of `user` in one consistent snapshot. Changes nothing."""
        with self._failing("read"):
            self._gather(user)
            rows = {table: self._ids(table) for table in CLEARED}
            gone = set(rows["interactions"]) | set(rows["turns"])
            pruned = {table: tuple(self._quoting(table, gone, user.__eq__)) for table in PRUNED}
        return UserRows(rows, pruned)

    def _ids(self, table: str) -> tuple[str, ...]:
        return tuple(row[0] for row in self._db.execute(f"SELECT id FROM gone WHERE kind = '{table}' ORDER BY rowid"))

    def _gather(self, user: str) -> None:
        """Fill the temporary table `gone` with (kind, id)."""
        run = self._db.execute
        run("CREATE TEMP TABLE IF NOT EXISTS gone (kind TEXT, id TEXT, PRIMARY KEY (kind, id))")
        run("DELETE FROM gone")
        # A turn that continues one of the user's carries the history, whoever sent it.
        run(
            f"""INSERT INTO gone WITH RECURSIVE mine(id) AS (
                SELECT id FROM ({TURNS_OF_USER})
                UNION SELECT t.id FROM turns t JOIN mine m ON t.previous = m.id)
            SELECT 'turns', id FROM mine""",
            (user,),
        )
        for name in self._quoted_by_others(user):
            run("INSERT OR IGNORE INTO gone VALUES ('turns', ?)", (name,))
        self._gather_episodes(user)
        of_turn = "turn IN (SELECT id FROM gone WHERE kind IN ('turns', 'episodes'))"
        run(f"INSERT OR IGNORE INTO gone SELECT 'feedback', id FROM feedback WHERE user = ? OR {of_turn}", (user,))
        run(
            "INSERT OR IGNORE INTO gone SELECT 'feedback', f.id FROM feedback f JOIN gone g ON g.kind = 'feedback' "
            "AND f.retracts = g.id"
        )
        taken = "SELECT id FROM gone WHERE kind = 'feedback'"
        run(
            f"INSERT OR IGNORE INTO gone SELECT 'interactions', t.id FROM interactions t WHERE {_ALIVE} AND "
            f"(t.user = ? OR t.{of_turn} OR EXISTS "
            f"(SELECT 1 FROM json_each(t.feedback) j WHERE j.value IN ({taken})))",
            (user,),
        )
        for name in self._retold():
            run("INSERT OR IGNORE INTO gone VALUES ('interactions', ?)", (name,))
        run(f"INSERT OR IGNORE INTO gone SELECT 'skips', id FROM skips WHERE {of_turn} OR feedback IN ({taken})")
        made = "interaction IN (SELECT id FROM gone WHERE kind = 'interactions')"
        for table in NOTED:
            run(f"INSERT OR IGNORE INTO gone SELECT '{table}', id FROM {table} WHERE {made}")
        run("INSERT OR IGNORE INTO gone SELECT 'exports', id FROM exports WHERE user = ?", (user,))
        for table in CLEARED:
            run(
                f"DELETE FROM gone WHERE kind = '{table}' AND id IN "
                f"(SELECT t.id FROM {table} t WHERE {TOMBSTONE.format('t')})"
            )

    def _gather_episodes(self, user: str) -> None:
        """Whole episodes of the user and of their turns, and the sub-agents' below: arguments and observations of one
        turn stand in the requests of the next."""
        run = self._db.execute
        run(
            """INSERT OR IGNORE INTO gone WITH RECURSIVE mine(id) AS (
                SELECT id FROM episodes WHERE user = ?
                UNION SELECT t.episode_id FROM turns t JOIN gone g ON g.kind = 'turns' AND g.id = t.id
                    WHERE t.episode_id IS NOT NULL
                UNION SELECT e.id FROM episodes e JOIN mine m ON e.parent_id = m.id)
            SELECT 'episodes', id FROM mine""",
            (user,),
        )
        within = "(SELECT id FROM gone WHERE kind = 'episodes')"
        run(f"INSERT OR IGNORE INTO gone SELECT 'turns', id FROM turns WHERE episode_id IN {within}")
        for table in ("episode_ends", "skills"):
            run(f"INSERT OR IGNORE INTO gone SELECT '{table}', id FROM {table} WHERE episode IN {within}")

    def _quoted_by_others(self, user: str) -> Iterator[str]:
        """Turns of the same conversations that carry a question of the user's with its answer, sent by others."""
        named = "SELECT DISTINCT conversation FROM turns WHERE user = ? AND conversation IS NOT NULL"
        for (name,) in self._db.execute(named, (user,)).fetchall():
            pairs: set[tuple[str, str]] = set()
            others: list[tuple[str, list[Json]]] = []
            sql = f"SELECT t.id, t.user, t.body FROM turns t WHERE t.conversation = ? AND {_ALIVE}"
            for identifier, owner, body in self._db.execute(sql, (name,)):
                data = orjson.loads(body)
                if owner == user:
                    pairs.update(_pairs([*data["messages"], data["answer"]]))
                else:
                    others.append((identifier, data["messages"]))
            yield from (identifier for identifier, messages in others if pairs.intersection(_pairs(messages)))

    def _retold(self) -> Iterator[str]:
        """Interactions in which an edit of theirs is shown as the answer that a retry led to."""
        sql = (
            "SELECT CAST(f.body AS TEXT) FROM feedback f JOIN gone g ON g.kind = 'feedback' AND g.id = f.id "
            f"WHERE f.kind = 'edited' AND NOT {TOMBSTONE.format('f')}"
        )
        finals = [(orjson.loads(body)["final_text"] or "").strip() for (body,) in self._db.execute(sql)]
        # Short words are anybody's: they are theirs only where they are the whole answer that is shown.
        whole = tuple(f"\n{final}" for final in finals if final)
        parts = {part for final in finals for part in pieces(final) if len(part) >= PIECE - 2}
        others = f"SELECT id, body FROM interactions t WHERE kind IN ('retried', 'regenerated') AND {_ALIVE}"
        for identifier, body in self._db.execute(others) if whole else ():
            shown = orjson.loads(body)["hindsight"].rstrip()
            if shown.endswith(whole) or any(part in shown for part in parts):
                yield identifier

    def _quoting(
        self, table: str, gone: set[str], theirs: Callable[[str], bool], before: float | None = None
    ) -> Iterator[str]:
        sql = f"SELECT id, body FROM {table} WHERE ?1 IS NULL OR created_at <= ?1"
        for identifier, body in self._db.execute(sql, (before,)):
            if _without(table, orjson.loads(body), gone, theirs) is not None:
                yield identifier

    def quoted(self, theirs: Callable[[str], bool], before: float | None = None) -> list[tuple[str, str]]:
        """(table, id) of rows, no newer than `before`, that still quote what was erased or name a user of `theirs`."""
        with self._failing("read"):
            gone = {
                name for table in ("interactions", "turns")
                for (name,) in self._db.execute(f"SELECT id FROM {table} WHERE {TOMBSTONE.format(table)}")
            }  # fmt: skip
            return [(table, name) for table in PRUNED for name in self._quoting(table, gone, theirs, before)]

    def bodies(self, held: UserRows) -> Iterator[tuple[str, Json]]:
        """(table, record as JSON) of every row that is held."""
        for table, ids in held.rows.items():
            for start in range(0, len(ids), 500):
                part = ids[start : start + 500]
                sql = f"SELECT id, body FROM {table} WHERE id IN ({', '.join('?' * len(part))}) ORDER BY seq"
                for identifier, body in self._db.execute(sql, part):
                    yield table, {"id": identifier, **orjson.loads(body)}

    # ---- changing

    def redact(self, user: str, erasure: str) -> UserRows:
        """Turn everything of `user` into tombstones and write the row of the erasure, in one transaction.

        Rows since `find` are found again. Doing it twice under one id changes nothing the second time.
        """
        with self._failing("erase from"):
            self._db.execute("BEGIN IMMEDIATE")
            held = self.find(user)
            salt = os.urandom(16).hex()
            body = orjson.dumps({"rows": {table: len(ids) for table, ids in held.rows.items()}})
            self._db.execute(
                "INSERT INTO erasures (id, created_at, digest, salt, user_hash, body) VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT(id) DO NOTHING",
                (erasure, time.time(), b"\x01", salt, user_hash(user, salt), body),
            )
            self._prune(held, user)
            for table in CLEARED:
                cleared = "".join(f", {column} = {value}" for column, value in CLEARED[table].items())
                self._db.execute(
                    f"UPDATE {table} SET digest = x'', body = ?{cleared} "
                    f"WHERE id IN (SELECT id FROM gone WHERE kind = '{table}')",
                    (erasure.encode(),),
                )
            self._db.execute("COMMIT")
        return held

    def _prune(self, held: UserRows, user: str) -> None:
        gone = set(held.rows["interactions"]) | set(held.rows["turns"])
        for table, ids in held.pruned.items():
            for identifier in ids:
                (body,) = self._db.execute(f"SELECT body FROM {table} WHERE id = ?", (identifier,)).fetchone()
                rest = _without(table, orjson.loads(body), gone, user.__eq__)
                assert rest is not None
                fresh = orjson.dumps(rest, option=orjson.OPT_SORT_KEYS)
                self._db.execute(f"UPDATE {table} SET body = ? WHERE id = ?", (fresh, identifier))

    def scrub(self) -> None:
        """Rewrite the file without free pages and empty the log, so that no byte of a redacted row is left.

        StoreError when a reader of another process keeps the old log alive; trying again is safe.
        """
        with self._failing("rewrite"):
            # The copy that VACUUM makes has nothing erased in it; in memory it could be too large.
            self._db.execute("PRAGMA temp_store=FILE")
            self._db.execute("VACUUM")
            for _ in range(60):
                busy, _, _ = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                if not busy:
                    return
                time.sleep(0.5)
        raise StoreError(
            f"{self._path}: another process reads an old state of the database, so that its log cannot be emptied. "
            "Stop long-running readers (an export, a page of the console) and run the same command again."
        )

    # ---- proving

    def living(self, text: str) -> bool:
        """Does a row that was not erased hold this text too (in any table)?"""
        for table in (*CLEARED, *PRUNED, "verdicts", "releases"):
            sql = f"SELECT 1 FROM {table} t WHERE {_ALIVE} AND instr(t.body, ?) LIMIT 1"
            if self._db.execute(sql, (text.encode("utf-8", "replace"),)).fetchone():
                return True
        return False


def _pairs(messages: list[Json]) -> set[tuple[str, str]]:
    """(content, content of the answer to it) for each answer in a conversation."""
    return {
        (str(a.get("content")), str(b.get("content")))
        for a, b in itertools.pairwise(messages)
        if a.get("role") == "user" and b.get("role") == "assistant"
    }


def _without(table: str, body: Json, gone: set[str], theirs: Callable[[str], bool]) -> Json | None:
    """The body without what it quotes of these interactions and turns, and without the names of these users; None when
    there is nothing of the kind in it."""

    def keeps(entry: Any) -> bool:
        return not (isinstance(entry, dict) and {entry.get("interaction"), entry.get("turn")} & gone)

    if table == "reports":
        examples = [entry for entry in body["examples"] if keeps(entry)]
        return {**body, "examples": examples} if len(examples) < len(body["examples"]) else None
    metrics = body["metrics"]
    left = metrics.get("left")
    if left:
        metrics = {**metrics, "left": [entry for entry in left if keeps(entry)]}
    slices = (metrics.get("selection") or {}).get("slices")
    if slices:
        metrics = {
            **metrics,
            "selection": {**metrics["selection"], "slices": [_unnamed(one, theirs) for one in slices]},
        }
    return None if metrics == body["metrics"] else {**body, "metrics": metrics}


def _unnamed(slice_: Json, theirs: Callable[[str], bool]) -> Json:
    """A slice of a selection without the influence of these users; what is left does not add up to 1 any more."""
    if not slice_.get("influence"):
        return slice_
    return {**slice_, "influence": {name: part for name, part in slice_["influence"].items() if not theirs(name)}}
