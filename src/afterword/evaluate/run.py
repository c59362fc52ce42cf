"""Runs the suites on a candidate and the served version, and collects their findings in a Report.

Records a suite that fails, chooses the examples, and makes sure that the folder measured is the folder reported. Never
decides whether the candidate is good.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from afterword.chat.canonical import text_of
from afterword.config import EvaluateConfig
from afterword.errors import AdapterError, AfterwordError, NothingToDo, UsageError
from afterword.evaluate.comparison.answers import Arm, EvaluationPrompt
from afterword.evaluate.comparison.comparison import Check, Comparison, Findings, Progress, Resources
from afterword.evaluate.comparison.heldout import HeldOut, Trained, require
from afterword.evaluate.comparison.substitutes import Substitute
from afterword.evaluate.stats.changes import changes
from afterword.evaluate.stats.interim import interim_looks
from afterword.evaluate.stats.statistics import LEVEL
from afterword.evaluate.suites import SUITES
from afterword.model.loading import base_hash, resolve_model
from afterword.records import Candidate, Json, Report, new_id
from afterword.store.files import folder_hash

_SUITE_FAILURES = (AfterwordError, ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""What a suite may fail with and still leave a report, whose verdict is then no. Our own broken promises
(AssertionError) and an interruption pass through."""


def _quiet(stage: str, done: int, total: int) -> None:
    """The default progress."""


def evaluate_candidate(
    *,
    candidate: Candidate,
    candidate_path: Path,
    served_path: Path | None,
    served_candidate: Candidate | None,
    interactions: Sequence[HeldOut],
    model: str,
    upstream: str,
    settings: EvaluateConfig | None = None,
    checks: Mapping[str, Check] | None = None,
    wins: Sequence[HeldOut] = (),
    trained: Sequence[Trained] = (),
    substitutes: Sequence[Substitute] = (),
    more_prompts: Sequence[EvaluationPrompt] = (),
    limits: Mapping[str, float] | None = None,
    level: float = LEVEL,
    suites: Iterable[str] | None = None,
    cache: Path | None = None,
    api_key: str | None = None,
    device: str = "auto",
    progress: Progress = _quiet,
) -> Report:
    """Compare a candidate with the served model in pairs.

    Args:
        candidate: The candidate's row.
        candidate_path: Its adapter folder.
        served_path: Adapter folder of the served model; None is the base model.
        served_candidate: Its row, where it has one.
        interactions: Held-out ones, oldest first (`held_out`); the newest `settings.max_interactions` are used.
        model: The base: the embedded one, a folder or a hub id.
        upstream: URL of a model server that reads adapter folders of this machine.
        settings: `[evaluate]`; the defaults without it.
        checks: Programs of the caller by name; their marks are reported and never decide.
        wins: Interactions that earlier releases made better.
        trained: Interactions that the candidate was trained on.
        substitutes: Adapters that resemble the candidate, on conversations that they have not seen.
        more_prompts: Requests of users without a reaction, for the guards.
        limits: `[gate]`: limits other than the defaults; a guard whose limit its interval contains asks more.
        level: Of the interval that decides; higher when the candidate was judged before.
        suites: Names; those of the settings without it.
        cache: Folder for answers and scores; a second run on the same bytes asks for nothing again.
        api_key: For the model server.
        device: Where the base model scores.
        progress: Called with (suite and its step, done, total).

    Returns:
        The report. A suite that fails is in it as {"error": why}.

    Raises:
        NothingToDo: No held-out interaction, and a suite that measures them.
        AdapterError: A folder is missing, or changed while it was measured.
        ModelError: The base is missing.
        UsageError: A suite is unknown.
    """
    started = time.monotonic()
    settings = settings or EvaluateConfig()
    names = chosen(settings.suites if suites is None else suites)
    candidate_arm, served_arm = _arm("candidate", candidate_path), _arm("served", served_path)
    comparison = Comparison(
        items=require(list(interactions), names)[-settings.max_interactions :],
        candidate=candidate_arm,
        served=served_arm,
        resources=Resources(model, (candidate_arm, served_arm, *(one.arm for one in substitutes)), cache, device),
        base_hash=base_hash(resolve_model(model)),
        upstream=upstream,
        settings=settings,
        api_key=api_key,
        checks=checks or {},
        wins=wins,
        trained=trained,
        substitutes=substitutes,
        more_prompts=more_prompts,
        limits=limits or {},
        level=level,
        on_progress=progress,
    )
    looks: Json = {}
    if settings.looks > 1 and "holdout" in names:
        comparison, looks = interim_looks(comparison)
    found, spent = _measured(comparison, names)
    _unchanged(comparison)
    suites_found = {name: one.metrics for name, one in found.items()}
    return Report(
        id=new_id("rep"),
        candidate=candidate.id,
        against=None if served_candidate is None else served_candidate.id,
        suites=suites_found,
        examples=_examples(comparison, found),
        about={
            **_about(comparison),
            **{key: value for one in found.values() for key, value in one.about.items()},
            **({"looks": looks} if looks else {}),
            "changes": changes(suites_found),
            "changed": {name: list(one.changed) for name, one in found.items() if one.changed},
            "seconds_by_suite": spent,
            "seconds": round(time.monotonic() - started, 3),
        },
    )


