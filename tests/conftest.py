"""The environment of whoever starts the tests decides nothing in them: settings, proxies, terminal, buffering."""

from __future__ import annotations

import os

KEPT = ("AFTERWORD_CACHE",)
"""Where converted models lie: set by `.ci/run`."""
_OTHERS = ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "PYTHONUNBUFFERED")


def is_ambient(name: str) -> bool:
    """Does this variable change what our commands do or print?"""
    if name in KEPT:
        return False
    return name.startswith("AFTERWORD_") or name in _OTHERS or name.lower().endswith("_proxy")


# At import, before any test module: children that are started with `os.environ` see none of them either.
for _name in filter(is_ambient, list(os.environ)):
    del os.environ[_name]
