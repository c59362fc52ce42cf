"""Computes the hindsight score of an answer: the implied reward of the user's words, bounded against gaming.

docs/gate.md explains the choice of the bounds.
"""

from __future__ import annotations

from collections.abc import Sequence

CLIP = 2.0
"""Nats: no single token speaks louder than this, for or against."""
ROOM = 2.0
"""Nats: a token counts at most ROOM + log p(y_t|x,o), so what is implausible even with the hindsight never pays."""
FLOOR = 16
"""Tokens that an answer should have; each one missing counts MISSING, so that saying little is not a good answer."""
MISSING = -1.0
"""Nats."""
LOOP, LOOPED = 8, -0.25
"""Ids, nats: a token that ends the same LOOP ids a second time counts LOOPED at most. Looping is likely under any
context, so that its advantages are near 0, which is more than an ordinary answer has that the user corrected."""


def score(plain: Sequence[float], hinted: Sequence[float], ids: Sequence[int]) -> float:
    """Mean over tokens of min(A_t, ROOM + log p(y_t|x,o)), where A_t = log p(y_t|x,o) - log p(y_t|x) is clipped to
    +-CLIP, a looped token counts LOOPED at most, and every token below FLOOR counts MISSING. Nats a token.

    The implied reward of arXiv 2603.12273 (Proposition 3.1) for each token, made hard to game.
    """
    total = 0.0
    for s, q, again in zip(plain, hinted, looped(ids), strict=True):
        value = min(max(-CLIP, min(CLIP, q - s)), q + ROOM)
        total += min(value, LOOPED) if again else value
    missing = max(0, FLOOR - len(ids))
    return (total + MISSING * missing) / (len(ids) + missing)


def looped(ids: Sequence[int]) -> list[bool]:
    """For each id: have it and the LOOP - 1 before it stood in this order before?"""
    seen: set[tuple[int, ...]] = set()
    found = []
    for end in range(1, len(ids) + 1):
        gram = tuple(ids[max(0, end - LOOP) : end])
        found.append(len(gram) == LOOP and gram in seen)
        seen.add(gram)
    return found
