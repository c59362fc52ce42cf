"""A step reads a prompt once for all answers to it, and learns what it would from separate rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from afterword.chat.render import render_prompt
from afterword.learn.loss.terms import divisors
from afterword.learn.parts.teachers import LIVE, START, Teacher
from afterword.learn.recipes import sdpo_interactions
from afterword.learn.recipes.outcome import grpo
from afterword.model import packing
from afterword.model.loading import load_tokenizer
from afterword.train.data.batches import plan_steps, rows_of, split
from afterword.train.data.examples import prepare
from afterword.train.runtime.gradients import StepGradient
from afterword.train.runtime.policy import load_policy
from afterword.train.runtime.steps import forward
from afterword.train.runtime.teacher_cache import TeacherCache, TeacherStates
from afterword.train.runtime.teacher_runtime import TeacherRuntime
from tests.train.tiny_model import example, tiny_folder

LONG = "What is the best way from the station to the garden by the river, and how long does it take?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


def answers(model: str) -> list[Any]:
    """Six answers to one prompt."""
    tokenizer = load_tokenizer(model)
    messages = ({"role": "user", "content": LONG},)
    prompt = render_prompt(tokenizer, messages).ids
    return [example(model, n, text=f"{n} minutes" + "!" * n, messages=messages, prompt_ids=prompt) for n in range(6)]


def conversation(model: str) -> list[Any]:
    """Six turns of one conversation."""
    tokenizer, made = load_tokenizer(model), []
    messages: list[Any] = []
    for n in range(6):
        messages = [*messages, {"role": "user", "content": f"Question number {n}, please?"}]
        prompt = render_prompt(tokenizer, messages).ids
        made.append(example(model, n, text=f"Answer {n}.", messages=tuple(messages), prompt_ids=prompt))
        messages = [*messages, {"role": "assistant", "content": f"Answer {n}."}]
    return made


def step(model: str, examples: list[Any], teacher: Teacher, folder: Path) -> tuple[float, list[Tensor], int]:
    """Loss, gradients and the tokens that the student read with a gradient."""
    recipe = sdpo_interactions(teacher=teacher, anchor=0.1, dtype="float32", micro_tokens=400, fresh=0)
    tokenizer, read = load_tokenizer(model), [0]
    policy = load_policy(model, recipe, parent=None, seed=0, device="cpu")
    for parameter in policy.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    rows = prepare(examples, tokenizer, recipe, limit=512, vocabulary=len(tokenizer)).rows
    states = TeacherStates(TeacherRuntime(policy, recipe, model), rows, recipe, TeacherCache(folder), "name")
    terms, whole = list(recipe.terms), rows_of(rows)
    gradient, losses = StepGradient(policy.parameters(), terms, divisors(terms, whole)), []

    def count(_: Any, args: tuple[Tensor, ...]) -> None:
        read[0] += args[0].numel() if torch.is_grad_enabled() else 0

    hook = policy.model.get_input_embeddings().register_forward_pre_hook(count)
    for micro in split(rows, range(len(rows)), 400):
        losses += gradient.add(forward(policy, states, terms, micro))
    hook.remove()
    found = [p.grad.clone() for p in policy.parameters() if p.grad is not None]
    return float(torch.stack(losses).sum().detach()), found, read[0]


@pytest.mark.parametrize("teacher", [LIVE, START])
@pytest.mark.parametrize("made", [answers, conversation])
def test_a_step_reads_what_is_needed_and_learns_the_same(
    made: Callable[[str], list[Any]], teacher: Teacher, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides of the disk cache too: what was stored by one way is read by the other."""
    examples = made(model)
    whole = [(*e.turn.prompt_ids, *e.turn.completion_ids) for e in examples]
    needed = len({ids[: n + 1] for ids in whole for n in range(len(ids))})
    loss, gradients, read = step(model, examples, teacher, tmp_path / "a")
    again = step(model, examples, teacher, tmp_path / "a")
    assert again[0] == loss and all(map(torch.equal, again[1], gradients))
    assert read <= 1.15 * needed < 0.6 * sum(map(len, whole))
    monkeypatch.setattr(packing, "_LEAST_SHARED", 1.0)
    want, wanted, separate = step(model, examples, teacher, tmp_path / "b")
    assert separate == sum(map(len, whole))
    assert loss == pytest.approx(want, rel=1e-5, abs=1e-7)
    largest = max(float(g.abs().max()) for g in wanted)
    for got, each in zip(gradients, wanted, strict=True):
        assert float((got - each).abs().max()) <= 1e-5 * largest


def test_fresh_answers_to_one_prompt_follow_one_another(model: str) -> None:
    tokenizer = load_tokenizer(model)
    examples = [example(model, n) for n in range(5)]
    recipe = grpo(verifier="builtins:len", num_generations=4, batch=8, epochs=0, fresh=2)
    rows = prepare(examples, tokenizer, recipe, limit=512, vocabulary=len(tokenizer)).rows
    steps = plan_steps(rows, recipe, 0)
    for epoch in (0, 1):
        order = [i for one in steps if one.epoch == epoch for i in one.picked]
        assert sorted(order) == list(range(20)) and order != sorted(order)
        assert all(order[k : k + 4] == list(range(order[k], order[k] + 4)) for k in range(0, 20, 4))
    alone = plan_steps(rows, replace(recipe, num_generations=1), 3)
    generator = torch.Generator().manual_seed(3 * 1_000_003)
    assert [i for one in alone if one.epoch == 0 for i in one.picked] == torch.randperm(5, generator=generator).tolist()
