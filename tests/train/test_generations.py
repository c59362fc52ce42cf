"""How the answers of a pass are written: whose weights, which context, which are kept; hints and measures."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from afterword.chat.render import decode, encode_content, end_of_turn_ids, generation_header
from afterword.learn.diagnostics import log_probs
from afterword.learn.loss.terms import Term
from afterword.learn.parts.contexts import AGAIN, CONTEXTS, Context, Reflection, Sibling, Skill, with_hint
from afterword.learn.parts.divergences import FORWARD_KL, NegativeLogLikelihood
from afterword.learn.parts.generation import STUDENT, AnswerFilter, Draft, Ended, Generation, Longest, Right
from afterword.learn.parts.teachers import BASE, LIVE, START, External
from afterword.learn.parts.weights import ByCorrectness, GroupSoftmax
from afterword.learn.recipes import Lora, Recipe
from afterword.model.generation import sampler
from afterword.model.loading import load_tokenizer
from afterword.train.data.batches import plan_steps, rows_of
from afterword.train.data.examples import Prepared, prepare
from afterword.train.data.rows import NONE, Encoded
from afterword.train.generation.generation import Rollouts, generate, rollout_rows
from afterword.train.generation.hints import with_hints
from afterword.train.runtime.distributed import SINGLE
from afterword.train.runtime.measures import measured
from afterword.train.runtime.policy import Policy, load_policy
from afterword.train.runtime.teacher_cache import TeacherCache, TeacherStates
from afterword.train.runtime.teacher_runtime import TeacherRuntime
from tests.learn.recipe_inputs import some_letters
from tests.train.tiny_model import example, tiny_folder

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

HINDSIGHT = Term(name="t", estimator=FORWARD_KL, teacher=START, context=CONTEXTS["appended"])
SETTINGS: dict[str, Any] = {"dtype": "float32", "epochs": 0, "lora": Lora(rank=4), "max_fresh": 8}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "model")


def moved(model: str, recipe: Recipe) -> Policy:
    policy = load_policy(model, recipe, parent=None, seed=0, device="cpu")
    torch.manual_seed(1)
    for parameter in policy.parameters():
        parameter.data.normal_(0, 0.1)
    return policy


class Lab:
    """A moved policy, its teachers and encoded rows of a recipe."""

    def __init__(self, model: str, *terms: Term, n: int = 3, **settings: Any) -> None:
        self.recipe = Recipe(name="x", terms=terms or (HINDSIGHT,), **{**SETTINGS, **settings})
        self.tokenizer = load_tokenizer(model)
        self.policy = moved(model, self.recipe)
        self.teachers = TeacherRuntime(self.policy, self.recipe, model)
        given = [example(model, i, text=f"Answer {i}, done.", hindsight=f"Wish {i}.") for i in range(n)]
        self.prepared: Prepared = prepare(given, self.tokenizer, self.recipe, limit=512, vocabulary=259)

    def fresh(self, folder: Path, *generations: Generation, judge: Any = some_letters, n: int = 2) -> list[Encoded]:
        ends = end_of_turn_ids(self.tokenizer)
        return rollout_rows(
            self.policy, self.prepared.rows, ends, folder, number=0, key="k", seed=1, most=8, limit=512, answers=n,
            judge=lambda row, ids: judge(None, decode(self.tokenizer, ids)), generations=generations,
            teachers=self.teachers,
        )  # fmt: skip


def test_each_generation_writes_under_its_weights_and_context(model: str, tmp_path: Path) -> None:
    lab = Lab(model, extra_generations=(Generation(weights=BASE),))
    hinted = Generation(context=CONTEXTS["appended"], n=1)
    rows = lab.fresh(tmp_path, STUDENT, hinted, Generation(weights=BASE, n=1))
    assert [r.answer.origin for r in rows] == ["student"] * 6 + ["privileged"] * 3 + ["teacher"] * 3
    assert [r.answer.plain for r in rows] == [True] * 9 + [False] * 3
    assert {r.answer.under for r in rows} == {None, CONTEXTS["appended"]}
    for row in rows[:9]:
        context = row.answer.under if isinstance(row.answer.under, Context) else NONE
        (known,) = log_probs(lab.policy.model, lab.policy.head, [row.parts(context)])
        torch.testing.assert_close(torch.tensor(row.served), known, atol=2e-5, rtol=1e-4)
    (cut,) = {math.isnan(x) for r in lab.fresh(tmp_path / "a", Generation(top_k=3, n=1)) for x in r.served}
    assert cut and not any(math.isnan(x) for row in rows for x in row.served)
    with lab.policy.under("base"):
        (base,) = generate(lab.policy, [list(rows[9].prompt)], [2], [8], temperature=0.0)
    again = generate(lab.policy, [list(rows[9].prompt)], [2], [8], temperature=0.0, weights=BASE)
    live = generate(lab.policy, [list(rows[9].prompt)], [2], [8], temperature=0.0)
    assert again[0].tokens != live[0].tokens or again[0].logprobs != live[0].logprobs
    assert base.tokens  # the drawer itself is told its weights


def test_a_term_counts_only_samples_of_what_it_reads(model: str, tmp_path: Path) -> None:
    """An importance ratio over answers that were sampled under a hint is right under that hint alone."""
    lab = Lab(model)
    rows = lab.fresh(tmp_path, STUDENT, Generation(context=CONTEXTS["appended"], n=1), Generation(temperature=0.5, n=1))
    plain = Term(name="p", estimator=NegativeLogLikelihood(), teacher=None, context=NONE, weights=())
    ratio = dataclasses.replace(plain, weights=(_Ratio(),))
    hinted = dataclasses.replace(ratio, student_context=CONTEXTS["appended"])
    counted = [
        {rows[i].answer.origin for i in rows_of(rows).row[t.keep(rows_of(rows))].tolist()} for t in (ratio, hinted)
    ]
    assert counted == [{"student"}, {"privileged"}]
    assert plain.count(rows_of(rows)) == len(rows)
    assert ratio.count(rows_of(rows)) == 9  # at another temperature the sampler's own log-probabilities divide


class _Ratio:
    needs_served = True

    def __call__(self, scores: Any, batch: Any, keep: Any) -> Any:
        return torch.ones_like(scores.loss)


def test_unsolved_prompts_alone_are_written_again_and_filters_leave_answers_out(model: str, tmp_path: Path) -> None:
    lab = Lab(model, n=4)
    again = Generation(context=CONTEXTS["appended"], n=3, when="none_right", keep=(Right(),))
    rows = lab.fresh(tmp_path, STUDENT, again)
    assert len(rows) == 4 * 2 + 4 * 3 == len(plan_steps(lab.prepared.rows, dataclasses.replace(
        lab.recipe, num_generations=2, extra_generations=(again,), batch=1), 0))  # fmt: skip
    solved = {r.asked for r in rows[:8] if r.answer.reward}
    assert solved and len(solved) < 4
    for row in rows[8:]:
        assert row.answer.accepted is (row.asked not in solved and row.answer.reward == 1.0)
    kept = [r for r in rows[8:] if r.answer.accepted]
    assert kept
    term = dataclasses.replace(HINDSIGHT, context=CONTEXTS["none"], teacher=BASE)
    assert term.count(rows_of(rows[8:])) == len(kept)
    for row in rows:
        members = [m for m in row.answer.group.members if m.origin == row.answer.origin]
        same = [r for r in rows if (r.asked, r.answer.origin) == (row.asked, row.answer.origin) and r.answer.accepted]
        assert not row.answer.accepted or len(members) == len(same)
    assert lab.fresh(tmp_path, STUDENT, again) == rows  # from their files
    assert {f.name for f in tmp_path.glob("fresh*")} == {"fresh-0.json", "fresh-0-1.json"}


def test_where_a_context_shows_nothing_nothing_is_written_under_it(model: str, tmp_path: Path) -> None:
    lab = Lab(model)
    silent = [dataclasses.replace(r, privileged=frozenset()) for r in lab.prepared.rows[:1]]
    lab.prepared = dataclasses.replace(lab.prepared, rows=(*silent, *lab.prepared.rows[1:]))
    rows = lab.fresh(tmp_path, Generation(context=CONTEXTS["appended"], n=1))
    assert [r.answer.accepted for r in rows] == [False, True, True]


def test_a_prefix_is_read_and_a_second_writer_scored(model: str, tmp_path: Path) -> None:
    lab = Lab(model, generation=Generation(finish=BASE))
    (first, *_) = lab.prepared.rows
    for row in lab.fresh(tmp_path / "a", Generation(prefix=4, n=1)):
        served = next(r for r in lab.prepared.rows if r.interaction == row.interaction)
        assert row.prompt == (*served.prompt, *served.completion[:4]) and row.asked == served.prompt
        assert row.reads(CONTEXTS["appended"]) == (*served.reads(CONTEXTS["appended"]), *served.completion[:4])
        assert len(row.completion) <= 4 and row.answer.plain
    spliced = lab.fresh(tmp_path / "b", Generation(finish=BASE, n=1))
    assert any(row.between for row in spliced) and {r.answer.origin for r in spliced} == {"spliced"}
    for row in spliced:
        assert row.parts(NONE)[0] == row.asked and not row.answer.plain
        assert rows_of([row]).span.max() == (1 if row.between else 0)
    assert first.asked in {r.asked for r in spliced}


@pytest.fixture(autouse=True)
def folders(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()


@pytest.mark.parametrize(
    ("one", "kept"),
    [
        (Right(), [True, False, False, True]),
        (Ended(), [True, True, False, False]),
        (Longest(0.5), [False, True, True, False]),
    ],
)
def test_filters(one: AnswerFilter, kept: list[bool]) -> None:
    drafts = [Draft(1.0, 3, True), Draft(0.0, 5, True), Draft(None, 9, False), Draft(0.5, 1, False)]
    assert one(drafts) == kept


def test_the_likeliest_tokens_alone_are_drawn_from(model: str) -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0], [0.0, 3.0, 1.0, 2.0]])
    cut = sampler.truncate(logits, [sampler.Draw(1.0, 1.0, 0.0, top_k=2), sampler.Draw(1.0, 1.0, 0.0)])
    assert torch.isinf(cut[0]).tolist() == [True, False, True, False] and torch.equal(cut[1], logits[1])
    lab = Lab(model, n=1)
    prompt = list(lab.prepared.rows[0].prompt)
    greedy = generate(lab.policy, [prompt], [2], [12], temperature=0.0)
    only = generate(lab.policy, [prompt], [2], [12], temperature=2.0, top_k=1)
    assert greedy[0].tokens == only[0].tokens and only[0].logprobs == pytest.approx([0.0] * len(only[0].tokens))


def hinted(lab: Lab, rows: list[Encoded], folder: Path) -> list[Encoded]:
    asked: list[int] = []

    def write(prompts: Any, most: int) -> list[list[int]]:
        asked.append(len(prompts))
        return [list(b"Be brief.") for _ in prompts]

    found = with_hints(rows, lab.prepared, lab.tokenizer, write, folder / "fresh-0-hints.json", "k")
    assert with_hints(rows, lab.prepared, lab.tokenizer, write, folder / "fresh-0-hints.json", "k") == found
    assert len(asked) <= 1  # reflections are kept
    return found


def test_a_sibling_is_another_right_answer_to_the_prompt(model: str, tmp_path: Path) -> None:
    where = with_hint(CONTEXTS["peer"], Sibling())
    lab = Lab(model, dataclasses.replace(HINDSIGHT, context=where), n=4)
    assert not any(r.privileged for r in lab.prepared.rows)  # nothing before the pass
    rows = hinted(lab, lab.fresh(tmp_path, STUDENT, n=3), tmp_path)
    for i, row in enumerate(rows):
        others = [r for k, r in enumerate(rows) if k != i and r.asked == row.asked and r.answer.reward == 1.0]
        assert (where in row.privileged) is bool(others)  # type: ignore[operator]
        if others:
            shown = decode(lab.tokenizer, row.reads(where))
            assert decode(lab.tokenizer, others[0].completion) in shown
    term = lab.recipe.terms[0]
    assert 0 < term.count(rows_of(rows)) < len(rows)


def test_the_own_attempt_is_read_before_it_is_scored_again(model: str, tmp_path: Path) -> None:
    lab = Lab(model, dataclasses.replace(HINDSIGHT, context=AGAIN))
    for row in hinted(lab, lab.fresh(tmp_path, STUDENT), tmp_path):
        body = row.completion[:-1] if row.completion[-1] == 2 else row.completion
        assert row.reads(AGAIN)[: len(row.prompt) + len(body)] == (*row.prompt, *body)
        says = decode(lab.tokenizer, row.reads(AGAIN)[len(row.prompt) + len(body) :])
        assert ("is right" in says) is (row.answer.reward == 1.0)


@pytest.mark.parametrize("told", ["nothing", "outcome", "words"])
def test_a_reflection_knows_what_is_disclosed_and_no_more(told: Any, model: str, tmp_path: Path) -> None:
    where = with_hint(CONTEXTS["reflected"], Reflection(told=told))
    lab = Lab(model, dataclasses.replace(HINDSIGHT, context=where))
    rows = lab.fresh(tmp_path, STUDENT)
    rows[0] = dataclasses.replace(rows[0], answer=dataclasses.replace(rows[0].answer, reward=None))
    seen: list[str] = []

    def write(prompts: Any, most: int) -> list[list[int]]:
        seen.extend(decode(lab.tokenizer, ids) for ids in prompts)
        return [list(encode_content(lab.tokenizer, "I was wrong.")) for _ in prompts]

    found = with_hints(rows, lab.prepared, lab.tokenizer, write, tmp_path / "fresh-0-hints.json", "k")
    assert (where in found[0].privileged) is (told != "outcome")  # type: ignore[operator]
    assert len(seen) == len(rows) - (told == "outcome")
    asked = rows[1:] if told == "outcome" else rows
    wishes = {e.interaction.id: e.interaction.hindsight for e in lab.prepared.used}
    for row, prompt in zip(asked, seen, strict=True):
        assert (wishes[row.interaction] in prompt) is (told == "words")
        verdict = "right" if (row.answer.reward or 0.0) > 0 else "wrong"
        assert (f"This answer is {verdict}." in prompt) is (told == "outcome")
    for row in found[1:]:
        shown = decode(lab.tokenizer, row.reads(where))
        assert "I was wrong." in shown and wishes[row.interaction] not in shown


def test_words_that_do_not_fit_before_a_reflection_are_shortened_or_none(model: str) -> None:
    encoder = Lab(model, HINDSIGHT).prepared.encoder
    assert encoder.shortened("Shorter please.", 7) == "Shorter"
    assert encoder.shortened("Shorter please.", -3) == ""
    assert "jo@example.org" not in encoder.shortened("Write to jo@example.org.", 100)


def test_reflections_and_skills(model: str, tmp_path: Path) -> None:
    where = with_hint(CONTEXTS["system"], Reflection())
    lab = Lab(model, dataclasses.replace(HINDSIGHT, context=where))
    for row in hinted(lab, lab.fresh(tmp_path, STUDENT), tmp_path):
        assert where in row.privileged  # type: ignore[operator]
        assert row.reads(where)[-len(generation_header(lab.tokenizer)) :] == generation_header(lab.tokenizer)
    assert len(json.loads((tmp_path / "fresh-0-hints.json").read_text())["texts"]) == 1
    skill = with_hint(CONTEXTS["system"], Skill((("", "Use short words."),)))
    lab = Lab(model, dataclasses.replace(HINDSIGHT, context=skill), n=1)
    assert "Use short words." in decode(lab.tokenizer, lab.prepared.rows[0].reads(skill))


def test_measures_are_taken_once_and_are_means_over_the_answer(model: str, tmp_path: Path) -> None:
    soft = GroupSoftmax("logp_student", -1.0)
    right = Term(
        name="r",
        estimator=NegativeLogLikelihood(),
        teacher=None,
        context=NONE,
        route=ByCorrectness(True),
        weights=(soft,),
    )
    wrong = Term(
        name="w", estimator=FORWARD_KL, teacher=BASE, context=CONTEXTS["appended"], route=ByCorrectness(False),
        weights=(GroupSoftmax("logp_teacher"),),
    )  # fmt: skip
    lab = Lab(model, right, wrong, n=4)
    rows = lab.fresh(tmp_path, STUDENT, n=8)
    states = TeacherStates(lab.teachers, rows, lab.recipe, TeacherCache(None), "x")
    args = (lab.recipe, lab.policy, states, tmp_path / "fresh-0-measures.json", "k", SINGLE)
    found = measured(rows, *args)
    known = log_probs(lab.policy.model, lab.policy.head, [r.parts(NONE) for r in rows])
    for row, logps in zip(found, known, strict=True):
        ((name, value),) = row.answer.measures
        assert name == ("logp_student" if row.answer.reward else "logp_teacher")
        if row.answer.reward:
            assert value == pytest.approx(float(logps.mean()), abs=1e-4)
            assert any(m.measures == row.answer.measures for m in row.answer.group.members)
    for parameter in lab.policy.parameters():
        parameter.data.mul_(3)
    assert measured(rows, *args) == found  # a resumed run weighs as before
    weights = [soft._of(row.answer) for row in found if row.answer.reward]
    assert len({round(w, 6) for w in weights}) > 1
    for prompt in {r.asked for r in found}:
        group = [soft._of(r.answer) for r in found if r.asked == prompt and r.answer.reward]
        assert not group or sum(group) == pytest.approx(len(group))


def test_an_external_model_writes(model: str, tmp_path: Path) -> None:
    other = tiny_folder(tmp_path / "other", seed=1)
    writer = External(model=other, dtype="float32")
    lab = Lab(model, generation=Generation(weights=writer), n=1)
    prompt = list(lab.prepared.rows[0].prompt)
    (theirs,) = generate(lab.policy, [prompt], [2], [12], temperature=0.0, weights=writer, teachers=lab.teachers)
    (own,) = generate(lab.policy, [prompt], [2], [12], temperature=0.0, weights=LIVE)
    assert theirs.tokens != own.tokens
    assert Rollouts(lab.prepared, lab.recipe, lab.tokenizer, tmp_path, "k", 0, SINGLE, lab.teachers).teachers
