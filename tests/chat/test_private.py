"""Turns and feedback without private data on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from afterword.chat.private import WHY, redactor, without_private
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
