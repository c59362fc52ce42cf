"""Train the classifier of follow-ups (`src/afterword/feedback/followup_weights*.tsv`).

    python dev/train_followup_classifier.py [--cross-validate] [--judge FILE]

Reads `dev/data/followup_training_*.txt`, written for it: exchanges with messages that follow them, and messages that
fit any exchange of their language, which are put behind some of them. Softmax regression with L2 regularisation, with
and without sentence embeddings (extra `followups`), calibrated by a temperature on held-out exchanges; the same files
at every run. `--judge` reads JSON lines {request, answer, text, label} that are in no repository.
"""

from __future__ import annotations

import argparse
import json
import random
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from afterword.feedback.text.followup_classifier import signs_of
from afterword.feedback.text.followup_model import CLASSES, embedding_features, features

ROOT = Path(__file__).parents[1]
DATA = sorted((ROOT / "dev/data").glob("followup_training_*.txt"))
WEIGHTS = ROOT / "src/afterword/feedback"
LABELS = {"w": "wish", "a": "ask", "p": "praise", "n": "new"}
PAIRED = 2
"""Exchanges that a message which fits any of them is put behind."""
DECAY = {False: 1.0, True: 2.0}
"""L2 regularisation, without and with embeddings."""
RARE = 2
"""Examples that a word must occur in."""
SMALLEST = 0.02
"""Rows of weights that are all below it are left out of the file."""
FOLDS = 5
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Example:
    """A follow-up with its exchange, and what is held out together with it."""

    language: str
    request: str
    answer: str
    text: str
    label: int
    group: str


def examples() -> list[Example]:
    """All training examples."""
    exchanges: dict[str, list[tuple[str, str]]] = {}
    rows: list[tuple[str, tuple[str, str] | None, str, str]] = []
    for file in DATA:
        language, exchange = "", None
        for line in file.read_text(encoding="utf-8").splitlines():
            mark, _, rest = line.partition(" ")
            if mark == "@":
                language, _, both = rest.partition(" ||| ")
                request, _, answer = both.partition(" ||| ")
                exchange = (request, answer)
                exchanges.setdefault(language, []).append(exchange)
            elif mark == "*":
                language, exchange = rest.strip(), None
            elif mark in LABELS:
                rows.append((language, exchange, mark, rest))
    found = []
    for language, exchange, mark, text in rows:
        label = CLASSES.index(LABELS[mark])
        if exchange is not None:
            found.append(Example(language, *exchange, text, label, exchange[0]))
            continue
        pick = random.Random(f"{language} {text}")
        for one in pick.sample(exchanges[language], PAIRED):
            found.append(Example(language, *one, text, label, text))
    return found


@cache
def embedded_once(request: str, answer: str, text: str) -> dict[str, float]:
    """The embedding features; the same exchange is embedded for every message."""
    return embedding_features(request, answer, text)


def values_of(rows: Sequence[Example], embedded: bool) -> list[dict[str, float]]:
    """The features of each example."""
    found = []
    for row in rows:
        values = features(signs_of(row.request, row.answer, row.text), row.request, row.answer, row.text)
        found.append(values | (embedded_once(row.request, row.answer, row.text) if embedded else {}))
    return found


def train(values: Sequence[dict[str, float]], labels: Sequence[int], decay: float) -> tuple[list[str], Floats]:
    """Names of features, and [F, C] weights; "" is the bias. Classes weigh alike by the root of their number."""
    count = Counter(name for one in values for name in one)
    names = ["", *sorted(name for name, number in count.items() if number >= RARE)]
    matrix = matrix_of(values, names)
    wanted = np.eye(len(CLASSES))[list(labels)]
    weight = (1 / np.sqrt(wanted.sum(0)))[list(labels)]
    weight = weight / weight.mean()

    def loss(flat: Floats) -> tuple[float, Floats]:
        table = flat.reshape(len(names), len(CLASSES))
        scores = matrix @ table
        scores -= scores.max(1, keepdims=True)
        p = np.exp(scores)
        p /= p.sum(1, keepdims=True)
        penalty = table.copy()
        penalty[0] = 0
        value = -(weight * np.log((p * wanted).sum(1) + 1e-12)).sum() + 0.5 * decay * (penalty**2).sum()
        return float(value), (matrix.T @ (weight[:, None] * (p - wanted)) + decay * penalty).ravel()

    start = np.zeros(len(names) * len(CLASSES))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 120})
    return names, found.x.reshape(len(names), len(CLASSES))


def matrix_of(values: Sequence[dict[str, float]], names: Sequence[str]) -> Floats:
    """[n, F] values, with 1 for the bias."""
    place = {name: i for i, name in enumerate(names)}
    matrix = np.zeros((len(values), len(names)))
    matrix[:, 0] = 1
    for row, one in zip(matrix, values, strict=True):
        for name, value in one.items():
            if name in place:
                row[place[name]] = value
    return matrix


