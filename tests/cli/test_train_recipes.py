"""`afterword train --recipe NAME` for every recipe on the embedded model, as a user would type it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from afterword.chat.render import decode, end_of_turn_ids, render_prompt
from afterword.chat.sampling_fields import PLAIN
from afterword.cli import main
from afterword.learn.diagnostics import log_probs
from afterword.learn.recipes import RECIPES
from afterword.model.head import head_of
from afterword.model.loading import EMBEDDED, load_model, load_tokenizer, resolve_model
from afterword.records import Feedback, Turn
from afterword.store import Store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]

QUESTIONS = ("Why is the sky blue?", "Name a fruit.", "What is a noun?", "Who wrote Hamlet?", "Is ice cold?",
             "What do bees make?", "Add two and two.", "Where is Rome?", "Say something kind.", "What is rain?",
             "How many legs has a cat?", "What is tea?")  # fmt: skip
SAID = (
    {"kind": "follow_up", "text": "Shorter, please."},
    {"kind": "edited", "final_text": "Here it is in one line."},
    {"kind": "executed", "exit_code": 1, "output": "ValueError: too long"},
    {"kind": "accepted"},
)
TOLD = {
    "opcd": ["--set", "train.experience=Answer in one short sentence."],
    "grpo": ["--set", "train.verifier=tests.learn.recipe_inputs:few_words", "--set", "train.max_interactions=2"],
}
EXTERNAL = ("gkd", "minillm", "opd", "eopd", "veto", "stable-opd", "revisit-opd", "exopd", "reopold")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory whose turns the embedded model really answered, with their log-probabilities."""
    home = tmp_path_factory.mktemp("served")
    model, tokenizer = load_model(EMBEDDED), load_tokenizer(EMBEDDED)
    ends = end_of_turn_ids(tokenizer)
    torch.manual_seed(0)
    with Store.open(home / "afterword.db") as store:
        for n, question in enumerate(QUESTIONS):
            messages = ({"role": "user", "content": question},)
            prompt = render_prompt(tokenizer, messages).ids
            out = model.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=12,
                do_sample=True, temperature=1.0, top_p=1.0, top_k=0, pad_token_id=ends[0], eos_token_id=list(ends),
            )  # fmt: skip
            ids = tuple(out[0, len(prompt) :].tolist())
            (logps,) = log_probs(model, head_of(model), [(prompt, ids)])
            turn = Turn(
                id=f"turn-{n}", messages=messages, prompt_ids=prompt, completion_ids=ids,
                answer={"role": "assistant", "content": decode(tokenizer, ids[:-1] if ids[-1] in ends else ids)},
                logprobs=tuple(logps.tolist()), sampling=PLAIN, user="ada", conversation=f"c{n}",
                finish_reason="stop" if ids[-1] in ends else "length",
            )  # fmt: skip
            said = SAID[n % len(SAID)]
            store.write(turn, Feedback(id=f"fb-{n}", turn=turn.id, source="api", **said))
    assert main(["collect", "--dir", str(home), "--set", "collect.holdout=0"]) == 0
    return home


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the same family: the embedded one with its layers moved a little."""
    folder = tmp_path_factory.mktemp("teacher") / "other"
    shutil.copytree(resolve_model(EMBEDDED), folder)
    model = load_model(EMBEDDED)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "mlp" in name:
                weight += 0.002 * torch.randn(weight.shape, generator=generator).to(weight.dtype)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", list(RECIPES))
def test_the_command_trains(
    name: str, served: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = shutil.copytree(served, tmp_path / "home")
    told = TOLD.get(name, []) + (["--set", f"train.teacher={teacher}"] if name in EXTERNAL else [])
    command = ["train", "--recipe", name, "--dir", str(home), "--json", "--set", "train.min_interactions=2", *told]
    capsys.readouterr()
    assert main(command) == 0
    candidate = json.loads(capsys.readouterr().out)
    assert candidate["recipe"]["name"] == name
    assert candidate["metrics"]["steps"] >= 1
    assert candidate["metrics"]["loss_first"] != 0
    assert (home / candidate["path"] / "adapter_model.safetensors").is_file()
