"""Follow-ups find their turn: by the re-sent history, by id, before the commit, after a restart; never by guessing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.gateway.fake_upstream import Fake
from tests.gateway.gateway_setup import Launch, Setup
from tests.serving import afterword

from afterword.chat.canonical import thread_hashes
from afterword.chat.trail import trail_of_turn
from afterword.errors import StoreError
from afterword.gateway.link import CROWD, Links
from afterword.gateway.requester import ANYBODY
from afterword.gateway.wire.request import ChatRequest
from afterword.records import Feedback, Turn
from afterword.store import Store, TrailTurn

SAID = "The sky is blue."


def text(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def test_a_follow_up_is_feedback_on_the_turn_before(gateway: Setup) -> None:
    first = gateway.chat("Why?", user="ada", metadata={"conversation": "c1"})
    second = gateway.chat("Why?", text(first), "Shorter, please.", user="ada")
    third = gateway.chat("Why?", SAID, "Shorter, please.", SAID, "Thanks!", user="ada")
    turns = {turn.id: turn for turn in gateway.turns()}
    assert turns[second["id"]].previous == first["id"] and turns[third["id"]].previous == second["id"]
    assert {turn.conversation for turn in turns.values()} == {"c1"}, "the conversation is inherited"
    one, two = gateway.feedback()
    assert (one.turn, one.kind, one.text, one.next_turn, one.source, one.user) == (
        first["id"], "follow_up", "Shorter, please.", second["id"], "detector", "ada",
    )  # fmt: skip
    assert (two.turn, two.text) == (second["id"], "Thanks!")
    assert 'afterword_links_total{outcome="linked"} 2.0' in gateway.get("/metrics").text


@pytest.mark.parametrize("stream", [True, False])
def test_streamed_answers_link_as_well(gateway: Setup, stream: bool) -> None:
    said = "".join(chunk.choices[0].delta.content or "" for chunk in gateway.stream("Why?"))
    gateway.chat("Why?", said + "  ", "And at night?")
    first, second = gateway.turns()
    assert second.previous == first.id, "white space around an answer does not matter"


def test_other_users_and_keys_are_never_linked(gateway: Setup) -> None:
    first = gateway.chat("Why?", user="ada")
    gateway.chat("Why?", SAID, "Shorter!", user="grace")
    gateway.chat("Why?", SAID, "Shorter!")
    response = gateway.post(
        "/v1/chat/completions",
        {"model": "afterword", "messages": [{"role": "user", "content": "Shorter!"}], "user": "grace"},
        headers={"x-afterword-previous-turn": first["id"]},
    )
    assert response.status_code == 200
    assert [turn.previous for turn in gateway.turns()] == [None] * 4
    assert gateway.feedback() == []
    metrics = gateway.get("/metrics").text
    assert 'outcome="unmatched"} 2.0' in metrics and 'outcome="foreign"} 1.0' in metrics


def test_the_previous_turn_may_be_named(gateway: Setup) -> None:
    first = gateway.chat("Why?", user="ada")
    body = {"model": "afterword", "messages": [{"role": "user", "content": "Shorter!"}], "user": "ada"}
    second = gateway.post("/v1/chat/completions", body, headers={"x-afterword-previous-turn": first["id"]}).json()
    unknown = gateway.post("/v1/chat/completions", body, headers={"x-afterword-previous-turn": "chatcmpl-0"})
    assert unknown.status_code == 200
    (event,) = gateway.feedback()
    assert (event.turn, event.text, event.next_turn) == (first["id"], "Shorter!", second["id"])
    assert 'outcome="unknown"} 1.0' in gateway.get("/metrics").text


def test_two_equal_turns_are_no_match(gateway: Setup) -> None:
    gateway.chat("Hi")
    gateway.chat("Hi")
    gateway.chat("Hi", SAID, "Shorter!")
    assert gateway.turns()[2].previous is None and gateway.feedback() == []
    assert 'outcome="ambiguous"} 1.0' in gateway.get("/metrics").text


def test_links_and_ambiguity_survive_a_restart(launch: Launch) -> None:
    fake = Fake()
    before = launch(fake)
    first = before.chat("Why?", user="ada", metadata={"conversation": "c1"})
    twin = before.chat("Hi", user="bob")
    after = launch(fake)
    second = after.chat("Why?", SAID, "Shorter!", user="ada")
    after.chat("Hi", user="bob")
    after.chat("Hi", SAID, "Shorter!", user="bob")
    turns = {turn.id: turn for turn in after.turns()}
    assert turns[second["id"]].previous == first["id"] and turns[second["id"]].conversation == "c1"
    assert after.feedback(turn=first["id"])[0].text == "Shorter!"
    assert after.feedback(turn=twin["id"]) == [], "one twin is in memory, the other in the store: ambiguous"


def test_the_same_request_again_is_a_regeneration(gateway: Setup) -> None:
    first = gateway.chat("Why?", user="ada")
    again = gateway.chat("Why?", user="ada")
    (event,) = gateway.feedback()
    assert (event.turn, event.kind, event.next_turn) == (first["id"], "regenerated", again["id"])


def test_the_same_words_after_another_turn_are_no_regeneration(gateway: Setup) -> None:
    def send(previous: str) -> str:
        body = {"model": "afterword", "messages": [{"role": "user", "content": "Go on"}], "user": "ada"}
        response = gateway.post("/v1/chat/completions", body, headers={"x-afterword-previous-turn": previous})
        return str(response.json()["id"])

    second = send(gateway.chat("Hi", user="ada")["id"])
    send(second)
    assert [event.kind for event in gateway.feedback()] == ["follow_up", "follow_up"]


def test_a_regeneration_in_the_middle_of_a_conversation(launch: Launch) -> None:
    fake = Fake()
    before = launch(fake)
    first = before.chat("Why?")
    second = before.chat("Why?", SAID, "Shorter!")
    after = launch(fake)
    third = after.chat("Why?", SAID, "Shorter!")
    assert [(e.turn, e.kind, e.next_turn) for e in after.feedback()] == [
        (first["id"], "follow_up", second["id"]),
        (second["id"], "regenerated", third["id"]),
    ]


def test_a_regeneration_in_a_named_conversation_after_a_restart(launch: Launch) -> None:
    fake = Fake()
    first = launch(fake).chat("Hi", metadata={"conversation": "c1"})
    after = launch(fake)
    after.chat("Something else", metadata={"conversation": "c1"})
    after.chat("Hi", metadata={"conversation": "c1"})
    (event,) = after.feedback()
    assert (event.turn, event.kind) == (first["id"], "regenerated")


def test_the_same_words_elsewhere_are_no_regeneration(gateway: Setup) -> None:
    gateway.chat("Hi")
    gateway.chat("Hi")  # nobody in particular: many people say Hi
    gateway.chat("Hi", user="ada", metadata={"conversation": "c1"})
    gateway.chat("Hi", user="ada", metadata={"conversation": "c2"})
    assert gateway.feedback() == []


def test_asking_again_after_a_failure_is_no_judgement(launch: Launch) -> None:
    gateway = launch(Fake(cut_after=3))
    with pytest.raises(Exception, match="cut the stream"):
        list(gateway.stream("Why?", user="ada"))
    gateway.fake.cut_after = None
    gateway.chat("Why?", user="ada")
    assert gateway.turns()[0].finish_reason == "error" and gateway.feedback() == []


def test_what_the_user_said_is_kept_when_nobody_answers(launch: Launch) -> None:
    gateway = launch()
    first = gateway.chat("Why?")
    gateway.fake.reject = (500, {"error": {"message": "no"}})
    body = {"model": "afterword", "messages": gateway.fake.requests[0]["messages"]}
    body["messages"] = [
        *body["messages"],
        {"role": "assistant", "content": SAID},
        {"role": "user", "content": "Shorter!"},
    ]
    assert gateway.post("/v1/chat/completions", body).status_code == 502
    (event,) = gateway.feedback()
    assert (event.turn, event.text, event.next_turn) == (first["id"], "Shorter!", None)
    gateway.fake.reject = None
    answer = gateway.post("/v1/chat/completions", body).json()
    assert len(gateway.feedback()) == 1, "the same words again are a duplicate"
    assert gateway.store.get(Turn, answer["id"]).previous == first["id"]


def test_a_tool_result_links_but_says_nothing(launch: Launch) -> None:
    gateway = launch(Fake(tool=True))
    first = gateway.chat("Look up")
    call = first["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": "call_1", "content": "blue"}
    messages = [{"role": "user", "content": "Look up"}, call, result]
    gateway.post("/v1/chat/completions", {"model": "afterword", "messages": messages})
    assert gateway.turns()[1].previous == first["id"] and gateway.feedback() == []


# ---- behind the clients people use


def ask(gateway: Setup, messages: list[dict[str, Any]], named: bool = True, **more: Any) -> dict[str, Any]:
    headers = {"x-afterword-user": "ada", "x-afterword-conversation": "c1"} if named else {}
    body = {"model": "afterword", "messages": messages, **more}
    response = gateway.post("/v1/chat/completions", body, headers=headers)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def said(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def follow_ups(gateway: Setup) -> list[tuple[str, str | None]]:
    """What is left of them: (turn, words)."""
    rows = gateway.feedback()
    gone = {row.retracts for row in rows}
    return [(row.turn, row.text) for row in rows if row.kind == "follow_up" and row.id not in gone]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("first", "again"),
    [
        ([system("It is 10:00:01."), user("Why?")], [system("It is 10:00:48."), user("Why?"), said(SAID)]),
        ([system("Be brief."), user("Why?")], [user("Why?"), said(SAID)]),
        ([user("Hi"), user("Why?")], [user("Hi\n\nWhy?"), said(f" {SAID}\n")]),
        ([user([{"type": "text", "text": "Why?"}])], [user("Why?"), said([{"type": "text", "text": SAID}])]),
        ([user("Hi"), said("Hello"), user("Why?")], [user("Why?"), said(SAID)]),
        ([user("<context>Light.</context>\n<query>Why?</query>")], [user("Why?"), said(SAID)]),
        (
            [user("Hi"), said("Hello"), user("Why is that?")],
            [user("Hi there"), said("Hello"), user("Why is that?"), said(SAID)],
        ),
    ],
)
def test_what_clients_send_otherwise_is_linked(gateway: Setup, first: Any, again: Any, named: bool) -> None:
    one = ask(gateway, first, named)
    two = ask(gateway, [*again, user("Shorter, please.")], named)
    assert gateway.store.get(Turn, two["id"]).previous == one["id"]
    assert follow_ups(gateway)[-1] == (one["id"], "Shorter, please.")


@pytest.mark.parametrize("named", [True, False])
def test_an_answer_without_its_thought_is_linked(launch: Launch, named: bool) -> None:
    gateway = launch(Fake(words=("<think>", "Light?", "</think>", "\n\nThe sky is blue.")))
    one = ask(gateway, [user("Why?")], named)
    two = ask(gateway, [user("Why?"), said(SAID), user("Shorter!")], named)
    assert gateway.store.get(Turn, two["id"]).previous == one["id"]


def test_an_answer_that_was_gone_on_with_is_linked(launch: Launch) -> None:
    gateway = launch(Fake(words=("The sky",)))
    one = ask(gateway, [user("Why?")])
    gateway.fake.words = (" is blue.",)
    two = ask(gateway, [user("Why?"), said("The sky")], continue_final_message=True, add_generation_prompt=False)
    three = ask(gateway, [user("Why?"), said(SAID), user("Shorter!")])
    turns = {turn.id: turn for turn in gateway.turns()}
    assert (turns[two["id"]].previous, turns[three["id"]].previous) == (one["id"], two["id"])
    assert follow_ups(gateway) == [(two["id"], "Shorter!")]


def test_tool_arguments_that_were_written_anew_are_linked(launch: Launch) -> None:
    gateway = launch(Fake(tool=True))
    one = ask(gateway, [user("Look up")], named=False)
    (call,) = one["choices"][0]["message"]["tool_calls"]
    call = {"id": call["id"], "type": "function", "function": dict(call["function"])}
    call["function"]["arguments"] = call["function"]["arguments"].replace(":", ": ").replace(",", ", ")
    result = {"role": "tool", "tool_call_id": call["id"], "content": "blue"}
    two = ask(gateway, [user("Look up"), said("", tool_calls=[call]), result], named=False)
    assert gateway.store.get(Turn, two["id"]).previous == one["id"]


def test_the_words_of_a_wrapped_follow_up_are_the_users(gateway: Setup) -> None:
    def wrapped(question: str, text: str) -> dict[str, Any]:
        return user(f"Use these sources.\n<context>\n{text}\n</context>\n<query>\n{question}\n</query>")

    one = ask(gateway, [wrapped("Why?", "[1] Light.")])
    two = ask(gateway, [user("Why?"), said(SAID), wrapped("Shorter, please.", "[1] Words.")])
    ask(gateway, [user("Why?"), said(SAID), user("Shorter, please."), said(SAID), wrapped("Thanks!", "[1] Manners.")])
    assert follow_ups(gateway) == [(one["id"], "Shorter, please."), (two["id"], "Thanks!")]


def test_words_in_a_wrapper_of_ones_own_are_corrected_once_they_are_known(gateway: Setup) -> None:
    """The first question is asked as it is, so nothing tells that the second stands in other text; the third does."""
    passages = "Il y a beaucoup de choses à dire sur ce sujet, et en voici quelques-unes."
    one = ask(gateway, [user("Why?")])
    two = ask(gateway, [user("Why?"), said(SAID), user(f"{passages}\n\nDemande : Shorter, please.")])
    assert follow_ups(gateway) == [(one["id"], f"{passages}\n\nDemande : Shorter, please.")]
    third = [user("Why?"), said(SAID), user("Shorter, please."), said(SAID)]
    ask(gateway, [*third, user(f"{passages} Encore.\n\nDemande : Thanks!")])
    ask(gateway, [*third, user(f"{passages} Encore.\n\nDemande : Thanks!")])
    assert follow_ups(gateway) == [(one["id"], "Shorter, please."), (two["id"], "Thanks!")]
    (fresh,) = [row for row in gateway.feedback() if row.text == "Shorter, please."]
    assert (fresh.next_turn, fresh.user) == (two["id"], "ada")


def test_what_the_user_took_back_is_not_said_again(gateway: Setup) -> None:
    passages = "Il y a beaucoup de choses à dire sur ce sujet, et en voici quelques-unes."
    ask(gateway, [user("Why?")])
    ask(gateway, [user("Why?"), said(SAID), user(f"{passages}\n\nDemande : Shorter, please.")])
    httpx.delete(f"{gateway.url}/v1/feedback/{gateway.feedback()[0].id}")
    ask(gateway, [user("Why?"), said(SAID), user("Shorter, please."), said(SAID), user("Demande : Thanks!")])
    assert "Shorter, please." not in [words for _, words in follow_ups(gateway)]


def test_where_the_users_words_cannot_be_told_nothing_is_said_until_they_are(gateway: Setup) -> None:
    one = ask(gateway, [user("Why?")])
    held = "Answer by the following context only.\n\nContext:\nLight is scattered.\n\nShorter, please."
    two = ask(gateway, [user("Why?"), said(SAID), user(held)])
    assert gateway.store.get(Turn, two["id"]).previous == one["id"] and follow_ups(gateway) == []
    ask(gateway, [user("Why?"), said(SAID), user("Shorter, please."), said(SAID)])
    assert follow_ups(gateway) == [(one["id"], "Shorter, please.")]


def test_the_same_request_under_another_clock_is_a_regeneration(gateway: Setup) -> None:
    one = ask(gateway, [system("It is 10:00:01."), user("Why?")])
    two = ask(gateway, [system("It is 10:00:48."), user("Why?")])
    (event,) = gateway.feedback()
    assert (event.turn, event.kind, event.next_turn) == (one["id"], "regenerated", two["id"])


def test_turns_of_an_older_version_are_linked_by_the_hash_of_their_history(gateway: Setup) -> None:
    asked = [system("Be brief."), user("Why?")]
    thread = thread_hashes((None, "ada"), [*asked, said(SAID)])[-1]
    old = Turn(id="old", messages=tuple(asked), answer=said(SAID), user="ada", thread=thread)
    gateway.store.write(old)
    two = ask(gateway, [*asked, said(SAID), user("Shorter!")])
    assert gateway.store.get(Turn, two["id"]).previous == "old"


def test_requests_that_are_linked_to_nothing_are_counted_by_reason(gateway: Setup) -> None:
    for _ in range(2):
        gateway.chat("Hi")
    gateway.chat("Hi", SAID, "Shorter!")
    gateway.chat("Hi", "Never said.", "Shorter!")
    gateway.chat(*["Hi", SAID] * 2, "Shorter!", user="ada")
    assert gateway.store.unlinked() == {"unmatched": 2, "ambiguous": 1}
    assert [turn.unlinked for turn in gateway.turns()] == [None, None, "ambiguous", "unmatched", "unmatched"]
    assert 'afterword_links_total{outcome="ambiguous"} 1.0' in gateway.get("/metrics").text
    status = afterword(gateway.settings.dir, "status", "--json")
    assert json.loads(status.stdout)["unlinked_by_reason"] == {"unmatched": 2, "ambiguous": 1}


# ---- the index by itself


def request(*words: str, user: str | None = "ada") -> ChatRequest:
    messages = [{"role": ("user", "assistant")[i % 2], "content": w} for i, w in enumerate(words)]
    return ChatRequest(
        body={}, messages=messages, model="m", stream=False, keep=True, key=None, user=user, conversation=None,
        previous=None, task=None, team=None, requester=ANYBODY,
    )  # fmt: skip


def turn(links: Links, number: int, chat: ChatRequest, answer: str = "a") -> Turn:
    message = {"role": "assistant", "content": answer}
    thread = trail_of_turn(chat.scope, chat.messages, message)
    made = Turn(id=f"t{number}", messages=tuple(chat.messages), answer=message, user=chat.user, thread=thread)
    links.remember(made, links.find(chat).asked, chat.model)
    return made


def test_a_reply_that_outruns_the_commit_is_linked_from_memory(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a.db") as store:
        links = Links(store)
        first = turn(links, 1, request("Hi"))
        assert store.count(Turn) == 0
        assert links.find(request("Hi", "a", "Go on")).previous == first.id
        links.forget(first.id)
        links.forget(first.id)
        assert links.find(request("Hi", "a", "Go on")).outcome == "unmatched"


def test_the_memory_is_bounded_and_the_store_knows_the_rest(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a.db") as store:
        links = Links(store, remembered=3)
        for number in range(10):
            store.write(turn(links, number, request(f"Hi {number}")))
        twin = dataclasses.replace(turn(links, 10, request("Hi 9")), created_at=1.0)
        assert twin.id == "t10" and not links.recent("t6") and links.recent("t9")
        assert links.find(request("Hi 1", "a", "Go on")).previous == "t1"
        assert links.find(request("Hi 9", "a", "Go on")).outcome == "ambiguous"
        twin = turn(links, 11, request("Hi 9"))
        links.forget("t10")
        assert links.find(request("Hi 9")).repeats == twin.id, "forgetting the older one leaves the newer"
        links.forget(twin.id)
        assert links.find(request("Hi 9", "a", "Go on")).previous == "t9"
        assert len(links._recent._answers) <= 3 and len(links._asked) <= 3


@pytest.mark.parametrize("restarted", [False, True])
def test_of_very_many_equal_answers_the_right_one_is_found(tmp_path: Path, restarted: bool) -> None:
    with Store.open(tmp_path / "a.db") as store:
        links = Links(store)
        many = [turn(links, n, request(f"Question {n}", f"Answer {n}", "Sure?"), "Yes.") for n in range(CROWD + 40)]
        own = dataclasses.replace(many[5], id="own", conversation="c1")
        store.write(*many, own)
        links.remember(own, "asked")
        links = Links(store) if restarted else links
        assert links.find(request("Question 7", "Answer 7", "Sure?", "Yes.", "Go on")).previous == "t7"
        assert links.find(request("Question 5", "Answer 5", "Sure?", "Yes.", "Go on")).outcome == "ambiguous"
        named = dataclasses.replace(request("Question 5", "Answer 5", "Sure?", "Yes.", "Go on"), conversation="c1")
        assert links.find(named).previous == "own"
        assert links.find(request("Sure?", "Yes.", "Go on")).outcome == "ambiguous"
        again = request("Question 9", "Answer 9", "Are you quite sure of that?", "Yes.", "Go on")
        assert links.find(again).outcome == "unsure", "found by what was before the question, and too short"
        assert links.find(request("Question 9", "Answer 8", "Sure?", "Yes.", "Go on")).previous is None


def test_a_store_that_cannot_be_read_means_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path / "a.db") as store:
        links = Links(store)

        def broken(*_: object) -> list[TrailTurn]:
            raise StoreError("disk on fire")

        monkeypatch.setattr(store, "turns_on_trails", broken)
        link = links.find(request("Hi", "a", "Go on"))
        assert link.outcome == "unavailable" and link.feedback("ada", "t1") == []


def test_regeneration_looks_at_scope_and_end(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a.db") as store:
        links = Links(store)
        base = Turn(
            id="p", messages=tuple(request("Hi").messages), answer={"role": "assistant", "content": "a"}, user="ada"
        )
        messages = tuple(request("Hi", "a", "Go on").messages)
        aborted = dataclasses.replace(base, id="x1", messages=messages, previous="p", finish_reason="aborted")
        foreign = dataclasses.replace(base, id="x2", messages=messages, previous="p", user="bob")
        other = dataclasses.replace(base, id="x3", messages=messages[:1], previous="p")
        store.write(base, aborted, foreign, other)
        chat = dataclasses.replace(request("Hi", "a", "Go on"), previous="p")
        assert links.find(chat).repeats is None
        store.write(dataclasses.replace(base, id="x4", messages=messages, previous="p"))
        link = links.find(chat)
        assert link.repeats == "x4"
        assert link.feedback("ada", None) == [] and [type(f) for f in link.feedback("ada", "n")] == [Feedback]


def test_redaction_before_storage_leaves_answers_and_links_alone(launch: Launch) -> None:
    gateway = launch(redact="rules")
    mail = "ana.reis@example.com"
    first = gateway.chat(f"I am {mail}.")
    second = gateway.chat(f"I am {mail}.", text(first), f"No, {mail} it is.")
    sent = gateway.post("/v1/feedback", {"id": "f", "turn": second["id"], "kind": "comment", "text": f"To {mail}!"})
    assert sent.json()["status"] == "stored"
    again = gateway.post("/v1/feedback", {"id": "f", "turn": second["id"], "kind": "comment", "text": f"To {mail}!"})
    assert again.json()["status"] == "duplicate"
    one, two = gateway.turns()
    assert text(first) == SAID and two.previous == one.id and one.messages[0]["content"] == "I am [EMAIL]."
    assert [row.text for row in gateway.feedback()] == ["No, [EMAIL] it is.", "To [EMAIL]!"]
    assert not one.on_policy and one.missing_ids == "redacted before storage"
    assert mail.encode() not in gateway.settings.database.read_bytes()


@pytest.mark.parametrize("calls", [5, 1.5, True, "text", {"id": "a"}, [None, 3], [{"function": 5}]])
def test_an_odd_history_of_tool_calls_is_the_model_servers_to_judge(gateway: Setup, calls: Any) -> None:
    history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    body = {"model": "afterword", "messages": [*history, {"role": "user", "content": "And now?"}]}
    response = gateway.post("/v1/chat/completions", body)
    assert response.status_code == 200, response.text
