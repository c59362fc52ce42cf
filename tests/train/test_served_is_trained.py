"""A turn that was served is trained as it was served, whatever its template: through the engine, and through an
upstream that renders as vLLM does. The templates are in the style of the families, written anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from afterword.chat.render import decode
from afterword.learn.recipes import recipe
from afterword.records import Json, Turn
from tests.served import VLLM, Gateway, encoded, engine, gateway, tokenizer_of, write_model, write_tokenizer

LLAMA = (
    "{{- bos_token }}{%- if tools is not none and tools is defined %}{%- set shown = true %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + (date_string or strftime_now('%d %b %Y')) }}"
    "{%- if messages[0].role == 'system' %}{{- '\n\n' + messages[0].content | trim }}{%- set messages = messages[1:] %}"
    "{%- endif %}{{- '<|eot_id|>' }}"
    "{%- for m in messages %}{%- if m.role == 'tool' %}"
    "{{- '<|start_header_id|>ipython<|end_header_id|>\n\n' + (m.content | tojson) + '<|eot_id|>' }}"
    "{%- elif 'tool_calls' in m %}{%- if m.tool_calls | length != 1 %}{{- raise_exception('one tool call at once') }}"
    "{%- endif %}{%- set call = m.tool_calls[0].function %}"
    '{{- \'<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "\' + call.name + \'", "parameters": \' }}'
    "{{- call.arguments | tojson }}{{- '}<|eot_id|>' }}"
    "{%- else %}{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{%- if shown and loop.first %}{{- 'Functions:\n' }}{%- for t in tools %}{{- t | tojson(indent=4) + '\n\n' }}"
    "{%- endfor %}{%- endif %}{{- m.content | trim + '<|eot_id|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
QWEN3 = (
    "{%- if tools %}{{- '<|im_start|>system\n' }}"
    "{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}"
    "{%- endif %}{{- '# Tools\n<tools>' }}{%- for t in tools %}{{- '\n' + (t | tojson) }}{%- endfor %}"
    "{{- '\n</tools><|im_end|>\n' }}{%- elif messages[0].role == 'system' %}"
    "{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif %}"
    "{%- set ns = namespace(last=messages | length - 1) %}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{%- elif m.role == 'assistant' %}{%- set content = m.content %}{%- set thought = '' %}"
    "{%- if m.reasoning_content is string %}{%- set thought = m.reasoning_content %}"
    "{%- elif '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}{{- '<|im_start|>assistant\n' }}"
    "{%- if loop.index0 > ns.last and (loop.last or thought) %}"
    "{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{%- endif %}{{- content }}"
    '{%- for call in m.tool_calls or [] %}{{- \'\n<tool_call>\n{"name": "\' + call.function.name }}'
    '{{- \'", "arguments": \' }}'
    "{{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}"
    "{{- '}\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}"
    "{%- elif m.role == 'tool' %}"
    "{{- '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}"
    "{%- endif %}{%- endif %}"
)
MISTRAL = (
    "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- set rest = messages[1:] %}"
    "{%- else %}{%- set rest = messages %}{%- endif %}{{- bos_token }}"
    "{%- set ns = namespace(at=0) %}{%- for m in rest %}"
    "{%- if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}"
    "{%- if (m.role == 'user') != (ns.at % 2 == 0) %}{{- raise_exception('roles must alternate') }}{%- endif %}"
    "{%- set ns.at = ns.at + 1 %}{%- endif %}{%- endfor %}"
    "{%- for m in rest %}{%- if m.role == 'user' %}{%- if tools and loop.index0 == 0 %}"
    "{{- '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}{{- '[INST] ' }}"
    "{%- if system is defined and loop.last %}{{- system + '\n\n' }}{%- endif %}{{- m.content + '[/INST]' }}"
    "{%- elif m.tool_calls %}{{- '[TOOL_CALLS] [' }}{%- for call in m.tool_calls %}"
    "{%- if call.id | length != 9 %}{{- raise_exception('tool call ids have nine characters') }}{%- endif %}"
    "{{- {'name': call.function.name, 'arguments': call.function.arguments, 'id': call.id} | tojson }}"
    "{{- ', ' if not loop.last else ']' + eos_token }}{%- endfor %}"
    "{%- elif m.role == 'tool' %}"
    "{%- if m.tool_call_id | length != 9 %}{{- raise_exception('nine characters') }}{%- endif %}"
    "{{- '[TOOL_RESULTS] ' + ({'content': m.content, 'call_id': m.tool_call_id} | tojson) + '[/TOOL_RESULTS]' }}"
    "{%- elif m.role == 'assistant' %}{{- ' ' + m.content | trim + eos_token }}"
    "{%- else %}{{- raise_exception('unknown role') }}{%- endif %}{%- endfor %}"
)
GEMMA3 = (
    "{{ bos_token }}{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{%- endif %}"
    "{%- for m in messages %}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{%- endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{%- if m.content is string %}{{ m.content | trim }}{%- else %}{%- for part in m.content %}{{ part.text | trim }}"
    "{%- endfor %}{%- endif %}{{ '<end_of_turn>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{%- endif %}"
)
PHI = (
    "{%- for m in messages %}{%- if m.role == 'system' and tools %}"
    "{{- '<|system|>' + m.content + '<|tool|>' + (tools | tojson) + '<|/tool|><|end|>' }}{%- else %}"
    "{{- '<|' + m.role + '|>' + m.content + '<|end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- else %}{{- eos_token }}{%- endif %}"
)


@dataclass(frozen=True)
class Style:
    template: str
    special: tuple[str, ...]
    eos: str
    bos: str | None = None
    words: tuple[str, ...] = ()
    roles: tuple[str, ...] = ("system", "tool")
    """What it takes beside user and assistant."""


STYLES = {
    "llama": Style(
        LLAMA, ("<|pad|>", "<|begin|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"), "<|eot_id|>",
        "<|begin|>",
    ),
    "qwen3": Style(
        QWEN3, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>",
        words=("<think>", "</think>", "<tool_call>", "</tool_call>"),
    ),
    "mistral": Style(
        MISTRAL,
        ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
         "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        "</s>", "<s>",
    ),
    "gemma3": Style(
        GEMMA3, ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"), "<end_of_turn>", "<bos>", roles=()
    ),
    "phi": Style(
        PHI,
        ("<|pad|>", "<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>", "<|/tool|>"),
        "<|endoftext|>", roles=("system", "tool"),
    ),
}  # fmt: skip
USER, SYSTEM = {"role": "user", "content": "Weather in Lisbon, now?"}, {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "It is warm."}
SCHEMA = [{"type": "function", "function": {"name": "weather", "description": "Weather of a city", "parameters": {
    "type": "object", "properties": {"unit": {"type": "string", "enum": ["c", "f"]}, "city": {"type": "string"}},
    "required": ["city"], "additionalProperties": False}}}]  # fmt: skip
"""Its keys are in no alphabetical order."""


def call(arguments: str | None = '{"unit": "c", "city": "Lisbon"}', **more: Any) -> Json:
    made = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [made], **more}


RESULT = {"role": "tool", "tool_call_id": "call00001", "content": 'clear, "21" degrees\nand no wind'}
TOOLED = [USER, call(), RESULT]


@pytest.fixture(scope="module", params=sorted(STYLES))
def style(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Style, Path]:
    chosen = STYLES[request.param]
    place = tmp_path_factory.mktemp(request.param) / request.param
    made = write_tokenizer(
        place, chosen.template, special=chosen.special, eos=chosen.eos, bos=chosen.bos, words=chosen.words
    )
    return chosen, write_model(place, made)


@dataclass
class Worlds:
    """The same model behind our engine and behind an upstream like vLLM."""

    style: Style
    folder: Path
    engine: Gateway
    upstream: Gateway
    vllm: VLLM


@pytest.fixture(scope="module")
def worlds(style: tuple[Style, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worlds]:
    chosen, folder = style
    vllm = VLLM(folder, lambda body: "It is warm in Lisbon.")
    with ExitStack() as stack:
        ours = stack.enter_context(engine(folder))
        theirs = stack.enter_context(vllm.serving())
        gateways = [stack.enter_context(gateway(url, tmp_path_factory.mktemp("home"))) for url in (ours, theirs)]
        yield Worlds(chosen, folder, gateways[0], gateways[1], vllm)


Conversation = tuple[list[Json], Json, tuple[str, ...]]
CONVERSATIONS: dict[str, Conversation] = {
    "one question": ([USER], {}, ()),
    "several turns": ([USER, ANSWER, {"role": "user", "content": "And tomorrow?"}], {}, ()),
    "a system message": ([SYSTEM, USER, ANSWER, USER], {}, ("system",)),
    "tools": ([SYSTEM, USER], {"tools": SCHEMA}, ("system", "tool")),
    "a tool's result": (TOOLED, {"tools": SCHEMA}, ("tool",)),
    "after a tool": ([*TOOLED, ANSWER, {"role": "user", "content": "And tomorrow?"}], {"tools": SCHEMA}, ("tool",)),
    "parts": (
        [{"role": "user", "content": [{"type": "text", "text": "Weather"}, {"type": "text", "text": "in Porto?"}]}],
        {}, (),
    ),
    "fields of OpenAI's client": (
        [USER, {**ANSWER, "refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None},
         USER], {}, (),
    ),
    "no tool calls": ([USER, {**ANSWER, "tool_calls": []}, USER], {}, ()),
    "arguments left out": ([USER, call(""), RESULT], {"tools": SCHEMA}, ("tool",)),
    "an empty answer": ([USER, {"role": "assistant", "content": ""}, USER], {}, ()),
    "spaces and lines": ([{"role": "user", "content": "  a\n\n\tb  \n"}], {}, ()),
    "emoji": ([{"role": "user", "content": "👩‍🚀 é 天气? ﷽"}], {}, ()),
    "braces": ([{"role": "user", "content": "{{ messages }} {% raw %} {hindsight} {0}"}], {}, ()),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_what_was_served_is_trained(worlds: Worlds, name: str) -> None:
    messages, more, roles = CONVERSATIONS[name]
    if not set(roles) <= set(worlds.style.roles):
        assert worlds.engine.post(messages, **more).status_code in (200, 400)
        return
    for world in (worlds.engine, worlds.upstream):
        turn = world.chat(messages, **more)
        for where in (
            ("appended", "system", "next_turn") if name in ("several turns", "a tool's result") else ("appended",)
        ):
            check(worlds.folder, turn, where)


def check(folder: Path, turn: Turn, where: str = "appended", hindsight: str = "Shorter, please.") -> Any:
    """The turn is trained with the served ids, and its teacher reads them with the user's words beside them."""
    using = recipe("follow-ups", context=where)
    prepared = encoded(folder, [turn], hindsight=hindsight, using=using)
    assert not prepared.excluded, [(one.reason, one.detail) for one in prepared.excluded]
    row = prepared.rows[0]
    assert row.prompt == turn.prompt_ids and row.completion == turn.completion_ids
    tokenizer = tokenizer_of(folder)
    for context, ids in row.teacher_prompts.items():
        if context.privileged:
            text = decode(tokenizer, ids, special=True)
            assert hindsight in text and text.count(hindsight) == 1
            headerless = tokenizer_of(folder).chat_template == MISTRAL
            assert headerless or text[-9:] == decode(tokenizer, turn.prompt_ids or (), special=True)[-9:]
    return row


