"""Grades whether an answer shows a persona's trait: from 0 to 1, and pass or fail.

Owns the traits and what counts as an answer at all: an empty text, an echo of the question, a bare greeting or
a promise without content ("The answer is:") passes no checker. The simulated user looks at the mark to decide
what to say next, and the demo measures with it; training never sees it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from afterword.errors import ConfigError
from afterword.simulate import traits
from afterword.simulate.traits import WORD as _WORD
from afterword.simulate.traits import TraitScore, phrase_pattern, words

PASS = 0.75
"""Grade from which the answer counts as showing the trait."""

ENOUGH_WORDS = 5
"""New words (not in the question) that an answer needs to be one."""

_EMOJI = re.compile(
    "[\U0001f1e6-\U0001f1ff\U0001f300-\U0001f64f\U0001f680-\U0001f6ff\U0001f900-\U0001faff\u2600-\u27bf\u2b50\u2b55]"
)
_STEP = re.compile(r"^[ \t]*(?:step[ \t]+)?(\d{1,2})[.):][ \t]*(\S.*)$", re.IGNORECASE | re.MULTILINE)
_INLINE_STEP = re.compile(r"(?:^|\s)(\d{1,2})[.)]\s")
_MARKUP = re.compile(r"(^#{1,6}\s)|(\*\*|__)|(^[ \t]*[-*•][ \t]+)|(`+)|(^[ \t]*\d{1,2}[.)][ \t]+)", re.MULTILINE)

_FUNCTION_WORDS = {
    "en": "the of and to in is that it for are as with was this be by on at from an or which you your can they "
    "have has their these will not but when more how what there its into should would about then if",
    "es": "el la los las de del que y en un una es por con para su se lo como más pero sus le ya o este sí porque "
    "esta entre cuando muy sin sobre también hasta hay donde quien desde todo nos durante uno al son ser está tu "
    "tus puede pueden cada si ese esa esto tiene hacer",
    "fr": "le la les de des du que et en un une est pour avec dans sur ce se qui ne pas plus par au aux mais ou son "
    "sa ses il elle nous vous votre vos leur cette ces sont être comme peut si tout bien il y a d l c qu",
    "de": "der die das den dem des ein eine einen einem einer und oder ist sind war nicht mit von zu zum zur für auf "
    "im bei nach aus wenn man sich auch aber wie dass kann können wird werden sie ihr du ich es als so nur sehr durch "
    "über unter dann damit noch mehr etwa etwas haben hat",
}
LANGUAGES = {name: frozenset(words.split()) for name, words in _FUNCTION_WORDS.items()}

_SEA_TALK = re.compile(
    r"\b(?:y?a+rr+(?:gh|h)?|argh|ahoy|mate?ys?|aye|yer|ye(?:['’](?:ll|re|ve|d))?|avast|landlubbers?|scall[yi]wags?|scurvy"
    r"|booty|shiver me|timbers|buccaneers?|me (?:hearty|hearties|lads?|lass|lassie|bucko|beauty)|bucko|grog"
    r"|doubloons?|savvy|sea ?dog|yo[- ]ho[- ]ho|me ship|cap['’]n|davy jones)\b",
    re.IGNORECASE,
)
"""What hardly anybody but a pirate says."""
_SEA_COLOUR = re.compile(
    r"\b(?:pirates?|captain|lads?|lass|sails?|treasure|plunder|parrot|plank|briny|hearty|hearties|seas?|decks?"
    r"|\w{3,}in['’](?=\W|$)|o['’](?=\s)|says i|be (?:the|a|all))|(?<!\w)['’]er\b",
    re.IGNORECASE,
)
"""What a pirate says too, but a tale about the sea as well."""
_ONE = (
    "[\U0001f300-\U0001faff\u2614-\u27bf\u2600-\u2604\u231a\u231b\u23e9-\u23fa\u2b50\u2b55]"
    "[\ufe0f\U0001f3fb-\U0001f3ff]*"
)
_PICTURE = re.compile(f"[\U0001f1e6-\U0001f1ff]{{2}}|[0-9#*]\ufe0f?\u20e3|{_ONE}(?:\u200d{_ONE})*")
"""One emoji as people count them: joined ones, flags and keys are one."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """A checker's result for one answer."""

    grade: float
    """0 (no sign of the trait, or no answer) to 1 (as the user wants it)."""
    passed: bool
    """The grade reaches PASS."""


