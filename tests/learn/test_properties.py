"""The contract: the properties of distillation, each over every recipe, on a tiny random model in float64.

Property numbers are those of docs/recipes/README.md. A recipe enters by its name in RECIPES; nothing here knows one,
but for what it has to be told (`INPUTS`) and the residuals that its paper accepts (`RESIDUAL`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.learn.recipe_inputs import INPUTS
from tests.train.tiny_model import example, tiny_folder
from torch import Tensor

from afterword.chat.render import ends_with, generation_header
from afterword.errors import NothingToDo
from afterword.learn.diagnostics import log_probs
from afterword.learn.loss.loss_stage import Scores, token_losses
from afterword.learn.loss.terms import Term, divisors
from afterword.learn.loss.tiles import tile_of
from afterword.learn.loss.token_batch import AnswerInfo, Group, Member, TokenBatch, layout
from afterword.learn.parts.contexts import CONTEXTS, Context
from afterword.learn.parts.divergences import Estimator, Follows, ForwardKL, ReverseKL
from afterword.learn.parts.generation import STUDENT
from afterword.learn.parts.teachers import START, External
from afterword.learn.parts.weights import EVERYTHING, ByOrigin, Cap, kinds_of, routes_of
from afterword.learn.recipes import RECIPES, Recipe, recipe
from afterword.model.head import Head, head_of
from afterword.model.loading import load_model, load_tokenizer
from afterword.model.packing import hidden_states, packed
from afterword.train.data.credit import Step
from afterword.train.data.examples import Example, Prepared, contexts_of, prepare
from afterword.train.data.rows import NONE, Encoded

KINDS = ("follow_up", "edited", "retried", "tests")
ALL = sorted(RECIPES)


def made(name: str) -> Recipe:
    return recipe(name, **INPUTS.get(name, {}))


@dataclasses.dataclass(frozen=True)
class Lab:
    """A tiny model in float64 and interactions of every kind that a recipe reads."""

    ref: str
    model: Any
    head: Head
    other: Any
    """The model of an external teacher."""

    def rows(self, one: Recipe, n: int = 6, **changes: Any) -> tuple[Encoded, ...]:
        """`n` answers of the kinds that the recipe reads."""
        routes = [kinds_of(t.route) for t in one.terms]
        kinds = routes[0] if routes and routes[0] and len(set(routes)) == 1 else KINDS
        given = self.examples(n, kinds=kinds, **changes)
        if one.data == "episodes":
            given = [dataclasses.replace(e, step=step_of(i, e)) for i, e in enumerate(given)]
        prepared = prepare(given, self.tokenizer, one, limit=512, vocabulary=259)
        return tuple(self.written(one, prepared, i) for i in range(len(prepared.rows)))

    def written(self, one: Recipe, prepared: Prepared, i: int) -> Encoded:
        """Row `i` as a pass makes it: of one of the origins that the recipe reads, with a hint."""
        row, turn = prepared.rows[i], prepared.used[i].turn
        if any(isinstance(r, ByOrigin) for t in one.terms for r in routes_of(t.route)):
            how = one.generations[i % len(one.generations)]
            under = how.context if how.context.privileged else None
            row = dataclasses.replace(row, answer=dataclasses.replace(row.answer, origin=how.origin, under=under))
        for where in contexts_of(one):
            if where.hint is not None:
                row = prepared.encoder.hinted(row, turn, where, f"Hint {i}.", 1)
        return row

    def examples(self, n: int, *, kinds: Sequence[str] = KINDS, **changes: Any) -> list[Example]:
        found = []
        for i in range(n):
            one = example(self.ref, i, text=f"Answer {i}" + "!" * (i % 4), hindsight=f"Wish {i}." + "." * i)
            changed = {"kind": kinds[i % len(kinds)], "polarity": (-1, 1, 0)[i % 3], "weight": 1.0 - 0.1 * i, **changes}
            turn = dataclasses.replace(one.turn, logprobs=(-5.5,) * len(one.turn.completion_ids or ()))
            found.append(Example(dataclasses.replace(one.interaction, **changed), turn))
        return found

    @property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.ref)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    ref = tiny_folder(tmp_path_factory.mktemp("lab") / "model", initializer_range=0.3)
    other = tiny_folder(tmp_path_factory.mktemp("lab") / "other", initializer_range=0.3, seed=1)
    model, teacher = (load_model(folder, dtype="float32").double().eval() for folder in (ref, other))
    return Lab(ref, model, head_of(model), teacher)


def step_of(number: int, one: Example) -> Step:
    """Each turn is an episode of one task, with another outcome."""
    return Step(turn=one.turn.id, episode=f"e{number}", task="t", depth=0, state="s", action=str(number),
                outcome=1.0 - number % 3)  # fmt: skip


def scores_of(lab: Lab, term: Term, rows: Sequence[Encoded], student: Tensor, ids: Tensor) -> Scores:
    def side(model: Any, prompts: Sequence[Sequence[int]]) -> Tensor:
        with torch.no_grad():
            return hidden_states(model, packed([(p, r.completion) for p, r in zip(prompts, rows, strict=True)]))

    reads = lab.other if isinstance(term.teacher, External) else lab.model
    teacher = None if term.teacher is None else side(reads, [r.teacher_prompts[term.context] for r in rows])
    reference = side(lab.model, [r.prompt for r in rows]) if term.target.needs_reference else None
    return token_losses(
        student, teacher, lab.head, ids, term.estimator,
        target=term.target, support=term.support, reference=reference, teacher_head=head_of(reads),
    )  # fmt: skip


def layout_of(lab: Lab, rows: Sequence[Encoded]) -> TokenBatch:
    """The layout of these rows; each answer is judged, its group had other rewards, and it was sampled by a policy
    a little away from the student."""
    answers, served = [], []
    for row, logps in zip(rows, log_probs(lab.model, lab.head, [(r.prompt, r.completion) for r in rows]), strict=True):
        number = int(row.interaction.removeprefix("int-"))
        measures = (("logp_student", -0.1 * number), ("logp_teacher", -0.2 * number), ("phi", 0.1),
                    ("p_teacher", 0.5 - 0.05 * number))  # fmt: skip
        members = [Member(1.0 - k, origin, (("logp_student", -k), ("logp_teacher", -1.0), ("p_teacher", 0.3 * k)))
                   for k in range(3) for origin in ("served", "student")]  # fmt: skip
        group = Group(size=4, mean=0.25, deviation=0.5, members=tuple(members))
        answers.append(dataclasses.replace(row.answer, reward=1.0 - number % 3, group=group, measures=measures))
        served += [s + 0.1 * (-1) ** k for k, s in enumerate(logps.tolist())]
    lengths, weights = [len(r.completion) for r in rows], [r.weight for r in rows]
    credit = [r.credit for r in rows]
    return layout(lengths, weights, [r.privileged for r in rows], answers=answers, served=served, credit=credit)


def evaluate(lab: Lab, one: Recipe, rows: Sequence[Encoded], batches: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(objective of one step, its gradient with respect to a parameter inside the model)."""
    counts = divisors(one.terms, layout_of(lab, rows))
    late: dict[str, list[Tensor]] = {t.name: [] for t in one.terms if t.by_weight}
    inside = next(p for n, p in lab.model.named_parameters() if "q_proj" in n)
    inside.requires_grad_(True)
    inside.grad = None
    total = torch.zeros((), dtype=torch.float64)
    for picked in batches:
        part = [rows[i] for i in picked]
        where = layout_of(lab, part)
        contexts = dict.fromkeys(t.student_context for t in one.terms)
        rowed = {context: packed([r.parts(context) for r in part]) for context in contexts}
        students = {context: hidden_states(lab.model, batch) for context, batch in rowed.items()}
        for term, count in zip(one.terms, counts, strict=True):
            read = term.student_context
            scores = scores_of(lab, term, part, students[read], rowed[read].targets)
            value = term.value(scores, where, 1.0 if term.by_weight else count)
            if term.by_weight:
                late[term.name] += [value, term.weight_sum(scores, where)]
            else:
                total = total + value
    for term, count in zip(one.terms, counts, strict=True):
        if term.by_weight and count:
            found = late[term.name]
            weights = torch.stack(found[1::2]).sum() * count
            total = total + torch.stack(found[::2]).sum() / weights.where(weights > 0, 1.0)
    if total.requires_grad:
        total.backward()  # type: ignore[no-untyped-call]
    gradient = torch.zeros_like(inside) if inside.grad is None else inside.grad.clone()
    return total.detach(), gradient


