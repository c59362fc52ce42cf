"""What is on record of canaries on the real model (`experiments/canary_real.py`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments import canary_real

RECORD = Path(canary_real.__file__).with_name("canary_real.json")


def test_the_recorded_canaries_came_to_the_right_end() -> None:
    found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    assert found["good"]["action"] == "promote" and found["good"]["serves"] == found["good"]["canary"]
    assert found["bad"]["action"] == "rollback" and found["bad"]["serves"] != found["bad"]["canary"]
    for one in found.values():
        assert one["verify_problems"] == [] and one["evidence"]["figures"]["approval"]
    assert "horizon" in found["equal"]["why"]
    assert found["equal"]["evidence"]["arms"]["candidate"]["judged"] >= found["equal"]["horizon"]
