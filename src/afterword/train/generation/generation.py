"""Writes the answers of each pass as the recipe's generations say, gives each epoch its rows, asks for rewards.

The serving engine draws over the weights as they are. Answers are kept in `fresh-N.json` (further generations in
`fresh-N-K.json`), so a resumed run reuses them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from afterword.chat.render import Tokenizer, decode
from afterword.errors import AfterwordError, ConfigError, NothingToDo
from afterword.learn.loss.token_batch import ALONE
from afterword.learn.parts.anchors import GOLD
from afterword.learn.parts.generation import STUDENT, Draft, Generation
from afterword.learn.parts.teachers import LIVE, External, Teacher
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
from afterword.train.generation.hints import hint_contexts, with_hints
from afterword.train.runtime.distributed import Distributed
from afterword.train.runtime.policy import Policy
from afterword.train.runtime.teacher_runtime import TeacherRuntime

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
    generations: Sequence[Generation] = (STUDENT,),
    teachers: TeacherRuntime | None = None,
) -> list[Encoded]:
    """The rows of a pass over answers that are written anew, kept in `run_dir`.

    An answer is no longer than the longest of `rows`, nor than `most` tokens, nor than what a model that reads `limit`
    tokens has left after the longest prompt of its row. What was written by people (kind "gold") stays as it is.

    Args:
        number: The pass; a file of the same run and pass is read instead of drawing.
        key: Names the run.
        answers: Answers to each prompt, for generations that name no number.
        judge: Adds the rewards: it is asked once, also by a run that is killed and goes on.
        generations: How answers are written, one after the other.
        teachers: Whose weights write beside the student's.

    Returns:
        Gold rows, then for each generation `n` rows for each other row of `rows`: those that were not written or that a
        filter left out are not `accepted`.
    """
    gold = [r for r in rows if r.answer.kind == GOLD]
    asked = [r for r in rows if r.answer.kind != GOLD]
    found: list[Encoded] = []
    for place, generation in enumerate(generations):
        each = [row for row in asked for _ in range(generation.n or answers)]
        wanted = _wanted(generation, each, found)
        file = run_dir / (f"fresh-{number}-{place}.json" if place else f"fresh-{number}.json")
        chosen = [row for row, want in zip(each, wanted, strict=True) if want]
        room = [_room(row, rows, most, limit) for row in chosen]
        own = seed * 1_000_003 + number + 7_919 * place
        drawing = _Drawing(policy, teachers, generation, ends, room, own)
        written = iter(_kept(drawing, chosen, file, key, judge, ends))
        part = [next(written) if want else _left_out(row) for row, want in zip(each, wanted, strict=True)]
        found = with_groups([*found, *part])
    return gold + found


def _wanted(generation: Generation, each: Sequence[Encoded], first: Sequence[Encoded]) -> list[bool]:
    """For which of the rows `each` a generation writes: where its context shows something, by the rewards of those
    before."""
    where = generation.context
    told = [not where.privileged or (p if isinstance(p := row.privileged, bool) else where in p) for row in each]
    if generation.when == "always":
        return told
    right = {row.asked for row in first if row.answer.accepted and (row.answer.reward or 0.0) > 0}
    wanted = generation.when == "some_right"
    return [known and (row.asked in right) is wanted for row, known in zip(each, told, strict=True)]


def _left_out(row: Encoded) -> Encoded:
    return replace(row, answer=replace(row.answer, reward=None, group=ALONE, accepted=False))


@dataclass(frozen=True, slots=True)
class _Drawing:
    """Draws the answers of one generation."""

    policy: Policy
    teachers: TeacherRuntime | None
    generation: Generation
    ends: Sequence[int]
    room: Sequence[int]
    seed: int

    def drawn(self, rows: Sequence[Encoded]) -> tuple[list[DrawnAnswer], list[int]]:
        """The answers without their prefix, and how many tokens of each the first weights wrote."""
        how, prompts = self.generation, [self.read(row) for row in rows]
        limits = [max(1, room - how.prefix) for room in self.room]
        answers = self._draw(how.weights, prompts, limits, self.seed)
        halves = [len(one.tokens) for one in answers]
        if how.finish is None:
            return answers, halves
        halves = [max(1, n // 2) for n in halves]
        begun = [one.tokens[:n] for one, n in zip(answers, halves, strict=True)]
        going = [[*prompt, *tokens] for prompt, tokens in zip(prompts, begun, strict=True)]
        left = [max(1, limit - n) for limit, n in zip(limits, halves, strict=True)]
        ended = self._draw(how.finish, going, left, self.seed + 1)
        whole = [
            DrawnAnswer([*tokens, *end.tokens], [math.nan] * (len(tokens) + len(end.tokens)))
            for tokens, end in zip(begun, ended, strict=True)
        ]
        return whole, halves

    def read(self, row: Encoded) -> list[int]:
        """What is read before the answer: the prompt under the generation's context, and the prefix."""
        prompt = [i for part in row.parts(self.generation.context)[:-1] for i in part]
        return [*prompt, *self.prefix(row)]

    def prefix(self, row: Encoded) -> tuple[int, ...]:
        """The beginning of the served answer that the new one takes over, never its end."""
        return row.answer_ids[: min(self.generation.prefix, len(row.answer_ids) - 1)]

    def _draw(
        self, weights: Teacher, prompts: Sequence[Sequence[int]], limits: Sequence[int], seed: int
    ) -> list[DrawnAnswer]:
        how = self.generation
        return generate(
            self.policy, prompts, self.ends, limits, temperature=how.temperature, top_p=how.top_p, top_k=how.top_k,
            seed=seed, weights=weights, teachers=self.teachers,
        )  # fmt: skip

    def row(self, row: Encoded, answer: Sequence[int], logprobs: Sequence[float], half: int) -> Encoded:
        """`row` with another answer."""
        how, prefix = self.generation, self.prefix(row)
        earlier = len(row.completion) - len(row.answer_ids)
        made = replace(
            row,
            completion=(*row.completion[:earlier], *answer),
            on_policy=True,
            served=(*[math.nan] * earlier, *(logprobs if how.known else [math.nan] * len(answer))),
            answer=replace(
                row.answer,
                reward=None,
                group=ALONE,
                age=0.0,
                plain=how.plain,
                origin=how.origin,
                under=how.context if how.context.privileged else None,
            ),
        )
        if prefix:
            prompts = {where: (*ids, *prefix) for where, ids in row.teacher_prompts.items()}
            made = replace(made, prompt=(*row.prompt, *prefix), teacher_prompts=prompts, to=row.asked)
        if how.finish is not None and half < len(answer):
            made = replace(made, between=((half, ()),), to=row.asked)
        return made


