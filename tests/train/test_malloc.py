"""Freed memory is held while a run trains and given back after it."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from afterword.train.runtime.malloc import keep_freed_memory

BLOCK, BLOCKS = 1 << 20, 100


def resident() -> int:
    """MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) >> 10


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc only")
def test_memory_is_held_within_and_given_back_after() -> None:
    @keep_freed_memory
    def used_and_freed(extra: int) -> int:
        blocks = [bytearray(b"\x01") * BLOCK for _ in range(BLOCKS)]
        assert len(blocks) == BLOCKS
        blocks.clear()
        return resident() + extra

    before = resident()
    within = used_and_freed(extra=0)
    assert within - before > 80
    assert resident() - before < 20


def test_its_error_and_its_name_are_those_of_the_function() -> None:
    @keep_freed_memory
    def failing() -> None:
        raise LookupError("as it is")

    assert failing.__name__ == "failing"
    with pytest.raises(LookupError, match="as it is"):
        failing()
