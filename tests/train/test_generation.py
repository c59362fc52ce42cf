"""Answers written anew: the student's own, reproducible, and the weights come back as they were."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BloomConfig, BloomForCausalLM

from afterword.chat.render import end_of_turn_ids, render_prompt
from afterword.errors import ConfigError, NothingToDo
from afterword.learn.diagnostics import log_probs
from afterword.learn.recipes import recipe, sdpo_interactions
from afterword.model.generation.text import stop_ids
from afterword.model.loading import EMBEDDED, load_model, load_tokenizer
from afterword.records import Turn
from afterword.train.data.examples import prepare
from afterword.train.data.rows import Encoded
from afterword.train.generation.generation import Rollouts, VerifierFailed, clear_rollouts, generate, rollout_rows
from afterword.train.loop import train_candidate
from afterword.train.monitoring.metrics import StepMetrics, read_metrics
from afterword.train.runtime.distributed import SINGLE
from afterword.train.runtime.policy import Policy, load_policy
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answers_are_drawn_from_what_is_scored_and_leave_no_trace(model: str, dtype: str) -> None:
    policy = moved_policy(model, dtype)
    before = {name: p.clone() for name, p in policy.model.named_parameters()}
    prompts, limits = [list(range(10, 40)), list(range(50, 55)), [7]] * 8, [24, 9, 1] * 8
    drawn = generate(policy, prompts, [2], limits, seed=5)
    pairs = [(tuple(p), tuple(one.tokens)) for p, one in zip(prompts, drawn, strict=True)]
    scored = torch.cat(log_probs(policy.model, policy.head, pairs))
    sampled = torch.tensor([x for one in drawn for x in one.logprobs])
    assert all(len(one.tokens) <= limit for one, limit in zip(drawn, limits, strict=True))
    if dtype == "float32":
        torch.testing.assert_close(sampled, scored, atol=2e-5, rtol=1e-4)
    assert divergence(sampled, scored) < (1e-6 if dtype == "float32" else 1e-3)
    assert all(torch.equal(p, before[name]) for name, p in policy.model.named_parameters())
    alone = generate(policy, prompts[:2], [2], limits[:2], seed=5)
    if dtype == "float32":  # an answer does not depend on those drawn beside it
        assert [one.tokens for one in alone] == [one.tokens for one in drawn[:2]]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_architectures_that_the_engine_does_not_compute_draw_with_transformers(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    settings = {"vocab_size": 259, "hidden_size": 32, "n_layer": 2, "n_head": 2, "seq_length": 512, "eos_token_id": 2}
    torch.manual_seed(0)
    BloomForCausalLM(BloomConfig(**settings, bos_token_id=2, max_position_embeddings=512)).save_pretrained(folder)
    policy = moved_policy(folder)
    prompts, limits = [list(range(10, 40)), list(range(50, 55)), [7]], [24, 9, 24]
    drawn = generate(policy, prompts, [2], limits, seed=5)
    assert all(len(one.tokens) <= limit for one, limit in zip(drawn, limits, strict=True))
    pairs = [(tuple(p), tuple(one.tokens)) for p, one in zip(prompts, drawn, strict=True)]
    scored = torch.cat(log_probs(policy.model, policy.head, pairs))
    torch.testing.assert_close(torch.tensor([x for one in drawn for x in one.logprobs]), scored, atol=2e-5, rtol=1e-4)
    assert [one.tokens for one in generate(policy, prompts, [2], limits, seed=5)] == [one.tokens for one in drawn]
    result = train_candidate(
        [example(folder, i) for i in range(2)], model=folder, out=tmp_path / "out", run_dir=tmp_path / "run",
        recipe=sdpo_interactions(dtype="float32", epochs=0, fresh=1, max_fresh=8),
    )  # fmt: skip
    assert result.metrics["steps"] == 1


def test_layers_of_different_ranks_are_drawn_as_they_are_scored(model: str, tmp_path: Path) -> None:
    """An adapter of somebody else, taken as parent, may have PEFT's `rank_pattern`."""
    config = LoraConfig(r=4, rank_pattern={"q_proj": 2}, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    other = get_peft_model(load_model(model, dtype="float32"), config)
    for parameter in other.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, 0, 0.1)
    other.save_pretrained(str(tmp_path / "parent"))
    policy = load_policy(model, sdpo_interactions(dtype="float32"), parent=tmp_path / "parent", seed=0, device="cpu")
    (drawn,) = generate(policy, [list(range(10, 40))], [2], [24], seed=5)
    (scored,) = log_probs(policy.model, policy.head, [(tuple(range(10, 40)), tuple(drawn.tokens))])
    torch.testing.assert_close(torch.tensor(drawn.logprobs), scored, atol=2e-5, rtol=1e-4)


