"""Reads which of two answers a judge chose, from one word, a thought with a word behind it, or a sentence.

Sentences are read in English, German, Spanish, French, Italian, Portuguese, Russian, Chinese, Japanese, Korean and
Thai. Pure functions over text.
"""

from __future__ import annotations

import re
from typing import Literal

from afterword.chat.trail import in_thought, without_reasoning

Choice = Literal["A", "B", "TIE"]
_LEAD = r"(?:answer|winner|verdict|choice|preference|preferred|prefer|better|best|decision|response|option|boxed|is)"
_WORD = r"(?:A|B|TIE)"
_ALONE = re.compile(rf"\A\W*(?:{_LEAD}\W{{1,6}})*({_WORD})\W*\Z", re.IGNORECASE)
_FIRST = re.compile(
    rf"\A\W*(?:{_LEAD}\W{{1,6}})*({_WORD})\b(?=\s*(?:[.,:;!)*\]\n]|[-\u2013\u2014]\s|because\b|since\b))",
    re.IGNORECASE,
)
_BETTER = (
    r"(?:(?:the|clearly|much|slightly|a bit|overall)\W+)*(?:better|best|preferable|preferred|stronger|superior|winner)"
)
_CHOSEN = r"(?i:rather (?:have|read|get)|choose|chose|pick|select|favou?r|go with)"
_NOT_THE_OTHER = r"(?<!than )(?<!over )(?<!instead of )(?<!to )(?<!against )(?<!from )"
"""Before the answer that another one is preferred to."""
_SAID = re.compile(
    rf"{_NOT_THE_OTHER}(?<!not )(?<!n't )(?<!never )\b(?i:{_LEAD}|{_CHOSEN})\W{{1,6}}"
    rf"(?:(?:is|answer|response|option)\W{{1,4}})?(A|B|TIE)"
    rf"(?=\W*$|\W*[.,;:!]|\W+because\b)"
    rf"|(?<!not )(?<!n't )(?<!never )\b(?i:{_CHOSEN}|prefer)\W+(?:(?i:the|answer|response|option)\W+){{0,2}}(A|B)"
    rf"\W+(?i:over|to|instead of|rather than|more than|against)\b"
    rf"|\b(A|B)\W{{1,3}}(?:(?:wins|beats|outperforms|surpasses)\b|(?:is|was)\W+(?i:{_BETTER})\b)"
    rf"|(?<!not )\b(?i:an? (?P<tie>tie))\b",
    re.MULTILINE,
)
_LETTER = r"(?<![A-Za-z0-9])(A|B)(?![A-Za-z0-9])"
_ORDINALS = {"first": "A", "former": "A", "1": "A", "one": "A", "second": "B", "latter": "B", "2": "B", "two": "B"}
_NTH = (
    r"(?:the (first|second|former|latter)|(?:answer|response|option) (1|2|one|two))\b"
    r"(?:\W+(?:one|answer|response|option)\b)?"
)
_PLACE = re.compile(
    rf"(?<!than )(?<!not )\b{_NTH}(?:\W+(?:is|was|reads)\W+{_BETTER}\b|\W+wins\b)"
    rf"|(?<!not )(?<!n't )(?<!never )\b(?:prefer|choose|pick|select|go with)\W+{_NTH}",
    re.IGNORECASE,
)
"""The better one by its place."""
_EVEN = re.compile(
    r"""\b(?:both|the\ two)\b[^.!?]{0,30}\b(?:equal(?:ly)?|same|alike|comparable|identical)\b
    | \bequally\ (?:good|bad|helpful)\b | \bneither\b[^.!?]{0,20}\bbetter\b
    | \bno\ (?:clear\ )?(?:difference|winner|preference)\b
    | \b(?:unentschieden|gleich\ gut|gleichwertig|beide\ gleich|empate|igual\ de\ (?:buenas|malas)|match\ nul)\b
    | \b(?:à\ égalité|aussi\ bonnes\ l'une\ que\ l'autre|ничья|одинаково\ хорош\w*)
    | 平局|平手|不相上下|一样好|同样好|引き分け|同じくらい|同等|甲乙つけがたい
    | 무승부|비슷합니다|똑같이|동등|เสมอกัน|ดีพอ\ ?ๆ\ ?กัน|เท่ากัน""",
    re.IGNORECASE | re.VERBOSE,
)
_NOUN = r"(?i:antwort|respuesta|réponse|risposta|resposta|ответ)"
_IS = r"(?i:ist|es|est|è|é|явно)"
_DEGREE = r"(?i:klar|deutlich|etwas|claramente|nettement|molto|muito|намного)"
_MORE = r"(?i:besser|vorzuziehen|mejor|preferible|meilleure|préférable|migliore|preferibile|melhor|preferível|лучше)"
_ARTICLE = r"(?i:die|la|a)"
_TAKE = (
    r"(?i:bevorzuge|wähle|nehme|prefiero|elijo|escojo|préfère|choisis|preferisco|scelgo|prefiro|escolho|предпочитаю"
    r"|выбираю)"
)
_LANGUAGES = re.compile(
    rf"""{_LETTER}\W{{1,3}}(?:{_IS}\ )?(?:{_DEGREE}\ )?(?:{_ARTICLE}\ )?(?:{_MORE}|(?i:bessere))
    | {_TAKE}\W+(?:{_ARTICLE}\ )?(?:{_NOUN}\W+)?{_LETTER}
    | (?:选择?|選択?|倾向于?|偏好|更喜欢|答案是|结论是?[:：]?|胜者是?[:：]?)(?:回答|答案)?\s?{_LETTER}
    | {_LETTER}\s?(?:明显|稍微|略)?(?:更好|较好|更优|胜出|更佳|更合适)
    | {_LETTER}\s?(?:の(?:方|ほう)が(?:良|よ|い|優|好|適)|が(?:優れ|良|より良|勝))
    | (?:選びます|選ぶのは)[:：]?\s?{_LETTER} | {_LETTER}\s?を(?:選|好)
    | {_LETTER}\s?(?:가|이|쪽이)\s?(?:더\ |조금\ 더\ |훨씬\ )?(?:좋|낫|나은|우수|적절)
    | {_LETTER}\s?(?:를|을)\s?(?:선택|선호|고르)
    | (?:เลือก(?:คำตอบ|ข้อ)?)\s?{_LETTER} | {_LETTER}\s?(?:ดีกว่า|ดีที่สุด|เหมาะสมกว่า)""",
    re.VERBOSE,
)
"""A choice in a sentence of another language; the letter may touch the words around it."""
_DENIED = re.compile(r"(?:nicht|no|ne|non|não|не|不|没有?|อย่า|ไม่)\W{0,2}$", re.IGNORECASE)


def read_choice(text: str) -> Choice | None:
    """The judge's word, or None when it said something else.

    The word may stand behind a thought, in emphasis, at the start or the end of a sentence or alone in the last line. A
    text that names both answers as the better one has decided nothing; an article ("A better answer ...") is no choice.
    """
    text = without_reasoning(text).strip()
    if in_thought(text):  # it did not end
        return None
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    found = _ALONE.match(text) or _FIRST.match(text) or _ALONE.match(lines[-1])
    if found is not None:
        return _as_choice(found.group(1))
    said = {next(filter(None, names)).upper() for names in _SAID.findall(text)} or _said_otherwise(text)
    return _as_choice(said.pop()) if len(said) == 1 else None


def _said_otherwise(text: str) -> set[str]:
    """The choices in sentences that name a place, or of other languages than English."""
    said = {_ORDINALS[next(filter(None, names)).lower()] for names in _PLACE.findall(text)}
    for found in _LANGUAGES.finditer(text):
        if not _DENIED.search(text[: found.start()]):
            said.add(next(filter(None, found.groups())))
    return said or ({"TIE"} if _EVEN.search(text) else set())


def _as_choice(word: str) -> Choice:
    word = word.upper()
    return "A" if word == "A" else "B" if word == "B" else "TIE"
