"""Runs `afterword demo`: the whole loop on the embedded model with a simulated user, by the documented commands.

    serve -> ask held-out questions -> chat -> cycle -> ask them again -> report

`serve` and `cycle` run as separate processes, so the server never pauses for training and training's memory is freed.
Everything that is shown comes out of the store or was measured through the gateway; no figure is fixed.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from afterword.cli.context import CommandContext
from afterword.cli.demo_control import CONTROLS, QUICK_CONTROLS, control_questions, controls
from afterword.cli.demo_findings import DemoFindings, report_data
from afterword.cli.demo_processes import Meter, run_json, serving
from afterword.cli.demo_report import measure_example, show, write_reports
from afterword.cli.extras import require_extra
from afterword.cli.progress import step_bar
from afterword.cli.server_state import running_server
from afterword.config import ServeConfig
from afterword.errors import GateRefused, UpstreamError, UsageError
from afterword.records import Release
from afterword.simulate import (
    Persona,
    ServedAnswer,
    SimulationSummary,
    TaskPrompt,
    ask_heldout,
    load_persona,
    load_prompts,
    persona_names,
    simulate_users,
)
from afterword.store import Store

if TYPE_CHECKING:
    from afterword.evaluate.report.heatmap import Heatmap

DEFAULT_DIR = "./afterword-demo"
DEFAULT_MODEL = ServeConfig().model
DEFAULT_PERSONA = "brief"
CONVERSATIONS = 80
HELDOUT = 64
MAX_TOKENS = 64
QUESTIONS = ("question",)
"""The demo asks what can be answered in a few words; other tasks need longer answers than its minutes allow."""
QUICK_CONVERSATIONS = 12
QUICK_HELDOUT = 8
QUICK_TOKENS = 48
QUICK_SETTINGS = (
    "collect.holdout=0.5",
    "train.epochs=1",
    "train.fresh=0",
    "train.min_interactions=2",
    "train.max_interactions=12",
    'evaluate.suites=["holdout","collapse","forgetting"]',
    "evaluate.min_answers=16",
)
"""What `--quick` sets: enough of few conversations on both sides, one epoch over the served answers alone, the required
suites alone and with few answers."""
QUICK_WHY = "a quick demo: shows that a release is served, not that it is better"
SWAP_SECONDS = 15.0
"""How long a release may take to reach the users before the demo gives up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """Settings of a demo."""

    directory: Path
    """A data directory without a database; it stays afterwards."""
    persona: Persona
    conversations: int = CONVERSATIONS
    heldout: int = HELDOUT
    """Held-out questions that measure the trait before and after."""
    seed: int = 0
    model: str = DEFAULT_MODEL
    max_tokens: int = MAX_TOKENS
    """Length bound of every answer."""
    temperature: float = 1.0
    """Of the answers in the conversations; held-out questions are answered greedily."""
    overrides: tuple[str, ...] = ()
    """`SECTION.KEY=VALUE` settings that are handed on to the commands."""
    quick: bool = False
    """A smoke test: it releases also against the gate, so that every stage runs, and claims nothing about learning."""


