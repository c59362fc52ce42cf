"""Text of users and models as a terminal may show it: no control character reaches the screen.

An answer or a follow-up may hold escape sequences, which would colour, move or retitle the terminal of whoever looks.
"""

from __future__ import annotations

_SHOWN = {
    **{code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"},
    **dict.fromkeys(range(0x7F, 0xA0), "\ufffd"),
}


def printable(text: str) -> str:
    """The text with every control character but line ends and tabs as a picture of it (ESC is ␛)."""
    return text.translate(_SHOWN)
