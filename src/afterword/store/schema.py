"""Defines tables and numbered migrations of the SQLite database.

Each migration is one script that is applied once, in order, inside a transaction; `PRAGMA user_version` holds the
number of the last one. A database of a newer Afterword is refused, never guessed at. Tables are append-only:
triggers refuse UPDATE and DELETE. The one sanctioned exception is the tombstone: a row whose user asked to be
forgotten may be emptied, once, into exactly the shape that `erasable` writes down, and only in the name of a row of
`erasures`. The trigger checks the shape, so that no code can change a row in any other way.
"""

from __future__ import annotations

import os
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


FORGOTTEN = "forgotten"
"""What a tombstone says where a column may not be empty."""

KEPT: dict[str, tuple[str, ...]] = {
    "turns": ("adapter", "source", "finish_reason", "canary", "seconds"), "feedback": ("turn",),
    "interactions": ("turn", "split"),
    "skips": ("feedback", "turn"), "reviews": ("interaction",), "relevances": ("interaction",),
    "revisions": ("interaction",), "advantages": ("interaction",), "requests": ("interaction", "kind"),
    "exports": ("what", "format"),
    "episodes": ("status",), "episode_ends": ("episode", "status"), "skills": ("episode",),
}  # fmt: skip
"""Table -> what a tombstone keeps, besides `seq`, `id` and `created_at`: ids of ours, by which a row is known again
when it is sent once more, and nothing in anybody's words."""

CLEARED: dict[str, dict[str, str]] = {
    "turns": dict.fromkeys(
        (
            "user",
            "unit",
            "conversation",
            "previous",
            "task",
            "thread",
            "prompt_ids",
            "completion_ids",
            "logprobs",
            "unlinked",
            "episode_id",
        ),
        "NULL",
    ),
    "feedback": {"kind": f"'{FORGOTTEN}'", "user": "NULL", "retracts": "NULL"},
    "interactions": {"kind": f"'{FORGOTTEN}'", "user": "NULL", "task": "NULL", "feedback": "NULL"},
    "skips": {"reason": f"'{FORGOTTEN}'"},
    "reviews": {"decision": f"'{FORGOTTEN}'"},
    "relevances": {},
    "revisions": {},
    "advantages": {},
    "requests": {},
    "exports": {"path": "NULL", "user": "NULL"},
    "episodes": dict.fromkeys(("task_id", "harness", "parent_id", "user"), "NULL"),
    "episode_ends": {},
    "skills": {"task": f"'{FORGOTTEN}'", "user": "NULL"},
}
"""Table -> column -> what a tombstone holds there. `digest` becomes empty and `body` the id of the erasure."""

PRUNED: dict[str, tuple[str, ...]] = {
    "reports": ("$.examples",), "candidates": ("$.metrics.left", "$.metrics.selection.slices"),
}  # fmt: skip
"""Rows of nobody in particular that may quote or name a user: the parts of their body that an erasure may change."""

TOMBSTONE = "length({0}.digest) = 0"
"""True for a tombstone; `{0}` is the table or its alias. The partial indexes below are written in the same words."""


IMPORTED = "{0}.id >= 'imp-' AND {0}.id < 'imp-u' AND {0}.user IS NOT NULL"
"""True for a turn of a user that was imported when its id was a hash of its words alone; now ids of users' turns begin
with `imp-u` and are hashes of the user too."""


def erasable(table: str, *later: str) -> str:
    """The trigger and the index of a table whose rows may become tombstones; a migration that adds such a table calls
    it too. `later` are columns that a later migration adds (and then calls `tombstones` again)."""
    index = f"CREATE INDEX {table}_forgotten ON {table}(id) WHERE {TOMBSTONE.format(table)};".replace(f"{table}.", "")
    return f"{tombstones(table, *later)}\n{index}"


def tombstones(table: str, *later: str) -> str:
    """The trigger that lets nothing but the one shape of a tombstone through."""
    kept = ("seq", "id", "created_at", *KEPT[table])
    tombstone = " AND ".join(
        [
            *(f"NEW.{c} IS {value}" for c, value in CLEARED[table].items() if c not in later),
            *(f"NEW.{c} IS OLD.{c}" for c in kept if c not in later),
        ]
    )
    return "\n".join(
        (
            f"DROP TRIGGER IF EXISTS {table}_no_update;",
            f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} WHEN NOT ({TOMBSTONE.format('NEW')} "
            f"AND NOT {TOMBSTONE.format('OLD')} AND {tombstone} "
            f"AND EXISTS (SELECT 1 FROM erasures e WHERE e.id = CAST(NEW.body AS TEXT))) "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END;",
        )
    )


