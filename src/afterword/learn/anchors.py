"""What holds the model back: terms that pull towards the base on the same tokens.

An anchor is an ordinary term whose teacher reads what the student reads.
"""

from __future__ import annotations

from afterword.learn.contexts import CONTEXTS
from afterword.learn.divergences import FORWARD_KL, NegativeLogLikelihood
from afterword.learn.teachers import BASE
from afterword.learn.terms import Term


def kl_to_base(scale: float) -> Term:
    """KL(base||student) on the served ids, the base without hindsight."""
    return Term(name="anchor_kl", estimator=FORWARD_KL, teacher=BASE, context=CONTEXTS["none"], scale=scale)


def imitation(scale: float) -> Term:
    """Negative log-likelihood of the served ids: keep saying what was said."""
    return Term(
        name="anchor_nll",
        estimator=NegativeLogLikelihood(),
        teacher=None,
        context=CONTEXTS["none"],
        scale=scale,
    )
