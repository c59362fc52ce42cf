"""The table of feedback kinds: complete, on its page, and read alike by collection, live metrics and canaries."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from afterword.cli.releases import reading
from afterword.feedback.collect.collect import collect
from afterword.feedback.settings import CollectSettings
from afterword.kinds import ACTIONS, KINDS, Reaction, disproved, reaction_of, spoken
from afterword.records import FEEDBACK_KINDS, Feedback, Skip
from afterword.release.canary_metrics import METRICS, ArmOutcomes, ArmTracker
from afterword.store import Store
from afterword.store.feedback_stats import feedback_stats
from afterword.store.polling import LiveTurn, feedback_after
from tests.feedback.feedback_builders import feedback, tool_turn, turn

PAGE = runpy.run_path(str(Path(__file__).parents[1] / "dev" / "kinds_page.py"))
REACTIONS: dict[Reaction, str] = {
    "accepted": "acceptance", "edited": "edited", "corrected": "correction", "retried": "retry",
    "abandoned": "abandonment",
}  # fmt: skip
ANSWER = "Boil the eggs for six minutes, then cool them."


def test_the_page_shows_the_table() -> None:
    page = PAGE["PAGE"].read_text("utf-8")
    assert page == PAGE["written"](page), "run: python dev/kinds_page.py"
    assert all(f"| `{kind}` |" in page for kind in KINDS)


def test_every_kind_of_the_records_is_defined_and_hindsight_has_a_source() -> None:
    assert set(KINDS) == set(FEEDBACK_KINDS) - {"retraction"}
    assert all(bool(kind.template) == bool(kind.hindsight) for kind in KINDS.values())
    assert ACTIONS["retry"] == "retried" and len(ACTIONS) == sum(len(kind.actions) for kind in KINDS.values())


@pytest.mark.parametrize(
    ("kind", "fields", "reaction"),
    [
        ("rating", {"value": 0.2}, "accepted"), ("rating", {"value": -0.2, "sign": 1}, "corrected"),
        ("rating", {"value": 0.0}, None), ("rating", {"value": 0.0, "sign": -1}, "corrected"), ("rating", {}, None),
        ("tests", {"exit_code": 0}, "accepted"), ("tests", {"exit_code": 3}, "corrected"), ("tests", {}, None),
        ("edited", {"sign": -1}, "edited"), ("edited", {"sign": 1}, "accepted"),
        ("comment", {"sign": -1}, "corrected"), ("comment", {}, None), ("stopped", {}, "abandoned"),
        ("applauded", {"sign": 1}, None),
    ],
)  # fmt: skip
def test_reactions(kind: str, fields: dict[str, Any], reaction: Reaction | None) -> None:
    assert reaction_of(kind, **fields) == reaction


@pytest.mark.parametrize(
    ("kinds", "found"),
    [
        (["abandoned"], set()), (["abandoned", "stopped"], set()), (["abandoned", "copied"], {0}),
        (["copied", "abandoned"], set()), (["abandoned", "retried", "abandoned"], {0}),
        (["stopped", "accepted"], set()), (["abandoned", "applauded"], {0}),
    ],
)  # fmt: skip
def test_a_later_reaction_disproves_a_departure_and_no_stop(kinds: list[str], found: set[int]) -> None:
    assert disproved((str(n), kind) for n, kind in enumerate(kinds)) == {str(n) for n in found}


def test_words_to_the_assistant_are_told_from_content() -> None:
    assert spoken("comment", " Shorter. ") == "Shorter."
    assert spoken("demonstration", "Six.") == spoken("comment", None) == spoken("applauded", "Bravo") == ""


Row = tuple[str, dict[str, Any]]


@pytest.mark.parametrize(
    ("rows", "reactions"),
    [
        ([("accepted", {})], {"accepted"}), ([("copied", {})], {"accepted"}), ([("saved", {})], {"accepted"}),
        ([("retried", {})], {"retried"}), ([("regenerated", {})], {"retried"}), ([("reverted", {})], {"corrected"}),
        ([("abandoned", {})], {"abandoned"}), ([("stopped", {})], {"abandoned"}),
        ([("stopped", {}), ("copied", {})], {"abandoned", "accepted"}),
        ([("abandoned", {}), ("copied", {})], {"accepted"}),
        ([("copied", {}), ("abandoned", {})], {"accepted", "abandoned"}),
        ([("abandoned", {}), ("follow_up", {"text": "Who invented the telephone?"})], set()),
        ([("demonstration", {"text": "Six."})], {"corrected"}),
        ([("rating", {"value": 1.0})], {"accepted"}), ([("rating", {"value": -1.0})], {"corrected"}),
        ([("rating", {"value": 0.0})], set()), ([("rating", {"value": 0.0, "text": "That is wrong."})], {"corrected"}),
        ([("rating", {"value": -1.0}), ("rating", {"value": 1.0})], {"accepted"}),
        ([("executed", {"exit_code": 0})], {"accepted"}), ([("tests", {"exit_code": 1})], {"corrected"}),
        ([("follow_up", {"text": "That is wrong."})], {"corrected"}), ([("comment", {"text": "great"})], {"accepted"}),
        ([("edited", {"final_text": "Ask your mother."})], {"edited"}),
        ([("edited", {"final_text": f" {ANSWER}\n"})], {"accepted"}),
        ([("tool_approved", {})], {"accepted"}), ([("tool_rejected", {"text": "Ask me first."})], {"corrected"}),
    ],
)  # fmt: skip
def test_live_metrics_and_canaries_count_the_same(tmp_path: Path, rows: list[Row], reactions: set[Reaction]) -> None:
    with Store.open(tmp_path / "a.db") as store:
        tool = rows[0][0].startswith("tool_")
        store.write(tool_turn() if tool else turn(), *(feedback(k, f"f{n}", **f) for n, (k, f) in enumerate(rows)))
        collect(store, CollectSettings(wait_seconds=0))
        (live,) = feedback_stats(store)
        side = ArmOutcomes()
        tracker = ArmTracker(store, lambda turn: side, reading)
        tracker.turns([LiveTurn(1, "t1", 0.0, "u", None, "stop", None, None)])
        tracker.feedback(feedback_after(store, 0, 100))
        canary = side.to_dict()
    assert {reaction for reaction, name in REACTIONS.items() if getattr(live, name)} == reactions
    assert {reaction for reaction, name in METRICS.items() if canary[name]} == reactions


def test_a_later_reaction_counts_although_it_teaches_nothing(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a.db") as store:
        store.write(
            turn(), feedback("abandoned", "f1"), feedback("follow_up", "f2", text="Who invented the telephone?")
        )
        collect(store, CollectSettings(weights={"abandoned": 0.3}))
        assert {row.feedback: row.reason for row in store.rows(Skip)} == {"f1": "came_back", "f2": "off_topic"}


@pytest.mark.parametrize("one_by_one", [True, False])
def test_a_departure_counts_again_when_the_reaction_is_taken_back(tmp_path: Path, one_by_one: bool) -> None:
    with Store.open(tmp_path / "a.db") as store:
        back = Feedback(id="f3", turn="t1", kind="retraction", retracts="f2")
        store.write(turn(), feedback("abandoned", "f1"), feedback("copied", "f2"), back)
        side = ArmOutcomes()
        tracker = ArmTracker(store, lambda turn: side, reading)
        tracker.turns([LiveTurn(1, "t1", 0.0, "u", None, "stop", None, None)])
        rows = feedback_after(store, 0, 100)
        for batch in [[row] for row in rows] if one_by_one else [rows]:
            tracker.feedback(batch)
        assert feedback_stats(store)[0].abandonment == side.to_dict()["abandonment"] == 1.0
        assert (side.to_dict()["judged"], side.to_dict()["approval"]) == (1, 0.0)
