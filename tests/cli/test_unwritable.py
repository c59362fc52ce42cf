"""Every command on a folder of somebody else, on a read-only mount and on a full disk: a sentence, never a traceback.

One child process a place (it mounts, or gives up its rights) runs all commands by `main`, as the shell would.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.train.tiny_model import example, tiny_folder

import afterword
from afterword.records import Feedback, Interaction, Turn
from afterword.store import Store

CHILD = """
import json, os, pkgutil, subprocess, sys
import afterword, afterword.cli.entry as entry
for module in pkgutil.walk_packages(afterword.__path__, "afterword."):  # before the rights to read them are given up
    if not module.name.endswith("__main__"):
        __import__(module.name)
import http.server
import transformers, transformers.models.llama.modeling_llama, transformers.models.llama.tokenization_llama

place, home, commands = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
if place == "other user":
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
elif place == "read-only":
    subprocess.run(["mount", "--bind", home, home], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", home], check=True)
elif place == "full":
    with open(home + "/fill", "wb", 0) as fill:
        try:
            while fill.write(b"0" * 65536): pass
        except OSError: pass
        try:
            while fill.write(b"0"): pass
        except OSError: pass
try:
    for command in commands:
        try:
            code = entry.main(["--dir", home, *command])
        except SystemExit as error:
            code = error.code
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
        sys.stderr.write("\\n@@" + json.dumps([command, code]) + "\\n")
        sys.stderr.flush()
finally:
    if place == "read-only":
        subprocess.run(["umount", "-l", home])
"""
READ = [["status"], ["turns", "list"], ["turns", "show", "turn-0"], ["interactions", "list"], ["export", "turns"],
        ["config", "show"], ["keys", "list"], ["release", "status"], ["review", "list"], ["recipes", "list"],
]  # fmt: skip
WRITE = [["import", "{file}"], ["export", "turns", "--output", "{home}/out.jsonl"], ["keys", "create"],
         ["train", "--set", "train.min_interactions=1"], ["release", "rollback"], ["forget", "--user", "ada"],
         ["review", "approve", "int-0"], ["heatmap", "turn-0", "--html", "{home}/page.html"], ["serve", "--upstream",
          "http://127.0.0.1:9", "--port", "0"], ["demo", "--quick", "--dir", "{home}/demo"]]  # fmt: skip
OTHERS = [["doctor"], ["collect"], ["train", "--dry-run"], ["forget", "--user", "ada", "--dry-run"]]


def prepared(home: Path, model: str) -> None:
    with Store.open(home / "afterword.db") as store:
        for number in range(3):
            one = example(model, number)
            turn = Turn.from_dict(one.turn.to_dict() | {"user": "ada"})
            store.write(turn, Feedback(id=one.interaction.feedback[0], turn=turn.id, kind="follow_up", text="Shorter."))
            store.write(Interaction.from_dict(one.interaction.to_dict() | {"user": "ada"}))
    (home / "afterword.toml").write_text(f'[serve]\nmodel = "{model}"\n', encoding="utf-8")


def outcomes(place: str, home: Path, file: Path, commands: list[list[str]]) -> dict[str, tuple[Any, str]]:
    """Command -> (exit code or the exception, what it said)."""
    filled = [[word.format(home=home, file=file) for word in command] for command in commands]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, place, str(home), json.dumps(filled)],
        capture_output=True, text=True, timeout=240, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    found, said = {}, ""
    for line in done.stderr.splitlines():
        if line.startswith("@@"):
            command, code = json.loads(line[2:])
            found[" ".join(command)] = (code, said)
            said = ""
        else:
            said += line + "\n"
    assert len(found) == len(commands), done.stderr[-2000:]
    return found


def open_to_all(folder: Path) -> bool:
    return folder.is_dir() and all(part.stat().st_mode & 0o001 for part in (folder, *folder.parents))


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A folder that every user can reach: pytest's own are private, and so may be the whole of TMPDIR."""

    places = [Path(tempfile.gettempdir()).resolve(), Path("/tmp"), Path("/var/tmp")]
    place = next(filter(open_to_all, places), None)
    if place is None:
        pytest.skip(f"other users can reach none of {', '.join(map(str, places))}")
    with tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(folder)


def can_mount(folder: Path) -> bool:
    """Root in a container often cannot."""
    if subprocess.run(["mount", "--bind", folder, folder], check=False, capture_output=True).returncode:
        return False
    subprocess.run(["umount", folder], check=True)
    return True


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount and to become another user")
@pytest.mark.parametrize("place", ["other user", "read-only", "full"])
def test_every_command_ends_with_a_sentence(place: str, open_path: Path) -> None:
    model, home = tiny_folder(open_path / "model"), open_path / "home"
    home.mkdir()
    small = place == "full"
    if place == "other user" and not open_to_all(Path(afterword.__file__).resolve().parent):
        pytest.skip("this checkout lies in a private folder: another user cannot run it")
    if place != "other user" and not can_mount(home):
        pytest.skip("this machine does not let us mount")
    if small:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(home)], check=True)
    try:
        prepared(home, model)
        file = open_path / "chats.jsonl"
        file.write_text('{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}\n')
        for path in (open_path, *open_path.rglob("*")):
            path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
        before = {path: path.read_bytes() for path in home.glob("afterword.*") if path.suffix in (".db", ".toml")}
        found = outcomes(place, home, file, [*READ, *WRITE, *OTHERS])
        for command, (code, said) in found.items():
            assert code in range(5), (command, code, said)
            assert "Traceback" not in said, (command, said)
        for reads in READ:
            assert found[" ".join(reads)][0] == 0, found[" ".join(reads)]
        for wanted in WRITE:
            code, said = found[" ".join(wanted).format(home=home, file=file)]
            assert code != 0, wanted
            assert len(said.strip().splitlines()) <= 4, said
        assert all(path.read_bytes() == data for path, data in before.items())
        assert not list(home.glob("*.part")) and not list(home.glob("*.html")) and not list(home.glob("adapters/*"))
        if not small:
            return
        (home / "fill").unlink()
        again = outcomes("with room", home, file, [["import", "{file}"], ["keys", "create"], ["status"]])
        assert [code for code, _ in again.values()] == [0, 0, 0], again
    finally:
        if small:
            subprocess.run(["umount", str(home)], check=False)
