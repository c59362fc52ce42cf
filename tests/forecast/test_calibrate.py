"""The grid on a tiny model: points and resuming."""

from __future__ import annotations

from pathlib import Path

import pytest

from afterword.errors import ConfigError
from afterword.forecast import calibrate
from afterword.forecast.calibrate import Grid, GridStudent, read_grid, run_grid
from afterword.forecast.points import CalibrationPoint, append_point, read_points
from afterword.forecast.small import SmallModelConfig, make_small_model, read_config
from afterword.forecast.student import Asked, Student
from tests.train.tiny_model import tiny_folder

from .tiny import Evens


def test_an_interrupted_grid_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_folder(tmp_path / "tiny")
    monkeypatch.setattr(calibrate, "task_of", lambda name: Evens())
    monkeypatch.setattr(calibrate, "FEWEST_NATS", 2)
    grid = Grid(
        students=(GridStudent(name="tiny", model=model, family="tiny"),), tasks=("tiny:evens",),
        contexts=("hints", "reference"), seeds=(0,), prompts=16, heldout=8, samples=2, fresh=0,
    )  # fmt: skip
    points, work, said = tmp_path / "points.jsonl", tmp_path / "work", list[str]()
    real = append_point

    def stops(path: Path, point: CalibrationPoint) -> None:
        real(path, point)
        if point.unit == "share":
            raise KeyboardInterrupt

    monkeypatch.setattr(calibrate, "append_point", stops)
    with pytest.raises(KeyboardInterrupt):
        run_grid(grid, points, work, device="cpu")
    monkeypatch.setattr(calibrate, "append_point", real)
    assert run_grid(grid, points, work, device="cpu", say=said.append) == 1
    found = [p for p in read_points(points) if p.unit == "share"]
    assert [(p.context, p.seed) for p in found] == [("hints", 0), ("reference", 0)]
    assert all(p.steps > 0 and p.train_tokens > 0 and p.gap_tokens > 0 and p.gain_se > 0 for p in found)
    assert run_grid(grid, points, work, device="cpu") == 0 and len(said) == 1
    whole = tmp_path / "whole.jsonl"
    run_grid(grid, whole, work, device="cpu")
    again = [p for p in read_points(whole) if p.unit == "share"]
    assert [(p.gap, p.gain) for p in again] == [(p.gap, p.gain) for p in found]
    nats = [p for p in read_points(whole) if p.unit == "nats"]
    assert nats and all(p.prompts >= 2 and abs(p.gap) < 5 and p.gap_se > 0 for p in nats)
    assert run_grid(grid, tmp_path / "none.jsonl", work, device="cpu", minutes=0.0) == 0


def test_the_grid_of_the_package_is_whole_and_invalid_ones_say_why(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    grid = read_grid()
    configurations = {(task, c, who.name) for who, task, _, contexts in grid.cells() for c in contexts}
    assert len(configurations) >= 24 and len(grid.seeds) == 3 and len(grid.contexts) >= 5
    file = tmp_path / "grid.toml"
    text = calibrate.GRID.read_text("utf-8")
    for old, new, wrong in (
        ("prompts = 64", "prompt = 64", "prompt"),
        ('"feedback",', '"feedbak",', "did you mean 'feedback'"),
        ('"feedback",', '"none",', "shows nothing"),
        ('"persona:pirate"', '"persona:pirat"', "persona"),
        ('"small.json"', '"none.json"', "none.json"),
    ):
        file.write_text(text.replace(old, new), "utf-8")
        with pytest.raises(ValueError, match=wrong):
            read_grid(file)


def test_a_small_model_is_made_from_its_configuration(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    own = SmallModelConfig(tasks=("gym:gcd",), hidden_size=16, layers=1, heads=2, steps=2, batch=2, items=8)
    make_small_model(own, tmp_path / "small")
    student = Student(str(tmp_path / "small"), device="cpu", dtype="float32")
    drawn = student.draw([student.prompt(Asked("a", ({"role": "user", "content": "Hello"},)))], 4, seed=0)
    assert 1 <= len(drawn[0].tokens) <= 4
    assert read_config(calibrate.GRID.parent / "small.json").steps > 100
    file = tmp_path / "small.json"
    for text, wrong in (('{"tasks": ["gym:gcd"], "layer": 2}', "layer"), ("{", "small.json")):
        file.write_text(text, "utf-8")
        with pytest.raises(ConfigError, match=wrong):
            read_config(file)
