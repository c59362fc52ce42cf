"""Exports with faults of every kind: each is a counted row, whole rows come in, and nothing else happens."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afterword.errors import UsageError
from afterword.feedback.collect.collect import collect
from afterword.feedback.importing.imports import import_file
from afterword.records import Turn
from afterword.store import Store
from tests.feedback.chat_exports import EGGS, chatgpt, claude, librechat, nested, open_webui, vote
from tests.feedback.test_import_preferences import TOOLS, battle

Json = dict[str, Any]
ROWS: dict[str, Callable[[str], Json]] = {
    "open-webui": lambda chat: open_webui(chat=chat),
    "open-webui feedback": lambda chat: vote(chat=open_webui(chat=chat)),
    "chatgpt": lambda chat: chatgpt(chat=chat),
    "chatgpt feedback": lambda chat: {
        "conversation_id": chat, "message_id": "m2", "rating": "thumbs_down", "content": '{"tags": ["a"], "text": "b"}',
    },
    "librechat": lambda chat: librechat(chat=chat),
    "librechat nested": lambda chat: nested(librechat(chat=chat)),
    "claude": lambda chat: claude(chat=chat),
    "anthropic": lambda chat: {**TOOLS, "id": chat},
    "trl": lambda chat: {"prompt": [{"role": "user", "content": chat}], "chosen": "a", "rejected": "b"},
    "kto": lambda chat: {"prompt": chat, "completion": "a", "label": True},
    "lmsys": lambda chat: battle("model_a", question_id=chat),
}  # fmt: skip
LEAVES: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, -1, 3.5, 1e300, 2**70, float("nan"), "", "x", "\ud800", "m1", "m5", "9" * 400, [], [[]], [3], {},
     {"a": 1}, {"role": "user"}, [{"text": 3}], [{"type": "text", "text": None}]]
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every member and item."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*path, key)
        yield from places(one, (*path, key))


def change(row: Json, where: int, how: str, what: Any) -> None:
    paths = list(places(row))
    *above, key = paths[where % len(paths)]
    holder: Any = row
    for step in above:
        holder = holder[step]
    if how == "remove":
        del holder[key]
    elif how == "double" and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif how == "wrap":
        holder[key] = [holder[key]]
    elif how == "rename" and isinstance(holder, dict):
        holder[f"{key}s"] = holder.pop(key)
    else:
        holder[key] = copy.deepcopy(what)


CHANGES = st.lists(
    st.tuples(st.integers(0, 400), st.sampled_from(["set", "set", "remove", "double", "wrap", "rename"]), LEAVES),
    min_size=1, max_size=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Path]]:
    folder = tmp_path_factory.mktemp("mutations")
    with Store.open(folder / "data" / "afterword.db") as store:
        yield store, folder


@pytest.mark.parametrize("name", ROWS)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES, escaped=st.booleans())
def test_a_row_with_faults_costs_at_most_itself(
    shared: tuple[Store, Path], name: str, changes: list[tuple[int, str, Any]], escaped: bool
) -> None:
    store, folder = shared
    row = copy.deepcopy(ROWS[name]("mutated"))
    for where, how, what in changes:
        if row:
            change(row, where, how, what)
    whole = [ROWS[name]("first"), ROWS[name]("last")]
    text = json.dumps([whole[0], row, whole[1]], ensure_ascii=escaped)
    path = folder / "log.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    alone = folder / "alone.json"
    alone.write_text(json.dumps(whole), encoding="utf-8")
    sound = import_file(store, alone)
    summary = import_file(store, path)
    rejected = sum(summary.rejected.values())
    assert summary.rows == 3 and rejected <= 1
    assert summary.turns >= sound.turns and summary.feedback >= sound.feedback
    assert summary.conflicts <= summary.turns + summary.feedback - sound.turns - sound.feedback
    if rejected:
        assert summary.rejects is not None
        lines = Path(summary.rejects).read_text(encoding="utf-8").splitlines()
        assert len(lines) == rejected + summary.conflicts and all(json.loads(line)["detail"] for line in lines)


@pytest.mark.parametrize("name", ROWS)
def test_half_a_file_gives_what_is_whole(store: Store, tmp_path: Path, name: str) -> None:
    rows = [json.dumps(ROWS[name](f"c{n}")) for n in range(10)]
    path = tmp_path / "half.json"
    for start, end in (("", "\n"), ("[", ","), ('{"data": [', ",\n")):
        for number in (0, 1, 3, 9):
            half = rows[number][: len(rows[number]) // 2]
            path.write_text(start + end.join([*rows[:number], half]), encoding="utf-8")
            try:
                summary = import_file(store, path)
            except UsageError as error:
                assert number == 0 and "could be read" in error.message
                continue
            assert (summary.rows, summary.rejected) == (number + 1, {"cut_off": 1})


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("part", [{"type": "text"}, {"type": "text", "text": None}, {"type": "text", "text": {"a": 1}}])
def test_a_part_without_its_text_costs_at_most_its_row(store: Store, tmp_path: Path, name: str, part: Json) -> None:
    def broken(value: Any) -> Any:
        if isinstance(value, dict):
            found = {key: broken(one) for key, one in value.items()}
            return {**found, "content": [part]} if isinstance(value.get("content"), str | list) else found
        return [broken(one) for one in value] if isinstance(value, list) else value

    first = broken(ROWS[name]("c1"))
    (tmp_path / "x.json").write_text(json.dumps([first, ROWS[name]("c2")]), "utf-8")
    summary = import_file(store, tmp_path / "x.json")
    assert summary.rows == 2 and summary.stored >= 1
    if first != ROWS[name]("c1") and name != "chatgpt feedback":
        assert summary.rejected or summary.left_out
    collect(store)


def test_everything_that_came_in_can_be_collected(shared: tuple[Store, Path]) -> None:
    """What the tests above left, and one whole file of each form where this one runs first."""
    store, folder = shared
    for name, row in ROWS.items():
        whole = folder / "whole.json"
        whole.write_text(json.dumps([row(f"{name} {n}") for n in range(3)]), "utf-8")
        import_file(store, whole)
    assert store.count(Turn) > 20
    collect(store)


def test_trees_of_any_shape(store: Store, tmp_path: Path) -> None:
    """Parents drawn at random: every message is in a turn, in a history, or counted."""
    import random

    dice = random.Random(1)
    builders: list[Callable[..., Json]] = [open_webui, chatgpt, librechat, claude]
    keys = [key for key, *_ in EGGS]
    for n in range(150):
        lines = [
            (
                key,
                dice.choice([None, "gone", *keys]),
                dice.choice(["user", "assistant", "system", "tool", "nobody"]),
                words,
            )
            for key, _, _, words in EGGS
        ]
        build = dice.choice(builders)
        row = build(lines, chat=f"c{n}")
        if build in (open_webui, chatgpt):
            row = build(lines, dice.choice([None, "gone", *keys]), chat=f"c{n}")
        path = tmp_path / f"{n}.json"
        path.write_text(json.dumps([row]), encoding="utf-8")
        summary = import_file(store, path)
        assert summary.rows == summary.conversations + sum(summary.rejected.values()) == 1
        if summary.conversations and "unknown_current" not in summary.left_out:
            lost = sum(v for k, v in summary.left_out.items() if k in ("cycle", "bad_message"))
            assert summary.messages + lost >= len(keys)
