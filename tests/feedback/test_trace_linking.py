"""Requests in a file of traces find the ones they continue, also behind clients that change what they send again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from afterword.feedback.importing.import_progress import ImportProgress, ImportSummary, state_file
from afterword.feedback.importing.imports import import_file
from afterword.feedback.importing.unfold import CROWD, Threads
from afterword.records import Feedback, Json, Turn
from afterword.store import Store

SAID = "Air scatters short waves of light more than long ones, and so the sky is blue."


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "a.db") as opened:
        yield opened


def trace(name: str, *messages: Json, said: str = SAID, **more: Any) -> Turn:
    answer = {"role": "assistant", "content": said}
    return Turn(id=name, messages=messages, answer=answer, source="import:langfuse", **more)


def user(text: str) -> Json:
    return {"role": "user", "content": text}


def model(text: str = SAID) -> Json:
    return {"role": "assistant", "content": text}


def clock(text: str) -> Json:
    return {"role": "system", "content": f"It is {text}."}


def linked(store: Store, *turns: Turn) -> tuple[list[str | None], list[tuple[str, str | None]]]:
    """What each turn continues, and the follow-ups."""
    threads = Threads(store)
    rows = [row for turn in turns for row in threads.link(turn)]
    previous = [row.previous for row in rows if isinstance(row, Turn)]
    return previous, [(row.turn, row.text) for row in rows if isinstance(row, Feedback)]


@pytest.mark.parametrize(
    "second",
    [
        (user("Why?"), model(), user("Shorter!")),
        (clock("10:00:48"), user("Why?"), model(), user("Shorter!")),
        (user("Why?"), model("<think>Light?</think>" + SAID), user("Shorter!")),
        (model(), user("Shorter!")),
        (user("<context>Light.</context><query>Why?</query>"), model(), user("Shorter!")),
    ],
)
def test_a_request_is_linked_whatever_the_client_changed(store: Store, second: tuple[Json, ...]) -> None:
    first = trace("t1", clock("10:00:01"), user("Why?"))
    assert linked(store, first, trace("t2", *second)) == ([None, "t1"], [("t1", "Shorter!")])


def test_an_import_that_goes_on_after_a_kill_links_as_if_nothing_had_happened(store: Store, tmp_path: Path) -> None:
    def row(n: int, *messages: Json) -> Json:
        return {"id": f"t{n}", "type": "GENERATION", "traceId": f"trace{n}", "startTime": f"2026-05-01T10:00:{n:02}Z",
                "input": list(messages), "output": model(f"{SAID} {n // 2}")}  # fmt: skip

    rows = [r for n in range(0, 20, 2) for r in (
        row(n, clock(f"10:00:{n}"), user(f"Why {n}?")),
        row(n + 1, clock(f"10:01:{n}"), user(f"Why {n}?"), model(f"{SAID} {n // 2}"), user("Shorter!")))]  # fmt: skip
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    whole = import_file(store, path)
    want = {turn.id: turn.previous for turn in store.rows(Turn)}
    assert whole.feedback == 10 and want["t1"] == "t0"
    with Store.open(tmp_path / "b.db") as other:
        # What a kill leaves: the rows up to the mark, stored, and the mark.
        first = tmp_path / "first.jsonl"
        first.write_text("".join(json.dumps(r) + "\n" for r in rows[:9]), "utf-8")
        import_file(other, first)
        mark = ImportProgress.of(state_file(other, path), path, "auto", other)
        last = other.newest(Turn)
        assert last is not None
        mark.note({**ImportSummary(str(path), "langfuse", rows=9).to_dict()}, 0, 0, last)
        assert import_file(other, path).resumed_at == 9
        assert {turn.id: turn.previous for turn in other.rows(Turn)} == want


def test_of_two_that_read_the_same_neither_is_linked(store: Store) -> None:
    turns = [trace(f"t{n}", clock(f"10:0{n}"), user("Why?")) for n in range(2)]
    assert linked(store, *turns, trace("t2", user("Why?"), model(), user("Shorter!")))[0] == [None, None, None]
    named = [trace(t.id, *t.messages, conversation=t.id) for t in turns]
    third = trace("t2", clock("10:07"), user("Why?"), model(), user("Shorter!"), conversation="t0")
    assert linked(store, *named, third)[0] == [None, None, "t0"]


def test_of_a_crowd_the_one_that_agrees_is_linked(store: Store) -> None:
    turns = [trace(f"t{n}", clock(f"10:{n}"), user(f"Why {n}?"), said="Yes.") for n in range(CROWD + 5)]
    last = trace("last", user("Why 7?"), model("Yes."), user("Really?"))
    assert linked(store, *turns, last)[0][-1] == "t7"


def test_users_have_nothing_in_common(store: Store) -> None:
    first = trace("t1", clock("10:00"), user("Why?"), user="ada")
    assert linked(store, first, trace("t2", user("Why?"), model(), user("Shorter!"), user="bob"))[0] == [None, None]