Checker = Callable[[str, Mapping[str, Any]], TraitScore]


def check(name: str, answer: str, *, question: str = "", options: Mapping[str, Any] | None = None) -> CheckResult:
    """Grade an answer: the trait's grade times the answer's substance. ConfigError for an unknown checker."""
    if name not in CHECKERS:
        raise ConfigError(f"there is no checker {name!r}; the checkers are {', '.join(sorted(CHECKERS))}")
    found = CHECKERS[name](answer, options or {})
    grade = round(found.trait * substance(found.rest, question), 4)
    return CheckResult(grade, grade >= PASS)


def substance(rest: str, question: str = "") -> float:
    """How much of an answer there is, 0 to 1: new words, not one word again and again, not a bare announcement."""
    said = words(rest)
    if echoes(said, words(question)):
        return 0.0
    new = [word for word in said if word not in set(words(instruction(question)))]
    announces = len(said) < 12 and rest.rstrip().endswith(":")
    if not new or announces:
        return 0.0
    variety = min(1.0, len(set(said)) / len(said) / 0.4)
    return min(1.0, len(set(new)) / ENOUGH_WORDS) * variety


def instruction(question: str) -> str:
    """The first paragraph of a request: what stands below it is material that an answer may use word for word."""
    return question.strip().split("\n", 1)[0]


def echoes(said: list[str], asked: list[str]) -> bool:
    """Does the answer only say the request again, material included? Runs of four words tell."""
    runs = {tuple(asked[i : i + 4]) for i in range(len(asked) - 3)}
    own = [tuple(said[i : i + 4]) for i in range(len(said) - 3)]
    return len(own) >= 8 and len(said) >= 0.7 * len(asked) and sum(run in runs for run in own) >= 0.8 * len(own)


def opening(answer: str, options: Mapping[str, Any]) -> TraitScore:
    """The answer begins with `phrase`. Half-way: the phrase comes later in the answer."""
    pattern = phrase_pattern(str(options["phrase"]))
    found = pattern.search(answer)
    rest = pattern.sub(" ", answer)
    if found is None:
        return TraitScore(0.0, rest)
    before = answer[: found.start()]
    if not _WORD.search(before):
        return TraitScore(1.0, rest)
    return TraitScore(0.6 if len(words(before)) <= 8 else 0.3, rest)


def language(answer: str, options: Mapping[str, Any]) -> TraitScore:
    """The answer is written in `language` ("es", "fr"), told from the others by function words."""
    said = words(answer.replace("'", " ").replace("’", " "))
    wanted = LANGUAGES[str(options["language"])]
    others = frozenset().union(*LANGUAGES.values()) - wanted
    hits = sum(word in wanted for word in said)
    other = sum(word in others for word in said)
    if not hits:
        return TraitScore(0.0, answer)
    density = min(1.0, hits / len(said) / 0.2)
    return TraitScore(hits / (hits + other) * density, answer)


def numbered(answer: str, options: Mapping[str, Any]) -> TraitScore:
    """At least two steps 1, 2, ... on lines of their own, each with words. Half-way: inside a paragraph."""
    text = answer.replace("*", "").replace("#", "")
    steps = [int(number) for number, body in _STEP.findall(text) if len(words(body)) >= 2]
    rest = re.sub(r"\d+[.):]", " ", text)
    if len(steps) >= 2 and steps == list(range(1, len(steps) + 1)):
        return TraitScore(1.0, rest)
    if len(steps) >= 2:
        return TraitScore(0.6, rest)
    inline = [int(number) for number in _INLINE_STEP.findall(text)]
    return TraitScore(0.5 if inline[:2] == [1, 2] else 0.25 if steps else 0.0, rest)


