"""The shapes of other people's chat logs: ShareGPT, WildChat, WildFeedback, TensorZero, Langfuse.

Owns the field names of these on the way out. What we do not know (countries, moderation, prices) is null or left
out, never made up; a user leaves WildChat's shape only as a hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import orjson

from afterword.records import Feedback, Json, Turn
from afterword.store.codec import calendar_time
from afterword.store.export_filter import View
from afterword.store.shapes import imitable, preferred, text, unmarked

_SPEAKERS = {"user": "human", "assistant": "gpt", "tool": "observation", "function": "observation"}


def sharegpt(view: View) -> Iterator[Json]:
    """One conversation a row, the system message in a field of its own."""
    for turn, messages in unmarked(view):
        system = [m for m in messages if m["role"] in ("system", "developer")]
        row: Json = {"id": turn.conversation or turn.id, "model": turn.model, "user": turn.user}
        if system:
            row["system"] = "\n\n".join(text(m) for m in system)
        row["conversations"] = [_spoken(m) for m in messages if m["role"] in _SPEAKERS]
        yield {k: v for k, v in row.items() if v is not None}


def _spoken(message: Json) -> Json:
    calls = message.get("tool_calls")
    if calls and not text(message):
        return {"from": "function_call", "value": _dumps([c.get("function", c) for c in calls])}
    return {"from": _SPEAKERS[message["role"]], "value": text(message)}


def wildfeedback(view: View) -> Iterator[Json]:
    """Preference pairs: the conversation, the answer as the user wanted it, the answer as it was served."""
    for turn, chosen in preferred(view):
        yield {
            "conversations": [_spoken(m) for m in turn.messages if m["role"] in _SPEAKERS],
            "chosen": _spoken(chosen),
            "rejected": _spoken(turn.answer),
        }


def wildchat(view: View) -> Iterator[Json]:
    """The columns of WildChat-1M, and those of 4.8M that we know."""
    for turn, messages in unmarked(view):
        owner, moment = _hashed(turn), _iso(turn.created_at)
        said = [m for m in messages if m["role"] in ("user", "assistant")]
        parts = [
            {
                "content": text(m), "country": None, "hashed_ip": owner if m["role"] == "user" else None,
                "header": {"accept-language": None, "user-agent": None}, "language": None, "redacted": None,
                "role": m["role"], "state": None, "timestamp": None, "toxic": None, "turn_identifier": i,
                "created": None, "openai_id": None, "temperature": None, "top_p": None, "token_counter": None,
                "system_fingerprint": None, "usage": None,
            }
            for i, m in enumerate(said)
        ]  # fmt: skip
        if parts:
            parts[-1] |= {
                "timestamp": moment, "created": int(turn.created_at), "openai_id": turn.id, "usage": turn.usage or None,
                **{name: turn.sampling.get(name) for name in ("temperature", "top_p")},
            }  # fmt: skip
        yield {
            "conversation_hash": turn.conversation or turn.id, "model": turn.model, "timestamp": moment,
            "conversation": parts, "turn": sum(m["role"] == "user" for m in said), "language": None,
            "openai_moderation": [], "detoxify_moderation": [], "toxic": None, "redacted": None, "state": None,
            "country": None, "hashed_ip": owner, "header": {"accept-language": None, "user-agent": None},
        }  # fmt: skip


def _hashed(turn: Turn) -> str | None:
    """The user as a hash; one that came from WildChat is one already."""
    if turn.user is None or turn.source == "import:wildchat":
        return turn.user
    return hashlib.blake2b(turn.user.encode("utf-8", "replace"), digest_size=32).hexdigest()


# ---- TensorZero


def tensorzero_turns(view: View) -> Iterator[Json]:
    """Rows of ChatInference."""
    for turn in imitable(view):
        system = [text(m) for m in turn.messages if m["role"] in ("system", "developer")]
        given: Json = {"messages": [_tz_message(m) for m in turn.messages if m["role"] not in ("system", "developer")]}
        if system:
            given["system"] = "\n\n".join(system)
        yield {
            "id": turn.id, "function_name": turn.task or "chat", "variant_name": turn.adapter or turn.model,
            "episode_id": turn.conversation or turn.id, "input": _dumps(given), "output": _dumps(_blocks(turn.answer)),
            "inference_params": _dumps({"chat_completion": turn.sampling}), "timestamp": _iso(turn.created_at),
            "tags": {} if turn.user is None else {"user_id": turn.user},
        }  # fmt: skip


def _tz_message(message: Json) -> Json:
    if message["role"] in ("tool", "function"):
        result = {"type": "tool_result", "id": message.get("tool_call_id", ""), "name": message.get("name", ""),
                  "result": text(message)}  # fmt: skip
        return {"role": "user", "content": [result]}
    return {"role": message["role"], "content": _blocks(message)}


def _blocks(message: Json) -> list[Json]:
    blocks: list[Json] = [{"type": "text", "text": text(message)}] if text(message) else []
    for call in message.get("tool_calls") or []:
        function = call.get("function", {})
        blocks.append({
            "type": "tool_call", "id": call.get("id", ""), "name": function.get("name", ""),
            "raw_name": function.get("name", ""), "raw_arguments": function.get("arguments", "{}"),
        })  # fmt: skip
    return blocks


def tensorzero_feedback(view: View) -> Iterator[Json]:
    """Rows of the float, comment and demonstration tables; what is neither a number nor words has no place there."""
    for row, _ in view.feedback():
        words = row.final_text if row.kind == "edited" else row.text
        shared: Json = {"id": row.id, "timestamp": _iso(row.occurred_at or row.created_at),
                        "tags": {} if row.user is None else {"user_id": row.user}}  # fmt: skip
        if row.kind == "rating" and row.value is not None:
            name = str(row.metadata.get("metric_name") or row.metadata.get("name") or "rating")
            yield {**shared, "target_id": row.turn, "metric_name": name, "value": row.value}
        elif row.kind in ("edited", "demonstration") and words:
            value = _dumps([{"type": "text", "text": words}])
            yield {**shared, "inference_id": row.turn, "value": value}
        elif row.kind in ("follow_up", "comment") and words:
            yield {**shared, "target_id": row.turn, "target_type": "inference", "value": words}


# ---- Langfuse


def langfuse_turns(view: View) -> Iterator[Json]:
    """One generation a row, with what belongs to its trace."""
    for turn in view.turns():
        moment = _iso(turn.created_at)
        yield {
            "id": turn.id, "trace_id": turn.id, "type": "GENERATION", "name": turn.task, "trace_name": turn.task,
            "start_time": moment, "end_time": moment, "user_id": turn.user, "session_id": turn.conversation,
            "provided_model_name": turn.adapter or turn.model, "model_parameters": _dumps(turn.sampling),
            "input": _dumps(list(turn.messages)), "output": _dumps(turn.answer), "usage_details": turn.usage,
        }  # fmt: skip


def langfuse_feedback(view: View) -> Iterator[Json]:
    """Scores: ratings as numbers, words as text, edits as corrections."""
    for row, _ in view.feedback():
        score = _score(row)
        if score is not None:
            yield {
                "id": row.id, "trace_id": row.turn, "observation_id": row.turn, "comment": None,
                "timestamp": _iso(row.occurred_at or row.created_at), "author_user_id": row.user,
                "source": {"reviewer": "ANNOTATION", "detector": "EVAL"}.get(row.source, "API"), **score,
            }  # fmt: skip


def _score(row: Feedback) -> Json | None:
    name = str(row.metadata.get("name") or row.kind)
    if row.kind == "rating" and row.value is not None:
        return {"name": name, "data_type": "NUMERIC", "value": row.value, "string_value": None, "comment": row.text}
    words = row.final_text if row.kind == "edited" else row.text
    if not words:
        return None
    kind = "CORRECTION" if row.kind == "edited" else "TEXT"
    return {"name": name, "data_type": kind, "value": 0, "string_value": words}


# ---- shared


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(calendar_time(seconds), UTC).isoformat()


def _dumps(value: Any) -> str:
    return orjson.dumps(value).decode()
