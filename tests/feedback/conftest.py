"""An empty store for the tests of this room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from afterword.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.open(tmp_path / "data" / "afterword.db") as opened:
        yield opened
