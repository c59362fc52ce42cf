"""Renders the prompt of a stored turn, whose answer may continue a beginning that its request gave.

A request may give the beginning of the answer as its last message (vLLM's `continue_final_message`). The prompt then
ends with that text in place of the generation header.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from afterword.chat.render import Prompt, Tokenizer, ends_with, render_prompt, template_arguments, write_prompt
from afterword.records import Json, Turn


def continues(turn: Turn, header: Sequence[int] = ()) -> bool:
    """True when the answer of a turn continues its last message.

    Args:
        turn: The turn.
        header: Ids of the template's generation header; a served prompt without them at its end has a beginning there.
    """
    if len(turn.messages) < 2 or turn.messages[-1].get("role") != "assistant":
        return False
    if turn.sampling.get("continue_final_message") is True:
        return True
    return bool(header) and turn.prompt_ids is not None and not ends_with(turn.prompt_ids, header)


def messages_before(turn: Turn, header: Sequence[int] = ()) -> tuple[Json, ...]:
    """The conversation before the answer, without the beginning of the answer."""
    return turn.messages[:-1] if continues(turn, header) else turn.messages


def turn_prompt(tokenizer: Tokenizer, turn: Turn) -> Prompt:
    """The prompt of a turn in today's rendering; its ids end with the generation header or the answer's beginning.

    Raises:
        ModelError: If the template rejects the messages.
    """
    return request_prompt(tokenizer, turn.messages, turn.tools, request_fields(turn))


def request_prompt(
    tokenizer: Tokenizer, messages: Sequence[Json], tools: Sequence[Json] | None, fields: Mapping[str, Any]
) -> Prompt:
    """`turn_prompt` of a request with these `request_fields`."""
    arguments = template_arguments(fields)
    if not fields.get("continue_final_message"):
        return render_prompt(tokenizer, messages, tools, arguments)
    written = write_prompt(tokenizer, messages, tools, arguments, continued=True)
    return Prompt(written.text, written.ids(), written.marks)


def request_fields(turn: Turn) -> Json:
    """Fields of a request that asks for the answer of a turn again, beside messages and tools: the arguments of the
    template, and the continuation of the last message."""
    arguments = template_arguments(turn.sampling)
    fields: Json = {"chat_template_kwargs": arguments} if arguments else {}
    if continues(turn):
        fields |= {"continue_final_message": True, "add_generation_prompt": False}
    return fields
