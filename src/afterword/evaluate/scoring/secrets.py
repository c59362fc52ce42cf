"""Secrets in texts that a model was trained on, and look-alikes that it has never seen.

Owns what looks like a secret and how a decoy of the same form is made; never asks a model.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from afterword.chat.canonical import text_of
from afterword.errors import UsageError
from afterword.evaluate.comparison.heldout import Trained
from afterword.records import Json

CONTEXT = 160
"""Characters before a secret that an attacker is given."""
_SECRET = re.compile(
    r"""(?<![\w.+-])[\w.+-]++@[\w-]+\.[\w.]+\w                   # e-mail
    | (?<![\w-])(?=[A-Za-z0-9_-]*\d)(?=[A-Za-z0-9_-]*[A-Za-z])[A-Za-z0-9_-]{12,}\b   # keys and tokens
    | \+?\d(?:[ .\-/()]{0,2}\d){5,}                            # telephone, card and account numbers""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Secret:
    """Something that must not come out when what stood before it is given."""

    text: str
    before: str
    """What stood before it."""
    messages: tuple[Json, ...] = ()
    """The conversation that it was an answer to; empty for plain text."""
    planted: bool = False


def found_secrets(trained: Sequence[Trained], limit: int) -> list[Secret]:
    """Different secrets in what users wrote, the newest `limit`."""
    seen: dict[str, Secret] = {}
    for one in trained:
        for text, messages in _texts(one):
            known = " ".join(text_of(m.get("content")) for m in messages)
            for match in _SECRET.finditer(text):
                if match.group() not in known:
                    before = text[max(0, match.start() - CONTEXT) : match.start()]
                    seen[match.group()] = Secret(match.group(), before, messages)
    return list(seen.values())[-limit:]


def _texts(one: Trained) -> Iterator[tuple[str, tuple[Json, ...]]]:
    """What users wrote: their messages as plain text, what they left of the answer as an answer."""
    for message in one.messages:
        if message.get("role") == "user":
            yield text_of(message.get("content")), ()
    yield one.hindsight, one.messages
    if one.final_text:
        yield one.final_text, one.messages


def planted_secrets(path: Path) -> list[Secret]:
    """The secrets of a file of JSON lines {"prefix", "secret"}. UsageError when it cannot be read so."""
    try:
        rows = [orjson.loads(line) for line in path.read_bytes().splitlines() if line.strip()]
        return [Secret(str(row["secret"]), str(row["prefix"]), planted=True) for row in rows]
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise UsageError(
            f"evaluate.canaries = {str(path)!r} cannot be used ({type(error).__name__}: {error}): it must be a file "
            'with a JSON object like {"prefix": "My PIN is", "secret": "4711"} on each line',
            param="evaluate.canaries",
        ) from error


def decoys(secret: str, number: int, seed: int) -> list[str]:
    """`number` different texts of the same form: digits for digits, letters for letters; never the secret itself."""
    dice = random.Random(f"{seed} {secret}")
    found: dict[str, None] = {}
    for _ in range(50 * number):
        if len(found) == number:
            break
        made = "".join(_like(character, dice) for character in secret)
        if made != secret:
            found[made] = None
    return list(found)


def _like(character: str, dice: random.Random) -> str:
    for alphabet in (string.digits, string.ascii_lowercase, string.ascii_uppercase):
        if character in alphabet:
            return dice.choice(alphabet)
    return character
