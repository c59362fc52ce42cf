"""`afterword learn`: what is in the files is told before anything is trained, and nothing private leaves them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from afterword.cli import main
from afterword.feedback.examples import EXAMPLES
from afterword.records import Candidate, Report
from afterword.store import Store


def chat(number: int, remark: str) -> str:
    messages = [
        {"role": "user", "content": f"Tell me about river {number}, I am anna.berg@example.org."},
        {"role": "assistant", "content": f"River {number} is long and wide and it flows from the hills to the sea."},
        {"role": "user", "content": remark},
    ]
    return json.dumps({"messages": messages})


def test_a_page_says_what_is_in_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["learn", str(EXAMPLES), "--look", "--dir", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["found"]
    assert (found["turns"], found["users"], found["feedback"]) == (48, 4, {"follow_up": 48})
    assert found["usable"] + found["held_out"] + sum(found["skipped"].values()) == 48 and found["usable"] > 12
    assert {one["category"] for one in found["said"]} >= {"constraint", "complaint"}
    page = (tmp_path / "learn.html").read_text()
    assert "Be short, please." in page and "off_topic" in page
    with Store.open(tmp_path / "afterword.db") as store:
        assert store.count(Candidate) == 0


def test_examples_hold_no_private_data_and_markup_stays_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text("\n".join(chat(i, f"Shorter please <b>{i}</b>, or mail ben@example.org") for i in range(3)))
    assert main(["learn", str(file), "--look", "--dir", str(tmp_path / "data")]) == 0
    shown = capsys.readouterr()
    page = (tmp_path / "data" / "learn.html").read_text()
    for text in (page, shown.out, shown.err):
        assert "@example.org" not in text
    assert "&lt;b&gt;" in page and "<b>0" not in page
    assert "email" in page


def test_files_without_feedback_are_nothing_to_learn_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text(
        json.dumps({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]})
    )
    assert main(["learn", str(file), "--dir", str(tmp_path / "data")]) == 4
    assert "nothing in 1 files can be trained" in capsys.readouterr().err
    assert main(["learn", str(tmp_path / "missing.jsonl"), "--dir", str(tmp_path / "data")]) == 2


@pytest.mark.slow
def test_from_a_file_to_a_judged_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["learn", str(EXAMPLES), "--dir", str(tmp_path), "--json", "--set", "forecast.before_cycle=false"])
    found = json.loads(capsys.readouterr().out)
    assert code in (0, 3) and found["verdict"]["passed"] is (code == 0)
    with Store.open(tmp_path / "afterword.db") as store:
        (candidate,) = store.rows(Candidate)
        assert store.count(Report) == 1 and (tmp_path / candidate.path / "adapter_model.safetensors").is_file()
