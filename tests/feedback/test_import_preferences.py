"""Preferences and other ways to write conversations: TRL's rows, arena battles, Anthropic's form, names of roles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from afterword.errors import UsageError
from afterword.feedback.collect.collect import collect
from afterword.formats.parsing import message_of, role_of, thumb
from afterword.records import Feedback, Interaction, Turn
from afterword.store import Store
from tests.feedback.import_rows import load, reasons, said

Json = dict[str, Any]
GOOD, BAD = {"role": "assistant", "content": "Six minutes."}, {"role": "assistant", "content": "A while."}
ASKED = said("How long do eggs boil?")
TALK = "\n\nHuman: How long do eggs boil?\n\nAssistant: "


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASKED[0]["content"], "chosen": "Six minutes.", "rejected": "A while."},
        {"prompt": ASKED, "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": ASKED, "chosen": GOOD, "rejected": BAD},
        {"prompt": ASKED[0]["content"], "chosen": [*ASKED, GOOD], "rejected": [*ASKED, BAD]},
        {"chosen": [*ASKED, GOOD], "rejected": [*ASKED, BAD], "score_chosen": 9.0},
        {"chosen": TALK + "Six minutes.", "rejected": TALK + "A while."},
        {"prompt": TALK, "chosen": "Six minutes.", "rejected": "A while."},
        {"prompt": [{"role": "Human", "content": ASKED[0]["content"]}], "chosen": [{**GOOD, "role": "AI"}],
         "rejected": [BAD]},
    ],
)  # fmt: skip
def test_a_preference_in_every_form_of_trl(store: Store, tmp_path: Path, row: Json) -> None:
    summary = load(store, tmp_path, [row])
    assert summary.format == "trl" and not summary.rejected
    turn, shown = next(store.rows(Turn)), next(store.rows(Feedback))
    assert (list(turn.messages), turn.answer["content"]) == (ASKED, "A while.")
    assert (shown.kind, shown.text) == ("demonstration", "Six minutes.")
    assert load(store, tmp_path, [row], "trl-preference").stored == 0
    collect(store)
    made = next(store.rows(Interaction))
    assert made.polarity == -1 and "Six minutes." in made.hindsight


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": "a", "rejected": "b"}, "no_request"),
        ({"prompt": "", "chosen": [GOOD], "rejected": [BAD]}, "no_request"),
        ({"prompt": "x", "chosen": None, "rejected": "b"}, "no_messages"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "no_messages"),
        ({"prompt": "x", "chosen": [GOOD, *ASKED, GOOD], "rejected": [BAD]}, "no_messages"),
        ({"prompt": [*ASKED, GOOD], "chosen": "a", "rejected": "b"}, "no_request"),
        ({"prompt": "x", "completion": "a", "label": "maybe"}, "value_range"),
        ({"prompt": "x", "chosen": "a", "rejected": [{"role": "assistant", "content": "a"}]}, "no_preference"),
        ({"prompt": "x", "completion": 3}, "no_messages"),
        ({"prompt": "x", "chosen": [{"role": "narrator", "content": "a"}], "rejected": "b"}, "bad_message"),
        ({"prompt": "x", "chosen": [[]], "rejected": {}}, "bad_message"),
    ],
)  # fmt: skip
def test_preferences_that_cannot_be_read_say_why(store: Store, tmp_path: Path, row: Json, reason: str) -> None:
    assert reasons(load(store, tmp_path, [row], "trl")) == {reason: 1}


def test_labelled_completions(store: Store, tmp_path: Path) -> None:
    rows = [
        {"prompt": "How?", "completion": "So.", "label": True}, {"prompt": ASKED, "completion": [BAD], "label": False},
        {"prompt": "Why?", "completion": "Hence."}, {"prompt": "Who?", "completion": "You.", "label": 1},
    ]  # fmt: skip
    summary = load(store, tmp_path, rows)
    assert (summary.turns, summary.feedback, summary.rejected) == (4, 3, {})
    names = {turn.id: turn.answer["content"] for turn in store.rows(Turn)}
    votes = {names[f.turn]: f.value for f in store.rows(Feedback)}
    assert votes == {"So.": 1.0, "A while.": -1.0, "You.": 1.0}


def battle(winner: Any, **more: Any) -> Json:
    return {
        "question_id": "q1", "model_a": "x", "model_b": "y", "winner": winner, "judge": "u7", "turn": 1,
        "conversation_a": [*ASKED, BAD], "conversation_b": [*ASKED, GOOD], "tstamp": 1682351591.1322, **more,
    }  # fmt: skip


def test_an_arena_battle_is_a_preference(store: Store, tmp_path: Path) -> None:
    summary = load(store, tmp_path, [battle("model_b")])
    assert summary.format == "lmsys" and summary.turns == 2
    found = {t.answer["content"]: t for t in store.rows(Turn)}
    assert (found["A while."].model, found["Six minutes."].model, found["A while."].user) == ("x", "y", "u7")
    about = {(f.kind, f.turn, f.text or f.value) for f in store.rows(Feedback)}
    assert about == {
        ("demonstration", found["A while."].id, "Six minutes."), ("rating", found["Six minutes."].id, 1.0),
    }  # fmt: skip
    assert load(store, tmp_path, [battle("model_b")]).stored == 0


def test_ties_longer_battles_and_those_of_a_table(store: Store, tmp_path: Path) -> None:
    longer = battle("model_a", question_id="q2", turn=2, conversation_a=said("Hi", "Hello", "More", "More!"),
                    conversation_b=said("Hi", "Hey", "More", "No."))  # fmt: skip
    first_only = {**longer, "question_id": "q3", "turn": 1}
    table = {"id": 4, "model_a": "x", "model_b": "y", "prompt": '["Why?"]', "response_a": '["So."]',
             "response_b": '["Hence."]', "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}  # fmt: skip
    rows = [battle("tie"), battle("tie (bothbad)", question_id="q5"), longer, first_only, table, battle("nobody"),
            battle(None), battle("model_a", conversation_b=None)]  # fmt: skip
    summary = load(store, tmp_path, rows)
    assert reasons(summary) == {"no_winner": 2, "no_messages": 1}
    assert summary.turns == 10
    names = {t.id: t.answer["content"] for t in store.rows(Turn)}
    votes = sorted((names[f.turn], f.kind, str(f.value or f.text)) for f in store.rows(Feedback))
    assert votes == [
        ("A while.", "rating", "-1.0"), ("Hello", "rating", "1.0"), ("Hence.", "rating", "1.0"),
        ("Hey", "demonstration", "Hello"), ("More!", "rating", "1.0"), ("No.", "rating", "-1.0"),
        ("Six minutes.", "rating", "-1.0"), ("So.", "demonstration", "Hence."),
    ]  # fmt: skip


def test_answers_that_a_battle_lacks_move_no_other_one_to_their_question(store: Store, tmp_path: Path) -> None:
    row = {"model_a": "x", "model_b": "y", "winner_model_a": "1", "winner_model_b": "0", "winner_tie": "0",
           "prompt": '["One?", "Two?", "[3]?"]', "response_b": '["b1", "b2", "b3"]'}  # fmt: skip
    rows = [{**row, "id": 1, "response_a": '["a1", null, "[3]"]'}, {**row, "id": 2, "response_a": '["a1", "a3"]'}]
    summary = load(store, tmp_path, rows, "lmsys")
    assert reasons(summary) == {"no_answer": 1} and summary.turns == 2
    first = next(turn for turn in store.rows(Turn) if turn.model == "x")
    assert [m["content"] for m in first.messages] == ["One?", "a1", "Two?", "", "[3]?"]
    assert first.answer["content"] == "[3]"


def test_lmsys_chat_1m(store: Store, tmp_path: Path) -> None:
    row = {"conversation_id": "c", "model": "x", "conversation": said("How?", "So.", "Why?", "Hence."), "turn": 2,
           "language": "English", "openai_moderation": [{}], "redacted": False}  # fmt: skip
    summary = load(store, tmp_path, [row])
    assert (summary.turns, summary.feedback) == (2, 1)


# ---- Anthropic's form


def words(text: str) -> Json:
    return {"type": "text", "text": text}


PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
CALL = {"type": "tool_use", "id": "t1", "name": "scale", "input": {"item": "egg"}}
TOOLS: Json = {
    "model": "m", "max_tokens": 300, "system": [words("Use the scale."), words("Be brief.")],
    "messages": [
        {"role": "user", "content": [words("How heavy?"), PNG]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, words("I weigh it."), CALL]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [words("61 g")]},
                                     words("Well?")]},
        {"role": "assistant", "content": [words("61 grams.")]},
        {"role": "user", "content": "In ounces, please."},
    ],
}  # fmt: skip


@pytest.mark.parametrize("format", ["auto", "openai", "anthropic"])
def test_anthropics_form(store: Store, tmp_path: Path, format: str) -> None:
    summary = load(store, tmp_path, [TOOLS], format)
    assert (summary.turns, summary.left_out) == (2, {"thinking": 1})
    first, second = store.rows(Turn)
    assert first.answer == {
        "role": "assistant", "content": "I weigh it.",
        "tool_calls": [{"id": "t1", "type": "function", "function": {"name": "scale", "arguments": '{"item":"egg"}'}}],
    }  # fmt: skip
    assert [m["role"] for m in second.messages] == ["system", "user", "assistant", "tool", "user"]
    assert second.messages[0]["content"] == "Use the scale.\n\nBe brief."
    assert second.messages[3] == {"role": "tool", "tool_call_id": "t1", "content": "61 g"}
    assert second.messages[1]["content"][1]["image_url"]["url"] == "data:image/png;base64,AA=="
    assert {f.text for f in store.rows(Feedback)} == {"In ounces, please."}


def test_requests_that_were_logged_beside_their_response(store: Store, tmp_path: Path) -> None:
    rows: list[Json] = [
        {"request": {"system": "Be brief.", "messages": ASKED}, "response": {"content": [words("Six.")]}},
        {"request": {"messages": said("How?")}, "response": {"choices": [{"message": said("", "So.")[1]}]}},
        {"messages": said("Why?"), "response": {"role": "assistant", "content": "Hence."}},
    ]  # fmt: skip
    assert load(store, tmp_path, rows).turns == 3
    assert [t.answer["content"] for t in store.rows(Turn)] == ["Six.", "So.", "Hence."]


@pytest.mark.parametrize("system", [3, [3], {"text": 3}, [{"type": "text"}]])
def test_a_system_prompt_that_is_no_text_is_rejected(store: Store, tmp_path: Path, system: Any) -> None:
    assert reasons(load(store, tmp_path, [{**TOOLS, "system": system}])) == {"bad_message": 1}


# ---- roles


@pytest.mark.parametrize(
    ("name", "role"),
    [("Human", "user"), ("HUMAN", "user"), (" prompter ", "user"), ("AI", "assistant"), ("Bot", "assistant"),
     ("ChatGPT", "assistant"), ("gpt-4o-mini", "assistant"), ("GPT4", "assistant"), ("Claude 3.5", "assistant"),
     ("bing", "assistant"), ("System", "system"), ("observation", "tool"), ("tool-response", "tool"),
     ("function_call", "assistant"), ("narrator", None), ("assistance", None), ("gptx", None), ("", None), (3, None),
     ([], None), (None, None)],
)  # fmt: skip
def test_speakers(name: Any, role: str | None) -> None:
    assert role_of(name) == role


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "Human", "content": "How?"}, {"role": "AI", "content": "So."}]},
        {"messages": [{"from": "human", "value": "How?"}, {"from": "gpt", "value": "So."}]},
        {"conversations": [{"from": "USER", "value": "How?"}, {"from": "GPT-4", "value": "So."}]},
        {"conversations": [{"role": "prompter", "content": "How?"}, {"role": "Assistant", "content": "So."}]},
        {"conversation": [{"role": "Human", "content": "How?"}, {"role": "Model", "content": "So."}]},
        {"conversation_hash": "h",
         "conversation": [{"role": "User", "content": "How?"}, {"role": "bot", "content": "So."}]},
        {"conversation": [{"sender": "User", "text": "How?"}, {"sender": "Bot", "text": "So."}]},
    ],
)  # fmt: skip
def test_messages_with_other_names(store: Store, tmp_path: Path, row: Json) -> None:
    summary = load(store, tmp_path, json.dumps([row]))
    turn = next(store.rows(Turn))
    assert summary.turns == 1
    assert [m["role"] for m in (*turn.messages, turn.answer)] == ["user", "assistant"]
    assert turn.messages[0]["content"] == "How?" and turn.answer["content"] == "So."


@pytest.mark.parametrize(
    "part", [3, None, {}, {"role": 3}, {"role": ["user"]}, {"from": "gpt", "value": 3, "content": 3}]
)
def test_messages_that_are_none(part: Any) -> None:
    with pytest.raises(UsageError):
        message_of(part)


@pytest.mark.parametrize(
    ("value", "vote"),
    [(1, 1.0), (-1, -1.0), ("1", 1.0), ("-1", -1.0), (True, 1.0), ("thumbs_up", 1.0), ("thumbsDown", -1.0),
     ("dislike", -1.0), (0, None), (5, None), ("maybe", None), ("", None), (None, None), ([], None)],
)  # fmt: skip
def test_thumbs(value: Any, vote: float | None) -> None:
    assert thumb(value) == vote
