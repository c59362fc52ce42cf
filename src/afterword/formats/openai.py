"""OpenAI's fine-tuning rows: conversations (`messages`) and preference pairs (`preferred_output`).

Reads the same rows with blocks of Anthropic's Messages API, and rows that log a request and its response apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from afterword.formats.anthropic import is_anthropic, messages_of, with_answer
from afterword.formats.export_filter import ExportFilter
from afterword.formats.format import Export, Format
from afterword.formats.parsing import (
    Conversation,
    Hashed,
    listed,
    message_of,
    text,
    unix_time,
    unread_votes,
    weighed,
)
from afterword.formats.preferences import answer_in, pair
from afterword.records import Json


def recognise(row: Json) -> bool:
    """Messages, a preference pair, or a logged request."""
    if "messages" in row or {"input", "preferred_output", "non_preferred_output"} <= row.keys():
        return True
    return isinstance(row.get("request"), dict) and "messages" in row["request"]


def read(row: Json) -> Conversation | Hashed:
    """A conversation, or a preference pair."""
    if "preferred_output" in row:
        given = row.get("input")
        given = given if isinstance(given, dict) else {}
        context = [message_of(m) for m in listed(given, "messages")]
        chosen, rejected = answer_in(row, "preferred_output"), answer_in(row, "non_preferred_output")
        return pair("openai", context, chosen, rejected, given, row)
    row, left_out = with_answer(row), Counter[str]()
    if is_anthropic(row):
        messages = messages_of({**row, "messages": listed(row, "messages")}, left_out)
    else:
        messages = [message_of(m) for m in listed(row, "messages")]
    tools = row.get("tools")
    return Conversation(
        messages=weighed(messages, row),
        left_out=left_out + unread_votes(row, messages),
        key=text(row.get("id")) or "",
        model=text(row.get("model")) or "",
        user=text(row.get("user")),
        tools=tuple(tools) if isinstance(tools, list) and tools else None,
        created_at=unix_time(row.get("created_at", row.get("created"))),
    )


def write_conversations(rows: ExportFilter) -> Iterator[Json]:
    """One row for each conversation: from every turn that no other one continues, back to its beginning."""
    for turn, messages in rows.threads():
        yield {"messages": messages, **({"tools": list(turn.tools)} if turn.tools else {})}


def write_wanted(rows: ExportFilter) -> Iterator[Json]:
    """Conversations that end with the answer to imitate."""
    for turn, answer in rows.wanted():
        yield {"messages": [*turn.messages, answer], **({"tools": list(turn.tools)} if turn.tools else {})}


def write_preferences(rows: ExportFilter) -> Iterator[Json]:
    """Preference pairs; the answer that was served is the rejected one."""
    for turn, chosen in rows.preferred():
        given: Json = {"messages": list(turn.messages), **({"tools": list(turn.tools)} if turn.tools else {})}
        yield {"input": given, "preferred_output": [chosen], "non_preferred_output": [turn.answer]}


FORMAT = Format(
    name="openai",
    read=read,
    recognise=recognise,
    exports=(
        Export(what="turns", write=write_conversations, training=True),
        Export(what="interactions", write=write_wanted, training=True),
        Export(what="interactions", write=write_preferences, name="openai-preference", training=True),
    ),
)
ANTHROPIC = Format(name="anthropic", read=read, recognise=is_anthropic)
"""The same reader: `openai` comes first in `registry.ALL` and recognises these rows too."""
