"""What the operating system refuses is one sentence with a remedy, never a traceback, and never half a file."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from afterword.cli import entry, main
from afterword.store import files
from afterword.store.files import file_system_error, write_whole

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/a.db")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (FULL, r"cannot write '/data/a.db': No space left.*Free some space.*same command again"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), r"cannot write: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), r"no permission for '/x'.*as user \d+\).*--dir"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), r"cannot write '/x': Read-only.*Mount it writable"),
        (OSError(errno.EMFILE, "Too many open files"), r"access: Too many open files"),
        (RuntimeError("while that was handled"), r"No space left"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_a_command_ends_with_a_sentence(
    error: Exception, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if isinstance(error, RuntimeError):
        error.__context__ = FULL

    def broken(context: object) -> int:
        raise error

    monkeypatch.setattr("afterword.cli.admin.run_config", broken)
    assert main(["--dir", str(tmp_path), "config"]) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said and len(said.splitlines()) == 1
    found = file_system_error(error, (tmp_path,))
    assert found is not None
    assert re.search(told, found.message) and found.message in said.replace("\n", " ")


def test_a_fault_of_ours_is_still_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(context: object) -> int:
        raise KeyError("ours")

    monkeypatch.setattr("afterword.cli.admin.run_config", broken)
    with pytest.raises(KeyError):
        entry.main(["--dir", str(tmp_path), "config"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_full_disk_behind_stdout_is_told(form: tuple[str, ...], tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "afterword", "--dir", str(tmp_path), *form, "config", "show"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "No space left" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_file_is_replaced_whole_or_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.html"
    write_whole(page, "first")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*page\.html'"):
        write_whole(page, "second")
    assert page.read_text() == "first" and list(tmp_path.iterdir()) == [page]
    monkeypatch.undo()
    write_whole(page, b"second")
    assert page.read_text() == "second"


def test_the_full_place_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_LEAST", 1 << 62)
    found = file_system_error(OSError(errno.ENOSPC, "No space left on device"), (tmp_path / "not" / "made",))
    assert found is not None and str(tmp_path / "not" / "made") in found.message


def test_a_private_file_is_readable_by_its_user_alone_and_others_as_usual(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        for private, mode in ((True, 0o600), (False, 0o644)):
            write_whole(tmp_path / "file", "new", private=private)
            assert (tmp_path / "file").stat().st_mode & 0o777 == mode
            assert [path.name for path in tmp_path.iterdir()] == ["file"]
    finally:
        os.umask(before)
