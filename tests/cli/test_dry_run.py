"""`afterword train --dry-run`: what would be learned, whose it is, and what is left out, without a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from afterword.cli import main
from afterword.feedback import collect
from afterword.feedback.settings import CollectSettings
from afterword.records import Feedback, Turn
from afterword.store import Store


def test_the_choice_is_shown_and_nothing_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = [("loud", f"That's wrong, it was number {n}.") for n in range(14)]
    said += [(f"u{n}", f"No, I asked for {n} items.") for n in range(6)]
    said += [("u1", "Shorter, please."), ("u2", "Longer, please."), ("loud", "From now on always answer in French.")]
    with Store.open(tmp_path / "afterword.db") as store:
        for n, (user, text) in enumerate(said):
            asked = ({"role": "user", "content": f"What is {n} plus {n * 3}?"},)
            answer = {"role": "assistant", "content": f"It is {n * 7} {'ab' * n}."}
            store.write(
                Turn(id=f"t{n}", messages=asked, answer=answer, user=user, task="sums", finish_reason="stop"),
                Feedback(id=f"f{n}", turn=f"t{n}", kind="follow_up", text=text, user=user),
            )
        collect(store, CollectSettings(holdout=0.0))
    command = ["train", "--dry-run", "--dir", str(tmp_path)]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (one,) = found["slices"]
    assert one["task"] == "sums" and max(one["influence"].values()) == one["influence"]["loud"] <= 0.2501
    assert found["left"]["own_wish"] == 1 and found["off_policy"] == found["interactions"] == one["interactions"]
    assert found["contradictions"] == [{"task": "sums", "axis": "length", "less": 1, "more": 1, "followed": 0}]
    assert found["recipe"]["name"] == "follow-ups"
    assert main([*command, "--set", "train.options.beyond=0.5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["terms"][0]["target"]["scale"] == 1.5
    assert main([*command, "--set", "train.options.beyond=0.5"]) == 0
    shown = capsys.readouterr()
    assert "recipe follow-ups, beyond = 0.5" in shown.out
    assert "loud 25%" in shown.out and "own_wish" in shown.out and "neither" in shown.out
    assert "--off-policy" in shown.err and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", [["train", "--dry-run"], ["train"], ["cycle"], ["cycle", "--watch"]])
def test_a_recipe_that_cannot_be_trained_is_told_at_once(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Store.open(tmp_path / "afterword.db").close()
    for option, says in (("beyon=0.25", "did you mean 'beyond'"), ("teacher=average:2", "Average.rate=2 must be")):
        assert main([*command, "--dir", str(tmp_path), "--set", f"train.options.{option}"]) == 2
        assert says in capsys.readouterr().err
