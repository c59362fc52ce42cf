"""Training on episodes: from the store to rows of branches with credit, and an adapter."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from afterword.config import EPISODE_RECIPES, TrainConfig, trains_episodes
from afterword.errors import NothingToDo
from afterword.feedback.collect.collect import Funnel, collect
from afterword.feedback.select.plan import newest_episodes, plan_training
from afterword.feedback.settings import CollectSettings
from afterword.learn.recipes import RECIPES, recipe
from afterword.model.loading import load_tokenizer
from afterword.records import Episode, Feedback, Interaction
from afterword.store import Store
from afterword.store.episodes import episode_view
from afterword.train.data.batches import rows_of
from afterword.train.data.branches import rules_of
from afterword.train.data.episode_examples import episode_examples
from afterword.train.data.examples import Prepared, encode_examples, prepare
from afterword.train.data.rows import NONE
from afterword.train.stage import StoreEncoder, train_stage
from tests.train.episode_rows import four, play, turn
from tests.train.tiny_model import tiny_folder

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
ALL = CollectSettings(holdout=0.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "model", initializer_range=0.3)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.open(tmp_path / "data" / "afterword.db") as opened:
        yield opened


def collected(store: Store, settings: CollectSettings = ALL) -> Funnel:
    return collect(store, settings)


def prepared(store: Store, model: str, name: str = "episode-grpo", **options: Any) -> Prepared:
    examples = episode_examples(store, store.usable("train", episodes=True))
    made = recipe(name, dtype="float32", **options)
    return prepare(examples, load_tokenizer(model), made, limit=512, vocabulary=259)


def test_an_ended_episode_becomes_an_interaction_for_each_turn_once(store: Store, model: str) -> None:
    four(store, model)
    store.write(Episode(id="open"), turn(model, "open-0", [{"role": "user", "content": "Go."}], "on", 0, "open", None))
    funnel = collected(store)
    assert dict(funnel.episodes) == {"collected": 5, "running": 1} and dict(funnel.episode_turns) == {"kept": 9}
    rows = {row.turn: row for row in store.rows(Interaction)}
    assert {row.kind for row in rows.values()} == {"outcome"} and rows["e1-0"].episode_id == "e1"
    assert (rows["e1-0"].hindsight, rows["e1-1"].hindsight, rows["e1-2"].hindsight) == ("wall", "1 east", "")
    assert (rows["e1-0"].polarity, rows["e2-0"].polarity) == (1, 0)
    assert store.usable("train") == [], "recipes over users' feedback do not see them"
    again = collected(store)
    assert dict(again.episodes) == {"running": 1} and store.count(Interaction) == 9


def test_an_idle_episode_is_ended_and_collected(store: Store, model: str) -> None:
    store.write(Episode(id="open"), turn(model, "open-0", [{"role": "user", "content": "Go."}], "on", 0, "open", None))
    assert dict(collected(store, CollectSettings(holdout=0.0, episode_idle=0.0)).episodes) == {"collected": 1}
    found = episode_view(store, "open").episode
    assert (found.status, found.reason) == ("truncated", "idle")


def test_tasks_are_held_out_whole(store: Store, model: str) -> None:
    for n in range(12):
        for k in range(2):
            play(store, model, f"t{n}-{k}", ["x"], [], value=1.0, task=f"task {n}", seed=n)
    collected(store, CollectSettings(holdout=0.5))
    splits: dict[str, set[str]] = {}
    for row in store.rows(Interaction):
        splits.setdefault((row.episode_id or "")[:-2], set()).add(row.split)
    assert all(len(some) == 1 for some in splits.values())
    assert {split for some in splits.values() for split in some} == {"train", "holdout"}


def test_the_turns_of_an_episode_are_one_row_and_observations_are_never_scored(store: Store, model: str) -> None:
    four(store, model)
    collected(store)
    found = prepared(store, model)
    rows = {row.interactions: row for row in found.rows}
    assert sorted(len(names) for names in rows) == [1, 1, 2, 2, 3]
    three = next(row for names, row in rows.items() if len(names) == 3)
    parts = three.parts(NONE)
    tokenizer = load_tokenizer(model)
    said = [tokenizer.decode(part) for part in parts[1::2]]
    assert said == [f"{word}<|im_end|>" for word in ("north", "east", "east")]
    assert "wall" in tokenizer.decode(parts[2]) and "wall" not in "".join(said)
    assert tuple(i for part in parts for i in part)[: len(parts[0])] == three.prompt
    batch = rows_of([three])
    assert sorted(set(batch.span.tolist())) == [0, 1, 2] and len(batch.served) == len(three.completion)
    total = {row.interactions: len(row.completion) for row in found.rows}
    single = prepared(store, model, scored="answer")
    assert sum(total.values()) == sum(len(row.completion) for row in single.rows)


def test_credit_is_the_advantage_of_the_episode_in_its_task(store: Store, model: str) -> None:
    four(store, model)
    collected(store)
    (rule,) = rules_of(recipe("episode-grpo"))
    values = {}
    for row in prepared(store, model).rows:
        batch = rows_of([row])
        (value,) = set(batch.credit[rule].tolist())
        values[len(row.interactions), row.answer.reward] = value
    # rewards 1, 0, 1, 0: mean 0.5, sample deviation 0.57735
    assert values[3, 1.0] == pytest.approx(0.5 / (0.57735 + 1e-4), rel=1e-4)
    assert values[2, 0.0] == pytest.approx(-0.5 / (0.57735 + 1e-4), rel=1e-4)
    single = [row for row in prepared(store, model).rows if len(row.interactions) == 1]
    assert sorted(rows_of([row]).credit[rule].tolist()[0] for row in single) == [pytest.approx(-0.8659, abs=1e-3), 0.0]


def test_a_changed_reward_counts_and_an_unscored_episode_does_not(store: Store, model: str) -> None:
    four(store, model)
    collected(store)
    store.write(Feedback(id="late", turn="e1", kind="outcome", value=0.0, metadata={"episode": "e1"}))
    store.write(Feedback(id="none", turn="e3", kind="outcome", value=None, metadata={"episode": "e3"}))
    rows = {row.interactions: row for row in prepared(store, model).rows}
    rewards = {
        len(names): row.answer.reward for names, row in rows.items() if len(names) != 2 and row.answer.reward != 1
    }
    assert rewards[3] == 0.0
    (term,) = recipe("episode-grpo").terms
    unscored = [row for row in rows.values() if row.answer.reward is None]
    assert len(unscored) == 1 and not term.keep(rows_of(unscored)).any()


def test_a_branch_is_a_row_of_its_own_and_shared_turns_are_scored_once(store: Store, model: str) -> None:
    first, second = play(store, model, "e", ["left", "right"], ["no"], value=1.0)
    other = turn(model, "e-2", list(second.messages), "again", 2, "e", first.id)
    edited = turn(model, "e-3", [{"role": "user", "content": "All new."}], "what", 3, "e", None)
    store.write(other, edited)
    collected(store)
    rows = prepared(store, model).rows
    assert sorted(len(row.interactions) for row in rows) == [1, 1, 2]
    assert sorted(name for row in rows for name in row.interactions) == sorted(
        row.id for row in store.usable("train", episodes=True)
    )
    branch = next(row for row in rows if len(row.interactions) == 1 and row.prompt == other.prompt_ids)
    assert branch.completion == other.completion_ids


def test_ids_that_were_written_anew_begin_a_row(store: Store, model: str) -> None:
    turns = play(store, model, "e", ["left", "right"], ["no"], value=1.0)
    collected(store)
    examples = episode_examples(store, store.usable("train", episodes=True))
    at = next(k for k, one in enumerate(examples) if one.turn.id == turns[1].id)
    prompt = turns[1].prompt_ids or ()
    examples[at] = dataclasses.replace(
        examples[at], turn=dataclasses.replace(turns[1], prompt_ids=(prompt[0], 5, *prompt[1:]))
    )
    made = recipe("episode-grpo", dtype="float32")
    found = encode_examples(examples, load_tokenizer(model), made, limit=512, vocabulary=259)
    assert [len(row.interactions) for row in found.rows] == [1, 1]


def test_hindsight_of_the_environment_is_read_turn_by_turn(store: Store, model: str) -> None:
    four(store, model)
    collected(store)
    found = prepared(store, model, "episode-hindsight")
    assert all(len(row.interactions) == 1 for row in found.rows) and len(found.rows) == 9
    hindsight = recipe("episode-hindsight").terms[1]
    told = [row for row in found.rows if hindsight.context in row.privileged]  # type: ignore[operator]
    shown = sorted(load_tokenizer(model).decode(row.reads(hindsight.context)).count("came back") for row in told)
    assert shown == [1, 1, 1, 1]
    kept = hindsight.keep(rows_of(found.rows))
    failed = [row for row in told if row.answer.reward == 0]
    assert int(kept.sum()) == sum(len(row.completion) for row in failed) > 0


def test_a_teacher_may_read_a_successful_episode_of_the_task_of_the_same_user(store: Store, model: str) -> None:
    four(store, model)
    play(store, model, "e5", ["south"], [], value=1.0, user="ada")
    collected(store)
    by_turn = {one.turn.id: dict(one.texts) for one in episode_examples(store, store.usable("train", episodes=True))}
    assert by_turn["e2-0"]["peer"] == "east\n-> 1 east\neast" and by_turn["e2-0"]["oracle"] == "east"
    assert by_turn["e3-0"]["peer"].startswith("north\n-> wall") and by_turn["e5-0"] == {} == by_turn["f1-0"]


@pytest.mark.parametrize("name", sorted(EPISODE_RECIPES - {"episode-opd"}))
def test_a_run_over_stored_episodes(store: Store, model: str, tmp_path: Path, name: str) -> None:
    four(store, model)
    collected(store)
    settings = TrainConfig(recipe=name, min_interactions=1, options={"dtype": "float32", "batch": 2})
    encoder = StoreEncoder(store, settings, model)

    def plan() -> Any:
        return plan_training(store, settings, encoder=encoder)

    candidate = train_stage(store, tmp_path / "data", plan, device="cpu")
    rows = store.usable("train", episodes=True)
    wanted = [row for row in rows if row.hindsight or name != "episode-sdpo"]  # which reads nothing else
    assert set(candidate.interactions) == {row.id for row in wanted}
    log = (tmp_path / "data" / "runs" / candidate.id / "metrics.jsonl").read_text().splitlines()
    assert json.loads(log[0])["grad_norm"] > 0 and len(log) >= 2
    with pytest.raises(NothingToDo, match="already trained"):
        plan()


def test_recipes_over_episodes_are_known_to_the_configuration() -> None:
    given = {"teacher": "/models/other"}
    made = {name for name in RECIPES if recipe(name, **(given if name == "episode-opd" else {})).data == "episodes"}
    assert made == EPISODE_RECIPES
    assert trains_episodes(TrainConfig(recipe="sdpo", options={"data": "episodes"}))
    assert not trains_episodes(TrainConfig(recipe="opid", options={"data": "interactions"}))


def test_a_run_takes_whole_episodes() -> None:
    rows = [
        Interaction(id=f"{e}{n}", turn=f"{e}{n}", feedback=(), kind="outcome", hindsight="", polarity=0, weight=1.0,
                    split="train", episode_id=e)
        for e in "abc" for n in range(3)
    ]  # fmt: skip
    assert [row.id for row in newest_episodes(rows, 7)] == ["b0", "b1", "b2", "c0", "c1", "c2"]
    assert [row.id for row in newest_episodes(rows, 1)] == ["c0", "c1", "c2"]


def test_a_packed_row_has_the_loss_of_its_turns_alone(store: Store, model: str, tmp_path: Path) -> None:
    """The gradient over packed branches is that over single turns."""
    from afterword.learn.loss.terms import divisors
    from afterword.train.monitoring.metrics import Tally
    from afterword.train.runtime.policy import load_policy
    from afterword.train.runtime.teacher_cache import TeacherCache, TeacherStates
    from afterword.train.runtime.teacher_runtime import TeacherRuntime
    from tests.train.tiny_model import backward

    four(store, model)
    collected(store)
    gradients = []
    for scored in ("episode", "answer"):
        made = recipe("episode-grpo", dtype="float32", scored=scored)
        rows = list(prepared(store, model, scored=scored).rows)
        policy = load_policy(model, made, parent=None, seed=0, device="cpu")
        states = TeacherStates(TeacherRuntime(policy, made, model), rows, made, TeacherCache(None), "x")
        counts = divisors(made.terms, rows_of(rows))
        backward(policy, states, made.terms, counts, list(range(len(rows))), tally=Tally(made.terms, ()))
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)
