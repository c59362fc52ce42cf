"""LoRA on the output head: the same loss and gradients as through the model's own logits, teachers with heads of their
own, answers written anew, a folder that PEFT loads, and the same numbers where it is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from afterword.errors import ConfigError
from afterword.evaluate.scoring.adapter_scorer import AdapterScorer
from afterword.learn.parts.contexts import CONTEXTS
from afterword.learn.parts.teachers import BASE, EMA, LIVE, START, Copy, Released, Routed, Teacher
from afterword.learn.recipes import Lora, Recipe, sdpo_interactions
from afterword.model.loading import load_model, load_tokenizer
from afterword.train.artifact import TrainResult
from afterword.train.data.batches import rows_of
from afterword.train.data.examples import Example, prepare
from afterword.train.generation.generation import generate
from afterword.train.loop import train_candidate
from afterword.train.monitoring.metrics import Tally, read_metrics
from afterword.train.runtime.policy import Policy, load_policy
from afterword.train.runtime.teacher_cache import TeacherCache, TeacherStates
from afterword.train.runtime.teacher_runtime import TeacherRuntime
from tests.train.tiny_model import backward, example, tiny_folder

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning"),
]
"""The second is PEFT's, where a test loads an adapter on a tied head with PEFT alone."""

HEAD = Lora(rank=4, alpha=8.0, targets=("q_proj", "lm_head"))
QUICK: dict[str, Any] = {"dtype": "float32", "batch": 4, "epochs": 2, "fresh": 0, "lora": HEAD, "lr": 1e-2}
WORDS = ("Shorter, please.", "Say hello first.", "In Spanish?")


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "model", tie_word_embeddings=request.param)


def some(model: str, n: int = 8) -> list[Example]:
    return [example(model, i, hindsight=WORDS[i % 3]) for i in range(n)]


def run(model: str, folder: Path, recipe: Recipe, **options: Any) -> TrainResult:
    given = {"out": folder / "out", "run_dir": folder / "run", **options}
    return train_candidate(some(model), model=model, recipe=recipe, **given)


def moved(model: str, recipe: Recipe) -> Policy:
    """A policy whose adapter is away from zero."""
    policy = load_policy(model, recipe, parent=None, seed=0, device="cpu")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.mark.parametrize("teacher", [BASE, START, LIVE, EMA(rate=0.3), Copy(every=1)], ids=lambda t: t.key)
def test_loss_and_gradients_are_those_of_the_models_own_logits(model: str, teacher: Teacher) -> None:
    recipe = sdpo_interactions(**QUICK, teacher=teacher)
    policy = moved(model, recipe)
    assert policy.head_layer is not None and any(
        "lm_head" in n for n, _ in policy.model.named_parameters() if "lora" in n
    )
    teaching = TeacherRuntime(policy, recipe, model)
    prepared = prepare(some(model, 4), load_tokenizer(model), recipe, limit=512, vocabulary=259)
    teachers = TeacherStates(teaching, prepared.rows, recipe, TeacherCache(None), "x")
    count = [t.count(rows_of(prepared.rows)) for t in recipe.terms]
    tally = Tally(recipe.terms)
    backward(policy, teachers, recipe.terms, count, [0, 1, 2, 3], tally=tally)
    own = [p.grad.clone() for p in policy.parameters() if p.grad is not None]
    policy.model.zero_grad(set_to_none=True)

    total = torch.zeros(())
    for row in prepared.rows:
        student = _logits(policy, row.prompt, row.completion)
        with torch.no_grad():
            still = teacher.frozen  # without a parent, what a run starts from is the base
            with policy.model.disable_adapter() if still else torch.no_grad():
                other = _logits(policy, row.reads(CONTEXTS["appended"]), row.completion)
        s, t = student.log_softmax(-1), other.log_softmax(-1)
        total = total + (t.exp() * (t - s)).sum(-1).mean() / len(prepared.rows)
    total.backward()  # type: ignore[no-untyped-call]
    step = tally.close(step=1, steps=1, grad_norm=0.0, lr=0.0, off_policy=0, seconds=1.0, scored=1)
    assert step.loss == pytest.approx(float(total.detach()), rel=1e-4)
    reference = [p.grad for p in policy.parameters() if p.grad is not None]
    assert len(own) == len(reference) == len(policy.parameters())
    for mine, theirs in zip(own, reference, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def _logits(policy: Policy, prompt: Any, completion: Any) -> torch.Tensor:
    ids = torch.tensor([[*prompt, *completion]])
    return policy.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]  # type: ignore[no-any-return]


