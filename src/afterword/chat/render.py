"""Renders messages to prompt ids with the model's own chat template; records marks to check a prompt by.

Owns the tokenizer protocol, the generation header (the template's text before an answer) and the ids that end a turn.
Serving and training share `write_prompt`. Never imports transformers, never truncates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from afterword.chat.canonical import text_of
from afterword.chat.control_tokens import Guarded, encode_guarded, guarded, guarded_text
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
    """A rendered conversation: its text and ids, both ending with the generation header."""

    text: str
    ids: tuple[int, ...]
    marks: bool = False
    """A message holds the text of a control token, which is encoded as plain text."""


def encode(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Encodes text of templates and of ours: no special tokens are added, those in the text are recognised.

    Text of users and models goes through `encode_content`.

    Raises:
        ModelError: If the tokenizer cannot read the text.
    """
    return _ids(tokenizer, lambda: Guarded(text))


def encode_content(tokenizer: Tokenizer, text: str, role: str = "user") -> tuple[int, ...]:
    """Encodes the text of a message; marks of the chat template in it become plain text.

    Args:
        tokenizer: The tokenizer.
        text: The text.
        role: Role of the message.

    Raises:
        ModelError: If the tokenizer cannot read the text, such as half a surrogate pair.
    """
    return _ids(tokenizer, lambda: guarded_text(tokenizer, text, role))


def _ids(tokenizer: Tokenizer, make: Callable[[], Guarded]) -> tuple[int, ...]:
    try:
        text = make()
        if text.placeholder is None:
            return tuple(int(i) for i in tokenizer.encode(text.text, add_special_tokens=False))
        return tuple(encode_guarded(tokenizer, text))
    except Exception as error:  # the tokenizers library raises bare Exception, TypeError for half a surrogate pair
        raise ModelError(
            f"the model's tokenizer rejects a text ({type(error).__name__}: {str(error)[:200]}): remove invalid "
            "characters, such as half of a surrogate pair"
        ) from error


def decode(tokenizer: Tokenizer, ids: Sequence[int], *, special: bool = False) -> str:
    """Decodes `ids`; omits special tokens unless `special`."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=not special))


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Returns the text that each id adds, special tokens included.

    A character that several ids spell (an emoji, say) stands at the last of them; the others are empty.
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


@dataclass(frozen=True, slots=True)
class Written:
    """A conversation as its template writes it, not yet encoded."""

    tokenizer: Tokenizer
    guarded: Guarded

    @property
    def text(self) -> str:
        """The rendered text."""
        return self.guarded.plain

    @property
    def marks(self) -> bool:
        """True when a message contains the text of a control token."""
        return self.guarded.placeholder is not None

    def ids(self) -> tuple[int, ...]:
        """Its ids; only the template's marks are control tokens. ModelError as `encode`."""
        return _ids(self.tokenizer, lambda: self.guarded)


RESERVED = frozenset((
    "conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize",
    "continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict",
    "return_assistant_tokens_mask", "tokenizer_kwargs",
))  # fmt: skip
"""Names that are no template arguments: parameters of `apply_chat_template`."""


def template_arguments(fields: Mapping[str, Any]) -> Json:
    """Reads the template arguments of a request, as vLLM does.

    Args:
        fields: A request's body, or the fields that a turn keeps (`Turn.sampling`).

    Returns:
        `chat_template_kwargs`, and `reasoning_effort` as an argument of that name. Reserved names are left out, and so
        are arguments that a turn keeps only as a hash.
    """
    found: Json = {}
    if isinstance(effort := fields.get("reasoning_effort"), str):
        found["reasoning_effort"] = effort
    given = fields.get("chat_template_kwargs")
    if isinstance(given, dict) and set(given) != {"hash"}:
        found |= {str(name): value for name, value in given.items() if name not in RESERVED}
    return found


def write_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Json],
    tools: Sequence[Json] | None = None,
    arguments: Json | None = None,
    *,
    continued: bool = False,
) -> Written:
    """Renders the prompt after which the assistant answers `messages`.

    Args:
        tokenizer: The tokenizer, with its template.
        messages: The conversation.
        tools: Tool definitions.
        arguments: Further variables of the template, such as `enable_thinking`.
        continued: The last message is the beginning of the answer: the prompt ends with it.

    Raises:
        ModelError: If the template rejects the messages.
    """
    return _write(tokenizer, messages, tools, arguments, header=not continued, continued=continued)


