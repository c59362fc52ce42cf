"""What each recipe has to be told before it can be trained: one place for all tests."""

from __future__ import annotations

from typing import Any

INPUTS: dict[str, dict[str, Any]] = {"opcd": {"experience": "Be brief."}}
"""By recipe; a recipe that is not here needs nothing."""
