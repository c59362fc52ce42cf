"""Reads turns and feedback, writes interactions and skips.

Interprets users' actions: the table of kinds, the detectors, the decisions, the importers. Never trains,
never talks to a model or over HTTP, never updates a row.

The names below are imported at their first use: the detectors load tables that most commands do not need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from afterword.feedback.collect.collect import Funnel
    from afterword.feedback.settings import CollectSettings

__all__ = ["CollectSettings", "Funnel"]


def __getattr__(name: str) -> Any:
    if name == "Funnel":
        from afterword.feedback.collect.collect import Funnel

        return Funnel
    if name == "CollectSettings":
        from afterword.feedback.settings import CollectSettings

        return CollectSettings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
