"""Places privileged text in the teacher's conversation by versioned templates.

A context maps (messages, answer, text) to the messages of the teacher's prompt; position and words depend on the kind
and polarity of the feedback. `fit_hindsight` shortens the privileged text alone. Changed words are a new version.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Annotated, Literal

from pydantic import Field

from afterword.chat.canonical import text_of
from afterword.chat.render import Prompt, Tokenizer, decode, encode_content, render_prompt, template_arguments
from afterword.chat.splice import spliced
from afterword.chat.turn_prompt import continues, messages_before, turn_prompt
from afterword.errors import ConfigError, ModelError
from afterword.kinds import with_hindsight
from afterword.learn.parts.fields import Share
from afterword.records import Json, Turn

PLACEHOLDERS = ("hindsight", "answer")
"""Placeholders of a template: the privileged text, and the served answer's text."""

Where = Literal["last_user", "system", "next_turn", "continue", "nowhere"]


@dataclass(frozen=True, slots=True)
class Sibling:
    """The text of a right answer to the same prompt, of the same pass and origin, never the row's own (SDPO, SRPO)."""


@dataclass(frozen=True, slots=True)
class OwnAttempt:
    """The text of the row's own answer (SD-Zero)."""


Disclosed = Literal["nothing", "outcome", "words"]
"""What a student knows when it reflects on its answer, each level more than the one before."""


@dataclass(frozen=True, slots=True)
class Reflection:
    """The student's greedy reflection on its own answer (ERL, RESD)."""

    ask: str = "Look at your answer again. Say in a few words what should be done differently."
    tokens: Annotated[int, Field(ge=1, le=4096)] = 64
    told: Disclosed = "nothing"
    """Text before the question: none, whether the answer is right by its reward, or the interaction's own text."""


@dataclass(frozen=True, slots=True)
class Skill:
    """A text by the task of the interaction; tasks without one show nothing (SDAR, Skill-SD)."""

    by_task: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Opening:
    """The first share of the words of the interaction's own text, at least one word (POPE)."""

    share: Share = 0.25

    def of(self, text: str) -> str:
        """The beginning of `text` up to the end of its last word that belongs to it."""
        words = list(re.finditer(r"\S+", text))
        return text[: words[max(1, round(self.share * len(words))) - 1].end()] if words else ""


@dataclass(frozen=True, slots=True)
class FromEpisode:
    """A text of the turn's episode, in place of what the environment said (docs/episodes.md)."""

    kind: Literal["skill", "step_skill", "peer", "oracle"] = "skill"
    """A skill for the task from the bank; one for this step, or else the former; a successful episode of the same task;
    the start of one, or the solution that the environment gave."""


Hint = Sibling | OwnAttempt | Reflection | Skill | Opening | FromEpisode
"""Privileged text in place of the user's words: made anew in each pass from the group of answers or by the student, or
taken from the task, from a part of the words or from another episode."""


@dataclass(frozen=True, slots=True)
class Wording:
    """The words around the privileged text, by polarity. Praise has separate words: a teacher that reads "improve on
    this" unlearns the praised answer.
    """

    otherwise: str
    """For polarity -1 and 0."""
    praise: str | None = None
    """For polarity +1; None takes the same words."""

    def write(self, text: str, answer: str, polarity: int) -> str:
        """The text with its words around it. Braces inside `text` and `answer` stay as they are."""
        template = self.praise if self.praise is not None and polarity > 0 else self.otherwise
        return template.format(hindsight=text, answer=answer)


@dataclass(frozen=True, slots=True)
class Context:
    """One way to show privileged text."""

    name: str
    version: int
    """0 for a template of the configuration."""
    where: Where
    wording: Wording = Wording("{hindsight}")
    by_kind: tuple[tuple[str, Wording], ...] = ()
    """Kinds of feedback with other words than `wording`."""
    shuffled: bool = False
    """The control: every interaction is shown another one's text."""
    text: str | None = None
    """The same privileged text for every interaction, in place of their own."""
    hint: Hint | None = None
    """Privileged text made in each pass, in place of the user's words; polarity is then the sign of the reward."""
    together: Annotated[int, Field(ge=1, le=64)] = 1
    """Messages of one user that are shown at once: an interaction's own, and what the same user asked for elsewhere."""

    @property
    def privileged(self) -> bool:
        """False for the control that shows nothing."""
        return self.where != "nowhere"

    def place(
        self,
        messages: Sequence[Json],
        answer: Json,
        hindsight: str,
        *,
        polarity: int = 0,
        kind: str = "",
        within: bool = False,
    ) -> list[Json]:
        """The conversation that the teacher answers, new messages. `within`: the text stands in a message of the user
        rather than in a further message, for templates that reject one."""
        wording = dict(self.by_kind).get(kind, self.wording)
        text = wording.write(hindsight, text_of(answer.get("content")), polarity)
        if within and self.where in ("last_user", "system"):
            return _add_within(messages, text, first=self.where == "system")
        if self.where == "last_user":
            return _add_to_last_user(messages, text)
        if self.where == "system":
            return _add_to_system(messages, text)
        if self.where in ("next_turn", "continue"):
            return [*map(dict, messages), dict(answer), {"role": "user", "content": text}]
        return [dict(m) for m in messages]


