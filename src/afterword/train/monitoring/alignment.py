"""Writes the alignment report of a run: student and teachers score the same ids, and the hindsight is informative.

Compares the user's hindsight with another user's as the control. Runs before the first step; changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from afterword.chat.redact import redact
from afterword.chat.render import Tokenizer, decode, template_arguments
from afterword.learn.loss.loss_stage import token_losses
from afterword.learn.parts.contexts import Context, others, turn_hindsight
from afterword.learn.parts.divergences import NegativeLogLikelihood
from afterword.learn.parts.teachers import LIVE, Routed, Teacher
from afterword.learn.recipes import Recipe
from afterword.model.packing import Ids, Parts, by_budget, packed, scored_count
from afterword.records import Turn
from afterword.sharing import BACKGROUND
from afterword.store.files import write_whole
from afterword.train.data.episodes import with_earlier_answers
from afterword.train.data.examples import Prepared
from afterword.train.data.rows import NONE, Encoded
from afterword.train.monitoring.alerts import START, crossed_thresholds
from afterword.train.runtime.teacher_runtime import TeacherRuntime
from afterword.train.runtime.token_budget import token_budget

_PROBED = 16
_PROBED_TOKENS = 4096
_ROWS = 2
"""Interactions that are written out."""
_SHOWN = 12
"""Tokens of each."""
_FILE = "signal.json"


@dataclass(frozen=True, slots=True)
class HindsightSignal:
    """The hindsight's signal on the served answers before training (nats), over the first 16 interactions, fewer when
    they are long.
    """

    real: float
    """Mean |log T(y|x,o) - log T(y|x)| per token under the user's own hindsight, T the term's own teacher."""
    other: float | None
    """The same under another interaction's hindsight; None when nobody wrote other words."""
    gap: float
    """Mean log T(y|x,o) - log T(y|x): the privileged gap (negative where users disagree with the answers)."""
    n: int

    def scalars(self) -> dict[str, float]:
        """For a plot, at step 0."""
        values = {"real": self.real, "gap": self.gap} | ({} if self.other is None else {"other": self.other})
        return {f"start/signal_{k}": v for k, v in values.items()} | {f"warnings/{k}": 1.0 for k in self.warnings()}

    def warnings(self) -> dict[str, str]:
        """Thresholds that are crossed: metric -> sentence."""
        values = {"signal_real": self.real}
        if self.other:
            values["signal_real_to_other"] = self.real / self.other
        return crossed_thresholds(START, values)


def write_alignment(
    teachers: TeacherRuntime, tokenizer: Tokenizer, prepared: Prepared, recipe: Recipe, run_dir: Path, seed: int
) -> HindsightSignal | None:
    """Write `alignment.txt` and `signal.json`. The signal is None for a recipe without hindsight. A resumed run keeps
    the files of its start."""
    file = run_dir / _FILE
    if file.is_file() and (run_dir / "alignment.txt").is_file():
        kept = json.loads(file.read_text(encoding="utf-8"))
        return HindsightSignal(**kept) if kept else None
    probe = _Probe(teachers, tokenizer, prepared, recipe, _probed(prepared))
    plain = probe.scores(LIVE, [r.parts(NONE) for r in probe.rows])
    lines = [*_counts(prepared), _serve_gap(probe.rows, plain)]
    lines += [line for i in range(min(_ROWS, len(probe.rows))) for line in probe.shown(i, plain[i])]
    signal = probe.signal(seed)
    if signal is not None:
        lines += ["", f"signal per token (nats): {json.dumps(asdict(signal))}"]
        lines += [f"warning: {sentence}" for sentence in signal.warnings().values()]
    write_whole(run_dir / "alignment.txt", "\n".join(lines) + "\n")
    write_whole(file, json.dumps(asdict(signal) if signal else None))
    return signal