def test_a_date_of_another_day_stays(worlds: Worlds) -> None:
    """The served prompt is that of another day: what is trained today keeps its date, and so does the teacher."""
    for arguments in ({"date_string": "01 Jan 2020"}, {"date_string": "01 Jan 2020", "long": "x" * 250}):
        turn = worlds.upstream.chat([SYSTEM, USER] if worlds.style.roles else [USER], chat_template_kwargs=arguments)
        row = check(worlds.folder, turn)
        if worlds.style.template == LLAMA:
            tokenizer = tokenizer_of(worlds.folder)
            for ids in (row.prompt, *row.teacher_prompts.values()):
                assert "01 Jan 2020" in decode(tokenizer, ids, special=True)


@pytest.mark.parametrize("thinking", [False, True])
def test_template_arguments_of_a_request_reach_the_engines_template(worlds: Worlds, thinking: bool) -> None:
    turns = [
        world.chat([USER], chat_template_kwargs={"enable_thinking": thinking})
        for world in (worlds.engine, worlds.upstream)
    ]
    assert turns[0].prompt_ids == turns[1].prompt_ids
    assert turns[0].sampling["chat_template_kwargs"] == {"enable_thinking": thinking}
    tail = decode(tokenizer_of(worlds.folder), turns[0].prompt_ids or (), special=True)[-40:]
    assert tail.endswith("<think>\n\n</think>\n\n") == (worlds.style.template == QWEN3 and not thinking)
    for turn in turns:
        check(worlds.folder, turn)


