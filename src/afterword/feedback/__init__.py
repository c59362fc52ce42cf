"""Reads turns and feedback, writes interactions and skips.

Interprets users' actions: the table of kinds, the detectors, the decisions, the importers. Never trains,
never talks to a model or over HTTP, never updates a row.
"""

from afterword.feedback.collect.collect import Funnel
from afterword.feedback.settings import CollectSettings

__all__ = ["CollectSettings", "Funnel"]
