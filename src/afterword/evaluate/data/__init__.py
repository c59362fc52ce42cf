"""The built-in texts, questions and requests, and the look of the pages; all ours.

Owns how they are read; knows nothing of suites.
"""

from __future__ import annotations

from importlib import resources

import orjson

from afterword.records import Json


def built_in(name: str) -> list[Json]:
    """The rows of one of our data files."""
    data = resources.files(__name__).joinpath(f"{name}.jsonl").read_bytes()
    return [orjson.loads(line) for line in data.splitlines() if line.strip()]
