"""Teachers of every kind in a run: what they start as, how they follow, that they resume, what is refused."""

from __future__ import annotations

import dataclasses
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from afterword.chat.render import decode
from afterword.errors import AdapterError, ModelError, UsageError
from afterword.learn.parts.contexts import CONTEXTS
from afterword.learn.parts.schedules import OnMetric
from afterword.learn.parts.targets import Extrapolation
from afterword.learn.parts.teachers import (
    BASE,
    EMA,
    LIVE,
    START,
    Copy,
    External,
    Released,
    Routed,
    Teacher,
    TrustRegion,
)
from afterword.learn.recipes import Recipe, sdpo_interactions
from afterword.model.loading import load_tokenizer
from afterword.model.packing import Packed, packed
from afterword.train.artifact import TrainResult
from afterword.train.data.examples import Example, prepare
from afterword.train.loop import train_candidate
from afterword.train.monitoring.metrics import read_metrics
from afterword.train.runtime.policy import Policy, load_policy
from afterword.train.runtime.teacher_cache import TeacherCache, TeacherStates
from afterword.train.runtime.teacher_runtime import TeacherRuntime
from tests.train.tiny_model import example, tiny_folder

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

PAIRS = [((5, 6, 7, 8), (9, 10, 2)), ((20, 21), (22, 23, 24, 25, 2))]
QUICK: dict[str, Any] = {"dtype": "float32", "batch": 4, "epochs": 2, "fresh": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "model")


def run(model: str, folder: Path, recipe: Recipe, examples: list[Example] | None = None, **options: Any) -> TrainResult:
    words = ("Shorter, please.", "Say hello first.", "In Spanish?")
    given = examples or [example(model, i, hindsight=words[i % 3]) for i in range(8)]
    return train_candidate(given, model=model, out=folder / "out", run_dir=folder / "run", recipe=recipe, **options)


def losses(folder: Path) -> list[float]:
    return [m.loss for m in read_metrics(folder / "run")]


def taught(model: str, teacher: Teacher, moved: float = 0.05) -> tuple[Policy, TeacherRuntime]:
    recipe = sdpo_interactions(**QUICK, teacher=teacher)
    policy = load_policy(model, recipe, parent=None, seed=0, device="cpu")
    teaching = TeacherRuntime(policy, recipe, model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter) * moved)
    return policy, teaching


def test_an_average_follows_the_merged_update(model: str) -> None:
    teacher = EMA(rate=0.2)
    policy, teaching = taught(model, teacher)
    batch = packed(PAIRS)
    assert torch.equal(teaching.side(teacher, batch).states, policy.hidden(batch, "base"))  # it began as the student
    student = {name: d.full() for name, d in policy.live().items()}
    for step in range(1, 15):
        teaching.follow(step)
    left = 0.8**14
    for name, delta in policy.deltas[teacher.key].items():
        torch.testing.assert_close(delta.full(), (1 - left) * student[name], atol=1e-6, rtol=1e-4)
        assert delta.numel <= student[name].numel()
    states = teaching.side(teacher, batch).states
    assert not states.requires_grad
    weight = next(p for n, p in policy.model.named_parameters() if n.endswith("0.self_attn.q_proj.base_layer.weight"))
    assert weight.grad is None


def test_a_copy_steps_and_a_trust_region_stays_near(model: str) -> None:
    batch = packed(PAIRS)
    policy, teaching = taught(model, Copy(every=3))
    teaching.follow(2)
    assert torch.equal(teaching.side(Copy(every=3), batch).states, policy.hidden(batch, "base"))
    teaching.follow(3)
    assert torch.equal(teaching.side(Copy(every=3), batch).states, policy.hidden(batch, "live").detach())

    teacher = TrustRegion(rate=0.3, bound=0.01)
    policy, teaching = taught(model, teacher, moved=0.3)
    start, moved = policy.hidden(batch, "base"), []
    for step in range(1, 12):
        states = teaching.side(teacher, batch).states
        teaching.measure(teacher, states, start, batch.targets)
        before = policy.deltas[teacher.key]
        total, count = teaching.drift[teacher.key].tolist()
        teaching.follow(step)
        moved.append(policy.deltas[teacher.key] is not before)
        assert moved[-1] == (total / count <= teacher.bound)
    assert moved[0] and not moved[-1]


