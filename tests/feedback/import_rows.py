"""Rows in every format, and ways to put them into files and into a store, for the tests of import and export."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import orjson

from afterword.feedback.importing.imports import ImportSummary, import_file
from afterword.formats.export import export
from afterword.store import Store


def talk(n: int, turns: int = 2) -> dict[str, Any]:
    parts = [{"from": who, "value": f"{who} {n} says {i}"} for i in range(turns) for who in ("human", "gpt")]
    return {"id": f"row{n}", "conversations": parts}


def said(*texts: str) -> list[dict[str, Any]]:
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]


ROWS: dict[str, dict[str, Any]] = {
    "openai": {"messages": said("How?", "So.", "Shorter.", "So!"), "tools": [{"type": "function"}], "model": "m"},
    "sharegpt": {"id": "a", "system": "Be nice.", "conversations": [
        {"from": "human", "value": "How?"}, {"from": "gpt", "value": "So."}, {"from": "human", "value": "Shorter."},
        {"from": "gpt", "value": "So!"}]},
    "wildfeedback": {"conversation": [{"from": "human", "value": "How?"}, {"from": "gpt", "value": "So."},
                                      {"from": "human", "value": "Shorter."}, {"from": "gpt", "value": "So!"}]},
    "wildchat": {"conversation_hash": "h", "model": "m", "timestamp": "2024-05-01T10:00:00Z", "hashed_ip": "ip",
                 "conversation": [{**m, "toxic": False} for m in said("How?", "So.", "Shorter.", "So!")]},
    "triples": {"id": "x", "original_conv_id": "c", "prompt": said("Hm?", "Hm.", "How?"), "completion": "So.",
                "user_response": "Shorter."},
    "events": {"model_version": "v3", "task": "code", "prompt": "How?", "draft": "So.", "user_action": "edited",
               "user_edit": "So!", "follow_up": "Shorter.", "signal_weight": 0.8,
               "created_at": "2026-06-24T00:00:00Z"},
}  # fmt: skip


def write(tmp_path: Path, data: bytes | str | list[Any], name: str = "log.jsonl") -> Path:
    path = tmp_path / name
    if isinstance(data, list):
        data = b"\n".join(orjson.dumps(row) for row in data)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def load(
    store: Store,
    tmp_path: Path,
    data: bytes | str | list[Any],
    format: str = "auto",
    name: str = "log.jsonl",
    **options: Any,
) -> ImportSummary:
    return import_file(store, write(tmp_path, data, name), format, **options)


def reasons(summary: ImportSummary) -> dict[str, int]:
    return dict(summary.rejected)


def out(store: Store, what: str, format: str, **options: Any) -> list[dict[str, Any]]:
    sink = io.BytesIO()
    done = export(store, what, format, sink, **{"split": "all", **options})
    assert done.rows == len(sink.getvalue().splitlines())
    return [orjson.loads(line) for line in sink.getvalue().splitlines()]
