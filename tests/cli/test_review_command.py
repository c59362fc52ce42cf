"""The command `review`, from list to agreement."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from afterword.cli import main
from afterword.records import Feedback, Interaction, Review, Turn
from afterword.store import Store

ALL = ["--set", "review.share=1.0"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    with Store.open(path / "afterword.db") as store:
        for n, said in ((1, "Shorter, please."), (2, "That is wrong, [red]six[/].")):
            store.write(
                Turn(id=f"t{n}", messages=({"role": "user", "content": f"How do I boil {n} eggs?"},),
                     answer={"role": "assistant", "content": f"Boil {n} for six minutes."}, user="ada"),
                Feedback(id=f"f{n}", turn=f"t{n}", kind="comment", text=said),
            )  # fmt: skip
    assert main(["collect", "--dir", str(path), "--quiet"]) == 0
    return path


def run(home: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["review", *words, "--dir", str(home), *ALL])
    return code, capsys.readouterr().out


def test_a_review_from_list_to_agreement(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(home, capsys, "list", "--json")
    waiting = json.loads(out)["waiting"]
    assert code == 0 and len(waiting) == 2
    code, out = run(home, capsys, "next")
    assert code == 0 and "boil 1 eggs" in out and "Shorter, please." in out and "constraint" in out
    assert run(home, capsys, "approve", waiting[0]["id"], "--by", "eve")[0] == 0
    assert run(home, capsys, "reject", waiting[1]["id"][:10], "--why", "quoted", "--by", "eve")[0] == 0
    assert run(home, capsys, "reject", waiting[1]["id"][:10], "--why", "quoted", "--by", "eve")[0] == 0
    with Store.open(home / "afterword.db") as store:
        assert [(r.decision, r.by, r.why) for r in store.rows(Review)] == [
            ("approve", "eve", ""), ("reject", "eve", "quoted"),
        ]  # fmt: skip
        kept = [*store.usable("train"), *store.usable("holdout")]
        assert [i.id for i in kept] == [waiting[0]["id"]] and store.count(Interaction) == 2
    capsys.readouterr()
    assert main(["status", "--json", "--dir", str(home)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["review"] == {"approved": 1, "rejected": 1, "agreement": 0.5}
    assert found["live"][0]["turns"] == 2 and found["live"][0]["correction"] == 1.0
    assert main(["status", "--by", "task", "--dir", str(home)]) == 0
    assert "post correction" in " ".join(capsys.readouterr().out.split())
    assert run(home, capsys, "next")[0] == 4, "nothing waits"
    assert run(home, capsys, "list")[0] == 0


def test_a_rejection_needs_its_reason_and_an_id_that_exists(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.open(home / "afterword.db") as store:
        name = next(store.rows(Interaction)).id
    assert run(home, capsys, "reject", name)[0] == 2
    assert run(home, capsys, "approve", "nothing")[0] == 2


def test_a_reviewer_may_think_again(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.open(home / "afterword.db") as store:
        name = next(store.rows(Interaction)).id
        for verb, why in (("reject", "no"), ("approve", ""), ("reject", "no")):
            assert run(home, capsys, verb, name, "--by", "eve", "--why", why)[0] == 0
        assert store.reviews()[name].decision == "reject" and store.count(Review) == 3
