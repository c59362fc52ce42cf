"""Holds the inputs that the suites of one evaluation share: held-out items, both arms, their answers, the models.

A suite is a function from a `Comparison` to its `Findings`. A comparison never changes: another view of the same
evaluation (fewer items, another suite) is `dataclasses.replace` of it, over the same `Resources`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from afterword.chat.canonical import text_of
from afterword.chat.render import generation_header
from afterword.chat.trail import opens_thought
from afterword.chat.turn_prompt import request_prompt
from afterword.config import EvaluateConfig
from afterword.errors import ModelError
from afterword.evaluate.comparison.answers import (
    THOUGHT,
    Arm,
    Cache,
    EvaluationPrompt,
    Given,
    ask,
    cut_in_thought,
    shown,
)
from afterword.evaluate.comparison.heldout import HeldOut, Trained, clusters_of
from afterword.evaluate.comparison.substitutes import Substitute
from afterword.evaluate.data import built_in
from afterword.evaluate.scoring.adapter_scorer import AdapterScorer
from afterword.evaluate.stats.statistics import LEVEL
from afterword.kinds import with_hindsight
from afterword.model.loading import load_tokenizer, model_sizes, resolve_model
from afterword.records import Json

Check = Callable[[HeldOut, str], float]
"""A program's mark of an answer to a held-out item, 0 .. 1."""
Progress = Callable[[str, int, int], None]
"""(suite and its step, done, total)."""
Answers = Mapping[str, Sequence[Given]]
"""Arm name -> its answers, in the order of the prompts."""
_WRITTEN_BY_USER = (*with_hindsight("answer"), *with_hindsight("attempt"))
"""Kinds whose hindsight is a better answer: to say the same is no leak."""


@dataclass(frozen=True, slots=True)
class Findings:
    """Results of a suite."""

    metrics: Json
    """Name -> {value, low, high, n}; the names are in `afterword.metrics`."""
    notes: Sequence[Json] = ()
    """What to write beside each example: one for each held-out item, or none at all."""
    changed: Sequence[Json] = ()
    """Answers of this suite's own prompts that became better or worse: {prompt, before, after, says}."""
    about: Json = field(default_factory=dict)
    """Goes into `Report.about`."""
    answers: Answers | None = None
    """The answers to the held-out items, from a suite that asked for them: the examples of the report."""


class Suite(Protocol):
    """One way to compare. Raises an AfterwordError or ValueError when it cannot: that is a "no"."""

    def __call__(self, comparison: Comparison) -> Findings:
        """Measure both arms."""


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """One request with the answers of both arms."""

    question: str
    prompt: str
    """All that was read."""
    hindsight: str
    """What must not be quoted."""
    cluster: str
    served: Given
    candidate: Given


@dataclass
class Resources:
    """Loads tokenizer and models once, when first needed, and keeps the caches, for every suite of an evaluation."""

    model: str
    """The base model as it is named."""
    arms: tuple[Arm, ...] = ()
    """Whose adapters lie beside the base."""
    cache_folder: Path | None = None
    device: str = "auto"
    """Where the base model scores."""
    _caches: dict[str, Cache] = field(default_factory=dict)

    @cached_property
    def tokenizer(self) -> Any:
        """The base model's tokenizer."""
        return load_tokenizer(self.model)

    @cached_property
    def opens_thought(self) -> bool:
        """Whether the template itself opens a thought where the answer begins."""
        try:
            header = generation_header(self.tokenizer)
        except ModelError:  # a template that rejects conversations without arguments
            return False
        return opens_thought(str(self.tokenizer.decode(list(header))))

    @cached_property
    def longest(self) -> int:
        """Tokens that the base model reads."""
        return model_sizes(resolve_model(self.model))[0]

    @cached_property
    def models(self) -> AdapterScorer:
        """The base model with the adapters of the arms beside it."""
        models = AdapterScorer.load(self.model, self.device)
        for arm in self.arms:
            if arm.path is not None:
                models.add(arm.name, arm.path)
        return models

    def cache(self, kind: str) -> Cache:
        """The cache of one kind of result, read once."""
        if kind not in self._caches:
            self._caches[kind] = Cache(self.cache_folder, kind)
        return self._caches[kind]


