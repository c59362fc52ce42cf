"""A tiny random base model, adapters of it, held-out interactions, and a model server that only exists in memory."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from peft import LoraConfig, get_peft_model

from afterword.errors import UpstreamError
from afterword.evaluate.comparison import answers
from afterword.evaluate.comparison.heldout import HeldOut
from afterword.model.loading import base_hash, load_model
from afterword.records import Candidate, Interaction, Turn
from afterword.sampling import Answer
from tests.train.tiny_model import tiny_folder

Reply = Callable[[str, str], tuple[str, str]]
"""(model name, question) -> (text, finish reason)."""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_folder(tmp_path_factory.mktemp("base"), context=1024)


def make_adapter(base: str, folder: Path, *, size: float, seed: int = 0) -> Path:
    """A LoRA whose random update has about this size; size 0 changes nothing."""
    model = load_model(base, dtype="float32")
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        adapted = get_peft_model(
            model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
        )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=size)
    adapted.save_pretrained(str(folder))
    manifest = {"base": base, "base_hash": base_hash(Path(base))}
    (folder / "afterword.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def adapters(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`none` changes nothing, `small` a little, `large` a lot."""
    root = tmp_path_factory.mktemp("adapters")
    sizes = {"none": 0.0, "small": 0.02, "large": 1.0}
    return {name: make_adapter(tiny, root / name, size=size) for name, size in sizes.items()}


def held(number: int, *, hindsight: str = "Shorter, please.", final_text: str | None = None, **turn: Any) -> HeldOut:
    """Held-out interaction `number`; two share a conversation."""
    served: dict[str, Any] = {
        "id": f"turn-{number}",
        "messages": ({"role": "user", "content": f"What is {number}?"},),
        "answer": {"role": "assistant", "content": "An answer."},
        **turn,
    }
    kind = "edited" if final_text else "follow_up"
    interaction = Interaction(
        id=f"int-{number}", turn=served["id"], feedback=(f"fb-{number}",), kind=kind, hindsight=hindsight, polarity=-1,
        weight=1.0, split="holdout",
    )  # fmt: skip
    return HeldOut(interaction=interaction, turn=Turn(**served), conversation=f"c{number // 2}", final_text=final_text)


def candidate(name: str = "cand-1", base: str = "tiny") -> Candidate:
    return Candidate(
        id=name, path=f"adapters/{name}", base=base, parent=None, interactions=("i1",), recipe={"name": "r"}
    )


class FakeServer:
    """What `Upstream` does, in memory. `reply` decides each answer; every request is kept."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.requests: list[dict[str, Any]] = []
        self.loaded: dict[str, str] = {}
        self.history: list[tuple[str, str]] = []
        self.gives_ids = False

    def __call__(self, url: str, api_key: str | None = None, *, background: bool) -> Self:
        self.url, self.background = url, background
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def models(self) -> list[dict[str, Any]]:
        return [{"id": name, "parent": "tiny"} for name in self.loaded] + [{"id": "tiny"}]

    async def load_adapter(self, name: str, path: str) -> None:
        self.loaded[name] = path
        self.history.append(("load", name))

    async def unload_adapter(self, name: str) -> None:
        self.loaded.pop(name)
        self.history.append(("unload", name))

    async def complete_many(
        self,
        requests: Sequence[dict[str, Any]],
        concurrency: int = 16,
        on_answer: Callable[[int], object] = lambda index: None,
    ) -> list[Answer]:
        found = []
        for index, body in enumerate(requests):
            self.requests.append(body)
            if body["model"] != "tiny" and body["model"] not in self.loaded:
                raise UpstreamError(f"no model {body['model']}")
            arm = Path(self.loaded[body["model"]]).name if body["model"] in self.loaded else "base"
            text, reason = self.reply(arm, str(body["messages"][-1]["content"]))
            found.append(Answer(text, None, None, None, reason, body["model"], {"role": "assistant", "content": text}))
            on_answer(index)
        return found


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[Reply], FakeServer]:
    """`serve(reply)` puts a fake model server behind every URL."""

    def start(reply: Reply) -> FakeServer:
        server = FakeServer(reply)
        monkeypatch.setattr(answers, "Upstream", server)
        monkeypatch.setattr(import_module("afterword.evaluate.suites.latency"), "Upstream", server)
        return server

    return start
