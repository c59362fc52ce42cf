"""How threads wait is said before torch is loaded, whichever room is imported first."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT"))
            sys.exit()
sys.meta_path.insert(0, Watch())
import {module}
"""


@pytest.mark.parametrize(
    "module", ["afterword.train.loop", "afterword.evaluate.scoring.adapter_scorer", "afterword.evaluate.run"]
)
@pytest.mark.parametrize("given", [None, "7"])
def test_threads_wait_briefly_from_the_start(module: str, given: str | None) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    environment |= {"GOMP_SPINCOUNT": given} if given else {}
    command = [sys.executable, "-c", CODE.format(module=module)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["PASSIVE", given or "2000"]


@pytest.mark.parametrize(("policy", "spins", "left"), [("PASSIVE", "2000", None), ("PASSIVE", "7", "7")])
def test_an_engine_does_not_inherit_how_training_waits(policy: str, spins: str, left: str | None) -> None:
    environment = os.environ | {"OMP_WAIT_POLICY": policy, "GOMP_SPINCOUNT": spins}
    command = [sys.executable, "-c", CODE.format(module="afterword.engine.host")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == [str(left and policy), str(left)]
