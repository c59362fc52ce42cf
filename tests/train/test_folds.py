"""Adapters of cross-fitting: each conversation is left out of one of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

from afterword.config import TrainConfig
from afterword.records import Candidate, Feedback, TrainingPlan
from afterword.store import Store
from afterword.train.folds import train_folds
from afterword.train.run_state import write_run
from tests.train.tiny_model import example, tiny_folder


def test_each_conversation_is_left_out_once(tmp_path: Path) -> None:
    model = tiny_folder(tmp_path / "base")
    settings = asdict(TrainConfig(epochs=1, fresh=0, min_interactions=1))
    with Store.open(tmp_path / "a.db") as store:
        names, conversation = [], {}
        for n in range(10):
            made = example(model, n)
            turn = replace(made.turn, conversation=f"c{n // 2 if n < 4 else n}")
            row = replace(made.interaction, feedback=(f"f{n}",))
            store.write(turn, Feedback(id=f"f{n}", turn=turn.id, kind="comment", text="Shorter."), row)
            names.append(row.id)
            conversation[row.id] = turn.conversation
        whole = Candidate(id="cand-1", path="adapters/cand-1", base=model, parent=None, interactions=tuple(names),
                          recipe={})  # fmt: skip
        said: list[str] = []
        assert train_folds(store, tmp_path, whole, 2, note=said.append) == {} and "plan" in said[0]
        plan = TrainingPlan(candidate="cand-1", interactions=tuple(names), parent=None, model=model, settings=settings)
        write_run(tmp_path, plan, "finished")
        assert train_folds(store, tmp_path, whole, 3, note=said.append) == {} and "12 conversations" in said[-1]

        found = train_folds(store, tmp_path, whole, 2, device="cpu")
        left = [set(names) - set(kept) for kept in found.values()]
        assert Counter(name for one in left for name in one) == dict.fromkeys(names, 1)
        apart = [{conversation[name] for name in one} for one in left]
        assert not apart[0] & apart[1] and all((path / "adapter_config.json").is_file() for path in found)
        before = {path: (path / "afterword.json").stat().st_mtime_ns for path in found}
        assert train_folds(store, tmp_path, whole, 2, device="cpu") == found
        assert {path: (path / "afterword.json").stat().st_mtime_ns for path in found} == before
