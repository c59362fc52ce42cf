"""`afterword train` on input that cannot be right: a clear error or a counted skip, and the run's state is kept."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.tiny_model import TEMPLATE, example, tiny_folder

from afterword.chat.render import render_prompt
from afterword.chat.sampling_fields import PLAIN
from afterword.cli import main
from afterword.learn.loss import loss_stage
from afterword.model.loading import load_tokenizer
from afterword.records import Feedback, Release, Report, Verdict
from afterword.store import Store
from afterword.train.runtime import steps

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "model")


def filled(home: Path, model: str, changes: dict[int, dict[str, Any]], kind: str = "follow_up") -> Path:
    """A data directory with eight interactions; `changes` replace fields of some turns."""
    with Store.open(home / "afterword.db") as store:
        for number in range(8):
            one = example(model, number, **changes.get(number, {}))
            feedback = Feedback(id=f"fb-{number}", turn=one.turn.id, kind="follow_up", text="Shorter, please.")
            interaction = dataclasses.replace(one.interaction, kind=kind, created_at=1000.0 + number)
            store.write(one.turn, feedback, interaction)
    return home


def train(home: Path, model: str, *more: str) -> int:
    settings = [f"serve.model={model}", "train.min_interactions=2", "train.fresh=0", "train.stop_rules=false"]
    pairs = [word for setting in settings for word in ("--set", setting)]
    return main(["train", "--dir", str(home), "--json", *pairs, *more])


def test_a_template_without_a_generation_header(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_folder(tmp_path / "model")
    filled(tmp_path / "home", model, {})
    template = Path(model) / "chat_template.jinja"
    template.write_text(TEMPLATE.partition("{% if add_generation_prompt %}")[0])
    assert train(tmp_path / "home", model) == 2
    assert "has no generation header" in capsys.readouterr().err


def test_log_probabilities_that_are_missing_or_not_finite_are_counted(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = [len(example(model, n).turn.completion_ids or ()) for n in range(8)]
    known: dict[int, dict[str, Any]] = {n: {"logprobs": (-1.0,) * long[n], "sampling": PLAIN} for n in range(8)}
    known[2]["logprobs"] = None
    known[3]["logprobs"] = (*known[3]["logprobs"][:-1], math.nan)
    known[4]["logprobs"] = (*known[4]["logprobs"][:-1], -math.inf)
    home = filled(tmp_path, model, known, kind="executed")
    assert train(home, model, "--recipe", "sdpo") == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["interactions"] + metrics["left_out"].get("no_logprobs", 0) == 8
    assert metrics["left_out"]["no_logprobs"] >= 1
    assert math.isfinite(metrics["loss_last"])


def test_ids_that_are_not_those_of_the_text_are_counted(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = render_prompt(load_tokenizer(model), ({"role": "user", "content": "Something else?"},)).ids
    wrong: dict[int, dict[str, Any]] = {
        0: {"completion_ids": (70, 71, 2)},
        1: {"prompt_ids": other},
        2: {"completion_ids": (999_999, 2)},
    }
    assert train(filled(tmp_path, model, wrong), model) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["left_out"] == {
        "ids_differ": 1,
        "prompt_differs": 1,
        "ids_unknown": 1,
    }


def test_a_recipe_name_with_a_typo(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(filled(tmp_path, model, {}), model, "--recipe", "sdop") == 2
    assert "did you mean 'sdpo'" in capsys.readouterr().err


def test_an_external_teacher_with_another_vocabulary(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_folder(tmp_path / "other")
    config = Path(other) / "tokenizer.json"
    data = json.loads(config.read_text())
    data["model"]["vocab"] = {
        token: (i + 5) % len(data["model"]["vocab"]) for token, i in data["model"]["vocab"].items()
    }
    config.write_text(json.dumps(data))
    home = filled(tmp_path / "home", model, {})
    assert train(home, model, "--recipe", "gkd", "--set", f"train.teacher={other}") == 2
    assert "both need the same tokenizer" in capsys.readouterr().err


def test_a_nan_in_the_middle_of_a_run(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that names the step; what was before it is kept, no candidate is written, and a new run trains."""
    home, real, calls = filled(tmp_path, model, {}), loss_stage.requested_losses, []

    def broken(student: torch.Tensor, *rest: Any, **named: Any) -> Any:
        calls.append(student.requires_grad)
        return real(student * math.nan if sum(calls) == 2 else student, *rest, **named)

    monkeypatch.setattr(steps, "requested_losses", broken)
    assert train(home, model) == 1
    assert "step 2 of 2" in (said := capsys.readouterr().err) and "learning rate below" in said
    (run,) = (home / "runs").iterdir()
    assert (run / "state.pt").is_file()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1
    assert not list(home.glob("adapters/*"))
    monkeypatch.setattr(steps, "requested_losses", real)
    assert train(home, model, "--set", "train.learning_rate=0.0001") == 0


def test_a_run_that_failed_goes_on_with_the_same_settings_and_never_blocks_others(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the error is none of ours (memory, a full disk): only a run that was killed is finished first."""
    home, real, calls = filled(tmp_path, model, {}), loss_stage.requested_losses, []

    def full(student: torch.Tensor, *rest: Any, **named: Any) -> Any:
        calls.append(student.requires_grad)
        if sum(calls) == 3:
            raise RuntimeError("out of memory")
        return real(student, *rest, **named)

    monkeypatch.setattr(steps, "requested_losses", full)
    same = ("--epochs", "2")
    with pytest.raises(RuntimeError, match="out of memory"):
        train(home, model, *same)
    monkeypatch.setattr(steps, "requested_losses", real)
    (run,) = (home / "runs").iterdir()
    kept = (run / "metrics.jsonl").read_text()
    assert kept and train(home, model, "--epochs", "1") == 0
    assert len(list((home / "runs").iterdir())) == 2
    assert not (run / "result.json").exists() and train(home, model, *same) == 0
    assert (run / "result.json").exists() and (run / "metrics.jsonl").read_text().startswith(kept.split("\n")[0][:60])


@pytest.mark.parametrize("damaged", ["adapter_model.safetensors", "afterword.json", "adapter_config.json"])
def test_a_released_adapter_whose_file_is_cut(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], damaged: str
) -> None:
    home = filled(tmp_path, model, {})
    assert train(home, model, "--max-interactions", "4") == 0
    made = json.loads(capsys.readouterr().out)
    with Store.open(home / "afterword.db") as store:
        report = Report(id="rep", candidate=made["id"], against=None, suites={})
        verdict = Verdict(id="ver", candidate=made["id"], report="rep", passed=True, reasons=("by hand",))
        store.write(report, verdict)
        store.write(
            Release(
                id="rel", channel="default", adapter="afterword@v000001", candidate=made["id"], path=made["path"],
                verdict="ver", previous=None, action="publish", why="by hand",
            )
        )  # fmt: skip
    file = home / made["path"] / damaged
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert train(home, model) == 2
    assert re.search(r"adapter.*(damaged|does not fit)", capsys.readouterr().err)
