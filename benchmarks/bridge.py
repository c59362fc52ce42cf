"""Events a minute that `afterword bridge open-webui` stores: chats with votes and edits on captured turns.

    python benchmarks/bridge.py --chats 1000

The rows come out of memory: the other product's own speed is not measured. One process, one core.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from afterword.feedback.bridges.bridge import SourceRow, run_bridge
from afterword.records import Json, Turn
from afterword.store import Store

ANSWERS = 4
"""Answers of a chat; each has a vote of its own."""


class Memory:
    """A source of chats and votes that are made up."""

    name = format = "open-webui"
    where = "memory"

    def __init__(self, chats: int) -> None:
        self.chats = chats

    def rows(self, mark: Json) -> Iterator[SourceRow]:
        """Every chat, then every vote."""
        for chat in range(self.chats):
            yield SourceRow(f"c{chat}", _chat(chat), 1760000000.0 + chat)
        for chat in range(self.chats):
            for n in range(ANSWERS):
                yield SourceRow(f"f{chat}-{n}", _vote(chat, n), 1760000000.0 + chat, feedback=True)

    def present(self) -> None:
        """Nothing is taken back."""


def _answer(chat: int, n: int) -> str:
    return f"Answer {n} in chat {chat}: " + "rivers flow downhill until they reach the sea. " * 6


def _chat(chat: int) -> Json:
    messages: dict[str, Json] = {}
    for n in range(ANSWERS):
        above = f"a{n - 1}" if n else None
        messages[f"q{n}"] = {"id": f"q{n}", "parentId": above, "role": "user", "content": f"Question {n} of {chat}?"}
        words = _answer(chat, n) if n else "An edited answer."
        messages[f"a{n}"] = {"id": f"a{n}", "parentId": f"q{n}", "role": "assistant", "content": words, "done": True}
    history = {"currentId": f"a{ANSWERS - 1}", "messages": messages}
    return {"id": f"c{chat}", "user_id": f"u{chat % 50}", "chat": {"models": ["m"], "history": history}}


def _vote(chat: int, n: int) -> Json:
    at = 1760000000 + chat * ANSWERS + n
    return {
        "id": f"f{chat}-{n}", "user_id": f"u{chat % 50}", "data": {"rating": -1, "comment": f"Too long, {n}."},
        "meta": {"chat_id": f"c{chat}", "message_id": f"a{n}"}, "updated_at": at,
    }  # fmt: skip


def _turns(chats: int) -> Iterator[Turn]:
    for chat in range(chats):
        for n in range(ANSWERS):
            yield Turn(
                id=f"t{chat}-{n}", messages=({"role": "user", "content": f"Question {n} of {chat}?"},),
                answer={"role": "assistant", "content": _answer(chat, n)}, conversation=f"c{chat}",
                user=f"u{chat % 50}",
            )  # fmt: skip


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chats", type=int, default=1000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "afterword.db") as store:
        store.write(*_turns(args.chats))
        for name in ("first", "again"):
            began, cpu = time.perf_counter(), time.process_time()
            summary = run_bridge(store, Memory(args.chats), again=True)
            seconds, busy = time.perf_counter() - began, time.process_time() - cpu
            found = {
                "run": name, "rows": summary.rows, "events": summary.feedback, "stored": summary.stored,
                "captured": summary.captured, "held": summary.held, "seconds": round(seconds, 2),
                "cpu_seconds": round(busy, 2), "events_a_minute": round(60 * summary.feedback / seconds),
            }  # fmt: skip
            print(json.dumps(found))


if __name__ == "__main__":
    main()
