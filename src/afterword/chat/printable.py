"""Replaces control characters, so that text of users and models cannot control a terminal."""

from __future__ import annotations

_SHOWN = {
    **{code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"},
    **dict.fromkeys(range(0x7F, 0xA0), "\ufffd"),
}


def printable(text: str) -> str:
    """Replaces every control character except line ends and tabs by its picture (ESC is ␛)."""
    return text.translate(_SHOWN)
