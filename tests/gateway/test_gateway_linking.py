"""Follow-ups are linked behind the clients people use: measured on generated conversations of many people at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.gateway.linking_conversations import KINDS, MODES, PAIRS, mixed, play

LEAST = {"named": 0.99, "user": 0.95, "nobody": 0.95}
"""Share of the requests of each kind that are linked, those left out that read like another turn's."""


def check(path: Path, mode: str, kinds: list[tuple[str, ...]]) -> None:
    world = play(path, mode, kinds)
    wrong = {kind: tally.wrong for kind, tally in world.tallies.items() if tally.wrong}
    assert not wrong, "linked to a turn that the request does not continue"
    few = {kind: str(tally) for kind, tally in world.tallies.items() if tally.recall < LEAST[mode]}
    assert not few
    assert not sum(tally.other_words for tally in world.tallies.values()), "words that are not the user's"
    for tally in world.tallies.values():
        if mode != "nobody" and tally.repeated + tally.unrepeated:
            assert tally.repeated / (tally.repeated + tally.unrepeated) >= LEAST[mode], "asked again, not recognised"
    if mode == "named":
        assert not any(tally.alike for tally in world.tallies.values())


@pytest.mark.parametrize("mode", MODES)
def test_a_sample_is_linked(tmp_path: Path, mode: str) -> None:
    check(tmp_path / "a.db", mode, mixed(870))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_ten_thousand_conversations_are_linked(tmp_path: Path, mode: str) -> None:
    check(tmp_path / "a.db", mode, mixed(10_000))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*((kind,) for kind in KINDS), *PAIRS], ids=" + ".join)
@pytest.mark.parametrize("mode", MODES)
def test_clients_of_one_kind_are_linked(tmp_path: Path, mode: str, kind: tuple[str, ...]) -> None:
    check(tmp_path / "a.db", mode, [kind] * 600)
