"""What goes wrong between a candidate and its users, as the one who types the commands meets it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.cli.test_release_commands import proved
from tests.evaluate.conftest import make_adapter
from tests.evaluate.test_judge import judging
from tests.train.tiny_model import tiny_folder

from afterword.cli import main
from afterword.evaluate.comparison.comparison import Comparison, Findings
from afterword.evaluate.suites import SUITES
from afterword.records import Candidate, Interaction, Release, Report, Turn, Verdict
from afterword.store import Store


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base with a candidate and sixteen held-out interactions."""
    home = tmp_path_factory.mktemp("faults") / "data"
    base = tiny_folder(tmp_path_factory.mktemp("base"), context=1024)
    make_adapter(base, home / "adapters/cand-1", size=0.02)
    settings = f'[serve]\nmodel = {json.dumps(base)}\n[evaluate]\nsuites = ["holdout"]\nmax_tokens = 8\n'
    (home / "afterword.toml").write_text(settings, encoding="utf-8")
    with Store.open(home / "afterword.db") as store:
        store.write(Candidate(id="cand-1", path="adapters/cand-1", base=base, parent=None, interactions=(), recipe={}))
        for i in range(16):
            turn = Turn(id=f"t{i}", messages=({"role": "user", "content": f"What is {i}?"},), answer={"content": "It."})
            store.write(turn, Interaction(
                id=f"i{i}", turn=turn.id, feedback=(), kind="follow_up", hindsight="Shorter.", polarity=-1, weight=1.0,
                split="holdout",
            ))  # fmt: skip
    return home


def run(home: Path, capsys: pytest.CaptureFixture[str], *words: str, code: int) -> dict[str, Any]:
    """The JSON of a command that ends with this code."""
    capsys.readouterr()
    got = main([*words, "--dir", str(home), "--json"])
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert got == code, data
    return data


def undecided(data: dict[str, Any]) -> bool:
    """Does the verdict say that the judge left too much open? (Answers that are alike are a tie without asking.)"""
    share = data["report"]["suites"]["holdout"]["judge_failed"]["value"]
    return share > 0.5 and any(
        r.startswith("Pairs that the judge left undecided") and r.endswith(": no") for r in data["verdict"]["reasons"]
    )


JUDGES = {
    "talks": lambda question: "Well, both have their merits",
    "looks at the place": lambda question: "A",
    "contradicts itself by chance": lambda question: "B" if len(question) % 2 else "A",
}


@pytest.mark.parametrize("name", JUDGES)
def test_a_judge_that_cannot_be_trusted_never_lets_a_candidate_through(
    measured: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with judging(JUDGES[name]) as (url, asked):
        data = run(measured, capsys, "evaluate", "--set", f"evaluate.judge={url}", code=3)
    found = data["report"]["suites"]["holdout"]
    assert asked and "error" not in found
    if name == "talks":
        assert undecided(data)
    if name == "looks at the place":
        assert found["judge"]["value"] == 0.0 and found["judge_bias"]["value"] > 0.5


def test_a_judge_that_hangs_is_given_up(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import threading

    done = threading.Event()
    with judging(lambda question: str(done.wait(30))) as (url, _):
        settings = ("--set", f"evaluate.judge={url}", "--set", "evaluate.judge_timeout=0.2")
        data = run(measured, capsys, "evaluate", *settings, code=3)
        done.set()
    assert undecided(data)


def test_a_suite_that_fails_midway_is_a_no_that_says_why(
    measured: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(comparison: Comparison) -> Findings:
        assert comparison.answers["candidate"]
        raise RuntimeError("the disk is full")

    monkeypatch.setitem(SUITES, "collapse", breaks)
    settings = ("--set", 'evaluate.suites=["holdout", "collapse", "earlier-wins"]')
    data = run(measured, capsys, "evaluate", *settings, code=3)
    assert data["report"]["suites"]["collapse"] == {"error": "RuntimeError: the disk is full"}
    assert "wins" in data["report"]["suites"]["earlier-wins"]  # the rest went on
    assert any("collapse: failed (RuntimeError: the disk is full)" in r for r in data["verdict"]["reasons"])
    assert "the gate rejected" in run(measured, capsys, "release", "publish", code=3)["error"]["message"]


def test_a_folder_that_changed_after_its_report_is_not_released(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "data"
    proved(home, "cand-1", None)
    config = home / "adapters/cand-1/adapter_config.json"
    config.write_text(config.read_text("utf-8") + " ", encoding="utf-8")
    assert "changed after it was measured" in run(home, capsys, "release", "publish", code=2)["error"]["message"]
    with Store.open(home / "afterword.db") as store:
        assert store.count(Release) == 0


def test_of_two_releases_at_once_one_wins(tmp_path: Path) -> None:
    home = tmp_path / "data"
    proved(home, "cand-1", None)
    proved(home, "cand-2", None)
    line = [sys.executable, "-m", "afterword", "release", "publish", "--dir", str(home), "--json"]
    both = [subprocess.Popen([*line, name], stdout=subprocess.PIPE, text=True) for name in ("cand-1", "cand-2")]
    said = [json.loads(one.communicate(timeout=120)[0]) for one in both]
    assert sorted(one.returncode for one in both) == [0, 1]
    (error,) = [data["error"]["message"] for data in said if "error" in data]
    assert "another release came in between. Evaluate it again" in error
    with Store.open(home / "afterword.db") as store:
        assert store.count(Release) == 1


def test_a_kill_between_verdict_and_release_leaves_what_was_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "data"
    proved(home, "cand-1", None)
    run(home, capsys, "release", "publish", code=0)
    proved(home, "cand-2", "cand-1")
    code = (
        "import os, sys\n"
        "from afterword.release import publish\n"
        "publish.manifest_of = lambda *_: os.kill(os.getpid(), 9)\n"
        "from afterword.cli import main\n"
        f"main(['release', 'publish', 'cand-2', '--dir', {str(home)!r}])\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == -9
    status = run(home, capsys, "release", "status", code=0)["channels"]["default"]
    assert status["serves"] == "afterword@v000001"
    assert run(home, capsys, "releases", "verify", code=0)["problems"] == []
    assert run(home, capsys, "release", "publish", "cand-2", code=0)["adapter"] == "afterword@v000002"


def test_a_rollback_to_files_that_are_gone_says_where_to_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "data"
    proved(home, "cand-1", None)
    run(home, capsys, "release", "publish", code=0)
    proved(home, "cand-2", "cand-1")
    run(home, capsys, "release", "publish", "cand-2", code=0)
    shutil.rmtree(home / "adapters/cand-1")
    message = run(home, capsys, "release", "rollback", code=2)["error"]["message"]
    assert "cannot roll back to afterword@v000001" in message and "--to base" in message
    assert run(home, capsys, "release", "rollback", "--to", "base", code=0)["adapter"] is None
    with Store.open(home / "afterword.db") as store:
        assert [row.action for row in store.rows(Release)] == ["publish", "publish", "rollback"]
        assert all(store.find(Report, v.report) for v in store.rows(Verdict))
        assert all(row.why and row.manifest for row in store.rows(Release))


def test_what_is_served_already_is_said_before_a_server_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "data"
    proved(home, "cand-1", None)
    run(home, capsys, "release", "publish", code=0)
    assert "serves cand-1 already" in run(home, capsys, "evaluate", code=4)["error"]["message"]
    assert not (home / "logs").exists()
