"""Trails: what two requests of one conversation have in common, however the client changed what it sent again."""

from __future__ import annotations

import time
from typing import Any

import pytest

from afterword.chat.trail import DEPTH, SIZE, asked_key, call_form, trail_of, trail_of_turn, without_reasoning

Json = dict[str, Any]
SCOPE = ("key", "ada")


def user(content: Any) -> Json:
    return {"role": "user", "content": content}


def said(content: Any, **more: Any) -> Json:
    return {"role": "assistant", "content": content, **more}


def call(arguments: Any, **more: Any) -> Json:
    return {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}, **more}


def result(text: str) -> Json:
    return {"role": "tool", "tool_call_id": "c1", "content": text}


def ends(*messages: Json) -> str:
    return trail_of(SCOPE, messages).text


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([{"role": "system", "content": "It is 10:00."}, user("Hi"), said("Hello")], [user("Hi"), said("Hello")]),
        ([user("Hi you"), said(" Hello\n")], [user([{"type": "text", "text": "Hi  you"}]), said("Hello")]),
        ([user("Hi"), user("you"), said("Hello")], [user("Hi\n\nyou"), said("Hello")]),
        ([user("Hi"), said("<think>\nA guest.\n</think>\n\nHello")], [user("Hi"), said("Hello")]),
        ([user("Hi"), said("Hello", reasoning_content="A guest.")], [user("Hi"), said("Hello")]),
        ([user("Hi"), said("Hel"), said("lo")], [user("Hi"), said("Hello")]),
        (
            [user("Hi"), said(None, tool_calls=[call('{"a":1,"b":[2]}', index=0)])],
            [user("Hi"), said("", tool_calls=[call('{ "b": [2], "a": 1.0 }') | {"id": "other"}])],
        ),
        (
            [user("Hi"), said(None, tool_calls=[call("{}")]), result("3"), said("Three")],
            [user("Hi"), said("Three")],
        ),
        (
            [user("Hi"), said(None, function_call={"name": "weather", "arguments": "{}"})],
            [user("Hi"), said(None, tool_calls=[call({})])],
        ),
        ([user("<context>Eggs.</context>\n<query>Hi there</query>"), said("Hello")], [user("Hi there"), said("Hello")]),
        ([user("Cafe\u0301?"), said("Hello")], [user("Caf\u00e9?"), said("Hello")]),
        ([user("Hi"), user(""), said("Hello")], [user("Hi"), said("Hello")]),
    ],
)
def test_what_clients_change_is_not_compared(one: list[Json], other: list[Json]) -> None:
    assert ends(*one) == ends(*other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([user("Hi"), said("Hello")], [user("Ho"), said("Hello")]),
        ([user("Hi"), said("Hello")], [said("Hi"), user("Hello")]),
        (
            [user("Hi"), said(None, tool_calls=[call('{"a":1}')])],
            [user("Hi"), said(None, tool_calls=[call('{"a":2}')])],
        ),
        (
            [user("Hi"), said(None, tool_calls=[call("{}")])],
            [user("Hi"), said(None, tool_calls=[call("{}")]), result("3"), said(None, tool_calls=[call("{}")])],
        ),
        ([user([{"type": "image_url", "image_url": {}}]), said("Hello")], [said("Hello")]),
    ],
)
def test_what_was_said_is(one: list[Json], other: list[Json]) -> None:
    assert ends(*one) != ends(*other)


def test_scopes_have_nothing_in_common() -> None:
    talk = [user("Hi"), said("Hello")]
    prints = [set(trail_of(scope, talk).prints) for scope in (("k", "ada"), ("k", "bob"), ("k", None), (None, "ada"))]
    assert len(set.union(*prints)) == 8


def test_the_newest_messages_come_first_and_the_rest_is_cut() -> None:
    talk = [said(f"a{n}") if n % 2 else user(f"q{n}") for n in range(12)]
    trail = trail_of(SCOPE, talk)
    assert len(trail.prints) == DEPTH and not trail.whole and trail.words[:2] == ("a11", "q10")
    assert len(trail.text) == DEPTH * SIZE
    assert trail_of(SCOPE, talk[4:]).text == trail.text + "."
    asked = trail_of(SCOPE, [*talk, user("q12")], DEPTH + 1)
    assert asked.answered() == trail
    short = trail_of(SCOPE, [*talk[:2], user("q2")], DEPTH + 1).answered()
    assert short.whole and short.words == ("a1", "q0")
    assert trail_of(SCOPE, [user("q")]).answered().prints == ()


