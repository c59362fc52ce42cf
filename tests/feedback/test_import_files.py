"""Containers: lists, lines, archives, Parquet and folders, whole, cut and broken."""

from __future__ import annotations

import gzip
import importlib
import json
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from afterword.errors import UsageError
from afterword.feedback.importing.files import FileRow, InvalidRow, Source
from afterword.feedback.importing.imports import files_of, import_file
from afterword.records import Turn
from afterword.store import Store
from tests.feedback.import_rows import ROWS, load, said, talk, write

ARROW = pytest.importorskip("pyarrow")
PARQUET = pytest.importorskip("pyarrow.parquet")
files = importlib.import_module("afterword.feedback.importing.files")


ARRAY = json.dumps([talk(i) for i in range(50)], indent=2)


@pytest.mark.parametrize("chunk", [16, 1000, 1 << 20])
@pytest.mark.parametrize(
    ("data", "conversations", "rejected"),
    [
        (ARRAY, 50, {}), (ARRAY.replace("\n", ""), 50, {}), ("\ufeff" + ARRAY, 50, {}),
        (ARRAY[: len(ARRAY) // 2], 25, {"cut_off": 1}), (ARRAY[:-1], 50, {}),
        (ARRAY.replace('"id": "row7",', '"id": row7,'), 49, {"bad_json": 1}),
        (ARRAY.replace('"id": "row7",', '"id": "row7",\n]]}}{{ garbage "" \n'), 49, {"bad_json": 1}),
        (ARRAY.replace("  },\n  {", "  },\nnull, 17, oops\n  {", 1), 50, {"bad_json": 1}),
        ("\n".join(json.dumps(talk(i), indent=1) for i in range(20)), 20, {}),
        ("".join(json.dumps(talk(i)) for i in range(20)), 20, {}),
        ("\r\n".join(json.dumps(talk(i)) for i in range(20)), 20, {}),
        ("\ufeff" + "\n\n".join(json.dumps(talk(i)) for i in range(20)) + "\n", 20, {}),
        ("oops\n" + "\n".join(json.dumps(talk(i)) for i in range(20)), 20, {"bad_json": 1}),
        ("\n".join(json.dumps(talk(i)) for i in range(20))[:-9], 19, {"cut_off": 1}),
    ],
)  # fmt: skip
def test_files_whole_cut_and_broken(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, conversations: int,
    rejected: dict[str, int], chunk: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(files, "CHUNK", chunk)
    summary = load(store, tmp_path, data)
    assert (summary.conversations, summary.rejected) == (conversations, rejected)
    assert summary.turns == 2 * conversations == store.counts()["turns"]


def test_a_line_that_is_nested_too_deeply_is_rejected(store: Store, tmp_path: Path) -> None:
    data = json.dumps(talk(0)) + "\n" + "[" * 100_000 + "\n" + '{"a":' * 100_000 + "\n" + json.dumps(talk(1))
    assert load(store, tmp_path, data).rejected == {"bad_json": 2}
    deep = load(store, tmp_path, "[" + json.dumps(talk(2)) + ", " + '{"a":' * 20_000 + json.dumps(talk(3)) + "]")
    assert deep.rejected == {"bad_json": 1} and deep.conversations >= 1


def test_nul_bytes_control_characters_and_broken_unicode(store: Store, tmp_path: Path) -> None:
    good = orjson.dumps(ROWS["openai"])
    data = b"\n".join([
        good.replace(b"So!", b"\\u0000 \\ud800 x"), good.replace(b"So!", b"\xff\xfe"),
        good.replace(b"So!", b"raw \x00 \x01"), good.replace(b"So!", b"\\ud83d\\ude00"),
    ])  # fmt: skip
    summary = load(store, tmp_path, data)
    assert not summary.rejected and summary.mended == 2
    assert [t.answer["content"] for t in store.rows(Turn)][1::2] == ["\0 \ufffd x", "\ufffd\ufffd", "raw \0 \1", "😀"]
    assert import_file(store, tmp_path / "log.jsonl").stored == 0


def test_numbers_that_cannot_be_stored_are_rejected(store: Store, tmp_path: Path) -> None:
    row = '[{"messages": [{"role": "user", "content": "a", "n": 99999999999999999999999}]}]'
    assert load(store, tmp_path, row, "openai").rejected == {"bad_value": 1}


def test_a_row_that_is_too_long_is_rejected(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_ROW", 2000)
    rows = [ROWS["openai"], {"messages": said("x" * 5000, "y")}, ROWS["openai"]]
    assert load(store, tmp_path, rows).rejected == {"too_long": 1}
    last = import_file(store, write(tmp_path, [ROWS["openai"], {"messages": said("x" * 5000, "y")}], "last.jsonl"))
    assert last.rejected == {"too_long": 1}
    monkeypatch.setattr(files, "CHUNK", 100)
    array = import_file(store, write(tmp_path, orjson.dumps(rows), "array.json"))
    assert array.rejected == {"too_long": 1} and array.conversations == 2


def test_garbage_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_TRIES", 5)
    path = write(tmp_path, "[" + 'x {"a": 1}' * 50, "bad.json")
    source = Source(path)
    assert [type(item) for item in source.rows()] == [InvalidRow]
    source.close()


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_compressed_files(store: Store, tmp_path: Path, pack: Any) -> None:
    plain = "\n".join(json.dumps(talk(i)) for i in range(300)).encode()
    path = write(tmp_path, pack(plain), "log.bin")
    assert import_file(store, path).conversations == 300
    two = import_file(store, write(tmp_path, pack(plain[:-1]) + pack(plain[-1:]), "two.bin"))
    assert (two.conversations, two.stored, two.rejected) == (300, 0, {})


def test_broken_archives_give_what_is_whole(store: Store, tmp_path: Path) -> None:
    import random

    dice = random.Random(0)
    rows = [{"messages": said("How?", "".join(dice.choices("abcdefgh ", k=2000)))} for _ in range(200)]
    plain = b"\n".join(orjson.dumps(row) for row in rows)
    packed = gzip.compress(plain)
    cut = import_file(store, write(tmp_path, packed[: len(packed) // 2], "cut.gz"))
    assert 50 < cut.conversations < 150 and cut.rejected["broken_archive"] == 1
    zst = import_file(store, write(tmp_path, zstandard.compress(plain)[:120_000], "cut.zst"))
    assert 50 < zst.conversations < 199 and zst.rejected["broken_archive"] == 1
    wrong = packed[:5000] + b"\xff" * 50 + packed[5050:]
    assert import_file(store, write(tmp_path, wrong, "wrong.gz"), "openai").rejected["broken_archive"] == 1


@pytest.mark.parametrize(
    ("name", "data", "format", "says"),
    [
        ("a.jsonl", b"", "auto", "is empty"), ("a.json", b"[]", "openai", "is empty"),
        ("a.csv", b"a,b\n1,2\n", "auto", "a table of text"), ("a.jsonl", b'{"x": 1}\n', "auto", "no row of a known"),
        ("a.jsonl", b"{}", "csv", "'csv' is unknown"), ("a.parquet", b"PAR1....", "auto", "Parquet"),
        ("a.zip", b"PK\x03\x04", "auto", "zip"), ("missing/a", None, "auto", "cannot read"),
        (".", None, "auto", "cannot read"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_imported(
    store: Store, tmp_path: Path, name: str, data: bytes | None, format: str, says: str
) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UsageError, match=says):
        import_file(store, path, format)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                    max_leaves=8)  # fmt: skip


@settings(max_examples=150)
@given(data=st.binary(max_size=300), rows=st.lists(JSON, max_size=4))
def test_any_bytes_can_be_read(data: bytes, rows: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x"
    path.write_bytes(data + b"\n" + json.dumps(rows).encode())
    try:
        source = Source(path)
    except UsageError as error:
        assert "Parquet" in error.message or "zip" in error.message
        return
    assert all(isinstance(item, FileRow | InvalidRow) for item in source.rows())
    source.close()


def test_a_file_whose_only_line_has_broken_unicode_is_read_by_lines(store: Store, tmp_path: Path) -> None:
    line = b'{"messages": [{"role": "user", "content": "\xff?"}, {"role": "assistant", "content": "So."}]}\n'
    summary = load(store, tmp_path, line)
    assert (summary.turns, summary.mended, summary.rejected) == (1, 1, {})
    assert next(store.rows(Turn)).messages[0]["content"] == "�?"


def test_parquet_that_is_cut_or_damaged(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = ARROW.Table.from_pylist([{"messages": said(f"How {n}? " + "x" * n, "So.")} for n in range(3000)])
    PARQUET.write_table(table, path, row_group_size=500, compression="none", use_dictionary=False)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UsageError, match="invalid or truncated Parquet file"):
        import_file(store, path)
    middle = len(data) // 2
    path.write_bytes(data[:middle] + b"\xff" * 4000 + data[middle + 4000 :])
    summary = import_file(store, path)
    assert 0 < summary.turns < 3000 and summary.rejected["broken_archive"] == 1


@pytest.mark.parametrize("skip", [0, 1, 499, 500, 1250, 3000, 4000])
def test_rows_are_passed_over_in_every_container(tmp_path: Path, skip: int) -> None:
    rows = [{"messages": said(f"How {n}?", "So.")} for n in range(3000)]
    lines = b"\n".join(orjson.dumps(row) for row in rows)
    PARQUET.write_table(ARROW.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=500)
    (tmp_path / "a.jsonl").write_bytes(b"\n\nnot json\n" + lines)
    (tmp_path / "a.json").write_bytes(orjson.dumps(rows))
    (tmp_path / "a.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "a.zst").write_bytes(zstandard.compress(lines))
    for file in tmp_path.iterdir():
        whole, rest = Source(file), Source(file)
        everything = list(whole.rows())
        assert list(rest.rows(skip)) == everything[skip:], file.name
        assert sum(isinstance(item, InvalidRow) for item in everything) == (file.name == "a.jsonl")
        whole.close()
        rest.close()


def test_folders_are_read_file_by_file(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    (folder / "2026" / ".git").mkdir(parents=True)
    row = json.dumps({"messages": said("How?", "So.")})
    for name in ("b.jsonl", "a.json", "2026/c.JSONL", "notes.md", "2026/.git/d.json", ".hidden.json"):
        (folder / name).write_text(row, encoding="utf-8")
    found = files_of(folder)
    assert [(p.relative_to(folder).as_posix(), n) for p, n in found] == [
        ("2026/c.JSONL", "logs/2026/c.JSONL"), ("a.json", "logs/a.json"), ("b.jsonl", "logs/b.jsonl"),
    ]  # fmt: skip
    assert files_of(folder / "notes.md") == [(folder / "notes.md", "notes.md")]
    with pytest.raises(UsageError, match="holds no file named"):
        files_of(tmp_path / "data")
