"""The detectors, measured on a labelled set.

The rules were tuned on its even rows; the floors are for the odd rows, which were not looked at.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.feedback.detect import POLARITY, categorise, read_follow_up

DATA = Path(__file__).parent / "data"
EXCHANGES = json.loads((DATA / "exchanges.json").read_text(encoding="utf-8"))
ROWS = [line.split("\t") for line in (DATA / "follow_ups.tsv").read_text(encoding="utf-8").splitlines()]
TEACHES = {"correction", "complaint", "constraint", "rephrase"}
GROUP = {**dict.fromkeys(TEACHES, "teaches"), "question": "unclear", "unsure": "unclear"}


def predicted(row: list[str]) -> str:
    exchange = EXCHANGES[row[0]]
    return categorise(exchange["request"], exchange["answer"], row[3])


def scores(rows: list[list[str]], group: str) -> tuple[float, float]:
    counts: Counter[str] = Counter()
    for row in rows:
        wanted, found = GROUP.get(row[2], row[2]), GROUP.get(predicted(row), predicted(row))
        counts["tp"] += wanted == found == group
        counts["fp"] += found == group != wanted
        counts["fn"] += wanted == group != found
    return counts["tp"] / max(counts["tp"] + counts["fp"], 1), counts["tp"] / max(counts["tp"] + counts["fn"], 1)


def test_the_set_is_large_and_varied_enough() -> None:
    assert len(ROWS) >= 120
    assert {row[1] for row in ROWS} == {"en", "es", "fr", "de", "zh"}
    assert min(Counter(row[2] for row in ROWS).values()) >= 8


@pytest.mark.parametrize(
    ("group", "precision", "recall"),
    [("teaches", 0.95, 0.9), ("off_topic", 0.8, 0.85), ("thanks", 0.9, 0.9), ("continuation", 0.95, 0.9),
     ("unclear", 0.75, 0.8)],
)  # fmt: skip
def test_precision_and_recall_on_the_half_that_was_not_looked_at(group: str, precision: float, recall: float) -> None:
    found = scores(ROWS[1::2], group)
    assert found[0] >= precision, f"{group}: precision {found[0]:.2f}"
    assert found[1] >= recall, f"{group}: recall {found[1]:.2f}"


def test_what_is_kept_as_hindsight_is_hardly_ever_thanks_or_another_topic() -> None:
    wrong = [row[3] for row in ROWS if row[2] in {"thanks", "off_topic"} and predicted(row) in TEACHES]
    assert len(wrong) <= 2, wrong


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("", "unsure"), ("???", "unsure"), ("👍", "unsure"), ("mkdir Work", "off_topic"),
        ("Thanks. Now write a poem about cats.", "thanks"), ("Okay. When does summer start?", "off_topic"),
        ("Thanks, but make it shorter", "constraint"), ("not great", "correction"),
        ("One plain paragraph, in capital letters", "constraint"),
        ("The main headings", "constraint"), ("A plain paragraph", "constraint"),
        ("please fix this\n" + "x = 1\n" * 5000, "correction"),
        ("Compare violins, trumpets, oboes, guitars, drums, pianos, flutes, harps, cellos, tubas, banjos, bongos, "
         "marimbas and make it longer than usual", "off_topic"),
    ],
)  # fmt: skip
def test_single_messages(text: str, category: str) -> None:
    exchange = EXCHANGES["eggs"]
    assert categorise(exchange["request"], exchange["answer"], text) == category


def test_a_long_exchange_is_compared_by_its_ends() -> None:
    answer = "alpha beta gamma. " * 2000 + "The final word is zeppelin."
    assert categorise("Tell me all about airships", answer, "Where is the zeppelin?") == "question"


@given(st.text(max_size=400), st.text(max_size=400), st.text(max_size=400))
def test_any_text_has_a_reading(request: str, answer: str, text: str) -> None:
    reading = read_follow_up(request, answer, text)
    assert reading.polarity == POLARITY[reading.category] and 0 <= reading.relevance <= 1
