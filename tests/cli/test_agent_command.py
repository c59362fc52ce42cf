"""`afterword agent`: plays, resumes and compares through a gateway."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.environments.conftest import Player
from tests.environments.test_environments_builtin import PERFECT
from tests.gateway.conftest import launch  # noqa: F401
from tests.gateway.gateway_setup import Launch, Setup

from afterword.cli.agent import compare
from afterword.cli.entry import main
from afterword.environments.results import EpisodeResult
from afterword.feedback.collect.collect import collect
from afterword.feedback.settings import CollectSettings
from afterword.feedback.skills import write_skills
from afterword.records import Episode, Interaction, TaskSkill
from afterword.store.episodes import statuses


@pytest.fixture
def gateway(launch: Launch) -> Setup:  # noqa: F811
    fake = Player()
    fake.answer = lambda messages: PERFECT["guess"]([m["content"] for m in messages if m["role"] == "user"])
    return launch(fake)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    code = main([*words, "--json", "--quiet"])
    out = capsys.readouterr().out
    return code, json.loads(out) if out else None


def test_play_records_resumes_and_logs(gateway: Setup, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("agent", "play", "guess", "--url", gateway.url, "--dir", str(tmp_path / "d"), "--run", "r")
    code, shown = run(capsys, *words, "--episodes", "6")
    assert code == 0 and (shown["episodes"], shown["success"]) == (6, 1.0)
    assert shown["success_interval"]["n"] == 6 and Path(shown["file"]).name == "r.jsonl"
    asked = len(gateway.fake.requests)
    code, again = run(capsys, *words, "--episodes", "6")
    assert again == shown and len(gateway.fake.requests) == asked
    assert statuses(gateway.store) == {"finished": 6}
    log = (tmp_path / "d" / "logs" / "agent.log").read_text("utf-8").splitlines()
    assert len(log) == 6 and "guess/" in log[0] and "finished" in log[0]
    code, wrong = run(capsys, *words, "--episodes", "6", "--seed", "9")
    assert code == 1 and "another seed" in wrong["error"]["message"]


def test_groups_play_each_task_several_times(
    gateway: Setup, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("agent", "play", "guess", "--url", gateway.url, "--dir", str(tmp_path), "--episodes", "8")
    code, shown = run(capsys, *words, "--group", "4")
    lines = [json.loads(line) for line in Path(shown["file"]).read_text("utf-8").splitlines()[1:]]
    assert code == 0 and sorted(Counter(one["task"] for one in lines).values()) == [4, 4]
    assert {one["seed"] for one in lines} == {0}, "a group shares the seed of its environment"
    drawn = {body["seed"] for body in gateway.fake.requests if "seed" in body}
    assert len(drawn) == sum(one["turns"] for one in lines), "and differs in sampling"
    assert run(capsys, *words, "--group", "9")[0] == 2


def test_evaluate_pairs_two_versions_and_records_nothing(
    gateway: Setup, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown = run(
        capsys, "agent", "evaluate", "guess", "--url", gateway.url, "--dir", str(tmp_path / "d"), "--episodes", "8",
        "--versions", "afterword@base", "afterword",
    )  # fmt: skip
    assert code == 0 and shown["before"]["success"] == shown["after"]["success"] == 1.0
    assert shown["difference"]["success"]["value"] == 0.0 and shown["difference"]["success"]["n"] == 8
    assert shown["difference"]["turns_to_success"]["value"] == 0.0
    assert statuses(gateway.store) == {}


def test_differences_leave_out_what_could_not_be_scored() -> None:
    def result(task: str, success: bool, status: str = "finished") -> EpisodeResult:
        return EpisodeResult(
            id="e", task=task, index=0, seed=0, status=status, success=success, turns=2 if success else 4,
            outcome=float(success),
        )  # fmt: skip

    before = [result("a", False), result("a", False), result("b", True), result("c", False, "failed")]
    after = [result("a", True), result("a", False), result("b", True), result("c", True)]
    found = compare(before, after)
    assert found["success"]["n"] == 3 and found["success"]["value"] == pytest.approx(1 / 3)
    assert found["turns"]["value"] == pytest.approx(-2 / 3) and found["turns_to_success"]["n"] == 1


def test_what_is_wrong_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (("agent", "play", "gues"), "no environment"),
        (("agent", "play", "guess", "--run", "../x"), "--run"),
        (("agent", "play", "guess", "--url", "http://127.0.0.1:9"), "no server answers"),
        (("agent", "play", "guess", "--url", "here"), "is not a URL"),
        (("agent", "play", "guess", "--url", "http://127.0.0.1:9", "--episodes", "0"), "at least 1"),
    ):
        code, shown = run(capsys, *words, "--dir", str(tmp_path))
        assert code in (1, 2) and message in shown["error"]["message"]


def test_skills_of_the_bank_stand_in_the_prompt_and_are_recorded(
    gateway: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("agent", "play", "guess", "--url", gateway.url, "--dir", str(gateway.settings.dir), "--episodes", "6")
    code, shown = run(capsys, *words, "--skills", "--run", "none")
    assert code == 4 and "no skill" in shown["error"]["message"]
    assert run(capsys, *words, "--run", "first")[0] == 0
    collect(gateway.store, CollectSettings())
    assert write_skills(gateway.store) > 0
    assert run(capsys, *words, "--skills", "--run", "second")[0] == 0
    played = [one for one in gateway.store.rows(Episode) if one.metadata["run"] == "second"]
    skills = {row.id: row for row in gateway.store.rows(TaskSkill)}
    assert len(played) == 6 and all(skills[one.metadata["skill"]].task == one.task_id for one in played)
    asked = [turn.messages[0] for turn in gateway.turns() if turn.episode_id == played[0].id]
    assert asked[0]["role"] == "system" and skills[played[0].metadata["skill"]].text in asked[0]["content"]
    assert not any("skill" in one.metadata for one in gateway.store.rows(Episode) if one.metadata["run"] == "first")


def test_recorded_held_out_episodes_are_never_trained_on(gateway: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("agent", "play", "guess", "--url", gateway.url, "--dir", str(gateway.settings.dir), "--episodes", "6")
    assert run(capsys, *words, "--split", "heldout", "--run", "h")[0] == 0
    assert run(capsys, *words, "--run", "t")[0] == 0
    collect(gateway.store, CollectSettings(holdout=0.5))
    runs = {one.id: one.metadata["run"] for one in gateway.store.rows(Episode)}
    assert {(row.split, runs[row.episode_id or ""]) for row in gateway.store.rows(Interaction)} == {
        ("train", "t"), ("holdout", "h"),
    }  # fmt: skip
