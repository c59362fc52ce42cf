"""The report of a calibration: lines by family, held-out errors, tests; and its file of points."""

from __future__ import annotations

import math
from pathlib import Path

import orjson
import pytest

from afterword.errors import NothingToDo, UsageError
from afterword.forecast.calibration import fit
from afterword.forecast.figures import calibration_page
from afterword.forecast.points import append_point, pool, read_points

from .points import made, point


def test_lines_and_held_out_errors_of_two_families() -> None:
    points = made("a", slope=1.4, number=14, seed=1) + made("b", slope=0.6, number=14, seed=5)
    found = fit(points, unit="share")
    assert found["configurations"] == 28 and found["points"] == 84
    for family, slope in (("a", 1.4), ("b", 0.6)):
        line = found["families"][family]["line"]["slope"]
        assert line["low"] < slope < line["high"]
        assert found["families"][family]["r2"] > 0.9
    assert found["equal_slopes_p"] < 0.001
    one, family = found["held_out"]["configuration"], found["held_out"]["family"]
    assert (
        one["configurations"] == 28 and one["law_minus_mean_gain"]["high"] < 0 and one["law_minus_overlap"]["high"] < 0
    )
    assert 0.75 <= one["coverage"]["value"] <= 1.0
    assert family["law"]["value"] > 2 * one["law"]["value"]  # another family's slope does not serve
    assert found["partial"]["gap"]["low"] > 0.5
    assert found["partial"]["training_length"] is None  # never varied
    page = calibration_page(points, found)
    assert page.count("<svg class=scatter") == 2 and "context-3" in page


def test_seeds_are_pooled_with_the_noise_between_them() -> None:
    quiet = pool([point(seed=s, gain=0.1) for s in range(4)])[0]
    assert quiet.gain_se == pytest.approx(0.02 / 2) and quiet.seeds == 4
    loud = pool([point(seed=s, gain=0.1 + 0.3 * (-1) ** s) for s in range(4)])[0]
    assert loud.gain_se == pytest.approx(math.sqrt(0.12) / 2) and loud.gap_se == pytest.approx(0.01)


def test_too_few_configurations_give_no_line() -> None:
    with pytest.raises(NothingToDo, match="forecast calibrate"):
        fit(made(number=5), unit="share")
    with pytest.raises(NothingToDo, match="unit 'nats'"):
        fit(made(number=9), unit="nats")
    found = fit(made(number=8) + made("b", number=3), unit="share")
    assert found["families"]["b"]["line"] is None and found["held_out"]["family"]["configurations"] == 3


def test_points_are_appended_replaced_and_mended_after_a_kill(tmp_path: Path) -> None:
    file = tmp_path / "points.jsonl"
    append_point(file, point(gain=0.1))
    append_point(file, point(seed=1))
    append_point(file, point(gain=0.3))
    with file.open("ab") as stream:
        stream.write(b'{"task": "cut')
    append_point(file, point(seed=2))
    found = read_points(file)
    assert [(p.seed, p.gain) for p in found] == [(1, 0.1), (0, 0.3), (2, 0.1)]


@pytest.mark.parametrize(
    ("change", "wrong"),
    (
        ({"gap": None}, "gap is None"),
        ({"gain_se": -1.0}, "not negative"),
        ({"unit": "points"}, "share, nats"),
        ({"more": 1}, "unknown field 'more'"),
    ),
)
def test_invalid_points_name_line_and_field(tmp_path: Path, change: dict[str, object], wrong: str) -> None:
    file = tmp_path / "points.jsonl"
    append_point(file, point())
    row = orjson.loads(file.read_bytes()) | change
    with file.open("ab") as stream:
        stream.write(orjson.dumps(row) + b"\n")
    with pytest.raises(UsageError, match=wrong) as caught:
        read_points(file)
    assert "line 2" in caught.value.message
    with pytest.raises(UsageError, match="cannot read the points"):
        read_points(tmp_path / "none.jsonl")
