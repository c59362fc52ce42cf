"""`afterword agent train`: plays episodes, trains on them, plays with the new adapter, round after round.

Every round is `agent play`, `collect` and `train`, going on from the candidate of the round before; the last candidate
is evaluated and judged as any other, and never released here. `DIR/agent/RUN/rounds.jsonl` has a line for each finished
step; the same run goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from afterword.config import EPISODE_RECIPES, trains_episodes
from afterword.cycle import (
    Progress,
    Settings,
    collect_stage,
    decide_stage,
    evaluate_stage,
    train_stage,
)
from afterword.environments.protocol import EnvironmentSpec, EnvSplit
from afterword.environments.results import EpisodeResult, RunFile, summary
from afterword.environments.runner import PlannedEpisode, PlaySettings, plan_episodes, play
from afterword.errors import ConfigError, ConflictError, NothingToDo, UpstreamError, UsageError
from afterword.feedback.select.select import Selection
from afterword.feedback.skills import write_skills
from afterword.learn.parts.contexts import FromEpisode
from afterword.learn.parts.credit import EpisodeCredit
from afterword.learn.recipes.from_config import recipe_of
from afterword.records import Candidate, Episode, Interaction, Json, Report, Verdict
from afterword.release.gate import GateThresholds
from afterword.store import Store
from afterword.store.files import write_whole
from afterword.store.locks import alone

SEEDS_OF_A_ROUND = 1000
"""The episodes of round r have the seed `seed` + r times this."""
EQUAL = "the episodes of each task came to the same outcome"
"""Why a round trains nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTraining:
    """What a run is; a resumed one must be the same."""

    spec: EnvironmentSpec
    play: PlaySettings
    """How episodes are played; `model`, `split`, `seed` and `run` are set by step."""
    rounds: int = 4
    episodes: int = 64
    """Of each round."""
    group: int = 8
    """Episodes of each task in a round."""
    heldout: int = 64
    """Episodes on held-out tasks of an evaluation."""
    every: int = 0
    """Rounds between evaluations; 0 evaluates at the start and the end alone."""

    def __post_init__(self) -> None:
        for name in ("rounds", "episodes", "group", "heldout"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} {getattr(self, name)}: at least 1", param=name)
        if self.every < 0:
            raise UsageError(f"--every {self.every}: 0 or more", param="every")
        if self.group > self.episodes:
            raise UsageError(f"--group {self.group}: at most the number of --episodes, {self.episodes}", param="group")

    def header(self, settings: Settings) -> Json:
        """What must be equal in a resumed run."""
        return {
            "environment": self.spec.name, "recipe": settings.train.recipe, "model": settings.model,
            "seed": self.play.seed, "temperature": self.play.temperature, "episodes": self.episodes,
            "group": self.group, "heldout": self.heldout, "every": self.every, "tools": self.play.tools,
            "max_turns": self.play.max_turns, "start": self.play.model,
        }  # fmt: skip


@dataclass(slots=True)
class TrainingLog:
    """The finished steps of a run, one JSON line each, on disk before the next begins. Use as a context."""

    path: Path
    header: Json
    rows: list[Json] = field(default_factory=list)

    def __enter__(self) -> Self:
        """Reads what is done.

        Raises:
            ConflictError: If the file is of a run with other settings.
            UsageError: If it is no file of a run.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = self.path.read_text("utf-8") if self.path.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # without the last line of a run that was killed
        try:
            header, *self.rows = [json.loads(line) for line in whole.splitlines()] or [self.header]
        except ValueError as error:
            raise UsageError(f"{str(self.path)!r} is no file of a run ({error}): name another --run") from error
        if header != self.header:
            changed = sorted(n for n in {*header, *self.header} if header.get(n) != self.header.get(n))
            raise ConflictError(
                f"the run {self.path.parent.name!r} was started with another {', '.join(changed)}: give the same "
                "values to resume it, or name another run with --run"
            )
        write_whole(self.path, "".join(json.dumps(one) + "\n" for one in (self.header, *self.rows)))
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    def add(self, row: Json) -> None:
        """Write a finished step durably."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)

    def find(self, step: str, number: int) -> Json | None:
        """The finished step, or None."""
        return next((one for one in self.rows if (one["step"], one["round"]) == (step, number)), None)


