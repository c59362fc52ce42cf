"""Tasks whose answers a program marks: reasoning-gym families and personas, with feedback on wrong answers.

A task gives prompts of two splits that share none, a mark from 0 to 1, and what a teacher may be shown. `gym_reward` is
the verifier for recipes such as "grpo". Never runs a model.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from typing import Any, Literal, Protocol

from afterword.chat.canonical import text_of
from afterword.errors import ConfigError, NothingToDo
from afterword.records import Json, Turn, content_hash
from afterword.simulate.personas import Persona, load_persona, persona_names
from afterword.simulate.prompts import load_prompts
from afterword.simulate.users import mended_for

TaskSplit = Literal["train", "heldout"]
RIGHT = 0.999
"""Mark from which an answer counts as right."""
EVERY = 3
"""One prompt of so many is held out, by its hash."""
MOST_TRIES = 60
"""Generated prompts for each one that is wanted, before a family counts as too small."""


@dataclass(frozen=True, slots=True)
class TaskItem:
    """One prompt."""

    id: str
    messages: tuple[Json, ...]
    reference: str = ""
    """A right answer, as the model should write it; "" where none is known."""
    entry: Json = field(default_factory=dict)
    """What the task's own checker reads."""


class VerifiableTask(Protocol):
    """Prompts and the program that marks answers to them."""

    @property
    def name(self) -> str:
        """For example "gym:chain_sum"."""

    @property
    def max_tokens(self) -> int:
        """Length bound of an answer."""

    def items(self, split: TaskSplit, number: int, seed: int) -> list[TaskItem]:
        """`number` different prompts of a split; NothingToDo when there are not so many."""

    def score(self, item: TaskItem, text: str) -> float:
        """Mark of an answer, 0 .. 1."""

    def feedback(self, item: TaskItem, text: str) -> str:
        """The program's feedback on a wrong answer, without the right one; "" for a right answer."""

    def follow_up(self, item: TaskItem, text: str) -> str:
        """The user's message after the answer; "" for a content user."""

    def edit(self, item: TaskItem, text: str) -> str:
        """The answer as the user would edit it; "" without a possible or necessary edit."""

    def hints(self, item: TaskItem) -> str:
        """Facts about a right answer that do not give it away; "" for none."""


def task_of(name: str) -> VerifiableTask:
    """A task by its name: "gym:FAMILY" (extra `tasks`) or "persona:NAME".

    Raises:
        ConfigError: The name is unknown; names the known ones.
    """
    kind, _, rest = name.partition(":")
    if kind == "persona" and rest:
        return PersonaTask(load_persona(rest))
    if kind == "gym" and rest in FAMILIES:
        return GymTask(rest)
    known = [*(f"gym:{f}" for f in FAMILIES), *(f"persona:{p}" for p in persona_names())]
    raise ConfigError(f"unknown task {name!r}: use one of {', '.join(known)}", param="task")


# ---- reasoning-gym


@dataclass(frozen=True, slots=True)
class GymFamily:
    """One generator of reasoning-gym at a level that a small model neither always nor never solves."""

    dataset: str
    options: Json
    ask: str
    """Follows the question, so that the answer can be found."""
    numeric: bool = True
    choices: tuple[str, ...] = ()
    """The answers that there are, where they are few."""


_NUMBER = "Reply with the number only."
_TEXT = "Reply with the answer only."
FAMILIES: dict[str, GymFamily] = {
    "chain_sum": GymFamily(
        "chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}, _NUMBER
    ),
    "products": GymFamily("products", {"min_digits": 1, "max_digits": 1}, _NUMBER),
    "gcd": GymFamily("gcd", {"min_value": 1, "max_value": 30}, _NUMBER),
    "letter_counting": GymFamily("letter_counting", {"min_words": 1, "max_words": 3}, _NUMBER),
    "leg_counting": GymFamily(
        "leg_counting", {"min_animals": 1, "max_animals": 1, "min_instances": 1, "max_instances": 4}, _NUMBER
    ),
    "number_format": GymFamily(
        "number_format", {"min_num_candidates": 2, "max_num_candidates": 2, "min_n": 10, "max_n": 999}, _NUMBER
    ),
    "syllogism": GymFamily("syllogism", {}, "Reply with Yes or No.", False, ("yes", "no")),
    "calendar_arithmetic": GymFamily(
        "calendar_arithmetic", {"tasks": ["weekday_of_date"]}, _TEXT, False,
        ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),
    ),
    "ransom_note": GymFamily(
        "ransom_note", {"max_note_length": 3, "max_magazine_length": 8}, "Reply with True or False.", False,
        ("true", "false"),
    ),
    "spell_backward": GymFamily("spell_backward", {"min_word_len": 3, "max_word_len": 4}, _TEXT, False),
}  # fmt: skip
"""By the name after "gym:"; docs/forecast.md has the share of each that the embedded model solves."""

