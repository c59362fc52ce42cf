"""What a run reports at each step, and the file it is kept in.

Owns the monitors that come for free with the loss stage. One JSON object per line in `metrics.jsonl`; a
resumed run drops the lines of the steps that it repeats.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from afterword.learn.loss_stage import Scores
from afterword.learn.rows import Rows
from afterword.learn.terms import Term

_EDGES = (1, 4, 16, 64)
_DEPTHS = ("0", "1-3", "4-15", "16-63", "64-")
_FILE = "metrics.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """One optimiser step. Log-probabilities and entropies in nats, means over the tokens of the first term."""

    step: int
    """1 for the first."""
    steps: int
    loss: float
    terms: dict[str, float]
    """Each term's part of the loss."""
    grad_norm: float
    """Before clipping."""
    lr: float
    interactions: int
    off_policy: int
    """Interactions of the step whose ids were not served but tokenised here."""
    tokens: int
    """Served tokens that were scored."""
    length: float
    """Mean served tokens of an answer."""
    divergence: float
    """Mean loss per token before weights and averages."""
    entropy_student: float
    entropy_teacher: float
    entropy_gap: float
    """Student minus teacher."""
    overlap: float
    """Share of the teacher's 16 likeliest tokens that are among the student's."""
    signal: float
    """Mean log T(y) - log S(y) of the served tokens: the privileged gap as training sees it."""
    depth: dict[str, float]
    """Share of the summed loss by place in the answer."""
    seconds: float
    tokens_per_second: float


class Tally:
    """Sums over the micro-batches of one step."""

    def __init__(self, terms: Sequence[Term]) -> None:
        self.names = [t.name for t in terms]
        self.parts = dict.fromkeys(self.names, 0.0)
        self.sums = torch.zeros(6, dtype=torch.float64)
        self.depth = torch.zeros(len(_DEPTHS), dtype=torch.float64)
        self.answers = 0

    def add(self, scores: Scores, rows: Rows, keep: Tensor, parts: Sequence[Tensor]) -> None:
        """Take in one micro-batch: the first term's scores and mask, and every term's part of the loss."""
        for name, part in zip(self.names, parts, strict=True):
            self.parts[name] += float(part.detach())
        picked = keep.detach()
        columns = torch.stack([
            scores.loss.detach(),
            scores.entropy_student,
            scores.entropy_teacher,
            scores.overlap,
            scores.logp_teacher - scores.logp_student,
            torch.ones_like(scores.overlap),
        ])[:, picked].double()  # fmt: skip
        self.sums += columns.sum(1).cpu()
        edges = torch.tensor(_EDGES, device=rows.position.device)
        bucket = torch.bucketize(rows.position[picked], edges, right=True).cpu()
        self.depth.index_add_(0, bucket, columns[0].cpu())
        self.answers += len(rows.length)

    def close(
        self,
        *,
        step: int,
        steps: int,
        grad_norm: float,
        lr: float,
        off_policy: int,
        seconds: float,
        scored: int,
    ) -> StepMetrics:
        """The step's metrics."""
        n = max(1.0, float(self.sums[5]))
        loss, student, teacher, overlap, signal = (float(x) / n for x in self.sums[:5])
        total = float(self.depth.sum())
        return StepMetrics(
            step=step,
            steps=steps,
            loss=sum(self.parts.values()),
            terms=dict(self.parts),
            grad_norm=grad_norm,
            lr=lr,
            interactions=self.answers,
            off_policy=off_policy,
            tokens=scored,
            length=scored / max(1, self.answers),
            divergence=loss,
            entropy_student=student,
            entropy_teacher=teacher,
            entropy_gap=student - teacher,
            overlap=overlap,
            signal=signal,
            depth={d: float(x) / total if total else 0.0 for d, x in zip(_DEPTHS, self.depth, strict=True)},
            seconds=seconds,
            tokens_per_second=scored / max(seconds, 1e-9),
        )


def read_metrics(run_dir: Path) -> list[StepMetrics]:
    """The steps of a run so far; a line that a kill cut in two is left out."""
    file = run_dir / _FILE
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")
    return [StepMetrics(**json.loads(line)) for line in lines[:-1]]  # the last part has no newline: cut or empty


def keep_steps(run_dir: Path, before: int) -> list[StepMetrics]:
    """Drop the lines of the steps after number `before`, which a resumed run repeats."""
    kept = [m for m in read_metrics(run_dir) if m.step <= before]
    fresh = run_dir / f"{_FILE}.new"
    fresh.write_text("".join(json.dumps(asdict(m)) + "\n" for m in kept), encoding="utf-8")
    fresh.replace(run_dir / _FILE)
    return kept


def append_step(run_dir: Path, metrics: StepMetrics) -> None:
    """Add one line."""
    with (run_dir / _FILE).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(metrics)) + "\n")
