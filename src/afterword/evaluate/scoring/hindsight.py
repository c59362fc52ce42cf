"""Scores an answer by the user's hindsight: log p(y|x) and log p(y|x,o) under the frozen base.

Owns the score and its cache; the log-probabilities are `learn`'s. docs/gate.md tells how the score was chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from afterword.chat.canonical import text_of
from afterword.chat.render import encode_content, end_of_turn_ids, template_arguments
from afterword.chat.turn_prompt import turn_prompt
from afterword.errors import UsageError
from afterword.evaluate.comparison.answers import Arm, Given
from afterword.evaluate.comparison.comparison import Comparison
from afterword.evaluate.comparison.heldout import CONTEXT, LONGEST_HINDSIGHT, HeldOut
from afterword.learn.hindsight_score import score
from afterword.learn.parts.contexts import turn_hindsight

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Scored:
    """One answer under its hindsight, in nats."""

    score: float
    """See `learn.hindsight_score.score`."""
    mean: float
    """Plain mean of log p(y|x,o) - log p(y|x) over the answer's tokens."""
    tokens: int


def score_answers(
    comparison: Comparison, answers: Sequence[Sequence[Given]], items: Sequence[HeldOut]
) -> list[list[Scored]]:
    """For each arm's answers, each under its item's hindsight, all in one batch. UsageError when a prompt with
    hindsight does not fit the model."""
    cache = comparison.cache("hindsight")
    pairs = [[_pairs(comparison, item, given) for item, given in zip(items, each, strict=True)] for each in answers]
    keys = [[cache.key(comparison.base_hash, pair) for pair in each] for each in pairs]
    missing = {
        key: pair for each, known in zip(pairs, keys, strict=True) for key, pair in zip(known, each, strict=True)
        if cache.get(key) is None
    }  # fmt: skip
    if missing:
        comparison.progress("hindsight", 0, len(missing))
        flat = comparison.models.log_probs(None, [side for pair in missing.values() for side in pair])
        cache.put({key: [flat[2 * i], flat[2 * i + 1]] for i, key in enumerate(missing)})
    return [
        [_scored(cache.get(key), pair[0][1]) for key, pair in zip(known, each, strict=True)]
        for each, known in zip(pairs, keys, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class HindsightKL:
    """Distance of one arm to the base that has read one user's correction, and the arm's entropy (nats a token)."""

    kl: float
    entropy: float


def hindsight_kl(comparison: Comparison, arm: Arm, items: Sequence[HeldOut]) -> list[HindsightKL]:
    """How much correction an arm still needs, for each item.

    The mean over the tokens of the answer that the user reacted to of KL(base(. | x, o, y_<t) || arm(. | x, y_<t)):
    the distance to the model that has seen the follow-up, which training lessens (forward form of arXiv 2603.12273,
    equation 2), on interactions that training has not seen. All arms are measured on the same tokens, so neither
    length nor luck of an answer is in the difference.

    Args:
        comparison: Model, caches and both arms.
        arm: The arm that is measured; the comparison's other arms are computed beside it and cached.
        items: Held-out interactions with a follow-up.

    Returns:
        KL and entropy in nats a token, in the order of `items`.
    """
    cache = comparison.cache("needs")
    pairs = [_pairs(comparison, item, _first_answer(item)) for item in items]
    arms = {one.content: one for one in (*comparison.arms, arm)}
    keys = {content: [cache.key(comparison.base_hash, content, pair) for pair in pairs] for content in arms}
    missing = {i: pair for i, pair in enumerate(pairs) if cache.get(keys[arm.content][i]) is None}
    if missing:  # for the other arm, too: what the base reads is then computed once
        wanted = [one for one in arms if any(cache.get(keys[one][i]) is None for i in missing)]
        comparison.progress("hindsight KL", 0, len(missing))
        found = comparison.models.hindsight_kl(
            [comparison.adapter(arms[one]) for one in wanted], list(missing.values())
        )
        for one, values in zip(wanted, found, strict=True):
            cache.put({keys[one][i]: value for i, value in zip(missing, values, strict=True)})
    kept = map(cache.get, keys[arm.content])
    return [HindsightKL(sum(kl) / len(kl), sum(entropy) / len(entropy)) for kl, entropy in kept]


def with_follow_up(items: Sequence[HeldOut]) -> list[HeldOut]:
    """The items whose hindsight KL is measured. Edits are left out while there is anything else: a base that
    reads the user's whole text copies it, which needs ten times the correction of a follow-up and drowns it."""
    worded = [item for item in items if item.interaction.hindsight.strip()]
    return [item for item in worded if not item.final_text] or worded


def _first_answer(item: HeldOut) -> Given:
    turn = item.turn
    return Given(text_of(turn.answer.get("content")), turn.completion_ids, turn.finish_reason)


def _scored(kept: list[list[float]], ids: Ids) -> Scored:
    plain, hinted = kept
    mean = sum(q - s for s, q in zip(plain, hinted, strict=True)) / len(plain)
    return Scored(score(plain, hinted, ids), mean, len(plain))


def _pairs(comparison: Comparison, item: HeldOut, given: Given) -> tuple[tuple[Ids, Ids], tuple[Ids, Ids]]:
    """(prompt, answer) without and with the hindsight; the answer's ids are the same in both."""
    tokenizer, turn = comparison.tokenizer, item.turn
    ends = end_of_turn_ids(tokenizer, template_arguments(turn.sampling))
    ids = given.ids if given.ids is not None else encode_content(tokenizer, given.text, "assistant")
    if not ids or (given.ids is None and given.finish_reason != "length"):
        ids = (*ids, ends[0])
    room = comparison.longest - len(ids)
    prompt = turn_prompt(tokenizer, turn).ids
    seen = turn_hindsight(tokenizer, CONTEXT, turn, item.interaction.hindsight, room=room, longest=LONGEST_HINDSIGHT)
    if seen is None or len(prompt) > room:
        raise UsageError(f"held-out turn {turn.id} and its hindsight are longer than the {room} tokens the model reads")
    return (prompt, ids), (seen.prompt.ids, ids)
