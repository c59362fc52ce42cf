"""`afterword agent train` with the built-in model: it serves, plays, trains, plays with the adapter, and is judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from afterword.records import Candidate, Interaction, Release, Report, Verdict
from afterword.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_rounds_with_the_built_in_model(tmp_path: Path) -> None:
    words = ["agent", "train", "sum", "--rounds", "2", "--episodes", "16", "--group", "8", "--heldout", "8", "--run",
             "r", "--json", "--recipe", "episode-grpo", "--set", 'evaluate.suites=["episodes"]', "--set",
             "evaluate.episodes=8", "--set", 'gate.required=["episodes"]']  # fmt: skip
    line = [sys.executable, "-m", "afterword", "--dir", str(tmp_path), *words]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 3), done.stderr[-3000:]
    shown = json.loads(done.stdout)
    trained = [row for row in shown["rows"] if row["step"] == "train" and row["candidate"]]
    assert trained and all(row["scored"] == 16 for row in trained)
    last = [row for row in shown["rows"] if row["step"] == "evaluate"][-1]
    assert last["versions"] == [f"afterword@{shown['candidate']['id']}"], "the trained adapter answered"
    with Store.open(tmp_path / "afterword.db") as store:
        made = {row.id: row for row in store.rows(Candidate)}
        assert [row["candidate"] for row in trained] == list(made)
        for row in made.values():
            assert (tmp_path / row.path / "adapter_model.safetensors").exists()
            assert all(store.get(Interaction, name).episode_id for name in row.interactions)
        assert [row.parent for row in made.values()] == [None, *list(made)[:-1]]
        report, verdict = store.newest(Report), store.newest(Verdict)
        assert report is not None and report.candidate == shown["candidate"]["id"]
        assert {"episodes"} == set(report.suites) and "error" not in report.suites["episodes"]
        assert verdict is not None and verdict.passed == (done.returncode == 0)
        assert list(store.rows(Release)) == []
    again = subprocess.run([*line, "--no-report"], capture_output=True, text=True, check=False)
    assert again.returncode == 0 and json.loads(again.stdout)["rows"] == shown["rows"], "a finished run repeats nothing"
