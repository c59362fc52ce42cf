"""Conversations in the form of Anthropic's Messages API: `system` beside `messages`, content in blocks, results of
tools as blocks of user messages. Converts them to OpenAI's form, which is the stored one.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from afterword.formats.parsing import bad, dumps, message_of, shown, text
from afterword.records import Json

_BLOCKS = {"tool_use", "tool_result", "thinking", "redacted_thinking", "image", "document", "server_tool_use"}


def is_anthropic(row: Json) -> bool:
    """Does the row differ from OpenAI's form: a system prompt beside the messages, or blocks of this API?"""
    if row.get("system"):
        return True
    messages = row.get("messages")
    contents = [m.get("content") for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []
    return any(
        isinstance(block, dict) and isinstance(block.get("type"), str) and block["type"] in _BLOCKS
        for content in contents
        if isinstance(content, list)
        for block in content
    )


def with_answer(row: Json) -> Json:
    """A row that logs a request and its response apart, with the answer behind the messages; others as they are."""
    request, response = row.get("request"), row.get("response")
    if isinstance(request, dict) and isinstance(request.get("messages"), list):
        row = {**row, **request}
    choices = response.get("choices") if isinstance(response, dict) else None
    answer = (
        choices[0].get("message") if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
    )
    if answer is None and isinstance(response, dict) and "content" in response:
        answer = {"role": "assistant", "content": response["content"]}
    if not isinstance(answer, dict) or not isinstance(row.get("messages"), list):
        return row
    return {**row, "messages": [*row["messages"], answer]}


def messages_of(row: Json, left_out: Counter[str]) -> list[Json]:
    """The messages in OpenAI's form, the system prompt first."""
    given = row.get("messages")
    found: list[Json] = []
    system = _system(row.get("system"))
    for message in given if isinstance(given, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, list):
            found.append(message_of(message))
            continue
        blocks = [block for block in content if isinstance(block, dict)]
        if len(blocks) < len(content):
            raise bad("bad_message", f"a block of the content is no object: {shown(content, 120)}")
        found += _converted(message_of({**message, "content": None}), blocks, left_out)
    if system and not (found and found[0]["role"] == "system" and found[0].get("content") == system):
        found.insert(0, {"role": "system", "content": system})
    return found


def _system(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    blocks = value if isinstance(value, list) else [value]
    texts = [block.get("text") if isinstance(block, dict) else block for block in blocks]
    if not all(isinstance(said, str) for said in texts):
        raise bad("bad_message", f"the system prompt is neither text nor blocks of text: {shown(value, 120)}")
    return "\n\n".join(said for said in texts if isinstance(said, str))


def _converted(message: Json, blocks: list[Json], left_out: Counter[str]) -> list[Json]:
    """One message as one or more: results of tools come first, as messages of their own."""
    results: list[Json] = []
    parts: list[Json] = []
    calls: list[Json] = []
    for block in blocks:
        kind = block.get("type")
        if kind == "tool_result":
            said = _result(block.get("content"))
            results.append({"role": "tool", "tool_call_id": text(block.get("tool_use_id")) or "", "content": said})
        elif kind in ("tool_use", "server_tool_use"):
            function = {"name": text(block.get("name")) or "", "arguments": dumps(block.get("input") or {})}
            calls.append({"id": text(block.get("id")) or "", "type": "function", "function": function})
        elif kind in ("thinking", "redacted_thinking"):
            left_out["thinking"] += 1
        else:
            parts.append(_image(block) if kind == "image" else block)
    if not parts and not calls:
        return results or [{**message, "content": ""}]
    content = "".join(p.get("text") or "" for p in parts) if all(_is_text(p) for p in parts) else parts
    return [*results, {**message, "content": content, **({"tool_calls": calls} if calls else {})}]


def _is_text(part: Json) -> bool:
    return part.get("type") == "text" and isinstance(part.get("text"), str)


def _result(content: Any) -> str:
    """What a tool gave back, as a text."""
    if isinstance(content, list) and all(isinstance(b, dict) and _is_text(b) for b in content):
        return "\n".join(block["text"] for block in content)
    return content if isinstance(content, str) else "" if content is None else dumps(content)


def _image(block: Json) -> Json:
    source = block.get("source")
    if not isinstance(source, dict):
        return block
    url = source.get("url") or f"data:{source.get('media_type', 'image/png')};base64,{source.get('data', '')}"
    return {"type": "image_url", "image_url": {"url": text(url) or ""}}
