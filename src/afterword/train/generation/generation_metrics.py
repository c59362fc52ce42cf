"""Measures the student's fresh answers beside the served ones: length, truncation, repetition, similarity, leaks.

Stops nothing by itself (`alerts` does); the gate measures the candidate's answers anew.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from afterword.chat.render import Tokenizer, decode
from afterword.chat.text_metrics import REPETITIVE, leaks, rouge_l, zlib_ratio
from afterword.records import Json
from afterword.store.files import write_whole
from afterword.train.data.rows import Encoded
from afterword.train.monitoring.alerts import ANSWERS, crossed_thresholds

_COMPARED = 12
_LONGEST = 64
_FILE = "answers.jsonl"


def write_generation_metrics(
    run_dir: Path,
    tokenizer: Tokenizer,
    served: Sequence[Encoded],
    fresh: Sequence[Encoded],
    hindsights: dict[str, str],
    *,
    number: int,
    step: int,
    ends: Sequence[int],
) -> Json:
    """Measure the fresh answers of an epoch and store a line in `answers.jsonl`; a repeated epoch replaces its own.

    `hindsights` by interaction; `step` is how many were taken before.
    """
    texts = [decode(tokenizer, r.answer_ids) for r in fresh]
    lengths = [_mean([len(r.answer_ids) for r in rows]) for rows in (fresh, served)]
    metrics: Json = {
        "pass": number,
        "step": step,
        "answers": len(fresh),
        "length_ratio": lengths[0] / max(1.0, lengths[1]),
        "cut_off": _mean([r.completion[-1] not in ends for r in fresh]),
        "repeating": _mean([zlib_ratio(t) > REPETITIVE for t in texts]),
        "self_similarity": self_similarity([r.answer_ids[:_LONGEST] for r in _one_per_prompt(fresh)[:_COMPARED]]),
        "leaking": _mean([
            leaks(text, hindsights.get(r.interaction, ""), decode(tokenizer, r.before))
            for text, r in zip(texts, fresh, strict=True)
        ]),
    }  # fmt: skip
    metrics["warnings"] = crossed_thresholds(ANSWERS, metrics)
    file = run_dir / _FILE
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    kept = [line for line in lines if json.loads(line)["pass"] < number]
    write_whole(file, "\n".join([*kept, json.dumps(metrics)]) + "\n")
    return metrics


def read_generation_metrics(run_dir: Path) -> list[Json]:
    """The metrics of all epochs over fresh answers so far."""
    file = run_dir / _FILE
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def generation_scalars(metrics: Json) -> dict[str, float]:
    """The numbers of an epoch, for a plot."""
    plain = {f"answers/{k}": float(v) for k, v in metrics.items() if isinstance(v, int | float)}
    return plain | {f"warnings/{k}": 1.0 for k in metrics["warnings"]}


def self_similarity(answers: Sequence[Sequence[int]]) -> float:
    """Mean ROUGE-L F1 over all pairs; 1 when all answers are the same. 0 for fewer than two."""
    pairs = list(combinations(answers, 2))
    return _mean([rouge_l(a, b) for a, b in pairs]) if pairs else 0.0


def _one_per_prompt(rows: Sequence[Encoded]) -> list[Encoded]:
    """Answers to the same prompt may well be alike; answers to different prompts may not."""
    return list({r.asked: r for r in rows}.values())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
