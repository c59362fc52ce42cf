"""Encodes control-token text inside messages as plain text; only the chat template writes control tokens.

`guarded` puts a placeholder into every such text before rendering; `encode_guarded` encodes the result in one pass in
which only the template's marks are control tokens. Works with the `tokenizers` library; never imports transformers.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, pairwise
from typing import Any
from weakref import WeakKeyDictionary

from afterword.errors import ModelError
from afterword.records import Json

TRUSTED = ("system", "developer", "assistant")
"""Roles whose messages may hold marks that are no special tokens, such as `<think>` in an answer's history: templates
look for them there. Special tokens are plain text in them too."""
_THOUGHT = re.compile(r"\W*(think(ing)?|thoughts?|reason(ing)?)\W*", re.IGNORECASE)
_PLACEHOLDERS = (range(0xF0000, 0xF1000), range(0xE000, 0xF000), range(0x2800, 0x2900))
"""Characters for private use, and Braille for tokenizers that drop those."""
_NESTED = 16
_PROBES: tuple[list[Json], ...] = (
    [{"role": "user", "content": "a"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
    [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}],
    [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}],
)


@dataclass(frozen=True, slots=True)
class Guarded:
    """A text in which `placeholder` breaks every plain-text mark; None: it has no mark."""

    text: str
    placeholder: str | None = None

    @property
    def plain(self) -> str:
        """The text without placeholders."""
        return self.text if self.placeholder is None else self.text.replace(self.placeholder, "")


class ControlTokens:
    """The marks of one tokenizer: its special tokens, and the added tokens that its chat template writes."""

    def __init__(self, tokenizer: Any) -> None:
        self._core = tokenizer.backend_tokenizer
        self._added: dict[int, Any] = self._core.get_added_tokens_decoder()
        self._unknown = self._core.token_to_id(str(getattr(tokenizer, "unk_token", None) or ""))
        written = _written_by_template(tokenizer, self._core)
        self.marks: dict[str, int] = {
            token.content: number
            for number, token in self._added.items()
            if len(token.content.strip()) > 1 and (token.special or (number in written and not token.content.isalnum()))
        }
        """Text -> id. Runs of spaces and single characters are no marks: ordinary text is full of them."""
        special = {self._added[number].content for number in self.marks.values() if self._added[number].special}
        trusted = [text for text in special if not _THOUGHT.fullmatch(text)]
        self._strict = _search(self.marks)
        self._lenient = _search(trusted)
        normalized = any(self._added[number].normalized for number in self.marks.values())
        self._normalizer = self._core.normalizer if normalized else None

    # ---- finding marks

    def holds_mark(self, text: str, role: str = "user") -> bool:
        """True when `text`, in a message of this role, contains a mark."""
        return any(True for _ in self._spans(text, role))

    def break_marks(self, text: str, placeholder: str, role: str = "user") -> str:
        """Inserts a placeholder into every mark, after its first character that is not a space.

        Args:
            text: Text of a message.
            placeholder: One character.
            role: Role of the message.
        """
        for _ in range(_NESTED):  # breaking one mark may leave another one whole
            places = sorted(set(self._spans(text, role)))
            if not places:
                break
            text = placeholder.join(text[a:b] for a, b in pairwise((0, *places, len(text))))
        return text

    def free_placeholder(self, used: set[str]) -> str:
        """Chooses a placeholder that the tokenizer's normalizer keeps.

        Args:
            used: Characters of the conversation.

        Raises:
            ModelError: If all placeholders are used.
        """
        normalizer = self._core.normalizer
        for code in chain(*_PLACEHOLDERS):
            one = chr(code)
            if one not in used and (normalizer is None or one in normalizer.normalize_str(f"a{one}b")):
                return one
        raise ModelError("the conversation uses every placeholder character (private use area): remove some of them")

    def _spans(self, text: str, role: str) -> Iterator[int]:
        """Where to break: one place inside each mark."""
        trusted = role in TRUSTED
        pattern = self._lenient if trusted else self._strict
        if pattern is None:
            return
        for found in pattern.finditer(text):
            yield _inside(found.group(), found.start())
        if self._normalizer is not None and pattern.search(self._normalizer.normalize_str(text)):
            # a form that only the tokenizer reads as a mark, such as full-width letters: it says itself where
            encoded = self._core.encode(text, add_special_tokens=False)
            for number, (start, end) in zip(encoded.ids, encoded.offsets, strict=True):
                token = self._added.get(number)
                if token is not None and token.content in self.marks and pattern.fullmatch(token.content):
                    yield _inside(text[start:end], start)

    # ---- encoding

    def encode(self, text: Guarded) -> list[int]:
        """Encodes `text` without its placeholders; marks broken by a placeholder become plain text."""
        if text.placeholder is None:
            return list(self._core.encode(text.text, add_special_tokens=False).ids)
        marked = self._with_aliases(text)
        ids = self._plain.encode(marked.replace(text.placeholder, ""))
        allowed = marked.count(self._plain.nonce)
        if sum(number in self._control for number in ids) > allowed:
            # The model's own vocabulary spells a mark as one piece: break it in two.
            ids = self._plain.encode(marked.replace(text.placeholder, self._plain.breaker))
        return ids

    def _with_aliases(self, text: Guarded) -> str:
        """The text with an alias in place of each mark that the template wrote. The tokenizer itself finds them: a
        placeholder breaks all others."""
        encoded = self._core.encode(text.text, add_special_tokens=False)
        parts, done = [], 0
        for number, (start, end) in zip(encoded.ids, encoded.offsets, strict=True):
            if number in self._control and end > start:
                parts += [text.text[done:start], self._plain.alias[number]]
                done = end
        return "".join([*parts, text.text[done:]])

    @cached_property
    def _control(self) -> frozenset[int]:
        return frozenset(self.marks.values()) - {self._unknown}

    @cached_property
    def _plain(self) -> _PlainCore:
        return _PlainCore(self._core, {number: text for text, number in self.marks.items() if number in self._control})


@dataclass(frozen=True)
class _PlainCore:
    """A copy of a tokenizer that knows its marks only by secret aliases, so that their text is text."""

    core: Any
    marks: dict[int, str]
    nonce: str = field(default_factory=lambda: secrets.token_hex(8))

    @cached_property
    def alias(self) -> dict[int, str]:
        """Id -> what stands for it in a text; nobody who writes a message can know it."""
        return {number: f"\U0010fff0{self.nonce}{number}\U0010fff1" for number in self.marks}

    @property
    def breaker(self) -> str:
        """A token of its own that is dropped from the ids."""
        return f"\U0010fff0{self.nonce[::-1]}\U0010fff1"

    @cached_property
    def _copy(self) -> tuple[Any, dict[int, int | None]]:
        """The tokenizer, and what its added tokens' ids are in the original."""
        data = json.loads(self.core.to_str())
        original = {token["content"]: token["id"] for token in data["added_tokens"]}
        kept = [token for token in data["added_tokens"] if token["id"] not in self.marks]
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        size = 1 + max([*self.core.get_vocab(with_added_tokens=True).values()])
        names: dict[str, int | None] = {text: number for number, text in self.alias.items()}
        names[self.breaker] = None
        aliases = [{"id": size + n, "content": text, **flags} for n, text in enumerate(names)]
        data |= {"added_tokens": [*kept, *aliases], "truncation": None, "padding": None, "post_processor": None}
        copy = type(self.core).from_str(json.dumps(data, ensure_ascii=True))
        decoder = copy.get_added_tokens_decoder()
        return copy, {n: names[t.content] if t.content in names else original[t.content] for n, t in decoder.items()}

    def encode(self, text: str) -> list[int]:
        """Ids of the original tokenizer."""
        copy, original = self._copy
        found = (original.get(number, number) for number in copy.encode(text, add_special_tokens=False).ids)
        return [number for number in found if number is not None]


