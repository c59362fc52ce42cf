"""`afterword train --dry-run`: what would be learned, whose it is, and what is left out: it encodes as the run does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.train.tiny_model import TEMPLATE, example, tiny_folder

from afterword.cli import main
from afterword.feedback.collect.collect import collect
from afterword.feedback.settings import CollectSettings
from afterword.model.generation.text import Codec
from afterword.model.loading import load_tokenizer
from afterword.records import Feedback, Release, Report, Turn, Verdict
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
    for option, says in (("beyon=0.25", "did you mean 'beyond'"), ("teacher=ema:2", "EMA.rate=2 must be")):
        assert main([*command, "--dir", str(tmp_path), "--set", f"train.options.{option}"]) == 2
        assert says in capsys.readouterr().err


def test_what_would_be_refused_is_not_promised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.open(tmp_path / "afterword.db") as store:
        for n in range(2):
            asked = ({"role": "user", "content": f"What is {n} plus {n * 3}?"},)
            answer = {"role": "assistant", "content": f"It is {n * 7} {'ab' * n}."}
            store.write(
                Turn(id=f"t{n}", messages=asked, answer=answer, user="ada", finish_reason="stop"),
                Feedback(id=f"f{n}", turn=f"t{n}", kind="follow_up", text=f"No, I asked for {n}.", user="ada"),
            )
        collect(store, CollectSettings(holdout=0.0))
    where = ["--dir", str(tmp_path)]
    for flags, waiting in (([], 0), (["--off-policy"], 2)):
        says = f"nothing would be trained: {waiting} interactions wait to be learned, train.min_interactions is 8"
        assert main(["train", "--dry-run", *flags, *where]) == 0
        shown = capsys.readouterr()
        assert says in " ".join(shown.out.split()) and "would be learned" not in shown.out
        assert ("2 of those that may be learned have no served token ids" in shown.err) == (not flags)
        assert main(["train", *flags, *where]) == 4
        assert f"{waiting} interactions wait" in capsys.readouterr().err
    assert main(["train", "--dry-run", "--off-policy", "--set", "train.min_interactions=2", *where]) == 0
    assert "2 interactions would be learned, in 2 steps\n" in capsys.readouterr().out


def test_collect_advises_what_train_would_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = ["--dir", str(tmp_path)]

    def said(turns: range, ids: tuple[int, ...] | None) -> str:
        with Store.open(tmp_path / "afterword.db") as store:
            for n in turns:
                store.write(
                    Turn(id=f"t{n}", messages=({"role": "user", "content": f"What is {n} plus {n * 3}?"},), user="ada",
                         answer={"role": "assistant", "content": f"It is {n * 7} {'ab' * n}."}, finish_reason="stop",
                         prompt_ids=ids, completion_ids=ids),
                    Feedback(id=f"f{n}", turn=f"t{n}", kind="follow_up", text=f"No, I asked for {n}.", user="ada"),
                )  # fmt: skip
        assert main(["collect", "--set", "collect.holdout=0", *home]) == 0
        return " ".join(capsys.readouterr().err.split())

    assert "Too few interactions wait" in said(range(2), None)
    assert "Next: `afterword train --off-policy`" in said(range(2, 10), None)
    assert "Next: `afterword train`." in said(range(10, 20), (1, 2))


def _shown(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return dict(json.loads(capsys.readouterr().out))


def _answers(store: Store, model: str, numbers: range, *, words: bool = True) -> None:
    """Interactions, of users who said what they want or were only content."""
    for number in numbers:
        one = example(model, number) if words else example(model, number, hindsight="")
        kind, polarity = ("follow_up", -1) if words else ("accepted", 1)
        store.write(one.turn, Feedback(id=one.interaction.feedback[0], turn=one.turn.id, kind=kind))
        store.write(replace(one.interaction, kind=kind, polarity=polarity))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_as_many_are_told_as_the_run_then_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, home = tiny_folder(tmp_path / "model"), tmp_path / "home"
    settings = (f"serve.model={model}", "train.fresh=0", "train.stop_rules=false", "train.replay=0.5")
    command = ["train", "--dir", str(home), *(word for pair in settings for word in ("--set", pair))]
    with Store.open(home / "afterword.db") as store:
        _answers(store, model, range(2))
        _answers(store, model, range(50, 60), words=False)
    assert main([*command, "--dry-run"]) == 0
    why = "12 interactions wait to be learned and 2 of them carry words: users were content with the other answers."
    assert f"nothing would be trained: {why}" in " ".join(capsys.readouterr().out.split())
    assert main(command) == 4
    assert why in " ".join(capsys.readouterr().err.split())

    with Store.open(home / "afterword.db") as store:
        _answers(store, model, range(2, 3))
    assert main([*command, "--dry-run", "--json"]) == 0
    told = _shown(capsys)
    assert main([*command, "--json"]) == 0
    first = _shown(capsys)
    assert (told["would_learn"], told["would_replay"]) == (len(first["interactions"]), 0) == (9, 0)

    with Store.open(home / "afterword.db") as store:
        store.write(
            Report(id="report-1", candidate=first["id"], against=None, suites={}, about={}),
            Verdict(id="verdict-1", candidate=first["id"], report="report-1", passed=True, reasons=()),
            Release(id="release-1", channel="default", adapter=first["id"], candidate=first["id"], path=first["path"],
                    verdict="verdict-1", previous=None, action="publish", why="a test"),
        )  # fmt: skip
        _answers(store, model, range(20, 32))
    more = [*command, "--set", "train.max_interactions=10"]
    assert main([*more, "--dry-run", "--json"]) == 0
    told = _shown(capsys)
    assert main([*more, "--json"]) == 0
    second = _shown(capsys)
    assert told["would_replay"] == second["metrics"]["replayed"] == 5
    assert told["would_learn"] == len(second["interactions"]) - 5 == 10
    steps = len((home / "runs" / second["id"] / "metrics.jsonl").read_text("utf-8").splitlines())
    assert (
        told["steps"] == steps and f"10 interactions would be learned of 16 that wait, in {steps} steps" in told["says"]
    )
    assert main([*more, "--dry-run"]) == 0  # the same run again
    assert f"nothing would be trained: candidate {second['id']}" in " ".join(capsys.readouterr().out.split())


def test_the_dry_run_and_doctor_exclude_what_the_run_excludes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By encoding: a comment that the tokenizer cannot read, an answer of another model."""
    model, home = tiny_folder(tmp_path / "model"), tmp_path / "home"
    with Store.open(home / "afterword.db") as store:
        _answers(store, model, range(2))
        for number, changes in ((7, {"completion_ids": (5, 99_999)}), (8, {"prompt_ids": (5, 1, 2)})):
            one = example(model, number, **changes)
            store.write(one.turn, Feedback(id=one.interaction.feedback[0], turn=one.turn.id, kind="follow_up"))
            store.write(one.interaction)
    pairs = (f"serve.model={model}", "train.fresh=0", "train.epochs=1", "train.min_interactions=1")
    flags = ["--dir", str(home), *(word for pair in pairs for word in ("--set", pair))]
    assert main(["train", "--dry-run", "--json", *flags]) == 0
    told = _shown(capsys)
    assert told["would_learn"] == 2 and "2 would be excluded" in told["says"]
    assert {one["reason"]: one["interactions"] for one in told["excluded"]} == {"ids_unknown": 1, "prompt_differs": 1}
    assert main(["train", "--dry-run", *flags]) == 0
    shown = capsys.readouterr().out
    assert "excluded, as the run would" in shown and "the model embeds 259 ids" in shown
    assert main(["doctor", "--json", *flags]) == 0
    line = next(one for one in _shown(capsys)["checks"] if one["name"] == "model")
    assert line["ok"] and "2 interactions would be learned" in line["detail"] and "1 ids_unknown" in line["detail"]
    assert main(["train", "--json", *flags]) == 0
    run = _shown(capsys)
    assert run["metrics"]["left_out"] == {"ids_unknown": 1, "prompt_differs": 1} and len(run["interactions"]) == 2


