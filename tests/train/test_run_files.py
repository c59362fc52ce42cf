"""What a run writes beside the adapter, and what stops it: event files, rules, monitors of whole answers."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from afterword.chat.sampling_fields import PLAIN
from afterword.errors import ConfigError
from afterword.learn.loss.terms import Term
from afterword.learn.parts.advantages import GroupBaseline, PPOClip
from afterword.learn.parts.contexts import CONTEXTS
from afterword.learn.parts.divergences import NegativeLogLikelihood
from afterword.learn.recipes import Recipe, recipe, sdpo_interactions
from afterword.model.loading import load_tokenizer
from afterword.records import Turn
from afterword.train.artifact import TrainResult
from afterword.train.data.batches import rows_of
from afterword.train.data.examples import Example, prepare, sampler_logprobs
from afterword.train.generation.generation_metrics import read_generation_metrics, self_similarity
from afterword.train.loop import train_candidate
from afterword.train.monitoring.alerts import OFF, STRICT, StopRules
from afterword.train.monitoring.events import Events, crc32c
from afterword.train.monitoring.metrics import StepMetrics, read_metrics
from tests.train.tiny_model import example, tiny_folder

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

QUICK: dict[str, Any] = {"dtype": "float32", "batch": 4, "epochs": 2, "fresh": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "model")


def some(model: str, n: int = 8, **changes: Any) -> list[Example]:
    words = ("Shorter, please.", "Say hello first.", "In Spanish?")
    return [example(model, i, hindsight=words[i % 3], **changes) for i in range(n)]


def run(model: str, folder: Path, examples: list[Example], recipe: Recipe, **options: Any) -> TrainResult:
    given: dict[str, Any] = {"out": folder / "out", "run_dir": folder / "run", **options}
    return train_candidate(examples, model=model, recipe=recipe, **given)


def records(file: Path) -> Iterator[bytes]:
    """TFRecords with their checksums checked."""
    data = file.read_bytes()

    def masked(part: bytes) -> int:
        value = crc32c(part)
        return (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF

    while data:
        (size,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12])[0] == masked(data[:8])
        body = data[12 : 12 + size]
        assert struct.unpack("<I", data[12 + size : 16 + size])[0] == masked(body)
        yield body
        data = data[16 + size :]


def test_crc32c_known_values() -> None:
    """RFC 3720, B.4."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43


def test_event_files_hold_every_scalar_of_every_step(tmp_path: Path) -> None:
    Events(tmp_path).add(300, {"loss": 0.5, "terms/hindsight": -2.0})
    events = Events(tmp_path, {1: {"loss": 0.25}})  # a resumed run writes its past anew
    events.add(2, {"loss": 0.125})
    version, first, second = records(events.file)
    assert b"brain.Event:2" in version
    assert first[9:11] == b"\x10\x01" and second[9:11] == b"\x10\x02"
    assert b"loss\x15" + struct.pack("<f", 0.25) in first and b"loss\x15" + struct.pack("<f", 0.125) in second


def test_a_run_leaves_an_event_file(model: str, tmp_path: Path) -> None:
    run(model, tmp_path, some(model), sdpo_interactions(**QUICK))
    steps = read_metrics(tmp_path / "run")
    _, start, *events = records(tmp_path / "run" / "events.out.tfevents.0.afterword")
    assert b"start/signal_real" in start and start[9:11] == b"\x10\x00"
    assert len(events) == len(steps) == 4
    assert b"entropy_student\x15" + struct.pack("<f", steps[2].entropy_student) in events[2]
    assert steps[0].drift is not None and steps[1].drift is None  # probed every few steps
    assert steps[0].drift == pytest.approx(0.0, abs=1e-5)
    assert steps[0].effective == pytest.approx(4.0)
    assert sum(steps[0].depth.values()) == pytest.approx(1.0)


def metrics(entropy: float = 2.0, drift: float | None = None) -> StepMetrics:
    zeros = dict.fromkeys(
        ("step", "steps", "interactions", "off_policy", "tokens", "loss", "grad_norm", "lr", "length", "divergence",
         "entropy_teacher", "entropy_gap", "overlap", "signal", "seconds", "tokens_per_second"), 0,
    )  # fmt: skip
    return StepMetrics(**zeros, terms={}, depth={}, entropy_student=entropy, drift=drift)  # type: ignore[arg-type]


def test_rules() -> None:
    calm = [metrics() for _ in range(9)]
    assert STRICT.stop_reason([]) is None and STRICT.stop_reason(calm) is None
    fallen = [*calm, *(metrics(1.1) for _ in range(4))]
    assert "0.55 of what it was" in (STRICT.stop_reason(fallen) or "")
    assert STRICT.stop_reason([*calm, *(metrics(1.3) for _ in range(4))]) is None
    assert STRICT.stop_reason([*calm, metrics(0.1)]) is None  # one odd step is none
    away = [*calm, metrics(drift=1.5), metrics(), metrics(drift=2.7)]
    assert "2.10 nats per token" in (STRICT.stop_reason(away) or "")
    assert STRICT.stop_reason([*calm, metrics(drift=9.0)]) is None
    assert OFF.stop_reason(fallen) is None and OFF.stop_reason(away) is None