def divergence(sampled: torch.Tensor, scored: torch.Tensor) -> float:
    """KL(sampler || scorer) in nats a token, from the log-probabilities of tokens that the sampler drew: the mean of
    r - 1 - log r with r = p / q, which is never negative (Schulman's k3)."""
    log_ratio = (scored - sampled).double()
    return float((log_ratio.exp() - 1 - log_ratio).mean())


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-4), ("bfloat16", 4e-3)])
def test_the_embedded_models_sampler_is_its_scorer(dtype: str, most: float) -> None:
    """In bf16 both round in other places (norms, residual sums, adapters), which is 1.8e-3 here: the sampler's own
    log-probabilities are therefore what a ratio divides by."""
    policy = load_policy(EMBEDDED, sdpo_interactions(dtype=dtype), parent=None, seed=0, device="cpu")
    torch.manual_seed(1)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.002)
    tokenizer = load_tokenizer(EMBEDDED)
    asked = ["Why is the sky blue?", "Write a poem about rain.", "Explain TCP to a child.", "Plan a day in Rome."]
    prompts = [render_prompt(tokenizer, [{"role": "user", "content": text}]).ids for text in asked] * 2
    drawn = generate(policy, prompts, stop_ids(policy.model.get_base_model(), tokenizer), [24] * 8, seed=0)
    pairs = [(p, tuple(one.tokens)) for p, one in zip(prompts, drawn, strict=True)]
    scored = torch.cat(log_probs(policy.model, policy.head, pairs))
    sampled = torch.tensor([x for one in drawn for x in one.logprobs])
    assert 0 <= divergence(sampled, scored) < most


def test_answers_are_the_students_own_and_end_where_they_end(model: str, tmp_path: Path) -> None:
    policy, rows, ends = moved_policy(model), encoded(model), end_of_turn_ids(load_tokenizer(model))
    state = torch.get_rng_state()
    fresh = rollout_rows(policy, rows, ends, tmp_path, number=1, key="k", seed=3, most=99, limit=512)
    assert torch.equal(torch.get_rng_state(), state)
    longest = max(len(r.completion) for r in rows)
    for old, new in zip(rows, fresh, strict=True):
        assert (new.prompt, new.teacher_prompts, new.weight) == (old.prompt, old.teacher_prompts, old.weight)
        assert 1 <= len(new.completion) <= longest
        assert new.on_policy
        assert not set(new.completion[:-1]) & set(ends)
        assert len(new.completion) == longest or new.completion[-1] in ends
    assert [r.completion for r in fresh] != [r.completion for r in rows]
    short = rollout_rows(policy, rows, ends, tmp_path / "..", number=2, key="k", seed=3, most=2, limit=512)
    assert max(len(r.completion) for r in short) == 2
    other = rollout_rows(policy, rows, ends, tmp_path / "..", number=1, key="k", seed=4, most=99, limit=512)
    assert [r.completion for r in fresh] != [r.completion for r in other]


