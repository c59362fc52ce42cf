"""Computes the metrics of a step and stores them in `metrics.jsonl`, one JSON object per line.

A resumed run drops the lines of the steps that it repeats.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from afterword.learn.loss.loss_stage import Scores
from afterword.learn.loss.terms import Term
from afterword.learn.loss.token_batch import TokenBatch
from afterword.learn.parts.advantages import importance_ratio
from afterword.store.files import write_whole

_EDGES = (1, 4, 16, 64)
_DEPTHS = ("0", "1-3", "4-15", "16-63", "64-")
_FILE = "metrics.jsonl"
_SUMS = (
    "divergence", "entropy_student", "entropy_teacher", "overlap", "signal", "tokens", "overlap_advantage", "top_mass",
    "end_signal", "ends", "known", "plain", "moved", "ratio", "ratio_squared", "answers", "weight",
    "weight_squared", "drift", "drift_tokens",
)  # fmt: skip
"""What is summed over the tokens of a step, in this order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """One optimiser step. Log-probabilities and entropies in nats, means over the counted tokens of the
    first term whose scale is not 0."""

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
    """Share of the summed |loss| by place in the answer."""
    seconds: float
    tokens_per_second: float
    depth_divergence: dict[str, float] = field(default_factory=dict)
    """Mean |loss| per token by place in the answer."""
    overlap_advantage: float = 0.0
    """Mean of S (log T - log S) on the shared likely tokens: 0 at agreement."""
    top_mass: float = 0.0
    """The student's probability of the compared tokens."""
    effective: float = 0.0
    """Effective number of interactions, (sum w)^2 / sum w^2."""
    end_signal: float | None = None
    """Mean log T - log S of the token that ends an answer: below 0, the teacher would go on."""
    known: float = 0.0
    """Share of tokens whose log-probability at sampling is known; the next three are over those."""
    serve_gap: float | None = None
    """Mean log S now minus log S at sampling."""
    ratio: float | None = None
    """Mean importance ratio S now / S at sampling."""
    ratio_effective: float | None = None
    """Effective share of tokens under those ratios, (sum r)^2 / (n sum r^2)."""
    drift: float | None = None
    """KL(student || base) per token of one interaction, measured every few steps (nats)."""
    counted: int | None = None
    """Tokens that count in the first term; without any the means over tokens are 0 and mean nothing."""
    warnings: dict[str, str] = field(default_factory=dict)
    """Thresholds that are crossed (`alerts`): metric -> sentence."""

    def scalars(self) -> dict[str, float]:
        """All numbers, for a plot."""
        plain = {k: float(v) for k, v in asdict(self).items() if isinstance(v, int | float)}
        terms = {f"terms/{k}": v for k, v in self.terms.items()}
        said = {"warnings": float(len(self.warnings)), **{f"warnings/{k}": 1.0 for k in self.warnings}}
        return plain | terms | {f"depth/{k}": v for k, v in self.depth_divergence.items()} | said


