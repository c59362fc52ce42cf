"""A console over the gateway's fake upstream, on an empty directory and on one with rows of every kind."""

from __future__ import annotations

import argparse
import lzma
import tarfile
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.conftest import launch
from tests.gateway.gateway_setup import Launch, Setup

from afterword.cli.console import console_of
from afterword.cli.context import CommandContext

__all__ = ["launch"]
PACKED = Path(__file__).parents[1] / "data" / "home-0.1.tar.xz"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A data directory with rows of every kind and a chain of releases."""
    with lzma.open(PACKED) as packed, tarfile.open(fileobj=packed) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
        tar.extractall(tmp_path)
    return tmp_path / "data"


def extend(directory: Path) -> Any:
    return console_of(CommandContext.of(argparse.Namespace(dir=str(directory))))


@pytest.fixture
def empty(launch: Launch, tmp_path: Path) -> Setup:
    return launch(directory=tmp_path / "new", extend=extend(tmp_path / "new"))


@pytest.fixture
def full(launch: Launch, home: Path) -> Setup:
    return launch(directory=home, extend=extend(home))