def _add_to_system(messages: Sequence[Json], text: str) -> list[Json]:
    if messages and messages[0].get("role") in ("system", "developer"):
        return [_extended(messages[0], text), *map(dict, messages[1:])]
    return [{"role": "system", "content": text}, *map(dict, messages)]


def _add_to_last_user(messages: Sequence[Json], text: str) -> list[Json]:
    """Append `text` to the last message if the user wrote it, else say it as a new user message."""
    if messages and messages[-1].get("role") == "user":
        return [*map(dict, messages[:-1]), _extended(messages[-1], text)]
    return [*map(dict, messages), {"role": "user", "content": text}]


def _add_within(messages: Sequence[Json], text: str, *, first: bool) -> list[Json]:
    """Put `text` before the user's first message, or behind their last one."""
    places = [at for at, message in enumerate(messages) if message.get("role") == "user"]
    found = [dict(message) for message in messages]
    if places and first:
        found[places[0]] = _preceded(found[places[0]], text)
    elif places:
        found[places[-1]] = _extended(found[places[-1]], text)
    return found


def _preceded(message: Json, text: str) -> Json:
    content = message.get("content")
    if isinstance(content, list):
        return {**message, "content": [{"type": "text", "text": f"{text}\n\n"}, *content]}
    return {**message, "content": f"{text}\n\n{content}" if content else text}


def _extended(message: Json, text: str) -> Json:
    content = message.get("content")
    if isinstance(content, list):
        return {**message, "content": [*content, {"type": "text", "text": f"\n\n{text}"}]}
    return {**message, "content": f"{content}\n\n{text}" if content else text}


_BLOCK = Wording(
    otherwise="[What the user wrote after an earlier answer to this. Let it guide this answer.]\n{hindsight}",
    praise="[What the user wrote after an earlier answer to this. They liked it: answer that way again.]\n{hindsight}",
)
_SYSTEM = Wording(
    otherwise="After an earlier answer to this conversation the user wrote: {hindsight}",
    praise="After an earlier answer to this conversation, which they liked, the user wrote: {hindsight}",
)
_REFERENCE = Wording(
    "[A good answer to this request is shown here.]\n{hindsight}\n\n"
    "[Now that you know it, answer the request yourself, step by step and in your own words.]"
)
_PEER = Wording(
    "[Another attempt at this request was right.]\n{hindsight}\n\n[Answer the original request correctly.]",
)
_ENVIRONMENT = Wording(
    otherwise="[An earlier attempt was tried out. This is what came back.]\n{hindsight}\n\n"
    "[Answer the original request correctly.]",
    praise="[An earlier attempt was tried out and worked. This is what came back.]\n{hindsight}",
)

_REFLECTED = Wording(
    "[A look back at an earlier attempt at this request.]\n{hindsight}\n\n[Answer the original request correctly.]"
)

PEER_KINDS = with_hindsight("attempt")
"""Kinds of feedback whose hindsight is an accepted answer of a later attempt."""
REFERENCE_KINDS = with_hindsight("answer")
"""Kinds whose hindsight is the answer that the user wanted, as an edit or written by hand."""
ENVIRONMENT_KINDS = with_hindsight("environment")
"""Kinds whose hindsight is what a program or a guard said."""
OBSERVATION_KINDS = with_hindsight("observation")
"""Kinds whose hindsight is what an environment said after a turn of an episode."""
_SAID_BY_PROGRAMS = (*ENVIRONMENT_KINDS, *OBSERVATION_KINDS)

_AGAIN = Wording(
    otherwise="\n\nWait, this answer is wrong. Let me write it again, correctly.\n\n",
    praise="\n\nThis answer is right. Let me write it again, in better words.\n\n",
)

