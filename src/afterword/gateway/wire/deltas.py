"""Assembles the deltas of a stream into a message.

Handles server differences: tool calls without an index or all at one, repeated or emptied fields, lists of content
parts. Pure; raises TypeError or AttributeError for an invalid shape.
"""

from __future__ import annotations

from typing import Any

import orjson

from afterword.records import Json


class Deltas:
    """A message that is being assembled."""

    def __init__(self) -> None:
        self._text: dict[str, list[str]] = {}
        self._content: list[Any] = []
        """Content parts of servers that stream lists; strings are text."""
        self._lists: dict[str, list[Any]] = {}
        self._objects: Json = {}
        self._calls = _Calls()

    def __bool__(self) -> bool:
        """Did anything of an answer arrive?"""
        return bool(self._text or self._content or self._lists or self._objects or self._calls.calls)

    def says(self, text: Any) -> bool:
        """True when `text` is the content so far."""
        return bool(self._text.get("content")) and "".join(self._text["content"]) == text

    def add(self, delta: Json) -> None:
        """Adds one delta; null fields change nothing.

        Raises:
            TypeError: If a field has an invalid shape; also AttributeError.
        """
        for name, value in delta.items():
            if value is None or name == "role":
                continue
            if name == "tool_calls":
                for part in [value] if isinstance(value, dict) else value:
                    self._calls.add(part)
            elif name == "content" and (isinstance(value, list) or self._content):
                self._add_parts(value)
            elif isinstance(value, str):
                self._text.setdefault(name, []).append(value)
            elif isinstance(value, list):
                self._lists.setdefault(name, []).extend(value)
            elif isinstance(value, dict):
                self._objects[name] = _grown(self._objects.get(name) or {}, value)

    def _add_parts(self, value: Any) -> None:
        """Mistral and Anthropic's proxies stream lists of parts."""
        if not self._content:
            self._content += self._text.pop("content", [])
        for part in [value] if isinstance(value, str) else value:
            if isinstance(part, dict) and part.get("type") == "text":
                part = part["text"]
            if not isinstance(part, str | dict):
                raise TypeError(f"a content part is {part!r:.80}")
            self._content.append(part)

    def message(self, role: str = "assistant") -> Json:
        """Returns the message so far; its content is None when it has none."""
        found: Json = {"role": role, "content": self._content_value()}
        found |= {name: "".join(parts) for name, parts in self._text.items()}
        found |= {name: list(parts) for name, parts in self._lists.items()}
        found |= self._objects
        if self._calls.calls:
            found["tool_calls"] = self._calls.calls
        return found

    def _content_value(self) -> Any:
        if not self._content:
            return None
        if all(isinstance(part, str) for part in self._content):
            return "".join(self._content)
        merged: list[Json] = []
        for part in self._content:
            if isinstance(part, dict):
                merged.append(part)
            elif merged and merged[-1].get("type") == "text":
                merged[-1]["text"] += part
            else:
                merged.append({"type": "text", "text": part})
        return merged


_ONCE = ("id", "name", "type", "format", "index")
"""Fields of objects that name something: they are set, never added up."""


def _grown(old: Json, new: Json) -> Json:
    """An object of a delta (a legacy function call, audio) with its next part: texts grow, names are set once."""
    found = dict(old)
    for name, value in new.items():
        before = found.get(name)
        if value is None or value == "":
            found.setdefault(name, value)
        elif isinstance(value, str) and isinstance(before, str) and name not in _ONCE:
            found[name] = before + value
        elif isinstance(value, dict) and isinstance(before, dict):
            found[name] = _grown(before, value)
        elif isinstance(value, list) and isinstance(before, list):
            found[name] = before + value
        else:
            found[name] = value
    return found


class _Calls:
    """Tool calls in the making, in the order in which they began."""

    def __init__(self) -> None:
        self.calls: list[Json] = []
        self._at: dict[Any, int] = {}
        """Index in the stream -> place of the newest call with it."""

    def add(self, part: Json) -> None:
        """Add the part of a call to the call that it continues, or begin another one."""
        index, name = part.get("index"), part.get("id") or None
        function = part.get("function")
        if function is None:
            function = {}
        if not isinstance(function, dict):
            raise TypeError(f"the function of a tool call is {function!r:.80}")
        at = self._place(index, name)
        if at is None or _begins(self.calls[at], name, function, numbered=index is not None):
            at = len(self.calls)
            self.calls.append({})
        if index is not None:
            self._at[index] = at
        _merge(self.calls[at], part, function)

    def _place(self, index: Any, name: str | None) -> int | None:
        """The call that a part with this index or id may belong to."""
        if index is not None:
            return self._at.get(index)
        if name is not None:
            places = [at for at, call in enumerate(self.calls) if call.get("id") == name]
            if places:
                return places[-1]
        return len(self.calls) - 1 if self.calls else None


def _begins(call: Json, name: str | None, function: Json, *, numbered: bool) -> bool:
    """Does a part begin another call, though it came at the place of `call`? Only one with a function's name does.

    `numbered`: it has an index, so that its fields may come in pieces.
    """
    if not function.get("name"):
        return False
    before = call.get("function") or {}
    said, more = before.get("arguments") or "", function.get("arguments") or ""
    other = function["name"] != before.get("name")
    if name is not None and call.get("id"):
        if name == call["id"]:
            return False
        return _complete(said) or (not said and (other or not more or _complete(more)))
    if not before.get("name"):
        return False
    return (_complete(said) and (other or bool(more))) or (other and not numbered)


def _complete(arguments: Any) -> bool:
    """Are the arguments whole JSON?"""
    if isinstance(arguments, dict):
        return True
    if not isinstance(arguments, str) or not arguments.rstrip().endswith("}"):
        return False
    try:
        orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return False
    return True


def _merge(call: Json, part: Json, function: Json) -> None:
    for name, value in part.items():
        if name == "function":
            target = call.setdefault("function", {})
            for field, text in function.items():
                _merge_function(target, field, text)
        elif name != "index" and value is not None and (value != "" or name not in call):
            call[name] = call[name] if name == "id" and call.get("id") else value


def _merge_function(function: Json, field: str, value: Any) -> None:
    before = function.get(field)
    if value is None:
        return
    if field == "arguments":
        text = value if isinstance(value, str) else orjson.dumps(value).decode()
        before = before or ""
        if not (text and text == before and _complete(before)):  # a server that says the whole once more at the end
            function[field] = before + text
    elif field == "name":
        if not isinstance(value, str):
            raise TypeError(f"the name of a tool's function is {value!r:.80}")
        before = before or ""
        if value.startswith(before):  # repeated, or said so far
            function[field] = value
        elif value and not function.get("arguments"):
            function[field] = before + value
    else:
        function[field] = value
