"""Adapter folders that are ours and whole, and all the ways in which they are not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from afterword.errors import AdapterError
from afterword.release.checks import check_adapter, read_manifest
from afterword.store.files import folder_hash

from .conftest import write_adapter


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "afterword.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")


def test_a_whole_folder(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    _edit(folder, schema=1, something_newer={"x": 1})
    manifest = check_adapter(folder, content=folder_hash(folder), base_hash="b" * 32)
    assert (manifest.base, manifest.recipe, manifest.parent) == ("tiny", {"name": "sdpo-interactions"}, None)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "foreign": (lambda f: (f / "afterword.json").unlink(), "foreign adapter"),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "no adapter_config.json"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors"),
    "cut manifest": (lambda f: (f / "afterword.json").write_text('{"base": '), "corrupt"),
    "manifest of another kind": (lambda f: (f / "afterword.json").write_text("[1]"), "instead of an object"),
    "binary manifest": (lambda f: (f / "afterword.json").write_bytes(b"\xff\xfe\0"), "corrupt"),
    "wrong type": (lambda f: _edit(f, base_hash=3), "'base_hash' is 3"),
    "cut weights": (lambda f: _cut(f, -3), "it was cut or changed"),
    "header cut": (lambda f: _cut(f, 12), "no safetensors"),
    "empty weights": (lambda f: _cut(f, 0), "no safetensors"),
    "longer weights": (lambda f: _append(f), "it was cut or changed"),
}


def _cut(folder: Path, size: int) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:size])


def _append(folder: Path) -> None:
    with (folder / "adapter_model.safetensors").open("ab") as stream:
        stream.write(b"more")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_folder_is_refused_with_what_is_wrong(tmp_path: Path, fault: str) -> None:
    folder = write_adapter(tmp_path / "a")
    damage, message = FAULTS[fault]
    damage(folder)
    with pytest.raises(AdapterError, match=message):
        check_adapter(folder)


@pytest.mark.parametrize("field", ["base", "base_hash", "template_hash", "interactions_hash", "recipe", "code_version"])
def test_a_manifest_without_a_field_is_refused(tmp_path: Path, field: str) -> None:
    folder = write_adapter(tmp_path / "a")
    data = json.loads((folder / "afterword.json").read_text())
    del data[field]
    (folder / "afterword.json").write_text(json.dumps(data))
    with pytest.raises(AdapterError, match=f"lacks '{field}'"):
        read_manifest(folder)


def test_a_folder_that_is_gone_empty_changed_or_of_another_base(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="moved or deleted"):
        check_adapter(tmp_path / "nowhere")
    with pytest.raises(AdapterError, match="moved or deleted"):
        folder_hash(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError, match="is empty"):
        folder_hash(tmp_path / "empty")
    folder = write_adapter(tmp_path / "a")
    content = folder_hash(folder)
    with pytest.raises(AdapterError, match="another base model"):
        check_adapter(folder, base_hash="0" * 32)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"X")
    with pytest.raises(AdapterError, match="changed after it was measured"):
        check_adapter(folder, content=content)


def test_the_hash_follows_names_and_bytes_but_not_the_manifest(tmp_path: Path) -> None:
    one, two = write_adapter(tmp_path / "a"), write_adapter(tmp_path / "b")
    assert folder_hash(one) == folder_hash(two)
    _edit(one, report="rep-1")
    assert folder_hash(one) == folder_hash(two)
    (two / "adapter_config.json").rename(two / "renamed.json")
    assert folder_hash(one) != folder_hash(two)
    (one / "sub").mkdir()
    (one / "sub" / "more").write_bytes(b"x")
    assert folder_hash(one) not in (folder_hash(two), folder_hash(write_adapter(tmp_path / "c")))


def test_release_needs_no_torch() -> None:
    code = "import sys, afterword.release; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