def test_a_resumed_pass_reads_its_answers_and_another_run_does_not(model: str, tmp_path: Path) -> None:
    policy, rows, ends = moved_policy(model), encoded(model), end_of_turn_ids(load_tokenizer(model))
    first = rollout_rows(policy, rows, ends, tmp_path, number=1, key="k", seed=3, most=99, limit=512)
    file = tmp_path / "fresh-1.json"
    kept = json.loads(file.read_text())
    kept["answers"][0] = [7, 7]
    file.write_text(json.dumps(kept))
    assert rollout_rows(policy, rows, ends, tmp_path, number=1, key="k", seed=3, most=99, limit=512)[0].completion == (
        7,
        7,
    )
    assert rollout_rows(policy, rows, ends, tmp_path, number=1, key="other", seed=3, most=99, limit=512) == first
    clear_rollouts(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_ends_with_passes_over_fresh_answers(model: str, tmp_path: Path) -> None:
    examples = [example(model, i, prompt_ids=None, completion_ids=None) for i in range(4)]
    recipe = sdpo_interactions(dtype="float32", batch=2, epochs=1, fresh=2, include_off_policy=True)
    run_dir = tmp_path / "run"
    result = train_candidate(examples, model=model, out=tmp_path / "out", run_dir=run_dir, recipe=recipe)
    metrics = read_metrics(run_dir)
    assert [m.off_policy for m in metrics] == [2, 2, 0, 0, 0, 0]  # what the student wrote is on-policy
    assert len({m.tokens for m in metrics}) > 1
    assert result.interactions == ("int-0", "int-1", "int-2", "int-3")
    assert not list(run_dir.glob("fresh-*"))


def test_a_fresh_answer_leaves_room_for_what_the_teacher_reads(tmp_path: Path) -> None:
    """The hindsight is fitted to the served answer of its own row; a fresh one may be longer than that."""
    small = tiny_folder(tmp_path / "small", context=160)
    tokenizer = load_tokenizer(small)
    given = [example(small, 0, text="A" * 70, hindsight="Short."), example(small, 1, text="Brief", hindsight="w" * 400)]
    wanted = sdpo_interactions(epochs=0, fresh=1, dtype="float32", max_hindsight=400)
    prepared = prepare(given, tokenizer, wanted, limit=160, vocabulary=259)
    assert max(r.longest_prompt + 71 for r in prepared.rows) > 160
    policy = load_policy(small, wanted, parent=None, seed=0, device="cpu")
    rows = Rollouts(prepared, wanted, tokenizer, tmp_path, "k", 0, SINGLE).rows(policy, 0, 0)
    assert len(rows) == 2 and rows[0].longest_prompt + len(rows[0].completion) <= 160
    assert len(rows[1].completion) <= 160 - rows[1].longest_prompt < 71


def test_a_prompt_that_leaves_no_room_for_a_fresh_answer_is_counted(tmp_path: Path) -> None:
    small = tiny_folder(tmp_path / "small", context=160)
    given, tokenizer = [example(small, 0, text="A", hindsight="w" * 400)], load_tokenizer(small)
    with pytest.raises(NothingToDo, match=r"1 no_room.*leave 2 tokens for a fresh answer"):
        prepare(given, tokenizer, sdpo_interactions(), limit=160, vocabulary=259)
    assert prepare(given, tokenizer, sdpo_interactions(fresh=0), limit=160, vocabulary=259).rows


def test_answers_are_drawn_from_the_model_whatever_its_folder_says_of_sampling(model: str, tmp_path: Path) -> None:
    odd = tiny_folder(tmp_path / "odd")
    file = tmp_path / "odd" / "generation_config.json"
    told = {"repetition_penalty": 50.0, "min_p": 0.2, "no_repeat_ngram_size": 1, "do_sample": True, "temperature": 0.1}
    file.write_text(json.dumps({**json.loads(file.read_text()), **told}))
    for temperature in (1.0, 0.0):
        found = []
        for folder in (model, odd):
            policy = load_policy(folder, sdpo_interactions(dtype="float32"), parent=None, seed=0, device="cpu")
            torch.manual_seed(0)
            drawn = generate(policy, [list(range(10, 60))] * 4, [2], [24] * 4, temperature=temperature)
            found.append([one.tokens for one in drawn])
        assert policy.model.generation_config.repetition_penalty == 50.0
        assert found[0] == found[1]
        assert any(len(set(one)) < len(one) for one in found[1])


_ASKED: list[str] = []


def moody(turn: Turn, text: str) -> float:
    """A verifier that says something else each time."""
    _ASKED.append(text)
    return float(len(_ASKED) * 7 % 5)


def test_a_run_that_goes_on_asks_the_verifier_no_second_time(model: str, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(metrics: StepMetrics) -> None:
        if metrics.step == 1:
            raise Stop

    one = recipe(
        "grpo", verifier=f"{__name__}:moody", dtype="float32", max_fresh=4, batch=8, num_generations=4, fresh=1
    )

    def go(name: str, **options: Any) -> None:
        _ASKED.clear()
        folder = tmp_path / name
        given = [example(model, i) for i in range(4)]
        train_candidate(given, model=model, out=folder / "out", run_dir=folder / "run", recipe=one, **options)

    go("straight")
    assert len(_ASKED) == 16
    with pytest.raises(Stop):
        go("killed", progress=stop, save_every=1)
    go("killed")
    assert not _ASKED
    straight, killed = ([m.loss for m in read_metrics(tmp_path / name / "run")] for name in ("straight", "killed"))
    assert len(straight) == 2 and straight == killed


_AWAY: list[bool] = []


def far(turn: Turn, text: str) -> float:
    """A verifier that cannot be reached while `_AWAY`."""
    _ASKED.append(text)
    if _AWAY and len(_ASKED) == 3:
        raise OSError("the judge is away")
    return float(len(text) % 3)


def test_a_verifier_that_fails_costs_no_answer(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = recipe("grpo", verifier=f"{__name__}:far", dtype="float32", max_fresh=4, batch=8, num_generations=4, fresh=1)

    def go() -> list[str]:
        _ASKED.clear()
        given = [example(model, i) for i in range(4)]
        train_candidate(given, model=model, out=tmp_path / "out", run_dir=tmp_path / "run", recipe=one)
        return list(_ASKED)

    _AWAY.append(True)
    with pytest.raises(VerifierFailed, match=r"far' failed on an answer to turn turn-\d: OSError: the judge is away"):
        go()
    before = list(_ASKED)
    _AWAY.clear()
    monkeypatch.setattr("afterword.train.generation.generation.generate", None)  # nothing is written a second time
    after = go()
    assert len(after) == 16 and after[:3] == before


@pytest.mark.parametrize("name", ["no.such:thing", "json:nothing", "json:__name__", "nonsense"])
def test_a_verifier_that_is_none_is_told_before_anything_is_loaded(name: str, tmp_path: Path) -> None:
    one = dataclasses.replace(recipe("grpo", verifier=name), fresh=1)
    with pytest.raises(ConfigError, match="the verifier"):
        train_candidate([], model="no such model", out=tmp_path / "out", run_dir=tmp_path / "run", recipe=one)
    assert not (tmp_path / "run").exists()
