"""Reads triples (x, y, o): a prompt, the completion and the user's next message."""

from __future__ import annotations

from collections.abc import Iterator

from afterword.formats.export_filter import ExportFilter, plain_text
from afterword.formats.format import Export, Format
from afterword.formats.parsing import Conversation, bad, checked, shown, text, weighed
from afterword.records import Json, Turn


def recognise(row: Json) -> bool:
    """A row with all three parts."""
    return {"prompt", "completion", "user_response"} <= row.keys()


def read(row: Json) -> Conversation:
    """A conversation of which only the last answer is a turn of this row."""
    prompt, completion, response = row.get("prompt"), row.get("completion"), row.get("user_response")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(messages, list) or not messages:
        raise bad("no_messages", "`prompt` is neither a text nor a list of messages")
    answer = completion[0] if isinstance(completion, list) and len(completion) == 1 else completion
    if isinstance(answer, str):
        answer = {"role": "assistant", "content": answer}
    if not isinstance(answer, dict) or answer.get("role") != "assistant":
        raise bad("no_messages", f"`completion` is neither a text nor one assistant message: {shown(completion, 120)}")
    if isinstance(response, list) and len(response) == 1:
        response = response[0]
    if isinstance(response, dict):
        response = response.get("content")
    if not isinstance(response, str):
        raise bad("no_messages", f"`user_response` is no text: {shown(response, 120)}")
    follow_up = [{"role": "user", "content": response}] if response else []
    return Conversation(
        messages=weighed([checked(m) for m in (*messages, answer, *follow_up)], row),
        key=text(row.get("id")) or "",
        name=text(row.get("original_conv_id")),
        only_last=True,
    )


def write(rows: ExportFilter) -> Iterator[Json]:
    """Interactions with hindsight: the request, the answer, the user's reaction."""
    for interaction, turn in rows.pairs():
        if interaction.hindsight:
            yield {
                "id": interaction.id,
                "original_conv_id": turn.conversation or turn.id,
                "turn_id": turn.id,
                "prompt": list(turn.messages),
                "completion": turn.answer,
                "user_response": interaction.hindsight,
                **_lengths(turn),
                "weight": interaction.weight,
                "polarity": interaction.polarity,
                "split": interaction.split,
            }


def _lengths(turn: Turn) -> Json:
    """The three lengths of the schema, in characters."""
    asked, answered = (sum(len(plain_text(m)) for m in part) for part in (turn.messages, (turn.answer,)))
    return {"prompt_len": asked, "completion_len": answered, "total_conv_len": asked + answered}


FORMAT = Format(
    name="triples",
    read=read,
    recognise=recognise,
    exports=(Export(what="interactions", write=write, training=True),),
)
