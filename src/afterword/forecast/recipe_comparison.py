"""Trains several recipes on one task with equal tokens and compares their gains on held-out prompts.

Every recipe learns from the same answers of the same student and is marked on the same held-out prompts with the same
draws. Each finished training appends one JSON line, and a call skips the lines that are there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import stdev
from typing import Any

import orjson
from scipy import stats

from afterword.errors import NothingToDo, UsageError
from afterword.evaluate.report.pages import intervals, render
from afterword.forecast.calibrate import heldout_answers, heldout_items, standard_error
from afterword.forecast.student import Asked, Student, training_tokens
from afterword.forecast.tasks import RIGHT, TaskItem, VerifiableTask, task_of
from afterword.learn.parts.contexts import ENVIRONMENT_KINDS, PEER_KINDS, REFERENCE_KINDS, Context
from afterword.learn.parts.weights import kinds_of
from afterword.learn.recipes import Recipe, describe
from afterword.learn.recipes.validate import check_runnable
from afterword.model.generation.drawing import DrawnAnswer
from afterword.records import Interaction, Json, Turn, content_hash
from afterword.train.data.examples import Example
from afterword.train.loop import train_candidate
from afterword.train.monitoring.alerts import OFF

VERIFIER = "afterword.forecast.tasks:task_reward"
FIRST, PEERS = 1, 3
"""Numbers of the draws of a seed."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeRun:
    """One training of a comparison."""

    recipe: str
    task: str
    model: str
    base_hash: str
    seed: int
    settings: str = ""
    """Hash of the recipe with its options, of the prompts and of the budget; runs of other settings are not mixed."""
    before: float
    """Mean mark on the held-out prompts, 0 .. 1."""
    after: float
    gain_se: float
    """Standard error of after - before over prompts."""
    heldout: int
    examples: int
    """Interactions that were trained."""
    steps: int
    tokens: int
    """Forward-pass tokens of the training; a backward pass counts twice its forward pass."""
    seconds: float
    """CPU time of the training."""
    length: float
    """Mean tokens of an answer afterwards."""

    @property
    def gain(self) -> float:
        """Mean mark after minus before."""
        return self.after - self.before


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeComparison:
    """Settings of a comparison."""

    task: str
    recipes: tuple[Recipe, ...]
    model: str
    seeds: tuple[int, ...] = (0, 1, 2)
    prompts: int = 64
    heldout: int = 48
    samples: int = 2
    """Answers to each held-out prompt."""
    tokens: int | None = None
    """Tokens of each training at most; None takes what the cheapest recipe needs for all prompts."""

    def settings_of(self, one: Recipe) -> str:
        """Hash of everything that decides the figures of a recipe but model, task and seed. Without `tokens` the budget
        follows from all recipes that are compared."""
        budget = self.tokens or sorted(content_hash(describe(each)) for each in self.recipes)
        return content_hash([describe(one), self.prompts, self.heldout, self.samples, budget])

    def own(self, runs: Iterable[RecipeRun]) -> list[RecipeRun]:
        """The runs that belong to this comparison."""
        wanted = {one.name: self.settings_of(one) for one in self.recipes}
        return [
            run for run in runs
            if run.task == self.task and run.seed in self.seeds and wanted.get(run.recipe) == run.settings
        ]  # fmt: skip


def read_runs(path: Path) -> list[RecipeRun]:
    """The finished trainings of a file, none where it is missing.

    Raises:
        UsageError: A line is no such training.
    """
    if not path.is_file():
        return []
    found, known = [], {f.name for f in fields(RecipeRun)}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            found.append(RecipeRun(**{k: v for k, v in orjson.loads(line).items() if k in known}))
        except (orjson.JSONDecodeError, TypeError, AttributeError) as error:
            raise UsageError(f"line {number} of {str(path)!r} is no training of a comparison: {error}") from error
    return found


def run_comparison(
    how: RecipeComparison, file: Path, work: Path, *, device: str = "auto", say: Say = lambda _: None
) -> int:
    """Train the runs that are missing in `file`.

    Args:
        how: The comparison.
        file: JSON lines; created, appended to.
        work: Folder for adapters and runs.
        device: Where to compute.
        say: Gets a sentence for each training.

    Returns:
        Trainings of this call.

    Raises:
        ConfigError: The task is unknown, or a recipe cannot be trained.
        NothingToDo: The task has too few prompts.
    """
    for one in how.recipes:
        check_runnable(one)
    task, made = task_of(how.task), 0
    student = Student(how.model, device=device)
    done = {(r.recipe, r.seed) for r in how.own(read_runs(file)) if r.base_hash == student.base_hash}
    for seed in how.seeds:
        missing = [r for r in how.recipes if (r.name, seed) not in done]
        if not missing:
            continue
        cell = _Cell(how, student, task, seed)
        for one in missing:
            try:
                run = cell.trained(one, work, device)
            except NothingToDo as error:
                say(f"{one.name}, seed {seed}: {error.message}")
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("ab") as lines:
                lines.write(orjson.dumps(asdict(run)) + b"\n")
            made += 1
            marks = f"{run.before:.2f} -> {run.after:.2f}"
            say(f"{one.name}, seed {seed}: {marks}, {run.tokens} tokens, {run.seconds:.0f} s")
    return made


