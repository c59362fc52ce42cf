"""What the loss stage costs, beside TRL's losses and beside the bare products of the head.

    python benchmarks/loss_stage.py [--tokens 1024 4096] [--rounds 3] [--threads 2] [--only SUBJECT ...] [--more]

Every subject runs in a fresh process of its own, in turn, `rounds` times: hidden states [tokens, 576] and a head
[49152, 576] in float32 in, loss and gradient towards the student's hidden states out. Time is that of the second
pass (the first one warms up); memory is the highest resident set of the first pass beyond what the process held
before it, inputs included there. `bare` is the three products that nobody can avoid (student forward and backward,
teacher forward), in tiles with reused buffers, as torch computes them; `bare, our library` is the same three run_layer
the library that the loss stage multiplies with, which is faster on some processors. TRL's subjects: the
full-vocabulary and the top-k loss of its SDPO and SDFT trainers over materialised logits, and DistillationTrainer's
chunked divergence (all need the extra `compare`). Ratios are medians over rounds, each within its round. Writes
benchmarks/results/loss_stage.json; `--more` adds rounds to those that it holds.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from afterword.learn.loss.loss_stage import token_losses
from afterword.learn.parts.divergences import FORWARD_KL, JSD, ReverseKL
from afterword.learn.parts.supports import FULL, TopK
from afterword.model.head import Head
from afterword.model.matmul import matmul

RESULTS = Path(__file__).parent / "results" / "loss_stage.json"
HIDDEN, VOCABULARY = 576, 49_152
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def inputs(tokens: int) -> Inputs:
    """Student and teacher hidden states, the head and the served ids. Logits spread as a trained model's do."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator) / HIDDEN**0.5
    student = torch.randn(tokens, HIDDEN, generator=generator) * 2
    teacher = student + 0.3 * torch.randn(tokens, HIDDEN, generator=generator)
    return student.requires_grad_(), teacher, weight, torch.randint(VOCABULARY, (tokens,), generator=generator)


def ours(estimator: Any, support: Any = FULL) -> Callable[[Inputs], float]:
    def run(given: Inputs) -> float:
        student, teacher, weight, ids = given
        loss = token_losses(student, teacher, Head(weight), ids, estimator, support=support).loss.mean()
        loss.backward()
        return float(loss.detach())

    return run


def bare(given: Inputs) -> float:
    student, teacher, weight, _ = given
    buffers = [torch.empty(128, VOCABULARY) for _ in range(2)]
    gradient = torch.empty(len(student), HIDDEN)
    with torch.no_grad():
        for start in range(0, len(student), 128):
            part = slice(start, start + 128)
            n = len(student[part])
            torch.mm(student[part], weight.T, out=buffers[0][:n])
            torch.mm(teacher[part], weight.T, out=buffers[1][:n])
            torch.mm(buffers[0][:n], weight, out=gradient[part])
    return 0.0


def bare_of_our_library(given: Inputs) -> float:
    student, teacher, weight, _ = given
    gradient = torch.empty(len(student), HIDDEN)
    with torch.no_grad():
        for start in range(0, len(student), 128):
            part = slice(start, start + 128)
            logits = matmul(student[part], weight)
            matmul(teacher[part], weight)
            gradient[part] = matmul(logits, weight.T)
    return 0.0


def trl_top_k(k: int, alpha: float) -> Callable[[Inputs], float]:
    def run(given: Inputs) -> float:
        from trl.experimental.sdpo.loss_utils import compute_topk_self_distillation_loss as top_k

        student, teacher, weight, _ = given
        with torch.no_grad():
            theirs = teacher @ weight.T
        options = {"distillation_topk": k, "distillation_alpha": alpha, "distillation_add_tail": True}
        loss = top_k(student @ weight.T, theirs, **options).mean()
        loss.backward()
        return float(loss.detach())

    return run


def trl_full(alpha: float) -> Callable[[Inputs], float]:
    def run(given: Inputs) -> float:
        from trl.experimental.sdpo.loss_utils import compute_full_logit_self_distillation_loss as full

        student, teacher, weight, _ = given
        with torch.no_grad():
            theirs = teacher @ weight.T
        loss = full(student @ weight.T, theirs, distillation_alpha=alpha).mean()
        loss.backward()
        return float(loss.detach())

    return run


def trl_chunked(beta: float) -> Callable[[Inputs], float]:
    def run(given: Inputs) -> float:
        from trl.trainer.distillation_trainer import _chunked_divergence_loss

        student, teacher, weight, ids = given
        loss, _, _ = _chunked_divergence_loss(
            student[None], teacher[None], weight, weight, torch.ones_like(ids)[None], beta
        )
        loss.backward()
        return float(loss.detach())

    return run