_BY_KIND = tuple(
    (kind, wording)
    for kinds, wording in ((PEER_KINDS, _PEER), (REFERENCE_KINDS, _REFERENCE), (_SAID_BY_PROGRAMS, _ENVIRONMENT))
    for kind in kinds
)

_REMARK = Wording(otherwise="That is not what I wanted.", praise="That is what I wanted.")
_OWN_WORDS = tuple((kind, Wording("{hindsight}")) for kind in (*PEER_KINDS, *REFERENCE_KINDS, *_SAID_BY_PROGRAMS))
"""Kinds whose hindsight is no remark: beside `appended` nothing differs, and nothing is divided out."""

CONTEXTS: dict[str, Context] = {
    c.name: c
    for c in (
        Context("appended", 1, "last_user"),
        Context("block", 2, "last_user", _BLOCK),
        Context("system", 2, "system", _SYSTEM),
        Context("next_turn", 1, "next_turn"),
        Context("reference", 1, "last_user", _REFERENCE),
        Context("peer", 1, "last_user", _PEER),
        Context("environment", 1, "last_user", _ENVIRONMENT),
        Context("reflected", 1, "last_user", _REFLECTED),
        Context("by_kind", 1, "last_user", _BLOCK, by_kind=_BY_KIND),
        Context("together", 1, "last_user", together=5),
        Context("shuffled", 1, "last_user", shuffled=True),
        Context("remark", 1, "last_user", _REMARK, by_kind=_OWN_WORDS),
        Context("none", 1, "nowhere"),
    )
}
"""By name. Under "none" a live teacher must agree with the student exactly; under "shuffled" what is learned has
nothing to do with the user's own words. Both are controls. "remark" shows a message of no content in place of the
user's: a reference to divide out what any complaint, or any praise, does to an answer. "together" adds what the same
user asked for after other answers: a lasting wish is followed better when it is said five times."""

BEGUN = Context(
    "begun",
    1,
    "last_user",
    Wording("[A good answer to this request begins like this.]\n{hindsight}\n\n[Answer the request, on from there.]"),
    hint=Opening(),
)
"""The beginning of the answer that the user wanted (POPE)."""
AGAIN = Context("again", 1, "continue", _AGAIN, hint=OwnAttempt())
"""The answer goes on behind itself: the teacher reads its own attempt and a sentence by the reward, and scores the same
ids once more (SD-Zero)."""


def context(name: str) -> Context:
    """Find a context by name.

    Raises:
        ConfigError: The name is unknown; names the nearest and all known contexts.
    """
    if name not in CONTEXTS:
        near = difflib.get_close_matches(name.lower(), CONTEXTS, n=1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"unknown context {name!r}: {guess}use one of {', '.join(sorted(CONTEXTS))}", param="context")
    return CONTEXTS[name]


def with_template(where: Context, template: str, praise: str | None = None) -> Context:
    """`where` with the user's own words around the privileged text: version 0, the same words for every kind.

    A template names `{hindsight}`, and `{answer}` if it likes; braces that are no placeholder are written twice.
    ConfigError says what is wrong with it.
    """
    for text, key in ((template, "template"), (praise, "template_praise")):
        if text is not None:
            _check_template(text, key)
    if not where.privileged:
        raise ConfigError(f"the context {where.name!r} shows nothing, so it takes no template", param="template")
    return dataclasses.replace(where, version=0, wording=Wording(template, praise), by_kind=())


