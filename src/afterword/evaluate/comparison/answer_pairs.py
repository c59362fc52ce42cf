"""The answers of both arms that are looked at for what should never be in one: held-out ones, and to requests of ours.

Owns how many there are. A rise of five points cannot be ruled out by a dozen answers, however good they are (see
`statistics.paired_share`); so where fewer than `evaluate.min_answers` interactions are held out, built-in requests
(`data/requests.jsonl`) fill up. Never scores an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from afterword.chat.canonical import text_of
from afterword.evaluate.comparison.answers import Given, Prompt
from afterword.evaluate.comparison.heldout import HeldOut
from afterword.evaluate.data import built_in
from afterword.kinds import with_hindsight

_WRITTEN_BY_USER = (*with_hindsight("answer"), *with_hindsight("attempt"))
"""Kinds whose hindsight is a better answer: to say the same is no leak."""
Answers = Mapping[str, Sequence[Given]]


@dataclass(frozen=True, slots=True)
class Case:
    """One request, and what both arms answered."""

    question: str
    prompt: str
    """All that was read."""
    hindsight: str
    """What must not be quoted."""
    cluster: str
    served: Given
    candidate: Given


def requests(held_out: int, least: int) -> list[Prompt]:
    """Requests of ours that bring `held_out` interactions to `least` answers; fewer where there are no more."""
    return [Prompt.of(row["prompt"]) for row in built_in("requests")][: max(0, least - held_out)]


def held_out_cases(items: Sequence[HeldOut], clusters: Sequence[str], answers: Answers) -> list[Case]:
    """The held-out interactions."""
    return [
        Case(
            item.question,
            "\n".join(text_of(m.get("content")) for m in item.turn.messages),
            "" if item.interaction.kind in _WRITTEN_BY_USER else item.interaction.hindsight,
            cluster,
            answers["served"][i],
            answers["candidate"][i],
        )
        for i, (item, cluster) in enumerate(zip(items, clusters, strict=True))
    ]


def request_cases(asked: Sequence[Prompt], answers: Answers) -> list[Case]:
    """Our own requests, each a cluster of its own."""
    texts = [text_of(prompt.messages[-1].get("content")) for prompt in asked]
    return [
        Case(text, text, "", f"request {i}", answers["served"][i], answers["candidate"][i])
        for i, text in enumerate(texts)
    ]
