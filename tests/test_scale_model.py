"""The model of cost: hand-computed values, its page, and the bytes of real databases."""

from __future__ import annotations

import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[1] / "experiments" / "scale" / "model.py"


@pytest.fixture(scope="module")
def model() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scale_model", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def rates(model: ModuleType) -> object:
    return model.Rates(1_000.0, 10_000.0, 5_000.0, 2_000.0, 1.0, 4.0, 8.0)


def test_a_turn_takes_its_row_its_text_and_its_tokens(model: ModuleType) -> None:
    load = model.Load(prompt_tokens=100.0, answer_tokens=50.0, characters_per_token=4.0)
    assert model.turn_bytes(load, rates(model)) == 2_000 + 150 * 4 * 1.0 + 150 * 4.0 + 50 * 8.0


def test_gpu_seconds_by_hand(model: ModuleType) -> None:
    load = model.Load(prompt_tokens=100.0, answer_tokens=10.0)
    small = model.Model(parameters=1e9, weight_bytes=2.0, cache_bytes=1_000.0, hindsight_tokens=20.0, passes=2.0)
    gpu = model.Hardware(
        flops=1e12, bytes_per_s=1e9, batch=4.0, decode_efficiency=0.5, prefill_efficiency=0.5, train_efficiency=0.25
    )
    prefill = 2 * 1e9 * 100 / 0.5e12
    decode = 10 * (2e9 + 4 * 105 * 1_000) / 0.5e9 / 4
    assert model.serving_seconds(load, small, gpu) == pytest.approx(prefill + decode)
    passes = 2 * (4 * 1e9 * 110 + 2 * 1e9 * 130) / 0.25e12
    assert model.training_seconds(load, small, gpu) == pytest.approx(passes + prefill + decode)
    alone = replace(small, passes=1.0)  # nothing fresh is decoded
    assert model.training_seconds(load, alone, gpu) == pytest.approx(passes / 2)


def test_the_busiest_minute_sizes_what_answers_and_the_day_what_learns(model: ModuleType) -> None:
    load, day = model.Load(peak=2.0), 86_400.0
    stages = {need.stage: need for need in model.needs(day, load, model.Model(), model.Hardware(), rates(model))}
    assert stages["gateways"].units == pytest.approx(2 / 1_000)
    assert stages["collection"].units == pytest.approx(1 / 5_000)
    assert stages["writing rows"].units == pytest.approx(2 * 1.4 / 10_000)
    sampled = replace(load, most_trained=0.01 * day)
    fewer = model.needs(day, sampled, model.Model(), model.Hardware(), rates(model))[-1]
    assert fewer.units == pytest.approx(stages["training"].units / 10)


def test_the_bottleneck_is_what_is_furthest_beyond_its_limit(model: ModuleType) -> None:
    made = [model.Need("a", "core", 3.0, 2.0, 0.0, ""), model.Need("b", "core", 9.0, math.inf, 0.0, "")]
    assert model.bottleneck(made).stage == "a"
    assert model.bottleneck(made[1:]) is None


@pytest.mark.parametrize("turns", [0.0, -1.0, math.nan, math.inf])
def test_turns_that_are_no_number_are_refused(model: ModuleType, turns: float) -> None:
    with pytest.raises(ValueError, match="not a positive number"):
        model.needs(turns, model.Load(), model.Model(), model.Hardware(), rates(model))


@pytest.mark.parametrize("setting", ["speed=3", "parameters=much", "parameters=-1", "parameters"])
def test_an_assumption_that_cannot_be_set_is_named(model: ModuleType, setting: str) -> None:
    with pytest.raises(SystemExit, match=setting.split("=")[0]):
        model.changed([setting])


def test_missing_rates_are_named(model: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "measured.json").write_text('{"gateway_turns_per_core_s": 0}', "utf-8")
    with pytest.raises(ValueError, match="gateway_turns_per_core_s is 0"):
        model.Rates.read(tmp_path / "measured.json")


@pytest.mark.parametrize(("prompt", "answer"), [(300.0, 100.0), (2_000.0, 400.0)])
def test_real_databases_take_the_bytes_that_are_predicted(
    model: ModuleType, tmp_path: Path, prompt: float, answer: float
) -> None:
    load = model.Load(prompt_tokens=prompt, answer_tokens=answer)
    measured, _ = model.write_turns(tmp_path, 300, load)
    assert model.turn_bytes(load, model.Rates.read()) == pytest.approx(measured, rel=0.15)


def test_the_page_holds_what_the_program_prints(model: ModuleType) -> None:
    page = model.PAGE.read_text("utf-8").split(model.BEGIN)[1].split(model.END)[0]
    assert page == model.tables(model.Load(), model.Model(), model.Hardware(), model.Rates.read())