def _search(texts: Iterable[str]) -> re.Pattern[str] | None:
    """Any of `texts`, the longest that fits, in capitals or not: a template may change the case."""
    tree: dict[str, Any] = {}
    for text in texts:
        branch = tree
        for letter in text.strip():
            branch = branch.setdefault(letter, {})
        branch[""] = {}
    return re.compile(_pattern(tree), re.IGNORECASE) if tree else None


def _pattern(tree: dict[str, Any]) -> str:
    """A tree of letters as a pattern: of thousands of marks most share their beginning."""
    parts = [re.escape(letter) + _pattern(branch) for letter, branch in tree.items() if letter]
    whole = parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})" if parts else ""
    return f"(?:{whole})?" if whole and "" in tree else whole


def _inside(mark: str, start: int) -> int:
    return start + len(mark) - len(mark.lstrip()) + 1


def _written_by_template(tokenizer: Any, core: Any) -> set[int]:
    """Ids of added tokens that stand in the chat template, or in what it writes of a few plain conversations."""
    template = str(getattr(tokenizer, "chat_template", None) or "")
    found = {number for number, token in core.get_added_tokens_decoder().items() if token.content in template}
    for messages in _PROBES if template else ():
        try:
            text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except Exception:  # noqa: BLE001, S112  a template is somebody else's program; this one takes other roles
            continue
        found.update(core.encode(text, add_special_tokens=False).ids)
    return found