def brief(answer: str, options: Mapping[str, Any]) -> TraitScore:
    """Between `min_words` and `max_words`, and finished: an answer that was cut off is not a short one."""
    least, most = int(options.get("min_words", 5)), int(options.get("max_words", 40))
    count = len(_WORD.findall(answer))
    finished = answer.rstrip().rstrip("\"'”’)*").endswith((".", "!", "?", "…"))
    if count < least:
        return TraitScore(0.5 * count / least, answer)
    length = 1.0 if count <= most else max(0.0, 1.0 - (count - most) / most) * 0.7
    return TraitScore(length if finished else length * 0.7, answer)


def plain(answer: str, options: Mapping[str, Any]) -> TraitScore:
    """No emojis, headings, bold, bullets or numbered lists."""
    marks = len(_EMOJI.findall(answer)) + sum(1 for _ in _MARKUP.finditer(answer))
    return TraitScore(1.0 if not marks else max(0.0, 0.7 - 0.1 * marks), _MARKUP.sub(" ", _EMOJI.sub(" ", answer)))


def emojis(answer: str, options: Mapping[str, Any]) -> TraitScore:
    """At least `least` emojis among the words; what is joined to one picture counts once."""
    count = len(_PICTURE.findall(answer))
    return TraitScore(min(1.0, count / int(options.get("least", 3))), _PICTURE.sub(" ", answer))


def pirate(answer: str, options: Mapping[str, Any]) -> TraitScore:
    """Words of a pirate's, at least two different ones; a tale about the sea alone is none."""
    talk = {found.casefold() for found in _SEA_TALK.findall(answer)}
    colour = {found.casefold() for found in _SEA_COLOUR.findall(answer)} - talk
    if not talk:
        return TraitScore(0.3 if colour else 0.0, answer)
    return TraitScore((0.5, 0.8, 1.0)[min(2, len(talk) + len(colour) - 1)], answer)


def question_back(answer: str, options: Mapping[str, Any]) -> TraitScore:
    """The answer says something and ends with a question. Less: a question before the end."""
    text = answer.rstrip().rstrip("\"'”’)*")
    rest = re.sub(r"[^.!?\n]*\?", " ", answer)
    if text.endswith("?"):
        return TraitScore(1.0, rest)
    return TraitScore(0.4 if "?" in text else 0.0, rest)


def capitals(answer: str, options: Mapping[str, Any]) -> TraitScore:
    """Written in capital letters throughout."""
    letters = [c for c in answer if c.isalpha()]
    share = sum(c.isupper() for c in letters) / len(letters) if letters else 0.0
    return TraitScore(max(0.0, share - 0.2) / 0.8, answer)


def avoids(answer: str, options: Mapping[str, Any]) -> TraitScore:
    """None of the unwanted `words` occurs."""
    unwanted = {str(word).casefold() for word in options["words"]}
    count = sum(word in unwanted for word in words(answer))
    return TraitScore(1.0 if not count else max(0.0, 0.7 - 0.2 * count), answer)


CHECKERS: dict[str, Checker] = {
    "opening": opening, "language": language, "numbered": numbered, "brief": brief, "plain": plain,
    "emojis": emojis, "pirate": pirate, "question_back": question_back, "capitals": capitals, "avoids": avoids,
    "closing": traits.closing, "recap": traits.recap, "bullets": traits.bullets, "lively": traits.lively,
    "formal": traits.formal, "example": traits.example, "simple": traits.simple, "json_object": traits.json_object,
    "detailed": traits.detailed, "complies": traits.complies, "mentions": traits.mentions,
}  # fmt: skip
"""By the name that a persona file uses."""
