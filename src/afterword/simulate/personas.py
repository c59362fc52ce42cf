"""Reads personas, users with lasting preferences, from TOML files of the package or from a path.

Defines personas and reads their files (`persona_schema` validates them). A persona never looks at the
model; how it reacts is in `users`. Simulated time is the number of the conversation: a wish may begin, end or come and
go with it.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from afterword.errors import ConfigError, UsageError
from afterword.simulate.checkers import PASS, CheckResult, check
from afterword.simulate.persona_schema import PHRASES, held, persona_problems, written_wishes

FOLDER = Path(__file__).parent / "personas"
COMMON = "_common"


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """How this user behaves; every rate is a probability per answer unless it says otherwise."""

    patience: int = 2
    """Messages after the first question before the user gives up."""
    request: float = 0.0
    """Says in the first question already what they want; per conversation."""
    off_topic: float = 0.08
    """Changes the subject, whatever the answer was like."""
    silence: float = 0.1
    """Leaves without a word although the answer is not what they want."""
    shrug: float = 0.0
    """Of those times: types something that says nothing before leaving."""
    abandoned: float = 0.0
    """Of those times: the application notices and sends an `abandoned` event."""
    thanks: float = 0.35
    """Says thank you when the answer is right."""
    accepted: float = 0.4
    """Sends an `accepted` event when the answer is right."""
    rating: float = 0.1
    """Rates the answer, up or down, beside what they say."""
    edit: float = 0.0
    """Mends a wrong answer instead of complaining; needs an editor for every wish that was not met."""
    retry: float = 0.0
    """Asks the same again instead of complaining, with a `retried` event."""
    wrong: float = 0.0
    """Complains although the answer is right."""
    typos: float = 0.0
    """Mistypes a message."""
    flood: int = 0
    """Ratings of -1 sent about every answer, whatever it was like."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """One preference and the program that decides it."""

    wants: str
    """The preference in one sentence, for people and for models that are told of it."""
    checker: str
    """Name in `checkers.CHECKERS` of the program that decides the trait."""
    options: dict[str, Any] = field(default_factory=dict)
    """What the checker and the editor need to know."""
    editor: str | None = None
    """Name in `editors.EDITORS`."""
    complaints: tuple[str, ...]
    """What the user types when the answer is not as they want it."""
    requests: tuple[str, ...] = ()
    """What the user adds to a question to have it right from the start."""
    good: str = ""
    """An answer that grants the wish, and ..."""
    bad: str = ""
    """... one to the same question that does not; a file is held to both when it is read."""
    after: int = 0
    """First conversation in which it is wished."""
    until: int | None = None
    """First conversation in which it is no longer wished."""
    every: tuple[int, int] = (0, 1)
    """(k, n): wished only in conversations whose number is k modulo n."""

    def holds(self, conversation: int) -> bool:
        """Is it wished in this conversation?"""
        return held(conversation, self.after, self.until, self.every)

    def mark(self, answer: str, question: str = "") -> CheckResult:
        """The mark of an answer by the wish's checker."""
        return check(self.checker, answer, question=question, options=self.options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Persona:
    """A user with lasting preferences.

    Example: Persona(name="greeting", wants="Every answer opens with 'Hello friend!'", wishes=(Wish(...),),
    thanks=(...), silence=(...), wrong=(...), off_topic=(...), habits=Habits(patience=3))
    """

    name: str
    """The file's name without its ending."""
    wants: str
    """All of it in one sentence, for people."""
    wishes: tuple[Wish, ...]
    thanks: tuple[str, ...]
    """What the user types when an answer is right."""
    silence: tuple[str, ...]
    """What the user types when they say nothing about it."""
    wrong: tuple[str, ...]
    """Complaints that have nothing to do with the wishes, made about right answers."""
    off_topic: tuple[str, ...]
    """Messages that have nothing to do with the answer."""
    habits: Habits
    """Rates and patience."""
    questions: tuple[str, ...] = ()
    """Questions of their own, asked instead of the common ones."""

    @property
    def complaints(self) -> tuple[str, ...]:
        """Those of all wishes."""
        return tuple(text for wish in self.wishes for text in wish.complaints)

    @property
    def phrasings(self) -> tuple[str, ...]:
        """Everything it says about answers, the common phrases included."""
        requests = tuple(text for wish in self.wishes for text in wish.requests)
        return self.complaints + requests + self.thanks + self.silence

    def wished(self, conversation: int = 0) -> tuple[Wish, ...]:
        """Its wishes in this conversation; never empty."""
        return tuple(wish for wish in self.wishes if wish.holds(conversation))

    def mark(self, answer: str, question: str = "", conversation: int = 0) -> CheckResult:
        """The mean grade of the wishes of this conversation; passed when each of them is."""
        marks = [wish.mark(answer, question) for wish in self.wished(conversation)]
        return CheckResult(round(sum(m.grade for m in marks) / len(marks), 4), all(m.passed for m in marks))

    def unmet(self, answer: str, question: str = "", conversation: int = 0) -> list[Wish]:
        """The wishes that an answer does not grant, the worst first."""
        graded = [(wish.mark(answer, question).grade, i, wish) for i, wish in enumerate(self.wished(conversation))]
        return [wish for grade, _, wish in sorted(graded, key=lambda g: g[:2]) if grade < PASS]


def persona_names() -> list[str]:
    """The personas that come with the package, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml") if not path.stem.startswith("_"))


def load_persona(name: str) -> Persona:
    """A persona by its name or by the path of a TOML file.

    UsageError for a name that does not exist (with the ones that do), ConfigError for a file that is wrong.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    known = persona_names()
    if name not in known and not (name.endswith(".toml") and path.is_file()):
        close = difflib.get_close_matches(name.casefold(), known, n=2, cutoff=0.5)
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise UsageError(
            f"there is no persona {name!r}.{hint} The personas are {', '.join(known)}; "
            "your own is a TOML file given by its path.",
            param="persona",
        )
    return _build(path.stem, _read(path), _read(FOLDER / f"{COMMON}.toml"), path)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read the persona file {path}: {error}") from error


def _build(name: str, data: dict[str, Any], common: dict[str, Any], path: Path) -> Persona:
    problems = persona_problems(data, [field.name for field in fields(Habits)])
    if problems:
        raise ConfigError(f"the persona file {path} cannot be used: {'; '.join(problems)}")
    say = {kind: tuple(data.get("say", {}).get(kind) or common["say"][kind]) for kind in PHRASES}
    made = tuple(_wish(wish) for wish in written_wishes(data))
    return Persona(
        name=name, wants=data["wants"], wishes=made, questions=tuple(data.get("questions", ())),
        habits=Habits(**data.get("habits", {})), **say,
    )  # fmt: skip


def _wish(data: Mapping[str, Any]) -> Wish:
    given: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in data.items()}
    return Wish(**given)