_KNOWN: WeakKeyDictionary[Any, tuple[object, ControlTokens]] = WeakKeyDictionary()


def control_tokens(tokenizer: Any) -> ControlTokens | None:
    """Returns the marks of a tokenizer; None when it is not of the `tokenizers` library and has no marks."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        return None
    state = (str(getattr(tokenizer, "chat_template", None)), core.get_vocab_size(with_added_tokens=True))
    known = _KNOWN.get(tokenizer)
    if known is None or known[0] != state:
        known = _KNOWN[tokenizer] = (state, ControlTokens(tokenizer))
    return known[1]


def guarded(
    tokenizer: Any, messages: Sequence[Json], tools: Sequence[Json] | None
) -> tuple[list[Json], list[Json] | None, str | None]:
    """Breaks every mark in messages and tools.

    Returns:
        Messages, tools and the placeholder; None without marks.
    """
    copies, schemas = [dict(message) for message in messages], list(tools) if tools else None
    control = control_tokens(tokenizer)
    if control is None or not any(True for _ in _marked(control, copies, schemas)):
        return copies, schemas, None
    placeholder = control.free_placeholder(_letters(tokenizer, copies, schemas))

    def break_(text: str, role: str) -> str:
        return control.break_marks(text, placeholder, role)

    broken = [_mapped(message, break_, _role(message)) for message in copies]
    return broken, _mapped(schemas, break_, "user"), placeholder


def guarded_text(tokenizer: Any, text: str, role: str = "user") -> Guarded:
    """Breaks every mark in the text of one message of `role`."""
    control = control_tokens(tokenizer)
    if control is None or not control.holds_mark(text, role):
        return Guarded(text)
    placeholder = control.free_placeholder(_letters(tokenizer, text))
    return Guarded(control.break_marks(text, placeholder, role), placeholder)


def encode_guarded(tokenizer: Any, text: Guarded) -> list[int]:
    """Encodes a text in which only the template's marks are control tokens."""
    control = control_tokens(tokenizer)
    if control is None:
        return [int(i) for i in tokenizer.encode(text.plain, add_special_tokens=False)]
    return control.encode(text)


def _role(message: Json) -> str:
    return str(message.get("role"))


def _marked(control: ControlTokens, messages: Sequence[Json], tools: Any) -> Iterator[str]:
    for message in messages:
        for text, role in _texts(message, _role(message)):
            if control.holds_mark(text, role):
                yield text
    for text, role in _texts(tools, "user"):
        if control.holds_mark(text, role):
            yield text


_CALLS = ("tool_calls", "function_call")
"""What a model calls holds what users said: templates look for no marks in it."""


def _texts(value: Any, role: str) -> Iterator[tuple[str, str]]:
    """Every text of a JSON value with the role by which it is read."""
    if isinstance(value, str):
        yield value, role
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _texts(key, role)
            yield from _texts(part, "user" if key in _CALLS else role)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part, role)


def _mapped(value: Any, change: Callable[[str, str], str], role: str) -> Any:
    if isinstance(value, str):
        return change(value, role)
    if isinstance(value, dict):
        return {
            (change(key, role) if isinstance(key, str) else key): _mapped(
                part, change, "user" if key in _CALLS else role
            )
            for key, part in value.items()
        }
    return [_mapped(part, change, role) for part in value] if isinstance(value, list | tuple) else value


def _letters(tokenizer: Any, *values: Any) -> set[str]:
    """Every character of the template and of what it renders."""
    used = set(str(getattr(tokenizer, "chat_template", None) or ""))
    for text, _ in _texts(list(values), "user"):
        used.update(text)
    return used
