"""A console over the gateway's fake upstream."""

from __future__ import annotations

from tests.gateway.conftest import launch

__all__ = ["launch"]
