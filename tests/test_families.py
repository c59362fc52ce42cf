"""The whole loop for each model family, tiny and random, under a template in its style: served, talked to, collected,
trained, evaluated, released, and served again under the adapter, with transformers' and PEFT's own numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as t

from afterword import cycle
from afterword.config import EvaluateConfig, TrainConfig
from afterword.feedback.settings import CollectSettings
from afterword.model.loading import load_model
from afterword.records import Interaction, Turn
from afterword.release.gate import overridden
from afterword.release.publish import publish, rollback
from afterword.store.files import MANIFEST
from tests.served import Gateway, engine, gateway, write_model, write_tokenizer
from tests.serving import until
from tests.train.test_served_is_trained import STYLES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*target_parameters:UserWarning"),
]
WINDOWS = ["sliding_attention", "full_attention"]
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2}
FAMILIES: dict[str, tuple[str, Callable[..., Any], dict[str, Any]]] = {
    "llama": ("llama", t.LlamaConfig, {"tie_word_embeddings": True}),
    "qwen2": ("qwen3", t.Qwen2Config, {}),
    "qwen3": ("qwen3", t.Qwen3Config, {"head_dim": 16}),
    "mistral": ("mistral", t.MistralConfig, {"sliding_window": 32}),
    "gemma2": ("gemma3", t.Gemma2Config, {"head_dim": 8, "sliding_window": 32, "attn_logit_softcapping": 20.0,
                                          "final_logit_softcapping": 10.0}),
    "gemma3": ("gemma3", t.Gemma3TextConfig, {"head_dim": 8, "sliding_window": 32, "layer_types": WINDOWS}),
    "phi3": ("phi", t.Phi3Config, {}),
    "olmo2": ("phi", t.Olmo2Config, {}),
    "mixtral": ("mistral", t.MixtralConfig, {**EXPERTS, "num_local_experts": 4}),
    "qwen3-moe": ("qwen3", t.Qwen3MoeConfig, {**EXPERTS, "head_dim": 8, "num_experts": 4, "moe_intermediate_size": 32}),
}  # fmt: skip


def talk(world: Gateway, number: int) -> None:
    """A user who asks and says what is wrong with the answer."""
    ask = {"role": "user", "content": f"Question {number}: why is the sky blue?"}
    about = {"user": f"user-{number % 3}", "seed": number, "max_tokens": 24}
    said = world.post([ask], **about).json()["choices"][0]["message"]
    words = {"role": "user", "content": f"That is too long. Make it shorter, please, in {number + 3} words."}
    assert world.post([ask, said, words], **about).status_code == 200


def gap(model: Any, turn: Turn) -> float:
    """Largest difference between the served log-probabilities and the model's own."""
    prompt, ids = list(turn.prompt_ids or ()), list(turn.completion_ids or ())
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].float()
    own = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
    return float((own - torch.tensor(turn.logprobs)).abs().max())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_goes_through_the_whole_loop(tmp_path: Path, name: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole_loop(tmp_path, name)
    finally:
        torch.set_num_threads(threads)


def whole_loop(tmp_path: Path, name: str) -> None:
    template, config, more = FAMILIES[name]
    style, place = STYLES[template], tmp_path / name
    made = write_tokenizer(
        place, style.template, special=style.special, eos=style.eos, bos=style.bos, words=style.words
    )
    folder, home = write_model(place, made, config, **more), tmp_path / "home"
    base = load_model(str(folder), dtype="float32")
    with engine(folder) as url, gateway(url, home, poll_ms=20.0) as world:
        store = world.store
        for number in range(16):
            talk(world, number)
        assert max(gap(base, turn) for turn in store.rows(Turn)) < 1e-4, "served as transformers computes"
        settings = cycle.Settings(
            directory=home,
            model=str(folder),
            engine=url,
            dtype="float32",
            collect=CollectSettings(holdout=0.4, duplicates=0.0),
            train=TrainConfig(min_interactions=1, epochs=2, fresh=1, options={"lr": 1e-2, "dtype": "float32"}),
            evaluate=EvaluateConfig(suites=("holdout", "collapse"), max_tokens=16, min_answers=8),
        )
        cycle.collect_stage(store, settings)
        assert {row.split for row in store.rows(Interaction)} == {"train", "holdout"}
        candidate = cycle.train_stage(store, settings, cycle.Progress())
        assert not candidate.metrics.get("excluded") and (home / candidate.path / MANIFEST).is_file()
        report = cycle.evaluate_stage(store, candidate, settings, cycle.Progress())
        assert "holdout" in report.suites
        verdict = cycle.decide_stage(store, report, settings)
        person = overridden(verdict, by="test", why="a random model proves nothing; the loop is what is tested")
        store.write(person)
        release = publish(store, candidate, person)
        until(lambda: world.chat([{"role": "user", "content": "Why?"}]).adapter == release.adapter)
        turn = world.chat([{"role": "user", "content": "Why is the sky blue?"}], max_tokens=24)
        adapted = peft.PeftModel.from_pretrained(base, str(home / candidate.path)).eval()
        assert turn.adapter == "afterword@v000001" and gap(adapted, turn) < 1e-4, "served as PEFT computes"
        with adapted.disable_adapter():
            assert gap(adapted, turn) > 1e-3, "the adapter changed what is served"
        rollback(store, why="the test is over")
        until(lambda: world.chat([{"role": "user", "content": "Why?"}]).adapter is None)
