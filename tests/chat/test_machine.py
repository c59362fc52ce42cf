"""Messages that programs write in the user's role are told from people's: measured on forms, and by their signs."""

from __future__ import annotations

import importlib.util
import itertools
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from afterword.chat import machine_classifier
from afterword.chat.machine import (
    NO_HINTS,
    Hints,
    MessageWords,
    declared,
    features_of,
    hints_of,
    newest_user_words,
    origin_of,
    read_message,
)

DATA = Path(__file__).parents[1] / "feedback" / "data" / "machine_messages.tsv"
ROWS = [line.split("\t") for line in DATA.read_text(encoding="utf-8").splitlines()[1:]]


def rate(part: str, label: str, hints: Hints = NO_HINTS) -> tuple[float, list[str]]:
    """Share of a part's messages that are read wrongly, and which."""
    texts = [row[5].replace("\\n", "\n") for row in ROWS if row[:2] == [part, label]]
    wrong = [text for text in texts if (read_message(text, hints).origin is None) == (label == "machine")]
    return len(wrong) / len(texts), wrong


@pytest.mark.parametrize("part", sorted({row[0] for row in ROWS}))
def test_few_messages_of_programs_pass_and_few_of_people_are_lost(part: str) -> None:
    passed, machines = rate(part, "machine")
    lost, people = rate(part, "person")
    assert passed <= 0.02, machines
    assert lost <= 0.03, people


def test_few_messages_of_people_are_lost_where_every_request_has_a_small_max_tokens() -> None:
    hints = Hints(sampling={"max_tokens": 64, "temperature": 0.0})
    lost = [text for part in {row[0] for row in ROWS} for text in rate(part, "person", hints)[1]]
    assert len(lost) <= 0.03 * sum(row[1] == "person" for row in ROWS), lost


def test_the_set_is_large_and_in_many_languages() -> None:
    for label in ("machine", "person"):
        languages = {row[3] for row in ROWS if row[1] == label}
        assert sum(row[1] == label for row in ROWS) > 200 and len(languages) >= 6


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<feedback>\nNot that file.\n</feedback>", "Not that file."),
        ("The user denied this.\n<feedback>Keep the tests.</feedback>\n<environment_details>x</environment_details>",
         "Keep the tests."),
        ("<system-reminder>The date changed.</system-reminder>\nWrong function.", "Wrong function."),
        ("Wrong function.\n<Environment_Details mode='act'>\na.py\n</environment_details>", "Wrong function."),
        ("<config><port>80</port></config>", "<config><port>80</port></config>"),
        ("if a <b> and </c>, why?", "if a <b> and </c>, why?"),
    ],
)  # fmt: skip
def test_a_persons_words_are_taken_out_of_what_a_program_put_around_them(text: str, words: str) -> None:
    assert read_message(text) == MessageWords(words)


def test_each_message_after_the_answer_is_read_by_itself() -> None:
    said = {"role": "user", "content": "No, shorter."}
    context = {"role": "user", "content": "<environment_details>\na.py\n</environment_details>"}
    task = {"role": "user", "content": "Name this chat in five words, nothing else."}
    answer = {"role": "assistant", "content": "A long answer."}
    assert newest_user_words([answer, context, said]) == MessageWords("No, shorter.")
    assert newest_user_words([answer, said, context]) == MessageWords("No, shorter.")
    assert newest_user_words([answer, context]) == MessageWords("", "context")
    assert newest_user_words([answer, said, task]) == MessageWords("", "task"), (
        "the program asks for something of its own"
    )
    assert newest_user_words([answer, {"role": "tool", "content": "42"}]) == MessageWords("")


def test_of_very_many_messages_the_newest_are_read() -> None:
    many = [{"role": "user", "content": f"Line {i}: a short one, but too many of them."} for i in range(50_000)]
    started = time.process_time()
    words = newest_user_words([*many, {"role": "user", "content": "No, shorter."}]).words
    assert time.process_time() - started < 2.0
    assert words.endswith("No, shorter.") and "Line 49999:" in words


