"""How much of a draft a user changed. Pure; knows nothing of feedback."""

from __future__ import annotations

import difflib
import re
from collections import Counter

EXACT_WORDS = 2000
"""Above this many words the order of words is not looked at, so that the cost stays linear."""

_UNITS = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]|\w+|[^\w\s]")


def changed_share(draft: str, final: str) -> float:
    """Share of words (characters for Chinese and Japanese) that are not common to draft and final text.

    0.0: the same but for white space. 1.0: nothing in common.
    """
    before, after = _UNITS.findall(draft), _UNITS.findall(final)
    if before == after:
        return 0.0
    if max(len(before), len(after)) > EXACT_WORDS:
        common = sum((Counter(before) & Counter(after)).values())
    else:
        blocks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks()
        common = sum(block.size for block in blocks)
    share = 1.0 - 2.0 * common / (len(before) + len(after))
    return share if share > 0 else 1.0 / (len(before) + len(after))
