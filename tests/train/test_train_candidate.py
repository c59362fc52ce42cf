"""A whole run on a tiny model: what it writes, what it refuses, and the properties of `learning.md`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from afterword.chat.render import encode
from afterword.errors import AdapterError, ConfigError, ConflictError, NothingToDo
from afterword.learn.loss import loss_stage
from afterword.learn.loss.terms import Term
from afterword.learn.parts.contexts import CONTEXTS
from afterword.learn.parts.teachers import BASE, LIVE
from afterword.learn.recipes import Recipe, sdpo_interactions, sft
from afterword.model.loading import base_hash, load_model, load_tokenizer
from afterword.records import Candidate
from afterword.train.artifact import TrainResult, candidate_record
from afterword.train.data.examples import Example
from afterword.train.loop import TrainingDiverged, train_candidate
from afterword.train.monitoring.metrics import StepMetrics, read_metrics
from afterword.train.runtime import steps
from tests.train.tiny_model import example, tiny_folder

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

QUICK: dict[str, Any] = {"dtype": "float32", "batch": 4, "epochs": 2, "fresh": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "model")


def run(model: str, folder: Path, examples: list[Example], recipe: Recipe, **options: Any) -> TrainResult:
    return train_candidate(examples, model=model, out=folder / "out", run_dir=folder / "run", recipe=recipe, **options)


def losses(folder: Path) -> list[float]:
    return [m.loss for m in read_metrics(folder / "run")]


def some(model: str, n: int = 10) -> list[Example]:
    words = ("Shorter, please.", "Say hello first.", "In Spanish?")
    return [example(model, i, hindsight=words[i % 3]) for i in range(n)]


def test_a_run_leaves_a_plain_peft_folder_with_its_manifest(model: str, tmp_path: Path) -> None:
    seen: list[StepMetrics] = []
    result = run(model, tmp_path, some(model), sdpo_interactions(**QUICK), progress=seen.append)
    assert sorted(p.name for p in result.path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "afterword.json",
    ]
    assert [m.step for m in seen] == [1, 2, 3, 4, 5, 6]
    assert seen == read_metrics(tmp_path / "run")
    assert seen[-1].loss < seen[0].loss
    manifest = json.loads((result.path / "afterword.json").read_text())
    assert manifest["base_hash"] == base_hash(Path(model))
    assert manifest["interactions"] == 10
    assert manifest["parent"] is None
    assert manifest["recipe"]["terms"][0]["context"]["name"] == "appended"
    tuned = peft.PeftModel.from_pretrained(load_model(model, dtype="float32"), str(result.path))
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        moved = tuned(ids).logits
        with tuned.disable_adapter():
            assert not torch.equal(moved, tuned(ids).logits)


def test_the_candidate_row(model: str, tmp_path: Path) -> None:
    result = run(model, tmp_path, some(model, 3), sdpo_interactions(**QUICK))
    row = candidate_record(result, id="cand-1", path="adapters/cand-1", parent=None)
    assert row.interactions == ("int-0", "int-1", "int-2")
    assert row.metrics["loss_first"] == losses(tmp_path)[0]
    assert Candidate.from_dict(json.loads(json.dumps(row.to_dict()))) == row


def test_same_context_and_weights_give_exactly_nothing(model: str, tmp_path: Path) -> None:
    """Property 1, through template, padding and bf16. The validator refuses a lone term of this kind, so it
    rides beside one that is switched off."""
    nothing = Term(
        name="nothing", estimator=sdpo_interactions().terms[0].estimator, teacher=BASE, context=CONTEXTS["none"]
    )
    off = Term(
        name="off",
        estimator=nothing.estimator,
        teacher=LIVE,
        context=CONTEXTS["appended"],
        skip_first=10_000,
    )
    recipe = Recipe(name="control", terms=(nothing, off), batch=4, micro_tokens=120, epochs=2, fresh=0)
    # all answers of one length: a frozen teacher's pass has then the same shapes as the student's
    examples = [example(model, i, text=f"Answer {i}") for i in range(8)]
    run(model, tmp_path, examples, recipe)
    metrics = read_metrics(tmp_path / "run")
    assert [m.loss for m in metrics] == [0.0] * len(metrics)
    assert [m.grad_norm for m in metrics] == [0.0] * len(metrics)
    assert all(m.overlap == 1.0 and m.signal == 0.0 for m in metrics)


def test_micro_batches_do_not_change_the_result(model: str, tmp_path: Path) -> None:
    examples = some(model, 12)
    for name, tokens in (("one", 100_000), ("many", 1)):
        recipe = sdpo_interactions(**QUICK, anchor=0.1, micro_tokens=tokens)
        run(model, tmp_path / name, examples, recipe)
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "many"), rel=1e-4)


def test_neither_ids_nor_the_order_of_arrival_change_a_bit(model: str, tmp_path: Path) -> None:
    def again(one: Example, number: int) -> Example:
        row = replace(one.interaction, id=f"other-{-number}", turn=f"other-{-number}")
        return Example(row, replace(one.turn, id=row.turn, created_at=1000.0 - number))

    recipe = sdpo_interactions(**QUICK | {"fresh": 1}, lr=0.01)
    first = run(model, tmp_path / "1", some(model), recipe)
    other = [again(one, i) for i, one in enumerate(some(model))][::-1]
    second = run(model, tmp_path / "2", other, recipe)
    weights = [(one.path / "adapter_model.safetensors").read_bytes() for one in (first, second)]
    assert weights[0] == weights[1]
    assert first.interactions != second.interactions


def test_learning_rate_zero_changes_nothing(model: str, tmp_path: Path) -> None:
    result = run(model, tmp_path, some(model, 4), sdpo_interactions(**QUICK, lr=0.0))
    base = load_model(model, dtype="float32")
    tuned = peft.PeftModel.from_pretrained(load_model(model, dtype="float32"), str(result.path))
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(base(ids).logits, tuned(ids).logits)


@pytest.mark.parametrize("fresh", [0, 1])
def test_a_run_in_which_no_token_counts_is_refused(model: str, tmp_path: Path, fresh: int) -> None:
    recipe = sdpo_interactions(**{**QUICK, "epochs": 1 - fresh, "fresh": fresh}, skip_first=100_000)
    with pytest.raises(NothingToDo, match=r"no token of 4 answers counts for 'hindsight'.*skip_first is 100000"):
        run(model, tmp_path, some(model, 4), recipe)
    assert not (tmp_path / "out").exists()


def test_a_frozen_teacher_stays_and_a_live_one_moves(model: str, tmp_path: Path) -> None:
    frozen = run(model, tmp_path / "frozen", some(model), sdpo_interactions(**{**QUICK, "epochs": 1}))
    live = run(model, tmp_path / "live", some(model), sdpo_interactions(**{**QUICK, "epochs": 1}, teacher=LIVE))
    first = (losses(tmp_path / "frozen")[0], losses(tmp_path / "live")[0])
    assert first[0] == pytest.approx(first[1], rel=1e-5)  # before any step they are the same teacher
    assert losses(tmp_path / "frozen")[2] != losses(tmp_path / "live")[2]
    assert frozen.recipe != live.recipe


def test_going_on_from_a_parent_starts_with_its_weights(model: str, tmp_path: Path) -> None:
    parent = run(model, tmp_path / "parent", some(model), sdpo_interactions(**QUICK)).path
    still = run(model, tmp_path / "child", some(model), sdpo_interactions(**QUICK, lr=0.0), parent=parent)
    weights = [p / "adapter_model.safetensors" for p in (parent, still.path)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert json.loads((still.path / "afterword.json").read_text())["parent"] == "out"
    base = run(model, tmp_path / "base", some(model), sdpo_interactions(**QUICK, teacher=BASE, lr=0.0), parent=parent)
    # reading the hindsight with the parent's weights is another teacher than with the base's
    assert losses(tmp_path / "child")[0] != losses(tmp_path / "base")[0]
    assert base.metrics["interactions"] == 10


def test_a_parent_of_another_base_is_refused(model: str, tmp_path: Path) -> None:
    other = tiny_folder(tmp_path / "other", hidden_size=16)
    parent = run(other, tmp_path / "parent", some(other, 3), sdpo_interactions(**QUICK)).path
    with pytest.raises(AdapterError, match="made for a base model with weights"):
        run(model, tmp_path / "child", some(model, 3), sdpo_interactions(**QUICK), parent=parent)
    (parent / "afterword.json").unlink()  # a plain PEFT folder: its shapes decide
    with pytest.raises(AdapterError, match="does not fit"):
        run(model, tmp_path / "child", some(model, 3), sdpo_interactions(**QUICK), parent=parent)
    with pytest.raises(AdapterError, match=r"no adapter_model\.safetensors"):
        run(model, tmp_path / "none", some(model, 3), sdpo_interactions(**QUICK), parent=tmp_path)


def test_off_policy_answers_only_when_asked_for_and_labelled(model: str, tmp_path: Path) -> None:
    logged = [example(model, i, prompt_ids=None, completion_ids=None) for i in range(3)]
    with pytest.raises(NothingToDo, match="3 off_policy"):
        run(model, tmp_path / "no", logged, sdpo_interactions(**QUICK))
    result = run(model, tmp_path / "yes", logged, sdpo_interactions(**QUICK, include_off_policy=True))
    assert result.metrics["off_policy"] == 3
    assert all(m.off_policy == m.interactions for m in read_metrics(tmp_path / "yes" / "run"))
    served = run(model, tmp_path / "served", [example(model, i) for i in range(3)], sdpo_interactions(**QUICK))
    # tokenised here and ended by the template's end of turn, the same ids as if they had been served
    assert losses(tmp_path / "yes") == losses(tmp_path / "served")
    assert served.metrics["off_policy"] == 0


def test_imitation_needs_no_hindsight(model: str, tmp_path: Path) -> None:
    result = run(model, tmp_path, [example(model, i, hindsight="") for i in range(4)], sft(**QUICK))
    assert result.metrics["signal"] is None
    assert result.metrics["loss_last"] < result.metrics["loss_first"]


def test_nothing_is_overwritten_and_a_finished_run_answers_again(model: str, tmp_path: Path) -> None:
    recipe = sdpo_interactions(**QUICK)
    first = run(model, tmp_path, some(model, 4), recipe)
    assert run(model, tmp_path, some(model, 4), recipe) == first
    with pytest.raises(ConflictError, match="never overwritten"):
        run(model, tmp_path, some(model, 5), recipe)
    assert not (tmp_path / "run" / "state.pt").exists()


def test_a_recipe_that_cannot_work_fails_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch=0"):
        run("no-such-model", tmp_path, [], sdpo_interactions(batch=0))


def test_nan_stops_the_run_and_keeps_its_state(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = loss_stage.requested_losses, []

    def broken(student: torch.Tensor, *rest: Any, **named: Any) -> Any:
        calls.append(student.requires_grad)
        return real(student * float("nan") if sum(calls) == 3 else student, *rest, **named)

    monkeypatch.setattr(steps, "requested_losses", broken)
    with pytest.raises(TrainingDiverged, match="step 3 of 6"):
        run(model, tmp_path, some(model), sdpo_interactions(**QUICK))
    assert not (tmp_path / "out").exists()
    assert [m.step for m in read_metrics(tmp_path / "run")] == [1, 2]
    monkeypatch.setattr(steps, "requested_losses", real)
    run(model, tmp_path, some(model), sdpo_interactions(**QUICK))
    run(model, tmp_path / "straight", some(model), sdpo_interactions(**QUICK))
    assert losses(tmp_path) == losses(tmp_path / "straight")


def test_the_alignment_report_shows_both_prompts_and_the_boundary(model: str, tmp_path: Path) -> None:
    run(model, tmp_path, some(model, 4), sdpo_interactions(**QUICK, max_hindsight=5))
    text = (tmp_path / "run" / "alignment.txt").read_text()
    assert "Question 0?<|im_end|>\n<|im_start|>assistant\n" in text
    assert "Question 0?\n\nShort<|im_end|>\n<|im_start|>assistant\n" in text
    assert "hindsight cut: 4 interactions, 39 tokens" in text
    assert "'<|im_end|>'" in text
    signal = json.loads((tmp_path / "run" / "signal.json").read_text())
    assert signal["n"] == 4
    assert signal["real"] > 0


def test_a_token_with_a_broken_embedding_costs_its_interactions_alone(tmp_path: Path) -> None:
    """Some models ship embeddings that were never trained, as NaN: one such token would make a whole step NaN."""
    model = tiny_folder(tmp_path / "model", tie_word_embeddings=False)
    tokenizer = load_tokenizer(model)
    base = load_model(model, dtype="float32", device="cpu")
    with torch.no_grad():
        base.get_input_embeddings().weight[encode(tokenizer, "~")[0], 3] = torch.nan
    base.save_pretrained(model)
    good, recipe = some(model, 5), sdpo_interactions(**QUICK)
    bad = [example(model, 7, hindsight="Take ~ out."), example(model, 8, text="About ~10.")]
    result = run(model, tmp_path, [*good, *bad], recipe)
    assert result.interactions == tuple(e.interaction.id for e in good)
    assert result.metrics["left_out"] == {"not_finite": 2}
    assert {one["interaction"] for one in result.excluded} == {"int-7", "int-8"}
    assert all(torch.isfinite(torch.tensor(losses(tmp_path))))
    with pytest.raises(NothingToDo, match=r"none of 2 interactions can be trained.*'~'.*not finite"):
        run(model, tmp_path / "none", bad, recipe)
