"""What a suite works on: held-out items, both arms, their answers, the models; each made once, when first asked for.

Owns nothing but this sharing. A suite is a name and a function from a `Comparison` to its `Findings`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from afterword.config import EvaluateConfig
from afterword.evaluate.comparison.answer_pairs import Case, held_out_cases, request_cases, requests
from afterword.evaluate.comparison.answers import Arm, Given, Prompt, ask
from afterword.evaluate.comparison.cache import Cache
from afterword.evaluate.comparison.heldout import HeldOut, Trained, clusters_of
from afterword.evaluate.scoring.adapter_scorer import Models
from afterword.evaluate.stats.statistics import LEVEL
from afterword.model.loading import load_tokenizer, model_sizes, resolve_model
from afterword.records import Json

Check = Callable[[HeldOut, str], float]
"""A program's mark of an answer to a held-out item, 0 .. 1."""
Progress = Callable[[str, int, int], None]
"""(stage, done, total)."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What a suite found: its figures ({value, low, high, n} each), and what to write beside each example."""

    figures: Json
    notes: Sequence[Json] = ()
    """One for each held-out item, or none at all."""
    changed: Sequence[Json] = ()
    """Answers of this suite's own prompts that became better or worse: {prompt, before, after, says}."""


class Suite(Protocol):
    """One way to compare. Raises an AfterwordError or ValueError when it cannot: that is a "no"."""

    def __call__(self, comparison: Comparison) -> Findings:
        """Measure both arms."""


@dataclass
class Comparison:
    """The candidate against what is served, on the same prompts with the same seeds."""

    items: Sequence[HeldOut]
    candidate: Arm
    served: Arm
    model: str
    """The base model as it is named."""
    base_hash: str
    upstream: str
    """URL of the model server."""
    settings: EvaluateConfig
    cache_folder: Path | None = None
    api_key: str | None = None
    device: str = "auto"
    """Where the base model scores."""
    checks: Mapping[str, Check] = field(default_factory=dict)
    wins: Sequence[HeldOut] = ()
    """What earlier releases of the channel made better."""
    trained: Sequence[Trained] = ()
    """What the candidate was trained on."""
    level: float = LEVEL
    """Of the interval that decides; higher when the comparison was looked at before its end."""
    undecided: bool = True
    """False when the first looks already said no: then no more is asked than what was looked at."""
    progress: Progress = lambda stage, done, total: None
    _caches: dict[str, Cache] = field(default_factory=dict)

    @cached_property
    def clusters(self) -> list[str]:
        """Conversation of each item, or its user where there are enough of them."""
        return clusters_of(self.items)

    @property
    def arms(self) -> tuple[Arm, Arm]:
        """What is served, and the candidate."""
        return self.served, self.candidate

    @cached_property
    def tokenizer(self) -> Any:
        """The base model's tokenizer."""
        return load_tokenizer(self.model)

    @cached_property
    def longest(self) -> int:
        """Tokens that the base model reads."""
        return model_sizes(resolve_model(self.model))[0]

    @cached_property
    def models(self) -> Models:
        """The base model with the adapters of both arms beside it."""
        self.progress("load", 0, 1)
        models = Models.load(self.model, self.device)
        for arm in (self.candidate, self.served):
            if arm.path is not None:
                models.add(arm.name, arm.path)
        return models

    @cached_property
    def sampling(self) -> Json:
        """Greedy: the difference between the arms is then the adapter's and not the dice's."""
        return {"temperature": 0.0, "max_tokens": self.settings.max_tokens, "seed": self.settings.seed}

    @cached_property
    def answers(self) -> dict[str, list[Given]]:
        """Answers by arm name, in the order of the items."""
        return self.ask([item.asked for item in self.items], "answers")

    @cached_property
    def cases(self) -> list[Case]:
        """The held-out answers of both arms, and those to requests of ours where they are few."""
        own = requests(len(self.items), self.settings.min_answers) if self.undecided else []
        more = request_cases(own, self.ask(own, "requests")) if own else []
        return [*held_out_cases(self.items, self.clusters, self.answers), *more]

    def ask(self, prompts: Sequence[Prompt], stage: str, max_tokens: int | None = None) -> dict[str, list[Given]]:
        """Answers of both arms to other prompts, in their order, cached like those to the held-out ones."""
        return ask(
            self.upstream,
            self.arms,
            prompts,
            cache=self.cache("answers"),
            base=self.base_hash,
            sampling=self.sampling | ({} if max_tokens is None else {"max_tokens": max_tokens}),
            api_key=self.api_key,
            progress=lambda done, total: self.progress(stage, done, total),
        )

    @property
    def base(self) -> Arm:
        """The base model without any adapter."""
        return Arm("base", None, None)

    def adapter(self, arm: Arm) -> str | None:
        """Name of the arm's adapter among `models`, None for the base."""
        return None if arm.path is None else arm.name

    def cache(self, kind: str) -> Cache:
        """The cache of one kind of result, read once."""
        if kind not in self._caches:
            self._caches[kind] = Cache(self.cache_folder, kind)
        return self._caches[kind]
