"""WildChat's rows (also those of WildChat-1M, WildChat-4.8M and LMSYS-Chat-1M)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from afterword.formats.export_filter import ExportFilter, plain_text
from afterword.formats.format import Export, Format
from afterword.formats.parsing import Conversation, iso_time, listed, message_of, role_of, text, unix_time, weighed
from afterword.records import Json, Turn


def recognise(row: Json) -> bool:
    """A conversation with one of the columns that only this data set has."""
    return "conversation" in row and bool(row.keys() & {"conversation_hash", "hashed_ip", "openai_moderation"})


def read(row: Json) -> Conversation:
    """A conversation; of each answer also its time, sampling and usage where the row has them."""
    parts = listed(row, "conversation")
    messages = [{"role": m.get("role"), "content": m.get("content")} if isinstance(m, dict) else m for m in parts]
    first = parts[0] if isinstance(parts[0], dict) else {}
    turns = {
        i: _answer_fields(m)
        for i, m in enumerate(parts)
        if isinstance(m, dict) and role_of(m.get("role")) == "assistant"
    }
    return Conversation(
        messages=weighed([message_of(m) for m in messages], row, parts),
        key=text(row.get("conversation_hash")) or text(row.get("conversation_id")) or "",
        model=text(row.get("model")) or "",
        user=text(row.get("hashed_ip")) or text(first.get("hashed_ip")),
        created_at=unix_time(row.get("timestamp")),
        turns=turns,
    )


def _answer_fields(message: Json) -> Json:
    """Fields of `Turn` that the columns of WildChat-4.8M give for one answer."""
    moment = unix_time(message.get("timestamp")) or unix_time(message.get("created"))
    fields: Json = {} if moment is None else {"created_at": moment}
    sampling = {name: message[name] for name in ("temperature", "top_p") if isinstance(message.get(name), int | float)}
    if sampling:
        fields["sampling"] = sampling
    if isinstance(message.get("usage"), dict):
        fields["usage"] = {k: v for k, v in message["usage"].items() if v is not None}
    return fields


def write(rows: ExportFilter) -> Iterator[Json]:
    """The columns of WildChat-1M, and those of 4.8M that are known. Users leave as hashes; unknown columns are null."""
    for turn, messages in rows.imitable_threads():
        owner, moment = _hashed_user(turn), iso_time(turn.created_at)
        said = [m for m in messages if m["role"] in ("user", "assistant")]
        parts = [
            {
                "content": plain_text(m), "country": None, "hashed_ip": owner if m["role"] == "user" else None,
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


def _hashed_user(turn: Turn) -> str | None:
    """The user as a hash; one that came from WildChat is one already."""
    if turn.user is None or turn.source == "import:wildchat":
        return turn.user
    return hashlib.blake2b(turn.user.encode("utf-8", "replace"), digest_size=32).hexdigest()


FORMAT = Format(
    name="wildchat",
    read=read,
    recognise=recognise,
    exports=(Export(what="turns", write=write, training=True),),
)