class Tally:
    """Sums over the micro-batches of one step."""

    def __init__(self, terms: Sequence[Term], ends: Sequence[int] = ()) -> None:
        self.names = [t.name for t in terms]
        self.ends = torch.tensor(list(ends), dtype=torch.long)
        self.sums = torch.zeros(len(_SUMS) + len(terms) + 2 * len(_DEPTHS), dtype=torch.float64)

    def add(self, scores: Scores, rows: TokenBatch, keep: Tensor, parts: Sequence[Tensor], ids: Tensor) -> None:
        """Add a micro-batch.

        Args:
            scores: [N] of the term that the metrics describe.
            rows: layout of the N scored tokens.
            keep: [N], True for the tokens that this term keeps.
            parts: each term's part of the loss, scalars.
            ids: [N] the scored token ids.
        """
        signal = scores.logp_teacher - scores.logp_student
        known = torch.isfinite(rows.served) & keep
        plain = known & rows.where(lambda a: a.plain)
        moved = torch.where(plain, scores.logp_student - rows.served, 0.0)
        ratio = torch.where(known, importance_ratio(scores, rows), 0.0)
        end = keep & torch.isin(ids, self.ends.to(ids.device)) & rows.last
        kept = keep.to(scores.overlap.dtype)
        columns = torch.stack([
            scores.loss.detach(), scores.entropy_student, scores.entropy_teacher, scores.overlap, signal, kept,
            scores.overlap_advantage, scores.top_mass, signal * end, end, known, plain, moved, ratio, ratio.square(),
        ]).double()  # fmt: skip
        columns = torch.where(keep, columns, 0.0)
        edges = torch.tensor(_EDGES, device=rows.position.device)
        depth = torch.zeros(2, len(_DEPTHS), dtype=torch.float64, device=columns.device)
        depth.index_add_(
            1, torch.bucketize(rows.position, edges, right=True), torch.stack([columns[0].abs(), columns[5]])
        )
        weights = rows.weight.double()
        answers = torch.tensor([len(rows.length), weights.sum(), weights.square().sum()], dtype=torch.float64)
        terms = torch.tensor([float(part.detach()) for part in parts], dtype=torch.float64)
        self.sums += torch.cat([columns.sum(1).cpu(), answers, torch.zeros(2), terms, depth.flatten().cpu()])

    def divide(self, factors: Sequence[float]) -> None:
        """Multiply each term's part of the loss by the divisor known after the last micro-batch."""
        self.sums[len(_SUMS) : len(_SUMS) + len(factors)] *= torch.tensor(list(factors), dtype=torch.float64)

    def add_drift(self, losses: Tensor) -> None:
        """Add KL(student || base) [n] of some tokens, in nats."""
        at = _SUMS.index("drift")
        self.sums[at : at + 2] += torch.tensor([losses.double().sum(), len(losses)], dtype=torch.float64)

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
        sums = dict(zip(_SUMS, self.sums.tolist(), strict=False))
        terms, depth = torch.split(self.sums[len(_SUMS) :], [len(self.names), 2 * len(_DEPTHS)])
        n = max(1.0, sums["tokens"])
        by_depth = dict(zip(_DEPTHS, depth.view(2, -1).T.tolist(), strict=True))
        total = sum(loss for loss, _ in by_depth.values())
        known, ends, measured = sums["known"], sums["ends"], sums["drift_tokens"]
        means = {k: sums[k] / n for k in ("divergence", "entropy_student", "entropy_teacher", "overlap", "signal",
                                             "overlap_advantage", "top_mass")}  # fmt: skip
        answers = max(1, round(sums["answers"]))
        return StepMetrics(
            step=step,
            steps=steps,
            loss=float(terms.sum()),
            terms=dict(zip(self.names, terms.tolist(), strict=True)),
            grad_norm=grad_norm,
            lr=lr,
            interactions=round(sums["answers"]),
            off_policy=off_policy,
            tokens=scored,
            length=scored / answers,
            entropy_gap=means["entropy_student"] - means["entropy_teacher"],
            depth={d: loss / total if total else 0.0 for d, (loss, _) in by_depth.items()},
            depth_divergence={d: loss / count for d, (loss, count) in by_depth.items() if count},
            seconds=seconds,
            tokens_per_second=scored / max(seconds, 1e-9),
            effective=sums["weight"] ** 2 / max(sums["weight_squared"], 1e-12),
            end_signal=sums["end_signal"] / ends if ends else None,
            known=known / n,
            serve_gap=sums["moved"] / sums["plain"] if sums["plain"] else None,
            ratio=sums["ratio"] / known if known else None,
            ratio_effective=sums["ratio"] ** 2 / (known * sums["ratio_squared"]) if known else None,
            drift=sums["drift"] / measured if measured else None,
            counted=round(sums["tokens"]),
            **means,
        )


def read_metrics(run_dir: Path) -> list[StepMetrics]:
    """The steps of a run so far; a line that a kill cut in two is skipped."""
    file = run_dir / _FILE
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")
    return [StepMetrics(**json.loads(line)) for line in lines[:-1]]  # the last part has no newline: cut or empty


def truncate_metrics(run_dir: Path, before: int, *, write: bool = True) -> list[StepMetrics]:
    """Drop the lines of the steps after number `before`, which a resumed run repeats; only read without `write`."""
    kept = [m for m in read_metrics(run_dir) if m.step <= before]
    if not write:
        return kept
    write_whole(run_dir / _FILE, "".join(json.dumps(asdict(m)) + "\n" for m in kept))
    return kept


def append_step(run_dir: Path, metrics: StepMetrics) -> None:
    """Append one line."""
    with (run_dir / _FILE).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(metrics)) + "\n")
