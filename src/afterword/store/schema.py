"""Tables and numbered migrations of the SQLite database.

Each migration is one script that is applied once, in order, inside a transaction; `PRAGMA user_version` holds the
number of the last one. A database of a newer Afterword is refused, never guessed at. Tables are append-only:
triggers refuse UPDATE and DELETE.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from afterword.errors import StoreError

_COMMON = (
    "seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, created_at REAL NOT NULL, digest BLOB NOT NULL"
)


def _table(name: str, columns: str, *indexed: str) -> str:
    lines = [f"CREATE TABLE {name} ({_COMMON}, {columns}, body BLOB NOT NULL);"]
    lines += [f"CREATE INDEX {name}_{c} ON {name}({c});" for c in indexed]
    for event in ("UPDATE", "DELETE"):
        lines.append(
            f"CREATE TRIGGER {name}_no_{event.lower()} BEFORE {event} ON {name} "
            f"BEGIN SELECT RAISE(ABORT, '{name} is append-only'); END;"
        )
    return "\n".join(lines)


MIGRATIONS: tuple[str, ...] = (
    "\n".join(
        (
            _table(
                "turns",
                "user TEXT, conversation TEXT, previous TEXT, task TEXT, adapter TEXT, thread TEXT, source TEXT, "
                "finish_reason TEXT, prompt_ids BLOB, completion_ids BLOB, logprobs BLOB",
                "user", "conversation", "previous", "thread",
            ),
            _table("feedback", "turn TEXT NOT NULL, kind TEXT NOT NULL, user TEXT, retracts TEXT", "turn", "retracts"),
            _table(
                "interactions",
                "turn TEXT NOT NULL, kind TEXT NOT NULL, split TEXT NOT NULL, user TEXT, task TEXT, feedback TEXT",
                "turn", "split",
            ),
            _table("skips", "feedback TEXT NOT NULL, turn TEXT NOT NULL, reason TEXT NOT NULL", "feedback", "turn"),
            _table("candidates", "parent TEXT"),
            _table("reports", "candidate TEXT NOT NULL", "candidate"),
            _table("verdicts", "candidate TEXT NOT NULL, report TEXT NOT NULL, passed INTEGER NOT NULL", "candidate"),
            _table("releases", "channel TEXT NOT NULL, adapter TEXT, candidate TEXT, verdict TEXT", "channel"),
        )
    ),
    "\n".join(
        (
            _table("reviews", "interaction TEXT NOT NULL, decision TEXT NOT NULL", "interaction"),
            _table("relevances", "interaction TEXT NOT NULL", "interaction"),
            _table("revisions", "interaction TEXT NOT NULL", "interaction"),
        )
    ),
)  # fmt: skip


def connect(path: Path) -> sqlite3.Connection:
    """A connection with the settings that the promises need: WAL, and a sync to disk at every commit."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30.0)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA temp_store=MEMORY")
    return connection


def open_database(path: Path) -> sqlite3.Connection:
    """Open or create the database at `path` and bring it to the newest schema.

    Raises StoreError when it cannot be opened, is no database, or was written by a newer version.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = connect(path)
        migrate(connection, path)
    except (sqlite3.Error, OSError) as error:
        raise StoreError(
            f"cannot open the database {path}: {error}. Check that the path is a writable Afterword database "
            "and that the disk is not full."
        ) from error
    return connection


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Apply the migrations that are missing; two processes that start together wait for each other."""
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found > len(MIGRATIONS):
        connection.close()
        raise StoreError(
            f"the database {path} has schema {found}, this Afterword knows up to {len(MIGRATIONS)}: it was written "
            "by a newer version. Upgrade Afterword, or use another --dir."
        )
    while found < len(MIGRATIONS):
        script = MIGRATIONS[found]
        connection.execute("BEGIN IMMEDIATE")
        now = connection.execute("PRAGMA user_version").fetchone()[0]
        if now == found:
            for statement in _statements(script):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={found + 1}")
        connection.execute("COMMIT")
        found = max(now, found + 1)


def _statements(script: str) -> list[str]:
    statements, pending = [], ""
    for line in script.splitlines():
        pending += line + "\n"
        if sqlite3.complete_statement(pending):
            statements.append(pending)
            pending = ""
    return statements
