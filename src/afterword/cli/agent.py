"""`afterword agent`: plays episodes of an environment through a gateway, compares versions, trains in rounds."""

from __future__ import annotations

import argparse
import logging
import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.markup import escape

from afterword.cli.context import CommandContext
from afterword.cli.progress import step_bar
from afterword.cli.report_view import show_verdict
from afterword.cli.server_state import running_server
from afterword.cli.stages import stage_progress, stage_settings
from afterword.environments.builtin import BUILT_IN
from afterword.environments.protocol import EnvironmentSpec, EnvSplit, EnvTask
from afterword.environments.registry import ADAPTERS, find_environment
from afterword.environments.results import EpisodeResult, RunFile, summary
from afterword.environments.runner import PlaySettings, plan_episodes, play
from afterword.errors import GateRefused, NothingToDo, UsageError
from afterword.records import Json, TaskSkill
from afterword.store.files import write_whole
from afterword.store.skills import SkillBank

EPISODES, GROUP = 64, 8
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def register(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    group = commands.add_parser("agent", parents=[common])
    verbs = group.add_subparsers(dest="verb", metavar="list|play|evaluate|train", required=True)
    listing = verbs.add_parser("list", parents=[common], help="list the environments")
    listing.set_defaults(run=run_list)
    for verb, about, run in (
        ("play", "play episodes on training tasks and record them", run_play),
        ("evaluate", "compare two versions on held-out tasks, paired; nothing is recorded", run_evaluate),
        ("train", "play, train on the episodes, play with the new adapter, and so on; leaves a candidate", run_train),
    ):
        command = verbs.add_parser(verb, parents=[common], help=about)
        command.add_argument("environment", help="its name (`afterword agent list`)")
        command.add_argument(
            "--episodes", type=int, default=EPISODES, metavar="N", help="of each version or round, default %(default)s"
        )
        command.add_argument(
            "--group", type=int, metavar="G", default=GROUP if verb == "train" else None,
            help="episodes of each task, for baselines by task (default: "
            + (f"{GROUP})" if verb == "train" else "all tasks in turn)"),
        )  # fmt: skip
        command.add_argument("--concurrency", type=int, default=16, metavar="K", help="at once, default %(default)s")
        command.add_argument("--url", help="a gateway (default: the one that runs on this data directory, else an own)")
        command.add_argument("--api-key", default="none", help="API key of the gateway, if it needs one")
        command.add_argument("--seed", type=int, default=0, help="default %(default)s")
        command.add_argument("--temperature", type=float, default=0.7, help="default %(default)s")
        command.add_argument(
            "--max-turns", type=int, metavar="N", help="turns of an episode (default: the environment's)"
        )
        command.add_argument(
            "--step-seconds", type=float, default=30.0, metavar="S", help="limit of one step of the environment"
        )
        command.add_argument("--episode-seconds", type=float, default=600.0, metavar="S", help="limit of an episode")
        command.add_argument("--tools", action="store_true", help="send the environment's tools in OpenAI's form")
        command.add_argument("--run", dest="run_name", metavar="NAME", help="name of the run; the same name resumes it")
        command.set_defaults(run=run)
        if verb == "play":
            command.add_argument("--model", default="afterword", help="model name in the requests (default afterword)")
            command.add_argument(
                "--skills", action="store_true",
                help="put the skill that the bank chooses for a task into its prompt (`afterword episodes skills`)",
            )  # fmt: skip
            command.add_argument("--split", choices=("train", "heldout"), default="train", help="default train")
        elif verb == "train":
            _train_flags(command)
        else:
            command.add_argument(
                "--versions", nargs=2, metavar=("BEFORE", "AFTER"), default=("afterword@base", "afterword"),
                help="model names to compare (default: afterword@base afterword)",
            )  # fmt: skip


def _train_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--recipe", dest="train.recipe", default="episode-grpo", help="default %(default)s")
    command.add_argument("--lr", dest="train.learning_rate", type=float, help="learning rate (default: the recipe's)")
    command.add_argument("--rounds", type=int, default=4, metavar="N", help="default %(default)s")
    command.add_argument("--model", default="afterword", help="version to begin with (default afterword)")
    command.add_argument(
        "--heldout", type=int, default=EPISODES, metavar="N",
        help="episodes on held-out tasks of each evaluation, default %(default)s",
    )  # fmt: skip
    command.add_argument(
        "--every", type=int, default=0, metavar="K",
        help="evaluate every K rounds, too (default: at the start and the end)",
    )  # fmt: skip
    command.add_argument(
        "--no-report", action="store_true", help="leave the candidate unjudged: `afterword evaluate` judges it later"
    )


def run_list(context: CommandContext) -> int:
    """The environments with the sizes of their panels."""
    found = [
        {"name": spec.name, "about": spec.about, "max_turns": spec.max_turns, "train": len(spec.panel("train")),
         "heldout": len(spec.panel("heldout"))} for spec in BUILT_IN.values()
    ]  # fmt: skip
    forms = [form for form, _ in ADAPTERS.values()]
    if context.json:
        context.emit({"environments": found, "adapters": forms})
        return 0
    columns = ("name", "about", "turns", "train tasks", "held-out tasks")
    context.table("environments", columns, [tuple(one.values()) for one in found])
    context.out.print("Others: " + escape(", ".join(forms)))
    return 0


def run_play(context: CommandContext) -> int:
    """Play episodes, record them, and show what came of them."""
    args = context.args
    spec = find_environment(args.environment)
    name = _run_name(args, spec)
    with _gateway(context) as url:
        results = _played(context, spec, url, args.model, args.split, name, record=True)
    shown = summary(results) | {"run": name, "file": str(_run_file(context, name))}
    shown["success_interval"] = _share([one for one in results if one.scored])
    if context.json:
        context.emit(shown)
    else:
        _show_summary(context, f"{spec.name}: {args.model}", shown)
    return 0 if shown["scored"] else 1


def run_evaluate(context: CommandContext) -> int:
    """Play the same held-out tasks with the same seeds by two versions, and compare them."""
    args = context.args
    spec, (before, after) = find_environment(args.environment), args.versions
    name = _run_name(args, spec)
    with _gateway(context) as url:
        found = [
            _played(context, spec, url, model, "heldout", f"{name}-{place}", record=False)
            for model, place in ((before, "before"), (after, "after"))
        ]
    shown: Json = {
        "environment": spec.name, "run": name, "before": summary(found[0]) | {"model": before},
        "after": summary(found[1]) | {"model": after}, "difference": compare(*found),
    }  # fmt: skip
    if context.json:
        context.emit(shown)
        return 0
    for place in ("before", "after"):
        _show_summary(context, f"{spec.name}: {shown[place]['model']}", shown[place])
    rows = [(key, _interval(value), value["n"]) for key, value in shown["difference"].items()]
    context.table("after minus before, paired by task and seed, 95 % intervals", ("metric", "difference", "n"), rows)
    return 0


def run_train(context: CommandContext) -> int:
    """Train in rounds, show success by episodes, judge the last candidate; exit 3 when the gate says no."""
    from afterword.cli.agent_train import AgentTraining, TrainingLog, judged, train_agent

    args, spec = context.args, find_environment(context.args.environment)
    name = _run_name(args, spec)
    run = AgentTraining(
        spec=spec, play=_play_settings(args, "", args.model, name, "train", record=True), rounds=args.rounds,
        episodes=args.episodes, group=args.group, heldout=args.heldout, every=args.every,
    )  # fmt: skip
    judgement = None
    with context.open_store(create=True) as store, _gateway(context) as url, _log(context):
        settings, progress = stage_settings(context), stage_progress(context)
        run = replace(run, play=replace(run.play, url=url))
        file = context.dir / "agent" / name / "rounds.jsonl"
        with TrainingLog(file, run.header(settings)) as log:
            context.say(f"run {name}: its steps are in {escape(str(file))}; `--run {name}` resumes it")
            candidate = train_agent(store, settings, run, log, progress)
        picture = _curve(spec.name, log.rows, file.with_name("success.svg"))
        if not args.no_report:
            judgement = judged(store, settings, run, candidate, progress, context.say)
    report, verdict = judgement or (None, None)
    if context.json:
        context.emit({
            "run": name, "file": str(file), "picture": str(picture), "candidate": candidate.to_dict(),
            "rows": log.rows, "report": report.to_dict() if report else None,
            "verdict": verdict.to_dict() if verdict else None,
        })  # fmt: skip
    else:
        _show_rounds(context, spec.name, log.rows)
        context.out.print(f"candidate {candidate.id}, picture {escape(str(picture))}")
        if verdict is not None:
            show_verdict(context, verdict)
        after = "afterword release publish" if verdict and verdict.passed else "afterword evaluate"
        context.say(f"Nothing was released. Next: `{after} {candidate.id}`.")
    return GateRefused.exit_code if verdict is not None and not verdict.passed else 0


def _show_rounds(context: CommandContext, name: str, rows: list[Json]) -> None:
    shown, total = [], 0
    for row in rows:
        if row["step"] == "train":
            total += row["prompt_tokens"] + row["completion_tokens"]
            won = f"{row['successes']} of {row['scored']}"
            shown.append((row["round"], "trained", won, row["episodes"], total, row["candidate"] or row["why"]))
        else:
            share = row["interval"]
            text = f"{share['value']:.3f} ({share['low']:.3f} to {share['high']:.3f})" if share else "none scored"
            shown.append((row["round"], "held out", text, row["episodes"], "", row["candidate"] or "start"))
    columns = ("round", "step", "success", "episodes", "tokens so far", "candidate")
    context.table(f"{escape(name)}: success, held-out with 95 % intervals", columns, shown)


def _curve(name: str, rows: list[Json], path: Path) -> Path:
    from afterword.evaluate.report.curves import success_curve

    points = [
        (row["trained_episodes"], (row["interval"]["value"], row["interval"]["low"], row["interval"]["high"]))
        for row in rows if row["step"] == "evaluate" and row["interval"]
    ]  # fmt: skip
    write_whole(path, success_curve(f"{name}: success on held-out tasks, 95 % intervals", {name: points}))
    return path


def compare(before: list[EpisodeResult], after: list[EpisodeResult]) -> Json:
    """Paired differences over the episodes that both versions could be scored on, resampling whole tasks."""
    from afterword.evaluate.stats.statistics import mean, paired_share

    pairs = [(a, b) for a, b in zip(before, after, strict=True) if a.scored and b.scored]
    if not pairs:
        raise UsageError("no episode of both versions could be scored: the reasons are in the run files")
    tasks = [a.task for a, _ in pairs]
    found = {"success": paired_share([a.success for a, _ in pairs], [b.success for _, b in pairs], tasks)}
    for metric in ("tool_errors", "turns", "completion_tokens"):
        found[metric] = mean([float(getattr(b, metric) - getattr(a, metric)) for a, b in pairs], tasks)
    won = [(a, b) for a, b in pairs if a.success and b.success]
    if won:
        found["turns_to_success"] = mean([float(b.turns - a.turns) for a, b in won], [a.task for a, _ in won])
    return found


def _share(results: list[EpisodeResult]) -> Json | None:
    from afterword.evaluate.stats.statistics import mean

    if not results:
        return None
    return mean([float(one.success) for one in results], [one.task for one in results])


def _played(
    context: CommandContext,
    spec: EnvironmentSpec,
    url: str,
    model: str,
    split: EnvSplit,
    name: str,
    *,
    record: bool,
) -> list[EpisodeResult]:
    args = context.args
    settings = _play_settings(args, url, model, name, split, record=record)
    settings = replace(settings, skills=_skills(context, spec, split))
    header = {
        "environment": spec.name, "split": split, "model": model, "seed": args.seed, "temperature": args.temperature,
        "max_turns": args.max_turns, "tools": args.tools, "group": args.group,
    }  # fmt: skip
    header |= {"skills": True} if settings.skills else {}
    planned = plan_episodes(_tasks(spec, split, args), args.episodes, args.seed, same_seed=args.group is not None)
    with (
        RunFile(_run_file(context, name), header) as run,
        _log(context),
        step_bar(context, f"{spec.name}: {model}", "episodes") as progress,
    ):
        return play(spec, planned, settings, run, progress)


def _skills(context: CommandContext, spec: EnvironmentSpec, split: EnvSplit) -> dict[str, TaskSkill]:
    """With --skills the bank's choice for each task that has one."""
    if not getattr(context.args, "skills", False):
        return {}
    with context.open_store() as store:
        bank = SkillBank(store)
    found = {task.id: bank.choose(task.id) for task in spec.panel(split)}
    chosen = {name: skill for name, skill in found.items() if skill is not None}
    if not chosen:
        raise NothingToDo(
            f"the bank has no skill for a task of {spec.name}: run `afterword collect` and `afterword episodes skills "
            "--write` after episodes that succeeded"
        )
    return chosen


def _play_settings(
    args: argparse.Namespace, url: str, model: str, name: str, split: EnvSplit, *, record: bool
) -> PlaySettings:
    return PlaySettings(
        url=url, model=model, api_key=args.api_key, temperature=args.temperature, seed=args.seed,
        concurrency=args.concurrency, record=record, tools=args.tools, step_seconds=args.step_seconds,
        episode_seconds=args.episode_seconds, max_turns=args.max_turns, run=name, split=split,
    )  # fmt: skip


def _tasks(spec: EnvironmentSpec, split: EnvSplit, args: argparse.Namespace) -> list[EnvTask]:
    """All tasks; with --group as many as --episodes has groups, drawn by --seed."""
    tasks = list(spec.panel(split))
    if args.group is None:
        return tasks
    if not 0 < args.group <= args.episodes:
        raise UsageError(f"--group {args.group}: from 1 to the number of --episodes, {args.episodes}", param="group")
    return random.Random(args.seed).sample(tasks, min(args.episodes // args.group, len(tasks)))


def _run_name(args: argparse.Namespace, spec: EnvironmentSpec) -> str:
    name = args.run_name or f"{re.sub(r'[^A-Za-z0-9]+', '-', spec.name)}-{time.strftime('%Y%m%d-%H%M%S')}"
    if not _RUN_NAME.fullmatch(name):
        raise UsageError(f"--run {name!r}: letters, digits, dots, hyphens and underscores, at most 100", param="run")
    return str(name)


def _run_file(context: CommandContext, name: str) -> Path:
    return context.dir / "agent" / f"{name}.jsonl"


@contextmanager
def _log(context: CommandContext) -> Iterator[None]:
    """One line for each episode in DIR/logs/agent.log."""
    path = context.dir / "logs" / "agent.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("afterword.environments")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()


@contextmanager
def _gateway(context: CommandContext) -> Iterator[str]:
    """The address of --url, of the gateway that runs here, or of one that ends with the command."""
    if context.args.url:
        from afterword.simulate.client import api_root

        yield api_root(context.args.url)
        return
    server = running_server(context.dir)
    if server is not None:
        yield f"{server['url']}/v1"
        return
    from afterword.cli.demo_processes import serving

    context.say("no gateway runs here: starting one for this command")
    with serving(context.dir, getattr(context.args, "settings", None) or ()) as url:
        yield f"{url}/v1"


def _show_summary(context: CommandContext, title: str, shown: Json) -> None:
    rows = [(name.replace("_", " "), _cell(value)) for name, value in shown.items() if value not in (None, {}, [])]
    context.table(escape(title), ("figure", "value"), rows)


def _cell(value: Any) -> str:
    if isinstance(value, dict) and {"low", "high"} <= value.keys():
        return _interval(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {number}" for name, number in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else f"{value}"


def _interval(value: Json) -> str:
    return f"{value['value']:+.3f} ({value['low']:+.3f} to {value['high']:+.3f})"
