"""Files in every format, whole and broken, into the store and out again."""

from __future__ import annotations

import gzip
import importlib
import io
import json
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from afterword.errors import UsageError
from afterword.feedback import collect
from afterword.feedback.files import Bad, Row, Source
from afterword.feedback.formats import FORMATS, detect_format
from afterword.feedback.imports import ImportSummary, import_file
from afterword.feedback.rows import unix_time
from afterword.records import RECORDS, Feedback, Release, Turn
from afterword.store import Store
from afterword.store.export import EXPORTS, export

files = importlib.import_module("afterword.feedback.files")


def talk(n: int, turns: int = 2) -> dict[str, Any]:
    parts = [{"from": who, "value": f"{who} {n} says {i}"} for i in range(turns) for who in ("human", "gpt")]
    return {"id": f"row{n}", "conversations": parts}


def messages(*texts: str) -> list[dict[str, str]]:
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]


ROWS: dict[str, dict[str, Any]] = {
    "openai": {"messages": messages("How?", "So.", "Shorter.", "So!"), "tools": [{"type": "function"}], "model": "m"},
    "sharegpt": {"id": "a", "system": "Be nice.", "conversations": [
        {"from": "human", "value": "How?"}, {"from": "gpt", "value": "So."}, {"from": "human", "value": "Shorter."},
        {"from": "gpt", "value": "So!"}]},
    "wildfeedback": {"conversation": [{"from": "human", "value": "How?"}, {"from": "gpt", "value": "So."},
                                      {"from": "human", "value": "Shorter."}, {"from": "gpt", "value": "So!"}]},
    "wildchat": {"conversation_hash": "h", "model": "m", "timestamp": "2024-05-01T10:00:00Z", "hashed_ip": "ip",
                 "conversation": [{**m, "toxic": False} for m in messages("How?", "So.", "Shorter.", "So!")]},
    "triples": {"id": "x", "original_conv_id": "c", "prompt": messages("Hm?", "Hm.", "How?"), "completion": "So.",
                "user_response": "Shorter."},
    "events": {"model_version": "v3", "task": "code", "prompt": "How?", "draft": "So.", "user_action": "edited",
               "user_edit": "So!", "follow_up": "Shorter.", "signal_weight": 0.8,
               "created_at": "2026-06-24T00:00:00Z"},
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.open(tmp_path / "data" / "afterword.db") as opened:
        yield opened


def write(tmp_path: Path, data: bytes | str | list[Any], name: str = "log.jsonl") -> Path:
    path = tmp_path / name
    if isinstance(data, list):
        data = b"\n".join(orjson.dumps(row) for row in data)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def load(
    store: Store, tmp_path: Path, data: bytes | str | list[Any], format: str = "auto", **options: Any
) -> ImportSummary:
    return import_file(store, write(tmp_path, data), format, **options)


@pytest.mark.parametrize("format", ROWS)
def test_every_format_is_recognised_and_imported(store: Store, tmp_path: Path, format: str) -> None:
    summary = load(store, tmp_path, [ROWS[format]])
    assert summary.format == format == detect_format(ROWS[format])
    assert not summary.rejected and summary.rejects is None
    assert (summary.turns, summary.feedback) == (
        (1, 1) if format == "triples" else (1, 2) if format == "events" else (2, 1)
    )
    turn = next(t for t in store.rows(Turn) if t.answer["content"] == "So.")
    assert turn.messages[-1] == {"role": "user", "content": "How?"}
    assert turn.source == f"import:{format}" and not turn.on_policy and turn.missing_ids
    found = {f.kind: f for f in store.rows(Feedback, turn=turn.id)}
    assert found["follow_up"].text == "Shorter."


def test_what_a_row_says_about_itself_is_kept(store: Store, tmp_path: Path) -> None:
    load(store, tmp_path, [ROWS["wildchat"]])
    first, second = store.rows(Turn)
    assert (first.user, first.model, first.created_at) == ("ip", "m", 1714557600.0)
    assert (first.previous, second.previous) == (None, first.id) and first.conversation == second.conversation
    assert [f.next_turn for f in store.rows(Feedback)] == [second.id]
    load(store, tmp_path, [ROWS["events"]])
    event = store.newest(Turn)
    assert event is not None and (event.task, event.model) == ("code", "v3")
    kinds = {f.kind: f for f in store.rows(Feedback, turn=event.id)}
    assert kinds["edited"].final_text == "So!" and kinds["edited"].metadata == {"signal_weight": 0.8}
    assert kinds["edited"].occurred_at == 1782259200.0


@pytest.mark.parametrize("weight", [-3, 1.5, "high", True, [1]])
def test_a_weight_that_is_none_is_rejected(store: Store, tmp_path: Path, weight: Any) -> None:
    row = {"prompt": "p", "draft": "d", "user_action": "accepted", "signal_weight": weight}
    summary = load(store, tmp_path, [row, {**row, "signal_weight": 0}, {**row, "draft": "e", "signal_weight": None}])
    assert summary.rejected == {"bad_weight": 1} and summary.turns == 2
    nan = b'{"prompt": "p", "draft": "f", "user_action": "accepted", "signal_weight": NaN}'
    assert load(store, tmp_path, nan).rejected == {"bad_weight": 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": []}, "empty"), ({"messages": "x"}, "no_messages"),
        ({"messages": [{"role": "boss"}]}, "bad_message"),
        ({"messages": [3]}, "bad_message"), ({"messages": [{"role": "user", "content": 3}]}, "bad_message"),
        ({"messages": [{"role": "user", "content": [3]}]}, "bad_message"), ([1], "no_object"), (3, "no_object"),
    ],
)  # fmt: skip
def test_bad_openai_rows_are_counted_and_written_down(store: Store, tmp_path: Path, row: Any, reason: str) -> None:
    summary = load(store, tmp_path, [ROWS["openai"], row], "openai")
    assert summary.rejected == {reason: 1} and summary.turns == 2
    assert summary.rejects is not None
    written = json.loads(Path(summary.rejects).read_text(encoding="utf-8"))
    assert written["where"] == "line 2" and written["reason"] == reason and written["detail"] and written["row"]


