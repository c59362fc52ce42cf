"""Answers written anew: the student's own, reproducible, and the weights come back as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from afterword.chat.render import end_of_turn_ids
from afterword.learn.forward import packed
from afterword.learn.models import load_tokenizer
from afterword.learn.recipes import sdpo_interactions
from afterword.train.examples import Encoded, prepare
from afterword.train.fresh import clear_fresh, fresh_rows, merged
from afterword.train.loop import train_candidate
from afterword.train.metrics import read_metrics
from afterword.train.policy import Policy, load_policy
from tests.train.tiny_model import example, tiny_folder

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "model")


def moved_policy(model: str, dtype: str = "float32") -> Policy:
    """An adapter that changes something: a fresh one has B = 0."""
    policy = load_policy(model, sdpo_interactions(dtype=dtype), parent=None, seed=0, device="cpu")
    torch.manual_seed(1)
    for parameter in policy.parameters():
        parameter.data.normal_(0, 0.1)
    return policy


def encoded(model: str, n: int = 5) -> list[Encoded]:
    tokenizer = load_tokenizer(model)
    examples = [example(model, i) for i in range(n)]
    return list(prepare(examples, tokenizer, sdpo_interactions(), limit=512, vocabulary=259).rows)


def test_merging_gives_the_adapters_scores_and_leaves_no_trace(model: str) -> None:
    policy = moved_policy(model)
    batch = packed([((5, 6, 7), (8, 9))])
    before = {name: p.clone() for name, p in policy.model.named_parameters()}
    with torch.no_grad():
        live = policy.hidden(batch, "live")
        with merged(policy):
            torch.testing.assert_close(policy.hidden(batch, "live"), live, atol=1e-5, rtol=1e-4)
        assert not torch.equal(policy.hidden(batch, "base"), live)
        assert torch.equal(policy.hidden(batch, "live"), live)
    assert all(torch.equal(p, before[name]) for name, p in policy.model.named_parameters())


def test_answers_are_the_students_own_and_end_where_they_end(model: str, tmp_path: Path) -> None:
    policy, rows, ends = moved_policy(model), encoded(model), end_of_turn_ids(load_tokenizer(model))
    state = torch.get_rng_state()
    fresh = fresh_rows(policy, rows, ends, tmp_path, number=1, key="k", seed=3, most=99)
    assert torch.equal(torch.get_rng_state(), state)
    longest = max(len(r.completion) for r in rows)
    for old, new in zip(rows, fresh, strict=True):
        assert (new.prompt, new.teacher_prompts, new.weight) == (old.prompt, old.teacher_prompts, old.weight)
        assert 1 <= len(new.completion) <= longest
        assert new.on_policy
        assert not set(new.completion[:-1]) & set(ends)
        assert len(new.completion) == longest or new.completion[-1] in ends
    assert [r.completion for r in fresh] != [r.completion for r in rows]
    short = fresh_rows(policy, rows, ends, tmp_path / "..", number=2, key="k", seed=3, most=2)
    assert max(len(r.completion) for r in short) == 2
    other = fresh_rows(policy, rows, ends, tmp_path / "..", number=1, key="k", seed=4, most=99)
    assert [r.completion for r in fresh] != [r.completion for r in other]


def test_a_resumed_pass_reads_its_answers_and_another_run_does_not(model: str, tmp_path: Path) -> None:
    policy, rows, ends = moved_policy(model), encoded(model), end_of_turn_ids(load_tokenizer(model))
    first = fresh_rows(policy, rows, ends, tmp_path, number=1, key="k", seed=3, most=99)
    file = tmp_path / "fresh-1.json"
    kept = json.loads(file.read_text())
    kept["answers"][0] = [7, 7]
    file.write_text(json.dumps(kept))
    assert fresh_rows(policy, rows, ends, tmp_path, number=1, key="k", seed=3, most=99)[0].completion == (7, 7)
    assert fresh_rows(policy, rows, ends, tmp_path, number=1, key="other", seed=3, most=99) == first
    clear_fresh(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_ends_with_passes_over_fresh_answers(model: str, tmp_path: Path) -> None:
    examples = [example(model, i, prompt_ids=None, completion_ids=None) for i in range(4)]
    recipe = sdpo_interactions(dtype="float32", batch=2, passes=1, fresh=2, include_off_policy=True)
    run_dir = tmp_path / "run"
    result = train_candidate(examples, model=model, out=tmp_path / "out", run_dir=run_dir, recipe=recipe)
    metrics = read_metrics(run_dir)
    assert [m.off_policy for m in metrics] == [2, 2, 0, 0, 0, 0]  # what the student wrote is on-policy
    assert len({m.tokens for m in metrics}) > 1
    assert result.interactions == ("int-0", "int-1", "int-2", "int-3")
    assert not list(run_dir.glob("fresh-*"))