def test_a_stop_is_an_honest_end_that_can_go_on(model: str, tmp_path: Path) -> None:
    recipe, strict = sdpo_interactions(**QUICK, lr=1e-2), StopRules(drift=1e-9)
    stopped = run(model, tmp_path, some(model, 20), recipe, rules=strict)
    assert "nats per token away from the base" in stopped.metrics["stopped"]
    assert stopped.metrics["steps"] == 5 and (stopped.path / "adapter_config.json").is_file()
    assert run(model, tmp_path, some(model, 20), recipe, rules=strict) == stopped
    further = run(model, tmp_path, some(model, 20), recipe, rules=OFF, out=tmp_path / "further")
    assert further.metrics["stopped"] is None and further.metrics["steps"] == 10
    run(model, tmp_path / "straight", some(model, 20), recipe, rules=OFF)
    assert [m.loss for m in read_metrics(tmp_path / "run")] == [
        m.loss for m in read_metrics(tmp_path / "straight" / "run")
    ]


def test_figures_of_whole_answers() -> None:
    assert self_similarity([(1, 2, 3), (1, 2, 3)]) == 1.0
    assert self_similarity([(1, 2, 3, 4), (9, 2, 8, 4)]) == pytest.approx(0.5)  # 2 of 4 in order, on both sides
    assert self_similarity([(1,)]) == 0.0


def test_fresh_answers_are_described(model: str, tmp_path: Path) -> None:
    result = run(model, tmp_path, some(model, 4), sdpo_interactions(**{**QUICK, "epochs": 1, "fresh": 2}))
    figures = read_generation_metrics(tmp_path / "run")
    assert figures == result.metrics["answers"]
    assert [f["pass"] for f in figures] == [1, 2] and all(f["answers"] == 4 for f in figures)
    assert all(0 < f["length_ratio"] <= 2 and 0 <= f["self_similarity"] <= 1 for f in figures)


def test_log_probabilities_are_compared_only_where_they_may_be(model: str) -> None:
    turn = example(model, 1, text="ab").turn
    n = len(turn.completion_ids or ())
    good = dataclasses.replace(turn, logprobs=(-1.0,) * n, sampling={**PLAIN, "max_tokens": 8})
    assert sampler_logprobs(good) == ((-1.0,) * n, None)
    one = dataclasses.replace(good, logprobs=(-1.0, None, float("inf")))
    values, why = sampler_logprobs(one)
    assert why is None and values[0] == -1.0 and all(v != v for v in values[1:])
    for change, reason in (
        ({"logprobs": None}, "reported no"),
        ({"logprobs": (-1.0,)}, "1 log-probabilities for 3"),
        ({"sampling": {**PLAIN, "temperature": 0.7}}, "temperature=0.7"),
        ({"sampling": {**PLAIN, "top_p": 0.9}}, "top_p=0.9"),
        ({"sampling": {**PLAIN, "top_k": 20}}, "top_k=20"),
        ({"sampling": {**PLAIN, "guided_regex": "a+"}}, "guided_regex=a+"),
        ({"sampling": {"temperature": 1.0}}, "left top_p unset"),
        ({"logprobs": (None, float("nan"), float("-inf"))}, "missing or not finite"),
    ):
        values, why = sampler_logprobs(dataclasses.replace(good, **change))
        assert reason in (why or "") and all(v != v for v in values)


def sampled(**options: Any) -> Recipe:
    """A policy gradient on what the user said of the answer."""
    from afterword.learn.parts.advantages import FeedbackPolarity

    term = Term(
        name="pg",
        estimator=NegativeLogLikelihood(),
        teacher=None,
        context=CONTEXTS["none"],
        advantage=FeedbackPolarity(),
        policy_clip=PPOClip(),
    )
    return Recipe(name="pg", terms=(term,), **{**QUICK, **options})


def test_answers_without_log_probabilities_are_counted_where_they_are_needed(model: str, tmp_path: Path) -> None:
    with_them = [
        Example(e.interaction, dataclasses.replace(e.turn, logprobs=(-2.0,) * len(e.turn.completion_ids or ())))
        for e in some(model, 2)
    ]
    result = run(model, tmp_path, [*with_them, *some(model, 5)[2:]], sampled())
    assert result.metrics["left_out"] == {"no_logprobs": 3}
    assert result.metrics["interactions"] == 2
    step = read_metrics(tmp_path / "run")[0]
    assert step.known == 1.0 and step.ratio is not None and step.serve_gap is not None
    assert "ours minus theirs" in (tmp_path / "run" / "alignment.txt").read_text()


