"""The judge, over real HTTP: an honest one, one that looks at the place only, one that babbles, one that hangs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from afterword.config import EvaluateConfig
from afterword.errors import UsageError
from afterword.evaluate.run import evaluate_candidate
from afterword.evaluate.scoring.choice import read_choice
from afterword.evaluate.scoring.judge import Judged, _Asker
from afterword.evaluate.scoring.task_checks import check_of
from afterword.records import Json, Report
from afterword.release.gate import GateThresholds, decide

from .conftest import FakeServer, Reply, candidate, held

Serve = Callable[[Reply], FakeServer]
Opinion = Callable[[str], str]


@contextmanager
def judging(opinion: Opinion, refused: str = "", cut: bool = False) -> Iterator[tuple[str, list[str]]]:
    """An OpenAI-compatible server whose model says `opinion(question)`; gives its URL and the questions. It may
    refuse a field of the request, or cut its answer at the length that was asked for (in words)."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body["messages"][-1]["content"])
            said, most = opinion(asked[-1]), body.get("max_tokens") or body.get("max_completion_tokens")
            words = said.split(" ")
            finish = "length" if cut and most and len(words) > most else "stop"
            message = {"role": "assistant", "content": " ".join(words[:most]) if cut else said}
            found: Json = {"choices": [{"message": message, "finish_reason": finish}], "model": "j"}
            bad = refused and refused in body
            if bad:
                found = {
                    "error": {"message": f"Unsupported parameter: '{refused}'", "param": refused, "code": "unsupported"}
                }
            answer = json.dumps(found).encode()
            self.send_response(400 if bad else 200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def measure(tiny: str, adapter: Path, judge: str, cache: Path | None = None, **settings: Any) -> Report:
    return evaluate_candidate(
        candidate=candidate(), candidate_path=adapter, served_path=None, served_candidate=None,
        interactions=[held(i) for i in range(8)], model=tiny, upstream="http://127.0.0.1:1", suites=["holdout"],
        settings=EvaluateConfig(judge=judge, **settings), cache=cache,
    )  # fmt: skip


@pytest.fixture
def arms(serve: Serve) -> FakeServer:
    """The candidate's answers say "better"."""
    return serve(lambda arm, question: (f"{'better' if arm == 'small' else 'worse'} answer to {question}", "stop"))


def likes_better(question: str) -> str:
    first, second = question.split("[Answer A]")[1].split("[Answer B]")
    return "A" if "better" in first else "B" if "better" in second else "TIE"


def figures(report: Report) -> Json:
    return report.suites["holdout"]  # type: ignore[no-any-return]


def test_an_honest_judge_is_asked_in_both_orders_and_only_once(
    tiny: str, adapters: dict[str, Path], arms: FakeServer, tmp_path: Path
) -> None:
    with judging(likes_better) as (url, asked):
        report = measure(tiny, adapters["small"], url, tmp_path)
        found = figures(report)
        assert found["judge"]["value"] == found["judge"]["high"] == 1.0 and found["judge"]["low"] > 0.3
        assert (found["judge_wins"]["value"], found["judge_bias"]["value"], found["judge_failed"]["value"]) == (8, 0, 0)
        assert found["judge_p"]["value"] == pytest.approx(2 / 2**8) and len(asked) == 16
        assert "Shorter, please." in asked[0] and report.examples[0]["judge_candidate"] == 1.0
        assert figures(measure(tiny, adapters["small"], url, tmp_path))["judge"] == found["judge"]
        assert len(asked) == 16
    assert "judge_key" not in report.about["settings"]


def test_a_judge_that_only_sees_the_place_decides_nothing(
    tiny: str, adapters: dict[str, Path], arms: FakeServer
) -> None:
    with judging(lambda question: "Answer: A.") as (url, _):
        found = figures(measure(tiny, adapters["small"], url))
    assert found["judge"]["value"] == 0.0 and found["judge_ties"]["value"] == 8
    assert found["judge_bias"]["value"] == 1.0 and found["judge_failed"]["value"] == 0.0


def test_a_judge_that_babbles_is_given_up_and_the_verdict_is_no(
    tiny: str, adapters: dict[str, Path], arms: FakeServer
) -> None:
    with judging(lambda question: "Both answers have their merits, and A is") as (url, asked):
        report = measure(tiny, adapters["small"], url)
    assert "judge" not in figures(report) and figures(report)["judge_failed"]["value"] == 1.0
    assert 6 <= len(asked) <= 10 < 16
    reasons = decide(report, GateThresholds(required=())).reasons
    assert any(r.startswith("Pairs that the judge left undecided: 100.0 %") and r.endswith(": no") for r in reasons)


@pytest.mark.parametrize("refused", ["max_tokens", "temperature", "seed"])
def test_a_judge_that_refuses_a_field_is_asked_without_it(
    tiny: str, adapters: dict[str, Path], arms: FakeServer, refused: str
) -> None:
    with judging(likes_better, refused=refused) as (url, asked):
        found = figures(measure(tiny, adapters["small"], url))
    assert found["judge"]["value"] == 1.0 and found["judge_failed"]["value"] == 0.0
    assert 16 < len(asked) < 32, "what was learned from a refusal is remembered"


def test_a_judge_that_thinks_first_gets_the_room_for_it(tiny: str, adapters: dict[str, Path], arms: FakeServer) -> None:
    thought = "<think>\n" + "Let me compare both answers once more. " * 8 + "\n</think>\n\n"
    with judging(lambda question: thought + likes_better(question), cut=True) as (url, _):
        found = figures(measure(tiny, adapters["small"], url))
    assert found["judge"]["value"] == 1.0 and found["judge_failed"]["value"] == 0.0


def test_a_judge_that_hangs_costs_its_time_and_not_more(tiny: str, adapters: dict[str, Path], arms: FakeServer) -> None:
    done = threading.Event()
    with judging(lambda question: str(done.wait(20))) as (url, _):
        started = time.monotonic()
        report = measure(tiny, adapters["small"], url, judge_timeout=0.2)
        spent = time.monotonic() - started
        done.set()
    assert figures(report)["judge_failed"]["value"] == 1.0 and spent < 15
    assert figures(report)["hindsight_kl_drop"]["n"] == 8  # the rest of the suite stands


def test_a_judge_that_is_not_there(tiny: str, adapters: dict[str, Path], arms: FakeServer) -> None:
    report = measure(tiny, adapters["small"], "http://127.0.0.1:9")
    assert figures(report)["judge_failed"]["value"] == 1.0 and not decide(report, GateThresholds(required=())).passed


@pytest.mark.parametrize(
    ("text", "choice"),
    [("A", "A"), ("b.", "B"), ("TIE", "TIE"), ('{"winner": "B"}', "B"), ("**A**", "A"), ("Verdict: tie", "TIE"),
     ("", None), ("Apple", None), ("I prefer A", "A"), ("Neither", None), ("AB", None),
     ("**Answer: B**", "B"), ("Answer A is better, because it is shorter.", "A"), ("The winner is B.", "B"),
     ("<think>\nA has 90 characters, B is better.\n</think>\n\nA", "A"), ("<think>\nA is better, but", None),
     ("They asked for brevity.\n\nB", "B"), ("\\boxed{A}", "A"), ("[[B]]", "B"),
     ("A better answer names its source.", None),
     ("A is not better than B", None), ("A is better. No, B is better.", None), ("B wins", "B"),
     ("Both are good: A and B", None),
     ("My verdict: TIE", "TIE"), ("B - it does what was asked", "B"), ("A\n\nIt is shorter.", "A"),
     ("Both are fine.\nWinner: B because it is shorter.", "B"), ("It is a tie.", "TIE"), ("It is not a tie.", None),
     ("Answer A is better than answer B because it is short.", "A"), ("The user would rather have A.", "A"),
     ("I would choose B.", "B"), ("I would not choose B.", None), ("I don't prefer A.", None)],
)  # fmt: skip
def test_how_the_judges_word_is_read(text: str, choice: str | None) -> None:
    assert read_choice(text) == choice


def test_two_orders_that_contradict_each_other_are_a_tie() -> None:
    assert Judged("B", "A").preference == 1.0 and Judged("A", "B").preference == -1.0
    assert Judged("A", "A").preference == 0.0 and Judged("A", "A").same_place
    assert Judged("TIE", "A").preference == 0.0 and not Judged("TIE", "TIE").same_place
    assert Judged("A", None).preference is None


# ---- programs that decide


@pytest.mark.parametrize(
    ("spec", "good", "bad"),
    [
        ("json", '```json\n{"a": 1}\n```', "{a: 1}"),
        ("python", "Here:\n```python\nx = 1\n```", "```python\nx = = 1\n```"),
        ("regex:^Dear \\w+", "Dear Ada, hello", "Hello"),
        ('command:grep -q "answer.*forty"', "It is forty-two", "It is 7"),
    ],
)
def test_programs_decide_answers(spec: str, good: str, bad: str) -> None:
    check = check_of(spec)
    assert (check(held(1), good), check(held(1), bad)) == (1.0, 0.0)


@pytest.mark.parametrize("spec", ["", "yaml", "regex:", "regex:(", "command:"])
def test_a_program_that_is_none(spec: str) -> None:
    with pytest.raises(UsageError, match=r"evaluate\.checks"):
        check_of(spec)


def test_tasks_have_their_programs_and_a_loss_is_a_no(tiny: str, adapters: dict[str, Path], serve: Serve) -> None:
    serve(lambda arm, question: ("{}" if arm == "base" else "Here you are.", "stop"))
    items = [held(i, task="extract" if i % 2 else None) for i in range(8)]
    report = evaluate_candidate(
        candidate=candidate(), candidate_path=adapters["small"], served_path=None, served_candidate=None,
        interactions=items, model=tiny, upstream="http://127.0.0.1:1", suites=["holdout"],
        settings=EvaluateConfig(checks={"extract": "json"}),
    )  # fmt: skip
    found = figures(report)
    assert found["checks"] == pytest.approx({"value": -1.0, "low": -1.0, "high": -0.02, "n": 4}, abs=0.01)
    assert report.examples[1]["check_served"] == 1.0 and "check_served" not in report.examples[0]
    assert any("tasks' programs accept" in r for r in decide(report).reasons if r.endswith(": no"))
    gone = evaluate_candidate(
        candidate=candidate(), candidate_path=adapters["small"], served_path=None, served_candidate=None,
        interactions=items, model=tiny, upstream="http://127.0.0.1:1", suites=["holdout"],
        settings=EvaluateConfig(checks={"extract": "command:/no/such/program"}),
    )  # fmt: skip
    assert "cannot be started" in gone.suites["holdout"]["error"]


@pytest.mark.parametrize(
    ("said", "choice"),
    [
        ("The second answer is better because it is shorter.", "B"),
        ("I prefer the first answer.", "A"),
        ("Answer 2 is clearly better.", "B"),
        ("I would go with the latter.", "B"),
        ("Both answers are equally good.", "TIE"),
        ("Neither answer is better.", "TIE"),
        ("B ist die bessere Antwort, weil sie kürzer ist.", "B"),
        ("Ich bevorzuge Antwort A.", "A"),
        ("I prefer Answer A over Answer B.", "A"),
        ("I prefer Answer B over Answer A.", "B"),
        ("I prefer A over B", "A"),
        ("I prefer B to A.", "B"),
        ("I pick answer B instead of answer A.", "B"),
        ("I would choose answer A rather than answer B.", "A"),
        ("Compared to answer A, answer B is better.", "B"),
        ("A beats B", "A"),
        ("I do not prefer A over B.", None),
        ("Unentschieden.", "TIE"),
        ("La respuesta B es mejor.", "B"),
        ("Je préfère A.", "A"),
        ("La risposta B è migliore.", "B"),
        ("A resposta A é melhor.", "A"),
        ("Ответ B лучше.", "B"),
        ("回答B更好，因为更简短。", "B"),
        ("两者一样好", "TIE"),
        ("我不选择A", None),
        ("回答Aが優れています。", "A"),
        ("同じくらい良いです。", "TIE"),
        ("B가 더 좋습니다.", "B"),
        ("คำตอบ B ดีกว่า", "B"),
        ('{"reason": "it is shorter", "winner": "B"}', "B"),
        ("<think>B is longer, and the user wants it short.</think>A", "A"),
        ("[THINK]Answer B is better", None),
        ("Antwort A ist gut, Antwort B auch.", None),
        ("The first answer is better in style, the second answer is better in content.", None),
        ("I can't decide between them because both are off topic.", None),
    ],
)
def test_a_choice_is_read_from_a_sentence(said: str, choice: str | None) -> None:
    assert read_choice(said) == choice


def test_an_undecided_judge_says_why(tiny: str, adapters: dict[str, Path], arms: FakeServer) -> None:
    with judging(lambda question: "Let me tell you about Ada's cats.") as (url, _):
        report = measure(tiny, adapters["small"], url)
    assert sum(report.about["judge_undecided"].values()) == 8
    assert "Ada's cats" in report.examples[0]["judge_undecided"]
    reasons = decide(report, GateThresholds(required=())).reasons
    (said,) = [reason for reason in reasons if reason.startswith("Pairs that the judge left undecided")]
    assert said.endswith("times: its answer chooses none of A, B and TIE): no") and "cats" not in said


def test_a_judge_that_rejects_without_saying_what_is_asked_more_and_more_plainly(
    tiny: str, adapters: dict[str, Path], arms: FakeServer
) -> None:
    asker = _Asker("m")
    body = asker.body("Which?")
    assert asker.adapt("invalid request", body) and [m["role"] for m in asker.body("Which?")["messages"]] == ["user"]
    assert asker.adapt("invalid request", asker.body("Which?")) and asker.body("Which?").keys() == {"model", "messages"}
    assert not asker.adapt("invalid request", asker.body("Which?"))
