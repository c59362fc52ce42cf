"""`afterword evaluate` as a user meets it: nothing held out, one suite alone, a name that is none, the page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.evaluate.conftest import make_adapter
from tests.train.tiny_model import tiny_folder

from afterword.cli import main
from afterword.records import Candidate, Interaction, Report, Turn, Verdict
from afterword.store import Store


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A data directory with a candidate on a tiny base and no held-out interaction yet."""
    path, base = tmp_path / "data", tiny_folder(tmp_path / "base", context=1024)
    make_adapter(base, path / "adapters/cand-1", size=0.02)
    (path / "afterword.toml").write_text(f"[serve]\nmodel = {json.dumps(base)}\n", encoding="utf-8")
    with Store.open(path / "afterword.db") as store:
        store.write(Candidate(id="cand-1", path="adapters/cand-1", base=base, parent=None, interactions=(), recipe={}))
    return path


def _hold_out(home: Path) -> None:
    with Store.open(home / "afterword.db") as store:
        for i in range(4):
            turn = Turn(id=f"t{i}", messages=({"role": "user", "content": f"What is {i}?"},), answer={"content": "It."})
            store.write(turn, Interaction(
                id=f"i{i}", turn=turn.id, feedback=(), kind="follow_up", hindsight="Shorter.", polarity=-1, weight=1.0,
                split="holdout",
            ))  # fmt: skip


def test_nothing_held_out_is_said_before_a_server_is_started(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--dir", str(home)]) == 4
    assert "no interaction is held out" in capsys.readouterr().err
    _hold_out(home)
    assert main(["evaluate", "--dir", str(home), "--suite", "speed"]) == 2
    assert "the suites are holdout" in capsys.readouterr().err
    assert main(["evaluate", "--dir", str(home), "--suite", "collapse", "--html", str(home / "x.html")]) == 2
    assert not (home / "logs").exists()


def test_one_suite_alone_is_shown_and_is_no_verdict(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _hold_out(home)
    assert main(["evaluate", "--dir", str(home), "--suite", "forgetting", "--suite", "earlier-wins"]) == 0
    shown = capsys.readouterr().out
    assert "bounds of these suites pass" in shown and "Drift from the base: " in shown
    assert main(["evaluate", "--dir", str(home), "--suite", "earlier-wins", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["report"]["suites"]) == ["earlier-wins"]
    with Store.open(home / "afterword.db") as store:
        assert store.count(Report) == 2 and store.count(Verdict) == 0


def test_the_whole_report_has_a_verdict_and_a_page(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _hold_out(home)
    assert main(["evaluate", "--dir", str(home), "--html", str(home / "page.html")]) == 3
    shown = capsys.readouterr().out
    assert "Held-out interactions compared: 4, at least 12 required: no" in shown
    page = (home / "page.html").read_text("utf-8")
    assert "The gate says no" in page and "Changed beyond chance" in page
    shutil.rmtree(home / "adapters")
    assert main(["evaluate", "--dir", str(home)]) == 2
    assert "moved or deleted" in capsys.readouterr().err
