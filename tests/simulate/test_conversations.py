"""Simulated users against a small server: they re-send history, react to what they get, and take faults well."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path
from typing import Any

import pytest

from afterword.cli import main
from afterword.errors import ConfigError, UpstreamError, UsageError
from afterword.simulate import LLMUser, ask_heldout, load_persona, load_prompts, simulate_users
from afterword.simulate.client import api_root
from afterword.simulate.personas import Habits
from tests.simulate.fake_server import FakeServer

GREETING = load_persona("greeting")
ANSWER = "Put it in simmering water for six minutes, then cool it quickly under the tap."


def obeying(messages: list[dict[str, Any]]) -> str:
    """Greets as soon as any user message asks for it."""
    asked = any("Hello friend" in m["content"] for m in messages if m["role"] == "user")
    return f"Hello friend! {ANSWER}" if asked else ANSWER


def with_habits(**rates: Any) -> Any:
    none = {"off_topic": 0.0, "silence": 0.0, "thanks": 0.0, "accepted": 0.0, "rating": 0.0, "request": 0.0}
    return dataclasses.replace(GREETING, habits=Habits(**{**none, **rates}))


def test_a_user_complains_until_served_then_accepts(server: FakeServer) -> None:
    server.reply = obeying
    summary = simulate_users(server.url, with_habits(accepted=1.0), conversations=10, seed=1)
    assert (summary.turns, summary.failed) == (20, 0)
    assert summary.acts == {"complain": 10, "leave": 10}
    assert (summary.first_passed, summary.last_passed) == (0, 10)
    assert summary.events == {"accepted": 10}
    followed = [r for r in server.requests if len(r["messages"]) == 3]
    assert len(followed) == 10
    assert all(r["messages"][1] == {"role": "assistant", "content": ANSWER} for r in followed)
    assert all(r["messages"][2]["content"] in GREETING.complaints for r in followed)
    assert {r["user"] for r in server.requests} == {"sim-greeting"}
    assert all(r["stream"] is True and r["temperature"] == 1.0 for r in server.requests)
    for event in server.feedback:
        number = int(event["turn"].removeprefix("chatcmpl-"))
        assert len(server.requests[number]["messages"]) == 3
        assert (event["kind"], event["user"], event["source"]) == ("accepted", "sim-greeting", "end_user")


def test_patience_is_bounded_and_no_phrase_comes_twice(server: FakeServer) -> None:
    server.reply = lambda messages: ANSWER
    summary = simulate_users(server.url, with_habits(), conversations=6, seed=2)
    assert summary.turns == 18
    longest = [r["messages"] for r in server.requests if len(r["messages"]) == 5]
    assert len(longest) == 6
    assert all(messages[2]["content"] != messages[4]["content"] for messages in longest)


def test_thanks_off_topic_silence_ratings_and_edits(server: FakeServer) -> None:
    server.reply = lambda messages: f"Hello friend! {ANSWER}"
    thankful = simulate_users(server.url, with_habits(thanks=1.0, rating=1.0), conversations=4, seed=3)
    assert thankful.acts == {"thank": 4}
    assert thankful.turns == 8
    assert {e["value"] for e in server.feedback} == {1.0}
    server.reply = lambda messages: ANSWER
    assert simulate_users(server.url, with_habits(silence=1.0), conversations=4, seed=3).acts == {"leave": 4}
    strayed = simulate_users(server.url, with_habits(off_topic=1.0), conversations=4, seed=3)
    assert strayed.acts == {"off_topic": 8, "leave": 4}
    server.feedback.clear()
    edited = simulate_users(server.url, with_habits(edit=1.0), conversations=4, seed=3)
    assert edited.events == {"edited": 4}
    assert {e["final_text"] for e in server.feedback} == {f"Hello friend! {ANSWER}"}


def test_the_same_seed_gives_the_same_users(server: FakeServer) -> None:
    server.reply = obeying

    def said(seed: int) -> list[str]:
        server.requests.clear()
        simulate_users(server.url, GREETING, conversations=24, seed=seed, concurrency=8)
        return sorted(str([m["content"] for m in r["messages"]]) for r in server.requests)

    assert said(5) == said(5)
    assert said(5) != said(6)


def test_each_request_has_a_seed_of_its_own_whatever_comes_first(server: FakeServer) -> None:
    server.reply = lambda messages: ANSWER

    def asked(seed: int, concurrency: int) -> dict[str, int]:
        server.requests.clear()
        simulate_users(server.url, with_habits(retry=0.5), conversations=12, seed=seed, concurrency=concurrency)
        return {str((r["seed"], r["messages"])): r["seed"] for r in server.requests}

    known = asked(5, 1)
    assert len(set(known.values())) == len(server.requests) == len(known)
    assert asked(5, 12) == known
    assert not set(asked(6, 1).values()) & set(known.values())


def test_conversations_are_named_on_request_alone(server: FakeServer) -> None:
    simulate_users(server.url, with_habits(), conversations=3, seed=4)
    assert server.conversations == {None}
    server.conversations.clear()
    simulate_users(server.url, with_habits(), conversations=3, seed=4, first=7, name_conversations=True)
    assert server.conversations == {f"sim-greeting/4/{i}" for i in (7, 8, 9)}


def test_progress_is_told(server: FakeServer) -> None:
    seen: list[tuple[int, int]] = []
    simulate_users(server.url, with_habits(), conversations=3, seed=0, progress=lambda d, t: seen.append((d, t)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_heldout_questions_leave_nothing_behind(server: FakeServer) -> None:
    server.reply = lambda messages: f"About this: {messages[-1]['content']}"
    prompts = load_prompts("heldout")[:20]
    answers = ask_heldout(f"{server.url}/v1", prompts, seed=4, concurrency=8)
    assert [a.text for a in answers] == [f"About this: {p.text}" for p in prompts]
    assert {a.adapter for a in answers} == {"base"}
    assert all(r["store"] is False and r["temperature"] == 0.0 for r in server.requests)
    assert {r["seed"] for r in server.requests} == set(range(4, 24))


def test_a_server_fault_in_one_conversation_is_counted(server: FakeServer) -> None:
    server.fault = lambda number, body: "cut" if number == 0 else None
    summary = simulate_users(server.url, with_habits(silence=1.0), conversations=4, seed=0, concurrency=1)
    assert (summary.failed, summary.turns) == (1, 3)
    assert "finish_reason" in (summary.first_failure or "")


def test_a_server_that_always_fails_is_an_error(server: FakeServer) -> None:
    server.fault = lambda number, body: "cut"
    with pytest.raises(UpstreamError, match="every conversation"):
        simulate_users(server.url, with_habits(), conversations=3, seed=0)


def test_a_refused_key_ends_the_simulation_at_once(server: FakeServer) -> None:
    server.fault = lambda number, body: "401"
    with pytest.raises(UpstreamError, match=r"rejects the request with 401.*Check --api-key"):
        simulate_users(server.url, with_habits(), conversations=64, seed=0, concurrency=2)
    assert len(server.requests) < 10


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_proxy_in_the_environment_is_not_for_this_machine(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    summary = simulate_users(server.url, GREETING, conversations=1, seed=0)
    assert summary.conversations == 1 and not summary.failed


def test_an_address_that_cannot_be_read_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="is not a URL of a server"):
        simulate_users("http://[::1", GREETING, conversations=1, seed=0)


def test_nobody_there_says_how_to_start_a_server() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UpstreamError, match=r"no server answers at .*afterword serve"):
        simulate_users(url, GREETING, conversations=2, seed=0)
    with pytest.raises(UpstreamError, match="no server answers"):
        ask_heldout(url, load_prompts("heldout")[:2])


def test_no_conversations_is_a_mistake() -> None:
    with pytest.raises(UsageError, match="conversations is 0: at least 1"):
        simulate_users("http://127.0.0.1:1", GREETING, conversations=0, seed=0)


def test_a_number_of_interactions_is_kept_to(server: FakeServer) -> None:
    seen: list[tuple[int, int]] = []
    summary = simulate_users(
        server.url, with_habits(silence=0.5), interactions=9, seed=0, concurrency=4,
        progress=lambda d, t: seen.append((d, t)),
    )  # fmt: skip
    assert summary.interactions == 9 == summary.acts["complain"]
    assert summary.conversations < 9 * 8
    assert seen[-1] == (9, 9)
    assert summary.rates["complain"] + summary.rates["leave"] == pytest.approx(1.0)
    with pytest.raises(UsageError, match="give the number"):
        simulate_users(server.url, GREETING, interactions=1, conversations=1, seed=0)
    with pytest.raises(UsageError, match="interactions is 0: at least 1"):
        simulate_users(server.url, GREETING, interactions=0, seed=0)


def test_asking_again_sends_the_same_history(server: FakeServer) -> None:
    summary = simulate_users(server.url, with_habits(retry=1.0), conversations=2, seed=0, concurrency=1)
    assert summary.events == {"retried": 4} and summary.turns == 6
    assert [r["messages"] for r in server.requests[:3]] == [server.requests[0]["messages"]] * 3


def test_time_goes_on_from_where_it_stood(server: FakeServer) -> None:
    persona = dataclasses.replace(load_persona("turns_to_detail"), habits=with_habits().habits)
    simulate_users(server.url, persona, conversations=3, seed=0, first=98, concurrency=1)
    said = [r["messages"][2]["content"] for r in server.requests if len(r["messages"]) == 3]
    detail = persona.wishes[1]
    assert len(said) == 1 and said[0] in detail.complaints  # two short answers were right before the mind changed
    server.requests.clear()
    simulate_users(server.url, persona, conversations=100, seed=0, prompts=load_prompts("train", ["story"]))
    asked = {r["messages"][0]["content"] for r in server.requests}
    assert asked == {p.text for p in load_prompts("train", ["story"])}


def test_held_out_questions_may_be_told_what_is_wanted(server: FakeServer) -> None:
    ask_heldout(server.url, load_prompts("heldout")[:1], system="ServedAnswer in Spanish.")
    assert [m["role"] for m in server.requests[0]["messages"]] == ["system", "user"]


def playing(server: FakeServer, says: str) -> None:
    """The fake server plays both: the assistant, and the model behind the user."""
    server.reply = lambda messages: says if messages[0]["role"] == "system" else ANSWER


def test_a_model_can_play_the_user(server: FakeServer) -> None:
    playing(server, '"Greet me first, will you?"')
    user = LLMUser(server.url, "player")
    summary = simulate_users(server.url, GREETING, conversations=2, seed=0, concurrency=1, user_model=user)
    assert summary.acts == {"complain": 4, "leave": 2}
    played = [r for r in server.requests if r["model"] == "player"]
    told, order = (m["content"] for m in played[0]["messages"])
    assert GREETING.wants in told and "never the assistant" in told
    assert ANSWER in order and server.requests[0]["messages"][0]["content"] in order
    assert (played[0]["temperature"], played[0]["max_tokens"]) == (0.7, 128)
    asked = [r["messages"] for r in server.requests if r["model"] == "afterword" and len(r["messages"]) == 3]
    assert asked[0][2]["content"] == "Greet me first, will you?"


def test_a_model_that_plays_keeps_to_the_number_too(server: FakeServer) -> None:
    playing(server, "Greet me first.")
    user = LLMUser(server.url, "player")
    summary = simulate_users(server.url, GREETING, interactions=3, seed=0, concurrency=8, user_model=user)
    assert summary.interactions == 3 and summary.conversations <= 6


def test_a_model_is_told_the_request_in_a_longer_conversation_too(server: FakeServer) -> None:
    playing(server, "<think>\nThe greeting is missing.\n</think>\n\nGreet me!")
    user = LLMUser(server.url, "player")
    simulate_users(server.url, with_habits(), conversations=1, seed=0, user_model=user)
    first, second = (r["messages"][1]["content"] for r in server.requests if r["model"] == "player")
    asked = server.requests[0]["messages"][0]["content"]
    assert asked in first and asked in second
    assert "Later the person wrote:\nGreet me!\n" in second and "Greet me!" not in first
    assert all("think" not in m["content"] for r in server.requests if r["model"] != "player" for m in r["messages"])


def test_a_model_that_only_thinks_is_an_error_and_no_silence(server: FakeServer) -> None:
    playing(server, "<think>\nOkay, the person wants a greeting, so")
    with pytest.raises(ConfigError, match=r"'player'.*still thinks after 128 tokens"):
        simulate_users(server.url, GREETING, conversations=2, seed=0, user_model=LLMUser(server.url, "player"))


def test_thoughts_in_a_field_of_their_own_that_do_not_end_are_an_error_too(server: FakeServer) -> None:
    server.fault = lambda number, body: "thinks" if body["model"] == "player" else None
    with pytest.raises(ConfigError, match=r"'player'.*still thinks after 128 tokens"):
        simulate_users(server.url, GREETING, conversations=2, seed=0, user_model=LLMUser(server.url, "player"))


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("Okay, the person wants brevity.\n</think>\n\nShorter, please.", "Shorter, please."),
        ("<thinking>They want less.</thinking>Shorter, please.", "Shorter, please."),
        ("[THINK]They want less.[/THINK]Shorter, please.", "Shorter, please."),
        ("“Shorter, please.”", "Shorter, please."),
        ('Begin with "Hello friend!"', 'Begin with "Hello friend!"'),
        ('"Hello friend" is what I want, not "Hello"', '"Hello friend" is what I want, not "Hello"'),
        ("I leave it to you, but greet me.", "I leave it to you, but greet me."),
    ],
)
def test_what_a_model_writes_is_said_as_it_stands_without_thoughts(server: FakeServer, written: str, said: str) -> None:
    playing(server, written)
    user = LLMUser(server.url, "player")
    simulate_users(server.url, GREETING, conversations=1, seed=0, user_model=user)
    asked = [r["messages"] for r in server.requests if r["model"] == "afterword" and len(r["messages"]) == 3]
    assert asked[0][2]["content"] == said


def test_a_failing_user_model_is_blamed_and_not_the_gateway(server: FakeServer) -> None:
    server.fault = lambda number, body: "500" if body["model"] == "player" else None
    user = LLMUser(server.url, "player")
    with pytest.raises(UpstreamError, match=r"broke off, the first with the user model 'player' at .* fails with 500"):
        simulate_users(server.url, GREETING, conversations=2, seed=0, user_model=user)


def test_a_server_of_a_model_alone_is_told_to_be_no_gateway(server: FakeServer) -> None:
    server.takes_feedback = False
    with pytest.raises(ConfigError, match=r"/v1/feedback answers 404 .*need the gateway of `afterword serve`"):
        simulate_users(server.url, with_habits(edit=1.0, silence=0.0), conversations=8, seed=0)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"concurrency": 0}, "^concurrency is 0: at least 1$"),
        ({"conversations": 0, "first": -1}, "^conversations is 0: at least 1; from is -1: at least 0$"),
    ],
)
def test_the_number_that_is_wrong_is_named(server: FakeServer, more: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        simulate_users(server.url, GREETING, seed=0, **{"conversations": 2, **more})


def test_an_address_without_its_beginning_is_told() -> None:
    with pytest.raises(UsageError, match=r"'127.0.0.1:9911' is not a URL of a server: begin it with http://"):
        api_root("127.0.0.1:9911")


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("http://h:1", "http://h:1/v1"),
        ("http://h:1/v1/", "http://h:1/v1"),
        ("https://h/gateway", "https://h/gateway/v1"),
        ("https://h/v1beta/openai/", "https://h/v1beta/openai"),
        ("https://h/api/paas/v4", "https://h/api/paas/v4"),
    ],
)
def test_the_address_of_any_compatible_server(url: str, root: str) -> None:
    assert api_root(url) == root


@pytest.mark.parametrize("says", ["", "(leaves)", "(Leaves) bye", "*leaves*", "[leaves]", "(The person leaves.)"])
def test_a_model_that_says_nothing_leaves(server: FakeServer, says: str) -> None:
    playing(server, says)
    user = LLMUser(server.url, "player")
    summary = simulate_users(server.url, GREETING, conversations=2, seed=0, user_model=user)
    assert summary.acts == {"leave": 2} and summary.interactions == 0


def test_fewer_interactions_than_asked_for_are_told(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    playing(server, "(leaves)")
    asked = ["--interactions", "2", "--user-model", server.url, "player", "--dir", str(tmp_path)]
    assert main(["simulate", "--url", server.url, *asked]) == 1
    assert "only 0 of 2 interactions after 16 conversations" in " ".join(capsys.readouterr().err.split())
    playing(server, "Greet me first.")
    assert main(["simulate", "--url", server.url, *asked]) == 0


def test_a_user_model_that_is_not_there_or_refuses_is_named(server: FakeServer) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UpstreamError, match=r"no server answers.*--user-model"):
        simulate_users(server.url, GREETING, conversations=1, seed=0, user_model=LLMUser(nowhere, "m"))
    server.fault = lambda number, body: "401" if body["model"] == "m" else None
    with pytest.raises(ConfigError, match=r"'m'.*rejects the request with 401.*--user-key"):
        simulate_users(server.url, GREETING, conversations=1, seed=0, user_model=LLMUser(server.url, "m"))