def train_agent(
    store: Store, settings: Settings, run: AgentTraining, log: TrainingLog, progress: Progress
) -> Candidate:
    """Play and train round after round; evaluate on held-out tasks at the start, the end and every `run.every` rounds.

    Args:
        store: Of the data directory that the gateway writes to.
        settings: Of the stages.
        run: What is played.
        log: Receives each finished step.
        progress: Bars and notes.

    Returns:
        The candidate of the last round.

    Raises:
        ConfigError: If the recipe does not train episodes.
        NothingToDo: If no round gave anything to train.
        UpstreamError: If the server is not there, or none of the episodes of a step could be scored.
    """
    if not trains_episodes(settings.train):
        raise ConfigError(
            f"the recipe {settings.train.recipe!r} does not train episodes: use one of "
            f"{', '.join(sorted(EPISODE_RECIPES))}", param="train.recipe",
        )  # fmt: skip
    with alone(settings.directory, f"agent-{log.path.parent.name}", "a training of this agent"):
        parent: Candidate | None = None
        _evaluated(run, log, progress, parent, settings, 0)
        for number in range(1, run.rounds + 1):
            parent = _round(store, settings, run, log, progress, parent, number)
            if number == run.rounds or (run.every and number % run.every == 0):
                _evaluated(run, log, progress, parent, settings, number)
    if parent is None:
        raise NothingToDo(
            f"none of {run.rounds} rounds gave anything to train: every group of episodes came to the same outcome, or "
            f"none could be scored. See {log.path}; more --episodes, a larger --group or another recipe may help."
        )
    return parent


def _round(
    store: Store,
    settings: Settings,
    run: AgentTraining,
    log: TrainingLog,
    progress: Progress,
    parent: Candidate | None,
    number: int,
) -> Candidate | None:
    """Play with the adapter of the round before and train on what came; the parent again where nothing can be."""
    done = log.find("train", number)
    if done is not None:
        return store.get(Candidate, done["candidate"]) if done["candidate"] else parent
    began = time.monotonic()
    results = _played(run, log, progress, parent, settings, number, "train")
    played, began = time.monotonic() - began, time.monotonic()
    collect_stage(store, settings)
    if _reads_skills(settings):
        write_skills(store, redaction=settings.collect.redact)
    rows = _of_episodes(store, {one.id for one in results if one.scored}, results)
    candidate: Candidate | None = None
    why: str | None = EQUAL
    if not _nothing_to_compare(settings, results):
        candidate, why = _trained(store, settings, progress, parent, rows, number)
    shown = summary(results)
    log.add({
        "step": "train", "round": number, "candidate": candidate.id if candidate else None, "why": why,
        "episodes": shown["episodes"], "scored": shown["scored"], "successes": shown["successes"],
        "turns": shown["turns"], "tool_errors": shown["tool_errors"], "reasons": shown["reasons"],
        "prompt_tokens": shown["prompt_tokens"], "completion_tokens": shown["completion_tokens"],
        "turns_trained": len(rows) if candidate else 0, "play_seconds": round(played, 1),
        "train_seconds": round(time.monotonic() - began, 1),
    })  # fmt: skip
    if why is not None:
        progress.note(f"round {number}: nothing is trained: {why}")
    return candidate or parent


def _reads_skills(settings: Settings) -> bool:
    """True when a teacher of the recipe reads the bank of skills."""
    hints = [term.context.hint for term in recipe_of(settings.train).terms]
    return any(isinstance(hint, FromEpisode) and "skill" in hint.kind for hint in hints)


def _nothing_to_compare(settings: Settings, results: Sequence[EpisodeResult]) -> bool:
    """True when the recipe learns from outcomes against the group alone, and those of each group are equal."""
    rules = [term.advantage for term in recipe_of(settings.train).terms]
    compares = all(isinstance(r, EpisodeCredit) and r.of == "outcome" and r.baseline != "none" for r in rules)
    groups: dict[tuple[str, int], set[float]] = {}
    for one in results:
        if one.outcome is not None:
            groups.setdefault((one.task, one.seed), set()).add(one.outcome)
    return compares and all(len(outcomes) == 1 for outcomes in groups.values())


def _of_episodes(store: Store, names: set[str], results: Sequence[EpisodeResult]) -> list[Interaction]:
    rows = [row for row in store.usable("train", episodes=True) if row.episode_id in names]
    if names and not rows and not list(store.among(Episode, "id", sorted(names))):
        raise UsageError(
            f"none of the {len(results)} episodes is in {str(store.path)!r}: the gateway writes to another data "
            "directory. Name it with --dir, or leave out --url.", param="url",
        )  # fmt: skip
    return rows


def _trained(
    store: Store,
    settings: Settings,
    progress: Progress,
    parent: Candidate | None,
    rows: Sequence[Interaction],
    number: int,
) -> tuple[Candidate | None, str | None]:
    """The candidate of a round, also of one that was trained before an interruption, or why there is none."""
    mine = {row.id for row in rows}
    made = [one for one in store.rows(Candidate) if mine.intersection(one.interactions)]
    if made:
        return made[-1], None
    # The episodes of the round are its batch, whatever else waits to be learned.
    train = replace(settings.train, max_interactions=max(settings.train.max_interactions, len(rows)),
                    min_interactions=1, seed=settings.train.seed + number)  # fmt: skip
    selection = Selection(weights=dict.fromkeys(mine, 1.0), rows=list(rows))
    while True:
        try:
            candidate = train_stage(store, replace(settings, train=train), progress, selection, parent)
        except NothingToDo as error:
            return None, error.message
        if mine.intersection(candidate.interactions):
            return candidate, None
        progress.note(f"finished {candidate.id}, a training that was interrupted earlier")


