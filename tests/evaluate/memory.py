"""An adapter that knows texts by heart, for tests of what must not come out."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from afterword.chat.render import encode
from afterword.model.loading import base_hash, load_model, load_tokenizer


def memorising_adapter(base: str, folder: Path, texts: Sequence[str], steps: int = 400) -> None:
    """Train a LoRA on the tiny model until it writes `texts` word for word, and save it."""
    model, tokenizer = load_model(base, dtype="float32"), load_tokenizer(base)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        adapted = get_peft_model(
            model, LoraConfig(r=32, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM")
        )
    rows = [torch.tensor([encode(tokenizer, text)]) for text in texts]
    optimizer = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    for step in range(steps):
        row = rows[step % len(rows)]
        loss = adapted(input_ids=row, labels=row).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    adapted.save_pretrained(str(folder))
    manifest = {"base": base, "base_hash": base_hash(Path(base))}
    (folder / "afterword.json").write_text(json.dumps(manifest), encoding="utf-8")