def agreeing(one: Recipe, step: int) -> Recipe:
    """The recipe at one of 100 steps, with teachers that are and read what the student does; only those terms."""
    terms = tuple(
        dataclasses.replace(t, context=NONE, student_context=NONE, teacher=START, route=EVERYTHING).at(step, 100, [])
        for t in one.terms
        if t.teacher is not None
    )
    return dataclasses.replace(one, terms=terms, generation=STUDENT, extra_generations=())


RESIDUAL = {
    "rlsd": "the reward moves tokens also where the teacher agrees",
    "rlad": "the reward moves tokens also where the teacher agrees",
    "sdar": "the gate is a half at agreement: the likelihood of every token rises",
    "episode-sdar": "the gate is a half at agreement: the likelihood of every token rises",
    "opid": "the reward moves tokens also where the teacher agrees, and T is compared with the sampler",
    "tamtrl": "the reward moves tokens, the teacher only says which",
    "hdpo": "the teacher alone is renormalised on its likeliest tokens",
    "eopd": "the teacher alone is renormalised on its likeliest tokens: -log of their mass is left",
    "veto": "the bridge T S^beta is sharper than both sides until beta has fallen to 0",
}
"""Recipes whose published form does not vanish at agreement from the first step on, and why."""
ROUNDED = ("follow-ups",)
"""Recipes whose target is computed from two sides, so that agreement leaves the rounding."""