def held_out_scores(rows: Sequence[Example], values: Sequence[dict[str, float]], decay: float) -> Floats:
    """[n, C] scores of each example by weights that have not seen its exchange (or its words)."""
    fold = [zlib.crc32(row.group.encode()) % FOLDS for row in rows]
    scores = np.zeros((len(rows), len(CLASSES)))
    for number in range(FOLDS):
        kept = [i for i, one in enumerate(fold) if one != number]
        left = [i for i, one in enumerate(fold) if one == number]
        names, table = train([values[i] for i in kept], [rows[i].label for i in kept], decay)
        scores[left] = matrix_of([values[i] for i in left], names) @ table
    return scores


def temperature(scores: Floats, labels: Sequence[int]) -> float:
    """By which the scores must be divided so that the probabilities are calibrated (Guo et al. 2017)."""
    tried = np.exp(np.linspace(-1, 1.5, 51))
    return float(min(tried, key=lambda t: -np.log(normal(scores / t)[range(len(labels)), list(labels)]).mean()))


def normal(scores: Floats) -> Floats:
    """[n, C] softmax."""
    p = np.exp(scores - scores.max(1, keepdims=True))
    found: Floats = p / p.sum(1, keepdims=True)
    return found


def judged(p: Floats, labels: Sequence[int]) -> dict[str, Any]:
    """Precision and recall of "about the answer" at several thresholds, and the shares right of those who decide."""
    about = 1 - p[:, CLASSES.index("new")]
    truth = np.array([label != CLASSES.index("new") for label in labels])
    found: dict[str, Any] = {"examples": len(labels), "about": int(truth.sum())}
    for edge in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        said = about >= edge
        right = int((said & truth).sum())
        found[f"about >= {edge}"] = (
            f"precision {right}/{int(said.sum())} {right / max(1, said.sum()):.3f} recall {right / truth.sum():.3f}"
        )
    found["class"] = f"{float((p.argmax(1) == np.array(labels)).mean()):.3f}"
    error = sum(
        abs(about[part].mean() - truth[part].mean()) * part.sum()
        for low in np.arange(0, 1, 0.1) if (part := (about >= low) & (about < low + 0.1 + 1e-9)).any()
    ) / len(labels)  # fmt: skip
    found["calibration error of about"] = f"{error:.3f}"
    return found


def rules(rows: Sequence[Example]) -> str:
    """What the detectors alone say of the same examples."""
    kinds = [signs_of(row.request, row.answer, row.text).category for row in rows]
    said = np.array([kind not in ("off_topic", "continuation", "unsure") for kind in kinds])
    truth = np.array([row.label != CLASSES.index("new") for row in rows])
    right = int((said & truth).sum())
    return f"precision {right}/{int(said.sum())} {right / max(1, said.sum()):.3f} recall {right / truth.sum():.3f}"


def read_real(file: Path) -> list[Example]:
    """Labelled follow-ups of real people, from outside of the repository."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [Example("", row["request"], row["answer"], row["text"], CLASSES.index(row["label"]), str(i))
            for i, row in enumerate(rows)]  # fmt: skip


def main() -> None:
    """Write both files of weights, or print what cross-validation or a file of real follow-ups says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cross-validate", action="store_true", help="hold out exchanges in turn, write nothing")
    parser.add_argument("--plain", action="store_true", help="only without embeddings")
    parser.add_argument("--judge", type=Path, metavar="FILE", help="labelled follow-ups of real people")
    args = parser.parse_args()
    rows = examples()
    labels = [row.label for row in rows]
    print(len(rows), "examples,", len({row.text for row in rows}), "texts, rules:", rules(rows))
    for embedded in (False,) if args.plain else (False, True):
        values = values_of(rows, embedded)
        scores = held_out_scores(rows, values, DECAY[embedded])
        scale = temperature(scores, labels)
        print(
            "with embeddings" if embedded else "without",
            f"temperature {scale:.2f}",
            json.dumps(judged(normal(scores / scale), labels), indent=1),
        )
        if args.cross_validate:
            continue
        names, table = train(values, labels, DECAY[embedded])
        if args.judge:
            real = read_real(args.judge)
            p = normal(matrix_of(values_of(real, embedded), names) @ table / scale)
            print("real:", "rules:", rules(real), json.dumps(judged(p, [row.label for row in real]), indent=1))
            continue
        lines = [f"temperature\t{scale:.3f}"]
        lines += [
            "\t".join([name, *(f"{weight:.3f}" for weight in row)])
            for name, row in zip(names, table, strict=True) if not name or np.abs(row).max() >= SMALLEST
        ]  # fmt: skip
        out = WEIGHTS / ("followup_weights_embedded.tsv" if embedded else "followup_weights.tsv")
        out.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(out.name, len(lines), "rows", out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
