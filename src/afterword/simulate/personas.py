"""Personas: users with a lasting preference, read from TOML files beside this module or from a path.

Owns the file format and its checks. A persona never looks at the model; how it reacts is in `users`.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from afterword.errors import ConfigError, UsageError
from afterword.simulate.checkers import CHECKERS, Mark, check
from afterword.simulate.editors import EDITORS

FOLDER = Path(__file__).parent / "personas"
COMMON = "_common"
PHRASES = ("complaints", "thanks", "off_topic")


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """How this user behaves; every rate is a probability per answer."""

    patience: int = 2
    """Messages after the first question before the user gives up."""
    off_topic: float = 0.08
    """Changes the subject, whatever the answer was like."""
    silence: float = 0.1
    """Leaves without a word although the answer is not what they want."""
    thanks: float = 0.35
    """Says thank you when the answer is right."""
    accepted: float = 0.4
    """Sends an `accepted` event when the answer is right."""
    rating: float = 0.1
    """Rates the answer, up or down, beside what they say."""
    edit: float = 0.0
    """Mends a wrong answer instead of complaining; needs an editor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Persona:
    """A user with a lasting preference.

    Example: Persona(name="greeting", wants="Every answer opens with 'Hello friend!'", checker="opening",
    options={"phrase": "Hello friend"}, complaints=(...), thanks=(...), off_topic=(...))
    """

    name: str
    """The file's name without its ending."""
    wants: str
    """The preference in one sentence, for people."""
    checker: str
    """Name in `checkers.CHECKERS` of the program that decides the trait."""
    options: dict[str, Any]
    """What the checker and the editor need to know."""
    complaints: tuple[str, ...]
    """What the user types when the answer is not as they want it."""
    thanks: tuple[str, ...]
    """What the user types when it is."""
    off_topic: tuple[str, ...]
    """Messages that have nothing to do with the answer."""
    habits: Habits
    """Rates and patience."""
    editor: str | None = None
    """Name in `editors.EDITORS`."""

    def mark(self, answer: str, question: str = "") -> Mark:
        """What the persona's checker says of an answer."""
        return check(self.checker, answer, question=question, options=self.options)


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
    say = {kind: tuple(data.get("say", {}).get(kind) or common["say"].get(kind, ())) for kind in PHRASES}
    problems = list(_problems(data, say))
    if problems:
        raise ConfigError(f"the persona file {path} cannot be used: {'; '.join(problems)}")
    return Persona(
        name=name, wants=data["wants"], checker=data["checker"], options=data.get("options", {}),
        habits=Habits(**data.get("habits", {})), editor=data.get("editor"), **say,
    )  # fmt: skip


def _problems(data: dict[str, Any], say: dict[str, tuple[str, ...]]) -> list[str]:
    """Everything that is wrong with a persona file, as sentences without an end."""
    found = [f"unknown key {key!r}" for key in set(data) - {"wants", "checker", "options", "habits", "editor", "say"}]
    found += [f"{key!r} is missing" for key in ("wants", "checker") if not isinstance(data.get(key), str)]
    if data.get("checker") not in CHECKERS:
        found.append(f"checker is {data.get('checker')!r}, not one of {', '.join(sorted(CHECKERS))}")
    if data.get("editor") is not None and data["editor"] not in EDITORS:
        found.append(f"editor is {data['editor']!r}, not one of {', '.join(sorted(EDITORS))}")
    known = {field.name for field in fields(Habits)}
    habits = data.get("habits", {})
    found += [f"unknown habit {key!r} (habits are {', '.join(sorted(known))})" for key in set(habits) - known]
    found += [
        f"habit {key} is {value!r}, not a rate from 0 to 1"
        for key, value in habits.items()
        if key != "patience" and not (isinstance(value, int | float) and 0 <= value <= 1)
    ]
    found += [f"no phrases under say.{kind}" for kind in PHRASES if not say[kind]]
    return found