@pytest.mark.parametrize(
    ("format", "change", "reason"),
    [
        ("sharegpt", {"conversations": [{"from": "stranger", "value": "x"}]}, "bad_message"),
        ("sharegpt", {"conversations": ["x"]}, "bad_message"),
        ("sharegpt", {"conversations": [{"from": "gpt", "value": None}]}, "bad_message"),
        ("wildchat", {"conversation": ["x"]}, "bad_message"),
        ("triples", {"prompt": 3}, "no_messages"), ("triples", {"completion": ["a", "b"]}, "no_messages"),
        ("triples", {"user_response": None}, "no_messages"),
        ("events", {"draft": None}, "no_messages"), ("events", {"user_action": "danced"}, "unknown_action"),
    ],
)  # fmt: skip
def test_bad_rows_of_other_formats(
    store: Store, tmp_path: Path, format: str, change: dict[str, Any], reason: str
) -> None:
    assert load(store, tmp_path, [{**ROWS[format], **change}], format).rejected == {reason: 1}
    assert store.counts()["turns"] == 0


def test_rejects_are_written_anew_and_only_when_there_are_any(store: Store, tmp_path: Path) -> None:
    place = tmp_path / "elsewhere" / "bad.jsonl"
    load(store, tmp_path, [{"messages": []}, {"messages": []}], "openai", rejects=place)
    assert len(place.read_text(encoding="utf-8").splitlines()) == 2
    load(store, tmp_path, [ROWS["openai"]], rejects=place)
    assert not place.exists()


def test_triples_in_other_shapes(store: Store, tmp_path: Path) -> None:
    row = {"prompt": "How?", "completion": [{"role": "assistant", "content": "So."}],
           "user_response": [{"role": "user", "content": "Shorter."}]}  # fmt: skip
    assert load(store, tmp_path, [row, {**row, "user_response": ""}]).feedback == 1


@pytest.mark.parametrize(
    ("action", "kind"),
    [
        ("accepted unchanged", "accepted"),
        ("retry", "retried"),
        ("Accepted_after_edit", "edited"),
        ("executed", "executed"),
    ],
)
def test_actions_of_the_template(store: Store, tmp_path: Path, action: str, kind: str) -> None:
    load(store, tmp_path, [{"prompt": messages("How?"), "draft": "So.", "user_action": action, "user_edit": "So!"}])
    found = next(store.rows(Feedback))
    assert found.kind == kind and found.exit_code == (0 if kind == "executed" else None)