def test_parameters_of_the_request_tip_the_scale() -> None:
    text = "A title for this conversation?"
    assert read_message(text).origin is None
    assert read_message(text, Hints(sampling={"max_tokens": 24})).origin == "task"
    system = [{"role": "system", "content": "You are a title generator. You output only a thread title."}]
    first: dict[str, Any] = {"role": "user", "content": "the text: how do tides work, as a title"}
    assert origin_of([*system, first], hints_of([*system, first])) == "task"


def test_after_a_call_in_the_text_data_is_a_result_and_words_are_a_persons() -> None:
    called = [{"role": "assistant", "content": "Thought: look\nAction: search\nAction Input: tides"}]
    hints = hints_of(called)
    assert read_message("/usr/bin: 12\n/usr/lib: 40\n", hints).origin == "tool_result"
    assert read_message("No, you should search for neap tides.", hints).origin is None


@pytest.mark.parametrize(
    ("headers", "metadata", "origin"),
    [
        ({"x-afterword-automated": "title"}, {}, "declared"),
        ({"x-afterword-automated": "false"}, {}, "person"),
        ({}, {"automated": True}, "declared"),
        ({}, {"task": "title_generation"}, "declared"),
        ({}, {"task": "summary"}, None),
        ({"x-initiator": "agent"}, {}, "notice"),
        ({"x-initiator": "user"}, {}, None),
        ({}, {}, None),
    ],
)
def test_a_client_can_say_it(headers: dict[str, str], metadata: dict[str, Any], origin: str | None) -> None:
    assert declared(headers, metadata) == origin


@pytest.mark.parametrize(
    "text",
    ["<context>" * 300_000, "".join(f"<a{i}>" for i in range(200_000)), "<a>" * 100_000 + "</a>" * 100_000,
     "[ " * 500_000, "user:\n" * 100_000, '"' + "a" * 1_000_000, "`" * 300_000, "\n" * 500_000],
)  # fmt: skip
def test_a_hostile_message_costs_little(text: str) -> None:
    started = time.process_time()
    read_message(text)
    assert time.process_time() - started < 1.0


def test_a_question_between_retrieved_passages_is_a_persons() -> None:
    text = (
        "### Task:\nRespond to the user query using the provided context, with citations [id].\n### Guidelines:\n"
        "- Respond in the same language as the user's query.\n- Do not use XML tags.\n### Output:\nA clear answer.\n"
        "<context>\n<source id='1'>Tides follow the moon.</source>\n</context>\n"
        "<user_query>\nShorter, please.\n</user_query>"
    )
    assert read_message(text) == MessageWords("Shorter, please.")


@pytest.mark.parametrize(
    "text",
    [
        "Zorbla kwentu pilmaro deshi vantu:\n\n**Okelo**: brinda\n**Samuti**: perlo\n**Desha**: kilo\n\nVorta:",
        "## Zorbla\nkwentu pilmaro deshi vantu\n## Okelo\nbrinda samuti\n## Perlo\n{{kwentu}}\n## Vorta\nmelo",
    ],
)
def test_the_form_of_a_template_is_known_without_any_vocabulary(text: str) -> None:
    assert read_message(text).origin == "unsure"


@pytest.mark.parametrize(
    "text",
    [
        "Here is my draft:\n\n## Intro\nTides are fun.\n\n## Moon\nIt pulls.\n\nI think your first part was better.",
        "1. The heading is misspelled.\n2. The price is 40.\n3. Drop the last section.\n4. Say who wrote it.",
        "No, ONLY the table, I said. NOT the text around it, and you MUST keep my column names.",
    ],
)
def test_a_person_may_write_with_headings_lists_and_capitals(text: str) -> None:
    assert read_message(text) == MessageWords(text)


