"""Estimates by a trained classifier whether a follow-up is about the answer before it, and in which way.

Softmax regression over the detectors' findings, the words of the message and sentence embeddings of both sides (extra
`followups`). Weights: `followup_weights.tsv`, trained by `dev/train_followup_classifier.py`. Owns features and
probabilities; `followup_classifier` owns the categories.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from itertools import pairwise
from typing import TYPE_CHECKING

from afterword.chat.machine_classifier import tokens
from afterword.feedback.text import embeddings
from afterword.feedback.text.followup_classifier import (
    GUESS,
    POLARITY,
    RELEVANCE,
    SURE,
    Category,
    FollowUpReading,
    Signs,
    signs_of,
)

if TYPE_CHECKING:
    pass

CLASSES = ("wish", "ask", "praise", "new")
"""A wish or correction about the answer, a question about it, praise, something new."""
READ = 400
"""Characters at the beginning and at the end of a text that are embedded."""
EMBEDDED = 4.0
"""Weight of an embedding beside the other features."""
ABOUT, NEW = 0.7, 0.4
"""Probability of being about the answer from which a message is, and below which it is not; between them the
classifier abstains."""
_WISHES: frozenset[Category] = frozenset({"correction", "complaint", "constraint", "rephrase"})
_BUCKETS = (1, 2, 3, 5, 8, 12, 20, 40, 80, 160)


def read_by_classifier(request: str, answer: str, text: str, *, embedded: bool) -> FollowUpReading:
    """The reading of `text`, which the user wrote after `answer` to `request`.

    Detectors that are sure of thanks or of a continuation decide alone. Else the probability of being about the answer
    decides, and is the confidence; a message in doubt is "unsure".

    Args:
        request: The user's message before the answer.
        answer: The answer.
        text: The follow-up.
        embedded: Read sentence embeddings, too (extra `followups`).

    Raises:
        ConfigError: `embedded` without the extra.
    """
    signs = signs_of(request, answer, text)
    if signs.category in {"thanks", "continuation"} and signs.confidence >= SURE:
        return _reading(signs.category, signs.confidence)
    values = features(signs, request, answer, text)
    p = probabilities(values | embedding_features(request, answer, text) if embedded else values)
    about = 1 - p["new"]
    if about < NEW:
        return _reading("continuation" if signs.category == "continuation" else "off_topic", p["new"])
    if about < ABOUT:
        return _reading("unsure", GUESS)
    kind = max(CLASSES[:-1], key=lambda name: p[name])
    if kind == "wish":
        return _reading(signs.category if signs.category in _WISHES else "constraint", about)
    return _reading("thanks" if kind == "praise" else "question", about)


def _reading(category: Category, confidence: float) -> FollowUpReading:
    return FollowUpReading(category, RELEVANCE[category], POLARITY[category], round(confidence, 4))


def features(signs: Signs, request: str, answer: str, text: str) -> dict[str, float]:
    """Computes the features that need no embedding.

    Args:
        signs: What the detectors found.
        request: The user's message before the answer.
        answer: The answer.
        text: The follow-up.

    Returns:
        Feature -> value.
    """
    low = text.strip().lower()
    words = tokens(low)
    found = {f"={name}": 1.0 for name, value in signs.flags.items() if value}
    found[f"=kind {signs.category}"] = 1.0
    found[f"=sure {signs.category}"] = signs.confidence
    found["=shared"] = signs.shared / max(1, signs.own)
    found["=own"] = min(signs.own, 12) / 6
    found[f"=size {sum(len(words) >= edge for edge in _BUCKETS)}"] = 1.0
    found[f"=answer {min(6, int(math.log2(len(answer) / 50 + 1)))}"] = 0.5
    found["=lines"] = min(3.0, math.log2(1 + text.count("\n")))
    found["=code"] = float("```" in text or "    " in text or "();" in text)
    found["=asked"] = float(answer.rstrip().endswith(("?", "？")))
    found["=question"] = float(low.endswith(("?", "？")))
    found["=as before"] = float(bool(words) and words[:1] == tokens(request.strip().lower())[:1])
    grams = {*words[:40], *(f"{a} {b}" for a, b in pairwise(words[:40]))}
    share = 2.0 / math.sqrt(max(4, len(grams)))
    found |= dict.fromkeys(grams, share)
    for mark, edge in (("^", words[:2]), ("$", words[-1:])):
        found |= {mark + word: 0.7 for word in edge}
    return found


def embedding_features(request: str, answer: str, text: str) -> dict[str, float]:
    """Computes the features of the sentence embeddings. ConfigError without the extra `followups`."""
    asked, said, wanted = embeddings.embed([_ends(one) for one in (request, answer, text)])
    found = {f"@{i}": EMBEDDED * float(value) for i, value in enumerate(wanted)}
    found |= {"@request": float(wanted @ asked), "@answer": float(wanted @ said), "@both": float(asked @ said)}
    return found


def probabilities(values: Mapping[str, float]) -> dict[str, float]:
    """Class -> calibrated probability, by the weights for features with or without embeddings."""
    table, temperature = weights("@answer" in values)
    scores = list(table.get("", (0.0,) * len(CLASSES)))
    for name, value in values.items():
        row = table.get(name)
        if row is not None:
            scores = [score + value * weight for score, weight in zip(scores, row, strict=True)]
    return dict(zip(CLASSES, softmax([score / temperature for score in scores]), strict=True))


def softmax(scores: Sequence[float]) -> list[float]:
    """Probabilities that are proportional to the exponentials."""
    most = max(scores)
    raised = [math.exp(score - most) for score in scores]
    return [one / sum(raised) for one in raised]


@lru_cache(maxsize=2)
def weights(embedded: bool) -> tuple[dict[str, tuple[float, ...]], float]:
    """Loads feature -> weight of each class ("" is the bias), and the temperature that calibrates."""
    name = "followup_weights_embedded.tsv" if embedded else "followup_weights.tsv"
    lines = files("afterword.feedback").joinpath(name).read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    table = {name: tuple(map(float, values)) for name, *values in rows if name != "temperature"}
    return table, next(float(values[0]) for name, *values in rows if name == "temperature")


def _ends(text: str) -> str:
    return text if len(text) <= 2 * READ else f"{text[:READ]} {text[-READ:]}"
