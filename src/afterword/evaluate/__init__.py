"""A candidate against what is served, in pairs, with intervals: the Report, and its page.

Owns measuring; never trains, never decides (that is `release`) and never writes to the store.
"""

from afterword.evaluate.comparison import Check, Comparison, Findings, Progress, Suite
from afterword.evaluate.heldout import HeldOut, held_out
from afterword.evaluate.run import evaluate_candidate
from afterword.evaluate.suites import SUITES

__all__ = [
    "SUITES",
    "Check",
    "Comparison",
    "Findings",
    "HeldOut",
    "Progress",
    "Suite",
    "evaluate_candidate",
    "held_out",
]