def test_a_template_that_cannot_be_trained_is_told_by_doctor_and_the_dry_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, home = tiny_folder(tmp_path / "model"), tmp_path / "home"
    flags = ["--dir", str(home), "--set", f"serve.model={model}", "--set", "train.min_interactions=1"]
    with Store.open(home / "afterword.db") as store:
        _answers(store, model, range(2))
    template = tmp_path / "model" / "chat_template.jinja"
    without = template.read_text().replace("{% if add_generation_prompt %}", "{% if false %}")
    template.write_text(without)
    assert main(["doctor", "--json", *flags]) == 1
    line = next(one for one in _shown(capsys)["checks"] if one["name"] == "model")
    assert not line["ok"] and "no generation header" in line["detail"] and "use a template that" in line["detail"]
    assert main(["train", "--dry-run", *flags]) == 0
    assert "nothing would be trained: the chat template" in " ".join(capsys.readouterr().out.split())
    assert Codec(load_tokenizer(model)).faults()  # what `serve` says at its start

    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    template.write_text(strict + TEMPLATE)
    assert main(["doctor", "--json", *flags]) == 0
    line = next(one for one in _shown(capsys)["checks"] if one["name"] == "model")
    assert line["ok"] and "refuses conversations with a system message (no system role)" in line["detail"]
