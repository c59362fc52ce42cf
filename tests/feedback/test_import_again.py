"""Imports that are killed, repeated or contradict what is stored; and the file of rejected rows."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from afterword.feedback.importing import sink
from afterword.feedback.importing.import_progress import ImportProgress
from afterword.feedback.importing.imports import import_file
from afterword.formats.containers import container
from afterword.records import Feedback, Turn
from afterword.store import Store
from tests.feedback.import_rows import ROWS, load, reasons, said, talk, write

pytest.importorskip("pyarrow")


def test_rejects_are_written_anew_and_only_when_there_are_any(store: Store, tmp_path: Path) -> None:
    place = tmp_path / "elsewhere" / "bad.jsonl"
    load(store, tmp_path, [{"messages": []}, {"messages": []}], "openai", rejects=place)
    assert len(place.read_text(encoding="utf-8").splitlines()) == 2
    load(store, tmp_path, [ROWS["openai"]], rejects=place)
    assert not place.exists()


def test_rejects_of_two_files_of_one_name_stay_apart_and_whole(store: Store, tmp_path: Path) -> None:
    found = []
    for folder in ("a", "b", "a"):
        (tmp_path / folder).mkdir(exist_ok=True)
        row = {"user": folder, "messages": [{"role": "King", "content": "x" * 3000 + folder}]}
        summary = import_file(store, write(tmp_path / folder, [row]), "openai")
        assert summary.rejects is not None
        found.append((Path(summary.rejects), row))
    assert len({path for path, _ in found}) == 2 and found[0][0] == found[2][0]
    for path, row in found:
        line = json.loads(path.read_text(encoding="utf-8"))
        assert json.loads(line["row"]) == row and line["user"] == row["user"]
    import_file(store, write(tmp_path / "b", [ROWS["openai"]]), "openai")
    assert found[0][0].is_file() and not found[1][0].exists()


def test_an_interrupted_import_is_finished_by_running_it_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("afterword.feedback.importing.sink"), "GROUP", 20)
    path = write(tmp_path, [talk(i) for i in range(200)])

    def stop(position: int, size: int) -> None:
        assert 0 < position <= size
        if store.counts()["turns"] > 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_file(store, path, progress=stop)
    before = store.counts()["turns"]
    summary = import_file(store, path)
    assert 0 < before < 400
    assert 0 < summary.resumed_at < 200
    assert summary.stored + summary.duplicates == 600 and summary.stored <= 600 - 20 and summary.conflicts == 0
    again = import_file(store, path)
    assert (again.resumed_at, again.stored, again.duplicates) == (0, 0, 600)
    assert store.counts()["turns"] == 400 and store.counts()["feedback"] == 200


KILLED = """
import os, signal, sys
from pathlib import Path
from afterword.feedback.importing import sink
from afterword.feedback.importing.imports import import_file
from afterword.feedback.importing.import_progress import ImportProgress
from afterword.store import Store
sink.GROUP = 50
if len(sys.argv) > 3:
    sink.IN_ORDER, sink.WINDOW = 100, 200
calls = 0
def progress(position, size):
    global calls
    calls += 1
    if calls == 12:
        os.kill(os.getpid(), signal.SIGKILL)
with Store.open(Path(sys.argv[1])) as store:
    import_file(store, Path(sys.argv[2]), progress=progress)