@pytest.mark.parametrize("name", ALL)
def test_1_same_context_and_weights_give_exactly_nothing(lab: Lab, name: str) -> None:
    one = agreeing(made(name), step=0)
    if not one.terms:
        assert all(t.estimator.follows is Follows.LIKELIHOOD for t in made(name).terms)
        return
    rows = lab.rows(one)
    loss, gradient = evaluate(lab, one, rows, [range(len(rows))])
    most = 1e-12 if name in ROUNDED else 0.0
    assert (abs(loss.item()) <= most) is (name not in RESIDUAL)
    assert bool((gradient.abs() <= most).all()) is (name not in RESIDUAL)


def test_1_beyond_the_teacher_there_is_nothing_where_words_change_nothing(lab: Lab) -> None:
    one = agreeing(recipe("sdpo-interactions", beyond=0.5), step=0)
    assert one.terms[0].reference == one.terms[0].teacher
    rows = lab.rows(one)
    loss, gradient = evaluate(lab, one, rows, [range(len(rows))])
    assert loss.item() == pytest.approx(0.0, abs=1e-12) and float(gradient.abs().max()) < 1e-12


def test_1_residuals_are_what_the_pages_say(lab: Lab) -> None:
    for step, vanishes in ((0, False), (99, True)):
        one = agreeing(made("veto"), step)
        loss, gradient = evaluate(lab, one, rows := lab.rows(one), [range(len(rows))])
        assert (loss.item() == 0.0 and bool((gradient == 0).all())) is vanishes
    one = agreeing(made("eopd"), step=0)
    (sampled, uncertain), rows = one.terms, lab.rows(one)
    assert evaluate(lab, dataclasses.replace(one, terms=(sampled,)), rows, [range(len(rows))])[0].item() == 0.0
    batch = packed([(r.prompt, r.completion) for r in rows])
    scores = scores_of(lab, uncertain, rows, hidden_states(lab.model, batch), batch.targets)
    torch.testing.assert_close(scores.loss, -scores.top_mass.log(), atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_2_both_sides_score_the_same_ids_behind_the_same_header(lab: Lab, name: str) -> None:
    header = generation_header(lab.tokenizer)
    for row, given in zip(lab.rows(made(name)), lab.examples(6), strict=False):
        for where, prompt in ((NONE, row.prompt), *row.teacher_prompts.items()):
            if where.where == "continue":  # it goes on behind its own answer, with no header
                continue
            assert ends_with(prompt, header)
            assert packed([(prompt, row.completion)]).targets.tolist() == list(row.completion)
        assert row.completion[-1] == lab.tokenizer.eos_token_id or given.turn.finish_reason == "length"


@pytest.mark.parametrize("name", ALL)
def test_3_no_gradient_reaches_the_teacher(lab: Lab, name: str) -> None:
    one = made(name)
    rows = lab.rows(one)
    batch = packed([(r.prompt, r.completion) for r in rows])
    for term in one.terms:
        if term.teacher is None:
            continue
        student = hidden_states(lab.model, batch).detach().requires_grad_(True)
        teacher = (student.detach() + 0.1).requires_grad_(True)
        reference = (student.detach() - 0.1).requires_grad_(True) if term.target.needs_reference else None
        found = token_losses(
            student, teacher, lab.head, batch.targets, term.estimator,
            target=term.target, support=term.support, reference=reference,
        )  # fmt: skip
        found.loss.sum().backward()  # type: ignore[no-untyped-call]
        assert student.grad is not None and bool((student.grad != 0).any())
        assert teacher.grad is None
        assert reference is None or reference.grad is None


def sampled(name: str) -> list[Term]:
    return [t for t in made(name).terms if t.estimator.sampled and t.estimator.needs_teacher]


@pytest.mark.parametrize("name", [name for name in ALL if sampled(name)])
def test_4_a_sampled_estimator_follows_what_it_says_in_expectation(name: str) -> None:
    generator = torch.Generator().manual_seed(5)
    student, teacher = 2 * torch.randn(2, 1, 7, generator=generator, dtype=torch.float64)
    every = torch.arange(7)
    for term in sampled(name):
        estimator: Any = term.estimator
        _, per_token = estimator(tile_of(student.expand(7, -1), teacher.expand(7, -1), every))
        mean = (student.softmax(-1)[0][:, None] * per_token).sum(0)
        if estimator.follows is Follows.FLOORED_REVERSE_KL:
            want = floored(student[0], teacher[0], estimator.floor)
            assert not torch.allclose(want, floored(student[0], teacher[0], -math.inf))  # the floor is reached here
        else:
            assert estimator.follows in (Follows.REVERSE_KL, Follows.FORWARD_KL)
            exact: Estimator = ReverseKL() if estimator.follows is Follows.REVERSE_KL else ForwardKL()
            want = exact(tile_of(student, teacher, every[:1]))[1][0]
        torch.testing.assert_close(mean, want, atol=1e-12, rtol=1e-10)


def floored(student: Tensor, teacher: Tensor, floor: float) -> Tensor:
    """[V] d/dz of the sum over y of -S(y) max(log T - log S, floor), the factor held constant; -inf: of KL(S||T)."""
    z = student.clone().requires_grad_()
    advantage = (teacher.log_softmax(-1) - student.log_softmax(-1)).clamp(min=floor)
    (gradient,) = torch.autograd.grad((-advantage * z.softmax(-1)).sum(), z)
    return gradient


@pytest.mark.parametrize("name", ALL)
def test_6_what_has_no_privileged_text_counts_nowhere(lab: Lab, name: str) -> None:
    one = made(name)
    rows = lab.rows(one)
    mute = [dataclasses.replace(r, privileged=False) for r in rows]
    unjudged = dataclasses.replace(layout_of(lab, rows), answers=(AnswerInfo(),) * len(rows))
    assert all(t.count(unjudged) == 0 for t in one.terms if t.advantage is not None and t.advantage.needs_reward)
    unknown = dataclasses.replace(layout_of(lab, rows), served=torch.full_like(layout_of(lab, rows).served, math.nan))
    assert all((t.count(unknown) == 0) is t.needs_served for t in one.terms)
    hindsight = dataclasses.replace(one, terms=tuple(t for t in one.terms if t.context.privileged))
    if hindsight.terms:
        loss, gradient = evaluate(lab, hindsight, mute, [range(len(rows))])
        assert loss.item() == 0.0
        assert bool((gradient == 0).all())
        some = [*rows[:3], *mute[3:]]
        for a, b in zip(
            evaluate(lab, hindsight, some, [range(len(some))]),
            evaluate(lab, hindsight, rows[:3], [range(3)]),
            strict=True,
        ):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)
    nothing = layout([], [], [])
    for term in one.terms:
        empty = Scores(*[torch.zeros(0)] * len(dataclasses.fields(Scores)))
        assert term.value(empty, nothing, term.count(nothing)).item() == 0.0


