"""What sharing prefixes saves in a training step: tokens read, time and memory, beside separate rows and TRL.

    python benchmarks/shared_prefix.py [--steps 3] [--rounds 2] [--threads 2] [--subjects ours separate trl]

Two steps of 8 rows, as `benchmarks/train_step.py` has them in all else (SmolLM2-135M-Instruct, LoRA of rank 16, forward
KL to the model itself reading a follow-up): `answers` are 8 answers of 128 tokens to one prompt of about 200, and
`conversation` is 8 turns of one conversation, each a question of about 40 tokens and an answer of 60, all 8 answers
scored. `needed` counts every token once that any row holds, `read` is what the student's pass takes through the model
with a gradient; the aim is 1.15 and 1.2 times what is needed. `separate` is our own step with sharing off, `trl` TRL's
SDFT trainer with 8 rows at a time (extra `compare`). Each subject runs in a fresh process; a step's time is the median
of those after the first. Writes benchmarks/results/shared_prefix.json.
"""

from __future__ import annotations

import argparse
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

from train_step import FOLLOW_UP, RANK, WORDS, Run, memory, trl_clock, trl_settings

RESULTS = Path(__file__).parent / "results" / "shared_prefix.json"
ROWS = 8
CASES = ("answers", "conversation")
SUBJECTS = ("ours", "separate", "trl")
Conversation = list[dict[str, str]]


def rows_of(case: str, tokenizer: Any) -> list[tuple[Conversation, list[int]]]:
    """(messages before the answer, answer ids with the end of turn) of each row."""
    dice = random.Random(0)

    def words(count: int) -> str:
        return " ".join(dice.choices(WORDS, k=count))

    def answer(tokens: int) -> list[int]:
        return [*tokenizer.encode(words(2 * tokens), add_special_tokens=False)[: tokens - 1], tokenizer.eos_token_id]

    if case == "answers":
        question = [{"role": "user", "content": words(140) + "?"}]
        return [(question, answer(128)) for _ in range(ROWS)]
    found: list[tuple[Conversation, list[int]]] = []
    history: Conversation = []
    for _ in range(ROWS):
        history = [*history, {"role": "user", "content": words(34) + "?"}]
        ids = answer(60)
        found.append((history, ids))
        history = [*history, {"role": "assistant", "content": tokenizer.decode(ids[:-1])}]
    return found


