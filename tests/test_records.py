"""The records: frozen, whole, and the same after JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.records import (
    FEEDBACK_KINDS,
    NOTES,
    RECORDS,
    SCHEMA_VERSION,
    Record,
    SignalRatio,
    Turn,
    content_hash,
    new_id,
)
from tests.store.store_rows import BESIDE, SPINE, turn


@pytest.mark.parametrize("record", (*SPINE, *BESIDE), ids=lambda record: type(record).__name__)
def test_records_go_to_json_and_back(record: Record) -> None:
    data = json.loads(json.dumps(record.to_dict()))
    assert type(record).from_dict(data) == record
    assert data["schema"] == SCHEMA_VERSION
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.id = "other"  # type: ignore[misc]


def test_a_field_of_a_newer_writer_is_refused() -> None:
    with pytest.raises(TypeError, match="mood"):
        Turn.from_dict({**turn().to_dict(), "mood": "good"})


def test_every_record_has_a_table_of_its_own() -> None:
    assert len({kind.TABLE for kind in (*RECORDS, *NOTES)}) == len(RECORDS) + len(NOTES) == 20
    assert tuple(type(row) for row in BESIDE) == NOTES


@pytest.mark.parametrize(
    ("real", "shuffled", "neutral", "ratio"), [(0.6, 0.3, 0.1, 2.0), (0.6, None, 0.2, 3.0), (0.5, None, 0.0, 1.0)]
)
def test_the_ratio_is_taken_against_the_larger_control(
    real: float, shuffled: float | None, neutral: float, ratio: float
) -> None:
    row = SignalRatio(
        id="r", interaction="i", model="m", real=real, shuffled=shuffled, neutral=neutral, tokens=4
    )  # fmt: skip
    assert row.ratio == pytest.approx(ratio)


def test_kinds_of_feedback_are_named_once() -> None:
    assert len(set(FEEDBACK_KINDS)) == len(FEEDBACK_KINDS)


@pytest.mark.parametrize(
    ("prompt", "completion", "on_policy"),
    [((1,), (2,), True), (None, (2,), False), ((1,), None, False), ((1,), (), False)],
)
def test_on_policy_needs_both_ids(
    prompt: tuple[int, ...] | None, completion: tuple[int, ...] | None, on_policy: bool
) -> None:
    assert turn(prompt_ids=prompt, completion_ids=completion).on_policy is on_policy


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none()))
def test_content_hashes_depend_on_content_alone(data: dict[str, object]) -> None:
    turned = dict(reversed(data.items()))
    assert content_hash(data) == content_hash(turned) != content_hash(data, None)
    assert len(content_hash(data)) == 32


def test_new_ids_are_unique_and_begin_with_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = {new_id("cand") for _ in range(1000)}
    assert len(ids) == 1000 and all(name.startswith("cand-") for name in ids)
    monkeypatch.setattr("time.time", lambda: 1000.0)
    first = new_id("x")
    monkeypatch.setattr("time.time", lambda: 1000.001)
    assert first < new_id("x")


@given(st.lists(st.text(st.characters()) | st.none() | st.integers() | st.floats() | st.lists(st.text()), max_size=5))
def test_the_id_of_a_content_is_the_hash_of_its_json(parts: list[Any]) -> None:
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    wanted = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    assert content_hash(*parts) == wanted


@given(st.lists(st.text(st.characters(min_codepoint=0, max_codepoint=0x10FFFF, exclude_categories=())), max_size=4))
def test_the_id_of_texts_is_the_hash_of_their_json(parts: list[str]) -> None:
    text = json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
    wanted = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    assert content_hash(*parts) == wanted
