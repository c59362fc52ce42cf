"""Turns and feedback without private data on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from afterword.chat.private import WHY, clean_text, redactor, without_private
from afterword.cli import main
from afterword.errors import ConfigError
from afterword.records import Feedback, Record, Skip, Turn
from afterword.store import Store

MAIL = "ana.reis@example.com"


def turn(answer: Any = "Fine.", asked: Any = "How?") -> Turn:
    return Turn(
        id="t1", messages=({"role": "user", "content": asked},), answer={"role": "assistant", "content": answer},
        prompt_ids=(1, 2), completion_ids=(3,), logprobs=(-0.5,), user="ada",
    )  # fmt: skip


def test_what_holds_nothing_private_stays_as_it_is() -> None:
    rows: list[Record] = [turn(), Feedback(id="f", turn="t1", kind="comment", text="Shorter."),
                          Skip(id="s", feedback="f", turn="t1", reason="off", detail=MAIL)]  # fmt: skip
    assert all(without_private(row, "rules") is row for row in rows)
    assert redactor("off") is None
    with pytest.raises(ConfigError):
        redactor("loud")


@pytest.mark.parametrize(
    "made",
    [turn(asked=f"Write to {MAIL}"), turn(f"Write to {MAIL}"), turn([{"type": "text", "text": f"To {MAIL}"}]),
     Turn(id="t1", messages=(), prompt_ids=(1,), completion_ids=(2,), answer={"role": "assistant", "tool_calls": [
         {"id": "c", "type": "function", "function": {"name": "mail", "arguments": json.dumps({"to": MAIL})}}]})],
)  # fmt: skip
def test_a_redacted_turn_gives_up_its_ids(made: Turn) -> None:
    found = without_private(made, "rules")
    assert isinstance(found, Turn) and MAIL not in json.dumps(found.to_dict()) and "[EMAIL]" in str(found.to_dict())
    assert not found.on_policy and found.logprobs is None and found.missing_ids == WHY
    assert (found.id, found.user) == (made.id, made.user) and without_private(found, "rules") is found


def test_feedback_is_redacted_wherever_it_has_words() -> None:
    row = Feedback(id="f", turn="t1", kind="edited", text=MAIL, final_text=f"To {MAIL}.", output=f"sent to {MAIL}")
    found = without_private(row, "rules")
    assert isinstance(found, Feedback)
    assert (found.text, found.final_text, found.output) == ("[EMAIL]", "To [EMAIL].", "sent to [EMAIL]")


def test_metadata_is_redacted_but_for_what_names_whose_it_is() -> None:
    said = {"note": f"call {MAIL}", "deep": [{"x": MAIL}], "user": MAIL, "train": False}
    found = without_private(Feedback(id="f", turn="t1", kind="accepted", metadata=said), "rules")
    assert isinstance(found, Feedback)
    assert found.metadata == {"note": "call [EMAIL]", "deep": [{"x": "[EMAIL]"}], "user": MAIL, "train": False}


def test_rejected_rows_are_redacted_too(tmp_path: Path) -> None:
    rows = [{"prompt": f"Hi\n{MAIL}", "draft": "So.", "user_action": f"hugged {MAIL}"}, {"prompt": 1, "draft": "x"}]
    file = tmp_path / "log.jsonl"
    file.write_text("\n".join([*map(json.dumps, rows), '{"prompt": "' + MAIL]), encoding="utf-8")
    home = tmp_path / "data"
    command = ["import", str(file), "--dir", str(home), "--quiet", "--set", "privacy.redact_stored=rules"]
    assert main([*command, "--format", "events"]) == 2
    lines = (home / "rejects" / "log.jsonl.jsonl").read_text(encoding="utf-8")
    assert MAIL not in lines and len(lines.splitlines()) == 3
    first = json.loads(lines.splitlines()[0])
    assert json.loads(first["row"])["prompt"] == "Hi\n[EMAIL]" and "[EMAIL]" in first["detail"]


def test_nothing_private_comes_to_disk_by_an_import(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    said = [("user", f"I am {MAIL}"), ("assistant", f"Hello {MAIL}"), ("user", f"No, use {MAIL}")]
    file.write_text(json.dumps({"messages": [{"role": r, "content": c} for r, c in said]}), encoding="utf-8")
    home = tmp_path / "data"
    command = ["import", str(file), "--dir", str(home), "--quiet", "--set", "privacy.redact_stored=rules"]
    assert main(command) == 0 == main(command)  # the second time everything is a duplicate
    with Store.open(home / "afterword.db") as store:
        (row,) = store.rows(Turn)
        assert row.answer["content"] == "Hello [EMAIL]" and store.count(Feedback) == 1
    assert all(MAIL.encode() not in path.read_bytes() for path in home.rglob("*") if path.is_file())


def call(arguments: Any) -> dict[str, Any]:
    made = {"id": "c", "type": "function", "function": {"name": "send", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [made]}


@pytest.mark.parametrize(
    "arguments",
    [{"to": MAIL}, json.dumps({"to": MAIL}), '{"to": "Ana \\u003cana.reis\\u0040example.com\\u003e"}',
     json.dumps({"body": f"Hello,\n{MAIL}\nBye", "n": 3}), {"deep": [{"more": {"cc": [MAIL]}}]},
     json.dumps({"inner": json.dumps({"to": MAIL})}), {"name": MAIL, "id": MAIL, "type": MAIL}],
)  # fmt: skip
def test_tool_arguments_lose_private_data_and_stay_what_they_were(arguments: Any) -> None:
    found = without_private(Turn(id="t", messages=(call(arguments),), answer=call(arguments)), "rules")
    assert isinstance(found, Turn)
    for message in (*found.messages, found.answer):
        left = message["tool_calls"][0]["function"]["arguments"]
        assert isinstance(left, type(arguments)) and "reis" not in json.dumps(left)
        assert "[EMAIL]" in json.dumps(json.loads(left) if isinstance(left, str) else left)
    assert without_private(found, "rules") is found


def test_names_of_fields_say_what_a_value_is() -> None:
    said = {"password": "correct-horse", "api_key": "q7ZvT2bXw9LrZk4HsPd8", "phone": 4915123456789,
            "passport_no": "C3894055", "env": [{"name": "DB_PASSWORD", "value": "kettle9"}], "card": 4111111111111111,
            "args": ["-h", "db", "--password", "kettle9", "-v"], "pin": 4711, "half": "\ud800", "pages": 4711,
            "created": 1732960921, "type": "password", "city": "Lisbon", "max_tokens": 4096}  # fmt: skip
    text = clean_text(json.dumps(said), "rules")
    left = json.loads(text)
    assert text.isascii()  # as it was: no half of a surrogate pair that could not be stored
    assert left == said | {"password": "[SECRET]", "api_key": "[SECRET]", "phone": "[PHONE]", "passport_no": "[ID]",
                           "env": [{"name": "DB_PASSWORD", "value": "[SECRET]"}], "card": "[CARD]",
                           "args": ["-h", "db", "--password", "[SECRET]", "-v"], "pin": "[SECRET]"}  # fmt: skip


@pytest.mark.parametrize(
    "message",
    [{"role": "tool", "tool_call_id": "c", "content": json.dumps({"sent": True, "to": MAIL})},
     {"role": "assistant", "content": "", "function_call": {"name": "send", "arguments": json.dumps({"to": MAIL})}},
     {"role": "assistant", "content": "x", "reasoning_content": f"She is {MAIL}"},
     {"role": "assistant", "content": "x", "reasoning": f"She is {MAIL}"},
     {"role": "assistant", "content": [{"type": "thinking", "thinking": MAIL}, {"type": "text", "text": "x"}]},
     {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "send", "input": {"name": MAIL}}]},
     {"role": "user", "content": [{"type": "tool_result", "content": [{"type": "text", "text": MAIL}]}]},
     {"role": "user", "content": [{"type": "input_text", "text": MAIL}]}],
)  # fmt: skip
def test_whatever_holds_words_is_read(message: dict[str, Any]) -> None:
    found = without_private(Turn(id="t", messages=(message,), answer={"role": "assistant", "content": "y"}), "rules")
    assert (
        isinstance(found, Turn) and MAIL not in json.dumps(found.to_dict()) and "[EMAIL]" in json.dumps(found.to_dict())
    )
    (left,) = found.messages
    assert left["role"] == message["role"] and left.get("tool_call_id") == message.get("tool_call_id")


def test_tool_definitions_and_pictures() -> None:
    fields = {"type": "object", "properties": {"password": {"type": "string", "description": "The password."}}}
    made_by = {"name": "send", "description": f"Mail, as from {MAIL}", "parameters": fields}
    tools = ({"type": "function", "function": made_by},)
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0KGgo4AAQ" * 40}}
    made = Turn(id="t", messages=({"role": "user", "content": [picture]},), answer={"role": "assistant"}, tools=tools,
                prompt_ids=(1,), completion_ids=(2,))  # fmt: skip
    found = without_private(made, "rules")
    assert isinstance(found, Turn) and found.tools is not None and not found.on_policy
    assert found.tools[0]["function"]["description"] == "Mail, as from [EMAIL]"
    assert found.tools[0]["function"]["parameters"] == fields
    assert found.messages == made.messages


def test_an_object_of_any_depth_is_read() -> None:
    deep: Any = MAIL
    for _ in range(900):
        deep = {"a": deep}
    found = without_private(Turn(id="t", messages=(call(deep),), answer={"role": "assistant"}), "rules")
    assert isinstance(found, Turn) and MAIL not in str(found.messages)


@pytest.mark.parametrize(
    ("arguments", "private"),
    [
        ({"to": ["ana@firma.local"], "cc": "Bo <bo@example.com>"}, ("ana@firma", "bo@ex")),
        ({"headers": {"Authorization": "Bearer abcDEF123456ghi"}, "url": "https://u:pw4x@h/"}, ("abcDEF123", "pw4x")),
        ({"command": "curl -u bob:pw4curl https://x && export DB_PASS=hunter22"}, ("pw4curl", "hunter22")),
        ({"cmd": ["psql", "-h", "x", "--password=pw4psql"]}, ("pw4psql",)),
        ({"path": ".env", "content": "A=1\nSECRET_KEY=abcDEF123456ghi\n"}, ("abcDEF123",)),
        ({"query": "SELECT 1 FROM u WHERE mail='ana@example.com' AND tel='+49 170 1234567'"}, ("ana@", "1234567")),
        ({"contact": {"name": "Ana", "mobile": "0170 1234567", "born": "1990-01-01"}}, ("1234567",)),
        ({"text": "我的手机号是13912345678，邮箱li@example.cn"}, ("13912345678", "li@")),
        ({"body": '{"password": "pw4inner", "mail": "x@example.com"}'}, ("pw4inner", "x@ex")),
    ],
)
def test_what_agents_pass_to_tools(arguments: dict[str, Any], private: tuple[str, ...]) -> None:
    for form in (arguments, json.dumps(arguments), json.dumps(arguments).replace("@", "\\u0040")):
        found = without_private(Turn(id="t", messages=(call(form),), answer={"role": "assistant"}), "rules")
        assert isinstance(found, Turn)
        left = found.messages[0]["tool_calls"][0]["function"]["arguments"]
        value = json.loads(left) if isinstance(left, str) else left
        assert value.keys() == arguments.keys()
        assert not [one for one in private if one in json.dumps(value, ensure_ascii=False)]
