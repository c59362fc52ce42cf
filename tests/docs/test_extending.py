"""The example format of the page on extending reads what it says."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

from afterword.feedback.importing.imports import import_file
from afterword.formats import registry
from afterword.records import Turn
from afterword.store import Store
from tests.docs.pages import ROOT


def test_the_example_format_imports_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "extending.md").read_text("utf-8")
    (code,) = re.findall(r"^ *```python\n(.*?)^ *```$", page, re.MULTILINE | re.DOTALL)
    module: dict[str, Any] = {}
    exec(textwrap.dedent(code), module)
    made = module["FORMAT"]
    monkeypatch.setattr(registry, "ALL", (*registry.ALL, made))
    monkeypatch.setitem(registry.FORMATS, made.name, made)
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "Why?", "answer": "Because."}\n{"question": "How?", "answer": 7}\n', "utf-8")
    assert registry.detect_format({"question": "Why?", "answer": "Because."}) == made.name
    with Store.open(tmp_path / "afterword.db") as store:
        assert import_file(store, file, format=made.name).stored == 2
        assert [turn.answer["content"] for turn in store.rows(Turn)] == ["Because.", "7"]
