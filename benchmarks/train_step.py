"""What a whole training step costs, beside TRL's SDFT trainer on the same answers.

    python benchmarks/train_step.py [--steps 3] [--rounds 2] [--threads 2] [--subjects ours trl-8 ...]

One optimiser step: 16 turns whose answers are 128 tokens, forward KL over the whole vocabulary to the model itself
reading the user's follow-up after the question ("live" teacher: a student pass, a teacher pass and a backward pass in
every step for both), SmolLM2-135M-Instruct in bfloat16 (float32 where the CPU does not multiply that natively), a
float32 LoRA of rank 16 on all linear layers, AdamW. Both
sides get the same ids; TRL's generation is replaced by them, its importance sampling (another pass) is off. `trl-8`
takes eight turns at a time (TRL's default) with accumulation, `trl-16` and `trl-4` so many. Every subject runs in a
fresh process; a step's time is the median of those after the first, by the clock and in seconds of processor time
(which other work on the machine hardly changes). How threads wait for each other is left to either side's own
default. Memory is the process's highest resident set (VmHWM), whole and above what was resident once its libraries
were imported. Ratios are medians over rounds, each within its round. Needs the extra `compare`. Writes
benchmarks/results/train_step.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "train_step.json"
TURNS, TOKENS, RANK = 16, 128, 16
WORDS = [
    "garden",
    "water",
    "recipe",
    "train",
    "station",
    "morning",
    "flour",
    "engine",
    "window",
    "letter",
    "river",
    "music",
    "budget",
    "ticket",
    "python",
    "list",
    "function",
    "error",
    "table",
    "simple",
    "answer",
    "because",
    "before",
    "little",
    "steps",
    "mountain",
    "coffee",
    "teacher",
    "number",
    "question",
    "short",
    "longer",
    "please",
    "reason",
    "winter",
    "market",
    "travel",
    "lesson",
    "example",
    "second",
    "colour",
    "bridge",
    "doctor",
    "paper",
]
FOLLOW_UP = "Too long. Please answer in one short sentence, and say hello first."
PEERS = ("trl-16", "trl-8", "trl-4")
SUBJECTS = ("ours", *PEERS)


class Run:
    """Times of the steps of a run, and what was resident before its model was loaded."""

    def __init__(self) -> None:
        self.start = memory("VmRSS")
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        self._last = time.process_time()

    def begin(self) -> None:
        self._last = time.process_time()

    def end(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self.cpu.append(time.process_time() - self._last)
        self.begin()


def turns(tokenizer: Any, steps: int) -> list[tuple[str, list[int]]]:
    """(question, answer ids) for every step: TOKENS ids with the end of turn."""
    dice = random.Random(0)
    made = []
    for number in range(steps * TURNS):
        question = f"Question {number}: " + " ".join(dice.choices(WORDS, k=24)) + "?"
        ids = tokenizer.encode(" ".join(dice.choices(WORDS, k=2 * TOKENS)), add_special_tokens=False)
        made.append((question, [*ids[: TOKENS - 1], tokenizer.eos_token_id]))
    return made


def run_ours(steps: int, folder: Path) -> Run:
    from afterword.chat.render import decode, render_prompt
    from afterword.learn.parts.teachers import LIVE
    from afterword.learn.recipes import sdpo_interactions
    from afterword.model.loading import EMBEDDED, load_tokenizer
    from afterword.records import Interaction, Turn
    from afterword.train.data.examples import Example
    from afterword.train.loop import train_candidate
    from afterword.train.monitoring.alerts import OFF

    run = Run()
    tokenizer = load_tokenizer(EMBEDDED)
    examples = []
    for number, (question, ids) in enumerate(turns(tokenizer, steps)):
        messages = ({"role": "user", "content": question},)
        text = decode(tokenizer, ids[:-1])
        turn = Turn(
            id=f"t{number}",
            messages=messages,
            answer={"role": "assistant", "content": text},
            prompt_ids=render_prompt(tokenizer, messages).ids,
            completion_ids=tuple(ids),
        )
        interaction = Interaction(
            id=f"i{number}",
            turn=turn.id,
            feedback=(),
            kind="follow_up",
            hindsight=FOLLOW_UP,
            polarity=-1,
            weight=1.0,
            split="train",
        )
        examples.append(Example(interaction, turn))
    recipe = sdpo_interactions(teacher=LIVE, batch=TURNS, epochs=1, fresh=0, lr=1e-4)
    train_candidate(
        examples,
        model=EMBEDDED,
        out=folder / "out",
        run_dir=folder / "run",
        recipe=recipe,
        progress=lambda metrics: run.end(metrics.seconds),
        device="cpu",
        save_every=1000,
        rules=OFF,
    )
    return run


def trl_settings(folder: Path, steps: int, at_once: int) -> dict[str, Any]:
    """What TRL's SDFTConfig is given: the same step as ours."""
    from afterword.model.loading import native_dtype

    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": TURNS // at_once,
        "max_steps": steps,
        "num_generations": 1,
        "max_completion_length": TOKENS,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "distillation_mode": "full_logits",
        "distillation_alpha": 0.0,
        "distillation_topk": None,
        "distillation_is_clip": None,
        "teacher_model_kind": "live",
        "gradient_checkpointing": False,
        "shuffle_dataset": False,
        "bf16": native_dtype("auto", "cpu") == "bfloat16",
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
    }


