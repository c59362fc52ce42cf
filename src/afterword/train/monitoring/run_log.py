"""Logs a run: metrics of each step, warnings, TensorBoard events, and the summary that the candidate carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from afterword.records import Json
from afterword.train.data.examples import Prepared
from afterword.train.generation.generation_metrics import generation_scalars, read_generation_metrics
from afterword.train.monitoring.alerts import step_warnings
from afterword.train.monitoring.alignment import HindsightSignal
from afterword.train.monitoring.events import Events
from afterword.train.monitoring.metrics import StepMetrics, append_step, truncate_metrics


class RunLog:
    """The metrics of a run so far, in memory (`history`) and, in the first process, in its folder."""

    def __init__(self, run_dir: Path, signal: HindsightSignal | None, *, steps_before: int, write: bool) -> None:
        """Resume after `steps_before` steps: drop later lines of `metrics.jsonl`, rewrite the event file."""
        self.run_dir, self.signal = run_dir, signal
        self.history = truncate_metrics(run_dir, before=steps_before, write=write)
        self._events = Events(run_dir, self._scalars()) if write else None

    def add_rollout(self, step: int, metrics: Json | None) -> None:
        """Log the metrics of an epoch's fresh answers, which begins after `step` steps; None for served ones."""
        if self._events is not None and metrics:
            self._events.add(step, generation_scalars(metrics))

    def add(self, metrics: StepMetrics) -> StepMetrics:
        """Log a step; returns its metrics with their warnings."""
        metrics = replace(metrics, warnings=step_warnings([*self.history, metrics]))
        self.history.append(metrics)
        if self._events is not None:
            append_step(self.run_dir, metrics)
            self._events.add(metrics.step, metrics.scalars())
        return metrics

    def summary(self, prepared: Prepared, device: str, seconds: float, stopped: str | None) -> Json:
        """The metrics of the candidate. Its keys are stored: they keep their names."""
        early, late = self.history[0], self.history[-1]
        return {
            "loss_first": early.loss,
            "loss_last": late.loss,
            "divergence_first": early.divergence,
            "divergence_last": late.divergence,
            "entropy_ratio": late.entropy_student / max(early.entropy_student, 1e-9),
            "overlap_last": late.overlap,
            "drift_last": next((m.drift for m in reversed(self.history) if m.drift is not None), None),
            "signal": asdict(self.signal) if self.signal else None,
            "steps": len(self.history),
            "interactions": len(prepared.rows),
            "off_policy": sum(not r.on_policy for r in prepared.rows),
            "left_out": prepared.reasons,
            "private_tokens": sum(len(r.private) for r in prepared.rows),
            "hindsight_cut": sum(r.cut for r in prepared.rows),
            "tokens": sum(m.tokens for m in self.history),
            "device": device,
            "seconds": round(seconds, 2),
            "stopped": stopped,
            "answers": read_generation_metrics(self.run_dir),
            "warnings": self._warnings(),
        }

    def _scalars(self) -> dict[int, dict[str, float]]:
        """The scalars of the event file when a run begins or resumes, by the number of steps taken."""
        found = {m.step: m.scalars() for m in self.history}
        found[0] = self.signal.scalars() if self.signal else {}
        for metrics in read_generation_metrics(self.run_dir):
            if metrics["step"] < len(self.history):  # an epoch that begins again logs it again
                found[metrics["step"]].update(generation_scalars(metrics))
        return dict(sorted(found.items()))

    def _warnings(self) -> list[str]:
        """Every threshold that was crossed, with the step where it first was."""
        found = [f"before the first step: {text}" for text in (self.signal.warnings() if self.signal else {}).values()]
        found += _first_warnings(self.history)
        for metrics in read_generation_metrics(self.run_dir):
            found += [f"epoch {metrics['pass']}: {text}" for text in metrics["warnings"].values()]
        return found


def _first_warnings(history: Sequence[StepMetrics]) -> list[str]:
    first: dict[str, str] = {}
    for m in history:
        first = {name: f"step {m.step}: {sentence}" for name, sentence in m.warnings.items()} | first
    return list(first.values())
