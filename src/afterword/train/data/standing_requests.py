"""What one user asked for again and again, so that a teacher may read it together.

A single remark ("tl;dr?") is followed half-heartedly by a small model; five of the same user's are followed well.
Owns which messages may stand together: never another user's, another task's, or one about what its answer says.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from afterword.chat.canonical import text_of
from afterword.records import Interaction, Turn
from afterword.train.data.encoded import Example

SAID = ("follow_up", "comment")
"""Kinds of feedback that are messages."""
MANNER = ("complaint", "constraint", "correction")
"""What the detectors call words about how an answer should be."""
LONGEST = 200
"""Characters; who writes more writes about this answer."""
_WORD = re.compile(r"[^\W\d_]{5,}")


def of_the_same_user(examples: Sequence[Example]) -> dict[str, list[str]]:
    """Interaction -> what its user asked for after other answers of the run, nearest in time first, each text once.

    Interactions whose own words are no wish about the manner of answers, or whose user is unknown, have no entry.
    """
    ordered = sorted(
        (e for e in examples if is_wish(e.interaction, e.turn)), key=lambda e: (e.turn.created_at, e.turn.id)
    )
    groups: dict[tuple[str | None, str | None], list[Interaction]] = defaultdict(list)
    for example in ordered:
        groups[example.interaction.user, example.interaction.task].append(example.interaction)
    found: dict[str, list[str]] = {}
    for group in groups.values():
        for place, own in enumerate(group):
            near = sorted(range(len(group)), key=lambda i: (abs(i - place), i))
            texts = dict.fromkeys(group[i].hindsight.strip() for i in near)
            texts.pop(own.hindsight.strip())
            found[own.id] = list(texts)
    return found


def is_wish(interaction: Interaction, turn: Turn) -> bool:
    """Short words of a known user about how answers should be; less than half of them name what the answer is about."""
    said = interaction.hindsight.strip()
    if interaction.user is None or interaction.kind not in SAID or interaction.category not in MANNER:
        return False
    if interaction.polarity > 0 or not said or len(said) > LONGEST:
        return False
    first = next((m for m in turn.messages if m.get("role") == "user"), {})
    about = f"{text_of(first.get('content'))} {text_of(turn.answer.get('content'))}"
    words = set(_WORD.findall(said.lower()))
    return 2 * len(words & set(_WORD.findall(about.lower()))) < max(1, len(words))