"""


@pytest.mark.parametrize("name", ["log.jsonl", "log.json", "log.jsonl.gz", "log.parquet"])
def test_a_killed_import_goes_on_where_its_last_commit_was(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    rows: list[Any] = [{"messages": said(f"How {n}?", "So.", "Shorter.", "S.")} for n in range(600)]
    rows[10] = rows[500] = {"messages": []}
    with container(path) as lines:
        for row in rows:
            lines.write(orjson.dumps(row) + b"\n")
    database = tmp_path / "data" / "afterword.db"
    done = subprocess.run([sys.executable, "-c", KILLED, str(database), str(path)], check=False, env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL
    with Store.open(database) as store, Store.open(tmp_path / "clean" / "a.db") as clean:
        before = store.count(Turn)
        summary, whole = import_file(store, path), import_file(clean, path)
        assert 0 < before < 1196 and summary.resumed_at > 50
        assert store.counts() == clean.counts() and store.count(Turn) == 1196 and store.count(Feedback) == 598
        assert (summary.rows, summary.turns, reasons(summary)) == (600, 1196, reasons(whole))
        assert summary.stored + summary.duplicates == whole.stored and summary.conflicts == 0
        assert summary.rejects is not None and whole.rejects is not None
        assert Path(summary.rejects).read_bytes() == Path(whole.rejects).read_bytes()
        assert not list((tmp_path / "data" / "imports").glob("*.json"))


def test_an_import_that_is_killed_between_windows_goes_on_behind_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\n".join(orjson.dumps({"messages": said(f"How {n}?", "So.", "Hm.", "S.")}) for n in range(600)))
    database = tmp_path / "data" / "afterword.db"
    command = [sys.executable, "-c", KILLED, str(database), str(path), "windows"]
    assert subprocess.run(command, check=False, env=dict(os.environ)).returncode == -signal.SIGKILL
    with Store.open(database) as store:
        before = store.count(Turn)
        summary = import_file(store, path)
        assert 0 < before < 1200 and summary.resumed_at > 50
        assert summary.stored + summary.duplicates == 1800 and summary.conflicts == 0
        assert (store.count(Turn), store.count(Feedback)) == (1200, 600)


def test_behind_its_beginning_a_file_is_stored_in_windows_that_are_sorted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("GROUP", 10), ("IN_ORDER", 30), ("WINDOW", 60)):
        monkeypatch.setattr(sink, name, value)
    path = tmp_path / "log.jsonl"
    rows = [{"id": str(n % 150), "model": f"m{n}", "messages": said(f"How {n % 150}?", "So.", "Hm.", "S.")}
            for n in range(200)]  # fmt: skip
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    with Store.open(tmp_path / "a.db") as store:
        summary = import_file(store, path)
        turns = list(store.rows(Turn))
    assert (summary.turns, summary.stored, summary.rows) == (400, 450, 200)
    assert summary.duplicates + summary.conflicts == 150 and summary.conflicts == 100
    # Of a conversation that comes twice the first stays, and a turn stands behind the one it continues.
    assert {turn.model for turn in turns} == {f"m{n}" for n in range(150)}
    places = {turn.id: place for place, turn in enumerate(turns)}
    assert all(places[turn.previous] == place - 1 for place, turn in enumerate(turns) if turn.previous)
    ids = [turn.id for turn in turns]
    assert [turn.model for turn in turns[:20:2]] == [f"m{n}" for n in range(10)] and ids[:20] != sorted(ids[:20])
    assert ids[20:60] == sorted(ids[20:60]) and ids[20:] != sorted(ids[20:])


def test_a_window_of_few_large_rows_is_stored_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("GROUP", 4), ("IN_ORDER", 0), ("WINDOW_BYTES", 10_000)):
        monkeypatch.setattr(sink, name, value)
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\n".join(orjson.dumps({"messages": said(f"{n}" * 2000, "So.")}) for n in range(10, 40)))
    held: list[int] = []
    with Store.open(tmp_path / "a.db") as store:
        import_file(store, path, progress=lambda position, size: held.append(store.count(Turn)))
        assert store.count(Turn) == 30
    assert max(held) >= 12, "nothing was stored before the end of the file"


def test_a_mark_of_another_database_or_another_file_counts_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\n".join(orjson.dumps({"messages": said(f"How {n}?", "So.")}) for n in range(600)))
    database = tmp_path / "data" / "afterword.db"
    subprocess.run([sys.executable, "-c", KILLED, str(database), str(path)], check=False, env=dict(os.environ))
    for file in database.parent.glob("afterword.db*"):
        file.unlink()
    with Store.open(database) as store:
        summary = import_file(store, path)
        assert (summary.resumed_at, summary.stored) == (0, 600)
    subprocess.run([sys.executable, "-c", KILLED, str(database), str(path)], check=False, env=dict(os.environ))
    path.write_bytes(path.read_bytes() + b"\n" + orjson.dumps({"messages": said("New?", "So.")}))
    with Store.open(database) as store:
        summary = import_file(store, path)
        assert (summary.resumed_at, summary.stored, summary.duplicates) == (0, 1, 600)


@pytest.mark.parametrize("order", ["conversations", "mixed"])
def test_no_mark_passes_over_a_row_that_is_not_stored(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """At every mark the records of all rows up to there have been settled: a kill right then loses none."""
    for name, value in (("GROUP", 7), ("IN_ORDER", 30), ("WINDOW", 40)):
        monkeypatch.setattr(sink, name, value)
    pair = {"input": {"messages": said("Q?")}, "preferred_output": said("", "A.")[1:]}
    rows: list[Any] = []
    for n in range(120):
        if order == "mixed" and n % 7 in (0, 1):
            rows.append({**pair, "non_preferred_output": [{"role": "assistant", "content": f"B {n}"}]})
        else:
            rows.append({"messages": said(f"How {n}?", "So.", "Hm.", "S.")})
    seen: list[int] = []
    note = ImportProgress.note

    def checked(mark: ImportProgress, summary: dict[str, Any], *rest: Any) -> None:
        settled = sum(summary[name] for name in ("stored", "duplicates", "conflicts", "forgotten"))
        assert summary["turns"] + summary["feedback"] == settled
        seen.append(summary["rows"])
        note(mark, summary, *rest)

    monkeypatch.setattr(ImportProgress, "note", checked)
    summary = load(store, tmp_path, rows, "openai")
    assert len(seen) > 5 and seen[-1] == 120 and summary.stored == summary.turns + summary.feedback
