"""Exports of chat products: trees of messages, votes with their reasons, answers generated again."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from afterword.feedback.collect.collect import collect
from afterword.feedback.importing.imports import import_file
from afterword.feedback.settings import CollectSettings
from afterword.records import Feedback, Interaction, Skip, Turn
from afterword.store import Store
from tests.feedback.chat_exports import EGGS, chatgpt, claude, librechat, nested, open_webui, vote
from tests.feedback.import_rows import load, reasons, write

Json = dict[str, Any]
PRODUCTS: dict[str, Callable[..., Json]] = {
    "open-webui": open_webui, "chatgpt": chatgpt, "librechat": librechat, "claude": claude,
    "nested": lambda *args, **more: nested(librechat(*args, **more)),
}  # fmt: skip
product = pytest.mark.parametrize("build", PRODUCTS.values(), ids=PRODUCTS)


def answers(store: Store) -> dict[str, Turn]:
    """The turns by the words of their answers."""
    return {str(turn.answer["content"]): turn for turn in store.rows(Turn)}


def said(store: Store) -> set[tuple[Any, ...]]:
    """(kind, the answer it is about, words or value, the next answer)."""
    names = {turn.id: turn.answer["content"] for turn in store.rows(Turn)}
    return {
        (f.kind, names.get(f.turn), f.text or f.final_text or f.value, names.get(f.next_turn or ""))
        for f in store.rows(Feedback)
    }


@product
def test_visible_branch_and_the_answer_that_was_generated_again(
    store: Store, tmp_path: Path, build: Callable[..., Json]
) -> None:
    summary = load(store, tmp_path, json.dumps([build()]), name="chats.json")
    assert (summary.rows, summary.conversations, summary.messages, summary.turns) == (1, 1, 5, 3)
    assert not summary.rejected and not summary.left_out
    found = answers(store)
    assert set(found) == {"A while.", "Six minutes.", "Six."}
    assert [m["content"] for m in found["Six."].messages] == [
        "How long do eggs boil?", "Six minutes.", "Say it in one word, please.",
    ]  # fmt: skip
    assert found["Six."].previous == found["Six minutes."].id and found["A while."].previous is None
    assert len({turn.conversation for turn in found.values()}) == 1
    assert said(store) == {
        ("regenerated", "A while.", None, "Six minutes."),
        ("follow_up", "Six minutes.", "Say it in one word, please.", None),
    }


@product
def test_again_and_a_newer_export_add_only_what_is_new(
    store: Store, tmp_path: Path, build: Callable[..., Json]
) -> None:
    first = load(store, tmp_path, [build(EGGS[:3])], name="first.jsonl")
    assert first.stored == 3
    assert import_file(store, tmp_path / "first.jsonl").stored == 0
    newer = load(store, tmp_path, [build(), build([*EGGS, ("n1", None, "user", "Hm?")], chat="c2")], name="newer.jsonl")
    assert newer.conflicts == 0
    # c1: one more answer and one more follow-up; c2: three answers, generated again, a follow-up
    assert newer.stored == 2 + 5


@product
def test_two_exports_whose_ids_are_the_same_by_chance_do_not_mix(
    store: Store, tmp_path: Path, build: Callable[..., Json]
) -> None:
    other = [(key, parent, role, f"{words} (ham)") for key, parent, role, words in EGGS]
    load(store, tmp_path, [build()], name="one.jsonl")
    for _ in range(2):
        summary = load(store, tmp_path, [build(other)], name="two.jsonl")
        assert summary.conflicts == 0
    assert summary.stored == 0
    found = answers(store)
    assert len(found) == 6
    assert found["Six. (ham)"].previous == found["Six minutes. (ham)"].id
    assert {t.conversation for w, t in found.items() if "ham" in w}.isdisjoint(
        {t.conversation for w, t in found.items() if "ham" not in w}
    )
    assert ("regenerated", "A while. (ham)", None, "Six minutes. (ham)") in said(store)


@product
def test_broken_trees(store: Store, tmp_path: Path, build: Callable[..., Json]) -> None:
    circle = [("a", "b", "user", "Which came first?"), ("b", "a", "assistant", "The egg.")]
    orphans = [("x1", "lost", "user", "And hard ones?"), ("x2", "x1", "assistant", "Ten minutes.")]
    rows = [build(circle, chat="c0"), build([*EGGS, *circle], chat="c1"), build([*EGGS[:2], *orphans], chat="c2")]
    if build is PRODUCTS["nested"]:  # what is nested has no circle, and what has no parent stands at the top
        assert load(store, tmp_path, rows[2:]).turns == 2
        return
    for row, end in zip(rows, ("a", "m5", "x2"), strict=True):
        row.get("chat", {}).get("history", row)["currentId" if "chat" in row else "current_node"] = end
    summary = load(store, tmp_path, rows)
    assert reasons(summary) == {"cycle": 1}
    assert summary.left_out == {"missing_parent": 1, "cycle": 2}
    assert summary.turns == 3 + 2 and "Ten minutes." in answers(store)


def test_a_current_node_that_is_not_there_is_the_newest_leaf(store: Store, tmp_path: Path) -> None:
    for name, build in (("a", chatgpt), ("b", open_webui)):
        summary = load(store, tmp_path, [build(current="nowhere")], name=f"{name}.jsonl")
        assert summary.left_out == {"unknown_current": 1} and summary.turns == 3
    load(store, tmp_path, [chatgpt(current=None)], name="c.jsonl")
    assert ("regenerated", "A while.", None, "Six minutes.") in said(store)


def test_who_goes_back_to_the_first_answer_did_not_leave_it(store: Store, tmp_path: Path) -> None:
    lines = [*EGGS[:3], ("m4", "m2", "user", "Fine, how long is a while?"), ("m5", "m4", "assistant", "Six minutes!")]
    load(store, tmp_path, [open_webui(lines)])
    assert {kind for kind, *_ in said(store)} == {"follow_up"}


def test_answers_of_two_models_side_by_side_are_not_generated_again(store: Store, tmp_path: Path) -> None:
    chat = open_webui()
    chat["chat"]["history"]["messages"]["m2"] |= {"model": "other", "modelIdx": 0}
    chat["chat"]["history"]["messages"]["m3"] |= {"modelIdx": 1}
    load(store, tmp_path, [chat])
    assert {kind for kind, *_ in said(store)} == {"follow_up"}
    assert answers(store)["A while."].model == "other"


# ---- votes


def test_a_thumb_down_with_its_reason_is_hindsight(store: Store, tmp_path: Path) -> None:
    chat = open_webui()
    messages = chat["chat"]["history"]["messages"]
    messages["m2"]["annotation"] = vote()["data"]
    messages["m3"]["annotation"] = {"rating": "1", "reason": "accurate_information"}
    messages["m5"]["annotation"] = {"rating": -1, "reason": "dont_like_the_style", "comment": ""}
    load(store, tmp_path, [chat])
    votes = {f.turn: f for f in store.rows(Feedback) if f.kind == "rating"}
    found = answers(store)
    first = votes[found["A while."].id]
    assert (first.value, first.text, first.user) == (-1.0, "Say how many minutes.", "u1")
    assert first.metadata == {"reason": "not_helpful", "tags": ["cooking"], "details": {"rating": 3}}
    assert (votes[found["Six minutes."].id].value, votes[found["Six minutes."].id].text) == (
        1.0,
        "Accurate information",
    )
    assert votes[found["Six."].id].text == "Don't like the style"
    collect(store, CollectSettings(wait_seconds=0))
    made = {i.turn: i for i in store.rows(Interaction)}
    down = made[found["A while."].id]
    assert down.polarity == -1 and "Say how many minutes." in down.hindsight
    assert "Don't like the style" in made[found["Six."].id].hindsight


def test_the_vote_on_a_later_attempt_makes_it_a_success(store: Store, tmp_path: Path) -> None:
    chat = open_webui(EGGS[:3], current="m3")
    chat["chat"]["history"]["messages"]["m3"]["annotation"] = {"rating": 1}
    load(store, tmp_path, [chat])
    collect(store)
    made = next(i for i in store.rows(Interaction) if i.kind == "regenerated")
    assert made.turn == answers(store)["A while."].id and "Six minutes." in made.hindsight and made.polarity == -1


def test_the_feedback_history_finds_its_turn_in_any_order(store: Store, tmp_path: Path) -> None:
    load(store, tmp_path, [vote()], name="feedback.jsonl")  # held: its chat is not there yet
    assert store.held() == 1
    chat = open_webui()
    chat["chat"]["history"]["messages"]["m2"]["annotation"] = vote()["data"]
    load(store, tmp_path, [chat], name="chats.jsonl")
    assert store.held() == 0
    assert [f.value for f in store.rows(Feedback) if f.kind == "rating"] == [-1.0]  # one vote in two files is one
    with_chat = load(store, tmp_path, [vote(chat=open_webui())], name="snapshot.jsonl")
    assert with_chat.stored == 0 and with_chat.conflicts == 0


def test_a_vote_that_was_changed_and_changed_back(store: Store, tmp_path: Path) -> None:
    def standing() -> list[float | None]:
        gone = store.superseded()
        return [f.value for f in store.rows(Feedback) if f.kind == "rating" and f.id not in gone]

    load(store, tmp_path, [open_webui()], name="chats")
    files = {f"{n}.jsonl": [vote(rating=r, comment="", at=1760000100 + n)] for n, r in enumerate((1, -1, 1))}
    for (name, rows), now in zip(files.items(), (1.0, -1.0, 1.0), strict=True):
        load(store, tmp_path, rows, name=name)
        assert standing() == [now]
    for name, rows in files.items():
        again = load(store, tmp_path, rows, name=f"again-{name}")
        assert (again.stored, again.conflicts) == (0, 0)
    late = load(store, tmp_path, [vote(rating=-1, comment="", at=1760000050)], name="older.jsonl")
    assert late.stored == 1 and standing() == [1.0]  # an older export is history
    chat = open_webui()
    chat["updated_at"] = 1760000900
    chat["chat"]["history"]["messages"]["m2"]["annotation"] = vote(rating=1, comment="")["data"]
    assert load(store, tmp_path, [chat], name="newer").stored == 0 and standing() == [1.0]


def test_the_feedback_history_brings_its_chat(store: Store, tmp_path: Path) -> None:
    summary = load(store, tmp_path, [vote(chat=open_webui())], name="feedback.json")
    assert (summary.turns, summary.conversations) == (3, 1)
    assert ("rating", "A while.", "Say how many minutes.", None) in said(store)


def test_votes_without_a_value_or_a_message_are_rejected(store: Store, tmp_path: Path) -> None:
    rows = [vote(), vote(rating=7), vote(rating=0), vote(message="m9"), {**vote(), "meta": {}}]
    rows[2]["data"]["details"] = {"rating": 1}
    rows[1]["data"]["details"] = {}
    summary = load(store, tmp_path, rows)
    assert reasons(summary) == {"value_range": 1, "no_id": 1}
    assert sorted(f.value or 0 for f in store.rows(Feedback)) == [-1.0, -1.0, -1.0]


def test_librechat_votes(store: Store, tmp_path: Path) -> None:
    chat = librechat()
    chat["messages"][1]["feedback"] = {"rating": "thumbsDown", "tag": {"key": "inaccurate"}, "text": "Eggs, not rocks."}
    chat["messages"][2]["feedback"] = {"rating": "thumbsUp", "tag": "attention_to_detail"}
    chat["messages"][4]["feedback"] = {"rating": "sideways"}
    summary = load(store, tmp_path, [chat])
    assert summary.left_out == {"bad_rating": 1}
    votes = {(f.value, f.text) for f in store.rows(Feedback) if f.kind == "rating"}
    assert votes == {(-1.0, "Eggs, not rocks."), (1.0, "Attention to detail")}


def test_an_answer_that_was_edited_in_place(store: Store, tmp_path: Path) -> None:
    before = load(store, tmp_path, [open_webui(EGGS[:2], "m2")], name="before.jsonl")
    chat = open_webui(EGGS[:2], "m2")
    chat["chat"]["history"]["messages"]["m2"] |= {"originalContent": "A while.", "content": "Six minutes, softly."}
    after = load(store, tmp_path, [chat], name="after.jsonl")
    assert (before.stored, after.stored, after.conflicts) == (1, 1, 0)
    assert said(store) == {("edited", "A while.", "Six minutes, softly.", None)}


# ---- what is no answer


def test_hidden_nodes_tools_and_pictures_of_chatgpt(store: Store, tmp_path: Path) -> None:
    chat = chatgpt([
        ("s", None, "system", "You are watched."), ("q", "s", "user", "What is in the picture?"),
        ("t", "q", "assistant", "thinking"), ("c", "t", "assistant", "print(6)"), ("r", "c", "tool", "6"),
        ("a", "r", "assistant", "An egg."), ("q2", "a", "user", "Wrong, it is a ball."),
        ("a2", "q2", "assistant", "A ball."),
    ], current="a2")  # fmt: skip
    nodes = chat["mapping"]
    nodes["s"]["message"]["metadata"]["is_visually_hidden_from_conversation"] = True
    nodes["q"]["message"]["content"] = {
        "content_type": "multimodal_text",
        "parts": [
            {"content_type": "image_asset_pointer", "asset_pointer": "file-service://x"},
            "What is in the picture?",
        ],
    }
    nodes["t"]["message"]["content"] = {"content_type": "thoughts", "thoughts": []}
    nodes["c"]["message"] |= {"recipient": "python", "content": {"content_type": "code", "text": "print(6)"}}
    nodes["r"]["message"] |= {"content": {"content_type": "execution_output", "text": "6"}}
    summary = load(store, tmp_path, [chat])
    assert summary.left_out == {"hidden": 1, "thoughts": 1}
    found = answers(store)
    assert set(found) == {"", "An egg.", "A ball."}
    asked, call, result = found["An egg."].messages
    assert [part["type"] for part in asked["content"]] == ["image_url", "text"]
    assert call["tool_calls"][0]["function"] == {"name": "python", "arguments": '{"input": "print(6)"}'}
    assert result == {"role": "tool", "tool_call_id": "c", "name": "tool", "content": "6"}
    assert said(store) == {("follow_up", "An egg.", "Wrong, it is a ball.", None)}


CITED = (
    "Six minutes \ue200cite\ue202t0search1\ue202t0search3\ue201. See \ue200url\ue202Eggs\ue202t0\ue201 【4†source】, "
    '\ue200entity\ue202["dish","omelette","x"]\ue201【1:2†eggs.pdf】 too.\ue206'
)
PLAIN = "Six minutes. See Eggs, omelette too."


def test_citation_marks_of_chatgpt_are_no_words(store: Store, tmp_path: Path) -> None:
    lines = [("m1", None, "user", "How \ue200 long?"), ("m2", "m1", "assistant", CITED), ("m3", "m2", "user", "Why?"),
             ("m4", "m3", "assistant", "\ue200cite\ue202turn0\ue201"), ("m5", "m3", "assistant", "Heat.")]  # fmt: skip
    summary = load(store, tmp_path, [chatgpt(lines)])
    assert set(answers(store)) == {PLAIN, "Heat."} and summary.left_out == {"citation": 7}
    assert answers(store)["Heat."].messages[1]["content"] == PLAIN
    assert answers(store)[PLAIN].messages[0]["content"] == "How \ue200 long?", "what a user wrote stays"


def test_chats_with_marks_that_an_older_version_stored_are_known_again(store: Store, tmp_path: Path) -> None:
    lines = [("m1", None, "user", "How long?"), ("m2", "m1", "assistant", CITED), ("m3", "m2", "user", "Why?"),
             ("m4", "m3", "assistant", "Heat.")]  # fmt: skip
    with Store.open(tmp_path / "new.db") as other:
        load(other, tmp_path, [chatgpt(lines, "m4")])
        for turn in other.rows(Turn):  # as it was stored then
            cited = tuple({**m, "content": CITED} if m["content"] == PLAIN else m for m in turn.messages)
            answer = {**turn.answer, "content": CITED} if turn.answer["content"] == PLAIN else turn.answer
            store.write(replace(turn, messages=cited, answer=answer))
    summary = load(store, tmp_path, [chatgpt(lines, "m4")])
    assert (summary.turns, summary.duplicates, summary.conflicts, store.count(Turn)) == (2, 2, 0, 2)


def test_errors_empty_answers_and_thoughts_are_left_out_and_counted(store: Store, tmp_path: Path) -> None:
    thought = '<details type="reasoning" done="true">\nhm\n</details>\nSix.'
    answers_to_m4 = [("m5", ""), ("m6", "Si"), ("m7", thought)]
    chat = open_webui([*EGGS[:4], *((key, "m4", "assistant", words) for key, words in answers_to_m4)], "m7")
    messages = chat["chat"]["history"]["messages"]
    messages["m5"]["error"] = {"content": "timeout"}
    messages["m6"]["done"] = False
    messages["m8"] = {"id": "m8", "parentId": "m7", "role": "narrator", "content": "The end."}
    messages["m9"] = None
    summary = load(store, tmp_path, [chat])
    assert summary.left_out == {"error": 1, "thoughts_and_tools": 1, "bad_message": 2}
    found = answers(store)
    assert set(found) == {"A while.", "Six minutes.", "Si", "Six."} and found["Si"].finish_reason == "aborted"


def test_thoughts_that_are_not_closed_stay_and_take_linear_time(store: Store, tmp_path: Path) -> None:
    begun = '<details type="reasoning"> hm '
    long = 'Six. <details type="reasoning" done="true">a</details>' + begun * 20_000
    started = time.process_time()
    load(store, tmp_path, [open_webui([*EGGS[:4], ("m5", "m4", "assistant", long)], "m5")])
    assert time.process_time() - started < 10  # 60 s when each beginning looked for its end
    assert f"Six. {(begun * 20_000).strip()}" in answers(store)


def test_newer_forms_of_librechat_and_claude(store: Store, tmp_path: Path) -> None:
    chat = librechat(EGGS[:2])
    chat["options"]["promptPrefix"] = "Be a cook."
    chat["messages"][1] |= {"text": "", "content": [{"type": "think", "think": "hm"},
                            {"type": "text", "text": {"value": "Six"}},
                            {"type": "text", "text": "minutes."}]}  # fmt: skip
    failed = {"messageId": "e", "parentMessageId": "m1", "isCreatedByUser": False, "text": "!", "error": True}
    chat["messages"].append(failed)
    other = claude(EGGS[:2], chat="c2")
    for message in other["chat_messages"]:
        del message["parent_message_uuid"]
    other["chat_messages"][0]["attachments"] = [{"file_name": "a.txt", "extracted_content": "The recipe."}]
    other["chat_messages"][1]["content"].insert(0, {"type": "thinking", "thinking": "hm"})
    first, second = load(store, tmp_path, [chat], name="a"), load(store, tmp_path, [other], name="b")
    assert first.left_out == {"think": 1, "error": 1} and second.left_out == {"thinking": 1}
    found = answers(store)
    assert found["Six\nminutes."].messages[0] == {"role": "system", "content": "Be a cook."}
    assert found["A while."].messages[0]["content"] == "How long do eggs boil?\n\nThe recipe."


def test_the_system_prompt_of_an_open_webui_chat(store: Store, tmp_path: Path) -> None:
    chat = open_webui()
    chat["chat"]["params"] = {"system": "You are a cook."}
    load(store, tmp_path, [chat])
    assert all(t.messages[0] == {"role": "system", "content": "You are a cook."} for t in store.rows(Turn))


def test_other_versions_of_the_exports(store: Store, tmp_path: Path) -> None:
    flat = open_webui(EGGS[:2])["chat"]  # the inner object alone, without a tree
    del flat["history"]
    for message in flat["messages"]:
        del message["parentId"]
    assert load(store, tmp_path, [{"chat": flat}], name="flat").turns == 1
    assert load(store, tmp_path, [open_webui()["chat"]], name="inner").turns == 3
    rows: list[Json] = [
        {"chat": {"history": None, "messages": None}}, {"chat": {"history": {"messages": {}}}}, {"mapping": None},
        {"mapping": {"a": 3}}, {"chat_messages": []}, {"conversationId": "c", "messages": []}, {"messagesTree": {}},
    ]  # fmt: skip
    for n, row in enumerate(rows):
        summary = load(store, tmp_path, [row], name=f"{n}.jsonl")
        assert sum(summary.rejected.values()) == 1 and summary.rejects, row


def test_parents_that_only_the_lists_of_children_name(store: Store, tmp_path: Path) -> None:
    one, two = open_webui(chat="c1"), chatgpt(chat="c2")
    for message in one["chat"]["history"]["messages"].values():
        del message["parentId"]
    for entry in two["mapping"].values():
        del entry["parent"]
    assert [load(store, tmp_path, [row], name=row["id"]).turns for row in (one, two)] == [3, 3]
    assert len(said(store)) == 2 and store.count(Feedback) == 4


def test_rows_with_keys_of_another_product_stay_what_they_are(store: Store, tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]
    rows: list[Json] = [
        {"conversationId": "c", "messages": talk}, {"conversation_id": "c", "id": "x", "rating": 5, "messages": talk},
    ]  # fmt: skip
    for n, row in enumerate(rows):
        summary = load(store, tmp_path, [row], name=f"{n}")
        assert (summary.format, summary.turns) == ("openai", 1)


def test_a_chat_that_is_nested_as_deep_as_it_is_long(store: Store, tmp_path: Path) -> None:
    lines = [(f"m{n}", f"m{n - 1}" if n else None, "assistant" if n % 2 else "user", f"Words {n}") for n in range(1500)]
    row = ""
    for message in reversed(librechat(lines)["messages"]):
        row = json.dumps({**message, "children": "@"}).replace('"@"', f"[{row}]")
    summary = load(store, tmp_path, f'{{"conversationId": "c1", "options": {{"model": "m"}}, "messagesTree": [{row}]}}')
    assert summary.turns == 750 and not summary.rejected
    assert load(store, tmp_path, [librechat(lines)], name="flat.jsonl").stored == 0


# ---- archives


def test_the_zip_file_that_a_product_sends(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "export.zip"
    down = {"message_id": "m2", "conversation_id": "c1", "user_id": "u", "rating": "thumbs_down",
            "content": json.dumps({"tags": ["not-helpful"], "text": ""})}  # fmt: skip
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("user.json", '{"id": "u", "email": "a@example.org"}')
        archive.writestr("conversations.json", json.dumps([chatgpt()]))
        archive.writestr("message_feedback.json", json.dumps([down]))
        archive.writestr("chat.html", "<html>")
    summary = import_file(store, path)
    assert (summary.format, summary.rows, summary.turns) == ("chatgpt", 2, 3) and not summary.rejected
    assert ("rating", "A while.", "Not helpful", None) in said(store)
    assert import_file(store, path).stored == 0


def test_zip_files_that_cannot_be_read(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "export.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("conversations.json", json.dumps([chatgpt(chat=f"c{n}") for n in range(200)]))
    data = bytearray(path.read_bytes())
    data[-400] ^= 0xFF  # a byte of the content: its checksum is wrong
    summary = import_file(store, write(tmp_path, bytes(data), "wrong.zip"))
    assert summary.turns > 400 and summary.rejected["broken_archive"] == 1
    small = write(tmp_path, bytes(data[:400] + data[-200:]), "small.zip")
    with pytest.raises(ValueError, match=r"truncated zip file|could be read"):
        import_file(store, small)
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(ValueError, match="holds no file named"):
        import_file(store, tmp_path / "none.zip")


def test_skips_say_why_a_vote_without_words_teaches_nothing(store: Store, tmp_path: Path) -> None:
    chat = open_webui(EGGS[:2], "m2")
    chat["chat"]["history"]["messages"]["m2"]["annotation"] = {"rating": -1, "reason": "other"}
    load(store, tmp_path, [chat])
    collect(store)
    assert [skip.reason for skip in store.rows(Skip)] == ["no_hindsight"]