def _model(run: AgentTraining, settings: Settings, parent: Candidate | None) -> str:
    return run.play.model if parent is None else f"{settings.name}@{parent.id}"


def _played(
    run: AgentTraining,
    log: TrainingLog,
    progress: Progress,
    parent: Candidate | None,
    settings: Settings,
    number: int,
    split: EnvSplit,
) -> list[EpisodeResult]:
    folder = log.path.parent
    place = f"{split}-{number}"
    broken = len(list(folder.glob(f"{place}.broken-*.jsonl")))
    name = f"{folder.name}-{place}" + (f"-{broken + 1}" if broken else "")
    model = _model(run, settings, parent)
    play_settings = replace(run.play, model=model, split=split, record=split == "train", run=name)
    header = {"model": model, "split": split, "round": number}
    with (
        RunFile(folder / f"{place}.jsonl", header) as file,
        progress.bar(f"round {number}: {run.spec.name}, {split} tasks", "episodes") as advance,
    ):
        results = play(run.spec, _planned(run, number, split), play_settings, file, advance)
    if not any(one.scored for one in results):
        (folder / f"{place}.jsonl").rename(folder / f"{place}.broken-{broken + 1}.jsonl")
        reasons = ", ".join(f"{count} {reason}" for reason, count in summary(results)["reasons"].items())
        raise UpstreamError(
            f"round {number}: none of {len(results)} episodes on {split} tasks could be scored ({reasons}; the last "
            f"said: {results[-1].detail or 'nothing'}). Mend that and resume with --run "
            f"{folder.name}: they are played anew."
        )
    return results


def _planned(run: AgentTraining, number: int, split: EnvSplit) -> list[PlannedEpisode]:
    """Held-out episodes are the same in every evaluation; each round draws its own training tasks."""
    tasks, seed = list(run.spec.panel(split)), run.play.seed
    if split == "heldout":
        return plan_episodes(tasks, run.heldout, seed)
    seed += SEEDS_OF_A_ROUND * number
    drawn = random.Random(seed).sample(tasks, min(max(1, run.episodes // run.group), len(tasks)))
    return plan_episodes(drawn, run.episodes, seed, same_seed=True)


def _evaluated(
    run: AgentTraining,
    log: TrainingLog,
    progress: Progress,
    parent: Candidate | None,
    settings: Settings,
    number: int,
) -> None:
    """Play the fixed panel of held-out tasks and note what came of it."""
    if log.find("evaluate", number) is not None:
        return
    began = time.monotonic()
    results = _played(run, log, progress, parent, settings, number, "heldout")
    shown = summary(results)
    row: Json = {"step": "evaluate", "round": number, "candidate": parent.id if parent else None}
    log.add(row | {
        "trained_episodes": sum(one["episodes"] for one in log.rows if one["step"] == "train"),
        "interval": interval(results), "seconds": round(time.monotonic() - began, 1), **shown,
    })  # fmt: skip


def interval(results: Sequence[EpisodeResult]) -> Json | None:
    """Share of successes with its 95 % interval (Wilson); None when no episode could be scored."""
    from afterword.evaluate.stats.statistics import wilson

    scored = [one.success for one in results if one.scored]
    return wilson(sum(scored), len(scored)) if scored else None


def judged(store: Store, settings: Settings, run: AgentTraining, candidate: Candidate, progress: Progress,
           tell: Callable[[str], None]) -> tuple[Report, Verdict]:  # fmt: skip
    """Evaluate the candidate as any other, with the suite `episodes` on this environment, and let the gate decide.

    Where no conversation of users is held out, the suites over conversations are left out, and the gate asks instead
    that episodes do not get worse: the low end of the interval of the difference must not be below 0.
    """
    from afterword.evaluate.comparison.heldout import CONVERSATIONS

    conversations = bool(store.usable("holdout"))
    names = [name for name in settings.evaluate.suites if conversations or name not in CONVERSATIONS]
    suites = tuple(dict.fromkeys((*names, "episodes")))
    evaluate = replace(settings.evaluate, suites=suites, environment=run.spec.name,
                       episodes=max(settings.evaluate.episodes, run.heldout))  # fmt: skip
    gate: GateThresholds = settings.gate
    if not conversations:
        required = tuple(dict.fromkeys((*(n for n in gate.required if n not in CONVERSATIONS), "episodes")))
        gate = replace(gate, required=required, min_episode_success=max(gate.min_episode_success, 0.0))
        if not CONVERSATIONS.isdisjoint(settings.gate.required):
            tell("no conversation of users is held out: the gate asks for success in episodes instead")
    settings = replace(settings, evaluate=evaluate, gate=gate)
    report = evaluate_stage(store, candidate, settings, progress)
    return report, decide_stage(store, report, settings)
