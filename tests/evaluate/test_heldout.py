"""Which held-out interactions a channel is measured on."""

from __future__ import annotations

from pathlib import Path

import pytest

from afterword.errors import NothingToDo
from afterword.evaluate.comparison.heldout import held_out
from afterword.evaluate.stage import require_work
from afterword.records import Candidate, Interaction
from afterword.store import Store
from tests.feedback.feedback_builders import feedback, turn


def test_a_channel_is_measured_on_its_own(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a.db") as store:
        for n, (user, task) in enumerate((("ada", "code"), ("bob", "code"), ("ada", "mail"))):
            store.write(turn(f"t{n}", user=user, task=task), feedback("comment", f"f{n}", f"t{n}", text="No."))
            store.write(Interaction(id=f"i{n}", turn=f"t{n}", feedback=(f"f{n}",), kind="comment", hindsight="No.",
                                    polarity=-1, weight=1.0, split="holdout", user=user, task=task))  # fmt: skip
        found = {c: [item.interaction.id for item in held_out(store, 9, c)]
                 for c in ("default", "user:ada", "task:code", "user:bob/task:mail")}  # fmt: skip
        assert found == {"default": ["i0", "i1", "i2"], "user:ada": ["i0", "i2"], "task:code": ["i0", "i1"],
                         "user:bob/task:mail": []}  # fmt: skip
        new = Candidate(id="c", path="p", base="b", parent=None, interactions=(), recipe={})
        require_work(store, new, ["holdout"], "user:ada")
        with pytest.raises(NothingToDo):
            require_work(store, new, ["holdout"], "user:eve")
