"""Programs of an agent run in a fresh interpreter and end at their limits."""

from __future__ import annotations

import os
import sys
import time

import pytest

from afterword.environments.code_tool import run_code


def test_output_errors_and_exit_codes_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "s")
    assert run_code("print(6 * 7)").output == "42\n"
    failed = run_code("raise SystemExit(3)")
    assert (failed.exit_code, failed.reason) == (3, None)
    assert "ZeroDivisionError" in run_code("1 / 0").output
    assert run_code("import os; print(sorted(os.environ))").output.count("A_SECRET") == 0
    assert run_code("import os; print(os.listdir('.'))").output == "[]\n"


def test_a_program_that_hangs_or_leaves_children_is_ended_in_time() -> None:
    begin = time.monotonic()
    hung = run_code("import time; print('first', flush=True); time.sleep(60)", seconds=1.0)
    assert (hung.output, hung.reason) == ("first\n", "timeout") and hung.exit_code < 0
    starts = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
    child = run_code(starts + "print(p.pid)", seconds=2.0)
    assert time.monotonic() - begin < 20
    pid = int(child.output.split()[0])
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            if sys.platform == "linux" and _zombie(pid):
                raise ProcessLookupError
            os.kill(pid, 0)
            time.sleep(0.05)


def _zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_floods_are_cut_with_a_note_and_memory_is_bounded() -> None:
    flood = run_code("print('x' * 10_000_000)")
    assert flood.exit_code == 0 and len(flood.output) < 3000
    assert "9998001 more bytes were cut" in flood.output
    endless = run_code("while True: print('x' * 1_000_000)", seconds=20.0)
    assert endless.reason == "output_limit"
    if sys.platform == "linux":
        assert "MemoryError" in run_code("x = bytearray(2_000_000_000)").output
