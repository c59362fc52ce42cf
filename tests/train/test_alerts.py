"""Every monitor has a bound, and a run that crosses it says so: in its files, in its event file and in its result."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from afterword.chat.render import encode
from afterword.learn.parts.anchors import imitation
from afterword.learn.parts.weights import ByKind
from afterword.learn.recipes import Recipe, recipe, sdpo_interactions, sft
from afterword.model.loading import load_tokenizer
from afterword.train.artifact import TrainResult
from afterword.train.data.examples import Example
from afterword.train.loop import train_candidate
from afterword.train.monitoring.alerts import ANSWERS, OFF, START, STEP, STRICT, StopRules
from afterword.train.monitoring.metrics import read_metrics
from tests.train.test_run_files import records
from tests.train.tiny_model import example, tiny_folder

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

QUICK: dict[str, Any] = {"dtype": "float32", "batch": 4, "epochs": 1, "fresh": 0}
LONG = "The answer starts alike, and then it goes on and on until there are enough letters for every place in it."
CROSSED = {
    "expert": {"overlap", "overlap_advantage", "signal", "entropy_gap", "end_signal", "top_mass"},
    "novice": {"signal", "entropy_gap", "end_signal"},
    "first": {"first_share"},
    "growing": {"depth_growth"},
    "loud": {"effective"},
    "none": {"counted"},
    "likelier now": {"ratio", "serve_gap"},
    "less likely now": {"ratio", "serve_gap"},
    "uneven": {"ratio_effective"},
    "cut": {"length_ratio", "cut_off"},
    "grown": {"length_ratio"},
    "alike": {"repeating", "self_similarity", "leaking"},
    "nothing": {"signal_real"},
    "less": {"signal_real_to_other"},
}
"""By run of this file, the bounds that it has to cross."""


def test_every_bound_is_crossed_by_a_run_of_this_file() -> None:
    assert set().union(*CROSSED.values()) == {*STEP, *ANSWERS, *START}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_folder(tmp_path_factory.mktemp("plain") / "model")


def knowing(model: str, folder: Path, text: str, *, steps: int = 60, first: int | None = None) -> str:
    """The same model after it has learned by heart to answer `text` to the first four prompts, or only its `first`
    tokens."""
    shutil.copytree(model, folder)
    tuned = LlamaForCausalLM.from_pretrained(model)
    optimiser = torch.optim.AdamW(tuned.parameters(), lr=1e-2)
    turns = [example(model, i, text=text).turn for i in range(4)]
    ids = torch.tensor([[*(t.prompt_ids or ()), *(t.completion_ids or ())[:first]] for t in turns])
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < len(turns[0].prompt_ids or ()), -100)
    for _ in range(steps):
        optimiser.zero_grad()
        tuned(input_ids=ids, labels=labels).loss.backward()
        optimiser.step()
    tuned.save_pretrained(folder)
    return str(folder)


def run(model: str, folder: Path, examples: list[Example], how: Recipe, rules: StopRules = OFF) -> TrainResult:
    return train_candidate(examples, model=model, recipe=how, out=folder / "out", run_dir=folder / "run", rules=rules)


def said(folder: Path, result: TrainResult) -> set[str]:
    """Bounds that the run crossed, and the same from each of its files."""
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    found = {name for line in lines for name in line["warnings"]}
    if (passes := folder / "run" / "answers.jsonl").is_file():
        found |= {name for line in passes.read_text().splitlines() for name in json.loads(line)["warnings"]}
    events = b"".join(records(folder / "run" / "events.out.tfevents.0.afterword"))
    told = [text for text in result.metrics["warnings"] if text.startswith("before the first step: ")]
    start = {text.removeprefix("before the first step: ").partition(" is ")[0] for text in told}
    alignment = (folder / "run" / "alignment.txt").read_text()
    assert all(f"warning: {text.removeprefix('before the first step: ')}" in alignment for text in told)
    found |= start
    for name in found:
        assert f"warnings/{name}".encode() in events
        assert any(f": {name} is " in text for text in result.metrics["warnings"])
    return found


def with_logprobs(one: Example, *values: float) -> Example:
    """Log-probabilities at sampling: `values`, the last for all that follow."""
    n = len(one.turn.completion_ids or ())
    logprobs = (*values, *(values[-1:] * n))[:n]
    return Example(one.interaction, dataclasses.replace(one.turn, logprobs=logprobs))


def test_a_quiet_run_warns_of_nothing(tmp_path: Path) -> None:
    calm = tiny_folder(tmp_path / "calm", initializer_range=0.05)
    result = run(calm, tmp_path, [example(calm, i, text=LONG[:40]) for i in range(8)], sdpo_interactions(**QUICK))
    crossed = said(tmp_path, result) - {"top_mass", "signal_real"}  # weights that small know nothing at all
    assert not crossed, result.metrics["warnings"]


def test_a_teacher_that_knows_the_answers_and_one_that_does_not(plain: str, tmp_path: Path) -> None:
    rows = [example(plain, i, text=LONG) for i in range(4)]
    expert = knowing(plain, tmp_path / "expert", LONG)
    up = run(plain, tmp_path / "up", rows, recipe("gkd", teacher=expert, **{**QUICK, "epochs": 4}))
    assert CROSSED["expert"] <= said(tmp_path / "up", up)
    down = run(expert, tmp_path / "down", rows, recipe("gkd", teacher=plain, **{**QUICK, "epochs": 4}))
    assert CROSSED["novice"] <= said(tmp_path / "down", down)
    texts = "\n".join(up.metrics["warnings"] + down.metrics["warnings"])
    for words in (
        "expects these very answers",
        "absurd",
        "may have read",
        "confuses it",
        "grow longer",
        "grow shorter",
    ):
        assert words in texts


def test_where_in_the_answer_the_loss_is(plain: str, tmp_path: Path) -> None:
    one = tuple(encode(load_tokenizer(plain), "A"))
    short = [example(plain, i, text="A", completion_ids=one) for i in range(4)]
    first = run(plain, tmp_path / "first", short, sft(**QUICK))
    assert CROSSED["first"] <= said(tmp_path / "first", first)
    rows = [example(plain, i, text=LONG) for i in range(4)]
    begun = knowing(plain, tmp_path / "begun", LONG, first=64)
    growing = run(begun, tmp_path / "growing", rows, sft(**QUICK))
    assert CROSSED["growing"] <= said(tmp_path / "growing", growing)


def test_who_is_heard(plain: str, tmp_path: Path) -> None:
    rows = [example(plain, i) for i in range(8)]
    quiet = [Example(dataclasses.replace(e.interaction, weight=1.0 if i == 0 else 0.001), e.turn)
             for i, e in enumerate(rows)]  # fmt: skip
    loud = run(plain, tmp_path / "loud", quiet[:4], sft(**QUICK))
    assert CROSSED["loud"] <= said(tmp_path / "loud", loud)
    term = dataclasses.replace(sdpo_interactions().terms[0], route=ByKind(("edited",)))
    none = run(plain, tmp_path / "none", rows, Recipe(name="x", terms=(term, imitation(1.0)), **QUICK))
    assert CROSSED["none"] <= said(tmp_path / "none", none)


@pytest.mark.parametrize(
    ("logprobs", "name"),
    [((-20.0,), "likelier now"), ((-0.001,), "less likely now"), ((-12.0, -6.0), "uneven")],
)
def test_what_the_server_said(plain: str, tmp_path: Path, logprobs: tuple[float, ...], name: str) -> None:
    rows = [with_logprobs(example(plain, i), *logprobs) for i in range(4)]
    result = run(plain, tmp_path, rows, sdpo_interactions(**QUICK))
    assert CROSSED[name] <= said(tmp_path, result)


def test_answers_that_are_cut_or_grow(plain: str, tmp_path: Path) -> None:
    rows = [example(plain, i, text=LONG[:60]) for i in range(4)]
    cut = run(plain, tmp_path / "cut", rows, sdpo_interactions(**{**QUICK, "fresh": 1, "max_fresh": 4}))
    assert CROSSED["cut"] <= said(tmp_path / "cut", cut)
    uneven = [example(plain, i, text=LONG[: 80 if i == 0 else 1]) for i in range(4)]
    grown = run(plain, tmp_path / "grown", uneven, sdpo_interactions(**{**QUICK, "fresh": 1}))
    assert CROSSED["grown"] <= said(tmp_path / "grown", grown)
    assert any("much longer" in text for text in grown.metrics["warnings"])


def test_answers_that_are_all_the_same_end_the_run_before_they_are_learned(plain: str, tmp_path: Path) -> None:
    words = "no " * 60
    stuck = knowing(plain, tmp_path / "stuck", words)
    rows = [example(plain, i, text=words, hindsight="no no no no no no more") for i in range(4)]
    how = sdpo_interactions(**{**QUICK, "fresh": 1, "max_fresh": 200, "lr": 1e-5})
    ended = run(stuck, tmp_path / "ended", rows, how, STRICT)
    assert CROSSED["alike"] <= said(tmp_path / "ended", ended)
    assert "nearly the same" in ended.metrics["stopped"] and ended.metrics["steps"] == 1
    kept = tmp_path / "ended" / "run"
    further = train_candidate(rows, model=stuck, recipe=how, out=tmp_path / "further", run_dir=kept, rules=OFF)
    assert further.metrics["stopped"] is None and further.metrics["steps"] == 2


def test_hindsight_that_says_nothing_and_hindsight_that_says_less_than_anothers(plain: str, tmp_path: Path) -> None:
    dull = tiny_folder(tmp_path / "dull", initializer_range=1e-4)
    words = ("Shorter, please.", "In Spanish?")
    nothing = run(dull, tmp_path / "nothing", [example(dull, i, hindsight=words[i % 2]) for i in range(4)],
                  sdpo_interactions(**QUICK))  # fmt: skip
    assert CROSSED["nothing"] <= said(tmp_path / "nothing", nothing)
    rows = [example(plain, 0, text=LONG, hindsight="."), example(plain, 1, text="A", hindsight="zq" * 60)]
    less = run(plain, tmp_path / "less", rows, sdpo_interactions(**QUICK))
    assert CROSSED["less"] <= said(tmp_path / "less", less)


def test_a_run_that_goes_on_keeps_what_it_said(plain: str, tmp_path: Path) -> None:
    rows = [with_logprobs(example(plain, i), -20.0) for i in range(8)]
    how, tight = sdpo_interactions(**{**QUICK, "epochs": 4, "lr": 1e-2}), StopRules(drift=1e-9)
    assert run(plain, tmp_path, rows, how, tight).metrics["stopped"]
    result = train_candidate(rows, model=plain, recipe=how, out=tmp_path / "on", run_dir=tmp_path / "run", rules=OFF)
    assert [m.step for m in read_metrics(tmp_path / "run")] == list(range(1, 9))
    assert "serve_gap" in said(tmp_path, result)
    assert any(text.startswith("step 4: serve_gap is ") for text in result.metrics["warnings"])