def run_ours(case: str, steps: int, folder: Path, *, share: bool) -> tuple[Run, dict[str, int]]:
    import torch

    from afterword.chat.render import decode, render_prompt
    from afterword.learn.parts.teachers import LIVE
    from afterword.learn.recipes import sdpo_interactions
    from afterword.model import packing
    from afterword.model.loading import EMBEDDED, load_tokenizer
    from afterword.records import Interaction, Turn
    from afterword.train.data.examples import Example
    from afterword.train.loop import train_candidate
    from afterword.train.monitoring.alerts import OFF

    run, tokenizer = Run(), load_tokenizer(EMBEDDED)
    examples, whole = [], []
    for number, (messages, ids) in enumerate(rows_of(case, tokenizer)):
        prompt = render_prompt(tokenizer, tuple(messages)).ids
        whole.append((*prompt, *ids))
        turn = Turn(
            id=f"t{number}",
            messages=tuple(messages),
            answer={"role": "assistant", "content": decode(tokenizer, ids[:-1])},
            prompt_ids=prompt,
            completion_ids=tuple(ids),
        )
        interaction = Interaction(
            id=f"i{number}", turn=turn.id, feedback=(), kind="follow_up", hindsight=FOLLOW_UP, polarity=-1, weight=1.0,
            split="train",
        )  # fmt: skip
        examples.append(Example(interaction, turn))
    if not share:
        packing._LEAST_SHARED = 1.0
    plain, read = packing.packed_states, {"tokens": 0}

    def counted(causal: Any, ids: Any, *rest: Any, **named: Any) -> Any:
        if torch.is_grad_enabled():
            read["tokens"] += len(ids)
        return plain(causal, ids, *rest, **named)

    packing.packed_states = counted
    train_candidate(
        examples,
        model=EMBEDDED,
        out=folder / "out",
        run_dir=folder / "run",
        recipe=sdpo_interactions(teacher=LIVE, batch=ROWS, epochs=steps, fresh=0, lr=1e-4),
        progress=lambda metrics: run.end(metrics.seconds),
        device="cpu",
        save_every=1000,
        rules=OFF,
    )
    needed = len({ids[: n + 1] for ids in whole for n in range(len(ids))})
    return run, {"needed": needed, "rows": sum(map(len, whole)), "read": read["tokens"] // steps}


def run_trl(case: str, steps: int, folder: Path) -> Run:
    from datasets import Dataset
    from peft import LoraConfig
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    from afterword.model.loading import EMBEDDED, load_model, load_tokenizer

    run, tokenizer = Run(), load_tokenizer(EMBEDDED)
    given = rows_of(case, tokenizer)

    class Given(SDFTTrainer):  # type: ignore[misc]
        served = 0

        def _generate(self, prompt_ids: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
            start, self.served = self.served, self.served + len(prompt_ids)
            return prompt_ids, [list(given[(start + k) % ROWS][1]) for k in range(len(prompt_ids))]

    options = trl_settings(folder, steps, ROWS) | {"gradient_accumulation_steps": 1}
    trainer = Given(
        model=load_model(EMBEDDED, device="cpu"),
        args=SDFTConfig(**options),
        train_dataset=Dataset.from_list([{"prompt": m, "privileged_context": FOLLOW_UP} for m, _ in given] * steps),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
        ),
        callbacks=[trl_clock(run)],
    )
    trainer.train()
    return run


def child(subject: str, case: str, steps: int, threads: int) -> None:
    if subject != "trl":
        import afterword.train  # noqa: F401  before torch: it sets how threads wait
    import torch

    torch.set_num_threads(threads)
    tokens: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        if subject == "trl":
            run = run_trl(case, steps, Path(folder))
        else:
            run, tokens = run_ours(case, steps, Path(folder), share=subject == "ours")
    times = {"step": statistics.median(run.seconds[1:]), "step_cpu": statistics.median(run.cpu[1:])}
    print(json.dumps(times | tokens | {"mib_above_start": memory("VmHWM") - run.start}))


def measure(subject: str, case: str, steps: int, threads: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", subject, "--case", case]
    command += ["--steps", str(steps), "--threads", str(threads)]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise SystemExit(f"{subject} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    read = f", {found['read'] / found['needed']:.2f} of the tokens needed" if "read" in found else ""
    print(
        f"{case}, {subject}: {found['step']:.1f} s a step, {found['step_cpu']:.1f} s of CPU, "
        f"{found['mib_above_start']:.0f} MiB above the start{read}",
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
    options.add_argument("--case", choices=CASES)
    args = options.parse_args()
    if args.child:
        child(args.child, args.case, args.steps, args.threads)
        return
    cases = CASES if args.case is None else (args.case,)
    before, started = os.getloadavg(), time.time()
    rounds = [
        {case: {s: measure(s, case, args.steps, args.threads) for s in args.subjects} for case in cases}
        for _ in range(args.rounds)
    ]
    result = {
        "threads": args.threads,
        "load_before": before,
        "load_after": os.getloadavg(),
        "seconds": time.time() - started,
        "rounds": rounds,
        "ratios": {
            case: {
                other: {
                    "times_as_fast": statistics.median(
                        r[case][other]["step"] / r[case]["ours"]["step"] for r in rounds
                    ),
                    "times_as_fast_cpu": statistics.median(
                        r[case][other]["step_cpu"] / r[case]["ours"]["step_cpu"] for r in rounds
                    ),
                }
                for other in args.subjects
                if other != "ours" and "ours" in args.subjects
            }
            for case in cases
        },
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result["ratios"], indent=2))


if __name__ == "__main__":
    main()
