"""What leaves the store, in which shape, and what comes back of it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from afterword.errors import UsageError
from afterword.feedback.collect.collect import collect
from afterword.feedback.importing.imports import import_file
from afterword.formats.export import export
from afterword.formats.registry import EXPORTS
from afterword.records import RECORDS, Feedback, Release, Turn
from afterword.store import Store
from tests.feedback.import_rows import ROWS, load, out, said, write


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


def test_what_is_derived_is_not_taken_from_a_file(full: Store, tmp_path: Path) -> None:
    release = Release(id="rel-evil", channel="default", action="publish", adapter="evil@v000001", why="",
                      path="../../evil", candidate=None, verdict=None, previous=None)  # fmt: skip
    rows = out(full, "interactions", "afterword") + [
        {"record": kind.TABLE, "id": "x", "schema": 1} for kind in RECORDS[4:]
    ]
    rows += [{"record": "releases", **release.to_dict()}, *out(full, "turns", "afterword")]
    with Store.open(tmp_path / "copy.db") as copy:
        summary = import_file(copy, write(tmp_path, rows))
        assert copy.counts() == {**dict.fromkeys(copy.counts(), 0), "turns": full.counts()["turns"]}
    assert summary.rejected["derived_releases"] == 2
    assert summary.rejected["derived_interactions"] == full.counts()["interactions"] > 0
    assert set(summary.rejected) == {f"derived_{kind.TABLE}" for kind in RECORDS[3:]} and summary.rejects is not None
    first = json.loads(Path(summary.rejects).read_text(encoding="utf-8").splitlines()[0])
    assert "consent" in first["detail"] and "`afterword collect`" in first["detail"]


@pytest.mark.parametrize("format", ["openai", "sharegpt"])
def test_conversations_come_back_whole(store: Store, tmp_path: Path, format: str) -> None:
    texts = [f"text {i}" for i in range(60)]
    row = {"messages": [{"role": "system", "content": "Be nice."}, *said(*texts)]}
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
    store.write(Turn(id="a", messages=tuple(said("Hi")), answer={"role": "assistant", "content": "Hello"}),
                Feedback(id="1", turn="a", kind="rating", value=1.0), Feedback(id="2", turn="b", kind="accepted"),
                Feedback(id="3", turn="a", kind="executed", exit_code=1), Feedback(id="4", turn="a", kind="accepted"),
                Feedback(id="5", turn="a", kind="retraction", retracts="4"))  # fmt: skip
    assert out(store, "feedback", "events") == []


def test_impossible_exports_name_the_possible_ones(store: Store) -> None:
    with pytest.raises(UsageError, match=r"'feedback' cannot be exported as 'openai'.*turns as openai"):
        export(store, "feedback", "openai", io.BytesIO())
    assert {what for what, _ in EXPORTS} == {"turns", "feedback", "interactions", "episodes"}


def test_a_time_that_no_calendar_knows_breaks_no_export(store: Store) -> None:
    said_ = Turn(id="t", messages=tuple(said("Hi")), answer={"role": "assistant", "content": "Yo"}, created_at=1e13)
    store.write(said_, Feedback(id="f", turn="t", kind="comment", text="no", created_at=-1e18, occurred_at=4e18))
    collect(store)
    assert all(len(out(store, what, form)) <= 1 for what, form in EXPORTS)
    assert out(store, "turns", "langfuse")[0]["start_time"].startswith("9999-12-31")
