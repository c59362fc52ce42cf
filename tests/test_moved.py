"""Import paths of version 0.1 give what is there now."""

from __future__ import annotations

import importlib
import sys

import pytest

from afterword.moved import MOVED, RENAMED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_gives_the_names_of_its_new_home(old: str) -> None:
    sys.modules.pop(f"afterword.{old}", None)
    with pytest.warns(DeprecationWarning, match=rf"afterword\.{old} is now afterword\.{MOVED[old][0]}"):
        module = importlib.import_module(f"afterword.{old}")
    for home in MOVED[old]:
        there = importlib.import_module(f"afterword.{home}")
        own = next(name for name in vars(there) if getattr(vars(there)[name], "__module__", "") == there.__name__)
        assert getattr(module, own) is getattr(there, own)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name


def test_every_renamed_name_has_a_home() -> None:
    homes = [importlib.import_module(f"afterword.{home}") for home in {h for homes in MOVED.values() for h in homes}]
    assert [now for now in RENAMED.values() if not any(hasattr(home, now) for home in homes)] == []


def test_what_never_was_is_still_missing() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("afterword.learn.never_was")
