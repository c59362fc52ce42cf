"""Keeps glibc from returning freed memory to the system while a run trains; does nothing on other C libraries."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_TRIM, _MAP = -1, -3
"""mallopt's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD."""
_MOST = (1 << 31) - 1
_LARGEST = 32 << 20
"""glibc's own bound of the size from which a block is mapped by itself."""


def keep_freed_memory(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate `function` to keep freed memory until it ends.

    Every micro-batch would otherwise return hundreds of MiB of activations and have them zeroed again page by page. The
    peak memory stays the same.
    """

    @wraps(function)
    def holding(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            library = ctypes.CDLL(None)
            option, trim = library.mallopt, library.malloc_trim
        except (OSError, AttributeError, TypeError):  # not glibc
            return function(*args, **kwargs)
        option(_MAP, _LARGEST)
        option(_TRIM, _MOST)
        try:
            return function(*args, **kwargs)
        finally:
            option(_TRIM, 2 * _LARGEST)  # what glibc settles at by itself
            trim(0)

    return holding
