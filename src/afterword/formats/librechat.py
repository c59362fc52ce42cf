"""Conversations that LibreChat exports: a flat list with `parentMessageId`, or nested in `children`.

It does not say which branch the user saw last: the newest counts.
"""

from __future__ import annotations

from typing import Any

from afterword.formats.format import Format
from afterword.formats.parsing import Node, Tree, bad, label, rated, role_of, shown, text, thumb, unix_time
from afterword.records import Json

_NO_PARENT = "00000000-0000-0000-0000-000000000000"
_LABELS = {
    "not_matched": "Didn't match my request", "inaccurate": "Inaccurate or incorrect",
    "bad_style": "Poor style or tone", "missing_image": "Expected an image",
    "unjustified_refusal": "Refused without reason", "not_helpful": "Lacked useful information",
}  # fmt: skip
"""Reasons as the users read them when they choose one."""


def recognise(row: Json) -> bool:
    """A conversation with `messages` or `messagesTree` in this product's form."""
    given = row.get("messages", row.get("messagesTree"))
    if not isinstance(given, list):
        return "messagesTree" in row
    first = next((m for m in given if isinstance(m, dict)), {})
    if first.keys() & {"messageId", "isCreatedByUser", "parentMessageId"}:
        return True
    return "conversationId" in row and "role" not in first


def read(row: Json) -> Tree:
    """A conversation as a tree."""
    given = row.get("messages") or row.get("messagesTree")
    if not isinstance(given, list) or not given:
        raise bad("no_messages", f"neither `messages` nor `messagesTree` lists a message: {shown(given, 80)}")
    options = row["options"] if isinstance(row.get("options"), dict) else {}
    system = next((options[n] for n in ("promptPrefix", "system", "instructions") if options.get(n)), "")
    if not isinstance(system, str):
        raise bad("bad_message", f"the system prompt is no text: {shown(system, 80)}")
    tree = Tree(
        key=text(row.get("conversationId")) or "",
        nodes={},
        user=text(row.get("user")),
        model=text(options.get("model")) or text(row.get("model")) or "",
        created_at=unix_time(row.get("createdAt")),
        system=system,
    )
    pending: list[tuple[Any, str | None]] = [(message, None) for message in reversed(given)]
    before: str | None = None
    while pending:
        message, above = pending.pop()
        if not isinstance(message, dict):
            tree.left_out["bad_message"] += 1
            continue
        key = text(message.get("messageId")) or f"#{len(tree.nodes)}"
        parent = above or (text(message.get("parentMessageId")) if "parentMessageId" in message else before)
        tree.add(key, _node(message, None if parent == _NO_PARENT else parent, tree))
        before = key
        below = message.get("children")
        if isinstance(below, list):
            pending += [(child, key) for child in reversed(below)]
    return tree


def _node(message: Json, parent: str | None, tree: Tree) -> Node:
    node = Node(parent=parent, created_at=unix_time(message.get("createdAt")))
    mine = message.get("isCreatedByUser")
    role = ("user" if mine else "assistant") if isinstance(mine, bool) else role_of(message.get("sender"))
    if role is None:
        tree.left_out["bad_message"] += 1
        return node
    said = _words(message, tree)
    if not said or (role == "assistant" and message.get("error") is True):
        tree.left_out["error" if message.get("error") else "empty_message"] += 1
        return node
    node.message = {"role": role, "content": said}
    if role == "assistant":
        model = text(message.get("model")) or ""
        node.attempt, node.turn = model, {"model": model} if model else {}
        if message.get("unfinished") is True:
            node.turn["finish_reason"] = "aborted"
        _rating(node, message.get("feedback"), tree)
    return node


def _words(message: Json, tree: Tree) -> str:
    """The text, or the text parts of `content`, which newer versions write; thoughts and tool calls are no words."""
    if isinstance(message.get("text"), str) and message["text"]:
        return str(message["text"])
    parts = message.get("content")
    if isinstance(parts, str):
        return parts
    found: list[str] = []
    for part in parts if isinstance(parts, list) else ():
        said = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        said = said.get("value") if isinstance(said, dict) else said
        if isinstance(said, str):
            found.append(said)
        else:
            kind = part.get("type") if isinstance(part, dict) else None
            tree.left_out[kind[:40] if isinstance(kind, str) and kind else "bad_part"] += 1
    return "\n".join(found)


def _rating(node: Node, feedback: Any, tree: Tree) -> None:
    if feedback is None:
        return
    value = thumb(feedback.get("rating")) if isinstance(feedback, dict) else None
    if value is None:
        tree.left_out["bad_rating"] += 1
        return
    tag = feedback.get("tag")
    reasons = tag if isinstance(tag, list) else feedback["tags"] if isinstance(feedback.get("tags"), list) else [tag]
    labels = [words for reason in reasons for words in label(reason, _LABELS)]
    node.feedback.append(rated(value, feedback.get("text"), labels, {"tag": tag, "tags": feedback.get("tags")}))


FORMAT = Format(name="librechat", read=read, recognise=recognise)
