"""Every kind of the contract: what it becomes, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from afterword.errors import ConfigError
from afterword.feedback.collect.signals import request_of, structured_output
from afterword.feedback.settings import CollectSettings
from afterword.feedback.text.edits import changed_share
from afterword.records import Interaction
from tests.feedback.feedback_builders import decided, feedback, tool_turn, turn


def reason_of(kind: str, **extra: Any) -> str:
    decision = decided(feedback(kind, **extra))
    assert decision.interaction is None
    return decision.skips[0][1].reason


@pytest.mark.parametrize(
    ("given", "weight"),
    [(0.2, 0.2), (1, 1.0), (None, 0.3), (-1, 0.3), (7, 0.3), (math.nan, 0.3), (True, 0.3), ("1", 0.3)],
)
def test_a_client_may_say_how_strong_its_signal_is(given: Any, weight: float) -> None:
    made = decided(feedback("copied", metadata={"signal_weight": given})).interaction
    assert made is not None and made.weight == pytest.approx(weight)


def test_a_signal_of_no_strength_and_a_kind_that_is_off_teach_nothing() -> None:
    assert reason_of("copied", metadata={"signal_weight": 0}) == "off"
    off = CollectSettings(weights={"copied": 0.0})
    decision = decided(feedback("copied", metadata={"signal_weight": 1.0}), settings=off)
    assert decision.skips[0][1].reason == "off"


@pytest.mark.parametrize(
    ("kind", "extra", "polarity", "weight", "hindsight"),
    [
        ("accepted", {}, 1, 1.0, ""),
        ("copied", {}, 1, 0.3, ""),
        ("saved", {}, 1, 0.5, ""),
        ("rating", {"value": 0.5}, 1, 0.5, ""),
        ("rating", {"value": -0.5, "text": "Too vague, say how many minutes."}, -1, 0.5,
         "Too vague, say how many minutes."),
        ("rating", {"value": 1, "text": "great"}, 1, 1.0, ""),
        ("follow_up", {"text": "Thanks a lot!"}, 1, 1.0, ""),
        ("follow_up", {"text": "Shorter, please."}, -1, 1.0, "Shorter, please."),
        ("follow_up", {"text": "Why six minutes?"}, 0, 0.5, "Why six minutes?"),
        ("comment", {"text": "too long"}, -1, 1.0, "too long"),
        ("comment", {"text": "great"}, 1, 1.0, ""),
        ("demonstration", {"text": "Six minutes."}, -1, 1.0, "This is the answer that I wanted:\nSix minutes."),
        ("executed", {"exit_code": 0}, 1, 1.0, ""),
        ("tests", {"exit_code": 0, "output": "3 passed"}, 1, 1.0, ""),
        ("executed", {"exit_code": 2, "output": "no eggs"}, -1, 1.0,
         "I ran it. It failed with exit code 2. It printed:\nno eggs"),
        ("tests", {"exit_code": 1}, -1, 1.0, "I ran the tests. They failed with exit code 1:\nnothing"),
    ],
)  # fmt: skip
def test_kinds_that_teach(kind: str, extra: dict[str, Any], polarity: int, weight: float, hindsight: str) -> None:
    made = decided(feedback(kind, **extra)).interaction
    assert made is not None
    assert (made.kind, made.polarity, made.hindsight) == (kind, polarity, hindsight)
    assert made.weight == pytest.approx(weight)
    assert made.feedback == ("f1",)
    assert made.on_policy


@pytest.mark.parametrize(
    ("kind", "extra", "reason"),
    [
        ("abandoned", {}, "off"),
        ("stopped", {}, "no_hindsight"),
        ("reverted", {}, "no_hindsight"),
        ("rating", {"value": -1.0}, "no_hindsight"),
        ("rating", {"value": 0.0}, "neutral"),
        ("rating", {"value": math.nan}, "bad_value"),
        ("rating", {"value": 7.0}, "bad_value"),
        ("rating", {}, "bad_value"),
        ("follow_up", {}, "no_text"),
        ("follow_up", {"text": "  \n"}, "no_text"),
        ("follow_up", {"text": "go on"}, "continuation"),
        ("follow_up", {"text": "Who invented the telephone?"}, "off_topic"),
        ("follow_up", {"text": "a" * 8001}, "too_long"),
        ("edited", {}, "no_text"),
        ("executed", {"output": "hm"}, "no_outcome"),
        ("tool_approved", {}, "no_tool_call"),
        ("tool_rejected", {"text": "no"}, "no_tool_call"),
        ("applauded", {}, "unknown_kind"),
    ],
)
def test_kinds_that_are_skipped(kind: str, extra: dict[str, Any], reason: str) -> None:
    assert reason_of(kind, **extra) == reason


def test_an_edit_teaches_the_final_text_by_how_much_changed() -> None:
    small = decided(feedback("edited", final_text="Boil the eggs for seven minutes, then cool them.")).interaction
    large = decided(feedback("edited", final_text="Ask your mother.")).interaction
    assert small is not None and large is not None
    assert small.hindsight == "I changed your answer to this:\nBoil the eggs for seven minutes, then cool them."
    assert (small.polarity, large.polarity) == (1, -1)
    assert 0.2 < small.weight < large.weight <= 0.8


def test_an_unchanged_edit_is_an_acceptance() -> None:
    made = decided(feedback("edited", final_text=" Boil the eggs for six minutes,  then cool them.\n")).interaction
    assert made is not None
    assert (made.polarity, made.weight, made.hindsight) == (1, 1.0, "")


@pytest.mark.parametrize(
    ("draft", "final", "low", "high"),
    [("a b c", "a b c", 0, 0), ("a b c d", "a b x d", 0.2, 0.3), ("a", "b", 1, 1), ("煮六分钟", "煮七分钟", 0.2, 0.3),
     ("a " * 5000, "a " * 4999 + "b", 0.0001, 0.001), ("a b " * 1500, "b a " * 1500, 0.0001, 0.001)],
)  # fmt: skip
def test_changed_share(draft: str, final: str, low: float, high: float) -> None:
    assert low <= changed_share(draft, final) <= high


def test_tool_calls_are_approved_and_rejected() -> None:
    yes = decided(feedback("tool_approved"), of=tool_turn()).interaction
    no = decided(feedback("tool_rejected", text="Ask me first."), of=tool_turn()).interaction
    assert yes is not None and no is not None
    assert (yes.polarity, yes.weight) == (1, 0.5)
    assert no.hindsight == 'I did not allow this call: delete_file({"path": "a.txt"}). Ask me first.'
    assert (no.polarity, no.weight) == (-1, 0.8)
    long = decided(feedback("tool_rejected", text="x" * 9000), of=tool_turn())
    assert long.skips[0][1].reason == "too_long"


def test_the_request_of_a_tool_loop_is_the_question_and_what_the_tools_said() -> None:
    loop = (
        {"role": "user", "content": "Old"}, {"role": "assistant", "content": "Done"},
        {"role": "user", "content": "Weather?"}, {"role": "assistant", "tool_calls": [{}]},
        {"role": "tool", "content": "rain"},
    )  # fmt: skip
    assert request_of(turn(messages=loop)) == "Weather?\nrain"


def test_a_follow_up_about_a_tool_call_is_about_its_arguments() -> None:
    made = decided(feedback("follow_up", text="Which file was a.txt again?"), of=tool_turn()).interaction
    assert made is not None and made.weight == 0.5


@pytest.mark.parametrize("kind", ["retried", "regenerated"])
def test_a_retry_learns_from_the_accepted_attempt(kind: str) -> None:
    made = decided(feedback(kind), peer="Six minutes.").interaction
    assert made is not None
    assert (made.polarity, made.weight) == (-1, 0.5)
    assert made.hindsight == "I asked again. This is the answer that I accepted:\nSix minutes."


def test_a_retry_waits_for_an_accepted_attempt_and_is_then_skipped() -> None:
    waits = decided(feedback("retried"))
    assert waits.interaction is None and not waits.skips
    assert [reason for _, reason in waits.waiting] == ["no_accepted_attempt_yet"]
    over = decided(feedback("retried"), now=200.0 + 3601)
    assert over.skips[0][1].reason == "no_hindsight"
    ahead = decided(feedback("retried", created_at=4e9))
    assert ahead.skips[0][1].reason == "no_hindsight" and not ahead.waiting
    long = decided(feedback("retried"), peer="x" * 9000)
    assert long.skips[0][1].reason == "too_long"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"consent": False}, "no_consent"),
        ({"finish_reason": "aborted"}, "aborted"),
        ({"finish_reason": "error"}, "error"),
        ({"finish_reason": "content_filter"}, "content_filter"),
        ({"answer": {"role": "assistant", "content": ""}}, "empty_answer"),
        ({"answer": {"role": "assistant", "content": None}}, "empty_answer"),
        ({"messages": ({"role": "system", "content": ""},)}, "no_request"),
    ],
)
def test_turns_that_nothing_is_learned_from(change: dict[str, Any], reason: str) -> None:
    decision = decided(feedback("follow_up", text="Shorter."), of=turn(**change))
    assert decision.interaction is None
    assert decision.skips[0][1].reason == reason


def test_retracted_feedback_is_skipped() -> None:
    decision = decided(feedback("accepted"), retracted=frozenset({"f1"}))
    assert decision.skips[0][1].reason == "retracted"


def test_feedback_of_one_sign_becomes_one_interaction() -> None:
    made = decided(
        feedback("rating", "f1", value=-0.9), feedback("follow_up", "f2", text="Why six minutes?"),
        feedback("follow_up", "f3", text="Shorter, please."),
    ).interaction  # fmt: skip
    assert made is not None
    assert made.feedback == ("f1", "f2", "f3")
    assert made.hindsight == "Why six minutes?\nShorter, please."
    assert (made.kind, made.polarity, made.weight) == ("follow_up", -1, 1.0)


def test_a_question_is_not_made_stronger_by_praise() -> None:
    made = decided(feedback("accepted", "f1"), feedback("follow_up", "f2", text="Why six minutes?")).interaction
    assert made is not None
    assert (made.weight, made.polarity) == (0.5, 1)


def test_contradictory_feedback_is_skipped() -> None:
    decision = decided(feedback("accepted", "f1"), feedback("follow_up", "f2", text="That's wrong."))
    assert decision.interaction is None
    assert [skip.reason for _, skip in decision.skips] == ["contradictory", "contradictory"]


def test_weak_feedback_gives_way_to_strong() -> None:
    decision = decided(feedback("copied", "f1"), feedback("follow_up", "f2", text="That's wrong."))
    assert decision.interaction is not None and decision.interaction.feedback == ("f2",)
    assert [(row.id, skip.reason) for row, skip in decision.skips] == [("f1", "outweighed")]


def test_an_edit_goes_with_either_sign() -> None:
    for other in (feedback("accepted", "f2"), feedback("rating", "f2", value=-1.0)):
        made = decided(feedback("edited", "f1", final_text="Six minutes, then cool."), other).interaction
        assert made is not None and made.kind == "edited" and made.feedback == ("f1", "f2")


def earlier(polarity: int) -> Interaction:
    return Interaction(
        id="i0", turn="t1", feedback=("f0",), kind="follow_up", hindsight="Shorter.", polarity=polarity, weight=1.0,
        split="train",
    )  # fmt: skip


def test_late_feedback_adds_words_but_neither_repeats_nor_denies() -> None:
    words = decided(feedback("comment", text="too long"), earlier=(earlier(-1),)).interaction
    assert words is not None and words.hindsight == "too long"
    assert decided(feedback("rating", value=-1.0), earlier=(earlier(-1),)).skips[0][1].reason == "confirmed"
    assert decided(feedback("accepted"), earlier=(earlier(-1),)).skips[0][1].reason == "contradictory"


def test_weights_can_be_set_by_task() -> None:
    settings = CollectSettings(weights={"accepted": 0.4}, task_weights={"code": {"accepted": 0.2, "abandoned": 0.1}})
    plain = decided(feedback("accepted"), settings=settings).interaction
    code = decided(feedback("accepted"), of=turn(task="code"), settings=settings).interaction
    assert plain is not None and code is not None
    assert (plain.weight, code.weight, code.task) == (0.4, 0.2, "code")


@pytest.mark.parametrize(
    "settings",
    [{"holdout": 1.5}, {"weights": {"clapped": 1.0}}, {"weights": {"rating": -1.0}},
     {"task_weights": {"code": {"rating": math.nan}}}],
)  # fmt: skip
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"collect\.(holdout|weights|task_weights)"):
        CollectSettings(**settings)


def test_long_output_keeps_the_first_error_and_the_end() -> None:
    lines = [f"line {i}" for i in range(5000)]
    lines[2000] = "ValueError: the first one"
    short = structured_output("\n".join(lines), 900)
    assert "ValueError: the first one" in short and "line 0" in short and short.endswith("line 4999")
    assert len(short) < 1000 and "[...]" in short
    assert structured_output("x" * 5000, 900).count("x") <= 900
    assert structured_output(" ok \n", 900) == "ok"


@pytest.mark.parametrize("kinds", [("abandoned", "copied"), ("copied", "abandoned")])
def test_a_reaction_after_the_user_was_thought_gone_wins(kinds: tuple[str, str]) -> None:
    settings = CollectSettings(weights={"abandoned": 0.3})
    decision = decided(*(feedback(kind, f"f{n}") for n, kind in enumerate(kinds)), settings=settings)
    reasons = {skip.reason for _, skip in decision.skips}
    assert (reasons, decision.interaction is not None) == (
        ({"came_back"}, True) if kinds[0] == "abandoned" else ({"contradictory"}, False)
    )