def test_an_answer_that_was_begun_is_continued_and_trained(worlds: Worlds) -> None:
    begun = [USER, {"role": "assistant", "content": "In Lisbon it is"}]
    how = {"continue_final_message": True, "add_generation_prompt": False}
    for world in (worlds.engine, worlds.upstream):
        turn = world.chat(begun, **how)
        text = decode(tokenizer_of(worlds.folder), turn.prompt_ids or (), special=True)
        assert text.endswith("In Lisbon it is")
        check(worlds.folder, turn)
        check(worlds.folder, turn, "system")
    assert worlds.engine.post([USER], **how).status_code == 400
    assert worlds.engine.post(begun, continue_final_message=True, add_generation_prompt=True).status_code == 400


def test_words_with_marks_are_text_in_the_engine(worlds: Worlds) -> None:
    marks = " ".join((*worlds.style.special[1:4], *worlds.style.words))
    turn = worlds.engine.chat([{"role": "user", "content": f"What is {marks}?"}])
    check(worlds.folder, turn)
    check(worlds.folder, turn, hindsight=f"No {worlds.style.special[-1]} please.")


ANSWERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "a thought": ("<think>\nThe user asks.\n</think>\n\nIt is warm.", {"reasoning": True}, {}),
    "a thought that the template opened": ("The user asks.\n</think>\n\nIt is warm.", {"reasoning": True}, {}),
    "only a thought": ("<think>\nThe user asks.\n</think>", {"reasoning": True}, {}),
    "a thought in the text": ("<think>\nThe user asks.\n</think>\n\nIt is warm.", {}, {}),
    "a tool call": ('<tool_call>{"name": "weather", "arguments": {"city": "Porto"}}</tool_call>', {"tools": True}, {}),
    "words before a tool call": (
        'Let me look.\n<tool_call>{"name": "weather", "arguments": {}}</tool_call>', {"tools": True, "reasoning": True},
        {},
    ),
    "spaces around": ("\n\n It is warm. \n", {}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_behind_parsers_are_trained_whole(style: tuple[Style, Path], tmp_path: Path, name: str) -> None:
    _, folder = style
    says, parsers, more = ANSWERS[name]
    vllm = VLLM(folder, lambda body: says, **parsers)
    with vllm.serving() as url, gateway(url, tmp_path / "home") as world:
        turn = world.chat([USER], **more)
        row = check(folder, turn)
    assert says.split("<")[0] in decode(tokenizer_of(folder), row.completion, special=True)
    assert row.completion[-1] == tokenizer_of(folder).eos_token_id


def test_a_thought_in_the_history_is_rewritten_by_the_template_and_trained(worlds: Worlds) -> None:
    said = {"role": "assistant", "content": "<think>\nWarm?\n</think>\n\nIt is warm.", "reasoning_content": "Warm?"}
    plain = {"role": "assistant", "content": "It is warm.", "reasoning_content": "Warm?"}
    for world in (worlds.engine, worlds.upstream):
        for before in (said, plain):
            check(worlds.folder, world.chat([USER, before, {"role": "user", "content": "And tomorrow?"}]))


def test_a_template_that_raises_is_the_clients_fault_and_costs_one_row(worlds: Worlds) -> None:
    two = [USER, {"role": "user", "content": "Are you there?"}]
    strict = worlds.style.template in (MISTRAL, GEMMA3)
    response = worlds.engine.post(two)
    assert response.status_code == (400 if strict else 200), response.text
    if strict:
        assert "alternate" in response.json()["error"]["message"]
    turn = worlds.engine.chat([USER])
    prepared = encoded(worlds.folder, [turn, dataclasses.replace(turn, id="t2", messages=tuple(two))])
    assert len(prepared.rows) == 1
    assert dict(prepared.reasons) == ({"template": 1} if strict else {"prompt_differs": 1})


FIELDS: list[tuple[str, Any, int]] = [
    ("temperature", "hot", 400), ("top_p", [0.5], 400), ("min_tokens", -1, 400), ("stop", 3, 400), ("seed", "x", 400),
    ("repetition_penalty", "1.1", 400), ("logit_bias", {"3": "5"}, 400), ("best_of", 2, 400), ("typical_p", 0.9, 400),
    ("stop_token_ids", 3, 400), ("chat_template", "{{ 1 }}", 400), ("chat_template_kwargs", "x", 400),
    ("chat_template_kwargs", {"tokenize": True}, 400), ("reasoning_effort", 3, 400), ("bad_words", "x", 400),
    ("add_generation_prompt", False, 400), ("add_generation_prompt", "no", 400), ("truncate_prompt_tokens", 5, 400),
    ("mirostat", 2, 400), ("dry_multiplier", 0.8, 400), ("guided_json", {}, 400),
    ("typical_p", 1.0, 200), ("best_of", 1, 200), ("bad_words", [], 200), ("stop_token_ids", [], 200),
    ("add_generation_prompt", True, 200), ("reasoning_effort", "low", 200), ("unheard_of", 1, 200),
    ("repetition_penalty", 1.1, 200), ("logit_bias", {"3": 5}, 200), ("bad_words", ["x"], 200), ("top_k", 5, 200),
    ("stop_token_ids", [3], 200), ("min_p", 0.1, 200), ("frequency_penalty", 0.5, 200), ("min_tokens", 2, 200),
    ("presence_penalty", -0.5, 200), ("allowed_token_ids", [3, 4], 200),
]  # fmt: skip


def test_sampling_fields_of_other_servers_are_served_or_named(tmp_path: Path) -> None:
    phi = STYLES["phi"]
    place = tmp_path / "phi"
    folder = write_model(place, write_tokenizer(place, phi.template, special=phi.special, eos=phi.eos))
    vllm = VLLM(folder, lambda body: "It is warm.")
    with ExitStack() as stack:
        urls = stack.enter_context(engine(folder)), stack.enter_context(vllm.serving())
        ours, theirs = (stack.enter_context(gateway(url, tmp_path / str(n))) for n, url in enumerate(urls))
        for field, value, status in FIELDS:
            response = ours.post([USER], **{field: value})
            assert response.status_code == status, (field, value, response.text)
            if status == 400:
                error = response.json()["error"]
                assert error["param"] == field and field in error["message"]
            if field not in ("chat_template_kwargs", "add_generation_prompt"):  # recorded as it came, whatever its type
                prepared = encoded(folder, [theirs.chat([USER], **{field: value})])
                assert len(prepared.rows) + len(prepared.excluded) == 1
