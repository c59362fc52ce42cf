"""A student at learning rate zero: loaded, drawn from and scored by the code that trains, with its work counted.

Owns the weights during a forecast. Never takes an optimiser step; `calibrate` trains with `train.loop`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from afterword.chat.render import Tokenizer, decode, render_prompt
from afterword.chat.sampling_fields import PLAIN
from afterword.errors import NothingToDo
from afterword.learn.loss.loss_stage import token_losses
from afterword.learn.loss.terms import Term
from afterword.learn.parts.contexts import CONTEXTS, Context
from afterword.learn.parts.divergences import FORWARD_KL, NegativeLogLikelihood
from afterword.learn.parts.teachers import START
from afterword.learn.recipes import Recipe
from afterword.model.generation.drawing import DrawnAnswer, drawer_of
from afterword.model.generation.text import stop_ids
from afterword.model.loading import base_hash, load_tokenizer, model_sizes, native_dtype, resolve_model
from afterword.model.lora import Delta
from afterword.model.packing import by_budget, packed
from afterword.records import Interaction, Json, Turn
from afterword.sharing import BACKGROUND
from afterword.train.data.batches import by_size, rows_of, split
from afterword.train.data.examples import Example, Prepared, encode_examples
from afterword.train.data.rows import Encoded
from afterword.train.monitoring.alignment import write_alignment
from afterword.train.monitoring.metrics import StepMetrics, Tally
from afterword.train.runtime.distributed import local_device
from afterword.train.runtime.policy import Policy, load_policy
from afterword.train.runtime.steps import forward
from afterword.train.runtime.teacher_cache import TeacherCache, TeacherStates
from afterword.train.runtime.teacher_runtime import TeacherRuntime, released
from afterword.train.runtime.token_budget import token_budget

Ids = tuple[int, ...]
ROWS = 16
"""Answers that are drawn at once."""
BACKWARD = 2
"""Forward passes that a backward pass costs."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt to answer."""

    id: str
    messages: tuple[Json, ...]
    tools: tuple[Json, ...] | None = None
    ids: Ids | None = None
    """Its prompt ids where it was served; None renders them."""


@dataclass(slots=True)
class WorkCount:
    """Forward-pass tokens and CPU seconds of this process."""

    tokens: int = 0
    started: float = field(default_factory=time.process_time)

    @property
    def seconds(self) -> float:
        """CPU seconds since it was made."""
        return time.process_time() - self.started


def context_recipe(where: Context, **settings: Any) -> Recipe:
    """Self-distillation of `where` into the student: forward KL to the student's own start that reads the context."""
    term = Term(name="context", estimator=FORWARD_KL, teacher=START, context=where)
    return Recipe(name="forecast", terms=(term,), **settings)


def training_tokens(rows: Sequence[Encoded], recipe: Recipe) -> int:
    """Forward-pass tokens of a training on `rows`, a backward pass as two; fresh answers as long as the served ones."""
    student = sum(len(r.prompt) + len(r.completion) for r in rows)
    teacher = sum(
        sum(len(r.reads(term.context)) + len(r.completion) for r in rows)
        for term in recipe.terms
        if term.teacher is not None
    )
    served = (1 + BACKWARD) * student + teacher
    answers = sum(map(recipe.answers_of, recipe.generations))
    return recipe.epochs * served + recipe.fresh * answers * (served + student)


