"""Texts in other encodings, lists within an object, commas too many, lines with other ends."""

from __future__ import annotations

import codecs
import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest

from afterword.errors import UsageError
from afterword.feedback.importing.files import _lenient, encoding_of
from afterword.feedback.importing.imports import import_file
from afterword.records import Turn
from afterword.store import Store
from tests.feedback.chat_exports import open_webui
from tests.feedback.import_rows import load, reasons, said, talk, write

WORDS = "Sechs Minuten – je nach Größe, naïve « œuf »."
LINES = "\r\n".join(json.dumps({"messages": said(f"Wie {n}?", WORDS)}, ensure_ascii=False) for n in range(3))


@pytest.mark.parametrize("shape", [LINES, f"[{LINES.replace(chr(13), ',')}]", LINES.replace("\r\n", "\r")])
@pytest.mark.parametrize(
    ("encoding", "mark"),
    [*itertools.product(["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"], ["", "\ufeff"]), ("cp1252", "")],
)
def test_encodings_are_found(store: Store, tmp_path: Path, encoding: str, mark: str, shape: str) -> None:
    summary = load(store, tmp_path, (mark + shape).encode(encoding))
    assert (summary.turns, summary.mended, summary.rejected) == (3, 0, {})
    assert {t.answer["content"] for t in store.rows(Turn)} == {WORDS}
    assert summary.encoding.replace("_", "-").startswith(encoding[:6])


def test_a_letter_of_cp1252_behind_a_long_plain_beginning(store: Store, tmp_path: Path) -> None:
    plain = [json.dumps({"messages": said(f"How {n}?", "x" * 2000)}) for n in range(600)]
    last = json.dumps({"messages": said("Wie?", WORDS)}, ensure_ascii=False).encode("cp1252")
    load(store, tmp_path, "\n".join(plain).encode() + b"\n" + last)
    assert WORDS in {t.answer["content"] for t in store.rows(Turn)}


@pytest.mark.parametrize(
    ("encoding", "words"), [("gb18030", "鸡蛋要煮六分钟左右"), ("cp1251", "Варить яйца шесть минут")]
)
def test_other_encodings_can_be_named(store: Store, tmp_path: Path, encoding: str, words: str) -> None:
    for name, shape in (("a", LINES), ("b", f"[{LINES.replace(chr(13), ',')}]")):
        data = shape.replace(WORDS, words).encode(encoding)
        with pytest.raises(UsageError, match="--encoding"):
            load(store, tmp_path, data, name=name)
        summary = import_file(store, write(tmp_path, data, name), encoding=encoding)
        assert summary.turns == 3 and {t.answer["content"] for t in store.rows(Turn)} == {words}


def test_an_unknown_encoding_is_refused(store: Store, tmp_path: Path) -> None:
    for name in ("klingon", "rot13", "x" * 3000, "a\0b"):
        with pytest.raises(UsageError, match="encoding"):
            import_file(store, write(tmp_path, "{}"), encoding=name)


def test_a_damaged_letter_is_no_other_encoding(store: Store, tmp_path: Path) -> None:
    line = json.dumps({"messages": said("Größe?", "So – so.")}, ensure_ascii=False).encode()
    summary = load(store, tmp_path, line.replace("–".encode(), b"\xe2\x80"))
    assert (summary.mended, summary.encoding) == (1, "utf-8")
    assert next(store.rows(Turn)).answer["content"] == "So \ufffd so."


def test_marks_of_the_byte_order() -> None:
    assert [encoding_of(mark + b"x") for mark in (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF32_LE)] == [
        "utf-8", "utf-16", "utf-32",
    ]  # fmt: skip
    assert [encoding_of(head) for head in (b"", b"[\xe4", b"[\xc3\xa4\xff", b"[\xff\xfe")] == [
        "utf-8", "cp1252", "utf-8", "utf-8",
    ]  # fmt: skip


# ---- lists within an object


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("chunk", [16, 1 << 20])
@pytest.mark.parametrize("key", ["data", "rows", "conversations", "items"])
def test_rows_under_a_key(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, chunk: int, indent: int | None
) -> None:
    monkeypatch.setattr("afterword.feedback.importing.files.CHUNK", chunk)
    whole: dict[str, Any] = {"version": 2, "features": [{"name": "x"}], key: [talk(n) for n in range(40)], "total": 40}
    summary = load(store, tmp_path, json.dumps(whole, indent=indent))
    assert (summary.rows, summary.conversations, summary.rejected) == (40, 40, {})
    assert import_file(store, tmp_path / "log.jsonl").stored == 0


