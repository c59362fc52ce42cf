"""Runs the teachers of a run: loads their weights, moves those that follow the student, stores their state.

A self-teacher is a low-rank update over the shared base; an external one is another model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afterword.errors import AdapterError, ConfigError, ModelError
from afterword.learn.loss.loss_stage import token_losses
from afterword.learn.parts.divergences import FORWARD_KL
from afterword.learn.parts.teachers import EMA, LIVE, START, Copy, External, Released, Routed, Teacher, TrustRegion
from afterword.learn.recipes import Recipe
from afterword.model.head import Head, head_of
from afterword.model.loading import base_hash, load_model, load_tokenizer, model_sizes, resolve_model, tokenizer_hash
from afterword.model.lora import Delta, mixed
from afterword.model.lora_folder import PREFIX, read_lora_folder
from afterword.model.module_patching import patch_modules
from afterword.model.packing import Packed, hidden_states
from afterword.train.runtime.policy import Policy, check_base, weights_hash


@dataclass(frozen=True, slots=True)
class TeacherOutput:
    """Last hidden states [N, H] of a teacher and the output head for them."""

    states: Tensor
    head: Head


def teachers_of(recipe: Recipe) -> list[Teacher]:
    """All teachers, references and writers of a recipe, routed ones by their parts, each once."""
    named = [t for term in recipe.terms for t in (term.teacher, term.reference) if t is not None]
    named += [t for one in recipe.generations for t in (one.weights, one.finish) if t is not None and t != LIVE]
    flat = [part for t in named for part in (t.parts if isinstance(t, Routed) else (t,))]
    return list(dict.fromkeys(flat))


class TeacherRuntime:
    """Scores rows under any teacher of the run and moves the teachers that follow the student."""

    def __init__(self, policy: Policy, recipe: Recipe, model: str) -> None:
        self.policy = policy
        self.teachers = teachers_of(recipe)
        self.moving = [t for t in self.teachers if t.moving]
        self.external: dict[str, tuple[Any, Head]] = {}
        if policy.head_layer is not None and any(isinstance(t.teacher, Routed) for t in recipe.terms):
            raise ConfigError(
                f"routed teachers share one head, and the LoRA targets {recipe.lora.targets!r} adapt it: leave it out "
                "of them, or give each teacher its own term and route"
            )
        self.drift: dict[str, Tensor] = {t.key: torch.zeros(2, dtype=torch.float64) for t in self.trusted}
        for teacher in self.teachers:
            if teacher.moving:
                policy.deltas[teacher.key] = policy.live()
            elif isinstance(teacher, Released):
                policy.deltas[teacher.key] = released(Path(teacher.folder), policy, model)
            elif isinstance(teacher, External):
                self.external[teacher.key] = _external(teacher, policy)

    @property
    def trusted(self) -> list[TrustRegion]:
        """The trust-region teachers: their distance from the start is bounded."""
        return [t for t in self.teachers if isinstance(t, TrustRegion)]

    def head(self, teacher: Teacher) -> Head:
        """The teacher's output head, with its own update where the recipe adapts the head."""
        if isinstance(teacher, External):
            return self.external[teacher.key][1]
        return self.policy.head_of(teacher.key)

    def empty(self, teacher: Teacher, n: int) -> Tensor:
        """[n, H] for hidden states of this teacher from another process."""
        model = self.external[teacher.key][0] if isinstance(teacher, External) else self.policy.model
        width, dtype = self.head(teacher).weight.shape[1], next(model.parameters()).dtype
        return torch.empty(n, width, dtype=dtype, device=self.policy.device)

    @torch.no_grad()
    def side(self, teacher: Teacher, batch: Packed) -> TeacherOutput:
        """Hidden states of `teacher` for a packed batch, without a gradient."""
        if isinstance(teacher, External):
            return TeacherOutput(hidden_states(self.external[teacher.key][0], batch), self.head(teacher))
        return TeacherOutput(self.policy.hidden(batch, teacher.key).detach(), self.head(teacher))

    def measure(self, teacher: TrustRegion, states: Tensor, start: Tensor, ids: Tensor) -> None:
        """Add KL(start || teacher) on some tokens of a step, in nats."""
        head, other = self.policy.head_of(teacher.key), self.policy.head_of(START.key)
        loss = token_losses(states, start, head, ids, FORWARD_KL, teacher_head=other).loss.double().cpu()
        self.drift[teacher.key] += torch.tensor([loss.sum(), len(loss)], dtype=torch.float64)

    def follow(self, step: int) -> None:
        """Move every moving teacher by its rule, after optimiser step number `step` (1 for the first)."""
        live = self.policy.live() if self.moving else {}
        for teacher in self.moving:
            old = self.policy.deltas[teacher.key]
            if isinstance(teacher, Copy):
                if step % teacher.every == 0:
                    self.policy.deltas[teacher.key] = live
                continue
            assert isinstance(teacher, EMA | TrustRegion)
            if isinstance(teacher, TrustRegion) and not self._near(teacher):
                continue
            average = teacher if isinstance(teacher, EMA) else EMA()
            self.policy.deltas[teacher.key] = {
                n: mixed(old[n], live[n], teacher.rate, average.bound(len(live[n].down))) for n in live
            }

    def _near(self, teacher: TrustRegion) -> bool:
        """True when the mean KL to the start on this step's tokens is within the bound; resets the sum."""
        total, count = self.drift[teacher.key].tolist()
        self.drift[teacher.key].zero_()
        return bool(total <= teacher.bound * count)

    def state(self) -> dict[str, Any]:
        """State of the moving teachers for a checkpoint."""
        return {
            t.key: {name: [d.down, d.up, d.scale, d.dense] for name, d in self.policy.deltas[t.key].items()}
            for t in self.moving
        }

    def load(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        device = self.policy.device
        for teacher in self.moving:
            self.policy.deltas[teacher.key] = {
                name: Delta(down.to(device), up.to(device), scale, None if dense is None else dense.to(device))
                for name, (down, up, scale, dense) in state[teacher.key].items()
            }


def _external(teacher: External, policy: Policy) -> tuple[Any, Head]:
    """The other model and its head; `context_limit` has checked its vocabulary and its tokenizer."""
    model = load_model(teacher.model, dtype=teacher.dtype, device=str(policy.device))
    patch_modules(model)  # as the student: of equal weights it says the very same
    head = head_of(model)
    return model, head


def context_limit(recipe: Recipe, model: str, tokenizer: Any) -> int:
    """Tokens of a prompt and its answer that the student and all external teachers can read.

    Checks teachers before any model is loaded.

    Raises:
        ModelError: for an external teacher with another tokenizer or vocabulary than the student.
        AdapterError: for a released adapter of another base.
    """
    limits = [model_sizes(resolve_model(model))[0]]
    for teacher in teachers_of(recipe):
        if isinstance(teacher, External):
            limit, vocabulary = model_sizes(resolve_model(teacher.model))
            limits.append(limit)
            own = model_sizes(resolve_model(model))[1]
            # Output rows beyond the tokenizer's ids are padding, of which models of one family have more or fewer.
            fewest, same = (
                min(vocabulary, own),
                tokenizer_hash(load_tokenizer(teacher.model)) == tokenizer_hash(tokenizer),
            )
            if fewest < len(tokenizer) or not same:
                how = f"{vocabulary} ids and {own}" if same else "other ids for the same text"
                raise ModelError(
                    f"the external teacher {teacher.model!r} reads other token ids than {model!r} ({how}): a teacher "
                    "scores the student's ids, so both need the same tokenizer; name a model of the same family"
                )
        if isinstance(teacher, Released):
            check_base(Path(teacher.folder), model)
    return min(limits)


def teacher_hashes(recipe: Recipe) -> dict[str, str]:
    """Hashes of the weights that come from outside the run, by the teacher's key."""
    found = {}
    for teacher in teachers_of(recipe):
        if isinstance(teacher, External):
            found[teacher.key] = base_hash(resolve_model(teacher.model))
        if isinstance(teacher, Released):
            found[teacher.key] = weights_hash(Path(teacher.folder))
    return found


def released(folder: Path, policy: Policy, model: str) -> dict[str, Delta]:
    """The low-rank update of an adapter folder, by layer name.

    Raises:
        AdapterError: the folder is damaged, not a plain LoRA, or made for other layers or another base.
    """
    check_base(folder, model)
    found = {}
    for path, weights in read_lora_folder(folder, str(policy.device)).layers.items():
        place, shape = policy.layers.get(f"{PREFIX}{path}"), (len(weights.up), weights.down.shape[1])
        if place is None or (place.out_features, place.in_features) != shape:
            raise AdapterError(
                f"the adapter {str(folder)!r} updates {path!r} ({shape[0]} x {shape[1]}), which this model "
                "does not have, or which the run does not train: use an adapter of this base, and a recipe whose "
                "targets include its layers"
            )
        found[f"{PREFIX}{path}"] = Delta(weights.down, weights.up, weights.scale)
    return found