class Saved:
    """A tensor that a graph keeps for its backward pass; gone when the graph is."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


@pytest.mark.parametrize(
    "teacher",
    [EMA(), TrustRegion(), Copy(every=1), Routed(routes=(("code", EMA()),), default=LIVE)],
    ids=lambda teacher: teacher.weights,
)
def test_a_teacher_reads_while_nothing_is_kept_of_the_student(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: Teacher
) -> None:
    kept: weakref.WeakSet[Saved] = weakref.WeakSet()
    within, after = [], []
    read, side = Policy.read, TeacherRuntime.side

    def pack(tensor: torch.Tensor) -> Saved:
        kept.add(saved := Saved(tensor))
        return saved

    def reading(self: Policy, pairs: Any) -> Any:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
            found = read(self, pairs)
        after.append(len(kept))
        return found

    def siding(self: TeacherRuntime, teacher: Teacher, batch: Packed) -> Any:
        within.append(len(kept))
        return side(self, teacher, batch)

    monkeypatch.setattr(Policy, "read", reading)
    monkeypatch.setattr(TeacherRuntime, "side", siding)
    run(model, tmp_path, sdpo_interactions(**{**QUICK, "epochs": 1}, teacher=teacher, anchor=0.1, micro_tokens=150))
    assert len(after) >= 4 and min(after) > 10  # micro-batches, and the tensors that each keeps
    assert len(within) >= len(after) and max(within) == 0


@pytest.mark.parametrize(
    "teacher", [EMA(rate=0.1), TrustRegion(rate=0.3, bound=1e-5), Copy(every=2), EMA(rate=0.1, rank=4)]
)
def test_teachers_and_schedules_resume_bit_for_bit(model: str, tmp_path: Path, teacher: Teacher) -> None:
    made = sdpo_interactions(**{**QUICK, "batch": 2}, teacher=teacher, anchor=0.1)
    entropy = OnMetric("entropy_student", 99.0, window=2, after=0.5)
    recipe = dataclasses.replace(
        made,
        schedule=OnMetric("loss", 99.0, window=3, after=0.3),
        terms=(made.terms[0], dataclasses.replace(made.terms[1], schedule=entropy)),
    )

    class Stop(Exception):
        pass

    def stop(metrics: Any) -> None:
        if metrics.step == 5:
            raise Stop

    with pytest.raises(Stop):
        run(model, tmp_path / "killed", recipe, progress=stop, save_every=2)
    run(model, tmp_path / "killed", recipe)
    run(model, tmp_path / "straight", recipe)
    assert len(losses(tmp_path / "straight")) == 8
    assert losses(tmp_path / "killed") == losses(tmp_path / "straight")
    lrs = [m.lr for m in read_metrics(tmp_path / "straight" / "run")]
    assert lrs == pytest.approx([1e-3] * 3 + [3e-4] * 5)
    files = [tmp_path / f / "out" / "adapter_model.safetensors" for f in ("killed", "straight")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_released_version_teaches_and_another_bases_is_refused(model: str, tmp_path: Path) -> None:
    parent = run(model, tmp_path / "parent", sdpo_interactions(**QUICK)).path
    once: dict[str, Any] = {**QUICK, "epochs": 1}
    as_start = run(model, tmp_path / "start", sdpo_interactions(**once, lr=0.0), parent=parent)
    released = Released(folder=str(parent))
    run(model, tmp_path / "released", sdpo_interactions(**once, teacher=released, lr=0.0), parent=parent)
    assert as_start.metrics["loss_first"] > 0
    assert losses(tmp_path / "released") == losses(tmp_path / "start")
    note = json.loads((parent / "afterword.json").read_text())
    (parent / "afterword.json").write_text(json.dumps(note | {"base_hash": "0" * 32}))
    with pytest.raises(AdapterError, match="made for a base model with weights"):
        run(model, tmp_path / "foreign", sdpo_interactions(**QUICK, teacher=released))
    with pytest.raises(AdapterError, match="made for a base model with weights"):
        run(model, tmp_path / "foreign", sdpo_interactions(**QUICK), parent=parent)


def test_an_external_teacher_reads_the_same_ids_or_is_refused(model: str, tmp_path: Path) -> None:
    other = tiny_folder(tmp_path / "other", seed=5, hidden_size=16)
    teacher = External(model=other, dtype="float32")
    run(model, tmp_path / "run", sdpo_interactions(**QUICK, teacher=teacher, where=CONTEXTS["none"]))
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]
    itself = External(model=model, dtype="float32")
    run(model, tmp_path / "self", sdpo_interactions(**{**QUICK, "epochs": 1}, teacher=itself))
    run(model, tmp_path / "base", sdpo_interactions(**{**QUICK, "epochs": 1}, teacher=BASE))
    assert losses(tmp_path / "self") == losses(tmp_path / "base")
    small = tiny_folder(tmp_path / "small", hidden_size=16)
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    (tmp_path / "small" / "config.json").write_text(json.dumps(config | {"vocab_size": 200}))
    with pytest.raises(ModelError, match="200 ids and 259"):
        run(model, tmp_path / "no", sdpo_interactions(**QUICK, teacher=External(model=small)))
    tokens = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    vocabulary = tokens["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(ModelError, match="the same tokenizer"):
        run(model, tmp_path / "no", sdpo_interactions(**QUICK, teacher=teacher))


def test_every_task_has_its_teacher(model: str, tmp_path: Path) -> None:
    parent = run(model, tmp_path / "parent", sdpo_interactions(**QUICK)).path
    routed = Routed(routes=(("code", BASE),), default=START)
    recipe = sdpo_interactions(**QUICK, teacher=routed)
    policy = load_policy(model, recipe, parent=parent, seed=0, device="cpu")
    examples = [example(model, i) for i in range(4)]
    for i in (1, 2):
        examples[i] = dataclasses.replace(
            examples[i], interaction=dataclasses.replace(examples[i].interaction, task="code")
        )
    rows = prepare(examples, load_tokenizer(model), recipe, limit=512, vocabulary=259).rows
    states = TeacherStates(TeacherRuntime(policy, recipe, model), rows, recipe, TeacherCache(None), "x")
    got = states.get(routed, CONTEXTS["appended"], [0, 1, 2, 3])
    assert got is not None
    for i, piece in enumerate(torch.split(got.states, [len(r.completion) for r in rows])):
        alone = packed([(rows[i].teacher_prompts[CONTEXTS["appended"]], rows[i].completion)])
        own = policy.hidden(alone, "base" if i in (1, 2) else "start")
        torch.testing.assert_close(piece, own, atol=1e-5, rtol=1e-4)


def test_a_reference_reads_what_the_student_reads(model: str, tmp_path: Path) -> None:
    made = sdpo_interactions(**QUICK)
    term = dataclasses.replace(made.terms[0], target=Extrapolation(1.0), reference=BASE)
    run(model, tmp_path / "one", dataclasses.replace(made, terms=(term,)))
    run(model, tmp_path / "plain", made)
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)  # at 1 it cancels
    beyond = dataclasses.replace(term, target=Extrapolation(1.5))
    run(model, tmp_path / "beyond", dataclasses.replace(made, terms=(beyond,)))
    assert losses(tmp_path / "beyond")[0] > losses(tmp_path / "one")[0]


def test_a_target_beyond_the_teacher_leads_away_from_the_same_weights_without_words(model: str, tmp_path: Path) -> None:
    plain, beyond = sdpo_interactions(**QUICK), sdpo_interactions(beyond=0.5, **QUICK)
    term = beyond.terms[0]
    assert term.target == Extrapolation(1.5, plausible=0.01)
    assert (term.reference, term.reference_context) == (term.teacher, CONTEXTS["none"])
    run(model, tmp_path / "plain", plain)
    run(model, tmp_path / "beyond", beyond)
    assert losses(tmp_path / "beyond")[0] > losses(tmp_path / "plain")[0]
    with pytest.raises(UsageError, match="set one of them to 0"):
        sdpo_interactions(beyond=0.5, contrast=1.0)


def test_a_contrast_reads_a_remark_of_no_content_beside_the_users_own_words(model: str, tmp_path: Path) -> None:
    plain, contrast = sdpo_interactions(**QUICK), sdpo_interactions(contrast=1.0, **QUICK)
    examples = [example(model, i) for i in range(3)]
    last = dataclasses.replace(examples[2].interaction, kind="edited")
    examples[2] = dataclasses.replace(examples[2], interaction=last)
    rows = prepare(examples, load_tokenizer(model), contrast, limit=512, vocabulary=259).rows
    said = decode(load_tokenizer(model), rows[0].teacher_prompts[CONTEXTS["remark"]])
    assert "That is not what I wanted." in said and examples[0].interaction.hindsight not in said
    assert rows[0].teacher_prompts[CONTEXTS["remark"]] != rows[0].teacher_prompts[CONTEXTS["appended"]]
    assert rows[2].teacher_prompts[CONTEXTS["remark"]] == rows[2].teacher_prompts[CONTEXTS["appended"]], (
        "an edit is no remark"
    )
    run(model, tmp_path / "plain", plain)
    run(model, tmp_path / "contrast", contrast)
    assert losses(tmp_path / "contrast")[0] != pytest.approx(losses(tmp_path / "plain")[0], rel=1e-3)


def test_a_frozen_teacher_is_read_from_disk(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, cache = sdpo_interactions(**QUICK), tmp_path / "cache"
    calls: list[str] = []
    real: Callable[..., Any] = Policy.hidden

    def counted(self: Policy, batch: Any, weights: str) -> Any:
        calls.append(weights)
        return real(self, batch, weights)

    monkeypatch.setattr(Policy, "hidden", counted)
    monkeypatch.setattr("afterword.train.setup.write_alignment", lambda *_: None)  # the report asks teachers anew
    run(model, tmp_path / "first", recipe, cache=cache)
    assert "start" in calls
    calls.clear()
    run(model, tmp_path / "second", recipe, cache=cache)
    assert "start" not in calls
    assert losses(tmp_path / "first") == losses(tmp_path / "second")
    assert len(list(cache.glob("*.safetensors"))) == 8
    for file in cache.glob("*.safetensors"):
        file.write_bytes(b"broken")
    run(model, tmp_path / "third", recipe, cache=cache)
    assert losses(tmp_path / "first") == losses(tmp_path / "third")
    small = TeacherCache(cache, most=max(f.stat().st_size for f in cache.iterdir()) * 3)
    small.trim()
    assert 2 <= len(list(cache.glob("*.safetensors"))) <= 4


def test_checkpointing_changes_memory_not_the_result(model: str, tmp_path: Path) -> None:
    once: dict[str, Any] = {**QUICK, "epochs": 1}
    run(model, tmp_path / "plain", sdpo_interactions(**once))
    run(model, tmp_path / "again", sdpo_interactions(**once, checkpointing=True))
    assert losses(tmp_path / "again") == losses(tmp_path / "plain")
    assert START.key == "start"


@pytest.mark.parametrize("padded", ["teacher", "student"])
def test_padding_of_the_vocabulary_is_no_other_vocabulary(tmp_path: Path, padded: str) -> None:
    """Qwen2.5 7B has 152,064 output rows and 1.5B 151,936, for one tokenizer of 151,665 ids."""
    plain, wide = tiny_folder(tmp_path / "plain"), tiny_folder(tmp_path / "wide")
    grown = LlamaForCausalLM.from_pretrained(wide)
    grown.resize_token_embeddings(300, mean_resizing=False)
    grown.save_pretrained(wide)
    student, teacher = (plain, wide) if padded == "teacher" else (wide, plain)
    recipe = sdpo_interactions(**{**QUICK, "epochs": 1}, teacher=External(model=teacher, dtype="float32"))
    run(student, tmp_path / "padded", recipe)
    base = sdpo_interactions(**{**QUICK, "epochs": 1}, teacher=External(model=plain, dtype="float32"))
    run(plain, tmp_path / "same", base)
    assert losses(tmp_path / "padded") == pytest.approx(losses(tmp_path / "same"), rel=1e-4)