def test_tools_and_conversations_that_begin_in_the_middle(store: Store, tmp_path: Path) -> None:
    parts = [("gpt", "And so on."), ("human", "Weather?"), ("function_call", "{}"), ("observation", "rain"),
             ("gpt", "It rains."), ("gpt", "A lot."), ("human", "Where?"), ("human", "When?")]  # fmt: skip
    summary = load(store, tmp_path, [{"conversations": [{"from": f, "value": v} for f, v in parts]}])
    assert (summary.turns, summary.feedback, summary.without_request, summary.messages) == (3, 1, 1, 8)
    assert next(store.rows(Feedback)).text == "Where?\n\nWhen?"


def test_a_long_conversation_takes_linear_space(store: Store, tmp_path: Path) -> None:
    row = {"conversations": [{"from": "system", "value": "Be nice."}, *talk(0, 500)["conversations"]]}
    load(store, tmp_path, [row])
    turns = list(store.rows(Turn))
    assert len(turns) == 500 and max(len(t.messages) for t in turns) == 10
    assert turns[-1].messages[0]["role"] == "system" and turns[-1].messages[1]["role"] == "user"
    assert turns[-1].previous == turns[-2].id


def test_a_long_tool_loop_keeps_its_question(store: Store, tmp_path: Path) -> None:
    loop = [{"from": who, "value": "x"} for _ in range(10) for who in ("function_call", "observation")]
    row = {
        "conversations": [
            *talk(0, 8)["conversations"],
            {"from": "human", "value": "Q"},
            *loop,
            {"from": "gpt", "value": "A"},
        ]
    }
    load(store, tmp_path, [row])
    last = store.newest(Turn)
    assert last is not None and last.messages[0] == {"role": "user", "content": "Q"} and len(last.messages) == 21


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
    rows = [ROWS["openai"], {"messages": messages("x" * 5000, "y")}, ROWS["openai"]]
    assert load(store, tmp_path, rows).rejected == {"too_long": 1}
    last = import_file(store, write(tmp_path, [ROWS["openai"], {"messages": messages("x" * 5000, "y")}], "last.jsonl"))
    assert last.rejected == {"too_long": 1}
    monkeypatch.setattr(files, "CHUNK", 100)
    array = import_file(store, write(tmp_path, orjson.dumps(rows), "array.json"))
    assert array.rejected == {"too_long": 1} and array.conversations == 2


