"""Streams of events as servers write them: every kind of line end, cut anywhere, and what is no event."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.errors import UpstreamError
from afterword.sampling.sse import MAX_EVENT, EventReader

STREAM = (
    b'\xef\xbb\xbf: hello\n\nevent: ping\ndata:\n\nid: 7\nretry: 10\ndata: {"a": "\xc3\xa9"}\n\n'
    b'data: {"b":\ndata: 2}\n\nevent: x\ndata: {"c": 3}\ndata: {"d": 4}\n\ndata: words\n\ndata: [DONE]'
)


def read(*pieces: bytes) -> list[tuple[str, object]]:
    reader = EventReader()
    events = [event for piece in pieces for event in reader.feed(piece)] + reader.close()
    return [(e.kind, "done" if e.done else e.data if e.broken or e.kind == "comment" else e.value) for e in events]


WANTED = [
    ("comment", b": hello"), ("", {"a": "é"}), ("", {"b": 2}), ("x", {"c": 3}), ("x", {"d": 4}), ("", b"words"),
    ("", "done"),
]  # fmt: skip


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@given(cuts=st.lists(st.integers(0, 250), max_size=30))
def test_events_whatever_the_line_ends_and_cuts(end: bytes, cuts: list[int]) -> None:
    data = STREAM.replace(b"\n", end)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    assert read(*(data[a:b] for a, b in itertools.pairwise(places))) == WANTED


def test_an_event_is_given_out_at_the_end_of_its_line() -> None:
    reader = EventReader()
    assert [event.value for event in reader.feed(b'data: {"a": 1}\n')] == [{"a": 1}]
    assert [event.value for event in reader.feed(b'data: {"a": 2}\n')] == [{"a": 2}]
    assert reader.close() == []


def test_half_an_event_is_broken_and_costs_the_others_nothing() -> None:
    assert read(b'data: {"a": 1\n\ndata: {"b": 2}\n\ndata: {"c":') == [
        ("", b'{"a": 1'), ("", {"b": 2}), ("", b'{"c":')
    ]  # fmt: skip
    assert read(b'data: {"a": 1\ndata: {"b": 2}\n\n') == [("", b'{"a": 1'), ("", {"b": 2})]


def test_ten_megabytes_in_small_pieces_and_an_event_without_end() -> None:
    data = b'data: {"a": "' + b"x" * 10_000_000 + b'"}\n\n'
    start = time.process_time()
    events = read(*(data[i : i + 1000] for i in range(0, len(data), 1000)))
    assert len(events) == 1 and time.process_time() - start < 2.0
    reader = EventReader()
    with pytest.raises(UpstreamError, match="more than 64 MiB"):
        for _ in range(MAX_EVENT // 2**22 + 1):
            reader.feed(b"x" * 2**22)
