"""Optional packages: which extra of ours brings a module, and the line that installs it.

Owns the sentence that a command without its packages ends with. Reads the extras from the installed metadata, so that
`pyproject.toml` stays the only list of them; imports none of those packages.
"""

from __future__ import annotations

import importlib.util
import re
from importlib import metadata

from afterword.errors import UsageError

_EXTRA = re.compile(r"^(?P<name>[A-Za-z0-9._-]+).*;.*\bextra\s*==\s*['\"](?P<extra>[^'\"]+)['\"]")


def require_extra(extra: str, purpose: str) -> None:
    """UsageError with the line that installs it when a package of `extra` is missing; `purpose` begins the sentence."""
    missing = [name for name, where in _modules().items() if where == extra and importlib.util.find_spec(name) is None]
    if missing:
        more = f" and {len(missing) - 1} more packages" if missing[1:] else ""
        raise UsageError(
            f"{purpose} needs {missing[-1]}{more}, missing in this environment: {install_line(extra)}",
            code="missing_package",
        )


def missing_package(error: ModuleNotFoundError) -> UsageError | None:
    """The message for a failed import; None for a module that no extra of ours brings, which is a fault."""
    name = (error.name or "").partition(".")[0]
    extra = _modules().get(name)
    if extra is None:
        return None
    return UsageError(
        f"this command needs {name}, missing in this environment: {install_line(extra)}", code="missing_package"
    )


def install_line(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'afterword[{extra}]'"


def _modules() -> dict[str, str]:
    """Module -> the extra that brings it, for the packages whose module has their name."""
    try:
        wanted = metadata.requires("afterword") or []
    except metadata.PackageNotFoundError:  # run from a folder of sources that was never installed
        return {}
    found = (match for line in wanted if (match := _EXTRA.match(line)) is not None)
    modules: dict[str, str] = {}
    for match in found:
        modules.setdefault(match["name"].replace("-", "_"), match["extra"])
    return modules
