"""The word tables of the follow-up detectors, read from `cues.toml`. Owns the tables and nothing else."""

from __future__ import annotations

import tomllib
from importlib.resources import files

_DATA = tomllib.loads(files("afterword.feedback").joinpath("cues.toml").read_text(encoding="utf-8"))

ByLanguage = dict[str, list[str]]

THANKS: ByLanguage = _DATA["thanks"]
ACK: ByLanguage = _DATA["ack"]
CORRECTION: ByLanguage = _DATA["correction"]
COMPLAINT: ByLanguage = _DATA["complaint"]
CONSTRAINT: ByLanguage = _DATA["constraint"]
CONTINUE: list[str] = _DATA["continue"]
ABOUT: list[str] = _DATA["about"]
ABOUT_WEAKLY: list[str] = _DATA["about_weakly"]
EMPTY_IT: list[str] = _DATA["empty_it"]
NEW_TASK: list[str] = _DATA["new_task"]
SWITCH: list[str] = _DATA["switch"]
ASKS: str = _DATA["asks"]
WISHES: str = _DATA["wishes"]
FILLERS = frozenset(_DATA["fillers"].split())
STOP = frozenset(_DATA["stop"].split())
STOP_ZH = frozenset(_DATA["stop_zh"])
FORM = frozenset(_DATA["form"].split())
