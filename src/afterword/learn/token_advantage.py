"""Defines the token advantage, for pages that show it where torch is not installed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenAdvantage:
    """One served token; its text is empty where a later token completes the character. `advantage` is
    `with_hindsight` - `without`, in nats: negative where the hindsight speaks against the token."""

    text: str
    without: float
    with_hindsight: float
    advantage: float