def trl_clock(run: Run) -> Any:
    """A callback that tells `run` when steps begin and end."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        started = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.monotonic()
            run.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            run.end(time.monotonic() - self.started)

    return Clock()


def run_trl(steps: int, folder: Path, at_once: int) -> Run:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    from afterword.model.loading import EMBEDDED, load_model, load_tokenizer

    run = Run()
    tokenizer = load_tokenizer(EMBEDDED)
    given = turns(tokenizer, steps)
    answers = {
        tuple(
            tokenizer.apply_chat_template([{"role": "user", "content": q}], add_generation_prompt=True)["input_ids"]
        ): a
        for q, a in given
    }

    class Given(SDFTTrainer):  # type: ignore[misc]
        def _generate(self, prompt_ids: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
            return prompt_ids, [list(answers[tuple(ids)]) for ids in prompt_ids]

    rows = [{"prompt": [{"role": "user", "content": q}], "privileged_context": FOLLOW_UP} for q, _ in given]
    trainer = Given(
        model=load_model(EMBEDDED, device="cpu"),
        args=SDFTConfig(**trl_settings(folder, steps, at_once)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
        ),
        callbacks=[trl_clock(run)],
    )
    trained = {p.dtype for p in trainer.model.parameters() if p.requires_grad}
    assert trained == {torch.float32}, trained
    trainer.train()
    return run


def memory(name: str) -> float:
    """MiB: VmRSS is resident now, VmHWM the most that ever was."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {name} on this system")


def child(subject: str, steps: int, threads: int) -> None:
    if subject == "ours":
        import afterword.train  # noqa: F401  before torch, as every command of ours does: it sets how threads wait
    import torch

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        if subject == "ours":
            run = run_ours(steps, Path(folder))
        else:
            run = run_trl(steps, Path(folder), int(subject.removeprefix("trl-")))
    most = memory("VmHWM")
    times = {"seconds": run.seconds, "cpu_seconds": run.cpu}
    medians = {"step": statistics.median(run.seconds[1:]), "step_cpu": statistics.median(run.cpu[1:])}
    print(json.dumps(times | medians | {"mib": most, "mib_above_start": most - run.start}))


def measure(subject: str, steps: int, threads: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", subject, "--steps", str(steps), "--threads", str(threads)]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise SystemExit(f"{subject} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{subject}: {found['step']:.1f} s a step, {found['step_cpu']:.1f} s of CPU, {found['mib']:.0f} MiB, "
        f"{found['mib_above_start']:.0f} above the start",
        file=sys.stderr,
    )
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=3)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=SUBJECTS)
    options.add_argument("--child", choices=SUBJECTS)
    args = options.parse_args()
    if args.child:
        child(args.child, args.steps, args.threads)
        return
    before = os.getloadavg()
    rounds = [{s: measure(s, args.steps, args.threads) for s in args.subjects} for _ in range(args.rounds)]
    ratios = {
        peer: {
            "times_as_fast": statistics.median(r[peer]["step"] / r["ours"]["step"] for r in rounds),
            "times_as_fast_cpu": statistics.median(r[peer]["step_cpu"] / r["ours"]["step_cpu"] for r in rounds),
            "share_of_its_memory": statistics.median(r["ours"]["mib"] / r[peer]["mib"] for r in rounds),
            "share_above_start": statistics.median(
                r["ours"]["mib_above_start"] / r[peer]["mib_above_start"] for r in rounds
            ),
        }
        for peer in PEERS
        if "ours" in args.subjects and peer in args.subjects
    }
    result = {
        "turns": TURNS,
        "tokens": TOKENS,
        "rank": RANK,
        "threads": args.threads,
        "trl": importlib.metadata.version("trl"),
        "load_before": before,
        "load_after": os.getloadavg(),
        "rounds": rounds,
        "ratios": ratios,
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(ratios, indent=2))


if __name__ == "__main__":
    main()
