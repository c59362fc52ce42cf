"""Finds environments by name: built-in ones, and `python:`, `gym:`, `textarena:`, `verifiers:`, `openenv:`."""

from __future__ import annotations

from collections.abc import Callable

from afterword.environments.builtin import BUILT_IN
from afterword.environments.protocol import EnvironmentSpec
from afterword.errors import ConfigError


def _function(name: str) -> EnvironmentSpec:
    from afterword.environments.adapters import function_spec

    return function_spec(name)


def _gym(name: str) -> EnvironmentSpec:
    from afterword.environments.adapters import gym_spec

    return gym_spec(name)


def _textarena(name: str) -> EnvironmentSpec:
    from afterword.environments.adapters import textarena_spec

    return textarena_spec(name)


def _verifiers(name: str) -> EnvironmentSpec:
    from afterword.environments.adapters import verifiers_spec

    return verifiers_spec(name)


def _openenv(name: str) -> EnvironmentSpec:
    from afterword.environments.remote import openenv_spec

    return openenv_spec(name)


ADAPTERS: dict[str, tuple[str, Callable[[str], EnvironmentSpec]]] = {
    "python": ("python:MODULE:FUNCTION", _function),
    "gym": ("gym:FAMILY (reasoning-gym)", _gym),
    "textarena": ("textarena:GAME", _textarena),
    "verifiers": ("verifiers:MODULE:TASKSET", _verifiers),
    "openenv": ("openenv:http://HOST:PORT", _openenv),
}
"""Prefix -> (form of the name, function that makes the environment)."""


def find_environment(name: str) -> EnvironmentSpec:
    """Finds an environment.

    Raises:
        ConfigError: If there is none of that name, or its library is missing.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    prefix, colon, rest = name.partition(":")
    if prefix in ADAPTERS and colon and rest:
        return ADAPTERS[prefix][1](name)
    forms = ", ".join([*BUILT_IN, *(form for form, _ in ADAPTERS.values())])
    raise ConfigError(f"there is no environment {name!r}: it is one of {forms}", param="environment")
