"""What a program printed, cut to what a teacher needs: the first error and the cases that failed.

Owns the cutting of output. Pure functions over text; never decides what failed means.
"""

from __future__ import annotations

import re

FEW_LINES = 12
MAX_CASES = 8
"""Failing cases that are named."""
MAX_SEEN = 200_000
"""Characters that are looked at, half from each end."""

_FIRST = re.compile(
    r"(?i)(error\b|exception\b|\btraceback|\bfailed|\bassert\w*|\bpanic|\bfatal|\bundefined|\bsegfault)|^E  "
)
_CASES = re.compile(
    r"^(?:FAILED|ERROR) (?P<pytest>\S+::\S+)(?: - (?P<why>.*))?$|^--- FAIL: (?P<go>\S+)"
    r"|^\s*(?:✕|✗|×|not ok(?: \d+)? ?-?) (?P<tap>.+)$"
    r"|^(?:FAIL|ERROR): (?P<unittest>\w+ \([\w.]+\))|^test (?P<rust>\S+) \.\.\. FAILED$",
    re.MULTILINE,
)
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def structured_output(output: str, limit: int) -> str:
    """At most about `limit` characters of what was printed. Short output stays as it is; of long output the failing
    cases are named, then its beginning, the first lines that name an error with what follows them, and its end."""
    text = _ANSI.sub("", output.replace("\x00", "")).strip()
    if len(text) <= limit:
        return text
    if len(text) > MAX_SEEN:
        text = text[: MAX_SEEN // 2] + "\n" + text[-MAX_SEEN // 2 :]
    cases = failing_cases(text)
    named = "Failed: " + "; ".join(cases) + "\n" if cases else ""
    return (named[: limit // 2] + _shortened(text, limit - min(len(named), limit // 2))).strip()


def failing_cases(text: str) -> list[str]:
    """Names of the cases that failed, with the reason where one line gives it (pytest, unittest, Go, Rust, TAP)."""
    found: list[str] = []
    for match in _CASES.finditer(text):
        name = next(v for k, v in match.groupdict().items() if k != "why" and v)
        found.append(f"{name}: {match['why']}"[:200] if match["why"] else name.strip()[:200])
    unique = list(dict.fromkeys(found))
    more = len(unique) - MAX_CASES
    return unique if more <= 0 else [*unique[:MAX_CASES], f"and {more} more"]


def _shortened(text: str, limit: int) -> str:
    """Lines are kept whole where they fit; cuts are marked with "[...]"."""
    lines = text.splitlines()
    first = next((i for i, line in enumerate(lines) if _FIRST.search(line)), None)
    middle = [] if first is None else lines[max(first - 2, 0) : first + FEW_LINES]
    parts = [lines[:3], middle, text[-limit:].splitlines()[-FEW_LINES:]]
    share = max(limit // 3, 1)
    return "\n[...]\n".join(_clip("\n".join(part), share, tail=i == 2) for i, part in enumerate(parts) if part)


def _clip(text: str, limit: int, *, tail: bool) -> str:
    if len(text) <= limit:
        return text
    return text[-limit:] if tail else text[:limit]
