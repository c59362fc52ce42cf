"""Messages to prompt ids, by the model's own chat template, with the marks by which a prompt can be checked.

Owns the tokenizer protocol, the rendering of prompts, the generation header (what the template writes where
the answer begins) and the ids that end a turn. It never imports transformers and never cuts a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jinja2

from afterword.errors import ModelError
from afterword.records import Json

_PROBE = "Afterword probe"


class Tokenizer(Protocol):
    """The part of a tokenizer that Afterword uses; every transformers tokenizer has it."""

    eos_token_id: int | None

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Write a conversation as text when called with `tokenize=False`."""

    def encode(self, text: str, **options: Any) -> Any:
        """Token ids of a text."""

    def decode(self, token_ids: Any, **options: Any) -> Any:
        """Text of token ids."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered conversation: its text and its ids, both ending with the generation header."""

    text: str
    ids: tuple[int, ...]


def encode(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Ids of `text` as it stands: no special tokens are added (those written in the text are read as such)."""
    return tuple(int(i) for i in tokenizer.encode(text, add_special_tokens=False))


def decode(tokenizer: Tokenizer, ids: Sequence[int], *, special: bool = False) -> str:
    """Text of `ids`; special tokens are left out unless `special`."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=not special))


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """What each id adds to the text, special tokens included; together they are the text.

    A character that several ids spell (an emoji, say) stands at the last of them, the others are empty.
    """
    parts, done, begun = [], "", 0
    for end in range(1, len(ids) + 1):
        text = decode(tokenizer, ids[begun:end], special=True)
        if text.endswith("\ufffd") and end < len(ids):
            parts.append("")
            continue
        parts.append(text[len(done) :])
        begun = end - 1
        done = decode(tokenizer, ids[begun:end], special=True)
        if "\ufffd" in done:  # the last byte of a character says nothing on its own: begin anew behind it
            begun, done = end, ""
    return parts


def render_prompt(tokenizer: Tokenizer, messages: Sequence[Json], tools: Sequence[Json] | None = None) -> Prompt:
    """The prompt after which the assistant answers `messages`.

    Raises ModelError when the template refuses the conversation or writes no generation header at its end.
    """
    text = _write(tokenizer, messages, tools, header=True)
    ids = encode(tokenizer, text)
    if not ends_with(ids, generation_header(tokenizer)):
        raise ModelError(
            f"the rendered prompt ends with {text[-40:]!r}, not with the chat template's generation header: "
            "the template treats this conversation differently; check its last message"
        )
    return Prompt(text, ids)


def generation_header(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that the template writes where the answer begins. ModelError when it writes none."""
    probe = [{"role": "user", "content": _PROBE}]
    without = _write(tokenizer, probe, None, header=False)
    with_header = _write(tokenizer, probe, None, header=True)
    header = with_header.removeprefix(without)
    if not header or header == with_header:
        raise ModelError(
            f"the chat template of {getattr(tokenizer, 'name_or_path', 'this model')!r} has no generation header "
            "(add_generation_prompt changes nothing or everything): use a template that opens the assistant's turn"
        )
    return encode(tokenizer, header)


def ends_with(ids: Sequence[int], tail: Sequence[int]) -> bool:
    """Does `ids` end with `tail`?"""
    return len(tail) > 0 and tuple(ids[-len(tail) :]) == tuple(tail)


def end_of_turn_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that end an answer: the one that the template writes after it, then the tokenizer's end token.

    The first is the one to append to an answer that was never served. ModelError when there is none.
    """
    asked = [{"role": "user", "content": _PROBE}]
    answered = _write(tokenizer, [*asked, {"role": "assistant", "content": _PROBE}], None, header=False)
    after = encode(tokenizer, answered[answered.rfind(_PROBE) + len(_PROBE) :].lstrip())
    found = [i for i in (*after[:1], tokenizer.eos_token_id) if i is not None]
    if not found:
        raise ModelError("neither the chat template nor the tokenizer names an end of turn: set eos_token")
    return tuple(dict.fromkeys(found))


def _write(tokenizer: Tokenizer, messages: Sequence[Json], tools: Sequence[Json] | None, *, header: bool) -> str:
    options: dict[str, Any] = {"tools": list(tools)} if tools else {}
    try:
        return str(
            tokenizer.apply_chat_template(
                [dict(m) for m in messages], tokenize=False, add_generation_prompt=header, **options
            )
        )
    except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
        roles = ", ".join(dict.fromkeys(str(m.get("role")) for m in messages))
        raise ModelError(
            f"the model's chat template refuses a conversation of {roles}: {str(error)[:200]}; use a model whose "
            "template takes these messages, or, where hindsight was added, another context"
        ) from error