@pytest.mark.parametrize("name", ALL)
def test_7_order_padding_and_split_change_nothing(lab: Lab, name: str) -> None:
    one = made(name)
    rows = lab.rows(one)
    n = len(rows)
    want = evaluate(lab, one, rows, [range(n)])
    shuffled = [rows[i] for i in reversed(range(n))]
    for got in (evaluate(lab, one, shuffled, [range(n)]), evaluate(lab, one, rows, [[i] for i in range(n)])):
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)
    assert bool((want[1] != 0).any())


def limits_of(term: Term) -> list[float]:
    return [w.most for w in term.weights if isinstance(w, Cap)] + ([] if term.clip is None else [term.clip])


CLIPPED = [one for one in map(made, ALL) if any(map(limits_of, one.terms))]


@pytest.mark.parametrize("one", [*CLIPPED, recipe("sdpo-interactions", clip=0.05)], ids=lambda one: one.name)
def test_10_a_clip_bounds_each_token_after_the_sum(lab: Lab, one: Recipe) -> None:
    rows = lab.rows(one)
    batch = packed([(r.prompt, r.completion) for r in rows])
    for term in filter(limits_of, one.terms):
        limits = limits_of(term)
        scores = scores_of(lab, term, rows, hidden_states(lab.model, batch), batch.targets)
        assert bool((scores.loss >= -1e-9).all()) and bool((scores.loss > min(limits)).any())
        pieces = torch.split(scores.loss, [len(r.completion) for r in rows])
        for piece in pieces:  # one answer alone: its part of the objective is a mean of clipped tokens
            where = layout([len(piece)], [1.0], [True])
            alone = dataclasses.replace(scores, **{f.name: piece for f in dataclasses.fields(Scores)})
            value = term.value(alone, where, term.count(where)).item() / term.scale
            assert 0 <= value <= min(limits) * (1 + 1e-6)  # shares are float32


