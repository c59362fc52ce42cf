"""Token ids to text while they come, and conversations to prompt ids. Owns incremental detokenisation, stop
strings and template rendering; never touches tensors. Nothing here changes the tokenizer's own settings,
so that the HTTP thread may encode while the model thread decodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from afterword.chat.control_tokens import control_tokens
from afterword.chat.render import end_of_turn_ids, template_faults, write_prompt
from afterword.errors import ModelError
from afterword.model.generation.request import RequestError

_BROKEN = "\ufffd"


def stop_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Ids that end an answer, served or drawn in training.

    Returns:
        Stop tokens: the chat template's end of turn (first), the tokenizer's end token, and those of the model's
        generation settings.
    """
    named = getattr(model.generation_config, "eos_token_id", None)
    try:
        first = end_of_turn_ids(tokenizer)
    except ModelError:  # told by `template_faults` where it matters
        first = ()
    own = (tokenizer.eos_token_id, *(named if isinstance(named, list) else [named]))
    return tuple(dict.fromkeys(int(i) for i in (*first, *own) if i is not None))


def too_long(tokens: int, context: int, about: str = "") -> RequestError:
    """The refusal of a prompt that leaves no room for an answer."""
    return RequestError(
        f"the prompt is {about}{tokens} tokens long and leaves too little room for an answer: this model's context "
        f"is {context} tokens; shorten the messages",
        param="messages",
        code="context_length_exceeded",
    )


class Codec:
    """A tokenizer as the engine needs it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._core = tokenizer.backend_tokenizer
        control_tokens(tokenizer)  # found now, not within the first request
        self._shown: dict[int, tuple[str, list[int]]] = {}
        # A token stands for at most so many characters; a normalizer may shrink the text before, so nothing is known.
        known = self._core.normalizer is None
        self._widest = max(map(len, self._core.get_vocab(with_added_tokens=True)), default=1) if known else None

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        most: int | None = None,
        *,
        arguments: dict[str, Any] | None = None,
        continued: bool = False,
    ) -> list[int]:
        """Prompt ids of a conversation, as `write_prompt` renders it. RequestError when the template refuses, or when
        the text alone says that it is longer than `most` tokens: megabytes would take half a minute to encode.
        """
        try:
            written = write_prompt(self._tokenizer, messages, tools, arguments, continued=continued)
            text = written.text
            if most is not None and self._widest is not None and len(text) > most * self._widest:
                raise too_long(len(text) // self._widest, most, "at least ")
            return list(written.ids())
        except ModelError as error:
            raise RequestError(error.message, param="messages") from error

    def faults(self) -> list[str]:
        """Why nothing of this model's answers could be trained; said at the start, not after a week of answers."""
        return template_faults(self._tokenizer)

    def check(self, ids: list[int], vocabulary: int) -> None:
        """RequestError that names the first token which the model has no embedding for (ids from `vocabulary` on): some
        tokenizers have added tokens that their model was never given."""
        beyond = next((token for token in ids if token >= vocabulary), None)
        if beyond is not None:
            raise RequestError(
                f"the messages contain {self.show(beyond)[0]!r}, token {beyond} of the tokenizer, which this model "
                f"cannot read: it has embeddings for {vocabulary} tokens. Write it differently, for example with a "
                "space inside.",
                param="messages",
                code="invalid_token",
            )

    def spellings(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """The tokens of texts at the begin of an answer and after a space, each once. A text that is written with other
        tokens, as a part of a longer word, is not found, as in vLLM."""
        found = [
            tuple(self._core.encode(before + word.strip(), add_special_tokens=False).ids)
            for word in words
            for before in ("", " ")
        ]
        return tuple(dict.fromkeys(ids for ids in found if ids))

    def decode(self, ids: list[int]) -> str:
        """Text of ids without special tokens."""
        return str(self._core.decode(ids, skip_special_tokens=True))

    def show(self, token: int) -> tuple[str, list[int]]:
        """One token as `logprobs` shows it: its text, special ones too, and that text's UTF-8 bytes."""
        if token not in self._shown:
            text = str(self._core.decode([token], skip_special_tokens=False))
            self._shown[token] = (text, list(text.encode("utf-8", "replace")))
        return self._shown[token]


class Detokenizer:
    """Text of a growing list of ids; a character is given out once all of its bytes are there."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._ids: list[int] = []
        self._start = 0
        self._read = 0

    def push(self, token: int) -> str:
        """The text that `token` completes, "" when it ends inside a character."""
        self._ids.append(token)
        return self._fresh(final=False)

    def flush(self) -> str:
        """Returns the remaining text at the end, an unfinished character as U+FFFD."""
        return self._fresh(final=True)

    def _fresh(self, *, final: bool) -> str:
        # Decoding from a few tokens back keeps the spaces that decoders strip at the start of a text.
        before = self._codec.decode(self._ids[self._start : self._read])
        text = self._codec.decode(self._ids[self._start :])
        if len(text) <= len(before) or (text.endswith(_BROKEN) and not final):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return text[len(before) :]


class Stopper:
    """Cuts a text before the first stop string, holding back text that may become one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Text that is safe to give out, and whether a stop string ended it."""
        if not self._stops:
            return text, False
        held = self._held + text
        found = [at for at in (held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self._held = ""
            return held[: min(found)], True
        keep = max(self._overlap(held, stop) for stop in self._stops)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], False

    def flush(self) -> str:
        """Returns the text held back, at the end."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest end of `text` that begins `stop`."""
        for size in range(min(len(text), len(stop) - 1), 0, -1):
            if text.endswith(stop[:size]):
                return size
        return 0