_LAST = re.compile(r"(?:answer(?: is)?|result(?: is)?|=)\s*:?\s*", re.IGNORECASE)
_ITEM = re.compile(r"gym:(?P<family>\w+)/(?P<seed>\d+)/(?P<place>\d+)")
_DIGITS = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def _gym() -> Any:
    try:
        return import_module("reasoning_gym")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the tasks gym:* need the package reasoning-gym: pip install 'afterword[tasks]'", param="task"
        ) from error


@lru_cache(maxsize=64)
def _dataset(family: str, seed: int) -> Any:
    """The generator of a family; an entry depends on the seed and its place alone."""
    one = FAMILIES[family]
    return _gym().create_dataset(one.dataset, size=1 << 20, seed=seed, **one.options)


def _entry(family: str, seed: int, place: int) -> Json:
    made = _dataset(family, seed)[place]
    kept = {key: made[key] for key in ("answer", "metadata")}
    return {"family": family, "question": str(made["question"]).strip(), **kept, "answer": str(made["answer"])}


def answer_in(text: str, family: GymFamily) -> str:
    """The answer that a text gives: behind its last "answer is" or "=", the last number, or the first of few choices;
    "" for none."""
    text = text.strip()
    if family.choices:
        found = re.search(rf"\b({'|'.join(family.choices)})\b", text, re.IGNORECASE)
        return found.group(1).capitalize() if found else ""
    parts = _LAST.split(text)
    rest = next((part.strip() for part in reversed(parts) if part.strip()), "")
    if family.numeric:
        numbers = _DIGITS.findall(rest) or _DIGITS.findall(text)
        return str(numbers[-1]).replace(",", "") if numbers else ""
    return rest.splitlines()[0].strip().strip("\"'`*.").strip() if rest else ""


@dataclass(frozen=True, slots=True)
class GymTask:
    """A family of reasoning-gym: its prompts, its own scorer, and feedback that compares with the right answer."""

    family: str

    @property
    def name(self) -> str:
        """The task's name."""
        return f"gym:{self.family}"

    @property
    def max_tokens(self) -> int:
        """Short answers are asked for."""
        one = FAMILIES[self.family]
        return 16 if one.numeric or one.choices else 24

    def items(self, split: TaskSplit, number: int, seed: int) -> list[TaskItem]:
        """Prompts drawn by the seed; the hash of a question decides its split, so that no seed mixes them."""
        found: dict[str, TaskItem] = {}
        for item in self._drawn(number, seed):
            question = str(item.entry["question"])
            if (int(content_hash(question)[:8], 16) % EVERY == 0) == (split == "heldout"):
                found.setdefault(question, item)
            if len(found) == number:
                return list(found.values())
        raise NothingToDo(
            f"{self.name} has {len(found)} different prompts of the split {split!r} at this level, {number} are "
            "wanted: ask for fewer"
        )

    def _drawn(self, number: int, seed: int) -> Iterator[TaskItem]:
        for i in range(MOST_TRIES * number):
            entry = _entry(self.family, seed, i)
            messages: tuple[Json, ...] = (
                {"role": "user", "content": f"{entry['question']}\n{FAMILIES[self.family].ask}"},
            )
            yield TaskItem(f"{self.name}/{seed}/{i}", messages, str(entry["answer"]), entry)

    def score(self, item: TaskItem, text: str) -> float:
        """1 for an answer that reasoning-gym marks as right, else 0: it gives a wrong one a hundredth."""
        return gym_score(item.entry, text)

    def feedback(self, item: TaskItem, text: str) -> str:
        """Too small or too large, or from which character on it is wrong."""
        if self.score(item, text) >= RIGHT:
            return ""
        said, one = answer_in(text, FAMILIES[self.family]), FAMILIES[self.family]
        if not said:
            return f"No answer was found in it. {one.ask}"
        if one.numeric:
            side = "small" if _value(said) < _value(item.reference) else "large"
            return f"The answer {said} is wrong: it is too {side}."
        if one.choices:
            return f"The answer {said} is wrong."
        same = next((i for i, (a, b) in enumerate(zip(said, item.reference, strict=False)) if a != b), None)
        at = min(len(said), len(item.reference)) if same is None else same
        return f"The answer {said!r} is wrong from its character {at + 1} on."

    def follow_up(self, item: TaskItem, text: str) -> str:
        """A user who knows the answer and says it."""
        return "" if self.score(item, text) >= RIGHT else f"No, that is wrong. It is {item.reference}."

    def edit(self, item: TaskItem, text: str) -> str:
        """The right answer in place of a wrong one."""
        return "" if self.score(item, text) >= RIGHT else item.reference

    def hints(self, item: TaskItem) -> str:
        """Length and first character of the answer, or its last digit and its size."""
        right = item.reference
        if not FAMILIES[self.family].numeric:
            return f"The answer has {len(right)} characters. It begins with {right[:1]!r} and ends with {right[-1:]!r}."
        value = _value(right)
        return f"The answer lies between {value - 3:g} and {value + 4:g}. Its last digit is {right.strip()[-1:]}."


