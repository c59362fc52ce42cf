"""The export of Claude.ai: conversations with `chat_messages`.

Newer exports name each message's parent; in older ones the list is the branch.
"""

from __future__ import annotations

from typing import Any

from afterword.formats.format import Format
from afterword.formats.parsing import Node, Tree, bad, rated, role_of, shown, text, thumb, unix_time
from afterword.records import Json

_NO_PARENT = "00000000-0000-4000-8000-000000000000"


def recognise(row: Json) -> bool:
    """A conversation with this product's list of messages."""
    return "chat_messages" in row


def read(row: Json) -> Tree:
    """A conversation as a tree."""
    given = row.get("chat_messages")
    if not isinstance(given, list) or not given:
        raise bad("no_messages", f"`chat_messages` lists no message: {shown(given, 80)}")
    account = row.get("account")
    tree = Tree(
        key=text(row.get("uuid")) or "",
        nodes={},
        current=text(row.get("current_leaf_message_uuid")),
        user=text(account.get("uuid")) if isinstance(account, dict) else None,
        model=text(row.get("model")) or "",
        created_at=unix_time(row.get("created_at")),
    )
    before: str | None = None
    for message in given:
        if not isinstance(message, dict):
            tree.left_out["bad_message"] += 1
            continue
        key = text(message.get("uuid")) or f"#{len(tree.nodes)}"
        parent = text(message.get("parent_message_uuid")) if "parent_message_uuid" in message else before
        tree.add(key, _node(message, None if parent == _NO_PARENT else parent, tree))
        before = key
    return tree


def _node(message: Json, parent: str | None, tree: Tree) -> Node:
    node = Node(parent=parent, created_at=unix_time(message.get("created_at")))
    role = role_of(message.get("sender", message.get("role")))
    if role is None:
        tree.left_out["bad_message"] += 1
        return node
    said = [_words(message, tree)]
    for file in message["attachments"] if isinstance(message.get("attachments"), list) else ():
        if isinstance(file, dict) and isinstance(file.get("extracted_content"), str):
            said.append(file["extracted_content"])  # what was attached as text was a part of the question
    tree.left_out["file"] += len(message["files"]) if isinstance(message.get("files"), list) else 0
    words = "\n\n".join(filter(None, said))
    if not words:
        tree.left_out["empty_message"] += 1
        return node
    node.message = {"role": role, "content": words}
    feedback = message.get("chat_feedback")
    if role == "assistant" and isinstance(feedback, dict):
        value = thumb(feedback.get("type", feedback.get("rating")))
        if value is None:
            tree.left_out["bad_rating"] += 1
        else:
            node.feedback.append(rated(value, feedback.get("reason"), [], {}))
    return node


def _words(message: Json, tree: Tree) -> str:
    """The text parts of `content`, else `text`; thoughts and what tools did are no words."""
    found: list[str] = []
    parts: Any = message.get("content")
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
            found.append(part["text"])
        else:
            kind = part.get("type") if isinstance(part, dict) else None
            tree.left_out[kind[:40] if isinstance(kind, str) and kind else "bad_part"] += 1
    whole = "\n".join(filter(None, found)) or message.get("text")
    return whole if isinstance(whole, str) else ""


FORMAT = Format(name="claude", read=read, recognise=recognise)