@pytest.mark.parametrize("rest", [" and cool them.", "Boil them and cool them."])
def test_an_answer_that_is_gone_on_with_is_one(rest: str) -> None:
    begun = [user("Eggs?"), said("Boil them")]
    assert trail_of_turn(SCOPE, begun, said(rest)) == ends(user("Eggs?"), said("Boil them and cool them."))


@pytest.mark.parametrize(
    "answer", [said("Yes."), said("<think>Hm</think>Yes."), said(None, tool_calls=[call("{}")]), said("")]
)
@pytest.mark.parametrize(
    "messages",
    [
        [user("Hi")],
        [user("Hi"), said("Hello"), user("Why? " * 30)],
        [user("Hi"), said(None, tool_calls=[call("{}")]), result("3")],
        [user("Hi"), said(None, tool_calls=[call("{}")]), user("And in Rome?")],
        [user("Hi"), said("Hel")],
        [said(f"a{n}") if n % 2 else user(f"q{n}") for n in range(7)],
        [said(f"a{n}") if n % 2 else user(f"q{n}") for n in range(9)],
        [user(f"q{n}") if n % 2 else said(f"a{n}") for n in range(8)],
    ],
)
def test_what_is_known_of_the_request_saves_reading_it_again(messages: list[Json], answer: Json) -> None:
    sent = trail_of(SCOPE, messages, DEPTH + 1)
    assert trail_of_turn(SCOPE, messages, answer, sent) == trail_of_turn(SCOPE, messages, answer)


def test_an_empty_answer_has_a_place() -> None:
    assert ends(user("Hi"), said("")).startswith("a")
    assert ends(user("Hi"), said(""), user("Ho"), said("Hello")) == ends(user("Hi"), user("Ho"), said("Hello"))


def test_what_is_asked_includes_the_results_of_tools() -> None:
    def key(*messages: Json) -> str:
        return asked_key(trail_of(SCOPE, messages), messages)

    step = [user("Hi"), said(None, tool_calls=[call("{}")])]
    assert len({key(*step[:1]), key(*step, result("3")), key(*step, result("4"))}) == 3
    assert key({"role": "system", "content": "10:00"}, user("Hi")) == key(user("Hi"))


def test_odd_tool_calls_have_a_form() -> None:
    assert call_form({"function": None}) == ["", "null"]
    assert call_form(call('{"a": ')) == ["weather", '{"a":']
    assert call_form(call("[" * 300 + "]" * 300))[0] == "weather"
    assert ends(user("Hi"), {"role": "assistant", "content": None, "tool_calls": ["odd", None]}).startswith("a")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("No marks: 1 < 2", "No marks: 1 < 2"),
        ("I thought so.</think>\nYes.", "Yes."),
        ("<THINK>Hm</THINK>Yes.", "Yes."),
        ("<thinking>a</thinking>Yes<thinking>b</thinking>.", "Yes."),
        ("[THINK]a[/THINK]Yes.", "Yes."),
        ("◁think▷a◁/think▷Yes.", "Yes."),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>Yes.", "Yes."),
        ('<details type="reasoning" done="true">\n<summary>Thought</summary>\na\n</details>\nYes.', "Yes."),
        (":::thinking\na\n:::\nYes.", "Yes."),
        ("<think>cut off", "<think>cut off"),
        ("<think>all of it</think>", "<think>all of it</think>"),
        ("<details><summary>More</summary>b</details>", "<details><summary>More</summary>b</details>"),
    ],
)
def test_reasoning_is_taken_out(text: str, shown: str) -> None:
    assert without_reasoning(text).strip() == shown


@pytest.mark.parametrize("piece", ["<think>", "</think>", '<details type="', "[THINK]", "<think></think>", "İ<think>"])
def test_long_answers_take_little_time(piece: str) -> None:
    started = time.process_time()
    without_reasoning(piece * (400_000 // len(piece)))
    assert time.process_time() - started < 2.0
