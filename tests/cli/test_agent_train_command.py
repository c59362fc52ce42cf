"""`afterword agent train`: rounds of playing and training, resumption, what is wrong; the training is a stand-in.

`tests/train/test_agent_rounds.py` (slow) trains the built-in model.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.environments.conftest import Player
from tests.environments.test_environments_builtin import PERFECT
from tests.gateway.conftest import launch  # noqa: F401
from tests.gateway.gateway_setup import Launch, Setup

from afterword.cli import agent_train
from afterword.cli.entry import main
from afterword.cycle import Progress, Settings, plan_stage
from afterword.errors import NothingToDo, UpstreamError
from afterword.feedback.select.select import Selection
from afterword.records import Candidate, Episode, Interaction, Release
from afterword.store import Store
from afterword.store.episodes import episode_views


class Sampled(Player):
    """Answers depend on the request's seed: episodes of one task end in different ways."""

    def words_of(self, body: dict[str, Any]) -> tuple[str, ...]:
        if "seed" not in body or body["seed"] % 3:
            return ("0",)
        return (PERFECT["sum"]([m["content"] for m in body["messages"] if m["role"] == "user"]),)


@pytest.fixture
def gateway(launch: Launch) -> Setup:  # noqa: F811
    return launch(Sampled())


class Trainer:
    """In place of the training: a candidate of the plan's interactions."""

    def __init__(self) -> None:
        self.parents: list[str | None] = []
        self.batches: list[list[Interaction]] = []
        self.fails_at: int | None = None
        self.nothing_at: int | None = None

    def __call__(
        self, store: Store, settings: Settings, progress: Progress, selection: Selection, start: Candidate | None
    ) -> Candidate:
        number = len(self.batches) + 1
        if number == self.fails_at:
            self.fails_at = None
            raise UpstreamError("interrupted")
        plan = plan_stage(store, Settings(directory=settings.directory, model="", train=settings.train), selection,
                          start)  # fmt: skip
        self.parents.append(plan.parent)
        self.batches.append([store.get(Interaction, name) for name in plan.interactions])
        if number == self.nothing_at:
            raise NothingToDo("all outcomes are equal")
        folder = settings.directory / "adapters" / plan.candidate
        folder.mkdir(parents=True)
        made = Candidate(id=plan.candidate, path=f"adapters/{plan.candidate}", base="m", parent=plan.parent,
                         interactions=plan.interactions, recipe={})  # fmt: skip
        store.write(made)
        return made


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    found = Trainer()
    monkeypatch.setattr(agent_train, "train_stage", found)
    return found


Run = Callable[..., tuple[int, Any]]


@pytest.fixture
def run(gateway: Setup, capsys: pytest.CaptureFixture[str]) -> Run:
    def start(*more: str, name: str = "r") -> tuple[int, Any]:
        code = main([
            "agent", "train", "sum", "--url", gateway.url, "--dir", str(gateway.settings.dir), "--run", name,
            "--episodes", "8", "--group", "4", "--heldout", "6", "--no-report", "--json", "--quiet", *more,
        ])  # fmt: skip
        out = capsys.readouterr().out
        return code, json.loads(out) if out else None

    return start


def models(gateway: Setup) -> list[str]:
    return list(dict.fromkeys(body["model"] for body in gateway.fake.requests if "messages" in body))


def test_each_round_plays_with_the_adapter_of_the_round_before(run: Run, gateway: Setup, trainer: Trainer) -> None:
    code, shown = run("--rounds", "3", "--every", "2")
    assert code == 0
    steps = [(row["step"], row["round"]) for row in shown["rows"]]
    assert steps == [("evaluate", 0), ("train", 1), ("train", 2), ("evaluate", 2), ("train", 3), ("evaluate", 3)]
    made = [row["candidate"] for row in shown["rows"] if row["step"] == "train"]
    assert len(set(made)) == 3 and trainer.parents == [None, *made[:2]] and shown["candidate"]["id"] == made[-1]
    versions: dict[str, set[str]] = {}
    for view in episode_views(gateway.store):
        versions.setdefault(view.episode.metadata["run"], set()).update(view.versions)
    assert versions == {"r-train-1": {"base"}, "r-train-2": {f"afterword@{made[0]}"},
                        "r-train-3": {f"afterword@{made[1]}"}}  # fmt: skip
    assert list(gateway.store.rows(Release)) == [], "nothing is released"
    assert [row["trained_episodes"] for row in shown["rows"] if row["step"] == "evaluate"] == [0, 16, 24]
    picture = Path(shown["picture"]).read_text("utf-8")
    assert picture.startswith("<svg") and len(re.findall("<circle", picture)) == 3


def test_a_round_trains_all_of_its_episodes_and_no_others(run: Run, gateway: Setup, trainer: Trainer) -> None:
    assert run("--rounds", "2")[0] == 0
    first, second = trainer.batches
    assert {row.episode_id for row in first}.isdisjoint({row.episode_id for row in second})
    episodes = list(gateway.store.rows(Episode))
    groups = Counter((one.metadata["run"], one.task_id, one.seed) for one in episodes)
    assert sorted(groups.values()) == [4, 4, 4, 4], "episodes of a group share task and seed"
    assert {row.episode_id for row in (*first, *second)} == {one.id for one in episodes}
    assert all(row.split == "train" for row in first)


