"""Validates OpenAI's chat request; selects the fields for the model server. Never does I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, Literal

import orjson

from afterword.chat.canonical import check_messages, text_of
from afterword.chat.machine import MessageWords, Origin, declared, hints_of, new_words, newest_user_words
from afterword.chat.sampling_fields import sampling_of
from afterword.errors import UsageError
from afterword.gateway.requester import KNOWN_SOURCES, NameSources, Requester, name_from, name_of, unit_of
from afterword.records import BESIDE, Json

_DEEP = 250
"""Levels that a body may be nested; orjson writes 254, and error bodies and rows add some of their own."""
_OURS = ("store", "metadata")
"""Addressed to us; not passed on."""


class BadJson(UsageError):
    """The body is not valid JSON."""

    status = 400


def _all_text(parts: list[Any]) -> bool:
    return all(isinstance(part, dict) and part.get("type") == "text" for part in parts)


@dataclass(slots=True)
class ChatRequest:
    """One validated chat request."""

    body: Json
    """What the client sent."""
    messages: list[Json]
    model: str
    stream: bool
    keep: bool
    """False with `store: false`: answer, but keep nothing."""
    key: str | None
    """Public id of the API key."""
    user: str | None
    conversation: str | None
    previous: str | None
    """Turn that the client says it continues."""
    task: str | None
    team: str | None
    requester: Requester
    """For channels and shares."""
    train: bool | None = None
    """May the answer be trained on, and what is said in this request? None: the server's setting decides."""

    dialect: str = "chat"
    """The API in whose form the request came, and in which it is answered."""
    retry: bool = False
    """The client sends it again because the answer got lost: no judgement of the user."""
    declared: Origin | Literal["person"] | None = None
    """What the client declares about its newest message."""
    episode_id: str | None = None
    """The episode that the client names."""
    harness: str | None = None
    """The program that asks, as its `User-Agent` says."""
    _newest: MessageWords | None = field(default=None, repr=False)

    @property
    def newest(self) -> MessageWords:
        """The words of a person after the last answer, or the origin of the message; read when first asked for."""
        if self._newest is None:
            self._newest = _newest(self.declared, self.body, self.messages)
        return self._newest

    @property
    def history(self) -> list[Json]:
        """The messages as they are linked: of an answer what stands before the first stop string of the request.

        A served answer holds none. smolagents sends `stop: ["Calling tools:", "</code>"]` and sends each answer back
        with these strings and its own words behind it.
        """
        return [self.unstopped(m) if m.get("role") == "assistant" else m for m in self.messages]

    def unstopped(self, answer: Json) -> Json:
        """Returns an answer up to the first stop string of the request."""
        stop = self.body.get("stop")
        stops = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
        content = answer.get("content")
        if not stops or not (isinstance(content, str) or (isinstance(content, list) and _all_text(content))):
            return answer
        text = text_of(content)
        places = [at for one in stops if isinstance(one, str) and one.strip() and (at := text.find(one.strip())) > 0]
        return {**answer, "content": text[: min(places)]} if places else answer

    @property
    def beside(self) -> bool:
        """True for a program's request beside the conversation (a title, a summary): its answer is no part of it."""
        return self.newest.origin in BESIDE

    @property
    def scope(self) -> tuple[str | None, str | None]:
        """API key, and user or episode; turns are linked within one scope only."""
        return scope_of(self.key, self.user, self.episode_id)

    def for_upstream(self, model: str) -> Json:
        """Returns the body for the model server, with the upstream's name of the model."""
        body = {**self.body, "model": model}
        for name in _OURS:
            body.pop(name, None)
        return body

    def sampling(self) -> Json:
        """Returns the sampling parameters that the client set."""
        return sampling_of(self.body)


def scope_of(key: str | None, user: str | None, episode_id: str | None) -> tuple[str | None, str | None]:
    """The scope within which turns are linked: episodes of one task begin alike, and none continues another."""
    return (key, user if episode_id is None else f"episode {episode_id}")


def load_json(body: bytes) -> Any:
    """Parses JSON that can be serialised again.

    Raises:
        BadJson: With the position of the error, or if it is nested too deep.
    """
    try:
        data = orjson.loads(body)
        if body.count(b"[") + body.count(b"{") > _DEEP:  # then it may be too deep to be written again
            check_depth(data)
        return data
    except orjson.JSONDecodeError as error:
        start = max(0, error.pos - 20)
        near = body.decode("utf-8", "replace")[start : error.pos + 20]
        raise BadJson(
            f"the body is not valid JSON: {error.msg} at character {error.pos}, near {near!r}. Correct it there.",
            code="invalid_json",
        ) from error