def _value(text: str) -> float:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return 0.0


def gym_score(entry: Json, text: str) -> float:
    """1.0 when reasoning-gym marks the answer in `text` as right, else 0.0."""
    family = FAMILIES[str(entry["family"])]
    said = answer_in(text, family)
    if not said:
        return 0.0
    if family.choices:
        return float(said.casefold() == str(entry["answer"]).strip().casefold())
    return float(_dataset(str(entry["family"]), 0).score_answer(said, entry) >= RIGHT)


def gym_reward(turn: Turn, text: str) -> float:
    """Verifier of the tasks gym:* for `train.verifier`: "afterword.forecast.tasks:gym_reward".

    The turn's id begins with the item's ("gym:FAMILY/SEED/PLACE"), from which the entry is generated again.
    """
    found = _ITEM.match(turn.id)
    if found is None or found["family"] not in FAMILIES:
        raise ConfigError(f"turn {turn.id!r} is of no task gym:*: gym_reward cannot mark its answers", param="verifier")
    return gym_score(_entry(found["family"], int(found["seed"]), int(found["place"])), text)


def task_reward(turn: Turn, text: str) -> float:
    """Verifier of any task for `train.verifier`: "afterword.forecast.tasks:task_reward".

    The turn's task names a persona ("persona:NAME"), whose checkers mark the answer; else as `gym_reward`.
    """
    if (turn.task or "").startswith("persona:"):
        return task_of(str(turn.task)).score(TaskItem(turn.id, turn.messages), text)
    return gym_reward(turn, text)


# ---- personas


@dataclass(frozen=True, slots=True)
class PersonaTask:
    """A simulated user's lasting wish: everyday requests, the persona's own checkers, complaints and edits."""

    persona: Persona

    @property
    def name(self) -> str:
        """The task's name."""
        return f"persona:{self.persona.name}"

    @property
    def max_tokens(self) -> int:
        """As the demo asks."""
        return 64

    def items(self, split: TaskSplit, number: int, seed: int) -> list[TaskItem]:
        """Requests in an order drawn by the seed; the two splits share no topic."""
        prompts = list(load_prompts(split, ("question",)))
        random.Random(f"forecast/{seed}").shuffle(prompts)
        if len(prompts) < number:
            raise NothingToDo(f"{self.name} has {len(prompts)} requests of the split {split!r}, {number} are wanted")
        return [
            TaskItem(f"{self.name}/{content_hash(p.text)[:16]}", ({"role": "user", "content": p.text},))
            for p in prompts[:number]
        ]

    def score(self, item: TaskItem, text: str) -> float:
        """The persona's grade."""
        return self.persona.mark(text, _question(item)).grade

    def feedback(self, item: TaskItem, text: str) -> str:
        """A person has no program; the wish that the answer does not grant, in one sentence."""
        unmet = self.persona.unmet(text, _question(item))
        return f"The answer was not accepted. Wanted: {unmet[0].wants}" if unmet else ""

    def follow_up(self, item: TaskItem, text: str) -> str:
        """One of the complaints of the wish that was granted least."""
        unmet = self.persona.unmet(text, _question(item))
        return random.Random(item.id).choice(unmet[0].complaints) if unmet else ""

    def edit(self, item: TaskItem, text: str) -> str:
        """The answer as edited by the persona's editors."""
        return mended_for(self.persona, text, _question(item), 0) or ""

    def hints(self, item: TaskItem) -> str:
        """The persona's wish."""
        return self.persona.wants


def _question(item: TaskItem) -> str:
    return text_of(item.messages[-1].get("content"))


def pass_rate(task: VerifiableTask, items: Sequence[TaskItem], texts: Sequence[str]) -> float:
    """Mean mark."""
    return sum(task.score(item, text) for item, text in zip(items, texts, strict=True)) / len(items)