def test_an_interrupted_run_goes_on_and_repeats_nothing(run: Run, gateway: Setup, trainer: Trainer) -> None:
    trainer.fails_at = 2
    code, shown = run("--rounds", "2")
    assert code == 1 and "interrupted" in shown["error"]["message"]
    asked = len(gateway.fake.requests)
    file = gateway.settings.dir / "agent" / "r" / "rounds.jsonl"
    file.write_text(file.read_text("utf-8") + '{"step": "tra', "utf-8")
    code, shown = run("--rounds", "2")
    assert code == 0 and [row["round"] for row in shown["rows"]] == [0, 1, 2, 2]
    played = sum(row["turns"] for row in shown["rows"][-1:])
    asked_again = [body for body in gateway.fake.requests[asked:] if "messages" in body]
    assert len(asked_again) == played, "only the last evaluation is played"
    code, longer = run("--rounds", "3")
    assert code == 0 and longer["rows"][:4] == shown["rows"], "more rounds can be added"


def test_an_outage_uses_up_no_round(run: Run, gateway: Setup, trainer: Trainer) -> None:
    assert run("--rounds", "1")[0] == 0
    gateway.fake.reject = (500, {"error": {"message": "out of memory"}})
    for _ in range(2):
        code, shown = run("--rounds", "2")
        assert code == 1 and "none of 8 episodes on train tasks could be scored" in shown["error"]["message"]
        assert "8 server_error" in shown["error"]["message"] and "--run r" in shown["error"]["message"]
    gateway.fake.reject = None
    code, shown = run("--rounds", "2")
    assert code == 0 and [row["round"] for row in shown["rows"]] == [0, 1, 1, 2, 2]
    last = [row for row in shown["rows"] if row["step"] == "train"][-1]
    assert last["scored"] == 8 and last["candidate"], "the episodes were played anew"


def test_a_candidate_that_was_written_before_the_kill_is_found(
    run: Run, gateway: Setup, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = agent_train.TrainingLog.add

    def killed(self: agent_train.TrainingLog, row: dict[str, Any]) -> None:
        if row["step"] == "train":
            raise KeyboardInterrupt
        real(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(agent_train.TrainingLog, "add", killed)
        assert run("--rounds", "1")[0] == 130
    code, shown = run("--rounds", "1")
    assert code == 0 and len(trainer.batches) == 1, "it is not trained twice"
    assert shown["rows"][1]["candidate"] == shown["candidate"]["id"]


def test_a_round_without_anything_to_learn_is_told_and_the_next_goes_on(
    run: Run, gateway: Setup, trainer: Trainer
) -> None:
    trainer.nothing_at = 1
    code, shown = run("--rounds", "2")
    assert code == 0
    first, second = (row for row in shown["rows"] if row["step"] == "train")
    assert (first["candidate"], first["why"]) == (None, "all outcomes are equal") and second["candidate"]
    assert trainer.parents == [None, None]


def test_nothing_to_train_at_all_is_an_error(run: Run, trainer: Trainer) -> None:
    trainer.nothing_at = 1
    code, shown = run("--rounds", "1")
    assert code == 4 and "none of 1 rounds" in shown["error"]["message"]


@pytest.mark.parametrize(("words", "message"), [
    (("--rounds", "0"), "at least 1"),
    (("--group", "9"), "at most the number of --episodes"),
    (("--recipe", "follow-ups"), "does not train episodes"),
    (("--recipe", "episode-gpro"), "does not train episodes"),
    (("--every", "-1"), "0 or more"),
])  # fmt: skip
def test_what_is_wrong_is_told(run: Run, trainer: Trainer, words: tuple[str, ...], message: str) -> None:
    code, shown = run(*words)
    assert code == 2 and message in shown["error"]["message"] and trainer.batches == []


def test_other_settings_and_another_directory_are_rejected(
    run: Run, gateway: Setup, trainer: Trainer, tmp_path: Path
) -> None:
    assert run("--rounds", "1")[0] == 0
    code, shown = run("--rounds", "1", "--seed", "7")
    assert code == 1 and "another seed" in shown["error"]["message"]
    code, shown = run("--rounds", "1", "--dir", str(tmp_path / "other"))
    assert code == 2 and "another data directory" in shown["error"]["message"]


def test_a_candidate_is_served_by_its_id_alone(run: Run, gateway: Setup, trainer: Trainer) -> None:
    code, shown = run("--rounds", "1")
    name = f"afterword@{shown['candidate']['id']}"
    assert code == 0 and name not in [card["id"] for card in gateway.get("/v1/models").json()["data"]]
    answer = gateway.post("/v1/chat/completions", {"model": name, "messages": [{"role": "user", "content": "Hi"}]})
    assert answer.headers["x-afterword-adapter"] == name
    for unknown in ("afterword@cand-0", "other@" + shown["candidate"]["id"]):
        body = {"model": unknown, "messages": [{"role": "user", "content": "Hi"}]}
        assert gateway.post("/v1/chat/completions", body).status_code == 404