@dataclass(frozen=True)
class Comparison:
    """The candidate against the served model, on the same prompts with the same seeds."""

    items: Sequence[HeldOut]
    candidate: Arm
    served: Arm
    resources: Resources
    base_hash: str
    upstream: str
    """URL of the model server."""
    settings: EvaluateConfig
    api_key: str | None = None
    checks: Mapping[str, Check] = field(default_factory=dict)
    wins: Sequence[HeldOut] = ()
    """Interactions that earlier releases of the channel made better."""
    trained: Sequence[Trained] = ()
    """Interactions that the candidate was trained on."""
    substitutes: Sequence[Substitute] = ()
    """Adapters that resemble the candidate, on conversations that they have not seen."""
    more_prompts: Sequence[EvaluationPrompt] = ()
    """Requests of users that nobody reacted to, for the guards."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """`[gate]`: limits other than the defaults of `afterword.metrics`."""
    level: float = LEVEL
    """Of the interval that decides; higher when the comparison was looked at before its end."""
    undecided: bool = True
    """False when the first looks already said no: then no more is asked than what was looked at."""
    suite: str = ""
    """The suite that measures, for the progress."""
    on_progress: Progress = lambda stage, done, total: None

    def progress(self, step: str, done: int, total: int) -> None:
        """Report a step of the suite: "holdout: answers"."""
        self.on_progress(f"{self.suite}: {step}" if self.suite and step else self.suite or step, done, total)

    @cached_property
    def clusters(self) -> list[str]:
        """Conversation of each item, or its user where there are enough of them."""
        return clusters_of(self.items)

    @property
    def arms(self) -> tuple[Arm, Arm]:
        """The served model and the candidate."""
        return self.served, self.candidate

    @property
    def base(self) -> Arm:
        """The base model without any adapter."""
        return Arm("base", None, None)

    @property
    def tokenizer(self) -> Any:
        """The base model's tokenizer."""
        return self.resources.tokenizer

    @property
    def longest(self) -> int:
        """Tokens that the base model reads."""
        return self.resources.longest

    @property
    def models(self) -> AdapterScorer:
        """The base model with the adapters of both arms beside it."""
        if "models" not in vars(self.resources):
            self.progress("load", 0, 1)
        return self.resources.models

    @property
    def sampling(self) -> Json:
        """Greedy: the difference between the arms is then the adapter's and not the dice's."""
        return {"temperature": 0.0, "max_tokens": self.settings.max_tokens, "seed": self.settings.seed}

    @cached_property
    def answers(self) -> dict[str, list[Given]]:
        """Answers by arm name, in the order of the items."""
        return self.ask([item.asked for item in self.items], "answers")

    @cached_property
    def pairs(self) -> list[AnswerPair]:
        """Both arms' answers that are inspected for faults.

        A rise of five points cannot be ruled out by a dozen answers, however good they are (`statistics.paired_share`):
        where fewer than `evaluate.min_answers` interactions are held out, requests that nobody reacted to fill up,
        and then built-in ones.
        """
        missing = max(0, self.settings.min_answers - len(self.items)) if self.undecided else 0
        ours = [EvaluationPrompt.of(row["prompt"]) for row in built_in("requests")]
        asked = [*self.more_prompts, *ours][:missing]
        more = request_pairs(asked, self.ask(asked, "requests")) if asked else []
        return [*held_out_pairs(self.items, self.clusters, self.answers), *more]

    def ask(
        self, prompts: Sequence[EvaluationPrompt], step: str, max_tokens: int | None = None
    ) -> dict[str, list[Given]]:
        """Answers of both arms to other prompts, in their order, cached like those to the held-out ones.

        A thought is no part of an answer and does not use up its `max_tokens`: an answer that was cut while or after
        the model thought is asked for again with room for the thought.
        """
        limit = self.settings.max_tokens if max_tokens is None else max_tokens
        found = self._ask(self.arms, prompts, step, limit)
        if not any(given.finish_reason == "length" or given.thought or "<" in given.text or "THINK]" in given.text
                   for given in chain.from_iterable(found.values())):  # fmt: skip
            return found
        opened = self.resources.opens_thought
        for arm in self.arms:
            cut = [i for i, given in enumerate(found[arm.name]) if cut_in_thought(given, opened=opened)]
            room = self._room([prompts[i] for i in cut]) if cut else 0
            if room > limit:
                asked = [prompts[i] for i in cut]
                again = self._ask((arm,), asked, f"{step} with thoughts", min(room, limit + THOUGHT))[arm.name]
                for i, given in zip(cut, again, strict=True):
                    found[arm.name][i] = given
        return {
            name: [shown(given, self.tokenizer, limit, opened=opened) for given in each] for name, each in found.items()
        }

    def _ask(
        self, arms: Sequence[Arm], prompts: Sequence[EvaluationPrompt], step: str, max_tokens: int
    ) -> dict[str, list[Given]]:
        return ask(
            self.upstream,
            arms,
            prompts,
            cache=self.cache("answers"),
            base=self.base_hash,
            sampling=self.sampling | {"max_tokens": max_tokens},
            api_key=self.api_key,
            progress=lambda done, total: self.progress(step, done, total),
        )

    def _room(self, prompts: Sequence[EvaluationPrompt]) -> int:
        """Tokens of an answer for which the context has room behind each of the prompts."""
        read = [request_prompt(self.tokenizer, p.messages, p.tools, p.fields).ids for p in prompts]
        return self.longest - max(map(len, read)) - 1

    def adapter(self, arm: Arm) -> str | None:
        """Name of the arm's adapter among `models`, None for the base."""
        return None if arm.path is None else arm.name

    def cache(self, kind: str) -> Cache:
        """The cache of one kind of result."""
        return self.resources.cache(kind)


def held_out_pairs(items: Sequence[HeldOut], clusters: Sequence[str], answers: Answers) -> list[AnswerPair]:
    """Both arms' answers to the held-out interactions."""
    return [
        AnswerPair(
            item.question,
            "\n".join(text_of(m.get("content")) for m in item.turn.messages),
            "" if item.interaction.kind in _WRITTEN_BY_USER else item.interaction.hindsight,
            cluster,
            answers["served"][i],
            answers["candidate"][i],
        )
        for i, (item, cluster) in enumerate(zip(items, clusters, strict=True))
    ]


def request_pairs(asked: Sequence[EvaluationPrompt], answers: Answers) -> list[AnswerPair]:
    """Both arms' answers to requests without a reaction, each a separate cluster."""
    texts = [text_of(prompt.messages[-1].get("content")) for prompt in asked]
    read = ["\n".join(text_of(m.get("content")) for m in prompt.messages) for prompt in asked]
    return [
        AnswerPair(text, prompt, "", f"request {i}", answers["served"][i], answers["candidate"][i])
        for i, (text, prompt) in enumerate(zip(texts, read, strict=True))
    ]
