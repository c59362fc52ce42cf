"""Whose an imported row is belongs to its name; what was imported before that is known again; conflicts are shown."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from afterword.cli import main
from afterword.feedback.importing.branches import ImportNames
from afterword.feedback.importing.imports import ImportSummary, import_file
from afterword.records import Feedback, Turn
from afterword.store import Store
from afterword.store.erasure.erase import Eraser
from tests.feedback.import_rows import ROWS, load, said

PAIR = {"input": {"messages": said("How?")}, "preferred_output": [said("", "Briefly so.")[1]],
        "non_preferred_output": [said("", "So and so.")[1]]}  # fmt: skip
NAMED: dict[str, Any] = {
    "openai": lambda user: {**ROWS["openai"], "user": user},
    "sharegpt": lambda user: {**ROWS["sharegpt"], "user": user},
    "wildchat": lambda user: {**ROWS["wildchat"], "hashed_ip": user},
    "events": lambda user: {**ROWS["events"], "user": user},
    "pairs": lambda user: {**PAIR, "input": {**PAIR["input"], "user": user}},  # type: ignore[dict-item]
}


def counts(summary: ImportSummary) -> tuple[int, int, int]:
    return summary.stored, summary.duplicates, summary.conflicts


def before(store: Store, tmp_path: Path, rows: list[Any]) -> ImportSummary:
    """An import as it was when users were no part of the name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImportNames, "of", lambda _, digest, user: digest)
        return load(store, tmp_path, rows)


@pytest.mark.parametrize("format", NAMED)
def test_the_same_chat_of_two_users_is_two_chats(store: Store, tmp_path: Path, format: str) -> None:
    rows = [NAMED[format](user) for user in ("ada", "bob")]
    summary = load(store, tmp_path, rows)
    assert summary.stored == summary.turns + summary.feedback > 2 and summary.conflicts == 0
    assert store.tally(Turn, "user") == {"ada": summary.turns // 2, "bob": summary.turns // 2}
    known = {turn.id: turn.user for turn in store.rows(Turn)}
    assert all(known[row.turn] == row.user for row in store.rows(Feedback))
    assert counts(load(store, tmp_path, rows[::-1], name="again.jsonl")) == (0, summary.stored, 0)


@pytest.mark.parametrize("format", NAMED)
def test_what_was_imported_before_is_known_again(store: Store, tmp_path: Path, format: str) -> None:
    rows = [NAMED[format](user) for user in ("ada", "bob")]
    first = before(store, tmp_path, rows)
    assert first.conflicts == first.stored  # Bob's were lost
    again = load(store, tmp_path, rows)
    assert counts(again) == (first.stored, first.stored, 0)
    assert counts(load(store, tmp_path, rows)) == (0, 2 * first.stored, 0)
    assert set(store.tally(Turn, "user")) == {"ada", "bob"}


def test_what_was_erased_under_its_old_name_stays_erased(store: Store, tmp_path: Path) -> None:
    rows = [NAMED["openai"]("ada")]
    assert before(store, tmp_path, rows).stored == 3
    with Eraser(store.path) as eraser:
        eraser.redact("ada", "era-1")
    summary = load(store, tmp_path, rows)
    assert (summary.stored, summary.forgotten) == (0, 3) and store.count(Turn) == 0


def test_without_a_user_names_are_what_they_were(store: Store, tmp_path: Path) -> None:
    load(store, tmp_path, [ROWS["sharegpt"]])
    load(store, tmp_path, [ROWS["events"]], name="e.jsonl")
    ids = [turn.id for turn in store.rows(Turn)]
    assert ids == [
        "imp-c89e630a6c67824d9527e4e82bab1aaa-00000",
        "imp-c89e630a6c67824d9527e4e82bab1aaa-00001",
        "imp-f7e20c12febfef11569376bb0b74b613",
    ]


def test_a_record_that_contradicts_a_stored_one_is_written_down(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = {"id": "a", "user": "ada", "model": "m1", "messages": said("How?", "So.", "Shorter.", "S.")}
    load(store, tmp_path, [first])
    summary = load(store, tmp_path, [{**first, "id": "b"}, {**first, "model": "m2"}, {"messages": []}], "openai")
    assert (counts(summary), dict(summary.rejected)) == ((3, 1, 2), {"empty": 1}) and summary.rejects is not None
    empty, *lines = [json.loads(line) for line in Path(summary.rejects).read_text("utf-8").splitlines()]
    assert empty["reason"] == "empty" and [line["where"] for line in lines] == ["line 2", "line 2"]
    assert all((line["reason"], line["user"]) == ("conflict", "ada") for line in lines)
    row = json.loads(lines[0]["row"])
    assert (row["record"], row["model"]) == ("turns", "m2") and store.get(Turn, row["id"]).model == "m1"
    assert "another `model`; the one that was first stays" in lines[0]["detail"]
    path = tmp_path / "c.jsonl"
    path.write_bytes(orjson.dumps({**first, "model": "m3"}))
    assert main(["import", str(path), "--dir", str(store.path.parent)]) == 0
    said_ = " ".join(capsys.readouterr().err.split())
    assert "2 records exist with other content" in said_ and "c.jsonl.jsonl" in said_


KILLED = """
import os, signal, sys
from pathlib import Path
from afterword.feedback.importing import sink
from afterword.feedback.importing.imports import import_file
from afterword.store import Store
sink.GROUP = 50
sink.IN_ORDER, sink.WINDOW = 100, 200
calls = 0
def progress(position, size):
    global calls
    calls += 1
    if calls == 20:
        os.kill(os.getpid(), signal.SIGKILL)
with Store.open(Path(sys.argv[1])) as store:
    import_file(store, Path(sys.argv[2]), progress=progress)
"""


def named(row: str) -> str:
    found = json.loads(row)
    return str(found.get("id"))


def test_a_kill_loses_no_conflict_and_writes_none_twice(tmp_path: Path) -> None:
    path, one = tmp_path / "log.jsonl", tmp_path / "one.jsonl"
    rows: list[Any] = [
        {"id": f"{n}", "model": "m", "messages": said(f"How {n}?", "So.", "Hm.", "S.")} for n in range(600)
    ]
    other = [{**row, "model": "x"} for row in rows[::5]]
    rows[11] = rows[501] = {"messages": []}
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    one.write_bytes(b"\n".join(map(orjson.dumps, other)))
    databases = [tmp_path / name / "afterword.db" for name in ("killed", "clean")]
    for database in databases:
        with Store.open(database) as store:
            import_file(store, one)
    command = [sys.executable, "-c", KILLED, str(databases[0]), str(path)]
    assert subprocess.run(command, check=False, env=dict(os.environ)).returncode == -signal.SIGKILL
    found = []
    for database in databases:
        with Store.open(database) as store:
            summary = import_file(store, path)
            assert summary.conflicts == 240 and summary.rejects is not None
            lines = [json.loads(line) for line in Path(summary.rejects).read_text("utf-8").splitlines()]
            found.append(sorted((line["where"], line["reason"], named(line["row"])) for line in lines))
            assert [p.name for p in database.parent.glob("rejects/*")] == ["log.jsonl.jsonl"]
            resumed = summary.resumed_at
            assert bool(resumed) == (database is databases[0])
    assert found[0] == found[1] and len(found[0]) == 242