def render_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Json],
    tools: Sequence[Json] | None = None,
    arguments: Json | None = None,
) -> Prompt:
    """Renders the prompt after which the assistant answers `messages`, and checks it for training.

    Raises:
        ModelError: If the template rejects the messages, or writes no generation header at their end.
    """
    written = write_prompt(tokenizer, messages, tools, arguments)
    ids = written.ids()
    header, written_by_template = _header(tokenizer, arguments)
    # Behind what closes a tool's result the answer begins as behind what closes the user's turn.
    behind = not written_by_template and bool(messages) and messages[-1].get("role") in ("tool", "function")
    if not behind and not ends_with(ids, header):
        raise ModelError(
            f"the rendered prompt ends with {written.text[-40:]!r}, not with the chat template's generation header: "
            "the template treats this conversation differently; check its last message"
        )
    return Prompt(written.text, ids, written.marks)


def generation_header(tokenizer: Tokenizer, arguments: Json | None = None) -> tuple[int, ...]:
    """Ids that the template writes where the answer begins, given these arguments; never empty.

    Some templates have no header (Mistral, Llama 2): the answer begins right behind what closes the user's turn, and
    those ids stand for it. ModelError when a prompt does not say where the answer begins.
    """
    return _header(tokenizer, arguments)[0]


def _header(tokenizer: Tokenizer, arguments: Json | None) -> tuple[tuple[int, ...], bool]:
    """The ids, and whether the template writes them for an answer alone."""
    asked = [{"role": "user", "content": _PROBE}]
    # What stands before the user's words may differ between the two: a clock.
    without = _behind_probe(_write(tokenizer, asked, None, arguments, header=False).text)
    with_header = _behind_probe(_write(tokenizer, asked, None, arguments, header=True).text)
    header = with_header.removeprefix(without)
    if header and header != with_header:
        return encode(tokenizer, header), True
    if header:  # Phi-4-mini closes a conversation without a header by its end token
        ids, other = encode(tokenizer, with_header), encode(tokenizer, without)
        same = next((n for n, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b), 0)
        if same and _PROBE in decode(tokenizer, ids[:same], special=True):
            return ids[same:], True
    closing = _closing(tokenizer) if not header else ()
    if not closing:
        raise ModelError(
            f"the chat template of {getattr(tokenizer, 'name_or_path', 'this model')!r} has no generation header "
            "(add_generation_prompt changes nothing or everything): use a template that opens the assistant's turn"
        )
    return closing, False


def _behind_probe(text: str) -> str:
    """The probe and what is written behind it; all of a text that does not hold it."""
    return text[max(0, text.rfind(_PROBE)) :]


