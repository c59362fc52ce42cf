"""The suites and the report on a tiny random model: pairing, caching, failures, what is written down."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from afterword.config import EvaluateConfig
from afterword.errors import AdapterError, NothingToDo, UpstreamError, UsageError
from afterword.evaluate.comparison.comparison import Comparison, Findings
from afterword.evaluate.run import evaluate_candidate
from afterword.evaluate.stage import evaluate_stage
from afterword.evaluate.suites import SUITES
from afterword.evaluate.suites.forgetting import general
from afterword.records import Feedback, Interaction, Release, Report, Turn
from afterword.sampling import start_engine
from afterword.store import Store

from .conftest import FakeServer, Reply, candidate, held

Serve = Callable[[Reply], FakeServer]
ANSWERS = EvaluateConfig().min_answers
ITEMS = [held(i) for i in range(6)]
REQUIRED = ("holdout", "collapse", "forgetting")


def plain(arm: str, question: str) -> tuple[str, str]:
    return f"Here is what I know of {question.lower()} It is a number.", "stop"


def measure(tiny: str, adapter: Path, **changes: Any) -> Report:
    given: dict[str, Any] = {
        "candidate": candidate(),
        "candidate_path": adapter,
        "served_path": None,
        "served_candidate": None,
        "interactions": ITEMS,
        "model": tiny,
        "upstream": "http://127.0.0.1:1",
        "suites": REQUIRED,
        **changes,
    }
    return evaluate_candidate(**given)


def test_an_adapter_that_changes_nothing_differs_in_nothing(tiny: str, adapters: dict[str, Path], serve: Serve) -> None:
    serve(plain)
    report = measure(tiny, adapters["none"])
    assert tuple(report.suites) == REQUIRED
    assert report.suites["holdout"]["gain"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 6}
    assert report.suites["holdout"]["conversations"]["value"] == 3
    assert report.suites["forgetting"]["drift"]["high"] == 0.0
    assert report.suites["forgetting"]["loss_rise"]["value"] == 0.0
    for name in ("empty", "truncated", "repetitive", "copies", "leaks"):
        assert report.suites["collapse"][name]["value"] == 0.0
    assert report.suites["collapse"]["length_ratio"]["value"] == 1.0
    assert (report.candidate, report.against) == ("cand-1", None)
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()


def test_both_arms_get_the_same_questions_under_temporary_names(
    tiny: str, adapters: dict[str, Path], serve: Serve
) -> None:
    server = serve(plain)
    report = measure(
        tiny, adapters["small"], served_path=adapters["large"], served_candidate=candidate("cand-0"),
        suites=["holdout"], settings=EvaluateConfig(max_tokens=17, seed=5),
    )  # fmt: skip
    assert report.against == "cand-0" and list(report.suites) == ["holdout"]
    arms = [
        [r for r in server.requests if r["model"] == name]
        for name in dict.fromkeys(r["model"] for r in server.requests)
    ]
    asked = [[{k: v for k, v in r.items() if k != "model"} for r in arm] for arm in arms]
    assert len(asked) == 2 and asked[0] == asked[1] and len(asked[0]) == 6
    assert asked[0][0] | {"messages": []} == {"temperature": 0.0, "max_tokens": 17, "seed": 5, "messages": []}
    assert [kind for kind, _ in server.history] == ["load", "load", "unload", "unload"]
    assert not server.loaded and all(name.startswith("measure-") for _, name in server.history)


def test_drift_and_loss_rise_see_a_large_change(tiny: str, adapters: dict[str, Path], serve: Serve) -> None:
    serve(plain)
    small = measure(tiny, adapters["small"], suites=["forgetting"]).suites["forgetting"]
    large = measure(tiny, adapters["large"], suites=["forgetting"]).suites["forgetting"]
    assert 0 < small["drift"]["value"] < 0.2 * large["drift"]["value"]
    assert large["loss_rise"] == large["loss_rise_base"] and large["loss_rise"]["low"] > 0.02
    against = measure(
        tiny, adapters["large"], suites=["forgetting"], served_path=adapters["large"], served_candidate=candidate("c0")
    ).suites["forgetting"]
    assert against["loss_rise"]["value"] == 0.0
    assert against["loss_rise_base"]["value"] == pytest.approx(large["loss_rise"]["value"])
    assert large["drift"]["n"] == len(general()) == large["drift_text"]["n"] + large["drift_chat"]["n"]


BROKEN: dict[str, tuple[Reply, str]] = {
    "empty": (lambda arm, q: (" \n", "stop"), "empty"),
    "truncated": (lambda arm, q: (plain(arm, q)[0], "length"), "truncated"),
    "repetitive": (lambda arm, q: ("Hello friend! " * 60, "stop"), "repetitive"),
    "copies": (lambda arm, q: (q, "stop"), "copies"),
    "leaks": (lambda arm, q: ("As you asked in your follow-up, it is a number.", "stop"), "leaks"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_collapse_sees_each_way_to_break(tiny: str, adapters: dict[str, Path], serve: Serve, name: str) -> None:
    reply, figure = BROKEN[name]
    serve(lambda arm, question: plain(arm, question) if arm == "base" else reply(arm, question))
    found = measure(tiny, adapters["small"], suites=["collapse"]).suites["collapse"]
    assert found[figure]["value"] == 1.0
    assert (found[f"{figure}_served"]["value"], found[f"{figure}_candidate"]["value"]) == (0.0, 1.0)
    others = {"empty", "truncated", "repetitive", "copies", "leaks"} - {figure}
    assert all(found[other]["value"] == 0.0 for other in others)
    if name in ("empty", "repetitive"):
        assert found["distinct_ratio"]["value"] < 0.5


def test_an_edit_like_the_users_text_is_no_leak_but_nearer(tiny: str, adapters: dict[str, Path], serve: Serve) -> None:
    final = "The number is what you make of it, no more and no less."
    items = [held(i, hindsight=final, final_text=final) for i in range(4)]
    serve(lambda arm, question: plain(arm, question) if arm == "base" else (final, "stop"))
    found = measure(tiny, adapters["small"], interactions=items).suites
    assert found["holdout"]["edit_candidate"]["value"] == 0.0
    assert found["holdout"]["edit_gain"]["low"] > 0.5
    assert found["collapse"]["leaks"]["value"] == 0.0


def test_checks_of_the_caller_are_reported_in_pairs(tiny: str, adapters: dict[str, Path], serve: Serve) -> None:
    serve(lambda arm, question: ("Hello friend! It is so.", "stop") if arm == "small" else plain(arm, question))
    checks = {"trait": lambda item, text: float(text.startswith("Hello")), "half": lambda item, text: 0.5}
    report = measure(tiny, adapters["small"], checks=checks)
    found = report.suites["holdout"]
    assert (found["trait_before"]["value"], found["trait_after"]["value"]) == (0.0, 1.0)
    assert found["trait"]["value"] == found["trait"]["high"] == 1.0 and 0.2 < found["trait"]["low"] < 0.3
    assert found["half_after"]["value"] == 0.5
    example = report.examples[0]
    assert (example["trait_served"], example["trait_candidate"]) == (0.0, 1.0)
    assert example["after"].startswith("Hello friend!") and example["follow_up"] == "Shorter, please."
    assert {"prompt", "before", "score_served", "score_candidate", "first_answer"} <= set(example)


def test_a_second_run_asks_and_scores_nothing(
    tiny: str, adapters: dict[str, Path], serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(plain)
    first = measure(tiny, adapters["small"], cache=tmp_path)
    asked = len(server.requests)
    for file in tmp_path.glob("*.jsonl"):
        file.write_bytes(file.read_bytes() + b'["cut off", {"te')
    monkeypatch.setattr("afterword.evaluate.comparison.comparison.AdapterScorer.load", None)  # loading would now fail
    second = measure(tiny, adapters["small"], cache=tmp_path)
    assert asked == 2 * ANSWERS == len(server.requests)
    assert second.suites == first.suites and second.examples == first.examples
    other = measure(tiny, adapters["small"], cache=tmp_path, settings=EvaluateConfig(seed=1), suites=["collapse"])
    assert len(server.requests) == 2 * asked and "error" not in other.suites["collapse"]


def test_equal_prompts_are_asked_once_and_the_newest_items_are_taken(
    tiny: str, adapters: dict[str, Path], serve: Serve
) -> None:
    server = serve(plain)
    items = [held(i, messages=({"role": "user", "content": "Same?"},)) for i in range(5)]
    report = measure(
        tiny, adapters["small"], interactions=items, suites=["collapse"], settings=EvaluateConfig(max_interactions=3)
    )
    assert [r["messages"][0]["content"] for r in server.requests].count("Same?") == 2
    assert len(server.requests) == 2 * (1 + ANSWERS - 3)
    assert [e["turn"] for e in report.examples] == ["turn-2", "turn-3", "turn-4"]
    assert report.suites["collapse"]["answers"]["value"] == ANSWERS
    assert report.suites["collapse"]["similarity"]["n"] == 1 + ANSWERS - 3


def test_both_arms_continue_an_answer_that_was_begun(tiny: str, adapters: dict[str, Path], serve: Serve) -> None:
    server = serve(plain)
    begun = ({"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because"})
    how = {"continue_final_message": True, "add_generation_prompt": False}
    items = [held(0, messages=begun, sampling=how | {"chat_template_kwargs": {"mode": "brief"}}), held(1)]
    report = measure(tiny, adapters["small"], interactions=items, suites=["holdout"])
    asked = [r for r in server.requests if r["messages"][-1]["role"] == "assistant"]
    assert len(asked) == 2 and all(r | how | {"chat_template_kwargs": {"mode": "brief"}} == r for r in asked)
    assert not any({*how, "chat_template_kwargs"} & set(r) for r in server.requests if r not in asked)
    assert "error" not in report.suites["holdout"]


@pytest.mark.parametrize(("least", "inspected"), [(10, 10), (2, 6), (1000, 6 + 64)])
def test_our_own_requests_fill_up_to_the_setting(
    tiny: str, adapters: dict[str, Path], serve: Serve, least: int, inspected: int
) -> None:
    server = serve(plain)
    report = measure(tiny, adapters["small"], suites=["collapse"], settings=EvaluateConfig(min_answers=least))
    assert report.suites["collapse"]["answers"]["value"] == inspected
    assert len(server.requests) == 2 * inspected


def test_a_suite_that_fails_is_written_down_and_the_rest_goes_on(
    tiny: str, adapters: dict[str, Path], serve: Serve
) -> None:
    def gone(arm: str, question: str) -> tuple[str, str]:
        raise UpstreamError("the model server went away")

    server = serve(gone)
    report = measure(tiny, adapters["small"])
    for name in ("holdout", "collapse"):
        assert report.suites[name] == {"error": "UpstreamError: the model server went away"}
    assert report.suites["forgetting"]["drift"]["value"] > 0
    assert report.examples == () and not server.loaded


@pytest.mark.parametrize("failure", [RuntimeError("out of memory"), ValueError("x"), KeyError("y"), OSError("disk")])
def test_any_ordinary_failure_of_a_suite_is_a_recorded_error(
    tiny: str, adapters: dict[str, Path], serve: Serve, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def fails(comparison: Comparison) -> Findings:
        raise failure

    serve(plain)
    monkeypatch.setitem(SUITES, "forgetting", fails)
    report = measure(tiny, adapters["small"], suites=["forgetting"])
    assert report.suites["forgetting"]["error"].startswith(type(failure).__name__)


def test_no_words_to_judge_by_is_an_error_of_the_suite(tiny: str, adapters: dict[str, Path], serve: Serve) -> None:
    serve(plain)
    report = measure(tiny, adapters["small"], interactions=[held(1, hindsight=" ")], suites=["holdout"])
    assert "no held-out interaction has words" in report.suites["holdout"]["error"]


def test_a_prompt_that_is_too_long_for_the_model(tiny: str, adapters: dict[str, Path], serve: Serve) -> None:
    serve(plain)
    long = held(1, messages=({"role": "user", "content": "x" * 2000},))
    report = measure(tiny, adapters["small"], interactions=[long], suites=["holdout"])
    assert "longer than the" in report.suites["holdout"]["error"]


def test_what_is_wrong_with_the_call(tiny: str, adapters: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(NothingToDo, match="no interaction is held out"):
        measure(tiny, adapters["small"], interactions=[])
    with pytest.raises(UsageError, match="unknown suite 'speed'; the suites are holdout, forgetting, collapse"):
        measure(tiny, adapters["small"], suites=["speed"])
    with pytest.raises(AdapterError, match="moved or deleted"):
        measure(tiny, tmp_path / "nowhere")


def test_a_foreign_adapter_is_an_error_of_the_suite(
    tiny: str, adapters: dict[str, Path], serve: Serve, tmp_path: Path
) -> None:
    serve(plain)
    shutil.copytree(adapters["small"], tmp_path / "a")
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    (tmp_path / "a/adapter_config.json").write_text(json.dumps(config | {"r": 7}))
    report = measure(tiny, tmp_path / "a", suites=["forgetting"])
    assert report.suites["forgetting"]["error"].startswith("AdapterError")


def test_progress_names_each_stage(tiny: str, adapters: dict[str, Path], serve: Serve) -> None:
    serve(plain)
    told: list[tuple[str, int, int]] = []
    measure(tiny, adapters["small"], progress=lambda *step: told.append(step))
    assert {stage for stage, _, _ in told} >= {
        "holdout", "holdout: load", "holdout: answers", "holdout: hindsight", "collapse: requests", "forgetting: texts",
    }  # fmt: skip
    assert ("holdout: answers", 12, 12) in told


def _fill(store: Store, tiny: str, path: Path) -> None:
    for i in range(4):
        messages = ({"role": "user", "content": f"What is {i}?"},)
        turn = Turn(id=f"t{i}", messages=messages, answer={"content": "It."}, previous=f"t{i - 1}" if i % 2 else None)
        feedback = Feedback(id=f"f{i}", turn=turn.id, kind="edited", final_text=f"It is {i}.")
        interaction = Interaction(
            id=f"i{i}", turn=turn.id, feedback=(feedback.id,), kind="edited", hindsight="Say it.", polarity=1,
            weight=1.0, split="holdout",
        )  # fmt: skip
        store.write(turn, feedback, interaction)
    store.write(candidate("cand-1", tiny))


def test_the_stage_with_the_real_engine(tiny: str, adapters: dict[str, Path], tmp_path: Path) -> None:
    """Rows in, one Report out; the second time from the cache; what is served is nothing to compare."""
    shutil.copytree(adapters["large"], tmp_path / "adapters/cand-1")
    with Store.open(tmp_path / "afterword.db") as store:
        _fill(store, tiny, tmp_path)
        new = candidate("cand-1", tiny)
        settings = EvaluateConfig(max_tokens=8)
        with start_engine(tiny, dtype="float32", log_path=tmp_path / "engine.log") as engine:
            report = evaluate_stage(store, tmp_path, new, settings, engine=engine.url)
        again = evaluate_stage(store, tmp_path, new, settings, engine=engine.url)
        assert store.count(Report) == 2 and again.suites == report.suites
        assert not [name for name, figures in report.suites.items() if "error" in figures]
        assert report.suites["holdout"]["conversations"]["value"] == 2
        assert report.examples[1]["final_text"] == "It is 1." and "edit_gain" in report.suites["holdout"]
        assert any(example["before"] != example["after"] for example in report.examples)
        store.write(
            Release(
                id="r1", channel="default", adapter="a@v000001", candidate="cand-1", path="adapters/cand-1",
                verdict="v", previous=None, action="publish", why="",
            )
        )  # fmt: skip
        with pytest.raises(NothingToDo, match="serves cand-1 already"):
            evaluate_stage(store, tmp_path, new, settings, engine=engine.url)


def test_our_own_broken_promises_are_not_hidden(
    tiny: str, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(comparison: Comparison) -> Findings:
        raise AssertionError("a bug")

    monkeypatch.setitem(SUITES, "collapse", broken)
    with pytest.raises(AssertionError, match="a bug"):
        measure(tiny, adapters["small"], suites=["collapse"])
