"""Exports of Open WebUI: all chats (a tree of messages, thumbs in `annotation`), and the history of feedback.

A chat may also come alone, or as the list of messages that older versions wrote.
"""

from __future__ import annotations

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
    rated,
    role_of,
    shown,
    spoken,
    text,
    thumb,
    unix_time,
)
from afterword.records import Json

_LABELS = {
    "dont_like_the_style": "Don't like the style",
    "didnt_fully_follow_instructions": "Didn't fully follow instructions",
    "refused_when_it_shouldnt_have": "Refused when it shouldn't have",
}
_CLOSED = "</details>"
_DETAILS = re.compile(rf"<details\s+type=\"(reasoning|tool_calls|code_interpreter)\"[^<>]*+>.*?{_CLOSED}\s*", re.DOTALL)
"""How thoughts and tool calls are shown within an answer: they are no words of it."""


def recognise(row: Json) -> bool:
    """A chat, or a row of the feedback history."""
    chat, data = row.get("chat"), row.get("data")
    if isinstance(chat, dict) and ("history" in chat or "messages" in chat):
        return True
    if isinstance(row.get("history"), dict) and "messages" in row["history"]:
        return True
    return isinstance(data, dict) and "rating" in data and isinstance(row.get("meta"), dict)


def read(row: Json) -> Tree | Remark:
    """A chat, or the feedback on a message of one."""
    if isinstance(row.get("data"), dict) and "chat" not in row and "history" not in row:
        return _remark(row)
    return _chat(row)


def _chat(row: Json) -> Tree:
    chat = row["chat"] if isinstance(row.get("chat"), dict) else row
    history = mapping(chat.get("history"))
    given = history.get("messages")
    if isinstance(given, dict) and given:
        items = list(given.items())
    else:
        listed = chat.get("messages")
        if not isinstance(listed, list) or not listed:
            raise bad("no_messages", f"the chat has no message: `history` is {shown(chat.get('history'), 80)}")
        items = _chained(listed)
    models, params = chat.get("models"), chat.get("params")
    single = models[0] if isinstance(models, list) and len(models) == 1 else None
    tree = Tree(
        key=text(row.get("id")) or text(chat.get("id")) or "",
        nodes={},
        current=text(history.get("currentId")),
        user=text(row.get("user_id")),
        model=text(single) or "",
        created_at=unix_time(row.get("created_at")) or unix_time(chat.get("timestamp")),
        system=(params.get("system") if isinstance(params, dict) else None) or chat.get("system") or "",
    )
    if not isinstance(tree.system, str):
        raise bad("bad_message", f"the system prompt is no text: {shown(tree.system, 80)}")
    voted = unix_time(row.get("updated_at")) or tree.created_at
    above = parents(items, "childrenIds")
    for key, message in items:
        tree.add(
            key, _node({"parentId": above.get(key), **message} if isinstance(message, dict) else message, tree, voted)
        )
    return tree


def _chained(messages: list[Any]) -> list[tuple[str, Any]]:
    """A plain list as the items of a tree: each message follows the one before it, where it does not say."""
    found: list[tuple[str, Any]] = []
    for n, message in enumerate(messages):
        if isinstance(message, dict):
            key = text(message.get("id")) or f"#{n}"
            if "parentId" not in message:
                message = {**message, "parentId": found[-1][0] if found else None}
            found.append((key, message))
        else:
            found.append((f"#{n}", message))
    return found


def _node(message: Any, tree: Tree, voted: float | None) -> Node:
    if not isinstance(message, dict):
        tree.left_out["bad_message"] += 1
        return Node(parent=None)
    node = Node(parent=text(message.get("parentId")), created_at=unix_time(message.get("timestamp")))
    role, content = role_of(message.get("role")), spoken(message.get("content"))
    if role is None or (content is None and message.get("content") is not None):
        tree.left_out["bad_message"] += 1
        return node
    if role == "assistant":
        _answer(node, message, content or "", tree, voted)
    elif content:
        node.message = {"role": role, "content": _with_images(content, message.get("files"))}
    return node


