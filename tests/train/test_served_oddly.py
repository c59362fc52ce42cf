"""Odd ways in which servers render, parse and cut, and odd templates: what was served is trained all the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from afterword.chat.render import decode
from afterword.records import Json
from tests.served import VLLM, encoded, engine, gateway, tokenizer_of, write_model, write_tokenizer
from tests.train.test_served_is_trained import LLAMA, SCHEMA, STYLES, TOOLED, check

SPECIAL = ("<pad>", "<|im_start|>", "<|im_end|>")
BODY = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
HEADER = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CHATML = "{% for m in messages %}" + BODY + "{% endfor %}" + HEADER
TEMPLATES: dict[str, Any] = {
    "marks of generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}" + BODY
    + "{% endgeneration %}{% else %}" + BODY + "{% endif %}{% endfor %}" + HEADER,
    "named templates": {"default": CHATML, "tool_use": "{{ tools | tojson }}" + CHATML},
    "system messages merged": "{% set s = messages | selectattr('role', 'equalto', 'system') "
    "| map(attribute='content') | list %}"
    "{% if s %}{{ '<|im_start|>system\n' + s | join('\n') + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages if m.role != 'system' %}" + BODY + "{% endfor %}" + HEADER,
    "the last messages alone": "{% for m in messages[-3:] %}" + BODY + "{% endfor %}" + HEADER,
    "users in a row merged": "{% for m in messages %}{% if loop.index0 and messages[loop.index0 - 1].role == m.role %}"
    "{{ m.content + '<|im_end|>\n' }}{% else %}" + BODY + "{% endif %}{% endfor %}" + HEADER,
    "words in capitals": CHATML.replace("m.content", "(m.content | upper)"),
    "the header in words": "{% for m in messages %}{{ m.role | title + ': ' + m.content + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
    "an opened thought": CHATML.replace("assistant\\n' }}{% endif %}", "assistant\\n<think>\\n' }}{% endif %}"),
    "the number of messages": CHATML + "{% if not add_generation_prompt %}{{ messages | length }}{% endif %}",
}  # fmt: skip
TALK: list[Json] = [
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"},
    {"role": "assistant", "content": "Air scatters light."}, {"role": "system", "content": "Use metres."},
    {"role": "user", "content": "How high is it?"},
]  # fmt: skip


def model(place: Path, template: Any) -> Path:
    return write_model(place, write_tokenizer(place, template, special=SPECIAL, eos="<|im_end|>"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_odd_templates(tmp_path: Path, name: str) -> None:
    folder = model(tmp_path / "odd", TEMPLATES[name])
    hindsight = "SHORTER, PLEASE." if name == "words in capitals" else "Shorter, please."
    vllm = VLLM(folder, lambda body: "A hundred kilometres.")
    with engine(folder) as ours, vllm.serving() as theirs:
        for number, url in enumerate((ours, theirs)):
            with gateway(url, tmp_path / f"home{number}") as world:
                check(folder, world.chat(TALK), hindsight=hindsight)
                check(folder, world.chat(TALK[1:2], tools=SCHEMA), hindsight=hindsight)


def cut(ids: list[int]) -> list[int]:
    """As `truncate_prompt_tokens` does."""
    return ids[-60:]


SERVERS: dict[str, tuple[dict[str, Any], Json]] = {
    "a default system prompt": ({"alter": lambda ids: [1, *b"system be good", 2, *ids]}, {}),
    "a second start token": ({"alter": lambda ids: [1, *ids]}, {}),
    "an empty thought by default": ({"alter": lambda ids: [*ids, *b"<think></think>"]}, {}),
    "a prompt cut at its start": ({"alter": cut}, {}),
    "special tokens in the text": ({}, {"skip_special_tokens": False}),
    "a stop string": ({}, {"stop": ["kilo"]}),
    "a proxy that drops the thought": ({"reasoning": True, "drop_reasoning": True}, {}),
}  # fmt: skip
SAID = "<think>\nHow high?\n</think>\n\nA hundred kilometres."


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("chatml") / "model", CHATML)


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("name", SERVERS)
def test_odd_servers(chatml: Path, tmp_path: Path, name: str, opened: bool) -> None:
    how, request = SERVERS[name]
    says = SAID.removeprefix("<think>\n") if opened else SAID
    alter: Callable[[list[int]], list[int]] = how.get("alter", list)
    letters = tokenizer_of(chatml)

    def altered(ids: list[int]) -> list[int]:
        made = alter(ids)
        bytes_of = {byte: letters.encode(chr(byte))[0] for byte in set(range(128)) - {1, 2} if made != ids}
        extra = len(made) - len(ids)
        known = [bytes_of[i] if i in bytes_of and not (extra <= at < len(made)) else i for at, i in enumerate(made)]
        return known if extra > 0 and made[extra:] == ids else made if extra <= 0 else [
            *ids, *(bytes_of[i] for i in made[len(ids) :])
        ]  # fmt: skip

    vllm = VLLM(chatml, lambda body: says, **{**how, "alter": altered})
    with vllm.serving() as url, gateway(url, tmp_path / "home") as world:
        turn = world.chat(TALK[1:], **request)
    row = check(chatml, turn)
    assert decode(letters, row.completion).startswith(says.split("kilo")[0])


def test_a_tools_answer_in_json_under_the_date_of_another_day(tmp_path: Path) -> None:
    """Llama 3 writes what a tool said as JSON: the served prompt holds it with escapes."""
    llama, place = STYLES["llama"], tmp_path / "llama"
    folder = write_model(place, write_tokenizer(place, LLAMA, special=llama.special, eos=llama.eos, bos=llama.bos))
    vllm = VLLM(folder, lambda body: "It is warm.")
    with vllm.serving() as url, gateway(url, tmp_path / "home") as world:
        arguments = {"date_string": "01 Jan 2020", "long": "x" * 250}  # too long to be kept
        turn = world.chat(TOOLED, tools=SCHEMA, chat_template_kwargs=arguments)
    row = check(folder, turn)
    assert "01 Jan 2020" in decode(tokenizer_of(folder), row.prompt)


def test_another_conversation_is_still_left_out(chatml: Path, tmp_path: Path) -> None:
    """What makes odd servers trainable takes no foreign prompt or answer for the turn's own."""
    import dataclasses

    vllm = VLLM(chatml, lambda body: "A hundred kilometres.")
    with vllm.serving() as url, gateway(url, tmp_path / "home") as world:
        turn, other = world.chat(TALK[1:2]), world.chat([{"role": "user", "content": "Who are you?"}])
    for changes, reason in (
        ({"prompt_ids": other.prompt_ids}, "prompt_differs"),
        ({"answer": {"role": "assistant", "content": "A mile."}}, "ids_differ"),
    ):
        assert encoded(chatml, [dataclasses.replace(turn, **changes)]).reasons == {reason: 1}
