"""Files of `deploy/` name commands, extras and files that exist; the backup script copies what is being written."""

from __future__ import annotations

import re
import shlex
import subprocess
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from afterword.cli.entry import parser
from afterword.records import Turn
from afterword.store import Store

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text("utf-8"))


def commands() -> list[tuple[str, list[str]]]:
    """Every call of our command in the files, with its place."""
    found = []
    for unit in sorted((DEPLOY / "systemd").glob("*.service")):
        for line in re.findall(r"^ExecStart=(.*)$", unit.read_text("utf-8"), re.MULTILINE):
            program, *words = shlex.split(line.replace("%%", "%"))
            if program.endswith("/afterword"):
                found.append((unit.name, words))
    for name, service in COMPOSE["services"].items():
        if service.get("image") == "afterword":
            found.append((f"compose {name}", service["command"]))
    (words,) = re.findall(r"^CMD \[(.*)\]$", (DEPLOY / "docker" / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    return [*found, ("Dockerfile", [word.strip().strip('"') for word in words.split(",")])]


@pytest.mark.parametrize("words", [words for _, words in commands()], ids=[name for name, _ in commands()])
def test_commands_are_ours(words: list[str]) -> None:
    assert parser().parse_args(words).run is not None


def test_what_the_image_installs_exists() -> None:
    text = (DEPLOY / "docker" / "Dockerfile").read_text("utf-8")
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", text)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= set(known)
    for copied in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
        assert all((ROOT / name).exists() for name in copied.split())


def test_services_share_volumes_that_are_declared() -> None:
    used = {place.split(":")[0] for one in COMPOSE["services"].values() for place in one["volumes"]}
    assert used == set(COMPOSE["volumes"])
    settings = COMPOSE["services"]["gateway"]["environment"]
    assert all(name.startswith("AFTERWORD_") for name in settings)


def test_a_backup_while_rows_are_written_is_whole(tmp_path: Path) -> None:
    data, target, stop = tmp_path / "data", tmp_path / "copies", threading.Event()
    (data / "adapters" / "cand-1").mkdir(parents=True)
    (data / "adapters" / "cand-1" / "adapter_config.json").write_text("{}")
    (data / "keys.json").write_text("{}")
    (data / "logs").mkdir()

    with Store.open(data / "afterword.db") as store:
        store.write(*(Turn(id=f"old-{i}", messages=(), answer={}) for i in range(50)))

        def write() -> None:
            number = 0
            while not stop.is_set():
                store.write(Turn(id=f"new-{number}", messages=(), answer={"content": "x" * 500}))
                number += 1

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(2):
                subprocess.run([DEPLOY / "backup.sh", data, target], check=True, capture_output=True)
        finally:
            stop.set()
            writer.join()
    copy = target / "afterword"
    assert sorted(path.name for path in target.iterdir()) == ["afterword", "afterword.before"]
    assert (copy / "adapters" / "cand-1" / "adapter_config.json").is_file() and (copy / "keys.json").is_file()
    assert not (copy / "logs").exists() and copy.stat().st_mode & 0o077 == 0
    with Store.open(copy / "afterword.db") as restored:
        names = {turn.id for turn in restored.rows(Turn)}
        assert {f"old-{i}" for i in range(50)} <= names
        new = sorted(int(name.removeprefix("new-")) for name in names if name.startswith("new-"))
        assert new == list(range(len(new)))  # one moment: nothing missing in between


def test_a_backup_of_nothing_says_so(tmp_path: Path) -> None:
    done = subprocess.run([DEPLOY / "backup.sh", tmp_path, tmp_path / "to"], capture_output=True, text=True)
    assert done.returncode == 2 and "usage:" in done.stderr and not (tmp_path / "to").exists()