def _with_images(content: str | list[Json], files: Any) -> str | list[Json]:
    images = [f for f in files if isinstance(f, dict) and f.get("type") == "image"] if isinstance(files, list) else []
    if not images:
        return content
    words = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [*words, *({"type": "image_url", "image_url": {"url": text(f.get("url")) or ""}} for f in images)]


def _answer(node: Node, message: Json, content: str | list[Json], tree: Tree, voted: float | None) -> None:
    original = message.get("originalContent")
    answer = final = _words(content, tree)
    if isinstance(original, str) and original and isinstance(content, str):
        answer = _words(original, tree)
    if not answer:
        tree.left_out["error" if message.get("error") else "empty_answer"] += 1
        return
    node.message = {"role": "assistant", "content": answer}
    model = text(message.get("model")) or tree.model
    node.attempt = f"{model} {message.get('modelIdx', '')}"
    node.turn = {"model": model}
    if message.get("error"):
        node.turn["finish_reason"] = "error"
    elif message.get("done") is False:
        node.turn["finish_reason"] = "aborted"
    if final != answer:
        node.feedback.append({"kind": "edited", "final_text": final})
    if message.get("annotation") is not None:
        try:
            node.feedback.append({**_rating(message["annotation"]), "created_at": voted, "occurred_at": voted})
        except ValueError:
            tree.left_out["bad_rating"] += 1


def _words(content: str | list[Json], tree: Tree) -> str | list[Json]:
    if not isinstance(content, str):
        return content
    end = content.rfind(_CLOSED) + len(_CLOSED)  # behind it nothing is closed, and each opening would look for it
    if end < len(_CLOSED):
        return content
    said, parts = _DETAILS.subn("", content[:end])
    if parts:
        tree.left_out["thoughts_and_tools"] += parts
    return (said + content[end:]).strip() if parts else content


def _rating(data: Any) -> Json:
    """The thumb of an annotation or of a row of feedback, with its reason. A score of 1 .. 10 counts where there is
    no thumb."""
    if not isinstance(data, dict):
        raise bad("value_range", f"no rating: {shown(data, 80)}")
    details = mapping(data.get("details"))
    value, score = thumb(data.get("rating")), details.get("rating")
    if value is None and isinstance(score, int | float) and 1 <= score <= 10:
        value = (float(score) - 5.5) / 4.5
    if value is None:
        raise bad("value_range", f"the rating {shown(data.get('rating'), 60)} is neither 1 nor -1")
    about = {"reason": data.get("reason"), "tags": data.get("tags"), "details": details}
    return rated(value, data.get("comment"), label(data.get("reason"), _LABELS), about)


def _remark(row: Json) -> Remark:
    meta = mapping(row.get("meta"))
    snapshot = mapping(row.get("snapshot"))
    chat, message = text(meta.get("chat_id")), text(meta.get("message_id"))
    if chat is None or message is None:
        raise bad("no_id", f"the feedback names no message of a chat: `meta` is {shown(meta, 80)}")
    inner, user = snapshot.get("chat"), text(row.get("user_id"))
    tree = _chat(inner) if isinstance(inner, dict) and recognise(inner) else None
    if tree is not None and message in tree.nodes:
        rated_here = [f for f in tree.nodes[message].feedback if f["kind"] != "rating"]
        tree.nodes[message].feedback = rated_here  # the row itself says what became of the thumb
    return Remark(
        chat=chat, message=message, fields=_rating(row["data"]), owner=tree.user if tree is not None else user,
        user=user, moment=unix_time(row.get("updated_at")) or unix_time(row.get("created_at")), tree=tree,
    )  # fmt: skip


FORMAT = Format(name="open-webui", read=read, recognise=recognise, aliases=("openwebui",))
