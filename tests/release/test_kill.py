"""A process that dies between verdict and release leaves all of a release or nothing, and nobody locked out."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from afterword.records import Candidate, Release, Verdict
from afterword.release.publish import publish
from afterword.release.signed_chain import verify
from afterword.store import Store

from .conftest import Ready

CHILD = """
import os, signal, sys
from pathlib import Path
import afterword.release.{module} as module
from afterword.records import Candidate, Verdict
from afterword.release.publish import publish
from afterword.store import Store

real = module.{name}
def die(*args, **more):
    if {after}:
        real(*args, **more)
    os.kill(os.getpid(), signal.SIGKILL)
module.{name} = die
with Store.open(Path(sys.argv[1])) as store:
    publish(store, store.get(Candidate, "c1"), store.get(Verdict, "ver-c1"))
"""


@pytest.mark.parametrize(
    ("module", "name", "after"),
    [("publish", "check_bytes", True), ("publish", "name_proof", True), ("signed_chain", "sign", True),
     ("signed_chain", "_append", False), ("publish", "_written", False)],
)  # fmt: skip
def test_a_kill_leaves_all_or_nothing(
    store: Store, ready: Ready, tmp_path: Path, module: str, name: str, after: bool
) -> None:
    ready("c1")
    code = CHILD.format(module=module, name=name, after=after)
    child = subprocess.run([sys.executable, "-c", code, str(store.path)], capture_output=True, text=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert store.count(Release) == 0 and store.release() is None
    release = publish(store, store.get(Candidate, "c1"), store.get(Verdict, "ver-c1"))
    assert release.adapter == "afterword@v000001" and verify(store).problems == ()
