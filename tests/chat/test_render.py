"""Prompts by the model's template, their generation header, and the ids that end a turn."""

from __future__ import annotations

import itertools
from typing import Any

import jinja2
import pytest

from afterword.chat.render import (
    decode,
    encode,
    end_of_turn_ids,
    ends_with,
    generation_header,
    render_prompt,
    template_faults,
)
from afterword.errors import ModelError


class Letters:
    """A tokenizer of single characters with a template of one's own: `template(messages, header)`."""

    eos_token_id: int | None = 4

    def __init__(self, template: Any = None) -> None:
        self.template = template or self._usual
        self.seen: dict[str, Any] = {}

    @staticmethod
    def _usual(messages: list[dict[str, Any]], header: bool) -> str:
        return "".join(f"<{m['role']}>{m['content']}\x03\n" for m in messages) + ("<assistant>" if header else "")

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        self.seen = options
        return self.template(conversation, options["add_generation_prompt"])

    def encode(self, text: str, **options: Any) -> Any:
        assert options == {"add_special_tokens": False}
        return [ord(c) for c in text]

    def decode(self, token_ids: Any, **options: Any) -> Any:
        return "".join(chr(i) for i in token_ids if not (options["skip_special_tokens"] and i < 5))


ASKED = [{"role": "user", "content": "Why?"}]


def test_a_prompt_ends_with_the_generation_header() -> None:
    tokenizer = Letters()
    prompt = render_prompt(tokenizer, ASKED)
    assert prompt.text == "<user>Why?\x03\n<assistant>"
    assert prompt.ids == tuple(map(ord, prompt.text))
    assert ends_with(prompt.ids, generation_header(tokenizer))
    assert "tools" not in tokenizer.seen


def test_tools_reach_the_template() -> None:
    tokenizer, tools = Letters(), ({"type": "function"},)
    seen: list[dict[str, Any]] = []

    def noting(messages: list[dict[str, Any]], header: bool) -> str:
        seen.append(tokenizer.seen)
        return Letters._usual(messages, header)

    tokenizer.template = noting
    render_prompt(tokenizer, ASKED, tools)
    assert seen[0]["tools"] == list(tools)


def test_where_no_header_is_written_what_closes_the_users_turn_stands_for_it() -> None:
    """As Mistral and Llama 2: the answer begins right behind [/INST]."""

    def inst(messages: list[dict[str, Any]], header: bool) -> str:
        return "".join(
            f"[INST] {m['content']} [/INST]" if m["role"] == "user" else f" {m['content']}\x04" for m in messages
        )

    tokenizer = Letters(inst)
    assert generation_header(tokenizer) == tuple(map(ord, " [/INST]"))
    prompt = render_prompt(tokenizer, [*ASKED, {"role": "assistant", "content": "So."}, *ASKED])
    assert prompt.text == "[INST] Why? [/INST] So.\x04[INST] Why? [/INST]"
    assert end_of_turn_ids(tokenizer)[0] == 4 and not template_faults(tokenizer)
    with pytest.raises(ModelError, match="not with the chat template's generation header"):
        render_prompt(tokenizer, [*ASKED, {"role": "assistant", "content": "So."}])


@pytest.mark.parametrize("template", [lambda m, header: "same", lambda m, header: "head" if header else "body"])
def test_a_template_without_a_header_is_refused(template: Any) -> None:
    with pytest.raises(ModelError, match="no generation header"):
        generation_header(Letters(template))


def test_a_conversation_that_the_template_ends_otherwise_is_refused() -> None:
    def odd(messages: list[dict[str, Any]], header: bool) -> str:
        return Letters._usual(messages, header) + ("!" if messages[0]["content"] == "Why?" else "")

    with pytest.raises(ModelError, match="not with the chat template's generation header"):
        render_prompt(Letters(odd), ASKED)


@pytest.mark.parametrize(
    "error", [jinja2.TemplateError("no system role"), TypeError("can only concatenate str"), KeyError("name")]
)
def test_a_conversation_that_the_template_refuses_is_said_with_its_roles(error: Exception) -> None:
    def strict(messages: list[dict[str, Any]], header: bool) -> str:
        if messages[0]["role"] == "system":
            raise error
        return Letters._usual(messages, header)

    with pytest.raises(ModelError, match=r"rejects a conversation of system, user: .*(no system|concatenate|name)"):
        render_prompt(Letters(strict), [{"role": "system", "content": "Be brief."}, *ASKED])


def test_end_of_turn_is_what_the_template_writes_then_the_end_token() -> None:
    assert end_of_turn_ids(Letters()) == (3, 4)
    same = Letters()
    same.eos_token_id = 3
    assert end_of_turn_ids(same) == (3,)
    bare = Letters(lambda messages, header: "".join(m["content"] for m in messages))
    assert end_of_turn_ids(bare) == (4,)
    bare.eos_token_id = None
    with pytest.raises(ModelError, match="set eos_token"):
        end_of_turn_ids(bare)


def test_ends_with_nothing_is_never_true() -> None:
    assert not ends_with((1, 2), ())
    assert not ends_with((1,), (2, 1))


def test_special_tokens_are_left_out_unless_asked_for() -> None:
    ids = encode(Letters(), "a\x03")
    assert decode(Letters(), ids) == "a"
    assert decode(Letters(), ids, special=True) == "a\x03"


def test_a_clock_before_the_users_words_and_an_end_behind_them_hide_no_header() -> None:
    clock = itertools.count()

    def timed(messages: list[dict[str, Any]], header: bool) -> str:
        return f"{next(clock)}\n{Letters._usual(messages, header)}"

    def ended(messages: list[dict[str, Any]], header: bool) -> str:
        return Letters._usual(messages, header) + ("" if header else "\x04")

    for template in (timed, ended, lambda messages, header: timed(messages, header) + ("" if header else "\x04")):
        assert decode(Letters(template), generation_header(Letters(template)), special=True) == "<assistant>"