def _check_template(template: str, key: str) -> None:
    known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    allowed = f"it may name {known}, and a brace that is meant is written twice"
    try:
        fields = [(name, spec, how) for _, name, spec, how in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ConfigError(f"{key} {template!r}: {error}; {allowed}", param=key) from error
    bad = [f"{{{name}}}" for name, spec, how in fields if name not in PLACEHOLDERS or spec or how]
    if bad:
        raise ConfigError(f"{key} {template!r} cannot be filled at {', '.join(bad)}: {allowed}", param=key)
    if "hindsight" not in [name for name, _, _ in fields]:
        raise ConfigError(
            f"{key} {template!r} does not name {{hindsight}}: the teacher would read nothing new", param=key
        )


def with_text(where: Context, text: str) -> Context:
    """`where` showing one fixed text for every interaction, in no other words (context distillation)."""
    return dataclasses.replace(where, version=0, wording=Wording("{hindsight}"), by_kind=(), text=text)


def with_hint(where: Context, hint: Hint) -> Context:
    """`where` with privileged text that each pass makes anew."""
    return dataclasses.replace(where, version=0, hint=hint)


def shuffled(hindsights: Sequence[str], seed: int) -> list[str]:
    """The hindsights in the order of `others`, an interaction's own where no other exists."""
    found = others(hindsights, seed)
    return [own if i is None else hindsights[i] for own, i in zip(hindsights, found, strict=True)]


def others(hindsights: Sequence[str], seed: int) -> list[int | None]:
    """Assign each interaction another one's hindsight, for the control.

    Args:
        hindsights: Text of each interaction.
        seed: Of the random order.

    Returns:
        For each interaction the index of one with different text, None without one; distinct texts are each used once.
    """
    order = list(range(len(hindsights)))
    Random(seed).shuffle(order)
    given: list[int | None] = [None] * len(order)
    for place, own in enumerate(order):
        following = order[place + 1 :] + order[:place]
        given[own] = next((i for i in following if hindsights[i] != hindsights[own]), None)
    return given


@dataclass(frozen=True, slots=True)
class TeacherPrompt:
    """A prompt with hindsight; `cut` counts the hindsight tokens that were removed."""

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
    arguments: Json | None = None,
    polarity: int = 0,
    kind: str = "",
) -> TeacherPrompt | None:
    """Render the teacher's prompt, cutting the end of the hindsight where it does not fit.

    The conversation and the rendered prompt are never cut.

    Args:
        tokenizer: The teacher's tokenizer.
        where: The context.
        messages: Conversation before the answer.
        answer: The served answer.
        hindsight: The privileged text.
        room: Most tokens of the prompt.
        longest: Most tokens of the hindsight.
        tools: Tool definitions of the turn.
        arguments: Template arguments of the turn (`chat.render.template_arguments`).
        polarity: -1, 0 or 1.
        kind: Kind of the feedback.

    Returns:
        None when even one token of hindsight does not fit.
    """
    ids = encode_content(tokenizer, hindsight)
    kept = min(len(ids), longest)
    while True:
        text = hindsight if kept == len(ids) else decode(tokenizer, ids[:kept])
        prompt = _rendered(
            tokenizer,
            lambda only: where.place(messages, answer, text, polarity=polarity, kind=kind, within=only),  # noqa: B023
            text,
            tools,
            arguments,
        )
        excess = len(prompt.ids) - room
        if excess <= 0:
            return TeacherPrompt(prompt, text, len(ids) - kept)
        if kept <= 1 or not where.privileged:
            return None
        kept = max(1, kept - excess)


def turn_hindsight(
    tokenizer: Tokenizer,
    where: Context,
    turn: Turn,
    hindsight: str,
    *,
    room: int,
    longest: int,
    polarity: int = 0,
    kind: str = "",
) -> TeacherPrompt | None:
    """`fit_hindsight` for a stored turn. Where its answer continues a beginning, so does the teacher's prompt.

    Returns:
        None when even one token of hindsight does not fit, or where the prompt has no place for it.
    """
    arguments, begun = template_arguments(turn.sampling), 0
    if continues(turn):
        plain = render_prompt(tokenizer, turn.messages[:-1], turn.tools, arguments).ids
        served = turn_prompt(tokenizer, turn).ids
        begun = len(served) - len(plain)
    seen = fit_hindsight(
        tokenizer, where, messages_before(turn), turn.answer, hindsight, room=room - begun, longest=longest,
        tools=turn.tools, arguments=arguments, polarity=polarity, kind=kind,
    )  # fmt: skip
    if seen is None or not continues(turn):
        return seen
    ids = spliced(plain, seen.prompt.ids, served)
    return None if ids is None else replace(seen, prompt=replace(seen.prompt, ids=ids))


def _rendered(
    tokenizer: Tokenizer,
    place: Callable[[bool], list[Json]],
    text: str,
    tools: Sequence[Json] | None,
    arguments: Json | None,
) -> Prompt:
    """The prompt with the text where the context puts it, or within the user's message where the template rejects a
    further one (Gemma a system message, Mistral a user's message behind a tool's) or leaves it out (Mistral a system
    message when a tool spoke last)."""
    try:
        prompt = render_prompt(tokenizer, place(False), tools, arguments)
        if _written(text, prompt.text):
            return prompt
        within = render_prompt(tokenizer, place(True), tools, arguments)
        return within if _written(text, within.text) else prompt
    except ModelError:
        if place(True) == place(False):
            raise
        return render_prompt(tokenizer, place(True), tools, arguments)


def _written(text: str, prompt: str) -> bool:
    """Does a prompt hold a text, whatever its template trims or escapes?"""
    return "".join(filter(str.isalnum, text)) in "".join(filter(str.isalnum, prompt))