def test_a_run_leaves_a_folder_that_peft_loads_and_that_is_measured_as_it_was_trained(
    model: str, tmp_path: Path
) -> None:
    result = run(model, tmp_path, sdpo_interactions(**QUICK))
    losses = [m.loss for m in read_metrics(tmp_path / "run")]
    assert losses[-1] < losses[0]
    plain = run(model, tmp_path / "plain", sdpo_interactions(**{**QUICK, "lora": Lora(rank=4, targets=("q_proj",))}))
    assert losses[0] == pytest.approx(read_metrics(tmp_path / "plain" / "run")[0].loss, rel=1e-5)  # adapters begin as 0
    assert plain.metrics["loss_last"] != losses[-1]

    tuned = peft.PeftModel.from_pretrained(load_model(model, dtype="float32"), str(result.path))
    one = example(model, 0).turn
    prompt, completion = one.prompt_ids or (), one.completion_ids or ()
    ids = torch.tensor([[*prompt, *completion]])
    with torch.no_grad():
        logs = tuned(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    want = logs.gather(1, torch.tensor(completion)[:, None])[:, 0].tolist()
    measured = AdapterScorer(load_model(model, dtype="float32"))
    measured.add("new", result.path)
    assert measured.log_probs("new", [(prompt, completion)])[0] == pytest.approx(want, abs=1e-4)
    base = measured.log_probs(None, [(prompt, completion)])[0]
    assert base == pytest.approx(
        AdapterScorer(load_model(model, dtype="float32")).log_probs(None, [(prompt, completion)])[0]
    )
    kl, lost, kept = measured.drift("new", [(prompt, completion)])[0]
    assert (lost, kept) == pytest.approx((-sum(base), -sum(want)), abs=1e-3) and kl > 0
    assert measured.options("new", [(prompt, [completion])])[0] == pytest.approx([sum(want)], abs=1e-3)
    assert measured.greedy_hits("new", [(prompt, completion)])[0] == (logs.argmax(-1) == ids[0, len(prompt) :]).tolist()


def test_a_run_goes_on_from_a_parent_and_from_a_released_teacher_with_such_a_head(model: str, tmp_path: Path) -> None:
    parent = run(model, tmp_path / "parent", sdpo_interactions(**QUICK)).path
    still = {**QUICK, "lr": 0.0, "epochs": 1}
    start = run(model, tmp_path / "start", sdpo_interactions(**still), parent=parent)
    released = Released(folder=str(parent))
    again = run(model, tmp_path / "again", sdpo_interactions(**still, teacher=released), parent=parent)
    assert start.metrics["loss_first"] == pytest.approx(again.metrics["loss_first"], rel=1e-5)
    same = run(model, tmp_path / "same", sdpo_interactions(**still, teacher=LIVE), parent=parent)
    assert same.metrics["loss_first"] == pytest.approx(start.metrics["loss_first"], rel=1e-5)  # nothing has moved yet


def test_fresh_answers_and_kills(model: str, tmp_path: Path) -> None:
    policy = moved(model, sdpo_interactions(**QUICK))
    prompt = example(model, 0).turn.prompt_ids or ()
    embedding = policy.model.get_input_embeddings().weight.detach().clone()
    weight = policy.model.get_base_model().get_output_embeddings().base_layer.weight
    written = generate(policy, [prompt], [2], [8], temperature=0.0)[0].tokens
    assert torch.equal(policy.model.get_input_embeddings().weight, embedding)
    assert policy.model.get_base_model().get_output_embeddings().base_layer.weight is weight
    with torch.no_grad():
        ids = list(prompt)
        for _ in written:
            ids.append(int(policy.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert ids[len(prompt) :] == written

    recipe = sdpo_interactions(**{**QUICK, "epochs": 1, "fresh": 1}, teacher=EMA(rate=0.2))
    whole = run(model, tmp_path / "whole", recipe, save_every=1)

    class Killed(BaseException):
        pass

    def kill(metrics: Any) -> None:
        if metrics.step == 3:
            raise Killed

    with pytest.raises(Killed):
        run(model, tmp_path / "killed", recipe, save_every=1, progress=kill)
    resumed = run(model, tmp_path / "killed", recipe, save_every=1)
    files = [r.path / "adapter_model.safetensors" for r in (whole, resumed)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_routed_teachers_cannot_share_an_adapted_head_and_targets_have_to_be_there(model: str, tmp_path: Path) -> None:
    routed = sdpo_interactions(**QUICK, teacher=Routed(routes=(("code", BASE),)))
    with pytest.raises(ConfigError, match=r"routed teachers share one head.*lm_head"):
        run(model, tmp_path / "routed", routed)
    with pytest.raises(ConfigError, match=r"'nowhere'.*name linear layers that it has"):
        run(model, tmp_path / "nowhere", sdpo_interactions(**{**QUICK, "lora": Lora(targets=("nowhere",))}))
