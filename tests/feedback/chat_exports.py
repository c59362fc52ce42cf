"""Exports of chat products, made small: every builder gives the object that the product writes for one chat."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
Line = tuple[str, str | None, str, str]
"""Key, key of the message before it, role, words."""

EGGS: list[Line] = [
    ("m1", None, "user", "How long do eggs boil?"),
    ("m2", "m1", "assistant", "A while."),
    ("m3", "m1", "assistant", "Six minutes."),
    ("m4", "m3", "user", "Say it in one word, please."),
    ("m5", "m4", "assistant", "Six."),
]
"""A question that was answered twice, and went on behind the second answer."""


def open_webui(lines: list[Line] = EGGS, current: str | None = "m5", chat: str = "c1", user: str = "u1") -> Json:
    answer: Json = {"model": "m", "done": True}
    messages = {
        key: {"id": key, "parentId": parent, "childrenIds": [k for k, p, *_ in lines if p == key], "role": role,
              "content": words, "timestamp": 1760000000 + n, **(answer if role == "assistant" else {})}
        for n, (key, parent, role, words) in enumerate(lines)
    }  # fmt: skip
    return {
        "id": chat, "user_id": user, "title": "Eggs", "created_at": 1760000000, "updated_at": 1760000022,
        "chat": {"models": ["m"], "params": {}, "history": {"currentId": current, "messages": messages},
                 "messages": list(messages.values())},
    }  # fmt: skip


def chatgpt(lines: list[Line] = EGGS, current: str | None = "m5", chat: str = "c1") -> Json:
    mapping: dict[str, Json] = {"root": {"id": "root", "message": None, "parent": None, "children": []}}
    for n, (key, parent, role, words) in enumerate(lines):
        message = {
            "id": key, "author": {"role": role, "name": None, "metadata": {}}, "create_time": 1760000000.5 + n,
            "content": {"content_type": "text", "parts": [words]}, "status": "finished_successfully", "weight": 1.0,
            "recipient": "all", "metadata": {"model_slug": "m"} if role == "assistant" else {},
        }  # fmt: skip
        mapping[key] = {"id": key, "message": message, "parent": parent or "root", "children": []}
    for key, parent, *_ in lines:
        mapping.get(parent or "root", mapping["root"])["children"].append(key)
    return {"id": chat, "conversation_id": chat, "title": "Eggs", "create_time": 1760000000.5, "mapping": mapping,
            "current_node": current, "default_model_slug": "m"}  # fmt: skip


def librechat(lines: list[Line] = EGGS, chat: str = "c1") -> Json:
    messages = [
        {"messageId": key, "parentMessageId": parent or "00000000-0000-0000-0000-000000000000", "conversationId": chat,
         "sender": role.title(), "isCreatedByUser": role == "user", "text": words, "error": False, "model": "m",
         "createdAt": f"2026-05-01T10:00:{n:02d}.000Z"}
        for n, (key, parent, role, words) in enumerate(lines)
    ]  # fmt: skip
    return {"conversationId": chat, "title": "Eggs", "branches": True, "recursive": False, "options": {"model": "m"},
            "messages": messages}  # fmt: skip


def nested(chat: Json) -> Json:
    """LibreChat's other form: each message holds what follows it."""
    by_key = {m["messageId"]: {**m, "children": []} for m in chat["messages"]}
    roots: list[Json] = []
    for message in by_key.values():
        above = by_key.get(message["parentMessageId"])
        (roots if above is None else above["children"]).append(message)
    rest = {k: v for k, v in chat.items() if k != "messages"}
    return {**rest, "recursive": True, "messagesTree": roots}


def claude(lines: list[Line] = EGGS, chat: str = "c1") -> Json:
    messages = [
        {"uuid": key, "text": words, "content": [{"type": "text", "text": words}], "attachments": [], "files": [],
         "sender": "human" if role == "user" else role, "created_at": f"2026-05-01T10:00:{n:02d}.000000Z",
         "parent_message_uuid": parent or "00000000-0000-4000-8000-000000000000"}
        for n, (key, parent, role, words) in enumerate(lines)
    ]  # fmt: skip
    return {"uuid": chat, "name": "Eggs", "account": {"uuid": "u1"}, "created_at": "2026-05-01T10:00:00.000000Z",
            "chat_messages": messages}  # fmt: skip


def vote(message: str = "m2", rating: int = -1, comment: str = "Say how many minutes.", at: int = 1760000100,
         chat: Json | None = None) -> Json:  # fmt: skip
    """A row of Open WebUI's feedback history."""
    return {
        "id": "f1", "user_id": "u1", "version": 0, "type": "rating",
        "data": {"rating": rating, "model_id": "m", "reason": "not_helpful", "comment": comment, "tags": ["cooking"],
                 "details": {"rating": 3}},
        "meta": {"chat_id": "c1", "message_id": message, "message_index": 2, "arena": False},
        "snapshot": {} if chat is None else {"chat": chat}, "created_at": at, "updated_at": at,
    }  # fmt: skip
