"""Generates the student's own answers during a run, gives each epoch its rows, and asks the verifier for rewards.

The serving engine samples at temperature 1 from the whole distribution, over the weights as they are. Answers are kept
in `fresh-N.json`, so a resumed run reuses them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from afterword.chat.render import Tokenizer, decode
from afterword.errors import AfterwordError, ConfigError, NothingToDo
from afterword.learn.loss.token_batch import ALONE
from afterword.learn.parts.anchors import GOLD
from afterword.learn.recipes import Recipe
from afterword.learn.recipes.validate import load_verifier
from afterword.model.generation.drawing import DrawnAnswer, drawer_of
from afterword.model.generation.text import stop_ids
from afterword.records import Json, Turn
from afterword.store.files import write_whole
from afterword.train.data.batches import rows_of
from afterword.train.data.examples import Prepared, with_groups, with_private_masked
from afterword.train.data.rows import Encoded
from afterword.train.generation.generation_metrics import read_generation_metrics, write_generation_metrics
from afterword.train.runtime.distributed import Distributed
from afterword.train.runtime.policy import Policy

_ROWS = 16
"""Prompts that are answered at once: at 64 the growing caches took 4.8 GiB, at 24 3.2, in the same time."""


class VerifierFailed(AfterwordError):
    """The user's own verifier raised; nothing that was written is lost."""

    kind = "verifier_failed"


RewardFunction = Callable[[Encoded, Sequence[int]], float]
"""Maps a row and completion ids to a reward."""


def rollout_rows(
    policy: Policy,
    rows: Sequence[Encoded],
    ends: Sequence[int],
    run_dir: Path,
    *,
    number: int,
    key: str,
    seed: int,
    most: int,
    limit: int,
    answers: int = 1,
    judge: RewardFunction | None = None,
) -> list[Encoded]:
    """`rows`, each `answers` times, with answers of the current student, kept in `run_dir`: none is longer than the
    longest of `rows`, nor than `most` tokens, nor than what a model that reads `limit` tokens has left after the
    longest prompt of its row. What was written by people (kind "gold") stays as it is.

    `key` names the run and `number` the pass: a file of the same run and pass is read instead. `judge` adds the
    rewards: it is asked once, also by a run that is killed and goes on. The log-probabilities are those of what drew
    the answers.
    """
    file = run_dir / f"fresh-{number}.json"
    gold = [r for r in rows if r.answer.kind == GOLD]
    asked = [r for r in rows if r.answer.kind != GOLD for _ in range(answers)]
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if kept.get("key") == key:
        written, served = kept["answers"], kept["served"]
    else:
        room = [_room(row, rows, most, limit) for row in asked]
        drawn = generate(policy, [row.prompt for row in asked], ends, room, seed=seed * 1_000_003 + number)
        written, served = [one.tokens for one in drawn], [one.logprobs for one in drawn]
        kept = {"key": key, "answers": written, "served": served, "rewards": None}
        _keep(file, kept)  # before they are judged: a judge that fails costs no answer
    if kept["rewards"] is None:
        kept["rewards"] = [judge(row, a) for row, a in zip(asked, written, strict=True)] if judge else []
        _keep(file, kept)
    rewards, n = kept["rewards"], len(written)
    fresh = [
        replace(
            row,
            completion=tuple(a),
            on_policy=True,
            served=tuple(s),
            answer=replace(row.answer, reward=reward, group=ALONE, age=0.0, plain=True),
        )
        for row, a, s, reward in zip(asked, written, served, rewards or [None] * n, strict=True)
    ]
    return gold + (with_groups(fresh) if judge else fresh)


def _keep(file: Path, what: Json) -> None:
    write_whole(file, json.dumps(what))


def _room(row: Encoded, rows: Sequence[Encoded], most: int, limit: int) -> int:
    """Most tokens of a fresh answer to `row`."""
    return min(most, max(len(r.completion) for r in rows if r.answer.kind != GOLD), limit - row.longest_prompt)


