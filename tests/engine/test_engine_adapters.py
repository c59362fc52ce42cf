"""Adapter folders that must be refused, each with its reason; the server stays alive."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.engine.conftest import Client, Peer, serve_tiny, write_adapter, write_tiny


def option(name: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), name: value}), "utf-8")

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        tensors = {k: v.clone() for k, v in load_file(path).items()}
        path.unlink()
        save_file(change(tensors), path)

    return apply


def manifest(folder: Path) -> None:
    (folder / "afterword.json").write_text(json.dumps({"base_hash": "f" * 32}), "utf-8")


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "there is no adapter folder"),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "cannot be read"),
    "broken config": (lambda f: (f / "adapter_config.json").write_text("{"), "cannot be read"),
    "config is a list": (lambda f: (f / "adapter_config.json").write_text("[]"), "not a JSON object"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "holds no adapter_model.safetensors"),
    "cut weights": (lambda f: (f / "adapter_model.safetensors").write_bytes(b"\x08" * 40), "cannot be read"),
    "empty weights": (weights(lambda t: {}), "holds no LoRA weights"),
    "nan": (weights(lambda t: {k: v / 0 for k, v in t.items()}), "infinite or undefined"),
    "half": (weights(lambda t: {k: v for k, v in t.items() if "lora_A" in k}), "has shapes"),
    "foreign layer": (weights(lambda t: {k.replace("layers.1", "layers.9"): v for k, v in t.items()}), "layers.9"),
    "other tensors": (weights(lambda t: {**t, "lm_head.bias": torch.zeros(1)}), "no LoRA weight"),
    "prompt tuning": (option("peft_type", "PROMPT_TUNING"), "PROMPT_TUNING"),
    "dora": (option("use_dora", True), "use_dora=True"),
    "whole modules": (option("modules_to_save", ["lm_head"]), "modules_to_save"),
    "rank pattern": (option("rank_pattern", {"q_proj": 8}), "says rank 8"),
    "bias": (option("bias", "all"), "bias='all'"),
    "no rank": (option("r", 0), "r=0"),
    "other base": (manifest, "was made for a base model"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
async def test_faulty_folders(client: Client, adapters: dict[str, Path], tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(adapters["one"], folder)
    change, words = FAULTS[fault]
    change(folder)
    status, text = await client.load("bad", folder)
    assert status == 400 and words in json.loads(text)["error"]["message"]
    assert (await client.raw(model="bad"))[0] == 404
    assert len(await client.ids("Hi", 3, ignore_eos=True)) == 3


async def test_an_adapter_of_a_wider_model(client: Client, tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "wide", hidden=64)
    status, text = await client.load("wide", write_adapter(other, tmp_path / "adapter", 1))
    assert status == 400 and "trained on another base model" in json.loads(text)["error"]["message"]


@pytest.mark.parametrize("tied", [True, False])
async def test_an_adapter_on_the_output_head_beside_the_base(tmp_path: Path, tied: bool) -> None:
    """The head sees only the tokens whose logits are computed: its columns are masked at those."""
    base = write_tiny(tmp_path / "base", tied=tied)
    folder = write_adapter(base, tmp_path / "adapter", 3, target_modules=["q_proj", "lm_head"])
    async with serve_tiny(base, chunk=16) as client:
        assert (await client.load("tuned", folder))[0] == 200
        texts = ("Hello there, this is a longer one", "Hi", "Why?", "Hi")
        models = ("tiny", "tuned", "tuned", "tiny")
        got = await asyncio.gather(*(client.ids(t, 8, model=m) for t, m in zip(texts, models, strict=True)))
    peers = {"tiny": Peer(base), "tuned": Peer(base, folder)}
    assert list(got) == [peers[m].greedy(t, 8) for t, m in zip(texts, models, strict=True)]
    assert got[1] != got[3]


async def test_names_in_use_and_unknown_ones(client: Client, adapters: dict[str, Path]) -> None:
    assert (await client.load("a", adapters["one"]))[0] == 200
    for name in ("a", "tiny"):
        status, text = await client.load(name, adapters["two"])
        assert status == 400 and "in use" in json.loads(text)["error"]["message"]
    assert (await client.unload("nobody"))[0] == 404
    assert (await client.http.post("/v1/load_lora_adapter", json={"lora_name": "b"})).status == 400


async def test_removing_one_adapter_leaves_the_other(client: Client, adapters: dict[str, Path]) -> None:
    await client.load("one", adapters["one"])
    await client.load("two", adapters["two"])
    both = await client.ids("Hi", 20, model="two")
    await client.unload("one")
    assert await client.ids("Hi", 20, model="two") == both
    await client.unload("two")
    async with asyncio.timeout(20):  # the model thread takes the columns out after it has answered
        while any(line.block.down is not None for line in client.runner.lines.values()):
            await asyncio.sleep(0.005)
    assert await client.ids("Hi", 3, ignore_eos=True)
