"""A data directory of version 0.1 (settings, rows of every kind, an adapter, a chain of releases) works with this one.

`tests/data/home-0.1.tar.xz` was written by `dev/make_old_home.py` with the code of commit 681aa4e.
"""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from afterword.cli import main
from afterword.records import FEEDBACK_KINDS, Candidate, Feedback, Release, Report, Turn, Verdict
from afterword.store import Store
from tests.serving import serving, until

PACKED = Path(__file__).parent / "data" / "home-0.1.tar.xz"
COUNTS = {"turns": 26, "feedback": 35, "interactions": 13, "skips": 15, "candidates": 1, "reports": 1, "releases": 5}
RECORD = {"model_version": "m", "task": "email", "prompt": "Write to Bob.", "draft": "Dear Bob,",
          "user_action": "edited", "user_edit": "Hi Bob,", "signal_weight": 0.8,
          "created_at": "2026-11-01T10:00:00Z"}  # fmt: skip
"""Sent to `POST /v1/feedback` of the old version, which gave it ids of its own."""
CHATS = (
    ("How tall is the Eiffel tower?", "I need the height in metres, nothing else."),
    ("What rhymes with orange?", "Too long; one word would have been enough."),
    ("Who wrote Faust?", "That is wrong, it was Goethe."),
    ("Name a prime above 90.", "No explanations, only the number, please."),
    ("Translate `house` into German.", "Please keep to German when I ask for German."),
    ("What is the boiling point of water?", "Give Celsius and not Fahrenheit."),
    ("List three rivers of France.", "As bullet points, please, not as a sentence."),
    ("How do I reverse a list in Python?", "Show code instead of prose."),
    ("When did the Berlin wall fall?", "Only the year is of interest to me."),
    ("What does HTTP stand for?", "Spell it out, and then stop."),
)
"""A question, and what its user would rather have had."""
pytestmark = pytest.mark.filterwarnings("ignore:.*is now called:FutureWarning")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory; its settings name the model beside it by a relative path."""
    with lzma.open(PACKED) as packed, tarfile.open(fileobj=packed) as tar:
        # As an attribute: the argument `filter` came with Python 3.11.4, and Debian 12 has 3.11.2.
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
        tar.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def run(home: Path, capsys: pytest.CaptureFixture[str], *words: str, codes: tuple[int, ...] = (0,)) -> Any:
    """The JSON of a command."""
    capsys.readouterr()
    code = main([*words, "--dir", str(home), "--json"])
    printed = capsys.readouterr()
    assert code in codes, printed.err
    return json.loads(printed.out)


def test_status_and_lists_show_what_is_there(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = run(home, capsys, "status")
    assert {name: status[name] for name in COUNTS} == COUNTS
    assert set(status["feedback_by_kind"]) == set(FEEDBACK_KINDS) - {"outcome"}  # which is younger
    for name in ("turns", "interactions", "candidates", "releases"):
        rows = run(home, capsys, name, "list")
        assert rows["total"] == COUNTS[name]
        assert run(home, capsys, name, "show", rows[name][0]["id"])
    assert run(home, capsys, "releases", "verify")["problems"] == []


def test_collect_decides_as_before_and_adds_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(home, capsys, "collect")
    status = run(home, capsys, "status")
    # Two questions that were asked again waited an hour for an accepted answer when the archive was made: it is over.
    assert {name: status[name] for name in COUNTS} == {**COUNTS, "skips": COUNTS["skips"] + 2}


def test_the_settings_file_is_read(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(FutureWarning, match="train.passes"):
        shown = run(home, capsys, "config", "show")
    text = json.dumps(shown)
    assert "tiny" in text and "0.4" in text  # serve.model, collect.holdout
    assert run(home, capsys, "train", "--dry-run", codes=(0, 4)) is not None


def test_releases_roll_back_to_the_base_and_are_signed_on(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = run(home, capsys, "status")
    release = run(home, capsys, "release", "rollback", "--why", "a test")
    assert release["action"] == "rollback" and release["adapter"] is None, before
    assert run(home, capsys, "releases", "verify")["problems"] == []


def test_a_stored_report_renders(home: Path) -> None:
    from afterword.evaluate.report.report_html import render_report

    with Store.open(home / "afterword.db") as store:
        report = next(store.rows(Report))
        verdict = next(store.rows(Verdict, report=report.id))
        page = render_report(store.get(Candidate, report.candidate), report, verdict)
    assert "holdout" in page and report.candidate in page


def test_exports_are_as_before_and_come_back(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for what, kind in (("turns", Turn), ("feedback", Feedback)):
        file = tmp_path / f"{what}.jsonl"
        assert run(home, capsys, "export", what, "--output", str(file))["rows"] == COUNTS[what]
        assert run(tmp_path / "copy", capsys, "import", str(file))["files"][0]["stored"] == COUNTS[what]
        with Store.open(home / "afterword.db") as old, Store.open(tmp_path / "copy" / "afterword.db") as copy:
            assert list(old.rows(kind)) == list(copy.rows(kind))
    assert run(home, capsys, "export", "interactions", "--format", "triples", "--output", str(tmp_path / "t"))["rows"]


def test_an_events_record_of_the_old_version_is_known_again(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(orjson.dumps(RECORD))
    (summary,) = run(home, capsys, "import", str(file))["files"]
    assert (summary["stored"], summary["duplicates"], summary["conflicts"]) == (0, 2, 0)


def test_a_user_is_forgotten(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run(home, capsys, "forget", "--user", "user-1")
    assert report["clean"] is True and report["adapters"]
    with Store.open(home / "afterword.db") as store:
        assert store.count(Turn, user="user-1") == 0 and store.count(Turn) > 0
        assert store.release() is None or store.release().adapter is None  # type: ignore[union-attr]


@pytest.mark.timeout(300)
def test_the_server_starts_in_it(home: Path) -> None:
    upstream = "http://127.0.0.1:9"  # nothing listens there: what is tested is the gateway over the old rows
    with serving(home, "--upstream", upstream) as server:
        health = httpx.get(f"{server.url}/health", timeout=30).json()
        assert health["store"]["held_feedback"] == 1
        assert httpx.get(f"{server.url}/health/live", timeout=30).status_code == 200
        again = httpx.post(f"{server.url}/v1/feedback", json=RECORD, timeout=30)
        assert again.json()["status"] == "duplicate"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_adapter_answers_and_a_cycle_goes_on(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.open(home / "afterword.db") as store, serving(home) as server:
        body = {"model": "afterword", "messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 4}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        until(lambda: store.find(Turn, answer.json()["id"]) is not None)  # late on a busy machine
        assert store.get(Turn, answer.json()["id"]).adapter == store.newest(Release).adapter  # type: ignore[union-attr]
        for number, (question, wish) in enumerate(CHATS):
            who = {"user": f"new-{number}", "metadata": {"conversation": f"n{number}"}}
            chat = [{"role": "user", "content": question}]
            sent = httpx.post(f"{server.url}/v1/chat/completions", json={**body, **who, "messages": chat}, timeout=60)
            event = {"turn": sent.json()["id"], "kind": "comment", "text": wish, "user": f"new-{number}"}
            httpx.post(f"{server.url}/v1/feedback", json=event, timeout=60).raise_for_status()
    run(home, capsys, "cycle", codes=(0, 3))
    with Store.open(home / "afterword.db") as store:
        assert store.count(Candidate) == 2 and store.count(Report) == 2
        newest = store.newest(Candidate)
        assert newest is not None and newest.parent == next(store.rows(Candidate)).id


def test_an_old_name_of_a_setting_is_told_in_a_sentence(home: Path) -> None:
    command = [sys.executable, "-m", "afterword", "--dir", str(home), "config", "show"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert said.startswith("afterword: train.passes") and "entry.py" not in said and "context.py" not in said
