"""What the teacher reads: versioned templates that put the hindsight into the conversation.

A context maps (messages, answer, hindsight) to the messages of the teacher's prompt. It never renders, never
tokenizes and never cuts; `fit_hindsight` shortens the privileged text, and only that, before the template is
applied. A change of a template's words is a new version.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from afterword.chat.render import Prompt, Tokenizer, decode, encode, render_prompt
from afterword.errors import ConfigError
from afterword.records import Json

_BLOCK = "[What the user wrote after an earlier answer to this. Let it guide this answer.]\n{hindsight}"
_SYSTEM = "After an earlier answer to this conversation the user wrote: {hindsight}"

Place = Callable[[Sequence[Json], Json, str], list[Json]]


@dataclass(frozen=True, slots=True)
class Context:
    """One way to show the hindsight. `privileged` is False for the control that shows nothing."""

    name: str
    version: int
    place: Place
    privileged: bool = True


def _appended(messages: Sequence[Json], answer: Json, hindsight: str) -> list[Json]:
    return _add_to_last_user(messages, hindsight)


def _block(messages: Sequence[Json], answer: Json, hindsight: str) -> list[Json]:
    return _add_to_last_user(messages, _BLOCK.format(hindsight=hindsight))


def _system(messages: Sequence[Json], answer: Json, hindsight: str) -> list[Json]:
    note = _SYSTEM.format(hindsight=hindsight)
    if messages and messages[0].get("role") in ("system", "developer"):
        return [_extended(messages[0], note), *map(dict, messages[1:])]
    return [{"role": "system", "content": note}, *map(dict, messages)]


def _next_turn(messages: Sequence[Json], answer: Json, hindsight: str) -> list[Json]:
    return [*map(dict, messages), dict(answer), {"role": "user", "content": hindsight}]


def _none(messages: Sequence[Json], answer: Json, hindsight: str) -> list[Json]:
    return [dict(m) for m in messages]


def _add_to_last_user(messages: Sequence[Json], text: str) -> list[Json]:
    """Append `text` to the last message if the user wrote it, else say it as a new user message."""
    if messages and messages[-1].get("role") == "user":
        return [*map(dict, messages[:-1]), _extended(messages[-1], text)]
    return [*map(dict, messages), {"role": "user", "content": text}]


def _extended(message: Json, text: str) -> Json:
    content = message.get("content")
    if isinstance(content, list):
        return {**message, "content": [*content, {"type": "text", "text": f"\n\n{text}"}]}
    return {**message, "content": f"{content}\n\n{text}" if content else text}


CONTEXTS: dict[str, Context] = {
    c.name: c
    for c in (
        Context("appended", 1, _appended),
        Context("block", 1, _block),
        Context("system", 1, _system),
        Context("next_turn", 1, _next_turn),
        Context("none", 1, _none, privileged=False),
    )
}
"""By name. "none" is the control under which a live teacher must agree with the student exactly."""


def context(name: str) -> Context:
    """The context of that name. ConfigError names the known ones."""
    if name not in CONTEXTS:
        raise ConfigError(f"unknown context {name!r}: use one of {', '.join(sorted(CONTEXTS))}", param="context")
    return CONTEXTS[name]


def shuffled(hindsights: Sequence[str], seed: int) -> list[str]:
    """The control: every interaction gets another one's hindsight (a rotation of a random order).

    With fewer than two different texts there is no other: the list comes back as it was.
    """
    order = list(range(len(hindsights)))
    Random(seed).shuffle(order)
    given = list(hindsights)
    for place, source in zip(order, order[1:] + order[:1], strict=True):
        given[place] = hindsights[source]
    return given


@dataclass(frozen=True, slots=True)
class TeacherPrompt:
    """A prompt with hindsight; `cut` is the number of hindsight tokens that were left out."""

    prompt: Prompt
    hindsight: str
    cut: int


def fit_hindsight(
    tokenizer: Tokenizer,
    where: Context,
    messages: Sequence[Json],
    answer: Json,
    hindsight: str,
    *,
    room: int,
    longest: int,
    tools: Sequence[Json] | None = None,
) -> TeacherPrompt | None:
    """Render the teacher's prompt in at most `room` ids, the hindsight cut to `longest` ids or fewer.

    The end of the hindsight is cut, never the conversation and never the rendered prompt. None when even the
    shortest hindsight (one id) does not fit.
    """
    ids = encode(tokenizer, hindsight)
    kept = min(len(ids), longest)
    while True:
        text = hindsight if kept == len(ids) else decode(tokenizer, ids[:kept])
        prompt = render_prompt(tokenizer, where.place(messages, answer, text), tools)
        excess = len(prompt.ids) - room
        if excess <= 0:
            return TeacherPrompt(prompt, text, len(ids) - kept)
        if kept <= 1 or not where.privileged:
            return None
        kept = max(1, kept - excess)
