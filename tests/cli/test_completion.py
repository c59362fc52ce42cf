"""Shell completion in the real shells: what bash, zsh and fish offer for the beginning of a command line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BASH = """
eval "$(afterword completion bash)"
COMP_LINE="$1"; COMP_POINT=${#1}; COMP_TYPE=9; COMP_KEY=9
read -ra COMP_WORDS <<< "$1"; [[ "$1" == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
"$(complete -p afterword | sed 's/.*-F \\([^ ]*\\).*/\\1/')" afterword "${COMP_WORDS[COMP_CWORD]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
FISH = 'afterword completion fish | source; complete --do-complete "$argv[1]" | string split -f1 \\t'


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """`afterword` on the PATH, as an installation puts it there."""
    place = tmp_path_factory.mktemp("bin")
    script = place / "afterword"
    script.write_text(f"#!{sys.executable}\nfrom afterword.cli import main\nraise SystemExit(main())\n", "utf-8")
    script.chmod(0o755)
    source = str(Path(__file__).parents[2] / "src")
    return {**os.environ, "PATH": f"{place}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": source, "HOME": str(place)}


def offered(words: list[str], environment: dict[str, str]) -> set[str]:
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return {line.strip() for line in done.stdout.splitlines() if line.strip()}


@pytest.mark.parametrize(
    ("line", "wanted", "other"),
    [("afterword rele", {"release", "releases"}, {"serve"}),
     ("afterword train --re", {"--recipe", "--revise"}, {"--seed"}),
     ("afterword release pro", {"promote"}, {"publish"}),
     ("afterword status --by ", {"all", "task", "adapter", "week"}, {"--json"}),
     ("afterword cycle --set cycle.", {"cycle.interval=", "cycle.min_new="}, {"serve.port="})],
)  # fmt: skip
def test_bash_offers_commands_options_choices_and_settings(
    line: str, wanted: set[str], other: set[str], environment: dict[str, str]
) -> None:
    found = offered(["bash", "--norc", "-c", BASH, "bash", line], environment)
    assert {word.strip() for word in found} >= wanted and not found & other, found


def test_fish_offers_commands(environment: dict[str, str]) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    assert offered(["fish", "--no-config", "-c", FISH, "afterword rele"], environment) >= {"release", "releases"}


def test_zsh_reads_its_completion(environment: dict[str, str]) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    script = 'autoload -U compinit; compinit -D; eval "$(afterword completion zsh)"; print ${_comps[afterword]}'
    assert offered(["zsh", "-f", "-c", script], environment) == {"_python_argcomplete"}


def test_an_unknown_shell_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    from afterword.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["completion", "tcsh"])
    assert ended.value.code == 2 and "bash, zsh, fish" in capsys.readouterr().err