def _kept(
    drawing: _Drawing,
    rows: Sequence[Encoded],
    file: Path,
    key: str,
    judge: RewardFunction | None,
    ends: Sequence[int],
) -> list[Encoded]:
    """The rows with the answers of a generation, read from its file where the same run has written them."""
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if kept.get("key") != key:
        drawn, halves = drawing.drawn(rows)
        kept = {"key": key, "answers": [one.tokens for one in drawn], "served": [one.logprobs for one in drawn]}
        kept |= {"halves": halves, "rewards": None}
        _keep(file, kept)  # before they are judged: a judge that fails costs no answer
    written = kept["answers"]
    if kept["rewards"] is None:
        whole = [(*drawing.prefix(row), *answer) for row, answer in zip(rows, written, strict=True)]
        kept["rewards"] = [judge(row, a) for row, a in zip(rows, whole, strict=True)] if judge else []
        _keep(file, kept)
    fresh = [
        drawing.row(row, answer, served, half)
        for row, answer, served, half in zip(rows, written, kept["served"], kept["halves"], strict=True)
    ]
    rewards = kept["rewards"] or [None] * len(fresh)
    fresh = [replace(r, answer=replace(r.answer, reward=reward)) for r, reward in zip(fresh, rewards, strict=True)]
    return _filtered(fresh, drawing.generation, ends)


