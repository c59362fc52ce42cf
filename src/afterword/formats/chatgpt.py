"""Exports of ChatGPT: `conversations.json` (a tree in `mapping`, of which the user saw the branch that ends at
`current_node`) and `message_feedback.json`.
"""

from __future__ import annotations

import json
import re
from typing import Any

from afterword.formats.format import Format
from afterword.formats.parsing import (
    Node,
    Remark,
    Tree,
    bad,
    label,
    mapping,
    parents,
    parsed,
    rated,
    shown,
    text,
    thumb,
    unix_time,
)
from afterword.records import Json

_MARKS = re.compile(r"[ \t]*(?:\ue200([^\ue201]*)\ue201|【\d+(?::\d+)?†[^】]*】)|[\ue200-\ue20f]")
"""How answers cite what a tool found: fields between private-use characters, formerly `【4†source】`."""
_SHOWN = ("text", "multimodal_text", "code", "execution_output")
"""Kinds of content that are words; the others are thoughts, quotations of pages, and settings."""
_OTHERS = {"messages", "conversation", "conversations", "prompt", "input", "chosen", "chat", "trace_id", "traceId"}
"""What a row holds that is a chat, and no feedback on one."""
_ENDS = {"max_tokens": "length", "interrupted": "aborted"}


def recognise(row: Json) -> bool:
    """A conversation, or a row of the feedback."""
    if "mapping" in row:
        return True
    feedback = {"rating", "conversation_id"} <= row.keys() and bool(row.keys() & {"message_id", "id"})
    return feedback and not row.keys() & _OTHERS


def read(row: Json) -> Tree | Remark:
    """A conversation, or the feedback on a message of one."""
    if "mapping" not in row:
        return _remark(row)
    given = row["mapping"]
    if not isinstance(given, dict) or not given:
        raise bad("no_messages", f"`mapping` holds no message: {shown(given, 80)}")
    tree = Tree(
        key=text(row.get("conversation_id")) or text(row.get("id")) or "",
        nodes={},
        current=text(row.get("current_node")),
        user=text(row.get("user_id")),
        model=text(row.get("default_model_slug")) or "",
        created_at=unix_time(row.get("create_time")),
    )
    above = parents(given.items(), "children")
    for key, entry in given.items():
        if isinstance(entry, dict):
            tree.add(key, _node(key, {"parent": above.get(key), **entry}, tree))
        else:
            tree.left_out["bad_message"] += 1
    return tree


def _node(key: str, entry: Json, tree: Tree) -> Node:
    node, message = Node(parent=text(entry.get("parent"))), entry.get("message")
    if message is None:
        return node  # the root
    author = message.get("author") if isinstance(message, dict) else None
    role = author.get("role") if isinstance(author, dict) else None
    if role not in ("system", "user", "assistant", "tool"):
        tree.left_out["bad_message"] += 1
        return node
    node.created_at = unix_time(message.get("create_time"))
    about = message["metadata"] if isinstance(message.get("metadata"), dict) else {}
    if about.get("is_visually_hidden_from_conversation") or message.get("weight") == 0:
        tree.left_out["hidden"] += 1
        return node
    content = _content(message.get("content"), tree)
    if content is None:
        return node
    if role == "assistant":
        if isinstance(content, str):
            content, marks = without_marks(content)
            if marks:
                tree.left_out["citation"] += marks
                if not content.strip():
                    return node
        _answer(key, node, message, about, content)
    elif role == "tool":
        name = text(author.get("name")) if isinstance(author, dict) else None
        node.message = {"role": "tool", "tool_call_id": node.parent or "", "name": name or "tool", "content": content}
    else:
        node.message = {"role": role, "content": content}
    return node


def without_marks(words: str) -> tuple[str, int]:
    """An answer without its citation marks, which the user saw as links, and how many there were."""
    if not _MARKS.search(words):
        return words, 0
    return _MARKS.subn(_shown_of, words)


def _shown_of(mark: re.Match[str]) -> str:
    """What a mark showed within the sentence: the title of a link, the name of an entity; nothing for a citation."""
    kind, *fields = (mark[1] or "").split("\ue202")
    if kind == "entity" and fields:
        entity = parsed(fields[0])
        said = entity[1] if isinstance(entity, list) and len(entity) > 1 else ""
    else:
        said = fields[0] if kind in ("url", "link_title") and fields else ""
    lead = mark[0][: len(mark[0]) - len(mark[0].lstrip(" \t"))]
    return lead + said if isinstance(said, str) and said else ""


def _content(content: Any, tree: Tree) -> str | list[Json] | None:
    """Words and pictures of a message; None when there are none, which is counted."""
    kind = content.get("content_type") if isinstance(content, dict) else None
    if kind not in _SHOWN:
        tree.left_out["bad_message" if kind is None else str(kind)[:40]] += 1
        return None
    parts = content.get("parts") if isinstance(content.get("parts"), list) else [content.get("text")]
    found: list[Json] = []
    for part in parts:
        said = part.get("text") if isinstance(part, dict) else part
        if isinstance(said, str):
            found += [{"type": "text", "text": said}] if said else []
        elif isinstance(part, dict) and "asset_pointer" in part:
            found.append({"type": "image_url", "image_url": {"url": text(part["asset_pointer"]) or ""}})
        else:
            tree.left_out["bad_part"] += 1
    if all(part["type"] == "text" for part in found):
        words = "\n".join(part["text"] for part in found)
        return words or None
    return found


def _answer(key: str, node: Node, message: Json, about: Json, content: str | list[Json]) -> None:
    recipient = message.get("recipient")
    if isinstance(recipient, str) and recipient != "all":
        words = content if isinstance(content, str) else json.dumps(content)
        call = {"name": recipient, "arguments": words if _is_object(words) else json.dumps({"input": words})}
        node.message = {
            "role": "assistant", "content": "", "tool_calls": [{"id": key, "type": "function", "function": call}],
        }  # fmt: skip
    else:
        node.message = {"role": "assistant", "content": content}
    model = text(about.get("model_slug")) or ""
    node.attempt, node.turn = model, {"model": model} if model else {}
    details = about.get("finish_details")
    end = details.get("type") if isinstance(details, dict) else None
    if message.get("status") == "in_progress":
        end = "interrupted"
    if isinstance(end, str) and end in _ENDS:
        node.turn["finish_reason"] = _ENDS[end]


def _is_object(words: str) -> bool:
    return words.lstrip().startswith("{") and bool(mapping(words.strip()))


def _remark(row: Json) -> Remark:
    chat, message = text(row.get("conversation_id")), text(row.get("message_id")) or text(row.get("id"))
    value = thumb(row.get("rating"))
    if chat is None or message is None:
        raise bad("no_id", f"the feedback names no message of a conversation: {shown(row, 120)}")
    if value is None:
        raise bad("value_range", f"the rating {shown(row.get('rating'), 60)} is neither a thumb up nor one down")
    said = mapping(row.get("content")) or row
    tags = [tag for tag in said.get("tags", ()) if isinstance(tag, str)] if isinstance(said.get("tags"), list) else []
    reasons = [words for tag in tags for words in label(tag)]
    comment = said.get("text") or said.get("comment")
    return Remark(
        chat=chat, message=message, fields=rated(value, comment, reasons, {"tags": tags}),
        moment=unix_time(row.get("update_time")) or unix_time(row.get("create_time")),
    )  # fmt: skip


FORMAT = Format(name="chatgpt", read=read, recognise=recognise)
