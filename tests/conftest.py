"""The environment of whoever starts the tests decides nothing in them: settings, proxies, terminal, buffering."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

from hypothesis import HealthCheck, settings

KEPT = ("AFTERWORD_CACHE",)
"""Where converted models lie: set by `.ci/run`."""
_OTHERS = ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "PYTHONUNBUFFERED")


def is_ambient(name: str) -> bool:
    """Does this variable change what our commands do or print?"""
    if name in KEPT:
        return False
    return name.startswith("AFTERWORD_") or name in _OTHERS or name.lower().endswith("_proxy")


# One thread for each worker of pytest-xdist and for its children: products with two of them on two cores would wait for
# each other. Set here, before torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# At import, before any test module: children that are started with `os.environ` see none of them either.
for _name in filter(is_ambient, list(os.environ)):
    del os.environ[_name]

# No example of a property fails for its time: that is the machine's, beside other work.
settings.register_profile("any_load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_load")
# Engines of other people on this machine hold up no test.
os.environ["AFTERWORD_RUN_DIR"] = tempfile.mkdtemp(prefix="afterword-run-")
atexit.register(shutil.rmtree, os.environ["AFTERWORD_RUN_DIR"], ignore_errors=True)