def check_depth(data: Any) -> None:
    """Checks that a value can be serialised.

    Raises:
        BadJson: If it is nested too deep; `param` is the field of an object.
    """
    try:
        orjson.dumps([data])
    except TypeError:
        fields = data.items() if isinstance(data, dict) else ()
        param = next((name for name, value in fields if not _shallow(value)), None)
        what = f"`{param}`" if param else "the body"
        raise BadJson(
            f"{what} is nested more than {_DEEP} levels deep: flatten it.", param=param, code="too_deep"
        ) from None


def _shallow(value: Any) -> bool:
    try:
        orjson.dumps([[value]])
    except TypeError:
        return False
    return True


def parse_chat(
    body: bytes, headers: Mapping[str, str], key: str | None, sources: NameSources = KNOWN_SOURCES
) -> ChatRequest:
    """Parses and validates a chat request.

    Args:
        body: JSON body.
        headers: Headers; they override fields of the body.
        key: Public id of the API key.
        sources: Further headers and fields that name user and conversation.

    Raises:
        BadJson: If the body is not valid JSON.
        UsageError: With the invalid field in `param`.
    """
    data = load_json(body)
    if not isinstance(data, dict):
        raise UsageError(f"the body must be a JSON object, got {type(data).__name__}.")
    messages = check_messages(data.get("messages"))
    model = data.get("model")
    if not isinstance(model, str) or not model:
        raise UsageError(f"`model` must be a model name, got {model!r:.80}. GET /v1/models lists them.", param="model")
    for name, kind, words in _SHAPES:
        if not isinstance(data.get(name), kind):
            raise UsageError(f"`{name}` must be {words}, got {data[name]!r:.80}.", param=name)
    metadata = data.get("metadata") or {}
    user = name_from(headers, "user", data, data.get("user"), "user", sources.user)
    conversation = name_from(
        headers, "conversation", data, metadata.get("conversation"), "metadata.conversation", sources.conversation
    )
    task = name_of(headers, "task", metadata.get("task"), "metadata.task")
    team = name_of(headers, "team", metadata.get("team"), "metadata.team")
    return ChatRequest(
        body=data,
        messages=messages,
        model=model,
        stream=bool(data.get("stream")),
        keep=data.get("store") is not False,
        key=key,
        user=user,
        conversation=conversation,
        previous=name_of(headers, "previous-turn", None, "x-afterword-previous-turn"),
        task=task,
        team=team,
        requester=Requester(unit_of(key, user, conversation, messages), user, team, task),
        train=_train(headers.get("x-afterword-train"), metadata.get("train")),
        declared=declared(headers, metadata),
        episode_id=episode_name(name_of(headers, "episode", metadata.get("episode_id"), "metadata.episode_id")),
        harness=(headers.get("user-agent") or "")[:_LONGEST_AGENT] or None,
    )


def _newest(declared: Origin | Literal["person"] | None, body: Json, messages: list[Json]) -> MessageWords:
    """The newest words of a person, as the client declares it or as the message reads."""
    if declared == "person":
        return MessageWords(new_words(messages))
    if declared is not None:
        return MessageWords("", declared)
    return newest_user_words(messages, hints_of(messages, body, body.get("tools")))


_SHAPES: tuple[tuple[str, tuple[type, ...], str], ...] = (
    ("metadata", (dict, NoneType), "an object"),
    ("stream_options", (dict, NoneType), "an object"),
    ("tools", (list, NoneType), "a list"),
    ("stream", (bool, NoneType), "true or false"),
    ("store", (bool, NoneType), "true or false"),
)
"""Fields that are read here; whatever else a body has is the model server's to check."""


_LONGEST_EPISODE = 200
_LONGEST_AGENT = 100


def episode_name(name: str | None) -> str | None:
    """Checks the id of an episode, which is a part of paths.

    Raises:
        UsageError: If it is too long, has a slash, or cannot be printed.
    """
    if name is not None and not (len(name) <= _LONGEST_EPISODE and name.isprintable() and "/" not in name):
        raise UsageError(
            f"the episode id {name!r:.80} is invalid: use at most {_LONGEST_EPISODE} printable characters without "
            "slashes.", param="episode_id",
        )  # fmt: skip
    return name


_YES_NO = {"true": True, "false": False, True: True, False: False, None: None}


def _train(header: str | None, value: Any) -> bool | None:
    """Consent to train from the header or else from the metadata (whose values OpenAI wants to be strings)."""
    where, given = ("metadata.train", value) if header is None else ("x-afterword-train", header.lower())
    if not isinstance(given, str | bool | None) or given not in _YES_NO:
        raise UsageError(f"`{where}` must be true or false, got {given!r:.80}.", param=where)
    return _YES_NO[given]
