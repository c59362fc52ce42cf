"""Writes a reviewer's own reading of an interaction: a new interaction beside a rejection of the old one, and back."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Literal

from afterword.chat.redact import redact
from afterword.errors import ConflictError, UsageError
from afterword.feedback.collect.decide import SKETCHED
from afterword.feedback.collect.signals import answer_text, request_of
from afterword.feedback.select.review_queue import CORRECTED, replacement
from afterword.feedback.settings import CollectSettings
from afterword.feedback.text.followup_classifier import POLARITY
from afterword.feedback.text.guards import is_injection, is_standing
from afterword.feedback.text.minhash import packed, sketch_of
from afterword.records import Interaction, Review, Turn, content_hash
from afterword.store import Store

CATEGORIES = tuple(POLARITY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What a reviewer reads in the feedback of an interaction."""

    hindsight: str
    """Text for the teacher; may be empty for a positive polarity only."""
    polarity: int
    """-1, 0 or 1."""
    category: str
    by: str = ""


def correct(store: Store, name: str, correction: Correction, settings: CollectSettings) -> Interaction:
    """Writes a corrected interaction, its approval, and the rejection of the one that it replaces.

    Turn, feedback, weight and split stay: a held-out interaction stays held out. The text is redacted as collected
    ones are. The same correction twice is one row.

    Raises:
        UsageError: Nothing changes, the text teaches nothing, is too long, or addresses the trainer.
        NotFoundError: No such interaction.
    """
    old = store.get(Interaction, name)
    turn = store.get(Turn, old.turn)
    said = redact(correction.hindsight.strip(), settings.redact)
    _check(correction, said.text, old, settings)
    sketch = sketch_of(request_of(turn), answer_text(turn), said.text, limits=SKETCHED) if settings.duplicates else ()
    now = time.time()
    row = replace(
        old,
        id=content_hash("corrected", old.id, said.text, correction.polarity, correction.category),
        created_at=now,
        hindsight=said.text,
        polarity=correction.polarity,
        category=correction.category,
        confidence=1.0,
        scope="user" if is_standing(said.text) else "global",
        redacted=said.kinds,
        sketch=packed(sketch),
    )
    why = f"{CORRECTED}{row.id}"
    # in one write: a correction without the rejection would teach both readings
    store.write(
        row, _review(store, old.id, "reject", correction.by, why), _review(store, row.id, "approve", correction.by)
    )
    return row


def _check(correction: Correction, text: str, old: Interaction, settings: CollectSettings) -> None:
    if correction.category not in CATEGORIES and correction.category != old.category:
        raise UsageError(
            f"the category {correction.category!r:.40} is unknown: use one of {', '.join(CATEGORIES)}.",
            param="category",
        )
    if correction.polarity not in (-1, 0, 1):
        raise UsageError(f"the polarity {correction.polarity!r:.20} is invalid: use -1, 0 or 1.", param="polarity")
    if len(text) > settings.max_hindsight_chars:
        raise UsageError(
            f"the text has {len(text)} characters, the most is {settings.max_hindsight_chars}: shorten it.",
            param="hindsight",
        )
    if not text and correction.polarity <= 0:
        raise UsageError(
            "without a text only a content user teaches something: write what the user wants, or reject the "
            "interaction.",
            param="hindsight",
        )
    if text and is_injection(text):
        raise UsageError(
            "the text addresses the trainer or the template, not the answer: write what the user wants of the answer.",
            param="hindsight",
        )
    if (text, correction.polarity, correction.category) == (old.hindsight, old.polarity, old.category):
        raise UsageError("the correction changes nothing: approve the interaction instead.", param="hindsight")


def _review(
    store: Store, interaction: str, decision: Literal["approve", "reject", "withdraw"], by: str, why: str = ""
) -> Review:
    before = store.newest(Review, interaction=interaction)
    name = content_hash("review", interaction, decision, by, why, before.id if before else None)
    return Review(id=name, interaction=interaction, decision=decision, by=by, why=why, created_at=time.time())


def withdraw(store: Store, name: str, by: str) -> list[Review]:
    """Takes this reviewer's decision on an interaction back; of a correction also the interaction that it made.

    Returns:
        The rows written.

    Raises:
        ConflictError: This reviewer has no standing decision on it.
    """
    mine = [row for row in store.rows(Review, interaction=name) if row.by == by]
    if not mine or mine[-1].decision == "withdraw":
        raise ConflictError(f"{by or 'nobody'} has no decision on {name} to take back. Load the page again.")
    rows = [_review(store, name, "withdraw", by)]
    made = replacement(mine)
    if made is not None:
        rows.append(_review(store, made, "reject", by, "the correction was taken back"))
    store.write(*rows)
    return rows