def test_rows_of_a_data_set_server_and_several_lists(store: Store, tmp_path: Path) -> None:
    served = {
        "features": [{"feature_idx": 0, "name": "messages"}],
        "rows": [
            {"row_idx": n, "row": {"messages": said(f"How {n}?", "So.")}, "truncated_cells": []} for n in range(5)
        ],
        "num_rows_total": 5,
    }
    assert load(store, tmp_path, json.dumps(served)).turns == 5
    two = {"train": [talk(n) for n in range(100, 103)], "test": [talk(n) for n in range(103, 105)], "info": [{"a": 1}]}
    assert load(store, tmp_path, json.dumps(two), name="two.json").conversations == 5
    pages = "\n".join(json.dumps({"data": [talk(n), talk(n + 50)], "meta": {"page": n}}) for n in range(200, 203))
    assert load(store, tmp_path, pages, name="pages.jsonl").conversations == 6
    chats = {"chats": [open_webui(chat=f"c{n}") for n in range(3)]}
    assert load(store, tmp_path, json.dumps(chats), name="chats.json").conversations == 3


def test_rows_that_hold_their_row_under_a_key(store: Store, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": 1, "data": {"messages": said("How 1?", "So.")}}, {"row": {"messages": said("How 2?", "So.")}},
        {"id": "0", "data": ["How 3?", "So.", "Shorter.", "So!"]}, {"messages": json.dumps(said("How 4?", "So."))},
    ]  # fmt: skip
    for n, row in enumerate(rows):
        summary = load(store, tmp_path, [row], name=f"{n}.jsonl")
        assert not summary.rejected and summary.turns == (2 if n == 2 else 1), n
    assert load(store, tmp_path, [rows[0]], "openai", name="named.jsonl").stored == 0


def test_what_lists_messages_is_a_row(store: Store, tmp_path: Path) -> None:
    assert load(store, tmp_path, json.dumps(talk(1), indent=1)).conversations == 1
    empty = load(store, tmp_path, json.dumps({"data": [], "messages": said("How?", "So.")}), name="b")
    assert empty.turns == 1


def test_a_list_in_an_object_that_breaks_off_or_has_faults(store: Store, tmp_path: Path) -> None:
    data = json.dumps({"data": [talk(n) for n in range(20)], "total": 20})
    cut = load(store, tmp_path, data[: len(data) // 2], name="cut")
    assert 8 <= cut.conversations <= 11 and cut.rejected == {"cut_off": 1}
    fault = load(store, tmp_path, data.replace('"id": "row7"', '"id": row7'), name="fault")
    assert fault.conversations == 19 and fault.rejected == {"bad_json": 1}
    behind = load(store, tmp_path, data.replace('"total": 20}', '"total": oops}'), name="behind")
    assert behind.conversations == 20


# ---- JSON as people write it


@pytest.mark.parametrize("chunk", [16, 1 << 20])
def test_commas_too_many(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr("afterword.feedback.importing.files.CHUNK", chunk)
    tail = (
        '{"messages": [{"role": "user", "content": "a, ]b"}, {"role": "assistant", "content": "c,}",}, ], "n": [1, ],}'
    )
    assert load(store, tmp_path, f"{tail},\n{tail},\n", name="lines").turns == 2
    assert load(store, tmp_path, f"[\n{tail},\n{tail}\n,]", name="list").turns == 2
    assert load(store, tmp_path, json.dumps(talk(0)) + ",\n" + json.dumps(talk(1)) + ",\n", name="x").conversations == 2
    assert {t.answer["content"] for t in store.rows(Turn)} >= {"c,}"}


@pytest.mark.parametrize("end", ["", "\\"])
def test_a_line_that_is_cut_off_within_escaped_json_takes_linear_time(end: str) -> None:
    line = '{"messages": [{"role": "user", "content": "' + '{\\"a\\": \\"b\\"}, ' * 6000 + end
    started = time.process_time()
    with pytest.raises(ValueError, match=r"Unterminated|Invalid"):
        _lenient(line)
    assert time.process_time() - started < 5  # 0.01 s; minutes when each quote was tried as a beginning


def test_nan_separators_marks_and_padding(store: Store, tmp_path: Path) -> None:
    rows = [json.dumps({"messages": said(f"How {n}?", "So."), "score": float("nan"), "id": f"{n}"}) for n in range(6)]
    for name, data in {
        "sequence": "".join(f"\x1e{row}\n" for row in rows), "marks": "\n".join(f"\ufeff{row}" for row in rows),
        "old": "\r".join(rows), "empty": "\n\n \n".join(rows) + "\0" * 40, "page": "\n\f\n".join(rows),
        "separator": "\u2028".join(rows),
    }.items():  # fmt: skip
        assert (load(store, tmp_path, data, name=name).turns, name) == (6, name)
    assert store.count(Turn) == 6


def test_rows_of_ten_megabytes_and_one_that_is_cut(store: Store, tmp_path: Path) -> None:
    big = {"messages": said("How?", "egg " * 2_500_000)}
    rows = [json.dumps(row) for row in (talk(0), big, talk(1))]
    summary = load(store, tmp_path, "\n".join(rows).encode()[:-20])
    assert summary.turns == 3 and reasons(summary) == {"cut_off": 1}