def shorter(turn: Turn, text: str) -> float:
    """A verifier: the shorter the better."""
    return -float(len(text))


def test_groups_of_fresh_answers_judged_by_a_verifier(model: str, tmp_path: Path) -> None:
    recipe = sampled(epochs=0, fresh=1, num_generations=4, lr=1e-2, verifier=f"{__name__}:shorter")
    term = dataclasses.replace(recipe.terms[0], advantage=GroupBaseline("leave_one_out"))
    result = run(model, tmp_path, some(model, 3), dataclasses.replace(recipe, terms=(term,)))
    steps = read_metrics(tmp_path / "run")
    assert result.metrics["steps"] == len(steps) == 3 and sum(m.interactions for m in steps) == 12
    assert steps[0].ratio == pytest.approx(1.0, abs=1e-3) and any(m.grad_norm > 0 for m in steps)
    with pytest.raises(ConfigError, match="cannot be imported"):
        run(model, tmp_path / "no", some(model, 3), dataclasses.replace(recipe, verifier="nowhere:judge"))


def test_gold_answers_are_imitated_beside(model: str, tmp_path: Path) -> None:
    from afterword.learn.parts.anchors import gold_mix

    gold = example(model, 90, hindsight="", text="A good answer", prompt_ids=None, completion_ids=None)
    gold = Example(dataclasses.replace(gold.interaction, kind="gold"), gold.turn)
    made = sdpo_interactions(**{**QUICK, "epochs": 1, "fresh": 1})
    recipe = dataclasses.replace(made, terms=(*made.terms, gold_mix(1.0)))
    result = run(model, tmp_path, [*some(model, 3), gold], recipe)
    assert result.metrics["interactions"] == 4
    steps = read_metrics(tmp_path / "run")
    assert steps[0].terms["anchor_gold"] > 0 and steps[1].terms["anchor_gold"] > 0  # also in the pass of fresh answers
    rows = prepare([gold], load_tokenizer(model), recipe, limit=512, vocabulary=259).rows
    assert rows[0].answer.kind == "gold" and not rows[0].privileged


def test_what_users_were_content_with_is_held_without_words(model: str, tmp_path: Path) -> None:
    liked = example(model, 90, hindsight="", text="A good answer")
    liked = Example(dataclasses.replace(liked.interaction, kind="accepted", polarity=1), liked.turn)
    given = [*some(model, 3), liked]
    held = sdpo_interactions(**{**QUICK, "epochs": 1, "fresh": 1, "hold": 0.5})
    result = run(model, tmp_path / "held", given, held)
    assert result.metrics["interactions"] == 4 and not result.excluded
    steps = read_metrics(tmp_path / "held" / "run")
    assert all(m.terms["anchor_gold"] > 0 and m.terms["hindsight"] > 0 for m in steps)
    plain = run(model, tmp_path / "plain", given, sdpo_interactions(**{**QUICK, "epochs": 1, "fresh": 1}))
    assert [left["reason"] for left in plain.excluded] == ["no_hindsight"]
    alone = run(
        model, tmp_path / "alone", [liked], held
    )  # nothing but praise: it is imitated, no fresh answers are due
    assert alone.metrics["interactions"] == 1
    assert {m.terms["hindsight"] for m in read_metrics(tmp_path / "alone" / "run")} == {0.0}


def test_the_served_log_probabilities_are_in_the_alignment_report(model: str, tmp_path: Path) -> None:
    examples = [
        Example(e.interaction, dataclasses.replace(e.turn, logprobs=(-2.0,) * len(e.turn.completion_ids or ())))
        for e in some(model, 2)
    ]
    run(model, tmp_path, examples, sdpo_interactions(**QUICK))
    text = (tmp_path / "run" / "alignment.txt").read_text()
    assert "ours minus theirs" in text
    assert json.loads((tmp_path / "run" / "signal.json").read_text())["n"] == 2


def test_a_sampled_estimator_leaves_out_what_was_not_sampled_from_the_model(model: str, tmp_path: Path) -> None:
    """The same tokens under another temperature are no samples of the student: the expected gradient is another one."""
    tokenizer, offline = load_tokenizer(model), recipe("sdpo-interactions-offline")
    given = [example(model, i, sampling={**PLAIN, "temperature": t}) for i, t in enumerate((1.0, 0.7, 0.0))]
    given.append(example(model, 3, sampling={}))
    prepared = prepare(given, tokenizer, offline, limit=512, vocabulary=259)
    assert [r.interaction for r in prepared.rows] == ["int-0"] and dict(prepared.reasons) == {"other_sampling": 3}
    exact = prepare(given, tokenizer, recipe("follow-ups"), limit=512, vocabulary=259)
    assert len(exact.rows) == 4  # a divergence over the whole vocabulary does not ask how a token was drawn
    batch = rows_of(exact.rows)
    assert offline.terms[0].keep(batch)[batch.row > 0].sum() == 0