class Student:
    """A base model with an adapter of learning rate zero, and the base under the same roof."""

    def __init__(
        self, model: str, parent: Path | None = None, *, seed: int = 0, device: str = "auto", dtype: str = "auto"
    ) -> None:
        """Load the weights.

        Args:
            model: Base model: built-in name, folder or hub id.
            parent: Adapter folder that the student starts from; None is the base.
            seed: First values of a new adapter.
            device: "auto", "cpu", "cuda" or "cuda:N".
            dtype: Of the base.

        Raises:
            ModelError, AdapterError: The base or the adapter cannot be loaded.
        """
        place = local_device(device)
        self.recipe = context_recipe(CONTEXTS["none"], dtype=native_dtype(dtype, place))
        self.model, self.parent = model, parent
        self.tokenizer: Tokenizer = load_tokenizer(model)
        self.limit, self.vocabulary = model_sizes(resolve_model(model))
        self.base_hash = base_hash(resolve_model(model))
        self.policy: Policy = load_policy(model, self.recipe, parent=parent, seed=seed, device=place)
        self.ends = stop_ids(self.policy.model.get_base_model(), self.tokenizer)
        self.work = WorkCount()
        self._drawer = drawer_of(self.policy.model, self.ends, rows=ROWS)
        self._start: dict[str, Delta] | None = self.policy.live() if parent is not None else None

    def prompt(self, asked: Asked) -> Ids:
        """Prompt ids as they are served."""
        return asked.ids or tuple(render_prompt(self.tokenizer, asked.messages, asked.tools).ids)

    def draw(
        self,
        prompts: Sequence[Ids],
        longest: int,
        *,
        seed: int,
        adapter: dict[str, Delta] | None = None,
        base: bool = False,
    ) -> list[DrawnAnswer]:
        """An answer to each prompt at temperature 1: under the student's start, under `adapter`, or under the base."""
        limits = [max(1, min(longest, self.limit - len(prompt))) for prompt in prompts]
        update = None if base else self._start if adapter is None else adapter
        drawn = self._drawer.draw(prompts, limits, adapter=update, seed=seed)
        self.work.tokens += sum(len(p) + len(a.tokens) for p, a in zip(prompts, drawn, strict=True))
        return drawn

    def text(self, answer: DrawnAnswer) -> str:
        """The answer's text."""
        ids = answer.tokens
        return decode(self.tokenizer, ids[:-1] if ids and ids[-1] in self.ends else ids)

    def adapter(self, folder: Path) -> dict[str, Delta]:
        """The update of an adapter folder, for `draw`."""
        return released(folder, self.policy, self.model)

    def example(
        self, asked: Asked, answer: DrawnAnswer, *, text: str, kind: str, polarity: int = -1, task: str | None = None
    ) -> Example:
        """The student's own answer with the privileged text as an interaction, as training takes it."""
        ended = bool(answer.tokens) and answer.tokens[-1] in self.ends
        turn = Turn(
            id=f"{asked.id}#{len(answer.tokens)}",
            messages=asked.messages,
            tools=asked.tools,
            answer={"role": "assistant", "content": self.text(answer)},
            prompt_ids=self.prompt(asked),
            completion_ids=tuple(answer.tokens),
            logprobs=tuple(answer.logprobs),
            sampling=PLAIN,
            finish_reason="stop" if ended else "length",
            task=task,
        )
        interaction = Interaction(
            id=f"{asked.id}#i", turn=turn.id, feedback=(), kind=kind, hindsight=text, polarity=polarity, weight=1.0,
            split="train", task=task,
        )  # fmt: skip
        return Example(interaction, turn)

    def encode(self, examples: Sequence[Example], recipe: Recipe) -> Prepared:
        """The rows of a run; examples that cannot be trained are excluded with a reason."""
        return encode_examples(examples, self.tokenizer, recipe, limit=self.limit, vocabulary=self.vocabulary)

    @torch.no_grad()
    def log_probs(self, pairs: Sequence[tuple[Ids, Ids]]) -> list[list[float]]:
        """Log-probabilities of completions under the frozen base: (prompt, completion) pairs, in nats."""
        found: dict[int, list[float]] = {}
        head = self.policy.head_of("base")
        for group in BACKGROUND.between(by_budget([len(p) + len(c) for p, c in pairs], 4096)):
            batch = packed([pairs[i] for i in group], self.policy.device)
            states = self.policy.hidden(batch, "base")
            scores = token_losses(states, None, head, batch.targets, NegativeLogLikelihood()).logp_student
            pieces = torch.split(scores.float().cpu(), [len(pairs[i][1]) for i in group])
            found.update((i, piece.tolist()) for i, piece in zip(group, pieces, strict=True))
        self.work.tokens += sum(len(p) + len(c) for p, c in pairs)
        return [found[i] for i in range(len(pairs))]

    @torch.no_grad()
    def observe(self, prepared: Prepared, recipe: Recipe, seed: int) -> dict[str, float]:
        """What a step of the training would report of these rows, without the step, and the start's signal.

        Raises:
            NothingToDo: No row.
        """
        if not prepared.rows:
            raise NothingToDo("no answer can be observed: every interaction is excluded")
        rows = prepared.rows
        recipe = replace(recipe, dtype=self.recipe.dtype)
        teachers = TeacherRuntime(self.policy, recipe, self.model)
        states = TeacherStates(teachers, rows, recipe, TeacherCache(None), "forecast")
        tally = Tally(recipe.terms, self.ends)
        terms, whole = list(recipe.terms), rows_of(rows, self.policy.device)
        counts = [term.count(whole) for term in terms]
        for micro in split(rows, by_size(rows, range(len(rows))), token_budget(recipe, self.policy)):
            batch = forward(self.policy, states, terms, micro)
            losses = [t.value(s, batch.tokens, n) for t, s, n in zip(terms, batch.scores, counts, strict=True)]
            tally.add(*batch.shown(terms), losses, batch.ids)
        sizes = [len(r.prompt) + len(r.completion) for r in rows]
        beyond = [len(r.reads(terms[0].context)) - len(r.prompt) for r in rows]
        self.work.tokens += 2 * sum(sizes) + sum(beyond) + 3 * sum(sizes[:ROWS])
        metrics = tally.close(
            step=1,
            steps=1,
            grad_norm=0.0,
            lr=0.0,
            off_policy=0,
            seconds=0.0,
            scored=sum(len(r.completion) for r in rows),
        )
        with tempfile.TemporaryDirectory() as folder:
            signal = write_alignment(teachers, self.tokenizer, prepared, recipe, Path(folder), seed)
        found = _named(metrics) | {"context_tokens": sum(beyond) / len(beyond)}
        if signal is not None:
            found["signal_real"] = signal.real
            if signal.other is not None:
                found["signal_other"] = signal.other
        return found


_OBSERVED = (
    "overlap", "overlap_advantage", "entropy_student", "entropy_teacher", "entropy_gap", "divergence", "signal",
    "top_mass", "length",
)  # fmt: skip


def _named(metrics: StepMetrics) -> dict[str, float]:
    found = {name: float(getattr(metrics, name)) for name in _OBSERVED}
    return found | {f"divergence_at_{place}": value for place, value in metrics.depth_divergence.items()}