class _Probe:
    """The first `n` rows under the teachers of the run, before its first step."""

    def __init__(
        self, teachers: TeacherRuntime, tokenizer: Tokenizer, prepared: Prepared, recipe: Recipe, n: int
    ) -> None:
        self.teachers, self.tokenizer, self.recipe, self.limit = teachers, tokenizer, recipe, prepared.limit
        self.rows, self.used = prepared.rows[:n], prepared.used[:n]

    def scores(self, teacher: Teacher, reads: Sequence[Parts | None]) -> list[Tensor]:
        """Log-probabilities [n] of each row's scored ids, as `reads` has them; rows without are left out."""
        found: dict[int, Tensor] = {}
        asked = [(i, p) for i, p in enumerate(reads) if p is not None]
        parts = {i: _part(teacher, self.rows[i]) for i, _ in asked}
        budget = token_budget(self.recipe, self.teachers.policy)
        for part in dict.fromkeys(parts.values()):
            mine = [(i, p) for i, p in asked if parts[i] == part]
            groups = by_budget([sum(map(len, p)) for _, p in mine], budget)
            for group in BACKGROUND.between(groups):
                batch = packed([mine[k][1] for k in group], self.teachers.policy.device)
                side = self.teachers.side(part, batch)
                seen = token_losses(side.states, None, side.head, batch.targets, NegativeLogLikelihood())
                pieces = torch.split(seen.logp_student.float().cpu(), [scored_count(mine[k][1]) for k in group])
                found.update((mine[k][0], piece) for k, piece in zip(group, pieces, strict=True))
        return [found[i] for i, _ in asked]

    def signal(self, seed: int) -> HindsightSignal | None:
        """What the hindsight says under the first term's teacher that reads any; None for a recipe without."""
        reading = (t for t in self.recipe.terms if t.teacher is not None and t.context.privileged)
        term = next((t for t in reading if t.context.hint is None), None)  # a hint is made in each pass
        if term is None or term.teacher is None:
            return None
        plain = self.scores(term.teacher, [r.parts(NONE) for r in self.rows])
        real = self.scores(term.teacher, [r.parts(term.context) for r in self.rows])
        other = self.other_parts(term.context, seed)
        wrong = self.scores(term.teacher, other)
        beside = [s for s, p in zip(plain, other, strict=True) if p is not None]
        ratio = torch.cat(real) - torch.cat(plain)
        return HindsightSignal(
            real=float(ratio.abs().mean()),
            other=float((torch.cat(wrong) - torch.cat(beside)).abs().mean()) if wrong else None,
            gap=float(ratio.double().mean()),
            n=len(self.rows),
        )

    def other_parts(self, where: Context, seed: int) -> list[Parts | None]:
        """What the teacher would read in place of a row's own hindsight, made as that is; None where nobody wrote
        other words, where it does not fit, and for a context that shows the same text to all."""
        found: list[Parts | None] = []
        given = others([e.interaction.hindsight for e in self.used], seed)
        for example, row, i in zip(self.used, self.rows, given, strict=True):
            shown = None if i is None else self.used[i].interaction
            if shown is None or where.text is not None or not shown.hindsight.strip():
                found.append(None)
                continue
            seen = turn_hindsight(
                self.tokenizer,
                where,
                example.turn,
                redact(shown.hindsight, self.recipe.redact).text,
                room=self.limit - len(row.answer_ids),
                longest=self.recipe.max_hindsight,
                polarity=shown.polarity,
                kind=shown.kind,
            )
            found.append(None if seen is None else self._parts(row, where, seen.prompt.ids, example.turn))
        return found

    def _parts(self, row: Encoded, where: Context, prompt: tuple[int, ...], turn: Turn) -> Parts | None:
        """The row as a teacher reads it whose prompt under `where` is this one."""
        if not row.between:
            return prompt, row.completion
        alone = replace(row, prompt=row.before, completion=row.answer_ids, between=(), teacher_prompts={where: prompt})
        whole = with_earlier_answers(alone, self.tokenizer, arguments=template_arguments(turn.sampling))
        return whole.parts(where) if where in whole.teacher_prompts else None

    def shown(self, number: int, plain: Tensor) -> list[str]:
        """One row as both sides read it, the boundary, and the first scored tokens: each side's log-probability, and
        each teacher's log-ratio to the student."""
        row = self.rows[number]
        lines = ["", f"interaction {number + 1}, {row.interaction}", *self._prompt("student", row.prompt)]
        columns, names = [plain.tolist()], ["student"]
        for term in self.recipe.terms:
            if term.teacher is None:
                continue
            (theirs,) = self.scores(term.teacher, [row.parts(term.context) if r is row else None for r in self.rows])
            columns += [theirs.tolist(), (theirs - plain).tolist()]
            names += [f"teacher of {term.name!r}", "minus student"]
            who = f"{names[-2]} ({_part(term.teacher, row).key}, context {term.context.name!r})"
            lines += self._prompt(who, row.reads(term.context))
        last = decode(self.tokenizer, row.completion[-1:], special=True)
        lines += [f"--- all score {len(row.completion)} ids; the last is {row.completion[-1]} {last!r}"]
        lines += [f"    log-probabilities (nats): {', '.join(names)}"]
        for place, (i, *values) in enumerate(zip(row.completion, *columns, strict=True)):
            if place == _SHOWN:
                break
            text = decode(self.tokenizer, [i], special=True)
            lines += [f"{i:>7} {text!r:<20} " + " ".join(f"{x:+9.3f}" for x in values)]
        return lines

    def _prompt(self, who: str, ids: Ids) -> list[str]:
        end = decode(self.tokenizer, ids[-3:], special=True)
        read = decode(self.tokenizer, ids, special=True)
        return [f"--- {who} reads {len(ids)} ids", read, f"--- boundary after {list(ids[-3:])} {end!r}"]


def _part(teacher: Teacher, row: Encoded) -> Teacher:
    """The teacher of this row."""
    return teacher.of(row.answer.task) if isinstance(teacher, Routed) else teacher


def _probed(prepared: Prepared) -> int:
    """How many interactions to score: the first 16, fewer when they are long, but two where there are two."""
    total = list(accumulate(len(r.prompt) + len(r.completion) for r in prepared.rows[:_PROBED]))
    return max(sum(size <= _PROBED_TOKENS for size in total), min(2, len(total)))


def _serve_gap(used: Sequence[Encoded], plain: Sequence[Tensor]) -> str:
    """What the server said against what this model says of the same tokens: the first place to look when training
    and serving differ (another adapter, another template, another dtype)."""
    gaps = [p - torch.tensor(r.served) for r, p in zip(used, plain, strict=True) if r.served and r.answer.plain]
    known = [g[torch.isfinite(g)] for g in gaps]
    flat = torch.cat(known) if known else torch.empty(0)
    if not len(flat):
        return "log-probabilities from the server: none to compare with"
    return (
        f"log-probabilities from the server: {len(flat)} tokens, ours minus theirs {float(flat.mean()):+.4f} on "
        f"average, {float(flat.abs().max()):.4f} at most (nats)"
    )


def _counts(prepared: Prepared) -> list[str]:
    cut = [r.cut for r in prepared.rows if r.cut]
    lines = [
        f"interactions: {len(prepared.rows)} trained, {len(prepared.excluded)} excluded",
        f"tokenised here (answers without served ids): {sum(not r.on_policy for r in prepared.rows)}",
        f"hindsight cut: {len(cut)} interactions, {sum(cut)} tokens",
    ]
    return lines + [f"excluded {one.interaction}: {one.reason}: {one.detail}" for one in prepared.excluded]