def test_garbage_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_TRIES", 5)
    path = write(tmp_path, "[" + 'x {"a": 1}' * 50, "bad.json")
    source = Source(path)
    assert [type(item) for item in source.rows()] == [Bad]
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
    rows = [{"messages": messages("How?", "".join(dice.choices("abcdefgh ", k=2000)))} for _ in range(200)]
    plain = b"\n".join(orjson.dumps(row) for row in rows)
    packed = gzip.compress(plain)
    cut = import_file(store, write(tmp_path, packed[: len(packed) // 2], "cut.gz"))
    assert 50 < cut.conversations < 150 and cut.rejected["broken_archive"] == 1
    zst = import_file(store, write(tmp_path, zstandard.compress(plain)[:120_000], "cut.zst"))
    assert 50 < zst.conversations < 199 and zst.rejected["broken_archive"] == 1
    wrong = packed[:5000] + b"\xff" * 50 + packed[5050:]
    assert import_file(store, write(tmp_path, wrong, "wrong.gz"), "openai").rejected["broken_archive"] == 1


def test_an_interrupted_import_is_finished_by_running_it_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("afterword.feedback.sink"), "GROUP", 20)
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


@pytest.mark.parametrize(
    ("name", "data", "format", "says"),
    [
        ("a.jsonl", b"", "auto", "is empty"), ("a.json", b"[]", "openai", "is empty"),
        ("a.csv", b"a,b\n1,2\n", "auto", "a table of text"), ("a.jsonl", b'{"x": 1}\n', "auto", "no row of a known"),
        ("a.jsonl", b"{}", "csv", "'csv' is not known"), ("a.parquet", b"PAR1....", "auto", "Parquet"),
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


def test_a_row_that_is_no_object_has_no_format() -> None:
    assert detect_format([1]) is None and detect_format({"x": 1}) is None


def test_bad_records_of_our_own(store: Store, tmp_path: Path) -> None:
    rows = [{"record": "songs", "id": "1", "schema": 1}, {"record": "turns", "id": "1", "schema": 1, "tempo": 3},
            {"record": "feedback", "id": 3, "schema": 1, "turn": "t", "kind": "accepted"}]  # fmt: skip
    summary = load(store, tmp_path, rows)
    assert summary.rejected == {"unknown_record": 1, "bad_record": 1, "bad_row": 1} and summary.stored == 0
    assert summary.to_dict()["rejected"] == {"bad_record": 1, "bad_row": 1, "unknown_record": 1}


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(1714557600, 1714557600.0), (1714557600000, 1714557600.0), ("2024-05-01T10:00:00+00:00", 1714557600.0),
     ("2024-05-01 10:00:00", 1714557600.0), ("soon", None),
     (True, None), (-1, None), (float("nan"), None), (None, None)],
)  # fmt: skip
def test_times(value: Any, seconds: float | None) -> None:
    assert unix_time(value) == seconds


def out(store: Store, what: str, format: str) -> list[dict[str, Any]]:
    sink = io.BytesIO()
    assert export(store, what, format, sink) == len(sink.getvalue().splitlines())
    return [orjson.loads(line) for line in sink.getvalue().splitlines()]


@pytest.fixture
def full(store: Store, tmp_path: Path) -> Store:
    """An imported log with an edit, collected."""
    for i, row in enumerate(ROWS.values()):
        import_file(store, write(tmp_path, [row], f"{i}.jsonl"))
    first = next(store.rows(Turn))
    store.write(Feedback(id="e", turn=first.id, kind="edited", final_text="So, so."))
    collect(store)
    return store


def test_our_own_rows_come_back_as_they_were(full: Store, tmp_path: Path) -> None:
    with Store.open(tmp_path / "copy.db") as copy:
        for kind in (Turn, Feedback):
            import_file(copy, write(tmp_path, out(full, kind.TABLE, "afterword"), "own.jsonl"), "afterword")
            assert list(copy.rows(kind)) == list(full.rows(kind))
        again = import_file(copy, tmp_path / "own.jsonl")
        assert again.stored == 0 and again.duplicates == again.rows


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


def test_what_is_derived_is_not_taken_from_a_file(full: Store, tmp_path: Path) -> None:
    release = Release(id="rel-evil", channel="default", action="publish", adapter="evil@v000001", why="",
                      path="../../evil", candidate=None, verdict=None, previous=None)  # fmt: skip
    rows = out(full, "interactions", "afterword") + [
        {"record": kind.TABLE, "id": "x", "schema": 1} for kind in RECORDS[3:]
    ]
    rows += [{"record": "releases", **release.to_dict()}, *out(full, "turns", "afterword")]
    with Store.open(tmp_path / "copy.db") as copy:
        summary = import_file(copy, write(tmp_path, rows))
        assert copy.counts() == {**dict.fromkeys(copy.counts(), 0), "turns": full.counts()["turns"]}
    assert summary.rejected["derived_releases"] == 2
    assert summary.rejected["derived_interactions"] == full.counts()["interactions"] > 0
    assert set(summary.rejected) == {f"derived_{kind.TABLE}" for kind in RECORDS[2:]} and summary.rejects is not None
    first = json.loads(Path(summary.rejects).read_text(encoding="utf-8").splitlines()[0])
    assert "consent" in first["detail"] and "`afterword collect`" in first["detail"]


@pytest.mark.parametrize("format", ["openai", "sharegpt"])
def test_conversations_come_back_whole(store: Store, tmp_path: Path, format: str) -> None:
    texts = [f"text {i}" for i in range(60)]
    row = {"messages": [{"role": "system", "content": "Be nice."}, *messages(*texts)]}
    load(store, tmp_path, [row])
    rows = out(store, "turns", "openai")
    assert rows == [row]
    summary = load(store, tmp_path, rows)
    assert summary.stored == 0 and summary.duplicates == 30 + 29


def test_a_rewritten_history_is_exported_as_it_was_sent(store: Store) -> None:
    asked = (
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "changed"},
        {"role": "user", "content": "?"},
    )
    answer = {"role": "assistant", "content": "Hello"}
    store.write(Turn(id="a", messages=asked[:1], answer=answer),
                Turn(id="b", messages=asked, answer=answer, previous="a"),
                Turn(id="c", messages=asked[:1], answer=answer, previous="gone",
                     tools=({"type": "function"},)))  # fmt: skip
    rows = out(store, "turns", "openai")
    assert rows[0] == {"messages": [*asked, answer]}
    assert rows[1] == {"messages": [asked[0], answer], "tools": [{"type": "function"}]}


def test_exports_of_interactions(full: Store) -> None:
    triples = out(full, "interactions", "triples")
    assert len(triples) == full.counts()["interactions"]
    assert {"prompt", "completion", "user_response", "original_conv_id", "turn_id"} <= triples[0].keys()
    pairs = out(full, "interactions", "trl-preference")
    assert {pair["chosen"][0]["content"] for pair in pairs} == {"So, so.", "So!"}
    assert {pair["rejected"][0]["content"] for pair in pairs} == {"So."}
    wanted = out(full, "interactions", "trl-prompt-completion")
    assert [row["completion"][0]["content"] for row in wanted] == [p["chosen"][0]["content"] for p in pairs]
    assert [row["messages"][-1] for row in out(full, "interactions", "openai")] == [r["completion"][0] for r in wanted]
    assert len(out(full, "turns", "trl-prompt-completion")) == full.counts()["turns"]


def test_positive_interactions_are_exported_with_the_answer_itself(store: Store) -> None:
    turn = Turn(id="a", messages=({"role": "user", "content": "Hi"},), answer={"role": "assistant", "content": "Hello"},
                tools=({"type": "function"},))  # fmt: skip
    store.write(turn, Feedback(id="f", turn="a", kind="accepted"))
    collect(store)
    assert out(store, "interactions", "openai")[0]["messages"][-1] == turn.answer
    assert out(store, "interactions", "trl-preference") == out(store, "interactions", "triples") == []
    store.write(Feedback(id="x", turn="a", kind="retraction", retracts="f"))
    assert out(store, "interactions", "openai") == []


def test_triples_and_events_go_out_and_come_in(full: Store, tmp_path: Path) -> None:
    for what, format in (("interactions", "triples"), ("feedback", "events")):
        rows = out(full, what, format)
        with Store.open(tmp_path / f"{format}.db") as copy:
            summary = import_file(copy, write(tmp_path, rows, f"{format}.jsonl"))
            assert summary.format == format and not summary.rejected
            assert copy.counts()["feedback"] == len(rows)
    assert {row["user_action"] for row in out(full, "feedback", "events")} == {"edited", None}


def test_events_leave_out_what_they_cannot_hold(store: Store) -> None:
    store.write(Turn(id="a", messages=tuple(messages("Hi")), answer={"role": "assistant", "content": "Hello"}),
                Feedback(id="1", turn="a", kind="rating", value=1.0), Feedback(id="2", turn="b", kind="accepted"),
                Feedback(id="3", turn="a", kind="executed", exit_code=1), Feedback(id="4", turn="a", kind="accepted"),
                Feedback(id="5", turn="a", kind="retraction", retracts="4"))  # fmt: skip
    assert out(store, "feedback", "events") == []


def test_impossible_exports_name_the_possible_ones(store: Store) -> None:
    with pytest.raises(UsageError, match=r"'feedback' cannot be exported as 'openai'.*turns as openai"):
        export(store, "feedback", "openai", io.BytesIO())
    assert {what for what, _ in EXPORTS} == {"turns", "feedback", "interactions"}


def test_every_format_of_the_contract_is_there() -> None:
    assert set(FORMATS) == {
        "openai", "sharegpt", "wildchat", "wildfeedback", "triples", "events", "tensorzero", "langfuse", "afterword",
    }  # fmt: skip


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                    max_leaves=8)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=300), rows=st.lists(JSON, max_size=4))
def test_any_bytes_can_be_read(data: bytes, rows: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x"
    path.write_bytes(data + b"\n" + json.dumps(rows).encode())
    try:
        source = Source(path)
    except UsageError as error:
        assert "Parquet" in error.message or "zip" in error.message
        return
    assert all(isinstance(item, Row | Bad) for item in source.rows())
    source.close()


@settings(max_examples=150, deadline=None)
@given(row=st.dictionaries(st.sampled_from(sorted({k for r in ROWS.values() for k in r} | {"record", "schema"})), JSON))
def test_any_row_is_parsed_or_refused_by_every_format(row: dict[str, Any]) -> None:
    for parse in FORMATS.values():
        try:
            parsed = parse(row)
        except UsageError as error:
            assert error.message
        else:
            assert parsed is not None


def test_a_file_whose_only_line_has_broken_unicode_is_read_by_lines(store: Store, tmp_path: Path) -> None:
    line = b'{"messages": [{"role": "user", "content": "\xff?"}, {"role": "assistant", "content": "So."}]}\n'
    summary = load(store, tmp_path, line)
    assert (summary.turns, summary.mended, summary.rejected) == (1, 1, {})
    assert next(store.rows(Turn)).messages[0]["content"] == "�?"
