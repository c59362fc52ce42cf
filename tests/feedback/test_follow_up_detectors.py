"""The detectors, measured on a labelled set: exchange, language, about the answer?, polarity, kind, text.

The rules were tuned on its even rows; the floors are for the odd rows, which were not looked at. Run this file as a
program to print precision and recall of every class.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.feedback.text.followup_classifier import POLARITY, categorise, read_follow_up

DATA = Path(__file__).parent / "data"
EXCHANGES = json.loads((DATA / "exchanges.json").read_text(encoding="utf-8"))
ROWS = [line.split("\t") for line in (DATA / "follow_ups.tsv").read_text(encoding="utf-8").splitlines()]
TEACHES = {"correction", "complaint", "constraint", "rephrase"}
GROUP = {**dict.fromkeys(TEACHES, "teaches"), "question": "unclear", "unsure": "unclear"}


def predicted(row: list[str]) -> str:
    exchange = EXCHANGES[row[0]]
    return categorise(exchange["request"], exchange["answer"], row[5])


def classes_of(category: str) -> set[str]:
    """The classes that a category counts for."""
    about = {"about the answer"} if category in TEACHES | {"question"} else set()
    return {category, GROUP.get(category, category)} | about


def scores(rows: list[list[str]], name: str) -> tuple[float, float, int]:
    """Precision, recall and number of a class."""
    counts: Counter[str] = Counter()
    for row in rows:
        wanted, found = name in classes_of(row[4]), name in classes_of(predicted(row))
        counts["tp"] += wanted and found
        counts["fp"] += found and not wanted
        counts["fn"] += wanted and not found
    tp, fp, fn = counts["tp"], counts["fp"], counts["fn"]
    return tp / max(tp + fp, 1), tp / max(tp + fn, 1), tp + fn


def test_the_set_is_large_and_varied_enough() -> None:
    assert len(ROWS) >= 400 and len({row[0] for row in ROWS}) >= 25
    assert {row[1] for row in ROWS} == {"en", "es", "fr", "de", "zh", "pt", "it", "ru", "ja"}
    assert min(Counter(row[4] for row in ROWS).values()) >= 8
    for row in ROWS:
        about = classes_of(row[4]) & {"about the answer", "thanks"}
        assert (row[2], row[3]) == ("yes" if about else "no", {1: "+", -1: "-", 0: "0"}[POLARITY[row[4]]])  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "precision", "recall"),
    [("about the answer", 0.93, 0.87), ("teaches", 0.94, 0.89), ("off_topic", 0.72, 0.8), ("thanks", 0.97, 0.9),
     ("continuation", 0.9, 0.97), ("correction", 0.8, 0.93), ("complaint", 0.9, 0.7), ("constraint", 0.85, 0.75),
     ("question", 0.8, 0.72)],
)  # fmt: skip
def test_precision_and_recall_on_the_half_that_was_not_looked_at(name: str, precision: float, recall: float) -> None:
    found = scores(ROWS[1::2], name)
    assert found[0] >= precision, f"{name}: precision {found[0]:.2f}"
    assert found[1] >= recall, f"{name}: recall {found[1]:.2f}"


def test_what_is_kept_as_hindsight_is_hardly_ever_thanks_or_another_topic() -> None:
    wrong = [row[5] for row in ROWS if row[4] in {"thanks", "off_topic"} and predicted(row) in TEACHES]
    assert len(wrong) <= 4, wrong


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("", "unsure"), ("???", "unsure"), ("👍", "unsure"), ("mkdir Work", "unsure"),
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


if __name__ == "__main__":
    print(f"{'class':18}precision  recall     n   (odd rows)")
    for title in ("about the answer", "teaches", *POLARITY, "unclear"):
        value = scores(ROWS[1::2], title)
        print(f"{title:18}{value[0]:9.2f}{value[1]:8.2f}{value[2]:6d}")
