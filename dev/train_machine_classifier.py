"""Train the classifier of messages that programs write (`src/afterword/chat/machine_weights.tsv`).

    python dev/train_machine_classifier.py [--cross-validate]

Reads `dev/data/machine_training.tsv` (written for it; `{doc}`, `{code}`, ... stand for what a message is about, and are
filled from its `fill` rows, the same on both sides) and `tests/feedback/data/machine_messages.tsv`. Logistic regression
with L2 regularisation by AdaGrad, in plain Python; the same file at every run.
"""

from __future__ import annotations

import argparse
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unittest import mock

from afterword.chat import machine, machine_classifier

ROOT = Path(__file__).parents[1]
TRAINING = ROOT / "dev/data/machine_training.tsv"
FORMS = ROOT / "tests/feedback/data/machine_messages.tsv"
WEIGHTS = ROOT / "src/afterword/chat/machine_weights.tsv"
EPOCHS, RATE, DECAY = 12, 0.3, 1e-2
RARE = 2
"""Texts of the training set that a feature must stand in."""
FILLED = 3
"""Messages made of a text with places."""
SMALLEST = 0.06
"""Weights below it are left out of the file."""
By = Literal["source", "group"]
"""What is held out together: a text with all its fillings, or all texts of a kind."""
_PLACE = re.compile(r"\{(doc|code|log|json|hist|q)\}")


@dataclass(frozen=True)
class Example:
    """A message, which side wrote it, and the group that is held out together with it."""

    text: str
    machine: bool
    group: str
    source: int
    features: dict[str, float]


def examples() -> list[Example]:
    """All training messages."""
    rows = [line.split("\t") for line in TRAINING.read_text(encoding="utf-8").splitlines()[1:]]
    fills: dict[tuple[str, str], list[str]] = defaultdict(list)
    for label, kind, language, text in rows:
        if label == "fill":
            fills[kind, language].append(text)
    found = []
    for number, (label, kind, language, text) in enumerate(rows):
        if label != "fill":
            for message in dict.fromkeys(_filled(text, language, fills, number)):
                found.append(_example(message, label == "machine", f"{label} {kind}", number))
    for number, line in enumerate(FORMS.read_text(encoding="utf-8").splitlines()[1:], len(rows)):
        _, label, kind, _, like, text = line.split("\t")
        found.append(_example(text, label == "machine", f"form {label} {kind} {like}", number))
    return found


def _filled(text: str, language: str, fills: dict[tuple[str, str], list[str]], seed: int) -> list[str]:
    """The text with its places filled; what is pasted may be long."""
    if not _PLACE.search(text):
        return [text]
    pick = random.Random(seed)

    def content(place: re.Match[str]) -> str:
        kind = place.group(1)
        choice = fills.get((kind, language)) or fills[kind, "en"]
        times = pick.choice((1, 1, 2, 3)) if kind in ("doc", "code") else 1
        return "\\n\\n".join(pick.choice(choice) for _ in range(times))

    return [_PLACE.sub(content, text) for _ in range(FILLED)]


def _example(text: str, by_machine: bool, group: str, source: int) -> Example:
    text = text.replace("\\n", "\n")
    return Example(text, by_machine, group, source, machine.features_of(text))


def train(rows: Sequence[Example]) -> dict[str, float]:
    """Weights by feature; "" is the bias."""
    count = Counter(name for name, _ in {(name, row.source) for row in rows for name in row.features})
    machines = sum(row.machine for row in rows)
    share = {True: len(rows) / (2 * machines), False: len(rows) / (2 * (len(rows) - machines))}
    weights: dict[str, float] = {"": 0.0}
    squares: dict[str, float] = defaultdict(lambda: 1e-3)
    data = [([(n, v) for n, v in row.features.items() if count[n] >= RARE] + [("", 1.0)], row.machine) for row in rows]
    order = random.Random(0)
    for _ in range(EPOCHS):
        order.shuffle(data)
        for values, by_machine in data:
            total = sum(weights.get(name, 0.0) * value for name, value in values)
            error = share[by_machine] * (1 / (1 + math.exp(-max(-30.0, min(30.0, total)))) - by_machine)
            for name, value in values:
                weight = weights.get(name, 0.0)
                slope = error * value + DECAY * weight * (name != "")
                squares[name] += slope * slope
                weights[name] = weight - RATE * slope / math.sqrt(squares[name])
    return weights


def folds(rows: Sequence[Example], by: By, count: int) -> Iterator[tuple[dict[str, float], list[Example]]]:
    """Weights, and the examples that they were not trained on: all of a text, or of a kind of message of one side."""
    groups = sorted({str(getattr(row, by)) for row in rows})
    random.Random(1).shuffle(groups)
    fold = {group: at % count for at, group in enumerate(groups)}
    for held_out in range(count):
        weights = train([row for row in rows if fold[str(getattr(row, by))] != held_out])
        yield weights, [row for row in rows if fold[str(getattr(row, by))] == held_out]


def cross_validate(rows: Sequence[Example], by: By, count: int = 5) -> dict[bool, tuple[int, int]]:
    """For machines (True) and people (False): messages read wrongly by rules and held-out weights, and all of them."""
    wrong, total = Counter[bool](), Counter[bool]()
    for weights, held_out in folds(rows, by, count):
        with mock.patch.object(machine_classifier, "weights", lambda table=weights: table):
            for row in held_out:
                wrong[row.machine] += (machine.read_message(row.text).origin is not None) != row.machine
                total[row.machine] += 1
    return {side: (wrong[side], total[side]) for side in (True, False)}


def main() -> None:
    """Write the weights, or print what cross-validation says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cross-validate", action="store_true", help="hold out texts, then kinds, in turn, write nothing"
    )
    rows = examples()
    if parser.parse_args().cross_validate:
        for by in ("source", "group"):
            for side, (wrong, total) in cross_validate(rows, by).items():
                print(
                    f"by {by}, {'machines missed' if side else 'people lost'}: {wrong} of {total}, {wrong / total:.1%}"
                )
        return
    weights = train(rows)
    lines = [f"{n}\t{w:.2f}" for n, w in sorted(weights.items()) if abs(w) >= SMALLEST or not n]
    WEIGHTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(rows)} messages, {len(lines)} weights, {WEIGHTS.stat().st_size} bytes")


if __name__ == "__main__":
    main()
