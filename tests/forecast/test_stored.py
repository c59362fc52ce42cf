"""The forecast of a round from stored interactions: its budget, its rows, and what `cycle` and `status` make of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from afterword import cycle
from afterword.cli import main
from afterword.config import EvaluateConfig, ForecastConfig, TrainConfig
from afterword.errors import NothingToDo
from afterword.forecast import stored
from afterword.forecast.outcomes import forecast_status, outcome_of
from afterword.forecast.points import OWN, CalibrationPoint, append_point
from afterword.forecast.stored import NoPrediction, measure_selection, predict_round
from afterword.model.loading import base_hash, resolve_model
from afterword.records import Candidate, Prediction, PredictionOutcome, Report, TrainingPlan, Verdict
from afterword.store import Store
from tests.train.tiny_model import example, tiny_folder

from .points import made

SETTINGS = ForecastConfig(min_prompts=2, cost=0.2)
"""A tiny byte-level model reads long words: a tenth would pay for one prompt."""
SHORT = EvaluateConfig(max_tokens=8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def store(tmp_path: Path, model: str) -> Iterator[Store]:
    with Store.open(tmp_path / "afterword.db") as store:
        for n in range(40):
            one = example(model, n, hindsight=f"Shorter than {n} words, please.")
            store.write(one.turn, replace(one.interaction, feedback=()))
        yield store


def _plan(model: str, **settings: object) -> TrainingPlan:
    chosen = TrainConfig(**settings)  # type: ignore[arg-type]
    names = tuple(f"int-{n}" for n in range(40))
    return TrainingPlan(candidate="c", interactions=names, parent=None, model=model, settings=asdict(chosen))


def _points(model: str) -> list[CalibrationPoint]:
    """Gaps from -4 to 4 nats, so that none of a random model lies outside."""
    known = base_hash(resolve_model(model))
    return [
        replace(p, base_hash=known, unit="nats", gap=10 * p.gap - 2, gain=p.gain, gap_se=0.1) for p in made(number=12)
    ]


def test_a_round_is_predicted_within_its_budget(store: Store, model: str) -> None:
    found = predict_round(store, store.path.parent, _plan(model), _points(model), SETTINGS, SHORT, heldout=16)
    assert isinstance(found, Prediction) and found.unit == "nats" and found.gap["n"] == found.prompts
    assert 2 <= found.prompts < 40  # a fifth of the tokens
    assert found.cost["measured_tokens"] <= 0.2 * found.cost["training_tokens"]
    assert found.context == "appended" and found.says
    rich = replace(SETTINGS, cost=1.0, prompts=10)
    more = predict_round(store, store.path.parent, _plan(model), _points(model), rich, SHORT, heldout=16)
    assert isinstance(more, Prediction) and more.prompts == 10


def test_the_gap_of_a_selection_has_its_controls_and_slices(store: Store, model: str) -> None:
    student, (none, own) = measure_selection(store, store.path.parent, _plan(model), SHORT, prompts=6)
    assert none.context == "none" and own.context == "appended" and own.prompts == own.redrawn == 6
    assert own.unit == "nats" and own.shuffled is not None and own.slices["(none)"] == own.gap
    assert own.observables["signal_real"] > 0 and student.work.tokens > 0
    checked = replace(SHORT, checks={"sums": "regex:7"})
    assert measure_selection(store, store.path.parent, _plan(model), checked, prompts=2)[1][0].unit == "nats"
    with pytest.raises(NothingToDo, match="shows its teacher nothing"):
        measure_selection(store, store.path.parent, _plan(model, recipe="sft"), SHORT, prompts=6)


def test_where_no_prediction_can_come_nothing_is_measured(
    store: Store, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(points: list[CalibrationPoint], settings: ForecastConfig = SETTINGS, **train: object) -> str:
        plan = _plan(model, **train)
        found = predict_round(store, store.path.parent, plan, points, settings, SHORT, heldout=16)
        assert isinstance(found, NoPrediction)
        return found.why

    assert "forecast.min_prompts is 39" in ask(_points(model), replace(SETTINGS, min_prompts=39))
    monkeypatch.setattr(stored, "Student", None)  # loading it would fail
    assert "no calibration" in ask(made(number=12)) and "(0 of 6 configurations)" in ask([])
    assert "shows its teacher nothing" in ask(_points(model), recipe="sft")


def _prediction(**changes: object) -> Prediction:
    gain = {"value": 0.2, "low": 0.1, "high": 0.3, "n": 9}
    values = {"id": "pre-1", "base_hash": "h", "unit": "nats", "context": "appended", "advice": "train", "gain": gain}
    return Prediction(**{**values, "says": "train: gain +0.200", "gate_probability": 0.8, **changes})  # type: ignore[arg-type]


def test_cycle_skips_a_hopeless_round_and_a_setting_turns_that_off(
    store: Store, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    progress = cycle.Progress(note=said.append)
    settings = cycle.Settings(directory=store.path.parent, model=model)
    assert cycle.forecast_stage(store, settings, progress) is None and "no calibration is known" in said[-1]
    append_point(store.path.parent / OWN, _points(model)[0])
    monkeypatch.setattr(stored, "predict_round", lambda *_, **__: _prediction(advice="skip", says="do not train"))
    with pytest.raises(NothingToDo, match=r"skipped: do not train; .*before_cycle=false") as caught:
        cycle.forecast_stage(store, settings, progress)
    assert caught.value.exit_code == 4 and store.newest(Prediction) is not None
    off = replace(settings, forecast=ForecastConfig(before_cycle=False))
    assert cycle.forecast_stage(store, off, progress) is None
    monkeypatch.setattr(stored, "predict_round", lambda *_, **__: NoPrediction("too few"))
    assert cycle.forecast_stage(store, settings, progress) is None and said[-1] == "no prediction: too few"
    monkeypatch.setattr(stored, "predict_round", lambda *_, **__: _prediction(id="pre-2", gate_probability=0.05))
    with pytest.raises(NothingToDo, match=r"probability 0\.05, the least is 0\.1"):
        cycle.forecast_stage(store, settings, progress)


def test_outcomes_are_rows_and_a_calibration_that_drifts_is_told(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert forecast_status(store) is None
    for n in range(6):
        report = Report(
            id=f"r{n}", candidate=f"c{n}", against=None, suites={"holdout": {"gain": {"value": -0.4, "n": 9}}}
        )
        candidate = Candidate(id=f"c{n}", path="a", base="m", parent=None, interactions=(), recipe={})
        verdict = Verdict(id=f"v{n}", candidate=f"c{n}", report=f"r{n}", passed=False, reasons=())
        prediction = _prediction(id=f"pre-{n}")
        store.write(prediction, outcome_of(prediction, candidate, report, verdict))
    outcome = store.newest(PredictionOutcome)
    assert outcome is not None and outcome.gain == -0.4 and not outcome.passed
    home = str(store.path.parent)
    assert main(["status", "--dir", home, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["forecast"]
    assert found["drift"]["drifts"] and found["drift"]["outcomes"] == 6 and found["outcome"]["gain"] == -0.4
    assert main(["status", "--dir", home]) == 0
    assert "the calibration drifts: 0 of 6" in capsys.readouterr().out


def test_the_commands_say_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = str(tmp_path)
    for words, code, told in (
        (["gap", "--task", "gym:chess"], 2, "unknown task"),
        (["gap", "--task", "persona:brief", "--context", "hint"], 2, "did you mean 'hints'"),
        (["predict", "--task", "persona:brief", "--context", "none"], 4, "teaches nothing"),
        (["gap"], 2, "no Afterword data"),
        (["fit", "--points", str(tmp_path / "none.jsonl")], 2, "cannot read the points"),
        (["calibrate", "--grid", str(tmp_path / "none.toml")], 2, "cannot read the grid"),
    ):
        assert main(["forecast", *words, "--dir", home]) == code, words
        assert told in capsys.readouterr().err.replace("\n", " "), words
    file = tmp_path / "points.jsonl"
    for one in made(number=8):
        append_point(file, one)
    page = tmp_path / "page.html"
    assert main(["forecast", "fit", "--points", str(file), "--html", str(page), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["configurations"] == 8 and "<svg" in page.read_text("utf-8")
