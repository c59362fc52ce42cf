"""Commands without their optional packages: the line that installs them, exit code 2, no traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from afterword.cli.extras import install_line, missing_package, require_extra
from afterword.errors import UsageError

_WITHOUT = """
import json, sys
for name in "torch transformers peft safetensors gguf tokenizers numpy huggingface_hub".split():
    sys.modules[name] = None  # as if it were not installed
from afterword.cli import main
codes = {}
for line in json.loads(sys.argv[1]):
    print(f"== {line}", file=sys.stderr, flush=True)
    try:
        codes[line] = main(line.split())
    except SystemExit as end:
        codes[line] = end.code
print(json.dumps(codes))
"""
_MODEL = (
    "serve --port 0", "demo", "demo --quick", "measure", "train", "train --dry-run", "cycle", "cycle --watch",
    "heatmap", "recipes list", "recipes show sdpo",
)  # fmt: skip
"""Commands that need the extra `model` even before they know what to do."""
_NONE = ("status", "collect", "config show", "simulate --list", "release status", "export turns", "keys list", "review")
"""Commands of the core."""


def test_every_command_without_torch_runs_or_says_what_installs_it(tmp_path: Path) -> None:
    lines = ["import --examples", "collect", *_MODEL, *_NONE]
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT, json.dumps(lines)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    codes = json.loads(done.stdout.splitlines()[-1])
    said = {part.partition("\n")[0]: part.partition("\n")[2] for part in done.stderr.split("== ")[1:]}
    for line in _MODEL:
        assert codes[line] == 2 and "pip install 'afterword[model]'" in said[line], (line, codes[line], said[line])
    for line in ("import --examples", *_NONE):
        assert codes[line] == 0, (line, said[line])


def test_doctor_names_the_lines_that_install_what_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT, '["doctor"]'], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert json.loads(done.stdout.splitlines()[-1]) == {"doctor": 1}
    assert "FAIL packages: missing torch" in done.stdout and install_line("model") in done.stdout


def test_only_modules_of_an_extra_are_explained() -> None:
    explained = missing_package(ModuleNotFoundError("No module named 'pyarrow.parquet'", name="pyarrow.parquet"))
    assert explained is not None and "pip install 'afterword[parquet]'" in explained.message
    assert missing_package(ModuleNotFoundError("No module named 'afterword.nope'", name="afterword.nope")) is None
    assert missing_package(ModuleNotFoundError("lost")) is None


def test_an_extra_that_is_there_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    require_extra("model", "this test")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match=r"this test needs torch, missing .* pip install 'afterword\[model\]'"):
        require_extra("model", "this test")


def test_doctor_ends_its_last_line(tmp_path: Path) -> None:
    for flags in ([], ["--json"]):
        command = [sys.executable, "-m", "afterword", "doctor", *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.stdout.endswith("\n") and not done.stdout.endswith("\n\n"), done.stdout[-80:]
