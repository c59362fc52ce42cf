"""Requests that a program makes by itself: answered, counted, and neither feedback nor a part of the conversation."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.fake_upstream import Fake
from tests.gateway.gateway_setup import Launch, Setup
from tests.serving import afterword

from afterword.chat.machine import newest_user_words
from afterword.feedback.collect.collect import collect
from afterword.gateway.wire import request
from afterword.records import Interaction, Skip
from afterword.store import Store

SAID = "The sky is blue."
TITLE = "Name this chat in at most five words. No quotes, nothing else."


def test_a_title_request_is_no_feedback_and_the_next_message_finds_the_real_answer(gateway: Setup) -> None:
    first = gateway.chat("Why?", user="ada", metadata={"conversation": "c1"})
    title = gateway.chat("Why?", SAID, TITLE, user="ada", metadata={"conversation": "c1"})
    again = gateway.chat("Why?", SAID, TITLE, user="ada", metadata={"conversation": "c1"})
    real = gateway.chat("Why?", SAID, "Shorter, please.", user="ada", metadata={"conversation": "c1"})
    turns = {turn.id: turn for turn in gateway.turns()}
    assert [(event.turn, event.kind, event.text) for event in gateway.feedback()] == [
        (first["id"], "follow_up", "Shorter, please.")
    ], "asked for twice, a title is no judgement either"
    assert turns[real["id"]].previous == first["id"]
    for name in (title["id"], again["id"]):
        assert (turns[name].automated, turns[name].previous) == ("task", None)
    assert turns[first["id"]].automated is None
    metrics = gateway.get("/metrics").text
    assert 'afterword_automated_messages_total{origin="task"} 2.0' in metrics
    assert 'afterword_links_total{outcome="beside"} 2.0' in metrics
    assert gateway.store.automated() == {"task": 2}


def test_a_tools_result_in_the_users_role_is_no_feedback_but_a_part_of_the_conversation(gateway: Setup) -> None:
    first = gateway.chat("Why?", user="ada")
    second = gateway.chat("Why?", SAID, "[read_file for 'sky.txt'] Result:\nblue", user="ada")
    third = gateway.chat(
        "Why?", SAID, "[read_file for 'sky.txt'] Result:\nblue", SAID,
        "Not that file.\n<environment_details>\nsky.txt\n</environment_details>", user="ada",
    )  # fmt: skip
    turns = {turn.id: turn for turn in gateway.turns()}
    assert [turns[t["id"]].previous for t in (second, third)] == [first["id"], second["id"]]
    assert turns[second["id"]].automated == "tool_result" and turns[third["id"]].automated is None
    assert [(event.turn, event.text) for event in gateway.feedback()] == [(second["id"], "Not that file.")]


def test_what_may_be_a_template_is_no_feedback_but_a_part_of_the_conversation(gateway: Setup) -> None:
    text = "Content to keep:\nhow the sky works\n\nExisting scopes: nature\n\nReturn the analysis as structured output."
    first = gateway.chat("Why?", user="ada")
    second = gateway.chat("Why?", SAID, text, user="ada")
    third = gateway.chat("Why?", SAID, text, SAID, "Shorter, please.", user="ada")
    turns = {turn.id: turn for turn in gateway.turns()}
    assert [turns[t["id"]].previous for t in (second, third)] == [first["id"], second["id"]]
    assert turns[second["id"]].automated == "unsure"
    assert [(event.turn, event.text) for event in gateway.feedback()] == [(second["id"], "Shorter, please.")]


@pytest.mark.parametrize(("said", "kinds"), [("title", []), ("false", ["follow_up"])])
def test_what_the_client_declares_counts(gateway: Setup, said: str, kinds: list[str]) -> None:
    first = gateway.chat("Why?", user="ada")
    text = "Use it." if said == "title" else TITLE
    messages = [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(("Why?", SAID, text))]
    body = {"model": "afterword", "messages": messages, "user": "ada"}
    assert gateway.post("/v1/chat/completions", body, headers={"x-afterword-automated": said}).status_code == 200
    assert [event.kind for event in gateway.feedback(turn=first["id"])] == kinds


def test_what_was_stored_before_is_read_at_collection_and_counted(launch: Launch, tmp_path: Path) -> None:
    setup = launch(Fake())
    first = setup.chat("Why?", user="ada")
    for n, text in enumerate((TITLE, 'Observation: {"colour": "blue"}', "Too short, give the reason.")):
        event = {"id": f"e{n}", "turn": first["id"], "kind": "follow_up", "text": text, "user": "ada"}
        assert setup.post("/v1/feedback", event).json()["status"] == "stored"
    with Store.open(setup.settings.database) as store:
        funnel = collect(store)
        assert funnel.skipped == {"automated": 2}
        assert [made.hindsight for made in store.rows(Interaction)] == ["Too short, give the reason."]
        assert {skip.feedback for skip in store.rows(Skip)} == {"e0", "e1"}


def test_silent_signs_on_a_title_teach_nothing_and_no_export_shows_it(launch: Launch, tmp_path: Path) -> None:
    setup = launch(Fake())
    setup.chat("Why?", user="ada")
    title = setup.chat("Why?", SAID, TITLE, user="ada")
    for kind in ("accepted", "abandoned", "copied"):
        setup.post("/v1/feedback", {"turn": title["id"], "kind": kind, "user": "ada"})
    with Store.open(setup.settings.database) as store:
        assert collect(store).skipped["automated"] == 3 and not list(store.rows(Interaction))
    out = tmp_path / "out.jsonl"
    for format in ("openai", "trl-prompt-completion", "sharegpt"):
        done = afterword(setup.settings.dir, "export", "turns", "--format", format, "--split", "all",
                         "--output", str(out))  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert TITLE not in out.read_text(encoding="utf-8")
        assert "Why?" in out.read_text(encoding="utf-8"), "the conversation itself leaves"
    status = afterword(setup.settings.dir, "status", "--json")
    assert json.loads(status.stdout)["automated_messages"] == {"task": 1}


@pytest.mark.parametrize("stream", [False, True])
def test_the_upstream_has_the_request_before_its_message_is_read(
    gateway: Setup, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    gateway.chat("Why?")  # opens the connection
    there: list[bool] = []
    read = newest_user_words

    def newest(*arguments: Any) -> Any:
        end = time.monotonic() + 10
        while len(gateway.fake.requests) < 2 and time.monotonic() < end:
            time.sleep(0.005)
        there.append(len(gateway.fake.requests) == 2)
        return read(*arguments)

    monkeypatch.setattr(request, "newest_user_words", newest)
    body = {"model": "afterword", "messages": [{"role": "user", "content": TITLE}], "stream": stream}
    assert gateway.post("/v1/chat/completions", body).status_code == 200
    assert there == [True], "the message is read once, while the model works"
    assert [turn.automated for turn in gateway.turns()] == [None, "task"]