class _Cell:
    """One seed: the student's first answers, and its held-out answers before any training."""

    def __init__(self, how: RecipeComparison, student: Student, task: VerifiableTask, seed: int) -> None:
        self.how, self.student, self.task, self.seed = how, student, task, seed
        self.items = task.items("train", how.prompts, seed)
        prompts = [student.prompt(_asked(item)) for item in self.items]
        self.first = student.draw(prompts, task.max_tokens, seed=seed * 64 + FIRST)
        peers = student.draw(prompts, task.max_tokens, seed=seed * 64 + PEERS)
        texts = [student.text(answer) for answer in peers]
        self.peers = [
            text if task.score(item, text) >= RIGHT else None for item, text in zip(self.items, texts, strict=True)
        ]
        self.heldout = heldout_items(task, how.heldout, seed)
        self.before = self._marks(heldout_answers(student, task, self.heldout, how.samples, seed, None))
        self.budget = how.tokens or min(self._tokens(one, self._examples(one)) for one in how.recipes)

    def trained(self, recipe: Recipe, work: Path, device: str) -> RecipeRun:
        """Train one recipe within the budget and mark its held-out answers."""
        examples = self._within(recipe)
        student, how = self.student, self.how
        began = student.work.seconds
        out = work / "adapters" / f"{how.task}-{recipe.name}-{self.seed}".replace(":", "-")
        run = out.with_name(f"{out.name}-run")
        result = train_candidate(
            examples, model=student.model, out=out, recipe=recipe, run_dir=run, seed=self.seed, device=device, rules=OFF
        )
        seconds = student.work.seconds - began
        answers = heldout_answers(student, self.task, self.heldout, how.samples, self.seed, student.adapter(out))
        after = self._marks(answers)
        gains = [b - a for a, b in zip(self.before, after, strict=True)]
        for folder in (run, out):
            shutil.rmtree(folder, ignore_errors=True)
        lengths = [len(answer.tokens) for some in answers for answer in some]
        return RecipeRun(
            recipe=recipe.name, task=how.task, model=how.model, base_hash=student.base_hash, seed=self.seed,
            settings=how.settings_of(recipe), before=sum(self.before) / len(gains), after=sum(after) / len(gains),
            gain_se=standard_error(gains),
            heldout=len(gains), examples=len(examples), steps=int(result.metrics.get("steps", 0)),
            tokens=self._tokens(recipe, examples), seconds=round(seconds, 1), length=sum(lengths) / len(lengths),
        )  # fmt: skip

    def _within(self, recipe: Recipe) -> list[Example]:
        """As many examples as the budget pays for, at least one step's."""
        examples = self._examples(recipe)
        prepared = self.student.encode(examples, recipe)
        kept = {row.interaction for row in prepared.rows}
        usable = [one for one in examples if one.interaction.id in kept]
        low, high = 0, len(usable)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._tokens(recipe, usable[:middle]) <= self.budget else (low, middle - 1)
        if not low:
            raise NothingToDo(
                f"{len(usable)} of {len(self.items)} prompts can be trained, and {self.budget} tokens pay for none: "
                "give more --tokens or more --prompts"
            )
        return usable[:low]

    def _tokens(self, recipe: Recipe, examples: Sequence[Example]) -> int:
        return training_tokens(self.student.encode(examples, recipe).rows, recipe)

    def _examples(self, recipe: Recipe) -> list[Example]:
        """What the recipe reads of each prompt: words, a wanted answer, a peer, or nothing."""
        if recipe.include_off_policy:
            return [
                _demonstration(item, text, self.task.name)
                for item, answer in zip(self.items, self.first, strict=True)
                if (text := item.reference or self.task.edit(item, self.student.text(answer)))
            ]
        source, found = reads(recipe), []
        for item, answer, peer in zip(self.items, self.first, self.peers, strict=True):
            if not answer.tokens:
                continue
            kind, text = self._said(source, item, answer, peer)
            found.append(
                self.student.example(
                    _asked(item), answer, text=text, kind=kind, polarity=-1 if text else 1, task=self.task.name
                )
            )
        return found

    def _said(self, source: str, item: TaskItem, answer: DrawnAnswer, peer: str | None) -> tuple[str, str]:
        """(kind, text) of the interaction; "accepted" where nobody would say anything."""
        task, text = self.task, self.student.text(answer)
        if source == "answer":
            wanted = item.reference or task.edit(item, text)
            return ("demonstration", wanted) if wanted else ("accepted", "")
        if task.score(item, text) >= RIGHT or source == "nothing":
            return "accepted", ""
        if source == "attempt":
            return ("retried", peer) if peer else ("tests", task.feedback(item, text))
        said = task.follow_up(item, text)
        return ("follow_up", said) if said else ("accepted", "")

    def _marks(self, answers: Sequence[Sequence[DrawnAnswer]]) -> list[float]:
        return [
            sum(self.task.score(item, self.student.text(answer)) for answer in some) / len(some)
            for item, some in zip(self.heldout, answers, strict=True)
        ]