def reward_function(verifier: str | None, used: Mapping[str, Turn], tokenizer: Tokenizer) -> RewardFunction | None:
    """Asks `verifier` (`package.module:function`) about (turn, text); None without one. `used` has the turns by
    interaction. Raises ConfigError when there is no such function or, when asked, it returns no finite number, and
    VerifierFailed when it raises."""
    if verifier is None:
        return None
    function = load_verifier(verifier)

    def judge(row: Encoded, completion: Sequence[int]) -> float:
        turn = used[row.interaction]
        try:
            value = function(turn, decode(tokenizer, completion))
        except Exception as error:  # whatever someone else's code raises
            raise VerifierFailed(
                f"the verifier {verifier!r} failed on an answer to turn {turn.id}: {type(error).__name__}: {error}. "
                "The answers are kept: fix the verifier and train again with the same settings"
            ) from error
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(f"the verifier {verifier!r} returned {value!r}: it has to return a finite number")
        return float(value)

    return judge


def clear_rollouts(run_dir: Path) -> None:
    """Delete the fresh answers of a run."""
    for file in run_dir.glob("fresh-*"):
        file.unlink()


def generate(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    ends: Sequence[int],
    limits: Sequence[int],
    *,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[DrawnAnswer]:
    """An answer of the student to each prompt, of at most `limits` tokens, with its log-probabilities as drawn.

    The serving engine draws over the same weights. The adapter is not merged into them: merging would round what is not
    rounded when the answer is scored. transformers draws for architectures that the engine does not compute.
    """
    if not prompts:
        return []
    return drawer_of(policy.model, ends, rows=_ROWS).draw(
        prompts, limits, adapter=policy.live(), temperature=temperature, seed=seed
    )


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Gives the rows of each epoch: the served answers first, then answers that the student writes anew."""

    prepared: Prepared
    recipe: Recipe
    tokenizer: Tokenizer
    run_dir: Path
    key: str
    seed: int
    workers: Distributed

    def rows(self, policy: Policy, epoch: int, step: int) -> Sequence[Encoded]:
        """The rows of an epoch that begins after `step` steps. Of several processes the first writes fresh answers, the
        others read its file.

        Raises:
            NothingToDo: when no token of the first epoch counts.
        """
        rows = self.prepared.rows if epoch < self.recipe.epochs else self._fresh(policy, epoch, step)
        if epoch == 0 and not any(term.count(rows_of(rows)) for term in self.recipe.terms):
            skipped = max(t.skip_first for t in self.recipe.terms)
            raise NothingToDo(
                f"no token of {len(rows)} answers counts for {', '.join(repr(t.name) for t in self.recipe.terms)}, so "
                f"nothing would be learned: their answers are shorter than what is left out (skip_first is {skipped}), "
                "private, of other kinds, or lack what a term reads (a verdict, log-probabilities)"
            )
        return rows

    def metrics(self, epoch: int) -> Json | None:
        """The metrics of the fresh answers of that epoch, in every process; None for an epoch over served answers."""
        return next((one for one in read_generation_metrics(self.run_dir) if one["pass"] == epoch), None)

    def _fresh(self, policy: Policy, epoch: int, step: int) -> Sequence[Encoded]:
        """The rows of an epoch over answers that the student writes anew."""
        if not self.workers.is_main:
            self.workers.barrier()
        ends, served = stop_ids(policy.model.get_base_model(), self.tokenizer), self.prepared.rows
        rows = rollout_rows(
            policy,
            served,
            ends,
            self.run_dir,
            number=epoch,
            key=self.key,
            seed=self.seed,
            most=self.recipe.max_fresh,
            limit=self.prepared.limit,
            answers=self.recipe.num_generations,
            judge=reward_function(
                self.recipe.verifier, {e.interaction.id: e.turn for e in self.prepared.used}, self.tokenizer
            ),
        )
        rows = [r for r in rows if r.answer.kind == GOLD] + with_private_masked(
            (r for r in rows if r.answer.kind != GOLD), self.tokenizer, self.recipe.redact
        )
        written = [r for r in rows if r.answer.kind != GOLD]
        if self.workers.is_main:
            if written:
                told = {e.interaction.id: e.interaction.hindsight for e in self.prepared.used}
                write_generation_metrics(
                    self.run_dir, self.tokenizer, served, written, told, number=epoch, step=step, ends=ends
                )
            self.workers.barrier()
        return rows