SUBJECTS: dict[str, Callable[[Inputs], float]] = {
    "bare": bare,
    "bare, our library": bare_of_our_library,
    "ours forward KL": ours(FORWARD_KL),
    "ours reverse KL": ours(ReverseKL()),
    "ours JSD": ours(JSD(0.5)),
    "ours top-100 + tail": ours(FORWARD_KL, TopK(100)),
    "trl full forward KL": trl_full(0.0),
    "trl full reverse KL": trl_full(1.0),
    "trl full JSD": trl_full(0.5),
    "trl top-100 + tail": trl_top_k(100, 0.0),
    "trl chunked forward KL": trl_chunked(0.0),
}
PEERS = {
    "ours forward KL": ("trl full forward KL", "trl chunked forward KL"),
    "ours reverse KL": ("trl full reverse KL",),
    "ours JSD": ("trl full JSD",),
    "ours top-100 + tail": ("trl top-100 + tail",),
}
BARE = {"of_bare": "bare", "of_bare_our_library": "bare, our library"}


def status(field: str) -> int:
    """A field of /proc/self/status in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def child(name: str, tokens: int, threads: int) -> None:
    """Measure one subject in this process and print it as JSON."""
    torch.set_num_threads(threads)
    run = SUBJECTS[name]
    run(inputs(2))  # loads code and libraries
    given = inputs(tokens)
    given[0].grad = torch.zeros_like(given[0])
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the highest resident set starts anew
    before = status("VmRSS")
    run(given)
    extra = status("VmHWM") - before
    started, worked = time.perf_counter(), time.process_time()
    loss = run(given)
    seconds, work = time.perf_counter() - started, time.process_time() - worked
    print(json.dumps({"seconds": seconds, "cpu_seconds": work, "mib": extra / 1024, "loss": loss}))


def measure(name: str, tokens: int, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", name, "--tokens", str(tokens), "--threads", str(threads)]
    out = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(out.stdout.splitlines()[-1])
    return found


def middle(values: list[float]) -> float:
    return round(statistics.median(values), 3)


Runs = dict[str, list[dict[str, float]]]
"""What was measured, by subject, a round after the other."""


def measured(names: list[str], tokens: int, rounds: int, threads: int, runs: Runs) -> Runs:
    """The subjects in turn, `rounds` times, after the rounds in `runs`."""
    runs = {name: list(runs.get(name, [])) for name in names}
    for number in range(rounds):
        for name in names:
            runs[name].append(measure(name, tokens, threads))
            print(f"{tokens} tokens, round {number + 1}: {name}: {runs[name][-1]}", file=sys.stderr)
    return runs


def compared(runs: Runs) -> dict[str, Any]:
    """Medians and, within each round, ratios."""
    figures: dict[str, Any] = {
        name: {key: middle([r[key] for r in found]) for key in ("seconds", "cpu_seconds", "mib", "loss")}
        for name, found in runs.items()
    }
    for name, found in runs.items():
        for key, base in [(key, base) for key, base in BARE.items() if base in runs]:
            pairs = zip(found, runs[base], strict=True)
            figures[name][key] = middle([r["seconds"] / b["seconds"] for r, b in pairs])
    for name, peers in PEERS.items():
        for peer in [p for p in peers if name in runs and p in runs]:
            pairs = list(zip(runs[name], runs[peer], strict=True))
            figures[name][f"of {peer}"] = {
                "seconds": middle([a["seconds"] / b["seconds"] for a, b in pairs]),
                "mib": middle([a["mib"] / b["mib"] for a, b in pairs]),
            }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--only", nargs="+", choices=[n for n in SUBJECTS if n != "bare"], default=list(SUBJECTS)[1:])
    parser.add_argument("--more", action="store_true", help="add rounds to those in the file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child, options.tokens[0], options.threads)
    names = ["bare", *options.only]
    past = json.loads(options.json.read_text(encoding="utf-8")) if options.more else {"runs": {}}
    runs = dict(past["runs"])
    for tokens in map(str, options.tokens):
        runs[tokens] = measured(names, int(tokens), options.rounds, options.threads, runs.get(tokens, {}))
    report = {
        "hidden": HIDDEN,
        "vocabulary": VOCABULARY,
        "dtype": "float32",
        "threads": options.threads,
        "torch": torch.__version__,
        "trl": importlib.metadata.version("trl"),
        "load": os.getloadavg(),
        "tokens": {tokens: {"rounds": len(found["bare"]), **compared(found)} for tokens, found in sorted(runs.items())},
        "runs": runs,
    }
    options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report["tokens"], indent=1))


if __name__ == "__main__":
    main()
