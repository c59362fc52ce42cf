"""A data directory with candidates that could be released."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from afterword.records import Candidate, Report, Verdict
from afterword.store import Store
from afterword.store.files import folder_hash

Ready = Callable[..., tuple[Candidate, Verdict]]


def write_adapter(folder: Path, fill: bytes = b"\1") -> Path:
    """A folder that looks like a PEFT adapter of ours."""
    folder.mkdir(parents=True)
    header = json.dumps({"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + fill * 8)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
    manifest = {
        "base": "tiny", "base_hash": "b" * 32, "tokenizer_hash": "t" * 32, "template_hash": "c" * 32, "parent": None,
        "interactions_hash": "i" * 32, "recipe": {"name": "sdpo-interactions"}, "metrics": {}, "code_version": "0.1.0",
    }  # fmt: skip
    (folder / "afterword.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "afterword.db") as opened:
        yield opened


@pytest.fixture
def ready(store: Store, tmp_path: Path) -> Ready:
    """`ready("c1", against=None)` writes a candidate, its report and a verdict."""

    def make(name: str, against: str | None = None, *, passed: bool = True) -> tuple[Candidate, Verdict]:
        folder = write_adapter(tmp_path / "adapters" / name, name.encode()[:1])
        candidate = Candidate(
            id=name, path=f"adapters/{name}", base="tiny", parent=against, interactions=(), recipe={"name": "x"}
        )
        about = {"adapter_hash": folder_hash(folder)}
        report = Report(id=f"rep-{name}", candidate=name, against=against, suites={}, about=about)
        verdict = Verdict(id=f"ver-{name}", candidate=name, report=report.id, passed=passed, reasons=("because",))
        store.write(candidate, report, verdict)
        return candidate, verdict

    return make
