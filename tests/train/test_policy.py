"""The switch between live, base and start weights, and gradients of adapter weights end to end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from afterword.learn.loss.loss_stage import token_losses
from afterword.learn.parts.divergences import FORWARD_KL, JSD, Estimator, ReverseKL
from afterword.learn.recipes import sdpo_interactions
from afterword.model.packing import packed
from afterword.train.runtime.policy import load_policy
from tests.train.tiny_model import tiny_folder

PAIRS = [((5, 6, 7, 8), (9, 10, 2)), ((20, 21), (22, 23, 24, 25, 2))]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "model", tie_word_embeddings=request.param)


@pytest.mark.parametrize("estimator", [FORWARD_KL, ReverseKL(), JSD(0.5)])
def test_adapter_gradients_equal_those_over_stored_logits(model: str, estimator: Estimator) -> None:
    policy = load_policy(model, sdpo_interactions(dtype="float32"), parent=None, seed=0, device="cpu")
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    batch = packed(PAIRS)
    teacher = policy.hidden(batch, "base")
    assert not teacher.requires_grad
    scores = token_losses(policy.hidden(batch, "live"), teacher, policy.head, batch.targets, estimator, tile=3)
    got = torch.autograd.grad(scores.loss.sum(), policy.parameters())

    def logits() -> torch.Tensor:
        alone = [policy.model(input_ids=ids[None]).logits[0] for ids in torch.split(batch.ids, list(batch.sizes))]
        return torch.cat(alone)[batch.picks].log_softmax(-1)

    with torch.no_grad(), policy.model.disable_adapter():
        t = logits()
    s = logits()
    if isinstance(estimator, JSD):
        m = (0.5 * t.exp() + 0.5 * s.exp()).log()
        want = 0.5 * (t.exp() * (t - m)).sum() + 0.5 * (s.exp() * (s - m)).sum()
    elif isinstance(estimator, ReverseKL):
        want = (s.exp() * (s - t)).sum()
    else:
        want = (t.exp() * (t - s)).sum()
    torch.testing.assert_close(scores.loss.sum(), want, atol=1e-5, rtol=1e-5)
    for one, other in zip(got, torch.autograd.grad(want, policy.parameters()), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
        assert one.abs().max() > 0


def test_only_the_adapter_is_trained_and_in_float32(model: str) -> None:
    policy = load_policy(model, sdpo_interactions(), parent=None, seed=0, device="cpu")
    trained = policy.parameters()
    assert {p.dtype for p in trained} == {torch.float32}
    assert {id(p) for p in trained} == {id(p) for p in policy.model.parameters() if p.requires_grad}
    assert policy.head.weight.dtype == torch.float32  # bf16 base, float32 logits


def test_the_seed_decides_the_fresh_adapter(model: str) -> None:
    states = [
        load_policy(model, sdpo_interactions(), parent=None, seed=s, device="cpu").adapter_state() for s in (1, 1, 2)
    ]
    name = next(n for n in states[0] if "lora_A" in n)
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


def test_start_weights_stay_while_the_live_ones_move(model: str, tmp_path: Path) -> None:
    first = load_policy(model, sdpo_interactions(dtype="float32"), parent=None, seed=0, device="cpu")
    for parameter in first.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    (tmp_path / "parent").mkdir()
    first.save(tmp_path / "parent", "tiny")
    policy = load_policy(model, sdpo_interactions(dtype="float32"), parent=tmp_path / "parent", seed=0, device="cpu")
    batch = packed(PAIRS)
    start, base = policy.hidden(batch, "start"), policy.hidden(batch, "base")
    assert torch.equal(start, policy.hidden(batch, "live").detach())
    assert not torch.equal(start, base)
    for parameter in policy.parameters():
        assert parameter.requires_grad
        parameter.data.add_(0.1)
    assert torch.equal(policy.hidden(batch, "start"), start)
    assert torch.equal(policy.hidden(batch, "base"), base)
    assert not torch.equal(policy.hidden(batch, "live").detach(), start)
