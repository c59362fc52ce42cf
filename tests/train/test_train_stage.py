"""The stage between the store and a run: which interactions are taken."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from afterword.config import TrainConfig
from afterword.errors import AfterwordError, ConfigError, ConflictError, NothingToDo
from afterword.feedback.select.plan import plan_training
from afterword.learn.parts.targets import Extrapolation
from afterword.learn.recipes import describe, recipe
from afterword.model.loading import load_tokenizer, native_dtype
from afterword.records import Candidate, Feedback, Release, Report, TrainingPlan, Verdict
from afterword.store import Store
from afterword.store.artifacts import Artifacts
from afterword.store.files import folder_hash
from afterword.train.artifact import TrainResult, summary_lines
from afterword.train.data.examples import newest_trainable
from afterword.train.monitoring.metrics import StepMetrics
from afterword.train.stage import StoreEncoder, train_stage
from tests.train.tiny_model import example, tiny_folder

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "model")


def train(store: Store, home: Path, settings: TrainConfig, model: str, **options: Any) -> Candidate:
    """Plan and train on everything that is usable."""

    def plan() -> TrainingPlan:
        return plan_training(store, settings, encoder=StoreEncoder(store, settings, model))

    return train_stage(store, home, plan, device="cpu", **options)


def filled(home: Path, model: str, lengths: list[int]) -> Store:
    """A store with one interaction per length (characters of the answer), oldest first."""
    store = Store.open(home / "afterword.db")
    for number, length in enumerate(lengths):
        one = example(model, number, text="a" * length)
        interaction = dataclasses.replace(one.interaction, created_at=1000.0 + number)
        feedback = Feedback(id=f"fb-{number}", turn=one.turn.id, kind="follow_up", text=interaction.hindsight)
        store.write(one.turn)
        store.write(feedback)
        store.write(interaction)
    return store


def test_what_is_too_long_is_counted_and_does_not_crowd_out_the_rest(model: str, tmp_path: Path) -> None:
    settings = TrainConfig(min_interactions=1, max_interactions=3, max_tokens=60)
    said: list[str] = []
    with filled(tmp_path, model, [5, 6, 7, 100, 8, 100]) as store:
        candidate = train(store, tmp_path, settings, model, note=said.append)
    assert candidate.interactions == ("int-1", "int-2", "int-4")  # the newest three that fit
    assert candidate.metrics["left_out"] == {"longer_than_max_tokens": 2}
    detail = candidate.metrics["left"][0]["detail"]
    warnings = candidate.metrics["warnings"]  # random weights cross some bounds
    assert said == [f"excluded 2, longer_than_max_tokens: {detail}", *(f"warning, {text}" for text in warnings)]
    assert "longer than 60 tokens" in detail and "train.max_tokens" in detail


def test_when_nothing_fits_the_remedy_is_named(model: str, tmp_path: Path) -> None:
    settings = TrainConfig(min_interactions=1, max_tokens=30)
    with filled(tmp_path, model, [5, 6]) as store, pytest.raises(NothingToDo, match=r"raise train\.max_tokens"):
        train(store, tmp_path, settings, model)


def test_an_adapter_is_in_the_object_store_before_its_row_is(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, url = TrainConfig(min_interactions=1), f"file://{tmp_path}/objects"
    filled(tmp_path, model, [5, 6, 7]).close()
    seen: list[bool] = []
    write = Store.write

    def written(self: Store, *rows: Any) -> Any:
        if any(isinstance(row, Candidate) for row in rows):
            seen.extend(Artifacts(tmp_path / "other", url).exists(row.path) for row in rows)
        return write(self, *rows)

    monkeypatch.setattr(Store, "write", written)
    with Store.open(tmp_path / "afterword.db", artifacts=url) as store:
        candidate = train(store, tmp_path, settings, model)
    assert seen == [True]
    elsewhere = Artifacts(tmp_path / "another", url).folder(candidate.path)
    assert folder_hash(elsewhere) == folder_hash(tmp_path / candidate.path)


def test_a_run_whose_adapter_cannot_be_uploaded_is_finished_by_the_next(model: str, tmp_path: Path) -> None:
    settings = TrainConfig(min_interactions=1)
    filled(tmp_path, model, [5, 6, 7]).close()
    (tmp_path / "taken").write_text("a file where the object store should be")
    with Store.open(tmp_path / "afterword.db", artifacts=f"file://{tmp_path}/taken") as store:
        with pytest.raises(AfterwordError, match=r"object store|store\.artifacts"):
            train(store, tmp_path, settings, model)
        assert not list(store.rows(Candidate))
    said: list[str] = []
    with Store.open(tmp_path / "afterword.db", artifacts=f"file://{tmp_path}/objects") as store:
        candidate = train(store, tmp_path, settings, model, note=said.append)
        assert said[0].startswith(f"finishing {candidate.id}") and list(store.rows(Candidate)) == [candidate]


def liked(store: Store, model: str, number: int) -> None:
    """An answer that the user only accepted."""
    one = example(model, number, hindsight="", text="aaaaa")
    store.write(one.turn)
    store.write(Feedback(id=one.interaction.feedback[0], turn=one.turn.id, kind="accepted"))
    store.write(dataclasses.replace(one.interaction, kind="accepted", polarity=1))


def test_answers_that_users_accepted_are_held_beside_words_and_are_no_run_alone(model: str, tmp_path: Path) -> None:
    settings = TrainConfig(min_interactions=2, fresh=0)
    with filled(tmp_path, model, []) as store:
        for number in (50, 51):
            liked(store, model, number)
        with pytest.raises(NothingToDo, match="2 interactions wait to be learned and none of them carries words"):
            train(store, tmp_path, settings, model)
        assert not (tmp_path / "runs").exists()
    with filled(tmp_path, model, [5]) as store:
        candidate = train(store, tmp_path, settings, model)
    assert set(candidate.interactions) == {"int-0", "int-50", "int-51"} and not candidate.metrics["left"]


def test_accepted_answers_never_crowd_out_those_with_words(model: str, tmp_path: Path) -> None:
    settings = TrainConfig(min_interactions=1, fresh=0)
    with filled(tmp_path, model, [5, 6]) as store:
        for number in range(50, 60):  # newer than those with words
            liked(store, model, number)
        with pytest.raises(NothingToDo, match="12 interactions wait to be learned and 2 of them carry words"):
            train(store, tmp_path, dataclasses.replace(settings, min_interactions=7), model)
        few = train(store, tmp_path, dataclasses.replace(settings, max_interactions=3), model)
        every = train(store, tmp_path, settings, model)
    assert few.interactions == ("int-1", "int-58", "int-59")
    assert every.interactions == ("int-0", "int-1", "int-56", "int-57", "int-58", "int-59")


def test_what_was_learned_is_trained_again_beside_what_is_new(model: str, tmp_path: Path) -> None:
    settings = TrainConfig(min_interactions=1, fresh=0, replay=0.5)
    with filled(tmp_path, model, [5, 6, 7, 8, 9]) as store:
        first = train(store, tmp_path, settings, model)
        assert len(first.interactions) == 5 and "replayed" not in first.metrics  # nothing was learned before
        released(store, first)
        for number in range(20, 24):
            one = example(model, number)
            store.write(one.turn)
            store.write(Feedback(id=one.interaction.feedback[0], turn=one.turn.id, kind="follow_up"))
            store.write(one.interaction)
        second = train(store, tmp_path, settings, model)
        again = set(second.interactions) & set(first.interactions)
        assert len(again) == 2 == second.metrics["replayed"] and len(second.interactions) == 6
        released(store, second)
        with pytest.raises(NothingToDo, match="0 interactions wait"):  # what is only trained again is nothing new
            train(store, tmp_path, settings, model)


def released(store: Store, candidate: Candidate) -> None:
    """As what the channel serves."""
    report = Report(id=f"rep-{candidate.id}", candidate=candidate.id, against=candidate.parent, suites={}, about={})
    verdict = Verdict(id=f"ver-{candidate.id}", candidate=candidate.id, report=report.id, passed=True, reasons=())
    before = store.release()
    store.write(report, verdict, Release(
        id=f"rel-{candidate.id}", channel="default", adapter=candidate.id, candidate=candidate.id, path=candidate.path,
        verdict=verdict.id, previous=before.id if before else None, action="publish", why="a test",
    ))  # fmt: skip


def test_options_reach_the_candidate_and_a_killed_run_goes_on_with_its_own(model: str, tmp_path: Path) -> None:
    class Killed(BaseException):
        """As a kill: nobody marks the run as given up."""

    def kill(metrics: StepMetrics) -> None:
        raise Killed

    own = TrainConfig(min_interactions=1, fresh=0, options={"beyond": 0.3, "max_hindsight": 4, "teacher": "start"})
    other = dataclasses.replace(own, options={**own.options, "beyond": 0.5})
    with filled(tmp_path, model, [5, 6, 7]) as store:
        with pytest.raises(Killed):
            train(store, tmp_path, own, model, progress=kill)
        said: list[str] = []
        candidate = train(store, tmp_path, other, model, note=said.append)
        assert said[0].startswith(f"finishing {candidate.id}, which was interrupted")
        asked = recipe("follow-ups", fresh=0, beyond=0.3, max_hindsight=4, teacher="start")
        assert candidate.recipe == {
            **describe(asked),
            "dtype": native_dtype("auto", "cpu"),
        }  # which of them, is told
        assert candidate.metrics["hindsight_cut"] > 0
        second = train(store, tmp_path, other, model)
    assert second.id != candidate.id
    assert second.recipe["terms"][0]["target"] == describe(Extrapolation(1.5, plausible=0.01))
    for made in (candidate, second):
        assert json.loads((tmp_path / made.path / "afterword.json").read_text("utf-8"))["recipe"] == made.recipe


def test_a_run_that_another_version_began_starts_again(model: str, tmp_path: Path) -> None:
    class Killed(BaseException):
        """As a kill."""

    def kill(metrics: StepMetrics) -> None:
        if metrics.step == 4:
            raise Killed

    settings = TrainConfig(min_interactions=1, fresh=0, epochs=1, stop_rules=False, options={"batch": 1})
    with filled(tmp_path, model, [5, 6, 7, 8, 9]) as store:
        with pytest.raises(Killed):
            train(store, tmp_path, settings, model, progress=kill)
        (folder,) = (tmp_path / "runs").iterdir()
        checkpoint = folder / "state.pt"
        assert not checkpoint.exists() or torch.load(checkpoint, weights_only=True)["step"]
        torch.save({"fingerprint": "that of other code"}, checkpoint)
        record = json.loads((folder / "run.json").read_text("utf-8"))
        del record["code_version"]
        (folder / "run.json").write_text(json.dumps(record), "utf-8")
        said: list[str] = []
        candidate = train(store, tmp_path, settings, model, note=said.append)
        assert said[1].startswith("from its first step") and candidate.metrics["steps"] == 5
        assert folder.name == candidate.id


def test_an_option_that_the_recipe_does_not_take_fails_before_anything_is_written(model: str, tmp_path: Path) -> None:
    settings = TrainConfig(min_interactions=1, options={"beyon": 0.25})
    with filled(tmp_path, model, [5]) as store, pytest.raises(ConfigError, match="did you mean 'beyond'"):
        train(store, tmp_path, settings, model)
    assert not (tmp_path / "runs").exists()


def test_choosing_stops_at_a_bound(model: str) -> None:
    long = [example(model, number, text="a" * 100) for number in range(40)]
    settings = recipe("sdpo-interactions", max_tokens=60)
    tokenizer = load_tokenizer(model)
    assert len(newest_trainable(long, tokenizer, settings, limit=512, vocabulary=259, most=2)) == 16


def test_what_was_cut_and_why_a_run_stopped_is_told() -> None:
    left = ({"interaction": "a", "reason": "template", "detail": "no"}, {"interaction": "b", "reason": "template"})
    metrics = {
        "left_out": {"template": 2}, "hindsight_cut": 7, "stopped": "it drifts", "steps": 3, "warnings": ["low"],
    }  # fmt: skip
    made = TrainResult(path=Path("out"), base="m", interactions=(), excluded=left, recipe={}, metrics=metrics)
    assert list(summary_lines(made)) == [
        "excluded 2, template: no",
        "7 hindsight tokens cut: alignment.txt has the number of interactions",
        "stopped early after 3 steps: it drifts",
        "warning, low",
    ]
    quiet = {"left_out": {}, "hindsight_cut": 0, "stopped": None, "steps": 3, "warnings": []}
    assert list(summary_lines(dataclasses.replace(made, metrics=quiet))) == []


def test_a_second_training_is_refused_and_leaves_the_first_alone(model: str, tmp_path: Path) -> None:
    """Also while the first is in the middle of a run, which then looks like one that was killed."""
    settings = TrainConfig(min_interactions=1, fresh=0, epochs=1)
    refused: list[str] = []

    def again(metrics: StepMetrics) -> None:
        with Store.open(tmp_path / "afterword.db") as other, pytest.raises(ConflictError) as found:
            train(other, tmp_path, settings, model)
        refused.append(found.value.message)

    def beside(metrics: StepMetrics) -> None:
        thread = threading.Thread(target=again, args=(metrics,))
        thread.start()
        thread.join()

    with filled(tmp_path, model, [5, 6]) as store:
        candidate = train(store, tmp_path, settings, model, progress=beside)
        assert refused and f"process {os.getpid()}" in refused[0] and "Nothing was changed" in refused[0]
        assert [row.id for row in store.rows(Candidate)] == [candidate.id]
        steps = (tmp_path / "runs" / candidate.id / "metrics.jsonl").read_text().splitlines()
        assert len(steps) == candidate.metrics["steps"] == len(refused)
