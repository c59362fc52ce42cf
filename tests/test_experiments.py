"""The bookkeeping of the experiments: a finished cell is not run again, and tables and pictures come from the rows."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parent.parent / "experiments" / "people"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("people_book", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def book() -> ModuleType:
    return load(FOLDER / "book.py")


def test_rows_say_which_code_ran_and_edited_code_shares_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "repository" / "experiments" / "people"
    (folder / "results").mkdir(parents=True)
    shutil.copy(FOLDER / "book.py", folder)
    (folder / "results" / "recipes.md").write_text("none yet\n", "utf-8")
    copied = load(folder / "book.py")
    assert copied.commit() == "unknown" and copied.kept_by() is None
    whoever = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    for words in (("init", "--quiet"), ("add", "."), (*whoever, "commit", "--quiet", "--message", "first")):
        subprocess.run(["git", *words], cwd=tmp_path / "repository", check=True)
    head = copied.commit()
    assert re.fullmatch("[0-9a-f]{7,}", head) and copied.kept_by() == head
    (folder / "results" / "recipes.md").write_text("a table\n", "utf-8")  # every cell writes one
    assert copied.commit() == head
    (folder / "new.py").write_text("", "utf-8")
    assert copied.commit() == f"{head}-changed" and copied.kept_by() is None


def test_a_finished_cell_is_not_run_again(book: ModuleType, tmp_path: Path) -> None:
    rows = book.Book(tmp_path / "out", "personalise")
    cell = {"seed": 0, "persona": "brief", "model": "tiny", "scale": 1.0}
    assert rows.rows() == [] and not rows.has(cell)
    rows.add(cell, {"win": 0.9}, 12.34)
    again = book.Book(tmp_path / "out", "personalise")
    assert again.has(cell) and not again.has({**cell, "seed": 1}) and not again.has({**cell, "scale": 0.04})
    assert (again.rows()[0]["win"], again.rows()[0]["seconds"]) == (0.9, 12.3)
    assert again.write(".md", "text").read_text("utf-8") == "text"


def test_intervals_are_over_seeds(book: ModuleType) -> None:
    middle, low, high = book.over_seeds([0.8, 0.9, 1.0])
    assert (middle, low, high) == pytest.approx((0.9, 0.9 - 0.2484, 0.9 + 0.2484), abs=1e-4), "Student's t"
    assert book.percent([0.86]) == "86"
    assert book.percent([0.8, 0.9, 1.0]).startswith("90 [") and book.percent([0.8, 0.9, 1.0]).endswith("100]")


def test_groups_keep_their_order_and_tables_their_width(book: ModuleType) -> None:
    rows = [{"cell": {"persona": p, "seed": s}} for s in (0, 1) for p in ("spanish", "brief")]
    assert {key: len(found) for key, found in book.by(rows, "persona").items()} == {("spanish",): 2, ("brief",): 2}
    lines = book.table(("a", "b"), [(1, 2), ("x", "y")]).splitlines()
    assert {line.count("|") for line in lines} == {3} and len(lines) == 4


def test_a_picture_is_whole_and_inside_its_frame(book: ModuleType) -> None:
    lines = [("brief <&>", [(0.0, [0.5]), (50.0, [0.8, 1.2]), (200.0, [])]), ("json", [])]
    tree = ET.fromstring(book.chart(lines, "interactions", marks=(0.85,)))
    places = [float(dot.attrib["cy"]) for dot in tree.iter() if dot.tag.endswith("circle")]
    assert len(places) == 2 and all(0 <= y <= 380 for y in places)
    assert "brief <&>" in "".join(tree.itertext())


def test_bars_end_at_their_value_and_stay_inside(book: ModuleType) -> None:
    groups = [("brief", [("distilled <&>", [0.7, 0.8, 0.9]), ("imitated", [0.25])]), ("json", [("distilled", [0.0])])]
    tree = ET.fromstring(book.bars(groups, "wins", 0.5))
    wide, high = (float(part) for part in tree.attrib["viewBox"].split()[2:])
    bars = [one.attrib for one in tree.iter() if one.tag.endswith("rect")][1:]
    assert [float(bar["width"]) for bar in bars] == [0.8 * 420, 0.25 * 420, 0.0]
    assert all(float(one.attrib["x2"]) <= wide for one in tree.iter() if one.tag.endswith("line"))
    assert all(float(bar["y"]) < high for bar in bars)
    assert {"brief", "json", "distilled <&>", "80 [55, 100]", "25", "0"} <= set(tree.itertext())


def test_panels_share_their_colours_and_stay_inside(book: ModuleType) -> None:
    charts = [
        ("brief", [("default", [(0.0, [0.5])])], (0.72,)),
        ("json", [("beyond", [(0.0, [0.5]), (50.0, [0.9])])], ()),
    ]
    tree = ET.fromstring(book.panels(charts, "interactions", "wins"))
    wide, high = (float(part) for part in tree.attrib["viewBox"].split()[2:])
    dots = [one.attrib for one in tree.iter() if one.tag.endswith("circle")]
    assert [dot["fill"] for dot in dots] == [book.COLOURS[0], book.COLOURS[1], book.COLOURS[1]]
    assert all(0 <= float(dot["cx"]) <= wide and 0 <= float(dot["cy"]) <= high for dot in dots)
    assert {"brief", "json", "default", "beyond"} <= set(tree.itertext())


def test_some_cells_can_be_asked_for_and_none_is_an_error(tmp_path: Path) -> None:
    said = [sys.executable, str(FOLDER / "run.py"), "robustness", "--out", str(tmp_path), "--only", "share=7"]
    done = subprocess.run(said, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--only leaves no cell: a cell is" in done.stderr and "'share': '0'" in done.stderr


SMOKED = {
    "personalise": ("--personas", "brief", "--variants", "sdpo-interactions,follow-ups"),
    "change_of_mind": ("--personas", "turns_to_detail"),
    "complementary": ("--personas", "numbered>greeting"),
    "robustness": (),
    "control_sft": ("--personas", "brief", "--recipe", "follow-ups"),
    "recipes": ("--personas", "brief", "--variants", "follow-ups,paper online"),
    "continual": (),
    "adapters": (),
    "teachers": ("--personas", "brief"),
    "ceilings": ("--personas", "brief"),
    "heatmaps": (),
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SMOKED)
def test_every_cell_of_an_experiment_runs(name: str, tmp_path: Path) -> None:
    """With tiny numbers on the built-in model; offline_logs needs a log."""
    command = [sys.executable, str(FOLDER / "run.py"), name, "--smoke", "--out", str(tmp_path), *SMOKED[name]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text("utf-8").splitlines()]
    assert rows and all(row["seconds"] > 0 for row in rows)
    assert (tmp_path / f"{name}.md").read_text("utf-8").count("|") > 10


def test_changes_of_the_default_can_be_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    variants = importlib.import_module("variants")

    from afterword.learn.recipes.validate import check_runnable

    for name in variants.LOOPS:
        made = variants.made(name)
        check_runnable(made)
        assert made.name == "follow-ups" and made != variants.made("follow-ups")
