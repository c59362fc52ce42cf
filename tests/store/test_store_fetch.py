"""A database that breaks while rows are fetched is a StoreError too, not only one that breaks at the query."""

from __future__ import annotations

from pathlib import Path

import pytest

from afterword.errors import StoreError
from afterword.records import Turn
from afterword.store import Store


def test_a_page_that_is_damaged_while_reading_is_a_store_error(tmp_path: Path) -> None:
    path = tmp_path / "afterword.db"
    with Store.open(path) as store:
        for n in range(200):
            store.write(Turn(id=f"t{n:03d}", messages=(), answer={"role": "assistant", "content": "x" * 2000}))
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * (path.stat().st_size // 4))
    with Store.open(path) as store, pytest.raises(StoreError, match="cannot read"):
        list(store.rows(Turn))
