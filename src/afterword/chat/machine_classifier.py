"""Tells a program's prompt from a person's message by its words and form: a linear classifier.

Owns the features and the weights (`machine_weights.tsv`, made by `dev/train_machine_classifier.py` from
`dev/data/machine_training.tsv`). Pure: no numpy, one pass over a text of bounded length. `machine` decides what a
score means.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from itertools import pairwise

from afterword.chat.template_signs import template_signs, voice_signs

_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\d_]+|\d+")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
STEM = 8
"""Characters of a word that are read: most endings lie behind them."""
MOST_TOKENS = 400
"""Words at the beginning and at the end of a text that are read, half of them at each."""
EDGE = 3
"""Words at the beginning and at the end that count by themselves."""
WORDS, SIGNS = 4.0, 1.0
"""Weight of all the words together, and of each sign of form."""


def tokens(low: str) -> list[str]:
    """Words of a lowered text, shortened; each Chinese, Japanese or Korean sign is one; a number is "0"."""
    found = ["0" if t.isdigit() else t[:STEM] for t in _TOKEN.findall(low)]
    return found if len(found) <= MOST_TOKENS else found[: MOST_TOKENS // 2] + found[-MOST_TOKENS // 2 :]


def features(text: str, low: str) -> dict[str, float]:
    """Features of a message and their values.

    Args:
        text: The message without what it is about (quotations, fenced blocks); its beginning and end are enough.
        low: The same in lower case.
    """
    words = tokens(low)
    grams = set(words)
    grams.update(f"{a} {b}" for a, b in pairwise(words))
    share = WORDS / math.sqrt(max(16, len(grams)))
    found = dict.fromkeys(grams, share)
    for mark, edge in (("^", words[:EDGE]), ("$", words[-EDGE:])):
        for word in edge:
            found[mark + word] = 0.5
        for a, b in pairwise(edge):
            found[f"{mark}{a} {b}"] = 0.5
    found.update(_shape(text, low, len(words)))
    return found


def _shape(text: str, low: str, words: int) -> dict[str, float]:
    lines = [line for line in text.split("\n") if line.strip()]
    shape = {f"#{name}": SIGNS * value for name, value in {**template_signs(text, low), **voice_signs(low)}.items()}
    shape[f"#words{min(7, int(math.log2(words + 1)))}"] = 1.0
    shape[f"#lines{min(4, int(math.log2(len(lines) + 1)))}"] = 0.5
    last = text.rstrip()[-1:]
    if last and not last.isalnum():
        shape[f"#end{last}"] = 0.5
    first = text.lstrip()[:1]
    if first:
        shape[
            "#begin" + ("a" if first.islower() else "A" if first.isupper() else "c" if _CJK.match(first) else first)
        ] = 0.5
    return shape


@lru_cache(maxsize=1)
def weights() -> dict[str, float]:
    """The weight of each feature; "" is the bias."""
    lines = files("afterword.chat").joinpath("machine_weights.tsv").read_text(encoding="utf-8").splitlines()
    return {name: float(weight) for name, _, weight in (line.rpartition("\t") for line in lines)}


def score(found: Mapping[str, float]) -> float:
    """Log odds that a program wrote a message with these features."""
    table = weights()
    return table.get("", 0.0) + sum(table.get(name, 0.0) * value for name, value in found.items())