_FOR_CANARIES = ("unit", "canary", "seconds")
_FOR_LINKS = ("unlinked", "episode_id")
_FOR_EPISODES = ("episode_id",)
_EPISODE_TABLES = ("episodes", "episode_ends")
_ASKED_TABLES = ("advantages", "requests")
_YOUNGER_TABLES = (*_EPISODE_TABLES, "skills", *_ASKED_TABLES)


def _prunable(table: str, columns: str) -> str:
    """The trigger of a table of which only the `PRUNED` parts of the body may change."""
    same = " AND ".join(f"NEW.{c.strip()} IS OLD.{c.strip()}" for c in columns.split(","))
    paths = ", ".join(f"'{path}'" for path in PRUNED[table])
    rest = (f"json_remove(CAST({row}.body AS TEXT), {paths})" for row in ("NEW", "OLD"))
    return (
        f"DROP TRIGGER {table}_no_update;\n"
        f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} WHEN NOT ({same} AND {' = '.join(rest)} "
        f"AND EXISTS (SELECT 1 FROM erasures)) BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END;"
    )


def _guard(table: str, about: str, column: str | None = None) -> str:
    """Nothing new about a forgotten turn, interaction or episode is taken, whoever sends it and however late.

    Args:
        table: Where rows come in.
        about: Table of the forgotten.
        column: Column of `table` with the id; default: the singular of `about`.
    """
    name = f"NEW.{column or about.removesuffix('s')}"
    trigger = f"{table}_of_forgotten" if column is None else f"{table}_of_forgotten_{about}"
    return (
        f"CREATE TRIGGER {trigger} BEFORE INSERT ON {table} WHEN EXISTS "
        f"(SELECT 1 FROM {about} t INDEXED BY {about}_forgotten WHERE t.id = {name} AND {TOMBSTONE.format('t')}) "
        "BEGIN SELECT RAISE(IGNORE); END;"
    )


def _without_nulls(table: str, *columns: str) -> str:
    """Indexes that leave out rows with nothing in the column: of a million imported turns few have a user or a thread,
    and every index that a row stands in costs it time. A query by `=` or `IN` finds all it did; `IS ?` would not."""
    return "\n".join(
        f"DROP INDEX {table}_{c};\nCREATE INDEX {table}_{c} ON {table}({c}) WHERE {c} IS NOT NULL;" for c in columns
    )


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
    # 3: forgetting a user, and the exports in which a user may be found.
    "\n".join(
        (
            _table("erasures", "salt TEXT NOT NULL, user_hash TEXT NOT NULL"),
            _table("exports", "path TEXT, what TEXT, format TEXT, user TEXT"),
            *(erasable(table, *_FOR_CANARIES, *_FOR_LINKS) for table in CLEARED if table not in _YOUNGER_TABLES),
            _prunable("reports", "seq, id, created_at, digest, candidate"),
            _prunable("candidates", "seq, id, created_at, digest, parent"),
            *(_guard(table, "turns") for table in ("feedback", "interactions", "skips")),
            *(_guard(table, "interactions") for table in ("reviews", "relevances", "revisions")),
        )
    ),
    # 4: who got what under a canary, and how long it took; alarms.
    "ALTER TABLE turns ADD COLUMN unit TEXT;\n"
    "ALTER TABLE turns ADD COLUMN canary TEXT;\n"
    "ALTER TABLE turns ADD COLUMN seconds REAL;\n"
    "CREATE INDEX turns_canary ON turns(canary) WHERE canary IS NOT NULL;\n"
    + _table("alarms", "channel TEXT NOT NULL, release TEXT NOT NULL, adapter TEXT", "release")
    + "\n"
    + tombstones("turns", *_FOR_LINKS),
    # 5: interactions that later feedback contradicted are asked for by every training run.
    "CREATE INDEX skips_contradictory ON skips(turn) WHERE reason = 'contradictory';",
    # 6: rows stand only in the indexes in which somebody looks for them.
    "\n".join((_without_nulls("turns", "user", "previous", "thread"), _without_nulls("feedback", "retracts"))),
    # 7: the influence of a user is taken out of candidates; imported turns whose ids do not say whose they are.
    _prunable("candidates", "seq, id, created_at, digest, parent")
    + f"\nCREATE INDEX turns_imported ON turns(id) WHERE {IMPORTED.format('turns').replace('turns.', '')};",
    # 8: which turn feedback on a whole trace is about; ids only.
    "CREATE TABLE traces (trace TEXT PRIMARY KEY, turn TEXT NOT NULL, at REAL NOT NULL) WITHOUT ROWID;",
    # 9: why requests with a history were linked to nothing.
    "ALTER TABLE turns ADD COLUMN unlinked TEXT;\n"
    "CREATE INDEX turns_unlinked ON turns(unlinked) WHERE unlinked IS NOT NULL;\n"
    + tombstones("turns", *_FOR_EPISODES),
    # 10: requests that a program made by itself.
    "ALTER TABLE turns ADD COLUMN automated TEXT;\n"
    "CREATE INDEX turns_automated ON turns(automated) WHERE automated IS NOT NULL;",
    # 11: rounds of `cycle --watch`; ids and hashes only.
    _table("attempts", "settings TEXT NOT NULL", "settings"),
    # 12: predicted gains and what became of them; numbers, ids and hashes only.
    _table("predictions", "base_hash TEXT NOT NULL", "base_hash")
    + "\n"
    + _table("prediction_outcomes", "prediction TEXT NOT NULL, candidate TEXT NOT NULL", "prediction", "candidate"),
    # 13: episodes, the runs of an agent.
    "\n".join(
        (
            _table("episodes", "task_id TEXT, harness TEXT, parent_id TEXT, user TEXT, status TEXT NOT NULL",
                   "task_id"),
            "CREATE INDEX episodes_parent_id ON episodes(parent_id) WHERE parent_id IS NOT NULL;",
            _table("episode_ends", "episode TEXT NOT NULL, status TEXT NOT NULL", "episode"),
            "ALTER TABLE turns ADD COLUMN episode_id TEXT;",
            "CREATE INDEX turns_episode_id ON turns(episode_id) WHERE episode_id IS NOT NULL;",
            tombstones("turns"),
            *map(erasable, _EPISODE_TABLES),
            _guard("episode_ends", "episodes"),
            _guard("feedback", "episodes", "turn"),
            _guard("turns", "episodes", "episode_id"),
        )
    ),
    # 14: skills, what worked in episodes.
    "\n".join(
        (
            _table("skills", "task TEXT NOT NULL, episode TEXT NOT NULL, user TEXT", "episode"),
            erasable("skills"),
            _guard("skills", "episodes"),
        )
    ),
    # 15: scored tokens of answers; what people asked for in the console.
    "\n".join(
        (
            _table("advantages", "interaction TEXT NOT NULL", "interaction"),
            _table("requests", "interaction TEXT NOT NULL, kind TEXT NOT NULL", "interaction", "kind"),
            *(erasable(table) for table in _ASKED_TABLES),
            *(_guard(table, "interactions") for table in _ASKED_TABLES),
        )
    ),
)  # fmt: skip