def _arm(name: str, path: Path | None) -> Arm:
    return Arm(name, path, None if path is None else folder_hash(path))


def _measured(comparison: Comparison, names: Sequence[str]) -> tuple[dict[str, Findings], dict[str, float]]:
    """Findings and seconds by suite."""
    found, spent = {}, {}
    for name in names:
        began = time.monotonic()
        found[name] = _run(name, replace(comparison, suite=name))
        spent[name] = round(time.monotonic() - began, 3)
    return found, spent


def _about(comparison: Comparison) -> Json:
    settings = {key: value for key, value in asdict(comparison.settings).items() if key != "judge_key"}
    return {
        "adapter_hash": comparison.candidate.content,
        "served_hash": comparison.served.content,
        "base": comparison.resources.model,
        "base_hash": comparison.base_hash,
        "sampling": comparison.sampling,
        "settings": settings | {"suites": list(comparison.settings.suites)},
    }


def _unchanged(comparison: Comparison) -> None:
    """AdapterError when an arm's folder is no longer what it was: half of the metrics would be of other bytes."""
    for arm in comparison.arms:
        if arm.path is not None and folder_hash(arm.path) != arm.content:
            raise AdapterError(f"the adapter folder {str(arm.path)!r} changed while it was measured: evaluate again")


def chosen(suites: Iterable[str]) -> list[str]:
    """The suites by name, each once. UsageError for one that there is not."""
    names = list(dict.fromkeys(suites))
    for name in names:
        if name not in SUITES:
            raise UsageError(f"unknown suite {name!r}; the suites are {', '.join(SUITES)}", param="suite")
    return names


def _run(name: str, comparison: Comparison) -> Findings:
    comparison.progress("", 0, 1)
    try:
        findings = SUITES[name](comparison)
    except NothingToDo as error:
        return Findings({"error": error.message})
    except _SUITE_FAILURES as error:
        return Findings({"error": f"{type(error).__name__}: {error}"})
    comparison.progress("", 1, 1)
    return findings


def _examples(comparison: Comparison, found: Mapping[str, Findings]) -> tuple[Json, ...]:
    """Answers side by side; none when no suite gave them."""
    answers = next((one.answers for one in found.values() if one.answers is not None), None)
    if answers is None:
        return ()
    rows = []
    for i, item in enumerate(comparison.items):
        row: Json = {
            "interaction": item.interaction.id,
            "turn": item.turn.id,
            "prompt": item.question,
            "messages": len(item.turn.messages),
            "follow_up": item.interaction.hindsight,
            "first_answer": text_of(item.turn.answer.get("content")),
            "final_text": item.final_text,
            "before": answers["served"][i].text,
            "after": answers["candidate"][i].text,
        }
        for findings in found.values():
            row.update(findings.notes[i] if findings.notes else {})
        rows.append(row)
    return tuple(rows)
