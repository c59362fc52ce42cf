"""One record of each kind for the tests of this room."""

from __future__ import annotations

from typing import Any

from afterword.records import (
    Alarm,
    AnswerAdvantages,
    Candidate,
    Episode,
    EpisodeEnd,
    Feedback,
    Interaction,
    Prediction,
    PredictionOutcome,
    Record,
    Release,
    Report,
    Review,
    Revision,
    RoundAttempt,
    SignalRatio,
    Skip,
    TaskSkill,
    Turn,
    Verdict,
    WorkRequest,
)


def turn(name: str = "t1", **extra: Any) -> Turn:
    values: dict[str, Any] = {
        "id": name, "messages": ({"role": "user", "content": "Hi"},), "answer": {"role": "assistant", "content": "Yo"},
    }  # fmt: skip
    return Turn(**{**values, **extra})


def interaction(name: str = "i1", of: str = "t1", feedback: tuple[str, ...] = ("f1",), **extra: Any) -> Interaction:
    values: dict[str, Any] = {
        "id": name, "turn": of, "feedback": feedback, "kind": "follow_up", "hindsight": "Shorter.", "polarity": -1,
        "weight": 1.0, "split": "train",
    }  # fmt: skip
    return Interaction(**{**values, **extra})


SPINE: tuple[Record, ...] = (
    turn(prompt_ids=(1, 2), completion_ids=(3,), logprobs=(-0.5,), episode_id="ep1", episode_index=0),
    Episode(id="ep1", task_id="walk/7", seed=7, harness="h", user="ada", metadata={"level": 2}),
    Feedback(id="f1", turn="t1", kind="follow_up", text="Shorter."),
    interaction(spans=((0, 2), (3, 3)), redacted=("email",), scope="user"),
    Skip(id="s1", feedback="f0", turn="t1", reason="thanks", detail="it only says thanks"),
    Candidate(id="k1", path="adapters/k1", base="m", parent=None, interactions=("i1",), recipe={"name": "r"}),
    Report(id="r1", candidate="k1", against=None, suites={"holdout": {"n": 3}}, examples=({"a": 1},)),
    Verdict(id="v1", candidate="k1", report="r1", passed=True, reasons=("better",)),
    Release(id="l1", channel="default", adapter="a@v000001", candidate="k1", path="adapters/k1", verdict="v1",
            previous=None, action="publish", why="the gate passed"),
)  # fmt: skip
"""A whole spine, in order."""

BESIDE: tuple[Record, ...] = (
    Review(id="w1", interaction="i1", decision="reject", by="ada", why="a quotation"),
    SignalRatio(id="e1", interaction="i1", model="m", real=0.6, shuffled=0.3, neutral=0.1, tokens=4),
    Revision(id="n1", interaction="i1", model="m", text="Six.", draft_score=-0.9, score=-0.4, kept=True),
    AnswerAdvantages(id="x1", interaction="i1", model="m", tokens=("Six",), without=(-0.5,), with_hindsight=(-0.9,)),
    WorkRequest(id="q1", interaction="i1", kind="heatmap", by="ada"),
    Alarm(id="a1", channel="default", release="l1", adapter="a@v000001", against=None, why="approval fell"),
    RoundAttempt(id="t1", settings="5e", interactions=("i1",), stage="training", error="nothing_to_do"),
    Prediction(
        id="p1",
        base_hash="f7",
        unit="nats",
        context="appended",
        advice="train",
        says="train: gain 0.2",
        gain={"value": 0.2, "low": 0.1, "high": 0.3, "n": 9},
        gate_probability=0.7,
        prompts=32,
    ),
    PredictionOutcome(id="o1", prediction="p1", candidate="c1", report="r1", gain=0.18, passed=True),
    EpisodeEnd(id="e9", episode="ep1", status="finished", ended_at=9.0, metrics={"steps": 3}),
    TaskSkill(id="sk1", task="walk/7", episode="ep1", text="Go east first.", user="ada"),
)
"""One note of each kind."""
