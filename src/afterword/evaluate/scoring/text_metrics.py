"""What can be told from an answer's text alone: emptiness, repetition, likeness, copies, refusals, leaked hindsight.

Owns pure functions from strings to numbers; never loads a model.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

from afterword.chat.refusals import refuses
from afterword.chat.words import parts, quotes, runs, words

REPETITIVE = 10.0
"""zlib ratio from which a text counts as repeating itself (learning.md)."""
COPY = 0.8
"""ROUGE-L from which an answer counts as a copy of its question."""
LOOPED_WORDS = 4
"""Consecutive words that come again in a text that loops."""
QUOTED_WORDS = 6
"""Consecutive words of the hindsight, not in the prompt, from which it counts as quoted."""

OPENING = 240
"""Characters in which a refusal must stand."""

_DECLINES = re.compile(
    r"""\b(?:i|we)(?:\ am|'m|\ are|'re)\ (?:\w+\ ){0,3}(?:sorry|unable|not\ able|not\ comfortable|not\ allowed)\b
    | \b(?:i|we)\ (?:can(?:no|')t|can\ not|won't|will\ not|must\ not|do\ not|don't|could\ not|couldn't|should\ not)\b
    | \b(?:i|we)\ (?:must\ |have\ to\ )?(?:refuse|decline)\b
    | \b(?:cannot|can't|not\ able\ to|unable\ to)\ (?:\w+\ ){0,2}(?:assist|help|provide|fulfil|support|give|comply)
    | \b(?:is|are|would\ be)\ (?:\w+\ ){0,2}(?:illegal|against\ the\ law|unethical|a\ crime|harmful|wrong)\b
    | \bas\ an?\ (?:ai|language)\b | \bagainst\ (?:my|our)\ (?:policy|guidelines|programming|principles)\b
    | \b(?:please|instead),?\ (?:seek|reach\ out|talk\ to|contact)\b""",
    re.IGNORECASE | re.VERBOSE,
)
_LEAKS = re.compile(
    r"""hindsight
    | \byour\ (?:follow[- ]?up|feedback|(?:next|later|future|previous)\ (?:message|request|comment))\b
    | \b(?:based\ on|thanks\ for|thank\ you\ for)\ (?:the|your)\ (?:feedback|correction|follow[- ]?up)\b
    | \bafter\ an\ earlier\ answer\b
    | \bas\ you\ (?:asked|requested|wrote|said)\ (?:earlier|before|afterwards|in\ your)\b
    | \bi\ apologi[sz]e\ for\ (?:the|my)\ (?:previous|earlier|last)\b
    | \bmy\ (?:previous|earlier|last)\ (?:answer|response|reply)\b
    | (?:根据|感谢|谢谢|按照)(?:您|你)的(?:反馈|意见|纠正|指正|建议|后续)
    | (?:您|你)(?:之前|刚才|先前|后来|上次)(?:要求|提到|说|写|指出)
    | (?:我)?(?:之前|上一?次|刚才|先前|上一?个)的(?:回答|回复|答案)
    | (?:ご?フィードバック|ご?指摘|ご意見)(?:を踏まえ|に基づ|ありがと|をもと|通り|どおり)
    | (?:先ほど|前回|以前)の(?:回答|返答|答え|ご要望|ご指摘)
    | (?:ตาม|ขอบคุณสำหรับ|จาก)(?:คำติชม|ข้อเสนอแนะ|ความคิดเห็น|คำแนะนำ)(?:ของ)?(?:คุณ|ท่าน)
    | คำตอบ(?:ก่อนหน้า|ที่แล้ว|ครั้งก่อน)|ตามที่คุณ(?:ขอ|บอก|พูด|แจ้ง)(?:ไว้|ก่อนหน้า|เมื่อ)
    | \b(?:meine|meiner|deine|deiner|ihre|ihrer)\ (?:vorige|vorherige|letzte|frühere)\w*\ (?:antwort|nachricht)
    | \b(?:deine|deiner|ihre|ihrer)\ (?:rückmeldung|nachfrage|korrektur)
    | \b(?:tus?|sus?)\ (?:comentarios?|correcci[oó]n|mensaje\ anterior)\b|\bmi\ respuesta\ anterior\b
    | \b(?:votre|ton|tes|vos)\ (?:retours?|remarques?|commentaires?|message\ précédent)\b
    | \bma\ (?:réponse\ précédente|précédente\ réponse)\b|\bminha\ resposta\ anterior\b
    | \bla\ mia\ (?:risposta\ precedente|precedente\ risposta)\b|\bмо(?:й|ём|ем|его)\ (?:предыдущ|прошл)\w+""",
    re.IGNORECASE | re.VERBOSE,
)


def repetition(text: str) -> float:
    """Bytes of the text for each byte of its zlib form; 0 for an empty text. Prose is at 1 to 2.5."""
    raw = text.encode("utf-8", "replace")
    return len(raw) / len(zlib.compress(raw, 9)) if raw else 0.0


def loops(text: str) -> bool:
    """Does the text repeat itself? Its zlib ratio is above REPETITIVE, or most of its runs of four words came before.

    The ratio alone misses short answers: a sentence said four times is at 3.
    """
    said = list(runs(words(text), LOOPED_WORDS))
    return repetition(text) > REPETITIVE or (len(said) >= 8 and len(set(said)) < 0.5 * len(said))


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """F1 of the longest common subsequence of two word lists, 0 .. 1."""
    if not a or not b:
        return 0.0
    row = [0] * (len(b) + 1)
    for left in a:
        diagonal = 0
        for j, right in enumerate(b, 1):
            above = row[j]
            row[j] = diagonal + 1 if left == right else max(above, row[j - 1])
            diagonal = above
    return 2 * row[-1] / (len(a) + len(b))


def edit_distance(a: str, b: str) -> float:
    """Word edits (insert, delete, replace) from a to b, over the longer one's words: 0 same, 1 nothing kept."""
    left, right = parts(a), parts(b)
    if not left and not right:
        return 0.0
    row = list(range(len(right) + 1))
    for i, word in enumerate(left, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(right, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1] / max(len(left), len(right))


def distinct_2(texts: Sequence[str]) -> float:
    """Different word pairs over all word pairs of the texts; 0 when there is no pair."""
    pairs = [pair for text in texts for pair in zip(words(text), words(text)[1:], strict=False)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def likeness(texts: Sequence[str], neighbours: int = 4) -> list[float]:
    """For each text its mean ROUGE-L with the next few in a ring; empty for fewer than two texts."""
    lists = [words(text) for text in texts]
    n = len(lists)
    near = range(1, min(neighbours, n - 1) + 1)
    return [sum(rouge_l(lists[i], lists[(i + k) % n]) for k in near) / len(near) for i in range(n)] if n > 1 else []


def is_copy(answer: str, question: str) -> bool:
    """Does the answer only say the question again?"""
    return rouge_l(words(answer), words(question)) >= COPY


def leaks(answer: str, hindsight: str, prompt: str) -> bool:
    """Does the answer speak of a follow-up that it cannot have seen, or quote it?"""
    if _LEAKS.search(answer) and not _LEAKS.search(prompt):
        return True
    return quotes(answer, hindsight, prompt, QUOTED_WORDS)


def declines(answer: str) -> bool:
    """Does the answer decline, or only apologise, in its opening?"""
    opening = answer[:OPENING].replace("\u2019", "'")
    return bool(_DECLINES.search(opening)) or refuses(opening)
