"""release publish, promote, rollback, status and releases verify, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.release.canary_users import Crowd, Habits, settle
from tests.release.conftest import write_adapter

from afterword.cli import main
from afterword.cli.releases import reading
from afterword.records import Candidate, Feedback, Report, Turn, Verdict
from afterword.store import Store
from afterword.store.files import folder_hash


def proved(home: Path, name: str, against: str | None) -> None:
    """A candidate that the gate passed."""
    folder = write_adapter(home / "adapters" / name, name.encode()[-1:])
    about = {"adapter_hash": folder_hash(folder)}
    with Store.open(home / "afterword.db") as store:
        store.write(
            Candidate(
                id=name, path=f"adapters/{name}", base="tiny", parent=against, interactions=(), recipe={"name": "x"}
            ),
            Report(id=f"rep-{name}", candidate=name, against=against, suites={}, about=about),
            Verdict(id=f"ver-{name}", candidate=name, report=f"rep-{name}", passed=True, reasons=("because",)),
        )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    proved(path, "cand-1", None)
    return path


def run(home: Path, capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    """The JSON of a command."""
    capsys.readouterr()
    assert main([*words, "--dir", str(home), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_canary_from_beginning_to_end(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(home, capsys, "release", "publish")["adapter"] == "afterword@v000001"
    proved(home, "cand-2", "cand-1")
    canary = run(home, capsys, "release", "publish", "--canary", "25%", "--set", "canary.horizon=50")
    assert (canary["action"], canary["share"], canary["terms"]["horizon"]) == ("canary", 0.25, 50)
    with Store.open(home / "afterword.db") as store:
        row = store.canary()
        assert row is not None
        settle(store, Crowd(row, Habits(0.6, 0.1), Habits(), "afterword@v000001").talk(80))
    status = run(home, capsys, "release", "status")["channels"]["default"]
    assert status["serves"] == "afterword@v000001" and status["canary"]["adapter"] == "afterword@v000002"
    assert status["canary"]["arms"]["candidate"]["turns"] + status["canary"]["arms"]["served"]["turns"] == 80
    assert {"approval", "errors", "latency"} <= status["canary"]["figures"].keys()
    assert [v["version"] for v in status["versions"]] == ["afterword@v000001", "base", "afterword@v000002"]
    assert main(["release", "status", "--dir", str(home)]) == 0
    assert "canary afterword@v000002 for 25 % of the users" in capsys.readouterr().out
    run(home, capsys, "release", "publish", "cand-2", code=1)
    up = run(home, capsys, "release", "promote", "--why", "I like it")
    assert (up["action"], up["adapter"], up["why"]) == ("promote", "afterword@v000002", "I like it")
    assert run(home, capsys, "release", "rollback")["adapter"] == "afterword@v000001"
    found = run(home, capsys, "releases", "verify")
    assert found["releases"] == 4 and found["problems"] == [] and found["serving"] == {"default": "afterword@v000001"}
    run(home, capsys, "release", "promote", code=4)


def test_the_share_comes_from_the_settings_when_none_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "afterword.toml").write_text("[canary]\nshare = 0.05\n", encoding="utf-8")
    assert run(home, capsys, "release", "publish", "--canary")["share"] == 0.05
    assert run(home, capsys, "release", "rollback")["adapter"] is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("release", "publish", "--canary", "150%"), "the share of users"),
        (("release", "publish", "--channel", "group:x"), "is not a channel"),
        (("release", "publish", "--set", "canary.alpha=2", "--canary"), "canary.alpha"),
        (("release", "publish", "--set", "drift.windo=2"), "Did you mean 'drift.window'"),
    ],
)
def test_what_cannot_be_is_said(
    home: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    assert says in run(home, capsys, *words, code=2)["error"]["message"]


def test_a_channel_of_its_own(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(home, capsys, "release", "publish", "--channel", "task:code")["channel"] == "task:code"
    status = run(home, capsys, "release", "status")["channels"]
    assert list(status) == ["task:code"]
    run(home, capsys, "release", "rollback", code=4)
    assert run(home, capsys, "release", "rollback", "--channel", "task:code")["adapter"] is None


def test_verify_names_a_changed_byte_and_fails(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(home, capsys, "release", "publish")
    weights = home / "adapters/cand-1/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    (problem,) = run(home, capsys, "releases", "verify", code=1)["problems"]
    assert "adapter_model.safetensors of afterword@v000001 was changed" in problem
    assert main(["releases", "verify", "--dir", str(home)]) == 1
    assert "not as they were released" in capsys.readouterr().out


def test_nothing_was_released_yet(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(home, capsys, "release", "status") == {"channels": {}}
    assert main(["release", "status", "--dir", str(home)]) == 0
    assert "nothing was released yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "more", "sign"),
    [
        ("follow_up", {"text": "Too long. One short sentence, please."}, -1), ("follow_up", {"text": "Thanks!"}, 1),
        ("edited", {"final_text": "The sky is blue."}, 1), ("edited", {"final_text": "It is grey."}, -1),
    ],
)  # fmt: skip
def test_words_are_read_by_the_detectors(kind: str, more: dict[str, Any], sign: int) -> None:
    turn = Turn(
        id="t", messages=({"role": "user", "content": "Sky?"},),
        answer={"role": "assistant", "content": "The sky is blue."},
    )  # fmt: skip
    assert reading(turn, Feedback(id="f", turn="t", kind=kind, **more)) == sign
