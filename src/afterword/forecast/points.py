"""Reads and writes the raw points of a calibration, and pools the seeds of each configuration.

One JSON line holds one configuration and seed: gap and gain with their standard errors. A later line of the same
configuration and seed replaces an earlier one, so an interrupted grid only appends. Never measures.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import orjson

from afterword.errors import UsageError

Scale = Literal["share", "nats"]
"""Unit of gap and gain: the share of a checker's marks (0 .. 1), or nats a token of the hindsight score."""
SCALES: tuple[Scale, ...] = ("share", "nats")
SHIPPED = Path(__file__).with_name("points.jsonl")
"""Points that come with the package; missing until a calibration was measured."""
OWN = Path("forecast") / "points.jsonl"
"""Own points, below a data directory."""
Key = tuple[str, str, str, str]
"""Task, context, student, unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationPoint:
    """One training of a calibration: the measurements before it and its gain."""

    task: str
    """For example "persona:pirate" or "gym:chain_sum"."""
    context: str
    """Name of the teacher's context (`forecast.contexts`)."""
    student: str
    """Base model, with "+" and the adapter that it starts from."""
    family: str
    """Base model; lines are fitted by family."""
    base_hash: str
    """Hash of the base's weights."""
    seed: int
    unit: Scale
    gap: float
    """Mean score of the self-teacher minus mean score of the student resampled ("none"), on training prompts."""
    gap_se: float
    """Standard error over prompts."""
    gain: float
    """Mean score after training minus mean score before, on held-out prompts that the gap never saw."""
    gain_se: float
    """Standard error over prompts."""
    prompts: int
    """Prompts of the gap."""
    heldout: int
    """Prompts of the gain."""
    steps: int
    """Optimiser steps of the training."""
    train_tokens: int
    """Forward-pass tokens of the training; a backward pass counts twice its forward pass."""
    gap_tokens: int
    """The same of the measurement of the gap."""
    context_tokens: float
    """Mean tokens that the context adds to the teacher's prompt."""
    observables: dict[str, float] = field(default_factory=dict)
    """Other measurements at learning rate zero: `overlap`, `entropy_gap`, `pass_rate` and others (`forecast.gap`)."""
    seconds: dict[str, float] = field(default_factory=dict)
    """CPU seconds by stage: `gap`, `train`, `evaluate`."""
    version: str = ""
    """Version of Afterword that measured."""

    @property
    def key(self) -> Key:
        """The configuration."""
        return self.task, self.context, self.student, self.unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """The seeds of one task, context and student, pooled."""

    task: str
    context: str
    student: str
    family: str
    base_hash: str
    unit: Scale
    seeds: int
    gap: float
    gap_se: float
    gain: float
    gain_se: float
    """Of the mean over seeds, prompts and training noise included."""
    overlap: float | None
    context_tokens: float
    train_tokens: float

    @property
    def name(self) -> str:
        """For figures and tables."""
        return f"{self.task} / {self.context} / {self.student}"


_NUMBERS = ("gap", "gap_se", "gain", "gain_se", "context_tokens")
_COUNTS = ("seed", "prompts", "heldout", "steps", "train_tokens", "gap_tokens")


