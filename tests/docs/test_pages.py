"""The code blocks of the README and of the tutorial run as written, in order, and print what the pages show."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from afterword.cli.entry import parser
from tests.docs.pages import MADE, ROOT, Block, Reader, blocks, commands, missing

README, TUTORIAL = ROOT / "README.md", ROOT / "docs" / "tutorial.md"
PAGES = (README, TUTORIAL)


def steps(page: Path) -> list[Block]:
    """The blocks that a reader runs in the empty folder; targets of the Makefile are `.ci/run`'s."""
    return [block for block in blocks(page) if not all(line.startswith(MADE) for line in commands(block)) or
            block.language == "python"]  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_on_the_page_is_one_that_there_is(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    lines = [line for block in blocks(page) for line in commands(block)]
    assert lines
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            assert words[1] in targets, f"{page.name}: {line}"
        elif words[0] == "afterword" and "--help" not in words:
            parser().parse_args(words[1:])


def test_fences_without_a_language_hold_no_command() -> None:
    for page in PAGES:
        for language, body in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
            if language not in ("bash", "python"):
                assert not re.search(r"^(afterword|make|pip|import|from) ", body, re.MULTILINE) or language == "toml"


def test_the_tutorial_but_for_its_cycle(tmp_path: Path) -> None:
    """A server, two chat turns, a correction, one interaction, its heat map, the examples, a rollback.

    The cycle takes minutes and is the README's, which `.ci/run` runs from top to bottom.
    """
    long = {line.split("#")[0].strip() for block in steps(README) if block.long for line in commands(block)}
    with Reader(tmp_path / "empty") as reader:
        for block in steps(TUTORIAL):
            if block.long:
                assert set(commands(block)) <= long
            else:
                reader.follow(block)
    assert len(reader.seconds) >= 7


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    with Reader(tmp_path / "empty") as reader:
        for block in steps(page):
            reader.follow(block)
    print("\n" + "\n".join(f"{seconds:7.1f} s  {place}" for place, seconds in reader.seconds.items()))


def _page(tmp_path: Path, text: str) -> list[Block]:
    page = tmp_path / "page.md"
    page.write_text(text, "utf-8")
    return blocks(page)


def test_blocks_know_their_language_exit_codes_and_output(tmp_path: Path) -> None:
    text = (
        "a\n\n```bash\necho hi   # greet\n```\n\n```text\nhi\n```\n<!-- exit 3 -->\n```bash\nexit 3\n```\n```\nb\n```\n"
    )
    first, second = _page(tmp_path, text)
    assert (first.line, first.language, first.shows, first.codes) == (3, "bash", "hi\n", (0,))
    assert second.codes == (0, 3) and list(commands(first)) == ["echo hi   # greet"]


def test_a_block_that_fails_prints_something_else_or_takes_too_long_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Reader(tmp_path / "empty") as reader:
        (good,) = _page(tmp_path, "```bash\necho one; echo two three\n```\n```text\none\ntwo …\n```\n")
        assert reader.follow(good) == "one\ntwo three\n"
        (other,) = _page(tmp_path, "```bash\necho one\n```\n```text\ntwo\n```\n")
        with pytest.raises(AssertionError, match=r"page.md:1 does not print \['two'\]"):
            reader.follow(other)
        (failing,) = _page(tmp_path, "```bash\nfalse | true\n```\n")
        with pytest.raises(AssertionError, match=r"page.md:1 ended with 1"):
            reader.follow(failing)
        (wrong,) = _page(tmp_path, "```python\nraise SystemExit(4)\n```\n")
        with pytest.raises(AssertionError, match=r"page.md:1 ended with 4"):
            reader.follow(wrong)
        monkeypatch.setattr("tests.docs.pages.SECONDS", 0.3)
        (slow,) = _page(tmp_path, "```bash\nsleep 5\n```\n")
        with pytest.raises(AssertionError, match=r"took more than 1.2 s"):
            reader.follow(slow)
        (late,) = _page(tmp_path, "```bash\nsleep 0.5\n```\n")
        monkeypatch.setattr("os.getloadavg", lambda: (0.5, 9.0, 9.0))
        with pytest.raises(AssertionError, match=r"page.md:1 took [01] s, more than 0.3 s"):
            reader.follow(late)
        monkeypatch.setattr("os.getloadavg", lambda: (1000.0, 0.0, 0.0))
        reader.follow(late)


def test_shown_lines_must_come_in_order() -> None:
    assert missing("a …\nc\n", "x\na  1\nb\nc") == []
    assert missing("c\na …\n", "a 1\nc") == ["a …"]