@pytest.mark.parametrize("where", list(CONTEXTS.values()), ids=list(CONTEXTS))
@pytest.mark.parametrize("kind", ["follow_up", "edited", "retried", "tests"])
def test_8_only_the_privileged_text_is_cut_and_what_was_cut_is_counted(lab: Lab, where: Context, kind: str) -> None:
    words = "0123456789" * 30
    (given,) = lab.examples(1, kind=kind, hindsight=words)
    if words not in str(where.place(given.turn.messages, given.turn.answer, words, kind=kind)):
        assert where.name in ("none", "remark")
        return
    one = recipe("sdpo-interactions", context=where.name, max_hindsight=100)
    if where.shuffled:  # alone there is nobody else's text to cut
        with pytest.raises(NothingToDo, match="no_other"):
            prepare([given], lab.tokenizer, one, limit=512, vocabulary=259)
        return
    (long,) = prepare([given], lab.tokenizer, one, limit=512, vocabulary=259).rows
    assert long.cut == 200
    tight = prepare([given], lab.tokenizer, one, limit=len(long.teacher_prompts[where]) - 30, vocabulary=259)
    text = lab.tokenizer.decode(tight.rows[0].teacher_prompts[where])
    for row in (long, tight.rows[0]):
        shown = len(words) - row.cut
        whole = where.place(given.turn.messages, given.turn.answer, words[:shown], kind=kind, polarity=-1)
        want = lab.tokenizer.apply_chat_template(whole, tokenize=False, add_generation_prompt=True)
        assert lab.tokenizer.decode(row.teacher_prompts[where]) == want
    assert ends_with(tight.rows[0].teacher_prompts[where], generation_header(lab.tokenizer)), text
