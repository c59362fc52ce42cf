"""Measures an answer's text: repetition, similarity, copies, leaked hindsight. Pure functions without a model.

The monitors of training and the suites of evaluation share these functions and their thresholds.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Hashable, Sequence

from rapidfuzz.distance import LCSseq, Levenshtein

from afterword.chat.words import parts, quotes, runs, words

REPETITIVE = 10.0
"""zlib ratio from which a text counts as repeating itself (learning.md)."""
COPY = 0.8
"""ROUGE-L from which an answer counts as a copy of its question."""
LOOPED_WORDS = 4
"""Consecutive words that come again in a text that loops."""
QUOTED_WORDS = 6
"""Consecutive words of the hindsight, not in the prompt, from which it counts as quoted."""

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
    | \bwie\ (?:vorhin|zuvor|eben)\ (?:gewünscht|gesagt|geschrieben|erwähnt|verlangt)
    | (?:피드백|지적|말씀하신\ 의견)(?:을|에|해)?\ ?(?:반영|따라|주신|주셔서|감사)
    | (?:이전|앞선|방금|아까|지난)(?:의|에\ 드린)?\ ?(?:답변|대답)
    | \b(?:sua|tua)\ correção\b|\b(?:seus?|teus?)\ comentários?\b
    | \b(?:ваш|тво)\w*\ (?:замечани|отзыв|исправлени|комментари)\w*
    | \b(?:tus?|sus?)\ (?:comentarios?|correcci[oó]n|mensaje\ anterior)\b|\bmi\ respuesta\ anterior\b
    | \b(?:votre|ton|tes|vos)\ (?:retours?|remarques?|commentaires?|message\ précédent)\b
    | \bma\ (?:réponse\ précédente|précédente\ réponse)\b|\bminha\ resposta\ anterior\b
    | \bla\ mia\ (?:risposta\ precedente|precedente\ risposta)\b|\bмо(?:й|ём|ем|его)\ (?:предыдущ|прошл)\w+""",
    re.IGNORECASE | re.VERBOSE,
)


def zlib_ratio(text: str) -> float:
    """Bytes of the text divided by bytes of its zlib form; 0 for an empty text. Prose: 1 to 2.5."""
    raw = text.encode("utf-8", "replace")
    return len(raw) / len(zlib.compress(raw, 9)) if raw else 0.0


def loops(text: str) -> bool:
    """True when the text repeats itself: zlib ratio above REPETITIVE, or most of its 4-word runs occurred before.

    The ratio alone misses short answers: a sentence repeated four times has 3.
    """
    said = list(runs(words(text), LOOPED_WORDS))
    return zlib_ratio(text) > REPETITIVE or (len(said) >= 8 and len(set(said)) < 0.5 * len(said))


def rouge_l(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """ROUGE-L of two sequences of words or token ids: F1 of their longest common subsequence (Lin 2004), 0 .. 1."""
    return 2 * LCSseq.similarity(a, b) / (len(a) + len(b)) if a and b else 0.0


def edit_distance(a: str, b: str) -> float:
    """Word edits (insert, delete, replace) from a to b over the longer one's words (Levenshtein 1966).

    Returns:
        0.0 for the same words, 1.0 when none is kept.
    """
    return Levenshtein.normalized_distance(parts(a), parts(b))


def distinct_2(texts: Sequence[str]) -> float:
    """Distinct word pairs divided by all word pairs of the texts; 0 without a pair."""
    pairs = [pair for text in texts for pair in zip(words(text), words(text)[1:], strict=False)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def likeness(texts: Sequence[str], neighbours: int = 4) -> list[float]:
    """Mean ROUGE-L of each text with its next `neighbours` in a ring; empty for fewer than two texts."""
    lists = [words(text) for text in texts]
    n = len(lists)
    near = range(1, min(neighbours, n - 1) + 1)
    return [sum(rouge_l(lists[i], lists[(i + k) % n]) for k in near) / len(near) for i in range(n)] if n > 1 else []


def is_copy(answer: str, question: str) -> bool:
    """True when the answer only repeats the question."""
    return rouge_l(words(answer), words(question)) >= COPY


def leaks(answer: str, hindsight: str, prompt: str) -> bool:
    """True when the answer mentions or quotes a follow-up that it cannot have seen."""
    if _LEAKS.search(answer) and not _LEAKS.search(prompt):
        return True
    return quotes(answer, hindsight, prompt, QUOTED_WORDS)
