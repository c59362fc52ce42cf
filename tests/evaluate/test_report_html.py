"""The pages: escaped, self-contained, whole, and telling the truth about what is missing."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from afterword.evaluate.report.heatmap import (
    ControlText,
    Heatmap,
    control_for,
    heatmap_fragment,
    heatmap_html,
    heatmap_of,
    heatmap_terminal,
    mean_size,
    measure_heatmap,
    measure_requested,
)
from afterword.evaluate.report.pages import curve, intervals
from afterword.evaluate.report.report_html import Section, render_report
from afterword.learn.token_advantage import TokenAdvantage
from afterword.records import AnswerAdvantages, Feedback, Report, Skip, Verdict, WorkRequest
from afterword.release.gate import decide
from afterword.store import Store

from .conftest import candidate, held

NASTY = "<script>alert('x')</script>&\"quoted\" </style> ]]> 😀 \u202e"


class Outline(HTMLParser):
    """Tags that must be closed are; collects text and tag names."""

    VOID = frozenset({"meta", "br", "line", "circle", "path", "img", "link"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs), attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert "script" not in parser.tags and not re.search(r"https?://|@import|url\(", page)
    return parser


def figure(value: float | None, low: float | None, high: float | None, n: int = 24) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": n}


def full_report(**suites: Any) -> Report:
    share = figure(0.1, 0.0, 0.3)
    found = {
        "holdout": {
            "gain": figure(0.2, 0.1, 0.3), "score_served": figure(-0.2, -0.3, -0.1), "wins": figure(9, 9, 9),
            "score_candidate": figure(0.0, -0.1, 0.1), "losses": figure(2, 2, 2), "sign_p": figure(0.07, 0.07, 0.07),
            f"{NASTY}_before": share, f"{NASTY}_after": share, NASTY: share,
        },
        "forgetting": {"drift": figure(0.1, None, None), "loss_rise": figure(-0.01, -0.02, 0.0)},
        "collapse": {"empty": share, "empty_served": share, "empty_candidate": share, "length_ratio": figure(1, 1, 1)},
        **suites,
    }  # fmt: skip
    examples = tuple(
        {
            "interaction": "i", "turn": "t", "prompt": NASTY, "messages": 1, "follow_up": NASTY, "final_text": None,
            "first_answer": NASTY, "before": NASTY, "after": "" if i % 2 else f"{NASTY} {i}",
            "score_served": 0.0, "score_candidate": i - 3.0,
        }
        for i in range(12)
    )  # fmt: skip
    about = {"adapter_hash": "a" * 32, "sampling": {"temperature": 0.0}, "seconds": 3.2}
    return Report(id="rep-1", candidate="cand-1", against=None, suites=found, examples=examples, about=about)


def verdict(**changes: Any) -> Verdict:
    given: dict[str, Any] = {
        "id": "ver-1", "candidate": "cand-1", "report": "rep-1", "passed": False,
        "reasons": (f"no: holdout: {NASTY}", "Empty answers: 0.0 points more: ok"), **changes,
    }  # fmt: skip
    return Verdict(**given)


def test_the_page_is_whole_self_contained_and_escaped() -> None:
    page = render_report(candidate(), full_report(), verdict(), losses=[0.5, float("nan"), 0.2, 0.1])
    found = outline(page)
    text = "".join(found.text)
    assert NASTY in text and text.index("The gate says no") < text.index("Holdout") < text.index("Answers side by side")
    assert "1 of 2 checks did not hold" in text
    assert found.tags.count("svg") >= 8 and "main" in found.tags
    assert "Changed for the better: 8" in text and "Changed for the worse: 3" in text and "1 did not change" in text
    assert "Interactions that need less correction: 9 · Interactions that need more correction: 2" in text
    assert "unknown" in text


def test_yes_no_and_override_say_so() -> None:
    yes = "".join(outline(render_report(candidate(), full_report(), verdict(passed=True))).text)
    assert "The gate says yes" in yes
    override = {"by": NASTY, "why": "because"}
    signed = "".join(outline(render_report(candidate(), full_report(), verdict(override=override))).text)
    assert f"Overridden by {NASTY}: because." in signed


def test_a_failed_suite_and_an_unknown_one_are_shown() -> None:
    report = full_report(holdout={"error": NASTY}, my_own={"canary_rank": figure(0.5, 0.4, 0.6)})
    text = "".join(outline(render_report(candidate(), report, verdict())).text)
    assert f"Failed: {NASTY}" in text and "canary rank" in text and "0.500" in text


def test_a_report_with_nothing_in_it() -> None:
    empty = Report(id="r", candidate="cand-1", against="cand-0", suites={})
    text = "".join(outline(render_report(candidate(), empty, verdict(reasons=()))).text)
    assert "cand-0" in text and "Answers side by side" not in text and "Training" not in text


def test_sections_of_the_caller_come_before_the_suites() -> None:
    page = render_report(candidate(), full_report(), verdict(), sections=[Section(NASTY, "<p id=mine>mine</p>")])
    assert "<p id=mine>mine</p>" in page
    text = "".join(outline(page).text)
    assert text.index("mine") < text.index("Holdout")


@pytest.mark.parametrize("values", [[], [1.0], [float("nan")] * 3, [2.0, 2.0], [0.3, float("inf"), 0.1]])
def test_curves_of_odd_values(values: list[float]) -> None:
    picture = curve(values, "steps")
    assert ("<svg" in picture) == (len([v for v in values if abs(v) < 1e9]) >= 2)
    assert "nan" not in picture and "inf" not in picture


def test_intervals_stay_inside_their_picture() -> None:
    inf = float("inf")
    picture = intervals([("served", (0.5, -inf, inf)), ("candidate", (9.0, -9.0, 0.2))], 0.0, 1.0, 0.0, NASTY)
    places = [float(x) for x in re.findall(r'(?:x1|x2|cx)="?([-\d.]+)', picture)]
    assert places and all(0 <= x <= 220 for x in places) and "<script" not in picture


TOKENS = [TokenAdvantage("Hello", -3.0, -0.5, 2.5), TokenAdvantage(f"{NASTY}\n", -0.1, -2.0, -1.9)]


def heat(**changes: Any) -> Heatmap:
    given: dict[str, Any] = {"turn": NASTY, "question": NASTY, "hindsight": NASTY, "tokens": TOKENS, **changes}
    return Heatmap(**given)


def test_the_heat_map_is_escaped_and_has_its_control_beside_it() -> None:
    both = heat(control_hindsight="Merci !", control=[TokenAdvantage("Hello", -3.0, -3.1, -0.1)])
    text = "".join(outline(heatmap_html(both)).text)
    assert NASTY in text and "Control" in text and "mean size 2.20 nats" in text and "mean size 0.10 nats" in text
    assert "with -0.50, without -3.00, advantage +2.50 nats" in heatmap_fragment(both)
    assert "Control" not in heatmap_fragment(heat())
    assert heat().to_dict()["tokens"][0] == {"text": "Hello", "without": -3.0, "with_hindsight": -0.5, "advantage": 2.5}


def test_colours_have_a_direction_a_size_and_an_underline() -> None:
    spans = re.findall(r"<span[^>]*data-tip[^>]*>", heatmap_fragment(heat()))
    assert 'class="f7"' in spans[0]
    assert 'class="a5 u"' in spans[1]
    text = heatmap_terminal(heat(control_hindsight="x", control=TOKENS[:1]))
    assert isinstance(text, Text)
    console = Console(width=200, force_terminal=True, color_system="truecolor", legacy_windows=False)
    with console.capture() as capture:
        console.print(text)
    assert "Control" in text.plain and "\x1b[4;30;48;2;" in capture.get()
    assert mean_size([]) == 0.0


def test_a_measured_heat_map(tiny: str) -> None:
    mine, other = held(1), held(2, hindsight="En español, por favor.")
    turn, said = mine.turn, mine.interaction.hindsight
    measured = measure_heatmap(turn, said, other.interaction.hindsight, model=tiny)
    assert "".join(token.text for token in measured.tokens) == "An answer.<|im_end|>"
    assert (measured.question, measured.control_hindsight) == ("What is 1?", "En español, por favor.")
    assert [t.without for t in measured.tokens] == pytest.approx([t.without for t in measured.control], abs=1e-2)
    assert any(t.advantage != c.advantage for t, c in zip(measured.tokens, measured.control, strict=True))
    assert measure_heatmap(turn, said, None, model=tiny).control == ()


def test_requested_heat_maps_are_scored_once_and_again_when_asked_again(tmp_path: Path, tiny: str) -> None:
    mine, silent = held(1, hindsight="Please make it shorter."), held(2, hindsight="")
    with Store.open(tmp_path / "afterword.db") as store:
        store.write(mine.turn, silent.turn)
        store.write(mine.interaction, silent.interaction)
        assert measure_requested(store, model=tiny) == 0
        for number, one in enumerate((mine, silent)):
            store.write(WorkRequest(id=f"q{number}", interaction=one.interaction.id, kind="heatmap"))
        assert measure_requested(store, model=tiny) == 2
        assert measure_requested(store, model=tiny) == 0
        row = store.newest(AnswerAdvantages, interaction=mine.interaction.id)
        assert row is not None and not row.error and len(row.tokens) == len(row.without) == len(row.with_hindsight) > 0
        measured = measure_heatmap(mine.turn, "Please make it shorter.", None, model=tiny)
        drawn = heatmap_of(store, row)
        assert [t.advantage for t in drawn.tokens] == pytest.approx([t.advantage for t in measured.tokens], abs=2e-3)
        failed = store.newest(AnswerAdvantages, interaction=silent.interaction.id)
        assert failed is not None and "no text for the teacher" in failed.error and failed.tokens == ()
        store.write(WorkRequest(id="q9", interaction=mine.interaction.id, kind="heatmap", created_at=time.time() + 1))
        assert measure_requested(store, model=tiny) == 1


def test_the_control_says_something_else_and_is_always_the_same(tmp_path: Path) -> None:
    mine = held(1, hindsight="Please make it shorter.")
    with Store.open(tmp_path / "afterword.db") as store:
        store.write(mine.turn)
        store.write(mine.interaction)
        assert control_for(store, mine.turn, "Please make it shorter.") is None
        for n, words in ((2, "Make it shorter, please."), (3, "Please make it much shorter.")):
            store.write(held(n).turn)
            store.write(held(n, hindsight=words).interaction)
        alike = control_for(store, mine.turn, "Please make it shorter.")
        assert alike is not None and alike.text in ("Make it shorter, please.", "Please make it much shorter.")
        aside = Feedback(id="f9", turn=held(2).turn.id, kind="follow_up", text="What is the time in Lima?")
        store.write(aside)
        store.write(Skip(id="s9", turn=aside.turn, feedback="f9", reason="off_topic", detail="it is"))
        assert control_for(store, mine.turn, "Please make it shorter.") == ControlText(
            "What is the time in Lima?", "f9"
        )
        store.write(held(4).turn)
        store.write(held(4, hindsight="En español, por favor.").interaction)
        other = control_for(store, mine.turn, "Please make it shorter.")
        assert other == ControlText("En español, por favor.", held(4).interaction.id)


def test_the_strongest_tokens_come_with_both_numbers() -> None:
    plain = str(heatmap_terminal(heat()))
    assert "for 'Hello'  with -0.50, without -3.00" in plain
    assert "against" in plain and "with -2.00, without -0.10" in plain
    assert "Strongest against" in heatmap_fragment(heat()) and "+2.5" in heatmap_fragment(heat())
    calm = heat(tokens=[TokenAdvantage("Hello", -1.0, -1.05, -0.05)])
    assert "Strongest" not in heatmap_fragment(calm) and "without" not in str(heatmap_terminal(calm))


def test_a_character_of_several_tokens_is_one_and_control_characters_are_shown() -> None:
    tokens = [
        TokenAdvantage("", -1.0, -2.0, -1.0),
        TokenAdvantage("🥚", -0.5, -1.0, -0.5),
        TokenAdvantage("\x1b[31m", -1.0, -1.0, 0.0),
    ]
    odd = heat(tokens=tokens, question="\x1b]0;mine\x07?", hindsight="No \x1b[2J eggs.")
    page, shown = heatmap_fragment(odd), heatmap_terminal(odd)
    assert "with -3.00, without -1.50, advantage -1.50 nats" in page and page.count("data-tip") == 2
    assert isinstance(shown, Text) and "🥚␛[31m" in shown.plain and "'🥚'  with -3.00" in shown.plain
    assert (
        "\x1b" not in shown.plain and "No ␛[2J eggs." in shown.plain and "\x1b" not in page.split("<p class=tokens>")[1]
    )
    assert mean_size(tokens) == pytest.approx(0.5)


def test_a_wide_terminal_has_the_control_beside_and_a_poor_one_keeps_the_direction() -> None:
    both = heat(question="Why?", hindsight="Shorter.", control_hindsight="Merci !", control=TOKENS[:1])
    console = Console(width=140, force_terminal=True, color_system="standard", legacy_windows=False)
    with console.capture() as capture:
        console.print(heatmap_terminal(both, beside=True, basic=True))
    said = capture.get()
    assert any("What the user wrote next" in line and "Control, words" in line for line in said.splitlines())
    assert "\x1b[30;44mHello" in said and "\x1b[4;30;43m" in said  # blue for it, yellow and underlined against it
    assert max(len(Text.from_ansi(line).plain) for line in said.splitlines()) <= 140


def test_what_changed_is_told_in_order() -> None:
    changed = {"prompt": NASTY, "before": "I can't.", "after": NASTY, "says": "refusals"}
    changes = [{"suite": "safety", "figure": "refusals", "better": False, "p": 0.001, "adjusted": 0.004}]
    report = Report(
        id="rep-2", candidate="cand-1", against=None,
        suites={"safety": {"refusals": figure(-0.5, -0.7, -0.3), "refusals_served": figure(0.9, 0.8, 1.0),
                           "refusals_candidate": figure(0.4, 0.2, 0.6)}},
        about={"changes": changes, "changed": {"safety": [changed]}},
    )  # fmt: skip
    page = render_report(candidate(), report, verdict(), losses=[0.5, 0.2], monitors={"Overlap": [0.9, 0.8]})
    text = " ".join(outline(page).text)
    assert "Harmful requests declined" in text and "safety: 1 answers changed sides" in text and "Overlap" in text
    assert "Harmful requests declined (p = 0.004)" in text.replace("  ", " ")
    assert page.count("<svg") == 3


def test_a_report_that_an_earlier_version_stored_is_shown_under_the_names_of_today() -> None:
    stored = json.loads((Path(__file__).parent / "data/report_of_0_1.json").read_text(encoding="utf-8"))
    report = Report.from_dict(stored)
    text = " ".join(outline(render_report(candidate(), report, decide(report))).text)
    assert "need_drop" not in text and "need drop" not in text
    assert text.count("Correction needed (KL to the base that reads the follow-up)") > 1  # in the suite, and by answer
    assert "\u22120.015 nats a token" in text
