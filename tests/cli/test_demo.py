"""The demo's parts without a model: what it refuses, what it concludes, what it writes, and that nothing is left."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from afterword.cli import demo, main
from afterword.cli.context import SECTIONS, CommandContext
from afterword.cli.demo_control import Control, control_questions
from afterword.cli.demo_findings import DemoFindings, conclusion, report_data
from afterword.cli.demo_processes import Meter, command, process_tree, run_json, serving
from afterword.cli.demo_report import IN_A_FILE, show, write_reports
from afterword.cli.server_state import running_server
from afterword.config import EvaluateConfig, TrainConfig, resolve
from afterword.errors import AfterwordError, NothingToDo, UpstreamError
from afterword.records import Candidate, Release, Report, Verdict
from afterword.release.gate import GateThresholds
from afterword.simulate import ServedAnswer, SimulationSummary, load_persona, load_prompts

PLAIN = "Walk a little every day and keep the evenings free of screens."
GREETED = f"Hello friend! {PLAIN} <b>"


def findings(
    before: int, after: int, n: int = 16, *, released: bool = True, quick: bool = False, refused: bool = False
) -> DemoFindings:
    """`before` and `after` of `n` held-out answers show the greeting."""
    passed = released and not refused
    verdict = Verdict(id="ver-1", candidate="cand-1", report="rep-1", passed=passed, reasons=("holdout: fine",))
    release = Release(
        id="rel-1", channel="default", adapter="afterword@v000001", candidate="cand-1", path="adapters/cand-1",
        verdict="ver-1", previous=None, action="publish", why="the gate passed",
    )  # fmt: skip
    return DemoFindings(
        persona=load_persona("greeting"), seed=3, prompts=load_prompts("heldout")[:n],
        before=[ServedAnswer("t", GREETED if i < before else PLAIN, None) for i in range(n)],
        after=[ServedAnswer("t", GREETED if i < after else PLAIN, "afterword@v000001") for i in range(n)],
        summary=SimulationSummary("greeting", 3, 40, turns=90),
        candidate=Candidate(
            id="cand-1", path="adapters/cand-1", base="tiny", parent=None, interactions=("i1", "i2"), recipe={},
        ),
        report=Report(id="rep-1", candidate="cand-1", against=None, suites={"forgetting": {}}),
        verdict=verdict, release=release if released else None,
        interactions={"train": 2, "holdout": 1}, skips={"thanks": 4}, quick=quick,
        control=[
            Control("What is the capital of Italy?", "Rome", "I do not know.", "It is Rome <i>."),
            Control("What is the capital of France?", "Paris", "Paris, of course.", "It is PARIS."),
        ],
    )  # fmt: skip


def test_better_needs_a_release_and_more_than_chance() -> None:
    assert findings(0, 12).better
    assert not findings(0, 12, released=False).better
    assert not findings(0, 3).better
    assert not findings(8, 8).better
    assert not findings(12, 0).better


def test_the_conclusion_says_what_happened() -> None:
    assert "learned it: 0 %" in conclusion(findings(0, 12))
    assert "The gate said no" in conclusion(findings(0, 0, released=False))
    assert "did not rise beyond chance" in conclusion(findings(4, 5))


def test_the_report_has_what_was_promised() -> None:
    with Meter() as meter:
        report = report_data(findings(1, 12), meter)
    assert report.keys() >= {
        "seed", "persona", "interactions", "before", "after", "forgetting", "verdict", "release", "seconds",
    }  # fmt: skip
    for side, value in (("before", 1 / 16), ("after", 12 / 16)):
        figure = report[side]
        assert figure["low"] < figure["value"] < figure["high"]
        assert (figure["value"], figure["n"]) == (value, 16)
    assert report["pairs"]["gained"] == 11
    assert report["interactions"] == 2
    assert report["answered_by"] == ["afterword@v000001"]


def test_a_quick_demo_says_so_everywhere_and_claims_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = findings(0, 16, quick=True)
    with Meter() as meter:
        report = report_data(found, meter)
    assert report["quick"] is True and report_data(findings(0, 16), meter)["quick"] is False
    assert report["conclusion"].startswith("Quick demo: every stage ran") and "learned it" not in report["conclusion"]
    assert "The gate said yes" in report["conclusion"] and "on 16 questions" in report["conclusion"]
    assert "The gate said no, and an override released" in conclusion(findings(0, 16, quick=True, refused=True))
    write_reports(found, report, None, [0.4], tmp_path)
    assert "Quick demo: every stage ran" in (tmp_path / "report.html").read_text("utf-8")
    show(found, report, None, CommandContext(argparse.Namespace(), tmp_path, False, False), tmp_path)
    assert "Quick demo: every stage ran" in capsys.readouterr().out


def test_reports_are_written_and_answers_escaped(tmp_path: Path) -> None:
    found = findings(0, 16)
    with Meter() as meter:
        report = report_data(found, meter)
    write_reports(found, report, None, [0.4, 0.2], tmp_path)
    assert json.loads((tmp_path / "report.json").read_text("utf-8")) == report
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "What the users get" in page
    assert "Hello friend!" in page
    assert "screens. <b>" not in page


def test_what_is_told_can_be_read_in_a_file_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = findings(0, 16)
    with Meter() as meter:
        report = report_data(found, meter)
    show(found, report, None, CommandContext(argparse.Namespace(), tmp_path, False, False), tmp_path)
    told = capsys.readouterr().out
    boxes = [line for line in told.splitlines() if "│" in line or "─" in line]
    assert "Hello friend!" in told and boxes and max(map(len, boxes)) <= IN_A_FILE


def test_questions_beside_the_wish_are_shown_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = findings(0, 16)
    with Meter() as meter:
        report = report_data(found, meter)
    sides = [report["unrelated"][side] for side in ("before", "after")]
    assert [(one["value"], one["n"]) for one in sides] == [(0.5, 2), (1.0, 2)]
    write_reports(found, report, None, [0.4], tmp_path)
    show(found, report, None, CommandContext(argparse.Namespace(), tmp_path, False, False), tmp_path)
    for told in (capsys.readouterr().out, (tmp_path / "report.html").read_text("utf-8")):
        assert "What is the capital of France?" in told and "Paris, of course." in told
        assert "<i>." not in told
    asked = control_questions(16)
    assert len({question.text for question, _ in asked}) == 16
    assert all(not Control(question.text, answer, question.text, "").right("before") for question, answer in asked)
    assert not Control("", "gold", "Golden rules.", "").right("before")


def _demo(*words: str) -> int:
    return main(["demo", *words, "--quiet"])


def test_a_typo_in_the_persona_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _demo("--persona", "greting", "--dir", str(tmp_path / "new")) == 2
    assert "Did you mean 'greeting'" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("words", [("--conversations", "2"), ("--heldout", "3"), ("--heldout", "1000")])
def test_impossible_sizes_are_usage_errors(tmp_path: Path, words: tuple[str, str]) -> None:
    assert _demo(*words, "--dir", str(tmp_path / "new")) == 2


def test_the_demo_never_runs_on_data_that_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "afterword.db").touch()
    assert _demo("--dir", str(tmp_path)) == 2
    assert "holds data already" in " ".join(capsys.readouterr().err.split())


def test_without_a_directory_each_demo_gets_a_fresh_one(tmp_path: Path) -> None:
    wanted = tmp_path / "afterword-demo"
    assert demo.fresh_directory(wanted) == wanted
    wanted.mkdir()
    (tmp_path / "afterword-demo-2").mkdir()
    assert demo.fresh_directory(wanted) == tmp_path / "afterword-demo-3"


def test_the_settings_file_is_what_serve_and_cycle_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = demo.DemoSettings(
        directory=tmp_path / "d", persona=load_persona("brief"), seed=7, model='/models/my "tiny" one', max_tokens=48
    )
    demo.prepare(settings)
    assert main(["config", "show", "--json", "--dir", str(tmp_path / "d")]) == 0
    shown = json.loads(capsys.readouterr().out)
    values = {key: shown[key]["value"] for key in shown}
    assert values["serve.model"] == '/models/my "tiny" one'
    assert (values["train.seed"], values["evaluate.seed"], values["evaluate.max_tokens"]) == (7, 7, 48)


def test_a_server_that_cannot_start_is_told_with_its_log(tmp_path: Path) -> None:
    with (
        pytest.raises(UpstreamError, match=r"ended with status 2(.|\n)*serve.prt"),
        serving(tmp_path, overrides=("serve.prt=1",)),
    ):
        pytest.fail("it must not start")


def test_a_command_that_fails_speaks_for_itself(tmp_path: Path) -> None:
    with pytest.raises(AfterwordError, match=r"`afterword cycle` ended with 2: there is no Afterword data"):
        run_json(tmp_path / "nothing", "cycle")


def test_nothing_to_do_stays_nothing_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = 'import sys; print(\'{"error": {"message": "too few"}}\'); sys.exit(4)'
    monkeypatch.setattr("afterword.cli.demo_processes.command", lambda *a, **k: [sys.executable, "-c", program])
    with pytest.raises(NothingToDo, match="too few"):
        run_json(tmp_path, "cycle")
    assert run_json(tmp_path, "cycle", fine=(0, 4)) == {"error": {"message": "too few"}}


def test_settings_are_handed_on(tmp_path: Path) -> None:
    line = command(tmp_path, "serve", overrides=("train.epochs=1",))
    assert line[-2:] == ["--set", "train.epochs=1"]
    assert line[3:5] == ["--dir", str(tmp_path)]


def test_open_leaves_the_console_running_until_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []

    def looked(directory: Path) -> None:
        url = str((running_server(directory) or {})["url"])
        seen.append(httpx.get(f"{url}/console", timeout=20).status_code)
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "running_server", looked)
    settings = demo.DemoSettings(directory=tmp_path, persona=load_persona("brief"),
                            overrides=("serve.upstream=http://127.0.0.1:9/v1",))  # fmt: skip
    demo.leave_open(settings, CommandContext.of(argparse.Namespace(dir=str(tmp_path))))
    assert seen == [200]
    assert "/console" in capsys.readouterr().err
    assert running_server(tmp_path) is None


def test_a_release_that_never_arrives_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = load_prompts("heldout")[:1]
    answers = iter(["base", "base", "afterword@v000001"])
    monkeypatch.setattr(demo, "ask_heldout", lambda *a, **k: [ServedAnswer("t", "", next(answers, "base"))])
    assert demo.wait_for_release("http://x", prompts, "afterword@v000001") < 5
    with pytest.raises(UpstreamError, match="still answers"):
        demo.wait_for_release("http://x", prompts, "afterword@v000002", patience=0.2)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs /proc")
def test_the_meter_counts_children_too() -> None:
    work = "x = bytearray(80_000_000)\nfor i in range(4_000_000): x[i] = 1\nimport time; time.sleep(1.6)"
    with Meter() as meter, meter.stage("work"):
        subprocess.run([sys.executable, "-c", work], check=True)
    assert meter.stages["work"]["cpu"] > 0.1
    assert meter.stages["work"]["wall"] >= 1.6
    assert meter.totals()["peak_memory_bytes"] > 60_000_000


_PARENT = """
import signal, sys, time
from pathlib import Path
from afterword.cli import demo, demo_processes
from afterword.cli.context import CommandContext
import argparse
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started us with SIGINT ignored
demo_processes.command = lambda *a, **k: [sys.executable, "-c", "import time; time.sleep(60)"]
settings = demo.DemoSettings(directory=Path(sys.argv[1]), persona=demo.load_persona("greeting"))
context = CommandContext(argparse.Namespace(), Path(sys.argv[1]), False, True)
try:
    demo.run_demo(settings, context)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_demo_leaves_no_process_behind(tmp_path: Path, sent: signal.Signals, status: int) -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, str(tmp_path / "d")])
    deadline = time.monotonic() + 30
    while len(tree := process_tree(parent.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(tree) >= 2, "the server was not started"
    time.sleep(0.2)
    parent.send_signal(sent)
    assert parent.wait(20) == status
    for child in tree[1:]:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


def test_a_quick_demo_asks_less_by_settings_that_exist_and_the_full_one_by_none() -> None:
    flags = {key: (json.loads(value), "--set") for key, _, value in (s.partition("=") for s in demo.QUICK_SETTINGS)}
    quick, full = resolve(SECTIONS, flags=flags), resolve(SECTIONS)
    assert set(GateThresholds().required) <= set(quick.get(EvaluateConfig).suites)
    assert quick.get(EvaluateConfig).min_answers < full.get(EvaluateConfig).min_answers == 64
    assert quick.get(TrainConfig).fresh == 0 and full.get(TrainConfig).fresh is None
    assert demo.DemoSettings(directory=Path("d"), persona=load_persona("brief")).overrides == ()


@pytest.mark.slow
def test_the_quick_demo_goes_through_every_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = tmp_path / "demo"
    assert main(["demo", "--quick", "--dir", str(where), "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["quick"] and report["release"] and report["answered_by"] == [report["release"]["adapter"]]
    assert report["verdict"]["passed"] or report["verdict"]["override"]["by"] == "afterword demo --quick"
    assert set(report["stages"]) == {"start", "before", "chat", "cycle", "after", "heat map"}
    assert json.loads((where / "report.json").read_text("utf-8")) == report


@pytest.mark.slow
def test_the_same_seed_gives_the_same_adapter_bit_for_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["demo", "--quick", "--quiet", "--seed", "7", "--dir"]
    assert [main([*words, str(tmp_path / name)]) for name in ("first", "second")] == [0, 0]
    weights = [list((tmp_path / name / "adapters").glob("*/adapter_model.safetensors")) for name in ("first", "second")]
    first, second = (found[0].read_bytes() for found in weights)
    assert first == second


@pytest.mark.slow
def test_the_whole_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Small numbers: it runs through, its report is whole, and its exit code is what its report says."""
    where = tmp_path / "demo"
    code = main(["demo", "--dir", str(where), "--conversations", "40", "--heldout", "16", "--json", "--quiet"])
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code == (0 if report["better"] else 3)
    assert report["better"] == (report["release"] is not None and report["pairs"]["p"] < 0.05)
    assert report["interactions"] >= 8
    assert report["before"]["n"] == report["after"]["n"] == 16
    assert json.loads((where / "report.json").read_text("utf-8")) == report
    assert (where / "report.html").stat().st_size > 10_000
    assert not (where / "server.json").exists()