def _closing(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids behind the user's words, if the template writes an answer right behind them; else ()."""
    asked = [[{"role": "user", "content": text}] for text in (_PROBE, "1 other text?")]
    texts = [_write(tokenizer, messages, None, header=True).text for messages in asked]
    answered = _write(tokenizer, [*asked[0], {"role": "assistant", "content": _PROBE}], None, header=False).text
    if not (answered.startswith(texts[0]) and answered[len(texts[0]) :].lstrip().startswith(_PROBE)):
        return ()
    one, other = (encode(tokenizer, text) for text in texts)
    same = 0
    while same < min(len(one), len(other)) and one[-1 - same] == other[-1 - same]:
        same += 1
    return one[len(one) - same :]


def check_template(tokenizer: Tokenizer) -> None:
    """Checks that the template opens an answer.

    A template that raises, such as without an argument that it needs, passes: it costs the conversations that it
    rejects alone.

    Raises:
        ModelError: No prompt of this template says where the answer begins.
    """
    try:
        generation_header(tokenizer)
    except ModelError as error:
        if error.__cause__ is None:
            raise


def template_faults(tokenizer: Tokenizer) -> list[str]:
    """Reasons why answers of a model with this template cannot be trained, each with its remedy; usually empty."""
    return [message for check in (generation_header, end_of_turn_ids) if (message := _fault(check, tokenizer))]


def _fault(check: Callable[[Tokenizer], object], tokenizer: Tokenizer) -> str | None:
    try:
        check(tokenizer)
    except ModelError as error:
        if error.__cause__ is not None:  # a conversation that the template rejects: see `template_limits`
            return None
        return f"nothing that this model answers can be trained: {error.message}, or another model"
    return None


def template_limits(tokenizer: Tokenizer) -> list[str]:
    """Conversations that the template refuses or writes anew, which costs those alone."""
    user, answer = {"role": "user", "content": _PROBE}, {"role": "assistant", "content": f"{_PROBE} answer"}
    found = []
    for messages, what in (
        ([user], "requests without template arguments"),
        ([{"role": "system", "content": _PROBE}, user], "conversations with a system message"),
        ([user, user], "two user messages in a row"),
        ([user, answer, user], "conversations of more than one turn"),
    ):
        try:
            _write(tokenizer, messages, None, header=True)
        except ModelError as error:
            why = str(error.__cause__)[:120]
            found.append(
                f"its chat template refuses {what} ({why}): such requests get a 400, such feedback is excluded"
            )
    with suppress(ModelError):
        first = _write(tokenizer, [user], None, header=True).text
        if not _write(tokenizer, [user, answer, user], None, header=True).text.startswith(first):
            found.append(
                "its chat template writes earlier turns anew as a conversation goes on: each turn is trained as it was "
                "served"
            )
    return found


def ends_with(ids: Sequence[int], tail: Sequence[int]) -> bool:
    """Does `ids` end with `tail`?"""
    return len(tail) > 0 and tuple(ids[-len(tail) :]) == tuple(tail)


def end_of_turn_ids(tokenizer: Tokenizer, arguments: Json | None = None) -> tuple[int, ...]:
    """Ids that end an answer: the one that the template writes after it, then the tokenizer's end token.

    The first is the one to append to an answer that was never served. ModelError when there is none.
    """
    asked = [{"role": "user", "content": _PROBE}]
    answered = _write(tokenizer, [*asked, {"role": "assistant", "content": _PROBE}], None, arguments, header=False).text
    after = encode(tokenizer, answered[answered.rfind(_PROBE) + len(_PROBE) :].lstrip())
    found = [i for i in (*after[:1], tokenizer.eos_token_id) if i is not None]
    if not found:
        raise ModelError("the end-of-turn token is missing in the chat template and the tokenizer: set eos_token")
    return tuple(dict.fromkeys(found))


def _write(
    tokenizer: Tokenizer,
    messages: Sequence[Json],
    tools: Sequence[Json] | None,
    arguments: Json | None = None,
    *,
    header: bool,
    continued: bool = False,
) -> Written:
    try:
        guarded_messages, guarded_tools, placeholder = guarded(tokenizer, [_plain(m) for m in messages], tools)
        options: dict[str, Any] = {**(arguments or {}), **({"tools": guarded_tools} if guarded_tools else {})}
        if continued:
            options["continue_final_message"] = True
        text = str(
            tokenizer.apply_chat_template(guarded_messages, tokenize=False, add_generation_prompt=header, **options)
        )
    except Exception as error:  # a template is somebody else's program: it raises what it likes
        roles = ", ".join(dict.fromkeys(str(m.get("role")) for m in messages))
        raise ModelError(
            f"the model's chat template rejects a conversation of {roles}: "
            f"{str(error)[:200] or type(error).__name__}; use a model whose "
            "template accepts these messages, or, where hindsight was added, another context"
        ) from error
    return Written(tokenizer, Guarded(text, placeholder))


def _plain(message: Json) -> Json:
    """The message as templates read it: text parts as one text, an answer without content as an empty one, fields
    without a value left out (OpenAI's clients send an answer back with `tool_calls: null`), and the arguments of tool
    calls as objects, as vLLM and SGLang hand them over (clients send JSON in a string)."""
    content = message.get("content")
    message = {
        name: value
        for name, value in message.items()
        if name == "content" or not (value is None or (name == "tool_calls" and value == []))
    }
    if isinstance(calls := message.get("tool_calls"), list):
        message = {**message, "tool_calls": [_with_arguments(call) for call in calls]}
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return {**message, "content": text_of(content)}
    if content is None and message.get("role") == "assistant":
        return {**message, "content": ""}
    return dict(message)


def _with_arguments(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments", ""), str | None):
        return call
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except ValueError:
        return call
    if not isinstance(arguments, dict | list):
        return call
    return {**call, "function": {**function, "arguments": arguments}}