def read_points(path: Path) -> list[CalibrationPoint]:
    """The points of a file, the last of each configuration and seed.

    Raises:
        UsageError: The file is missing, or a line is no point; names the line and the field.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(
            f"cannot read the points {str(path)!r}: {error.strerror}. Measure some with `afterword forecast calibrate`",
            param="points",
        ) from error
    found: dict[tuple[Key, int], CalibrationPoint] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            point = _point(line, f"{path.name}, line {number}")
            found.pop((point.key, point.seed), None)
            found[point.key, point.seed] = point
    return list(found.values())


def _point(line: bytes, where: str) -> CalibrationPoint:
    try:
        data: Any = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{where}: invalid JSON ({error}): remove the line", param="points") from error
    known = {f.name for f in fields(CalibrationPoint)}
    if not isinstance(data, dict):
        raise UsageError(f"{where}: {str(data)[:80]!r} is not an object", param="points")
    required = known - {"observables", "seconds", "version"}
    if wrong := sorted(required - set(data)) or sorted(set(data) - known):
        raise UsageError(f"{where}: missing or unknown field {wrong[0]!r}", param="points")
    for name in (*_NUMBERS, *_COUNTS):
        value = data[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UsageError(f"{where}: {name} is {value!r}: a finite number is needed", param="points")
    for name in ("gap_se", "gain_se"):
        if data[name] < 0:
            raise UsageError(f"{where}: {name} is {data[name]}: a standard error is not negative", param="points")
    if data["unit"] not in SCALES:
        raise UsageError(f"{where}: unit is {data['unit']!r}: use one of {', '.join(SCALES)}", param="points")
    return CalibrationPoint(**data)


def known_points(directory: Path) -> list[CalibrationPoint]:
    """The points that come with the package and those of a data directory (`forecast/points.jsonl`)."""
    files = [SHIPPED, directory / OWN]
    return [point for file in files if file.is_file() for point in read_points(file)]


def append_point(path: Path, point: CalibrationPoint) -> None:
    """Append one line. A line that a kill cut in two is closed first, so that it costs only itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = not path.is_file() or not (text := path.read_bytes()) or text.endswith(b"\n")
    if not whole:
        kept = path.read_bytes()
        path.write_bytes(kept[: kept.rfind(b"\n") + 1])
    with path.open("ab") as stream:
        stream.write(orjson.dumps(asdict(point)) + b"\n")


def pool(points: Iterable[CalibrationPoint]) -> list[Configuration]:
    """One configuration for each task, context, student and unit.

    The standard error of a mean over k seeds is sqrt((mean se^2 + extra) / k). `extra` is the variance between seeds
    beyond what the prompts explain, estimated over all configurations: two or three seeds alone would not tell it.
    """
    groups: dict[Key, list[CalibrationPoint]] = defaultdict(list)
    for point in points:
        groups[point.key].append(point)
    rows = list(groups.values())
    extra = {name: _extra(rows, name) for name in ("gap", "gain")}
    return [_pooled(group, extra) for group in rows]


def _pooled(group: Sequence[CalibrationPoint], extra: dict[str, float]) -> Configuration:
    first, k = group[0], len(group)

    def error(name: str) -> float:
        within = sum(getattr(p, f"{name}_se") ** 2 for p in group) / k
        return math.sqrt((within + extra[name]) / k)

    overlaps = [p.observables["overlap"] for p in group if "overlap" in p.observables]
    return Configuration(
        task=first.task,
        context=first.context,
        student=first.student,
        family=first.family,
        base_hash=first.base_hash,
        unit=first.unit,
        seeds=k,
        gap=sum(p.gap for p in group) / k,
        gap_se=error("gap"),
        gain=sum(p.gain for p in group) / k,
        gain_se=error("gain"),
        overlap=sum(overlaps) / len(overlaps) if overlaps else None,
        context_tokens=sum(p.context_tokens for p in group) / k,
        train_tokens=sum(p.train_tokens for p in group) / k,
    )


def _extra(groups: Sequence[Sequence[CalibrationPoint]], name: str) -> float:
    """Variance between seeds that the standard errors over prompts do not explain, at least 0."""
    squares, freedom, within, number = 0.0, 0, 0.0, 0
    for group in groups:
        values = [float(getattr(p, name)) for p in group]
        mean = sum(values) / len(values)
        squares += sum((v - mean) ** 2 for v in values)
        freedom += len(values) - 1
        within += sum(getattr(p, f"{name}_se") ** 2 for p in group)
        number += len(group)
    return max(0.0, squares / freedom - within / number) if freedom else 0.0
