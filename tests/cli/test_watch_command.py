"""`afterword cycle --watch`: a round begins by volume in a slice, never on noise."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.train.tiny_model import example, tiny_folder

from afterword.cli import main
from afterword.feedback.select.select import Selection
from afterword.records import Candidate, Feedback, Interaction
from afterword.store import Store

SAID = ("That's wrong, number {} is another one.", "Shorter, please, at most {} words.", "No, I asked for {}.")
SETTINGS = ("cycle.interval=0.1", "cycle.min_new=6", "select.min_effective=5", "train.min_interactions=5",
            "train.fresh=0", "train.epochs=1", "serve.device=cpu", "collect.holdout=0.2")  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


def fill(home: Path, model: str, task: str, said: tuple[str, ...], turns: range) -> None:
    """Served turns of three users with one follow-up each."""
    with Store.open(home / "afterword.db") as store:
        for n in turns:
            turn = dataclasses.replace(
                example(model, n, text=f"Answer {n} is {n * 7}.").turn, task=task, user=f"u{n % 3}"
            )
            text = said[n % len(said)].format(n)
            store.write(turn, Feedback(id=f"f{n}", turn=turn.id, kind="follow_up", text=text, user=turn.user))


def watching(home: Path, model: str) -> list[str]:
    flags = [word for setting in (*SETTINGS, f"serve.model={model}") for word in ("--set", setting)]
    return ["cycle", "--watch", "--dir", str(home), *flags]


@pytest.mark.slow
def test_a_slice_with_enough_signal_is_trained_and_a_vague_one_waits(model: str, tmp_path: Path) -> None:
    fill(tmp_path, model, "code", SAID, range(15))
    fill(tmp_path, model, "chat", ("Why is it {}?",), range(20, 35))
    command = [sys.executable, "-m", "afterword", *watching(tmp_path, model)]
    with (tmp_path / "log").open("wb") as log:
        watcher = subprocess.Popen(command, stdout=log, stderr=log, env=dict(os.environ))
        try:
            with Store.open(tmp_path / "afterword.db") as store:
                for _ in range(900):
                    if (found := store.newest(Candidate)) is not None:
                        break
                    assert watcher.poll() is None, (tmp_path / "log").read_text()
                    time.sleep(0.1)
                assert found is not None, (tmp_path / "log").read_text()
                tasks = {store.get(Interaction, name).task for name in found.interactions}
                waiting = {row.task for row in store.usable("train")}
        finally:
            watcher.terminate()
            watcher.wait()
    assert tasks == {"code"} and waiting == {"code", "chat"}
    relevance = {one["task"]: one["relevance"] for one in found.metrics["selection"]["slices"]}
    assert relevance["code"] >= 0.5 and "chat" not in relevance


def test_a_round_takes_the_slices_that_are_ready(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, model, "code", SAID, range(15))
    fill(tmp_path, model, "chat", ("Why is it {}?",), range(20, 35))
    taken: list[set[str]] = []

    def round_of(store: Store, settings: object, progress: object, funnel: object, selection: Selection) -> None:
        taken.append({store.get(Interaction, name).task or "" for name in selection.weights})
        raise KeyboardInterrupt

    monkeypatch.setattr("afterword.cycle._learn", round_of)
    assert main([*watching(tmp_path, model), "--quiet"]) == 130
    assert taken == [{"code"}]


@pytest.mark.parametrize(
    ("said", "turns"),
    [(("Why is it {}?",), 18), (SAID, 4), (("Thanks!", "Now write a poem about the {} seas."), 18)],
    ids=["vague", "few", "nothing about the answers"],
)
def test_noise_never_begins_a_round(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: tuple[str, ...], turns: int
) -> None:
    fill(tmp_path, model, "chat", said, range(turns))
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("afterword.cycle.time.sleep", sleep)
    assert main([*watching(tmp_path, model), "--quiet"]) == 130
    with Store.open(tmp_path / "afterword.db") as store:
        assert store.count(Candidate) == 0 and store.count(Interaction) + store.counts()["skips"] > 0
    assert looks == [0.1] * 3 and not (tmp_path / "runs").exists()


def test_what_a_candidate_has_learned_is_not_new_to_a_watch_that_starts_again(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, model, "code", SAID, range(15))
    assert main(["collect", "--dir", str(tmp_path), "--set", "collect.holdout=0.2", "--quiet"]) == 0
    begun: list[int] = []

    def round_of(store: Store, settings: object, progress: object, funnel: object, selection: Selection) -> None:
        begun.append(len(selection.worded))
        raise KeyboardInterrupt

    def sleep(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("afterword.cycle._learn", round_of)
    monkeypatch.setattr("afterword.cycle.time.sleep", sleep)
    with Store.open(tmp_path / "afterword.db") as store:
        names = tuple(row.id for row in store.usable("train"))
        store.write(Candidate(id="c", path="adapters/c", base="m", parent=None, interactions=names[:-3], recipe={}))
        assert main([*watching(tmp_path, model), "--quiet"]) == 130 and begun == []
        fill(tmp_path, model, "code", SAID, range(40, 52))
        assert main([*watching(tmp_path, model), "--quiet"]) == 130 and len(begun) == 1


def test_a_watch_that_is_told_to_end_does_so_like_with_ctrl_c(model: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "afterword", *watching(tmp_path, model)]
    with (tmp_path / "log").open("wb") as log:
        watcher = subprocess.Popen(command, stdout=log, stderr=log, env=dict(os.environ))
        for _ in range(600):
            if "watching" in (tmp_path / "log").read_text():
                break
            time.sleep(0.1)
        watcher.terminate()
        assert watcher.wait(30) == 130
    assert (tmp_path / "log").read_text().splitlines()[-1] == "interrupted"
