"""Recipes over groups of answers, as whole runs: resumed bit for bit; on the embedded model, and served afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from afterword.chat.render import render_prompt
from afterword.learn.parts.generation import Generation
from afterword.learn.parts.teachers import BASE
from afterword.learn.parts.weights import AnswerPower, GroupSoftmax
from afterword.learn.recipes import Recipe, recipe, sft
from afterword.model.generation.drawing import drawer_of
from afterword.model.loading import EMBEDDED, load_model, load_tokenizer
from afterword.records import Turn
from afterword.train.data.examples import Example
from afterword.train.loop import train_candidate
from afterword.train.monitoring.metrics import StepMetrics, read_metrics
from afterword.train.runtime.policy import load_policy
from tests.train.tiny_model import example, tiny_folder

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

VERIFIER = "tests.learn.recipe_inputs:some_letters"


class Killed(Exception):
    pass


def everything() -> Recipe:
    """Hints, measures, a mean by weight, a pool, a schedule and two generations in one recipe."""
    base = recipe("srpo", verifier=VERIFIER, num_generations=3, batch=4, dtype="float32", max_fresh=6, fresh=2)
    sibling, outcome = base.terms
    weights = (*sibling.weights, GroupSoftmax("logp_student"))
    sibling = dataclasses.replace(sibling, weights=weights, schedules=(("weights.0.beta", base.schedule),))
    return dataclasses.replace(
        base, terms=(sibling, outcome), extra_generations=(Generation(weights=BASE, n=1, when="none_right"),)
    )


def served() -> Recipe:
    """Measures of served answers, which are taken before the first of several epochs."""
    term = dataclasses.replace(sft().terms[0], weights=(AnswerPower("logp_student", factor=5.0),))
    return dataclasses.replace(sft(epochs=3, batch=2, dtype="float32"), terms=(term,))


@pytest.mark.parametrize(("make", "steps", "kills"), [(everything, 8, (2, 6)), (served, 6, (3,))])
def test_a_run_of_groups_that_is_killed_goes_on_bit_for_bit(
    make: Callable[[], Recipe], steps: int, kills: tuple[int, ...], tmp_path: Path
) -> None:
    """Killed in the middle of its passes."""
    model = tiny_folder(tmp_path / "model")
    given = [example(model, i, text=f"Answer {i}.") for i in range(4)]

    def train(name: str, until: int | None) -> list[tuple[float, float]]:
        def stop(metrics: StepMetrics) -> None:
            if metrics.step == until:
                raise Killed

        folder = tmp_path / name
        train_candidate(
            given, model=model, out=folder / "out", run_dir=folder / "run", recipe=make(), seed=3, save_every=1,
            progress=stop,
        )  # fmt: skip
        return [(m.loss, m.grad_norm) for m in read_metrics(folder / "run")]

    whole = train("whole", None)
    assert len(whole) == steps and len(set(whole)) > 4
    for step in kills:
        with pytest.raises(Killed):
            train("killed", step)
    assert train("killed", None) == whole
    one, two = (load_file(tmp_path / name / "out" / "adapter_model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(one[key], two[key]) for key in one)


ASKED = ("Why is the sky blue?", "Name three rivers.", "What is a noun?")
SLOTS: dict[str, dict[str, Any]] = {
    "rlsd": {},  # advantages that multiply, any field schedulable
    "srpo": {},  # hints, average by weight
    "scope": {"teacher": EMBEDDED},  # measures
    "hdpo": {},  # generation
    "sage": {},  # the student's context
    "rlad": {"teacher": EMBEDDED},  # a clip that sees scores
    "dasd": {"teacher": EMBEDDED, "verifier": None},  # scored spans
    "essd": {"verifier": None},  # hot samples
    "rltf": {},
    "sd-zero": {},
    "ra-opd": {"told": "words"},
    "kdrl": {"teacher": EMBEDDED},
    "sdar": {},
    "crisp": {"verifier": None, "experience": "Answer in one short sentence."},
    "nurl": {},  # answers of several origins in one group
    "pope": {},
    "erl": {},
    "pi-distill": {},
    "vold": {"teacher": EMBEDDED},
    "varreason": {},
    "iterative-sft": {},
    "fast-opd": {"teacher": EMBEDDED, "verifier": None},
    "mopd": {"teacher": EMBEDDED, "verifier": None},
}
"""Recipe of each slot -> what it has to be told."""


def asked(number: int) -> Example:
    """An interaction of the embedded model whose user wrote the answer that was wanted."""
    tokenizer = load_tokenizer(EMBEDDED)
    messages = ({"role": "user", "content": ASKED[number % 3]},)
    made = example(EMBEDDED, number, text="I do not know.", hindsight="Because of light.", messages=messages,
                   prompt_ids=render_prompt(tokenizer, messages).ids)  # fmt: skip
    return Example(dataclasses.replace(made.interaction, kind="edited"), made.turn)


def by_length(turn: Turn, answer: str) -> float:
    """A verifier that about half of the answers pass."""
    return float(len(answer) % 2 == 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SLOTS))
def test_three_steps_on_the_embedded_model_make_an_adapter_that_others_read(name: str, tmp_path: Path) -> None:
    told = {"verifier": "tests.train.test_group_recipes:by_length", "num_generations": 2, **SLOTS[name]}
    one = recipe(name, **{k: v for k, v in told.items() if v is not None}, fresh=1, max_fresh=12, dtype="float32")
    generations = [dataclasses.replace(g, n=None if g.n is None else 2, keep=g.keep if name == "iterative-sft" else ())
                   for g in one.generations]  # fmt: skip
    rows = 3 * sum(one.answers_of(g) for g in generations)
    one = dataclasses.replace(
        one, generation=generations[0], extra_generations=tuple(generations[1:]), batch=-(-rows // 3), epochs=0
    )
    done = train_candidate(
        [asked(i) for i in range(3)], model=EMBEDDED, out=tmp_path / "out", run_dir=tmp_path / "run", recipe=one
    )
    metrics = read_metrics(tmp_path / "run")
    assert len(metrics) == 3 and any(m.grad_norm > 0 for m in metrics)
    ids = list(render_prompt(load_tokenizer(EMBEDDED), [{"role": "user", "content": ASKED[0]}]).ids)
    with torch.no_grad():
        base = load_model(EMBEDDED, dtype="float32")
        before = base(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        adapted = PeftModel.from_pretrained(base, str(done.path)).eval()
        after = adapted(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    assert not torch.equal(before, after)
    policy = load_policy(EMBEDDED, one, parent=done.path, seed=0, device="cpu")
    (drawn,) = drawer_of(policy.model, [-1]).draw([ids], [1], adapter=policy.live(), temperature=1.0)
    assert drawn.logprobs[0] == pytest.approx(float(after[drawn.tokens[0]]), abs=1e-4)