def reads(recipe: Recipe) -> str:
    """What a recipe reads beside prompts and answers: "answer" (the wanted one), "attempt" (a right attempt or a
    program's output), "words" or "nothing"."""
    kinds = {kind for term in recipe.terms for kind in kinds_of(term.route) or ()}
    contexts: list[Context] = [c for t in recipe.terms for c in (t.context, t.student_context)]
    contexts += [one.context for one in recipe.generations]
    shown = {c.name for c in contexts if c.privileged and c.text is None}
    if kinds & set(REFERENCE_KINDS) or shown & {"reference", "begun"}:
        return "answer"
    if kinds & {*PEER_KINDS, *ENVIRONMENT_KINDS} or shown & {"by_kind", "environment"}:
        return "attempt"
    return "words" if shown - {"peer", "again"} else "nothing"


def summary(runs: Sequence[RecipeRun]) -> list[Json]:
    """One row for each recipe, the largest gain first: means over seeds with 95 % intervals.

    With three seeds or more the interval is Student's t over seeds; with fewer it is that of the prompts of one seed.
    """
    rows: list[Json] = []
    for name in dict.fromkeys(run.recipe for run in runs):
        own = [run for run in runs if run.recipe == name]
        gains = [run.gain for run in own]
        mean = sum(gains) / len(gains)
        if len(gains) > 2:
            half = float(stats.t.ppf(0.975, len(gains) - 1)) * stdev(gains) / len(gains) ** 0.5
        else:
            half = 1.96 * (sum(run.gain_se**2 for run in own) ** 0.5) / len(own)
        rows.append({
            "recipe": name, "seeds": len(own), "before": sum(r.before for r in own) / len(own),
            "after": sum(r.after for r in own) / len(own), "gain": mean, "low": mean - half, "high": mean + half,
            "tokens": sum(r.tokens for r in own) // len(own), "seconds": sum(r.seconds for r in own) / len(own),
            "examples": sum(r.examples for r in own) / len(own), "length": sum(r.length for r in own) / len(own),
        })  # fmt: skip
    return sorted(rows, key=lambda row: -row["gain"])


def comparison_page(rows: Sequence[Json], task: str, prompts: int) -> str:
    """The comparison as a page: gains with their intervals, and the table."""
    low = min(0.0, *(row["low"] for row in rows))
    high = max(0.0, *(row["high"] for row in rows))
    return str(render(
        "comparison.html",
        title=f"Recipes on {task}",
        about=f"Gain of the mean mark on held-out prompts, at equal tokens from at most {prompts} prompts; means over "
        "seeds with 95 % intervals.",
        rows=[
            [row["recipe"], row["seeds"], f"{row['before']:.2f}", f"{row['after']:.2f}", f"{row['gain']:+.3f}",
             f"[{row['low']:+.3f}, {row['high']:+.3f}]",
             intervals([("", (row["gain"], row["low"], row["high"]))], low, high, 0.0, f"gain of {row['recipe']}"),
             row["tokens"], f"{row['seconds']:.0f}", f"{row['length']:.0f}"]
            for row in rows
        ],
    ))  # fmt: skip


def for_task(make: Callable[..., Recipe], name: str, task: str, settings: dict[str, Any]) -> Recipe:
    """The recipe as a comparison trains it: the task's verifier, answers as long as the task's.

    Raises:
        ConfigError: The recipe is unknown, or a setting is invalid.
    """
    longest = task_of(task).max_tokens
    imitates = name in ("sft", "idft")
    made = make(name, **{"verifier": VERIFIER, "redact": "off", "include_off_policy": imitates, **settings})
    return replace(made, max_fresh=min(made.max_fresh, longest))


def _asked(item: TaskItem) -> Asked:
    return Asked(item.id, item.messages)


def _demonstration(item: TaskItem, text: str, task: str) -> Example:
    """A wanted answer as if it had been imported, to be imitated off-policy."""
    answer = {"role": "assistant", "content": text}
    turn = Turn(id=f"{item.id}#r", messages=item.messages, answer=answer, finish_reason="stop", task=task)
    interaction = Interaction(
        id=f"{item.id}#r", turn=turn.id, feedback=(), kind="accepted", hindsight="", polarity=1, weight=1.0,
        split="train", task=task, on_policy=False,
    )  # fmt: skip
    return Example(interaction, turn)