def _filtered(rows: list[Encoded], generation: Generation, ends: Sequence[int]) -> list[Encoded]:
    """The rows, those that a filter leaves out marked."""
    left = list(range(len(rows)))
    for one in generation.keep:
        drafts = [Draft(rows[i].answer.reward, len(rows[i].answer_ids), rows[i].completion[-1] in ends) for i in left]
        left = [i for i, good in zip(left, one(drafts), strict=True) if good]
    good = set(left)
    return [
        row if i in good else replace(row, answer=replace(row.answer, accepted=False)) for i, row in enumerate(rows)
    ]


def _keep(file: Path, what: Json) -> None:
    write_whole(file, json.dumps(what))


def _room(row: Encoded, rows: Sequence[Encoded], most: int, limit: int) -> int:
    """Most tokens of a fresh answer to `row`."""
    before = row.longest_prompt + len(row.completion) - len(row.answer_ids)
    return min(most, max(len(r.answer_ids) for r in rows if r.answer.kind != GOLD), limit - before)


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
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    weights: Teacher = LIVE,
    teachers: TeacherRuntime | None = None,
) -> list[DrawnAnswer]:
    """An answer to each prompt, of at most `limits` tokens, with its log-probabilities as drawn.

    The serving engine draws over the same weights. The adapter is not merged into them: merging would round what is not
    rounded when the answer is scored. transformers draws for architectures that the engine does not compute.

    Args:
        weights: Whose answers; the student's by default.
        teachers: Holds external models.
    """
    if not prompts:
        return []
    if isinstance(weights, External):
        assert teachers is not None
        model, adapter = teachers.external[weights.key][0], None
    else:
        model = policy.model
        adapter = policy.live() if weights == LIVE else policy.deltas.get(weights.key) or None
    drawer = drawer_of(model, ends, rows=_ROWS)
    own = weights == LIVE or isinstance(weights, External)
    with nullcontext() if own else policy.under(weights.key):
        return drawer.draw(
            prompts, limits, adapter=adapter, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed
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
    teachers: TeacherRuntime | None = None
    """Whose weights write beside the student's."""

    def rows(self, policy: Policy, epoch: int, step: int) -> Sequence[Encoded]:
        """The rows of an epoch that begins after `step` steps. Of several processes the first writes fresh answers, the
        others read its file.

        Raises:
            NothingToDo: when no token of the first epoch counts.
        """
        rows = self.prepared.rows if epoch < self.recipe.epochs else self._fresh(policy, epoch, step)
        rows = self._hinted(policy, rows, epoch)
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

    def _hinted(self, policy: Policy, rows: Sequence[Encoded], epoch: int) -> Sequence[Encoded]:
        """The rows with the privileged text that their pass makes. Of several processes the first draws it."""
        if not hint_contexts(self.recipe):
            return rows
        ends = stop_ids(policy.model.get_base_model(), self.tokenizer)

        def write(prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
            room = [max(1, min(most, self.prepared.limit - len(prompt))) for prompt in prompts]
            return [one.tokens for one in generate(policy, prompts, ends, room, temperature=0.0)]

        def make() -> list[Encoded]:
            number = epoch if epoch >= self.recipe.epochs else 0  # served answers are shown one hint throughout
            file = self.run_dir / f"fresh-{number}-hints.json"
            return with_hints(rows, self.prepared, self.tokenizer, write, file, self.key)

        if not self.workers.is_main:
            self.workers.barrier()
            return make()
        made = make()
        self.workers.barrier()
        return made

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
            generations=self.recipe.generations,
            teachers=self.teachers,
            judge=reward_function(
                self.recipe.verifier, {e.interaction.id: e.turn for e in self.prepared.used}, self.tokenizer
            ),
        )
        rows = [r for r in rows if r.answer.kind == GOLD] + with_private_masked(
            (r for r in rows if r.answer.kind != GOLD), self.tokenizer, self.recipe.redact
        )
        written = [r for r in rows if r.answer.kind != GOLD and r.answer.accepted]
        if self.workers.is_main:
            if written:
                told = {e.interaction.id: e.interaction.hindsight for e in self.prepared.used}
                write_generation_metrics(
                    self.run_dir, self.tokenizer, served, written, told, number=epoch, step=step, ends=ends
                )
            self.workers.barrier()
        return rows