def reader(path: Path) -> sqlite3.Connection:
    """A connection that reads, also where nothing can be written: another's folder, a read-only mount, a full disk.

    Raises sqlite3.Error or StoreError when it cannot be read at all.
    """
    try:
        connection = connect(path)
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return connection
    except sqlite3.OperationalError:
        if not os.access(path, os.R_OK):
            raise
    return _read_only(path)


def _read_only(path: Path) -> sqlite3.Connection:
    """The database as it lies there. SQLite reads its log beside it only with an index file that it can make or that
    is there; without a log the file alone is whole (https://sqlite.org/wal.html#readonly)."""
    log = path.with_name(path.name + "-wal")
    empty = not log.exists() or log.stat().st_size == 0
    how = "mode=ro&immutable=1" if empty else "mode=ro"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{how}", uri=True, isolation_level=None, check_same_thread=False, timeout=30.0
    )
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        connection.execute("PRAGMA temp_store=MEMORY")
        connection.execute("PRAGMA query_only=ON")
    except sqlite3.Error as error:
        connection.close()
        raise StoreError(
            f"cannot read the database {path}: its folder cannot be written, and {log.name} holds rows that are not in "
            f"it yet ({error}). Copy {path.name} and {log.name} to a folder of yours and name that with --dir."
        ) from error
    return connection


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
        connection = reader(path) if path.exists() else connect(path)
        migrate(connection, path)
    except (sqlite3.Error, OSError) as error:
        raise StoreError(
            f"cannot open the database {path}: {error}{_denied(path)}. Check that the path is a writable Afterword "
            "database and that the disk is not full."
        ) from error
    return connection


def _denied(path: Path) -> str:
    """What this user may not do, for a message: SQLite says "unable to open database file" to everything."""
    if path.exists() and not os.access(path, os.R_OK):
        return f" (user {os.geteuid()} may not read it)"
    if not os.access(path.parent, os.W_OK):
        return f" (user {os.geteuid()} may not write to its folder)"
    return ""


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Apply the migrations that are missing; two processes that start together wait for each other."""
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found > len(MIGRATIONS):
        connection.close()
        raise StoreError(
            f"the database {path} has schema {found}, this Afterword knows up to {len(MIGRATIONS)}: it was written "
            "by a newer version. Upgrade Afterword, or use another --dir."
        )
    if found < len(MIGRATIONS) and connection.execute("PRAGMA query_only").fetchone()[0]:
        raise StoreError(
            f"the database {path} has schema {found} of an older version and needs schema {len(MIGRATIONS)}, but "
            "it cannot be written here. Open it once where it can be (a copy will do), or with the older version."
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
