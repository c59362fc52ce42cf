"""A bare `afterword`: the next step for each state of the data directory, fast, and without torch or detectors."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from afterword.cli import main
from afterword.cli.server_state import announce, owned
from afterword.records import Candidate, Feedback, Interaction, Release, Report, Turn, Verdict
from afterword.store import Store
from afterword.store.locks import WATCH, alone

HEAVY = ("torch", "transformers", "numpy", "aiohttp", "openai", "afterword.feedback.text.guards")
TURN = Turn(id="t1", messages=({"role": "user", "content": "Why?"},), answer={"role": "assistant", "content": "So."})
SAID = Feedback(id="f1", turn="t1", kind="follow_up", text="Shorter, please.", user="ada")


def steps(home: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Commands that are proposed, in order, without the folder."""
    assert main(["--dir", str(home), "--json"]) == 0
    found = [str(step["command"]) for step in json.loads(capsys.readouterr().out)["steps"]]
    return [command.replace(f" --dir {home}", "").removeprefix("afterword ") for command in found]


def interactions(number: int) -> list[Interaction]:
    return [
        Interaction(
            id=f"i{n}", turn="t1", kind="follow_up", category="style", polarity=-1, hindsight="Shorter.",
            confidence=0.9, weight=1.0, feedback=("f1",), split="train",
        )
        for n in range(number)
    ]  # fmt: skip


def test_without_a_folder_it_says_how_to_begin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert steps(tmp_path / "none", capsys) == ["serve", "demo --quick", "import FILE"]
    assert main(["--dir", str(tmp_path / "none")]) == 0
    assert "Next: there is no data in this place yet" in capsys.readouterr().out
    assert not (tmp_path / "none").exists(), "looking creates nothing"


def test_each_state_has_its_next_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "afterword.toml").write_text("[review]\nshare = 0.0\nstrange = 0.0\n", "utf-8")
    with Store.open(tmp_path / "afterword.db") as store:
        assert steps(tmp_path, capsys)[0] == "serve"
        with owned(tmp_path):
            announce(tmp_path, {"url": "http://127.0.0.1:1"})
            assert steps(tmp_path, capsys) == ["http://127.0.0.1:1/chat"]
        store.write(TURN)
        assert steps(tmp_path, capsys) == ["serve"], "turns without feedback"
        store.write(SAID)
        assert steps(tmp_path, capsys) == ["collect", "serve"]
        store.write(*interactions(3))
        assert steps(tmp_path, capsys) == ["cycle --watch", "serve"], "a training needs 8"
        store.write(*interactions(9))
        assert steps(tmp_path, capsys) == ["cycle", "serve"]
        with alone(tmp_path, WATCH, "cycle --watch"):
            assert steps(tmp_path, capsys) == ["status", "serve"], "a watch runs"
        with alone(tmp_path, "cycle-1", "a cycle"):
            assert steps(tmp_path, capsys) == ["serve"], "a cycle runs"
        (tmp_path / "afterword.toml").write_text("[review]\nshare = 1.0\n", "utf-8")
        assert steps(tmp_path, capsys) == ["cycle", "review next", "serve"]
        (tmp_path / "afterword.toml").unlink()


def test_candidates_wait_for_their_evaluation_and_their_release(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store.open(tmp_path / "afterword.db") as store:
        store.write(TURN, SAID, *interactions(9))
        store.write(Candidate(id="c1", path="adapters/c1", base="b", parent=None, interactions=(), recipe={}))
        assert steps(tmp_path, capsys)[0] == "evaluate"
        store.write(Report(id="r1", candidate="c1", against=None, suites={}))
        store.write(Verdict(id="v1", report="r1", candidate="c1", passed=True, reasons=()))
        assert steps(tmp_path, capsys)[0] == "release publish"
        store.write(
            Release(id="x1", channel="default", adapter="afterword@v000001", path="adapters/c1", previous=None,
                    candidate="c1", verdict="v1", action="canary", why="")
        )  # fmt: skip
        assert steps(tmp_path, capsys)[0] == "release status"


def test_a_database_of_a_newer_version_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store.open(tmp_path / "afterword.db").close()
    with sqlite3.connect(tmp_path / "afterword.db") as newer:
        newer.execute("PRAGMA user_version = 9999")
    newer.close()
    assert main(["--dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "newer" in said and "doctor" in said


def test_it_is_fast_and_imports_nothing_heavy(tmp_path: Path) -> None:
    with Store.open(tmp_path / "afterword.db") as store:
        store.write(TURN, SAID, *interactions(9))
    code = (
        f"import sys, resource; from afterword.cli import main; main(['--dir', {str(tmp_path)!r}, '--json'])\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        f"print([n for n in {HEAVY!r} if n in sys.modules], used.ru_utime + used.ru_stime)"
    )
    last = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()[
        -1
    ]
    assert last.startswith("[] "), last
    assert float(last.split()[1]) < 1.0, "CPU seconds; 0.3 on an idle core"
