"""Defines the thresholds of a run: warnings for every monitor, and the rules that stop a run early.

Pure functions of past metrics. Thresholds lie well outside what sound runs of the built-in model showed
(`docs/training.md`). An early stop still yields a candidate, which records the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from afterword.records import Json
from afterword.train.monitoring.metrics import StepMetrics

ENTROPY_RATIO = 0.6
DRIFT = 2.0
SELF_SIMILARITY = 0.85
WINDOW = 4
"""Steps over which a metric is averaged before it is compared with its threshold."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """Range of a metric, and the meaning of a value outside it."""

    low: float | None
    below: str
    high: float | None
    above: str

    def crossed(self, name: str, value: float) -> str | None:
        """A sentence with value and threshold; None while the value is in range."""
        if self.low is not None and value < self.low:
            return f"{name} is {value:.3g} (least {self.low:.3g}): {self.below}"
        if self.high is not None and value > self.high:
            return f"{name} is {value:.3g} (most {self.high:.3g}): {self.above}"
        return None


def at_least(low: float, below: str) -> Threshold:
    """A lower threshold."""
    return Threshold(low, below, None, "")


def at_most(high: float, above: str) -> Threshold:
    """An upper threshold."""
    return Threshold(None, "", high, above)


_OTHERS = (
    "the sides hardly agree on what may come next: a teacher of another kind, or prompts that do not fit each other"
)
_MOVED = "these answers are no longer what the model says: fewer epochs, or a newer adapter to start from"
STEP = {
    "counted": at_least(1, "no token counts in these steps: their answers lack what the first term reads"),
    "overlap": at_least(0.6, f"{_OTHERS}; see alignment.txt"),
    "overlap_advantage": at_least(-0.1, f"{_OTHERS}; see alignment.txt"),
    "entropy_gap": Threshold(
        -1.0, "the teacher is much less certain than the student: what it reads confuses it",
        1.0, "the teacher is much more certain than the student: it may have read the answer",
    ),
    "signal": Threshold(
        -1.0, "the teacher finds the answers absurd: compare both prompts in alignment.txt",
        1.0, "the teacher expects these very answers: what it reads may contain them",
    ),
    "top_mass": at_least(0.5, "much of what the student would say lies outside of the tokens that are looked at"),
    "first_share": at_most(0.5, "the loss is that of first tokens, a beginning's style: skip_first leaves tokens out"),
    "depth_growth": at_most(2.0, "the loss is largest where the answers are longest, and teachers least sure: the mask "
                            "Prefix or the weight Position bounds it"),
    "effective": at_least(0.5, "a few interactions have most of the weight, so that what they say is learned"),
    "ratio": Threshold(0.5, _MOVED, 2.0, _MOVED),
    "ratio_effective": at_least(0.5, f"a few tokens have most of the importance weight; {_MOVED}"),
    "serve_gap": Threshold(
        -0.3, "this model finds the served tokens less likely than the server did: another adapter, template or "
        "dtype served them, or many epochs have gone over them",
        0.3, "this model finds the served tokens more likely than the server did: another adapter, template or dtype "
        "served them, or many epochs have gone over them",
    ),
    "end_signal": Threshold(
        -2.0, "the teacher would go on where the answers end: they will grow longer",
        2.0, "the teacher would end where the answers end, and more so: they will grow shorter",
    ),
}  # fmt: skip
"""Metrics of a step, each the mean over the last `WINDOW` steps that measured it."""
ANSWERS = {
    "length_ratio": Threshold(
        1 / 3, "fresh answers are much shorter than the served ones", 2.0, "fresh answers are much longer than those"
    ),
    "cut_off": at_most(0.5, "most fresh answers are cut before they end, so that no end is learned from them"),
    "repeating": at_most(0.1, "fresh answers only repeat themselves"),
    "self_similarity": at_most(SELF_SIMILARITY, "fresh answers to different prompts are nearly the same (ROUGE-L)"),
    "leaking": at_most(0.1, "fresh answers repeat words of the hindsight, which the student has not read"),
}
"""Metrics of an epoch over fresh answers."""
START = {
    "signal_real": at_least(0.01, "the hindsight says next to nothing about the answers: there is little to learn"),
    "signal_real_to_other": at_least(0.9, "another user's words say more about the answers than the user's own"),
}
"""Metrics of the alignment report, before the first step."""


def step_warnings(past: Sequence[StepMetrics]) -> dict[str, str]:
    """Thresholds that the last step crosses: metric -> sentence.

    A run of fewer than `WINDOW` steps is judged at its last step.
    """
    window = min(WINDOW, past[-1].steps)
    means = {}
    for name in STEP:
        values = [value for m in past if (value := _step_values(m)[name]) is not None][-WINDOW:]
        if len(values) >= window and _step_values(past[-1])[name] is not None:
            means[name] = sum(values) / len(values)
    return crossed_thresholds(STEP, means)


def crossed_thresholds(bounds: Mapping[str, Threshold], values: Mapping[str, float]) -> dict[str, str]:
    """Thresholds that these values cross: metric -> sentence."""
    found = {name: bound.crossed(name, values[name]) for name, bound in bounds.items() if name in values}
    return {name: sentence for name, sentence in found.items() if sentence is not None}


def _step_values(m: StepMetrics) -> dict[str, float | None]:
    """Values compared with `STEP`; None where not measured. Without counted tokens there are no means over tokens."""
    if m.counted == 0:
        return {**dict.fromkeys(STEP), "counted": 0.0}
    *before, last = m.depth_divergence.values() or (0.0,)
    return {
        "counted": m.counted,
        "overlap": m.overlap,
        "overlap_advantage": m.overlap_advantage,
        "entropy_gap": m.entropy_gap,
        "signal": m.signal,
        "top_mass": m.top_mass,
        "first_share": m.depth.get("0"),
        "depth_growth": last / max(before) if before and max(before) > 0 else None,
        "effective": m.effective / max(1, m.interactions),
        "ratio": m.ratio,
        "ratio_effective": m.ratio_effective,
        "serve_gap": m.serve_gap,
        "end_signal": m.end_signal,
    }


@dataclass(frozen=True, slots=True)
class StopRules:
    """Thresholds of early stopping; None disables a rule. Non-finite values raise `TrainingDiverged` instead."""

    entropy_ratio: float | None = ENTROPY_RATIO
    """Least mean entropy of the student over `window` steps, as a share of that over the first `window`."""
    drift: float | None = DRIFT
    """Most nats per token that the student may be away from the base, mean over the last two measurements."""
    self_similarity: float | None = SELF_SIMILARITY
    """Most mean ROUGE-L between fresh answers to different prompts, once training has begun."""
    window: int = 4

    def stop_reason(self, past: Sequence[StepMetrics]) -> str | None:
        """The reason to stop after the last step, one sentence; None to continue."""
        return self._entropy(past) or self._drift(past)

    def _entropy(self, past: Sequence[StepMetrics]) -> str | None:
        seen = [m.entropy_student for m in past if m.counted != 0]
        if self.entropy_ratio is None or len(seen) < 2 * self.window:
            return None
        first, last = sum(seen[: self.window]), sum(seen[-self.window :])
        if last >= self.entropy_ratio * first:
            return None
        return (
            f"the student's entropy fell to {last / max(first, 1e-9):.2f} of what it was at the start (threshold "
            f"{self.entropy_ratio}): it is collapsing; use a smaller lr, fewer epochs or an anchor"
        )

    def rollout_stop_reason(self, answers: Json | None) -> str | None:
        """The reason to stop before an epoch with these metrics of its fresh answers; None to continue."""
        if self.self_similarity is None or not answers or answers["self_similarity"] <= self.self_similarity:
            return None
        return (
            f"fresh answers to different prompts are nearly the same (ROUGE-L {answers['self_similarity']:.2f}, "
            f"threshold {self.self_similarity}): the student is collapsing; use a smaller lr, fewer epochs or an anchor"
        )

    def _drift(self, past: Sequence[StepMetrics]) -> str | None:
        measured = [m.drift for m in past if m.drift is not None][-2:]
        if self.drift is None or len(measured) < 2 or sum(measured) <= self.drift * len(measured):
            return None
        return (
            f"the student is {sum(measured) / len(measured):.2f} nats per token away from the base (threshold "
            f"{self.drift}): use a smaller lr, fewer epochs or an anchor"
        )


STRICT = StopRules()
OFF = StopRules(entropy_ratio=None, drift=None, self_similarity=None)
