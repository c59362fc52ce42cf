"""Publishes a run as a plain PEFT folder with `afterword.json`, written beside its place and renamed into it.

Owns the manifest and the result of a run. An adapter folder is complete or absent, and never written twice.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from afterword import __version__
from afterword.errors import ConflictError
from afterword.learn.recipes import Recipe, describe
from afterword.model.loading import base_hash, resolve_model, template_hash, tokenizer_hash
from afterword.records import Candidate, Json, content_hash
from afterword.store.files import write_whole
from afterword.train.data.examples import Example
from afterword.train.data.rows import Encoded
from afterword.train.runtime.policy import Policy, weights_hash

MANIFEST = "afterword.json"
_RESULT = "result.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """A finished run."""

    path: Path
    """The adapter folder."""
    base: str
    """The model as it was named to the run."""
    interactions: tuple[str, ...]
    """Ids of the trained interactions, in the order in which they were given."""
    excluded: tuple[Json, ...]
    """{interaction, reason, detail} of those that were not trained."""
    recipe: Json
    metrics: Json
    """First and last losses, the start signal, counts, seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIdentity:
    """The inputs of a run; equal fingerprints are the same run."""

    model: str
    base_hash: str
    tokenizer_hash: str
    template_hash: str
    parent: str | None
    parent_hash: str | None
    interactions_hash: str
    recipe: Json
    seed: int
    teachers: dict[str, str]
    """Hashes of teachers' weights that come from outside the run."""

    @property
    def weights(self) -> str:
        """Hash of everything that scores: base, dtype, parent and external teachers."""
        return content_hash(self.base_hash, self.recipe["dtype"], self.parent_hash, self.teachers)

    @property
    def fingerprint(self) -> str:
        """32 hex digits over all fields but the model's name."""
        return content_hash({k: v for k, v in asdict(self).items() if k not in ("model", "parent")})


def identify(
    model: str,
    tokenizer: object,
    recipe: Recipe,
    parent: Path | None,
    used: list[Example],
    seed: int,
    teachers: dict[str, str] | None = None,
    credit: Sequence[Encoded] = (),
) -> RunIdentity:
    """The identity of a run over these examples; `credit` are its rows of episodes: rewards and skills may change."""
    rows = [row for row in credit if row.group is not None]
    credited = [
        [list(row.interactions), [list(x) for _, x in row.credit], *map(list, row.teacher_prompts.values())]
        for row in rows
    ]  # fmt: skip
    return RunIdentity(
        model=model,
        base_hash=base_hash(resolve_model(model)),
        tokenizer_hash=tokenizer_hash(tokenizer),
        template_hash=template_hash(tokenizer),
        parent=None if parent is None else parent.name,
        parent_hash=None if parent is None else weights_hash(parent),
        interactions_hash=content_hash(
            [[e.interaction.id, e.interaction.weight, e.turn.id] for e in used], *([credited] if credited else [])
        ),
        recipe=describe(recipe),
        seed=seed,
        teachers=teachers or {},
    )


def publish(policy: Policy, identity: RunIdentity, result: TrainResult, run_dir: Path) -> None:
    """Write the adapter folder and `result.json`.

    Raises:
        ConflictError: the folder exists.
    """
    out = result.path
    if out.exists():
        raise ConflictError(f"{str(out)!r} exists already: adapters are never overwritten, name a new folder")
    note = {"fingerprint": identity.fingerprint, "result": {**asdict(result), "path": str(out)}}
    work = out.with_name(f".{out.name}.writing")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    policy.save(work, identity.model)
    manifest = {
        "schema": 1,
        "base": identity.model,
        **{k: getattr(identity, k) for k in ("base_hash", "tokenizer_hash", "template_hash", "parent",
                                             "parent_hash", "interactions_hash", "recipe", "seed", "teachers")},
        "interactions": len(result.interactions),
        "metrics": result.metrics,
        "code_version": __version__,
        "created_at": time.time(),
    }  # fmt: skip
    (work / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    write_whole(run_dir / _RESULT, json.dumps(note))
    for path in (*work.iterdir(), work, run_dir / _RESULT):
        _to_disk(path)
    work.rename(out)
    _to_disk(out.parent)  # the new name too: power may fail right after


def _to_disk(path: Path) -> None:
    """fsync of a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def finished_result(run_dir: Path, out: Path, fingerprint: str) -> TrainResult | None:
    """The result of the run with this fingerprint when it was published to `out`, else None."""
    note = run_dir / _RESULT
    if not (note.is_file() and (out / MANIFEST).is_file()):
        return None
    kept = json.loads(note.read_text(encoding="utf-8"))
    data = kept["result"]
    if kept["fingerprint"] != fingerprint or data["path"] != str(out):
        return None
    excluded = data.pop("left", None) or data.get("excluded", ())  # "left" until version 0.2
    return TrainResult(
        **{**data, "interactions": tuple(data["interactions"]), "excluded": tuple(excluded), "path": out}
    )


def summary_lines(result: TrainResult) -> Iterator[str]:
    """Summary for a person: exclusions, cut hindsight, early stop and warnings, a line each."""
    for reason, number in result.metrics["left_out"].items():
        first = next(one for one in result.excluded if one["reason"] == reason)
        yield f"excluded {number}, {reason}: {first['detail']}"
    if cut := result.metrics["hindsight_cut"]:
        yield f"{cut} hindsight tokens cut: alignment.txt has the number of interactions"
    if result.metrics["stopped"]:
        yield f"stopped early after {result.metrics['steps']} steps: {result.metrics['stopped']}"
    yield from (f"warning, {sentence}" for sentence in result.metrics["warnings"])


def candidate_record(result: TrainResult, *, id: str, path: str, parent: str | None) -> Candidate:
    """The row of this run: `path` relative to the data directory, `parent` the candidate it started from."""
    return Candidate(
        id=id,
        path=path,
        base=result.base,
        parent=parent,
        interactions=result.interactions,
        recipe=result.recipe,
        metrics={**result.metrics, "left": list(result.excluded)},
    )