def register(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    demo = commands.add_parser(
        "demo", parents=[common],
        description="Serve, chat, collect, train, evaluate, gate, release, serve again, and show what changed. "
        "Exit 0: released and better on held-out questions; 3: not. With --quick 0: every stage ran.",
    )  # fmt: skip
    demo.add_argument(
        "--quick", action="store_true",
        help="smoke test of about two minutes: every stage runs once, with too few questions to measure learning",
    )  # fmt: skip
    demo.add_argument(
        "--open", action="store_true", help="leave the server with its console running at the end, until Ctrl-C"
    )
    demo.add_argument("--persona", default=DEFAULT_PERSONA, metavar="NAME", help=", ".join(persona_names()))
    demo.add_argument(
        "--conversations", type=int, metavar="N", help=f"default {CONVERSATIONS}, quick {QUICK_CONVERSATIONS}"
    )
    demo.add_argument("--heldout", type=int, metavar="N", help=f"questions, default {HELDOUT}, quick {QUICK_HELDOUT}")
    demo.add_argument("--seed", type=int, default=0, help="of questions, users and training (default %(default)s)")
    demo.add_argument("--model", default=DEFAULT_MODEL, metavar="REF", help="built-in name, folder or hub id")
    demo.set_defaults(run=run)


def run(context: CommandContext) -> int:
    """Run the command: check its arguments, then run the demo."""
    args = context.args
    require_extra("model", "the demo")
    usual = (QUICK_CONVERSATIONS, QUICK_HELDOUT) if args.quick else (CONVERSATIONS, HELDOUT)
    conversations = usual[0] if args.conversations is None else args.conversations
    heldout = usual[1] if args.heldout is None else args.heldout
    questions = len(load_prompts("heldout", QUESTIONS))
    if conversations < 8:
        raise UsageError(f"--conversations {conversations} is too few to learn from: use at least 8")
    if not 8 <= heldout <= questions:
        raise UsageError(f"--heldout {heldout}: use 8 to {questions} questions")
    settings = DemoSettings(
        directory=context.dir if "dir" in args else fresh_directory(Path(DEFAULT_DIR)),
        persona=load_persona(args.persona),
        conversations=conversations,
        heldout=heldout,
        seed=args.seed,
        model=args.model,
        max_tokens=QUICK_TOKENS if args.quick else MAX_TOKENS,
        overrides=(*(QUICK_SETTINGS if args.quick else ()), *(getattr(args, "settings", None) or ())),
        quick=args.quick,
    )
    code = run_demo(settings, context)
    if args.open:
        leave_open(settings, context)
    return code


def leave_open(settings: DemoSettings, context: CommandContext) -> None:
    """Serve what the demo released, with the console, until Ctrl-C or until the server ends."""
    with serving(settings.directory, settings.overrides, lambda line: context.say(f"  [dim]{escape(line)}[/]")) as url:
        context.say(f"[bold]console {url}/console[/], chat {url}/chat  (Ctrl-C stops)")
        with suppress(KeyboardInterrupt):
            while running_server(settings.directory) is not None:
                time.sleep(1.0)


def fresh_directory(wanted: Path) -> Path:
    """`wanted`, or `wanted-2` and so on when there is one already."""
    found, number = wanted, 1
    while found.exists():
        number += 1
        found = wanted.with_name(f"{wanted.name}-{number}")
    return found


def run_demo(settings: DemoSettings, context: CommandContext) -> int:
    """Run the loop, print the changes, write `report.json` and `report.html`; returns the exit code.

    0 when the release is better on held-out questions, 3 when the gate said no or the trait did not rise; 0 for a
    quick demo, in which every stage ran by then.
    """
    prepare(settings)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that `finally` runs
    with Meter() as meter:
        findings = _loop(settings, context, meter)
        with meter.stage("heat map"):
            heatmap, losses = _details(settings.directory, findings)
        report = report_data(findings, meter)
    write_reports(findings, report, heatmap, losses, settings.directory)
    if context.json:
        context.emit(report)
    else:
        show(findings, report, heatmap, context, settings.directory)
    return 0 if findings.better or settings.quick else GateRefused.exit_code


def prepare(settings: DemoSettings) -> None:
    """A fresh data directory whose settings are this demo's, so that `serve` and `cycle` find them there."""
    directory = settings.directory
    if (directory / "afterword.db").exists():
        raise UsageError(
            f"{str(directory)!r} holds data already and the demo starts from nothing: name a new folder with --dir, "
            "or remove that one.",
            param="dir",
        )
    directory.mkdir(parents=True, exist_ok=True)
    sections: dict[str, dict[str, str | int]] = {
        "serve": {"model": settings.model},
        "train": {"seed": settings.seed},
        "evaluate": {"seed": settings.seed, "max_tokens": settings.max_tokens},
    }
    lines = ["# Written by `afterword demo`."]
    for section, values in sections.items():
        lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    (directory / "afterword.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _loop(settings: DemoSettings, context: CommandContext, meter: Meter) -> DemoFindings:
    """The demo from top to bottom."""
    directory, persona = settings.directory, settings.persona
    prompts = load_prompts("heldout", QUESTIONS)[: settings.heldout]
    facts = control_questions(QUICK_CONTROLS if settings.quick else CONTROLS)
    asked = [*prompts, *(question for question, _ in facts)]
    tell = lambda line: context.say(f"  [dim]{escape(line)}[/]")  # noqa: E731
    context.say(f"[bold]1[/] serving {escape(settings.model)} from {directory}")
    with meter.entering("start", serving(directory, settings.overrides, tell)) as url:
        context.say(f"[bold]2[/] asking {len(prompts)} held-out questions, and {len(facts)} unrelated ones, first")
        with meter.stage("before"):
            before = _ask(settings, context, url, asked)
        context.say(f"[bold]3[/] {persona.name!r} chats. It wants: {escape(persona.wants)}")
        with meter.stage("chat"):
            summary = _chat(settings, context, url)
        context.say("[bold]4[/] collect, train, evaluate, decide, publish; the server goes on serving")
        with meter.stage("cycle"):
            run_json(directory, "cycle", overrides=settings.overrides, fine=(0, GateRefused.exit_code))
            release = _released(settings)
        context.say("[bold]5[/] asking the same questions again")
        with meter.stage("after"):
            if release is not None:
                wait_for_release(url, prompts[:1], str(release.adapter))
            after = _ask(settings, context, url, asked)
    with Store.open(directory / "afterword.db") as store:
        n = len(prompts)
        return DemoFindings.of(
            store, persona, settings.seed, prompts, before[:n], after[:n], summary, quick=settings.quick,
            control=controls(facts, before[n:], after[n:]),
        )  # fmt: skip


def _released(settings: DemoSettings) -> Release | None:
    """What the cycle released. A quick demo releases a refused candidate too, by a recorded override."""
    with Store.open(settings.directory / "afterword.db") as store:
        release = store.newest(Release)
    if release is None and settings.quick:
        words = ("release", "publish", "--override", "afterword demo --quick", "--why", QUICK_WHY)
        run_json(settings.directory, *words, overrides=settings.overrides)
        with Store.open(settings.directory / "afterword.db") as store:
            release = store.newest(Release)
    return release


def _details(directory: Path, findings: DemoFindings) -> tuple[Heatmap | None, list[float]]:
    """A heat map of one interaction, and the training loss by step."""
    from afterword.train.monitoring.metrics import read_metrics

    with Store.open(directory / "afterword.db") as store:
        heatmap = measure_example(store, findings)
    return heatmap, [step.loss for step in read_metrics(directory / "runs" / findings.candidate.id)]


def _ask(
    settings: DemoSettings, context: CommandContext, url: str, prompts: Sequence[TaskPrompt]
) -> list[ServedAnswer]:
    with step_bar(context, "held-out questions", "answers") as advance:
        return ask_heldout(url, prompts, seed=settings.seed, max_tokens=settings.max_tokens, progress=advance)


def _chat(settings: DemoSettings, context: CommandContext, url: str) -> SimulationSummary:
    with step_bar(context, f"{settings.persona.name} chats", "conversations") as advance:
        return simulate_users(
            url, settings.persona, conversations=settings.conversations, seed=settings.seed,
            prompts=load_prompts("train", QUESTIONS),
            max_tokens=settings.max_tokens, temperature=settings.temperature, name_conversations=True,
            progress=advance,
        )  # fmt: skip


def wait_for_release(url: str, prompts: Sequence[TaskPrompt], adapter: str, patience: float = SWAP_SECONDS) -> float:
    """Ask until `adapter` answers; the seconds it took. UpstreamError when it does not come within `patience`."""
    started = time.monotonic()
    while True:
        answered = ask_heldout(url, prompts[:1], max_tokens=1)[0].adapter
        waited = time.monotonic() - started
        if answered == adapter:
            return waited
        if waited > patience:
            raise UpstreamError(
                f"{adapter} was released {waited:.0f} s ago and {answered or 'the base model'} still answers at {url}: "
                f"see {url}/health and the server's log"
            )
        time.sleep(0.1)