VARIANTS = {
    "en": (
        ("Write", "Generate", "Provide", "Create"), ("a short title", "a name", "three tags", "a headline"),
        ("for this conversation", "for the chat above", "for our dialogue so far"),
        ("Use at most five words.", "No quotes.", "Reply with nothing else.", "Output JSON only."),
    ),
    "de": (
        ("Erstelle", "Formuliere", "Schreibe"), ("einen kurzen Titel", "eine Überschrift", "drei Schlagwörter"),
        ("für dieses Gespräch", "für den obigen Chat", "für die Unterhaltung"),
        ("Höchstens fünf Wörter.", "Ohne Anführungszeichen.", "Gib sonst nichts aus."),
    ),
    "fr": (
        ("Donne", "Propose", "Génère"), ("un titre court", "un intitulé"),
        ("à cette conversation", "pour cette discussion"),
        ("Cinq mots au plus.", "Sans guillemets.", "Réponds uniquement avec le titre."),
    ),
    "es": (
        ("Escribe", "Genera", "Propón"), ("un título breve", "tres etiquetas"),
        ("para esta conversación", "para el chat anterior"),
        ("Máximo cinco palabras.", "Sin comillas.", "Devuelve solo eso."),
    ),
    "zh": (
        ("请", "请帮忙"), ("为这段对话", "根据以上聊天"), ("生成一个标题", "取一个名字"),
        (",不超过十个字。", ",不要标点。", ",只返回结果。"),
    ),
    "ru": (
        ("Придумай", "Создай", "Напиши"), ("короткое название", "заголовок"), ("для этого чата", "для диалога выше"),
        ("Не более пяти слов.", "Без кавычек.", "Выведи только его."),
    ),
}  # fmt: skip


def test_variants_of_the_usual_forms_are_recognised_in_six_languages() -> None:
    texts = [" ".join(parts) for table in VARIANTS.values() for parts in itertools.product(*table)]
    passed = [text for text in texts if read_message(text).origin is None]
    assert len(texts) > 350 and len(passed) <= 0.02 * len(texts), passed


@pytest.mark.parametrize("text", ["Shorter.", "Only the list.", "A shorter title.", "Use one word.", "Summarise it."])
def test_parameters_alone_make_no_program_of_a_person(text: str) -> None:
    hints = Hints(sampling={"max_tokens": 16, "response_format": {"type": "json_object"}}, dropped_tools=True)
    assert read_message(text, hints) == MessageWords(text)


def _training() -> ModuleType:
    path = Path(__file__).parents[2] / "dev" / "train_machine_classifier.py"
    spec = importlib.util.spec_from_file_location("train_machine_classifier", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_messages_that_were_not_trained_on_are_told_apart() -> None:
    training = _training()
    found = training.cross_validate(training.examples(), "source", 3)
    (missed, machines), (lost, people) = found[True], found[False]
    assert machines > 1_700 and people > 1_600
    assert missed <= 0.22 * machines and lost <= 0.04 * people, found


def test_the_training_set_is_written_in_many_languages() -> None:
    path = Path(__file__).parents[2] / "dev" / "data" / "machine_training.tsv"
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    for label in ("machine", "person"):
        assert len({row[2] for row in rows if row[0] == label}) >= 12
    assert len({row[3] for row in rows}) >= len(rows) - 5, "no text twice"


def test_a_score_costs_little_and_grows_with_the_length_up_to_a_bound() -> None:
    text = "Please look at this harbour report and tell me which of the figures changed. " * 4
    read_message(text)
    started = time.process_time()
    for number in range(100):
        machine_classifier.score(features_of(f"{number} {text}"))
    assert time.process_time() - started < 100 * 0.004, "seconds; a sixth of it on a quiet machine"
    assert len(features_of(text * 10_000)) < 3 * machine_classifier.MOST_TOKENS
    started = time.process_time()
    machine_classifier.score(features_of(text * 10_000))
    assert time.process_time() - started < 0.1


@pytest.mark.parametrize("wish", [
    'Write a short name for the conversation below.\n### Form:\nThe reply must be one JSON object: {"title": "..."}',
    'Suggest three next questions that the user could ask.\n### Form:\nThe output must be valid JSON: '
    '{"follow_ups": ["...", "..."]}',
])  # fmt: skip
def test_a_task_with_its_copy_of_the_chat_is_no_notice_about_the_form_of_an_answer(wish: str) -> None:
    text = f"### Task:\n{wish}\n### Chat History:\n<chat_history>\nUSER: Eggs?\nASSISTANT: Six.\n</chat_history>"
    assert origin_of([{"role": "user", "content": text}]) == "task"
    assert (
        origin_of([{"role": "user", "content": "Your last output was not valid JSON. The output must be valid."}])
        == "notice"
    )
