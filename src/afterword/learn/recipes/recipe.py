"""Defines a recipe: the terms of its objective and the settings of its run, as plain data.

Knows no method and runs none.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from afterword.learn.loss.terms import Term
from afterword.learn.parts.contexts import Context
from afterword.learn.parts.fields import Count, Epochs, Positive, Rank, UnitInterval
from afterword.learn.parts.generation import STUDENT, Generation
from afterword.learn.parts.schedules import CONSTANT, Schedule
from afterword.records import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """The adapter that is trained. No dropout: with it a teacher could never agree with its student exactly."""

    rank: Rank = 16
    alpha: Positive = 32.0
    targets: str | tuple[str, ...] = "all-linear"
    """PEFT's target modules; "all-linear" is every linear layer but the output head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides a training run but its data, model and seed."""

    name: str
    terms: tuple[Term, ...]
    lr: UnitInterval = 1e-3
    """Peak learning rate of AdamW."""
    epochs: Epochs = 1
    """Times that every served answer is seen."""
    fresh: Epochs = 1
    """Epochs after those, over answers that the student writes anew to the same prompts."""
    num_generations: Annotated[int, Field(ge=1, le=1024)] = 1
    """Answers that the student writes to each prompt in an epoch over fresh answers."""
    generation: Generation = STUDENT
    """How those answers are written."""
    extra_generations: tuple[Generation, ...] = ()
    """Further answers to the same prompts, after those: a term finds them by their origin (`ByOrigin`)."""
    verifier: str | None = None
    """Who judges fresh answers, `package.module:function`: called with the turn and the answer's text, it returns a
    number."""
    batch: Count = 4
    """Interactions per optimiser step."""
    schedule: Schedule = CONSTANT
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: UnitInterval = 0.0
    lora: Lora = Lora()
    dtype: Literal["bfloat16", "float32", "auto"] = "auto"
    """Of the base model ("bfloat16", "float32"; "auto" as the engine's: bfloat16 where the machine multiplies it
    natively, else float32); the adapter is always float32."""
    micro_tokens: Count | None = None
    """Most tokens in one forward pass, four times as many where rows share a prefix; it changes speed and memory, not
    the result. None takes 512 on a CPU, and what fits the memory of a GPU."""
    checkpointing: bool = False
    """Compute each layer's activations again in the backward pass: about a third slower, a fraction of the memory."""
    max_tokens: Count = 2048
    """Most tokens of a prompt and its answer; a longer interaction is left out and counted, never cut."""
    max_hindsight: Count = 512
    """Most tokens of an interaction's hindsight that the teacher reads; what is cut is counted. A text that all read
    (`experience`) may be as long as the model's context allows."""
    max_fresh: Count = 128
    """Most tokens of an answer that the student writes anew."""
    redact: Literal["rules", "presidio", "off"] = "rules"
    """Private data is looked for again before training, in hindsight (replaced) and in answers (masked from the loss):
    "rules", "presidio" or "off"."""
    scored: Literal["answer", "conversation", "episode"] = "answer"
    """What an interaction scores: its own answer, or as one row all answers of its conversation up to that one, which
    the feedback and the verifier's reward then speak of. "episode": the turns of a branch of an episode as one row."""
    data: Literal["interactions", "episodes"] = "interactions"
    """What is trained: what users said about answers, or the turns of episodes (`afterword.records.Episode`)."""
    include_off_policy: bool = False
    """Also train answers whose served ids are unknown (imported logs), tokenised by us."""

    @property
    def generations(self) -> tuple[Generation, ...]:
        """All ways in which answers of a pass are written, the recipe's own first."""
        return (self.generation, *self.extra_generations)

    def answers_of(self, generation: Generation) -> int:
        """Answers to each prompt that a generation writes at most."""
        return self.num_generations if generation.n is None else generation.n


ON_POLICY: dict[str, Any] = {"epochs": 0, "fresh": 2}
"""Settings of the recipes that train only on answers which the student writes anew."""


def describe(part: Any) -> Any:
    """A recipe or any of its parts as plain JSON, for manifests and fingerprints.

    A context of ours is its name and version; one with the user's own words is written out.
    """
    if isinstance(part, Context) and part.version:
        return {"part": "Context", "name": part.name, "version": part.version}
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        named: Json = {"part": type(part).__name__}
        return named | {f.name: describe(getattr(part, f.name)) for f in dataclasses.fields(part)}
    if isinstance(part, (tuple, list)):
        return [describe(p) for p in part]
    return part
