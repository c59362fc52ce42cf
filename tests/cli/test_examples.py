"""The example conversations: loaded by one command, once, for the model that answered in them, and by that model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from afterword.chat.render import decode, render_prompt
from afterword.cli import main
from afterword.errors import UsageError
from afterword.feedback.collect.collect import collect
from afterword.feedback.examples import EXAMPLES, EXAMPLES_MODEL
from afterword.model.loading import EMBEDDED, load_model, load_tokenizer
from afterword.records import Interaction, Turn
from afterword.release.gate import GateThresholds
from afterword.store import Store

NEAR = 0.25
"""Mean difference (nats a token) between kernels and dtypes; another model's answers would differ by whole nats."""


def _turns() -> list[Turn]:
    rows = [json.loads(line) for line in EXAMPLES.read_text("utf-8").splitlines()]
    return [Turn.from_dict({k: v for k, v in row.items() if k != "record"}) for row in rows if row["record"] == "turns"]


def test_one_command_loads_enough_for_a_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = str(tmp_path / "data")
    assert main(["import", "--examples", "--json", "--dir", directory]) == 0
    (told,) = json.loads(capsys.readouterr().out)["files"]
    assert (told["turns"], told["feedback"], told["stored"], told["rejected"]) == (48, 48, 96, {})
    with Store.open(tmp_path / "data" / "afterword.db") as store:
        funnel = collect(store)
        assert (funnel.interactions, funnel.off_policy) == (47, 0)
        held = list(store.rows(Interaction, split="holdout"))
        assert len(held) >= GateThresholds().min_interactions, "the gate can say yes"
        assert funnel.train >= 8 and len({row.user for row in held}) == 4
    assert main(["import", "--examples", "--json", "--dir", directory]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["stored"] == 0


def test_examples_are_for_their_own_model_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--dir", str(tmp_path / "data"), "--set", "serve.model=/models/other"]
    assert main(["import", "--examples", *flags]) == UsageError.exit_code
    said = " ".join(capsys.readouterr().err.split())
    assert EXAMPLES_MODEL in said and "/models/other" in said and "afterword simulate" in said
    assert not (tmp_path / "data").exists()


def test_an_import_of_nothing_says_what_can_be_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "--dir", str(tmp_path / "data")]) == UsageError.exit_code
    said = capsys.readouterr().err
    assert "FILE" in said and "--examples" in said


def test_the_answers_are_the_built_in_models(tmp_path: Path) -> None:
    """Ids, text and log-probabilities of the file are what the installed model gives: training on them is on-policy."""
    assert EXAMPLES_MODEL == EMBEDDED
    tokenizer, model = load_tokenizer(EMBEDDED), load_model(EMBEDDED, device="cpu")
    turns = _turns()
    assert len(turns) == 48 and all(turn.user and turn.user.startswith("example-") for turn in turns)
    for turn in turns:
        assert turn.prompt_ids == render_prompt(tokenizer, turn.messages).ids
        assert turn.answer["content"] == decode(tokenizer, turn.completion_ids or ())
    for turn in turns[::6]:
        asked, said = list(turn.prompt_ids or ()), list(turn.completion_ids or ())
        with torch.inference_mode():
            logits = model(torch.tensor([asked + said])).logits[0, len(asked) - 1 : -1].float()
        scores = torch.log_softmax(logits, -1)[torch.arange(len(said)), torch.tensor(said)]
        served = torch.tensor([value or 0.0 for value in turn.logprobs or ()])
        assert float((scores - served).abs().mean()) < NEAR, turn.id
